"""`edit` and `generate`: FOCUS section "Mask-guided editing".

An edit is two readings of one encoded image (where, then what) and one denoising: the place decides which visual tokens are drawn,
which latents may move and which pixels are replaced.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor

from ..processing.grids import decoded_size, latent_grid
from ..processing.regions import Point, Scribble
from ..steps import composite, denoise
from ..steps.editing import EditPlace, EditPrompt, edit_codes, edit_place, generation_codes
from ..steps.sampling import Generators
from ._base import (
    as_list,
    check_count,
    check_numbers,
    check_text,
    edit_mask,
    generator_list,
    region_masks,
    spread,
    token_sampling,
)
from ._lora import scaling_lora
from ._segment import FocusSegmentMixin
from .outputs import FocusEditOutput, FocusImageEncoding, FocusSegmentOutput

logger = logging.get_logger(__name__)

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
StepCallback = Callable[[Any, int, Any, dict[str, torch.Tensor]], dict[str, torch.Tensor]]


class FocusEditMixin(FocusSegmentMixin):
    """Mixed into a `DiffusionPipeline` with all FOCUS components; a call without a prompt segments."""

    _guidance_scale = 1.0
    _interrupt = False
    _warned = False
    _num_timesteps = 0

    @property
    def guidance_scale(self) -> float:
        """Guidance of the denoising in progress, over the visual tokens; callbacks may set `_guidance_scale`."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the denoising in progress has an unconditional branch."""
        return self._guidance_scale > 1.0

    @property
    def num_timesteps(self) -> int:
        """Denoising steps of the call in progress."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback asked to stop (`pipe._interrupt = True`)."""
        return self._interrupt

    # -- editing and generating ------------------------------------------------------------------------------------------

    def edit(self, image: Any, prompt: str | list[str], **kwargs: Any) -> Any:
        """Edit an image: `__call__` with an image and an instruction; returns its `FocusEditOutput`."""
        if image is None:
            raise TypeError("edit needs an image. To draw one from a description use generate(prompt).")
        if prompt is None:
            raise TypeError(
                "edit needs an instruction. To find an object without changing it use segment(image, target)."
            )
        return self(prompt=prompt, image=image, **kwargs)

    def generate(self, prompt: str | list[str], **kwargs: Any) -> Any:
        """Draw an image from a description: `__call__` with a prompt alone; returns its `FocusEditOutput`."""
        if prompt is None:
            raise TypeError("generate needs a description, got None.")
        return self(prompt=prompt, **kwargs)

    @scaling_lora
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        target: str | list[str] | None = None,
        region: Any = None,
        mask_image: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float | None = None,
        mask_guidance_scale: float = 1.0,
        strength: float = 1.0,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        token_guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        preserve_background: bool = True,
        mask_dilation: int | None = None,
        mask_blur: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> FocusEditOutput | FocusSegmentOutput | tuple[Any, ...]:
        """Segment (no prompt), edit (prompt and image) or generate (prompt alone).

        Args:
            prompt: the instruction, or without an image the description; a list is a batch. Several instructions for one image
                are a list too.
            image: an image, a list of images or an encoding from `encode_image`.
            target: what the edit is about, where the instruction leaves that open; without a prompt, what to segment.
            region: the same by pointing: a `Point`, `Scribble`, `Box` or `Mask` in pixels of the input image.
            mask_image: exactly the pixels that may change (bright is inside), at the size of the image.
            height, width: of the result in pixels: one of the model's sizes. Edits have the size of their image.
            num_inference_steps: denoising steps; the pipeline's own by default.
            timesteps, sigmas: a schedule of one's own.
            guidance_scale: how strongly the visual tokens steer the denoising; 1 switches guidance off.
            mask_guidance_scale: the same for the edit mask; anything but 1 costs a further UNet pass a step.
            strength: share of the denoising to run on the image's own latents, above 0 up to 1.
            num_images_per_prompt: results for each prompt.
            eta: of DDIM.
            generator: for tokens and noise; a list has one for each result, and each then is what it would be alone.
            latents: initial noise (n, channels, height, width) of unit variance, in place of a drawn one.
            token_guidance_scale, temperature, top_k, top_p: how the language model draws visual tokens; the pipeline's own by
                default. A temperature of 0 takes the likeliest. Pixel tokens get three times `top_k`.
            preserve_background: keep every pixel outside the soft edit mask; False returns what the decoder made of it all.
            mask_dilation: pixels to grow the edit mask by, in place of the pipeline's own rule.
            mask_blur: reach of its soft edge in pixels of the image.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: False returns a tuple.
            callback_on_step_end: called as `callback(pipe, step, timestep, tensors)` after each step; may return changed tensors.
            callback_on_step_end_tensor_inputs: the tensors it gets; "latents" by default.
            cross_attention_kwargs: for the UNet's attention; "scale" is the weight of LoRA adapters, the language model's included.

        Returns:
            `FocusEditOutput`, without a prompt `FocusSegmentOutput`.

        Raises:
            TypeError, ValueError: an argument or a component does not fit.
        """
        if prompt is None:
            if image is None:
                raise ValueError(
                    "Neither prompt nor image was given. Pass a description, or an image to segment or edit."
                )
            if mask_image is not None:
                raise ValueError("mask_image is for edits; without a prompt nothing is edited. Pass a prompt too.")
            return self.segment(image, target, region, return_dict=return_dict)
        tensor_inputs = (
            ["latents"] if callback_on_step_end_tensor_inputs is None else callback_on_step_end_tensor_inputs
        )
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            tensor_inputs = callback_on_step_end.tensor_inputs
        check_numbers(
            guidance_scale=guidance_scale,
            mask_guidance_scale=mask_guidance_scale,
            token_guidance_scale=token_guidance_scale,
            strength=strength,
            eta=eta,
        )
        if latents is not None and not isinstance(latents, torch.Tensor):
            raise TypeError(
                f"latents must be a torch tensor, got {type(latents).__name__}. Leave it out to draw noise."
            )
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise TypeError(
                f"callback_on_step_end must be a function, got {type(callback_on_step_end).__name__}. It is called as "
                "callback(pipe, step, timestep, tensors)."
            )
        config = self.config
        steps = config.default_num_inference_steps if num_inference_steps is None else num_inference_steps
        self._check_call(
            prompt, image, target, region, mask_image, steps, strength, output_type, tensor_inputs, num_images_per_prompt,
            mask_dilation, mask_blur,
        )  # fmt: skip
        if not config.images_trained and not self._warned:
            self._warned = True
            logger.warning(
                "The language model of this checkpoint was not trained to write images: where an edit goes is its answer, what it "
                "puts there means nothing yet."
            )
        self._guidance_scale = config.default_guidance_scale if guidance_scale is None else guidance_scale
        self._interrupt = False
        device = self._execution_device
        temperature = config.default_temperature if temperature is None else temperature
        top_k = config.default_top_k if top_k is None else top_k
        top_p = config.default_top_p if top_p is None else top_p
        drawing = {
            "guidance_scale": config.default_token_guidance_scale
            if token_guidance_scale is None
            else token_guidance_scale,
            "semantic": token_sampling(temperature, top_k, top_p),
            "pixel": token_sampling(temperature, 3 * top_k, top_p),
            "before_model": self._wake,
            "start_tokens": self._token_bar,
        }
        encoding, places, prompts = None, None, []
        if image is None:
            size = self._token_resolution(height, width)
            descriptions = [
                text for text in as_list(prompt, "prompt") or [prompt] for _ in range(num_images_per_prompt)
            ]
            count = len(descriptions)
            generator = generator_list(generator, count)
            codes = generation_codes(self, descriptions, size, generator=generator, **drawing)
        else:
            encoding = self._single_images(image, "An edit")
            size = self._token_resolution(height, width, encoding.size)
            once = self._edit_prompts(encoding, prompt, target, region, mask_image)
            generator = generator_list(generator, len(once) * num_images_per_prompt)
            places = self._edit_places(encoding, once, mask_dilation)
            prompts = [one for one in once for _ in range(num_images_per_prompt)]
            edit_masks = [place.edit_mask for place in places for _ in range(num_images_per_prompt)]
            count = len(prompts)
            if preserve_background and output_type != "latent" and not any(mask.any() for mask in edit_masks):
                self.maybe_free_model_hooks()
                unchanged = [self._own_pixels(encoding, one.image) for one in prompts]
                return self._edit_output(unchanged, places, output_type, return_dict)
            codes = edit_codes(self, encoding, prompts, edit_masks, generator=generator, **drawing)
        tokens = denoise.token_map(self, *codes)
        decoded = decoded_size(*size, self.image_processor.decode_scale)
        grid = latent_grid(*size, self.image_processor.decode_scale, self.image_processor.vae_scale_factor)

        latent_mask = source = None
        if encoding is not None:
            on_grid = [
                composite.place_on_grid(mask, encoding.inputs.placements[one.image], grid, "area")
                for one, mask in zip(prompts, edit_masks)
            ]
            latent_mask = torch.stack(on_grid)[:, None].to(device)
            if preserve_background or strength < 1.0:
                source = self._source_latents(encoding, [one.image for one in prompts], decoded)
        latents = self._denoise(
            tokens.to(device),
            latent_mask,
            source,
            size_index=denoise.resolution_index(config.resolution_group, *decoded),
            grid=grid,
            steps=steps,
            timesteps=timesteps,
            sigmas=sigmas,
            strength=strength if source is not None else 1.0,
            mask_guidance_scale=mask_guidance_scale,
            keep_source=preserve_background,
            noise=latents,
            eta=eta,
            generator=generator,
            callback=callback_on_step_end,
            tensor_inputs=tensor_inputs,
            cross_attention_kwargs=cross_attention_kwargs,
        )
        if output_type == "latent":
            self.maybe_free_model_hooks()
            return self._edit_output(latents, places, output_type, return_dict)
        pictures = denoise.decode_latents(self.vae, latents)
        self.maybe_free_model_hooks()
        if encoding is None:
            images = list(pictures.float().cpu().add(1).div(2).clamp(0, 1))
        else:
            images = []
            for one, mask, picture in zip(prompts, edit_masks, pictures):
                placement = encoding.inputs.placements[one.image]
                soft = None
                if preserve_background:
                    reach = (
                        composite.relative_radius(config.mask_feather, *mask.shape) if mask_blur is None else mask_blur
                    )
                    soft = composite.soft_mask(mask, reach)
                images.append(
                    composite.composite(encoding.images[one.image], picture, soft, self.image_processor, placement)
                )
        return self._edit_output(images, places, output_type, return_dict)

    # -- parts of a call -------------------------------------------------------------------------------------------------

    def _check_call(
        self,
        prompt,
        image,
        target,
        region,
        mask_image,
        steps,
        strength,
        output_type,
        tensor_inputs,
        per_prompt,
        dilation,
        blur,
    ) -> None:
        for text in as_list(prompt, "prompt") or [prompt]:
            check_text(text, "prompt")
        if target is not None:
            for text in as_list(target, "target") or [target]:
                if text is not None:
                    check_text(text, "target")
        if image is None:
            for name, value in (("target", target), ("region", region), ("mask_image", mask_image)):
                if value is not None:
                    raise ValueError(
                        f"{name} is about an image, but image is None. Pass the image to edit, or leave {name} out."
                    )
            if strength != 1.0:
                raise ValueError(
                    "strength is for edits: without an image there are no latents to start from. Leave it out."
                )
        if target is not None and region is not None:
            raise ValueError("Both target and region were given; they say the same in two ways. Pass one of them.")
        check_count(steps, "num_inference_steps")
        check_count(per_prompt, "num_images_per_prompt")
        for name, value in (("mask_dilation", dilation), ("mask_blur", blur)):
            if value is not None:
                check_count(value, name, least=0)
        if not 0 < strength <= 1:
            raise ValueError(f"strength must be above 0 and at most 1, got {strength}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}.")
        unknown = [name for name in tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs holds {unknown}; allowed are {self._callback_tensor_inputs}."
            )
        purpose = "generating" if image is None else "editing"
        self._require(
            purpose, "language_model", "lm_tokenizer", "visual_tokenizer", "unet", "vae", "scheduler", "image_processor"
        )

    def _token_resolution(
        self, height: int | None, width: int | None, of_image: tuple[int, int] | None = None
    ) -> tuple[int, int]:
        """The token resolution of a result; `of_image` is the one that an edit has to have."""
        processor = self.image_processor
        scale = processor.decode_scale
        buckets = [tuple(bucket) for bucket in processor.buckets]
        if height is None and width is None:
            return of_image or buckets[0]
        allowed = [of_image] if of_image is not None else buckets
        sizes = [decoded_size(*bucket, scale) for bucket in allowed]
        if (height, width) not in sizes:
            known = ", ".join(f"{h} x {w}" for h, w in sizes)
            hint = (
                "Leave both out: an edit has the size of its image."
                if of_image is not None
                else "Pass one of these, or neither."
            )
            raise ValueError(f"This model renders {known} (height x width) here, got {height} x {width}. {hint}")
        return allowed[sizes.index((height, width))]

    def _edit_prompts(
        self, encoding: FocusImageEncoding, prompt: Any, target: Any, region: Any, mask_image: Any
    ) -> list[EditPrompt]:
        if isinstance(mask_image, (np.ndarray, torch.Tensor)) and mask_image.ndim == 3 and 1 not in (
            mask_image.shape[0], mask_image.shape[-1],
        ):  # fmt: skip
            mask_image = list(mask_image)
        count, given = spread(len(encoding), prompt=prompt, target=target, region=region, mask_image=mask_image)
        prompts = []
        for row in range(count):
            index = row if len(encoding) == count else 0
            size = encoding.original_sizes[index]
            regions = region_masks(given["region"][row], size)
            mask = edit_mask(given["mask_image"][row], size)
            if mask is None and not self._can_segment:
                self._check_place(given["target"][row], given["region"][row])
                # Nothing can say what lies in a box, so the box itself is the place.
                mask = np.logical_or.reduce(regions) if regions else None
                regions = ()
            prompts.append(
                EditPrompt(
                    image=index,
                    instruction=given["prompt"][row],
                    target=given["target"][row],
                    regions=regions,
                    mask=mask,
                    region_slots=self.config.edit_regions_trained,
                )
            )
        return prompts

    def _check_place(self, target: str | None, region: Any) -> None:
        """Raise ValueError for places that only a mask decoder can find: words, and regions that are not areas."""
        pointed = region if isinstance(region, (list, tuple)) else [region]
        if target is not None or any(isinstance(one, (Point, Scribble)) for one in pointed):
            self._require_masks("finding the place of an edit from words, a point or a scribble")

    def _edit_places(
        self, encoding: FocusImageEncoding, prompts: Sequence[EditPrompt], mask_dilation: int | None
    ) -> list[EditPlace]:
        everywhere = {one.image: np.ones(encoding.original_sizes[one.image], dtype=bool) for one in prompts}
        if not self._can_segment:
            # An original without segmentation edits the whole image, as it was trained to.
            return [
                EditPlace(everywhere[one.image][None], everywhere[one.image])
                if one.mask is None
                else edit_place(one, None, mask_dilation=mask_dilation)
                for one in prompts
            ]
        asked = [row for row, one in enumerate(prompts) if one.where is not None]
        found = dict(zip(asked, self._find(encoding, [prompts[row].where for row in asked]) if asked else []))
        places = []
        for row, one in enumerate(prompts):
            place = edit_place(
                one,
                found.get(row),
                edit_masks_trained=self.config.edit_masks_trained,
                dilation=self.config.mask_dilation,
                mask_dilation=mask_dilation,
            )
            if not place.edit_mask.any():
                if self.config.edit_without_mask and one.target is None and not one.regions:
                    place.edit_mask = everywhere[one.image]
                else:
                    logger.warning(
                        f"Nothing in the image was found for {(one.target or one.instruction)!r}; it is returned unchanged. Point "
                        "at the object with region=..., or pass mask_image."
                    )
            places.append(place)
        return places

    def _source_latents(self, encoding: FocusImageEncoding, images: list[int], size: tuple[int, int]) -> torch.Tensor:
        """Latents of the images on canvases of the decoded size, [B, 4, h, w]."""
        used = sorted(set(images))
        canvases = torch.stack(
            [composite.canvas_image(encoding.images[i], encoding.inputs.placements[i], size) for i in used]
        )
        latents = denoise.encode_latents(self.vae, canvases.to(self._execution_device))
        return latents[[used.index(i) for i in images]]

    def _denoise(
        self,
        tokens: torch.Tensor,
        latent_mask: torch.Tensor | None,
        source: torch.Tensor | None,
        *,
        size_index: int,
        grid: tuple[int, int],
        steps: int,
        timesteps: Sequence[int] | None,
        sigmas: Sequence[float] | None,
        strength: float,
        mask_guidance_scale: float,
        keep_source: bool,
        noise: torch.Tensor | None,
        eta: float,
        generator: Generators,
        callback: StepCallback | None,
        tensor_inputs: Sequence[str],
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> torch.Tensor:
        """Latents [B, 4, h, w] at the end of the denoising."""
        device, dtype = tokens.device, self.unet.dtype
        schedule = denoise.prepare_timesteps(
            self.scheduler, steps, device, timesteps=timesteps, sigmas=sigmas, strength=strength
        )
        shape = (len(tokens), self.unet.config.out_channels, *grid)
        if noise is None:
            noise = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        elif tuple(noise.shape) != shape:
            raise ValueError(f"latents have the shape {list(noise.shape)}; this call needs {list(shape)}.")
        noise = noise.to(device=device, dtype=dtype)
        if source is not None:
            source = source.to(device=device, dtype=dtype)
        if strength < 1.0:
            latents = self.scheduler.add_noise(source, noise, schedule[:1].expand(len(noise)))
        else:
            latents = noise * self.scheduler.init_noise_sigma
        background = None
        if source is not None and keep_source and latent_mask is not None:
            background = denoise.LatentBackground(source, noise, latent_mask > 0)

        token_map = tokens
        count = self.config.num_text_tokens
        prompt_embeds = denoise.mask_sequence(self, latent_mask, token_map, count)
        negative_prompt_embeds = prompt_embeds
        if self.do_classifier_free_guidance:
            negative_prompt_embeds = denoise.mask_sequence(self, latent_mask, torch.zeros_like(token_map), count)
        accepted = inspect.signature(self.scheduler.step).parameters
        extra: dict[str, Any] = {"eta": eta} if "eta" in accepted else {}
        if "generator" in accepted:
            extra["generator"] = generator
        has_mask = latent_mask is not None and self.mask_conditioner is not None
        added = denoise.added_conditions(self.unet, size_index, prompt_embeds)
        self._num_timesteps = len(schedule)
        with self.progress_bar(total=len(schedule)) as bar:
            for i, t in enumerate(schedule):
                if self.interrupt:
                    continue
                denoiser = denoise.Denoiser(
                    self.unet,
                    self.scheduler,
                    size_index,
                    self.guidance_scale,
                    mask_guidance_scale,
                    has_mask,
                    cross_attention_kwargs,
                    added,
                )
                predicted = denoiser.predict(latents, t, token_map, prompt_embeds, negative_prompt_embeds)
                latents = self.scheduler.step(predicted, t, latents, **extra, return_dict=False)[0].to(dtype)
                if background is not None:
                    following = schedule[i + 1] if i + 1 < len(schedule) else None
                    latents = background.restore(latents, self.scheduler, following)
                if callback is not None:
                    have = {
                        "latents": latents,
                        "token_map": token_map,
                        "prompt_embeds": prompt_embeds,
                        "negative_prompt_embeds": negative_prompt_embeds,
                        "add_text_embeds": added[0] if added is not None else None,
                        "add_time_ids": added[1] if added is not None else None,
                    }
                    changed = callback(self, i, t, {name: have[name] for name in tensor_inputs}) or {}
                    latents = changed.pop("latents", latents)
                    token_map = changed.pop("token_map", token_map)
                    prompt_embeds = changed.pop("prompt_embeds", prompt_embeds)
                    negative_prompt_embeds = changed.pop("negative_prompt_embeds", negative_prompt_embeds)
                    if added is not None:
                        added = changed.pop("add_text_embeds", added[0]), changed.pop("add_time_ids", added[1])
                bar.update()
        return latents

    def _token_bar(self, total: int) -> Callable[[], bool]:
        """A progress bar over the visual tokens to draw, as `on_token` of `write_codes`."""
        if total == 0:
            return lambda: True
        bar = self.progress_bar(total=total)
        left = [total]

        def step() -> bool:
            bar.update()
            left[0] -= 1
            if left[0] == 0 or self._interrupt:
                bar.close()
            return not self._interrupt

        return step

    def _own_pixels(self, encoding: FocusImageEncoding, index: int) -> torch.Tensor:
        return torch.from_numpy(np.array(encoding.images[index])).permute(2, 0, 1).float().div(255)

    def _edit_output(
        self, images: Any, places: list[EditPlace] | None, output_type: str, return_dict: bool
    ) -> FocusEditOutput | tuple[Any, ...]:
        output = FocusEditOutput(
            images=images if output_type == "latent" else composite.to_output(images, output_type),
            masks=[place.masks for place in places] if places is not None else None,
            edit_masks=[place.edit_mask for place in places] if places is not None else None,
        )
        return output if return_dict else (output.images, output.masks, output.edit_masks)
