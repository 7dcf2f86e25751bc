"""Diffusion decoders: ILLUME+'s (arXiv 2504.01934, Apache-2.0) and plain SDXL (CreativeML Open RAIL++-M).

Names are those of a diffusers folder, with the subfolder in front: `unet.conv_in.weight`, `vae.decoder.conv_in.weight`.
UNet and VAE are stock classes here too. ILLUME+'s UNet reads latents and both codes side by side (4 + 2 x 32 channels);
a plain SDXL gets zero weights for the codes, so that at first it sees the latents alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .table import Family, HasShape, Rule, shape_of

CODE_CHANNELS = 64  # both code widths together

# Attention of a VAE stored before diffusers 0.18 had 1x1-convolution names and sometimes shapes.
_OLD_VAE_NAMES = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
_VAE = tuple(
    Rule(
        f"vae.{half}.mid_block.attentions.#.{old}.{kind}", f"vae.{half}.mid_block.attentions.#.{new}.{kind}", operation
    )
    for half in ("encoder", "decoder")
    for old, new in _OLD_VAE_NAMES
    for kind, operation in (("weight", "reshape"), ("bias", "copy"))
)
_STOCK = (Rule("unet.", "unet."), Rule("vae.", "vae."), *_VAE)

ILLUME_PLUS_DECODER = Family(
    name="illume_plus_decoder",
    rules=_STOCK,
    evidence=(("unet.conv_in.weight", None), ("unet.add_embedding.linear_1.weight", None)),
)

SDXL = Family(
    name="sdxl",
    rules=(Rule("unet.conv_in.weight", "unet.conv_in.weight", "widen"), *_STOCK),
    dropped=(
        ("text_encoder.", "zeros stand where SDXL reads words"),
        ("text_encoder_2.", "zeros stand where SDXL reads words"),
    ),
    evidence=(("unet.conv_in.weight", (None, 4, None, None)), ("unet.add_embedding.linear_1.weight", None)),
)


def decoder_sizes(infos: Mapping[str, HasShape], configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Configurations of `unet` and `vae`, and of `scheduler` where it is given.

    Args:
        infos: The folder's tensors by name.
        configs: `unet`, `vae`, `scheduler`: the folder's config.json and scheduler_config.json files. Entries that start
            with "_" (class and versions) are left out.

    Raises:
        ValueError: A configuration is missing or contradicts the shapes.
    """
    sizes = {
        name: {key: value for key, value in configs[name].items() if not key.startswith("_")}
        for name in ("unet", "vae", "scheduler")
        if name in configs
    }
    for name in ("unet", "vae"):
        if name not in sizes and any(key.startswith(f"{name}.") for key in infos):
            raise ValueError(f"The {name}'s sizes are in its config.json; give its content as configs[{name!r}].")
    stored = shape_of(infos, "unet.conv_in.weight")[1]
    if sizes["unet"].get("in_channels", 4) != stored:
        raise ValueError(
            f"The UNet's config.json says in_channels={sizes['unet'].get('in_channels')}, its tensors {stored}."
        )
    return sizes


def sdxl_sizes(infos: Mapping[str, HasShape], configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """As `decoder_sizes`, with the UNet's input widened by `CODE_CHANNELS`."""
    sizes = decoder_sizes(infos, configs)
    sizes["unet"]["in_channels"] = shape_of(infos, "unet.conv_in.weight")[1] + CODE_CHANNELS
    return sizes
