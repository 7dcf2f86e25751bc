"""Maps of object numbers: masks of a frame as one palette picture, the way DAVIS writes them.

Paper: FOCUS (arXiv 2506.16806), video segmentation is measured on DAVIS-2017. Pixel values are identities (1 for the first
object), 0 is the background; 255 is void in DAVIS and never written here. The colours are PASCAL VOC's, as DAVIS's are (but for
a shade): the bits of a number, three at a time, fill red, green and blue from the highest bit down.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from ..sharing.files import replace_file

MOST_OBJECTS = 254
"""Numbers a map has room for; 255 is void."""


def davis_palette() -> list[int]:
    """256 colours, R, G, B after one another: black, dark red (128, 0, 0), dark green (0, 128, 0), ..."""
    colours: list[int] = []
    for number in range(256):
        for channel in range(3):
            value = 0
            for bit in range(8):
                value |= ((number >> (3 * bit + channel)) & 1) << (7 - bit)
            colours.append(value)
    return colours


def index_map_of(masks: np.ndarray, numbers: list[int] | None = None) -> np.ndarray:
    """Masks as one map.

    Args:
        masks: bool [objects, height, width]; of masks that overlap the later one is on top.
        numbers: 1 to 254 for each mask, default 1, 2, ...

    Returns:
        uint8 [height, width].

    Raises:
        ValueError: another number of numbers than masks, or one that a map has no room for.
    """
    masks = np.asarray(masks, dtype=bool)
    numbers = list(range(1, len(masks) + 1)) if numbers is None else numbers
    if len(numbers) != len(masks) or not all(1 <= number <= MOST_OBJECTS for number in numbers):
        raise ValueError(
            f"A map of {len(masks)} objects needs as many numbers from 1 to {MOST_OBJECTS}, got {numbers[:5]}... "
            f"({len(numbers)} of them). Keep the masks as run lengths where there are more objects."
        )
    found = np.zeros(masks.shape[-2:], dtype=np.uint8)
    for mask, number in zip(masks, numbers):
        found[mask] = number
    return found


def save_index_map(path: str | os.PathLike, numbers: np.ndarray) -> None:
    """Write uint8 [height, width] as a palette PNG, which is complete or not there at all."""
    picture = Image.fromarray(np.asarray(numbers, dtype=np.uint8))
    picture.putpalette(davis_palette())
    replace_file(Path(path), lambda temporary: picture.save(temporary, format="PNG"))
