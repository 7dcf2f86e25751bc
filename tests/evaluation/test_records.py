"""Measurements that are stopped, gone on with, or shared by processes give the figures of one that is not."""

from __future__ import annotations

import json

import pytest

from diffusers_focus import FocusPipeline
from diffusers_focus.cli import main
from diffusers_focus.evaluation.records import BatchRecords, fingerprint
from diffusers_focus.evaluation.run import DEFAULT_TASKS, TASKS, evaluate

from tests.evaluation.worlds import Blind, Oracle
from tests.tiny import SIZE, shared_pipeline, tiny_components

pytestmark = pytest.mark.whole

DRAWN = ["ablation", "codes", "generation", "plain_generation"]


def without_seconds(groups):
    return {
        group: {name: {**one, "seconds": 0} if isinstance(one, dict) else one for name, one in found.items()}
        for group, found in groups.items()
    }


@pytest.mark.parametrize("tasks", [(*DEFAULT_TASKS, "classes"), DRAWN])
def test_parts_make_the_figures_of_the_whole(tasks, tmp_path):
    own = "edits" in tasks
    pipe = Oracle(5) if own else FocusPipeline(**tiny_components(), resolution_group=[[SIZE, SIZE]])
    count, size = (5, 2) if own else (2, 1)
    options = {"batch_size": size, "edit_options": None if own else {"num_inference_steps": 1}}
    groups = ["in", "held_out"] if own else ["in"]
    whole = evaluate(pipe, count, groups, tasks, **options)
    for index in (1, 0):
        told = evaluate(pipe, count, groups, tasks, records=tmp_path / "kept", part=(index, 2), **options)
        assert told["part"] == [index, 2] and "groups" not in told
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "kept").rglob("*.json")}
    shared = evaluate(pipe, count, groups, tasks, tmp_path / "m.json", records=tmp_path / "kept", **options)
    assert without_seconds(shared["groups"]) == without_seconds(whole["groups"])
    assert json.loads((tmp_path / "m.json").read_text()) == shared
    assert files == {file: file.stat().st_mtime_ns for file in (tmp_path / "kept").rglob("*.json")}
    assert len(files) == 1 + len(groups) * len(tasks) * -(-count // size)
    assert set(tasks) <= set(TASKS)


def test_what_is_there_is_not_asked_again_and_more_scenes_go_on(tmp_path):
    pipe = Oracle(6)
    evaluate(pipe, 4, ["in"], ["click"], records=tmp_path, batch_size=2)
    assert pipe.calls == 2
    evaluate(pipe, 4, ["in"], ["click"], records=tmp_path, batch_size=2)
    assert pipe.calls == 2
    found = evaluate(pipe, 6, ["in"], ["click"], records=tmp_path, batch_size=2)
    assert pipe.calls == 3
    assert found["groups"]["in"]["click"]["mIoU"]["count"] == 6


def test_a_part_that_died_is_made_up_for(tmp_path):
    pipe = Oracle(4)
    evaluate(pipe, 4, ["in"], ["click"], records=tmp_path, batch_size=1, part=(0, 2))
    found = evaluate(pipe, 4, ["in"], ["click"], records=tmp_path, batch_size=1)["groups"]["in"]["click"]
    assert found["mIoU"] == evaluate(pipe, 4, ["in"], ["click"], batch_size=1)["groups"]["in"]["click"]["mIoU"]


def test_records_of_another_pipeline_or_of_other_options_are_refused(tmp_path):
    evaluate(Oracle(2), 2, ["in"], ["click"], records=tmp_path / "a")
    with pytest.raises(ValueError, match=r"another measurement \(pipeline differ\)"):
        evaluate(Blind(2), 2, ["in"], ["click"], records=tmp_path / "a")
    with pytest.raises(ValueError, match=r"\(batch_size differ\)"):
        evaluate(Oracle(2), 2, ["in"], ["click"], records=tmp_path / "a", batch_size=1)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        BatchRecords(tmp_path / "b", {})


@pytest.mark.parametrize("part", [(2, 2), (-1, 2), (0, 0)])
def test_a_part_is_one_of_several(part, tmp_path):
    with pytest.raises(ValueError, match="index below the number"):
        evaluate(Oracle(1), 1, ["in"], ["click"], records=tmp_path, part=part)
    with pytest.raises(ValueError, match="and records"):
        evaluate(Oracle(1), 1, ["in"], ["click"], part=(0, 2))


@pytest.mark.timeout(180)  # two processes load everything anew
def test_the_command_shares_scenes_between_processes(tmp_path):
    shared_pipeline().save_pretrained(tmp_path / "tiny")
    scenes = ["--tasks", "click", "--groups", "in", "--count", "33"]  # two batches
    main(["eval", "--pipeline", str(tmp_path / "tiny"), *scenes, "--processes", "2", "-o", str(tmp_path / "m.json")])
    found = json.loads((tmp_path / "m.json").read_text())["groups"]["in"]
    assert found["click"]["mIoU"]["count"] == 33
    kept = {str(file.relative_to(tmp_path / "m.records")) for file in (tmp_path / "m.records").rglob("*.json")}
    assert kept == {"about.json", "in/click/000000-32.json", "in/click/000032-1.json"}


def test_weights_and_settings_are_told_apart():
    pipe = FocusPipeline(**tiny_components(), resolution_group=[[SIZE, SIZE]])
    same = FocusPipeline(**tiny_components(), resolution_group=[[SIZE, SIZE]])
    assert fingerprint(pipe) == fingerprint(same)
    same.register_to_config(score_threshold=0.4)
    assert fingerprint(pipe) != fingerprint(same)
    other = FocusPipeline(**tiny_components(seed=1), resolution_group=[[SIZE, SIZE]])
    assert len({fingerprint(one) for one in (pipe, other, shared_pipeline())}) == 3
