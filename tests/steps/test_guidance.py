"""What the mask says to the states that pixel codes are read from."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from diffusers_focus import FocusMaskConditioner
from diffusers_focus.steps.editing import EditPrompt, edit_codes
from diffusers_focus.steps.guidance import CERTAIN, cell_guide
from diffusers_focus.steps.sampling import GREEDY

from tests.tiny import disk_mask, picture, shared_pipeline

GRID = (8, 8)  # of 64 x 64 pixels: a point is a pixel


def masks() -> torch.Tensor:
    return torch.stack([torch.from_numpy(disk_mask()).float()[None]] * 2)


@torch.no_grad()
@pytest.mark.parametrize("branches", [1, 2])
def test_an_outline_that_stays_is_the_objects_own(branches):
    pipe, both = shared_pipeline(), masks()
    conditioner = pipe.mask_conditioner
    width = conditioner.config.language_hidden_size
    guide = cell_guide(pipe, both, torch.ones_like(both), GRID, [True, False])
    foreseen = cell_guide(pipe, both, torch.ones_like(both), GRID)
    places = conditioner.places(both, torch.ones_like(both), GRID)
    for cell in (9, 18, 63):  # at the edge of the disk, within it, outside
        row, column = 8 * (cell // 8), 8 * (cell % 8)
        own = (2 * both[0, 0, row : row + 8, column : column + 8].reshape(1, 64) - 1) * CERTAIN
        states = torch.randn(2 * branches, width)
        guided, plain = guide(states, cell), foreseen(states, cell)
        here = places[:1, cell].expand(branches, -1)
        torch.testing.assert_close(guided[::2], conditioner.guide(states[::2], here, own.expand(branches, -1)))
        torch.testing.assert_close(guided[1::2], plain[1::2])
        assert not torch.allclose(guided[::2], plain[::2])


@torch.no_grad()
def test_without_outlines_nothing_stays_and_nothing_breaks():
    config = {**shared_pipeline().mask_conditioner.config, "outline_dim": None}
    pipe, both = SimpleNamespace(mask_conditioner=FocusMaskConditioner.from_config(config)), masks()
    nn.init.normal_(pipe.mask_conditioner.cell_guidance.proj_out.weight)
    states = torch.randn(2, config["language_hidden_size"])
    kept, plain = (cell_guide(pipe, both, both, GRID, kept)(states, 9) for kept in ([True, True], ()))
    assert torch.equal(kept, plain)


@torch.no_grad()
def test_pixel_codes_follow_the_outline_that_stays():
    pipe = shared_pipeline()
    encoding, place = pipe.encode_image(picture()), np.ones((64, 64), dtype=bool)

    def codes(keeps: bool) -> tuple[torch.Tensor, torch.Tensor]:
        edit = EditPrompt(0, "make the disk red", about=disk_mask(), keeps_outline=keeps)
        return edit_codes(pipe, encoding, [edit], [place], semantic=GREEDY, pixel=GREEDY)

    (semantic, pixel), (same, other) = codes(True), codes(False)
    assert torch.equal(semantic, same) and not torch.equal(pixel, other)
