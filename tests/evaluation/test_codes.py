"""Codes after two histories: against a whole prompt without cache, and for a model that knows nothing."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from diffusers_focus import FocusPipeline
from diffusers_focus.data.edits import EDIT_KINDS, edit_support
from diffusers_focus.data.world import render
from diffusers_focus.evaluation.codes import CodesTask, _edits
from diffusers_focus.evaluation.tasks import draw_batch
from diffusers_focus.processing.grammar import VisualTokenGrammar
from diffusers_focus.processing.masks import resample_mask
from diffusers_focus.processing.prompts import EDIT, build_answer
from diffusers_focus.steps.encode import source_codes
from diffusers_focus.steps.sequence import FocusContext, batch_rows, embed_prefix, suffix_row
from diffusers_focus.steps.visual_tokens import block_template, fed_positions

from tests.tiny import PIXEL_CODES, SIZE, tiny_components


@pytest.fixture
def pipe() -> FocusPipeline:
    return FocusPipeline(**tiny_components(), resolution_group=[[SIZE, SIZE]])


def measured(pipe: FocusPipeline, count: int = 2):
    task, batch = CodesTask(), draw_batch("in", 0, count, SIZE)
    task.run(pipe, batch)
    return task, batch


def test_every_kind_of_edit_is_measured(pipe):
    task, _ = measured(pipe, 6)
    figures = task.figures()
    assert set(figures["kinds"]) == set(EDIT_KINDS)
    assert figures["nats_true"]["value"] > 0 and figures["nats_true"]["value"] != figures["nats_source"]["value"]


@torch.no_grad()
def test_a_model_that_knows_nothing_has_the_entropy_of_all_codes(pipe):
    pipe.language_model.lm_head.weight.zero_()
    task, _ = measured(pipe)
    for record in task.records:
        assert record["nats_true"] == record["nats_source"] == pytest.approx(math.log(PIXEL_CODES), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("history", ["true", "source"])
def test_one_whole_prompt_without_cache_or_padding_gives_the_same(pipe, history):
    task, batch = measured(pipe, 1)
    scene, context = batch.scenes[0], FocusContext.of(pipe)
    edit = next(edit for edit in _edits(scene, False) if edit.edit_kind == "recolour")
    record = next(r for r in task.records if r["kind"] == "recolour")
    encoding = pipe.encode_image(batch.drawn[0].image)
    own, new = source_codes(pipe, encoding), source_codes(pipe, pipe.encode_image(render(edit.result, SIZE).image))
    change = torch.from_numpy(edit_support(scene, edit, SIZE, dilation=1)).float()[None, None]
    grammar = VisualTokenGrammar(context.vocabulary, tuple(own[0].shape[-2:]), tuple(own[1].shape[-2:]))
    free = [resample_mask(change, tuple(level.shape[-2:]), "any")[:, 0] > 0 for level in own]
    ids, draw = block_template(grammar, 1, codes=own, free=tuple(free))
    true = ids.clone()
    for positions, codes, level in (
        (grammar.semantic_positions, new[0], context.vocabulary.level0_range),
        (grammar.pixel_positions, new[1], context.vocabulary.level1_range),
    ):
        true[:, positions] = torch.where(draw[:, positions], codes.flatten(1) + level[0], ids[:, positions])
    places = fed_positions(draw)[0].nonzero()[:, 0]
    read = (true if history == "true" else ids)[0, places]
    parts = context.style.suffix(EDIT, text=edit.instruction, height_width=(SIZE, SIZE), answer=build_answer(EDIT))
    row = suffix_row(context, parts, code_ids=read.tolist())
    prefix, _, starts = embed_prefix(pipe, context, encoding)
    start = prefix.shape[1] + row.codes[0]
    positions = torch.arange(prefix.shape[1] + len(row.ids))
    positions[start : start + len(places)] = starts[0] + places
    embeds = torch.cat([prefix, batch_rows(pipe, [row]).embeds], dim=1)
    hidden = pipe.language_model.model(inputs_embeds=embeds, position_ids=positions[None]).last_hidden_state[0]
    first, stop = context.vocabulary.level1_range
    asked = draw[0, places] & (true[0, places] >= first)
    about = torch.from_numpy(batch.drawn[0].masks[list(edit.targets)].any(axis=0)).float()[None, None]
    cells = pipe.mask_conditioner.places(about, change, grammar.pixel_grid)[0]
    at = {position: cell for cell, position in enumerate(grammar.pixel_positions.tolist())}
    here = torch.stack([cells[at[place]] for place in places[asked].tolist()])
    states = pipe.mask_conditioner.guide(hidden[start - 1 : start - 1 + len(places)][asked], here)
    predicted = pipe.language_model.lm_head(states)[:, first:stop]
    nats = F.cross_entropy(predicted, true[0, places][asked] - first).item()
    assert asked.sum() > 1 and record[f"nats_{history}"] == pytest.approx(nats, rel=1e-4)
