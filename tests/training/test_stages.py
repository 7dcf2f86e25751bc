"""The stages as data, and running one in a training folder."""

from __future__ import annotations

import json
import re
from dataclasses import FrozenInstanceError, replace
from types import SimpleNamespace

import pytest
import torch

from diffusers_focus.steps.sequence import FocusContext
from diffusers_focus.training.components import CLASSES, build_component, load_component, save_component
from diffusers_focus.training.run import OPTIONS, run_stage, with_overrides
from diffusers_focus.training.stages import NEEDS, PAPER_STAGES, STAGES, build_objective, get_stage
from diffusers_focus.training.trainer import Trainer, select_parameters

pytestmark = pytest.mark.whole

# Folders and logs of finished runs carry these names: adding one means adding it here; none may vanish.
FROZEN = {
    "0-vae": ("autoencoder", {"vae"}),
    "0-features": ("features", {"vision_encoder", "mask_decoder", "heads"}),
    "0-encoders": ("perception", {"vision_encoder", "mask_decoder", "heads"}),
    "1a-pixel": ("pixel_tokenizer", {"visual_tokenizer"}),
    "2": ("language", {"language_model", "vision_encoder"}),
    "1a-semantic": ("semantic_tokenizer", {"visual_tokenizer"}),
    "1b": ("decoder", {"unet"}),
    "3": ("language", {"language_model", "mask_conditioner", "mask_decoder", "vision_encoder"}),
    "3-places": ("language", {"language_model", "vision_encoder"}),
    "3-all": ("language", {"language_model", "mask_conditioner", "mask_decoder", "vision_encoder"}),
    "3-names": ("language", {"language_model", "vision_encoder"}),
    "3-found": ("language", {"language_model", "mask_conditioner", "mask_decoder", "vision_encoder"}),
    "3-guided": ("language", {"language_model", "mask_conditioner", "mask_decoder", "vision_encoder"}),
    "3-drawn": ("language", {"language_model", "mask_conditioner", "mask_decoder", "vision_encoder"}),
    "3-redrawn": ("language", {"language_model", "mask_conditioner", "mask_decoder", "vision_encoder"}),
    "3-identities": ("language", {"mask_decoder"}),
    "4": ("decoder", {"unet", "mask_conditioner"}),
}
SHORT = {"steps": 2, "batch_size": 1, "size": 64, "crop": 16, "log_every": 1}


@pytest.fixture(scope="module")
def components() -> SimpleNamespace:
    return SimpleNamespace(**{name: build_component(name) for name in CLASSES})


def test_stages_are_the_frozen_ones():
    found = {name: (recipe.objective, {group.component for group in recipe.groups}) for name, recipe in STAGES.items()}
    assert found == FROZEN
    assert list(found) == list(FROZEN)  # the order in which they run
    assert all(recipe.name == name for name, recipe in STAGES.items())
    with pytest.raises(FrozenInstanceError):
        STAGES["0-vae"].steps = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", STAGES)
def test_every_group_of_a_stage_names_parameters_that_exist(name, components, tmp_path):
    recipe = get_stage(name)
    given = SimpleNamespace(**{need: getattr(components, need) for need in NEEDS[recipe.objective]})
    objective = build_objective(recipe, given, tmp_path)
    for group, chosen in select_parameters(objective.modules(), recipe.groups):
        assert chosen, group


def test_what_a_stage_freezes_stays_frozen(components, tmp_path):
    def trained(name: str) -> set[str]:
        recipe = get_stage(name)
        groups = select_parameters(build_objective(recipe, components, tmp_path).modules(), recipe.groups)
        return {parameter for _, chosen in groups for parameter in chosen}

    assert all(name.startswith("visual_tokenizer.semantic_") for name in trained("1a-semantic"))
    assert all(name.startswith("visual_tokenizer.pixel_") for name in trained("1a-pixel"))
    # The semantic codebook quantises the fused features: what makes them must not move once it is trained.
    for stage in ("2", "3"):
        moved = {name.split(".")[1] for name in trained(stage) if name.startswith("vision_encoder")}
        assert moved == {"query_adapter", "vision_projector", "pixel_projector", "region_pooler"}, stage
    # Naming what is under a mask needs no queries and no masks found.
    moved = {tuple(name.split(".")[:2]) for name in trained("0-features") if not name.startswith("heads")}
    assert moved == {
        ("vision_encoder", "pyramid"),
        ("vision_encoder", "region_pooler"),
        ("vision_encoder", "vit"),
        ("vision_encoder", "fusion"),
        ("mask_decoder", "pixel_decoder"),
    }


@pytest.mark.parametrize("name", ["2", "3"])
def test_a_language_stage_makes_a_step(name, components, tmp_path):
    recipe = replace(get_stage(name), batch_size=1, steps=2)
    trainer = Trainer(recipe, build_objective(recipe, components, tmp_path), tmp_path / name, cpu=True)
    figures = trainer.train_step()
    assert {"loss", "text", "prompt"} <= figures.keys()
    for part in ("names", "dice", "select", "codes", "edit"):
        assert (part in figures) == (name == "3"), part


def test_code_rows_are_initialised_by_the_stage_that_first_writes_codes(components, tmp_path):
    vocabulary = FocusContext.of(components).vocabulary
    table = components.language_model.get_input_embeddings().weight

    def rows_after(stage: str) -> torch.Tensor:
        build_objective(get_stage(stage), components, tmp_path)
        return table.detach().clone()

    with torch.no_grad():
        table[vocabulary.level1_range[0]] = 1.0
    assert rows_after("2")[vocabulary.level1_range[0]].eq(1).all()
    assert not rows_after("3")[vocabulary.level1_range[0]].eq(1).any()


def test_paper_table_has_the_four_stages():
    assert list(PAPER_STAGES) == ["1a", "1b", "2", "3", "4"]
    assert {name: stage.batch_size for name, stage in PAPER_STAGES.items()} == {
        "1a": 256,
        "1b": 128,
        "2": 512,
        "3": 256,
        "4": 256,
    }
    assert dict(PAPER_STAGES["3"].learning_rates) == {"language model": 2e-5, "mask predictor": 1e-3}


def test_a_stage_leaves_its_component_log_and_record(tmp_path):
    assert run_stage("0-vae", tmp_path, overrides=SHORT, progress=False)
    folder = tmp_path / "stages" / "0-vae"
    assert {"checkpoint", "log.csv", "recipe.json"} <= {p.name for p in folder.iterdir()}
    record = json.loads((folder / "recipe.json").read_text())
    assert record["complete"] and record["step"] == 2 and record["recipe"]["batch_size"] == 1
    assert record["measured"]["latent_std"] > 0
    # The next stage finds what this one trained, and the latents' measured scale with it.
    vae = load_component(tmp_path, "vae")
    assert vae.config.scaling_factor == pytest.approx(1 / record["measured"]["latent_std"], rel=1e-3)
    assert not torch.equal(vae.decoder.conv_out.weight, build_component("vae", seed=1).decoder.conv_out.weight)


def test_an_unfinished_stage_changes_no_component_and_goes_on_later(tmp_path):
    assert not run_stage("0-vae", tmp_path, max_minutes=0.0, overrides=SHORT, progress=False)
    assert not (tmp_path / "components").exists()
    assert not json.loads((tmp_path / "stages" / "0-vae" / "recipe.json").read_text())["complete"]
    assert run_stage("0-vae", tmp_path, overrides=SHORT, progress=False)
    split = load_component(tmp_path, "vae").state_dict()
    assert run_stage("0-vae", tmp_path / "whole", overrides=SHORT, progress=False)
    whole = load_component(tmp_path / "whole", "vae").state_dict()
    assert all(torch.equal(value, split[name]) for name, value in whole.items())


def test_a_finished_stage_is_left_as_later_stages_made_it(tmp_path):
    assert run_stage("0-vae", tmp_path, overrides=SHORT, progress=False)
    later = build_component("vae", seed=9)
    save_component(tmp_path, "vae", later)
    assert run_stage("0-vae", tmp_path, overrides=SHORT, progress=False)
    assert torch.equal(load_component(tmp_path, "vae").decoder.conv_out.weight, later.decoder.conv_out.weight)
    # More steps than it has are a wish to go on, and resume=False one to begin anew.
    assert run_stage("0-vae", tmp_path, overrides={**SHORT, "steps": 3}, progress=False)
    assert json.loads((tmp_path / "stages" / "0-vae" / "recipe.json").read_text())["step"] == 3
    assert run_stage("0-vae", tmp_path, resume=False, overrides=SHORT, progress=False)
    assert json.loads((tmp_path / "stages" / "0-vae" / "recipe.json").read_text())["step"] == 2


def test_overrides_change_numbers_and_options():
    recipe = with_overrides(get_stage("0-encoders"), {"steps": 5, "learning_rate_scale": 0.5, "size": 64})
    before = get_stage("0-encoders")
    assert recipe.steps == 5 and recipe.options == {**before.options, "size": 64}
    rates = [group.learning_rate for group in recipe.groups]
    assert rates == pytest.approx([0.5 * group.learning_rate for group in before.groups]) and len(set(rates)) == 2
    assert before.options == {"twins": 0.2}  # the table itself is untouched
    with pytest.raises(ValueError, match="'groups' is what makes recipe"):
        with_overrides(recipe, {"groups": ()})
    with pytest.raises(ValueError, match="no setting 'learning_rate' of a stage; choose one of .*learning_rate_scale"):
        with_overrides(recipe, {"learning_rate": 1e-3})


def test_every_option_an_objective_reads_may_be_overridden(root):
    folder = root / "src" / "diffusers_focus" / "training"
    text = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    assert set(re.findall(r"""options(?:\.get\(|\[)"(\w+)\"""", text)) == OPTIONS | {"processes"}  # the trainer's own


def test_an_unknown_stage_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="no stage '5'; choose one of 0-vae, 0-features, 0-encoders"):
        run_stage("5", tmp_path)
    with pytest.raises(ValueError, match="threads is 0"):
        run_stage("0-vae", tmp_path, threads=0)
