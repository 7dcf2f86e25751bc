"""What the pipelines share: checking components, encoding images."""

from __future__ import annotations

from typing import Any

import torch

from ..steps import encode


class FocusPipelineMixin:
    """Mixed into a `DiffusionPipeline` with FOCUS components."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """diffusers' own, in float32 unless `dtype` (or `torch_dtype`) says otherwise.

        transformers loads a language model in the dtype it was saved in, diffusers loads everything else in float32; published
        weights are float16, so without this the parts would not fit together.
        """
        if "dtype" not in kwargs and "torch_dtype" not in kwargs:
            kwargs["dtype"] = torch.float32
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def _require(self, purpose: str, *names: str) -> None:
        """Raise ValueError unless these components are there."""
        missing = [name for name in names if getattr(self, name, None) is None]
        if missing:
            raise ValueError(
                f"This pipeline has no {', '.join(missing)}, which {purpose} needs. Load a pipeline that has it, or pass it: "
                f"{type(self).__name__}.from_pretrained(..., {missing[0]}=...)."
            )

    @torch.no_grad()
    def encode_image(self, image: Any) -> encode.FocusImageEncoding:
        """Encode images once for any number of questions, masks and edits.

        Args:
            image: an image (PIL, path, numpy array, torch tensor), a list of them (a batch), or a list of lists (several
                images in one prompt). An encoding is returned as it is.

        Raises:
            TypeError, ValueError, FileNotFoundError: not an image, no pixels, NaN, or a missing component.
        """
        if not isinstance(image, encode.FocusImageEncoding):
            self._require("reading an image", "image_processor", "vision_encoder")
            if self.vision_encoder.pixel_tower is None:
                self._require("reading an image", "visual_tokenizer")
        return encode.encode_image(self, image, device=self._execution_device)


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
