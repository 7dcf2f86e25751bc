"""Rows and figures of clips: DAVIS 2017's J and F of objects, J and F of expressions, and mAP of tubes.

Paper: FOCUS (arXiv 2506.16806), tables of video segmentation. Protocols: davis2017-evaluation; that of Ref-YouTube-VOS and ReVOS
(one answer an expression, all frames); YouTube-VIS (youtubevos/cocoapi: an object is its masks in all frames, its IoU with
another the sum of the intersections over the sum of the unions).

A prediction is {"masks": bool [objects, frames, H, W], "labels": [objects], "scores": [objects]}.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.coco_masks import annotation_mask, encode_rle, index_map
from ..data.samples import Truth
from . import metrics
from .average_precision import Instance, tube_average_precision
from .tasks import figure, kinds_of

Rows = Sequence[dict[str, Any]]
RESULTS_FILE = "results.json"


def _masks_of(truth: Truth) -> np.ndarray:
    if truth.masks is None or truth.masks.ndim != 4:
        raise ValueError("A clip without masks cannot be scored.")
    return truth.masks


# --- objects, as DAVIS has them -------------------------------------------------------------------------------------


def objects_row(prediction: dict[str, Any], truth: Truth, _: Mapping[str, Any]) -> dict[str, Any]:
    """J and F of every object of a clip, over all frames but the first and the last (DAVIS 2017, semi-supervised).

    The prediction has an object for each true one, in their order.
    """
    wanted, found = _masks_of(truth), prediction["masks"]
    rows = []
    for true, mine in zip(wanted, found, strict=True):
        pairs = [(mine[t], true[t]) for t in range(1, len(true) - 1)]
        values = {"J": [metrics.iou(*p) for p in pairs], "F": [metrics.boundary_f(*p) for p in pairs]}
        rows.append({name: metrics.clip_statistics(value) for name, value in values.items()})
    row: dict[str, Any] = {"objects": rows, "frames": max(0, wanted.shape[1] - 2) if len(wanted) else 0}
    return row | _worst_frame(np.asarray(found, dtype=bool).any(axis=0), wanted.any(axis=0), slice(1, -1))


def objects_figures(rows: Rows) -> dict[str, Any]:
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


def _worst_frame(found: np.ndarray, wanted: np.ndarray, frames: slice = slice(None)) -> dict[str, Any]:
    """The frame with the smallest IoU of bool [frames, H, W], and what was found in it, for the gallery."""
    overlaps = [metrics.iou(a, b) for a, b in zip(found[frames], wanted[frames], strict=True)]
    if not overlaps:
        return {}
    worst = range(len(found))[frames][int(np.argmin(overlaps))]
    return {"worst_frame": worst, "found": encode_rle(found[worst])}


# --- expressions ----------------------------------------------------------------------------------------------------


def expression_row(prediction: dict[str, Any], truth: Truth, info: Mapping[str, Any]) -> dict[str, Any]:
    """J and F of what an expression means, all of its objects together, as means over all frames; of ReVOS also R."""
    wanted = _masks_of(truth).any(axis=0)
    found = np.asarray(prediction["masks"], dtype=bool).reshape(-1, *wanted.shape).any(axis=0)
    j = float(np.mean([metrics.iou(a, b) for a, b in zip(found, wanted, strict=True)]))
    f = float(np.mean([metrics.boundary_f(a, b) for a, b in zip(found, wanted, strict=True)]))
    row = {"J": j, "F": f, "J&F": (j + f) / 2, "kind": info.get("kind", "")}
    if "foreground" in info:
        row["R"] = metrics.robustness(found, wanted, _foreground(info["foreground"], wanted.shape))
    return row | _worst_frame(found, wanted)


def _foreground(frames: Sequence[Sequence[Any]], shape: tuple[int, ...]) -> np.ndarray:
    """bool [frames, H, W] of the run lengths of each frame."""
    everything = np.zeros(shape, dtype=bool)
    if len(frames) != len(everything):
        raise ValueError(f"The foreground has {len(frames)} frames, its clip {len(everything)}.")
    for mask, rles in zip(everything, frames):
        for rle in rles:
            mask |= annotation_mask(rle, *shape[1:])
    return everything


def expression_figures(rows: Rows) -> dict[str, Any]:
    """Means over expressions. Of ReVOS: each kind by itself, and as a whole the mean of "referring" and "reasoning"; R too."""
    kinds = {kind: chosen for kind, chosen in kinds_of(rows).items() if kind}
    names = ("J&F", "J", "F", *(("R",) if all("R" in row for row in rows) else ()))
    if not kinds:
        return {name: figure(rows, name) for name in names}
    found: dict[str, Any] = {f"{name} {kind}": figure(chosen, name) for kind, chosen in kinds.items() for name in names}
    counted = [kind for kind in ("referring", "reasoning") if kind in kinds]
    for name in names if counted else ():
        found[name] = float(np.mean([found[f"{name} {kind}"]["value"] for kind in counted]))
    return found


# --- tubes ----------------------------------------------------------------------------------------------------------


def tubes_row(prediction: dict[str, Any], truth: Truth, _: Mapping[str, Any]) -> dict[str, Any]:
    """All tubes, found and true, as run lengths of their frames side by side; mAP is a matter of all clips together."""
    wanted = _masks_of(truth)
    found = zip(prediction["masks"], prediction["labels"], prediction["scores"], strict=True)
    true = zip(wanted, truth.labels, strict=True)
    return {
        "found": [{"mask": _side_by_side(m), "label": label, "score": float(score)} for m, label, score in found],
        "true": [{"mask": _side_by_side(m), "label": label} for m, label in true],
    }


def _side_by_side(tube: np.ndarray) -> dict[str, Any]:
    """[frames, H, W] as the run lengths of one picture [H, frames * W]: overlaps of such pictures are those of tubes."""
    return encode_rle(np.concatenate(list(np.asarray(tube, dtype=bool)), axis=1))


def tubes_figures(rows: Rows) -> dict[str, Any]:
    """mAP, AP50, AP75, AR1, AR10 of YouTube-VIS."""
    sides = [[[Instance(**one) for one in row[name]] for row in rows] for name in ("found", "true")]
    return tube_average_precision(*sides)


# --- finished results -----------------------------------------------------------------------------------------------


def read_object_maps(record: dict[str, Any], truth: Truth, predictions: Path) -> dict[str, Any]:
    """DAVIS: <clip>/<frame>.png, palette pictures of object numbers, for all frames but the first and the last.

    Raises:
        FileNotFoundError: a frame has no prediction. ValueError: one of another size, or a number above that of the last object.
    """
    wanted = _masks_of(truth)
    found, count = np.zeros_like(wanted), len(wanted)
    for index, name in list(enumerate(record["images"]))[1:-1]:
        file = predictions / record["key"] / f"{Path(name).stem}.png"
        if not file.is_file():
            raise FileNotFoundError(f"there is no prediction {str(file)!r}")
        numbers = index_map(file)
        highest = int(numbers[numbers < 255].max(initial=0))
        if highest > count:
            raise ValueError(f"{str(file)!r} has the object {highest}, but the clip has {count}; 0 is the background.")
        _check_size(numbers, wanted.shape[-2:], file)
        found[:, index] = numbers == np.arange(1, count + 1)[:, None, None]
    return {"masks": found, "labels": list(truth.labels), "scores": [1.0] * count}


def read_expression_masks(record: dict[str, Any], truth: Truth, predictions: Path) -> dict[str, Any]:
    """Ref-YouTube-VOS, Ref-DAVIS, ReVOS: <video>/<expression>/<frame>.png, bright (any number but 0) inside.

    Raises:
        FileNotFoundError: a frame has no prediction. ValueError: one of another size.
    """
    size, masks = _masks_of(truth).shape[-2:], []
    for name in record["images"]:
        file = predictions / record["key"] / f"{Path(name).stem}.png"
        if not file.is_file():
            raise FileNotFoundError(f"there is no prediction {str(file)!r}")
        with Image.open(file) as picture:
            values = np.asarray(picture if picture.mode in ("P", "1") else picture.convert("L"))
        _check_size(values, size, file)
        masks.append(values > 0)
    return {"masks": np.stack(masks)[None], "labels": [""], "scores": [1.0]}


def tube_reader(predictions: Path) -> Callable[[dict[str, Any], Truth, Path], dict[str, Any]]:
    """YouTube-VIS: results.json as its server takes it, [{"video_id", "category_id", "score", "segmentations"}, ...].

    Raises:
        FileNotFoundError, ValueError: no such file, or another form.
    """
    file = predictions / RESULTS_FILE if predictions.is_dir() else predictions
    try:
        rows = json.loads(file.read_bytes())
        by_video: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            by_video.setdefault(str(row["video_id"]), []).append(row)
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{str(file)!r} is no list of results of YouTube-VIS.") from None

    def read(record: dict[str, Any], truth: Truth, _: Path) -> dict[str, Any]:
        height, width = _masks_of(truth).shape[-2:]
        rows = by_video.get(record["key"], [])
        names = dict(zip(record["info"]["categories"], record["names"], strict=True))
        try:
            tubes = [
                np.stack(
                    [
                        np.zeros((height, width), bool) if one is None else annotation_mask(one, height, width)
                        for one in row["segmentations"]
                    ]
                )
                for row in rows
            ]
            found = {"labels": [names[row["category_id"]] for row in rows], "scores": [row["score"] for row in rows]}
        except (KeyError, TypeError) as error:
            raise ValueError(f"A result of the video {record['key']} has no {error}.") from None
        if any(len(tube) != len(record["images"]) for tube in tubes):
            raise ValueError(
                f"A result of the video {record['key']} has not one mask (or null) for each of its frames."
            )
        return {"masks": tubes, **found}

    return read


def _check_size(values: np.ndarray, size: tuple[int, ...], file: Path) -> None:
    if values.shape != tuple(size):
        raise ValueError(
            f"{str(file)!r} is {values.shape[1]} x {values.shape[0]} pixels, its frame {size[1]} x {size[0]}."
        )
