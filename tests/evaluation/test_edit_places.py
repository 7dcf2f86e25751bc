"""What a composited edit kept outside its mask, how the mask fits the change, and its seam: on pictures made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diffusers_focus.evaluation.edits import EditTruth, score_place

SIDE = 32


def square(start: int, stop: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[start:stop, start:stop] = True
    return mask


@pytest.fixture
def truth() -> EditTruth:
    """A grey picture in which a square becomes brighter by 60 levels."""
    source = np.full((SIDE, SIDE, 3), 100, dtype=np.uint8)
    support = square(10, 20)
    after = source.copy()
    after[support] = 160
    return EditTruth(source, after, after[None, support], source[None, support], support, support, support)


def test_the_true_picture_in_the_true_place_is_perfect(truth):
    found = score_place(truth.truth.astype(np.float32), truth.support, truth, 2)
    assert found["background_kept"] == found["coverage"] == 1.0
    assert found["seam"] == found["seam_true"] == 60.0
    assert found["excess"] == pytest.approx(100 / 26**2)


def test_what_goes_wrong_shows(truth):
    picture = truth.truth.astype(np.float32)
    picture[0, 0] += 1
    assert score_place(picture, truth.support, truth, 2)["background_kept"] == 0.0
    picture[0, 0] -= 1
    picture[9, 15] += 1  # within the soft edge
    assert score_place(picture, truth.support, truth, 2)["background_kept"] == 1.0
    assert score_place(picture, truth.support, truth, 0)["background_kept"] == 0.0
    assert score_place(truth.truth, square(10, 15), truth, 0)["coverage"] == 0.25
    wide = score_place(truth.truth, square(4, 26), truth, 0)
    assert wide["excess"] == pytest.approx(22**2 / 26**2) and wide["seam"] == wide["seam_true"] == 0.0
    torn = truth.truth.astype(np.float32)
    torn[square(4, 26)] += 30
    assert score_place(torn, square(4, 26), truth, 0)["seam"] == 30.0


def test_an_edit_that_found_nothing_has_no_place(truth):
    nothing = np.zeros((SIDE, SIDE), dtype=bool)
    assert score_place(truth.source, nothing, truth, 2) == {"background_kept": 1.0}
    assert "coverage" not in score_place(truth.source, square(1, 5), replace(truth, support=nothing), 2)
    everywhere = score_place(truth.truth, ~nothing, truth, 2)
    assert everywhere["coverage"] == 1.0 and "seam" not in everywhere  # a mask of everything has no border
