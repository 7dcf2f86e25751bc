"""Stage 1a, visual tokenizer: pixel branch, semantic branch, and the pixel decoder on both.

FOCUS section 3 with ILLUME+'s losses (arXiv 2504.01934, Apache-2.0): the pixel branch minimises L1 + perceptual + SimVQ and,
from a given step, 0.5 x the hinge loss of a PatchGAN; the semantic branch minimises cosine distance to the vision encoder's fused
features + SimVQ; optionally a tenth of the tokens of a tenth of the samples are replaced by random codes, so that the decoder
tolerates the language model's slips.

The two branches need not wait for each other. The pixel branch trains on an all-zero semantic map ("1a-pixel", before there is
an encoder to take features from); the semantic branch trains on frozen features alone ("1a-semantic"); the pixel decoder then
learns to read both ("1a-joint"), with the semantic map still left out of a share of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..models.vision_encoder import FocusVisionEncoder
from ..models.visual_tokenizer import FocusVisualTokenizer
from ..processing.images import CLIP_MEAN, CLIP_STD, make_inputs
from .batches import scene_batch
from .initialize import initialize_convolutions
from .losses import PatchDiscriminator, PerceptualLoss, cosine_loss, hinge_loss
from .trainer import StageRecipe

MEASURE_FROM = 10_000_000  # steps from here on are drawn for `finish` only; no run is that long


def initialize_pixel_branch(tokenizer: FocusVisualTokenizer) -> FocusVisualTokenizer:
    """Initialise the MoVQ networks and the code map for a short training from scratch, in place.

    Spatial norms begin as plain ones (scale 1, shift 0) with a small dependence on the map, and the code map begins as the
    identity, so that codes are spread like unit-variance features.
    """
    for network in (tokenizer.pixel_encoder, tokenizer.pixel_decoder):
        initialize_convolutions(network, keep=("conv_y", "conv_b"))
    for name, module in tokenizer.pixel_decoder.named_modules():
        if name.endswith(("conv_y", "conv_b")):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.constant_(module.bias, float(name.endswith("conv_y")))
    initialize_convolutions(tokenizer.pixel_quant_conv)
    nn.init.eye_(tokenizer.pixel_post_quant_conv.weight[:, :, 0, 0].data)
    nn.init.zeros_(tokenizer.pixel_post_quant_conv.bias)
    nn.init.eye_(tokenizer.pixel_quantizer.code_transform.weight)
    return tokenizer


def code_usage(indices: torch.Tensor, codebook_size: int) -> tuple[float, float]:
    """Share of the codebook that occurs in `indices` (any shape) and the perplexity of the codes in them."""
    counts = torch.bincount(indices.flatten(), minlength=codebook_size).float()
    p = counts / counts.sum()
    return float((counts > 0).float().mean()), float(torch.exp(-(p * p.clamp(min=1e-12).log()).sum()))


def replace_codes(
    codes: torch.Tensor,
    lookup: Callable[[torch.Tensor], torch.Tensor],
    codebook_size: int,
    samples: float,
    tokens: float,
) -> torch.Tensor:
    """Replace `tokens` of the tokens in `samples` of the samples by random codes (ILLUME+: 0.1 of 0.1, stage 1b 0.1 of 0.5).

    Args:
        codes: [B, C, h, w].
        lookup: int64 [...] -> codes [..., C].
        codebook_size: indices are drawn below it.
        samples, tokens: shares in 0..1.
    """
    if not samples or not tokens:
        return codes
    count, _, rows, columns = codes.shape
    chosen = torch.rand(count, 1, 1, device=codes.device) < samples
    chosen = chosen & (torch.rand(count, rows, columns, device=codes.device) < tokens)
    random = lookup(torch.randint(codebook_size, (count, rows, columns), device=codes.device)).movedim(-1, 1)
    return torch.where(chosen[:, None], random.detach().to(codes.dtype), codes)


def drop_samples(codes: torch.Tensor, share: float) -> torch.Tensor:
    """Zero the whole map [B, C, h, w] in a `share` of the samples."""
    if not share:
        return codes
    keep = torch.rand(len(codes), 1, 1, 1, device=codes.device) >= share
    return codes * keep.to(codes.dtype)


def pyramid_features(
    vision_encoder: FocusVisionEncoder, levels: int = 3
) -> Callable[[torch.Tensor], Sequence[torch.Tensor]]:
    """The first `levels` maps of the encoder's own ConvNeXt as features of `PerceptualLoss`; pictures in [-1, 1]."""

    def features(pixel_values: torch.Tensor) -> Sequence[torch.Tensor]:
        mean = pixel_values.new_tensor(CLIP_MEAN).view(1, 3, 1, 1)
        std = pixel_values.new_tensor(CLIP_STD).view(1, 3, 1, 1)
        return vision_encoder._pyramid_features(((pixel_values + 1) / 2 - mean) / std)[:levels]

    return features


@dataclass
class PixelBatch:
    """Pictures float32 [B, 3, S, S] in [-1, 1] and the weight of each pixel [B, 1, S, S], 1 in the mean."""

    pixels: torch.Tensor
    weights: torch.Tensor


class PixelTokenizerObjective:
    """Reconstruct scenes through the pixel branch.

    Args:
        visual_tokenizer: the tokenizer; groups of the recipe say what of it is trained.
        recipe: options `size` 128; `crop` (side of random crops, only without semantic codes); `semantic_drop` 1.0 (share of
            samples without semantic map; 1 needs no vision encoder); `object_weight` 4 (pixels of objects over those of the
            background, which is most of a picture and would take most of the codes); `edge_weight` 0.5 (L1 on differences of
            neighbouring pixels); `mse_weight` 1; `perceptual_weight` 1 where `perceptual` is given; `adversarial_weight` 0
            (paper 0.5) and `adversarial_start` 20000; `noise_samples` and `noise_tokens` 0 (paper 0.1 and 0.1);
            `initialize` True sets the initial weights of the pixel branch.
        perceptual: features of `PerceptualLoss`, or None to leave that loss out.
        vision_encoder: a frozen encoder where semantic codes are wanted.
        low_size, high_size: its input sizes (height, width).
    """

    defaults: dict[str, Any] = {"semantic_drop": 1.0, "initialize": True}

    def __init__(
        self,
        visual_tokenizer: FocusVisualTokenizer,
        recipe: StageRecipe,
        *,
        perceptual: Callable[[torch.Tensor], Sequence[torch.Tensor]] | None = None,
        vision_encoder: FocusVisionEncoder | None = None,
        low_size: tuple[int, int] | None = None,
        high_size: tuple[int, int] | None = None,
    ):
        options = {**self.defaults, **recipe.options}
        self.tokenizer, self.recipe, self.vision_encoder = visual_tokenizer, recipe, vision_encoder
        self.low_size, self.high_size = low_size, high_size
        self.size = options.get("size", 128)
        self.semantic_drop = options["semantic_drop"]
        self.crop = options.get("crop", self.size)
        self.edge_weight, self.mse_weight = options.get("edge_weight", 0.5), options.get("mse_weight", 1.0)
        self.object_weight = options.get("object_weight", 4.0)
        self.perceptual_weight = options.get("perceptual_weight", 1.0)
        self.noise = (options.get("noise_samples", 0.0), options.get("noise_tokens", 0.0))
        self.adversarial_weight = options.get("adversarial_weight", 0.0)
        self.adversarial_start = options.get("adversarial_start", 20_000)
        if self.semantic_drop < 1 and (vision_encoder is None or low_size is None):
            raise ValueError(
                f"semantic_drop is {self.semantic_drop}, so semantic codes are needed, but no vision_encoder (with low_size and "
                "high_size) was given; pass them, or set semantic_drop to 1."
            )
        if self.semantic_drop < 1 and self.crop < self.size:
            raise ValueError(
                f"crop={self.crop} needs semantic_drop=1: semantic codes are of whole pictures of {self.size} px."
            )
        if options["initialize"]:
            initialize_pixel_branch(visual_tokenizer)
        self.perceptual = PerceptualLoss(perceptual) if perceptual is not None and self.perceptual_weight else None
        self.discriminator = (
            PatchDiscriminator(options.get("adversarial_width", 64)) if self.adversarial_weight else None
        )

    def modules(self) -> dict[str, nn.Module]:
        """The tokenizer, and where they are used the frozen vision encoder and the discriminator."""
        modules: dict[str, nn.Module] = {"visual_tokenizer": self.tokenizer}
        if self.vision_encoder is not None:
            modules["vision_encoder"] = self.vision_encoder
        if self.discriminator is not None:
            modules["discriminator"] = self.discriminator
        return modules

    def batch(self, step: int) -> PixelBatch:
        """Pictures or crops of side `crop`, each around an object; every other batch mirrored."""
        scenes = scene_batch(self.recipe.seed, step, self.recipe.batch_size, self.size)
        pixels = scenes.pixel_values
        objects = torch.stack([torch.from_numpy(r.masks.any(0)).float()[None] for r in scenes.rendered])
        weights = 1 + (self.object_weight - 1) * objects
        if step % 2:
            pixels, weights = pixels.flip(-1), weights.flip(-1)
        if self.crop < self.size and step < MEASURE_FROM:
            corners = []
            for scene in scenes.scenes:
                item = scene.objects[int(torch.randint(len(scene.objects), ()))]
                centre = torch.tensor([item.cy, 1 - item.cx if step % 2 else item.cx]) * self.size
                corner = centre - torch.rand(2) * self.crop
                corners.append(corner.round().long().clamp(0, self.size - self.crop).tolist())
            windows = [(slice(None), slice(y, y + self.crop), slice(x, x + self.crop)) for y, x in corners]
            pixels = torch.stack([p[w] for p, w in zip(pixels, windows, strict=True)])
            weights = torch.stack([p[w] for p, w in zip(weights, windows, strict=True)])
        device = self.tokenizer.device
        return PixelBatch(pixels.to(device), (weights / weights.mean()).to(device))

    def loss(self, batch: PixelBatch, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """L1 + MSE + edges + perceptual + SimVQ (+ adversarial)."""
        tokenizer = self.tokenizer
        pixels, weights = batch.pixels, batch.weights
        codes, indices, vq = tokenizer.quantize_pixels(tokenizer.encode_pixels(pixels))
        codebook = tokenizer.config.pixel_codebook_size
        noisy = replace_codes(codes, tokenizer.pixel_quantizer.lookup, codebook, *self.noise)
        decoded = tokenizer.decode(self.semantic_codes(pixels, codes), noisy).float()
        error = decoded - pixels
        mse, l1 = (weights * error.square()).mean(), (weights * error.abs()).mean()
        edges = (weights[..., 1:] * error.diff(dim=-1).abs()).mean()
        edges = edges + (weights[..., 1:, :] * error.diff(dim=-2).abs()).mean()
        total = l1 + self.mse_weight * mse + self.edge_weight * edges + vq
        psnr = -10 * torch.log10(error.detach().square().mean() / 4)
        inside = weights.expand_as(error) > weights.min()
        psnr_objects = -10 * torch.log10(error.detach()[inside].square().mean() / 4)
        figures = {"l1": l1.item(), "psnr": psnr.item(), "psnr_objects": psnr_objects.item(), "vq": vq.item()}
        figures["codes"] = code_usage(indices, codebook)[1]
        if self.perceptual is not None:
            perceptual = self.perceptual(decoded, pixels)
            figures["perceptual"] = perceptual.item()
            total = total + self.perceptual_weight * perceptual
        if self.discriminator is not None and step >= self.adversarial_start:
            adversarial, parts = self._adversarial(pixels, decoded)
            total = total + adversarial
            figures.update(parts)
        return total, figures

    def semantic_codes(self, batch: torch.Tensor, pixel_codes: torch.Tensor) -> torch.Tensor:
        """Semantic codes [B, C, hs, ws] without gradient, zero where the sample goes without."""
        if self.semantic_drop >= 1:
            return torch.zeros_like(pixel_codes).detach()
        with torch.no_grad():
            fused = fused_features(self.vision_encoder, batch, self.low_size, self.high_size)
            codes = self.tokenizer.encode_semantic(fused)[0]
            codebook = self.tokenizer.config.semantic_codebook_size
            codes = replace_codes(codes, self.tokenizer.semantic_quantizer.lookup, codebook, *self.noise)
            return drop_samples(codes, self.semantic_drop)

    def _adversarial(self, real: torch.Tensor, fake: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        """Both players in one loss: the discriminator sees detached pictures, the generator a detached discriminator."""
        discriminator = self.discriminator
        assert discriminator is not None
        judged = hinge_loss(discriminator(real), discriminator(fake.detach()))
        frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
        fooled = -torch.func.functional_call(discriminator, frozen, (fake,)).float().mean()
        return judged + self.adversarial_weight * fooled, {"discriminator": judged.item(), "adversarial": fooled.item()}

    @torch.no_grad()
    def finish(self) -> dict[str, float]:
        """Measure PSNR and code usage on 256 scenes that were not trained on; changes nothing."""
        tokenizer = self.tokenizer.eval()
        indices, errors = [], []
        for i in range(-(-256 // self.recipe.batch_size)):
            pixels = self.batch(MEASURE_FROM + i).pixels
            codes, index, _ = tokenizer.quantize_pixels(tokenizer.encode_pixels(pixels))
            decoded = tokenizer.decode(self.semantic_codes(pixels, codes), codes).float().clamp(-1, 1)
            errors.append((decoded - pixels).square().mean((1, 2, 3)))
            indices.append(index)
        used, perplexity = code_usage(torch.cat(indices), tokenizer.config.pixel_codebook_size)
        psnr = 10 * torch.log10(4 / torch.cat(errors)).mean()
        return {"psnr": psnr.item(), "pixel_codes_used": used, "pixel_perplexity": perplexity}


class JointTokenizerObjective(PixelTokenizerObjective):
    """The pixel decoder learns to read semantic codes: `PixelTokenizerObjective` with 10% of the samples without them.

    Encoders and codebooks are frozen by the recipe, which trains `pixel_decoder` and `pixel_post_quant_conv` only.
    """

    defaults = {"semantic_drop": 0.1, "initialize": False}


class SemanticTokenizerObjective:
    """Quantise the frozen vision encoder's fused features E' and reconstruct them (cosine + SimVQ).

    Args:
        visual_tokenizer: its semantic branch is trained.
        vision_encoder: frozen.
        recipe: options `size` 128; `noise_samples`, `noise_tokens` 0; `initialize` True starts the code map as the identity.
        low_size, high_size: the encoder's input sizes (height, width).
    """

    def __init__(
        self,
        visual_tokenizer: FocusVisualTokenizer,
        vision_encoder: FocusVisionEncoder,
        recipe: StageRecipe,
        *,
        low_size: tuple[int, int],
        high_size: tuple[int, int],
    ):
        self.tokenizer, self.vision_encoder, self.recipe = visual_tokenizer, vision_encoder, recipe
        self.low_size, self.high_size = low_size, high_size
        self.size = recipe.options.get("size", 128)
        self.noise = (recipe.options.get("noise_samples", 0.0), recipe.options.get("noise_tokens", 0.0))
        if recipe.options.get("initialize", True):
            nn.init.eye_(visual_tokenizer.semantic_quantizer.code_transform.weight)

    def modules(self) -> dict[str, nn.Module]:
        """The tokenizer and the frozen vision encoder."""
        return {"visual_tokenizer": self.tokenizer, "vision_encoder": self.vision_encoder}

    def batch(self, step: int) -> torch.Tensor:
        """[B, 3, size, size] in [-1, 1]."""
        pixels = scene_batch(self.recipe.seed, step, self.recipe.batch_size, self.size).pixel_values
        return pixels.to(self.tokenizer.device)

    def loss(self, batch: torch.Tensor, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Cosine distance of reconstructed and true features + SimVQ."""
        fused = fused_features(self.vision_encoder, batch, self.low_size, self.high_size)
        codes, indices, vq, target = self.tokenizer.encode_semantic(fused)
        codebook = self.tokenizer.config.semantic_codebook_size
        codes = replace_codes(codes, self.tokenizer.semantic_quantizer.lookup, codebook, *self.noise)
        cosine = cosine_loss(self.tokenizer.decode_semantic(codes), target)
        return cosine + vq, {"cosine": cosine.item(), "vq": vq.item(), "codes": code_usage(indices, codebook)[1]}

    @torch.no_grad()
    def finish(self) -> dict[str, float]:
        """Measure cosine distance and code usage on 256 scenes that were not trained on; changes nothing."""
        tokenizer = self.tokenizer.eval()
        indices, distances = [], []
        for i in range(-(-256 // self.recipe.batch_size)):
            pixels = self.batch(MEASURE_FROM + i)
            fused = fused_features(self.vision_encoder, pixels, self.low_size, self.high_size)
            codes, index, _, target = tokenizer.encode_semantic(fused)
            distances.append(cosine_loss(tokenizer.decode_semantic(codes), target))
            indices.append(index)
        used, perplexity = code_usage(torch.cat(indices), tokenizer.config.semantic_codebook_size)
        cosine = torch.stack(distances).mean().item()
        return {"semantic_cosine": cosine, "semantic_codes_used": used, "semantic_perplexity": perplexity}


@torch.no_grad()
def fused_features(
    vision_encoder: FocusVisionEncoder,
    pixel_values: torch.Tensor,
    low_size: tuple[int, int],
    high_size: tuple[int, int],
) -> torch.Tensor:
    """E' [B, hs, ws, Dv] of pictures [B, 3, H, W] in [-1, 1]: what the semantic branch quantises."""
    return vision_encoder(*make_inputs(pixel_values, low_size, high_size)).fused_features
