"""Mask2Former-style weights -> FocusMaskDecoder: the original's and transformers' names, FC-CLIP, HyperSeg and PSALM.

Sources: Mask2Former (facebookresearch, MIT), transformers (Apache-2.0), FC-CLIP (bytedance, Apache-2.0), HyperSeg and PSALM
(Apache-2.0). Shared are the pixel decoder, the masked-attention layers, the query positions and the mask head. FOCUS takes
the contents of its queries from a language model and its classifier from the condition, so theirs are dropped. The
convolutions that read the backbone's levels fit only a backbone of the same widths (Swin-L's are ConvNeXt-L's); others
start anew, and so do query positions where the number of queries differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .backbones import CLIP_DROPPED, convnext_rules, pyramid_sizes
from .table import Family, HasShape, Rule, numbers, shape_of

_OURS = "mask_decoder."
_QKV = "{q,k,v}_proj"
NUM_LEVELS = 3


def _rules(pixels: str, queries: str, table: tuple[tuple[str, str, str], ...]) -> tuple[Rule, ...]:
    """Rules of (their name, our name, operation), where "P:" and "Q:" stand for the two halves of their model."""
    return tuple(
        Rule(theirs.replace("P:", pixels).replace("Q:", queries), _OURS + ours, operation)
        for theirs, ours, operation in table
    )


def _stacked(theirs: str, ours: str) -> tuple[tuple[str, str, str], ...]:
    """The table of an attention whose query, key and value projections are one tensor on their side."""
    return (
        (f"{theirs}in_proj_weight", f"{ours}{_QKV}.weight", "split"),
        (f"{theirs}in_proj_bias", f"{ours}{_QKV}.bias", "split"),
        (f"{theirs}out_proj.", f"{ours}out_proj.", "copy"),
    )


# What every original-style checkpoint shares; the two convolutions with a norm are named in two ways.
_ORIGINAL: tuple[tuple[str, str, str], ...] = (
    ("P:input_proj.#.0.weight", "pixel_decoder.input_projections.#.0.weight", "fit"),
    ("P:input_proj.#.0.bias", "pixel_decoder.input_projections.#.0.bias", "copy"),
    ("P:input_proj.#.1.", "pixel_decoder.input_projections.#.1.", "copy"),
    ("P:transformer.level_embed", "pixel_decoder.level_embed.weight", "copy"),
    ("P:transformer.encoder.layers.#.self_attn.", "pixel_decoder.layers.#.attention.", "copy"),
    ("P:transformer.encoder.layers.#.norm1.", "pixel_decoder.layers.#.attention_norm.", "copy"),
    ("P:transformer.encoder.layers.#.linear1.", "pixel_decoder.layers.#.ffn.0.", "copy"),
    ("P:transformer.encoder.layers.#.linear2.", "pixel_decoder.layers.#.ffn.2.", "copy"),
    ("P:transformer.encoder.layers.#.norm2.", "pixel_decoder.layers.#.ffn_norm.", "copy"),
    ("P:mask_features.", "pixel_decoder.mask_projection.", "copy"),
    ("Q:level_embed.weight", "level_embed.weight", "copy"),
    ("Q:query_embed.weight", "query_embed.weight", "fit"),
    *_stacked("Q:transformer_cross_attention_layers.#.multihead_attn.", "layers.#.cross_attention."),
    ("Q:transformer_cross_attention_layers.#.norm.", "layers.#.cross_attention_norm.", "copy"),
    *_stacked("Q:transformer_self_attention_layers.#.self_attn.", "layers.#.self_attention."),
    ("Q:transformer_self_attention_layers.#.norm.", "layers.#.self_attention_norm.", "copy"),
    ("Q:transformer_ffn_layers.#.linear1.", "layers.#.ffn.0.", "copy"),
    ("Q:transformer_ffn_layers.#.linear2.", "layers.#.ffn.2.", "copy"),
    ("Q:transformer_ffn_layers.#.norm.", "layers.#.ffn_norm.", "copy"),
    ("Q:decoder_norm.", "norm.", "copy"),
    ("Q:mask_embed.layers.0.", "mask_head.0.", "copy"),
    ("Q:mask_embed.layers.1.", "mask_head.2.", "copy"),
    ("Q:mask_embed.layers.2.", "mask_head.4.", "copy"),
)
_NORM_INSIDE: tuple[tuple[str, str, str], ...] = (  # detectron2's convolution owns its norm
    ("P:adapter_1.weight", "pixel_decoder.lateral.0.weight", "fit"),
    ("P:adapter_1.norm.", "pixel_decoder.lateral.1.", "copy"),
    ("P:layer_1.weight", "pixel_decoder.merge.0.weight", "copy"),
    ("P:layer_1.norm.", "pixel_decoder.merge.1.", "copy"),
)
_NORM_BESIDE: tuple[tuple[str, str, str], ...] = (  # a sequence of convolution and norm
    ("P:adapter_1.0.weight", "pixel_decoder.lateral.0.weight", "fit"),
    ("P:adapter_1.1.", "pixel_decoder.lateral.1.", "copy"),
    ("P:layer_1.0.weight", "pixel_decoder.merge.0.weight", "copy"),
    ("P:layer_1.1.", "pixel_decoder.merge.1.", "copy"),
)
_TRANSFORMERS: tuple[tuple[str, str, str], ...] = (
    ("P:input_projections.#.0.weight", "pixel_decoder.input_projections.#.0.weight", "fit"),
    ("P:input_projections.#.0.bias", "pixel_decoder.input_projections.#.0.bias", "copy"),
    ("P:input_projections.#.1.", "pixel_decoder.input_projections.#.1.", "copy"),
    ("P:level_embed", "pixel_decoder.level_embed.weight", "copy"),
    ("P:encoder.layers.#.self_attn.", "pixel_decoder.layers.#.attention.", "copy"),
    ("P:encoder.layers.#.self_attn_layer_norm.", "pixel_decoder.layers.#.attention_norm.", "copy"),
    ("P:encoder.layers.#.fc1.", "pixel_decoder.layers.#.ffn.0.", "copy"),
    ("P:encoder.layers.#.fc2.", "pixel_decoder.layers.#.ffn.2.", "copy"),
    ("P:encoder.layers.#.final_layer_norm.", "pixel_decoder.layers.#.ffn_norm.", "copy"),
    *_NORM_BESIDE,
    ("P:mask_projection.", "pixel_decoder.mask_projection.", "copy"),
    ("Q:level_embed.weight", "level_embed.weight", "copy"),
    ("Q:queries_embedder.weight", "query_embed.weight", "fit"),
    *_stacked("Q:decoder.layers.#.cross_attn.", "layers.#.cross_attention."),
    ("Q:decoder.layers.#.cross_attn_layer_norm.", "layers.#.cross_attention_norm.", "copy"),
    ("Q:decoder.layers.#.self_attn.", "layers.#.self_attention.", "copy"),
    ("Q:decoder.layers.#.self_attn_layer_norm.", "layers.#.self_attention_norm.", "copy"),
    ("Q:decoder.layers.#.fc1.", "layers.#.ffn.0.", "copy"),
    ("Q:decoder.layers.#.fc2.", "layers.#.ffn.2.", "copy"),
    ("Q:decoder.layers.#.final_layer_norm.", "layers.#.ffn_norm.", "copy"),
    ("Q:decoder.layernorm.", "norm.", "copy"),
    ("Q:decoder.mask_predictor.mask_embedder.0.0.", "mask_head.0.", "copy"),
    ("Q:decoder.mask_predictor.mask_embedder.1.0.", "mask_head.2.", "copy"),
    ("Q:decoder.mask_predictor.mask_embedder.2.0.", "mask_head.4.", "copy"),
)

_BACKBONE = "its backbone; ours is the vision encoder's ConvNeXt"
_CONTENTS = "query contents come from the language model here"
_CLASSES = "the condition is the classifier here"
_LOSS = "part of the training loss"
_PIXELS, _QUERIES = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
_HEAD_DROPPED = (
    (_QUERIES + "query_feat.", _CONTENTS),
    (_QUERIES + "static_query.", _CONTENTS),  # its name in older checkpoints
    (_QUERIES + "class_embed.", _CLASSES),
    ("criterion.", _LOSS),
)

MASK2FORMER = Family(
    name="mask2former",
    rules=_rules(_PIXELS, _QUERIES, _ORIGINAL + _NORM_INSIDE),
    dropped=(("backbone.", _BACKBONE), *_HEAD_DROPPED),
    evidence=((_PIXELS + "adapter_1.weight", None), (_QUERIES + "decoder_norm.weight", None)),
)

MASK2FORMER_TRANSFORMERS = Family(
    name="mask2former_transformers",
    rules=_rules("pixel_level_module.decoder.", "transformer_module.", _TRANSFORMERS),
    prefixes=("model.", ""),
    dropped=(
        ("pixel_level_module.encoder.", _BACKBONE),
        ("transformer_module.queries_features.", _CONTENTS),
        ("class_predictor.", _CLASSES),
        ("criterion.", _LOSS),
    ),
    evidence=(
        ("pixel_level_module.decoder.adapter_1.0.weight", None),
        ("transformer_module.decoder.layernorm.weight", None),
    ),
)

_CLIP = "backbone.clip_model."
FC_CLIP = Family(
    name="fc_clip",
    rules=(*convnext_rules(_CLIP + "visual.trunk."), *MASK2FORMER.rules),
    dropped=(
        *((_CLIP + pattern, reason) for pattern, reason in CLIP_DROPPED),
        *_HEAD_DROPPED,
        (_QUERIES + "_mask_pooling_proj.", _CLASSES),
        (_QUERIES + "logit_scale", _CLASSES),
        ("void_embedding.weight", _CLASSES),
    ),
    evidence=((_CLIP + "visual.trunk.stem.0.weight", None), (_PIXELS + "adapter_1.weight", None)),
)

_HYPERSEG_HEADS = (
    "SEG_query_embed",
    "box_embed",
    "iou_head",
    "reid_embed_head",
    "SEG_proj",
    "CLASS_proj",
    "REGION_proj",
)
_HYPERSEG_PARTS = (
    "temporal_query_project",
    "expanded_seg_query_project",
    "seg_query_projector",
    "SEG_token_projector",
    "class_name_projector",
    "region_projector",
    "local_project",
    "level_embed",
    "mgvp_layers",
)
HYPERSEG = Family(  # and PSALM, of the same lineage
    name="hyperseg",
    rules=_rules("pixel_decoder.", "predictor.", _ORIGINAL + _NORM_BESIDE),
    dropped=(
        # HyperSeg's are not Mask2Former's here: with these biases, and a ReLU behind the first norm.
        ("pixel_decoder.adapter_1.0.bias", "ours has neither this bias nor a ReLU behind its norm: other outputs"),
        ("pixel_decoder.layer_1.0.bias", "ours has no bias before this norm: other outputs"),
        ("predictor.query_feat.", _CONTENTS),
        ("predictor.class_embed.", _CLASSES),
        *((f"predictor.{head}.", "reads the original's own queries and conditions") for head in _HYPERSEG_HEADS),
        ("model.", "its language model and vision towers"),
        ("lm_head.", "its language model and vision towers"),
        *((f"{part}.", "belongs to its language model") for part in _HYPERSEG_PARTS),
        ("seg_query", "belongs to its language model"),
        ("temporal_query", "belongs to its language model"),
        ("criterion.", _LOSS),
    ),
    evidence=(("pixel_decoder.adapter_1.0.weight", None), ("predictor.decoder_norm.weight", None)),
)


def mask_decoder_sizes(
    infos: Mapping[str, HasShape], configs: Mapping[str, Mapping[str, Any]], family: Family
) -> dict[str, dict[str, Any]]:
    """Configuration of `mask_decoder` that holds these weights, without `in_channels` and `language_hidden_size`.

    Args:
        infos: Tensors by name, without prefix.
        configs: `mask_decoder` may hold `num_heads`, which no shape tells (Mask2Former's 8 otherwise).
        family: One of this file's.

    Returns:
        `mask_decoder`, and for FC-CLIP the pyramid's part of `vision_encoder`.

    Raises:
        ValueError: A tensor is missing.
    """
    at = {rule.ours: rule.original for rule in reversed(family.rules)}

    def shape(ours: str) -> tuple[int, ...]:
        """Shape of one of our tensors in the source; a rule ending in "." gives its `weight`."""
        whole = at.get(_OURS + ours)
        return shape_of(infos, (whole or at[_OURS + ours.removesuffix("weight")] + "weight").replace("#", "0"))

    heads = configs.get("mask_decoder", {}).get("num_heads", 8)
    offsets = at[_OURS + "pixel_decoder.layers.#.attention."].replace("#", "0") + "sampling_offsets.weight"
    sizes = {
        "hidden_dim": shape("norm.weight")[0],
        "mask_dim": shape("pixel_decoder.mask_projection.weight")[0],
        "num_heads": heads,
        "encoder_layers": numbers(infos, at[_OURS + "pixel_decoder.layers.#.ffn_norm."]),
        "decoder_layers": numbers(infos, at[_OURS + "layers.#.ffn_norm."]),
        "encoder_ffn_dim": shape("pixel_decoder.layers.#.ffn.0.weight")[0],
        "decoder_ffn_dim": shape("layers.#.ffn.0.weight")[0],
        "num_slots": shape("query_embed.weight")[0],
        "num_points": shape_of(infos, offsets)[0] // (heads * NUM_LEVELS * 2),
    }
    result = {"mask_decoder": sizes}
    if family is FC_CLIP:
        trunk = _CLIP + "visual.trunk."
        result |= pyramid_sizes({k.removeprefix(trunk): v for k, v in infos.items() if k.startswith(trunk)}, configs)
    return result
