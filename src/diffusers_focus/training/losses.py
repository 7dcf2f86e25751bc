"""Losses of FOCUS's stages: masks (Dice + BCE), conditions, tokens, tokenizer (L1 + perceptual + adversarial + cosine).

Paper section 3 and its training table; the details it leaves open follow Mask2Former / PSALM (segmentation.md section 4) and
ILLUME+ (checkpoints.md section 5), both Apache-2.0 or MIT.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn


def dice_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """1 - Dice of each row: [M, P] logits and targets in 0..1 -> float32 [M]."""
    probabilities, targets = logits.float().sigmoid(), targets.float()
    return 1 - (2 * (probabilities * targets).sum(-1) + 1) / (probabilities.sum(-1) + targets.sum(-1) + 1)


def mask_loss(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean BCE and mean Dice loss of matched masks, [M, h, w] each; zeros that keep the graph where M is 0."""
    if not len(logits):
        zero = logits.sum().float()
        return zero, zero
    bce = F.binary_cross_entropy_with_logits(logits.float(), targets.float())
    return bce, dice_loss(logits.flatten(1), targets.flatten(1)).mean()


def selection_loss(logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """BCE of "does this proposal answer this condition", balanced: positives of a condition weigh as much as its negatives.

    Args:
        logits: [..., N], a score for each proposal.
        targets: [..., N] in 0..1.
        valid: [...] weights of the rows, or None where all count the same.

    Returns:
        float32 scalar. PSALM's pos_weight (N - m) / m per row, bounded so that a row without positives stays finite.
    """
    logits, targets = logits.float(), targets.float()
    count = logits.shape[-1]
    positives = targets.sum(-1, keepdim=True)
    weight = ((count - positives) / positives.clamp(min=1)).clamp(1, count)
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    losses = (losses * torch.where(targets > 0.5, weight, torch.ones_like(weight))).mean(-1)
    if valid is None:
        return losses.mean()
    return (losses * valid).sum() / valid.sum().clamp(min=1)


def identity_loss(
    embeds: torch.Tensor, objects: torch.Tensor, clips: torch.Tensor, frames: torch.Tensor, temperature: float = 0.1
) -> torch.Tensor:
    """Contrast of instance embeddings between the frames of a clip: cross-entropy of "which of the other frames' proposals
    is the same object", by cosine similarity over `temperature`.

    The relatives' form (IDOL, arXiv 2207.10661: one positive against the other proposals of the other frame) with its sum over
    positives taken inside the logarithm, since several prompts find the same object.

    Args:
        embeds: [M, D], of proposals that were matched with an object.
        objects, clips, frames: int64 [M], which object of which clip in which picture.

    Returns:
        float32 [n], of the proposals whose object is in another frame of their clip.
    """
    same_clip = clips[:, None] == clips[None]
    others = same_clip & (frames[:, None] != frames[None])
    positives = others & (objects[:, None] == objects[None])
    rows = positives.any(1)
    unit = F.normalize(embeds.float(), dim=-1)
    logits = unit @ unit.T / temperature
    lowest = torch.finfo(logits.dtype).min
    everything = logits.masked_fill(~others, lowest).logsumexp(1)
    return (everything - logits.masked_fill(~positives, lowest).logsumexp(1))[rows]


def mask_iou(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """IoU of thresholded masks: [M, h, w] logits (> 0) and targets (> 0.5) -> float32 [M]."""
    predicted, true = logits.flatten(1) > 0, targets.flatten(1) > 0.5
    return (predicted & true).sum(-1) / (predicted | true).sum(-1).clamp(min=1)


def cosine_loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 - cosine similarity along the last axis, averaged: the semantic branch's reconstruction loss."""
    return 1 - F.cosine_similarity(predicted.float(), target.float(), dim=-1).mean()


class PerceptualLoss(nn.Module):
    """Distance of channel-normalised feature maps of any frozen network with locally given weights.

    With a VGG and its learned weights this is LPIPS (Zhang et al. 2018); focus-tiny uses its own stage-0 pyramid.
    `features` maps [B, 3, H, W] in [-1, 1] to a sequence of [B, C, h, w].
    """

    def __init__(self, features: Callable[[torch.Tensor], Sequence[torch.Tensor]]):
        super().__init__()
        self.features = features

    def forward(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """float32 scalar; gradients reach `predicted` only."""
        with torch.no_grad():
            wanted = [feature.detach() for feature in self.features(target)]
        total = predicted.new_zeros((), dtype=torch.float32)
        for got, want in zip(self.features(predicted), wanted, strict=True):
            got, want = F.normalize(got.float(), dim=1), F.normalize(want.float(), dim=1)
            total = total + (got - want).square().sum(1).mean()
        return total


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017) with `layers` stride-2 convolutions; [B, 3, H, W] -> [B, 1, h, w] logits."""

    def __init__(self, width: int = 64, layers: int = 3):
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        channels = width
        for i in range(1, layers + 1):
            following = width * min(2**i, 8)
            stride = 2 if i < layers else 1
            blocks += [nn.Conv2d(channels, following, 4, stride, 1), nn.GroupNorm(8, following), nn.LeakyReLU(0.2)]
            channels = following
        self.blocks = nn.Sequential(*blocks, nn.Conv2d(channels, 1, 4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Patch logits, positive for real."""
        return self.blocks(x)


def hinge_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """The discriminator's hinge loss."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())
