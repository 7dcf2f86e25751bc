"""Mask2Former weights <-> `FocusMaskDecoder` weights: the key tables and the conversion of state dicts.

Two layouts of the same weights are known: `"transformers"` (Mask2FormerModel, or Mask2FormerForUniversalSegmentation
with its leading `model.`) and `"original"` (facebookresearch/Mask2Former, MIT, `sem_seg_head.*`).

Shared are the pixel decoder, the masked-attention layers, the query positions and the mask head. A Mask2Former has no
counterpart for what takes the queries from a language model (`slots`, `slot_projection`), nor for `condition_head`,
`edit_head`, `quality_head` and `instance_head`; FOCUS has none for the backbone, the learned query contents and the
class layer, which are reported as unused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

_HF_PIXELS = "pixel_level_module.decoder."
_HF_QUERIES = "transformer_module."
_PIXELS = "sem_seg_head.pixel_decoder."
_QUERIES = "sem_seg_head.predictor."

# (ours, theirs): beginnings of keys, `#` is a layer number. What follows the beginning is the same on both sides.
KEYS: dict[str, tuple[tuple[str, str], ...]] = {
    "transformers": (
        ("pixel_decoder.input_projections.", _HF_PIXELS + "input_projections."),
        ("pixel_decoder.level_embed.weight", _HF_PIXELS + "level_embed"),
        ("pixel_decoder.layers.#.attention.", _HF_PIXELS + "encoder.layers.#.self_attn."),
        ("pixel_decoder.layers.#.attention_norm.", _HF_PIXELS + "encoder.layers.#.self_attn_layer_norm."),
        ("pixel_decoder.layers.#.ffn.0.", _HF_PIXELS + "encoder.layers.#.fc1."),
        ("pixel_decoder.layers.#.ffn.2.", _HF_PIXELS + "encoder.layers.#.fc2."),
        ("pixel_decoder.layers.#.ffn_norm.", _HF_PIXELS + "encoder.layers.#.final_layer_norm."),
        ("pixel_decoder.lateral.", _HF_PIXELS + "adapter_1."),
        ("pixel_decoder.merge.", _HF_PIXELS + "layer_1."),
        ("pixel_decoder.mask_projection.", _HF_PIXELS + "mask_projection."),
        ("level_embed.weight", _HF_QUERIES + "level_embed.weight"),
        ("query_embed.weight", _HF_QUERIES + "queries_embedder.weight"),
        ("layers.#.cross_attention.", _HF_QUERIES + "decoder.layers.#.cross_attn."),
        ("layers.#.cross_attention_norm.", _HF_QUERIES + "decoder.layers.#.cross_attn_layer_norm."),
        ("layers.#.self_attention.", _HF_QUERIES + "decoder.layers.#.self_attn."),
        ("layers.#.self_attention_norm.", _HF_QUERIES + "decoder.layers.#.self_attn_layer_norm."),
        ("layers.#.ffn.0.", _HF_QUERIES + "decoder.layers.#.fc1."),
        ("layers.#.ffn.2.", _HF_QUERIES + "decoder.layers.#.fc2."),
        ("layers.#.ffn_norm.", _HF_QUERIES + "decoder.layers.#.final_layer_norm."),
        ("norm.", _HF_QUERIES + "decoder.layernorm."),
        ("mask_head.0.", _HF_QUERIES + "decoder.mask_predictor.mask_embedder.0.0."),
        ("mask_head.2.", _HF_QUERIES + "decoder.mask_predictor.mask_embedder.1.0."),
        ("mask_head.4.", _HF_QUERIES + "decoder.mask_predictor.mask_embedder.2.0."),
    ),
    "original": (
        ("pixel_decoder.input_projections.", _PIXELS + "input_proj."),
        ("pixel_decoder.level_embed.weight", _PIXELS + "transformer.level_embed"),
        ("pixel_decoder.layers.#.attention.", _PIXELS + "transformer.encoder.layers.#.self_attn."),
        ("pixel_decoder.layers.#.attention_norm.", _PIXELS + "transformer.encoder.layers.#.norm1."),
        ("pixel_decoder.layers.#.ffn.0.", _PIXELS + "transformer.encoder.layers.#.linear1."),
        ("pixel_decoder.layers.#.ffn.2.", _PIXELS + "transformer.encoder.layers.#.linear2."),
        ("pixel_decoder.layers.#.ffn_norm.", _PIXELS + "transformer.encoder.layers.#.norm2."),
        ("pixel_decoder.lateral.0.weight", _PIXELS + "adapter_1.weight"),
        ("pixel_decoder.lateral.1.", _PIXELS + "adapter_1.norm."),
        ("pixel_decoder.merge.0.weight", _PIXELS + "layer_1.weight"),
        ("pixel_decoder.merge.1.", _PIXELS + "layer_1.norm."),
        ("pixel_decoder.mask_projection.", _PIXELS + "mask_features."),
        ("level_embed.weight", _QUERIES + "level_embed.weight"),
        ("query_embed.weight", _QUERIES + "query_embed.weight"),
        ("layers.#.cross_attention.", _QUERIES + "transformer_cross_attention_layers.#.multihead_attn."),
        ("layers.#.cross_attention_norm.", _QUERIES + "transformer_cross_attention_layers.#.norm."),
        ("layers.#.self_attention.", _QUERIES + "transformer_self_attention_layers.#.self_attn."),
        ("layers.#.self_attention_norm.", _QUERIES + "transformer_self_attention_layers.#.norm."),
        ("layers.#.ffn.0.", _QUERIES + "transformer_ffn_layers.#.linear1."),
        ("layers.#.ffn.2.", _QUERIES + "transformer_ffn_layers.#.linear2."),
        ("layers.#.ffn_norm.", _QUERIES + "transformer_ffn_layers.#.norm."),
        ("norm.", _QUERIES + "decoder_norm."),
        ("mask_head.0.", _QUERIES + "mask_embed.layers.0."),
        ("mask_head.2.", _QUERIES + "mask_embed.layers.1."),
        ("mask_head.4.", _QUERIES + "mask_embed.layers.2."),
    ),
}

# Attentions that are nn.MultiheadAttention on their side: query, key and value projections stacked in one tensor.
STACKED: dict[str, tuple[str, ...]] = {
    "transformers": ("cross_attention",),
    "original": ("cross_attention", "self_attention"),
}


def from_mask2former(
    state_dict: Mapping[str, torch.Tensor], layout: str = "transformers"
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The part of a `FocusMaskDecoder` state dict that a Mask2Former checkpoint holds.

    Args:
        state_dict: the checkpoint's tensors by key. Values are passed on unchanged (stacked projections as views).
        layout: `"transformers"` or `"original"`.

    Returns:
        The tensors under our keys, to be loaded with `strict=False`, and the keys of the checkpoint that were not used.

    Raises:
        ValueError: if the layout is unknown or no key belongs to it.
    """
    table = [(theirs, ours) for ours, theirs in _table(layout)]
    converted: dict[str, torch.Tensor] = {}
    unused = []
    for key, value in state_dict.items():
        new_key = _rename(key.removeprefix("model.") if layout == "transformers" else key, table)
        if new_key is None:
            unused.append(key)
        elif ".in_proj_" in new_key:
            for name, part in zip("qkv", value.chunk(3)):
                converted[new_key.replace(".in_proj_", f".{name}_proj.")] = part
        else:
            converted[new_key] = value
    if not converted:
        other = next(name for name in KEYS if name != layout)
        raise ValueError(
            f"None of the {len(unused)} keys is a Mask2Former key in the {layout!r} layout (first: {unused[:3]}). "
            f"Try layout={other!r}, or strip the prefix the checkpoint adds."
        )
    return converted, unused


def to_mask2former(
    state_dict: Mapping[str, torch.Tensor], layout: str = "transformers"
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The inverse of `from_mask2former`.

    Returns:
        A mask decoder's shared weights under Mask2Former's keys (transformers' without the leading `model.`), and those
        of our keys that have no counterpart there.
    """
    table = list(_table(layout))
    converted: dict[str, torch.Tensor] = {}
    unused = []
    for key, value in state_dict.items():
        stacked = re.fullmatch(r"(layers\.\d+\.(\w+)\.)([qkv])_proj\.(weight|bias)", key)
        if stacked and stacked[2] in STACKED[layout]:
            if stacked[3] != "q":
                continue  # stacked when q comes by
            parts = [state_dict[f"{stacked[1]}{name}_proj.{stacked[4]}"] for name in "qkv"]
            key, value = f"{stacked[1]}in_proj_{stacked[4]}", torch.cat(parts)
        new_key = _rename(key, table)
        if new_key is None:
            unused.append(key)
        else:
            converted[new_key] = value
    return converted, unused


def _table(layout: str) -> tuple[tuple[str, str], ...]:
    if layout not in KEYS:
        raise ValueError(f"layout is {layout!r}; known layouts of Mask2Former weights are {sorted(KEYS)}.")
    return KEYS[layout]


def _rename(key: str, table: list[tuple[str, str]]) -> str | None:
    for source, target in table:
        match = re.match(re.escape(source).replace(r"\#", r"(\d+)"), key)
        if match:
            return target.replace("#", match[1] if match.groups() else "") + key[match.end() :]
    return None
