"""FID: the Frechet distance between the features of drawn and of real pictures.

Heusel et al. 2017 (arXiv 1706.08500), MJHQ-30K's measure. The distance of two Gaussians is
|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2). Means and covariances are summed up batch by batch, so no features are kept; they are in
numpy's double precision, since a covariance of 2,048 features is a small difference of large sums.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass
class Moments:
    """What is known of some features: how many there are, their sum and the sum of their products, around `centre`.

    Args:
        count: pictures so far.
        centre: [D], the first features added; sums are of differences from them, which keeps digits.
        total: [D]; products: [D, D].
    """

    count: int = 0
    centre: np.ndarray | None = None
    total: np.ndarray | None = None
    products: np.ndarray | None = None

    def add(self, features: np.ndarray) -> None:
        """Take in features [n, D].

        Raises:
            ValueError: another number of features than before, or one that is no number.
        """
        features = np.asarray(features, dtype=np.float64)
        if features.ndim != 2 or not np.isfinite(features).all():
            raise ValueError(
                f"Features are finite numbers [pictures, features], got an array of shape {features.shape}."
            )
        if self.centre is None:
            width = features.shape[1]
            self.centre = features[0].copy() if len(features) else np.zeros(width)
            self.total, self.products = np.zeros(width), np.zeros((width, width))
        assert self.total is not None and self.products is not None
        if features.shape[1] != len(self.total):
            raise ValueError(
                f"Got {features.shape[1]} features a picture after {len(self.total)}; use one model for all."
            )
        features = features - self.centre
        self.count += len(features)
        self.total += features.sum(axis=0)
        self.products += features.T @ features

    @property
    def mean(self) -> np.ndarray:
        """[D]."""
        total, _, centre = self._known()
        return total / self.count + centre

    @property
    def covariance(self) -> np.ndarray:
        """[D, D], divided by the number of pictures less one.

        Raises:
            ValueError: there are fewer than two pictures.
        """
        total, products, _ = self._known()
        return (products - np.outer(total, total) / self.count) / (self.count - 1)

    def _known(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self.count < 2 or self.total is None or self.products is None or self.centre is None:
            raise ValueError(f"A covariance needs at least two pictures, got {self.count}.")
        return self.total, self.products, self.centre


def moments_of(batches: Iterable[np.ndarray]) -> Moments:
    """`Moments` of batches of features [n, D]."""
    found = Moments()
    for batch in batches:
        found.add(batch)
    return found


def frechet_distance(first: Moments, second: Moments) -> float:
    """The distance of the two Gaussians; 0 for equal ones, and never below.

    The trace of (S1 S2)^1/2 is that of (R S2 R)^1/2 with R the root of S1, which is symmetric, so both roots come from eigenvalues
    of symmetric matrices and nothing turns complex (scipy.linalg.sqrtm, which others use, does for covariances without full rank).

    Raises:
        ValueError: fewer than two pictures on a side, or different numbers of features.
    """
    one, two = first.covariance, second.covariance
    if one.shape != two.shape:
        raise ValueError(f"{len(one)} features a picture cannot be compared with {len(two)}; use one model for both.")
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ two @ root).clip(0)).sum()
    distance = np.square(first.mean - second.mean).sum() + np.trace(one) + np.trace(two) - 2 * shared
    return max(0.0, float(distance))
