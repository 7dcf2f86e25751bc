"""Pairs of made-up pictures, (result, true picture): noise, slopes, equal ones, and results of another size."""

from __future__ import annotations

import numpy as np


def picture_cases() -> list[tuple[np.ndarray, np.ndarray]]:
    """uint8 [H, W, 3] each."""
    rng = np.random.default_rng(21)

    def noise(height: int, width: int) -> np.ndarray:
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)

    def slope(height: int, width: int) -> np.ndarray:
        rows, columns = np.mgrid[:height, :width]
        levels = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) * 255 // (height + width)])
        return levels.transpose(1, 2, 0).astype(np.uint8)

    same, black = slope(20, 30), np.zeros((9, 7, 3), dtype=np.uint8)
    return [
        *[(same, same), (black, 255 - black), (noise(16, 16), noise(16, 16)), (slope(24, 40), noise(24, 40))],
        *[(slope(48, 80), slope(24, 40)), (noise(33, 17), slope(50, 20)), (slope(10, 10), noise(31, 12))],
    ]
