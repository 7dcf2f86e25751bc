"""recipes/card.py on few scenes and a pipeline of random weights: what is measured, kept, written, and left alone."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from diffusers_focus.evaluation.run import TASKS

from tests.tiny import tiny_pipeline

PLAN = ((("in",), ("click", "mask"), 3), (("held_out",), ("click",), 2), (("in",), ("box",), 1))


@pytest.fixture
def recipe(root, monkeypatch):
    """The recipe as a module, with a plan of seconds."""
    spec = importlib.util.spec_from_file_location("card_recipe", root / "recipes" / "card.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert {task for _, tasks, _ in module.MEASURED for task in tasks} <= set(TASKS)
    monkeypatch.setattr(module, "MEASURED", PLAN)
    return module


@pytest.fixture
def pipeline(tmp_path) -> Path:
    """A pipeline folder whose card is somebody's."""
    tiny_pipeline().save_pretrained(tmp_path / "pipeline")
    (tmp_path / "pipeline" / "README.md").write_text("old card")
    return tmp_path / "pipeline"


def call(recipe, monkeypatch, pipeline: Path, *words: str) -> None:
    line = ["card.py", "--pipeline", str(pipeline), "--runs", str(pipeline.parent / "runs"), "--processes", "1", *words]
    monkeypatch.setattr(sys, "argv", line)
    recipe.main()


def test_figures_and_card_are_of_all_measurements(recipe, monkeypatch, pipeline):
    call(recipe, monkeypatch, pipeline)
    metrics = json.loads((pipeline / "metrics.json").read_text())
    assert metrics["pipeline"] == "pipeline" and metrics["settings"]["scenes_per_group"] == 3
    assert {group: found["scenes"] for group, found in metrics["groups"].items()} == {"in": 3, "held_out": 2}
    assert set(metrics["groups"]["in"]) == {"scenes", "click", "mask", "box"}
    assert metrics["groups"]["in"]["box"]["mIoU"]["count"] == 1
    text = (pipeline / "README.md").read_text()
    assert "3 scenes (new scenes) and 2 scenes (held-out pairs)" in text and "| Box | mIoU |" in text


def test_a_rehearsal_leaves_the_card(recipe, monkeypatch, pipeline):
    call(recipe, monkeypatch, pipeline, "--rehearse", "1")
    found = json.loads((pipeline.parent / "runs" / "metrics.json").read_text())
    assert found["groups"]["held_out"]["scenes"] == 1
    assert (pipeline / "README.md").read_text() == "old card" and not (pipeline / "metrics.json").exists()
    with pytest.raises(SystemExit) as error:
        call(recipe, monkeypatch, pipeline, "--rehearse", "0")
    assert error.value.code == 2


def test_what_processes_have_measured_is_not_measured_again(recipe, monkeypatch, pipeline):
    runs = pipeline.parent / "runs"
    monkeypatch.setattr(sys, "argv", ["card.py", "--pipeline", str(pipeline), "--runs", str(runs), "--processes", "2"])
    options = recipe.arguments()
    for index in range(2):
        recipe.measure(options, index, 2)
    assert not (runs / "metrics.json").exists()
    kept = {file: file.stat().st_mtime_ns for file in (runs / "records").rglob("*.json")}
    assert len(kept) == 1 + 4  # about.json, and of every task and group its one batch
    recipe.measure(options, output=runs / "metrics.json")
    assert {file: file.stat().st_mtime_ns for file in (runs / "records").rglob("*.json")} == kept
    assert json.loads((runs / "metrics.json").read_text())["groups"]["held_out"]["click"]["mIoU"]["count"] == 2
