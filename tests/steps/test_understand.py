"""Answers: what went before counts, streamers see what is written, and a prompt of several turns may hold several regions."""

from __future__ import annotations

import threading

import pytest
import torch
from transformers import TextIteratorStreamer

from diffusers_focus import Point, Strokes

from tests.tiny import picture, seeded, shared_pipeline

TALK = [
    {"role": "user", "content": "how many objects are there?"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "what is this?"},
]
OPTIONS = {"max_new_tokens": 6}


class Seen:
    """What a streamer is given."""

    def __init__(self, fails: bool = False) -> None:
        self.calls: list[torch.Tensor] = []
        self.ended = 0
        self.fails = fails

    def put(self, ids: torch.Tensor) -> None:
        if self.fails and self.calls:
            raise RuntimeError("the window was closed")
        self.calls.append(ids)

    def end(self) -> None:
        self.ended += 1


@pytest.fixture(scope="module")
def pipe():
    return shared_pipeline()


def test_the_history_counts_and_a_batch_says_what_each_says_alone(pipe):
    seen = pipe.encode_image(picture())
    other = [TALK[0], {"role": "assistant", "content": "a red circle and a blue star"}, TALK[2]]
    prompts = [TALK, other, "what is this?", None]
    alone = [pipe.understand(seen, prompt, **OPTIONS).text[0] for prompt in prompts]
    assert pipe.understand(seen, prompts, **OPTIONS).text == alone
    assert len(set(alone[:3])) > 1
    assert pipe.understand([picture(), picture(1)], [TALK, None], **OPTIONS).text[0] == alone[0]


def test_nothing_asked_is_a_caption_and_of_a_region_what_it_is(pipe):
    seen, region = pipe.encode_image(picture()), Point(19, 19)
    assert pipe.understand(seen, **OPTIONS).text == pipe.understand(seen, "describe the image", **OPTIONS).text
    named = pipe.understand(seen, "what is this?", region, **OPTIONS).text
    assert pipe.understand(seen, region=region, **OPTIONS).text == named
    with pytest.raises(ValueError, match="at least one image"):
        pipe.understand(None, **OPTIONS)


def test_regions_in_messages(pipe):
    seen, here, there = pipe.encode_image(picture()), Point(19, 19), Point(46, 46)
    asked = [{**TALK[0], "region": here}, TALK[1], {**TALK[2], "region": there}]
    text = pipe.understand(seen, asked, **OPTIONS).text
    assert pipe.understand(seen, [asked[0], TALK[1], TALK[2]], there, **OPTIONS).text == text
    both = pipe.understand(
        seen, [asked, "what is this?"], [None, Strokes(here, Point(46, 46, positive=False))], **OPTIONS
    )
    assert both.text[0] == text[0]
    with pytest.raises(ValueError, match="in the messages and beside"):
        pipe.understand(seen, asked, there)
    with pytest.raises(ValueError, match="show 1 images, but 2"):
        image = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "how many?"}]}]
        pipe.understand([[picture(), picture(1)]], image)


def test_streamers_see_every_token(pipe):
    streamer = Seen()
    text = pipe.understand([picture(), picture(1)], ["how many?", TALK], streamer=streamer, **OPTIONS).text
    prompt, *steps = streamer.calls
    tokenizer = pipe.lm_tokenizer
    assert prompt.shape[0] == 2 and tokenizer.decode(prompt[0], skip_special_tokens=True).strip().startswith(
        "how many?"
    )
    written = torch.stack(steps, dim=1)
    assert [tokenizer.decode(row, skip_special_tokens=True).strip() for row in written] == text
    assert streamer.ended == 1 and written.shape[1] <= OPTIONS["max_new_tokens"]


def test_a_thread_reads_what_another_one_writes(pipe):
    streamer = TextIteratorStreamer(pipe.lm_tokenizer, skip_prompt=True, timeout=60, skip_special_tokens=True)
    options = {"temperature": 1.0, "generator": seeded(3), "streamer": streamer, **OPTIONS}
    found = []
    thread = threading.Thread(target=lambda: found.append(pipe.understand(picture(), "how many?", **options)))
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces).strip() == found[0].text[0]


def test_a_streamer_ends_whatever_happens(pipe):
    for streamer, image in ((Seen(fails=True), picture()), (Seen(), "no-such-picture.png")):
        with pytest.raises((RuntimeError, FileNotFoundError)):
            pipe.understand(image, "how many?", streamer=streamer, **OPTIONS)
        assert streamer.ended == 1
    with pytest.raises(TypeError, match=r"put\(ids\) and end\(\)"):
        pipe.understand(picture(), "how many?", streamer=print)
