"""The two published sizes: parameters of focus-3b counted on the meta device, its structure run at a fraction of its width."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from diffusers_focus.checkpoints.variants import PUBLISHED_3B, TINY, VARIANTS
from diffusers_focus.processing.images import make_inputs
from diffusers_focus.training.components import CLASSES

SIZE = 128
WIDTH = 32
QWEN_TEXT_ROWS = 151_936  # of Qwen2.5-3B's own table
NUM_TAGS_AND_MARKERS = 39

# What shrinks: widths, heads and codebooks. Depths, levels, multipliers and block types are the published ones.
NARROW: dict[str, dict[str, Any]] = {
    "vision_encoder": {
        "vision_tower": {"depth": 32, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "mlp_ratio": 1},
        "pyramid_channels": [8, 8, 16, 16],
        "fusion_num_heads": 2,
        "fusion_dim": 16,
        "num_query_tokens": 4,
        "query_dim": 16,
        "query_num_heads": 2,
        "language_hidden_size": WIDTH,
        "pixel_feature_dim": 8,
        "region_dim": 16,
    },
    "language_model": {
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "vocab_size": 64,
        "num_attention_heads": 4,
        "bos_token_id": None,
        "eos_token_id": 1,
    },
    "visual_tokenizer": {
        "code_dim": 8,
        "semantic_input_dim": 48,
        "semantic_embed_dim": 16,
        "semantic_num_heads": 2,
        "semantic_codebook_size": 32,
        "pixel_channels": 8,
        "pixel_decoder_channels": 8,
        "pixel_codebook_size": 96,
        "norm_groups": 8,
    },
    "mask_decoder": {
        "in_channels": [8, 8, 16, 16],
        "language_hidden_size": WIDTH,
        "num_slots": 4,
        "hidden_dim": 16,
        "mask_dim": 16,
        "num_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "instance_dim": 8,
        "norm_groups": 4,
    },
    "mask_conditioner": {"code_channels": 16, "cross_attention_dim": WIDTH, "hidden_dim": 16},
    "unet": {
        "in_channels": 4 + 16,
        "block_out_channels": [16, 16, 32],
        "attention_head_dim": [2, 2, 4],
        "cross_attention_dim": WIDTH,
        "norm_num_groups": 8,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 16,
    },
    "vae": {"block_out_channels": [8, 8, 16, 16], "norm_num_groups": 4},
}
MODELS = tuple(NARROW)


def build(name: str, config: dict[str, Any]) -> Any:
    return Qwen2ForCausalLM(Qwen2Config(**config)) if name == "language_model" else CLASSES[name](**config)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def published() -> dict[str, nn.Module]:
    with torch.device("meta"):
        return {name: build(name, PUBLISHED_3B[name]) for name in MODELS}


def test_every_component_has_its_numbers():
    everything = set(CLASSES) - {"lm_tokenizer"}  # that of focus-3b comes with a checkpoint, that of focus-tiny is code
    assert set(PUBLISHED_3B) == set(TINY) == everything
    for config in VARIANTS.values():
        for name in ("scheduler", "image_processor"):
            CLASSES[name](**config[name])


def test_focus_3b_has_the_sizes_of_the_models_it_inherits(published):
    assert all(p.is_meta for module in published.values() for p in module.parameters())
    encoder, language_model = published["vision_encoder"], published["language_model"]
    assert count(encoder.pyramid) == pytest.approx(196e6, rel=0.01)  # ConvNeXt-L without its classifier
    assert count(encoder.vit) == pytest.approx(675e6, rel=0.02)  # Qwen2-VL's tower
    visual_rows = PUBLISHED_3B["language_model"]["vocab_size"] - QWEN_TEXT_ROWS
    assert count(language_model) - visual_rows * 2048 == pytest.approx(3.09e9, rel=0.005)
    assert count(published["unet"]) == pytest.approx(2.57e9, rel=0.005)  # SDXL
    assert count(published["vae"]) == pytest.approx(83.7e6, rel=0.005)


def test_focus_3b_reads_and_writes_the_papers_visual_tokens(published):
    tokenizer, unet = published["visual_tokenizer"], published["unet"]
    assert tokenizer.semantic_quantizer.frozen_codebook.shape[0] == 32_768
    assert tokenizer.pixel_quantizer.frozen_codebook.shape[0] == 98_304
    codes = tokenizer.config.semantic_codebook_size + tokenizer.config.pixel_codebook_size
    rows = published["language_model"].get_input_embeddings().weight.shape[0]
    assert rows > QWEN_TEXT_ROWS + codes  # and the mask trigger
    # Latents and both codes side by side.
    assert unet.conv_in.in_channels == 4 + 2 * tokenizer.config.code_dim == 68
    assert published["mask_decoder"].config.num_slots == 100


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_components_of_a_variant_fit_each_other(variant):
    v = VARIANTS[variant]
    hidden = v["language_model"]["hidden_size"]
    encoder, tokenizer, unet = v["vision_encoder"], v["visual_tokenizer"], v["unet"]
    assert encoder["language_hidden_size"] == v["mask_decoder"]["language_hidden_size"] == hidden
    assert encoder["pyramid_channels"] == v["mask_decoder"]["in_channels"]
    assert encoder["vision_tower"]["hidden_size"] == tokenizer["semantic_input_dim"]
    assert encoder["pixel_feature_dim"] == tokenizer["code_dim"]
    assert v["mask_conditioner"]["code_channels"] == 2 * tokenizer["code_dim"]
    assert v["mask_conditioner"]["cross_attention_dim"] == unet["cross_attention_dim"]
    assert unet["in_channels"] == v["vae"]["latent_channels"] + 2 * tokenizer["code_dim"]
    codes = tokenizer["semantic_codebook_size"] + tokenizer["pixel_codebook_size"]
    text = 512 if variant == "focus-tiny" else 151_665
    assert v["language_model"]["vocab_size"] > text + NUM_TAGS_AND_MARKERS + codes


def test_focus_3bs_structure_runs_from_picture_to_picture():
    torch.manual_seed(0)
    parts = {name: build(name, {**PUBLISHED_3B[name], **NARROW[name]}).eval() for name in MODELS}
    pixels = torch.rand(1, 3, SIZE, SIZE) * 2 - 1
    with torch.no_grad():
        tokenizer = parts["visual_tokenizer"]
        features = tokenizer.encode_pixels(pixels)
        low, high = make_inputs(pixels, (112, 112), (SIZE, SIZE))
        seen = parts["vision_encoder"](low, high, pixel_features=features)
        assert seen.vision_tokens.shape == (1, 4, 4, WIDTH) and seen.pixel_tokens.shape == (1, 8, 8, WIDTH)
        assert [m.shape[-1] for m in seen.feature_maps] == [32, 16, 8, 4]

        embeds = torch.cat([seen.vision_tokens.flatten(1, 2), seen.query_tokens], dim=1)
        states = parts["language_model"].model(inputs_embeds=embeds).last_hidden_state
        assert parts["language_model"].lm_head(states).shape == (1, 20, 64)
        masks = parts["mask_decoder"](seen.feature_maps, states[:, None, -4:], states[:, None, :2])
        assert masks.mask_logits.shape == (1, 1, 4, 32, 32)

        codes = tokenizer.encode(pixels, seen.fused_features)
        token_map = tokenizer.merge(codes.semantic_codes, codes.pixel_codes)
        assert tokenizer.decode(codes.semantic_codes, codes.pixel_codes).shape == pixels.shape
        latents = parts["vae"].encode(pixels).latent_dist.mode()
        assert latents.shape == (1, 4, 16, 16)
        mask = torch.ones(1, 1, 16, 16)
        words = parts["mask_conditioner"](mask, token_map).sequence
        resized = nn.functional.interpolate(token_map, size=(16, 16))
        noise = parts["unet"](
            torch.cat([latents, resized], 1),
            torch.tensor([500]),
            torch.cat([torch.zeros(1, 77, WIDTH), words], 1),
            added_cond_kwargs={"text_embeds": torch.zeros(1, 16), "time_ids": torch.zeros(1, 6)},
        ).sample
        assert noise.shape == latents.shape and noise.isfinite().all()
        assert parts["vae"].decode(latents).sample.shape == pixels.shape


def test_focus_tiny_is_small():
    with torch.device("meta"):
        total = sum(count(build(name, TINY[name])) for name in MODELS)
    assert total <= 13e6
