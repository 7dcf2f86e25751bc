"""The evaluation as a whole: who knows everything gets 1, who looks at nothing gets the blind baseline."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from diffusers_focus.data.language import QUESTION_KINDS
from diffusers_focus.data.world import HELD_OUT_PAIRS
from diffusers_focus.evaluation.picture_metrics import PSNR_CAP
from diffusers_focus.evaluation.run import DEFAULT_TASKS, evaluate
from diffusers_focus.evaluation.tasks import draw_batch, referring_sample, region_sample

from tests.evaluation.worlds import Blind, Oracle

pytestmark = pytest.mark.whole

COUNT = 10


def value(figures, *keys):
    for key in keys:
        figures = figures[key]
    return figures["value"]


@pytest.fixture(scope="module")
def oracle_result(tmp_path_factory):
    path = tmp_path_factory.mktemp("oracle") / "metrics.json"
    result = evaluate(Oracle(COUNT), COUNT, output=path, batch_size=4)
    return result, path


def test_oracle_is_right_everywhere(oracle_result):
    for group, found in oracle_result[0]["groups"].items():
        assert set(DEFAULT_TASKS) <= set(found), group
        for task in ("referring", "reasoning", "click", "scribble", "box", "mask"):
            assert value(found[task], "mIoU") == value(found[task], "cIoU") == value(found[task], "P@0.5") == 1.0, task
            assert value(found[task], "calibration_error") == 0.0
        assert value(found["reasoning"], "told") == 1.0
        assert [value(found["generalized"], key) for key in ("gIoU", "cIoU", "N-acc", "T-acc")] == [1.0] * 4
        assert value(found["questions"], "exact_match") == 1.0
        assert set(found["questions"]["kinds"]) <= set(QUESTION_KINDS)
        for how in ("composited", "raw"):
            assert value(found["edits"], how, "right") == 1.0
            assert value(found["edits"], how, "psnr_inside") == PSNR_CAP
            assert value(found["edits"], how, "psnr_background") == PSNR_CAP
        assert value(found["edits"], "mask_mIoU") == value(found["edits"], "edit_mask_mIoU") == 1.0


def test_echo_of_a_click_is_no_answer_and_of_a_mask_nearly_one(oracle_result):
    found = oracle_result[0]["groups"]["in"]
    assert value(found["click"], "echo_mIoU") < value(found["scribble"], "echo_mIoU") < 0.5
    assert value(found["scribble"], "echo_mIoU") < value(found["mask"], "echo_mIoU") < 1.0


def test_file_holds_what_was_returned_and_where_it_was_measured(oracle_result):
    result, path = oracle_result
    assert json.loads(path.read_text()) == result
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert result["versions"]["torch"] and result["hardware"]["processor"] and result["date"][:2] == "20"
    assert result["settings"]["first_seed"] == 1_000_000
    assert "ablation" not in result["groups"]["in"]


def test_a_file_is_gone_on_with(tmp_path):
    path, pipe = tmp_path / "metrics.json", Oracle(COUNT)
    evaluate(pipe, 6, ["in", "held_out"], ["referring"], output=path)
    evaluate(pipe, 4, ["in"], ["questions"], output=path, resume=True)
    result = evaluate(pipe, 3, ["in"], ["referring"], output=path, resume=True)
    assert json.loads(path.read_text()) == result
    assert {group: set(found) for group, found in result["groups"].items()} == {
        "in": {"scenes", "referring", "questions"},
        "held_out": {"scenes", "referring"},
    }
    assert result["settings"]["scenes_per_group"] == result["groups"]["in"]["scenes"] == 6
    assert result["groups"]["in"]["referring"]["mIoU"]["count"] == 3
    tasks = [task for found in result["groups"].values() for task in found.values() if isinstance(task, dict)]
    assert len(tasks) == 3 and result["seconds"] == pytest.approx(sum(task["seconds"] for task in tasks), abs=0.1)
    assert set(evaluate(pipe, 3, ["in"], ["referring"], output=path)["groups"]) == {"in"}  # not asked to
    with pytest.raises(ValueError, match="holds no figures of Blind"):
        evaluate(Blind(COUNT), 3, ["in"], ["referring"], output=path, resume=True)
    assert evaluate(pipe, 3, ["in"], ["referring"], output=tmp_path / "new.json", resume=True)["groups"]


def test_plain_questions_leave_captions_to_the_language_model():
    class Grounded(Oracle):
        given: list = []

        def understand(self, image, prompt, region=None, **options):
            self.given.append(options)
            return super().understand(image, prompt, region)

    pipe = Grounded(COUNT)
    found = evaluate(pipe, 2, ["in"], ["questions", "plain_questions"])["groups"]["in"]
    half = len(pipe.given) // 2
    assert pipe.given == [{}] * half + [{"caption_classes": []}] * half
    assert value(found["plain_questions"], "exact_match") == value(found["questions"], "exact_match") == 1.0


def test_blind_gets_the_blind_baseline():
    result = evaluate(Blind(COUNT), COUNT, ["in"], ["referring", "generalized", "questions", "edits"], batch_size=8)
    found = result["groups"]["in"]
    assert set(found) == {"scenes", "referring", "generalized", "questions", "edits"}
    assert value(found["referring"], "mIoU") == 0.0
    assert value(found["generalized"], "N-acc") == 1.0 and value(found["generalized"], "T-acc") == 0.0
    assert value(found["questions"], "exact_match") == value(found["questions"], "blind") < 0.6
    assert value(found["edits"], "composited", "right") == 0.0
    assert value(found["edits"], "raw", "psnr_background") > 50


def test_figures_do_not_depend_on_the_batch_size(oracle_result):
    small = evaluate(Oracle(COUNT), COUNT, ["in"], ["referring", "click", "questions"], batch_size=3)["groups"]["in"]
    for task in ("referring", "click", "questions"):
        large = dict(oracle_result[0]["groups"]["in"][task])
        assert {**small[task], "seconds": 0} == {**large, "seconds": 0}


def test_mask_decides_what_changes():
    found = evaluate(Oracle(COUNT), COUNT, ["in"], "ablation", batch_size=5)["groups"]["in"]["ablation"]
    assert value(found, "own", "right") == value(found, "true", "right") == value(found, "none", "right") == 1.0
    assert value(found, "own", "composited_right") == 1.0
    assert "own_unread" not in found  # there is no conditioner whose mask could be read
    assert value(found, "own_minus_own_unlimited") == 0.0  # it writes no tokens
    assert value(found, "shuffled", "right") < 0.4
    assert value(found, "own_minus_shuffled") == pytest.approx(
        value(found, "own", "right") - value(found, "shuffled", "right"), abs=1e-5
    )
    assert value(found, "own", "changed_inside") > 0.95
    assert value(found, "twins", "changed_in_chosen") > 0.99 and value(found, "twins", "prefers_chosen") == 1.0
    assert value(found, "twins", "changed_in_twin") < 0.01


def test_samples_of_the_held_out_group_are_about_held_out_pairs():
    batch = draw_batch("held_out", 0, 20)
    for scene, drawn in zip(batch.scenes, batch.drawn):
        _, target = region_sample(scene, drawn.masks, "click", True)
        assert scene.objects[target].pair in HELD_OUT_PAIRS
        assert scene.objects[referring_sample(scene, True).targets[0]].pair in HELD_OUT_PAIRS
    assert all(not scene.has_held_out_pair for scene in draw_batch("in", 0, 20).scenes)


def test_fuller_and_larger_scenes_are_groups_of_their_own():
    crowded = draw_batch("crowded", 0, 6)
    assert [len(scene.objects) for scene in crowded.scenes] == [6 + (1_000_000 + i) % 3 for i in range(6)]
    for group, size in (("192px", 192), ("256px", 256)):
        batch = draw_batch(group, 0, 2)
        assert all(drawn.image.shape == (size, size, 3) for drawn in batch.drawn)
    found = evaluate(Oracle(2, ["192px", "crowded"]), 2, ["192px", "crowded"], ["referring"])["groups"]
    assert list(found) == ["192px", "crowded"] and value(found["192px"]["referring"], "mIoU") == 1.0
    assert list(evaluate(Oracle(1), 1, tasks=["click"])["groups"]) == ["in", "held_out"]


def test_pipeline_without_a_unet_is_measured_on_the_rest():
    pipe = Oracle(2)
    pipe.unet = None
    found = evaluate(pipe, 2, ["in"])["groups"]["in"]
    assert "referring" in found and "edits" not in found
    with pytest.raises(ValueError, match="has no unet"):
        evaluate(pipe, 2, ["in"], ["edits"])


def test_untrained_drawing_is_measured_only_when_asked_for():
    pipe = Oracle(2)
    pipe.config = SimpleNamespace(images_trained=False)
    assert "edits" not in evaluate(pipe, 2, ["in"])["groups"]["in"]
    assert "edits" in evaluate(pipe, 2, ["in"], ["edits"])["groups"]["in"]


def test_bad_arguments_are_found_before_anything_is_loaded():
    def loader(folder):
        raise AssertionError("loaded")

    with pytest.raises(ValueError, match="Unknown task 'painting'; choose from referring"):
        evaluate("folder", tasks=["painting"], loader=loader)
    with pytest.raises(ValueError, match="Unknown group 'out'"):
        evaluate("folder", groups=["out"], loader=loader)
    with pytest.raises(TypeError, match="or a loader"):
        evaluate("folder")


def test_folder_is_loaded_by_the_loader():
    loaded = []

    def loader(folder):
        loaded.append(folder)
        return Oracle(2)

    result = evaluate("some/focus-tiny", 2, ["in"], ["click"], loader=loader)
    assert loaded == ["some/focus-tiny"] and result["pipeline"] == "focus-tiny"


def test_one_encoding_serves_a_batch():
    pipe = Oracle(4)
    evaluate(pipe, 4, ["in"], ["click", "box", "edits"], batch_size=4)
    assert pipe.calls == 1


def test_result_of_another_size_is_named():
    class Shrinking(Oracle):
        def edit(self, *args, **options):
            out = super().edit(*args, **options)
            out.images = [np.asarray(image)[:64] for image in out.images]
            return out

    with pytest.raises(ValueError, match=r"\(64, 128, 3\)"):
        evaluate(Shrinking(2), 2, ["in"], ["edits"])
