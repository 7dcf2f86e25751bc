"""Do pictures drawn from descriptions show what they describe? The nearest-re-render rule, at the best placement.

Paper: FOCUS (arXiv 2506.16806), section 4.4 (text to image; GenEval asks a detector the same question). A description of the world
("a small red circle, a large striped blue star") says of every object what it looks like and not where it is, so each is looked for
all over the picture: drawn at every place, in radii of its size and with stripes of either diagonal, over the colour that lies
around it there. At the place where that is nearest (mean L1 inside the object, grown by 4 pixels) the object is right when it is
nearer than every drawing that differs in one attribute: another colour, another shape, the other fill, no object.

The same is asked of the picture that the description was made from, which is the most the rule can give, of
another scene's picture, which is what chance gives, and, of a pipeline that draws object by object (`steps/sketch.py`), of the
sketch it begins with. The rules are this project's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view

from ..data.language import caption
from ..data.regions_sampling import dilate
from ..data.world import COLOURS, FILLS, SHAPES, SIZES, Background, Scene, WorldObject, render
from ..steps.arguments import token_resolution
from ..steps.sketch import SketchStyle, draw_sketch, sketch_layouts
from .edits import STRIPES, SUPPORT_DILATION, seeded, to_levels
from .tasks import Batch, figure

RADII = 4  # of an object's size, evenly
SEARCH = 2  # the places are searched at a half of the resolution, and then pixel by pixel around the best
Stripes = tuple[int, float]


@dataclass(frozen=True)
class Look:
    """An object of a radius as it lies over any colour: `shade + (1 - cover) * colour`.

    Args:
        shade: float32 [k, k, 3], its own light.
        cover: float32 [k, k, 1].
        inside: bool [k, k], its support grown by 4 pixels of the whole picture.
        around: bool [k, k], as much again outside of that.
    """

    shade: np.ndarray
    cover: np.ndarray
    inside: np.ndarray
    around: np.ndarray


@lru_cache(maxsize=4096)
def look(shape: str, colour: str, fill: str, radius: float, grown: int, stripes: Stripes) -> Look:
    """The look of an object of `radius` pixels; `grown` pixels are inside beyond its support."""
    side = 2 * (int(np.ceil(radius)) + 2 * grown) + 1
    item = WorldObject(shape, colour, "small", fill, 0.5, 0.5, radius / side)
    on_black, on_white = (
        render(Scene(0, (item,), Background("plain", (level,) * 3, (level,) * 3), 0.0, True, stripes), side)
        for level in (0, 255)
    )
    shade = on_black.image.astype(np.float32)
    cover = 1 - (on_white.image.astype(np.float32) - shade).mean(axis=-1, keepdims=True) / 255
    inside = dilate(on_black.masks[0], grown)
    return Look(shade, cover, inside, dilate(inside, grown) & ~inside)


def _stripes(item: WorldObject) -> tuple[Stripes, ...]:
    """How its bands may lie."""
    if item.fill == "solid":
        return ((1, 0.0),)
    return STRIPES


def _look(item: WorldObject, radius: float, stripes: Stripes, grown: int = SUPPORT_DILATION) -> Look:
    return look(item.shape, item.colour, item.fill, radius, grown, stripes)


def _distances(windows: np.ndarray, inside: np.ndarray, around: np.ndarray, looks: Sequence[Look]) -> np.ndarray:
    """Mean L1 [..., looks] of windows [..., 3, k, k] inside, to each look over the colour around."""
    ground = np.median(windows[..., around], axis=-1)[..., None]
    seen = windows[..., inside]
    found = []
    for one in looks:
        cover = one.cover[inside][:, 0]
        found.append(np.abs(seen - (one.shade[inside].T + (1 - cover) * ground)).mean(axis=(-2, -1)))
    return np.stack(found, axis=-1)


def _padded(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture [H, W, 3] with room for a quarter of a window: an object may touch the frame, what is around it need not."""
    margin = side // 4
    return np.pad(picture, ((margin, margin), (margin, margin), (0, 0)), mode="edge")


def _coarse_place(picture: np.ndarray, item: WorldObject, radii: Sequence[float]) -> tuple[float, float]:
    """(row, column) in pixels of the best place at a part of the resolution: by squared differences, which are convolutions, and
    with bands as their mean.
    """
    small = picture.reshape(picture.shape[0] // SEARCH, SEARCH, picture.shape[1] // SEARCH, SEARCH, 3).mean((1, 3))
    best = (np.inf, 0.0, 0.0)
    for radius in radii:
        looks = [_look(item, radius / SEARCH, stripes, SUPPORT_DILATION // SEARCH) for stripes in _stripes(item)]
        one, side = looks[0], len(looks[0].cover)
        inside = one.inside.astype(np.float32)
        open_ = (1 - one.cover[..., 0]) * inside  # what is seen of the colour around
        shade = np.mean([other.shade for other in looks], axis=0) * inside[..., None]
        seen = torch.from_numpy(_padded(small, side).astype(np.float32)).permute(2, 0, 1)[:, None]
        around, through = (_correlated(seen, kernel)[:, 0] for kernel in (one.around / one.around.sum(), open_))
        squares = _correlated(seen.square(), inside)[:, 0]
        own = torch.stack([_correlated(seen[c : c + 1], shade[..., c])[0, 0] for c in range(3)])
        light = torch.from_numpy(shade.astype(np.float32))
        mixed = torch.stack([(light[..., c] * torch.from_numpy(open_)).sum() for c in range(3)])[:, None, None]
        distance = (
            squares - 2 * own - 2 * around * through + 2 * around * mixed + around.square() * float((open_**2).sum())
        )
        distance = (distance.sum(0) + light.square().sum()) / float(inside.sum())
        row, column = divmod(int(distance.argmin()), distance.shape[-1])
        middle = side // 2 - side // 4 + 0.5
        if float(distance[row, column]) < best[0]:
            best = (float(distance[row, column]), (row + middle) * SEARCH, (column + middle) * SEARCH)
    return best[1:]


def _correlated(pictures: torch.Tensor, kernel: np.ndarray) -> torch.Tensor:
    """Every window of [N, 1, H, W] times a kernel [k, k]."""
    return F.conv2d(pictures, torch.from_numpy(np.ascontiguousarray(kernel, dtype=np.float32))[None, None])


def _others(item: WorldObject) -> Iterator[WorldObject]:
    """Objects that differ in one attribute."""
    yield from (replace(item, colour=colour) for colour in COLOURS if colour != item.colour)
    yield from (replace(item, shape=shape) for shape in SHAPES if shape != item.shape)
    yield from (replace(item, fill=fill) for fill in FILLS if fill != item.fill)


def shows(picture: np.ndarray, item: WorldObject) -> bool:
    """Whether a picture [S, S, 3] in 0..255, S even, shows an object somewhere; its place and its offset of colour are not read."""
    size = len(picture)
    radii = [radius * size for radius in np.linspace(*SIZES[item.size], RADII)]
    row, column = _coarse_place(picture, item, radii)
    best: tuple[float, Any] = (np.inf, None)
    for radius in radii:
        looks = [_look(item, radius, stripes) for stripes in _stripes(item)]
        side = len(looks[0].cover)
        windows = sliding_window_view(_padded(picture, side), (side, side), axis=(0, 1))
        top, left = (round(at - 0.5) + side // 4 - side // 2 for at in (row, column))
        rows, columns = (slice(max(0, at - SEARCH), max(0, at - SEARCH) + 2 * SEARCH + 1) for at in (top, left))
        near = windows[rows, columns]
        if not near.size:
            continue
        distance = _distances(near, looks[0].inside, looks[0].around, looks)
        at = np.unravel_index(distance.argmin(), distance.shape)
        if distance[at] < best[0]:
            best = (distance[at], (near[at[0], at[1]], radius, _stripes(item)[at[2]]))
    if best[1] is None:
        return False
    window, radius, stripes = best[1]
    own = _look(item, radius, stripes)
    rivals = [replace(own, shade=np.zeros_like(own.shade), cover=np.zeros_like(own.cover))]  # nothing there
    for other in _others(item):
        lying = _stripes(other) if other.fill != item.fill else (stripes,)
        rivals += [_look(other, radius, one) for one in lying]
    return bool(best[0] < _distances(window, own.inside, own.around, rivals).min())


class GenerationTask:
    """One picture from the description of each scene; the scene itself is not shown."""

    def __init__(self, name: str = "generation", options: dict[str, Any] | None = None) -> None:
        self.name = name
        self.options = options or {}
        self.records: list[dict[str, Any]] = []

    def run(self, pipe: Any, batch: Batch) -> None:
        """Draw a picture for every scene of the batch, of the pipeline's own size."""
        generators = [seeded(scene.seed) for scene in batch.scenes]
        texts = [caption(scene) for scene in batch.scenes]
        out = pipe.generate(texts, generator=generators, output_type="np", **self.options)
        pictures = to_levels(out.images, np.asarray(out.images[0]).shape[0])
        true = [render(scene, len(pictures[0])).image.astype(np.float32) for scene in batch.scenes]
        sketches = self._sketches(pipe, batch, texts)
        for index, (scene, picture) in enumerate(zip(batch.scenes, pictures, strict=True)):
            for item in scene.objects:
                self.records.append(
                    {
                        "scene": scene.seed,
                        "kind": f"{item.size} {item.fill}",
                        "right": float(shows(picture, item)),
                        "true_picture": float(shows(true[index], item)),
                        "other_picture": float(shows(true[index - 1], item)),
                        **({"sketch": float(shows(sketches[index], item))} if sketches else {}),
                    }
                )

    def _sketches(self, pipe: Any, batch: Batch, texts: Sequence[str]) -> list[np.ndarray]:
        """What the pictures begin with, of a pipeline's first size; none where they are drawn in one go."""
        style = SketchStyle.of(pipe.config)
        if style is None or self.options.get("layout") is not None:
            return []
        size = token_resolution(pipe.image_processor, None, None)
        layouts = sketch_layouts(texts, size, style, generator=[seeded(scene.seed) for scene in batch.scenes])
        return [np.asarray(draw_sketch(discs, size, style)).astype(np.float32) for discs in layouts]

    def figures(self) -> dict[str, Any]:
        """Shares of the objects that are right: in what was drawn, in the true picture, in another; all, and by size and fill."""
        kinds = sorted({record["kind"] for record in self.records})
        return {
            **_shares(self.records),
            "kinds": {kind: _shares([r for r in self.records if r["kind"] == kind]) for kind in kinds},
        }


class PlainGenerationTask(GenerationTask):
    """The same pictures, each drawn in one go where a pipeline would draw object by object (`description_sketch`)."""

    def __init__(self, name: str = "plain_generation", options: dict[str, Any] | None = None) -> None:
        super().__init__(name, {**(options or {}), "layout": []})


def _shares(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    keys = ("right", "true_picture", "other_picture", "sketch")
    return {key: figure(records, key) for key in keys if key in records[0]}
