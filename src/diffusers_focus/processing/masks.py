"""Masks between grids: resampling, growing, softening, boxes.

Paper: FOCUS (arXiv 2506.16806) predicts masks at one fixed resolution and rescales them for the diffusion decoder.
Every change of grid goes through `resample_mask`, so the latent grid, the two token grids and the image agree on what
is inside.

Masks are [..., height, width], float in [0, 1] or bool, on any device. Nothing here waits for the device, except
`mask_to_box`, whose answer is a Python object.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from .regions import Box


def _as_planes(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Size]:
    """Any mask as float [planes, 1, height, width], and its leading dimensions."""
    if not isinstance(mask, torch.Tensor):
        raise TypeError(
            f"A mask must be a torch tensor [..., height, width], got {type(mask).__name__}. Use torch.as_tensor."
        )
    if mask.dim() < 2 or mask.shape[-1] == 0 or mask.shape[-2] == 0:
        raise ValueError(
            f"A mask must be [..., height, width] with at least one pixel, got the shape {list(mask.shape)}."
        )
    lead = mask.shape[:-2]
    if not mask.is_floating_point():
        mask = mask.float()
    return mask.reshape(-1, 1, *mask.shape[-2:]), lead


def _overlap(length: int, cells: int, like: torch.Tensor) -> torch.Tensor:
    """[cells, length]: which share of each cell every pixel of a line covers. Rows sum to one."""
    edges = torch.arange(cells + 1, device=like.device, dtype=torch.float32) * (length / cells)
    pixels = torch.arange(length, device=like.device, dtype=torch.float32)
    shared = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return (shared.clamp(min=0) * (cells / length)).to(like.dtype)


def left_to_right(masks: np.ndarray | Sequence[np.ndarray]) -> list[int]:
    """The order of masks (each bool [height, width]) by the column of their centres, the order in which objects are named."""
    columns = [mask.sum(axis=0) for mask in masks]
    centres = [(counts * np.arange(len(counts))).sum() / max(1, counts.sum()) for counts in columns]
    return np.argsort(centres, kind="stable").tolist()


def resample_mask(mask: torch.Tensor, size: tuple[int, int], mode: str = "area") -> torch.Tensor:
    """A mask on another grid over the same image.

    Args:
        mask: [..., height, width] float in [0, 1] or bool.
        size: (rows, columns) of the new grid.
        mode: "area" is the exact share of each new cell that is inside (latent grid, image); "any" the largest value a
            new cell touches, so that no region is too small to be seen (token grids, region pooling).

    Returns:
        float [..., rows, columns], differentiable.

    Raises:
        TypeError, ValueError: not a mask, or an unknown mode.
    """
    if mode not in ("area", "any"):
        raise ValueError(f'mode must be "area" or "any", got {mode!r}.')
    if size[0] < 1 or size[1] < 1:
        raise ValueError(f"A grid must have at least one row and one column, got {tuple(size)}.")
    planes, lead = _as_planes(mask)
    height, width = planes.shape[-2:]
    if (height, width) != tuple(size):
        if mode == "any":
            planes = F.adaptive_max_pool2d(planes, tuple(size))
        else:
            with torch.autocast(planes.device.type, enabled=False):  # shares need the precision they came with
                planes = _overlap(height, size[0], planes) @ planes @ _overlap(width, size[1], planes).mT
    return planes.reshape(*lead, *size)


def dilate(mask: torch.Tensor, radius: int) -> torch.Tensor:
    """The mask grown by `radius` pixels in every direction (a disk), same shape and kind. Zero changes nothing."""
    if radius < 0:
        raise ValueError(f"radius must be zero or more pixels, got {radius}. Masks are only grown here.")
    if radius == 0:
        return mask
    planes, lead = _as_planes(mask)
    height, width = planes.shape[-2:]
    rows = F.pad(planes, (0, 0, radius, radius))
    grown = planes
    for dy in range(-radius, radius + 1):
        reach = int((radius * radius - dy * dy) ** 0.5)
        line = rows[..., radius + dy : radius + dy + height, :]
        grown = torch.maximum(grown, F.max_pool2d(line, (1, 2 * reach + 1), stride=1, padding=(0, reach)))
    grown = grown.reshape(*lead, height, width)
    return grown if mask.is_floating_point() else grown.to(mask.dtype)


def feather(mask: torch.Tensor, radius: int) -> torch.Tensor:
    """The mask with a soft edge, float of the same shape.

    A Gaussian cut off at `radius` pixels: further than that from the edge the mask keeps its value, so everything
    beyond `dilate(mask, radius)` is exactly zero. The image border is no edge.
    """
    if radius < 0:
        raise ValueError(f"radius must be zero or more pixels, got {radius}.")
    planes, lead = _as_planes(mask)
    size = planes.shape[-2:]
    if radius:
        steps = torch.arange(-radius, radius + 1, device=planes.device, dtype=torch.float32)
        kernel = torch.exp(-2 * (steps / radius) ** 2)
        kernel = (kernel / kernel.sum()).to(planes.dtype)
        planes = F.pad(planes, (radius, radius, radius, radius), mode="replicate")
        planes = F.conv2d(planes, kernel.view(1, 1, 1, -1))
        planes = F.conv2d(planes, kernel.view(1, 1, -1, 1)).clamp(0, 1)
    return planes.reshape(*lead, *size)


def box_mask(mask: torch.Tensor, threshold: float = 0.5) -> torch.Tensor:
    """Each mask's bounding box, filled, same shape and kind. Empty masks stay empty."""
    inside = mask if mask.dtype == torch.bool else mask > threshold

    def span(line: torch.Tensor) -> torch.Tensor:
        line = line.to(torch.uint8)
        return (line.cummax(-1).values & line.flip(-1).cummax(-1).values.flip(-1)).bool()

    box = span(inside.any(-1)).unsqueeze(-1) & span(inside.any(-2)).unsqueeze(-2)
    return box.to(mask.dtype)


def mask_to_box(mask: torch.Tensor, threshold: float = 0.5) -> Box | None:
    """The bounding box of one mask [height, width] in its own pixels, None where it is empty."""
    if mask.dim() != 2:
        raise ValueError(
            f"mask_to_box takes one mask [height, width], got the shape {list(mask.shape)}. Pass them one by one."
        )
    inside = mask if mask.dtype == torch.bool else mask > threshold
    rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
    if not len(rows):
        return None
    return Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
