"""The mask's guidance of visual tokens: `FocusMaskConditioner.guide` for the prompts of a batch, cell by cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .encode import Components, wake

CellGuide = Callable[[torch.Tensor, int], torch.Tensor]
"""States [branches * R, H] and the number of a pixel cell, row by row -> the states that its code is read from."""


def guiding(components: Any) -> Any | None:
    """The mask conditioner where it guides visual tokens; None where there is none or it does not."""
    conditioner = getattr(components, "mask_conditioner", None)
    return None if conditioner is None or conditioner.cell_guidance is None else conditioner


def cell_guide(
    components: Components, objects: torch.Tensor, changes: torch.Tensor, grid: tuple[int, int]
) -> CellGuide:
    """How the pixel codes of R prompts are guided, of components that are `guiding`.

    Args:
        objects: [R, 1, H, W] in 0..1 on the canvas, what each prompt is about.
        changes: [R, 1, H, W] in 0..1, where its pixels may change.
        grid: of the pixel codes.
    """
    wake(components, "mask_conditioner")
    conditioner = components.mask_conditioner
    places = conditioner.places(objects, changes, grid)

    def guide(states: torch.Tensor, cell: int) -> torch.Tensor:
        nonlocal places
        places = places.to(states.device)  # moves once
        return conditioner.guide(states, places[:, cell].repeat(len(states) // len(places), 1))

    return guide
