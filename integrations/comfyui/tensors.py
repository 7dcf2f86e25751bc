"""Between ComfyUI's tensors and what FOCUS takes: images, masks, and regions written as text. Needs no ComfyUI.

IMAGE is float32 [batch, height, width, channels] in 0..1 on the CPU, MASK float32 [batch, height, width] in 0..1, 1 inside.
What does not fit is a ValueError that names the node's input.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

NO_MASK = (64, 64)  # LoadImage's mask of an image without transparency: this size, all zero


class InputError(ValueError):
    """An input of a node does not fit; the message names it."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"Input {name}: {message}")


def read_images(image: torch.Tensor, name: str = "image") -> list[Image.Image]:
    """An IMAGE batch as RGB pictures of 8 bits; of four channels the last one, transparency, is left out."""
    if not isinstance(image, torch.Tensor) or image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        shape = list(image.shape) if isinstance(image, torch.Tensor) else type(image).__name__
        raise InputError(name, f"expected an IMAGE [batch, height, width, 3], got {shape}.")
    if 0 in image.shape:
        raise InputError(name, f"there is no pixel in an image of the shape {list(image.shape)}.")
    if not torch.isfinite(image).all():
        raise InputError(name, "it holds NaN or infinite values. Check the node that made it.")
    channels = image[..., :3].expand(*image.shape[:3], 3)
    levels = channels.float().clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy()
    return [Image.fromarray(np.ascontiguousarray(one)) for one in levels]


def write_images(pictures: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """Pictures [n, 3, height, width] in 0..1 (`output_type="pt"`) as an IMAGE batch."""
    stacked = pictures if isinstance(pictures, torch.Tensor) else torch.stack(list(pictures))
    return stacked.detach().float().cpu().movedim(1, -1).contiguous()


def write_pictures(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """PIL pictures of one size as an IMAGE batch, as LoadImage reads files."""
    return torch.from_numpy(np.stack([np.asarray(one.convert("RGB")) for one in pictures]).astype(np.float32) / 255)


def keep_own_values(edited: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """An edited IMAGE with the input's own floats wherever it shows the input's 8-bit level.

    FOCUS works on 8 bits; pixels outside an edit are then the user's, but rounded. A user's floats need not be multiples of
    1 / 255.
    """
    own = image[..., :3].expand_as(edited).float().cpu().clamp(0, 1)
    return torch.where(edited == own.mul(255).round().div(255), own, edited)


def read_masks(
    mask: torch.Tensor | None, size: tuple[int, int], count: int, name: str = "mask"
) -> list[np.ndarray] | None:
    """A MASK input as bool [height, width] of each of `count` images of `size`; None where there is none.

    Pixels above one half are inside. A single mask serves every image. What LoadImage gives for an image without transparency
    (64 x 64, all zero) is no mask.
    """
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor) or mask.ndim < 2:
        raise InputError(name, f"expected a MASK [batch, height, width], got {type(mask).__name__}.")
    planes = mask.detach().float().cpu().reshape(-1, *mask.shape[-2:])
    if tuple(planes.shape[-2:]) == NO_MASK and not planes.any():
        return None
    if tuple(planes.shape[-2:]) != size:
        raise InputError(
            name,
            f"it is {planes.shape[-1]} wide and {planes.shape[-2]} high, but the image is {size[1]} wide and {size[0]} high. Scale "
            "one of them to the other, or paint the mask on this image.",
        )
    if not torch.isfinite(planes).all():
        raise InputError(name, "it holds NaN or infinite values. Check the node that made it.")
    if len(planes) not in (1, count):
        raise InputError(name, f"there are {len(planes)} masks for {count} images. Give one for all, or one for each.")
    inside = (planes > 0.5).numpy()
    return [inside[index if len(inside) > 1 else 0] for index in range(count)]


def write_masks(masks: Sequence[np.ndarray], size: tuple[int, int]) -> torch.Tensor:
    """Bool [height, width] masks as a MASK batch; one empty mask where there is none, since no node takes an empty batch."""
    if len(masks) == 0:
        return torch.zeros(1, *size)
    return torch.from_numpy(np.stack(masks).astype(np.float32))


def read_regions(
    size: tuple[int, int],
    count: int,
    *,
    points: str = "",
    negative_points: str = "",
    box: str = "",
    scribble: str = "",
    mask: torch.Tensor | None = None,
) -> list[list[Any]] | None:
    """What is pointed at in each of `count` images: regions of diffusers_focus that belong together; None for nothing."""
    from diffusers_focus import Box, Mask, Point, Scribble

    common = [_region("points", size, Point, x, y) for x, y in read_pairs(points, "points")]
    edges = read_numbers(box, "box")
    if edges:
        if len(edges) != 4:
            raise InputError("box", f"expected four numbers x0,y0,x1,y1, got {box!r}.")
        common.append(_region("box", size, Box, *edges))
    stroke = read_pairs(scribble, "scribble")
    if stroke:
        common.append(_region("scribble", size, Scribble, stroke))
    masks = read_masks(mask, size, count)
    not_meant = read_pairs(negative_points, "negative_points")
    if not_meant and not common and masks is None:
        raise InputError("negative_points", "say what is meant as well: points, a box, a scribble or a mask.")
    for x, y in not_meant:
        _region("negative_points", size, Point, x, y)
        common.append(Point(x, y, positive=False))
    if masks is None:
        return [list(common) for _ in range(count)] if common else None
    for index, one in enumerate(masks):
        if not one.any():
            raise InputError(
                "mask", f"the mask of image {index} is empty. Paint on the object, or disconnect the input."
            )
    return [[*common, Mask(one)] for one in masks]


def read_numbers(text: str, name: str) -> list[float]:
    """Numbers separated by commas, semicolons or blanks; or `[{"x": 64, "y": 48}, ...]`, as other packs' point editors write."""
    try:
        if text.strip().startswith(("[", '"')):  # no point at all may come as an empty JSON text
            return [float(point[axis]) for point in json.loads(text) for axis in ("x", "y")]
        return [float(part) for part in text.replace(",", " ").replace(";", " ").split()]
    except (ValueError, TypeError, KeyError):
        raise InputError(name, f"expected numbers of pixels such as 64,48, got {text!r}.") from None


def read_pairs(text: str, name: str) -> list[tuple[float, float]]:
    """Pairs x,y of pixels."""
    numbers = read_numbers(text, name)
    if len(numbers) % 2:
        raise InputError(name, f"expected pairs x,y such as 64,48 70,60, got {len(numbers)} numbers: {text!r}.")
    return list(zip(numbers[::2], numbers[1::2]))


def read_names(text: str) -> list[str]:
    """Names separated by commas or lines."""
    return [name.strip() for name in text.replace("\n", ",").split(",") if name.strip()]


def _region(name: str, size: tuple[int, int], kind: Any, *values: Any) -> Any:
    """A region that lies within an image of `size`."""
    try:
        region = kind(*values)
        region.rasterize(*size)
    except (TypeError, ValueError) as error:
        raise InputError(name, str(error)) from error
    return region
