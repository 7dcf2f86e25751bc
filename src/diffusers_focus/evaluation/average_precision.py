"""mAP of instance masks and of tubes, the COCO way: a thin layer over pycocotools, which is the definition (extra `eval`).

Source: the COCO detection challenge, `COCOeval` with `iouType="segm"`. AP is the area under the precision-recall curve of one
class at one IoU threshold, read at 101 recalls; mAP is its mean over the thresholds 0.50, 0.55, ... 0.95 and over the
classes that occur. At most 100 predictions an image count. Crowd regions are neither hits nor misses.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_NAMES = ("mAP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


@dataclass(frozen=True)
class Instance:
    """One object: a bool mask [H, W] or its run lengths, class, score (predictions), and whether it is a crowd region (truths)."""

    mask: np.ndarray | dict[str, Any]
    label: str
    score: float = 1.0
    crowd: bool = False


def mean_average_precision(
    predicted: Sequence[Sequence[Instance]], truth: Sequence[Sequence[Instance]]
) -> dict[str, float | None]:
    """COCO's mask AP of a set of images.

    Args:
        predicted, truth: the instances of each image, in the same order of images.

    Returns:
        "mAP", "AP50", "AP75", and "AP_small" / "AP_medium" / "AP_large" for objects below 32^2, 96^2 pixels and above. None
        where there is no object to find.

    Raises:
        ImportError: pycocotools is not installed.
        ValueError: not as many lists of predictions as of truths.
    """
    return _average_precision(predicted, truth, {name: place for place, name in enumerate(_NAMES)})


def tube_average_precision(
    predicted: Sequence[Sequence[Instance]], truth: Sequence[Sequence[Instance]]
) -> dict[str, float | None]:
    """YouTube-VIS's mAP of tubes, the masks of an object in all frames of a clip (youtubevos/cocoapi, `YTVOSeval`).

    Args:
        predicted, truth: the tubes of each clip, the frames of a tube side by side as one mask [H, frames * W]. Intersection and
            union of two such masks are those of the tubes, summed over the frames, so COCO's rule is YouTube-VIS's.

    Returns:
        "mAP", "AP50", "AP75", and "AR1", "AR10", the recall with at most so many predictions a clip; None where there is no object.

    Raises:
        ImportError, ValueError: as `mean_average_precision`.
    """
    return _average_precision(predicted, truth, {"mAP": 0, "AP50": 1, "AP75": 2, "AR1": 6, "AR10": 7})


def _average_precision(
    predicted: Sequence[Sequence[Instance]], truth: Sequence[Sequence[Instance]], chosen: dict[str, int]
) -> dict[str, float | None]:
    """The `chosen` ones (name -> place) of the twelve figures of COCOeval."""
    if len(predicted) != len(truth):
        raise ValueError(
            f"There are predictions for {len(predicted)} images and truths for {len(truth)}; give one list of instances for "
            "each image, an empty one where there are none."
        )
    try:
        from pycocotools import mask as coco_mask
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ImportError(
            "mAP is computed by pycocotools; install it with: pip install diffusers-focus[eval]"
        ) from error

    labels = {name: i + 1 for i, name in enumerate(sorted({one.label for image in truth for one in image}))}
    if not labels:
        return dict.fromkeys(chosen)

    def rows(images: Sequence[Sequence[Instance]], scored: bool) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for image_id, instances in enumerate(images, start=1):
            for one in instances:
                if one.label not in labels:  # a class that no image holds has no AP
                    continue
                given = isinstance(one.mask, dict)
                code = one.mask if given else coco_mask.encode(np.asfortranarray(one.mask, dtype=np.uint8))
                area = float(coco_mask.area(code))
                row = {"id": len(found) + 1, "image_id": image_id, "category_id": labels[one.label]}
                row |= {
                    "segmentation": code,
                    "area": area,
                    "bbox": list(coco_mask.toBbox(code)),
                    "iscrowd": int(one.crowd),
                }
                found.append(row | ({"score": float(one.score)} if scored else {}))
        return found

    images = []
    for index, both in enumerate(zip(truth, predicted), start=1):
        sizes = (one.mask["size"] if isinstance(one.mask, dict) else one.mask.shape for side in both for one in side)
        height, width = next(sizes, (0, 0))
        images.append({"id": index, "height": height, "width": width})
    categories = [{"id": index, "name": name} for name, index in labels.items()]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports by printing
        sides = []
        for annotations in (rows(truth, False), rows(predicted, True)):
            side = COCO()
            side.dataset = {"images": images, "annotations": annotations, "categories": categories}
            side.createIndex()
            sides.append(side)
        run = COCOeval(*sides, iouType="segm")
        run.evaluate()
        run.accumulate()
        run.summarize()
    values = {name: float(run.stats[place]) for name, place in chosen.items()}
    return {name: None if value < 0 else value for name, value in values.items()}
