"""Distances of pictures and flicker of clips, on pictures made by hand; SSIM against its definition written out."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from diffusers_focus.evaluation import picture_metrics as measures

needs_skimage = pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="scikit-image is not installed")


def noisy(height: int = 40, width: int = 48) -> np.ndarray:
    """A slope with grain, uint8."""
    rows, columns = np.mgrid[:height, :width]
    grain = np.random.default_rng(3).integers(-20, 21, (height, width, 3))
    return np.clip((rows * 3 + columns * 2)[..., None] + grain, 0, 255).astype(np.uint8)


def test_l1_l2_and_psnr():
    black, grey = np.zeros((4, 4, 3), dtype=np.uint8), np.full((4, 4, 3), 51, dtype=np.uint8)
    assert measures.l1(black, grey) == pytest.approx(0.2) and measures.l2(grey, black) == pytest.approx(0.04)
    assert measures.psnr(black, grey) == pytest.approx(10 * np.log10(25), abs=1e-4)
    assert measures.psnr(black, black) == measures.PSNR_CAP
    half = np.zeros((4, 4), dtype=bool)
    half[:2] = True
    mixed = np.where(half[..., None], grey, black)
    assert measures.psnr(mixed, black, ~half) == measures.PSNR_CAP
    assert measures.l1(mixed, black) == pytest.approx(0.1) and measures.l2(mixed, black) == pytest.approx(0.02)
    with pytest.raises(ValueError, match="at least one pixel"):
        measures.psnr(black, black, np.zeros((4, 4), dtype=bool))
    with pytest.raises(ValueError, match=r"\(4, 4, 3\) cannot be compared with one of shape \(2, 4, 3\)"):
        measures.l1(black, black[:2])


def plain_ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Wang et al. 2004, equations 13 to 17, window by window."""
    row = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(row, row) / row.sum() ** 2

    def mean(values: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(values, (11, 11), axis=(0, 1))
        return (windows * window).sum(axis=(-2, -1))

    x, y, c1, c2 = first.astype(float), second.astype(float), (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = mean(x), mean(y)
    vx, vy, both = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    return float(((2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())


@needs_skimage
def test_ssim_is_the_papers():
    picture = noisy()
    others = [255 - picture, np.roll(picture, 1, axis=1), np.clip(picture.astype(int) + 30, 0, 255).astype(np.uint8)]
    assert measures.ssim(picture, picture) == pytest.approx(1.0)
    found = [measures.ssim(picture, other) for other in others]
    assert found == pytest.approx([plain_ssim(picture, other) for other in others], abs=1e-9)
    assert min(found) < -0.3 and max(found) > 0.9


def test_ssim_without_scikit_image_names_the_extra():
    if importlib.util.find_spec("skimage") is not None:
        pytest.skip("scikit-image is installed")
    with pytest.raises(ValueError, match=r"diffusers-focus\[eval\]"):
        measures.ssim(noisy(), noisy())


def test_ssim_needs_a_window():
    with pytest.raises(ValueError, match="11 x 11 pixels or more, got 48 x 8"):
        measures.ssim(noisy(8), noisy(8))


def test_region_accuracy():
    source, inside = noisy(), np.zeros((40, 48), dtype=bool)
    inside[10:20, 10:30] = True
    target = source.copy()
    target[inside] = (250, 10, 10)
    assert measures.region_accuracy(target, source, target, inside) == 1.0
    assert measures.region_accuracy(source, source, target, inside) == 0.0
    half = source.copy()
    half[10:15] = target[10:15]
    assert measures.region_accuracy(half, source, target, inside) == 0.5
    half[0] = 0  # outside, which does not count
    assert measures.region_accuracy(half, source, target, inside) == 0.5
    middle = (source.astype(np.float32) + target) / 2
    assert measures.region_accuracy(middle, source, target, inside) == 0.5
    assert measures.region_accuracy(target, source, target, ~inside) is None


@pytest.fixture
def clip():
    """(source, truth, place) of 4 frames: a square that moves one pixel a frame, and in the truth is brighter by 100."""
    place = np.zeros((4, 32, 32), dtype=bool)
    for frame in range(4):
        place[frame, 10:20, 5 + frame : 15 + frame] = True
    source = np.repeat(noisy(32, 32)[None] // 2, 4, axis=0)
    source += np.arange(4, dtype=np.uint8)[:, None, None, None]  # the whole picture grows brighter
    return source, np.where(place[..., None], source + 100, source).astype(np.uint8), place


def test_flicker_outside_is_what_the_source_does_not_do(clip):
    source, truth, place = clip
    assert measures.flicker_outside(truth, source, place) == (0.0, 0.0)
    leak = truth.copy()
    leak[2, 0, 0] += 7  # seen from frame 1 to 2, and from 2 to 3
    mean, most = measures.flicker_outside(leak, source, place)
    outside = [~(place[t] | place[t + 1]) for t in range(3)]
    assert most == 7.0 and mean == pytest.approx(2 * 7 / sum(one.sum() for one in outside))
    steady = truth.copy()
    steady[:, 0, 0] += 7  # wrong, but no flicker
    assert measures.flicker_outside(steady, source, place)[1] == 0.0
    assert measures.flicker_outside(truth, source, np.ones_like(place)) is None


def test_flicker_inside_is_compared_with_the_truth(clip):
    source, truth, place = clip
    own, true = measures.flicker_inside(truth, truth, place)
    assert own == true
    # Each pair of frames shares 90 pixels that grow brighter by 1; of 20 more the square leaves or reaches 10 each.
    assert true == pytest.approx((90 * 1 + 10 * 101 + 10 * 99) / 110, abs=0.05)
    shaking = truth.astype(np.float32)
    shaking[1::2] += 40 * place[1::2, ..., None]
    assert measures.flicker_inside(shaking, truth, place)[0] > 1.5 * true
    assert measures.flicker_inside(truth, truth, np.zeros_like(place)) is None
