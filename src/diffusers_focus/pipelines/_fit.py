"""Whether components were made for each other, by the sizes they name in their configurations."""

from __future__ import annotations

from typing import Any


def check_fit(pipeline: Any) -> None:
    """Raise ValueError where components were not made for each other; components that are None are skipped."""
    part = {name: getattr(pipeline, name, None) for name in _SIZES}
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
        "rows of the vocabulary": lambda m: None,
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
