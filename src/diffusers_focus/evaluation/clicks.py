"""What further clicks are worth: a simulated user who corrects a mask.

Paper: FOCUS (arXiv 2506.16806) measures one region prompt. The protocol of several is interactive segmentation's (RITM, arXiv
2102.06583; SAM, arXiv 2304.02643): the first click lies in the object, every further one in the middle of the largest part that is
still wrong, positive where the object is missing, negative where something else is shown. Each call gets all clicks so far, and the
mask found so far where it is to be improved.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data.regions_sampling import erode
from ..processing.regions import Point, Strokes
from .metrics import iou
from .tasks import Batch, figure, is_held_out, region_sample

CLICKS = 5
SMALLEST = 2  # pixels: half the width of the least mistake a user would see
WAYS = ("clicks", "refined")


class ClicksTask:
    """Up to five clicks on one object of every scene, and the same with the mask so far given back ("refined")."""

    def __init__(self, name: str = "clicks") -> None:
        self.name = name
        self.records: list[dict[str, Any]] = []

    def run(self, pipe: Any, batch: Batch) -> None:
        """Click at one object of every scene of the batch."""
        pointed = [
            region_sample(scene, drawn.masks, "click", batch.may_name)
            for scene, drawn in zip(batch.scenes, batch.drawn, strict=True)
        ]
        truths = [drawn.masks[target] for drawn, (_, target) in zip(batch.drawn, pointed)]
        source = batch.source(pipe, range(len(truths)))
        reached: dict[str, list[list[float]]] = {}
        for way in WAYS:
            clicks: list[list[Any]] = [[first] for first, _ in pointed]
            masks: list[Any] | None = None
            for _ in range(CLICKS):
                before = [None] * len(truths) if masks is None or way == "clicks" else masks
                regions = [_strokes(own, mask) for own, mask in zip(clicks, before)]
                out = pipe.segment(source, region=regions)
                masks = [np.asarray(one).reshape(-1, *truth.shape).any(axis=0) for one, truth in zip(out.masks, truths)]
                reached.setdefault(way, []).append([iou(mask, truth) for mask, truth in zip(masks, truths)])
                for own, mask, truth in zip(clicks, masks, truths):
                    further = correction(mask, truth)
                    own += [further] if further is not None else []
        for index, (scene, (_, target)) in enumerate(zip(batch.scenes, pointed)):
            record = {f"{way} {turn + 1}": reached[way][turn][index] for way in WAYS for turn in range(CLICKS)}
            held_out = is_held_out(scene, [target])
            self.records.append(
                {"scene": scene.seed, "held_out": held_out, "failed": record["clicks 1"] < 0.5, **record}
            )

    def figures(self) -> dict[str, Any]:
        """mIoU after each click, over all scenes and over those whose first click found something else."""
        names = [f"{way} {turn + 1}" for way in WAYS for turn in range(CLICKS)]
        failed = [record for record in self.records if record["failed"]]
        found = {name: figure(self.records, name) for name in names}
        return {**found, "after a first click below 0.5": {name: figure(failed, name) for name in names if failed}}


def _strokes(clicks: list[Point], mask: np.ndarray | None) -> Any:
    if len(clicks) == 1:
        return clicks[0]
    return Strokes(*clicks, previous=mask if mask is not None and mask.any() else None)


def correction(mask: np.ndarray, truth: np.ndarray) -> Point | None:
    """Where a user would click next: the middle of the thickest mistake; None where none is thick enough to be seen."""
    deepest, point = SMALLEST - 1, None
    for wrong, positive in ((truth & ~mask, True), (mask & ~truth, False)):
        inner, depth = wrong, 0
        # The image border is an edge too, so that a mistake there is not thicker than it looks.
        while (smaller := erode(np.pad(inner, 1), 1)[1:-1, 1:-1]).any():
            inner, depth = smaller, depth + 1
        if depth >= deepest and inner.any() and depth > (deepest if point is not None else deepest - 1):
            rows, columns = np.nonzero(inner)
            middle = len(rows) // 2
            deepest, point = depth, Point(float(columns[middle]) + 0.5, float(rows[middle]) + 0.5, positive=positive)
    return point
