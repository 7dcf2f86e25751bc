"""Blocks that make images of latents; an edit goes back into the picture it came from (FOCUS section "Mask-guided editing")."""

from __future__ import annotations

from typing import Any

from ..steps import composite
from ..steps.arguments import check_count, check_output_type
from ..steps.cropping import paste_back
from ..steps.denoise import decode_latents
from ..steps.joint_edits import unions
from ._step import FocusStep, read, write


class FocusDecodeStep(FocusStep):
    """`latents` of a generation -> `images`."""

    about = "Decodes latents into images."
    parts = ("vae",)
    reads = (read("latents", required=True), read("output_type"))
    writes = (write("images"),)

    def run(self, components: Any, block_state: Any) -> None:
        """Decode; output_type "latent" hands the latents through."""
        kind = check_output_type(block_state.output_type)
        if kind == "latent":
            block_state.images = block_state.latents
            return
        pictures = decode_latents(components.vae, block_state.latents)
        block_state.images = composite.to_output(composite.levels(pictures), kind)


class FocusEditDecodeStep(FocusStep):
    """`latents` of `edits` -> `images` at the size of their originals, whose pixels stay outside the soft edit masks."""

    about = "Decodes latents and puts the edits back into their images: outside the soft masks every pixel is the image's own."
    parts = ("vae", "image_processor")
    settings = ("mask_feather",)
    reads = (
        read("latents", required=True),
        read("image_encoding", required=True),
        read("edits", required=True),
        read("preserve_background"),
        read("mask_blur"),
        read("output_type"),
        read("whole"),
    )
    writes = (write("images"), write("image_encoding"))

    def run(self, components: Any, block_state: Any) -> None:
        """Decode, composite and paste back; output_type "latent" hands the latents through."""
        kind = check_output_type(block_state.output_type)
        if block_state.mask_blur is not None:
            check_count(block_state.mask_blur, "mask_blur", least=0)
        encoding, whole = block_state.image_encoding, block_state.whole
        if whole is not None:
            block_state.image_encoding = whole[0]
        if kind == "latent":
            block_state.images = block_state.latents
            return
        results = composite.composite_edits(
            components,
            encoding,
            *unions(block_state.edits, [one.mask for one in block_state.edits]),
            decode_latents(components.vae, block_state.latents),
            feather=components.config.mask_feather,
            mask_blur=block_state.mask_blur,
            preserve_background=block_state.preserve_background,
        )
        if whole is not None:
            results = paste_back(components, *whole, results)
        block_state.images = composite.to_output(results, kind)


class FocusKeepImageStep(FocusStep):
    """`edits` of nothing -> `images` as they were given."""

    about = "Returns the images as they are, where no pixel may change."
    parts = ("image_processor",)
    reads = (read("image_encoding", required=True), read("edits", required=True), read("output_type"))
    writes = (write("images"),)

    def run(self, components: Any, block_state: Any) -> None:
        """Return them."""
        images, _ = unions(block_state.edits, [one.mask for one in block_state.edits])
        own = composite.own_pixels(components, block_state.image_encoding, images)
        block_state.images = composite.to_output(own, check_output_type(block_state.output_type))
