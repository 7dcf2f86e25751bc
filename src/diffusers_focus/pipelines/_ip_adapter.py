"""IP-Adapters: pictures that steer the decoder through the UNet's cross-attention, beside visual tokens and masks. Zero-shot.

diffusers' `IPAdapterMixin` (Apache-2.0) loads the weights into the stock UNet; what a call does with them follows its
`StableDiffusionXLInpaintPipeline.prepare_ip_adapter_image_embeds`. An adapter (arXiv 2308.06721) adds an attention of its own over
the picture's tokens to each cross-attention, so the sequence with the mask in it stays what it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.embeddings import ImageProjection

from ..processing.images import load_image_any
from ..steps.denoise import ImagePrompts
from ._base import FocusPipelineMixin
from ._hub import import_quietly

if TYPE_CHECKING:
    from diffusers.loaders.ip_adapter import IPAdapterMixin
else:
    IPAdapterMixin = import_quietly("diffusers.loaders.ip_adapter").IPAdapterMixin


class FocusIPAdapterMixin(IPAdapterMixin, FocusPipelineMixin):
    """`load_ip_adapter`, `set_ip_adapter_scale`, `unload_ip_adapter`, and the pictures of a call."""

    def _image_prompts(
        self, image: Any, image_embeds: Any, *, guided: bool, device: torch.device
    ) -> ImagePrompts | None:
        """What the adapters of the UNet read in a call; None where it has no adapter.

        Args:
            image: one picture, or a list with one an adapter; a list in it holds several pictures for one adapter.
            image_embeds: in place of it a list with a tensor an adapter, [1, pictures, D] or [1, pictures, tokens, D]; with
                guidance [2, ...], the unconditional one first.
            guided: whether there is an unconditional branch.

        Raises:
            TypeError, ValueError: pictures without an adapter, an adapter without pictures, or what does not fit.
        """
        if image is not None and image_embeds is not None:
            raise ValueError("Both ip_adapter_image and ip_adapter_image_embeds were given. Pass one of them.")
        projection = getattr(self.unet, "encoder_hid_proj", None)
        adapters = list(getattr(projection, "image_projection_layers", ()))
        if image is None and image_embeds is None:
            if adapters:
                raise ValueError(
                    "An IP-Adapter is loaded, and there is no picture for it. Pass ip_adapter_image=..., or call "
                    "unload_ip_adapter()."
                )
            return None
        if not adapters:
            raise ValueError(
                "ip_adapter_image and ip_adapter_image_embeds need an IP-Adapter, and none is loaded. Call load_ip_adapter(...) "
                "first, with one for SDXL."
            )
        if image_embeds is None:
            pictures = image if isinstance(image, (list, tuple)) else [image]
            _check_number(len(pictures), len(adapters), "ip_adapter_image")
            self._require("reading ip_adapter_image", "image_encoder", "feature_extractor")
            both = [
                self._encode_prompt_image(one, not isinstance(layer, ImageProjection), device)
                for one, layer in zip(pictures, adapters)
            ]
            return ImagePrompts([one for one, _ in both], [other for _, other in both])
        if not isinstance(image_embeds, (list, tuple)) or not all(isinstance(x, torch.Tensor) for x in image_embeds):
            raise TypeError("ip_adapter_image_embeds must be a list of tensors, one for each IP-Adapter.")
        _check_number(len(image_embeds), len(adapters), "ip_adapter_image_embeds")
        rows = 2 if guided else 1
        for embeds in image_embeds:
            if embeds.ndim not in (3, 4) or len(embeds) != rows:
                raise ValueError(
                    f"ip_adapter_image_embeds holds a tensor of shape {list(embeds.shape)}; with{'' if guided else 'out'} guidance "
                    f"it must be [{rows}, pictures, D] or [{rows}, pictures, tokens, D]."
                )
        placed = [embeds.to(device) for embeds in image_embeds]
        return ImagePrompts([embeds[-1:] for embeds in placed], [embeds[:1] for embeds in placed])

    def _encode_prompt_image(self, image: Any, tokens: bool, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings [1, pictures, D] (with `tokens` [1, pictures, T, D]) of pictures, and those that stand for none."""
        images = [load_image_any(one) for one in (image if isinstance(image, (list, tuple)) else [image])]
        values = self.feature_extractor(images, return_tensors="pt").pixel_values
        values = values.to(device=device, dtype=self.image_encoder.dtype)
        if tokens:
            read = [self.image_encoder(x, output_hidden_states=True).hidden_states[-2] for x in (values, values * 0)]
            return read[0][None], read[1][None]
        embeds = self.image_encoder(values).image_embeds[None]
        return embeds, torch.zeros_like(embeds)


def _check_number(given: int, adapters: int, name: str) -> None:
    if given != adapters:
        raise ValueError(
            f"{name} has {given} entries for {adapters} IP-Adapters. Pass one for each; several pictures for one adapter are a "
            "list in the list."
        )
