"""The diffusion decoder: visual codes and an edit mask -> latents -> an image.

FOCUS section "Diffusion decoder with mask guidance". The UNet reads the embeddings of the codes beside its latents (channel
concatenation) and the mask through its cross-attention. What ILLUME+ (arXiv 2504.01934, Apache-2.0) fixes is kept: zero text
embeddings, a resolution index in place of SDXL's size conditioning, a zeroed token map as the unconditional branch. Keeping the
background by re-noising the source follows Blended Latent Diffusion (arXiv 2206.02779) as in diffusers' inpainting (Apache-2.0).

Shapes: B images, latents [B, 4, h, w], token map [B, C, hp, wp], text rows 77, f_m [B, T, D].
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import randn_tensor

from .arguments import check_count
from .control import Control
from .encode import Components
from .sampling import Generators
from .text import DecoderText

TIME_IDS = 6  # SDXL's size conditioning has six numbers; here all but the last are zero


def prepare_timesteps(
    scheduler: Any,
    num_inference_steps: int | None,
    device: torch.device | str,
    *,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    strength: float = 1.0,
) -> torch.Tensor:
    """Set the scheduler's timesteps and return those to run.

    Args:
        num_inference_steps: number of steps, where neither of the next two is given.
        timesteps, sigmas: a schedule of one's own; the scheduler must take it.
        strength: share of the schedule to run, above 0 up to 1; the first part is skipped.

    Raises:
        ValueError: no steps, both schedules, or a scheduler that takes none of its own.
    """
    if num_inference_steps is not None:
        check_count(num_inference_steps, "num_inference_steps")
    if timesteps is not None and sigmas is not None:
        raise ValueError("Both timesteps and sigmas were given. Pass one of them.")
    for name, values in (("timesteps", timesteps), ("sigmas", sigmas)):
        if values is None:
            continue
        if name not in inspect.signature(scheduler.set_timesteps).parameters:
            raise ValueError(
                f"{type(scheduler).__name__} takes no {name} of one's own. Use another scheduler, or num_inference_steps."
            )
        if len(values) == 0:
            raise ValueError(f"{name} is empty. Give at least one step.")
        scheduler.set_timesteps(**{name: values}, device=device)
        break
    else:
        scheduler.set_timesteps(num_inference_steps, device=device)
    order = getattr(scheduler, "order", 1)
    if strength < 1.0:
        count = num_inference_steps if timesteps is None and sigmas is None else len(scheduler.timesteps)
        assert count is not None
        kept = min(int(count * strength), count)
        if kept < 1:
            raise ValueError(
                f"strength={strength} of {count} steps leaves no step to run. Raise strength or num_inference_steps."
            )
        begin = (count - kept) * order
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        return scheduler.timesteps[begin:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    return scheduler.timesteps


def resolution_index(groups: Sequence[Sequence[int]], height: int, width: int) -> int:
    """The place of a decoded size among the sizes the UNet was trained on; `groups` holds [width, height] pairs."""
    for index, (group_width, group_height) in enumerate(groups):
        if (group_height, group_width) == (height, width):
            return index
    sizes = ", ".join(f"{h} x {w}" for w, h in groups)
    raise ValueError(
        f"The decoder was not trained on {height} x {width} (height x width) images. It knows {sizes}; use one of these sizes, "
        "or list the size in resolution_group."
    )


def token_map(components: Components, semantic_indices: torch.Tensor, pixel_indices: torch.Tensor) -> torch.Tensor:
    """The UNet's condition: embeddings [B, C, hp, wp] of codes int64 [B, hs, ws] and [B, hp, wp]."""
    tokenizer = components.visual_tokenizer
    return tokenizer.merge(*tokenizer.indices_to_codes(semantic_indices, pixel_indices))


def mask_sequence(
    components: Components,
    latent_mask: torch.Tensor | None,
    tokens: torch.Tensor,
    num_text_tokens: int = 77,
    text: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the UNet's cross-attention reads: [B, 77 + T, D] in the UNet's dtype.

    Zero rows where SDXL has text, or `text` [B, L, D] itself, then f_m of the masks [B, 1, h, w]; without a mask (or a conditioner)
    the first alone.
    """
    unet = components.unet
    dim = unet.config.cross_attention_dim
    if text is None:
        shape = (tokens.shape[0], num_text_tokens, dim if isinstance(dim, int) else dim[0])
        rows = torch.zeros(shape, device=tokens.device, dtype=unet.dtype)
    else:
        rows = text.to(device=tokens.device, dtype=unet.dtype)
    if latent_mask is None or components.mask_conditioner is None:
        return rows
    return torch.cat([rows, components.mask_conditioner(latent_mask, tokens).sequence.to(unet.dtype)], dim=1)


def guidance_sequences(
    components: Components,
    latent_mask: torch.Tensor | None,
    tokens: torch.Tensor,
    num_text_tokens: int,
    guided: bool,
    text: DecoderText | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`mask_sequence` of the token map and, for the unconditional branch, of a zeroed one (the same one if not `guided`)."""
    words, negative = (None, None) if text is None else (text.embeds, text.negative_embeds)
    prompt_embeds = mask_sequence(components, latent_mask, tokens, num_text_tokens, words)
    if not guided:
        return prompt_embeds, prompt_embeds
    return prompt_embeds, mask_sequence(components, latent_mask, torch.zeros_like(tokens), num_text_tokens, negative)


@dataclass(frozen=True)
class ImagePrompts:
    """What the UNet's IP-Adapters read, the same for every result.

    Args:
        embeds: of each adapter [1, pictures, D] or [1, pictures, tokens, D].
        negative: the same for the unconditional branch.
    """

    embeds: list[torch.Tensor]
    negative: list[torch.Tensor]

    def rows(self, count: int, branches: int, guided: bool, dtype: torch.dtype) -> list[torch.Tensor]:
        """For each adapter the rows of `branches` branches of `count` results; the unconditional one stands first."""
        signs = [not (guided and branch == 0) for branch in range(branches) for _ in range(count)]
        pairs = zip(self.embeds, self.negative)
        return [torch.cat([one if sign else other for sign in signs]).to(dtype) for one, other in pairs]


@dataclass
class Denoiser:
    """The UNet with its guidance branches.

    Args:
        unet, scheduler: the components.
        size_index: `resolution_index` of the decoded size.
        guidance_scale: over the token map; 1 or less means none.
        mask_guidance_scale: over f_m; 1 means none, 0 leaves f_m out, anything else costs a further pass.
        has_mask: whether the sequence holds f_m.
        cross_attention_kwargs: for the UNet's attention processors.
        added: SDXL's second conditioning from `added_conditions`; by default made anew for each step.
        negative_pooled: the pooled words of the unconditional branch [B, P]; None where they are those of `added`.
        text_rows: leading rows of the sequence that are words, which mask guidance leaves alone.
        control: ControlNets, whose residuals the UNet adds.
        share: of the denoising that is done, for them.
        image_prompts: for the UNet's IP-Adapters, which leave ControlNets and the mask's branches alone.
    """

    unet: Any
    scheduler: Any
    size_index: int
    guidance_scale: float = 1.0
    mask_guidance_scale: float = 1.0
    has_mask: bool = False
    cross_attention_kwargs: dict[str, Any] | None = None
    added: tuple[torch.Tensor, torch.Tensor] | None = None
    negative_pooled: torch.Tensor | None = None
    text_rows: int = 0
    control: Control | None = None
    share: float = 0.0
    image_prompts: ImagePrompts | None = None

    @property
    def guided(self) -> bool:
        """Whether there is an unconditional branch."""
        return self.guidance_scale > 1.0

    def predict(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        tokens: torch.Tensor,
        prompt_embeds: torch.Tensor,
        negative_prompt_embeds: torch.Tensor,
    ) -> torch.Tensor:
        """The guided model output [B, 4, h, w] at one step.

        Args:
            tokens: [B, C, hp, wp].
            prompt_embeds: from `mask_sequence` with `tokens`.
            negative_prompt_embeds: the same with a zeroed token map.
        """
        tokens = F.interpolate(tokens.to(self.unet.dtype), size=latents.shape[-2:], mode="nearest")
        if self.has_mask and self.mask_guidance_scale == 0.0:
            prompt_embeds, negative_prompt_embeds = (
                self._maskless(prompt_embeds),
                self._maskless(negative_prompt_embeds),
            )
        branches = [(tokens, prompt_embeds)]
        if self.guided:
            branches.insert(0, (torch.zeros_like(tokens), negative_prompt_embeds))
        mask_guided = self.has_mask and self.mask_guidance_scale not in (0.0, 1.0)
        if mask_guided:
            branches.append((tokens, self._maskless(prompt_embeds)))
        count = len(branches)
        sample = self.scheduler.scale_model_input(latents.repeat(count, 1, 1, 1), timestep).to(self.unet.dtype)
        sequence = torch.cat([embeds for _, embeds in branches])
        added = self._added(sequence, count)
        control = {}
        if self.control is not None:
            control = self.control.residuals(sample, timestep, sequence, added, self.share)
        if self.image_prompts is not None:
            embeds = self.image_prompts.rows(len(latents), count, self.guided, self.unet.dtype)
            added = {**(added or {}), "image_embeds": embeds}
        sample = torch.cat([sample, torch.cat([condition for condition, _ in branches])], dim=1)
        output = self.unet(
            sample,
            timestep,
            encoder_hidden_states=sequence,
            added_cond_kwargs=added,
            cross_attention_kwargs=self.cross_attention_kwargs,
            return_dict=False,
            **control,
        )[0].chunk(count)
        conditional = output[1] if self.guided else output[0]
        result = conditional
        if self.guided:
            result = output[0] + self.guidance_scale * (conditional - output[0])
        if mask_guided:
            result = result + (self.mask_guidance_scale - 1.0) * (conditional - output[-1])
        return result

    def _maskless(self, embeds: torch.Tensor) -> torch.Tensor:
        """The sequence with zero rows for f_m: they have zero values, and their length stands in the same batch."""
        without = torch.zeros_like(embeds)
        without[:, : self.text_rows] = embeds[:, : self.text_rows]
        return without

    def _added(self, sequence: torch.Tensor, branches: int) -> dict[str, torch.Tensor] | None:
        added = self.added or added_conditions(self.unet, self.size_index, sequence[: len(sequence) // branches])
        if added is None:
            return None
        rows = len(sequence) // branches
        pooled, time_ids = (values.expand(rows, -1).repeat(branches, 1) for values in added)
        if self.negative_pooled is not None and self.guided:  # the unconditional branch stands first
            pooled = torch.cat([self.negative_pooled.to(pooled).expand(rows, -1), pooled[rows:]])
        return {"text_embeds": pooled, "time_ids": time_ids}


def added_conditions(unet: Any, size_index: int, sequence: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """SDXL's second conditioning for the rows of `sequence` [B, L, D]: a zero pooled text [B, P], and size conditioning [B, 6]
    whose last number is the resolution index. None where the UNet takes none.
    """
    config = unet.config
    if config.addition_embed_type != "text_time":
        return None
    pooled = config.projection_class_embeddings_input_dim - TIME_IDS * config.addition_time_embed_dim
    time_ids = sequence.new_zeros(len(sequence), TIME_IDS)
    time_ids[:, -1] = size_index
    return sequence.new_zeros(len(sequence), pooled), time_ids


@dataclass
class LatentBackground:
    """The source's latents outside an edit, at the noise level of each step.

    Args:
        source: [B, 4, h, w], clean.
        noise: the same shape, what the latents started from.
        free: bool [B, 1, h, w], cells that may change.
    """

    source: torch.Tensor
    noise: torch.Tensor
    free: torch.Tensor

    def restore(self, latents: torch.Tensor, scheduler: Any, next_timestep: torch.Tensor | None) -> torch.Tensor:
        """Put the source back outside; `next_timestep` None is the end, where it is clean."""
        source = self.source
        if next_timestep is not None:
            source = scheduler.add_noise(source, self.noise, next_timestep.reshape(1).expand(len(source)))
        return torch.where(self.free, latents, source.to(latents.dtype))


def prepare_latents(
    components: Components,
    shape: tuple[int, int, int, int],
    timesteps: torch.Tensor,
    *,
    source: torch.Tensor | None = None,
    latent_mask: torch.Tensor | None = None,
    strength: float = 1.0,
    keep_source: bool = False,
    noise: torch.Tensor | None = None,
    generator: Generators = None,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, LatentBackground | None]:
    """What a denoising starts from, in the UNet's dtype, and what it keeps outside an edit.

    Args:
        shape: [B, 4, h, w] of the latents.
        timesteps: from `prepare_timesteps`.
        source: clean latents of the images to edit, of that shape; None draws from noise alone.
        latent_mask: [B, 1, h, w], above 0 where an edit may change latents.
        strength: below 1 the source itself is noised and denoised on.
        keep_source: whether the source stays outside the mask.
        noise: of unit variance, in place of a drawn one.
        generator: for the noise; a list has one for each of B.

    Raises:
        ValueError: noise of another shape.
    """
    dtype = components.unet.dtype
    if noise is None:
        noise = randn_tensor(shape, generator=generator, device=torch.device(device), dtype=dtype)
    elif tuple(noise.shape) != shape:
        raise ValueError(f"latents have the shape {list(noise.shape)}; this call needs {list(shape)}.")
    noise = noise.to(device=device, dtype=dtype)
    if source is not None:
        source = source.to(device=device, dtype=dtype)
    scheduler = components.scheduler
    if source is not None and strength < 1.0:
        latents = scheduler.add_noise(source, noise, timesteps[:1].expand(len(noise)))
    else:
        latents = noise * scheduler.init_noise_sigma
    if source is None or not keep_source or latent_mask is None:
        return latents, None
    return latents, LatentBackground(source, noise, latent_mask > 0)


def step_arguments(scheduler: Any, eta: float, generator: Generators) -> dict[str, Any]:
    """What this scheduler's `step` takes beyond the model's output: of `eta` and `generator` those it knows."""
    accepted = inspect.signature(scheduler.step).parameters
    return {name: value for name, value in (("eta", eta), ("generator", generator)) if name in accepted}


def advance(
    scheduler: Any, predicted: torch.Tensor, timestep: torch.Tensor, latents: torch.Tensor, arguments: dict[str, Any]
) -> torch.Tensor:
    """One step of the scheduler: latents [B, 4, h, w] at the next noise level, in the dtype they had.

    Args:
        predicted: from `Denoiser.predict`.
        arguments: from `step_arguments`.
    """
    return scheduler.step(predicted, timestep, latents, **arguments, return_dict=False)[0].to(latents.dtype)


def encode_latents(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """Latents [B, 4, h, w] of images [B, 3, H, W] in [-1, 1]: the mode of the VAE's distribution, scaled, in its dtype."""
    dtype = vae.dtype
    upcast = dtype == torch.float16 and vae.config.force_upcast
    if upcast:
        vae.to(torch.float32)
    encoded = vae.encode(images.to(vae.dtype))
    latents = (
        encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
    )  # tiny ones have no distribution
    if upcast:
        vae.to(dtype)
    mean, std = _statistics(vae, latents)
    return ((latents - mean) * vae.config.scaling_factor / std).to(dtype)


def decode_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Images [B, 3, H, W], about [-1, 1] and not clamped; SDXL's VAE overflows in half precision, so it runs in float32."""
    dtype = vae.dtype
    upcast = dtype == torch.float16 and vae.config.force_upcast
    if upcast:
        vae.to(torch.float32)
    mean, std = _statistics(vae, latents)
    images = vae.decode((latents * std / vae.config.scaling_factor + mean).to(vae.dtype), return_dict=False)[0]
    if upcast:
        vae.to(dtype)
    return images


def _statistics(vae: Any, latents: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    mean, std = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
    if mean is None or std is None:
        return 0.0, 1.0
    return latents.new_tensor(mean).view(1, -1, 1, 1), latents.new_tensor(std).view(1, -1, 1, 1)
