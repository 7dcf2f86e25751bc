"""What callers pass, checked and brought to one shape: texts, regions, masks, numbers, generators, batches.

Both kinds of pipeline take the same arguments and refuse them in the same words. Nothing here touches a model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..processing.grammar import TokenSampling
from ..processing.grids import decoded_size
from ..processing.images import FocusImageProcessor
from ..processing.regions import Box, Mask, Point, Region, Scribble, Strokes, binary_mask
from .sampling import GREEDY

REGIONS = (Point, Scribble, Box, Mask, Strokes)
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


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


def check_texts(value: Any, name: str) -> None:
    """`check_text` for a text or a list of them; entries may not be None."""
    for text in as_list(value, name) or [value]:
        check_text(text, name)


def pointed_regions(value: Any) -> list[Region]:
    """One prompt's regions: none for None, one, or a list of them; with a negative one among them they are `Strokes` of one object.

    Raises:
        TypeError: something else.
        ValueError: only negative ones, or strokes beside other regions.
    """
    if value is None:
        return []
    regions = list(value) if isinstance(value, (list, tuple)) else [value]
    for region in regions:
        if not isinstance(region, REGIONS):
            raise TypeError(
                f"region must be a Point, Scribble, Box or Mask, or Strokes of them, got {type(region).__name__}. For example "
                "Point(40, 52), in pixels of the input image."
            )
    if len(regions) > 1 and any(isinstance(region, Strokes) for region in regions):
        raise ValueError(
            "Strokes are about one object and stand alone in their prompt. Pass a flat list of them to get one result for each."
        )
    if all(isinstance(region, Strokes) or region.positive for region in regions):
        return regions
    return [Strokes(*(region for region in regions if not isinstance(region, Strokes)))]


def region_masks(value: Any, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """One prompt's regions, see `pointed_regions`, as bool [height, width] masks of an image of `size`."""
    return tuple(region.rasterize(*size) for region in pointed_regions(value))


def edit_mask(value: Any, size: tuple[int, int]) -> np.ndarray | None:
    """One `mask_image` as bool [height, width] of an image of `size`; it may be without any pixel.

    Args:
        value: a PIL image, array, tensor or `Mask`: bright, true or positive is inside. Masks of several objects [objects, height,
            width], as `masks` of a result has them, are their union.

    Raises:
        TypeError, ValueError: no mask, or not of that size.
    """
    if value is None:
        return None
    try:
        if isinstance(value, Image.Image):
            value = value.convert("L")
        if isinstance(value, Mask):
            return value.rasterize(*size)
        if isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim == 3 and tuple(value.shape[1:]) == size:
            objects = np.array([binary_mask(one) for one in value], dtype=bool).reshape(-1, *size)
            return np.asarray(objects.any(axis=0))
        array = binary_mask(value)
        return array.copy() if array.shape == size and not array.any() else Mask(array).rasterize(*size)
    except (TypeError, ValueError) as error:
        raise type(error)(f"mask_image cannot be used. {error}") from error


def mask_list(value: Any) -> Any:
    """A `mask_image` argument, a stack of masks [n, height, width] taken apart into a list."""
    stacked = isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim == 3
    return list(value) if stacked and 1 not in (value.shape[0], value.shape[-1]) else value


def token_sampling(temperature: float | None, top_k: int | None, top_p: float | None) -> TokenSampling:
    """How ids are drawn; a temperature of None or 0 takes the likeliest."""
    check_numbers(temperature=temperature, top_p=top_p)
    if top_k is not None:
        check_count(top_k, "top_k", least=0)
    if temperature is None or temperature == 0:
        return GREEDY
    return TokenSampling(float(temperature), int(top_k or 0), 1.0 if top_p is None else float(top_p))


def check_streamer(streamer: Any) -> None:
    """Raise TypeError unless it is None or takes ids as transformers' streamers do."""
    if streamer is not None and not (
        callable(getattr(streamer, "put", None)) and callable(getattr(streamer, "end", None))
    ):
        raise TypeError(
            f"streamer must have put(ids) and end(), such as transformers' TextStreamer(pipe.lm_tokenizer), got "
            f"{type(streamer).__name__}."
        )


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


def check_given(**values: Any) -> None:
    """`check_numbers` where None is no number."""
    for name, value in values.items():
        if value is None:
            raise TypeError(f"{name} must be a number, got None. Leave it out for its default.")
        check_numbers(**{name: value})


def generator_list(generator: Any, rows: int) -> Any:
    """A generator argument: None, one, or a list with one for each result."""
    if isinstance(generator, Sequence) and not isinstance(generator, torch.Generator):
        if len(generator) != rows:
            raise ValueError(
                f"{len(generator)} generators were given for {rows} results. Pass one, or one for each result."
            )
        generator = list(generator)
    if generator is None:
        return None
    for one in generator if isinstance(generator, list) else [generator]:
        if not isinstance(one, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator or a list of them, got {type(one).__name__}.")
    return generator


def check_output_type(output_type: Any) -> str:
    """How images come back: "pil", "np", "pt" or "latent"."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}.")
    return output_type


def check_strength(strength: Any) -> float:
    """The share of a denoising to run, above 0 and at most 1."""
    check_given(strength=strength)
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength}.")
    return strength


def token_resolution(
    processor: FocusImageProcessor,
    height: int | None,
    width: int | None,
    of_image: tuple[int, int] | None = None,
) -> tuple[int, int]:
    """The token resolution (height, width) of a result.

    Args:
        height, width: of the result in pixels; None for the image's own, or the model's first size.
        of_image: the one an edit has to have.

    Raises:
        ValueError: not a size the model renders.
    """
    scale = processor.decode_scale
    buckets = [(int(rows), int(columns)) for rows, columns in processor.buckets]
    if height is None and width is None:
        return of_image or buckets[0]
    allowed = [of_image] if of_image is not None else buckets
    sizes = [decoded_size(*bucket, scale) for bucket in allowed]
    if (height, width) not in sizes:
        known = ", ".join(f"{h} x {w}" for h, w in sizes)
        hint = (
            "Leave both out: an edit has the size of its image."
            if of_image is not None
            else "Pass one of these, or neither."
        )
        raise ValueError(f"This model renders {known} (height x width) here, got {height} x {width}. {hint}")
    return allowed[sizes.index((height, width))]
