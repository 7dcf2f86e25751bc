"""How well the language model knows the codes of an edit: beside `edits.py`, which measures the picture, this says where it fails.

Each code inside the true change is predicted once, after two histories (what the model has read of its own image so far): the
true one, and one that holds the source's codes, as a model that copies would have written. A model that reads the instruction
does as well after either; one that reads the history follows whatever was written first. FOCUS (arXiv 2506.16806) writes images
code by code, so in use nothing but the model's own history is there. The measure is this project's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..data.edits import EDIT_KINDS, Edit, edit_support, sample_edit
from ..data.world import Rendered, Scene, render
from ..processing.masks import resample_mask
from ..processing.prompts import EDIT, build_answer
from ..steps.encode import source_codes
from ..steps.guidance import guiding
from ..steps.sequence import FocusContext, batch_rows, encode_prefix, run_suffixes, suffix_row
from ..steps.visual_tokens import fed_positions
from .tasks import Batch, figure, kinds_of, scene_rng

HISTORIES = ("true", "source")
_FIGURES = tuple(f"{name}_{history}" for history in HISTORIES for name in ("nats", "right", "distance"))


class CodesTask:
    """Every kind of edit that a scene allows, at the true place."""

    def __init__(self, name: str = "codes") -> None:
        self.name = name
        self.records: list[dict[str, Any]] = []

    @torch.no_grad()
    def run(self, pipe: Any, batch: Batch) -> None:
        """Predict the codes of the edits of a batch of scenes."""
        for index, scene in enumerate(batch.scenes):
            edits = _edits(scene, batch.may_name)
            if edits:
                self.records += _measure(pipe, scene, batch.drawn[index], edits)

    def figures(self) -> dict[str, Any]:
        """Cross-entropy of a pixel code in nats, share of first choices, and their distance in the codebook, per kind of edit."""
        return {
            **{key: figure(self.records, key) for key in _FIGURES},
            "kinds": {k: {key: figure(rows, key) for key in _FIGURES} for k, rows in kinds_of(self.records).items()},
        }


def _edits(scene: Scene, held_out: bool) -> list[Edit]:
    found = []
    for kind in EDIT_KINDS:
        try:
            found.append(sample_edit(scene, scene_rng(scene, f"codes {kind}"), [kind], held_out))
        except ValueError:  # nothing here can be edited so
            continue
    return found


def _measure(pipe: Any, scene: Scene, drawn: Rendered, edits: Sequence[Edit]) -> list[dict[str, Any]]:
    context = FocusContext.of(pipe)
    vocabulary = context.vocabulary
    size, guided = drawn.image.shape[0], guiding(pipe)
    encoding = pipe.encode_image(drawn.image)
    own = source_codes(pipe, encoding)
    truths = source_codes(pipe, pipe.encode_image([render(edit.result, size).image for edit in edits]))
    before = vocabulary.image_ids(own[0][0], own[1][0], with_tag=False)
    first, stop = vocabulary.level1_range
    device = before.device
    table = pipe.visual_tokenizer.pixel_quantizer.vectors().to(device)
    prefix = encode_prefix(pipe, context, encoding, task=EDIT)
    rows, wanted, places, cells = [], [], [], []
    for number, edit in enumerate(edits):
        change = torch.from_numpy(edit_support(scene, edit, size, dilation=1)).float()[None, None].to(device)
        inside = [resample_mask(change, tuple(level.shape[-2:]), "any")[0, 0] > 0 for level in own]
        codes = [torch.where(here, new[number], old[0]) for here, new, old in zip(inside, truths, own, strict=True)]
        true = vocabulary.image_ids(*codes, with_tag=False)
        nothing = vocabulary.image_ids(*(torch.zeros_like(code) for code in codes), with_tag=False)
        written = vocabulary.image_ids(*(here.long() for here in inside), with_tag=False) != nothing
        read = fed_positions(written).nonzero()[:, 0]
        parts = context.style.suffix(EDIT, text=edit.instruction, height_width=(size, size), answer=build_answer(EDIT))
        for history in HISTORIES:
            ids = true if history == "true" else torch.where(written, before, true)
            rows.append(
                suffix_row(
                    context,
                    parts,
                    code_ids=ids[read].tolist(),
                    code_places=read.tolist(),
                    code_answers=written[read].tolist(),
                )
            )
        if guided is not None:
            about = torch.from_numpy(drawn.masks[list(edit.targets)].any(axis=0)).to(change)[None, None]
            cells.append(guided.places(about, change, tuple(inside[1].shape))[0][inside[1].flatten()])
        wanted.append(true[read])
        places.append(written[read] & (true[read] >= first))
    suffixes = batch_rows(pipe, rows, pad="right")
    hidden, _, _ = run_suffixes(pipe, prefix, torch.zeros(len(rows), dtype=torch.long), suffixes)
    records = []
    for number, edit in enumerate(edits):
        record: dict[str, Any] = {"scene": scene.seed, "kind": edit.edit_kind}
        truth = wanted[number][places[number]] - first
        for offset, history in enumerate(HISTORIES):
            row = len(HISTORIES) * number + offset
            span = suffixes.codes[row]
            assert span is not None
            states = hidden[row, span[0] - 1 : span[0] - 1 + len(span[1])][places[number].to(hidden.device)]
            if guided is not None:
                states = guided.guide(states, cells[number].to(states.device))
            logits = pipe.language_model.lm_head(states)[:, first:stop].float()
            chosen = logits.argmax(-1)
            record[f"nats_{history}"] = F.cross_entropy(logits, truth).item()
            record[f"right_{history}"] = (chosen == truth).float().mean().item()
            record[f"distance_{history}"] = (table[chosen] - table[truth]).norm(dim=1).mean().item()
        records.append(record)
    return records
