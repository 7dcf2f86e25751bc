"""The simulated user clicks where the mask is wrong; names and clicks are measured as they deserve."""

from __future__ import annotations

import numpy as np
import pytest

from diffusers_focus.evaluation.clicks import CLICKS, correction
from diffusers_focus.evaluation.run import evaluate

from tests.evaluation.worlds import Blind, Oracle

COUNT = 4


def test_the_next_click_is_in_the_middle_of_the_thickest_mistake():
    truth, mask = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    truth[5:20, 5:20] = True
    assert correction(truth, truth) is None
    missing = correction(mask, truth)
    assert missing is not None and missing.positive and 9 <= missing.x <= 15 and 9 <= missing.y <= 15
    mask[5:20, 5:20], mask[25:35, 25:40] = True, True
    extra = correction(mask, truth)
    assert extra is not None and not extra.positive and mask[int(extra.y), int(extra.x)] and extra.y > 25
    mask[25:35, 25:40], mask[4, 5:20] = False, True  # a rim of one pixel is not seen
    assert correction(mask, truth) is None


@pytest.fixture(scope="module")
def figures():
    return {
        name: evaluate(pipe(COUNT), COUNT, ["in"], ["classes", "clicks"])["groups"]["in"]
        for name, pipe in (("oracle", Oracle), ("blind", Blind))
    }


def test_who_knows_everything_needs_one_click(figures):
    clicks = figures["oracle"]["clicks"]["scenes"]
    assert clicks["clicks 1"]["value"] > 0.9 and clicks["clicks 1"]["value"] == clicks[f"refined {CLICKS}"]["value"]
    assert figures["blind"]["clicks"]["scenes"]["clicks 5"]["value"] == 0.0
    failed = figures["blind"]["clicks"]["after a first click below 0.5"]["refined 5"]["count"]
    assert failed == COUNT + figures["blind"]["clicks"]["twins"]["clicks 1"]["count"]


def test_names(figures):
    oracle, blind = figures["oracle"]["classes"], figures["blind"]["classes"]
    assert oracle["PQ"]["value"] == oracle["mIoU"]["value"] == 1.0
    assert oracle["AP50"]["value"] == oracle["mAP"]["value"] == 1.0 and blind["AP50"]["value"] == 0.0
    assert blind["PQ"]["value"] == 0.0 and 0.3 < blind["mIoU"]["value"] < 1.0  # the names that are not there
