"""Stages 2-4: the language model, the adapters and the mask predictor on words, masks and visual tokens.

FOCUS section 3: cross-entropy on what the model writes (names and answers, and visual tokens, one head), Dice + BCE on masks,
and the per-sample classification of proposals by the condition. Every proposal that is matched to an object is supervised,
whichever object was meant; the condition only selects. That is what the relatives' training lacks, and what lets masks be
learned from every prompt while words are learned from the selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..data.edits import Edit, sample_edit
from ..data.world import Scene
from ..steps.encode import FocusImageEncoding, FocusMixedEncoding, encode_inputs, encode_tensors, mask_pixels
from ..steps.guidance import guiding
from ..steps.sequence import condition_states, encode_prefix, slot_states, suffix_row
from .attention import use_grouped_attention
from .batches import parts_of
from .code_terms import CodeTerms
from .initialize import initialize_code_rows, initialize_copy_heads, match_token_scale
from .language_data import LanguageBatch, MaskPrompt, Mixture, draw_batch
from .losses import identity_loss, mask_iou, mask_loss, selection_loss
from .matcher import match
from .sample_data import SampleBatches
from .terms import Figures, Terms
from .trainer import StageRecipe

WEIGHTS = {
    "text": 6.0,
    "prompt": 1.0,
    "names": 3.0,
    "codes": 3.0,
    "vectors": 1.0,
    "outline": 3.0,
    "bce": 5.0,
    "dice": 5.0,
    "select": 2.0,
    "edit": 3.0,
    "quality": 0.2,
    "identity": 1.0,
}


class LanguageObjective(CodeTerms):
    """Joint objective of stages 2, 3 and 4 (without the UNet); `recipe.options["mixture"]` says what is asked.

    `recipe.options["pictures_at_once"]` bounds the memory of a large batch: it is drawn in parts of at most so many pictures, and
    what a part computes is forgotten until its gradients are due, then computed again (Chen et al. 2016). A third more time; the
    step is that of the whole. Samples from files come in parts of one size each, which it divides further.
    """

    def __init__(self, components: Any, recipe: StageRecipe):
        super().__init__(components, recipe)
        self.size = recipe.options.get("size", 128)
        self.slots = components.mask_decoder.config.num_slots
        self.processes = recipe.options.get("processes", 1)
        self.parts = parts_of(recipe.batch_size, recipe.options.get("pictures_at_once"))
        self.samples = None
        if recipe.options.get("data"):
            self.samples = SampleBatches.of(components, recipe)
        if not torch.cuda.is_available():
            use_grouped_attention(components.language_model)
        if recipe.options.get("match_scale", False):
            self._match_scale()
        if recipe.options.get("initialize_codes", False):
            initialize_code_rows(components.language_model, components.visual_tokenizer, self.context.vocabulary)
            self._initialize_copying(components)

    @torch.no_grad()
    def _match_scale(self) -> None:
        batch = next((part for part in self._parts(self.batch(0)) if len(part.pixel_values)), None)
        if batch is None:
            return  # texts alone
        encoding = self._encode(batch)
        vision = (encoding.images[0] if isinstance(encoding, FocusMixedEncoding) else encoding).vision
        encoder = self.components.vision_encoder
        tokens = {"vision": vision.vision_tokens, "pixel": vision.pixel_tokens, "query": vision.query_tokens}
        if len(batch.regions):
            arguments = (vision.feature_maps, vision.image_features, batch.regions, batch.region_images)
            tokens["region"] = encoder.region_tokens(*arguments)
        match_token_scale(self.components.language_model, encoder, {k: v for k, v in tokens.items() if v is not None})

    def _initialize_copying(self, components: Any) -> None:
        """Copy heads at the distances of the next cell, of the one below and of the one above, where they cost least."""
        config = components.language_model.config
        if not self.context.style.writes_in_place or config.num_hidden_layers < 2:
            return
        row = self.size // components.visual_tokenizer.pixel_downsample_factor + 1  # cells and their end of line
        distances = (1, 1 + row, 1 - row)
        heads = config.num_attention_heads // config.num_key_value_heads
        offsets = [distances[i % len(distances)] for i in range(heads)]
        layer, group = self._least_used_heads()
        initialize_copy_heads(components.language_model, layer=layer, group=group, offsets=offsets)

    @torch.no_grad()
    def _least_used_heads(self) -> tuple[int, int]:
        """(layer, key-value group) without whose heads answers suffer least; the last layer's are not asked."""
        model = self.components.language_model
        config = model.config
        parts = [replace(part, masked=[], codes=[]) for part in self._parts(self.batch(0)) if part.texts]
        if not parts:
            return min(1, config.num_hidden_layers - 1), config.num_key_value_heads - 1
        width = config.num_attention_heads // config.num_key_value_heads * model.model.layers[0].self_attn.head_dim
        found: dict[tuple[int, int], float] = {}
        for layer in range(config.num_hidden_layers - 1):
            weight = model.model.layers[layer].self_attn.o_proj.weight
            for group in range(config.num_key_value_heads):
                columns = slice(group * width, (group + 1) * width)
                kept = weight[:, columns].clone()
                weight[:, columns] = 0
                found[layer, group] = self.loss(parts, 0)[1]["text"]
                weight[:, columns] = kept
        return min(found, key=found.__getitem__)

    def modules(self) -> dict[str, nn.Module]:
        """Everything the loss runs through; what is trained is the recipe's choice."""
        names = ("vision_encoder", "language_model", "mask_decoder", "visual_tokenizer")
        found = {name: getattr(self.components, name) for name in names}
        conditioner = guiding(self.components)
        return found if conditioner is None else {**found, "mask_conditioner": conditioner}

    def batch(self, step: int) -> LanguageBatch | list[LanguageBatch]:
        """Pictures and prompts of a draw; mask prompts of the world in every `masks_every`-th step. Samples from files come in
        parts of one size each.
        """
        recipe, mixture = self.recipe, self.mixture
        if self.samples is not None:
            return self.samples.draw(step)
        if step // self.processes % recipe.options.get("masks_every", 1):
            mixture = replace(mixture, referring=0, often=(), generalized=0, regions=0, classes=0, edit_masks=0)
        if self.parts == 1:
            return self._draw(mixture, step)
        return [self._draw(mixture, step * self.parts + i) for i in range(self.parts)]

    def _draw(self, mixture: Mixture, number: int) -> LanguageBatch:
        """Pictures and prompts of the world, tokenised here: workers have the time for it that an accelerator would wait."""
        pictures = self.recipe.batch_size // self.parts
        style, seed = self.context.style, self.recipe.seed
        drawn = draw_batch(style, mixture, seed, number, pictures, size=self.size, draw_edit=self.draw_edit)
        for prompt in (*drawn.texts, *drawn.masked, *drawn.codes):
            prompt.parts = self.context.segments(prompt.parts)
        return drawn

    @staticmethod
    def _parts(batch: LanguageBatch | Sequence[LanguageBatch]) -> list[LanguageBatch]:
        return [batch] if isinstance(batch, LanguageBatch) else list(batch)

    def draw_edit(self, scene: Scene, rng: np.random.Generator) -> Edit:
        """An edit of a scene to learn from."""
        return sample_edit(scene, rng, self.mixture.edit_kinds)

    def loss(self, batch: LanguageBatch | Sequence[LanguageBatch], step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Weighted sum of the terms that this batch has, each a mean over the parts and processes that share the step."""
        device = next(self.components.vision_encoder.parameters()).device
        terms, figures = Terms(device), Figures()

        def of_part(part: LanguageBatch) -> tuple[Terms, Figures]:
            own = Terms(device), Figures()
            self._part_loss(part, *own)
            return own

        for part in self._parts(batch):
            again = self.parts > 1 and torch.is_grad_enabled()
            own = checkpoint(of_part, part, use_reentrant=False) if again else of_part(part)
            terms.join(own[0])
            figures.join(own[1])
        if self.samples is not None:
            figures.add("skipped", float(self.samples.left_out), 1)
        return terms.total(WEIGHTS), {**figures.means(), **terms.means()}

    def _part_loss(self, batch: LanguageBatch, terms: Terms, figures: Figures) -> None:
        weight = next(self.components.vision_encoder.parameters())
        batch = batch.to(weight.device, weight.dtype)
        encoding = self._encode(batch) if len(batch.pixel_values) or batch.counts else None
        regions = None
        if len(batch.regions) and isinstance(encoding, FocusImageEncoding):
            vision = encoding.vision
            regions = self.components.vision_encoder.region_tokens(
                vision.feature_maps, vision.image_features, batch.regions, batch.region_images
            )
        pixel_tokens = self.recipe.options.get("pixel_tokens", True) or isinstance(encoding, FocusMixedEncoding)
        prefix = encode_prefix(self.components, self.context, encoding, pixel_tokens=pixel_tokens)
        if batch.texts:
            self._texts(batch, prefix, regions, terms, figures)
        if batch.masked:
            self._masks(batch, encoding, prefix, regions, terms, figures)
        if batch.codes:
            self._codes(batch, encoding, prefix, terms, figures)

    def _encode(self, batch: LanguageBatch) -> FocusImageEncoding | FocusMixedEncoding:
        if isinstance(batch.inputs, tuple):
            return FocusMixedEncoding(tuple(encode_inputs(self.components, one) for one in batch.inputs), batch.counts)
        if batch.inputs is not None:
            return encode_inputs(self.components, batch.inputs)
        return encode_tensors(self.components, batch.pixel_values)

    # -- words -----------------------------------------------------------------------------------------------------

    def _texts(self, batch, prefix, regions, terms, figures) -> None:
        rows = [suffix_row(self.context, p.parts) for p in batch.texts]
        entropies, asked, kinds = [], [], {}
        for group in self._groups(rows):
            hidden, suffixes = self._run([batch.texts[i] for i in group], prefix, regions, [rows[i] for i in group])
            entropy, right, here = self._written(hidden, suffixes.labels)
            # A mean for each answer: a caption has twenty times the tokens of a yes, not twenty times the weight.
            entropies += [part.mean() for part in entropy.split(here.sum(1).tolist())]
            asked.append(self._prompt_entropy(hidden, suffixes))
            correct = torch.ones_like(here)
            correct[here] = right
            for i, good in zip(group, correct.all(1).tolist(), strict=True):
                kinds.setdefault(f"q_{batch.texts[i].kind}", []).append(good)
        terms.add("text", torch.stack(entropies))
        terms.add("prompt", torch.cat(asked))
        for kind, good in kinds.items():
            figures.add(kind, sum(good), len(good))
            figures.add("questions", sum(good), len(good))

    # -- masks -----------------------------------------------------------------------------------------------------

    def _masks(self, batch, encoding: FocusImageEncoding, prefix, regions, terms, figures) -> None:
        rows = [suffix_row(self.context, p.parts, num_mask_slots=self.slots) for p in batch.masked]
        hidden, suffixes = self._run(batch.masked, prefix, regions, rows)
        terms.add("names", self._written(hidden, suffixes.labels)[0])
        conditions, asked = condition_states(hidden, suffixes.conditions)
        slots = slot_states(hidden, suffixes.mask_slots, self.slots)
        answers = slot_states(hidden, suffixes.mask_slots - 1, 1)[:, 0]  # at the mask trigger
        pixels = mask_pixels(self.components, encoding)
        pictures = torch.tensor([p.image for p in batch.masked])
        shown, seats, own = _seats(pictures.tolist())
        out = self.components.mask_decoder.decode(
            pixels if len(shown) == len(batch.masks) else pixels.select(shown),
            slots[seats],
            conditions[seats],
            asked[seats],
            return_auxiliary=True,
            dense=False,
            answer_states=answers[seats],
        )

        def of_prompts(x: torch.Tensor) -> torch.Tensor:
            return x.flatten(0, 1)[own]

        coarse = F.avg_pool2d(pixels.mask_features, 2)
        table, places, counts = _objects(batch)
        small = _resized(table, coarse.shape[-2:], "area")
        with torch.no_grad():
            logits = of_prompts(torch.einsum("bgnc,bchw->bgnhw", out.mask_embeds, coarse[shown]))
        scores = of_prompts(out.condition_logits)
        scores = torch.where(asked[:, None], scores, torch.zeros_like(scores))  # [R, N, K]
        meant = self._meant(batch.masked, counts, scores)
        costs = _selection_costs(scores.detach(), meant, asked)
        crowded = torch.tensor([count > scores.shape[1] for count in counts], device=scores.device)
        # More objects than proposals: first those that are meant.
        costs = costs + 1e3 * (crowded[:, None] & (meant.sum(-1) == 0))[:, None]
        pairs = match(logits, small[places], costs, counts)
        source = torch.cat([torch.full_like(p, i) for i, (p, _) in enumerate(pairs)])
        proposals, objects = (torch.cat(part) for part in zip(*pairs, strict=True))
        found = places[source, objects]
        target = small[found]
        wanted = torch.zeros_like(scores, dtype=torch.float32)
        wanted[source, proposals] = meant[source, objects]
        ignored = self._ignored(batch.masked)
        shared = asked / asked.sum(
            1, keepdim=True
        )  # a prompt with eighty classes weighs as much as one with a single region

        def add_masks(logits: torch.Tensor, targets: torch.Tensor, weight: float) -> None:
            if ignored is not None and len(targets):
                out_of_it = F.interpolate(ignored[:, None], size=targets.shape[-2:])[source, 0] > 0.5
                # Nothing is to be learned there: as if predicted right, whatever was.
                logits = torch.where(out_of_it, torch.logit(targets.float(), eps=1e-4).to(logits.dtype), logits)
            bce, dice = mask_loss(logits, targets)
            terms.add("bce", bce, len(targets), weight)
            terms.add("dice", dice, len(targets), weight)

        def add_selection(scores: torch.Tensor, weight: float) -> None:
            scores = torch.where(asked[:, None], scores, torch.zeros_like(scores))
            value = selection_loss(scores.transpose(1, 2), wanted.transpose(1, 2), shared)
            terms.add("select", value, len(scores), weight)

        layers = zip(out.auxiliary_embeds, out.auxiliary, strict=True)
        for (embeds, _), (_, _, earlier) in layers:
            here = of_prompts(embeds)[source, proposals]
            add_masks(torch.einsum("mc,mchw->mhw", here, coarse[pictures[source]]), target, 0.3)
            add_selection(of_prompts(earlier), 0.3)
        embeds = of_prompts(out.mask_embeds)[source, proposals]
        fine = torch.einsum("mc,mchw->mhw", embeds, pixels.mask_features[pictures[source]])
        full = table[found]
        fine = _resized(fine.float(), full.shape[-2:], "bilinear")
        add_masks(fine, full, 1.0)
        add_selection(of_prompts(out.condition_logits), 1.0)
        with torch.no_grad():
            iou = mask_iou(fine, full)
        quality = of_prompts(out.quality_logits)[source, proposals].float()
        terms.add("quality", F.binary_cross_entropy_with_logits(quality, iou, reduction="none"))
        means = meant.amax(-1).cpu()[source, objects] > 0
        self._edit_masks(batch, of_prompts(out.edit_embeds), pixels, source[means], proposals[means], terms, figures)
        if self.mixture.clips and batch.scenes.clips:
            embeds = of_prompts(out.instance_embeds)[source, proposals]
            self._identities(batch, embeds, pictures[source], objects, terms, figures)
        self._mask_figures(batch, scores, wanted, iou, source, proposals, figures)

    def _meant(self, prompts: Sequence[MaskPrompt], counts: Sequence[int], scores: torch.Tensor) -> torch.Tensor:
        """float [R, objects, K], which object answers which condition."""
        meant = torch.zeros(len(prompts), max(counts), scores.shape[-1])
        for row, prompt, count in zip(meant, prompts, counts, strict=True):
            row[list(prompt.targets), list(prompt.conditions or (0,) * len(prompt.targets))] = 1
            if prompt.background:
                row[count - 1, 0] = 1
        return meant.to(scores.device)

    def _ignored(self, prompts: Sequence[MaskPrompt]) -> torch.Tensor | None:
        """float [R, S, S], pixels that teach nothing; None where there are none at all."""
        known = next((p.ignored for p in prompts if p.ignored is not None), None)
        if known is None:
            return None
        return torch.stack([torch.zeros_like(known) if p.ignored is None else p.ignored for p in prompts]).float()

    def _edit_masks(self, batch, embeds, pixels, source, proposals, terms, figures) -> None:
        """Where pixels may change: the second mask of the proposals that were meant (stage 4)."""
        edits = torch.tensor([batch.masked[i].change is not None for i in source.tolist()], dtype=torch.bool)
        source, proposals = source[edits], proposals[edits]
        if not len(source):
            return
        pictures = torch.tensor([batch.masked[i].image for i in source.tolist()])
        logits = torch.einsum("mc,mchw->mhw", embeds[source, proposals], pixels.mask_features[pictures])
        target = torch.stack([batch.masked[i].change for i in source.tolist()]).to(logits.device)
        predicted = _resized(logits.float(), target.shape[-2:], "bilinear")
        bce, dice = mask_loss(predicted, target)
        terms.add("edit", bce + dice, len(target))
        with torch.no_grad():
            figures.add("edit_iou", mask_iou(predicted, target).sum().item(), len(target))

    def _identities(self, batch, embeds, pictures, objects, terms, figures) -> None:
        """Objects of two frames of a clip: their embeddings are alike, those of its other objects are not."""
        counts = torch.tensor([len(masks) for masks in batch.masks])
        real = objects < counts[pictures]  # the background of an edit is no object
        embeds, pictures, objects = embeds[real], pictures[real], objects[real]
        clips = torch.tensor(batch.scenes.clips)[pictures]
        values = identity_loss(embeds, objects, clips, pictures)
        if not len(values):
            terms.add("identity", embeds.sum().float() * 0, 0)  # keeps the graph
            return
        terms.add("identity", values)
        with torch.no_grad():  # the share of proposals whose nearest one in the other frame is the same object
            unit = F.normalize(embeds.float(), dim=-1)
            others = (clips[:, None] == clips[None]) & (pictures[:, None] != pictures[None])
            nearest = (unit @ unit.T).masked_fill(~others, -2).argmax(1)
            linked = (objects[nearest] == objects)[others.any(1)]
            figures.add("linked", linked.sum().item(), len(linked))

    @torch.no_grad()
    def _mask_figures(self, batch, scores, wanted, iou, source, proposals, figures) -> None:
        """IoU that the highest-scoring proposal reaches, per kind of prompt with one target and one condition."""
        table = torch.zeros_like(wanted[..., 0])
        table[source, proposals] = iou
        best = scores[..., 0].argmax(-1)
        reached = (table * wanted[..., 0]).gather(1, best[:, None])[:, 0].tolist()
        figures.add("iou", iou.sum().item(), len(iou))
        for i, prompt in enumerate(batch.masked):
            alone = len(prompt.targets) == 1 and prompt.conditions is None
            if alone and prompt.kind not in ("plural", "edit"):
                kind = "region" if prompt.region is not None else "referring"
                figures.add(f"miou_{kind}", reached[i], 1)
                if prompt.region is None:
                    figures.add(f"r_{prompt.kind}", reached[i], 1)


def _objects(batch: LanguageBatch) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """What the proposals of each prompt should find: all objects of its picture, and the background where it is meant.

    Returns:
        Masks [T, S, S] of all pictures; int64 [R, M], the place of each prompt's there; and how many of the M there are. Objects
        keep their order, the background is the last.
    """
    masks, starts, total = list(batch.masks), [], 0
    for own in batch.masks:
        starts.append(total)
        total += len(own)
    rows, backgrounds = [], {}
    for prompt in batch.masked:
        own = batch.masks[prompt.image]
        row = list(range(starts[prompt.image], starts[prompt.image] + len(own)))
        if prompt.background:
            if prompt.image not in backgrounds:
                backgrounds[prompt.image] = total
                total += 1
                masks.append(1 - own.amax(0, keepdim=True))
            row.append(backgrounds[prompt.image])
        rows.append(row)
    places = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for place, row in zip(places, rows, strict=True):
        place[: len(row)] = torch.tensor(row, dtype=torch.long)
    return torch.cat(masks), places, [len(row) for row in rows]


def _seats(pictures: list[int]) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    """Prompts seated picture by picture, for a decoder that takes the same number for each.

    Args:
        pictures: the picture of each of R prompts.

    Returns:
        The pictures that have prompts; int64 [pictures, G], the prompt on each seat (the last one again on empty seats); and
        int64 [R], the seat of each prompt among all of them.
    """
    groups: dict[int, list[int]] = {}
    for prompt, picture in enumerate(pictures):
        groups.setdefault(picture, []).append(prompt)
    width = max(len(group) for group in groups.values())
    seats = torch.tensor([group + group[-1:] * (width - len(group)) for group in groups.values()])
    own = torch.empty(len(pictures), dtype=torch.long)
    for row, group in enumerate(groups.values()):
        own[group] = torch.arange(len(group)) + row * width
    return list(groups), seats, own


def _resized(masks: torch.Tensor, size: Sequence[int], mode: str) -> torch.Tensor:
    """[M, H, W] at another size; M may be 0, which `F.interpolate` refuses."""
    if not len(masks):
        return masks.new_zeros(0, *size) + masks.sum()
    return F.interpolate(masks[None], size=tuple(size), mode=mode)[0]


def _selection_costs(scores: torch.Tensor, meant: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """[..., N, M]: a proposal the condition selects suits a meant object, and the other way round.

    Args:
        scores: [..., N, K], logits.
        meant: [..., M, K], which object answers which condition.
        asked: bool [..., K], which conditions there are.

    An object that answers some conditions looks at those alone (its class), one that answers none at all of them.
    """
    scores = scores.float()
    answers = meant.sum(-1, keepdim=True)
    asked = asked[..., None, :]
    none = (answers == 0) * asked / asked.sum(-1, keepdim=True)
    return -(F.logsigmoid(scores) @ (meant / answers.clamp(min=1)).mT + F.logsigmoid(-scores) @ none.mT)
