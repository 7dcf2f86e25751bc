"""Stage 0, features: the pyramid learns to name what is under a mask, before anything has to find it.

A 3B run downloads a ConvNeXt that knows shapes; focus-tiny's has to learn them. Trained through masks and proposals alone it
learned colours (0.96 right) and hardly any shape (0.23, chance 0.125) in 41,000 pictures: its share of the loss was lost among
masks. Here the features of every scale, and of the pixel decoder, are averaged under each object's true mask and a linear
read-out names colour, shape, fill and size; the region tokens of click, scribble, box and mask prompts are trained the same way.
The heads are thrown away afterwards. This project's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..data.regions_sampling import region_prompt
from ..data.world import COLOURS, FILLS, SHAPES, SIZES, Scene
from ..models.mask_decoder import FocusMaskDecoder
from ..models.vision_encoder import FocusVisionEncoder
from ..processing.images import make_inputs
from .batches import SceneBatch, scene_batch
from .trainer import StageRecipe

WORDS = (*COLOURS, *SHAPES, *FILLS, *SIZES)
WORD_GROUPS = (len(COLOURS), len(SHAPES), len(FILLS), len(SIZES))
GROUP_WEIGHTS = (1.0, 2.0, 1.0, 1.0)  # shapes are by far the hardest of the four
REGION_KINDS = ("click", "scribble", "box", "mask")


def word_targets(scene: Scene) -> torch.Tensor:
    """One row an object: 1 for its colour, shape, fill and size, float [M, W]."""
    rows = torch.zeros(len(scene.objects), len(WORDS))
    for row, item in zip(rows, scene.objects, strict=True):
        for word in (item.colour, item.shape, item.fill, item.size):
            row[WORDS.index(word)] = 1
    return rows


def region_raster(mask: np.ndarray, kind: str, rng: np.random.Generator) -> torch.Tensor:
    """A region prompt of `kind` on an object's mask as float [1, S, S]."""
    return torch.from_numpy(region_prompt(mask, kind, rng).rasterize(*mask.shape)).float()[None]


def word_cross_entropy(logits: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Weighted mean over the four word groups of softmax cross-entropy, [M, W] each."""
    parts = zip(GROUP_WEIGHTS, logits.float().split(WORD_GROUPS, -1), words.split(WORD_GROUPS, -1), strict=True)
    return torch.stack([weight * F.cross_entropy(g, w.argmax(-1)) for weight, g, w in parts]).sum() / sum(GROUP_WEIGHTS)


def words_right(logits: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Whether the best word of each group is the true one, bool [4, M]."""
    parts = zip(logits.split(WORD_GROUPS, -1), words.split(WORD_GROUPS, -1), strict=True)
    return torch.stack([g.argmax(-1) == w.argmax(-1) for g, w in parts])


def all_words_right(logits: torch.Tensor, words: torch.Tensor) -> float:
    """Share of rows in which the best word of every group is the true one."""
    return float(words_right(logits, words).all(0).float().mean())


class ObjectWords(nn.Module):
    """Linear read-outs of the four words of an object from features averaged under its mask, one for each scale."""

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(c, len(WORDS)) for c in channels)

    def forward(
        self, maps: Sequence[torch.Tensor], masks: Sequence[torch.Tensor], words: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss over all scales, and the last map's logits.

        Args:
            maps: [B, C_l, h_l, w_l], one a scale.
            masks: B tensors [M_b, S, S].
            words: B tensors [M_b, W].
        """
        wanted = torch.cat(list(words))
        losses = []
        logits = wanted
        for head, feature_map in zip(self.heads, maps, strict=True):
            pooled = []
            for features, mask in zip(feature_map, masks, strict=True):
                weight = F.adaptive_avg_pool2d(mask[None], feature_map.shape[-2:])[0].flatten(1)
                weight = weight / weight.sum(1, keepdim=True).clamp(min=1e-6)
                pooled.append(weight.to(features.dtype) @ features.flatten(1).T)
            rows = torch.cat(pooled).float()
            logits = head(F.layer_norm(rows, rows.shape[-1:]))
            losses.append(word_cross_entropy(logits, wanted))
        return torch.stack(losses).sum(), logits


@dataclass
class FeatureBatch:
    """Scenes, masks B x [M_b, S, S], words B x [M_b, W], and a region prompt for every object [M, 1, S, S]."""

    scenes: SceneBatch
    masks: list[torch.Tensor]
    words: list[torch.Tensor]
    regions: torch.Tensor
    region_images: torch.Tensor


class FeatureObjective:
    """Train the pyramid, the region pooler and the pixel decoder to name objects; crowded pictures (more to learn a picture)."""

    def __init__(
        self,
        vision_encoder: FocusVisionEncoder,
        mask_decoder: FocusMaskDecoder,
        recipe: StageRecipe,
        *,
        low_size: tuple[int, int],
        high_size: tuple[int, int],
    ):
        self.encoder, self.decoder, self.recipe = vision_encoder, mask_decoder, recipe
        self.low_size, self.high_size = low_size, high_size
        self.size = recipe.options.get("size", 128)
        self.heads = nn.ModuleDict(
            {
                "object_words": ObjectWords([*mask_decoder.config.in_channels, mask_decoder.config.mask_dim]),
                "region_words": nn.Linear(vision_encoder.config.language_hidden_size, len(WORDS)),
            }
        )

    def modules(self) -> dict[str, nn.Module]:
        """Encoder, mask decoder (its pixel decoder) and the training-only heads."""
        return {"vision_encoder": self.encoder, "mask_decoder": self.decoder, "heads": self.heads}

    def batch(self, step: int) -> FeatureBatch:
        """Pictures of 4 to 8 objects, a region prompt on each."""
        recipe = self.recipe
        scenes = scene_batch(recipe.seed, step, recipe.batch_size, self.size, num_objects=(4, 8))
        rng = np.random.default_rng((recipe.seed, step, 1))
        regions = [region_raster(mask, str(rng.choice(REGION_KINDS)), rng) for r in scenes.rendered for mask in r.masks]
        return FeatureBatch(
            scenes,
            [torch.from_numpy(r.masks).float() for r in scenes.rendered],
            [word_targets(s) for s in scenes.scenes],
            torch.stack(regions),
            torch.tensor([i for i, s in enumerate(scenes.scenes) for _ in s.objects]),
        )

    def loss(self, batch: FeatureBatch, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Word losses of every scale and of the region tokens."""
        low, high = make_inputs(batch.scenes.pixel_values, self.low_size, self.high_size)
        seen = self.encoder(low, high, regions=batch.regions, image_index=batch.region_images)
        pixels = self.decoder.encode(seen.feature_maps)
        scales, logits = self.heads["object_words"](
            [*seen.feature_maps, pixels.mask_features], batch.masks, batch.words
        )
        wanted = torch.cat(batch.words)
        region_logits = self.heads["region_words"](seen.region_tokens)
        regions = word_cross_entropy(region_logits, wanted)
        colour, shape, fill, size = words_right(logits, wanted).float().mean(1).tolist()
        figures = {
            "scales": float(scales.detach()),
            "regions": float(regions.detach()),
            "colour": colour,
            "shape": shape,
            "fill": fill,
            "size": size,
            "region_shape": float(words_right(region_logits, wanted)[1].float().mean()),
            "region_names": all_words_right(region_logits, wanted),
        }
        return scales + regions, figures
