"""What the pipelines return. Everything has one entry per image, in the order the images were given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils.outputs import BaseOutput
from PIL import Image

from ..data.coco_masks import encode_rle, mask_polygons
from ..processing.drawing import draw_masks


@dataclass
class FocusTextOutput(BaseOutput):
    """Answers.

    Args:
        text (`list[str]`): one answer per image.
    """

    text: list[str]


@dataclass
class FocusSegmentOutput(BaseOutput):
    """Segmented objects. With several prompts per image (a list of lists), every entry is a list with one item per prompt.

    Three numbers say how sure the model is, each of something else: `presence` of a prompt, that there is anything it means;
    `scores` of an object, that it is one of those meant and found right (IoU of at least 0.5); `qualities` of an object, how
    well its mask fits it, meant or not. They are probabilities where the pipeline was calibrated (`diffusers-focus calibrate`).

    The methods turn masks into other forms, entry by entry.

    Args:
        masks (`list[np.ndarray]`): bool (objects, height, width) at the input image's size, best score first. No object: the
            first dimension is 0.
        scores (`list[np.ndarray]`): float32 (objects,) in 0..1.
        labels (`list[list[str]]`): a name for each object.
        text (`list[str]`): what the model wrote before it drew the masks: names, and an explanation where it gives one.
        instance_embeds (`list[np.ndarray]`): float32 (objects, dim), to recognise an object in another frame.
        presence (`list[float]`): in 0..1.
        qualities (`list[np.ndarray]`): float32 (objects,), the IoU to expect.
    """

    masks: list[Any]
    scores: list[Any]
    labels: list[Any]
    text: list[Any]
    instance_embeds: list[Any]
    presence: list[Any]
    qualities: list[Any]

    def to_pil(self) -> list[Any]:
        """Masks as images of mode "L", 255 inside: a list for each prompt."""
        return _each(lambda masks: [Image.fromarray(mask.astype(np.uint8) * 255) for mask in masks], self.masks)

    def to_rle(self) -> list[Any]:
        """Masks as COCO run lengths, {"size": [height, width], "counts": text}, which pycocotools reads: a list for each prompt."""
        return _each(lambda masks: [encode_rle(mask) for mask in masks], self.masks)

    def to_polygons(self) -> list[Any]:
        """Masks as COCO polygons x, y, x, y, ... in pixels, one for each part of a mask (see `mask_polygons`): for each prompt
        a list with a list for each object.
        """
        return _each(lambda masks: [mask_polygons(mask) for mask in masks], self.masks)

    def to_boxes(self) -> list[Any]:
        """Bounding boxes int32 (objects, 4) for each prompt: x0, y0, x1, y1 in pixels, the last two beyond the last pixel."""
        return _each(_boxes, self.masks)

    def to_label_maps(self, classes: list[str] | None = None) -> list[Any]:
        """All objects of a prompt in one picture of numbers, of overlapping objects the one with the better score on top.

        Args:
            classes: names, whose place in the list, from 1 on, is the number of all their objects (a semantic map). Without it
                each object has a number of its own (an instance or panoptic map). 0 is where nothing was found.

        Returns:
            For each prompt {"segmentation": int32 (height, width), "segments_info": [{"id", "label", "score", "area"}, ...]},
            as transformers' post-processing has it; what is hidden altogether is not listed.

        Raises:
            ValueError: an object has a name that is not in `classes`.
        """
        return _each(lambda *entry: _label_map(*entry, classes), self.masks, self.labels, self.scores)

    def to_overlays(self, images: Any) -> list[Any]:
        """The images with the masks, names and scores of each prompt drawn over them.

        Args:
            images: an image of any kind, or a list with one for each entry; one serves several prompts.
        """
        images = list(images) if isinstance(images, (list, tuple)) else [images]
        if len(images) not in (1, len(self.masks)):
            raise ValueError(
                f"There are {len(images)} images for {len(self.masks)} results. Pass one image, or one for each."
            )
        images = images * len(self.masks) if len(images) == 1 else images
        return [_overlay(*entry) for entry in zip(images, self.masks, self.labels, self.scores, strict=True)]


def _each(function: Callable[..., Any], *fields: list[Any]) -> list[Any]:
    """`function` of every prompt's values, in the nesting of the first field."""
    return [
        _each(function, *entry) if isinstance(entry[0], list) else function(*entry)
        for entry in zip(*fields, strict=True)
    ]


def _boxes(masks: np.ndarray) -> np.ndarray:
    boxes = np.zeros((len(masks), 4), dtype=np.int32)
    for box, mask in zip(boxes, masks):
        rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def _label_map(masks: np.ndarray, labels: list[str], scores: np.ndarray, classes: list[str] | None) -> dict[str, Any]:
    unknown = [label for label in labels if classes is not None and label not in classes]
    if unknown:
        raise ValueError(f"classes has no {unknown[0]!r}; pass the names that were looked for, or leave classes out.")
    numbers = [1 + (index if classes is None else classes.index(label)) for index, label in enumerate(labels)]
    found = np.zeros(masks.shape[-2:], dtype=np.int32)
    for index in np.argsort(scores, kind="stable"):  # the best last, on top
        found[masks[index]] = numbers[index]
    info = []
    for number in sorted(set(numbers)):
        area, best = int((found == number).sum()), numbers.index(number)
        if area:
            info.append({"id": number, "label": labels[best], "score": float(scores[best]), "area": area})
    return {"segmentation": found, "segments_info": info}


def _overlay(image: Any, masks: Any, labels: list[Any], scores: Any) -> Any:
    if isinstance(masks, list):
        return [_overlay(image, *entry) for entry in zip(masks, labels, scores, strict=True)]
    return draw_masks(
        image, masks, [f"{label} {float(score):.2f}" for label, score in zip(labels, scores, strict=True)]
    )


@dataclass
class FocusEditOutput(BaseOutput):
    """Edited or generated images.

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`): by `output_type`: PIL images; floats in 0..1,
            (n, height, width, 3) for "np" and (n, 3, height, width) for "pt" (a list where the sizes differ); latents.
        masks (`list[np.ndarray]` or None): bool (objects, height, width) per edit: what the edit is about.
        edit_masks (`list[np.ndarray]` or None): bool (height, width) per edit: where pixels were free to change.
            Of a picture with several edits (a list in the list of prompts) the entry of both is a list, with one item an edit.
            Either goes into the next call as `mask_image`, as it is or changed.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor | list[Any]
    masks: list[Any] | None = None
    edit_masks: list[Any] | None = None

    @property
    def union_masks(self) -> list[np.ndarray] | None:
        """Of each picture bool (height, width): where any of its edits was free to change it."""
        if self.edit_masks is None:
            return None
        return [np.logical_or.reduce(one) if isinstance(one, list) else one for one in self.edit_masks]
