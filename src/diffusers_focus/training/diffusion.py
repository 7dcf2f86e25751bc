"""Stage 1b and the decoder's part of stage 4: the stock SDXL-shaped UNet renders visual tokens, guided by a mask.

FOCUS section "Diffusion decoder" with ILLUME+'s recipe (Apache-2.0): noisy latents and the token map side by side at the input,
text stream of zeros, L2 denoising; tokens replaced and maps dropped so that the language model's slips are survived and guidance
works. In stage 4 the pictures are edits, the map is the source outside the region and the truth inside it, and the region itself
reaches the UNet's cross-attention through `FocusMaskConditioner`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import nn

from ..data.edits import rough_support, sample_edit
from ..data.world import render
from ..processing.masks import resample_mask
from .batches import scene_batch, to_pixel_values
from .tokenizer import drop_samples, fused_features, replace_codes
from .trainer import StageRecipe

TEXT_TOKENS = 77


@dataclass
class EditBatch:
    """Pictures to render.

    Args:
        target: float [B, 3, S, S] in [-1, 1].
        source: the same before the edit, or None where nothing was edited (stage 1b).
        change: float [B, 1, S, S], where source and target differ, or None.
        objects: float [B, 1, S, S], the pixels that weigh more: objects, or the change; None where all weigh the same.
    """

    target: torch.Tensor
    source: torch.Tensor | None = None
    change: torch.Tensor | None = None
    objects: torch.Tensor | None = None


class DecoderObjective:
    """L2 denoising of the UNet on frozen VAE and tokenizer.

    Args:
        components: vae, unet, scheduler, visual_tokenizer; vision_encoder and image_processor unless `semantic_drop` is 1;
            mask_conditioner where edits are trained.
        recipe: options `size` 128; `edits` 0, share of batches that are edits with their mask (stage 4); `noise_samples` 0.5 and
            `noise_tokens` 0.1; `semantic_noise` as `noise_tokens`, of the semantic codes; `semantic_drop` 0.1; `pixel_drop` 0.1
            (paper 0.5); `map_drop` 0.05; `mask_drop` 0.1; `object_weight` 3, weight of latents of objects (stage 4: of the
            change) over the others; `resolution_index` 0.
    """

    def __init__(self, components: Any, recipe: StageRecipe):
        self.components, self.recipe = components, recipe
        options = recipe.options
        self.size = options.get("size", 128)
        self.edits = options.get("edits", 0.0)
        self.noise = (options.get("noise_samples", 0.5), options.get("noise_tokens", 0.1))
        self.semantic_noise = (self.noise[0], options.get("semantic_noise", self.noise[1]))
        self.drops = (options.get("semantic_drop", 0.1), options.get("pixel_drop", 0.1), options.get("map_drop", 0.05))
        self.mask_drop = options.get("mask_drop", 0.1)
        self.object_weight = options.get("object_weight", 3.0)
        self.resolution_index = float(options.get("resolution_index", 0))
        if self.drops[0] >= 1:  # input channels that are never seen must not act when they are
            code_width = components.visual_tokenizer.config.code_dim
            with torch.no_grad():
                components.unet.conv_in.weight[:, components.vae.config.latent_channels :][:, :code_width] = 0
        config = components.scheduler.config
        # The sampler's own betas, seen as the diffusion process they discretise.
        self.process = DDPMScheduler(
            num_train_timesteps=config.num_train_timesteps,
            beta_start=config.beta_start,
            beta_end=config.beta_end,
            beta_schedule=config.beta_schedule,
            prediction_type=config.prediction_type,
        )

    def modules(self) -> dict[str, nn.Module]:
        """UNet and mask conditioner, and the frozen models they learn from."""
        names = ["unet", "vae", "visual_tokenizer"]
        names += ["vision_encoder"] if self.drops[0] < 1 else []
        names += ["mask_conditioner"] if self.edits else []
        return {name: getattr(self.components, name) for name in names}

    def batch(self, step: int) -> EditBatch:
        """Scenes, or edits of scenes, of this step."""
        recipe = self.recipe
        scenes = scene_batch(recipe.seed, step, recipe.batch_size, self.size)
        rng = np.random.default_rng((recipe.seed, step, 3))
        if rng.random() >= self.edits:
            objects = np.stack([r.masks.any(0) for r in scenes.rendered])
            return EditBatch(scenes.pixel_values, objects=torch.from_numpy(objects).float()[:, None])
        edits = [sample_edit(scene, rng) for scene in scenes.scenes]
        change = [rough_support(scene, edit, self.size, rng) for scene, edit in zip(scenes.scenes, edits, strict=True)]
        target = to_pixel_values([render(edit.result, self.size).image for edit in edits])
        region = torch.from_numpy(np.stack(change)).float()[:, None]
        return EditBatch(target, scenes.pixel_values, region, region)

    def loss(self, batch: EditBatch, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Mean squared error of the scheduler's prediction type."""
        unet, vae = self.components.unet, self.components.vae
        with torch.no_grad():
            latents = vae.encode(batch.target).latent_dist.sample().float() * vae.config.scaling_factor
            token_map = self.token_map(batch)
        count = len(latents)
        noise = torch.randn_like(latents)
        times = torch.randint(0, self.process.config.num_train_timesteps, (count,), device=latents.device)
        noisy = self.process.add_noise(latents, noise, times)
        predicted_kind = self.process.config.prediction_type
        wanted = self.process.get_velocity(latents, noise, times) if predicted_kind == "v_prediction" else noise
        resized = F.interpolate(token_map, size=latents.shape[-2:], mode="nearest")
        states = latents.new_zeros(count, TEXT_TOKENS, unet.config.cross_attention_dim)
        if batch.change is not None and torch.rand(()) >= self.mask_drop:
            mask = resample_mask(batch.change, tuple(latents.shape[-2:]))
            states = torch.cat([states, self.components.mask_conditioner(mask, token_map).sequence.float()], dim=1)
        pooled_width = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        conditions = {
            "text_embeds": latents.new_zeros(count, pooled_width),
            "time_ids": latents.new_tensor([0, 0, 0, 0, 0, self.resolution_index]).expand(count, -1),
        }
        out = unet(torch.cat([noisy, resized], 1), times, states, added_cond_kwargs=conditions).sample.float()
        weights = torch.ones_like(latents[:, :1])
        if batch.objects is not None:
            weights += (self.object_weight - 1) * resample_mask(batch.objects, tuple(latents.shape[-2:]))
        errors = (weights * (out - wanted).square()).mean((1, 2, 3)) / weights.mean((1, 2, 3))
        early = times > self.process.config.num_train_timesteps // 2
        figures = {
            "mse_noisy_half": errors.detach()[early].mean().item() if early.any() else float("nan"),
            "mse_clean_half": errors.detach()[~early].mean().item() if (~early).any() else float("nan"),
        }
        return errors.mean(), {name: value for name, value in figures.items() if value == value}

    def token_map(self, batch: EditBatch) -> torch.Tensor:
        """The merged map [B, 2C, hp, wp]: source codes outside the change, target codes inside; noise and drops applied."""
        tokenizer = self.components.visual_tokenizer
        semantic_drop, pixel_drop, map_drop = self.drops
        pixel = self._indices(batch, self._pixel_indices)
        codes = tokenizer.pixel_quantizer.lookup(pixel).movedim(-1, 1)
        codes = replace_codes(
            codes, tokenizer.pixel_quantizer.lookup, tokenizer.config.pixel_codebook_size, *self.noise
        )
        codes = drop_samples(codes, pixel_drop)
        if semantic_drop >= 1:
            semantic = torch.zeros_like(codes)
        else:
            indices = self._indices(batch, self._semantic_indices)
            semantic = tokenizer.semantic_quantizer.lookup(indices).movedim(-1, 1)
            semantic = replace_codes(
                semantic,
                tokenizer.semantic_quantizer.lookup,
                tokenizer.config.semantic_codebook_size,
                *self.semantic_noise,
            )
            semantic = drop_samples(semantic, semantic_drop)
        return drop_samples(tokenizer.merge(semantic.float(), codes.float()), map_drop)

    def _indices(self, batch: EditBatch, encode) -> torch.Tensor:
        target = encode(batch.target)
        if batch.source is None:
            return target
        inside = resample_mask(batch.change, tuple(target.shape[-2:]), "any")[:, 0] > 0
        return torch.where(inside, target, encode(batch.source))

    def _pixel_indices(self, pixels: torch.Tensor) -> torch.Tensor:
        tokenizer = self.components.visual_tokenizer
        return tokenizer.quantize_pixels(tokenizer.encode_pixels(pixels))[1]

    def _semantic_indices(self, pixels: torch.Tensor) -> torch.Tensor:
        processor = self.components.image_processor
        size = tuple(pixels.shape[-2:])
        features = fused_features(
            self.components.vision_encoder, pixels, processor.low_size(*size), processor.high_size(*size)
        )
        return self.components.visual_tokenizer.encode_semantic(features)[1]
