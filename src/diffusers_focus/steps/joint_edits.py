"""Several edits of one picture in one call: which rows belong to it, what a later edit sees of earlier ones, whose a cell is.

FOCUS section "Mask-guided editing" knows one instruction. Here every edit's visual tokens are drawn in its own place under its own
instruction; what comes out is one map of tokens and one mask, so that the picture is denoised and put back once. Edits whose places
lie apart do not know of each other and are drawn side by side. Where places overlap, the later edit is drawn on the picture that
the earlier tokens make, and what both may change is the later one's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from ..processing.images import FocusImageInputs
from .composite import place_on_grid
from .encode import Components, FocusImageEncoding, encode_inputs, source_codes
from .sampling import Generators

if TYPE_CHECKING:
    from .editing import EditPrompt

T = TypeVar("T")
Codes = tuple[torch.Tensor, torch.Tensor]


def edits_by_picture(prompts: Sequence[EditPrompt]) -> list[list[int]]:
    """Rows of the edits of each picture, in the order of the pictures; an edit without a number is a picture of its own."""
    groups: dict[Any, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(("alone", row) if prompt.picture is None else prompt.picture, []).append(row)
    return list(groups.values())


def nested(prompts: Sequence[EditPrompt], values: Sequence[T]) -> list[T | list[T]]:
    """One value an edit -> one entry a picture: the value, or a list of them where the instructions stood in a list."""
    return [
        [values[row] for row in rows] if prompts[rows[0]].joint else values[rows[0]]
        for rows in edits_by_picture(prompts)
    ]


def unnested(values: Sequence[Any]) -> list[Any]:
    """What `nested` was made of: one value an edit."""
    return [value for entry in values for value in (entry if isinstance(entry, list) else [entry])]


def unions(prompts: Sequence[EditPrompt], masks: Sequence[np.ndarray]) -> tuple[list[int], list[np.ndarray]]:
    """Of each picture its image in the encoding, and bool [height, width] where any of its edits may change it."""
    groups = edits_by_picture(prompts)
    images = [prompts[rows[0]].image for rows in groups]
    return images, [np.logical_or.reduce([masks[row] for row in rows]) for rows in groups]


def repeat_edits(
    prompts: Sequence[EditPrompt], masks: Sequence[np.ndarray], repeats: int
) -> tuple[list[EditPrompt], list[np.ndarray]]:
    """The edits and masks of `repeats` pictures for each one; repetitions of a picture follow one another."""
    rows = [rows for rows in edits_by_picture(prompts) for _ in range(repeats)]
    again = [replace(prompts[row], picture=number) for number, of_picture in enumerate(rows) for row in of_picture]
    return again, [masks[row] for of_picture in rows for row in of_picture]


def drawing_rounds(masks: Sequence[np.ndarray]) -> list[int]:
    """When each edit of a picture is drawn: after every earlier one whose place it overlaps.

    Args:
        masks: bool [height, width] of each edit, in their order.
    """
    rounds: list[int] = []
    for row, mask in enumerate(masks):
        rounds.append(1 + max((rounds[at] for at in range(row) if (masks[at] & mask).any()), default=-1))
    return rounds


def cell_owners(masks: Sequence[np.ndarray], placement: Any, grid: tuple[int, int]) -> torch.Tensor:
    """Which edit's code a cell of a token grid gets: int64 [rows, columns], -1 where no edit touches it.

    A pixel is the last edit's that may change it, a cell is the edit's that has most of its pixels (the later one's of two).
    """
    later = np.zeros_like(masks[0])
    shares = []
    for mask in reversed(masks):  # from the last on, so that the first of equal shares is the later edit's
        share = place_on_grid(mask & ~later, placement, grid, "area")
        shares.append(torch.where(place_on_grid(mask, placement, grid, "any") > 0, share, -1.0))
        later = later | mask
    best = torch.stack(shares).max(dim=0)
    return torch.where(best.values >= 0, len(masks) - 1 - best.indices, -1)


def joint_codes(
    write: Callable[..., Codes],
    components: Components,
    encoding: FocusImageEncoding,
    prompts: Sequence[EditPrompt],
    masks: Sequence[np.ndarray],
    *,
    negative: Sequence[str] | None = None,
    generator: Generators = None,
) -> Codes:
    """The codes of P pictures with all their edits: semantic int64 [P, hs, ws] and pixel int64 [P, hp, wp].

    Args:
        write: draws the codes of edits that are pictures of their own, as `write(encoding, prompts, masks, negative=...,
            generator=...)`.
        masks: bool [height, width] of each edit.
        negative, generator: a list has one entry for each picture.
    """
    groups = edits_by_picture(prompts)
    picture_of = {row: number for number, rows in enumerate(groups) for row in rows}
    rounds = {row: number for rows in groups for row, number in zip(rows, drawing_rounds([masks[row] for row in rows]))}
    own = source_codes(components, encoding)
    images = torch.tensor([prompts[rows[0]].image for rows in groups], device=own[0].device)
    codes = (own[0][images], own[1][images])
    drawn: dict[int, Codes] = {}
    for number in range(1 + max(rounds.values())):
        rows = [row for of_picture in groups for row in of_picture if rounds[row] == number]
        now, seen = [prompts[row] for row in rows], encoding
        if number:
            pictures = sorted({picture_of[row] for row in rows})
            changed = [_union(masks, groups[picture], drawn) for picture in pictures]
            seen = _redrawn(components, encoding, images.tolist(), pictures, changed, codes)
            # What it is about may have another outline by now.
            now = [replace(prompts[row], image=pictures.index(picture_of[row]), keeps_outline=False) for row in rows]
        written = write(
            seen,
            [replace(one, picture=None) for one in now],
            [masks[row] for row in rows],
            negative=None if negative is None else [negative[picture_of[row]] for row in rows],
            generator=[generator[picture_of[row]] for row in rows] if isinstance(generator, Sequence) else generator,
        )
        drawn |= {row: (written[0][at], written[1][at]) for at, row in enumerate(rows)}
        of_pictures = [_merged(own, encoding, prompts, masks, of_picture, drawn) for of_picture in groups]
        codes = torch.stack([one[0] for one in of_pictures]), torch.stack([one[1] for one in of_pictures])
    return codes


def _union(masks: Sequence[np.ndarray], rows: Sequence[int], drawn: dict[int, Codes]) -> np.ndarray:
    return np.logical_or.reduce([masks[row] for row in rows if row in drawn])


def _merged(
    own: Codes,
    encoding: FocusImageEncoding,
    prompts: Sequence[EditPrompt],
    masks: Sequence[np.ndarray],
    rows: Sequence[int],
    drawn: dict[int, Codes],
) -> list[torch.Tensor]:
    """The codes of a picture, both levels, with those of its edits that are drawn."""
    image, done = prompts[rows[0]].image, [row for row in rows if row in drawn]
    merged = []
    for level in (0, 1):
        codes = own[level][image]
        owners = cell_owners([masks[row] for row in done], encoding.inputs.placements[image], tuple(codes.shape))
        for place, row in enumerate(done):
            codes = torch.where((owners == place).to(codes.device), drawn[row][level], codes)
        merged.append(codes)
    return merged


def _redrawn(
    components: Components,
    encoding: FocusImageEncoding,
    images: Sequence[int],
    pictures: Sequence[int],
    changed: Sequence[np.ndarray],
    codes: Codes,
) -> FocusImageEncoding:
    """Pictures as the language model is to see them after their first edits: what the codes show where those were, encoded anew.

    Args:
        images: of each picture, its image in the encoding.
        pictures: those that are encoded.
        changed: bool [height, width] of each of them, where it is no longer the image.
        codes: of all pictures.
    """
    inputs, chosen = encoding.inputs, [images[picture] for picture in pictures]
    of_pictures = (codes[0][list(pictures)], codes[1][list(pictures)])
    shown = components.visual_tokenizer.decode_indices(*of_pictures).to(inputs.pixel_values).clamp(-1, 1)
    placements = tuple(inputs.placements[image] for image in chosen)
    inside = torch.stack(
        [place_on_grid(mask, placement, encoding.size, "any") for mask, placement in zip(changed, placements)]
    )[:, None].to(shown.device)
    pixel_values = torch.where(inside > 0, shown, inputs.pixel_values[chosen])
    low, high = components.image_processor.make_inputs(pixel_values.float())
    fresh = FocusImageInputs(pixel_values, low, high, placements, (1,) * len(chosen))
    redrawn = encode_inputs(components, fresh.to(device=shown.device, dtype=shown.dtype))
    redrawn.codes = of_pictures
    return redrawn
