"""Stage 1b and the decoder's part of stage 4: what the UNet is shown and what it learns from it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from torch import nn

from diffusers_focus.processing.masks import resample_mask
from diffusers_focus.training.batches import scene_batch
from diffusers_focus.training.diffusion import DecoderObjective, EditBatch
from diffusers_focus.training.trainer import ParameterGroup, StageRecipe, select_parameters

from tests.tiny import SIZE, tiny_components

CLEAN = {"noise_samples": 0.0, "semantic_drop": 0.0, "pixel_drop": 0.0, "map_drop": 0.0, "mask_drop": 0.0}


def objective(prediction_type: str = "v_prediction", **options) -> DecoderObjective:
    parts = tiny_components()
    parts["scheduler"] = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type
    )
    recipe = StageRecipe("1b", "decoder", (), steps=10, batch_size=2, options={"size": SIZE, **CLEAN, **options})
    return DecoderObjective(SimpleNamespace(**parts), recipe)


class Watched(nn.Module):
    """A UNet of one weight that keeps what it was shown."""

    def __init__(self, config):
        super().__init__()
        self.config, self.weight, self.seen = config, nn.Parameter(torch.zeros(())), {}

    def forward(self, sample, timestep, encoder_hidden_states, added_cond_kwargs):
        self.seen = {"sample": sample, "times": timestep, "states": encoder_hidden_states, **added_cond_kwargs}
        return SimpleNamespace(sample=sample[:, :4] * self.weight)


def test_reconstruction_batches_have_no_edit():
    batch = objective().batch(0)
    assert batch.target.shape == (2, 3, SIZE, SIZE) and batch.source is None and batch.change is None


def test_what_weighs_more_is_objects_and_in_edits_the_change():
    plain = objective().batch(3)
    scenes = scene_batch(0, 3, 2, SIZE)
    assert torch.equal(scenes.pixel_values, plain.target)
    for objects, rendered in zip(plain.objects, scenes.rendered, strict=True):
        assert torch.equal(objects[0] > 0, torch.from_numpy(rendered.masks.any(0)))
    edit = objective(edits=1.0).batch(3)
    assert torch.equal(edit.objects, edit.change)


def test_edit_batches_differ_inside_their_change_only():
    one = objective(edits=1.0)
    batch = one.batch(0)
    assert batch.change.shape == (2, 1, SIZE, SIZE) and set(batch.change.unique().tolist()) <= {0.0, 1.0}
    # A smoothed edge reaches a pixel beyond the masks, and changed cells are seen one by one.
    near = nn.functional.max_pool2d(batch.change, 3, stride=1, padding=1)
    different = (batch.target - batch.source).abs().amax(1, keepdim=True) > 0.02
    assert different.any()
    assert (different & (near == 0)).float().mean() < 0.001
    again = one.batch(0)
    assert torch.equal(again.target, batch.target) and torch.equal(again.change, batch.change)


def test_the_map_is_the_truth_inside_the_change_and_the_source_outside():
    one = objective()
    target, source = one.batch(0).target, one.batch(1).target
    change = torch.zeros(2, 1, SIZE, SIZE)
    change[:, :, :20, :20] = 1  # touches two by two pixel cells of 16, and one semantic cell
    with torch.no_grad():
        of_target, of_source = one.token_map(EditBatch(target)), one.token_map(EditBatch(source))
        mixed = one.token_map(EditBatch(target, source, change))
    width = of_target.shape[1] // 2
    inside = resample_mask(change, (4, 4), "any") > 0
    assert inside[0, 0].sum() == 4
    torch.testing.assert_close(mixed[:, width:], torch.where(inside, of_target, of_source)[:, width:])
    assert not torch.equal(of_target, of_source)


@pytest.mark.parametrize(
    ("drops", "zero"),
    [({"map_drop": 1.0}, (True, True)), ({"semantic_drop": 1.0}, (True, False)), ({"pixel_drop": 1.0}, (False, True))],
)
def test_dropped_halves_of_the_map_are_zero(drops, zero):
    one = objective(**drops)
    with torch.no_grad():
        halves = one.token_map(one.batch(0)).chunk(2, dim=1)
    assert tuple(not half.any() for half in halves) == zero


def test_without_semantic_codes_no_vision_encoder_is_run():
    one = objective(semantic_drop=1.0)
    assert sorted(one.modules()) == ["unet", "vae", "visual_tokenizer"]
    del one.components.vision_encoder
    assert one.token_map(one.batch(0)).any()


def test_the_unet_sees_noisy_latents_beside_the_nearest_map_and_zeros_for_text():
    one = objective(resolution_index=3)
    unet = one.components.unet = Watched(one.components.unet.config)
    batch = one.batch(0)
    one.loss(batch, 0)
    with torch.no_grad():
        wanted = one.token_map(batch).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(unet.seen["sample"][:, 4:], wanted)
    assert unet.seen["states"].shape == (2, 77, 32) and not unet.seen["states"].any()
    assert unet.seen["text_embeds"].shape == (2, 32) and not unet.seen["text_embeds"].any()
    assert unet.seen["time_ids"].tolist() == [[0, 0, 0, 0, 0, 3]] * 2


def test_the_mask_sequence_follows_the_zeros_and_may_be_dropped():
    one = objective(edits=1.0)
    unet = one.components.unet = Watched(one.components.unet.config)
    batch = one.batch(0)
    one.loss(batch, 0)
    mask = resample_mask(batch.change, (16, 16))
    with torch.no_grad():
        wanted = one.components.mask_conditioner(mask, one.token_map(batch)).sequence
    assert not unet.seen["states"][:, :77].any()
    torch.testing.assert_close(unet.seen["states"][:, 77:], wanted)
    without = objective(edits=1.0, mask_drop=1.0)
    unet = without.components.unet = Watched(without.components.unet.config)
    without.loss(batch, 0)
    assert unet.seen["states"].shape[1] == 77


def loss_of_saying_zero(one: DecoderObjective, batch: EditBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a UNet that says zero, and what it was asked for [B, 4, h, w]."""
    one.components.unet = Watched(one.components.unet.config)
    torch.manual_seed(1)
    loss, _ = one.loss(batch, 0)
    # Repeat the draws of the loss: latents, noise, times.
    torch.manual_seed(1)
    with torch.no_grad():
        vae = one.components.vae
        latents = vae.encode(batch.target).latent_dist.sample() * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        times = torch.randint(0, 1000, (2,))
    signal = one.process.alphas_cumprod[times].view(-1, 1, 1, 1)
    velocity = signal.sqrt() * noise - (1 - signal).sqrt() * latents
    return loss, velocity if one.process.config.prediction_type == "v_prediction" else noise


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
def test_a_unet_that_says_zero_loses_the_power_of_what_was_asked(prediction_type):
    """Objects weigh three times as much as the rest of their picture, and every picture the same."""
    one = objective(prediction_type)
    batch = one.batch(0)
    loss, wanted = loss_of_saying_zero(one, batch)
    weights = 1 + 2 * nn.functional.interpolate(batch.objects, size=wanted.shape[-2:], mode="area")
    by_picture = (weights * wanted.square().mean(1, keepdim=True)).sum((1, 2, 3)) / weights.sum((1, 2, 3))
    torch.testing.assert_close(loss, by_picture.mean(), rtol=1e-4, atol=1e-5)
    assert (loss - wanted.square().mean()).abs() > 1e-3


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
def test_with_object_weight_1_or_no_objects_it_is_the_plain_mean(prediction_type):
    one = objective(prediction_type, object_weight=1.0)
    loss, wanted = loss_of_saying_zero(one, one.batch(0))
    torch.testing.assert_close(loss, wanted.square().mean(), rtol=1e-4, atol=1e-5)
    one = objective(prediction_type)
    loss, wanted = loss_of_saying_zero(one, replace(one.batch(0), objects=None))
    torch.testing.assert_close(loss, wanted.square().mean(), rtol=1e-4, atol=1e-5)


def test_stage_4_teaches_cross_attention_and_conditioner_and_nothing_else():
    one = objective(edits=1.0)
    groups = (ParameterGroup("unet", 1.0, include=("attn2",)), ParameterGroup("mask_conditioner", 1.0))
    modules = one.modules()
    select_parameters(modules, groups)
    one.loss(one.batch(0), 0)[0].backward()
    taught = {
        f"{c}.{n}" for c, m in modules.items() for n, p in m.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert taught and all(name.startswith("mask_conditioner") or "attn2" in name for name in taught)
    assert any(name.startswith("mask_conditioner.mask_in") for name in taught)
    assert any(name.endswith("attn2.to_v.weight") for name in taught)
