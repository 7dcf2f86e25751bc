"""The measures: overlap of masks and of their outlines, answers, calibration, and how sure a figure is.

Paper: FOCUS (arXiv 2506.16806), tables 1 to 4. Definitions follow the public evaluation code of its relatives (LISA,
HyperSeg, PSALM for cIoU and gIoU; ReLA for generalized referring; davis2017-evaluation for J and F), restated here from
facts; all numpy. tests/evaluation/official.py compares them with that code.

Every figure that is a share or a mean is a ratio of two sums over samples, so `ratio` computes them all, with one
bootstrap for the interval. Samples of the same scene are not independent: whole scenes are drawn, not samples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

LEVEL = 0.95
RESAMPLES = 1000
BOUNDARY_TOLERANCE = 0.008  # of the image diagonal


@dataclass(frozen=True)
class Figure:
    """A measured value with its 95% bootstrap interval and the number of samples behind it."""

    value: float
    low: float
    high: float
    count: int

    def as_dict(self) -> dict[str, float | int]:
        """The figure ready for JSON, rounded to six digits."""
        return {key: round(value, 6) if isinstance(value, float) else value for key, value in asdict(self).items()}


# --- masks ----------------------------------------------------------------------------------------------------------


def overlap(predicted: np.ndarray, truth: np.ndarray, ignored: np.ndarray | None = None) -> tuple[int, int]:
    """(intersection, union) in pixels of two bool masks [H, W].

    Args:
        predicted, truth: masks of the same shape.
        ignored: pixels that count for neither, as in ReasonSeg (label "ignore") and DAVIS (void).

    Raises:
        ValueError: the shapes differ.
    """
    predicted, truth = _same_shape(predicted, truth, ignored)
    return int((predicted & truth).sum()), int((predicted | truth).sum())


def _same_shape(
    predicted: np.ndarray, truth: np.ndarray, ignored: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Both masks as bool, without the ignored pixels."""
    predicted, truth = np.asarray(predicted, dtype=bool), np.asarray(truth, dtype=bool)
    if predicted.shape != truth.shape or (ignored is not None and np.shape(ignored) != truth.shape):
        raise ValueError(
            f"A mask of shape {predicted.shape} cannot be compared with a truth of shape {truth.shape}"
            + (f" and ignored pixels of shape {np.shape(ignored)}" if ignored is not None else "")
            + "; bring the prediction to the size of the image first."
        )
    if ignored is None:
        return predicted, truth
    counted = ~np.asarray(ignored, dtype=bool)
    return predicted & counted, truth & counted


def iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union; 1 where both masks are empty."""
    intersection, union = overlap(predicted, truth)
    return intersection / union if union else 1.0


def mean_iou(pairs: Iterable[tuple[int, int]]) -> float:
    """mIoU, also called gIoU: the mean over samples of intersection / union, from (intersection, union) pairs; 1 where union is 0.

    LISA, HyperSeg and PSALM add 1e-5 to the union, so their figure of a sample is lower by a share of 1e-5 / union.
    """
    return float(np.mean([i / u if u else 1.0 for i, u in pairs]))


def cumulative_iou(pairs: Iterable[tuple[int, int]]) -> float:
    """cIoU (LISA; "overall IoU" in RefCOCO papers): all intersections over all unions. Large objects count more."""
    pairs = list(pairs)
    union = sum(u for _, u in pairs)
    return sum(i for i, _ in pairs) / union if union else 1.0


def precision_at(ious: Iterable[float], threshold: float = 0.5) -> float:
    """P@t: the share of samples with IoU >= t (ReLA's Pr@t, there over samples with a target only)."""
    return float(np.mean([value >= threshold for value in ious]))


def generalized_overlap(predicted: np.ndarray, truth: np.ndarray) -> tuple[float, int, int]:
    """(IoU, intersection, union) of one sample of generalized referring, after the benchmark's own rule (ReLA, gRefCOCO).

    No target: an empty prediction has IoU 1 and adds nothing to the sums, any other has IoU 0 and adds its area to the
    union. A target predicted empty: IoU 0 and the union is the target's area. gIoU is the mean of the first value over
    all samples, cIoU the ratio of the sums of the others.
    """
    intersection, union = overlap(predicted, truth)
    return (intersection / union if union else 1.0), intersection, union


def no_target_accuracy(predicted_empty: Sequence[bool], truth_empty: Sequence[bool]) -> float | None:
    """N-acc (ReLA): of the samples without a target, the share predicted empty; None where there are none."""
    chosen = [said for said, true in zip(predicted_empty, truth_empty, strict=True) if true]
    return float(np.mean(chosen)) if chosen else None


def target_accuracy(predicted_empty: Sequence[bool], truth_empty: Sequence[bool]) -> float | None:
    """T-acc (ReLA): of the samples with a target, the share not predicted empty; None where there are none."""
    chosen = [not said for said, true in zip(predicted_empty, truth_empty, strict=True) if not true]
    return float(np.mean(chosen)) if chosen else None


def expected_calibration_error(confidence: Sequence[float], correct: Sequence[float], bins: int = 10) -> float:
    """ECE: the mean over samples of |mean confidence - mean correctness| of the sample's bin.

    Args:
        confidence: one value in [0, 1] a sample.
        correct: 0 or 1 (or a degree in between) a sample.
        bins: bins of equal width over [0, 1]; the last one includes 1.

    Raises:
        ValueError: no samples, or a confidence outside [0, 1].
    """
    stated, held = np.asarray(confidence, dtype=np.float32), np.asarray(correct, dtype=np.float32)
    if len(stated) == 0 or len(stated) != len(held):
        raise ValueError(
            f"Calibration needs as many outcomes as confidences and at least one, got {len(held)} and {len(stated)}."
        )
    if stated.min() < 0 or stated.max() > 1:
        raise ValueError(
            f"Confidences must be in [0, 1], got {stated.min():g} to {stated.max():g}; apply a sigmoid first."
        )
    index = np.minimum((stated * bins).astype(int), bins - 1)
    total = 0.0
    for chosen in range(bins):
        inside = index == chosen
        if inside.any():
            total += abs(float(stated[inside].sum() - held[inside].sum()))
    return total / len(stated)


# --- clips ----------------------------------------------------------------------------------------------------------


def boundary(mask: np.ndarray) -> np.ndarray:
    """bool [H, W]: the pixels of a mask [H, W] that differ from their neighbour to the right, below, or both ways.

    The one pixel wide outline of davis2017-evaluation (after D. Martin's seg2bmap); the image border is no outline.
    """
    mask = np.asarray(mask, dtype=bool)
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask ^ padded[:-1, 1:]) | (mask ^ padded[1:, :-1]) | (mask ^ padded[1:, 1:])


def boundary_f(
    predicted: np.ndarray, truth: np.ndarray, ignored: np.ndarray | None = None, tolerance: float = BOUNDARY_TOLERANCE
) -> float:
    """F of DAVIS 2017: how well two outlines match, the harmonic mean of their precision and recall.

    Args:
        predicted, truth: bool masks [H, W].
        ignored: pixels taken out of both masks first.
        tolerance: how far apart matching pixels may lie, as a share of the image diagonal, rounded up to whole pixels; from
            1 up it is in pixels. A disk of that radius.

    Returns:
        A value in [0, 1]; 1 where neither has an outline, 0 where only one has.

    Raises:
        ValueError: the shapes differ.
    """
    predicted, truth = _same_shape(predicted, truth, ignored)
    height, width = truth.shape
    radius = int(tolerance) if tolerance >= 1 else math.ceil(tolerance * math.hypot(height, width))
    found, wanted = boundary(predicted), boundary(truth)
    if not found.any() or not wanted.any():
        return float(found.any() == wanted.any())
    precision = (found & _near(wanted, radius)).sum() / found.sum()
    recall = (wanted & _near(found, radius)).sum() / wanted.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _near(mask: np.ndarray, radius: int) -> np.ndarray:
    """Pixels within `radius` of a set one: the disk as one run of columns for each of its rows."""
    height, width = mask.shape
    result = np.zeros_like(mask)
    counts = np.zeros((height, width + 1), dtype=np.int32)
    np.cumsum(mask, axis=1, out=counts[:, 1:])
    columns = np.arange(width)
    for shift in range(radius + 1):
        reach = math.isqrt(radius * radius - shift * shift)
        near = counts[:, np.minimum(columns + reach + 1, width)] > counts[:, np.maximum(columns - reach, 0)]
        result[shift:] |= near[: height - shift] if shift < height else False
        result[: height - shift] |= near[shift:] if shift < height else False
    return result


def robustness(predicted: np.ndarray, truth: np.ndarray, foreground: np.ndarray) -> float:
    """R of ReVOS (Yan et al. 2024; VISA's tools/metrics.py): how little is found beside the truth, over the frames of a clip.

    The mean over frames of max(0, 1 - false / all), where `false` are the pixels found outside of the truth and `all` those of
    any object that the clip's expressions are about. 1 where nothing false is found.

    Args:
        predicted, truth, foreground: bool [frames, H, W].

    Raises:
        ValueError: the shapes differ.
    """
    predicted, truth = _same_shape(predicted, truth)
    foreground, _ = _same_shape(foreground, truth)
    false, whole = (predicted & ~truth).sum(axis=(1, 2)), foreground.sum(axis=(1, 2))
    return float(np.maximum(1 - false / (whole + 1e-6), 0.0).mean())


def clip_statistics(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, recall, decay) of J or F over the frames of one object in one clip, after DAVIS 2017.

    Recall is the share of frames above 0.5. Decay is the mean over the first quarter of the frames less that over the last;
    neighbouring quarters share a frame. NaN where there are no frames.
    """
    frames = np.asarray(values, dtype=float)
    if len(frames) == 0:
        return math.nan, math.nan, math.nan
    bounds = np.round(np.linspace(1, len(frames), 5) + 1e-10).astype(int) - 1
    first, last = frames[bounds[0] : bounds[1] + 1], frames[bounds[3] : bounds[4] + 1]
    return float(frames.mean()), float((frames > 0.5).mean()), float(first.mean() - last.mean())


# --- answers --------------------------------------------------------------------------------------------------------


def same_answer(answer: str, truth: str) -> bool:
    """Exact match; case, spacing and one closing full stop do not count."""
    return _plain(answer) == _plain(truth)


def _plain(text: str) -> str:
    text = " ".join(text.lower().split())
    return text[:-1].rstrip() if text.endswith(".") else text


def accuracy(answers: Sequence[str], truths: Sequence[str]) -> float:
    """The share of answers that are an exact match."""
    return float(np.mean([same_answer(a, t) for a, t in zip(answers, truths, strict=True)]))


def most_frequent(answers: Iterable[str]) -> str:
    """The commonest answer; of several, the one that comes first in the alphabet."""
    counts = Counter(answers)
    return min(counts, key=lambda answer: (-counts[answer], answer))


# --- intervals ------------------------------------------------------------------------------------------------------


def ratio(
    numerators: Sequence[float],
    denominators: Sequence[float] | None = None,
    clusters: Sequence[Hashable] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Figure:
    """sum(numerators) / sum(denominators) with its percentile bootstrap interval.

    Args:
        numerators: one value a sample: an IoU, a 0 or 1, an intersection.
        denominators: one value a sample (a union); ones where left out, which makes the figure a mean.
        clusters: which scene a sample belongs to; scenes are drawn with replacement. Every sample its own by default.
        resamples: bootstrap draws.
        seed: of the draws; the same samples always give the same interval.

    Returns:
        The figure; `count` is the number of samples. With one cluster the interval is the value itself.

    Raises:
        ValueError: no samples, lengths differ, or the denominators sum to zero.
    """
    top = np.asarray(numerators, dtype=float)
    bottom = np.ones_like(top) if denominators is None else np.asarray(denominators, dtype=float)
    names = list(range(len(top))) if clusters is None else list(clusters)
    if len(top) == 0 or not len(top) == len(bottom) == len(names):
        raise ValueError(
            f"A figure needs samples, and as many of each kind: got {len(top)} numerators, {len(bottom)} denominators "
            f"and {len(names)} clusters."
        )
    if bottom.sum() == 0:
        raise ValueError("A ratio over a sum of zero has no value; leave the figure out.")
    rows: dict[Hashable, int] = {}
    index = np.asarray([rows.setdefault(name, len(rows)) for name in names])
    tops, bottoms = np.bincount(index, top), np.bincount(index, bottom)
    value = float(tops.sum() / bottoms.sum())
    rng = np.random.default_rng(seed)
    drawn = [np.empty(0)]
    at_once = max(1, 2**20 // len(rows))  # in memory; the draws are the same however many come at once
    for start in range(0, resamples, at_once):
        picked = rng.integers(len(rows), size=(min(at_once, resamples - start), len(rows)))
        below = bottoms[picked].sum(1)
        drawn.append(tops[picked].sum(1)[below > 0] / below[below > 0])
    every = np.concatenate(drawn)
    low, high = np.quantile(every, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(every) else (value, value)
    return Figure(value, float(low), float(high), len(top))
