"""How far pictures are from each other, pixel by pixel, and how an edited clip flickers.

Paper: FOCUS (arXiv 2506.16806), section 4.5 (Emu-Edit: L1 beside the similarities of likeness.py). L1 and L2 are those of
MagicBrush's evaluation/image_eval.py (Zhang et al. 2023), SSIM is scikit-image's; how much of a region came out and how a clip
flickers are this project's own measures. Pictures are [H, W, 3] with levels in 0..255, uint8 or floats, clips [T, H, W, 3].
"""

from __future__ import annotations

import importlib
import importlib.util
import math

import numpy as np

PSNR_CAP = 100.0


def l1(first: np.ndarray, second: np.ndarray) -> float:
    """Mean absolute difference over pixels and channels, levels divided by 255 (MagicBrush, Emu-Edit): in [0, 1].

    Raises:
        ValueError: the shapes differ.
    """
    return float(np.abs(_difference(first, second)).mean()) / 255.0


def l2(first: np.ndarray, second: np.ndarray) -> float:
    """Mean squared difference over pixels and channels, levels divided by 255 (MagicBrush calls it L2): in [0, 1].

    Raises:
        ValueError: the shapes differ.
    """
    return float(np.square(_difference(first, second)).mean()) / 255.0**2


def psnr(first: np.ndarray, second: np.ndarray, inside: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB of two pictures [H, W, 3] in 0..255, over the pixels `inside`.

    10 log10(255^2 / mean squared difference), never above 100 dB (which is what equal pictures get).

    Raises:
        ValueError: the shapes differ, or not one pixel is inside.
    """
    difference = _difference(first, second)
    if inside is not None:
        difference = difference[inside]
    if difference.size == 0:
        raise ValueError("PSNR needs at least one pixel, but the mask is empty.")
    error = float(np.square(difference).mean())
    return min(PSNR_CAP, 10.0 * math.log10(255.0**2 / error)) if error > 0 else PSNR_CAP


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004) with the paper's settings: Gaussian window of 11 pixels and sigma 1.5, population
    covariances, K1 = 0.01, K2 = 0.03; each channel by itself, then the mean. scikit-image computes it.

    Raises:
        ValueError: the shapes differ, a side is under 11 pixels, or scikit-image is not installed (extra "eval").
    """
    _difference(first, second)
    if min(first.shape[:2]) < 11:
        raise ValueError(f"SSIM needs pictures of 11 x 11 pixels or more, got {first.shape[1]} x {first.shape[0]}.")
    if importlib.util.find_spec("skimage") is None:
        raise ValueError(
            "SSIM is computed by scikit-image, which is not installed; pip install 'diffusers-focus[eval]'."
        )
    compare = importlib.import_module("skimage.metrics").structural_similarity
    return float(
        compare(
            np.asarray(first, dtype=np.float64),
            np.asarray(second, dtype=np.float64),
            **{"data_range": 255, "channel_axis": -1},
            **{"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False},
        )
    )


def region_accuracy(result: np.ndarray, source: np.ndarray, target: np.ndarray, inside: np.ndarray) -> float | None:
    """How much of an edit came out: of the pixels inside that the target changed, the share in which the result is nearer (mean
    absolute difference over the channels) to the target than to the source.

    1 for the target itself, 0 for the source; a tie counts half. None where the target changes nothing inside.

    Args:
        result, source, target: pictures of one size.
        inside: bool [H, W], the region that was to be edited.
    """
    changed = inside & (_difference(target, source) != 0).any(axis=-1)
    if not changed.any():
        return None
    far = np.abs(_difference(result, target)[changed]).mean(axis=-1)
    near = np.abs(_difference(result, source)[changed]).mean(axis=-1)
    return float(((far < near) + 0.5 * (far == near)).mean())


def flicker_outside(edited: np.ndarray, source: np.ndarray, free: np.ndarray) -> tuple[float, float] | None:
    """How an edited clip flickers where it was not to be edited, beyond what the source itself does.

    Of every two frames that follow each other, the change from one to the next in the edited clip less that in the source, in the
    pixels that lie outside the mask of both: 0 where these are the source's own.

    Args:
        edited, source: clips of one shape.
        free: bool [T, H, W], where pixels were free to change (with the soft edge of the masks).

    Returns:
        (mean, largest) absolute difference in levels; None where no such pixel is outside.
    """
    drift = np.diff(_difference(edited, source), axis=0)
    outside = ~(free[1:] | free[:-1])
    if not outside.any():
        return None
    levels = np.abs(drift[outside])
    return float(levels.mean()), float(levels.max())


def flicker_inside(edited: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> tuple[float, float] | None:
    """How much an edited clip changes from frame to frame inside the edit, and how much the true one does.

    Both are the mean absolute difference of frames that follow each other, over the pixels that are inside in either of them. Their
    ratio is 1 where an edit moves as the thing in its place truly does (with the clip's own noise), and above where it flickers;
    nothing is warped, so both hold the motion.

    Args:
        edited, truth: clips of one shape; `truth` is the clip with the edit truly made.
        inside: bool [T, H, W], where the edit shows in a frame.

    Returns:
        (edited, truth) in levels; None where the edit shows nowhere.
    """
    _difference(edited, truth)
    either = inside[1:] | inside[:-1]
    if not either.any():
        return None
    changes = [np.abs(np.diff(clip.astype(np.float32), axis=0))[either].mean() for clip in (edited, truth)]
    return float(changes[0]), float(changes[1])


def _difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    if first.shape != second.shape:
        raise ValueError(
            f"A picture of shape {first.shape} cannot be compared with one of shape {second.shape}; bring them to one size first."
        )
    return first.astype(np.float32) - second.astype(np.float32)
