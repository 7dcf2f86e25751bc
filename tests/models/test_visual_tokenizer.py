"""FocusVisualTokenizer: quantiser, dtypes, training (parity with the original: tests/checkpoints)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from diffusers_focus.models._vit import build_vit, patchify, vit_features
from diffusers_focus.models.visual_tokenizer import CODE_BLOCK, FocusVisualTokenizer, SimVQ

TINY_TOWER = {"depth": 1, "embed_dim": 16, "hidden_size": 24, "num_heads": 2, "mlp_ratio": 2}
TINY: dict[str, Any] = {
    "code_dim": 4,
    "semantic_input_dim": 24,
    "semantic_embed_dim": 16,
    "semantic_num_blocks": 1,
    "semantic_num_heads": 2,
    "semantic_codebook_size": 16,
    "pixel_channels": 8,
    "pixel_decoder_channels": 8,
    "pixel_channel_mult": (1, 1, 2),
    "pixel_num_res_blocks": 1,
    "pixel_attention_stages": (2,),
    "pixel_codebook_size": 32,
    "norm_groups": 4,
}


def tiny(**changes: Any) -> FocusVisualTokenizer:
    return FocusVisualTokenizer(**{**TINY, **changes}).eval()


def tiny_inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(batch, 3, 16, 24) * 2 - 1, torch.randn(batch, 2, 3, 24)


# Vision tower


def test_patches_are_in_the_order_of_transformers() -> None:
    """Each patch is tagged by its cell and its place in the cell; a cell's four patches must be neighbours."""
    rows, columns, p = 2, 3, 14
    y, x = torch.meshgrid(torch.arange(rows * 2 * p) // p, torch.arange(columns * 2 * p) // p, indexing="ij")
    tag = ((y // 2 * columns + x // 2) * 4 + y % 2 * 2 + x % 2).float()
    patches, grid_thw = patchify(tag.expand(2, 3, -1, -1))
    assert patches.shape == (2 * rows * columns * 4, 1176)
    assert grid_thw.tolist() == [[1, 4, 6], [1, 4, 6]]
    expected = torch.arange(rows * columns * 4).float().repeat(2)
    assert torch.equal(patches, expected[:, None].expand_as(patches))


@torch.no_grad()
def test_tower_features_do_not_mix_images_and_run_in_raster_order() -> None:
    vit = build_vit(TINY_TOWER).eval()
    assert isinstance(vit, Qwen2VisionTransformerPretrainedModel)
    images = torch.randn(3, 3, 56, 84)
    features = vit_features(vit, images)
    assert features.shape == (3, 2, 3, 24)
    for image, feature in zip(images, features, strict=True):
        torch.testing.assert_close(vit_features(vit, image[None])[0], feature, atol=1e-5, rtol=0)
    # Attention spreads a change over the image, but the changed cell's own feature moves most.
    changed = images.clone()
    changed[0, :, :28, 56:] += 1.0
    difference = (vit_features(vit, changed) - features).abs().amax(dim=-1)
    assert difference[0].argmax() == 2
    assert difference[1:].max() == 0


def test_tower_config_is_checked() -> None:
    with pytest.raises(ValueError, match="depths"):
        build_vit({**TINY_TOWER, "depths": 3})
    with pytest.raises(ValueError, match="multiple of 4"):
        build_vit({**TINY_TOWER, "embed_dim": 20})
    with pytest.raises(ValueError, match="multiples of 28"):
        patchify(torch.zeros(1, 3, 28, 42))


# Quantiser


def test_nearest_code_is_exact_across_blocks_and_under_autocast() -> None:
    quantizer = SimVQ(CODE_BLOCK + 300, 6)
    codebook = quantizer.code_transform(quantizer.frozen_codebook).detach()
    wanted = torch.tensor([0, 17, CODE_BLOCK - 1, CODE_BLOCK, CODE_BLOCK + 299])
    features = (codebook[wanted] + 1e-4).T.view(1, 6, 1, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes, indices, loss = quantizer(features)
    assert indices.dtype == torch.int64 and codes.dtype == loss.dtype == torch.float32
    assert torch.equal(indices.flatten(), wanted)
    random = torch.randn(50, 6)
    assert torch.equal(quantizer.nearest(random), torch.cdist(random, codebook).argmin(dim=-1))


def test_quantiser_passes_gradients_straight_through_and_keeps_its_codebook_frozen() -> None:
    quantizer = SimVQ(16, 4)
    features = torch.randn(2, 4, 3, 3, requires_grad=True)
    codes, _, loss = quantizer(features)
    upstream = torch.randn_like(codes)
    codes.backward(upstream, retain_graph=True)
    torch.testing.assert_close(features.grad, upstream)
    assert quantizer.code_transform.weight.grad is None
    loss.backward()
    assert quantizer.code_transform.weight.grad.abs().sum() > 0
    assert list(dict(quantizer.named_parameters())) == ["code_transform.weight"]
    assert "frozen_codebook" in quantizer.state_dict()
    assert not quantizer.frozen_codebook.requires_grad


def test_quantiser_loss_weighs_the_commitment_a_quarter() -> None:
    quantizer = SimVQ(16, 4)
    features = torch.randn(1, 4, 2, 2)
    codes, _, loss = quantizer(features)
    torch.testing.assert_close(loss, 1.25 * (codes - features).square().mean())


# Interface


@torch.no_grad()
def test_shapes_dtypes_and_reconstruction_from_indices() -> None:
    model = tiny()
    image, features = tiny_inputs()
    out = model(image, features)
    assert out.semantic_codes.shape == (2, 4, 2, 3) and out.semantic_indices.shape == (2, 2, 3)
    assert out.pixel_codes.shape == out.pixel_features.shape == (2, 4, 4, 6) and out.pixel_indices.shape == (2, 4, 6)
    assert out.semantic_target.shape == out.semantic_reconstruction.shape == (2, 2, 3, 24)
    assert out.reconstruction.shape == image.shape
    assert out.semantic_indices.dtype == out.pixel_indices.dtype == torch.int64
    assert model.pixel_downsample_factor == 4
    decoded = model.decode_indices(out.semantic_indices, out.pixel_indices)
    torch.testing.assert_close(decoded, out.reconstruction)
    torch.testing.assert_close(model.encode_pixels(image), out.pixel_features)
    torch.testing.assert_close(out.semantic_target.mean(dim=-1), torch.zeros(2, 2, 3), atol=1e-5, rtol=0)


def test_merge_puts_semantic_codes_first_and_resizes_them_bicubically() -> None:
    model = tiny()
    semantic, pixel = torch.randn(1, 4, 2, 3), torch.randn(1, 4, 4, 6)
    merged = model.merge(semantic, pixel)
    assert torch.equal(merged[:, 4:], pixel)
    torch.testing.assert_close(merged[:, :4], F.interpolate(semantic, size=(4, 6), mode="bicubic"))


def test_semantic_input_must_fit_the_model() -> None:
    image, features = tiny_inputs()
    with pytest.raises(ValueError, match="no vision tower"):
        tiny().encode(image)
    with pytest.raises(ValueError, match="pixel_values_low"):
        tiny(vision_tower=TINY_TOWER).encode(image)
    with pytest.raises(ValueError, match=r"\[B, rows, columns, 24\]"):
        tiny().encode_semantic(features.movedim(-1, 1))
    with pytest.raises(ValueError, match="semantic_input_dim is 24"):
        tiny(vision_tower={**TINY_TOWER, "hidden_size": 32})


@pytest.mark.parametrize("tower", [None, TINY_TOWER])
def test_save_and_load_give_the_same_tokens(tmp_path: Path, tower: dict[str, Any] | None) -> None:
    model = tiny(vision_tower=tower)
    model.save_pretrained(tmp_path)
    loaded = FocusVisualTokenizer.from_pretrained(tmp_path)
    image, features = tiny_inputs()
    inputs = {"semantic_features": features} if tower is None else {"pixel_values_low": torch.randn(2, 3, 56, 84)}
    with torch.no_grad():
        before, after = model(image, **inputs), loaded(image, **inputs)
    assert torch.equal(before.pixel_indices, after.pixel_indices)
    assert torch.equal(before.semantic_indices, after.semantic_indices)
    torch.testing.assert_close(before.reconstruction, after.reconstruction)
    if tower is not None:
        assert not any(parameter.requires_grad for parameter in loaded.vit.parameters())


def test_loading_in_bfloat16_leaves_the_quantisers_in_float32(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    loaded = FocusVisualTokenizer.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.pixel_quantizer.frozen_codebook, model.pixel_quantizer.frozen_codebook)
    assert loaded.semantic_quantizer.code_transform.weight.dtype == torch.float32
    with torch.no_grad():
        assert loaded(*tiny_inputs()).reconstruction.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_weights_work_from_end_to_end(dtype: torch.dtype) -> None:
    model = tiny(vision_tower=TINY_TOWER).to(dtype)
    image, _ = tiny_inputs()
    out = model(image, pixel_values_low=torch.randn(2, 3, 56, 84))
    assert out.reconstruction.dtype == dtype
    assert out.pixel_codes.dtype == torch.float32
    assert out.reconstruction.isfinite().all() and out.semantic_reconstruction.isfinite().all()


@torch.no_grad()
def test_layerwise_casting_keeps_the_tokens_usable() -> None:
    model = tiny()
    codebook = model.pixel_quantizer.code_transform.weight.clone()
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert model(*tiny_inputs()).reconstruction.isfinite().all()
    assert model.pixel_encoder.conv_in.weight.dtype == torch.float8_e4m3fn
    assert torch.equal(model.pixel_quantizer.code_transform.weight, codebook)


# Training


def test_training_reaches_every_parameter_under_autocast_and_leaves_the_codebooks() -> None:
    model = tiny(vision_tower=TINY_TOWER).train()
    frozen = model.pixel_quantizer.frozen_codebook.clone()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    image, _ = tiny_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(image, pixel_values_low=torch.randn(2, 3, 56, 84))
        cosine = 1 - F.cosine_similarity(out.semantic_reconstruction.float(), out.semantic_target.float(), dim=-1)
        loss = F.l1_loss(out.reconstruction.float(), image) + cosine.mean() + out.pixel_loss + out.semantic_loss
    loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith("vit.") for name in trained)
    without = [name for name, p in trained.items() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    optimizer.step()
    assert torch.equal(model.pixel_quantizer.frozen_codebook, frozen)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model = tiny().train()
    image, features = tiny_inputs(1)
    gradients = []
    for enable in (False, True):
        if enable:
            model.enable_gradient_checkpointing()
            assert model.pixel_decoder.gradient_checkpointing and model.semantic_encoder.gradient_checkpointing
        model.zero_grad()
        out = model(image, features)
        (out.reconstruction.square().mean() + out.semantic_reconstruction.square().mean()).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1])
