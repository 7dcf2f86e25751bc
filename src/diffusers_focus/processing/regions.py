"""Visual reference regions: the clicks, strokes, boxes and masks a user can point with.

Paper: FOCUS (arXiv 2506.16806), section "Interactive segmentation": a region prompt is a point, a scribble, a box or a
mask. All four are turned into one boolean mask of the input image; the vision encoder pools features under it. Negative ones
say what is not meant, and `Strokes` holds what several say together about one object; that is this project's own.

Coordinates are pixels of the input image, origin at the top left corner, x to the right, y down. Pixel (column i, row
j) covers [i, i + 1) x [j, j + 1): a point names the pixel that contains it, and `Box(0, 0, width, height)` is the whole
image.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

POINT_RADIUS = 0.016  # of the shorter image side; a finger-sized dot whatever the resolution


def point_radius(height: int, width: int) -> int:
    """Radius in pixels of the disk a `Point` stands for in a `height` x `width` image."""
    return max(1, round(POINT_RADIUS * min(height, width)))


def stroke_radius(height: int, width: int) -> int:
    """Half width in pixels of the stroke a `Scribble` stands for in a `height` x `width` image."""
    return max(1, round(POINT_RADIUS * min(height, width) / 2))


def _check_number(value: Any, name: str) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"{name} must be a number of pixels, got {value!r} of type {type(value).__name__}. "
            "Pass pixel coordinates of the input image as int or float."
        )
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}. Pass pixel coordinates of the input image.")
    return float(value)


def _check_size(height: Any, width: Any) -> None:
    for name, value in (("height", height), ("width", width)):
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
            raise TypeError(
                f"{name} must be an integer number of pixels, got {value!r} of type {type(value).__name__}."
            )
        if value < 1:
            raise ValueError(f"{name} must be at least 1 pixel, got {value}. Pass the size of the input image.")


def _check_inside(x: float, y: float, height: int, width: int, what: str) -> None:
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(
            f"{what} at (x={x:g}, y={y:g}) lies outside the image: x must be in [0, {width}) and y in [0, {height}) "
            f"for an image {width} wide and {height} high. Give coordinates in pixels of the input image, x first."
        )


@dataclass(frozen=True)
class Point:
    """A click.

    Args:
        x: column in pixels, 0 <= x < width.
        y: row in pixels, 0 <= y < height.
        positive: False for a place that does not belong to what is meant, see `Strokes`.

    Raises:
        TypeError: a coordinate is not a number.
        ValueError: a coordinate is NaN or infinite.
    """

    x: float
    y: float
    positive: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", _check_number(self.x, "Point.x"))
        object.__setattr__(self, "y", _check_number(self.y, "Point.y"))

    def rasterize(self, height: int, width: int) -> np.ndarray:
        """The disk around the click, bool [height, width]. Raises ValueError where the click is outside the image."""
        _check_size(height, width)
        _check_inside(self.x, self.y, height, width, "Point")
        mask = np.zeros((height, width), dtype=bool)
        centre = (math.floor(self.x), math.floor(self.y))
        _draw_segment(mask, centre, centre, point_radius(height, width))
        return mask


@dataclass(frozen=True)
class Scribble:
    """A free-hand stroke.

    Args:
        points: at least one (x, y) pair or `Point`, joined by straight lines in this order; or an array [n, 2].
        positive: False for a stroke over what is not meant, see `Strokes`.

    Raises:
        TypeError: not a sequence of pairs of numbers.
        ValueError: no points, or a coordinate is NaN or infinite.
    """

    points: tuple[tuple[float, float], ...]
    positive: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        points = self.points
        if hasattr(points, "tolist"):
            points = points.tolist()
        if isinstance(points, (str, bytes)) or not isinstance(points, Sequence):
            raise TypeError(
                f"Scribble.points must be a sequence of (x, y) pairs, got {type(points).__name__}. "
                "Pass for example Scribble([(10, 12), (30, 40)])."
            )
        if len(points) == 0:
            raise ValueError(
                "Scribble.points is empty. Pass at least one (x, y) pair, for example Scribble([(10, 12)])."
            )
        pairs = []
        for index, point in enumerate(points):
            if isinstance(point, Point):
                point = (point.x, point.y)
            elif hasattr(point, "tolist"):
                point = point.tolist()
            if isinstance(point, (str, bytes)) or not isinstance(point, Sequence) or len(point) != 2:
                raise TypeError(f"Scribble.points[{index}] must be an (x, y) pair or a Point, got {point!r}.")
            pairs.append(
                (
                    _check_number(point[0], f"Scribble.points[{index}] x"),
                    _check_number(point[1], f"Scribble.points[{index}] y"),
                )
            )
        object.__setattr__(self, "points", tuple(pairs))

    def rasterize(self, height: int, width: int) -> np.ndarray:
        """The stroke, bool [height, width]. Raises ValueError where one of its points is outside the image."""
        _check_size(height, width)
        for index, (x, y) in enumerate(self.points):
            _check_inside(x, y, height, width, f"Scribble point {index}")
        mask = np.zeros((height, width), dtype=bool)
        radius = stroke_radius(height, width)
        pixels = [(math.floor(x), math.floor(y)) for x, y in self.points]
        for start, end in zip(pixels[:-1], pixels[1:]) if len(pixels) > 1 else [(pixels[0], pixels[0])]:
            _draw_segment(mask, start, end, radius)
        return mask


@dataclass(frozen=True)
class Box:
    """An axis-aligned rectangle, filled.

    Args:
        x0, y0: left and top edge in pixels.
        x1, y1: right and bottom edge in pixels, beyond the last pixel inside; x1 > x0, y1 > y0, x1 <= width, y1 <=
            height.
        positive: False for a box around what is not meant, see `Strokes`.

    Raises:
        TypeError: an edge is not a number.
        ValueError: an edge is NaN or infinite, or the box has no area.
    """

    x0: float
    y0: float
    x1: float
    y1: float
    positive: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("x0", "y0", "x1", "y1"):
            object.__setattr__(self, name, _check_number(getattr(self, name), f"Box.{name}"))
        if self.x1 <= self.x0 or self.y1 <= self.y0:
            raise ValueError(
                f"Box(x0={self.x0:g}, y0={self.y0:g}, x1={self.x1:g}, y1={self.y1:g}) has no area: x1 must be greater "
                "than x0 and y1 greater than y0. Give the top left corner first, then the bottom right one (not width "
                "and height)."
            )

    def rasterize(self, height: int, width: int) -> np.ndarray:
        """The filled box, bool [height, width]: every pixel it touches. Raises ValueError where it leaves the image."""
        _check_size(height, width)
        if self.x0 < 0 or self.y0 < 0 or self.x1 > width or self.y1 > height:
            raise ValueError(
                f"Box(x0={self.x0:g}, y0={self.y0:g}, x1={self.x1:g}, y1={self.y1:g}) lies outside the image: x must "
                f"be in [0, {width}] and y in [0, {height}] for an image {width} wide and {height} high. Clip the box, "
                "or check that its coordinates are pixels of the input image."
            )
        mask = np.zeros((height, width), dtype=bool)
        mask[math.floor(self.y0) : math.ceil(self.y1), math.floor(self.x0) : math.ceil(self.x1)] = True
        return mask


@dataclass(frozen=True, eq=False)
class Mask:
    """A region given pixel by pixel.

    Args:
        array: [height, width] (or [1, height, width] / [height, width, 1]) numpy array, torch tensor or PIL image:
            bool, integers (0 and 1, or 0 and 255) or floats in [0, 1]. Stored as a read-only bool array; a pixel is
            inside where its value is above half of the largest possible one.
        positive: False for pixels of what is not meant, see `Strokes`.

    Raises:
        TypeError: not an array, or a dtype that cannot mean a mask.
        ValueError: not two-dimensional, NaN, values out of range, or not a single pixel inside.
    """

    array: np.ndarray
    positive: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        array = np.array(binary_mask(self.array))
        if not array.any():
            raise ValueError(
                "The mask of a region is empty: not a single pixel is inside. Mark at least one pixel, or leave the "
                "region out."
            )
        array.setflags(write=False)
        object.__setattr__(self, "array", array)

    def rasterize(self, height: int, width: int) -> np.ndarray:
        """The mask itself, bool [height, width]. Raises ValueError where the image has another size."""
        _check_size(height, width)
        if self.array.shape != (height, width):
            raise ValueError(
                f"The mask of a region is {self.array.shape[1]} wide and {self.array.shape[0]} high, but the image is "
                f"{width} wide and {height} high. Resize the mask to the image with nearest-neighbour sampling."
            )
        return self.array.copy()

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Mask) and self.positive == other.positive
        return same and np.array_equal(self.array, other.array)

    def __hash__(self) -> int:
        return hash((self.array.shape, self.array.tobytes(), self.positive))


Stroke = Point | Scribble | Box | Mask


@dataclass(frozen=True, init=False)
class Strokes:
    """What several clicks, scribbles, boxes and masks say together about one object.

    Args:
        strokes: at least one, positive or negative (`Point(80, 20, positive=False)`).
        previous: the mask found so far, which they are to improve: a `Mask`, or what a `Mask` is made of. Without one, at
            least one stroke must be positive.

    Raises:
        TypeError, ValueError: not strokes, or nothing that says what is meant.
    """

    strokes: tuple[Stroke, ...]
    previous: Mask | None

    def __init__(self, *strokes: Stroke, previous: Any = None) -> None:
        if len(strokes) == 1 and isinstance(strokes[0], (list, tuple)):
            strokes = tuple(strokes[0])
        for stroke in strokes:
            if not isinstance(stroke, (Point, Scribble, Box, Mask)):
                raise TypeError(
                    f"Strokes are Point, Scribble, Box or Mask, got {type(stroke).__name__}. For example "
                    "Strokes(Point(40, 52), Point(80, 20, positive=False))."
                )
        previous = previous if previous is None or isinstance(previous, Mask) else Mask(previous)
        if previous is None and not any(stroke.positive for stroke in strokes):
            raise ValueError(
                "Nothing in these strokes says what is meant, only what is not. Add a positive one, or previous=mask."
            )
        object.__setattr__(self, "strokes", strokes)
        object.__setattr__(self, "previous", previous)

    def parts(self, height: int, width: int, *, positive: bool) -> tuple[np.ndarray, ...]:
        """The positive or the negative strokes, bool [height, width] each. Raises ValueError where one leaves the image."""
        return tuple(stroke.rasterize(height, width) for stroke in self.strokes if bool(stroke.positive) == positive)

    def rasterize(self, height: int, width: int) -> np.ndarray:
        """All that is meant: the positive strokes, or failing them the previous mask, without the negative ones; bool [height,
        width].

        Raises ValueError where nothing is left, or a stroke leaves the image.
        """
        meant = self.parts(height, width, positive=True)
        if self.previous is not None and not meant:
            meant = (self.previous.rasterize(height, width),)
        mask = np.logical_or.reduce(meant)
        for stroke in self.parts(height, width, positive=False):
            mask &= ~stroke
        if not mask.any():
            raise ValueError(
                "The negative strokes cover everything that is meant. Move them apart, or leave one of them out."
            )
        return mask


Region = Stroke | Strokes
"""What a user can point with."""


def check_region(region: Any, height: int, width: int) -> None:
    """Raise TypeError or ValueError unless `region` is a region that lies within a `height` x `width` image."""
    if not isinstance(region, (Point, Scribble, Box, Mask, Strokes)):
        raise TypeError(
            f"A region must be a Point, Scribble, Box or Mask, or Strokes of them, got {type(region).__name__}. For example "
            "Point(x, y), Box(x0, y0, x1, y1) in pixels of the input image, or Mask(array) for an array of the image's size."
        )
    region.rasterize(height, width)


def binary_mask(array: Any) -> np.ndarray:
    """Any mask-like array as bool [height, width]."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        if array.dtype.is_floating_point:  # numpy has no bfloat16
            array = array.float()
        array = array.numpy()
    elif isinstance(array, (list, tuple)) or hasattr(array, "__array_interface__"):
        try:
            array = np.asarray(array)
        except ValueError as error:
            raise ValueError(
                "Mask.array is a list of rows of different lengths, or of other things than numbers. Pass one array [height, "
                "width]."
            ) from error
    if not isinstance(array, np.ndarray):
        raise TypeError(
            f"Mask.array must be a numpy array, torch tensor or PIL image, got {type(array).__name__}. To point with a "
            "click or a box use Point(x, y) or Box(x0, y0, x1, y1)."
        )
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    elif array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2:
        raise ValueError(
            f"Mask.array must have the shape [height, width], got {list(array.shape)}. Pass one mask; several regions "
            "are a list of Mask."
        )
    if array.dtype == bool:
        return array
    if array.size == 0:
        return array.astype(bool)
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise ValueError("Mask.array holds NaN or infinite values. Pass 0 outside and 1 inside.")
        top = 1.0
    elif np.issubdtype(array.dtype, np.integer):
        top = 1 if array.max() <= 1 else 255
    else:
        raise TypeError(f"Mask.array has the dtype {array.dtype}, allowed are bool, integers and floats.")
    if array.min() < 0 or array.max() > top:
        raise ValueError(
            f"Mask.array holds values from {array.min():g} to {array.max():g}; allowed are bool, integers 0 and 1 or 0 "
            "to 255, and floats in [0, 1]. Threshold the mask first, for example array > 0."
        )
    return array > top / 2


def _draw_segment(mask: np.ndarray, start: tuple[int, int], end: tuple[int, int], radius: int) -> None:
    """Set all pixels within `radius` of the segment between two pixel centres. (x, y) order, in place."""
    height, width = mask.shape
    left, right = max(0, min(start[0], end[0]) - radius), min(width, max(start[0], end[0]) + radius + 1)
    top, bottom = max(0, min(start[1], end[1]) - radius), min(height, max(start[1], end[1]) + radius + 1)
    y = np.arange(top, bottom, dtype=np.float32)[:, None] - start[1]
    x = np.arange(left, right, dtype=np.float32)[None, :] - start[0]
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = dx * dx + dy * dy
    along = np.clip((x * dx + y * dy) / length, 0.0, 1.0) if length else np.float32(0.0)
    mask[top:bottom, left:right] |= (x - along * dx) ** 2 + (y - along * dy) ** 2 <= radius * radius
