"""Where a visual token lies in what is edited, said to the language model's state before the token is chosen.

FOCUS (arXiv 2506.16806) lets the mask guide the diffusion decoder; here it guides the visual tokens as well. A language model
reads cells as a line: it knows what the instruction asks for, hardly where a cell lies in it. The mask knows that. A small network
takes both and adds what follows to the state that the output head reads. Its last projection is zero, so that a model without
training of it writes what it wrote before. Why at the output and how it was measured: docs/design.md, "Where a cell lies".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ._cell_outline import POINTS, CellOutline

TAIL = 0.02  # share of a mask on either side that its extent leaves out: a stray pixel is no part of an outline
SINES = (1.0, 2.0, 4.0)  # radians a cell, and radians a half extent
PICTURE_SINES = (0.2, 0.4, 0.8)  # radians a cell, from the corner of the picture
PLACE_DIM = 9 + 9 + 4 * (2 * len(SINES) + len(PICTURE_SINES))


def cell_places(objects: torch.Tensor, changes: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Where every cell of a token grid lies in what is edited.

    Args:
        objects: [B, 1, H, W] in 0..1 on the canvas, what the edit is about; where it is empty, `changes` stands for it.
        changes: [B, 1, H, W] in 0..1, where pixels may change; where it is empty, the whole canvas stands for it.
        grid: rows and columns of the tokens.

    Returns:
        float32 [B, rows * columns, PLACE_DIM], row by row: the distance from the object's middle in cells and in its own extents,
        the extents, the distance from the middle of the changing region, what share of the cell changes, and of it and its eight
        neighbours belongs to the object; sines of these distances and of the place in the picture.
    """
    changes = _filled(changes.float(), torch.ones_like(changes, dtype=torch.float32))
    objects = _filled(objects.float(), changes)
    rows, columns = grid
    y = (torch.arange(rows, device=objects.device) + 0.5)[:, None].expand(grid)
    x = (torch.arange(columns, device=objects.device) + 0.5)[None].expand(grid)
    shares = F.adaptive_avg_pool2d(objects, grid)
    around = F.unfold(shares, 3, padding=1).unflatten(-1, grid)  # [B, 9, rows, columns]
    changing = F.adaptive_avg_pool2d(changes, grid)
    per_object, per_change = [], []
    for axis, cells, place in ((-1, columns, x), (-2, rows, y)):
        middle, half = (v[:, None, None] * cells for v in _extent(objects, axis))
        wider, width = (v[:, None, None] * cells for v in _extent(changes, axis))
        per_object.append((place - middle, half.expand(-1, *grid)))
        per_change.append((place - wider) / width)
    away = [distance for distance, _ in per_object]
    within = [distance / half for distance, half in per_object]
    found = [d / 4 for d in away] + [d / 2 for d in within] + [half / 2 for _, half in per_object]
    found += [d / 2 for d in per_change] + [changing[:, 0], *around.unbind(1)]
    for distances, waves in ((away, SINES), (within, SINES), ((x[None], y[None]), PICTURE_SINES)):
        for wave in waves:
            for distance in distances:
                angle = (distance * wave).expand(len(objects), *grid)
                found += [angle.sin(), angle.cos()]
    return torch.stack(found, dim=-1).flatten(1, 2)


def _filled(masks: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    return torch.where(masks.flatten(1).amax(1)[:, None, None, None] > 0, masks, others)


def _extent(masks: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Middle and half length [B] of masks [B, 1, H, W] along an axis, in shares of the canvas; without the `TAIL` at either end."""
    line = masks.amax(dim=1).sum(dim=-1 if axis == -2 else -2)  # [B, length]
    reached = line.cumsum(1) / line.sum(1, keepdim=True)
    length = line.shape[1]
    first = (reached <= TAIL).sum(1)
    last = (reached < 1 - TAIL).sum(1) + 1
    return (first + last) / (2 * length), (last - first).clamp(min=1) / (2 * length)


class CellGuidance(nn.Module):
    """State of the language model and place of the cell -> the state that its token is read from.

    Args:
        language_hidden_size: H.
        hidden_dim: inner width.
        outline_dim: inner width of the outlines of what is not there yet (`CellOutline`); None has none.
    """

    def __init__(self, language_hidden_size: int, hidden_dim: int, outline_dim: int | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(language_hidden_size)
        self.state_in = nn.Linear(language_hidden_size, hidden_dim)
        self.place_in = nn.Linear(PLACE_DIM, hidden_dim, bias=False)
        self.mlp = nn.Linear(hidden_dim, hidden_dim)
        self.proj_out = nn.Linear(hidden_dim, language_hidden_size, bias=False)
        nn.init.zeros_(self.proj_out.weight)
        self.outline = self.outline_in = None
        if outline_dim is not None:
            self.outline = CellOutline(language_hidden_size, PLACE_DIM, outline_dim)
            self.outline_in = nn.Linear(POINTS * POINTS, hidden_dim, bias=False)
            nn.init.zeros_(self.outline_in.weight)  # silent until it is trained

    def outlines(self, states: torch.Tensor, places: torch.Tensor) -> torch.Tensor | None:
        """Logits [..., POINTS * POINTS] of the points of cells that the thing will cover; None without `outline_dim`."""
        if self.outline is None:
            return None
        dtype = self.proj_out.weight.dtype
        away, half = 4 * places[..., :2].float(), 2 * places[..., 4:6].float()  # as `cell_places` has them
        return self.outline(self.norm(states.to(dtype)), places.to(dtype), away, half)

    def forward(self, states: torch.Tensor, places: torch.Tensor, outlines: torch.Tensor | None = None) -> torch.Tensor:
        """Guide states.

        Args:
            states: [..., H], of the language model's last layer, normalised as its head reads them.
            places: [..., PLACE_DIM], of the cells whose tokens the states are to say, from `cell_places`.
            outlines: what `outlines` says of them, where that is known already.

        Returns:
            [..., H] in the dtype of `states`.
        """
        inner = states.to(self.proj_out.weight.dtype)
        hidden = self.state_in(self.norm(inner)) + self.place_in(places.to(inner.dtype))
        if self.outline_in is not None:
            seen = self.outlines(states, places) if outlines is None else outlines
            assert seen is not None
            hidden = hidden + self.outline_in((seen / 2).tanh())
        hidden = F.gelu(self.mlp(F.gelu(hidden)))
        return states + self.proj_out(hidden).to(states.dtype)
