"""One row for each sample of a benchmark, and the figures of many rows.

Paper: FOCUS (arXiv 2506.16806), tables 1 to 4; the measures and their sources are in metrics.py and answers.py. A row is what the
JSONL of a run holds: plain numbers, from which every figure can be computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.coco_masks import decode_rle, encode_rle, index_map
from ..data.samples import Truth
from . import answers, metrics
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
        return [[Instance(**{**one, "mask": decode_rle(one["mask"])}) for one in row[name]] for row in rows]

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


# --- clips ----------------------------------------------------------------------------------------------------------


def clip_row(record: dict[str, Any], truth: Truth, predictions: Path) -> dict[str, Any]:
    """J and F of every object of a clip, over all frames but the first and the last (DAVIS 2017, semi-supervised).

    Args:
        record: of the task "clip"; frames are looked up by the name of their picture.
        truth: its masks, bool [objects, frames, H, W].
        predictions: a folder with <key>/<frame>.png, palette pictures of object numbers.

    Raises:
        FileNotFoundError: a frame has no prediction.
        ValueError: a prediction has another size, or a number above that of the last object.
    """
    if truth.masks is None:
        raise ValueError("A clip without masks cannot be scored.")
    count = len(truth.masks)
    rows: list[dict[str, list[float]]] = [{"J": [], "F": []} for _ in range(count)]
    for index, name in list(enumerate(record["images"]))[1:-1]:
        file = predictions / record["key"] / f"{Path(name).stem}.png"
        if not file.is_file():
            raise FileNotFoundError(f"there is no prediction {str(file)!r}")
        numbers = index_map(file)
        highest = int(numbers[numbers < 255].max(initial=0))
        if highest > count:
            raise ValueError(f"{str(file)!r} has the object {highest}, but the clip has {count}; 0 is the background.")
        for number, row in enumerate(rows, start=1):
            predicted, wanted = numbers == number, truth.masks[number - 1, index]
            row["J"].append(metrics.iou(predicted, wanted))
            row["F"].append(metrics.boundary_f(predicted, wanted))
    objects = [{name: metrics.clip_statistics(values) for name, values in row.items()} for row in rows]
    return {"scene": record["key"], "objects": objects, "frames": len(rows[0]["J"]) if rows else 0}


def _clip_figures(rows: Rows) -> dict[str, Any]:
    """Means over objects, as DAVIS has them; J&F is the mean of the two means."""
    flat = [{"scene": row["scene"], **one} for row in rows for one in row["objects"] if row["frames"]]
    if not flat:
        return {"J&F": None}
    values: list[dict[str, Any]] = []
    for one in flat:
        (j, j_recall, j_decay), (f, f_recall, f_decay) = one["J"], one["F"]
        values.append(
            {
                **{"scene": one["scene"], "J&F": (j + f) / 2, "J": j, "J-recall": j_recall, "J-decay": j_decay},
                **{"F": f, "F-recall": f_recall, "F-decay": f_decay},
            }
        )
    return {name: figure(values, name) for name in values[0] if name != "scene"}


SCORERS: dict[str, Scorer] = {
    "masks": Scorer(_mask_row, _mask_figures),
    "generalized": Scorer(_mask_row, _generalized_figures),
    "yes_no": Scorer(_yes_no_row, _yes_no_figures),
    "vqa": Scorer(_vqa_row, _kind_figures),
    "choices": Scorer(_choice_row, _choice_figures),
    "clips": Scorer(_mask_row, _clip_figures),
    # Folders of samples, by task.
    "referring": Scorer(_mask_row, _generalized_figures),
    "reasoning": Scorer(_mask_row, _generalized_figures),
    "class": Scorer(_class_row, _class_figures),
    "region": Scorer(_mask_row, _mask_figures),
    "answer": Scorer(_answer_row, _answer_figures),
}
