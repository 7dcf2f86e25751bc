"""The Frechet distance against closed forms, against scipy's matrix root, and against a stored number."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from diffusers_focus.evaluation.frechet import Moments, frechet_distance, moments_of

# |m1 - m2|^2 + tr(S1 + S2 - 2 sqrtm(S1 S2)), as pytorch-fid and clean-fid write it, with scipy 1.17.1, of the features
# `samples(0)` and `samples(1)`.
STORED = 36.4252646357682


def samples(seed: int, count: int = 300, width: int = 8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + rng.normal(size=width)


def with_moments(values: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The samples moved and stretched to exactly this mean and these standard deviations, without correlation."""
    centred = values - values.mean(axis=0)
    inverse = np.linalg.inv(np.linalg.cholesky(np.cov(centred, rowvar=False)))
    return centred @ inverse.T * scale + mean


def test_gaussians_without_correlation_have_a_closed_form():
    means = np.asarray([0.0, 1.0, -2.0]), np.asarray([3.0, 1.0, 2.0])
    scales = np.asarray([1.0, 2.0, 0.5]), np.asarray([2.0, 0.5, 0.5])
    first, second = (moments_of([with_moments(samples(i, 90, 3), means[i], scales[i])]) for i in range(2))
    expected = ((means[0] - means[1]) ** 2).sum() + ((scales[0] - scales[1]) ** 2).sum()
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(first, first) == pytest.approx(0.0, abs=1e-9)


def test_it_is_scipys_and_the_stored_number():
    one, two = samples(0), samples(1)
    root = sqrtm(np.cov(one, rowvar=False) @ np.cov(two, rowvar=False)).real
    expected = ((one.mean(0) - two.mean(0)) ** 2).sum() + np.trace(
        np.cov(one, rowvar=False) + np.cov(two, rowvar=False) - 2 * root
    )
    found = frechet_distance(moments_of([one]), moments_of([two]))
    assert found == pytest.approx(expected, rel=1e-9) and found == pytest.approx(STORED, rel=1e-9)
    assert frechet_distance(moments_of([two]), moments_of([one])) == pytest.approx(found, rel=1e-9)


def test_batches_sum_up_and_fewer_pictures_than_features_are_no_trouble():
    one = samples(0) + 1e4  # far from zero, where sums of squares would lose digits
    found = moments_of([one[:7], one[7:8], one[8:]])
    assert found.count == 300 and found.mean == pytest.approx(one.mean(axis=0))
    assert found.covariance == pytest.approx(np.cov(one, rowvar=False), rel=1e-8, abs=1e-8)
    few = moments_of([samples(3, 5, 40)]), moments_of([samples(4, 6, 40)])
    assert np.isfinite(frechet_distance(*few)) and frechet_distance(few[0], few[0]) == pytest.approx(0.0, abs=1e-6)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="at least two pictures, got 1"):
        moments_of([samples(0, 1)]).covariance  # noqa: B018
    with pytest.raises(ValueError, match="at least two pictures, got 0"):
        frechet_distance(Moments(), moments_of([samples(0)]))
    with pytest.raises(ValueError, match="8 features a picture cannot be compared with 4"):
        frechet_distance(moments_of([samples(0)]), moments_of([samples(0, width=4)]))
    with pytest.raises(ValueError, match="Got 4 features a picture after 8"):
        moments_of([samples(0), samples(0, width=4)])
    with pytest.raises(ValueError, match="finite"):
        moments_of([np.full((2, 3), np.nan)])
