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
FEW, MANY = 48, 5000
ERRORS = (ValueError, TypeError)
ALPHABET = "abc äß\u200b\u202e漢字🙂\n\t,:;\"'{}<>|%\\/\x00é"


class Fuzz:
    """One generator of calls, a function of the seed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def pick(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def number(self, side: int) -> float:
        """A coordinate: inside, on the border, outside, or none."""
        inside = float(self.rng.uniform(0, side))
        return self.pick(
            inside, inside, inside, 0, side, side - 1, side - 1e-9, -1e-9, -3.0, side + 9.0, float("nan"), np.int32(3)
        )

    def text(self) -> Any:
        length = self.pick(1, 3, 12, 200, 4000)
        said = "".join(self.rng.choice(list(ALPHABET), length))
        return self.pick("the red circle", "nothing", "a: b, c", said, said, " ", "", "<|im_end|>", "a" * 4000, 3, None)

    def names(self) -> Any:
        many = [f"name {i}" for i in range(200)]
        own = [str(self.text()) for _ in range(int(self.rng.integers(1, 4)))]
        return self.pick(
            ["star"], ["star", "star", "star"], many, own, own, [], "star", [3], [[]], [None], ["a", ["b"]]
        )

    def mask(self) -> Any:
        size = self.pick((HEIGHT, WIDTH), (HEIGHT, WIDTH), (HEIGHT, WIDTH), (WIDTH, HEIGHT), (1, HEIGHT, WIDTH), (0, 0))
        inside = self.rng.random(size) < self.pick(0.0, 0.3, 1.0)
        kind = self.pick(bool, np.uint8, np.int64, np.float32, np.float16, np.complex64, object)
        array = inside.astype(kind) * self.pick(1, 1, 255) if kind is not bool else inside
        return self.pick(
            array,
            array,
            torch.from_numpy(inside),
            inside.tolist(),
            Image.fromarray(inside) if inside.ndim == 2 and inside.size else array,
        )

    def stroke(self) -> Any:
        positive = self.pick(True, True, False)
        x, y = self.number(WIDTH), self.number(HEIGHT)
        kind = self.pick("point", "scribble", "box", "mask", "other")
        if kind == "point":
            return Point(x, y, positive=positive)
        if kind == "scribble":
            count = self.pick(0, 1, 2, 40)
            return Scribble([(self.number(WIDTH), self.number(HEIGHT)) for _ in range(count)], positive=positive)
        if kind == "box":
            return Box(
                x,
                y,
                self.pick(x, self.number(WIDTH), WIDTH),
                self.pick(y, self.number(HEIGHT), HEIGHT),
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
        task = self.pick(None, None, None, "reasoning", "semantic", "panoptic", "edit")
        ask = self.pick("words", "region", "names", "question", "talk", "mixed")
        if ask == "question":
            return "text", pipe.understand(seen, self.text(), self.pick(None, self.region()), **limits).text
        if ask == "talk":
            roles = [self.pick("user", "user", "assistant", "system") for _ in range(int(self.rng.integers(1, 4)))]
            talk = [{"role": role, "content": self.text()} for role in self.pick(["user", "assistant", "user"], roles)]
            return "text", pipe.understand(seen, talk, **limits).text
        thresholds = {"score_threshold": self.pick(None, 0.0, 1.0), "fallback_threshold": self.pick(None, 0.0)}
        if ask == "mixed":
            rows = {"target": [self.text(), None], "region": [None, self.region()]}
            return "masks", pipe.segment(seen, **rows, **limits, **thresholds)
        given = {
            "words": {"target": self.text()},
            "region": {"region": self.region()},
            "names": {"classes": self.names()},
        }
        return "masks", pipe.segment(seen, **given[ask], task=task, **limits, **thresholds)


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
    assert min(outcomes.values()) >= 4, outcomes


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_thousand_fuzzed_calls():
    outcomes = run(MANY)
    print(outcomes)
    assert sum(outcomes.values()) == MANY and min(outcomes.values()) > MANY / 20
