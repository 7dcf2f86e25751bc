"""`edit` and `generate`: FOCUS section "Mask-guided editing".

An edit is two readings of one encoded image (where, then what) and one denoising: the place decides which visual tokens are drawn,
which latents may move and which pixels are replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from ..processing.grids import decoded_size, latent_grid
from ..steps import composite, denoise
from ..steps.arguments import (
    as_list,
    check_count,
    check_given,
    check_numbers,
    check_output_type,
    check_strength,
    generator_list,
    token_resolution,
)
from ..steps.control import Control
from ..steps.cropping import crop_edits, paste_back
from ..steps.editing import (
    check_place,
    drawing,
    edit_codes,
    edit_places,
    edit_prompts,
    negative_prompts,
    places_given,
    told,
    warn_untrained,
)
from ..steps.encode import FocusImageEncoding, LoadedImages, load_images, own_images, single_images
from ..steps.joint_edits import edits_by_picture, nested, repeat_edits, unions
from ..steps.sampling import Generators
from ..steps.sketch import description_codes
from ..steps.text import DecoderText
from ._guides import ControlOptions, FocusGuidesMixin, GuideRow
from ._ip_adapter import FocusIPAdapterMixin
from ._lora import scaling_lora
from ._segment import FocusSegmentMixin
from .outputs import FocusEditOutput, FocusSegmentOutput

Prompts = str | list[str] | list[list[str]] | list[str | list[str]]
StepCallback = Callable[[Any, int, Any, dict[str, torch.Tensor]], dict[str, torch.Tensor]]


class FocusEditMixin(FocusIPAdapterMixin, FocusGuidesMixin, FocusSegmentMixin):
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

    def edit(self, image: Any, prompt: Prompts, **kwargs: Any) -> Any:
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
        prompt: Prompts | None = None,
        image: Any = None,
        target: Any = None,
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
        layout: Any = None,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        token_guidance_scale: float | None = None,
        temperature: float | tuple[float, float] | None = None,
        top_k: int | tuple[int, int] | None = None,
        top_p: float | tuple[float, float] | None = None,
        limit_tokens: bool = True,
        preserve_background: bool = True,
        mask_dilation: int | None = None,
        mask_blur: int | None = None,
        padding_mask_crop: int | None = None,
        negative_prompt: str | list[str] | None = None,
        decoder_prompt: str | list[str] | None = None,
        negative_decoder_prompt: str | list[str] | None = None,
        prompt_weighting: bool = False,
        control_image: Any = None,
        control_mode: Any = None,
        control_outside_only: bool = False,
        controlnet_conditioning_scale: float | list[float] = 1.0,
        control_guidance_start: float | list[float] = 0.0,
        control_guidance_end: float | list[float] = 1.0,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: list[torch.Tensor] | None = None,
    ) -> FocusEditOutput | FocusSegmentOutput | tuple[Any, ...]:
        """Segment (no prompt), edit (prompt and image) or generate (prompt alone).

        Args:
            prompt: the instruction, or without an image the description; a list is a batch. Several instructions for one image
                are a list too, with a result for each. A list in the list holds several edits of one picture, with one result:
                `[["remove the red circle", "make the blue star green"]]`.
            image: an image, a list of images or an encoding from `encode_image`.
            target: what the edit is about, where the instruction leaves that open; without a prompt, what to segment.
            region: the same by pointing: a `Point`, `Scribble`, `Box` or `Mask` in pixels of the input image.
            mask_image: exactly the pixels that may change (bright is inside), at the size of the image; `masks` or `edit_masks` of
                a result fit. With `target` or `region` beside it the object is still looked for: a mask that reaches beyond it
                does not tell its outline. Of several edits some may have an empty one, which leaves their picture alone.
                With several edits of one picture these three are nested as `prompt` is.
            height, width: of the result in pixels: one of the model's sizes. Edits have the size of their image.
            num_inference_steps: denoising steps; the pipeline's own by default.
            timesteps, sigmas: a schedule of one's own.
            guidance_scale: how strongly the visual tokens steer the denoising; 1 switches guidance off.
            mask_guidance_scale: the same for the edit mask; 0 keeps it from the UNet, and anything but 0 and 1 costs a
                further UNet pass a step.
            strength: share of the denoising to run on the image's own latents, above 0 up to 1.
            num_images_per_prompt: results for each prompt.
            layout: where the objects of a description are to be, if the pipeline draws object by object (`description_sketch`): a
                `Box` in pixels of the result for each object, in their order, or a list of such lists, one for each prompt. By
                default they are laid out by chance, from left to right; an empty list draws the description in one go.
            eta: of DDIM.
            generator: for tokens and noise; a list has one for each result, and each then is what it would be alone.
            latents: initial noise (n, channels, height, width) of unit variance, in place of a drawn one.
            token_guidance_scale, temperature, top_k, top_p: how the language model draws visual tokens; the pipeline's own by
                default. A temperature of 0 takes the likeliest. Pixel tokens get three times `top_k`. A pair has one value for
                semantic and one for pixel tokens, such as `temperature=(1.0, 0.0)`.
            limit_tokens: write only the visual tokens that the edit mask touches, the others are the image's own; False writes all.
            preserve_background: keep every pixel outside the soft edit mask; False returns what the decoder made of it all.
            mask_dilation: pixels to grow the edit mask by, in place of the pipeline's own rule.
            mask_blur: reach of its soft edge in pixels of the image.
            padding_mask_crop: edit only the part of the image around the edit mask, with at least so many pixels on every side,
                at the model's full resolution, and paste it back; None edits the whole image. For small things in large images.
            negative_prompt: what the visual tokens are guided away from, in place of the empty prompt; a list has one for each
                picture. Of no effect where `token_guidance_scale` is 1.
            decoder_prompt, negative_decoder_prompt: words for the decoder itself, through SDXL's text encoders, where the pipeline
                has them. Zero-shot: the decoder was trained without.
            prompt_weighting: read compel's syntax in them ("red++", "(glossy)1.3"), and more than 77 tokens.
            control_image: a map for the pipeline's ControlNet, at the size of its image (of any size without one), or with
                `control_mode` the picture to make it of; a list has one for each prompt. With several ControlNets a list has an
                entry for each. Zero-shot, as above.
            control_mode: "canny", "scribble", "lineart", "depth" or "pose" (of controlnet-aux), or a detector; of the image
                itself where there is no `control_image`. None takes `control_image` as the map.
            control_outside_only: leave the inside of the edit mask out of the map, so that the edit may take another shape.
            controlnet_conditioning_scale: weight of a ControlNet, or of each.
            control_guidance_start, control_guidance_end: share of the steps in which it counts.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: False returns a tuple.
            callback_on_step_end: called as `callback(pipe, step, timestep, tensors)` after each step; may return changed tensors.
            callback_on_step_end_tensor_inputs: the tensors it gets; "latents" by default.
            cross_attention_kwargs: for the UNet's attention; "scale" is the weight of LoRA adapters, the language model's included.
            ip_adapter_image: a picture for the IP-Adapter that was loaded, for every result; with several adapters a list has one
                for each, and a list in it several for one. Zero-shot, as above.
            ip_adapter_image_embeds: the same as tensors, as in diffusers' SDXL pipelines.

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
        check_numbers(guidance_scale=guidance_scale, token_guidance_scale=token_guidance_scale)
        check_given(mask_guidance_scale=mask_guidance_scale, strength=strength, eta=eta)
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
            mask_dilation, mask_blur, padding_mask_crop, layout,
        )  # fmt: skip
        if not self._warned:  # once is enough
            self._warned = True
            warn_untrained(config)
        self._guidance_scale = config.default_guidance_scale if guidance_scale is None else guidance_scale
        self._interrupt = False
        device = self._execution_device
        options = drawing(
            config,
            edits=image is not None,
            token_guidance_scale=token_guidance_scale,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            limit_tokens=limit_tokens,
        )
        options["start_tokens"] = self._token_bar
        encoding, found, images, edit_masks, whole = None, None, [], [], None
        boxes: list[Any] = []
        if image is None:
            size = token_resolution(self.image_processor, height, width)
            texts = as_list(prompt, "prompt") or [prompt]
            descriptions = [text for text in texts for _ in range(num_images_per_prompt)]
            generator = generator_list(generator, len(descriptions))
            options["negative"] = negative_prompts(negative_prompt, len(texts), num_images_per_prompt)
            guides = [GuideRow() for _ in texts]
            write = partial(
                description_codes,
                self,
                descriptions,
                size,
                config,
                layout=layout,
                repeats=num_images_per_prompt,
                decoded=decoded_size(*size, self.image_processor.decode_scale),
                device=device,
                generator=generator,
                **options,
            )
        else:
            # What is cropped around given masks is cut out before anything is encoded.
            plain = padding_mask_crop is not None and places_given(mask_image) and target is None and region is None
            seen = self._load_images(image) if plain else single_images(self.encode_image(image), "An edit")
            size = token_resolution(self.image_processor, height, width, seen.size)
            once = edit_prompts(self, seen, prompt, config, target=target, region=region, mask_image=mask_image)
            count = len(edits_by_picture(once))
            generator = generator_list(generator, count * num_images_per_prompt)
            options["negative"] = negative_prompts(negative_prompt, count, num_images_per_prompt)
            places = edit_places(self, seen, once, config, mask_dilation=mask_dilation)
            once = told(once, [place.masks for place in places])
            once_masks = [place.edit_mask for place in places]
            found = nested(once, [place.masks for place in places]), nested(once, once_masks)
            sources, whole_masks = unions(once, once_masks)
            repeated = [source for source in sources for _ in range(num_images_per_prompt)]
            if preserve_background and output_type != "latent" and not any(mask.any() for mask in once_masks):
                self.maybe_free_model_hooks()
                return self._edit_output(composite.own_pixels(self, seen, repeated), found, output_type, return_dict)
            encoding, own = seen, own_images(self, seen)
            if padding_mask_crop is not None:
                crops = crop_edits(
                    self,
                    seen,
                    once,
                    once_masks,
                    padding_mask_crop,
                    encode=self.encode_image,
                    feather=config.mask_feather,
                    mask_blur=mask_blur,
                )
                encoding, once, once_masks, boxes = crops.encoding, crops.prompts, crops.masks, crops.boxes
                size = token_resolution(self.image_processor, height, width, encoding.size)
                whole = seen, repeated, [box for box in boxes for _ in range(num_images_per_prompt)]
            guides = [
                GuideRow(own[source], mask, box, encoding.inputs.placements[image])
                for source, mask, box, image in zip(
                    sources, whole_masks, boxes or [None] * count, unions(once, once_masks)[0]
                )
            ]
            prompts, masks = repeat_edits(once, once_masks, num_images_per_prompt)
            images, edit_masks = unions(prompts, masks)
            write = partial(edit_codes, self, encoding, prompts, masks, generator=generator, **options)
        decoded = decoded_size(*size, self.image_processor.decode_scale)
        grid = latent_grid(*size, self.image_processor.decode_scale, self.image_processor.vae_scale_factor)

        # Before any token is written, so that what does not fit is refused at once.
        words = self._decoder_text(
            decoder_prompt, negative_decoder_prompt, prompt_weighting, len(guides), num_images_per_prompt, device
        )
        control = self._control(
            ControlOptions(
                control_image, control_mode, control_outside_only, controlnet_conditioning_scale, control_guidance_start,
                control_guidance_end,
            ),
            guides,
            num_images_per_prompt,
            decoded,
        )  # fmt: skip
        image_prompts = self._image_prompts(
            ip_adapter_image, ip_adapter_image_embeds, guided=self.do_classifier_free_guidance, device=device
        )
        tokens = denoise.token_map(self, *write()).to(device)
        latent_mask = source = None
        if encoding is not None:
            latent_mask = composite.latent_masks(encoding, images, edit_masks, grid).to(device)
            if preserve_background or strength < 1.0:
                source = composite.source_latents(self, encoding, images, decoded, device)
        latents = self._denoise(
            tokens,
            latent_mask,
            source,
            size_index=denoise.resolution_index(config.resolution_group, *decoded),
            grid=grid,
            steps=steps,
            timesteps=timesteps,
            sigmas=sigmas,
            strength=strength,
            mask_guidance_scale=mask_guidance_scale,
            keep_source=preserve_background,
            noise=latents,
            eta=eta,
            generator=generator,
            callback=callback_on_step_end,
            tensor_inputs=tensor_inputs,
            cross_attention_kwargs=cross_attention_kwargs,
            words=words,
            control=control,
            image_prompts=image_prompts,
        )
        if output_type == "latent":
            self.maybe_free_model_hooks()
            return self._edit_output(latents, found, output_type, return_dict)
        pictures = denoise.decode_latents(self.vae, latents)
        self.maybe_free_model_hooks()
        if encoding is None:
            return self._edit_output(composite.levels(pictures), found, output_type, return_dict)
        results = composite.composite_edits(
            self,
            encoding,
            images,
            edit_masks,
            pictures,
            feather=config.mask_feather,
            mask_blur=mask_blur,
            preserve_background=preserve_background,
        )
        if whole is not None:
            results = paste_back(self, *whole, results)
        return self._edit_output(results, found, output_type, return_dict)

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
        crop,
        layout,
    ) -> None:
        check_place(prompt, target, region)
        if image is None:
            if any(isinstance(one, (list, tuple)) for one in as_list(prompt, "prompt") or ()):
                raise ValueError(
                    "prompt holds several edits of one picture, but image is None. Pass the image to edit, or a flat list of "
                    "descriptions."
                )
            for name, value in (
                ("target", target), ("region", region), ("mask_image", mask_image), ("padding_mask_crop", crop),
            ):  # fmt: skip
                if value is not None:
                    raise ValueError(
                        f"{name} is about an image, but image is None. Pass the image to edit, or leave {name} out."
                    )
            if strength != 1.0:
                raise ValueError(
                    "strength is for edits: without an image there are no latents to start from. Leave it out."
                )
        elif layout is not None:
            raise ValueError(
                "layout is for descriptions, but an image was given. Leave it out, or say where with region=..."
            )
        check_count(steps, "num_inference_steps")
        check_count(per_prompt, "num_images_per_prompt")
        for name, value in (("mask_dilation", dilation), ("mask_blur", blur), ("padding_mask_crop", crop)):
            if value is not None:
                check_count(value, name, least=0)
        check_strength(strength)
        check_output_type(output_type)
        unknown = [name for name in tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs holds {unknown}; allowed are {self._callback_tensor_inputs}."
            )
        purpose = "generating" if image is None else "editing"
        self._require(
            purpose, "language_model", "lm_tokenizer", "visual_tokenizer", "unet", "vae", "scheduler", "image_processor"
        )

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
        words: DecoderText | None = None,
        control: Control | None = None,
        image_prompts: denoise.ImagePrompts | None = None,
    ) -> torch.Tensor:
        """Latents [B, 4, h, w] at the end of the denoising."""
        schedule = denoise.prepare_timesteps(
            self.scheduler, steps, tokens.device, timesteps=timesteps, sigmas=sigmas, strength=strength
        )
        latents, background = denoise.prepare_latents(
            self,
            (len(tokens), self.unet.config.out_channels, *grid),
            schedule,
            source=source,
            latent_mask=latent_mask,
            strength=strength,
            keep_source=keep_source,
            noise=noise,
            generator=generator,
            device=tokens.device,
        )
        token_map = tokens
        prompt_embeds, negative_prompt_embeds = denoise.guidance_sequences(
            self, latent_mask, token_map, self.config.num_text_tokens, self.do_classifier_free_guidance, words
        )
        step_arguments = denoise.step_arguments(self.scheduler, eta, generator)
        has_mask = latent_mask is not None and self.mask_conditioner is not None
        added = denoise.added_conditions(self.unet, size_index, prompt_embeds)
        negative_pooled, text_rows = None, 0
        if words is not None:
            negative_pooled, text_rows = words.negative_pooled, words.embeds.shape[1]
            added = added and (words.pooled.to(added[0]), added[1])
        self._num_timesteps = len(schedule)
        with self.progress_bar(total=len(schedule)) as bar:
            for i, t in enumerate(schedule):
                if self.interrupt:
                    continue
                # Made anew each step: a callback may end the guidance.
                denoiser = denoise.Denoiser(
                    self.unet,
                    self.scheduler,
                    size_index,
                    self.guidance_scale,
                    mask_guidance_scale,
                    has_mask,
                    cross_attention_kwargs,
                    added,
                    negative_pooled,
                    text_rows,
                    control,
                    share=i / len(schedule),
                    image_prompts=image_prompts,
                )
                predicted = denoiser.predict(latents, t, token_map, prompt_embeds, negative_prompt_embeds)
                latents = denoise.advance(self.scheduler, predicted, t, latents, step_arguments)
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

    def _load_images(self, image: Any) -> FocusImageEncoding | LoadedImages:
        """Images whose surroundings will be cut out around given masks; an encoding stays one."""
        self._require("reading an image", "image_processor")
        loaded = image if isinstance(image, FocusImageEncoding) else load_images(self, image)
        return single_images(loaded, "An edit")

    def _edit_output(
        self, images: Any, found: tuple[list[Any], list[Any]] | None, output_type: str, return_dict: bool
    ) -> FocusEditOutput | tuple[Any, ...]:
        masks, edit_masks = found or (None, None)
        output = FocusEditOutput(
            images=images if output_type == "latent" else composite.to_output(images, output_type),
            masks=masks,
            edit_masks=edit_masks,
        )
        return output if return_dict else (output.images, output.masks, output.edit_masks)
