"""Region prompts drawn from true masks: the clicks, strokes, boxes and rough masks a user would make.

Paper: FOCUS (arXiv 2506.16806), interactive segmentation (there after COCO-Interactive): a region prompt is a point, a
scribble, a box or a mask. Training and evaluation sample them from ground truth with the noise of a human hand. Needs
numpy only. The design is this project's own.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ..processing.regions import Box, Mask, Point, Region, Scribble, Strokes

REGION_KINDS: tuple[str, ...] = ("click", "scribble", "box", "mask")

_BOX_JITTER = 0.1
_MASK_PIXELS = 3
_MIN_ERODED_PIXELS = 12


def dilate(mask: np.ndarray, pixels: int) -> np.ndarray:
    """`mask` (bool `[H, W]`) grown by `pixels` in every direction, diagonals included."""
    if pixels < 0:
        raise ValueError(f"A mask cannot be grown or shrunk by {pixels} pixels; give a number from 0 up.")
    # Along rows, then along columns, each in shifts: a window of Pillow's rank filter costs its area, and sorts it.
    mask = np.asarray(mask, dtype=bool)
    rows = mask.copy()
    for shift in range(1, min(pixels, mask.shape[1] - 1) + 1):
        rows[:, shift:] |= mask[:, :-shift]
        rows[:, :-shift] |= mask[:, shift:]
    grown = rows.copy()
    for shift in range(1, min(pixels, mask.shape[0] - 1) + 1):
        grown[shift:] |= rows[:-shift]
        grown[:-shift] |= rows[shift:]
    return grown


def erode(mask: np.ndarray, pixels: int) -> np.ndarray:
    """`mask` (bool `[H, W]`) shrunk by `pixels` from every side; the image border does not eat into it."""
    return ~dilate(~np.asarray(mask, dtype=bool), pixels)


def region_prompt(mask: np.ndarray, kind: str, rng: np.random.Generator) -> Region:
    """One random region prompt for an object.

    Args:
        mask: bool `[H, W]`, the true visible mask; at least one pixel.
        kind: "click" (a point inside), "scribble" (a short stroke inside), "box" (every side moved by up to 10% of the
            box's own side) or "mask" (the truth eroded or dilated by 3 pixels; dilated where eroding leaves nothing).
        rng: The source of randomness.

    Returns:
        A `Point`, `Scribble`, `Box` or `Mask` in pixel coordinates of the image.
    """
    mask = np.asarray(mask, dtype=bool)
    if mask.ndim != 2 or not mask.any():
        raise ValueError(
            f"A region prompt needs a non-empty mask [H, W], but this one has shape {mask.shape} and "
            f"{int(mask.sum())} pixels. Leave out objects that cannot be seen."
        )
    if kind == "click":
        return Point(*_inner_pixel(mask, rng))
    if kind == "scribble":
        return Scribble(_stroke(mask, rng))
    if kind == "box":
        return _jittered_box(mask, rng)
    if kind == "mask":
        shrunk = erode(mask, _MASK_PIXELS) if rng.random() < 0.5 else None
        if shrunk is not None and shrunk.sum() >= _MIN_ERODED_PIXELS:
            return Mask(shrunk)
        return Mask(dilate(mask, _MASK_PIXELS))
    raise ValueError(f"Unknown region kind {kind!r}; use one of {', '.join(REGION_KINDS)}.")


def strokes_prompt(mask: np.ndarray, others: np.ndarray, rng: np.random.Generator) -> Strokes:
    """Several strokes about one object: one to three clicks or scribbles in it, up to two negative clicks in other objects.

    Args:
        mask: bool `[H, W]`, the true visible mask; at least one pixel.
        others: bool `[N, H, W]`, objects that are not meant; may be none.
        rng: The source of randomness.
    """
    kinds = rng.choice(("click", "scribble"), int(rng.integers(1, 4)))
    meant = [region_prompt(mask, str(kind), rng) for kind in kinds]
    seen = [other for other in others if (other & ~mask).any()]
    chosen = rng.permutation(len(seen))[: int(rng.integers(0, 3))]
    wrong = [replace(region_prompt(seen[i] & ~mask, "click", rng), positive=False) for i in chosen]
    return Strokes(*meant, *wrong)


def _inner_pixel(mask: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Centre (x, y) of a random pixel of the mask, off its rim where it has an inside."""
    inner = erode(mask, 1)
    rows, columns = np.nonzero(inner if inner.any() else mask)
    index = int(rng.integers(len(rows)))
    return float(columns[index]) + 0.5, float(rows[index]) + 0.5


def _stroke(mask: np.ndarray, rng: np.random.Generator) -> list[tuple[float, float]]:
    """A curved walk of unit steps that never leaves the mask."""
    height, width = mask.shape
    x, y = _inner_pixel(mask, rng)
    points = [(x, y)]
    heading = float(rng.uniform(0.0, 2.0 * math.pi))
    steps = max(4, round(float(rng.uniform(0.4, 0.9)) * math.sqrt(float(mask.sum()))))
    for _ in range(steps):
        heading += float(rng.normal(0.0, 0.2))
        # At the rim the stroke turns, by as little as keeps it inside.
        for turn in (0.0, 0.5, -0.5, 1.0, -1.0, 1.6, -1.6, 2.4, -2.4):
            nx, ny = x + math.cos(heading + turn), y + math.sin(heading + turn)
            if 0 <= nx < width and 0 <= ny < height and mask[int(ny), int(nx)]:
                heading += turn
                x, y = nx, ny
                points.append((x, y))
                break
        else:
            break
    return points


def _jittered_box(mask: np.ndarray, rng: np.random.Generator) -> Box:
    height, width = mask.shape
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    x0, x1, y0, y1 = int(columns[0]), int(columns[-1]) + 1, int(rows[0]), int(rows[-1]) + 1
    jitter = rng.uniform(-_BOX_JITTER, _BOX_JITTER, size=4) * (x1 - x0, y1 - y0, x1 - x0, y1 - y0)
    left, top, right, bottom = (float(side + shift) for side, shift in zip((x0, y0, x1, y1), jitter))
    return Box(max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom))
