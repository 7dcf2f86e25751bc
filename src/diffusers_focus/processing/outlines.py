"""Outlines of masks that follow the edges of the image they are about.

A mask decoder draws on a grid of a quarter of the canvas, and interpolating its logits rounds what lies between. The image knows
better: a pixel belongs to what the pixels of its own colour around it belong to. That is the joint bilateral filter (Petschnigg
et al. 2004), used as by Kopf et al. to bring a coarse result to the resolution of its picture ("Joint Bilateral Upsampling", 2007).
Nothing here is learned, and FOCUS (arXiv 2506.16806) has no such step; a checkpoint says whether it wants it (`mask_refinement`).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .images import FocusImageProcessor, Placement
from .masks import mask_to_box

COLOUR = 0.1  # standard deviation of what counts as one colour, of channels in 0..1
NEARNESS = 0.75  # that of the distance, as a share of the reach
PASSES = 2
OUTSIDE = -0.9  # tanh of half a logit: below, nothing near makes a pixel one of the object's
FINEST = 4  # pixels a cell of the mask decoder's grid has on the canvas; a finer image is filtered at this size


def follow_edges(values: torch.Tensor, image: torch.Tensor, reach: float) -> torch.Tensor:
    """The joint bilateral filter: every value becomes the mean of those around it, weighed by likeness of colour and nearness.

    Args:
        values: float [M, H, W].
        image: float [3, H, W] in 0..1.
        reach: pixels, at least 1; the window is square and has `2 * ceil(reach) + 1` a side.
    """
    window = math.ceil(reach)
    height, width = image.shape[-2:]
    around = F.pad(image[None], (window,) * 4, mode="replicate")[0]
    for _ in range(PASSES):
        padded = F.pad(values[None], (window,) * 4, mode="replicate")[0]
        total, weights = torch.zeros_like(values), torch.zeros_like(image[0])
        # One shift at a time: a window of everything at once would need the image's memory a hundred times.
        for y in range(2 * window + 1):
            for x in range(2 * window + 1):
                far = ((y - window) ** 2 + (x - window) ** 2) / (2 * (NEARNESS * reach) ** 2)
                shift = (slice(None), slice(y, y + height), slice(x, x + width))
                unlike = (around[shift] - image).square().sum(0) / (2 * COLOUR**2)
                weight = torch.exp(-unlike - far)
                weights += weight
                total += weight * padded[shift]
        values = total / weights
    return values


def _surroundings(near: torch.Tensor, margin: int) -> tuple[slice, slice]:
    """Rows and columns of the box around all masks bool [M, H, W], and a margin; most objects are small."""
    box = mask_to_box(near.any(0))
    if box is None:
        return slice(0, 1), slice(0, 1)
    top, left = (max(0, int(first) - margin) for first in (box.y0, box.x0))
    return slice(top, int(box.y1) + margin), slice(left, int(box.x1) + margin)


def outline_masks(
    processor: FocusImageProcessor, logits: torch.Tensor, placement: Placement, image: Image.Image | None, reach: float
) -> torch.Tensor:
    """Mask logits at the size of the user's image, their outlines along its edges.

    Args:
        logits: float [M, h, w] on any grid over the canvas.
        placement: of the image on the canvas.
        image: RGB, of the size `placement.source`; None only interpolates.
        reach: cells of the grid within which a pixel looks for its like; 0 only interpolates (`restore_mask`).

    Returns:
        float [M, height, width], above 0 inside; logits with a reach of 0, else in -1..1. An image with more than `FINEST` pixels
        a cell is filtered at that size, so the cost is bounded by the canvas.
    """
    if image is None or not reach or not len(logits):
        return processor.restore_mask(logits, placement)
    cell = placement.source[0] * placement.canvas[0] / (placement.box[2] * logits.shape[-2])
    size = placement.source
    if cell > FINEST:
        size = tuple(max(1, round(side * FINEST / cell)) for side in placement.source)
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        cell = FINEST
    drawn = torch.tanh(processor.restore_mask(logits, replace(placement, source=size)) / 2)
    colours = torch.from_numpy(np.array(image, dtype=np.float32) / 255).permute(2, 0, 1).to(drawn)
    reach = max(1.0, reach * cell)
    rows, columns = _surroundings(drawn > OUTSIDE, PASSES * math.ceil(reach))
    soft = drawn.clone()
    soft[:, rows, columns] = follow_edges(drawn[:, rows, columns], colours[:, rows, columns], reach)
    # A thing of a pixel or two that looks like what is around it keeps the mask it had.
    lost = (drawn > 0).flatten(1).any(1) & ~(soft > 0).flatten(1).any(1)
    soft = torch.where(lost[:, None, None], drawn, soft)
    if size != placement.source:
        soft = F.interpolate(soft[None], size=placement.source, mode="bilinear", align_corners=False)[0]
    return soft
