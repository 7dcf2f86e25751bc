"""Blocks between the place of an edit (or a description) and the denoising: visual tokens, schedule, latents, conditions.

FOCUS sections "Mask-guided editing" and "Diffusion decoder with mask guidance". Every block is a call of `steps/`, as in the
standard pipelines; names follow diffusers' modular SDXL (Apache-2.0).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ..processing.grids import decoded_size, latent_grid
from ..steps import composite, denoise
from ..steps.arguments import (
    as_list,
    check_count,
    check_numbers,
    check_strength,
    check_texts,
    generator_list,
    mask_list,
    token_resolution,
)
from ..steps.cropping import crop_edits
from ..steps.editing import drawing, edit_codes, edit_prompts, places_given, told, warn_untrained
from ..steps.encode import encode_image, single_images
from ..steps.joint_edits import edits_by_picture, nested, repeat_edits, unions, unnested
from ..steps.sketch import description_codes
from ._step import FocusStep, WithProgress, read, write

_DRAWING = ("generator", "token_guidance_scale", "temperature", "top_k", "top_p")
_DRAWING_SETTINGS = (
    "images_trained",
    "default_token_guidance_scale",
    "default_temperature",
    "default_top_k",
    "default_top_p",
    "pixel_code_sharpness",
)
_WRITING = ("language_model", "lm_tokenizer", "visual_tokenizer", "mask_conditioner", "image_processor")


class FocusEditInputStep(FocusStep):
    """Instructions and their `mask_image`, whoever made it -> `edits`, those of each result one after the other."""

    about = "Pairs instructions with their masks and repeats them for each result."
    parts = ("image_processor",)
    settings = ("edit_regions_trained",)
    reads = (
        read("image_encoding", required=True),
        read("prompt", required=True),
        read("region"),
        read("mask_image", required=True),
        read("masks"),
        read("num_images_per_prompt"),
        read("height"),
        read("width"),
    )
    writes = (write("edits"), write("edit_masks"), write("token_resolution"))

    def run(self, components: Any, block_state: Any) -> None:
        """Pair and repeat."""
        encoding = single_images(block_state.image_encoding, "An edit")
        repeats = check_count(block_state.num_images_per_prompt, "num_images_per_prompt")
        masks = mask_list(block_state.mask_image)
        if not places_given(masks):
            raise ValueError(
                "mask_image has no mask for some of the edits. A mask without any pixel says that nothing was found."
            )
        once = edit_prompts(
            components,
            encoding,
            block_state.prompt,
            components.config,
            region=block_state.region,
            mask_image=masks,
            masks_may_be_empty=True,
        )
        once_masks = [one.mask for one in once if one.mask is not None]
        about = unnested(block_state.masks or ())
        if len(about) == len(once):
            once = told(once, about)
        block_state.edits, _ = repeat_edits(once, once_masks, repeats)
        block_state.edit_masks = nested(once, once_masks)
        block_state.token_resolution = token_resolution(
            components.image_processor, block_state.height, block_state.width, encoding.size
        )


class FocusCropStep(FocusStep):
    """With `padding_mask_crop`, `edits` of `image_encoding` -> the same of the parts around them; `whole` is where they go back.

    Without it nothing changes.
    """

    about = "Cuts out the surroundings of edits, so that small things in large images are edited at full resolution."
    parts = ("vision_encoder", "visual_tokenizer", "image_processor")
    may_lack = ("visual_tokenizer",)  # as for `FocusImageEncoderStep`
    settings = ("mask_feather",)
    reads = (
        read("image_encoding", required=True),
        read("edits", required=True),
        read("token_resolution", required=True),
        read("padding_mask_crop"),
        read("mask_blur"),
    )
    writes = (write("image_encoding"), write("edits"), write("token_resolution"), write("whole"))

    def run(self, components: Any, block_state: Any) -> None:
        """Cut out and encode."""
        block_state.whole = None
        if block_state.padding_mask_crop is None:
            return
        padding = check_count(block_state.padding_mask_crop, "padding_mask_crop", least=0)
        whole, edits = block_state.image_encoding, block_state.edits
        if block_state.mask_blur is not None:
            check_count(block_state.mask_blur, "mask_blur", least=0)
        crops = crop_edits(
            components,
            whole,
            edits,
            [one.mask for one in edits],
            padding,
            encode=partial(encode_image, components, device=components._execution_device),
            feather=components.config.mask_feather,
            mask_blur=block_state.mask_blur,
        )
        images, _ = unions(edits, [one.mask for one in edits])
        block_state.whole = whole, images, crops.boxes
        block_state.image_encoding, block_state.edits = crops.encoding, crops.prompts
        block_state.token_resolution = crops.encoding.size


class FocusEditTokensStep(WithProgress, FocusStep):
    """`edits` of `image_encoding` -> `token_map`: visual tokens inside the masks are drawn, the others are the image's own."""

    about = "Writes the visual tokens of edited images; outside the edit masks they are the images' own."
    parts = ("vision_encoder", *_WRITING)
    may_lack = ("mask_conditioner",)
    settings = (*_DRAWING_SETTINGS, "kept_outline_token_guidance_scale")
    reads = (
        read("image_encoding", required=True),
        read("edits", required=True),
        *(read(name) for name in _DRAWING),
        read("limit_tokens"),
    )
    writes = (write("token_map"),)

    def run(self, components: Any, block_state: Any) -> None:
        """Write the tokens."""
        options = _drawing(self, components, block_state, len(edits_by_picture(block_state.edits)), edits=True)
        options["limited"] = block_state.limit_tokens
        masks = [one.mask for one in block_state.edits]
        codes = edit_codes(components, block_state.image_encoding, block_state.edits, masks, **options)
        block_state.token_map = denoise.token_map(components, *codes).to(components._execution_device)


class FocusGenerateTokensStep(WithProgress, FocusStep):
    """Descriptions -> `token_map` and `token_resolution`."""

    about = "Writes the visual tokens of images from descriptions."
    parts = ("vision_encoder", *_WRITING)
    may_lack = ("vision_encoder", "mask_conditioner")  # the first is for models that draw object by object
    settings = (*_DRAWING_SETTINGS, "description_sketch")
    reads = (
        read("prompt", required=True),
        read("height"),
        read("width"),
        read("num_images_per_prompt"),
        read("layout"),
        *(read(name) for name in _DRAWING),
    )
    writes = (write("token_map"), write("token_resolution"))

    def run(self, components: Any, block_state: Any) -> None:
        """Write the tokens."""
        check_texts(block_state.prompt, "prompt")
        repeats = check_count(block_state.num_images_per_prompt, "num_images_per_prompt")
        size = token_resolution(components.image_processor, block_state.height, block_state.width)
        texts = as_list(block_state.prompt, "prompt") or [block_state.prompt]
        descriptions = [text for text in texts for _ in range(repeats)]
        options = _drawing(self, components, block_state, len(descriptions))
        codes = description_codes(
            components,
            descriptions,
            size,
            components.config,
            layout=block_state.layout,
            repeats=repeats,
            decoded=decoded_size(*size, components.image_processor.decode_scale),
            device=components._execution_device,
            **options,
        )
        block_state.token_map = denoise.token_map(components, *codes).to(components._execution_device)
        block_state.token_resolution = size


def _drawing(
    block: WithProgress, components: Any, block_state: Any, results: int, *, edits: bool = False
) -> dict[str, Any]:
    warn_untrained(components.config)
    options = drawing(
        components.config,
        edits=edits,
        token_guidance_scale=block_state.token_guidance_scale,
        temperature=block_state.temperature,
        top_k=block_state.top_k,
        top_p=block_state.top_p,
    )
    return {
        **options,
        "generator": generator_list(block_state.generator, results),
        "start_tokens": block.token_bar,
    }


class FocusSetTimestepsStep(FocusStep):
    """The schedule of a generation -> `timesteps`."""

    about = "Sets the scheduler's timesteps."
    parts = ("scheduler",)
    settings = ("default_num_inference_steps",)
    reads = (read("num_inference_steps"), read("timesteps"), read("sigmas"))
    writes = (write("timesteps"),)

    def run(self, components: Any, block_state: Any) -> None:
        """Set them."""
        steps = block_state.num_inference_steps
        block_state.timesteps = denoise.prepare_timesteps(
            components.scheduler,
            components.config.default_num_inference_steps if steps is None else steps,
            components._execution_device,
            timesteps=block_state.timesteps,
            sigmas=block_state.sigmas,
            strength=self.strength(block_state),
        )

    def strength(self, block_state: Any) -> float:
        """The share of the schedule to run."""
        return 1.0


class FocusEditSetTimestepsStep(FocusSetTimestepsStep):
    """The schedule of an edit, of which `strength` is run -> `timesteps`."""

    about = "Sets the scheduler's timesteps, without those that strength leaves out."
    reads = (*FocusSetTimestepsStep.reads, read("strength"))

    def strength(self, block_state: Any) -> float:
        """The share of the schedule to run."""
        return check_strength(block_state.strength)


class FocusPrepareLatentsStep(FocusStep):
    """Noise for a generation -> `latents`."""

    about = "Prepares the latents a generation starts from."
    parts = ("unet", "scheduler", "image_processor")
    reads = (
        read("token_map", required=True),
        read("token_resolution", required=True),
        read("timesteps", required=True),
        read("latents"),
        read("generator"),
    )
    writes = (write("latents"),)

    def run(self, components: Any, block_state: Any) -> None:
        """Draw them."""
        block_state.latents, _ = denoise.prepare_latents(
            components,
            _latent_shape(components, block_state),
            block_state.timesteps,
            noise=block_state.latents,
            generator=generator_list(block_state.generator, len(block_state.token_map)),
            device=components._execution_device,
        )


class FocusEditPrepareLatentsStep(FocusStep):
    """What an edit starts from and what it keeps -> `latents`, `latent_mask` and `background`."""

    about = "Prepares the latents an edit starts from, its mask on their grid, and the source's latents outside it."
    parts = ("unet", "vae", "scheduler", "image_processor")
    reads = (
        read("image_encoding", required=True),
        read("edits", required=True),
        *FocusPrepareLatentsStep.reads,
        read("strength"),
        read("preserve_background"),
    )
    writes = (write("latents"), write("latent_mask"), write("background"))

    def run(self, components: Any, block_state: Any) -> None:
        """Prepare them."""
        encoding, device = block_state.image_encoding, components._execution_device
        shape = _latent_shape(components, block_state)
        images, masks = unions(block_state.edits, [one.mask for one in block_state.edits])
        block_state.latent_mask = composite.latent_masks(encoding, images, masks, shape[2:]).to(device)
        source = None
        if block_state.preserve_background or block_state.strength < 1.0:
            size = decoded_size(*block_state.token_resolution, components.image_processor.decode_scale)
            source = composite.source_latents(components, encoding, images, size, device)
        block_state.latents, block_state.background = denoise.prepare_latents(
            components,
            shape,
            block_state.timesteps,
            source=source,
            latent_mask=block_state.latent_mask,
            strength=block_state.strength,
            keep_source=block_state.preserve_background,
            noise=block_state.latents,
            generator=generator_list(block_state.generator, len(images)),
            device=device,
        )


def _latent_shape(components: Any, block_state: Any) -> tuple[int, int, int, int]:
    processor = components.image_processor
    grid = latent_grid(*block_state.token_resolution, processor.decode_scale, processor.vae_scale_factor)
    return len(block_state.token_map), components.unet.config.out_channels, *grid


class FocusConditionStep(FocusStep):
    """`token_map` and `latent_mask` -> what the UNet's cross-attention reads, with and without the tokens."""

    about = "Makes the sequences that the UNet's cross-attention reads from the edit mask and the visual tokens."
    parts = ("mask_conditioner", "unet")
    may_lack = ("mask_conditioner",)
    settings = ("num_text_tokens", "default_guidance_scale")
    reads = (read("token_map", required=True), read("latent_mask"), read("guidance_scale"))
    writes = (write("prompt_embeds"), write("negative_prompt_embeds"))

    def run(self, components: Any, block_state: Any) -> None:
        """Make them."""
        block_state.prompt_embeds, block_state.negative_prompt_embeds = denoise.guidance_sequences(
            components,
            block_state.latent_mask,
            block_state.token_map,
            components.config.num_text_tokens,
            guidance(components, block_state) > 1.0,
        )


def guidance(components: Any, block_state: Any) -> float:
    """The guidance scale of a call, by default the pipeline's own."""
    check_numbers(guidance_scale=block_state.guidance_scale)
    own = components.config.default_guidance_scale
    return own if block_state.guidance_scale is None else block_state.guidance_scale
