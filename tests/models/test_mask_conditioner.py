"""FocusMaskConditioner: parity at initialisation, length, what the rows carry, padding, guidance of visual tokens."""

import pytest
import torch

from diffusers_focus.models._position import fourier_features
from diffusers_focus.models.mask_conditioner import FocusMaskConditioner


def make(**overrides):
    torch.manual_seed(0)
    config = {"patch_size": 4, "code_channels": 6, "cross_attention_dim": 24, "hidden_dim": 16, **overrides}
    return FocusMaskConditioner(**config).eval()


def awake(**overrides):
    """A conditioner whose last projection is no longer zero."""
    model = make(**overrides)
    torch.nn.init.normal_(model.proj_out.weight)
    return model


def test_is_exactly_zero_at_initialisation():
    out = make()(torch.ones(2, 1, 16, 16), torch.randn(2, 6, 8, 8)).sequence
    assert out.shape == (2, 16, 24)
    assert torch.equal(out, torch.zeros_like(out))
    assert make().proj_out.bias is None


def test_initial_zero_still_trains():
    model = make()
    model(torch.ones(1, 1, 16, 16), torch.randn(1, 6, 8, 8)).sequence.sum().backward()
    assert model.proj_out.weight.grad.abs().sum() > 0


def test_published_patch_size_gives_256_rows_at_1024_pixels():
    model = FocusMaskConditioner(hidden_dim=8, cross_attention_dim=8)
    assert model(torch.zeros(1, 1, 128, 128), torch.zeros(1, 64, 32, 32)).sequence.shape == (1, 256, 8)


@pytest.mark.parametrize("size, grid", [((16, 32), (4, 8)), ((18, 7), (5, 2)), ((3, 4), (1, 1))])
def test_other_aspect_ratios(size, grid):
    model = awake()
    out = model(torch.rand(1, 1, *size), torch.randn(1, 6, 5, 9)).sequence
    assert model.grid_size(*size) == grid
    assert out.shape == (1, grid[0] * grid[1], 24)
    assert out.isfinite().all()


@torch.no_grad()
def test_a_mask_changes_its_own_row_only():
    model, token_map = awake(), torch.randn(1, 6, 8, 8)
    mask = torch.zeros(1, 1, 16, 16)
    empty = model(mask, token_map).sequence
    mask[0, 0, 5, 9] = 1  # patch row 1, column 2 of 4
    changed = (model(mask, token_map).sequence - empty).abs().amax(-1)[0] > 1e-6
    assert changed.nonzero().flatten().tolist() == [1 * 4 + 2]


@torch.no_grad()
def test_rows_without_mask_carry_position_and_content():
    model, empty = awake(), torch.zeros(1, 1, 16, 16)
    rows = model(empty, torch.zeros(1, 6, 8, 8)).sequence[0]
    assert torch.cdist(rows, rows).fill_diagonal_(1.0).min() > 1e-3
    token_map = torch.zeros(1, 6, 8, 8)
    token_map[:, :, 2:4, 4:6] = 1.0  # patch row 1, column 2
    changed = (model(empty, token_map).sequence[0] - rows).abs().amax(-1) > 1e-6
    assert changed.nonzero().flatten().tolist() == [6]


@torch.no_grad()
def test_padding_neither_moves_positions_nor_dilutes_content():
    """6 cells in patches of 4: the centres lie at 2/6 and 6/6 of the image, not at 1/4 and 3/4."""
    model, seen = awake(), {}
    model.content_in.register_forward_pre_hook(lambda module, args: seen.update(content=args[0]))
    model.position_in.register_forward_pre_hook(lambda module, args: seen.update(position=args[0]))
    model(torch.zeros(1, 1, 6, 4), torch.full((1, 6, 6, 4), 3.0))
    torch.testing.assert_close(seen["content"], torch.full((1, 2, 6), 3.0))
    torch.testing.assert_close(seen["position"][:, :8], fourier_features(torch.tensor([2 / 6, 1.0]), 4))


def test_rejects_wrong_shapes():
    model = make()
    with pytest.raises(ValueError, match="latent grid"):
        model(torch.zeros(1, 2, 8, 8), torch.zeros(1, 6, 4, 4))
    with pytest.raises(ValueError, match="code_channels"):
        model(torch.zeros(2, 1, 8, 8), torch.zeros(2, 5, 4, 4))
    with pytest.raises(ValueError, match="code_channels"):
        model(torch.zeros(2, 1, 8, 8), torch.zeros(1, 6, 4, 4))
    with pytest.raises(ValueError, match="multiple of 4"):
        FocusMaskConditioner(hidden_dim=10)


def test_save_and_load(tmp_path):
    model = awake()
    model.save_pretrained(tmp_path)
    loaded = FocusMaskConditioner.from_pretrained(tmp_path)
    inputs = torch.rand(1, 1, 16, 16), torch.randn(1, 6, 8, 8)
    assert torch.equal(loaded(*inputs).sequence, model(*inputs, return_dict=False)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights(dtype):
    out = awake().to(dtype)(torch.rand(1, 1, 16, 16), torch.randn(1, 6, 8, 8)).sequence
    assert out.dtype == dtype and out.isfinite().all()


def test_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert awake()(torch.rand(1, 1, 16, 16), torch.randn(1, 6, 8, 8)).sequence.isfinite().all()


# --- guidance of visual tokens --------------------------------------------------------------------------------------


def box(*corners, size=64):
    """A mask [1, 1, size, size] of the pixels from (left, top) to (right, bottom)."""
    left, top, right, bottom = corners
    mask = torch.zeros(1, 1, size, size)
    mask[..., top:bottom, left:right] = 1
    return mask


def guiding(**overrides):
    return make(guidance_dim=24, language_hidden_size=12, **overrides)


def test_guidance_begins_silent_and_learns():
    model, states = guiding(), torch.randn(5, 12)
    places = model.places(box(8, 8, 24, 24), box(4, 4, 32, 32), (8, 8))[0, :5]
    guided = model.guide(states, places)
    assert torch.equal(guided, states)
    guided.square().sum().backward()
    assert model.cell_guidance.proj_out.weight.grad.abs().sum() > 0


def test_without_guidance_states_stay():
    states = torch.randn(5, 12)
    assert make().cell_guidance is None
    assert make().guide(states, torch.randn(5, 54)) is states
    with pytest.raises(ValueError, match="language_hidden_size is not given"):
        make(guidance_dim=24)


@torch.no_grad()
def test_a_cell_is_guided_by_its_own_place_and_its_own_state():
    model = guiding()
    torch.nn.init.normal_(model.cell_guidance.proj_out.weight)
    places = model.places(box(8, 8, 24, 24), box(4, 4, 32, 32), (8, 8))
    states = torch.randn(64, 12)
    moved = model.guide(states, places[0]) - states
    alike = model.guide(states[:1].expand(64, -1), places[0])
    assert torch.cdist(alike, alike).fill_diagonal_(1.0).min() > 1e-3
    torch.testing.assert_close(model.guide(states[7:8], places[0, 7:8]) - states[7:8], moved[7:8])


def test_places_say_where_the_object_is():
    """Cells of 8 pixels; the object's middle is the corner that four cells share."""
    places = make().places(box(24, 24, 40, 40), box(16, 16, 48, 48), (8, 8)).unflatten(1, (8, 8))[0]
    across, down, across_halves, down_halves, half_width, half_height = places[..., :6].unbind(-1)
    assert across[3, 4] == -across[3, 3] == 0.5 / 4 and down[4, 3] == -down[3, 3] == 0.5 / 4
    assert across_halves[3, 5] == 1.5 / 2 and down_halves[5, 3] == 1.5 / 2
    assert (half_width == 0.5).all() and (half_height == 0.5).all()  # 8 pixels are one cell
    assert places[3, 5, 6] == 1.5 / 2 / 2  # the changing region is twice as wide
    assert places[2, 2, 8] == 1 and places[1, 1, 8] == 0  # it changes, or not
    own = places[..., 9 + 4]  # the middle of nine neighbours
    assert own[3:5, 3:5].eq(1).all() and own.sum() == 4


def test_places_follow_the_object_and_not_the_resolution():
    model = make()
    here = model.places(box(8, 8, 24, 24), box(8, 8, 24, 24), (8, 8)).unflatten(1, (8, 8))
    there = model.places(box(16, 8, 32, 24), box(16, 8, 32, 24), (8, 8)).unflatten(1, (8, 8))
    torch.testing.assert_close(
        there[:, 1:-1, 2:-1, :-12], here[:, 1:-1, 1:-2, :-12]
    )  # all but the place in the picture
    fine = [box(16, 16, 48, 48, size=128)] * 2
    torch.testing.assert_close(model.places(*fine, (8, 8)).unflatten(1, (8, 8)), here)


def test_a_stray_pixel_moves_nothing_much():
    mask, stray = box(8, 8, 24, 24), box(8, 8, 24, 24)
    stray[..., 60, 60] = 1
    clean, dirty = (make().places(one, box(0, 0, 64, 64), (8, 8))[0, :, :6] for one in (mask, stray))
    torch.testing.assert_close(dirty, clean)


def test_nothing_found_is_the_region_and_no_region_the_canvas():
    model, nothing, region = make(), torch.zeros(1, 1, 64, 64), box(8, 16, 40, 48)
    assert torch.equal(model.places(nothing, region, (8, 8)), model.places(region, region, (8, 8)))
    whole = torch.ones(1, 1, 64, 64)
    assert torch.equal(model.places(nothing, nothing, (4, 8)), model.places(whole, whole, (4, 8)))
    mixed = model.places(torch.cat([nothing, region]), torch.cat([region, region]), (8, 8))
    assert torch.equal(mixed[0], mixed[1]) and mixed.isfinite().all()


def test_guidance_is_saved_and_loaded(tmp_path):
    model = guiding()
    torch.nn.init.normal_(model.cell_guidance.proj_out.weight)
    model.save_pretrained(tmp_path)
    loaded, states, places = FocusMaskConditioner.from_pretrained(tmp_path), torch.randn(3, 12), torch.randn(3, 54)
    assert torch.equal(loaded.guide(states, places), model.guide(states, places))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_guidance_keeps_the_type_of_the_states(dtype):
    model = guiding().to(dtype)
    torch.nn.init.normal_(model.cell_guidance.proj_out.weight)
    places = model.places(box(8, 8, 24, 24), box(4, 4, 32, 32), (2, 2))[0]
    for states in (torch.randn(4, 12, dtype=dtype), torch.randn(4, 12)):
        guided = model.guide(states, places)
        assert guided.dtype == states.dtype and guided.isfinite().all()
