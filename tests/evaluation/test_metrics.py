"""The measures against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from diffusers_focus.evaluation import metrics


def bar(start: int, stop: int) -> np.ndarray:
    """bool [2, 10] with columns start to stop."""
    mask = np.zeros((2, 10), dtype=bool)
    mask[:, start:stop] = True
    return mask


def test_iou_counts_pixels():
    assert metrics.overlap(bar(0, 4), bar(2, 6)) == (4, 12)
    assert metrics.iou(bar(0, 4), bar(2, 6)) == pytest.approx(1 / 3)
    assert metrics.iou(bar(0, 0), bar(0, 0)) == 1.0
    assert metrics.iou(bar(0, 0), bar(0, 3)) == 0.0


def test_iou_names_the_shapes():
    with pytest.raises(ValueError, match=r"\(2, 10\).*\(3, 10\)"):
        metrics.iou(bar(0, 2), np.zeros((3, 10), dtype=bool))


def test_mean_and_cumulative_iou_differ_where_sizes_do():
    pairs = [(1, 2), (90, 100), (0, 0)]
    assert metrics.mean_iou(pairs) == pytest.approx((0.5 + 0.9 + 1.0) / 3)
    assert metrics.cumulative_iou(pairs) == pytest.approx(91 / 102)


def test_precision_includes_the_threshold():
    assert metrics.precision_at([0.5, 0.49, 1.0, 0.0]) == 0.5
    assert metrics.precision_at([0.5, 0.8, 0.9], 0.8) == pytest.approx(2 / 3)


def test_generalized_rule():
    assert metrics.generalized_overlap(bar(0, 0), bar(0, 0)) == (1.0, 0, 0)
    assert metrics.generalized_overlap(bar(0, 3), bar(0, 0)) == (0.0, 0, 6)
    assert metrics.generalized_overlap(bar(0, 0), bar(0, 3)) == (0.0, 0, 6)
    said, true = [True, False, True, False], [True, True, False, False]
    assert metrics.no_target_accuracy(said, true) == 0.5
    assert metrics.target_accuracy(said, true) == 0.5
    assert metrics.no_target_accuracy([False], [False]) is None


def test_calibration_error():
    # Two bins: (0.85 twice, one right) is off by 0.35, (0.15 once, right) by 0.85.
    assert metrics.expected_calibration_error([0.85, 0.85, 0.15], [1, 0, 1]) == pytest.approx((0.7 + 0.85) / 3)
    assert metrics.expected_calibration_error([1.0, 0.0], [1, 0]) == 0.0
    with pytest.raises(ValueError, match="sigmoid"):
        metrics.expected_calibration_error([1.5], [1])


def test_answers():
    assert metrics.same_answer(" A red  Star.", "a red star")
    assert not metrics.same_answer("a red star", "red star")
    assert metrics.accuracy(["yes", "no"], ["yes", "yes"]) == 0.5
    assert metrics.most_frequent(["two", "one", "two", "one", "six"]) == "one"


def test_ratio_is_a_mean_or_a_ratio_of_sums():
    assert metrics.ratio([1, 0, 1, 1]).value == 0.75
    found = metrics.ratio([1, 90], [2, 100])
    assert (found.value, found.count) == (pytest.approx(91 / 102), 2)
    assert found.low <= found.value <= found.high


def test_interval_has_the_width_of_a_binomial():
    rng = np.random.default_rng(0)
    hits = (rng.random(400) < 0.3).astype(int)
    found = metrics.ratio(hits)
    expected = 2 * 1.96 * np.sqrt(found.value * (1 - found.value) / 400)
    assert found.high - found.low == pytest.approx(expected, rel=0.12)
    assert metrics.ratio(hits) == found


def test_repeating_a_scene_does_not_narrow_the_interval():
    hits = [0, 1] * 20
    once, thrice = metrics.ratio(hits), metrics.ratio(hits * 3, clusters=list(range(40)) * 3)
    assert thrice.value == once.value and thrice.count == 120
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low)


def test_no_samples_is_an_error_and_not_a_zero():
    with pytest.raises(ValueError, match="needs samples"):
        metrics.ratio([])
    with pytest.raises(ValueError, match="sum of zero"):
        metrics.ratio([0], [0])
