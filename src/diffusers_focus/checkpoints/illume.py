"""Key tables of the ILLUME+ checkpoints (arXiv 2504.01934, Apache-2.0), usable in both directions.

A table is a tuple of (original prefix, our prefix). Behind the prefixes the names are the same on both sides,
because our modules keep the originals' parameter names where they have one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")
PrefixTable = tuple[tuple[str, str], ...]

# Language model checkpoint -> FocusVisionEncoder. It holds ILLUME+'s fine-tuned copies of the tokenizer's ViT and pixel
# encoder.
VISION_ENCODER_PREFIXES: PrefixTable = (
    ("model.vision_tower.semantic_encoder.", "vit."),
    ("model.vision_tower.pixel_encoder.", "pixel_tower."),
    ("model.mm_projector.projector_1.", "vision_projector."),
    ("model.mm_projector.projector_2.", "pixel_projector."),
)


def rename_prefixes(
    state_dict: Mapping[str, T], table: PrefixTable, to_original: bool = False
) -> tuple[dict[str, T], list[str]]:
    """Rename the keys of a state dict by a prefix table.

    Args:
        state_dict: Any mapping of names to tensors; values are passed on untouched.
        table: (original prefix, our prefix) pairs.
        to_original: Rename ours to the original's names instead.

    Returns:
        The renamed entries, and the names that no prefix of the table matches (they are left out of the first).
    """
    renamed: dict[str, T] = {}
    unmatched: list[str] = []
    for name, value in state_dict.items():
        for original, ours in table:
            source, target = (ours, original) if to_original else (original, ours)
            if name.startswith(source):
                renamed[target + name[len(source) :]] = value
                break
        else:
            unmatched.append(name)
    return renamed, unmatched
