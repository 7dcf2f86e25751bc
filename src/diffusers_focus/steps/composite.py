"""Edit masks, and putting an edit back into the picture it came from.

FOCUS changes exactly the region an edit is about. The decoder renders the whole canvas, so at the end every pixel outside the
soft edit mask is the user's own, bit for bit and at the user's resolution.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from PIL import Image

from ..processing.images import FocusImageProcessor, Placement
from ..processing.masks import box_mask, dilate, feather, resample_mask

# Verbs after which an object may take another outline, so that its own mask is too small a place.
_NEW_OUTLINE = re.compile(
    r"\b(replace|swap|exchange|reshape|resize|enlarge|shrink|grow|bigger|larger|smaller|taller|wider|thinner|move|"
    r"(turn|change|transform|convert)\b.+\b(to|into) (a|an|the|some)\b)",
    re.IGNORECASE,
)


def needs_box(instruction: str) -> bool:
    """Whether an instruction replaces, reshapes or resizes, so that the edit may leave the outline of its object."""
    return _NEW_OUTLINE.search(instruction) is not None


def relative_radius(share: float, height: int, width: int) -> int:
    """A radius given as a share of the shorter side, in whole pixels; at least 1 unless the share is 0."""
    return max(1, round(share * min(height, width))) if share else 0


def grow_mask(mask: np.ndarray, radius: int, boxed: bool = False) -> np.ndarray:
    """The mask bool [height, width] grown by `radius` pixels; `boxed` fills the bounding box of that."""
    grown = dilate(torch.from_numpy(mask), radius)
    return (box_mask(grown) if boxed else grown).numpy()


def soft_mask(mask: np.ndarray, reach: int) -> torch.Tensor:
    """A mask with a soft edge: float32 [height, width], 1 inside, exactly 0 further than `reach` pixels outside."""
    if reach < 0:
        raise ValueError(f"The reach of a soft edge must be zero or more pixels, got {reach}.")
    # All of the inside is the edit's, or a rim of the old object would stay; the slope lies outside, half of it grown first.
    slope = (reach + 1) // 2
    hard = torch.from_numpy(mask)
    soft = feather(dilate(hard, reach - slope).float(), slope)
    return torch.where(hard, 1.0, soft)


def canvas_image(image: Image.Image, placement: Placement, size: tuple[int, int]) -> torch.Tensor:
    """The user's image on a canvas of `size` (height, width), white around it: float32 [3, height, width] in [-1, 1]."""
    top, left, height, width = placement.scaled(size).box
    canvas = Image.new("RGB", (size[1], size[0]), (255, 255, 255))
    inner = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)
    canvas.paste(inner, (left, top))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1).float().div(127.5).sub(1)


def place_on_grid(mask: np.ndarray, placement: Placement, size: tuple[int, int], mode: str) -> torch.Tensor:
    """A mask of the user's image on a grid over the canvas: float32 [rows, columns].

    Args:
        mask: bool [height, width].
        size: rows and columns.
        mode: "any" (token grids) or "area" (latent grid), see `resample_mask`.
    """
    return resample_mask(placement.place_mask(torch.from_numpy(mask), mode), size, mode)


def composite(
    image: Image.Image,
    decoded: torch.Tensor,
    soft: torch.Tensor | None,
    processor: FocusImageProcessor,
    placement: Placement,
) -> torch.Tensor:
    """The edited image at the user's size.

    Args:
        image: the user's.
        decoded: [3, H, W] in [-1, 1], the canvas at any scale.
        soft: float [height, width] from `soft_mask`; None takes the decoded image as it is.

    Returns:
        float32 [3, height, width] in [0, 1] on the CPU; where `soft` is 0 it is exactly the user's 8-bit value / 255.
    """
    restored = processor.restore_image(decoded.float().cpu(), placement).add(1).div(2).clamp(0, 1)
    if soft is None:
        return restored
    own = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
    return torch.where(soft > 0, own + soft * (restored - own), own)


def to_output(images: list[torch.Tensor], output_type: str) -> list[Image.Image] | np.ndarray | torch.Tensor | list:
    """Images float [3, height, width] in [0, 1] as "pil", "np" ([n, height, width, 3]) or "pt" ([n, 3, height, width]).

    Arrays and tensors of different sizes come as a list.
    """
    if output_type == "pil":
        return [Image.fromarray(image.permute(1, 2, 0).mul(255).round().to(torch.uint8).numpy()) for image in images]
    same = len({tuple(image.shape) for image in images}) == 1
    if output_type == "pt":
        return torch.stack(images) if same else images
    arrays = [image.permute(1, 2, 0).numpy() for image in images]
    return np.stack(arrays) if same else arrays
