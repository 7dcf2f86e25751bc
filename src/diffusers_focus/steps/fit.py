"""Whether components were made for each other: sizes that several of them must share, read from their configurations."""

from __future__ import annotations

from typing import Any


def check_fit(components: Any) -> None:
    """Raise ValueError where components were not made for each other; those that are None, or not there, are skipped."""
    part = {name: getattr(components, name, None) for name in _SIZES}
    known: dict[str, tuple[str, Any]] = {}
    for name, sizes in _SIZES.items():
        if part[name] is None:
            continue
        for meaning, read in sizes.items():
            value = read(part[name])
            if value is None:
                continue
            first, expected = known.setdefault(meaning, (name, value))
            if expected != value:
                raise ValueError(
                    f"{first} and {name} do not fit: {meaning} is {expected} in {first} and {value} in {name}. Load both from "
                    "the same checkpoint."
                )


def _latent_factor(vae: Any) -> int:
    return 2 ** (len(vae.config.block_out_channels) - 1)


# Component -> what it says about sizes that others must share.
_SIZES: dict[str, dict[str, Any]] = {
    "language_model": {
        "the language model's width": lambda m: m.config.hidden_size,
    },
    "vision_encoder": {
        "the language model's width": lambda m: m.config.language_hidden_size,
        "the feature maps' channels": lambda m: list(m.config.pyramid_channels) if m.config.pyramid_channels else None,
    },
    "visual_tokenizer": {
        "the width of the codes": lambda m: 2 * m.config.code_dim,
    },
    "mask_decoder": {
        "the language model's width": lambda m: m.config.language_hidden_size,
        "the feature maps' channels": lambda m: list(m.config.in_channels),
    },
    "mask_conditioner": {
        "the width of the codes": lambda m: m.config.code_channels,
        "the cross-attention's width": lambda m: m.config.cross_attention_dim,
        "the language model's width": lambda m: m.config.language_hidden_size if m.config.guidance_dim else None,
    },
    "unet": {
        "the width of the codes": lambda m: m.config.in_channels - m.config.out_channels,
        "the cross-attention's width": lambda m: m.config.cross_attention_dim,
        "channels of the latents": lambda m: m.config.out_channels,
    },
    "vae": {
        "channels of the latents": lambda m: m.config.latent_channels,
        "pixels per latent": _latent_factor,
    },
    "image_processor": {
        "pixels per latent": lambda m: m.vae_scale_factor,
    },
}
