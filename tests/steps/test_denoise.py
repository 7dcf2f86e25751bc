"""The decoder's loop parts: schedules, guidance branches, mask sequence, background latents, VAE precision."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler

from diffusers_focus.steps import denoise

from tests.tiny import seeded, shared_pipeline


@pytest.fixture(scope="module")
def inputs():
    pipe = shared_pipeline()
    generator = seeded()
    tokens = torch.randn(2, 8, 4, 4, generator=generator)
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, 4:9, 4:9] = 1
    return pipe, torch.randn(2, 4, 16, 16, generator=generator), tokens, mask


def predict(pipe, latents, tokens, mask, **options):
    embeds = denoise.mask_sequence(pipe, mask, tokens)
    negative = denoise.mask_sequence(pipe, mask, torch.zeros_like(tokens))
    denoiser = denoise.Denoiser(pipe.unet, DDIMScheduler(), 0, has_mask=mask is not None, **options)
    with torch.no_grad():
        return denoiser.predict(latents, torch.tensor(500), tokens, embeds, negative)


@torch.no_grad()
def test_guidance_extrapolates_from_the_zeroed_token_map(inputs):
    pipe, latents, tokens, mask = inputs
    conditional, unconditional = predict(pipe, latents, tokens, mask), predict(pipe, latents, tokens * 0, mask)
    guided = predict(pipe, latents, tokens, mask, guidance_scale=3.0)
    torch.testing.assert_close(guided, unconditional + 3 * (conditional - unconditional), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_mask_guidance_extrapolates_from_no_mask(inputs):
    """The zero rows in its branch are the same as a sequence without f_m."""
    pipe, latents, tokens, mask = inputs
    conditional, unmasked = predict(pipe, latents, tokens, mask), predict(pipe, latents, tokens, None)
    assert (conditional - unmasked).abs().max() > 1e-4
    guided = predict(pipe, latents, tokens, mask, mask_guidance_scale=2.0)
    torch.testing.assert_close(guided, unmasked + 2 * (conditional - unmasked), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_mask_guidance_of_zero_keeps_the_mask_out_of_every_branch(inputs):
    pipe, latents, tokens, mask = inputs
    expected = predict(pipe, latents, tokens, None, guidance_scale=3.0)
    found = predict(pipe, latents, tokens, mask, guidance_scale=3.0, mask_guidance_scale=0.0)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_sequence_is_zero_rows_then_the_mask(inputs):
    pipe, _, tokens, mask = inputs
    assert denoise.mask_sequence(pipe, None, tokens).shape == (2, 77, 32)
    sequence = denoise.mask_sequence(pipe, mask, tokens)
    assert sequence.shape == (2, 77 + 16, 32)
    assert not sequence[:, :77].any() and sequence[:, 77:].any()


def test_strength_skips_the_first_part_of_the_schedule():
    scheduler = EulerDiscreteScheduler()
    whole = denoise.prepare_timesteps(scheduler, 10, "cpu").tolist()
    part = denoise.prepare_timesteps(scheduler, 10, "cpu", strength=0.35).tolist()
    assert part == whole[-3:] and scheduler.begin_index == 7
    heun = HeunDiscreteScheduler()
    whole = denoise.prepare_timesteps(heun, 4, "cpu").tolist()
    assert denoise.prepare_timesteps(heun, 4, "cpu", strength=0.5).tolist() == whole[4:]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timesteps": [1], "sigmas": [1.0]}, "one of them"),
        ({"sigmas": [1.0]}, "DDIMScheduler"),
        ({"strength": 0.1}, "no step"),
    ],
)
def test_impossible_schedules_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        denoise.prepare_timesteps(DDIMScheduler(), 4, "cpu", **options)


def test_background_is_the_source_at_the_noise_level_of_the_next_step():
    scheduler = DDIMScheduler()
    steps = denoise.prepare_timesteps(scheduler, 4, "cpu")
    source, noise, latents = (torch.randn(1, 4, 8, 8, generator=seeded(i)) for i in range(3))
    free = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    free[..., 2:4, 2:4] = True
    background = denoise.LatentBackground(source, noise, free)
    kept = background.restore(latents, scheduler, steps[1])
    expected = scheduler.add_noise(source, noise, steps[1:2])
    assert torch.equal(kept[..., 2:4, 2:4], latents[..., 2:4, 2:4])
    assert torch.equal(kept[..., 4:, :], expected[..., 4:, :])
    assert torch.equal(background.restore(latents, scheduler, None)[..., 4:, :], source[..., 4:, :])


@torch.no_grad()
def test_latents_go_through_the_vae_and_back_in_its_scale(inputs):
    vae = inputs[0].vae
    image = torch.rand(1, 3, 64, 64, generator=seeded()) * 2 - 1
    latents = denoise.encode_latents(vae, image)
    torch.testing.assert_close(latents, vae.encode(image).latent_dist.mode() * vae.config.scaling_factor)
    expected = vae.decode(latents / vae.config.scaling_factor).sample
    torch.testing.assert_close(denoise.decode_latents(vae, latents), expected)


def test_unknown_sizes_are_refused_with_the_known_ones():
    assert denoise.resolution_index([[96, 48], [64, 64]], 48, 96) == 0
    with pytest.raises(ValueError, match="48 x 96"):
        denoise.resolution_index([[96, 48]], 96, 48)
