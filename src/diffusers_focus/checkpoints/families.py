"""All families of checkpoints: which one a file is, and which sizes of ours hold it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from .backbones import (
    CONVNEXT_OPEN_CLIP,
    CONVNEXT_TIMM,
    CONVNEXT_TRANSFORMERS,
    QWEN2_5_VL_VISION,
    QWEN2_VL_VISION,
    pyramid_sizes,
    qwen2_vl_sizes,
)
from .decoder import ILLUME_PLUS_DECODER, SDXL, decoder_sizes, sdxl_sizes
from .dualvitok import DUALVITOK, dualvitok_sizes
from .illume import ILLUME_PLUS, QWEN2_5, illume_plus_sizes, qwen2_5_sizes
from .mask2former import FC_CLIP, HYPERSEG, MASK2FORMER, MASK2FORMER_TRANSFORMERS, mask_decoder_sizes
from .table import Family, HasShape, Rule

Sizes = dict[str, dict[str, Any]]


def _native(component: str, *evidence: str) -> Family:
    return Family(
        name=f"native {component}",
        rules=(Rule("", f"{component}."),),
        evidence=tuple((pattern, None) for pattern in evidence),
    )


# Dicts that have our names already pass through.
NATIVE = (
    _native("vision_encoder", "vit.patch_embed.proj.weight", "vision_projector.0.weight"),
    _native("visual_tokenizer", "semantic_encoder.proj_out.weight", "pixel_decoder.conv_in.weight"),
    _native("mask_decoder", "slot_projection.weight", "condition_head.bias"),
    _native("mask_conditioner", "mask_in.weight", "proj_out.weight"),
)

# The particular before the general: the first whose evidence is there is taken.
FAMILIES: tuple[Family, ...] = (
    *NATIVE,
    DUALVITOK,
    ILLUME_PLUS,
    QWEN2_5_VL_VISION,
    QWEN2_VL_VISION,
    QWEN2_5,
    SDXL,
    ILLUME_PLUS_DECODER,
    FC_CLIP,
    MASK2FORMER,
    MASK2FORMER_TRANSFORMERS,
    HYPERSEG,
    CONVNEXT_OPEN_CLIP,
    CONVNEXT_TIMM,
    CONVNEXT_TRANSFORMERS,
)

_SIZES: dict[str, Callable[[Mapping[str, HasShape], Mapping[str, Mapping[str, Any]]], Sizes]] = {
    DUALVITOK.name: lambda infos, configs: {"visual_tokenizer": dualvitok_sizes(infos, configs)},
    ILLUME_PLUS.name: illume_plus_sizes,
    QWEN2_VL_VISION.name: qwen2_vl_sizes,
    QWEN2_5.name: qwen2_5_sizes,
    SDXL.name: sdxl_sizes,
    ILLUME_PLUS_DECODER.name: decoder_sizes,
    **{
        family.name: partial(mask_decoder_sizes, family=family)
        for family in (FC_CLIP, MASK2FORMER, MASK2FORMER_TRANSFORMERS, HYPERSEG)
    },
    **{family.name: pyramid_sizes for family in (CONVNEXT_OPEN_CLIP, CONVNEXT_TIMM, CONVNEXT_TRANSFORMERS)},
}


def detect_family(infos: Mapping[str, HasShape]) -> Family:
    """Say what kind of checkpoint these tensors are, by names and shapes that only that kind has.

    Args:
        infos: Tensors by name; a diffusers folder's with the subfolder in front (`unet.conv_in.weight`).

    Raises:
        ValueError: No kind fits, or it is one that cannot be converted (the reason is given).
    """
    for family in FAMILIES:
        if family.find_prefix(infos) is not None:
            if family.refusal:
                raise ValueError(f"This is a checkpoint of the kind {family.name!r}: {family.refusal}")
            return family
    raise ValueError(
        f"These {len(infos)} tensors are no known kind of checkpoint; the first are {', '.join(list(infos)[:3])}. Known: "
        f"{', '.join(family.name for family in FAMILIES if not family.refusal)}."
    )


def sizes_from(
    infos: Mapping[str, HasShape], configs: Mapping[str, Mapping[str, Any]], family: Family | None = None
) -> Sizes:
    """Configurations of our components that hold a checkpoint, read from its shapes and its own configuration files.

    Args:
        infos: Tensors by name.
        configs: Contents of original configuration files: `language_model`, `vision_tower`, `unet`, `vae`, `scheduler`,
            `mask_decoder`, as far as the family needs them.
        family: Its family; by default it is detected.

    Returns:
        Component -> keyword arguments of its class (or of `Qwen2Config`); entries the checkpoint does not determine are
        absent.

    Raises:
        ValueError: A configuration is missing or contradicts the shapes; the family is native and needs none.
    """
    family = family or detect_family(infos)
    if family.name not in _SIZES:
        raise ValueError(f"Tensors of the kind {family.name!r} come with their own config.json; load that.")
    prefix = family.find_prefix(infos) or ""
    return _SIZES[family.name]({k.removeprefix(prefix): v for k, v in infos.items() if k.startswith(prefix)}, configs)
