"""Pairs of masks for comparing measures: random ones of many sizes and densities, and the edge cases."""

from __future__ import annotations

import numpy as np


def random_mask(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """bool [height, width]: a few rectangles, with grain on it in half of the cases."""
    mask = np.zeros((height, width), dtype=bool)
    for _ in range(int(rng.integers(1, 4))):
        rows = np.sort(rng.integers(0, height + 1, 2))
        columns = np.sort(rng.integers(0, width + 1, 2))
        mask[rows[0] : rows[1], columns[0] : columns[1]] = True
    return mask ^ (rng.random((height, width)) < 0.02) if rng.random() < 0.5 else mask


def mask_pairs(seed: int = 0, count: int = 40) -> list[tuple[np.ndarray, np.ndarray]]:
    """(predicted, truth) pairs. The first ones are empty, full and one-pixel masks against each other."""
    rng = np.random.default_rng(seed)
    height, width = 37, 53
    one = np.zeros((height, width), dtype=bool)
    one[5, 7] = True
    corner = np.zeros((height, width), dtype=bool)
    corner[-1, -1] = True
    special = [np.zeros((height, width), dtype=bool), np.ones((height, width), dtype=bool), one, corner]
    pairs = [(a, b) for a in special for b in special]
    pairs += [(random_mask(rng, height, width), b) for b in special] + [
        (b, random_mask(rng, height, width)) for b in special
    ]
    for _ in range(count):
        size = (int(rng.integers(1, 130)), int(rng.integers(1, 170)))
        truth = random_mask(rng, *size)
        # Half of the predictions are near the truth, so that the overlaps cover the whole range.
        near = (
            np.roll(truth, tuple(rng.integers(-3, 4, 2)), axis=(0, 1))
            if rng.random() < 0.5
            else random_mask(rng, *size)
        )
        pairs.append((near, truth))
    return pairs


def foreground_triples() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(predicted, truth, foreground): the pairs with a foreground that holds the truth; where both are empty, none at all."""
    rng = np.random.default_rng(5)
    return [(a, b, b if not (a.any() or b.any()) else b | random_mask(rng, *b.shape)) for a, b in mask_pairs()]
