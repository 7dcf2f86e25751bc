"""Made-up edits, many of them odd: pictures of the right number and size, changed inside their masks alone, or an error that says
what was wrong.

The slow test runs 3,000 (`make test ARGS="-m slow -k fuzzed"`), the fast one the first few of the same.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_focus import Box

from tests.pipelines.test_fuzz import ERRORS, Fuzz
from tests.steps.test_sketch import STYLE
from tests.tiny import SIZE, picture, seeded, shared_pipeline, tiny_pipeline

FEW, MANY = 14, 3000
SIZES = [(SIZE, SIZE), (48, 80), (1, 1), (1, 90), (70, 3), (9, 200), (130, 150), (31, 33)]


@cache
def sketching_pipeline() -> Any:
    return tiny_pipeline(description_sketch=STYLE)


class EditFuzz(Fuzz):
    """One generator of edits, a function of the seed."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.height, self.width = SIZES[int(self.rng.integers(len(SIZES)))]
        self.exact = True  # whether the images are what `own` gives, value by value

    def odd(self, usual: Any, *others: Any) -> Any:
        """The usual value, one time in thirty another: an edit has many arguments."""
        return usual if self.rng.random() > 1 / 30 else self.pick(*others)

    def own(self) -> Image.Image:
        return picture(int(self.rng.integers(4)), self.height, self.width)

    def form(self, image: Image.Image) -> Any:
        """An image in one of the forms that images come in, now and then in none of them."""
        array = np.asarray(image)
        floats = array.astype(np.float32) / 255
        usual = self.pick(
            image,
            array,
            floats,
            floats.astype(np.float64),
            floats.astype(np.float16),
            torch.from_numpy(floats).movedim(-1, 0),
            torch.from_numpy(array.copy()).movedim(-1, 0),
            image.convert(self.pick("L", "RGBA", "P", "CMYK", "1")),
        )
        self.exact &= not isinstance(usual, Image.Image) or usual.mode == "RGB"
        return self.odd(
            usual, floats * 300, floats * np.nan, array[:0], array.astype(np.int64) - 9, np.zeros((2, 2, 2, 2, 2)), "x.png", 3
        )  # fmt: skip

    def place(self) -> Any:
        """A mask: some blocks, a pixel, all, nothing, or what `Fuzz.mask` makes."""
        mask = np.zeros((self.height, self.width), dtype=bool)
        for _ in range(self.pick(1, 1, 2, 5)):
            top, left = int(self.rng.integers(self.height)), int(self.rng.integers(self.width))
            mask[top : top + self.pick(1, 2, 20), left : left + self.pick(1, 3, 20)] = True
        mask = self.odd(mask, np.zeros_like(mask), np.ones_like(mask))
        forms = (
            mask,
            mask.astype(np.uint8) * 255,
            Image.fromarray(mask),
            torch.from_numpy(mask),
            mask[None],
            mask * 1.0,
        )
        objects = np.stack([mask, ~mask])
        return self.odd(self.pick(*forms, objects), self.mask(), None, "m", mask[:, :-1], mask * 1j)

    def where(self, like: Any) -> dict[str, Any]:
        """Where the edits take place, nested as their instructions are or otherwise."""
        name = self.pick("mask_image", "mask_image", "region", "target", None, None)
        if name is None:
            return {}
        make = {"mask_image": self.place, "region": self.region, "target": lambda: self.odd(self.text(), None)}[name]
        if not isinstance(like, list):
            return {name: make()}
        nest = [[make() for _ in one] if isinstance(one, list) else make() for one in like]
        return {name: self.odd(nest, make(), nest[:-1], [nest], [make() for _ in range(3)])}

    def boxes(self, count: int) -> list[Any]:
        """Places of objects to draw, now and then outside of the picture."""
        corners = self.rng.integers(0, SIZE - 2, (count, 2)).tolist()
        side = self.odd(self.pick(1, 2.5), 90)
        return [self.odd(Box(x, y, x + side, y + side), Box(0, 0, SIZE, SIZE), None, "box") for x, y in corners]

    def options(self) -> dict[str, Any]:
        small = {
            "num_inference_steps": self.odd(self.pick(1, 2), 0, 1.5, -1, "2"),
            "strength": self.odd(self.pick(1.0, 1.0, 0.6), 0.0, 1.01, 0.3, None, float("nan")),
            "padding_mask_crop": self.odd(self.pick(None, None, 0, 5, 1000), -1, 2.5, True),
            "mask_dilation": self.odd(self.pick(None, 0, 1, 4), -2, "1", 400),
            "mask_blur": self.odd(self.pick(None, 0, 3), -2, 1.5, 90),
            "num_images_per_prompt": self.odd(self.pick(1, 1, 1, 2), 0, "2"),
            "guidance_scale": self.odd(self.pick(None, 1.0, 3.0), float("inf"), "3", -1.0, 0),
            "mask_guidance_scale": self.odd(1.0, 0.0, 2.0, None),
            "limit_tokens": self.odd(True, False),
            "token_guidance_scale": self.odd(self.pick(None, 1.0), 0.0, 3.0, "1"),
            "temperature": self.odd(self.pick(None, 0.0, 0.7), -1.0, float("nan")),
            "top_k": self.odd(self.pick(None, 1, 5), -1, 10**9, 1.5),
            "top_p": self.odd(self.pick(None, 0.5), 0.0, 2.0),
            "negative_prompt": self.odd(None, "red", ["red", "blue"], 3, ""),
            "preserve_background": self.pick(True, True, False),
            "output_type": self.odd(self.pick("pil", "np", "pt"), "latent", "jpg", None),
            "generator": self.odd(self.pick(None, seeded(1)), [seeded(1)], [seeded(1), seeded(2)], 3, [None]),
            "eta": self.odd(0.0, 0.5, None, "0"),
        }
        return {name: small[name] for name in self.rng.permutation(list(small))[: int(self.rng.integers(0, 7))]}

    def call(self, pipe: Any) -> tuple[list[np.ndarray], Any, dict[str, Any]]:
        """The images as they were, the result and its options."""
        images = [self.own()]
        text = lambda: self.odd(self.pick("remove it", "make it blue", "replace it with a star"), self.text())  # noqa: E731
        kind = self.pick("one", "one", "several", "joint", "batch", "batch", "clip", "draw")
        options = {"num_inference_steps": 1, **self.options()}
        if kind == "clip":
            frames = images * self.pick(1, 1, 2)
            where = self.pick({}, {"region": self.region()}, {"target": self.text()}, {"region": {0: self.region()}})
            fitting = {"num_inference_steps", "strength", "padding_mask_crop", "mask_dilation", "mask_blur", "eta"}
            options = {name: value for name, value in options.items() if name in fitting or self.rng.random() < 0.05}
            out = pipe.edit_clip(self.odd(frames, [], frames[0], iter(frames)), text(), **where, **options)
            return [np.asarray(image) for image in frames], out, options
        if kind == "draw":
            sketching = self.pick(False, True)
            said = self.pick(text(), self.text(), "a small red circle, a striped star", "stars and a large sea, " * 9)
            layout = self.odd(self.pick(None, []), self.boxes(2), [self.boxes(1), None], self.boxes(1), "left")
            if sketching:
                layout = self.pick(layout, None, self.boxes(1 if "," not in said else 2))
            drawing = {**options, **({} if layout is None else {"layout": layout})}
            prompt = self.odd(said, [said, "b"], [["a"]], [])
            return [], (sketching_pipeline() if sketching else pipe).generate(prompt, **drawing), options
        prompt = {
            "one": text(),
            "several": [text(), text()],
            "joint": [[text() for _ in range(self.pick(1, 2, 3))]],
            "batch": [text(), self.odd([text(), text()], text(), [], [[text()]])],
        }[kind]
        if kind == "batch":
            images = images + [picture(5, 40, self.pick(40, 80)) if self.rng.random() < 0.3 else self.own()]
        given = [self.form(image) for image in images]
        image = given if kind == "batch" else self.odd(given[0], given)
        if self.rng.random() < 0.2:
            image = pipe.encode_image(image)
        out = pipe.edit(image, prompt, **self.where(prompt), **options)
        one_each = [np.asarray(one.convert("RGB")) for one in images]
        rows = len(prompt) if isinstance(prompt, list) else 1
        return one_each * rows if len(one_each) == 1 else one_each, out, options


def check(images: list[np.ndarray], out: Any, options: dict[str, Any], exact: bool = False) -> None:
    """The right number and sizes; with `exact`, pixels outside the soft masks are the images' own."""
    kind, repeats = options.get("output_type", "pil"), options.get("num_images_per_prompt", 1)
    if kind == "latent":
        assert out.images.ndim == 4 and torch.isfinite(out.images).all()
        return
    arrays = [np.asarray(image) for image in out.images]
    arrays = [np.moveaxis(array, 0, -1) if kind == "pt" else array for array in arrays]
    assert all(array.ndim == 3 and array.shape[-1] == 3 and np.isfinite(array).all() for array in arrays)
    if not images:
        assert out.edit_masks is None and all(array.shape[:2] == (SIZE, SIZE) for array in arrays)
        return
    unions = out.union_masks if hasattr(out, "union_masks") else list(out.edit_masks)
    assert len(arrays) == len(unions) * repeats and len(out.masks) == len(unions)
    images = (
        images[:1] * len(unions) if len(images) != len(unions) else images
    )  # places may come in a list of their own
    hard = options.get("mask_blur") == 0
    for row, (own, union) in enumerate(zip(images, unions, strict=True)):
        assert union.dtype == bool and union.shape == own.shape[:2]
        for array in arrays[row * repeats : (row + 1) * repeats]:
            assert array.shape == own.shape
            if exact and options.get("preserve_background", True) and (hard or not union.any()):
                levels = np.rint(array * 255.0) if array.dtype.kind == "f" else array
                assert np.array_equal(levels.astype(int)[~union], own[~union])


def run(count: int, first: int = 0) -> dict[str, int]:
    pipe = shared_pipeline()
    outcomes = {"drawn": 0, "refused": 0}
    for seed in range(first, first + count):
        try:
            fuzz = EditFuzz(seed)
            result = fuzz.call(pipe)
        except ERRORS as error:
            assert len(str(error)) > 20, f"seed {seed}: {error!r} says too little"
            outcomes["refused"] += 1
        except FileNotFoundError:
            outcomes["refused"] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
        else:
            try:
                check(*result, fuzz.exact)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {error}") from error
            outcomes["drawn"] += 1
    return outcomes


@pytest.mark.whole
def test_a_few_fuzzed_edits():
    outcomes = run(FEW)
    assert min(outcomes.values()) >= 3, outcomes


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_three_thousand_fuzzed_edits():
    outcomes = run(MANY)
    print(outcomes)
    assert sum(outcomes.values()) == MANY and min(outcomes.values()) > MANY / 10
