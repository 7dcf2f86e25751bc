"""Vision backbones: Qwen2-VL's tower (Apache-2.0) and ConvNeXt (MIT; OpenCLIP's and timm's weights: MIT, Apache-2.0).

The tower is transformers' own class here, so its names are only re-prefixed. The pyramid is transformers' ConvNeXt read
before its output norms; published weights come in three styles of names. Key facts: timm, open_clip, transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .dualvitok import vit_sizes
from .table import Family, HasShape, Rule, numbers, shape_of

_PYRAMID = "vision_encoder.pyramid."

QWEN2_VL_VISION = Family(
    name="qwen2_vl_vision",
    rules=tuple(Rule(f"{part}.", f"vision_encoder.vit.{part}.") for part in ("patch_embed", "blocks", "merger")),
    prefixes=("visual.", "model.visual.", "model.", ""),
    dropped=(
        ("model.", "Qwen2-VL's language model; only the vision tower is taken"),
        ("lm_head.", "Qwen2-VL's language model; only the vision tower is taken"),
        ("rotary_pos_emb.inv_freq", "computed, not stored"),
    ),
    evidence=(
        ("patch_embed.proj.weight", (None,) * 5),
        ("blocks.#.mlp.fc1.weight", (None, None)),
        ("merger.ln_q.bias", (None,)),
    ),
)

QWEN2_5_VL_VISION = Family(
    name="qwen2_5_vl_vision",
    rules=(),
    prefixes=QWEN2_VL_VISION.prefixes,
    evidence=(("patch_embed.proj.weight", (None,) * 5), ("blocks.#.mlp.gate_proj.weight", (None, None))),
    refusal=(
        "Qwen2.5-VL's vision tower has RMS norms, gated three-layer MLPs and windowed attention; ours is Qwen2-VL's (layer "
        "norms, two-layer MLPs, full attention) and cannot hold it. Take the tower of Qwen/Qwen2-VL-7B-Instruct, or the "
        "one inside an ILLUME+ checkpoint."
    ),
)


def convnext_rules(prefix: str = "") -> tuple[Rule, ...]:
    """The table from timm's names, behind `prefix`, to the pyramid's. timm's `features_only` models write `stages_0`."""
    pairs = (
        ("stem.0.", "embeddings.patch_embeddings.", "copy"),
        ("stem.1.", "embeddings.layernorm.", "copy"),
        ("stages.#.downsample.#.", "encoder.stages.#.downsampling_layer.#.", "copy"),
        ("stages.#.blocks.#.conv_dw.", "encoder.stages.#.layers.#.dwconv.", "copy"),
        ("stages.#.blocks.#.norm.", "encoder.stages.#.layers.#.layernorm.", "copy"),
        # 1x1 convolutions in timm's `conv_mlp` variants.
        ("stages.#.blocks.#.mlp.fc1.weight", "encoder.stages.#.layers.#.pwconv1.weight", "reshape"),
        ("stages.#.blocks.#.mlp.fc1.bias", "encoder.stages.#.layers.#.pwconv1.bias", "copy"),
        ("stages.#.blocks.#.mlp.fc2.weight", "encoder.stages.#.layers.#.pwconv2.weight", "reshape"),
        ("stages.#.blocks.#.mlp.fc2.bias", "encoder.stages.#.layers.#.pwconv2.bias", "copy"),
        ("stages.#.blocks.#.gamma", "encoder.stages.#.layers.#.layer_scale_parameter", "copy"),
    )
    flat = [(theirs.replace("stem.", "stem_").replace("stages.", "stages_"), ours, op) for theirs, ours, op in pairs]
    return tuple(Rule(prefix + theirs, _PYRAMID + ours, op) for theirs, ours, op in (*pairs, *flat))


# The words' half of a CLIP model, and the image's last layers, by OpenCLIP's names.
CLIP_DROPPED = tuple(
    (pattern, "CLIP's text encoder")
    for pattern in ("transformer.", "token_embedding.", "ln_final.", "positional_embedding", "text_projection", "text.")
) + tuple(
    (pattern, "CLIP's comparison of image and text")
    for pattern in ("attn_mask", "logit_scale", "logit_bias", "visual.head.", "visual.trunk.head.")
)

CONVNEXT_OPEN_CLIP = Family(
    name="convnext_open_clip",
    rules=convnext_rules(),
    prefixes=("visual.trunk.",),
    dropped=(*CLIP_DROPPED, ("head.", "CLIP's comparison of image and text")),
    evidence=(("stem.0.weight", (None,) * 4), ("stages.#.blocks.#.gamma", (None,))),
)

CONVNEXT_TIMM = Family(
    name="convnext_timm",
    rules=convnext_rules(),
    prefixes=("", "_backbone."),
    dropped=(("head.", "the classifier"), ("norm_pre.", "the classifier")),
    evidence=(("stages{.,_}#.blocks.#.conv_dw.weight", (None,) * 4),),
)

CONVNEXT_TRANSFORMERS = Family(
    name="convnext_transformers",
    rules=(Rule("embeddings.", _PYRAMID + "embeddings."), Rule("encoder.", _PYRAMID + "encoder.")),
    prefixes=("convnext.", "", "model."),
    dropped=(
        ("layernorm.", "the classifier's norm"),
        ("classifier.", "the classifier"),
        ("hidden_states_norms.", "the pyramid is read before output norms"),
    ),
    evidence=(
        ("embeddings.patch_embeddings.weight", (None,) * 4),
        ("encoder.stages.#.layers.#.dwconv.weight", (None,) * 4),
    ),
)


def qwen2_vl_sizes(
    infos: Mapping[str, HasShape], configs: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The `vision_tower` of `vision_encoder`.

    Args:
        infos: Tensors by name, without prefix.
        configs: `vision_tower`: the original's vision configuration (see `vit_sizes`).

    Raises:
        ValueError: As `vit_sizes`.
    """
    return {"vision_encoder": {"vision_tower": vit_sizes(infos, "", configs.get("vision_tower", {}))}}


def pyramid_sizes(infos: Mapping[str, HasShape], configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The `pyramid_depths` and `pyramid_channels` of `vision_encoder`, from names in any of the three styles.

    Raises:
        ValueError: A tensor is missing.
    """
    style = next((s for s in _STYLES if numbers(infos, s[0].replace("@", "#"))), None)
    if style is None:
        raise ValueError(f"None of {len(infos)} tensors is a ConvNeXt stage's; first: {list(infos)[:3]}.")
    stage, blocks, scale = style
    count = numbers(infos, stage.replace("@", "#"))
    depths = [numbers(infos, blocks.replace("@", str(i))) for i in range(count)]
    channels = [shape_of(infos, scale.replace("@", str(i)))[0] for i in range(count)]
    return {"vision_encoder": {"pyramid_depths": depths, "pyramid_channels": channels}}


# (stage, block of a stage, a tensor as wide as the stage) in each style; @ is the stage.
_STYLES = (
    ("stages.@.", "stages.@.blocks.#.", "stages.@.blocks.0.gamma"),
    ("stages_@.", "stages_@.blocks.#.", "stages_@.blocks.0.gamma"),
    ("encoder.stages.@.", "encoder.stages.@.layers.#.", "encoder.stages.@.layers.0.layer_scale_parameter"),
)
