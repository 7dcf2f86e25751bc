"""Masks between grids."""

import pytest
import torch

from diffusers_focus.processing.masks import box_mask, dilate, feather, mask_to_box, resample_mask
from diffusers_focus.processing.regions import Box


def test_area_is_the_share_that_is_inside():
    mask = torch.zeros(6, 6)
    mask[:3, :4] = 1
    torch.testing.assert_close(resample_mask(mask, (2, 2)), torch.tensor([[1.0, 1 / 3], [0.0, 0.0]]))
    mask = torch.rand(2, 1, 37, 53)
    coarse = resample_mask(mask, (9, 16))
    torch.testing.assert_close(coarse.mean((-2, -1)), mask.mean((-2, -1)))  # nothing is lost at odd sizes


def test_area_repeats_pixels_upwards_and_keeps_gradients():
    mask = torch.eye(3, requires_grad=True)
    torch.testing.assert_close(
        resample_mask(mask, (6, 6)), torch.eye(3).repeat_interleave(2, 0).repeat_interleave(2, 1)
    )
    resample_mask(mask, (2, 2)).sum().backward()
    assert (mask.grad > 0).all()


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (9, 13), (16, 16)])
def test_any_sees_every_pixel_it_touches(size):
    for row, column in [(0, 0), (77, 50), (127, 127), (31, 96)]:
        mask = torch.zeros(128, 128, dtype=torch.bool)
        mask[row, column] = True
        cells = resample_mask(mask, size, mode="any")
        assert cells.dtype == torch.float32
        assert cells[row * size[0] // 128, column * size[1] // 128] == 1


def test_same_size_changes_nothing_and_leading_dimensions_stay():
    mask = torch.rand(2, 5, 8, 8)
    assert torch.equal(resample_mask(mask, (8, 8)), mask)
    assert resample_mask(mask, (4, 2), "any").shape == (2, 5, 4, 2)


def test_autocast_does_not_coarsen_shares():
    mask = torch.rand(1, 1, 96, 96)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(resample_mask(mask, (13, 13)), resample_mask(mask, (13, 13)))
        inside = resample_mask(mask, (13, 13))
    torch.testing.assert_close(inside, resample_mask(mask, (13, 13)), atol=0, rtol=0)


def test_dilation_is_a_disk():
    mask = torch.zeros(21, 21, dtype=torch.bool)
    mask[10, 10] = True
    grown = dilate(mask, 5)
    y, x = torch.meshgrid(torch.arange(21) - 10, torch.arange(21) - 10, indexing="ij")
    assert grown.dtype == torch.bool and torch.equal(grown, x * x + y * y <= 25)
    assert torch.equal(dilate(mask, 0), mask)
    corner = torch.zeros(2, 1, 8, 8)
    corner[..., 0, 0] = 0.5
    assert dilate(corner, 2).shape == corner.shape and dilate(corner, 2).max() == 0.5


def test_feather_ends_at_its_radius():
    mask = torch.zeros(40, 40)
    mask[10:30, 0:20] = 1
    soft = feather(mask, 4)
    assert (soft[dilate(mask.bool(), 6) == 0] == 0).all()
    assert (soft[15:25, :15] > 0.999).all()  # the image border is no edge
    assert 0.3 < soft[20, 19] < 0.8 and soft[20, 19] > soft[20, 20] > soft[20, 21]
    assert torch.equal(feather(mask, 0), mask)


def test_boxes():
    mask = torch.zeros(2, 10, 12, dtype=torch.bool)
    mask[0, 3, 4] = mask[0, 7, 9] = True
    filled = box_mask(mask)
    assert filled.dtype == torch.bool and filled[0].sum() == 5 * 6 and not filled[1].any()
    assert mask_to_box(mask[0]) == Box(4, 3, 10, 8)
    assert mask_to_box(mask[1]) is None
    assert torch.equal(torch.from_numpy(mask_to_box(mask[0]).rasterize(10, 12)), filled[0])


def test_what_is_no_mask_is_refused():
    with pytest.raises(ValueError, match="area"):
        resample_mask(torch.ones(4, 4), (2, 2), mode="bilinear")
    with pytest.raises(ValueError, match="at least one"):
        resample_mask(torch.ones(4), (2, 2))
    with pytest.raises(TypeError, match="torch tensor"):
        resample_mask([[1]], (2, 2))
    with pytest.raises(ValueError, match="zero or more"):
        dilate(torch.ones(4, 4), -1)
    with pytest.raises(ValueError, match="one by one"):
        mask_to_box(torch.ones(1, 4, 4))
