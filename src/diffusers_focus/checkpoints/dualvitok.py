"""The original visual tokenizer (ILLUME+ "DualViTok", arXiv 2504.01934, Apache-2.0): its key table and its sizes.

Every tensor keeps its shape, so converting is renaming; the published checkpoint has 999 tensors. The sizes of its two
parts that other checkpoints hold too, the Qwen2-VL tower and the MoVQ encoder, are read here for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .table import Family, HasShape, Rule, numbers, shape_of

# What the original code fixes without writing it into a checkpoint.
SEMANTIC_HEADS = 16
VIT_HEADS = {1280: 16}  # by width; the published tower
VIT_DEFAULTS = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3}

DUALVITOK = Family(
    name="dualvitok",
    rules=(
        Rule("semantic_encoder.model.", "visual_tokenizer.vit."),
        Rule("semantic_encoder.proj_in.", "visual_tokenizer.semantic_encoder.proj_in."),
        Rule("semantic_encoder.blocks.", "visual_tokenizer.semantic_encoder.blocks."),
        Rule("semantic_encoder.proj_out.0.", "visual_tokenizer.semantic_encoder.proj_out."),
        Rule("semantic_quantizer.", "visual_tokenizer.semantic_quantizer."),
        Rule("semantic_decoder.proj_in.", "visual_tokenizer.semantic_decoder.proj_in."),
        Rule("semantic_decoder.blocks.", "visual_tokenizer.semantic_decoder.blocks."),
        Rule("semantic_decoder.proj_out.0.", "visual_tokenizer.semantic_decoder.proj_out."),
        Rule("semantic_decoder.proj_out.1.", "visual_tokenizer.semantic_decoder.norm_out."),
        Rule("pixel_encoder.", "visual_tokenizer.pixel_encoder."),
        Rule("pixel_quant_conv.", "visual_tokenizer.pixel_quant_conv."),
        Rule("pixel_quantizer.", "visual_tokenizer.pixel_quantizer."),
        Rule("pixel_post_quant_conv.", "visual_tokenizer.pixel_post_quant_conv."),
        Rule("pixel_decoder.", "visual_tokenizer.pixel_decoder."),
    ),
    evidence=(
        ("semantic_quantizer.frozen_codebook", (None, None)),
        ("pixel_quantizer.frozen_codebook", (None, None)),
        ("pixel_decoder.conv_in.weight", None),
    ),
)


def dualvitok_sizes(infos: Mapping[str, HasShape], configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Configuration of `visual_tokenizer`, with a tower of its own where the checkpoint has one.

    Args:
        infos: The checkpoint's tensors by name, without prefix.
        configs: `vision_tower`, with the tower's `num_heads`, if its width is not the published one.

    Raises:
        ValueError: The number of heads is not known, or a tensor is missing.
    """
    codes, dim = shape_of(infos, "semantic_quantizer.frozen_codebook")
    embed_dim, input_dim = shape_of(infos, "semantic_encoder.proj_in.weight")[:2]
    encoder = movq_sizes(infos, "pixel_encoder.")
    sizes: dict[str, Any] = {
        "code_dim": dim,
        "semantic_input_dim": input_dim,
        "semantic_embed_dim": embed_dim,
        "semantic_num_blocks": numbers(infos, "semantic_encoder.blocks.#."),
        "semantic_num_heads": SEMANTIC_HEADS,
        "semantic_codebook_size": codes,
        "pixel_channels": encoder["channels"],
        "pixel_decoder_channels": shape_of(infos, "pixel_decoder.conv_out.weight")[1] // encoder["channel_mult"][0],
        "pixel_channel_mult": encoder["channel_mult"],
        "pixel_num_res_blocks": encoder["num_res_blocks"],
        "pixel_attention_stages": encoder["attention_stages"],
        "pixel_codebook_size": shape_of(infos, "pixel_quantizer.frozen_codebook")[0],
        "norm_groups": 32,
    }
    if "semantic_encoder.model.patch_embed.proj.weight" in infos:
        sizes["vision_tower"] = vit_sizes(infos, "semantic_encoder.model.", configs.get("vision_tower", {}))
    return sizes


def vit_sizes(infos: Mapping[str, HasShape], prefix: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration of a Qwen2-VL vision tower (`build_vit`).

    Args:
        infos: Tensors by name.
        prefix: What stands before `patch_embed.` and `blocks.`.
        config: May hold `num_heads`, which no shape tells.

    Raises:
        ValueError: The number of heads is not known, or a tensor is missing.
    """
    embed_dim, channels, frames, patch, _ = shape_of(infos, f"{prefix}patch_embed.proj.weight")
    heads = config.get("num_heads", VIT_HEADS.get(embed_dim))
    if heads is None:
        raise ValueError(
            f"A vision tower of width {embed_dim} does not say how many heads it has; give its original configuration "
            "as configs['vision_tower'] with num_heads."
        )
    cells = shape_of(infos, f"{prefix}merger.mlp.0.weight")[1] // embed_dim
    found = {
        "patch_size": patch,
        "spatial_merge_size": math.isqrt(cells),
        "temporal_patch_size": frames,
        "in_channels": channels,
    }
    return {
        "depth": numbers(infos, f"{prefix}blocks.#."),
        "embed_dim": embed_dim,
        "hidden_size": shape_of(infos, f"{prefix}merger.mlp.2.weight")[0],
        "num_heads": heads,
        "mlp_ratio": shape_of(infos, f"{prefix}blocks.0.mlp.fc1.weight")[0] // embed_dim,
        **{key: value for key, value in found.items() if value != VIT_DEFAULTS[key]},
    }


def movq_sizes(infos: Mapping[str, HasShape], prefix: str) -> dict[str, Any]:
    """Configuration of a `MoVQEncoder`, without `norm_groups` (the original's 32 is its default).

    Raises:
        ValueError: A tensor is missing.
    """
    channels = shape_of(infos, f"{prefix}conv_in.weight")[0]
    stages = range(numbers(infos, f"{prefix}down.#."))
    widths = [shape_of(infos, f"{prefix}down.{stage}.block.0.conv1.weight")[0] for stage in stages]
    return {
        "channels": channels,
        "channel_mult": [width // channels for width in widths],
        "num_res_blocks": numbers(infos, f"{prefix}down.0.block.#."),
        "attention_stages": [stage for stage in stages if numbers(infos, f"{prefix}down.{stage}.attn.#.")],
        "z_channels": shape_of(infos, f"{prefix}conv_out.weight")[0],
    }
