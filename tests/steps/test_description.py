"""Captions object by object: what is asked about, in which order it is said, and when an image is described as a whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_focus import FocusPipeline, FocusUnderstandPipeline, Mask, Point
from diffusers_focus.data.world import render, sample_scene
from diffusers_focus.processing.masks import left_to_right
from diffusers_focus.processing.numerals import NUMERALS, read_numeral
from diffusers_focus.steps.description import object_finder, objects_among
from diffusers_focus.steps.segment import FoundObjects
from diffusers_focus.steps.understand import FocusContext, _stream_finished

from tests.steps.test_understand import Seen
from tests.tiny import picture, seeded, shared_pipeline, tiny_pipeline

NAMES = ["circle", "square"]
OPTIONS = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(caption_classes=NAMES)


@pytest.fixture
def searches(monkeypatch, pipe):
    """A number for each time that objects were looked for."""
    seen, decode = [], type(pipe.mask_decoder).decode

    def watched(*args, **options):
        seen.append(len(seen))
        return decode(*args, **options)

    monkeypatch.setattr(type(pipe.mask_decoder), "decode", watched)
    return seen


@torch.no_grad()
def found(pipe, encoding, indices):
    return object_finder(pipe, encoding, pipe.config)(indices)


def named(pipe, image) -> str:
    """What a caller would put together by hand."""
    masks = found(pipe, pipe.encode_image(image), [0])[0]
    regions = [Mask(mask) for mask in masks]
    assert len(regions) > 1
    return ", ".join(filter(None, pipe.understand(image, [None] * len(regions), regions, **OPTIONS).text))


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


def test_what_is_found_is_what_segmenting_finds_from_left_to_right(pipe):
    """Without what is the same object once more."""
    seen = pipe.encode_image([picture(), picture(1)])
    objects = found(pipe, seen, [1, 0, 1])
    masks = pipe.segment(seen, classes=[NAMES, NAMES], score_threshold=pipe.config.fallback_threshold).masks
    assert set(objects) == {0, 1}
    for index, segmented in enumerate(map(np.asarray, masks)):
        kept: list[np.ndarray] = []
        for mask in segmented:  # the best first
            if all(overlap(mask, other) <= 0.5 for other in kept):
                kept.append(mask)
        assert len(objects[index]) == len(kept) > 1
        np.testing.assert_array_equal(np.stack(objects[index]), np.stack(kept)[left_to_right(kept)])
        centres = [np.nonzero(mask)[1].mean() for mask in objects[index]]
        assert centres == sorted(centres)


def proposals(*rows: tuple[int, float]) -> FoundObjects:
    """Bars of eight columns from a column on, each with its score, the best first."""
    masks = np.zeros((len(rows), 16, 32), dtype=bool)
    for mask, (left, _) in zip(masks, rows):
        mask[:, left : left + 8] = True
    return FoundObjects(masks, masks.any(axis=0), np.asarray([score for _, score in rows], np.float32))


@pytest.mark.parametrize(
    ("count", "lefts"),
    [(None, [0, 12]), (1, [0]), (2, [0, 12]), (3, [0, 12, 20]), (9, [0, 12, 20]), (0, [0])],
    ids=["by scores", "one", "two", "a doubtful one too", "no more than there are", "one is sure"],
)
def test_as_many_objects_are_asked_about_as_are_counted(count, lefts):
    rows = proposals((0, 0.95), (2, 0.93), (12, 0.6), (20, 0.1))  # the second is the first again
    kept = objects_among(rows, count, least=0.3)
    assert [int(np.nonzero(mask)[1].min()) for mask in kept] == lefts


def test_nothing_found_is_nothing_to_ask_about():
    empty = FoundObjects(np.zeros((0, 8, 8), bool), np.zeros((8, 8), bool), np.zeros(0, np.float32))
    assert objects_among(empty, 3, least=0.3).shape == (0, 8, 8)


@torch.no_grad()
def test_focus_tiny_asks_how_many_there_are(root):
    pipe = FocusPipeline.from_pretrained(root / "pipelines" / "focus-tiny")
    pipe.set_progress_bar_config(disable=True)
    scenes = [sample_scene(2_200_000 + number) for number in (25, 33, 46, 86)]  # where scores alone take another number
    seen = pipe.encode_image([Image.fromarray(render(scene).image) for scene in scenes])
    counts = [NUMERALS[text] for text in pipe.understand(seen, pipe.config.caption_count).text]
    assert counts == [len(scene.objects) for scene in scenes]
    assert [len(one) for one in found(pipe, seen, range(4)).values()] == counts
    pipe.register_to_config(caption_count=None)
    assert all(len(one) != count for one, count in zip(found(pipe, seen, range(4)).values(), counts, strict=True))
    # Names of a caller's are not all there is, so their number is not asked for.
    pipe.register_to_config(caption_count="how many objects are there?")
    stars = object_finder(pipe, seen, pipe.config, ["star"])
    assert stars is not None and stars.count is None


def test_answers_that_are_no_number_leave_it_to_the_scores(pipe):
    asking, image = tiny_pipeline(caption_classes=NAMES, caption_count="how many?"), picture()
    assert read_numeral(asking.understand(image, "how many?").text[0]) is None  # random weights
    assert asking.understand(image, **OPTIONS).text == [named(pipe, image)]


def test_a_caption_says_what_each_object_is(pipe):
    image = picture()
    expected = named(pipe, image)
    whole = shared_pipeline().understand(image, **OPTIONS).text[0]  # the same weights, without the setting
    assert pipe.understand(image, **OPTIONS).text == [expected] != [whole]
    assert pipe.understand(image, "describe the image", **OPTIONS).text == [expected]
    assert pipe.understand(image, caption_classes=[], **OPTIONS).text == [whole]
    assert shared_pipeline().understand(image, caption_classes=NAMES, **OPTIONS).text == [expected]


def test_rows_of_a_batch_say_what_each_says_alone(pipe):
    seen, region = pipe.encode_image(picture()), Point(19, 19)
    prompts, regions = ["how many?", None, None, "describe the image"], [None, None, region, None]
    alone = [pipe.understand(seen, prompt, where, **OPTIONS).text[0] for prompt, where in zip(prompts, regions)]
    assert pipe.understand(seen, prompts, regions, **OPTIONS).text == alone
    assert len(set(alone)) == 3
    images = [picture(), picture(1)]
    assert pipe.understand(images, **OPTIONS).text == [pipe.understand(one, **OPTIONS).text[0] for one in images]


def test_drawn_words_belong_to_their_row(pipe):
    drawn = {"temperature": 2.0, "max_new_tokens": 4}
    both = pipe.understand([picture(), picture(1)], generator=[seeded(3), seeded(4)], **drawn).text
    for image, seed, text in ((picture(), 3, both[0]), (picture(1), 4, both[1])):
        assert pipe.understand(image, generator=[seeded(seed)], **drawn).text == [text]


def test_objects_are_looked_for_once_and_only_for_captions(pipe, searches):
    seen = pipe.encode_image(picture())
    pipe.understand(seen, "how many?", **OPTIONS)
    pipe.understand(seen, None, Point(19, 19), **OPTIONS)
    pipe.understand(seen, [{"role": "user", "content": "describe the image", "region": Point(19, 19)}], **OPTIONS)
    assert searches == []
    first = pipe.understand(seen, **OPTIONS).text
    assert pipe.understand(seen, ["how many?", None], **OPTIONS).text[1:] == first
    assert len(searches) == 1
    pipe.understand(seen, caption_classes=["circle"], **OPTIONS)
    assert len(searches) == 2


def test_a_streamer_is_given_the_finished_caption(pipe):
    streamer = Seen()
    texts = pipe.understand(picture(), ["how many?", None], streamer=streamer, **OPTIONS).text
    first, *steps = streamer.calls
    pad = pipe.lm_tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert first.shape[0] == 2 and streamer.ended == 1 and all(step.shape == (2,) for step in steps)
    for row, text in enumerate(texts):
        ids = [i for i in torch.stack(steps)[:, row].tolist() if i != pad]
        assert pipe.lm_tokenizer.decode(ids).strip() == text


def test_an_empty_answer_is_streamed_as_padding(pipe):

    from tests.steps.test_understand import Seen

    context, streamer = FocusContext.of(pipe), Seen()
    for answers in (["", "disk"], ["", ""]):
        _stream_finished(context, streamer, torch.tensor([[1, -1], [1, 2]]), answers)
    first, *steps, second = streamer.calls
    assert torch.equal(first, second) and first[0, 1] == context.vocabulary.pad
    assert steps and all(step.dtype == torch.long and step[0] == context.vocabulary.pad for step in steps)
    assert context.tokenizer.decode(torch.stack(steps)[:, 1].tolist()).strip() == "disk"


def test_an_image_in_which_nothing_is_found_is_described_as_a_whole():
    nothing = tiny_pipeline(caption_classes=NAMES, score_threshold=1.0, fallback_threshold=1.0)
    assert nothing.understand(picture(), **OPTIONS).text == shared_pipeline().understand(picture(), **OPTIONS).text


def test_several_images_and_pipelines_that_cannot_look_describe_as_a_whole(pipe):
    plain, images = shared_pipeline(), [[picture(), picture(1)]]
    assert pipe.understand(images, **OPTIONS).text == plain.understand(images, **OPTIONS).text
    whole = plain.understand(picture(), **OPTIONS).text
    parts = {n: getattr(pipe, n) for n in ("vision_encoder", "language_model", "lm_tokenizer")}
    parts |= {n: getattr(pipe, n) for n in ("visual_tokenizer", "image_processor")}
    reader = FocusUnderstandPipeline(**parts)
    untrained = tiny_pipeline(caption_classes=NAMES, masks_trained=False)
    assert reader.understand(picture(), **OPTIONS).text == untrained.understand(picture(), **OPTIONS).text == whole
    with pytest.raises(ValueError, match="no mask_decoder"):
        reader.understand(picture(), caption_classes=NAMES)
    with pytest.raises(ValueError, match="not trained"):
        untrained.understand(picture(), caption_classes=NAMES)
    with pytest.raises(ValueError, match="at least one image"):
        pipe.understand(None)


@pytest.mark.parametrize(
    ("names", "kind", "words"),
    [("circle", TypeError, "list of names"), ([3], TypeError, "caption_classes"), ([" "], ValueError, "empty")],
)
def test_names_that_are_none_are_refused(pipe, names, kind, words):
    with pytest.raises(kind, match=words):
        pipe.understand(picture(), caption_classes=names)


def test_the_setting_travels_with_the_pipeline(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = type(pipe).from_pretrained(tmp_path)
    assert again.config.caption_classes == "circle, square"
    assert again.understand(picture(), **OPTIONS).text == pipe.understand(picture(), **OPTIONS).text
    whole = shared_pipeline().understand(picture(), **OPTIONS).text
    assert FocusUnderstandPipeline.from_pretrained(tmp_path).understand(picture(), **OPTIONS).text == whole
