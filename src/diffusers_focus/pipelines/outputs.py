"""What the pipelines return. Everything has one entry per image, in the order the images were given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils.outputs import BaseOutput
from PIL import Image


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

    Args:
        masks (`list[np.ndarray]`): bool (objects, height, width) at the input image's size, best score first. No object: the
            first dimension is 0.
        scores (`list[np.ndarray]`): float32 (objects,) in 0..1.
        labels (`list[list[str]]`): a name for each object.
        text (`list[str]`): the names the model wrote before it drew the masks.
        instance_embeds (`list[np.ndarray]`): float32 (objects, dim), to recognise an object in another frame.
    """

    masks: list[Any]
    scores: list[Any]
    labels: list[Any]
    text: list[Any]
    instance_embeds: list[Any]


@dataclass
class FocusEditOutput(BaseOutput):
    """Edited or generated images.

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`): by `output_type`: PIL images; floats in 0..1,
            (n, height, width, 3) for "np" and (n, 3, height, width) for "pt" (a list where the sizes differ); latents.
        masks (`list[np.ndarray]` or None): bool (objects, height, width) per edit: what the edit is about.
        edit_masks (`list[np.ndarray]` or None): bool (height, width) per edit: where pixels were free to change.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor | list[Any]
    masks: list[np.ndarray] | None = None
    edit_masks: list[np.ndarray] | None = None
