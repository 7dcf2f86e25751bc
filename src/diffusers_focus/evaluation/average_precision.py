"""mAP of instance masks, the COCO way: a thin layer over pycocotools, which is the definition (extra `eval`).

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
    """One object: a bool mask [H, W], its class, its score (predictions), and whether it is a crowd region (truths)."""

    mask: np.ndarray
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
        return dict.fromkeys(_NAMES)

    def rows(images: Sequence[Sequence[Instance]], scored: bool) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for image_id, instances in enumerate(images, start=1):
            for one in instances:
                if one.label not in labels:  # a class that no image holds has no AP
                    continue
                code = coco_mask.encode(np.asfortranarray(one.mask, dtype=np.uint8))
                area = float(one.mask.sum())
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
        height, width = next((one.mask.shape for side in both for one in side), (0, 0))
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
    return {name: None if value < 0 else float(value) for name, value in zip(_NAMES, run.stats)}
