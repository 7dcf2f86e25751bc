"""Small random checkpoints in every original's own names, and our components that hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Qwen2Config,
    Qwen2ForCausalLM,
    SwinConfig,
)

from diffusers_focus.checkpoints.families import detect_family, sizes_from
from diffusers_focus.checkpoints.illume import WITHOUT_NEW_PARTS
from diffusers_focus.checkpoints.plan import target_shapes
from diffusers_focus.models._vit import build_vit
from diffusers_focus.models.mask_decoder import FocusMaskDecoder
from diffusers_focus.models.vision_encoder import FocusVisionEncoder
from diffusers_focus.models.visual_tokenizer import FocusVisualTokenizer

from tests.goldens.weights import state_dict, weight

GOLDENS = Path(__file__).parents[1] / "goldens"
CLASSES: dict[str, Any] = {
    "vision_encoder": FocusVisionEncoder,
    "visual_tokenizer": FocusVisualTokenizer,
    "mask_decoder": FocusMaskDecoder,
    "language_model": lambda **config: Qwen2ForCausalLM(Qwen2Config(**config)),
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
}
TOWER = {"depth": 2, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "mlp_ratio": 2}
CHANNELS = (8, 16, 32, 64)
DEPTHS = (1, 1, 2, 1)
LANGUAGE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
    "rope_theta": 10000.0,
}
# What a component needs besides what its checkpoint tells.
OWN: dict[str, dict[str, Any]] = {
    "vision_encoder": {**WITHOUT_NEW_PARTS, "vision_tower": TOWER, "language_hidden_size": 12},
    "mask_decoder": {"in_channels": CHANNELS, "language_hidden_size": 12, "norm_groups": 32, "instance_dim": 10},
}


def build(component: str, sizes: Mapping[str, Any]) -> nn.Module:
    """A component of ours, on the device in use."""
    return CLASSES[component](**{**OWN.get(component, {}), **sizes})


def targets(sizes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, tuple[int, ...]]]:
    """What components of these sizes store."""
    with torch.device("meta"):
        return {name: target_shapes(build(name, config)) for name, config in sizes.items() if name in CLASSES}


def randomize(model: nn.Module, seed: int = 3) -> nn.Module:
    """Fill a model with numbers that no parameter shares; some of a library's own are uninitialised memory."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.5 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDENS / f"{name}.json").read_text())


def dualvitok() -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in state_dict(GOLDENS / "dualvitok_a.json").items()}


def illume_plus() -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in state_dict(GOLDENS / "mllm_vision_a.json").items()}


def illume_plus_decoder() -> dict[str, torch.Tensor]:
    facts = golden("decoder_a")
    return {
        f"{part}.{key}": torch.from_numpy(weight(facts["seed"], key, shape))
        for part in ("unet", "vae")
        for key, shape in facts["keys"][part].items()
    }


def sdxl() -> dict[str, torch.Tensor]:
    tensors = illume_plus_decoder()
    tensors["unet.conv_in.weight"] = tensors["unet.conv_in.weight"][:, :4].clone()
    return {**tensors, "text_encoder.text_model.final_layer_norm.weight": torch.ones(4)}


def sdxl_configs() -> dict[str, dict[str, Any]]:
    facts = golden("decoder_a")
    return {
        "unet": {**facts["unet_config"], "in_channels": 4},
        "vae": {"_class_name": "AutoencoderKL", **facts["vae_config"]},
        "scheduler": facts["scheduler_config"],
    }


def language_model(tied: bool = True) -> Qwen2ForCausalLM:
    model = Qwen2ForCausalLM(Qwen2Config(**LANGUAGE, tie_word_embeddings=tied))
    randomize(model)
    return model


def qwen2_5(tied: bool = True) -> dict[str, torch.Tensor]:
    tensors = dict(language_model(tied).state_dict())
    if tied:
        del tensors["lm_head.weight"]  # Qwen2.5's small models store one table
    return tensors


def qwen2_vl_vision() -> dict[str, torch.Tensor]:
    tower = {f"visual.{key}": value for key, value in randomize(build_vit(TOWER)).state_dict().items()}
    return {**tower, "model.norm.weight": torch.ones(4), "lm_head.weight": torch.ones(4, 4)}


def convnext(style: str) -> tuple[FocusVisionEncoder, dict[str, torch.Tensor]]:
    """A pyramid and its weights in the names of another library, written down here a second time."""
    with torch.random.fork_rng():
        encoder = FocusVisionEncoder(
            **{**OWN["vision_encoder"], "pyramid_depths": DEPTHS, "pyramid_channels": CHANNELS, "fusion_dim": 64}
        )
    randomize(encoder)
    weights = encoder.pyramid.state_dict()
    if style == "transformers":
        extra = {"layernorm.weight": torch.ones(64)}
        return encoder, {f"convnext.{key}": value for key, value in {**weights, **extra}.items()} | {
            "classifier.weight": torch.ones(3, 64)
        }
    renamed = {}
    for key, value in weights.items():
        for ours, theirs in (
            ("embeddings.patch_embeddings", "stem.0"),
            ("embeddings.layernorm", "stem.1"),
            ("encoder.", ""),
            ("downsampling_layer", "downsample"),
            ("layers", "blocks"),
            ("layer_scale_parameter", "gamma"),
            ("dwconv", "conv_dw"),
            ("layernorm", "norm"),
            ("pwconv", "mlp.fc"),
        ):
            key = key.replace(ours, theirs)
        renamed[key] = value
    if style == "open_clip":
        renamed = {f"visual.trunk.{key}": value for key, value in renamed.items()}
        renamed |= {
            key: torch.ones(()) for key in ("logit_scale", "visual.head.proj.weight", "visual.trunk.head.norm.bias")
        }
    elif style == "timm features":
        renamed = {
            f"_backbone.{key.replace('stem.', 'stem_').replace('stages.', 'stages_')}": v for key, v in renamed.items()
        }
    elif style == "timm convolutions":
        linear = ("fc1.weight", "fc2.weight")
        renamed = {key: v[:, :, None, None] if key.endswith(linear) else v for key, v in renamed.items()}
    return encoder, renamed


def mask2former_reference() -> Mask2FormerForUniversalSegmentation:
    """transformers' model with a small Swin of our pyramid's widths."""
    backbone = SwinConfig(
        image_size=64,
        embed_dim=CHANNELS[0],
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        hidden_dim=32,
        mask_feature_size=24,
        encoder_feedforward_dim=40,
        dim_feedforward=48,
        encoder_layers=2,
        decoder_layers=5,
        num_attention_heads=4,
        num_queries=5,
    )
    model = Mask2FormerForUniversalSegmentation(config)
    randomize(model)
    return model


# transformers' name -> the original's, after the published conversion of the one to the other.
ORIGINAL_NAMES = (
    ("pixel_level_module.encoder.", "backbone."),
    ("pixel_level_module.decoder.encoder.layers.", "sem_seg_head.pixel_decoder.transformer.encoder.layers."),
    ("pixel_level_module.decoder.level_embed", "sem_seg_head.pixel_decoder.transformer.level_embed"),
    ("pixel_level_module.decoder.", "sem_seg_head.pixel_decoder."),
    ("transformer_module.decoder.layernorm.", "sem_seg_head.predictor.decoder_norm."),
    ("transformer_module.queries_features.", "sem_seg_head.predictor.query_feat."),
    ("transformer_module.queries_embedder.", "sem_seg_head.predictor.query_embed."),
    ("transformer_module.", "sem_seg_head.predictor."),
    ("class_predictor.", "sem_seg_head.predictor.class_embed."),
    ("adapter_1.0.", "adapter_1."),
    ("adapter_1.1.", "adapter_1.norm."),
    ("layer_1.0.", "layer_1."),
    ("layer_1.1.", "layer_1.norm."),
    ("input_projections.", "input_proj."),
    ("mask_projection.", "mask_features."),
    ("decoder.mask_predictor.mask_embedder.0.0.", "mask_embed.layers.0."),
    ("decoder.mask_predictor.mask_embedder.1.0.", "mask_embed.layers.1."),
    ("decoder.mask_predictor.mask_embedder.2.0.", "mask_embed.layers.2."),
)


def mask2former() -> dict[str, torch.Tensor]:
    weights = {key.removeprefix("model."): value for key, value in mask2former_reference().state_dict().items()}
    renamed = {}
    for key, value in weights.items():
        for theirs, original in ORIGINAL_NAMES:
            key = key.replace(theirs, original)
        if ".transformer.encoder.layers." in key:
            for theirs, original in (
                ("self_attn_layer_norm", "norm1"),
                ("final_layer_norm", "norm2"),
                ("fc", "linear"),
            ):
                key = key.replace(theirs, original)
        if "predictor.decoder.layers." in key:
            head, _, rest = key.partition("decoder.layers.")
            number, _, rest = rest.partition(".")
            for theirs, original in (
                ("cross_attn_layer_norm", "transformer_cross_attention_layers.#.norm"),
                ("cross_attn", "transformer_cross_attention_layers.#.multihead_attn"),
                ("self_attn_layer_norm", "transformer_self_attention_layers.#.norm"),
                ("self_attn", "transformer_self_attention_layers.#.self_attn"),
                ("final_layer_norm", "transformer_ffn_layers.#.norm"),
                ("fc", "transformer_ffn_layers.#.linear"),
            ):
                if rest.startswith(theirs):
                    rest = original.replace("#", number) + rest[len(theirs) :]
                    break
            key = head + rest
        renamed[key] = value
    for key in [key for key in renamed if ".q_proj." in key and key.startswith("sem_seg_head.")]:
        parts = [renamed.pop(key.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        renamed[key.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return renamed


def fc_clip() -> dict[str, torch.Tensor]:
    trunk = {f"backbone.clip_model.{key}": value for key, value in convnext("open_clip")[1].items()}
    head = {key: value for key, value in mask2former().items() if key.startswith("sem_seg_head.")}
    names = (
        "backbone.clip_model.transformer.resblocks.0.ln_1.weight",
        "backbone.clip_model.positional_embedding",
        "sem_seg_head.predictor._mask_pooling_proj.0.weight",
        "sem_seg_head.predictor.logit_scale",
        "void_embedding.weight",
    )
    return {**trunk, **head, **{name: torch.ones(1, 3) for name in names}}


def hyperseg() -> dict[str, torch.Tensor]:
    """With a backbone of other widths, and the two biases that upstream lacks."""
    tensors = {}
    for key, value in mask2former().items():
        if key.startswith(("backbone.", "criterion.")) or "class_embed" in key:
            continue
        key = key.removeprefix("sem_seg_head.")
        for part in ("adapter_1", "layer_1"):
            key = key.replace(f"{part}.norm.", f"{part}.1.").replace(f"{part}.weight", f"{part}.0.weight")
        if ".input_proj." in key and value.ndim == 4 or "adapter_1.0.weight" in key:
            value = torch.cat([value, value], 1)
        tensors[key] = value
    extra = ("pixel_decoder.adapter_1.0.bias", "pixel_decoder.layer_1.0.bias", "predictor.SEG_query_embed.weight")
    extra += ("model.layers.0.mlp.fc1.weight", "lm_head.weight", "seg_query", "mgvp_layers.norm.weight")
    return {**tensors, **{key: torch.ones(32) for key in extra}}


CHECKPOINTS: dict[str, tuple[Any, dict[str, Any]]] = {  # case -> tensors, original configuration files
    "dualvitok": (dualvitok, {"vision_tower": {"num_heads": 4}}),
    "illume_plus": (
        illume_plus,
        {"vision_tower": {"num_heads": 4}, "language_model": golden("mllm_vision_a")["llm_config"]},
    ),
    "illume_plus_decoder": (
        illume_plus_decoder,
        {"unet": golden("decoder_a")["unet_config"], "vae": golden("decoder_a")["vae_config"]},
    ),
    "sdxl": (sdxl, sdxl_configs()),
    "qwen2_5": (qwen2_5, {"language_model": {**LANGUAGE, "tie_word_embeddings": True}}),
    "qwen2_5 untied": (lambda: qwen2_5(False), {"language_model": {**LANGUAGE, "tie_word_embeddings": False}}),
    "qwen2_vl_vision": (qwen2_vl_vision, {"vision_tower": {"num_heads": 2}}),
    "convnext_open_clip": (lambda: convnext("open_clip")[1], {}),
    "convnext_timm": (lambda: convnext("timm")[1], {}),
    "convnext_timm features": (lambda: convnext("timm features")[1], {}),
    "convnext_timm convolutions": (lambda: convnext("timm convolutions")[1], {}),
    "convnext_transformers": (lambda: convnext("transformers")[1], {}),
    "mask2former": (mask2former, {"mask_decoder": {"num_heads": 4}}),
    "mask2former_transformers": (
        lambda: dict(mask2former_reference().state_dict()),
        {"mask_decoder": {"num_heads": 4}},
    ),
    "fc_clip": (fc_clip, {"mask_decoder": {"num_heads": 4}}),
    "hyperseg": (hyperseg, {"mask_decoder": {"num_heads": 4}}),
}


def sizes_of(case: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, Any]]:
    return sizes_from(tensors, CHECKPOINTS[case][1], detect_family(tensors))
