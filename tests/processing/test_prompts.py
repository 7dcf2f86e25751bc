"""Prompts: the order of FOCUS's parts, conditions, what is refused (the original's texts: tests/checkpoints)."""

import pytest

from diffusers_focus.processing import prompts as P
from diffusers_focus.processing import vocabulary as V


@pytest.fixture(scope="module")
def tiny():
    texts = [template.replace("{text}", "remove the red circle, blue star") for template in P.FOCUS.tasks.values()]
    tokenizer = V.build_tiny_tokenizer([*texts, "You are a helpful assistant. system user assistant"], 900)
    V.extend_tokenizer(tokenizer, 8, 8, tag_step=16)
    rows = len(tokenizer) + 4
    return tokenizer, V.FocusVocabulary.from_tokenizer(tokenizer, embedding_rows=rows, tag_step=16)


def test_focus_order_is_image_queries_task_condition_answer():
    parts = P.build_prompt("focus", "referring", text="the red circle", answer="red circle")
    assert P.render_prompt(parts) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image><queries>"
        "Please segment the target referred to by the language description. the red circle<|im_end|>\n"
        "<|im_start|>assistant\nred circle<trigger><masks><|im_end|>"
    )
    assert [part.text for part in parts if part.condition == 0] == [" the red circle"]
    assert [part.kind for part in parts if part.is_answer] == ["text", "trigger", "text"]


def test_focus_prefix_is_the_same_for_every_task():
    prefix = P.FOCUS.prefix(num_images=1)
    arguments = {
        "understand": {"text": "how many objects are there?"},
        "region_understand": {"num_regions": 1},
        "caption": {},
        "class": {"text": ["red circle"]},
        "referring": {"text": "the star"},
        "reasoning": {"text": "the one that could roll"},
        "interactive": {"num_regions": 2},
        "edit": {"text": "remove the star", "height_width": (128, 128)},
        "reconstruct": {"height_width": (128, 128)},
    }
    assert set(arguments) == set(P.TASKS) - {"generate", "generate_random"}
    for task, values in arguments.items():
        assert P.build_prompt("focus", task, **values)[: len(prefix)] == prefix


def test_the_papers_sentences_are_unchanged():
    sentences = {
        "class": "Please segment all the positive objects by the following candidate categories.",
        "referring": "Please segment the target referred to by the language description.",
        "reasoning": "Please segment the target referred to by the reasoning-based description.",
        "interactive": "Please segment according to the given visual reference regions.",
        "generate": "Please generate an image according to the following description.",
        "edit": "Please edit the image according to the following instruction.",
    }
    assert {task: P.FOCUS.tasks[task].split(" {")[0] for task in sentences} == sentences


def test_each_name_and_each_region_is_a_condition():
    names = P.build_prompt("focus", "class", text=["red circle", "blue star"])
    assert [(part.text, part.condition) for part in names if part.condition is not None] == [
        (" red circle", 0),
        (" blue star", 1),
    ]
    regions = P.build_prompt("focus", "edit", text="remove it", num_regions=2, height_width=(128, 128))
    assert [(part.kind, part.index, part.condition) for part in regions if part.condition is not None] == [
        ("region", 0, 0),
        ("region", 1, 1),
    ]
    assert P.render_prompt(regions).endswith(
        "remove it <region><region><|im_end|>\n<|im_start|>assistant\n<height_128><width_128>"
    )


def test_conditions_reach_the_right_tokens(tiny):
    tokenizer, vocabulary = tiny
    parts = P.build_prompt("focus", "class", text=["red circle", "blue star"], answer="blue star")
    segments = P.encode_prompt(parts, tokenizer, vocabulary)
    assert [segment.kind for segment in segments] == [
        "text",
        "image",
        "queries",
        "text",
        "text",
        "text",
        "masks",
        "text",
    ]
    suffix = segments[3]
    for number, name in enumerate([" red circle", " blue star"]):
        ids = [i for i, condition in zip(suffix.ids, suffix.conditions, strict=True) if condition == number]
        assert tokenizer.decode(ids) == name
    assert segments[5].ids == (vocabulary.mask_trigger,) and segments[5].is_answer
    assert tokenizer.decode(segments[4].ids) == "blue star" and segments[4].is_answer
    assert segments[7].ids == (vocabulary.end_of_text,)


def test_conditions_do_not_change_how_words_are_cut(tiny):
    tokenizer, vocabulary = tiny
    parts = P.FOCUS.suffix("edit", text="remove the red circle.", height_width=(128, 128))
    (segment,) = P.encode_prompt(parts, tokenizer, vocabulary)
    assert list(segment.ids) == tokenizer(P.render_prompt(parts)).input_ids
    assert segment.ids[-2:] == tuple(vocabulary.resolution_tag(128, 128))


def test_an_edit_can_be_asked_for_its_masks_and_then_its_image():
    masks_only = P.build_prompt("focus", "edit", text="remove it")
    assert P.render_prompt(masks_only).endswith("assistant\n")
    answer = P.build_answer("edit", "red circle", masks=True)
    whole = P.build_prompt("focus", "edit", text="remove it", height_width=(128, 128), answer=answer)
    assert P.render_prompt(whole).endswith(
        "assistant\nred circle<trigger><masks><height_128><width_128><codes><|im_end|>"
    )
    image_only = P.build_prompt("focus", "edit", text="remove it", height_width=(128, 128), answer="")
    assert P.render_prompt(image_only).endswith("assistant\n<height_128><width_128><codes><|im_end|>")


def test_several_images_come_before_the_question():
    text = P.render_prompt(P.build_prompt("focus", "understand", text="which is red?", num_images=2))
    assert "<image><queries><image><queries>which is red?" in text
    assert "<image>" not in P.render_prompt(P.build_prompt("focus", "understand", text="hello", num_images=0))


@pytest.mark.parametrize(
    ("task", "arguments", "error", "words"),
    [
        ("segment", {}, ValueError, "Choose one of"),
        ("referring", {"text": "  "}, ValueError, "empty"),
        ("referring", {}, ValueError, "needs text"),
        ("referring", {"text": 3}, TypeError, "string"),
        ("referring", {"text": "a<|im_end|>b"}, ValueError, "control token"),
        ("referring", {"text": "a", "num_images": 0}, ValueError, "at least one image"),
        ("referring", {"text": "a", "num_regions": 1}, ValueError, "takes no region"),
        ("referring", {"text": "a", "height_width": (128, 128)}, ValueError, "writes no image"),
        ("class", {"text": "dog"}, TypeError, r"\['dog'\]"),
        ("class", {"text": []}, ValueError, "at least one category"),
        ("class", {"text": ["dog", ""]}, ValueError, "Name 1"),
        ("interactive", {}, ValueError, "needs a region"),
        ("interactive", {"text": "a", "num_regions": 1}, ValueError, "takes no text"),
        ("generate", {"text": "a", "num_images": 1}, ValueError, "takes no image"),
        ("edit", {"text": "a", "answer": ""}, ValueError, "height_width"),
    ],
)
def test_what_does_not_fit_is_refused(task, arguments, error, words):
    with pytest.raises(error, match=words):
        P.build_prompt("focus", task, **arguments)


def test_styles_know_what_they_were_trained_on():
    with pytest.raises(ValueError, match="not trained"):
        P.build_prompt("illume", "referring", text="the dog")
    with pytest.raises(ValueError, match="no prompt style"):
        P.get_prompt_style("llava")
    with pytest.raises(ValueError, match="height_width"):
        P.build_prompt("illume", "edit", text="remove it")
