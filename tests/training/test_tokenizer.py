"""Stage 1a: what each objective trains, its noise and drops, its adversary."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from diffusers_focus.training.batches import scene_batch
from diffusers_focus.training.tokenizer import (
    JointTokenizerObjective,
    PixelBatch,
    PixelTokenizerObjective,
    SemanticTokenizerObjective,
    code_usage,
    drop_samples,
    pyramid_features,
    replace_codes,
)
from diffusers_focus.training.trainer import StageRecipe

from tests.tiny import SIZE, tiny_components

SIZES = {"low_size": (56, 56), "high_size": (SIZE, SIZE)}


def recipe(**options) -> StageRecipe:
    return StageRecipe("1a", "pixel_tokenizer", (), steps=10, batch_size=2, options={"size": SIZE, **options})


def with_gradient(module: nn.Module) -> set[str]:
    return {name.split(".")[0] for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}


@pytest.fixture
def parts():
    return tiny_components()


def test_pixel_branch_trains_before_there_is_an_encoder(parts):
    tokenizer = parts["visual_tokenizer"]
    objective = PixelTokenizerObjective(tokenizer, recipe())
    assert list(objective.modules()) == ["visual_tokenizer"]
    loss, figures = objective.loss(objective.batch(0), 0)
    loss.backward()
    assert with_gradient(tokenizer) == {
        "pixel_encoder",
        "pixel_quant_conv",
        "pixel_quantizer",
        "pixel_post_quant_conv",
        "pixel_decoder",
    }
    assert {"l1", "psnr", "vq", "codes"} <= figures.keys()


def test_pixel_loss_falls_on_one_batch(parts):
    tokenizer = parts["visual_tokenizer"]
    objective = PixelTokenizerObjective(tokenizer, recipe())
    batch = objective.batch(0)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3)
    losses = []
    for step in range(10):
        loss, _ = objective.loss(batch, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_initialised_decoder_keeps_its_signal_and_starts_as_its_skip_path(parts):
    tokenizer = parts["visual_tokenizer"]
    PixelTokenizerObjective(tokenizer, recipe())
    assert torch.equal(tokenizer.pixel_quantizer.code_transform.weight, torch.eye(4))
    norm = tokenizer.pixel_decoder.norm_out
    assert norm.conv_y.bias.eq(1).all() and norm.conv_b.bias.eq(0).all()
    assert not tokenizer.pixel_decoder.mid.block_1.conv2.weight.any()
    before = tokenizer.pixel_encoder.conv_in.weight.clone()
    PixelTokenizerObjective(tokenizer, recipe(initialize=False))
    assert torch.equal(tokenizer.pixel_encoder.conv_in.weight, before)


def test_batches_alternate_in_direction_and_crops_have_their_size(parts):
    plain = PixelTokenizerObjective(parts["visual_tokenizer"], recipe())
    pixels = scene_batch(0, 1, 2, SIZE).pixel_values
    assert torch.equal(plain.batch(1).pixels, pixels.flip(-1))
    assert torch.equal(plain.batch(2).pixels, scene_batch(0, 2, 2, SIZE).pixel_values)
    cropped = PixelTokenizerObjective(parts["visual_tokenizer"], recipe(crop=32))
    assert cropped.batch(0).pixels.shape == (2, 3, 32, 32) and cropped.batch(0).weights.shape == (2, 1, 32, 32)


@pytest.mark.parametrize("step", [0, 1])  # plain and mirrored
def test_pixels_of_objects_weigh_more_and_all_weigh_1_in_the_mean(parts, step):
    batch = PixelTokenizerObjective(parts["visual_tokenizer"], recipe(object_weight=5.0)).batch(step)
    assert batch.weights.mean().item() == pytest.approx(1, abs=1e-5)
    masks = torch.stack([torch.from_numpy(r.masks.any(0)) for r in scene_batch(0, step, 2, SIZE).rendered])
    objects = masks.flip(-1) if step else masks
    low, high = batch.weights.min(), batch.weights.max()
    assert (high / low).item() == pytest.approx(5, rel=1e-5)
    assert torch.equal(batch.weights[:, 0] == high, objects)


def test_every_crop_shows_an_object(parts):
    objective = PixelTokenizerObjective(parts["visual_tokenizer"], recipe(crop=16))
    shown = 0
    for step in range(40):
        batch = objective.batch(step)
        scenes = scene_batch(0, step, 2, SIZE)
        for picture, crop, weights in zip(scenes.pixel_values, batch.pixels, batch.weights, strict=True):
            picture = picture.flip(-1) if step % 2 else picture
            windows = picture.unfold(1, 16, 1).unfold(2, 16, 1)  # [3, y, x, 16, 16]
            assert (windows == crop[:, None, None]).all(-1).all(-1).all(0).any()  # a part of its own picture
            shown += int((weights == batch.weights.max()).any() and weights.max() > 0)
    assert shown == 80


def test_the_pixel_losses_are_weighted_means_and_psnr_is_not(parts):
    tokenizer = parts["visual_tokenizer"]
    objective = PixelTokenizerObjective(tokenizer, recipe(edge_weight=0.0))
    batch = objective.batch(0)
    with torch.no_grad():
        total, figures = objective.loss(batch, 0)
        codes = tokenizer.quantize_pixels(tokenizer.encode_pixels(batch.pixels))[0]
        error = tokenizer.decode(torch.zeros_like(codes), codes) - batch.pixels
        plain, _ = objective.loss(PixelBatch(batch.pixels, torch.ones_like(batch.weights)), 0)
    inside = (batch.weights == batch.weights.max())[:, 0]
    mean = error.abs().mean(1)
    weighed = (4 * mean[inside].sum() + mean[~inside].sum()) / (4 * inside.sum() + (~inside).sum())
    assert figures["l1"] == pytest.approx(weighed.item(), rel=1e-4)
    assert figures["psnr"] == pytest.approx(10 * math.log10(4 / error.square().mean().item()), rel=1e-4)
    of_objects = error.square().mean(1)[inside].mean().item()
    assert figures["psnr_objects"] == pytest.approx(10 * math.log10(4 / of_objects), rel=1e-4)
    expected = error.abs().mean() + error.square().mean() + figures["vq"]
    assert plain.item() == pytest.approx(expected.item(), rel=1e-4)
    assert abs(plain.item() - total.item()) > 1e-3


def test_semantic_branch_alone_learns_from_frozen_features(parts):
    tokenizer = parts["visual_tokenizer"]
    objective = SemanticTokenizerObjective(tokenizer, parts["vision_encoder"], recipe(), **SIZES)
    loss, figures = objective.loss(objective.batch(0), 0)
    loss.backward()
    assert with_gradient(tokenizer) == {"semantic_encoder", "semantic_quantizer", "semantic_decoder"}
    assert with_gradient(parts["vision_encoder"]) == set()
    assert 0 < figures["cosine"] < 2
    assert 0 < objective.finish()["semantic_codes_used"] <= 1


def test_joint_decoder_reads_semantic_codes_without_teaching_them(parts):
    tokenizer, options = parts["visual_tokenizer"], {"vision_encoder": parts["vision_encoder"], **SIZES}
    objective = JointTokenizerObjective(tokenizer, recipe(semantic_drop=0.0), **options)
    batch = objective.batch(0)
    codes = objective.semantic_codes(batch.pixels, torch.zeros(2, 4, 4, 4))
    assert codes.shape == (2, 4, 2, 2) and codes.any() and not codes.requires_grad
    loss, _ = objective.loss(batch, 0)
    loss.backward()
    assert not {name for name in with_gradient(tokenizer) if name.startswith("semantic")}
    assert JointTokenizerObjective(tokenizer, recipe(), **options).semantic_drop == 0.1


def test_semantic_codes_need_an_encoder_and_whole_pictures(parts):
    with pytest.raises(ValueError, match="no vision_encoder.*semantic_drop to 1"):
        PixelTokenizerObjective(parts["visual_tokenizer"], recipe(semantic_drop=0.5))
    with pytest.raises(ValueError, match="crop=32 needs semantic_drop=1"):
        JointTokenizerObjective(
            parts["visual_tokenizer"], recipe(crop=32), vision_encoder=parts["vision_encoder"], **SIZES
        )


def test_adversary_and_tokenizer_do_not_train_each_other(parts):
    options = {"adversarial_weight": 0.5, "adversarial_start": 1, "adversarial_width": 8}
    objective = PixelTokenizerObjective(parts["visual_tokenizer"], recipe(**options))
    discriminator = objective.modules()["discriminator"]
    batch = objective.batch(0)
    assert "discriminator" not in objective.loss(batch, 0)[1]  # not before its first step
    fake = torch.randn_like(batch.pixels, requires_grad=True)
    total, _ = objective._adversarial(batch.pixels, fake)
    total.backward()
    judged = {name: p.grad.clone() for name, p in discriminator.named_parameters()}
    assert fake.grad is not None and fake.grad.any()
    # What the discriminator learns is its own loss alone.
    discriminator.zero_grad()
    from diffusers_focus.training.losses import hinge_loss

    hinge_loss(discriminator(batch.pixels), discriminator(fake.detach())).backward()
    for name, p in discriminator.named_parameters():
        torch.testing.assert_close(judged[name], p.grad)


def test_perceptual_features_are_the_frozen_pyramids(parts):
    features = pyramid_features(parts["vision_encoder"], levels=2)
    objective = PixelTokenizerObjective(parts["visual_tokenizer"], recipe(), perceptual=features)
    loss, figures = objective.loss(objective.batch(0), 0)
    loss.backward()
    assert figures["perceptual"] > 0
    assert [f.shape[-1] for f in features(torch.zeros(1, 3, SIZE, SIZE))] == [SIZE // 4, SIZE // 8]


def test_finish_measures_and_changes_nothing(parts):
    tokenizer = parts["visual_tokenizer"]
    objective = PixelTokenizerObjective(tokenizer, recipe())
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    measured = objective.finish()
    assert set(measured) == {"psnr", "pixel_codes_used", "pixel_perplexity"}
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())


def test_code_usage_by_hand():
    used, perplexity = code_usage(torch.tensor([[0, 0], [3, 3]]), 8)
    assert used == pytest.approx(2 / 8) and perplexity == pytest.approx(2.0)


def test_replaced_tokens_come_in_the_asked_shares():
    codes = torch.zeros(400, 2, 4, 4)
    table = torch.ones(5, 2)
    noisy = replace_codes(codes, lambda indices: table[indices], 5, samples=0.5, tokens=0.25)
    changed = noisy[:, 0] == 1
    assert torch.equal(noisy[:, 0], noisy[:, 1])  # whole codes are replaced
    samples = changed.flatten(1).any(1)
    assert samples.float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert changed[samples].float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert replace_codes(codes, lambda indices: table[indices], 5, 0.5, 0.0) is codes


def test_dropped_samples_are_zero_throughout():
    maps = drop_samples(torch.ones(400, 2, 3, 3), 0.3)
    kept = maps.flatten(1)
    assert ((kept == 0).all(1) | (kept == 1).all(1)).all()
    assert (kept[:, 0] == 0).float().mean().item() == pytest.approx(0.3, abs=0.08)
