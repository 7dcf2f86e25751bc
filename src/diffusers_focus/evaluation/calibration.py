"""Fit what makes scores probabilities, and choose the thresholds that go with them, on validation scenes.

Paper: FOCUS (arXiv 2506.16806) gives scores without saying what they mean. Here each is a logistic map of what the model says
(Platt, 1999; `steps/confidence.py`), fitted by maximum likelihood; thresholds are then chosen by the measure they serve.
Validation scenes are those of seeds that neither training (below 1,000,000) nor evaluation (from 1,000,000 up) draws, with
pairs that training knows.

    result = fit(pipe, count=400)
    write(folder, result)  # into the indices of the pipeline

The command is `diffusers-focus calibrate`. It belongs behind every training: other weights have other logits.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..data.language import generalized_expressions, reasoning_expressions
from ..data.regions_sampling import REGION_KINDS
from ..data.world import Rendered, Scene, render, sample_scene
from ..processing.outlines import outline_masks
from ..processing.prompts import CLASS, INTERACTIVE, REASONING, REFERRING
from ..sharing.files import replace_json
from ..steps.confidence import CLASSES, REGIONS, WORDS, kind_of
from ..steps.segment import FoundObjects, MaskPrompt, MaskReading, read_masks, says_nothing, select_objects
from .metrics import expected_calibration_error, iou
from .tasks import GENERALIZED_PER_SCENE, class_sample, referring_sample, region_sample, scene_rng

FIRST_VALIDATION_SEED = 2_000_000
SETTINGS = ("calibration", "fallback_threshold", "presence_threshold", "score_threshold")
INDICES = ("model_index.json", "modular_model_index.json")
_GRID = np.round(np.arange(0.05, 0.951, 0.05), 2)
_RIDGE = 1e-2  # keeps weights finite where a logit separates all samples
_BATCH = 20


@dataclass
class _Sample:
    """One prompt with its truth, and what the model said to it.

    Args:
        objects: bool [all objects of the scene, H, W].
        meant: which of them; for a list of names all that have one.
        labels: of each object, where names are asked for.
        reading: of this prompt alone, mask logits as eighths in int8.
        image: which it is about.
        outlined: bits of the masks, at its size, of the proposals that were looked at: six sets of maps ask for the same ones.
    """

    prompt: MaskPrompt
    source: str
    objects: np.ndarray
    meant: tuple[int, ...]
    labels: list[str] = field(default_factory=list)
    reading: MaskReading | None = None
    placement: Any = None
    image: Any = None
    outlined: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return kind_of(self.prompt.task)


def fit(pipe: Any, count: int = 400, *, size: int = 128, progress: bool | None = None) -> dict[str, Any]:
    """Maps and thresholds of a pipeline.

    Args:
        pipe: a loaded pipeline that segments.
        count: validation scenes; the maps are fitted on all of them, their errors measured by fitting on one half and looking
            at the other.
        size: side of the scenes in pixels.
        progress: show a progress bar; None does so on a terminal.

    Returns:
        The settings `SETTINGS`, and under "report" the calibration errors before and after, and the choice of thresholds.

    Raises:
        ValueError: fewer than 20 scenes.
    """
    if count < _BATCH:
        raise ValueError(f"{count} scenes are too few to fit on; give at least {_BATCH}.")
    samples: list[_Sample] = []
    hidden = not (sys.stderr.isatty() if progress is None else progress)
    with torch.no_grad(), tqdm(total=count, desc="validation", unit="scene", disable=hidden) as bar:
        for start in range(0, count, _BATCH):
            scenes = [sample_scene(FIRST_VALIDATION_SEED + i) for i in range(start, min(start + _BATCH, count))]
            samples += _read(pipe, scenes, [render(scene, size) for scene in scenes])
            bar.update(len(scenes))
    kinds = [WORDS, REGIONS] + ([CLASSES] if pipe.config.classes_trained else [])
    halves = [samples[: len(samples) // 2], samples[len(samples) // 2 :]]
    plain: dict[str, Any] = {}
    report: dict[str, Any] = {"scenes": count, "before": _errors(pipe, samples, plain)}
    others = [_maps(pipe, half, kinds) for half in reversed(halves)]
    report["after"] = _errors(
        pipe, *[[*halves[0], *halves[1]], [others[0]] * len(halves[0]) + [others[1]] * len(halves[1])]
    )
    maps = _maps(pipe, samples, kinds)
    thresholds, choice = _thresholds(pipe, samples, maps)
    return {"calibration": maps, **thresholds, "report": {**report, **choice}}


def write(folder: str | os.PathLike, result: Mapping[str, Any]) -> list[Path]:
    """Put the settings of a `fit` into the indices of a pipeline's folder; other content stays as it is.

    Raises:
        FileNotFoundError: the folder has no model_index.json.
    """
    files = [Path(folder) / name for name in INDICES]
    if not files[0].is_file():
        raise FileNotFoundError(f"{str(files[0])!r} does not exist; name the folder of a pipeline")
    found = [file for file in files if file.is_file()]
    contents = [json.loads(file.read_text(encoding="utf-8")) for file in found]
    for file, content in zip(found, contents):
        replace_json(file, dict(sorted({**content, **{name: result[name] for name in SETTINGS}}.items())))
    return found


# --- samples --------------------------------------------------------------------------------------------------------


def _prompts(index: int, scene: Scene, drawn: Rendered) -> list[_Sample]:
    """What one scene is asked: expressions of every sort, a region, names."""
    rng = scene_rng(scene, "calibration")
    masks = drawn.masks
    referral = referring_sample(scene)
    asked = [(REFERRING, "referring", one) for one in ([referral] if referral is not None else [])]
    asked += [(REFERRING, "generalized", one) for one in generalized_expressions(scene, rng, GENERALIZED_PER_SCENE)]
    asked += [(REASONING, "reasoning", one) for one in reasoning_expressions(scene, rng, 1)]
    samples = [_Sample(MaskPrompt(index, task, one.text), source, masks, one.targets) for task, source, one in asked]
    for kind in rng.permutation(REGION_KINDS)[:2].tolist():
        region, target = region_sample(scene, masks, kind)
        prompt = MaskPrompt(index, INTERACTIVE, None, (region.rasterize(*masks.shape[-2:]),))
        samples.append(_Sample(prompt, "regions", masks, (target,)))
    names, labels = class_sample(scene)
    meant = tuple(i for i, label in enumerate(labels) if label in names)
    return [*samples, _Sample(MaskPrompt(index, CLASS, names), "classes", masks, meant, labels)]


def _read(pipe: Any, scenes: Sequence[Scene], drawn: Sequence[Rendered]) -> list[_Sample]:
    from PIL import Image

    samples = [sample for index, pair in enumerate(zip(scenes, drawn)) for sample in _prompts(index, *pair)]
    if not pipe.config.classes_trained:
        samples = [sample for sample in samples if sample.kind != CLASSES]
    encoding = pipe.encode_image([Image.fromarray(one.image) for one in drawn])
    reading = read_masks(pipe, encoding, [sample.prompt for sample in samples])
    for row, sample in enumerate(samples):
        fields = {name: value[row : row + 1] for name, value in vars(reading).items()}
        for name in ("mask_logits", "edit_logits"):  # an eighth is fine enough, and a quarter of the memory
            fields[name] = (fields[name] * 8).clamp(-127, 127).to(torch.int8)
        sample.reading, sample.placement = MaskReading(**fields), encoding.inputs.placements[sample.prompt.image]
        sample.image = encoding.images[sample.prompt.image]
    return samples


def _select(pipe: Any, sample: _Sample, maps: Mapping[str, Any]) -> FoundObjects:
    """All candidates of a prompt in their order, whatever thresholds and words say."""
    assert sample.reading is not None
    masks, edits = sample.reading.mask_logits.float() / 8, sample.reading.edit_logits.float() / 8
    reading = replace(sample.reading, mask_logits=masks, edit_logits=edits)
    everything = {"score_threshold": 0.0, "fallback_threshold": 0.0, "presence_threshold": 1e-9}
    found = select_objects(
        reading, 0, sample.prompt, pipe.image_processor, sample.placement, calibration=maps,
        duplicate_iou=pipe.config.duplicate_iou, **everything,
    )  # fmt: skip
    assert found.proposals is not None
    chosen = found.proposals.tolist()
    new = [proposal for proposal in chosen if proposal not in sample.outlined]
    if new:
        reach = pipe.config.mask_refinement
        drawn = outline_masks(pipe.image_processor, masks[0, new], sample.placement, sample.image, reach) > 0
        sample.outlined |= zip(new, np.packbits(drawn.cpu().numpy(), axis=-1))
    width = sample.placement.source[1]
    for index, proposal in enumerate(chosen):
        found.masks[index] = np.unpackbits(sample.outlined[proposal], axis=-1, count=width)
    return found


# --- maps -----------------------------------------------------------------------------------------------------------


@dataclass
class _Evidence:
    """Inputs and outcomes of the three maps over many prompts."""

    score: list[tuple[float, float, float]] = field(default_factory=list)  # condition logit, quality logit, right
    quality: list[tuple[float, float]] = field(default_factory=list)  # quality logit, IoU with the object shown
    presence: list[tuple[float, float, float]] = field(default_factory=list)  # best logit, something logit, there


def _evidence(pipe: Any, samples: Sequence[_Sample], kind: str) -> _Evidence:
    evidence = _Evidence()
    for sample in samples:
        if sample.kind != kind:
            continue
        assert sample.reading is not None
        logits = sample.reading.condition_logits[0].float().max(-1).values
        something = float(sample.reading.something_logits[0])
        if sample.source in ("generalized", "classes"):  # where nothing may be meant
            evidence.presence.append((float(logits.max()), something, float(bool(sample.meant))))
        if says_nothing(sample.reading.text[0]) and kind != REGIONS:
            continue  # no object comes back
        found = _select(pipe, sample, {})
        assert found.proposals is not None
        for mask, proposal, label in _returned(found, sample):
            quality = float(sample.reading.quality_logits[0, proposal])
            shown, meant = _overlaps(mask, label, sample)
            evidence.score.append((float(logits[proposal]), quality, float(meant >= 0.5)))
            evidence.quality.append((quality, shown))
    return evidence


def _returned(found: FoundObjects, sample: _Sample) -> list[tuple[np.ndarray, int, str]]:
    """Of the candidates those that could come back: the first where no name was written, of a list of names those above a tenth."""
    assert found.proposals is not None and sample.reading is not None
    if sample.kind == CLASSES:
        count = int((found.scores > 0.1).sum())
    elif sample.kind == REGIONS:
        count = 1
    else:
        count = max(1, len(found.masks)) if sample.reading.text[0] else 1
    return list(zip(found.masks, found.proposals.tolist(), found.labels))[:count]


def _overlaps(mask: np.ndarray, label: str, sample: _Sample) -> tuple[float, float]:
    """IoU with the object that a mask shows, and with one that is meant (and has the label, where there are any)."""
    values = [iou(mask, one) for one in sample.objects]
    meant = [values[i] for i in sample.meant if not sample.labels or sample.labels[i] == label]
    return max(values), max(meant, default=0.0)


def _maps(pipe: Any, samples: Sequence[_Sample], kinds: Sequence[str]) -> dict[str, Any]:
    """The maps of each kind of prompt that has evidence for them."""
    maps: dict[str, Any] = {}
    for kind in kinds:
        evidence = _evidence(pipe, samples, kind)
        found = {name: logistic(rows) for name, rows in vars(evidence).items() if rows and _varies(rows)}
        if kind == REGIONS and "score" in found:
            # The best of the proposals that hold a region always comes back. Chosen by quality too it is a worse one: mIoU of
            # clicks on 250 new scenes 0.866 instead of 0.872.
            found["score"] = np.append(logistic([(logit, right) for logit, _, right in evidence.score]), 0.0)
        maps[kind] = {name: [round(float(value), 4) for value in weights] for name, weights in found.items()}
    return maps


def _varies(rows: Sequence[tuple[float, ...]]) -> bool:
    outcomes = [row[-1] for row in rows]
    return min(outcomes) < max(outcomes)


def logistic(rows: Sequence[tuple[float, ...]], steps: int = 50) -> np.ndarray:
    """Maximum likelihood of sigmoid(first + rest . inputs) by Newton's method.

    Args:
        rows: inputs and, last, the outcome in 0..1.

    Returns:
        float64 [1 + inputs]. An input whose weight would be negative has none: the map is monotone.
    """
    table = np.asarray(rows, dtype=np.float64)
    inputs, outcomes = np.clip(table[:, :-1], -20, 20), table[:, -1]
    used = list(range(inputs.shape[1]))
    while True:
        x = np.concatenate([np.ones((len(table), 1)), inputs[:, used]], axis=1)
        ridge = _RIDGE * np.diag([0.0, *np.ones(len(used))])
        weights = np.zeros(x.shape[1])
        for _ in range(steps):
            p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
            gradient = x.T @ (p - outcomes) + ridge @ weights
            curvature = (x * (p * (1 - p) + 1e-9)[:, None]).T @ x + ridge
            step = np.linalg.solve(curvature + 1e-9 * np.eye(len(weights)), gradient)
            weights = weights - step * min(1.0, 5.0 / (np.abs(step).max() + 1e-12))
        wrong = [used[i] for i in range(len(used)) if weights[1 + i] < 0]
        if not wrong:
            full = np.zeros(1 + inputs.shape[1])
            full[[0, *(1 + i for i in used)]] = weights
            return full
        worst = min(wrong, key=lambda i: weights[1 + used.index(i)])
        used.remove(worst)


def _errors(pipe: Any, samples: Sequence[_Sample], maps: Any) -> dict[str, Any]:
    """Expected calibration errors of scores, qualities and presence; `maps` are for all samples, or one for each."""
    each = maps if isinstance(maps, list) else [maps] * len(samples)
    stated: dict[str, list[tuple[float, float]]] = {}
    for sample, own in zip(samples, each, strict=True):
        assert sample.reading is not None
        found = _select(pipe, sample, own)
        if sample.source in ("generalized", "classes"):
            stated.setdefault(f"presence {sample.source}", []).append((found.presence, float(bool(sample.meant))))
        if says_nothing(sample.reading.text[0]) and sample.kind != REGIONS:
            continue
        for index, (mask, _, label) in enumerate(_returned(found, sample)):
            shown, meant = _overlaps(mask, label, sample)
            assert found.qualities is not None
            stated.setdefault(f"score {sample.source}", []).append((float(found.scores[index]), float(meant >= 0.5)))
            stated.setdefault(f"quality {sample.source}", []).append((float(found.qualities[index]), shown))
    return {
        name: {"error": round(expected_calibration_error(*zip(*pairs)), 4), "count": len(pairs)}
        for name, pairs in sorted(stated.items())
    }


# --- thresholds -----------------------------------------------------------------------------------------------------


@dataclass
class _Choice:
    """What one prompt is worth with its first 0, 1, 2, ... candidates.

    Args:
        scores: of the candidates, descending.
        worth: [candidates + 1].
        named: whether the model wrote names, so that the fallback threshold counts.
        silent: whether it wrote that there is nothing.
    """

    scores: np.ndarray
    worth: np.ndarray
    named: bool
    silent: bool
    presence: float
    source: str


def _thresholds(
    pipe: Any, samples: Sequence[_Sample], maps: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Thresholds that are worth most, for words mean IoU of all kinds of expressions alike, for names F1.

    Of neighbouring thresholds of nearly the same worth the middle is better than the edge: worths are averaged with their
    neighbours'.
    """
    words = [_choice(pipe, sample, maps) for sample in samples if sample.kind == WORDS]
    names = [_choice(pipe, sample, maps) for sample in samples if sample.kind == CLASSES]
    table = {
        (presence, fallback): _worth(words, presence, fallback, 0.5) for presence in (0.0, *_GRID) for fallback in _GRID
    }

    def smooth(presence: float, fallback: float) -> float:
        near = [table[presence, f] for f in _GRID if abs(f - fallback) < 0.06]
        near += [table[p, fallback] for p in _GRID if presence > 0 and abs(p - presence) < 0.06]
        return float(np.mean(near))

    presence, fallback = max(table, key=lambda pair: smooth(*pair))
    unnamed = names or [one for one in words if not one.named]
    worths = {t: _worth(unnamed, presence, fallback, t) for t in _GRID} if unnamed else {0.5: 0.0}
    score = max(worths, key=lambda t: float(np.mean([worths[o] for o in worths if abs(o - t) < 0.06])))
    chosen = {"score_threshold": score, "fallback_threshold": fallback, "presence_threshold": presence}
    plain = [_choice(pipe, sample, {}) for sample in samples if sample.kind == WORDS]
    worth = {
        "words, plain scores, thresholds 0.3 and the word": round(_worth(plain, 0.0, 0.3, 0.5), 4),
        "words, as chosen": round(_worth(words, presence, fallback, score), 4),
    }
    return {name: float(value) for name, value in chosen.items()}, {"mean IoU of all objects of a prompt": worth}


def _choice(pipe: Any, sample: _Sample, maps: Mapping[str, Any]) -> _Choice:
    assert sample.reading is not None
    found = _select(pipe, sample, maps)
    text = sample.reading.text[0]
    if sample.kind == CLASSES:
        right = [_overlaps(mask, label, sample)[1] >= 0.5 for mask, label in zip(found.masks, found.labels)]
        true = np.concatenate([[0], np.cumsum(right)])
        total = np.arange(len(true)) + len(sample.meant)
        worth = np.where(total > 0, 2 * true / np.maximum(total, 1), 1.0)
    else:
        wanted = sample.objects[list(sample.meant)].any(axis=0)
        unions = [np.zeros_like(wanted)]
        for mask in found.masks:
            unions.append(unions[-1] | mask)
        worth = np.asarray([iou(union, wanted) for union in unions])
    silent = says_nothing(text) and sample.kind == WORDS
    named = sample.kind == WORDS and bool(text) and not silent
    return _Choice(found.scores, worth, named, silent, found.presence, sample.source)


def _worth(choices: Sequence[_Choice], presence: float, fallback: float, score: float) -> float:
    """The mean over sources of the mean over prompts."""
    by_source: dict[str, list[float]] = {}
    for one in choices:
        absent = one.presence < presence if presence > 0 else one.silent
        count = 0 if absent else int((one.scores > (fallback if one.named else score)).sum())
        by_source.setdefault(one.source, []).append(float(one.worth[count]))
    return float(np.mean([np.mean(values) for values in by_source.values()]))
