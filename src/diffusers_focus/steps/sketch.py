"""Drawing an image object by object: a sketch says where things lie, and every object is an edit of it.

A language model that has learned to edit knows what "a striped blue star" looks like where something is already; to fill an empty
canvas it has to settle places, sizes and looks all at once, which it learns later (docs/design.md, "Drawing"). So the objects of a
description are laid out first, as discs of the sizes it names on a plain canvas, and the instruction for each of them ("replace the
white circle with a blue star") is written into the sketch's visual tokens. Nothing of the sketch but its codes outside the objects
reaches the picture: it is denoised from noise, as any other generation is.

To lay a description out before it is drawn is LayoutGPT's and LMD's idea (arXiv 2305.15393, 2305.13655), boxes in a call are
GLIGEN's (arXiv 2301.07093, the `gligen_boxes` of diffusers); a sketch that the model's own edits make into the picture is this
project's. FOCUS (arXiv 2506.16806, section 4.4) draws in one go, which an empty layout asks for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..processing.regions import Box
from .arguments import as_list
from .editing import EditPrompt, edit_codes, generation_codes
from .encode import Components, encode_image
from .sampling import Generators, uniform_numbers
from .settings import Settings

# Between the discs, as a share of the shorter side and of their radii; to the frame; and around each where its edit may reach.
_GAP, _SPREAD, _MARGIN, _REACH = 0.03, 1.15, 0.05, 1 / 32
_TRIES, _OFFERS, _SHRINK, _LEAST_RADIUS = 50, 8, 0.9, 1 / 64
_FULL = 0.5  # discs that cover more of a canvas are not tried
_SMOOTH = 4  # discs are drawn so many times larger, so that their edges are soft
_BETWEEN = re.compile(r"\s*(?:,\s*and\b|[,;]|\band\b)\s*", re.IGNORECASE)
_ARTICLE = re.compile(r"(?:a|an|the|one)\s+(?=\S)", re.IGNORECASE)


@dataclass(frozen=True)
class SketchStyle:
    """How a model's sketches look and how their objects are told: its setting `description_sketch`.

    Args:
        placeholder: what the model calls a disc of the sketch, without an article.
        colour, canvas: of the discs and around them, each RGB in 0..255.
        radii: word for a size -> radius of its disc, as a share of the shorter side; "" is the one of objects without such a word.
        instruction: makes a disc an object; holds "{placeholder}" and "{object}", the latter with its article.
        finishes: word that is an edit of its own -> that instruction, which holds "{object}" without an article.
    """

    placeholder: str
    colour: tuple[int, int, int]
    canvas: tuple[int, int, int]
    radii: Mapping[str, float]
    instruction: str
    finishes: Mapping[str, str]

    @classmethod
    def of(cls, settings: Settings) -> SketchStyle | None:
        """A pipeline's own style, None where it draws in one go; ValueError where it is not one."""
        own = getattr(settings, "description_sketch", None)
        if own is None:
            return None
        try:
            style = cls(
                str(own["placeholder"]),
                tuple(int(level) for level in own["colour"]),  # pyright: ignore[reportArgumentType]
                tuple(int(level) for level in own["canvas"]),  # pyright: ignore[reportArgumentType]
                {str(word): float(radius) for word, radius in own["radii"].items()},
                str(own["instruction"]),
                {str(word): str(text) for word, text in own.get("finishes", {}).items()},
            )
            fits = all(0 < radius <= 0.5 for radius in style.radii.values()) and "" in style.radii
            style.instruction.format(placeholder="", object="")
            for text in style.finishes.values():
                text.format(object="")
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ValueError(_malformed(own, f"{type(error).__name__}: {error}")) from error
        if not fits or any(len(levels) != 3 for levels in (style.colour, style.canvas)):
            raise ValueError(
                _malformed(own, 'colours have three levels; radii lie above 0 up to 0.5, one of them is ""')
            )
        return style

    def objects(self, description: str) -> list[SketchObject]:
        """The objects of a description, between its commas and "and"s; at least one."""
        parts = [part for part in _BETWEEN.split(" ".join(description.split()).rstrip(" .!")) if part]
        return [self._object(part) for part in parts or [description.strip()]]

    def _object(self, phrase: str) -> SketchObject:
        article = _ARTICLE.match(phrase)
        words = (phrase[article.end() :] if article else phrase).split()
        size = next((word for word in words if word and word.lower() in self.radii), "")
        finishes = tuple(word.lower() for word in words if word.lower() in self.finishes)
        left = [word for word in words if word != size and word.lower() not in finishes] or words
        name = " ".join(left)
        start = article.group() if article else ""
        if start.lower() in ("a ", "an "):  # which of the two depends on the word that follows now
            start = "an " if name[0].lower() in "aeiou" else "a "
        return SketchObject(start + name, name, self.radii[size.lower()], finishes)

    def instructions(self, item: SketchObject) -> list[str]:
        """The edits that make a disc an object, in their order."""
        first = self.instruction.format(placeholder=self.placeholder, object=item.phrase)
        return [first, *(self.finishes[word].format(object=item.name) for word in item.finishes)]


@dataclass(frozen=True)
class SketchObject:
    """An object of a description.

    Args:
        phrase, name: its words with and without an article, less those of its size and finishes.
        radius: of its disc, as a share of the shorter side.
        finishes: words that are edits of their own.
    """

    phrase: str
    name: str
    radius: float
    finishes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Disc:
    """A disc of a sketch, in pixels."""

    x: float
    y: float
    radius: float

    def mask(self, height: int, width: int, reach: float = 0.0) -> np.ndarray:
        """bool [height, width]: the pixels within `reach` of it."""
        rows, columns = np.ogrid[:height, :width]
        squares = (columns + 0.5 - self.x) ** 2 + (rows + 0.5 - self.y) ** 2
        return squares <= max(self.radius + reach, 1.0) ** 2


def _malformed(own: Any, why: str) -> str:
    return (
        f"description_sketch is no style of a sketch ({why}), got {own!r}. It has placeholder, colour, canvas, radii, instruction "
        "and finishes, see `steps.sketch.SketchStyle`; focus-tiny's model_index.json has one, null draws in one go."
    )


def lay_out(items: Sequence[SketchObject], size: tuple[int, int], seed: int) -> list[Disc]:
    """Discs for objects on a canvas of `size` (height, width), from left to right and apart from each other.

    Where they find no room their radii shrink together.

    Raises:
        ValueError: there are too many even so.
    """
    height, width = size
    shorter, random, scale = min(size), np.random.default_rng(seed), 1.0
    shares = np.array([item.radius for item in items])
    while scale * shares.min() >= _LEAST_RADIUS:
        radii = shares * scale * shorter
        for _ in range(_TRIES if np.pi * (radii**2).sum() < _FULL * height * width else 0):
            x = _within(np.sort(random.random(len(items))), radii + _MARGIN * shorter, width)
            y = _rows(x, radii, size, random, _GAP * shorter * scale) if (np.diff(x) > 0).all() else None
            if y is not None:
                return [Disc(*map(float, disc)) for disc in zip(x, y, radii, strict=True)]
        scale *= _SHRINK
    raise ValueError(
        f"The description names {len(items)} objects, for which a canvas of {height} x {width} pixels has no room. Name fewer, or "
        "pass layout=[] to draw it in one go."
    )


def _within(shares: np.ndarray, from_frame: np.ndarray | float, side: int) -> np.ndarray:
    """Where shares in [0, 1) of a side lie that keep a distance from its ends."""
    kept = np.minimum(from_frame, side / 2)
    return kept + shares * (side - 2 * kept)


def _rows(
    x: np.ndarray, radii: np.ndarray, size: tuple[int, int], random: np.random.Generator, gap: float
) -> np.ndarray | None:
    """Where discs of given columns lie apart from each other, each placed beside those before it; None where one finds no room."""
    y = np.empty(0)
    for row, radius in enumerate(radii):
        offered = _within(random.random((_OFFERS, 1)), radius + _MARGIN * min(size), size[0])
        apart = np.hypot(x[:row] - x[row], y - offered) >= _SPREAD * (radii[:row] + radius) + gap
        free = np.flatnonzero(apart.all(axis=1))
        if not free.size:
            return None
        y = np.append(y, offered[free[0]])
    return y


def given_layouts(layout: Any, descriptions: Sequence[str], size: tuple[int, int]) -> list[list[Box] | None]:
    """A call's `layout` as boxes of each description; None for those that are laid out by chance.

    Args:
        layout: a list of boxes, one for each object of the only description, or a list of such lists, one a description.
        size: (height, width) of the result in pixels.

    Raises:
        TypeError, ValueError: it is something else, or a box leaves the picture.
    """
    values = as_list(layout, "layout")
    if values is None:
        raise TypeError(
            f"layout must be a list of boxes, one for each object, got {type(layout).__name__}. For example "
            "[Box(8, 8, 40, 40), Box(60, 50, 110, 100)], in pixels of the result."
        )
    if all(isinstance(one, Box) for one in values):
        values = [values]
    if len(values) != len(descriptions):
        raise ValueError(
            f"layout has {len(values)} entries for {len(descriptions)} descriptions. Pass a list of boxes for each; None lays a "
            "description out by chance."
        )
    for boxes in values:
        if boxes is not None and not (isinstance(boxes, (list, tuple)) and all(isinstance(one, Box) for one in boxes)):
            raise TypeError(f"An entry of layout must be a list of boxes or None, got {boxes!r}.")
        for one in boxes or ():
            one.rasterize(*size)  # raises where it leaves the picture
    return [None if boxes is None else list(boxes) for boxes in values]


def _discs(boxes: Sequence[Box], count: int, share: tuple[float, float]) -> list[Disc]:
    """The discs in boxes; `share` scales rows and columns of the result to the sketch's."""
    if len(boxes) != count:
        raise ValueError(
            f"layout has {len(boxes)} boxes for a description of {count} objects. Pass one for each, in their order."
        )
    rows, columns = share
    return [
        Disc(
            (box.x0 + box.x1) / 2 * columns,
            (box.y0 + box.y1) / 2 * rows,
            min((box.x1 - box.x0) * columns, (box.y1 - box.y0) * rows) / 2,
        )
        for box in boxes
    ]


def sketch_layouts(
    descriptions: Sequence[str],
    size: tuple[int, int],
    style: SketchStyle,
    boxes: Sequence[Sequence[Box] | None] | None = None,
    share: tuple[float, float] = (1.0, 1.0),
    generator: Generators = None,
) -> list[list[Disc]]:
    """The discs of each description on a sketch of `size` (height, width).

    Args:
        boxes: of each, where its objects are to be; None lays them out by chance.
        share: rows and columns of the sketch for each of the boxes' picture.
        generator: a list has one a description.
    """
    seeds = (uniform_numbers(len(descriptions), 1, generator)[:, 0].double() * 2**24).long().tolist()
    layouts = []
    for row, (description, seed) in enumerate(zip(descriptions, seeds, strict=True)):
        items, own = style.objects(description), boxes[row] if boxes is not None else None
        layouts.append(lay_out(items, size, seed) if own is None else _discs(own, len(items), share))
    return layouts


def draw_sketch(discs: Sequence[Disc], size: tuple[int, int], style: SketchStyle) -> Image.Image:
    """The sketch, RGB of `size` (height, width)."""
    height, width = size
    large = Image.new("RGB", (width * _SMOOTH, height * _SMOOTH), style.canvas)
    pen = ImageDraw.Draw(large)
    for disc in discs:
        edges = (disc.x - disc.radius, disc.y - disc.radius, disc.x + disc.radius, disc.y + disc.radius)
        pen.ellipse([edge * _SMOOTH for edge in edges], fill=style.colour)
    return large.resize((width, height), Image.Resampling.BOX)


def description_codes(
    components: Components,
    descriptions: Sequence[str],
    size: tuple[int, int],
    settings: Settings,
    *,
    layout: Any = None,
    repeats: int = 1,
    decoded: tuple[int, int] | None = None,
    device: torch.device | None = None,
    generator: Generators = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes of images drawn from descriptions, object by object where the pipeline says so; see `generation_codes`.

    Args:
        descriptions: B of them, those of `repeats` results of one prompt after each other.
        size: (height, width), the token resolution, which the sketch has.
        settings: the pipeline's, whose `description_sketch` counts.
        layout: of each prompt, see `given_layouts`; empty draws in one go.
        decoded: (height, width) of the result, in whose pixels the boxes are; None where that is `size`.
        device: where to encode sketches; default: where the vision encoder is.
        options: of `generation_codes` and `edit_codes` both.

    Returns:
        semantic int64 [B, hs, ws] and pixel int64 [B, hp, wp].

    Raises:
        TypeError, ValueError: a layout that does not fit, or nothing to make a sketch with.
    """
    style = SketchStyle.of(settings)
    whole = isinstance(layout, (list, tuple)) and not layout
    if whole or (style is None and layout is None):
        return generation_codes(components, descriptions, size, generator=generator, **options)
    if style is None:
        raise ValueError(
            "layout needs a model that draws object by object, and this one has no description_sketch. Leave layout out, or set "
            "it: pipe.register_to_config(description_sketch=...), see docs/diffusers.md."
        )
    if getattr(components, "vision_encoder", None) is None:
        raise ValueError(
            "Drawing object by object reads a sketch, and there is no vision_encoder. Load one, or pass layout=[] to draw "
            "in one go."
        )
    decoded = decoded or size
    prompts = descriptions[::repeats]
    boxes = [None] * len(prompts) if layout is None else given_layouts(layout, prompts, decoded)
    share = (size[0] / decoded[0], size[1] / decoded[1])
    layouts = sketch_layouts(
        descriptions, size, style, [one for one in boxes for _ in range(repeats)], share, generator
    )
    edits = []
    for picture, (description, discs) in enumerate(zip(descriptions, layouts, strict=True)):
        for item, disc in zip(style.objects(description), discs, strict=True):
            mask = disc.mask(*size, reach=_REACH * min(size))
            edits += [
                EditPrompt(picture, text, mask=mask, picture=picture, joint=True) for text in style.instructions(item)
            ]
    sketches = [draw_sketch(discs, size, style) for discs in layouts]
    encoding = encode_image(components, sketches, device=device)
    masks = [one.mask for one in edits if one.mask is not None]
    return edit_codes(components, encoding, edits, masks, generator=generator, **options)
