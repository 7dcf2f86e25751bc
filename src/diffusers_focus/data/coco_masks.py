"""Masks as files write them: COCO run lengths and polygons, labelme outlines, palette pictures; in numpy and Pillow.

Formats: the COCO data set (run lengths over columns, as numbers or as the compressed text of pycocotools; polygons x, y, x,
y, ...), labelme (outlines as lists of [x, y]) and DAVIS (pictures of object numbers). Run lengths and polygons give
pycocotools' masks pixel for pixel, which a test compares; its drawing rule is restated from facts: corners are rounded on a grid
five times finer, and a column changes sides where its centre crosses an edge. So reading data needs no compiled package.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageDraw

_FINER = 5
_FARTHEST = 1e6  # pixels; corners beyond are damage, and would take memory for every pixel of the way


def decode_rle(rle: dict[str, Any]) -> np.ndarray:
    """COCO run lengths as a mask.

    Args:
        rle: {"size": [height, width], "counts": numbers, or their compressed text}. Runs go down the columns and begin with one of
            pixels outside.

    Returns:
        bool [height, width].

    Raises:
        ValueError: the runs do not fill the size, or it is no such dict.
    """
    try:
        (height, width), counts = (int(side) for side in rle["size"]), rle["counts"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"Run lengths are {{'size': [height, width], 'counts': ...}}, got {_short(rle)}.") from None
    runs = _numbers(_read_counts(counts) if isinstance(counts, (str, bytes)) else counts, np.int64)
    if runs.ndim != 1 or (runs < 0).any() or int(runs.sum()) != height * width:
        raise ValueError(
            f"These run lengths cover {int(runs.sum())} pixels, but their size is {height} x {width}; the annotation is damaged."
        )
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(width, height).T.copy()


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """A bool mask [height, width] as {"size": [height, width], "counts": compressed text}, which pycocotools reads too."""
    mask = np.asarray(mask, dtype=bool)
    if mask.ndim != 2:
        raise ValueError(f"A mask to encode has the shape [height, width], got {list(mask.shape)}.")
    flat = mask.T.reshape(-1)
    changes = np.nonzero(flat[1:] != flat[:-1])[0] + 1
    starts = [0, *changes.tolist(), len(flat)]
    runs = [b - a for a, b in zip(starts[:-1], starts[1:])]
    if len(flat) and flat[0]:
        runs = [0, *runs]
    return {"size": list(mask.shape), "counts": _write_counts(runs)}


def _numbers(values: Any, dtype: type) -> np.ndarray:
    try:
        return np.asarray(values, dtype=dtype)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"This is no list of numbers: {_short(values)}.") from None


def _read_counts(text: str | bytes) -> list[int]:
    """Five bits a character, lowest first; from the fourth run on, the difference to the run before the last."""
    codes = text.encode("ascii") if isinstance(text, str) else text
    runs: list[int] = []
    value = shift = 0
    for code in codes:
        bits = code - 48
        if not 0 <= bits < 64:
            raise ValueError(f"Compressed run lengths hold the character {chr(code)!r}; the annotation is damaged.")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:  # a negative number
                value |= -1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("Compressed run lengths end within a number; the annotation is damaged.")
    return runs


def _write_counts(runs: Sequence[int]) -> str:
    text = []
    for index, run in enumerate(runs):
        value = run - (runs[index - 2] if index > 2 else 0)
        while True:
            bits = value & 0x1F
            value >>= 5
            more = value != (-1 if bits & 0x10 else 0)
            text.append(chr(48 + bits + (0x20 if more else 0)))
            if not more:
                break
    return "".join(text)


def polygons_mask(polygons: Sequence[Sequence[float]], height: int, width: int) -> np.ndarray:
    """COCO polygons, each x, y, x, y, ... in pixels, as the bool mask [height, width] of all of them together.

    Raises:
        ValueError: a polygon has fewer than three corners, or half a corner, or one that is not finite or absurdly far away.
    """
    mask = np.zeros((height, width), dtype=bool)
    for polygon in polygons:
        corners = _numbers(polygon, float)
        if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2 or not (np.abs(corners) < _FARTHEST).all():
            raise ValueError(
                f"A polygon is x, y, x, y, ... of at least three corners in pixels, got {_short(polygon)}."
            )
        mask |= _polygon(corners.reshape(-1, 2), height, width)
    return mask


def _polygon(corners: np.ndarray, height: int, width: int) -> np.ndarray:
    grid = np.trunc(_FINER * corners + 0.5).astype(np.int64)
    across, down = [], []
    for (x0, y0), (x1, y1) in zip(grid.tolist(), np.roll(grid, -1, axis=0).tolist()):
        dx, dy = abs(x1 - x0), abs(y1 - y0)
        # Each edge is walked from its lower end along its longer side, so that it looks the same from both directions.
        flip = x0 > x1 if dx >= dy else y0 > y1
        if flip:
            x0, y0, x1, y1 = x1, y1, x0, y0
        step = np.arange(max(dx, dy) + 1)
        step = step[::-1] if flip else step
        if dx >= dy:
            across.append(step + x0)
            down.append(np.trunc(y0 + (y1 - y0) / max(dx, 1) * step + 0.5).astype(np.int64))
        else:
            across.append(np.trunc(x0 + (x1 - x0) / dy * step + 0.5).astype(np.int64))
            down.append(step + y0)
    u, v = np.concatenate(across), np.concatenate(down)
    turns = np.nonzero(u[1:] != u[:-1])[0]
    x = (np.where(u[turns + 1] < u[turns], u[turns + 1], u[turns + 1] - 1) + 0.5) / _FINER - 0.5
    y = np.ceil(np.clip((np.minimum(v[turns + 1], v[turns]) + 0.5) / _FINER - 0.5, 0, height))
    inside = (x == np.floor(x)) & (x >= 0) & (x <= width - 1)
    switches = np.bincount((x[inside] * height + y[inside]).astype(np.int64), minlength=height * width + 1)
    flat = np.cumsum(switches[: height * width]) % 2 == 1
    return flat.reshape(width, height).T.copy()


def mask_polygons(mask: np.ndarray) -> list[list[int]]:
    """A mask as COCO polygons, one for each part that hangs together (four neighbours); `polygons_mask` gives it back exactly.

    Corners lie on the edges of pixels. COCO polygons cannot say "a hole", but they are filled by the even-odd rule, so the outline
    of a hole is walked within the polygon of its part, there and back along one line.

    Args:
        mask: bool [height, width].

    Returns:
        Lists x, y, x, y, ... in pixels, the largest part first; none for an empty mask.
    """
    mask = np.asarray(mask, dtype=bool)
    if mask.ndim != 2:
        raise ValueError(f"A mask to outline has the shape [height, width], got {list(mask.shape)}.")
    loops = _outlines(mask)
    parts = sorted(([loop] for loop in loops if _area(loop) > 0), key=lambda part: -_area(part[0]))
    for hole in (loop for loop in loops if _area(loop) < 0):
        # Around a hole lies the smallest part that holds it; parts are in descending order.
        next(part for part in reversed(parts) if _within(hole, part[0])).append(hole)
    polygons = []
    for outer, *holes in parts:
        walk = list(outer)
        for hole in holes:
            walk += [outer[0], *hole, hole[0]]
        walk += [outer[0]] if holes else []
        polygons.append([value for corner in walk for value in corner])
    return polygons


Corner = tuple[int, int]
_RIGHT = {(1, 0): (0, 1), (0, 1): (-1, 0), (-1, 0): (0, -1), (0, -1): (1, 0)}  # steps (x, y), y goes down


def _outlines(mask: np.ndarray) -> list[list[Corner]]:
    """The closed outlines along the edges of pixels, as corners. The inside is on the right, so holes run the other way round."""
    padded = np.pad(mask, 1)
    steps: dict[Corner, list[Corner]] = {}
    for step, outside, start in (
        ((1, 0), padded[:-2, 1:-1], (0, 0)),  # upper edges run right
        ((0, 1), padded[1:-1, 2:], (1, 0)),  # right ones down
        ((-1, 0), padded[2:, 1:-1], (1, 1)),  # lower ones left
        ((0, -1), padded[1:-1, :-2], (0, 1)),  # left ones up
    ):
        for y, x in np.argwhere(mask & ~outside).tolist():
            steps.setdefault((x + start[0], y + start[1]), []).append(step)
    waiting = dict.fromkeys((corner, step) for corner, leaving in steps.items() for step in leaving)
    loops = []
    while waiting:
        edge, walk = next(iter(waiting)), []
        while edge in waiting:
            del waiting[edge]
            walk.append(edge)
            (x, y), (dx, dy) = edge
            corner = (x + dx, y + dy)
            # Where two parts touch at a corner, turning right stays with the own one.
            edge = (corner, _RIGHT[dx, dy] if len(steps[corner]) > 1 else steps[corner][0])
        loops.append([corner for i, (corner, step) in enumerate(walk) if step != walk[i - 1][1]])
    return loops


def _area(loop: list[Corner]) -> float:
    """Of a closed outline; negative for a hole."""
    x, y = np.asarray(loop, dtype=float).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2


def _within(hole: list[Corner], outer: list[Corner]) -> bool:
    """Whether a hole lies inside an outline: one of its pixels, by the edges to the left of it."""
    x, y = next((x - 0.5, y + 0.5) for (x, y), (following, _) in zip(hole, hole[1:] + hole[:1]) if following < x)
    corners = np.asarray(outer, dtype=float)
    (left, start), (_, end) = corners.T, np.roll(corners, -1, axis=0).T
    return int(((left < x) & (np.minimum(start, end) < y) & (y < np.maximum(start, end))).sum()) % 2 == 1


def labelme_masks(data: bytes, name: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(target, ignored), bool [height, width] each, of a labelme file as ReasonSeg publishes them; `name` is for messages.

    Shapes are drawn with their outline, the largest first, so that a small one lies on top of a large one whatever it says;
    a label with "ignore" in it takes pixels out of the evaluation, "flag" means nothing (LISA, utils/data_processing.py).
    Pillow draws them here, OpenCV there; a test measures the difference.
    """
    drawn = []
    for shape in read_labelme(data, name)["shapes"]:
        try:
            label = str(shape["label"]).lower()
            points = [(int(x), int(y)) for x, y in shape["points"]]
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ValueError(f"A shape of {name!r} has no label, or no points [x, y]: {_short(shape)}.") from None
        if label == "flag":
            continue
        canvas = Image.new("1", (width, height))
        if len(points) > 1:
            ImageDraw.Draw(canvas).polygon(points, fill=1)
            ImageDraw.Draw(canvas).line([*points, points[0]], fill=1)
        elif points:
            ImageDraw.Draw(canvas).point(points, fill=1)
        drawn.append((np.asarray(canvas, dtype=bool), "ignore" in label))
    target, ignored = np.zeros((height, width), dtype=bool), np.zeros((height, width), dtype=bool)
    for mask, is_ignored in sorted(drawn, key=lambda pair: -int(pair[0].sum())):
        target[mask], ignored[mask] = not is_ignored, is_ignored
    return target, ignored


def read_labelme(data: bytes, name: str) -> dict[str, Any]:
    """A labelme file: {"shapes": [{"label", "points"}, ...], ...}; old Windows text is understood. `name` is for messages.

    Raises:
        ValueError: no JSON, or no shapes.
    """
    try:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = data.decode("cp1252")
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name!r} is not a labelme file: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("shapes"), list):
        raise ValueError(f"{name!r} has no list of shapes; a labelme file is {{'shapes': [...], ...}}.")
    return found


def annotation_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """What a COCO annotation calls its `segmentation`: polygons or run lengths, as bool [height, width].

    Polygons of fewer than three corners are left out, as the benchmarks do; not one is left: ValueError.
    """
    if isinstance(segmentation, dict):
        mask = decode_rle(segmentation)
        if mask.shape != (height, width):
            raise ValueError(f"The run lengths are of a {mask.shape} picture, but it is {height} x {width}.")
        return mask
    if not isinstance(segmentation, (list, tuple)):
        raise ValueError(f"A segmentation is a list of polygons or run lengths, got {_short(segmentation)}.")
    usable = [one for one in segmentation if isinstance(one, (list, tuple)) and len(one) >= 6 and len(one) % 2 == 0]
    if not usable:
        raise ValueError(f"The segmentation has no polygon of three corners or more: {_short(segmentation)}.")
    return polygons_mask(usable, height, width)


def index_map(source: Path | IO[bytes], name: str = "") -> np.ndarray:
    """The object numbers of a palette (or grey) PNG as DAVIS writes them, uint8 [height, width]; 0 is background.

    Args:
        source: the file.
        name: what messages call it; by default its path.
    """
    name = name or str(source)
    try:
        with Image.open(source) as picture:
            if picture.mode not in ("P", "L", "1"):
                raise ValueError(f"{name!r} is a {picture.mode} picture; object numbers are in a palette or grey PNG.")
            return np.asarray(picture.convert("L") if picture.mode == "1" else picture).astype(np.uint8)
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"{name!r} cannot be read as a picture: {error}") from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
