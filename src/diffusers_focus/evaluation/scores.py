"""One row for each sample of a benchmark, and the figures of many rows.

Paper: FOCUS (arXiv 2506.16806), tables 1 to 4; the measures and their sources are in metrics.py and answers.py. A row is what the
JSONL of a run holds: plain numbers, from which every figure can be computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.coco_masks import encode_rle
from ..data.samples import Truth
from . import answers, metrics, video_scores
from .average_precision import Instance, mean_average_precision
from .tasks import calibration, figure, kinds_of

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Scorer:
    """How a sample becomes a row, (prediction, truth, info) -> row, and rows figures."""

    row: Callable[[dict[str, Any], Truth, Mapping[str, Any]], dict[str, Any]]
    figures: Callable[[Rows], dict[str, Any]]


# --- masks ----------------------------------------------------------------------------------------------------------


def _mask_row(prediction: dict[str, Any], truth: Truth, _: Mapping[str, Any]) -> dict[str, Any]:
    """All predicted masks together against all true ones."""
    if truth.masks is None:
        raise ValueError("A sample without masks cannot be scored by masks.")
    size = truth.masks.shape[-2:]
    wanted = truth.masks.any(axis=0)
    found = np.asarray(prediction["masks"], dtype=bool).reshape(-1, *size).any(axis=0)
    if truth.ignored is not None:
        found, wanted = found & ~truth.ignored, wanted & ~truth.ignored
    value, intersection, union = metrics.generalized_overlap(found, wanted)
    return {
        "iou": value,
        "intersection": intersection,
        "union": union,
        "hit": value >= 0.5,
        "score": max((float(score) for score in prediction["scores"]), default=0.0),
        "no_target": not wanted.any(),
        "said_empty": not found.any(),
        "found": encode_rle(found),  # for the gallery
    }


def _mask_figures(rows: Rows) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if any(row["union"] for row in rows):
        found["cIoU"] = figure(rows, "intersection", "union")
    found["gIoU"] = figure(rows, "iou")
    targets = [row for row in rows if not row["no_target"]]
    for threshold in THRESHOLDS if targets else ():
        found[f"P@{threshold}"] = figure([row | {"above": row["iou"] >= threshold} for row in targets], "above")
    found["calibration_error"] = calibration(rows)
    return found


def _generalized_figures(rows: Rows) -> dict[str, Any]:
    found = _mask_figures(rows)
    absent, present = [row for row in rows if row["no_target"]], [row for row in rows if not row["no_target"]]
    if absent:
        found["N-acc"] = figure(absent, "said_empty")
    if present:
        found["T-acc"] = figure([row | {"said_something": not row["said_empty"]} for row in present], "said_something")
    return found


def _class_row(prediction: dict[str, Any], truth: Truth, _: Mapping[str, Any]) -> dict[str, Any]:
    """All instances, found and true; mAP is a matter of all pictures together."""
    if truth.masks is None:
        raise ValueError("A sample without masks cannot be scored by masks.")
    found = zip(prediction["masks"], prediction["labels"], prediction["scores"], strict=True)
    return {
        "found": [{"mask": encode_rle(mask), "label": label, "score": float(score)} for mask, label, score in found],
        "true": [
            {"mask": encode_rle(mask), "label": label} for mask, label in zip(truth.masks, truth.labels, strict=True)
        ],
    }


def _class_figures(rows: Rows) -> dict[str, Any]:
    def instances(name: str) -> list[list[Instance]]:
        return [[Instance(**one) for one in row[name]] for row in rows]

    return mean_average_precision(instances("found"), instances("true"))


# --- answers --------------------------------------------------------------------------------------------------------


def _answer_row(prediction: dict[str, Any], truth: Truth, _: Mapping[str, Any]) -> dict[str, Any]:
    right = any(metrics.same_answer(prediction["text"], answer) for answer in truth.answers)
    return {"answer": prediction["text"], "right": right}


def _answer_figures(rows: Rows) -> dict[str, Any]:
    return {"accuracy": figure(rows, "right")}


def _yes_no_row(prediction: dict[str, Any], truth: Truth, _: Mapping[str, Any]) -> dict[str, Any]:
    said, true = answers.says_yes(prediction["text"]), truth.answers[0] != "no"
    return {"answer": prediction["text"], "said": said, "true": true, "right": said == true}


def _yes_no_figures(rows: Rows) -> dict[str, Any]:
    found = answers.yes_no_figures([row["said"] for row in rows], [row["true"] for row in rows])
    return {**found, "accuracy": figure(rows, "right")}


def _vqa_row(prediction: dict[str, Any], truth: Truth, info: Mapping[str, Any]) -> dict[str, Any]:
    value = answers.vqa_accuracy(prediction["text"], truth.answers)
    return {"answer": prediction["text"], "right": value, "kind": info.get("kind", "")}


def _choice_row(prediction: dict[str, Any], truth: Truth, info: Mapping[str, Any]) -> dict[str, Any]:
    right = answers.chosen_letter(prediction["text"]) == truth.answers[0]
    return {"answer": prediction["text"], "right": right, "question": info["question"], "kind": info.get("kind", "")}


def _kind_figures(rows: Rows) -> dict[str, Any]:
    kinds = {f"accuracy {kind}": figure(chosen, "right") for kind, chosen in kinds_of(rows).items() if kind}
    return {**_answer_figures(rows), **kinds}


def _choice_figures(rows: Rows) -> dict[str, Any]:
    circular = answers.circular_accuracy([row["right"] for row in rows], [row["question"] for row in rows])
    return {"circular_accuracy": circular, **_kind_figures(rows)}


SCORERS: dict[str, Scorer] = {
    "masks": Scorer(_mask_row, _mask_figures),
    "generalized": Scorer(_mask_row, _generalized_figures),
    "yes_no": Scorer(_yes_no_row, _yes_no_figures),
    "vqa": Scorer(_vqa_row, _kind_figures),
    "choices": Scorer(_choice_row, _choice_figures),
    "clips": Scorer(video_scores.objects_row, video_scores.objects_figures),
    "expressions": Scorer(video_scores.expression_row, video_scores.expression_figures),
    "tubes": Scorer(video_scores.tubes_row, video_scores.tubes_figures),
    # Folders of samples, by task.
    "referring": Scorer(_mask_row, _generalized_figures),
    "reasoning": Scorer(_mask_row, _generalized_figures),
    "class": Scorer(_class_row, _class_figures),
    "region": Scorer(_mask_row, _mask_figures),
    "answer": Scorer(_answer_row, _answer_figures),
    "clip": Scorer(video_scores.expression_row, video_scores.expression_figures),
}
