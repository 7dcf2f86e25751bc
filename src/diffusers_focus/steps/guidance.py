"""The mask's guidance of visual tokens: `FocusMaskConditioner.guide` for the prompts of a batch, cell by cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..models._cell_outline import cell_coverage
from .encode import Components, wake

CERTAIN = 6.0  # logit of a point that is known to be covered

CellGuide = Callable[[torch.Tensor, int], torch.Tensor]
"""States [branches * R, H] and the number of a pixel cell, row by row -> the states that its code is read from."""


def guiding(components: Any) -> Any | None:
    """The mask conditioner where it guides visual tokens; None where there is none or it does not."""
    conditioner = getattr(components, "mask_conditioner", None)
    return None if conditioner is None or conditioner.cell_guidance is None else conditioner


def seen_outlines(objects: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Outlines that are known, as `FocusMaskConditioner.guide` takes them.

    Args:
        objects: [R, 1, H, W] in 0..1 on the canvas.
        grid: of the pixel codes.

    Returns:
        float32 [R, cells, points], logits.
    """
    return (2 * cell_coverage(objects, grid) - 1) * CERTAIN


def cell_guide(
    components: Components,
    objects: torch.Tensor,
    changes: torch.Tensor,
    grid: tuple[int, int],
    kept: Sequence[bool] = (),
) -> CellGuide:
    """How the pixel codes of R prompts are guided, of components that are `guiding`.

    Args:
        objects: [R, 1, H, W] in 0..1 on the canvas, what each prompt is about.
        changes: [R, 1, H, W] in 0..1, where its pixels may change.
        grid: of the pixel codes.
        kept: of each prompt, whether what is drawn has the outline of its object; where it is False, or missing, the model foresees
            the outline.
    """
    wake(components, "mask_conditioner")
    conditioner = components.mask_conditioner
    tables = [conditioner.places(objects, changes, grid)]
    if any(kept):
        known = torch.tensor(kept, device=objects.device)[:, None, None].expand(*tables[0].shape[:2], 1)
        tables += [seen_outlines(objects, grid), known]

    def guide(states: torch.Tensor, cell: int) -> torch.Tensor:
        tables[:] = [table.to(states.device) for table in tables]  # moves once
        places, *rest = (table[:, cell].repeat(len(states) // len(table), 1) for table in tables)
        outlines = conditioner.outlines(states, places) if rest else None
        if outlines is not None:
            seen, known = rest
            outlines = torch.where(known, seen.to(outlines.dtype), outlines)
        return conditioner.guide(states, places, outlines)

    return guide
