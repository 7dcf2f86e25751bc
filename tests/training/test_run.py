"""Two stages in one training folder: the second goes on with what the first one left."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from diffusers_focus.data.folders import write_records
from diffusers_focus.data.world_samples import world_records
from diffusers_focus.training.components import build_component, load_component, load_components, save_component
from diffusers_focus.training.run import run_stage
from diffusers_focus.training.stages import ADAPTERS, NEEDS, TOKEN_SCALES, build_objective, get_stage
from diffusers_focus.training.trainer import Trainer, fastest_precision

pytestmark = pytest.mark.whole

SHORT = {"steps": 2, "batch_size": 2, "size": 64, "log_every": 1}


def weights(root, name: str) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in load_component(root, name).state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def saved_heads(root, stage: str) -> dict[str, torch.Tensor]:
    """Training-only heads are no component: they are found in the checkpoint alone."""
    saved = load_file(root / "stages" / stage / "checkpoint" / "weights.safetensors")
    return {name.removeprefix("heads."): value for name, value in saved.items() if name.startswith("heads.")}


def test_the_encoders_stage_goes_on_where_the_features_stage_stopped(tmp_path):
    fresh = build_component("mask_decoder")
    assert run_stage("0-features", tmp_path, overrides=SHORT, progress=False)
    decoder, encoder = weights(tmp_path, "mask_decoder"), weights(tmp_path, "vision_encoder")
    assert not same(decoder, fresh.state_dict())
    recipe = replace(get_stage("0-encoders"), batch_size=2)
    objective = build_objective(recipe, load_components(tmp_path, NEEDS[recipe.objective]), tmp_path)
    modules = objective.modules()
    heads, earlier = modules["heads"].state_dict(), saved_heads(tmp_path, "0-features")
    assert {name.split(".")[0] for name in earlier} == {"object_words", "region_words"}
    assert same(earlier, heads) and len(heads) > len(earlier)
    # Pyramid and pixel decoder come as they were trained; queries and slots begin at their anchors.
    found = modules["vision_encoder"].state_dict()
    moved = {name.split(".")[0] for name, value in encoder.items() if not torch.equal(value, found[name])}
    assert moved == {"query_adapter"}
    found = modules["mask_decoder"].state_dict()
    moved = {name for name, value in decoder.items() if not torch.equal(value, found[name])}
    assert {name.split(".")[0] for name in moved} == {"query_embed", "pixel_decoder", "layers"}
    assert {name for name in moved if name.startswith("pixel")} == {"pixel_decoder.position_projection.weight"}


def test_the_language_stage_goes_on_where_the_encoders_stage_stopped(tmp_path):
    assert run_stage("0-encoders", tmp_path, overrides=SHORT, progress=False)
    assert {p.name for p in (tmp_path / "components").iterdir()} == {
        "vision_encoder",
        "mask_decoder",
        "image_processor",
    }
    encoder = weights(tmp_path, "vision_encoder")
    modules = build_objective(get_stage("2"), load_components(tmp_path, NEEDS["language"]), tmp_path).modules()
    found = modules["vision_encoder"].state_dict()
    rescaled = {name for name, value in found.items() if not torch.equal(value, encoder[name])}
    assert rescaled == {f"{name}.{part}" for name in TOKEN_SCALES for part in ("weight", "bias")}

    assert run_stage("2", tmp_path, overrides={**SHORT, "batch_size": 1}, progress=False)
    written = {p.name for p in (tmp_path / "components").iterdir()}
    assert written == {"vision_encoder", "mask_decoder", "image_processor", "language_model", "lm_tokenizer"}
    trained = weights(tmp_path, "vision_encoder")
    moved = {name.split(".")[0] for name, value in trained.items() if not torch.equal(value, encoder[name])}
    assert moved == set(ADAPTERS)
    record = json.loads((tmp_path / "stages" / "2" / "recipe.json").read_text())
    assert record["complete"] and record["step"] == 2 and record["recipe"]["batch_size"] == 1
    assert record["precision"] == fastest_precision(cpu=True)

    # Asked again, both are done: neither trains, and the older one does not put its own encoder back.
    before = (tmp_path / "stages" / "2" / "log.csv").stat().st_mtime_ns
    assert run_stage("0-encoders", tmp_path, overrides=SHORT, progress=False)
    assert run_stage("2", tmp_path, overrides={**SHORT, "batch_size": 1}, progress=False)
    assert (tmp_path / "stages" / "2" / "log.csv").stat().st_mtime_ns == before
    assert same(weights(tmp_path, "vision_encoder"), trained)


class Killed(Exception):
    """Stands for whatever ends a process."""


def test_components_of_two_sizes_are_refused_before_anything_is_trained(tmp_path):
    wider = build_component("language_model", hidden_size=96)
    save_component(tmp_path, "language_model", wider)
    with pytest.raises(ValueError, match="language_model and vision_encoder do not fit"):
        run_stage("3", tmp_path, progress=False)
    assert not (tmp_path / "stages").exists()


@pytest.mark.parametrize("first_stop", [1, 2])
@pytest.mark.parametrize("second_stop", [1, 2])
def test_stops_between_renames_lose_nothing(first_stop, second_stop, tmp_path, monkeypatch):
    """Saved once, then two saves in a row that end at their first or second rename: something good is always found."""
    recipe = replace(get_stage("4"), steps=9, groups=(replace(get_stage("4").groups[1]),))
    conditioner = build_component("mask_conditioner")

    class Alone:
        def modules(self):
            return {"mask_conditioner": conditioner}

    trainer = Trainer(recipe, Alone(), tmp_path / "run", cpu=True)
    trainer.save_checkpoint()
    save_component(tmp_path, "mask_conditioner", conditioner)
    rename = os.replace
    for stop in (first_stop, second_stop):
        for save in (trainer.save_checkpoint, lambda: save_component(tmp_path, "mask_conditioner", conditioner)):
            calls = 0

            def stopping(source, target, stop=stop):
                nonlocal calls
                calls += 1
                if calls == stop:
                    raise Killed
                rename(source, target)

            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", stopping)
                try:
                    save()
                except Killed:
                    pass
        assert Trainer(recipe, Alone(), tmp_path / "run", cpu=True).load_checkpoint()
        found = load_component(tmp_path, "mask_conditioner", seed=5)
        assert torch.equal(found.mask_in.weight, conditioner.mask_in.weight)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_over_files_says_what_it_left_out_and_goes_on_counting(tmp_path):
    scenes = tmp_path / "scenes"
    records = list(world_records(scenes, range(3), size=64, num_questions=2, num_edits=0))
    (scenes / "1.png").write_bytes(b"no picture")
    write_records(scenes / "samples.jsonl", [r for r in records if r["task"] in ("answer", "referring")])
    with (scenes / "samples.jsonl").open("a") as lines:
        lines.write("no sample\n")
    about = sum('"1.png"' in line for line in (scenes / "samples.jsonl").read_text().splitlines())
    overrides = {**SHORT, "steps": 4, "batch_size": 1, "data": [(str(scenes), 1.0)], "match_scale": False}
    assert not run_stage("2", tmp_path, overrides=overrides, progress=False, max_minutes=0.0)
    folder = tmp_path / "stages" / "2"
    first = json.loads((folder / "skipped.json").read_text())["names"]
    # What a process that draws ahead leaves out is told all the same.
    assert run_stage("2", tmp_path, overrides=overrides, progress=False, workers=1)
    record = json.loads((folder / "recipe.json").read_text())
    # Four units are one round: two scenes that can be read, one that cannot, and the line that is none.
    assert record["skipped"]["file"] == about and record["skipped"]["line"] == 1
    assert any("1.png" in reason for reason in record["skipped"]["reasons"].values())
    assert first.items() <= json.loads((folder / "skipped.json").read_text())["names"].items()
    with pytest.raises(ValueError, match="are learned in stages 2, 3"):
        run_stage("1b", tmp_path, overrides={"data": [(str(scenes), 1.0)]}, progress=False)
