"""Made-up prompts and regions, most of them odd: a result of the right form, or an error that says what was wrong.

The slow test runs 5,000 (`make test ARGS="-m slow -k fuzzed"`), the fast one the first few dozen of the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_focus import Box, Mask, Point, Scribble, Strokes

from tests.tiny import picture, shared_pipeline

HEIGHT, WIDTH = 48, 80
FEW, MANY = 24, 5000
ERRORS = (ValueError, TypeError)
ALPHABET = "abc äß\u200b\u202e漢字🙂\n\t,:;\"'{}<>|%\\/\x00é"


class Fuzz:
    """One generator of calls about an image of a size, a function of the seed."""

    def __init__(self, seed: int, height: int = HEIGHT, width: int = WIDTH) -> None:
        self.rng, self.height, self.width = np.random.default_rng(seed), height, width

    def pick(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def odd(self, usual: Any, *others: Any) -> Any:
        """The usual value, one time in six another."""
        return usual if self.rng.random() > 1 / 6 else self.pick(*others)

    def number(self, side: int) -> float:
        """A coordinate: inside or on the border, now and then outside or none."""
        inside = self.pick(float(self.rng.uniform(0, side)), 0, side - 1, side - 1e-9, np.int32(3))
        return self.odd(inside, side, -1e-9, -3.0, side + 9.0, float("nan"))

    def text(self) -> Any:
        length = self.pick(1, 3, 12, 200, 4000)
        said = "".join(self.rng.choice(list(ALPHABET), length))
        return self.odd(self.pick("the red circle", "a: b, c", said, "a" * 4000), " ", "", "<|im_end|>", 3, None)

    def names(self) -> Any:
        many = [f"name {i}" for i in range(200)]
        own = [str(self.text()) for _ in range(int(self.rng.integers(1, 4)))]
        usual = self.pick(["star"], ["star", "star", "star"], own, own, many)
        return self.odd(usual, [], "star", [3], [[]], [None], ["a", ["b"]])

    def mask(self) -> Any:
        size = self.odd((self.height, self.width), (self.width, self.height), (1, self.height, self.width), (0, 0))
        inside = self.rng.random(size) < self.odd(0.3, 0.0, 1.0)
        array = inside.astype(
            self.odd(self.pick(bool, np.uint8, np.int64, np.float32, np.float16), np.complex64, object)
        )
        array = array * self.pick(1, 255) if array.dtype == np.uint8 else array
        other = Image.fromarray(inside) if inside.ndim == 2 and inside.size else array
        return self.pick(array, array, torch.from_numpy(inside), inside.tolist(), other)

    def stroke(self) -> Any:
        positive = self.pick(True, True, False)
        x, y = self.number(self.width), self.number(self.height)
        kind = self.odd(self.pick("point", "scribble", "box", "mask"), "other")
        if kind == "point":
            return Point(x, y, positive=positive)
        if kind == "scribble":
            count = self.odd(self.pick(1, 2, 6), 0)
            return Scribble(
                [(self.number(self.width), self.number(self.height)) for _ in range(count)], positive=positive
            )
        if kind == "box":
            return Box(
                x,
                y,
                self.pick(x, self.number(self.width), self.width),
                self.pick(y, self.number(self.height), self.height),
                positive=positive,
            )
        if kind == "mask":
            return Mask(self.mask(), positive=positive)
        return self.pick(Point(9, 9), (3, 4), "here", None, 5, Point)

    def region(self) -> Any:
        if self.rng.random() < 0.4:
            strokes = [self.stroke() for _ in range(int(self.rng.integers(1, 5)))]
            return Strokes(*strokes, previous=self.pick(None, None, self.mask()))
        one = self.stroke()
        return self.pick(one, one, [one], [one, self.stroke()], [[one, self.stroke()]], [])

    def call(self, pipe: Any, seen: Any) -> tuple[str, Any]:
        """Ask or segment something; what came back, of which the kind of call is the first."""
        limits = {"max_new_tokens": int(self.rng.integers(1, 3))}
        ask = self.pick("words", "region", "names", "question", "talk", "mixed")
        if ask == "question":
            return "text", pipe.understand(seen, self.text(), self.pick(None, self.region()), **limits).text
        if ask == "talk":
            roles = [self.pick("user", "user", "assistant", "system") for _ in range(int(self.rng.integers(1, 4)))]
            talk = [{"role": role, "content": self.text()} for role in self.pick(["user", "assistant", "user"], roles)]
            return "text", pipe.understand(seen, talk, **limits).text
        fitting = {"words": ("reasoning",), "names": ("semantic", "panoptic")}.get(ask, ())
        task = self.odd(self.pick(None, *fitting), "reasoning", "panoptic", "edit")
        thresholds = {"score_threshold": self.pick(None, 0.0, 1.0), "fallback_threshold": self.pick(None, 0.0)}
        if ask == "mixed":
            rows = {"target": [self.text(), None], "region": [None, self.region()]}
            return "masks", pipe.segment(seen, **rows, **limits, **thresholds)
        name, make = {
            **{"words": ("target", self.text), "region": ("region", self.region), "names": ("classes", self.names)},
        }[ask]
        return "masks", pipe.segment(seen, **{name: make()}, task=task, **limits, **thresholds)


def check_result(kind: str, result: Any) -> None:
    if kind == "text":
        assert result and all(isinstance(text, str) for text in result)
        return
    assert len(result.masks) == len(result.presence) >= 1
    for masks, scores, labels, qualities, presence in zip(
        result.masks, result.scores, result.labels, result.qualities, result.presence, strict=True
    ):
        assert masks.dtype == bool and masks.shape[1:] == (HEIGHT, WIDTH)
        assert len(masks) == len(scores) == len(labels) == len(qualities)
        assert all(0 <= value <= 1 for value in [*scores, *qualities, presence])
    result.to_label_maps()
    assert [len(entry) for entry in result.to_polygons()] == [len(masks) for masks in result.masks]


def run(count: int) -> dict[str, int]:
    pipe = shared_pipeline()
    seen = pipe.encode_image(picture(0, HEIGHT, WIDTH))
    outcomes = {"text": 0, "masks": 0, "refused": 0}
    for seed in range(count):
        try:
            kind, result = Fuzz(seed).call(pipe, seen)
        except ERRORS as error:
            assert len(str(error)) > 20, f"seed {seed}: {error!r} says too little"
            outcomes["refused"] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
        else:
            check_result(kind, result)
            outcomes[kind] += 1
    return outcomes


def test_a_few_fuzzed_calls():
    outcomes = run(FEW)
    assert min(outcomes.values()) >= 2, outcomes


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_thousand_fuzzed_calls():
    outcomes = run(MANY)
    print(outcomes)
    assert sum(outcomes.values()) == MANY and min(outcomes.values()) > MANY / 20
