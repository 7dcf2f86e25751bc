"""The MoVQ encoder and decoder: their blocks against the published definitions, and both at unusual sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_dc import DCDownBlock2d, DCUpBlock2d

from diffusers_focus.models.movq import DepthToSpaceUp, MoVQDecoder, MoVQEncoder, SpaceToDepthDown, SpatialNorm

TINY = {"channel_mult": (1, 2, 3), "num_res_blocks": 1, "attention_stages": (1,), "norm_groups": 4}


def test_spatial_norm_resizes_the_condition_before_its_convolutions() -> None:
    norm = SpatialNorm(8, 6, groups=4)
    x, condition = torch.randn(2, 8, 12, 20), torch.randn(2, 6, 3, 5)
    resized = F.interpolate(condition, size=(12, 20), mode="nearest")
    expected = norm.norm_layer(x) * norm.conv_y(resized) + norm.conv_b(resized)
    torch.testing.assert_close(norm(x, condition), expected)


def test_resampling_blocks_are_those_of_dc_ae() -> None:
    x = torch.randn(2, 8, 6, 10)
    down, up = SpaceToDepthDown(8), DepthToSpaceUp(8)
    reference_down = DCDownBlock2d(8, 8, downsample=True, shortcut=True)
    reference_up = DCUpBlock2d(8, 8, interpolate=False, shortcut=True)
    reference_down.load_state_dict(down.state_dict())
    reference_up.load_state_dict(up.state_dict())
    torch.testing.assert_close(down(x), reference_down(x))
    torch.testing.assert_close(up(x), reference_up(x))


def test_encoder_and_decoder_keep_the_aspect_ratio() -> None:
    encoder = MoVQEncoder(channels=8, z_channels=6, **TINY)
    decoder = MoVQDecoder(channels=8, z_channels=12, cond_channels=5, **TINY)
    features = encoder(torch.randn(2, 3, 24, 40))
    assert features.shape == (2, 6, 6, 10)
    image = decoder(torch.cat([features, features], dim=1), torch.randn(2, 5, 6, 10))
    assert image.shape == (2, 3, 24, 40)


def test_encoder_tail_adds_the_group_mean_of_its_normalised_features() -> None:
    encoder = MoVQEncoder(channels=8, z_channels=6, **TINY)
    torch.nn.init.zeros_(encoder.conv_out.weight)
    torch.nn.init.zeros_(encoder.conv_out.bias)
    seen = []
    encoder.conv_out.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    features = encoder(torch.randn(1, 3, 16, 16))
    for channel in range(6):
        torch.testing.assert_close(features[:, channel], seen[0][:, 4 * channel : 4 * channel + 4].mean(dim=1))


def test_decoder_output_depends_on_the_condition_beside_the_latent() -> None:
    decoder = MoVQDecoder(channels=8, z_channels=12, cond_channels=5, **TINY)
    z, condition = torch.randn(1, 12, 4, 4), torch.randn(1, 5, 4, 4)
    assert not torch.allclose(decoder(z, condition), decoder(z, condition + 1.0), atol=1e-3)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_gradient_checkpointing_changes_no_gradient(part: str) -> None:
    if part == "encoder":
        model, args = MoVQEncoder(channels=8, z_channels=6, **TINY), (torch.randn(1, 3, 16, 16),)
    else:
        model = MoVQDecoder(channels=8, z_channels=12, cond_channels=5, **TINY)
        args = (torch.randn(1, 12, 4, 4), torch.randn(1, 5, 4, 4))
    gradients, calls = [], []

    def checkpoint(block: torch.nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        calls.append(block)
        return torch.utils.checkpoint.checkpoint(block, *inputs, use_reentrant=False)

    model._gradient_checkpointing_func = checkpoint
    for enabled in (False, True):
        model.gradient_checkpointing = enabled
        model.zero_grad()
        model(*args).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert calls
    torch.testing.assert_close(gradients[0], gradients[1])


def test_sizes_that_cannot_work_are_refused_with_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        MoVQEncoder(channels=8, z_channels=6, **TINY)(torch.randn(1, 3, 18, 16))
    with pytest.raises(ValueError, match="norm_groups=5"):
        MoVQEncoder(channels=8, z_channels=6, **{**TINY, "norm_groups": 5})
    with pytest.raises(ValueError, match="no multiple of 7"):
        MoVQDecoder(channels=8, z_channels=7, **TINY)
    with pytest.raises(ValueError, match="space-to-depth"):
        MoVQEncoder(channels=6, z_channels=6, **{**TINY, "norm_groups": 2})
