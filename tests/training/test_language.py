"""Stages 2-4: losses against plain computations, what a step changes, exact resumption."""

from __future__ import annotations

import csv
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffusers_focus.data.edits import sample_edit
from diffusers_focus.data.world import render, sample_scene
from diffusers_focus.processing.grammar import VisualTokenGrammar
from diffusers_focus.processing.masks import resample_mask
from diffusers_focus.processing.prompts import EDIT
from diffusers_focus.steps.encode import encode_tensors
from diffusers_focus.steps.guidance import cell_guide
from diffusers_focus.steps.sampling import GREEDY
from diffusers_focus.steps.sequence import batch_rows, embed_prefix, encode_prefix, suffix_row
from diffusers_focus.steps.visual_tokens import block_template, fed_positions, write_codes
from diffusers_focus.training.code_terms import OUTSIDE_WEIGHT
from diffusers_focus.training.language import LanguageObjective, _selection_costs
from diffusers_focus.training.stages import ADAPTERS, NEEDS, STAGES, build_objective, get_stage
from diffusers_focus.training.terms import Figures, Terms
from diffusers_focus.training.trainer import ParameterGroup, StageRecipe, Trainer

from tests.tiny import SIZE, tiny_components

QUESTIONS = {"questions": 3, "referring": 0, "generalized": 0, "regions": 0}
MASKS = {"questions": 0, "referring": 2, "generalized": 1, "regions": 1}
EDITS = {"questions": 0, "referring": 0, "generalized": 0, "regions": 0, "edits": 1.0, "dropout": 0.0}
EVERYTHING = {"questions": 2, "referring": 1, "regions": 1, "edit_masks": 1, "edits": 1.0, "generations": 1.0}
RECIPE = StageRecipe(
    name="language-test",
    objective="language",
    groups=(
        ParameterGroup("language_model", 1e-3),
        ParameterGroup("mask_decoder", 1e-3),
        ParameterGroup("vision_encoder", 1e-3, include=ADAPTERS),
    ),
    steps=4,
    batch_size=2,
    warmup_steps=1,
    save_every_minutes=0.0,  # a checkpoint after every step
    log_every=1,
    options={"size": SIZE, "mixture": EVERYTHING},
)


class Killed(Exception):
    """Stands for whatever ends a process."""


def parts(seed: int = 0) -> SimpleNamespace:
    """Test size with as many queries as mask slots, and enough of both for a scene and its background."""
    components = tiny_components(seed)
    for name, number in (("vision_encoder", "num_query_tokens"), ("mask_decoder", "num_slots")):
        component = components[name]
        components[name] = type(component).from_config(component.config, **{number: 8})
    return SimpleNamespace(**components)


def objective(mixture: dict[str, Any], seed: int = 0) -> LanguageObjective:
    return LanguageObjective(parts(seed), replace(RECIPE, options={"size": SIZE, "mixture": mixture}))


def language_trainer(folder, seed: int = 0, **arguments) -> Trainer:
    return Trainer(RECIPE, LanguageObjective(parts(seed), RECIPE), folder, cpu=True, **arguments)


def log_of(folder) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.mark.whole
def test_a_killed_run_goes_on_to_the_same_losses_and_weights(tmp_path):
    whole = language_trainer(tmp_path / "whole")
    assert whole.run(progress=False)

    def kill(done: int) -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        language_trainer(tmp_path / "killed", on_checkpoint=kill).run(progress=False)
    resumed = language_trainer(tmp_path / "killed")
    with torch.no_grad():  # what is trained comes from the checkpoint
        for parameter in resumed.parameters.values():
            parameter.zero_()
    assert resumed.run(progress=False)
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")
    assert [name for name, p in whole.parameters.items() if not torch.equal(p, resumed.parameters[name])] == []


@pytest.mark.parametrize("name", list(STAGES))
def test_a_step_changes_what_its_stage_trains_and_nothing_else(name, tmp_path):
    recipe = get_stage(name)
    pictures = 2 if recipe.options.get("mixture", {}).get("clips") else 1  # a clip has two frames
    recipe = replace(recipe, batch_size=pictures, steps=2, warmup_steps=1, options={**recipe.options, "size": SIZE})
    everything = parts()
    given = SimpleNamespace(**{need: getattr(everything, need) for need in NEEDS[recipe.objective]})
    trainer = Trainer(recipe, build_objective(recipe, given, tmp_path), tmp_path, cpu=True)
    modules = {k: v for k, v in vars(everything).items() if isinstance(v, torch.nn.Module)} | trainer.modules
    before = {f"{c}.{n}": v.clone() for c, module in modules.items() for n, v in module.state_dict().items()}
    trainer.train_step()
    after = {f"{c}.{n}": v for c, module in modules.items() for n, v in module.state_dict().items()}
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    tied = {"language_model.lm_head.weight"}
    assert changed <= set(trainer.parameters) | tied
    for group, chosen in trainer.groups:
        assert changed & set(chosen), group  # not each of them: behind a branch that starts at zero nothing moves yet


def test_rows_of_codes_stay_while_places_are_learned(tmp_path):
    """No answer of theirs is a code; AdamW would make whole steps of the little that a softmax over all ids says of them."""
    recipe = get_stage("3-places")
    recipe = replace(recipe, batch_size=1, steps=2, warmup_steps=1, options={**recipe.options, "size": SIZE})
    everything = parts()
    trainer = Trainer(recipe, build_objective(recipe, everything, tmp_path), tmp_path, cpu=True)
    table = everything.language_model.get_input_embeddings().weight
    vocabulary = trainer.objective.context.vocabulary
    first = vocabulary.level0_range[0]
    codes = torch.arange(*vocabulary.level0_range).tolist() + torch.arange(*vocabulary.level1_range).tolist()
    before = table.detach().clone()
    trainer.train_step()
    trainer.train_step()
    assert torch.equal(table[codes], before[codes]) and not torch.equal(table[:first], before[:first])


def test_the_words_loss_is_the_cross_entropy_of_whole_prompts():
    """With the prefix shared and the suffixes padded side by side it is what each whole prompt would give alone."""
    here = objective(QUESTIONS)
    batch = here.batch(1)
    with torch.no_grad():
        _, figures = here.loss(batch, 1)
        components, losses = here.components, []
        prefix, _, _ = embed_prefix(components, here.context, encode_tensors(components, batch.scenes.pixel_values))
        for prompt in batch.texts:
            regions = None
            if prompt.region is not None:
                seen = encode_tensors(components, batch.scenes.pixel_values[prompt.image][None]).vision
                region = batch.regions[prompt.region][None]
                regions = components.vision_encoder.region_tokens(seen.feature_maps, seen.image_features, region)
            suffix = batch_rows(components, [suffix_row(here.context, prompt.parts)], region_tokens=regions)
            whole = torch.cat([prefix[prompt.image][None], suffix.embeds], dim=1)
            logits = components.language_model(inputs_embeds=whole).logits[0, -suffix.labels.shape[1] - 1 : -1]
            written = suffix.labels[0] >= 0
            losses.append(F.cross_entropy(logits[written], suffix.labels[0][written]))
    assert len(losses) == 2 * QUESTIONS["questions"]
    assert figures["text"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)


def test_masks_are_learned_from_every_prompt_and_words_from_the_selection():
    here = objective(MASKS)
    loss, figures = here.loss(here.batch(0), 0)
    assert {"names", "bce", "dice", "select", "quality", "iou"} <= figures.keys()
    loss.backward()
    moved = {
        name
        for name, module in here.modules().items()
        if any(p.grad is not None and p.grad.any() for p in module.parameters())
    }
    assert moved == {"language_model", "mask_decoder", "vision_encoder"}  # the tokenizer is frozen by construction


def test_only_cells_that_the_change_touches_weigh_in_full():
    here = objective(EDITS)
    batch = here.batch(0)
    (prompt,) = [p for p in batch.codes if p.image == 0]
    grids = (2, 2), (4, 4)
    semantic, pixel = here._inside(prompt, grids)
    for inside in (semantic, pixel):
        side = SIZE // inside.shape[0]
        touched = F.max_pool2d(prompt.change, side)[0, 0] > 0
        assert torch.equal(inside, touched) and inside.any()
    weights = here._code_weights(semantic, pixel)
    ids = here.context.vocabulary.image_ids(torch.zeros(grids[0]), torch.zeros(grids[1]), with_tag=False)
    assert len(weights) == len(ids)
    v = here.context.vocabulary
    for token, (first, stop), inside in ((0, v.level0_range, semantic), (1, v.level1_range, pixel)):
        cells = weights[(ids >= first) & (ids < stop)].view(inside.shape)
        assert torch.equal(cells == 1, inside), token
        assert (cells[~inside] == OUTSIDE_WEIGHT).all()
    markers = weights[ids < v.level0_range[0]]
    assert markers.max() < OUTSIDE_WEIGHT


@pytest.mark.parametrize("in_place", [True, False])
def test_codes_to_write_are_the_sources_outside_and_the_targets_inside(in_place):
    here = objective(EDITS)
    here.context.style = replace(here.context.style, writes_in_place=in_place)
    batch = here.batch(0)
    rows = []

    class Recorded(LanguageObjective):
        def _run(self, prompts, prefix, regions, given, histories=None):
            rows.extend(zip(prompts, given, strict=True))
            return super()._run(prompts, prefix, regions, given, histories)

    recorded = Recorded(here.components, here.recipe)
    recorded.loss(batch, 0)
    v = here.context.vocabulary
    with torch.no_grad():
        tokenizer = here.components.visual_tokenizer
        pixel = tokenizer.quantize_pixels(tokenizer.encode_pixels(batch.target_pixels))[1]
    here.context.style = replace(here.context.style, writes_in_place=True)  # the context is kept with the tokenizer
    assert len(rows) == len(batch.codes) == 2
    grid = pixel.shape[-2:]
    grammar = VisualTokenGrammar(v, (2, 2), tuple(grid))
    different = 0
    for prompt, row in rows:
        start, places = row.codes
        ids, answers = row.ids[start : start + len(places)], row.answers[start : start + len(places)]
        inside = (resample_mask(prompt.change, tuple(grid), "any")[0, 0] > 0).flatten()
        true = torch.where(inside, pixel[prompt.target].flatten(), pixel[prompt.image].flatten())
        block = dict(zip(places, zip(ids, answers, strict=True), strict=True))
        for cell, position in enumerate(grammar.pixel_positions.tolist()):
            if position in block:
                token, answer = block[position]
                assert token == v.level1_range[0] + true[cell] and answer == (bool(inside[cell]) or not in_place)
            else:
                assert in_place and not inside[cell]
        if in_place:  # nothing is read that neither is written nor precedes what is
            drawn = {place for place, answer in zip(places, answers, strict=True) if answer}
            assert all(place in drawn or place + 1 in drawn for place in places)
        else:
            assert places == tuple(range(grammar.length)) and all(answers)
        different += int((pixel[prompt.target] != pixel[prompt.image]).sum())
    assert different > 0


@torch.no_grad()
def test_a_noised_history_is_read_and_the_true_codes_are_still_to_be_written():
    read: dict[float, list[torch.Tensor]] = {}
    asked: dict[float, list[torch.Tensor]] = {}
    for noise in (0.0, 1.0):

        class Recorded(LanguageObjective):
            def _read_instead(self, suffixes, histories):
                labels = suffixes.labels.clone()
                before = suffixes.embeds.clone()
                super()._read_instead(suffixes, histories)
                changed = (suffixes.embeds != before).any(-1)
                read.setdefault(noise, []).append(changed)  # noqa: B023 - called in this round of the loop
                asked.setdefault(noise, []).append(labels >= 0)  # noqa: B023
                assert torch.equal(suffixes.labels, labels)

        recipe = replace(RECIPE, options={"size": SIZE, "mixture": {**EDITS, "edits": 4.0, "history_noise": noise}})
        here = Recorded(parts(), recipe)
        torch.manual_seed(0)
        for step in range(4):
            here.loss(here.batch(step), step)
    assert not any(changed.any() for changed in read[0.0])
    wrong = torch.cat([changed[here] for changed, here in zip(read[1.0], asked[1.0], strict=True)]).float().mean()
    assert 0.2 < wrong < 0.9  # some rows in part, some as a whole
    for changed, here in zip(read[1.0], asked[1.0], strict=True):
        assert not changed[~here].any()  # words, markers and the cell before a run are read as they are


@torch.no_grad()
def test_pictures_from_descriptions_read_what_was_written_of_them():
    """They have no source to copy from, and nothing else to go by."""
    mixture = {**EDITS, "edits": 0.0, "generations": 1.0, "history_noise": 1.0}
    losses = []
    for noise in (1.0, 0.0):
        recipe = replace(RECIPE, options={"size": SIZE, "mixture": {**mixture, "history_noise": noise}})
        here = LanguageObjective(parts(), recipe)
        batch = here.batch(0)
        assert batch.codes and all(prompt.image < 0 for prompt in batch.codes)
        torch.manual_seed(0)
        losses.append(here.loss(batch, 0)[0].item())
    assert losses[0] == losses[1]


def test_noise_in_a_history_is_codes_of_the_same_level():
    here = objective(EDITS)
    v = here.context.vocabulary
    true = v.image_ids(torch.zeros(2, 2, dtype=torch.long), torch.zeros(4, 4, dtype=torch.long), with_tag=False)
    before = v.image_ids(torch.ones(2, 2, dtype=torch.long), torch.ones(4, 4, dtype=torch.long), with_tag=False)
    sources = 0
    for number in range(40):
        noised = here._noised(true, before, torch.Generator().manual_seed(number))
        marks = true < v.level0_range[0]
        assert torch.equal(noised[marks], true[marks])
        for first, stop in (v.level0_range, v.level1_range):
            level = (true >= first) & (true < stop)
            assert ((noised[level] >= first) & (noised[level] < stop)).all()
        wrong = noised != true
        sources += bool(wrong.any() and (noised[wrong] == before[wrong]).all())
    assert 8 < sources < 32  # as often the source's as any others


def test_mask_prompts_come_in_every_nth_step():
    recipe = replace(RECIPE, options={"size": SIZE, "mixture": MASKS | EDITS | {"referring": 1}, "masks_every": 3})
    here = LanguageObjective(parts(), recipe)
    assert [bool(here.batch(step).masked) for step in range(6)] == [True, False, False, True, False, False]
    assert all(here.batch(step).codes for step in range(6))


def test_the_words_of_prompts_are_learned_too():
    here = objective(QUESTIONS)
    counts = []

    class Recorded(LanguageObjective):
        def _prompt_entropy(self, hidden, suffixes):
            entropy = super()._prompt_entropy(hidden, suffixes)
            asked = (suffixes.ids[:, 1:] >= 0) & (suffixes.labels[:, 1:] < 0)
            counts.append((len(entropy), int(asked.sum()), int((suffixes.labels[:, 1:] >= 0).sum())))
            return entropy

    loss, figures = Recorded(here.components, here.recipe).loss(here.batch(0), 0)
    assert figures["prompt"] > 1 and all(n == asked > 0 and written > 0 for n, asked, written in counts)
    loss.backward()
    assert here.components.language_model.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


def test_selection_costs_by_hand():
    meant, asked = torch.tensor([[1.0], [0.0]]), torch.tensor([True])
    costs = _selection_costs(torch.tensor([[0.0]]), meant, asked)
    assert costs.flatten().tolist() == pytest.approx([0.6931, 0.6931], abs=1e-4)
    sure = _selection_costs(torch.tensor([[20.0], [-20.0]]), meant, asked)
    assert sure[0, 0] < 1e-6 and sure[1, 1] < 1e-6  # selected and meant, neither: free
    assert sure[0, 1] == pytest.approx(20, rel=1e-4) and sure[1, 0] == pytest.approx(20, rel=1e-4)


@torch.no_grad()
def test_image_tokens_begin_at_the_scale_of_words():
    components = parts()
    spread = components.language_model.config.initializer_range
    LanguageObjective(components, replace(RECIPE, options={"size": SIZE, "mixture": EVERYTHING}))
    before = components.vision_encoder.query_adapter.projection.weight.clone()
    one = LanguageObjective(
        components, replace(RECIPE, options={"size": SIZE, "mixture": EVERYTHING, "match_scale": True})
    )
    batch = one.batch(0)
    vision = encode_tensors(components, batch.scenes.pixel_values).vision
    regions = components.vision_encoder.region_tokens(
        vision.feature_maps, vision.image_features, batch.regions, batch.region_images
    )
    for tokens in (vision.vision_tokens, vision.pixel_tokens, vision.query_tokens, regions):
        assert tokens.square().mean().sqrt().item() == pytest.approx(spread, rel=1e-3)
    after = components.vision_encoder.query_adapter.projection.weight
    torch.testing.assert_close(after / after.norm(), before / before.norm())  # the scale and nothing else


@pytest.mark.parametrize("noisy", [(0, 0), (0, 1)])
def test_copy_heads_go_where_answers_suffer_least(noisy):
    here = objective(QUESTIONS)
    layer, group = noisy
    model, config = here.components.language_model, here.components.language_model.config
    assert config.num_hidden_layers == 2 and config.num_key_value_heads == 2  # the last layer's heads stay
    attention = model.model.layers[layer].self_attn
    half = attention.o_proj.weight.shape[1] // 2
    with torch.no_grad():  # heads that always say the same wrong word are missed by nobody
        values = slice(group * attention.head_dim, (group + 1) * attention.head_dim)
        attention.v_proj.weight[values] = 0
        attention.v_proj.bias[values] = 1
        wrong = model.get_input_embeddings().weight[here.context.vocabulary.start_of_image]
        attention.o_proj.weight[:, group * half : (group + 1) * half] = 100 * wrong[:, None]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert here._least_used_heads() == noisy
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_lists_of_names_strokes_and_explanations_are_learned():
    asked = {
        "questions": 0,
        "referring": 1,
        "generalized": 0,
        "regions": 1,
        "classes": 1,
        "strokes": 1.0,
        "explained": 1.0,
    }
    own = objective(asked)
    batch = own.batch(0)
    assert {prompt.kind for prompt in batch.masked} >= {"class", "strokes"}
    loss, figures = own.loss(batch, 0)
    loss.backward()
    assert torch.isfinite(loss) and {"names", "select", "dice"} <= set(figures)
    head = own.components.mask_decoder.condition_head.condition_projection.weight
    assert head.grad is not None and head.grad.abs().sum() > 0


def test_instance_embeddings_learn_from_pairs_of_frames():
    mixture = {"questions": 0, "referring": 1, "generalized": 0, "regions": 1, "twins": 0.0, "clips": 1.0}
    here = objective(mixture)
    for name, module in here.modules().items():
        for key, parameter in module.named_parameters():
            parameter.requires_grad_(name == "mask_decoder" and key.startswith("instance_head"))
    head = [p for p in here.components.mask_decoder.instance_head.parameters()]
    optimizer, batch, losses = torch.optim.AdamW(head, 1e-2), here.batch(0), []
    assert batch.scenes.clips == [0, 0] and len(batch.masks[0]) == len(batch.masks[1])
    for _ in range(6):
        total, figures = here.loss(batch, 0)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(figures["identity"])
    assert losses[-1] < 0.7 * losses[0] and 0 <= figures["linked"] <= 1


@torch.no_grad()
@pytest.mark.parametrize("keeps", [False, True])
def test_codes_are_learned_from_the_states_that_they_are_written_from(keeps):
    """The first choices after what an edit has written are what it wrote: training guides as writing does."""
    here = objective({**EDITS, "history_noise": 0.0})
    parts_ = here.components
    batch = here.batch(0)
    prompt = batch.codes[0]
    prompt.about = prompt.change.clone()
    prompt.about[..., : prompt.about.shape[-1] // 2] = 0
    prompt.keeps_outline = keeps
    encoding = encode_tensors(parts_, batch.pixel_values)
    semantic, pixel = here._all_codes(batch, encoding)
    inside = here._inside(prompt, (semantic.shape[-2:], pixel.shape[-2:]))
    grammar = VisualTokenGrammar(here.context.vocabulary, tuple(semantic.shape[-2:]), tuple(pixel.shape[-2:]))
    template = block_template(
        grammar,
        1,
        codes=(semantic[:1], pixel[:1]),
        free=tuple(cells[None] for cells in inside),
    )
    row = suffix_row(here.context, prompt.parts[: _tag(here, prompt)])
    prefix = encode_prefix(parts_, here.context, encoding)
    guide = cell_guide(parts_, prompt.about, prompt.change, grammar.pixel_grid, [keeps])
    arguments = (parts_, prefix, [row], [0], grammar)
    ids = write_codes(*arguments, semantic=GREEDY, pixel=GREEDY, template=template, guide=guide)
    assert not torch.equal(ids, write_codes(*arguments, semantic=GREEDY, pixel=GREEDY, template=template))
    read = fed_positions(template[1])[0].nonzero()[:, 0]
    drawn = template[1][0, read]
    codes = {"code_ids": ids[0, read].tolist(), "code_places": read.tolist(), "code_answers": drawn.tolist()}
    whole = suffix_row(here.context, prompt.parts, **codes)
    hidden, suffixes = here._run([prompt], prefix, None, [whole])
    figures = Terms(hidden.device), Figures()
    hidden = here._guided(hidden, suffixes, [prompt], grammar, batch.target_pixels, *figures)
    start = suffixes.codes[0][0]
    states = hidden[0, start - 1 : start - 1 + len(read)][drawn]
    logits = parts_.language_model.lm_head(states)
    places = read[drawn]
    for state, place in zip(logits, places.tolist(), strict=True):
        first, stop = int(grammar.first[place]), int(grammar.stop[place])
        assert int(state[first:stop].argmax()) + first == ids[0, place]


def _tag(here: LanguageObjective, prompt: Any) -> int:
    """How many segments of an edit prompt stand before its image block."""
    question = here.context.style.suffix(EDIT, text="x", height_width=(SIZE, SIZE))
    return len(here.context.segments(question))


def test_other_colours_and_fills_keep_the_outline_of_what_they_are_about():
    here = objective({**EDITS, "edits": 3.0})
    prompts = [prompt for step in range(6) for prompt in here.batch(step).codes if prompt.outline is not None]
    kept = [prompt for prompt in prompts if prompt.keeps_outline]
    assert kept and len(kept) < len(prompts)
    for prompt in kept:
        both = (prompt.about > 0) & (prompt.outline > 0)
        assert both.sum() > 0.8 * ((prompt.about > 0) | (prompt.outline > 0)).sum()


def test_outlines_are_those_of_the_cells_that_are_written():
    """Logits cut from the truth cell by cell cost nothing; those of another cell do; without an outline nothing is asked."""
    here = objective({**EDITS, "edits": 3.0})
    prompts = [p for p in here.batch(0).codes if p.outline is not None and p.outline.any()][:2]
    grid = (SIZE // 4, SIZE // 4)  # cells of half as many pixels as an outline has points
    size = grid[0]
    truths = [F.interpolate(p.outline, scale_factor=2.0)[0, 0] for p in prompts]
    at = torch.tensor([0] * size**2 + [1] * size**2)
    cell = torch.arange(size**2).repeat(2)
    cut = torch.stack(
        [
            truths[row][8 * (k // size) : 8 * (k // size) + 8, 8 * (k % size) : 8 * (k % size) + 8].flatten()
            for row, k in zip(at.tolist(), cell.tolist(), strict=True)
        ]
    )
    grammar = SimpleNamespace(pixel_grid=grid)

    def asked(logits: torch.Tensor, prompts: list) -> tuple[dict[str, float], dict[str, float]]:
        terms, figures = Terms(torch.device("cpu")), Figures()
        here._outlines(logits, at, cell, prompts, grammar, terms, figures)
        return terms.means(), figures.means()

    losses, figures = asked(40 * cut - 20, prompts)
    assert losses["outline"] < 1e-4 and figures["outline_right"] == 1.0
    losses, figures = asked((40 * cut - 20).roll(1, 0), prompts)
    assert losses["outline"] > 0.5 and figures["outline_right"] < 1.0
    assert asked(cut, [replace(p, outline=None) for p in prompts]) == ({}, {})


def test_the_outline_of_an_edit_is_what_it_draws():
    """Nothing where an object is taken away; of a new background there is none."""
    kinds: dict[str, list[Any]] = {}
    here = objective(EDITS)

    def remembered(scene, rng):
        kinds.setdefault("drawn", []).append(sample_edit(scene, rng))
        return kinds["drawn"][-1]

    here.draw_edit = remembered
    for step in range(6):
        kinds["drawn"] = []
        batch = here.batch(step)
        for prompt, edit in zip(batch.codes, kinds["drawn"], strict=True):
            if edit.edit_kind == "background":
                assert prompt.outline is None
            elif edit.edit_kind == "remove":
                assert not prompt.outline.any()
            else:
                assert torch.equal(
                    prompt.outline[0, 0].bool(), torch.from_numpy(render(edit.result, SIZE).masks[edit.targets[0]])
                )


def test_edits_are_of_the_kinds_that_the_mixture_names():
    mixture = {"edits": 1.0, "edit_kinds": ["fill", "fill", "remove"]}
    here, rng = objective({**EDITS, **mixture}), np.random.default_rng(0)
    drawn = [here.draw_edit(sample_scene(number), rng).edit_kind for number in range(60)]
    assert set(drawn) == {"fill", "remove"} and 0.5 < drawn.count("fill") / 60 < 0.85


@torch.no_grad()
def test_missed_vectors_by_hand():
    here = objective(EDITS)
    tokenizer, (first, stop) = here.components.visual_tokenizer, here.context.vocabulary.level1_range
    vectors = tokenizer.pixel_quantizer.lookup(torch.arange(stop - first))
    logits = torch.zeros(3, here.components.language_model.config.vocab_size)
    logits[1, first + 4] = 1e4  # sure of code 4, as it should be; of code 5 in the last row, wrongly
    logits[2, first + 5] = 1e4
    wanted = torch.tensor([first, first + 4, first + 4])
    missed = here._missed(logits, wanted)
    expected = [(vectors.mean(0) - vectors[0]).square().sum(), 0.0, (vectors[5] - vectors[4]).square().sum()]
    torch.testing.assert_close(missed, torch.tensor(expected))
    assert not len(here._missed(logits[:1], torch.tensor([here.context.vocabulary.level0_range[0]])))  # semantic: none


def test_vectors_are_learned_where_a_recipe_says_so():
    batch = objective(EDITS).batch(0)
    losses = []
    for weight in (0.0, 2.0):
        here = objective(EDITS)
        here.recipe = replace(here.recipe, options={**here.recipe.options, "vectors": weight})
        loss, figures = here.loss(batch, 0)
        losses.append(loss.item())
        assert ("vectors" in figures) == ("edit_distance" in figures) == (weight > 0)
    assert figures["edit_distance"] > 0
    assert losses[1] == pytest.approx(losses[0] + 2.0 * figures["edit_distance"], rel=1e-5)
