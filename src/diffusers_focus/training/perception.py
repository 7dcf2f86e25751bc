"""Stage 0, encoders: what a 3B run downloads (a ViT, a ConvNeXt, a Mask2Former), focus-tiny trains on the world.

Masks and names. The K query tokens of the gated adapter are read as proposals: they go into the mask decoder where the
language model's mask slots go later, and the conditions are a learned table of the world's attribute words (colour, shape,
fill, size) plus the region token of one object. So every part meets its later interface from the first step: queries become
object slots, the condition is the classifier, region tokens select. Training-only heads, thrown away afterwards: the word
table, a linear read-out of place and size from the queries, dense words on the stride-4 features, and words of each cell of the
ViT grid. Matching as Mask2Former (MIT).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..data.world import COLOURS, SHAPES
from ..models.mask_decoder import FocusMaskDecoder
from ..models.vision_encoder import FocusVisionEncoder
from ..processing.images import make_inputs
from .batches import SceneBatch, scene_batch
from .features import (
    REGION_KINDS,
    WORDS,
    ObjectWords,
    all_words_right,
    region_raster,
    word_cross_entropy,
    word_targets,
    words_right,
)
from .losses import mask_iou, mask_loss, selection_loss
from .matcher import match
from .trainer import StageRecipe

PLACE_WEIGHT = 4.0  # of the L1 distance of places and sizes when proposals are matched with objects


@dataclass
class PerceptionBatch:
    """Scenes, their region prompts (one object each) and their targets.

    Args:
        scenes: the scenes with `pixel_values` [B, 3, S, S].
        masks: B float tensors [M_b, S, S], visible masks.
        words: B float tensors [M_b, W], one-hot in each word group.
        geometry: B float tensors [M_b, 3]: centre x, y and radius in fractions of the side.
        regions: [B, 1, S, S] float, a region prompt.
        region_objects: B object indices.
    """

    scenes: SceneBatch
    masks: list[torch.Tensor]
    words: list[torch.Tensor]
    geometry: list[torch.Tensor]
    regions: torch.Tensor
    region_objects: list[int]


class PerceptionObjective:
    """Train `FocusVisionEncoder` and `FocusMaskDecoder` on masks and names."""

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
        hidden = vision_encoder.config.language_hidden_size
        vision_dim = vision_encoder.vit.config.hidden_size
        self.heads = nn.ModuleDict(
            {
                "words": nn.Embedding(len(WORDS), hidden),
                "query_words": nn.Linear(hidden, len(WORDS)),
                "query_geometry": nn.Linear(hidden, 3),
                "query_present": nn.Linear(hidden, 1),
                "region_words": nn.Linear(hidden, len(WORDS)),
                "object_words": ObjectWords([*mask_decoder.config.in_channels, mask_decoder.config.mask_dim]),
                "low_words": nn.Linear(vision_dim, len(COLOURS) * len(SHAPES) + len(WORDS)),
                "cell_words": nn.Linear(vision_dim, len(COLOURS) * len(SHAPES) + len(WORDS)),
            }
        )

    @torch.no_grad()
    def calibrate_places(self) -> None:
        """Start the read-out of places where the queries' anchors are, so that objects are matched with queries near them.

        Without it the first matches are arbitrary, teach the queries no place, and stay arbitrary.
        """
        batch = self.batch(0)
        low, high = make_inputs(batch.scenes.pixel_values, self.low_size, self.high_size)
        tokens = self.encoder(low, high).query_tokens.float()
        count = tokens.shape[1]
        side = math.ceil(count**0.5)
        numbers = torch.arange(count)
        radius = torch.full((count,), 0.12)  # between small and large
        anchors = torch.stack([(numbers % side + 0.5) / side, (numbers // side + 0.5) / side, radius], dim=1)
        inputs = torch.cat([tokens.flatten(0, 1), torch.ones(tokens.shape[0] * count, 1)], dim=1)
        wanted = anchors.repeat(tokens.shape[0], 1)
        # Ridge regression: the tokens of one batch must not be fitted to the last digit.
        gram = inputs.T @ inputs + 1e-2 * len(inputs) * inputs.square().mean() * torch.eye(inputs.shape[1])
        weights = torch.linalg.solve(gram, inputs.T @ wanted)
        self.heads["query_geometry"].weight.copy_(weights[:-1].T)
        self.heads["query_geometry"].bias.copy_(weights[-1])

    def modules(self) -> dict[str, nn.Module]:
        """Encoder, mask decoder and the training-only heads."""
        return {"vision_encoder": self.encoder, "mask_decoder": self.decoder, "heads": self.heads}

    def batch(self, step: int) -> PerceptionBatch:
        """Scenes of this step with one region prompt each, kinds in turn."""
        recipe = self.recipe
        twins = recipe.options.get("twins", 0.0)
        scenes = scene_batch(recipe.seed, step, recipe.batch_size, self.size, twins=twins)
        rng = np.random.default_rng((recipe.seed, step, 1))
        objects = [int(rng.integers(len(s.objects))) for s in scenes.scenes]
        regions = [
            region_raster(r.masks[o], REGION_KINDS[i % len(REGION_KINDS)], rng)
            for i, (r, o) in enumerate(zip(scenes.rendered, objects, strict=True))
        ]
        return PerceptionBatch(
            scenes,
            [torch.from_numpy(r.masks).float() for r in scenes.rendered],
            [word_targets(s) for s in scenes.scenes],
            [torch.tensor([[o.cx, o.cy, o.r] for o in s.objects]) for s in scenes.scenes],
            torch.stack(regions),
            objects,
        )

    def loss(self, batch: PerceptionBatch, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Masks, words, geometry, region selection, dense words."""
        low, high = make_inputs(batch.scenes.pixel_values, self.low_size, self.high_size)
        seen = self.encoder(low, high, regions=batch.regions, image_index=torch.arange(len(low)))
        pixels = self.decoder.encode(seen.feature_maps)
        count = len(low)
        words = self.heads["words"].weight[None, None].expand(count, 1, -1, -1)
        conditions = torch.cat([words, seen.region_tokens[:, None, None].to(words.dtype)], dim=2)
        out = self.decoder.decode(
            pixels,
            seen.query_tokens[:, None],
            conditions,
            return_auxiliary=True,
            dense=False,
            answer_states=torch.zeros_like(conditions[:, :, 0]),  # there is no language model yet that could answer
        )

        # Matching and the earlier layers look at masks of half the resolution: a quarter of the cost, the same assignment.
        coarse = F.avg_pool2d(pixels.mask_features, 2)
        places = self.heads["query_geometry"](seen.query_tokens.float())
        distances = [
            PLACE_WEIGHT * torch.cdist(p.detach(), true, p=1) for p, true in zip(places, batch.geometry, strict=True)
        ]
        small = [F.interpolate(m[None], size=coarse.shape[-2:], mode="area")[0] for m in batch.masks]
        losses: dict[str, torch.Tensor] = {}
        layers = [
            (embeds, scores) for (embeds, _), (_, _, scores) in zip(out.auxiliary_embeds, out.auxiliary, strict=True)
        ]
        layers.append((out.mask_embeds, out.condition_logits))
        pairs = query_pairs = None
        for index, (embeds, condition_logits) in enumerate(layers):
            condition_logits = condition_logits[:, 0]
            mask_logits = torch.einsum("bnc,bchw->bnhw", embeds[:, 0], coarse)
            costs = zip(self._word_costs(condition_logits, batch.words), distances, strict=True)
            pairs = match(mask_logits, small, [words + distance for words, distance in costs])
            final = index == len(layers) - 1
            if (
                index == 0
            ):  # predicted from the queries alone, before the decoder looks again: what they themselves found
                query_pairs = pairs
            if final:
                mask_logits = torch.einsum("bnc,bchw->bnhw", embeds[:, 0], pixels.mask_features)
            parts = self._layer_losses(mask_logits, condition_logits, batch, small, pairs, final)
            for name, value in parts.items():
                losses[name] = losses.get(name, 0) + value * (1.0 if final or index == 0 else 0.5)
        assert pairs is not None
        losses.update(self._query_losses(seen.query_tokens, query_pairs, batch))
        losses.update(self._dense_losses(seen, pixels.mask_features, batch))
        quality, iou = self._quality(out, mask_logits, pairs, batch)
        losses["quality"] = quality
        weights = {"bce": 5.0, "dice": 5.0, "words": 2.0, "query_words": 4.0, "geometry": 4.0, "region_words": 2.0}
        total = torch.stack([weights.get(name, 1.0) * value for name, value in losses.items()]).sum()
        figures = {name: float(value.detach()) for name, value in losses.items()}
        figures.update(iou=float(iou), **self._accuracy(out, seen, pairs, query_pairs, batch))
        return total, figures

    def _word_costs(self, condition_logits: torch.Tensor, words: list[torch.Tensor]) -> list[torch.Tensor]:
        """[N, M] negative mean log-probability of an object's four words under each proposal."""
        log_p = F.logsigmoid(condition_logits[..., : len(WORDS)].detach().float())
        return [-(log_p[i] @ w.T) / 4 for i, w in enumerate(words)]

    def _layer_losses(self, mask_logits, condition_logits, batch, small, pairs, final) -> dict[str, torch.Tensor]:
        source = torch.cat([torch.full_like(p, i) for i, (p, _) in enumerate(pairs)])
        proposals = torch.cat([p for p, _ in pairs])
        chosen = mask_logits[source, proposals]
        if final:  # at the picture's own resolution: sub-cell edges are what the later IoU is made of
            target = torch.cat([batch.masks[i][o] for i, (_, o) in enumerate(pairs)])
            chosen = F.interpolate(chosen[None].float(), size=target.shape[-2:], mode="bilinear")[0]
        else:
            target = torch.cat([small[i][o] for i, (_, o) in enumerate(pairs)])
        bce, dice = mask_loss(chosen, target)
        count, slots = condition_logits.shape[:2]
        wanted = torch.zeros(count, slots, len(WORDS) + 1)
        for i, (p, o) in enumerate(pairs):
            wanted[i, p, : len(WORDS)] = batch.words[i][o]
            wanted[i, p[o == batch.region_objects[i]], -1] = 1
        word_loss = selection_loss(condition_logits[..., :-1].transpose(1, 2), wanted[..., :-1].transpose(1, 2))
        region = selection_loss(condition_logits[..., -1], wanted[..., -1])
        return {"bce": bce, "dice": dice, "words": word_loss, "select": region}

    def _query_losses(self, queries, pairs, batch) -> dict[str, torch.Tensor]:
        """The queries themselves say what and where their object is, so the language model can read it off them."""
        source = torch.cat([torch.full_like(p, i) for i, (p, _) in enumerate(pairs)])
        proposals = torch.cat([p for p, _ in pairs])
        matched = queries[source, proposals]
        words = torch.cat([batch.words[i][o] for i, (_, o) in enumerate(pairs)])
        geometry = torch.cat([batch.geometry[i][o] for i, (_, o) in enumerate(pairs)])
        present = torch.zeros(queries.shape[:2])
        present[source, proposals] = 1
        logits = self.heads["query_words"](matched)
        return {
            "query_words": word_cross_entropy(logits, words),
            "geometry": F.l1_loss(self.heads["query_geometry"](matched).float(), geometry),
            "present": F.binary_cross_entropy_with_logits(
                self.heads["query_present"](queries).float()[..., 0], present
            ),
        }

    def _dense_losses(self, seen, mask_features, batch) -> dict[str, torch.Tensor]:
        maps = [*seen.feature_maps, mask_features]
        object_words, _ = self.heads["object_words"](maps, batch.masks, batch.words)
        grid = seen.vision_features.shape[1:3]
        cells = []
        for words, masks in zip(batch.words, batch.masks, strict=True):
            cover = F.adaptive_avg_pool2d(masks[None], grid)[0].flatten(1)  # [M, cells]
            pairs = words[:, : len(COLOURS), None] * words[:, None, len(COLOURS) : len(COLOURS) + len(SHAPES)]
            rows = torch.cat([pairs.flatten(1), words], dim=1)
            cells.append(((cover > 0.06).float().T @ rows).clamp(max=1))
        wanted = torch.stack(cells)
        low = F.binary_cross_entropy_with_logits(
            self.heads["low_words"](seen.vision_features).flatten(1, 2).float(), wanted
        )
        cell = F.binary_cross_entropy_with_logits(
            self.heads["cell_words"](seen.image_features).flatten(1, 2).float(), wanted
        )
        region = torch.stack([w[o] for w, o in zip(batch.words, batch.region_objects, strict=True)])
        region_words = word_cross_entropy(self.heads["region_words"](seen.region_tokens), region)
        return {
            "object_words": object_words,
            "low_words": 4 * low,
            "cell_words": 4 * cell,
            "region_words": region_words,
        }

    def _quality(self, out, mask_logits, pairs, batch) -> tuple[torch.Tensor, torch.Tensor]:
        source = torch.cat([torch.full_like(p, i) for i, (p, _) in enumerate(pairs)])
        proposals = torch.cat([p for p, _ in pairs])
        target = torch.cat([batch.masks[i][o] for i, (_, o) in enumerate(pairs)])
        with torch.no_grad():
            logits = mask_logits[source, proposals].float()
            iou = mask_iou(F.interpolate(logits[None], size=target.shape[-2:], mode="bilinear")[0], target)
        predicted = out.quality_logits[:, 0][source, proposals].float()
        return F.binary_cross_entropy_with_logits(predicted, iou), iou.mean()

    @torch.no_grad()
    def _accuracy(self, out, seen, pairs, query_pairs, batch) -> dict[str, float]:
        source = torch.cat([torch.full_like(p, i) for i, (p, _) in enumerate(pairs)])
        proposals = torch.cat([p for p, _ in pairs])
        words = torch.cat([batch.words[i][o] for i, (_, o) in enumerate(pairs)])
        decoded = out.condition_logits[:, 0][source, proposals][:, : len(WORDS)]
        query_source = torch.cat([torch.full_like(p, i) for i, (p, _) in enumerate(query_pairs)])
        query_words = torch.cat([batch.words[i][o] for i, (_, o) in enumerate(query_pairs)])
        found = seen.query_tokens[query_source, torch.cat([p for p, _ in query_pairs])]
        from_query = self.heads["query_words"](found)
        selected = out.condition_logits[:, 0, :, -1].argmax(-1)
        right = [
            bool(((p == s) & (o == r)).any())
            for (p, o), s, r in zip(pairs, selected.tolist(), batch.region_objects, strict=True)
        ]
        return {
            "decoder_names": all_words_right(decoded, words),
            "query_names": all_words_right(from_query, query_words),
            "query_shape": float(words_right(from_query, query_words)[1].float().mean()),
            "region_right": float(np.mean(right)),
        }
