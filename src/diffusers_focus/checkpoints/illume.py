"""Language models: ILLUME+'s (arXiv 2504.01934, Apache-2.0), with the vision tower and projectors it carries, and Qwen2.5.

Both are stock Qwen2 inside, so most of the tables is prefixes. ILLUME+'s checkpoint holds its own, fine-tuned copies of the
tokenizer's vision tower and pixel encoder; ours keeps them in the vision encoder, apart from the tokenizer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .dualvitok import movq_sizes, vit_sizes
from .table import Family, HasShape, Rule, numbers, shape_of

# Rows ILLUME+ appends to Qwen2.5's table: 5 markers + 2 ends + 32 size tags + 32,768 semantic and 98,304 pixel codes.
VISUAL_ROWS = 131_111

# Settings of FocusVisionEncoder for an original without our parts: it then reads exactly what the original read.
WITHOUT_NEW_PARTS: dict[str, Any] = {"pyramid_channels": None, "num_query_tokens": 0, "region_slots": False}

_TIES = (("lm_head.weight", "model.embed_tokens.weight"),)
_BUFFERS = (("model.layers.#.self_attn.rotary_emb.inv_freq", "computed, not stored"),)

ILLUME_PLUS = Family(
    name="illume_plus",
    rules=(
        Rule("model.vision_tower.semantic_encoder.", "vision_encoder.vit."),
        Rule("model.vision_tower.pixel_encoder.", "vision_encoder.pixel_tower."),
        Rule("model.mm_projector.projector_1.", "vision_encoder.vision_projector."),
        Rule("model.mm_projector.projector_2.", "vision_encoder.pixel_projector."),
        Rule("model.embed_tokens.weight", "language_model.model.embed_tokens.weight"),
        Rule("model.layers.", "language_model.model.layers."),
        Rule("model.norm.", "language_model.model.norm."),
        Rule("lm_head.weight", "language_model.lm_head.weight"),
    ),
    ties=_TIES,
    dropped=_BUFFERS,
    evidence=(
        ("model.vision_tower.semantic_encoder.patch_embed.proj.weight", None),
        ("model.mm_projector.projector_1.0.weight", (None, None)),
        ("model.embed_tokens.weight", (None, None)),
    ),
)

QWEN2_5 = Family(
    name="qwen2_5",
    rules=(
        Rule("model.embed_tokens.weight", "language_model.model.embed_tokens.weight", "add_rows"),
        Rule("model.layers.", "language_model.model.layers."),
        Rule("model.norm.", "language_model.model.norm."),
        Rule("lm_head.weight", "language_model.lm_head.weight", "add_rows"),
    ),
    ties=_TIES,
    dropped=_BUFFERS,
    evidence=(
        ("model.embed_tokens.weight", (None, None)),
        ("model.layers.#.self_attn.q_proj.bias", (None,)),
        ("model.layers.#.mlp.gate_proj.weight", (None, None)),
    ),
)

# What `Qwen2Config` and an original config.json share; the rest of the latter is about loading the original.
_LANGUAGE_KEYS = (
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_parameters",
    "hidden_act",
    "initializer_range",
    "attention_dropout",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "pad_token_id",
)
_TOKEN_KEYS = ("bos_token_id", "eos_token_id")


def illume_plus_sizes(
    infos: Mapping[str, HasShape], configs: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Configurations of `language_model` and `vision_encoder`.

    The second holds what the original determines; add `WITHOUT_NEW_PARTS` to it, or the sizes of our own parts.

    Args:
        infos: The checkpoint's tensors by name.
        configs: `language_model`: the original config.json. `vision_tower`: see `vit_sizes`.

    Raises:
        ValueError: The configuration is missing or contradicts the shapes.
    """
    tower = "model.vision_tower."
    encoder = movq_sizes(infos, f"{tower}pixel_encoder.")
    return {
        "language_model": language_model_sizes(infos, configs),
        "vision_encoder": {
            "vision_tower": vit_sizes(infos, f"{tower}semantic_encoder.", configs.get("vision_tower", {})),
            "language_hidden_size": shape_of(infos, "model.mm_projector.projector_1.0.weight")[0],
            "pixel_feature_dim": encoder["z_channels"],
            "pixel_encoder": encoder,
        },
    }


def qwen2_5_sizes(infos: Mapping[str, HasShape], configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Configuration of `language_model` with `VISUAL_ROWS` more rows than the checkpoint's table; see
    `language_model_sizes`.
    """
    sizes = language_model_sizes(infos, configs)
    return {"language_model": {**sizes, "vocab_size": sizes["vocab_size"] + VISUAL_ROWS}}


def language_model_sizes(infos: Mapping[str, HasShape], configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Configuration of a stock Qwen2, for `Qwen2Config`.

    The table's rows are those that are stored. Word table and head are tied where only one is stored or the original's
    configuration says so.

    Args:
        infos: Tensors by name.
        configs: `language_model`: the original config.json, which alone knows heads, norms and positions.

    Raises:
        ValueError: The configuration is missing or contradicts the shapes.
    """
    rows, hidden = shape_of(infos, "model.embed_tokens.weight")
    sizes: dict[str, Any] = {
        "hidden_size": hidden,
        "num_hidden_layers": numbers(infos, "model.layers.#."),
        "intermediate_size": shape_of(infos, "model.layers.0.mlp.gate_proj.weight")[0],
    }
    config = configs.get("language_model", {})
    if "num_attention_heads" not in config:
        raise ValueError(
            "Heads, norms and positions of a language model are in its config.json only; give its content as "
            "configs['language_model']."
        )
    wrong = [
        f"{key} {config[key]} (tensors: {value})" for key, value in sizes.items() if config.get(key, value) != value
    ]
    if wrong:
        raise ValueError(f"config.json contradicts the tensors in {len(wrong)} sizes: {', '.join(wrong[:3])}.")
    known = {key: config[key] for key in _LANGUAGE_KEYS if config.get(key) is not None}
    tokens = {key: config[key] for key in _TOKEN_KEYS if key in config}
    tied = "lm_head.weight" not in infos or bool(config.get("tie_word_embeddings", False))
    return {**sizes, "vocab_size": rows, "tie_word_embeddings": tied, **known, **tokens}
