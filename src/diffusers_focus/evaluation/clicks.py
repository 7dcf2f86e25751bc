"""What further clicks are worth: a simulated user who corrects a mask.

Paper: FOCUS (arXiv 2506.16806) measures one region prompt. The protocol of several is interactive segmentation's (RITM, arXiv
2102.06583; SAM, arXiv 2304.02643): the first click lies in the object, every further one in the middle of the largest part that is
still wrong, positive where the object is missing, negative where something else is shown. Each call gets all clicks so far, and the
mask found so far where it is to be improved.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data.regions_sampling import erode, region_prompt
from ..data.world import render
from ..processing.regions import Point, Strokes
from .ablation import twin_scene
from .metrics import iou
from .tasks import Batch, figure, kinds_of, region_sample, scene_rng

CLICKS = 5
SMALLEST = 2  # pixels: half the width of the least mistake a user would see
WAYS = ("clicks", "refined")


class ClicksTask:
    """Up to five clicks on one object of every scene, and the same with the mask so far given back ("refined").

    Scenes are measured as they are and with an identical twin of one object, which words cannot tell apart.
    """

    def __init__(self, name: str = "clicks") -> None:
        self.name = name
        self.records: list[dict[str, Any]] = []

    def run(self, pipe: Any, batch: Batch) -> None:
        """Click at one object of every scene of the batch."""
        pointed = [
            region_sample(scene, drawn.masks, "click", batch.may_name)
            for scene, drawn in zip(batch.scenes, batch.drawn, strict=True)
        ]
        self._click(pipe, batch, pointed, "scenes")
        size = batch.drawn[0].masks.shape[-1]
        found = [twin for scene in batch.scenes if (twin := twin_scene(scene)) is not None]
        if not found:
            return
        doubled = Batch(batch.group, [scene for scene, *_ in found], [render(scene, size) for scene, *_ in found])
        pointed = []
        for scene, drawn in zip(doubled.scenes, doubled.drawn):
            last = len(drawn.masks) - 1  # the twin is the last object
            pointed.append((region_prompt(drawn.masks[last], "click", scene_rng(scene, "twin")), last))
        self._click(pipe, doubled, pointed, "twins")

    def _click(self, pipe: Any, batch: Batch, pointed: list[tuple[Any, int]], kind: str) -> None:
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
        for index, scene in enumerate(batch.scenes):
            record = {f"{way} {turn + 1}": reached[way][turn][index] for way in WAYS for turn in range(CLICKS)}
            self.records.append({"scene": scene.seed, "kind": kind, "failed": record["clicks 1"] < 0.5, **record})

    def figures(self) -> dict[str, Any]:
        """mIoU after each click: of the scenes, of those with twins, and of all whose first click found something else."""
        names = [f"{way} {turn + 1}" for way in WAYS for turn in range(CLICKS)]
        failed = [record for record in self.records if record["failed"]]
        groups = {**kinds_of(self.records), "after a first click below 0.5": failed}
        return {group: {name: figure(chosen, name) for name in names} for group, chosen in groups.items() if chosen}


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
