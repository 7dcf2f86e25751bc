"""What of each cell the thing will cover that an edit draws: an outline as a function of the place, asked point by point.

FOCUS (arXiv 2506.16806) guides its decoder with the mask of what is edited. The outline of what comes instead (another shape,
another size) is in no mask; the language model's state says which it will be, and the mask says where its middle is and how far it
reached. A small network takes a state and a point, in the thing's own coordinates, and says whether the point will be covered: an
implicit function (DeepSDF, arXiv 1901.05103; occupancy networks, arXiv 1812.03828; Fourier features, arXiv 2006.10739), since
points are many and cells are few. Why and how much it helps: docs/design.md, "Outlines of what is not there yet".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

POINTS = 8  # along each side of a cell
EXTENT_WAVES = (1.0, 2.0, 4.0, 8.0)  # radians a half extent
CELL_WAVES = (1.0, 2.0, 4.0)  # radians a cell
TURNS = (1, 2, 3, 4, 5)  # periods of the direction from the middle
POINT_DIM = 7 + 4 * len(EXTENT_WAVES) + 2 * len(TURNS) + 4 * len(CELL_WAVES)


def cell_points(away: torch.Tensor, half: torch.Tensor) -> torch.Tensor:
    """Where the points of cells lie in the thing that is edited.

    Args:
        away: [..., 2], of the cell's centre from the thing's middle, in cells: x, y.
        half: [..., 2], the thing's half extents in cells: x, y.

    Returns:
        [..., POINTS * POINTS, POINT_DIM], row by row: distances from the middle in cells and in half extents, the half extents,
        sines of these distances, and of multiples of the direction.
    """
    steps = (torch.arange(POINTS, device=away.device, dtype=away.dtype) + 0.5) / POINTS - 0.5
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    dx, dy = away[..., :1] + x.flatten(), away[..., 1:] + y.flatten()
    hx, hy = (half[..., i : i + 1].expand_as(dx) for i in (0, 1))
    u, v = dx / hx, dy / hy
    found = [dx / 4, dy / 4, u / 2, v / 2, (u * u + v * v).sqrt() / 2, hx / 2, hy / 2]
    for wave in EXTENT_WAVES:
        found += [f(one * wave) for one in (u, v) for f in (torch.sin, torch.cos)]
    direction = torch.atan2(v, u)
    for turns in TURNS:
        found += [(direction * turns).sin(), (direction * turns).cos()]
    for wave in CELL_WAVES:
        found += [f(one * wave) for one in (dx, dy) for f in (torch.sin, torch.cos)]
    return torch.stack(found, dim=-1)


def cell_coverage(masks: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """What share of the points of every cell masks cover: float32 [B, rows * columns, POINTS * POINTS], row by row.

    Args:
        masks: [B, 1, H, W] in 0..1 on the canvas.
        grid: rows and columns of the tokens.
    """
    rows, columns = grid
    points = F.adaptive_avg_pool2d(masks.float(), (rows * POINTS, columns * POINTS))
    return F.unfold(points, POINTS, stride=POINTS).mT


class CellOutline(nn.Module):
    """State and place of a cell -> logits of its points: will the thing cover them?

    Args:
        language_hidden_size: H.
        place_dim: P, of `_cell_guidance.cell_places`.
        hidden_dim: inner width.
    """

    def __init__(self, language_hidden_size: int, place_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.state_in = nn.Linear(language_hidden_size, hidden_dim)
        self.place_in = nn.Linear(place_dim, hidden_dim, bias=False)
        self.thing = nn.Linear(hidden_dim, hidden_dim)
        self.point_in = nn.Linear(POINT_DIM, hidden_dim)
        self.mlp = nn.Linear(hidden_dim, hidden_dim)
        self.mlp_out = nn.Linear(hidden_dim, hidden_dim)
        self.covered = nn.Linear(hidden_dim, 1)

    def forward(
        self, states: torch.Tensor, places: torch.Tensor, away: torch.Tensor, half: torch.Tensor
    ) -> torch.Tensor:
        """Ask the points of cells.

        Args:
            states: [..., H], normalised.
            places: [..., P].
            away, half: [..., 2], see `cell_points`.

        Returns:
            [..., POINTS * POINTS], logits.
        """
        thing = self.thing(F.gelu(self.state_in(states) + self.place_in(places)))[..., None, :]
        points = F.gelu(thing + self.point_in(cell_points(away, half).to(states.dtype)))
        points = F.gelu(self.mlp(points) * (1 + thing.tanh()))
        return self.covered(F.gelu(self.mlp_out(points)))[..., 0]
