"""Pictures of masks: overlays and contact sheets, drawn with PIL alone.

For reading results by eye (paper: FOCUS, arXiv 2506.16806, figures): never part of a measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from .images import ImageLike, load_image_any

# Bright, far apart in hue, readable on light and on dark.
COLOURS: tuple[tuple[int, int, int], ...] = (
    (255, 64, 64),
    (64, 144, 255),
    (64, 208, 96),
    (255, 192, 32),
    (176, 80, 255),
    (32, 208, 208),
    (255, 112, 192),
    (160, 208, 32),
)


def draw_masks(
    image: ImageLike,
    masks: Any,
    labels: Sequence[str] | None = None,
    *,
    colours: Sequence[tuple[int, int, int]] = COLOURS,
    opacity: float = 0.45,
    outline: int = 1,
) -> Image.Image:
    """An image with masks laid over it.

    Args:
        image: see `load_image_any`.
        masks: [N, height, width] or [height, width] of the image's size: bool, or float thresholded at 0.5. None or an
            empty list draws nothing.
        labels: one text per mask, written at its top left corner.
        colours: RGB, repeated where there are more masks.
        opacity: of the filling, 0 to 1.
        outline: width of the edge in pixels, 0 for none.

    Returns:
        RGB image of the same size.

    Raises:
        ValueError: masks of another size, or another number of labels than masks.
    """
    canvas = np.asarray(load_image_any(image)).astype(np.float32)
    planes = _mask_planes(masks, canvas.shape[:2])
    if labels is not None and len(labels) != len(planes):
        raise ValueError(f"There are {len(labels)} labels for {len(planes)} masks. Give one label per mask.")
    for index, plane in enumerate(planes):
        colour = np.asarray(colours[index % len(colours)], dtype=np.float32)
        canvas[plane] = canvas[plane] * (1 - opacity) + colour * opacity
        if outline:
            canvas[plane & ~_erode(plane, outline)] = colour
    picture = Image.fromarray(np.round(canvas).astype(np.uint8))
    if labels is not None:
        draw = ImageDraw.Draw(picture)
        for index, (plane, label) in enumerate(zip(planes, labels, strict=True)):
            rows, columns = np.nonzero(plane)
            if len(rows):
                _write(draw, (int(columns.min()), int(rows.min())), label, colours[index % len(colours)], picture.size)
    return picture


def contact_sheet(
    images: Sequence[ImageLike],
    columns: int | None = None,
    captions: Sequence[str] | None = None,
    *,
    cell: int | None = None,
    gap: int = 4,
) -> Image.Image:
    """Images side by side, row by row, on white.

    Args:
        images: at least one, see `load_image_any`; each is fitted into a square cell.
        columns: images per row; all in one row by default.
        captions: one line under each image.
        cell: side of a cell in pixels; the longest side of the images by default.
        gap: pixels between cells.

    Raises:
        ValueError: no images, or another number of captions than images.
    """
    if len(images) == 0:
        raise ValueError("A contact sheet needs at least one image.")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"There are {len(captions)} captions for {len(images)} images. Give one caption per image.")
    pictures = [load_image_any(image) for image in images]
    side = cell or max(max(picture.size) for picture in pictures)
    columns = min(columns or len(pictures), len(pictures))
    rows = -(-len(pictures) // columns)
    line = 14 if captions is not None else 0
    sheet = Image.new("RGB", (gap + columns * (side + gap), gap + rows * (side + line + gap)), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        x, y = gap + column * (side + gap), gap + row * (side + line + gap)
        scale = side / max(picture.size)
        size = tuple(max(1, round(length * scale)) for length in picture.size)
        resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        fitted = picture if size == picture.size else picture.resize(size, resample)
        sheet.paste(fitted, (x + (side - size[0]) // 2, y + (side - size[1]) // 2))
        if captions is not None:
            draw.text((x, y + side + 1), _shorten(draw, captions[index], side), fill=(0, 0, 0))
    return sheet


def _mask_planes(masks: Any, size: tuple[int, int]) -> list[np.ndarray]:
    """Any masks as a list of bool [height, width]."""
    if masks is None:
        return []
    if isinstance(masks, (list, tuple)):
        return [plane for mask in masks for plane in _mask_planes(mask, size)]
    if isinstance(masks, torch.Tensor):
        masks = masks.detach().cpu()
        masks = (masks if masks.dtype == torch.bool else masks > 0.5).numpy()
    masks = np.asarray(masks)
    masks = masks if masks.dtype == bool else masks > 0.5
    if masks.shape[-2:] != tuple(size):
        raise ValueError(
            f"The masks have the shape {list(masks.shape)}, but the image is {size[0]} high and {size[1]} wide. Resize "
            "them to the image first."
        )
    return list(masks.reshape(-1, *size))


def _erode(plane: np.ndarray, width: int) -> np.ndarray:
    """The plane without its outermost `width` pixels; the image border counts as outside."""
    for _ in range(width):
        padded = np.pad(plane, 1)
        plane = plane & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return plane


def _write(
    draw: ImageDraw.ImageDraw, position: tuple[int, int], text: str, colour: tuple[int, int, int], size: tuple[int, int]
) -> None:
    left, top, right, bottom = draw.textbbox((0, 0), text)
    x = max(0, min(position[0], size[0] - int(right) - 2))
    y = max(0, min(position[1], size[1] - int(bottom) - 2))
    draw.rectangle((x, y, x + right + 2, y + bottom + 2), fill=colour)
    draw.text((x + 1, y + 1), text, fill=(0, 0, 0))


def _shorten(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    if draw.textlength(text) <= width:
        return text
    while text and draw.textlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
