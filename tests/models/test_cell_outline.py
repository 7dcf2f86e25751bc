"""The points of cells lie where they should, and what is said of a point depends on where it is, not on whose cell it is in."""

from __future__ import annotations

import torch

from diffusers_focus.models._cell_guidance import PLACE_DIM, CellGuidance, cell_places
from diffusers_focus.models._cell_outline import POINT_DIM, POINTS, CellOutline, cell_points


def test_points_lie_row_by_row_around_the_centre_of_their_cell():
    points = cell_points(torch.tensor([0.5, -0.25]), torch.tensor([2.0, 1.0]))
    assert points.shape == (POINTS * POINTS, POINT_DIM)
    dx, dy = 4 * points[:, 0].view(POINTS, POINTS), 4 * points[:, 1].view(POINTS, POINTS)
    steps = (torch.arange(POINTS) + 0.5) / POINTS - 0.5
    torch.testing.assert_close(dx, (0.5 + steps).expand(POINTS, POINTS))
    torch.testing.assert_close(dy, (-0.25 + steps)[:, None].expand(POINTS, POINTS))
    torch.testing.assert_close(2 * points[:, 2].view(POINTS, POINTS), dx / 2)  # in half extents
    torch.testing.assert_close(2 * points[:, 3].view(POINTS, POINTS), dy / 1)


def test_a_point_is_the_same_in_either_cell():
    torch.manual_seed(0)
    outline = CellOutline(12, PLACE_DIM, 16)
    torch.nn.init.zeros_(outline.place_in.weight)
    states, places = torch.randn(12).expand(2, 12), torch.zeros(2, PLACE_DIM)
    away, half = torch.tensor([[0.3, 0.1], [0.3 + 2 / POINTS, 0.1]]), torch.tensor([1.5, 1.0]).expand(2, 2)
    first, second = outline(states, places, away, half).view(2, POINTS, POINTS)
    torch.testing.assert_close(first[:, 2:], second[:, :-2])
    assert first.std() > 0


def test_a_trained_outline_follows_the_thing_over_the_picture():
    """Taught discs in some places, it says discs in others: the middle and the extents come from the mask."""
    torch.manual_seed(0)
    guidance = CellGuidance(12, 16, 24)
    grid, side = 8, 8 * POINTS
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")

    def discs(count: int, seed: int) -> torch.Tensor:
        dice = torch.Generator().manual_seed(seed)
        cx, cy = (20 + 24 * torch.rand(count, 1, 1, generator=dice) for _ in range(2))
        radius = 8 + 8 * torch.rand(count, 1, 1, generator=dice)
        return (((x - cx) ** 2 + (y - cy) ** 2) < radius**2).float()[:, None]

    def asked(masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        places = cell_places(masks, torch.ones_like(masks), (grid, grid))
        logits = guidance.outlines(torch.ones(*places.shape[:2], 12), places)
        cells = torch.nn.functional.unfold(masks, POINTS, stride=POINTS).mT
        return logits, cells

    optimizer = torch.optim.Adam(guidance.parameters(), 5e-3)
    for step in range(60):
        logits, cells = asked(discs(8, step))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, cells)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        logits, cells = asked(discs(8, 1000))
    crossed = (cells.amin(-1) < 0.5) & (cells.amax(-1) > 0.5)
    right = ((logits > 0) == (cells > 0.5)).float().mean(-1)[crossed]
    assert right.mean() > 0.9
