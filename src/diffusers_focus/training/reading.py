"""What the language model makes of prompts in training: states, and how far what was to be written was foreseen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..steps.sequence import FocusContext, PrefixCache, PromptRow, SuffixBatch, batch_rows, run_suffixes
from .language_data import Mixture
from .trainer import StageRecipe


class PromptReader:
    """The language model of some components and the prompts of a mixture."""

    def __init__(self, components: Any, recipe: StageRecipe):
        self.components, self.recipe = components, recipe
        self.context = FocusContext.of(components)
        self.mixture = Mixture(**recipe.options.get("mixture", {}))

    def _groups(self, rows: Sequence[PromptRow]) -> list[list[int]]:
        """Rows in groups that are read at once: a processor pays for padding, an accelerator for each of many small calls."""
        lengths = [len(row.ids) for row in rows]
        return alike(lengths) if self.components.language_model.device.type == "cpu" else alike(lengths, 3.0)

    def _run(self, prompts, prefix: PrefixCache, regions, rows, histories=None):
        offsets = [p.region if getattr(p, "region", None) is not None else 0 for p in prompts]
        suffixes = batch_rows(self.components, rows, region_tokens=regions, region_offsets=offsets, pad="right")
        if histories is not None:
            self._read_instead(suffixes, histories)
        images = torch.tensor([max(p.image, 0) for p in prompts])
        hidden, _, _ = run_suffixes(self.components, prefix, images, suffixes)
        return hidden, suffixes

    def _read_instead(self, suffixes: SuffixBatch, histories: list[torch.Tensor]) -> None:
        """Let the written codes of row i be read as `histories[i]`; what is to be written stays."""
        read = suffixes.ids.clamp(min=0)
        for row, (span, history) in enumerate(zip(suffixes.codes, histories, strict=True)):
            if span is not None:
                read[row, span[0] : span[0] + len(history)] = history
        table = self.components.language_model.get_input_embeddings()
        changed = (read != suffixes.ids) & (suffixes.ids >= 0)
        suffixes.embeds = torch.where(changed[..., None], table(read), suffixes.embeds)

    def _written(self, hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Cross-entropy of each written token [n], whether it was the first choice [n], and its position mask."""
        wanted = labels[:, 1:]
        here = wanted >= 0
        logits = self._logits(hidden[:, :-1][here])
        return (*self._judged(logits, wanted[here]), here)

    @staticmethod
    def _judged(logits: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy [n] of the wanted ids, and whether they were the first choice."""
        return F.cross_entropy(logits, wanted, reduction="none"), logits.argmax(-1) == wanted

    def _prompt_entropy(self, hidden: torch.Tensor, suffixes: SuffixBatch) -> torch.Tensor:
        """Cross-entropy of the words of the prompts [n]: what is asked about a picture says what is in it."""
        wanted = torch.where(suffixes.labels >= 0, -1, suffixes.ids)[:, 1:]
        here = wanted >= 0
        return F.cross_entropy(self._logits(hidden[:, :-1][here]), wanted[here], reduction="none")

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self.components.language_model.lm_head(hidden).float()
        if self.recipe.options.get("keep_codes", False):
            # Rows that are never written would be pushed away from every state.
            vocabulary = self.context.vocabulary
            for first, stop in (vocabulary.level0_range, vocabulary.level1_range):
                logits[..., first:stop] = float("-inf")
        return logits


def alike(lengths: list[int], ratio: float = 1.4) -> list[list[int]]:
    """Indices in groups of like length, none longer than `ratio` times the shortest of its group: less is padding."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not groups or lengths[i] > ratio * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(i)
    return groups
