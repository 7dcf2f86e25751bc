"""Chat messages as earlier turns and an open question; what they read like is what Qwen2.5's chat template makes of them."""

from __future__ import annotations

import pytest

from diffusers_focus.processing.conversations import conversation, conversations, is_messages
from diffusers_focus.processing.prompts import FOCUS, ILLUME, REGION_UNDERSTAND, UNDERSTAND, render_prompt

from tests.tiny import tiny_tokenizer

# The lines of Qwen2.5's template that have nothing to do with tools (Qwen2.5-3B-Instruct, Apache-2.0).
QWEN = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}"
    "{%- endif %}{%- for message in messages %}"
    "{%- if (message.role == 'user') or (message.role == 'system' and not loop.first) or (message.role == 'assistant') %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


def user(text, **more):
    return {"role": "user", "content": text, **more}


def said(text):
    return {"role": "assistant", "content": text}


TALK = [user("how many objects?"), said("two"), user("which colours?"), said(""), user("and shapes?")]


@pytest.mark.parametrize("style", [FOCUS, ILLUME])
def test_a_conversation_reads_as_the_chat_template_writes_it(style):
    asked = conversation(TALK)
    history = [(turn.text, turn.answer, 0) for turn in asked.history]
    parts = style.prefix(0) + style.suffix(UNDERSTAND, text=asked.text, num_images=0, history=history)
    system = {"role": "system", "content": style.system}
    template = {"chat_template": QWEN, "tokenize": False, "add_generation_prompt": True}
    assert render_prompt(parts) == tiny_tokenizer().apply_chat_template([system, *TALK], **template)


def test_regions_are_counted_through_the_turns():
    history = [("what is this?", "a star", 2), ("how many?", "two", 0)]
    parts = FOCUS.suffix(REGION_UNDERSTAND, text="and this?", num_regions=1, history=history)
    assert [part.index for part in parts if part.kind == "region"] == [0, 1, 2]
    text = render_prompt(parts)
    assert (
        text.startswith("what is this? <region><region><|im_end|>") and "<|im_start|>user\nand this? <region>" in text
    )


def test_forms_of_a_question():
    assert conversation("how many?").text == "how many?" and conversation(None).text is None
    parts = [{"type": "image"}, {"type": "text", "text": "how "}, {"type": "text", "text": "many?"}]
    asked = conversation([{"role": "user", "content": parts}])
    assert (asked.text, asked.images, asked.history) == ("how many?", 1, ())
    regions = conversation([user("what is this?", region="first"), said("a star"), user("and this?", region="second")])
    assert regions.history[0].region == "first" and regions.region == "second"
    batch = conversations(["how many?", TALK, None])
    assert [one.text for one in batch] == ["how many?", "and shapes?", None] and len(batch[1].history) == 2
    assert conversations(TALK).text == "and shapes?"
    assert not is_messages(["how many?"]) and not is_messages([]) and not is_messages([TALK])


@pytest.mark.parametrize(
    ("prompt", "kind", "words"),
    [
        (3, TypeError, "chat messages such as"),
        ("  ", ValueError, "empty"),
        ([], ValueError, "empty list"),
        ([TALK, 5], TypeError, "int"),
        ([said("two")], ValueError, "in turns"),
        ([user("how many?"), said("two")], ValueError, "user, assistant"),
        ([user("how many?"), user("which?")], ValueError, "in turns"),
        ([{"role": "system", "content": "be brief"}, user("how many?")], ValueError, "system text of its own"),
        ([user(" ")], ValueError, "Message 0 .* empty"),
        ([user(None)], TypeError, "content None"),
        ([user([{"type": "video"}])], ValueError, "part"),
        ([user([{"type": "image", "image": "x.png"}])], ValueError, "beside the messages"),
        ([user("a"), said("b"), user([{"type": "image"}])], ValueError, "first message"),
    ],
)
def test_what_is_no_conversation(prompt, kind, words):
    with pytest.raises(kind, match=words):
        conversations(prompt)


def test_control_tokens_stay_out_of_earlier_turns():
    for history in ([("a<|im_end|>", "b", 0)], [("a", "b<|im_start|>", 0)]):
        with pytest.raises(ValueError, match="control token"):
            FOCUS.suffix(UNDERSTAND, text="c", history=history)
