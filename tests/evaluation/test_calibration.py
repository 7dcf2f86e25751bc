"""Maps of scores and thresholds: the fit finds what made the data, and its result is what the pipeline then uses."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from diffusers_focus import FocusModularPipeline, FocusPipeline
from diffusers_focus.evaluation.calibration import _Choice, _worth, fit, logistic, write
from diffusers_focus.evaluation.metrics import expected_calibration_error
from diffusers_focus.evaluation.tasks import class_sample, draw_batch

from tests.tiny import picture, shared_pipeline


def test_the_fit_finds_the_map_that_drew_the_outcomes():
    rng = np.random.default_rng(0)
    inputs = rng.normal(0, 3, (4000, 2))
    chance = 1 / (1 + np.exp(-(-1.0 + 0.5 * inputs[:, 0] + 0.25 * inputs[:, 1])))
    right = (rng.random(4000) < chance).astype(float)
    weights = logistic(np.column_stack([inputs, right]))
    np.testing.assert_allclose(weights, [-1.0, 0.5, 0.25], atol=0.12)
    plain = 1 / (1 + np.exp(-inputs[:, 0]))
    fitted = 1 / (1 + np.exp(-(weights[0] + inputs @ weights[1:])))
    assert expected_calibration_error(fitted, right) < 0.03 < 0.1 < expected_calibration_error(plain, right)


def test_maps_are_monotone_and_stay_finite():
    rng = np.random.default_rng(1)
    inputs = rng.normal(0, 1, (500, 2))
    falling = (rng.random(500) < 1 / (1 + np.exp(-(inputs[:, 0] - inputs[:, 1])))).astype(float)
    weights = logistic(np.column_stack([inputs, falling]))
    assert weights[2] == 0 < weights[1]
    separated = logistic([(x, float(x > 0)) for x in np.linspace(-3, 3, 50)])
    assert np.isfinite(separated).all() and separated[1] > 5
    shares = logistic([(x, 1 / (1 + np.exp(-(0.3 + 2 * x)))) for x in np.linspace(-3, 3, 200)])
    np.testing.assert_allclose(shares, [0.3, 2.0], atol=0.01)  # outcomes may be degrees


def test_a_threshold_is_worth_what_it_lets_through():
    found = _Choice(np.array([0.9, 0.2]), np.array([0.0, 0.6, 1.0]), True, False, 0.8, "a")
    none = _Choice(np.array([0.4]), np.array([1.0, 0.0]), False, True, 0.3, "b")
    assert _worth([found], 0.0, 0.1, 0.5) == 1.0 and _worth([found], 0.0, 0.5, 0.5) == 0.6
    assert _worth([found], 0.85, 0.1, 0.5) == 0.0  # its presence is below
    assert _worth([none], 0.0, 0.1, 0.1) == 1.0 and _worth([none], 0.2, 0.1, 0.1) == 0.0
    assert _worth([found, found, none], 0.0, 0.5, 0.5) == pytest.approx((0.6 + 1.0) / 2)  # sources count alike


def test_names_of_a_scene_are_partly_its_own():
    asked = [class_sample(scene) for scene in draw_batch("in", 0, 40).scenes]
    assert all(len(names) == len(set(names)) >= 1 for names, _ in asked)
    shares = [np.mean([name in labels for name in names]) for names, labels in asked]
    assert min(shares) == 0.0 and 0.2 < np.mean(shares) < 0.7


@pytest.mark.timeout(120)
def test_what_is_fitted_is_what_the_pipeline_uses(tmp_path):
    pipe = shared_pipeline()
    result = fit(pipe, count=20, progress=False)
    maps = result["calibration"]
    assert set(maps) == {"words", "regions", "classes"} and len(maps["words"]["quality"]) == 2
    assert all(weight >= 0 for kind in maps.values() for weights in kind.values() for weight in weights[1:])
    quality = (
        result["report"]["before"]["quality referring"]["error"],
        result["report"]["after"]["quality referring"]["error"],
    )
    assert quality[1] < quality[0]  # random weights say nothing about IoU, which the plain sigmoid does not know
    pipe.save_pretrained(tmp_path / "pipeline")
    (tmp_path / "pipeline" / "note.txt").write_text("mine")
    before = json.loads((tmp_path / "pipeline" / "model_index.json").read_text())
    shutil.copy(tmp_path / "pipeline" / "model_index.json", tmp_path / "before.json")
    assert [file.name for file in write(tmp_path / "pipeline", result)] == ["model_index.json"]
    after = json.loads((tmp_path / "pipeline" / "model_index.json").read_text())
    assert {name for name in after if after[name] != before.get(name)} <= {
        *("calibration", "score_threshold", "fallback_threshold", "presence_threshold")
    }
    loaded = FocusPipeline.from_pretrained(tmp_path / "pipeline")
    loaded.set_progress_bar_config(disable=True)
    assert dict(loaded.config.calibration) == maps and loaded.config.presence_threshold == result["presence_threshold"]
    image, name = picture(), "the red circle"
    found, plain = loaded.segment(image, name), pipe.segment(image, name)
    first, second = (p.segment(image, name, score_threshold=0, fallback_threshold=0) for p in (loaded, pipe))
    assert found.presence != plain.presence
    bias, weight = maps["words"]["quality"]
    logit = np.log(second.qualities[0] / (1 - second.qualities[0]))
    expected = 1 / (1 + np.exp(-(bias + weight * logit)))
    if len(first.qualities[0]) == len(expected):
        np.testing.assert_allclose(np.sort(first.qualities[0]), np.sort(expected), atol=1e-4)
    modular = FocusModularPipeline(pretrained_model_name_or_path=tmp_path / "pipeline")
    assert dict(modular.config.calibration) == maps
    with pytest.raises(FileNotFoundError, match="model_index.json"):
        write(tmp_path, result)
    with pytest.raises(ValueError, match="too few"):
        fit(pipe, count=3)
