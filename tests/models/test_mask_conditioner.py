"""FocusMaskConditioner: parity at initialisation, length, what the rows carry, padding."""

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
