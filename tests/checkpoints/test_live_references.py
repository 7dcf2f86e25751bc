"""Converted random weights in our classes give what the reference classes give, to 1e-5.

The references are transformers' and diffusers' own classes. timm and OpenCLIP are not needed: their names are written down
in originals.py, and their ConvNeXt computes what transformers' does.
"""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import Mask2FormerForUniversalSegmentation
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from diffusers_focus.checkpoints.families import detect_family
from diffusers_focus.checkpoints.plan import convert
from diffusers_focus.models._vit import patchify, vit_features

from tests.checkpoints.originals import (
    CHANNELS,
    CHECKPOINTS,
    TOWER,
    build,
    convnext,
    language_model,
    mask2former,
    mask2former_reference,
    qwen2_vl_vision,
    randomize,
    sdxl_configs,
    sizes_of,
    targets,
)

EXACT = {"atol": 1e-5, "rtol": 1e-5}


def ours_of(case: str, component: str, tensors: dict[str, torch.Tensor] | None = None, **changes) -> torch.nn.Module:
    """The component that a case's checkpoint fills, with its weights."""
    tensors = CHECKPOINTS[case][0]() if tensors is None else tensors
    sizes = sizes_of(case, tensors)
    sizes[component] = {**sizes[component], **changes}
    model = build(component, sizes[component])
    converted = convert(detect_family(tensors), tensors, {component: targets(sizes)[component]})
    result = model.load_state_dict(converted[component], strict=False)
    assert not result.unexpected_keys
    return model.eval()


# Mask2Former


@pytest.fixture(scope="module")
def reference() -> Mask2FormerForUniversalSegmentation:
    return mask2former_reference()


@pytest.fixture(scope="module", params=["mask2former_transformers", "mask2former"])
def mask_decoder(request: pytest.FixtureRequest, reference) -> torch.nn.Module:
    """Ours with the reference's weights; slot states go through an identity projection."""
    tensors = dict(reference.state_dict()) if "_" in request.param else mask2former()
    width = reference.config.hidden_dim
    model = ours_of(request.param, "mask_decoder", tensors, language_hidden_size=width)
    with torch.no_grad():
        model.slot_projection.weight.copy_(torch.eye(width))
        model.slot_projection.bias.zero_()
        model.pixel_decoder.position_projection.weight.zero_()
    return model


def feature_maps() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    sides = [(64 // stride, 96 // stride) for stride in (4, 8, 16, 32)]
    return [torch.randn(2, c, *side, generator=generator) for c, side in zip(CHANNELS, sides)]


@torch.no_grad()
def test_pixel_features_are_mask2formers(reference, mask_decoder):
    expected = reference.model.pixel_level_module.decoder(feature_maps())
    ours = mask_decoder.encode(feature_maps())
    torch.testing.assert_close(ours.mask_features, expected.mask_features, **EXACT)
    assert len(ours.multi_scale) == 3
    for level, expected_level in zip(ours.multi_scale, expected.multi_scale_features):
        torch.testing.assert_close(level, expected_level, **EXACT)


@torch.no_grad()
def test_masks_are_mask2formers(reference, mask_decoder):
    encoded = mask_decoder.encode(feature_maps())
    # Centred, so that every mask has an inside and an outside and the attention really is masked.
    encoded.mask_features = encoded.mask_features - encoded.mask_features.mean((0, 2, 3), keepdim=True)
    module = reference.model.transformer_module
    expected = module(list(encoded.multi_scale), encoded.mask_features)
    queries = module.queries_features.weight[None, None].expand(2, 1, -1, -1)
    conditions = torch.zeros(2, 1, 1, queries.shape[-1])
    ours = mask_decoder.decode(encoded, queries, conditions, return_auxiliary=True)
    predictions = [mask for mask, _, _ in ours.auxiliary] + [ours.mask_logits]
    assert len(predictions) == len(expected.masks_queries_logits) == 5
    for mask, expected_mask in zip(predictions, expected.masks_queries_logits):
        torch.testing.assert_close(mask[:, 0], expected_mask, **EXACT)
        assert 0.1 < (expected_mask < 0).float().mean() < 0.9


# Backbones


@pytest.mark.parametrize("style", ["transformers", "timm", "timm features", "timm convolutions", "open_clip"])
@torch.no_grad()
def test_the_pyramid_is_the_convnext(style):
    encoder, tensors = convnext(style)
    ours = ours_of(f"convnext_{style}", "vision_encoder", tensors)
    pixels = torch.randn(1, 3, 64, 96)
    reference = encoder.pyramid
    stages = reference.encoder(reference.embeddings(pixels), output_hidden_states=True).hidden_states[-4:]
    features = ours._pyramid_features(pixels)
    assert len(features) == 4
    for level, expected in zip(features, stages):
        torch.testing.assert_close(level, expected, **EXACT)


@torch.no_grad()
def test_the_vit_is_qwen2_vls():
    tensors = qwen2_vl_vision()
    reference = Qwen2VisionTransformerPretrainedModel(Qwen2VLVisionConfig(**TOWER)).eval()
    reference.load_state_dict({k.removeprefix("visual."): v for k, v in tensors.items() if k.startswith("visual.")})
    ours = ours_of("qwen2_vl_vision", "vision_encoder", tensors)
    pixels = torch.randn(2, 3, 56, 84)
    patches, grid = patchify(pixels)
    expected = reference(patches, grid_thw=grid).pooler_output
    torch.testing.assert_close(vit_features(ours.vit, pixels).flatten(0, 2), expected, **EXACT)


# Stock classes


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "separate head"])
@torch.no_grad()
def test_an_enlarged_qwen2_says_the_same_of_the_old_words(tied):
    reference = language_model(tied)
    tensors = CHECKPOINTS["qwen2_5" if tied else "qwen2_5 untied"][0]()
    sizes = sizes_of("qwen2_5" if tied else "qwen2_5 untied", tensors)["language_model"]
    model = build("language_model", {**sizes, "vocab_size": 60}).eval()
    wanted = {"language_model": targets({"language_model": {**sizes, "vocab_size": 60}})["language_model"]}
    converted = convert(detect_family(tensors), tensors, wanted)["language_model"]
    missing = model.load_state_dict(converted, strict=False).missing_keys
    assert missing == (["lm_head.weight"] if tied else [])
    model.tie_weights()
    ids = torch.randint(0, 40, (2, 7))
    logits = model(ids).logits
    torch.testing.assert_close(logits[..., :40], reference(ids).logits, **EXACT)
    assert logits[..., 40:].isfinite().all() and logits[..., 40:].abs().max() > 0


@pytest.fixture(scope="module")
def plain_sdxl() -> tuple[UNet2DConditionModel, AutoencoderKL, dict[str, torch.Tensor]]:
    configs = {
        name: {key: value for key, value in config.items() if not key.startswith("_")}
        for name, config in sdxl_configs().items()
    }
    unet, vae = randomize(UNet2DConditionModel(**configs["unet"])), randomize(AutoencoderKL(**configs["vae"]))
    parts = {"unet": unet, "vae": vae}
    return unet, vae, {f"{name}.{key}": v for name, model in parts.items() for key, v in model.state_dict().items()}


@torch.no_grad()
def test_a_widened_sdxl_ignores_codes_and_denoises_as_before(plain_sdxl):
    reference, _, tensors = plain_sdxl
    ours = ours_of("sdxl", "unet", tensors)
    assert ours.config.in_channels == 68
    latents, codes = torch.randn(1, 4, 16, 16), torch.randn(1, 64, 16, 16)
    width = reference.config.projection_class_embeddings_input_dim - 6 * reference.config.addition_time_embed_dim
    words = {
        "encoder_hidden_states": torch.randn(1, 5, reference.config.cross_attention_dim),
        "added_cond_kwargs": {"text_embeds": torch.randn(1, width), "time_ids": torch.zeros(1, 6)},
    }
    expected = reference(latents, torch.tensor([500]), **words).sample
    sample = ours(torch.cat([latents, codes], 1), torch.tensor([500]), **words).sample
    torch.testing.assert_close(sample, expected, **EXACT)


@torch.no_grad()
def test_a_vae_with_old_names_decodes_as_before(plain_sdxl):
    _, reference, tensors = plain_sdxl
    old = {}
    for key, value in tensors.items():
        for ours, theirs in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            if ".mid_block.attentions." in key and f".{ours}." in key:
                key = key.replace(ours, theirs)
                value = value[:, :, None, None] if value.ndim == 2 else value
        old[key] = value
    assert old.keys() != tensors.keys()
    latents = torch.randn(1, 4, 4, 4)
    torch.testing.assert_close(
        ours_of("sdxl", "vae", old).decode(latents).sample, reference.decode(latents).sample, **EXACT
    )
