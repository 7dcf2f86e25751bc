"""Editing a part of a large image at the model's full resolution, and pasting it back where it was.

`padding_mask_crop` as in diffusers' inpainting pipelines: the surroundings of the edit mask are cut out, edited as an image of
their own and pasted back, so that a small object in a large photograph is not edited at a few visual tokens and enlarged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from .composite import own_pixels, relative_radius
from .editing import EditPrompt
from .encode import Components, FocusImageEncoding, LoadedImages, own_images
from .joint_edits import edits_by_picture, unions

CropBox = tuple[int, int, int, int]  # left, top, right, bottom, in pixels of the user's image


@dataclass
class Crops:
    """P edited pictures, of each the part around its edits.

    Args:
        encoding: of the parts; pictures with the same part of the same image share it.
        boxes: of each picture, where its part lies in its image.
        prompts: the edits, of the parts.
        masks: bool [height, width] of each edit at the size of its part: where pixels may change.
    """

    encoding: FocusImageEncoding
    boxes: list[CropBox]
    prompts: list[EditPrompt]
    masks: list[np.ndarray]


def crop_box(mask: np.ndarray, padding: int, aspect: float) -> CropBox:
    """The part of an image around a mask.

    Args:
        mask: bool [height, width].
        padding: pixels kept around the mask on every side, as far as the image goes.
        aspect: width / height that the part gets by growing, as far as the image goes.

    Returns:
        (left, top, right, bottom); the whole image for an empty mask.
    """
    height, width = mask.shape
    if not mask.any():
        return 0, 0, width, height
    rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
    top, bottom = max(0, rows[0] - padding), min(height, rows[-1] + 1 + padding)
    left, right = max(0, columns[0] - padding), min(width, columns[-1] + 1 + padding)
    left, right = _grown(left, right, round((bottom - top) * aspect), width)
    top, bottom = _grown(top, bottom, round((right - left) / aspect), height)
    return int(left), int(top), int(right), int(bottom)


def _grown(start: int, stop: int, length: int, limit: int) -> tuple[int, int]:
    """An interval of `length` around one that is shorter, moved inside 0..limit."""
    length = min(length, limit)
    if stop - start >= length:
        return start, stop
    start = min(max(0, start - (length - (stop - start)) // 2), limit - length)
    return start, start + length


def crop_edits(
    components: Components,
    encoding: FocusImageEncoding | LoadedImages,
    prompts: Sequence[EditPrompt],
    edit_masks: Sequence[np.ndarray],
    padding: int,
    *,
    encode: Callable[[list[Image.Image]], FocusImageEncoding],
    feather: float,
    mask_blur: int | None = None,
) -> Crops:
    """Cut out the surroundings of edits and encode them: of each picture one part, around all of its edits.

    Args:
        edit_masks: bool [height, width] of each edit.
        padding: see `crop_box`; at least what the soft edge of the edit reaches.
        encode: reads the parts.
        feather, mask_blur: of the soft edge, see `composite_edits`.
    """
    own, size = own_images(components, encoding), encoding.size
    parts: dict[tuple[int, CropBox], int] = {}
    boxes, of_parts, masks = [], [], []
    for rows, image, union in zip(edits_by_picture(prompts), *unions(prompts, edit_masks)):
        reach = relative_radius(feather, *union.shape) if mask_blur is None else mask_blur
        box = crop_box(union, max(padding, reach), size[1] / size[0])
        left, top, right, bottom = box
        boxes.append(box)
        part = parts.setdefault((image, box), len(parts))
        for row in rows:
            mask, about = edit_masks[row][top:bottom, left:right], prompts[row].about
            about = None if about is None else about[top:bottom, left:right]
            masks.append(mask)
            of_parts.append(replace(prompts[row], image=part, target=None, regions=(), mask=mask, about=about))
    return Crops(encode([own[image].crop(box) for image, box in parts]), boxes, of_parts, masks)


def paste_back(
    components: Components,
    encoding: FocusImageEncoding | LoadedImages,
    images: Sequence[int],
    boxes: Sequence[CropBox],
    parts: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """The images of B pictures with their edited parts in place: float32 [3, height, width] in [0, 1].

    Args:
        encoding: of the whole images.
        images: of each picture, its image.
        boxes: of each picture, where its part lies.
        parts: float32 [3, bottom - top, right - left] in [0, 1].
    """
    results = own_pixels(components, encoding, images)
    for result, (left, top, right, bottom), part in zip(results, boxes, parts, strict=True):
        result[:, top:bottom, left:right] = part
    return results
