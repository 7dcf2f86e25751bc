"""Stage 0, VAE: the stock `AutoencoderKL` that a 3B run downloads with SDXL, trained on the world (focus.md section 5).

L1 + MSE + edge term and a small KL, as in latent diffusion (Rombach et al. 2022, MIT) without the adversarial part: the world
has no texture that would need it. The scaling factor is measured once at the end so that latents have unit variance.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn

from .batches import scene_batch
from .trainer import StageRecipe


class AutoencoderObjective:
    """Reconstruct scenes through `AutoencoderKL`; options: `kl_weight`, `size`, `crop`."""

    def __init__(self, vae: AutoencoderKL, recipe: StageRecipe):
        self.vae = vae.to(memory_format=torch.channels_last)
        self.recipe = recipe
        self.kl_weight = recipe.options.get("kl_weight", 1e-5)
        self.size = recipe.options.get("size", 128)
        self.crop = recipe.options.get("crop", self.size)

    def modules(self) -> dict[str, nn.Module]:
        """The VAE."""
        return {"vae": self.vae}

    def batch(self, step: int) -> torch.Tensor:
        """[B, 3, crop, crop] in [-1, 1], half of the pictures mirrored so that stripes lean both ways."""
        pixels = scene_batch(self.recipe.seed, step, self.recipe.batch_size, self.size).pixel_values
        if step % 2:
            pixels = pixels.flip(-1)
        if self.crop < self.size:  # a convolutional VAE learns as much from crops, and twice the scenes fit in a step
            corners = torch.randint(0, self.size - self.crop + 1, (len(pixels), 2)).tolist()
            pixels = torch.stack(
                [p[:, y : y + self.crop, x : x + self.crop] for p, (y, x) in zip(pixels, corners, strict=True)]
            )
        return pixels.contiguous(memory_format=torch.channels_last)

    def loss(self, batch: torch.Tensor, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """L1 + MSE on pixels, L1 on their differences (edges), KL."""
        posterior = self.vae.encode(batch).latent_dist
        decoded = self.vae.decode(posterior.sample()).sample.float()
        mse = F.mse_loss(decoded, batch)
        l1 = F.l1_loss(decoded, batch)
        edges = F.l1_loss(decoded.diff(dim=-1), batch.diff(dim=-1)) + F.l1_loss(
            decoded.diff(dim=-2), batch.diff(dim=-2)
        )
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        psnr = 10 * torch.log10(4 / mse.detach())
        figures = {"l1": l1.item(), "kl": kl.item(), "psnr": psnr.item()}
        return l1 + mse + 0.5 * edges + self.kl_weight * kl * 64, figures

    @torch.no_grad()
    def finish(self) -> dict[str, float]:
        """Measure the latents' spread and store 1/std as the VAE's `scaling_factor`."""
        self.vae.eval()
        latents = [self.vae.encode(self.batch(10_000_000 + i)).latent_dist.mode() for i in range(8)]
        std = torch.cat(latents).float().std().item()
        self.vae.register_to_config(scaling_factor=round(1.0 / std, 5))
        return {"latent_std": std}
