"""The terms of visual tokens: cross-entropy of the codes an image is written with, and how far their vectors are missed.

FOCUS section 3 (visual tokens under the language model's one head). In a local edit in place only the cells of the change are in
the sequence, as in use (`steps/visual_tokens.py`); the mask conditioner guides the states they are read from (`steps/guidance.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..models._cell_outline import cell_coverage
from ..processing.grammar import VisualTokenGrammar
from ..processing.masks import resample_mask
from ..steps.encode import FocusImageEncoding, encode_tensors
from ..steps.guidance import guiding, seen_outlines
from ..steps.sequence import SuffixBatch, encode_prefix, suffix_row
from ..steps.visual_tokens import fed_positions
from .language_data import CodePrompt, LanguageBatch
from .reading import PromptReader
from .terms import Figures, Terms

ENCODED_MULTIPLE = 16  # an accelerator encodes a multiple of it
OUTSIDE_WEIGHT = 0.1  # cells that the source prefills at run time, in styles that go on counting


class CodeTerms(PromptReader):
    """What is learned of the visual tokens of a batch.

    With `recipe.options["vectors"]`, a weight, the mean of the vectors that could be written for a pixel of an edit is drawn to
    that of its true code as well: the loss whose least value `nearest_to_mean` writes.
    """

    def _codes(self, batch: LanguageBatch, encoding: FocusImageEncoding, prefix, terms, figures) -> None:
        semantic, pixel = (codes.cpu() for codes in self._all_codes(batch, encoding))
        grids = tuple(semantic.shape[-2:]), tuple(pixel.shape[-2:])
        vocabulary = self.context.vocabulary
        grammar = VisualTokenGrammar(vocabulary, *grids)
        edits = [p for p in batch.codes if p.image >= 0]
        texts = [p for p in batch.codes if p.image < 0]
        means: list[torch.Tensor] = []
        for prompts, name in ((edits, "edit_codes"), (texts, "text_codes")):
            if not prompts:
                continue
            in_place = prompts is edits and self.context.style.writes_in_place
            rows, weights, histories = [], [], []
            for prompt in prompts:
                inside_s, inside_p = self._inside(prompt, grids)
                s = torch.where(inside_s, semantic[prompt.target], semantic[max(prompt.image, 0)])
                p = torch.where(inside_p, pixel[prompt.target], pixel[max(prompt.image, 0)])
                ids = vocabulary.image_ids(s, p, with_tag=False)
                weight = self._code_weights(inside_s, inside_p)
                written = weight >= 1 if in_place else torch.ones_like(weight, dtype=torch.bool)
                places = (fed_positions(written) if in_place else written).nonzero()[:, 0]
                codes = {
                    "code_ids": ids[places].tolist(),
                    "code_places": places.tolist(),
                    "code_answers": written[places].tolist(),
                }
                rows.append(suffix_row(self.context, prompt.parts, **codes))
                before = None  # of text to image there is no source
                if prompt.image >= 0:
                    before = vocabulary.image_ids(semantic[prompt.image], pixel[prompt.image], with_tag=False)
                dice = torch.Generator().manual_seed(prompt.seed)
                # A picture from a description is known from nothing but what was written of it.
                noisy = before is not None and torch.rand((), generator=dice) < self.mixture.history_noise
                history = self._noised(ids, before, dice) if noisy else ids
                histories.append(torch.where(written, history, ids)[places])
                # The last weight is that of <|im_end|>.
                weights.append(F.pad(weight[written], (0, 1), value=OUTSIDE_WEIGHT))
            here_prefix = prefix if prompts is edits else encode_prefix(self.components, self.context, None)
            inside: list[tuple[torch.Tensor, torch.Tensor]] = []
            for group in self._groups(rows):
                hidden, suffixes = self._run(
                    [prompts[i] for i in group],
                    here_prefix,
                    None,
                    [rows[i] for i in group],
                    [histories[i] for i in group],
                )
                asked = [prompts[i] for i in group]
                hidden = self._guided(hidden, suffixes, asked, grammar, batch.target_pixels, terms, figures)
                wanted = suffixes.labels[:, 1:]
                here = wanted >= 0
                logits, wanted = self._logits(hidden[:, :-1][here]), wanted[here]
                entropy, right = self._judged(logits, wanted)
                if prompts is edits and self.recipe.options.get("vectors"):
                    missed = self._missed(logits, wanted)
                    figures.add("edit_distance", missed.sum().item(), len(missed))
                    terms.add("vectors", self.recipe.options["vectors"] * missed)
                # A mean for each prompt: a new background has ten times the cells of a new colour, not ten times the weight.
                theirs = torch.cat([weights[i] / weights[i].sum() for i in group]).to(entropy.device)
                means += [part.sum() for part in (entropy * theirs).split([len(weights[i]) for i in group])]
                cells = (torch.cat([weights[i] for i in group]) >= 1).to(entropy.device)
                inside.append((entropy.detach()[cells], right[cells]))
            for entropy, right in inside:
                figures.add(name, entropy.sum().item(), len(entropy))
                figures.add(f"{name}_top1", right.sum().item(), len(right))
        terms.add("codes", torch.stack(means))

    def _missed(self, logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Squared distance [m] of the mean of the vectors that could be written from the one wanted, of the pixel codes among n."""
        first, stop = self.context.vocabulary.level1_range
        vectors = self.components.visual_tokenizer.pixel_quantizer.vectors().detach().to(logits.device)
        pixel = (wanted >= first) & (wanted < stop)
        mean = logits[pixel, first:stop].softmax(-1) @ vectors
        return (mean - vectors[wanted[pixel] - first]).square().sum(-1)

    def _guided(
        self,
        hidden: torch.Tensor,
        suffixes: SuffixBatch,
        prompts: Sequence[CodePrompt],
        grammar: VisualTokenGrammar,
        pictures: torch.Tensor,
        terms: Terms,
        figures: Figures,
    ) -> torch.Tensor:
        """Hidden states [R, L, H] with those that pixel codes are read from guided by where their cells lie; how well the outlines
        of what is drawn are foreseen is a term of the loss.
        """
        conditioner = guiding(self.components)
        if conditioner is None:
            return hidden
        cell_of = torch.full((grammar.length,), -1)
        cell_of[grammar.pixel_positions] = torch.arange(len(grammar.pixel_positions))
        rows, columns, cells = [], [], []
        for row, span in enumerate(suffixes.codes):
            assert span is not None
            here = cell_of[torch.as_tensor(span[1])]
            known = (here >= 0).nonzero()[:, 0]
            rows.append(torch.full_like(known, row))
            columns.append(span[0] - 1 + known)  # a code is read from the state before it
            cells.append(here[known])
        at, read, cell = torch.cat(rows), torch.cat(columns), torch.cat(cells)
        canvas = torch.ones(1, 1, *pictures.shape[-2:])
        changes = [canvas if p.change is None else p.change.to(canvas) for p in prompts]
        about = [change if p.about is None else p.about.to(canvas) for p, change in zip(prompts, changes, strict=True)]
        about, changes = (torch.cat(masks).to(hidden.device) for masks in (about, changes))
        places = conditioner.places(about, changes, grammar.pixel_grid)
        states, places = hidden[at, read], places[at.to(places.device), cell.to(places.device)]
        outlines = conditioner.outlines(states, places)
        shown = outlines
        if outlines is not None and any(p.keeps_outline for p in prompts):
            kept = torch.tensor([p.keeps_outline for p in prompts])[at].to(outlines.device)
            own = seen_outlines(about, grammar.pixel_grid).to(outlines)[
                at.to(outlines.device), cell.to(outlines.device)
            ]
            shown = torch.where(kept[:, None], own, outlines)
        guided = conditioner.guide(states, places, shown)
        if outlines is not None:
            self._outlines(outlines, at, cell, prompts, grammar, terms, figures)
        return hidden.index_put((at.to(hidden.device), read.to(hidden.device)), guided.to(hidden.dtype))

    def _outlines(self, outlines, at, cell, prompts, grammar, terms: Terms, figures: Figures) -> None:
        """Cross-entropy of the points of cells, of edits whose outlines are known."""
        known = torch.tensor([p.outline is not None for p in prompts])[at]
        if not known.any():
            return
        blank = torch.zeros(1, 1, *grammar.pixel_grid)
        truths = [cell_coverage(blank if p.outline is None else p.outline, grammar.pixel_grid) for p in prompts]
        cells = torch.cat(truths)  # [R, cells, points]
        wanted = cells[at[known], cell[known]].to(outlines.device)
        logits = outlines[known.to(outlines.device)].float()
        terms.add("outline", F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(-1))
        with torch.no_grad():
            crossed = (wanted.amin(-1) < 0.5) & (wanted.amax(-1) > 0.5)
            right = ((logits > 0) == (wanted > 0.5)).float().mean(-1)[crossed]
            figures.add("outline_right", right.sum().item(), len(right))

    def _noised(self, ids: torch.Tensor, before: torch.Tensor, dice: torch.Generator) -> torch.Tensor:
        """A history of an image block with wrong codes in it: some or all cells are the source's, or any codes at all.

        Taught on true histories alone, the model reads the new colour off the cell before and never from the instruction: with
        them its codes of recolourings are right in colour, and in use, where no cell says so first, it writes the old one.
        """
        others = torch.empty_like(ids)
        for first, stop in (self.context.vocabulary.level0_range, self.context.vocabulary.level1_range):
            here = (ids >= first) & (ids < stop)
            others[here] = torch.randint(first, stop, (int(here.sum()),), generator=dice)
        codes = ids >= self.context.vocabulary.level0_range[0]
        wrong = before if torch.rand((), generator=dice) < 0.5 else others
        swap = codes & (torch.rand(ids.shape, generator=dice) < 1.25 * torch.rand((), generator=dice))
        return torch.where(swap, wrong, ids)

    @torch.no_grad()
    def _all_codes(self, batch: LanguageBatch, encoding: FocusImageEncoding) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes of every target picture; the scenes' own come from the encoding."""
        count, total = len(batch.pixel_values), len(batch.target_pixels)
        tokenizer = self.components.visual_tokenizer
        features, pixels = [encoding.vision.fused_features], [encoding.vision.pixel_features]
        if total > count:
            others = batch.target_pixels[count:]
            if others.device.type != "cpu":  # convolutions are planned for each number of pictures
                rounded = -(-len(others) // ENCODED_MULTIPLE) * ENCODED_MULTIPLE
                others = others[torch.arange(rounded).clamp(max=len(others) - 1)]
            seen = encode_tensors(self.components, others).vision
            features.append(seen.fused_features)
            pixels.append(seen.pixel_features)
        _, semantic, _, _ = tokenizer.encode_semantic(torch.cat(features))
        _, pixel, _ = tokenizer.quantize_pixels(torch.cat(pixels))
        return semantic[:total], pixel[:total]

    def _inside(self, prompt, grids) -> tuple[torch.Tensor, torch.Tensor]:
        """Which semantic and which pixel cells are written, bool [hs, ws] and [hp, wp]."""
        if prompt.change is None:
            return torch.ones(grids[0], dtype=torch.bool), torch.ones(grids[1], dtype=torch.bool)
        semantic, pixel = (resample_mask(prompt.change, tuple(grid), "any")[0, 0] > 0 for grid in grids)
        return semantic, pixel

    def _code_weights(self, inside_s: torch.Tensor, inside_p: torch.Tensor) -> torch.Tensor:
        """Weight of each written id: 1 in the region, little outside, markers least (the grammar forces them)."""

        def rows(inside: torch.Tensor) -> torch.Tensor:
            cells = torch.where(inside, 1.0, OUTSIDE_WEIGHT)
            return F.pad(cells, (0, 1), value=0.02).flatten()

        mark = torch.full((2,), 0.02)
        return torch.cat([mark, rows(inside_s), mark, rows(inside_p), mark])
