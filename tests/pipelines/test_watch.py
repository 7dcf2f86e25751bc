"""Watching a call: every step is told, an exception ends it at once, and nothing stays behind."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.tiny import disk_mask, picture, seeded, tiny_pipeline

MASK = Image.fromarray(disk_mask())


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


class Stop(Exception):
    pass


def edit(pipe):
    return pipe.edit(picture(), "make it blue", mask_image=MASK, num_inference_steps=3, generator=seeded()).images[0]


def test_watcher_follows_tokens_and_steps_and_changes_nothing(pipe):
    before, seen = edit(pipe), []
    with pipe.watched(lambda done, total: seen.append((done, total))):
        assert edit(pipe) == before
    assert seen[0] == (0, 0)  # the prompt is read
    bars = [(done, total) for done, total in dict.fromkeys(seen) if total]
    tokens = bars[0][1]
    assert bars == [(done, tokens) for done in range(tokens + 1)] + [(done, 3) for done in range(4)]
    assert not pipe.unet._forward_pre_hooks and not pipe.language_model.model._forward_pre_hooks


@pytest.mark.parametrize("where", ["reading", "tokens", "steps"])
def test_exception_of_the_watcher_ends_the_call_within_one_step(pipe, where):
    passes = {"unet": 0, "language_model": 0}

    def count(name):
        return lambda *_: passes.__setitem__(name, passes[name] + 1)

    hooks = [
        pipe.unet.register_forward_hook(count("unet")),
        pipe.language_model.model.register_forward_hook(count("language_model")),
    ]
    at_stop = {}

    def watcher(done, total):
        if {"reading": True, "tokens": done == 2 and total > 3, "steps": done == 2 and total == 3}[where]:
            at_stop.update(passes)
            raise Stop

    try:
        with pytest.raises(Stop), pipe.watched(watcher):
            edit(pipe)
    finally:
        for hook in hooks:
            hook.remove()
    assert passes == at_stop
    assert (passes["unet"] > 0) == (where == "steps") and (passes["language_model"] > 0) == (where != "reading")
    fresh = edit(pipe)
    assert fresh == edit(pipe)


def test_text_can_be_stopped_too(pipe):
    def stop_at(limit):
        passes = iter(range(limit))

        def watcher(done, total):
            assert (done, total) == (0, 0)
            if next(passes, None) is None:
                raise Stop

        return watcher

    for call in (
        lambda: pipe.understand(picture(), "what is this?", max_new_tokens=8),
        lambda: pipe.segment(picture(), "it"),
    ):
        with pytest.raises(Stop), pipe.watched(stop_at(2)):
            call()


def test_one_watcher_at_a_time(pipe):
    with pipe.watched(print), pytest.raises(RuntimeError, match="watched already"), pipe.watched(print):
        pass
    assert pipe._watcher is None
