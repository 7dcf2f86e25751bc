"""What the pipelines share besides loading and saving: checking arguments, encoding images, waking offloaded parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..processing.grammar import TokenSampling
from ..processing.images import load_image_any
from ..processing.regions import Box, Mask, Point, Scribble
from ..sharing.publish import FocusHubMixin
from ..steps import encode
from ..steps.sampling import GREEDY
from ._hub import FocusLoadingMixin
from .outputs import FocusImageEncoding

REGIONS = (Point, Scribble, Box, Mask)


class FocusPipelineMixin(FocusLoadingMixin, FocusHubMixin):
    """Mixed into a `DiffusionPipeline` with FOCUS components."""

    def _require(self, purpose: str, *names: str) -> None:
        """Raise ValueError unless these components are there."""
        missing = [name for name in names if getattr(self, name, None) is None]
        if missing:
            raise ValueError(
                f"This pipeline has no {', '.join(missing)}, which {purpose} needs. Load a pipeline that has it, or pass it: "
                f"{type(self).__name__}.from_pretrained(..., {missing[0]}=...)."
            )

    def _wake(self, name: str) -> None:
        """Bring a component to its device where it is used through its parts; offloading watches its forward only."""
        module = getattr(self, name)
        hook = getattr(module, "_hf_hook", None)
        if hook is not None and hasattr(hook, "pre_forward"):
            hook.pre_forward(module)

    @torch.no_grad()
    def encode_image(self, image: Any) -> FocusImageEncoding:
        """Encode images once for any number of questions, masks and edits.

        Args:
            image: an image (PIL, path, numpy array, torch tensor), a list of them (a batch), or a list of lists (several
                images in one prompt). An encoding is returned as it is.

        Raises:
            TypeError, ValueError, FileNotFoundError: not an image, no pixels, NaN, or a missing component.
        """
        if isinstance(image, FocusImageEncoding):
            return image
        if isinstance(image, encode.FocusImageEncoding):
            return FocusImageEncoding.of(image, _canvas_images(self.image_processor, image))
        self._require("reading an image", "image_processor", "vision_encoder")
        if self.vision_encoder.pixel_tower is None:
            self._require("reading an image", "visual_tokenizer")
        encoding = encode.encode_image(self, image, device=self._execution_device)
        return FocusImageEncoding.of(encoding, tuple(load_image_any(one) for one in _flatten(image)))


def _flatten(image: Any) -> list[Any]:
    if isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim == 4:
        return list(image)
    if not isinstance(image, (list, tuple)):
        return [image]
    return [one for group in image for one in (group if isinstance(group, (list, tuple)) else [group])]


def _canvas_images(processor: Any, encoding: encode.FocusImageEncoding) -> tuple[Image.Image, ...]:
    """The images of an encoding made from tensors: what its canvases show, at the images' size."""
    canvases = processor.postprocess(encoding.inputs.pixel_values, "pil")
    return tuple(processor.restore_image(canvas, place) for canvas, place in zip(canvases, encoding.inputs.placements))


# --- arguments ----------------------------------------------------------------------------------------------------------


def as_list(value: Any, name: str) -> list[Any] | None:
    """A list argument as a list, None where the value is a single one."""
    if isinstance(value, (list, tuple)):
        if len(value) == 0:
            raise ValueError(f"{name} is an empty list. Pass at least one entry, or leave it out.")
        return list(value)
    return None


def spread(count: int, **arguments: Any) -> tuple[int, dict[str, list[Any]]]:
    """Bring arguments to one batch size: single values serve every row, lists hold one entry a row.

    Args:
        count: number of images, 1 where a single image serves every row.
        arguments: single values or lists.

    Returns:
        The number of rows, and each argument as a list of that length.
    """
    lists = {name: as_list(value, name) for name, value in arguments.items()}
    rows = max([count, *(len(values) for values in lists.values() if values is not None)])
    result = {}
    for name, values in lists.items():
        if values is None:
            values = [arguments[name]] * rows
        elif len(values) == 1 and rows > 1:
            values = values * rows
        if len(values) != rows:
            raise ValueError(
                f"{name} has {len(values)} entries, but there are {rows} {'images' if rows == count else 'rows'}. Pass one for "
                "each, or a single one for all."
            )
        result[name] = values
    if count not in (1, rows):
        raise ValueError(f"{count} images do not go with {rows} prompts. Pass one image, or one for each prompt.")
    return rows, result


def check_text(value: Any, name: str) -> str:
    """A text argument; raises TypeError or ValueError where it is no text or empty."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string or a list of strings, got {type(value).__name__}.")
    if not value.strip():
        raise ValueError(f"{name} is empty. Write at least one word.")
    return value


def region_masks(value: Any, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """One prompt's regions (None, a region or a list of them) as bool [height, width] masks of an image of `size`."""
    if value is None:
        return ()
    regions = list(value) if isinstance(value, (list, tuple)) else [value]
    for region in regions:
        if not isinstance(region, REGIONS):
            raise TypeError(
                f"region must be a Point, Scribble, Box or Mask, got {type(region).__name__}. For example Point(40, 52), in "
                "pixels of the input image."
            )
    return tuple(region.rasterize(*size) for region in regions)


def edit_mask(value: Any, size: tuple[int, int]) -> np.ndarray | None:
    """One `mask_image` (PIL image, array, tensor or `Mask`) as bool [height, width] of an image of `size`."""
    if value is None:
        return None
    if isinstance(value, Image.Image):
        value = value.convert("L")
    try:
        mask = value if isinstance(value, Mask) else Mask(value)
        return mask.rasterize(*size)
    except (TypeError, ValueError) as error:
        raise type(error)(f"mask_image cannot be used. {error}") from error


def token_sampling(temperature: float | None, top_k: int | None, top_p: float | None) -> TokenSampling:
    """How ids are drawn; a temperature of None or 0 takes the likeliest."""
    check_numbers(temperature=temperature, top_p=top_p)
    if top_k is not None:
        check_count(top_k, "top_k", least=0)
    if temperature is None or temperature == 0:
        return GREEDY
    return TokenSampling(float(temperature), int(top_k or 0), 1.0 if top_p is None else float(top_p))


def check_count(value: Any, name: str, least: int = 1) -> int:
    """A whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a whole number, got {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")
    return int(value)


def check_numbers(**values: Any) -> None:
    """Finite real numbers, or None where the pipeline's own value is meant."""
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise TypeError(f"{name} must be a number, got {value!r}.")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value}.")


def generator_list(generator: Any, rows: int) -> Any:
    """A generator argument: None, one, or a list with one for each result."""
    if isinstance(generator, Sequence) and not isinstance(generator, torch.Generator):
        if len(generator) != rows:
            raise ValueError(
                f"{len(generator)} generators were given for {rows} results. Pass one, or one for each result."
            )
        generator = list(generator)
    for one in generator if isinstance(generator, list) else [generator]:
        if one is not None and not isinstance(one, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator or a list of them, got {type(one).__name__}.")
    return generator
