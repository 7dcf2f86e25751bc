"""Edited clips of the still-life world: is the edit right, does it stay where it belongs, and does it flicker?

Paper: FOCUS (arXiv 2506.16806) shows edited videos as figures only, so the measures are this project's own. A clip of
`data/clips.py` is edited by one instruction about its first frame; the truth is the same edit made in every frame, with that
frame's own noise. The place of the edit is the pipeline's: read from the instruction, and followed.

Right is the nearest-re-render rule of edits.py over all frames together: nearer (mean L1, inside the support grown by 4 pixels) to
the true clip than to the source and to every clip that differs from the truth in one attribute. New stripes may lie in any way, in
the same one in every frame. Flicker outside the edit masks and
inside the true change: picture_metrics.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.clips import Clip, ClipSpec, edit_of_frame, sample_clip
from ..data.edits import Edit, alternatives, edit_support
from ..data.regions_sampling import dilate
from ..steps.composite import relative_radius
from . import metrics
from .edits import SUPPORT_DILATION, edit_sample, possible_pictures, seeded
from .picture_metrics import flicker_inside, flicker_outside, psnr
from .tasks import GROUPS, Batch, figure, kinds_of

SPEC = ClipSpec(frames=8, speed=(0.015, 0.05))


class EditClipTask:
    """One edited clip a scene of the batch, with its seed."""

    def __init__(self, name: str = "edit_clips", options: dict[str, Any] | None = None, spec: ClipSpec = SPEC) -> None:
        self.name, self.spec = name, spec
        self.options = options or {}
        self.records: list[dict[str, Any]] = []

    def run(self, pipe: Any, batch: Batch) -> None:
        """Edit the clip of every scene."""
        size = batch.drawn[0].image.shape[0]
        for scene in batch.scenes:
            clip = sample_clip(scene.seed, ClipSpec(**{**vars(self.spec), "held_out": GROUPS[batch.group].held_out}))
            edit = edit_sample(clip.scene, batch.may_name, self.name)
            frames = [one.image for one in clip.renders(size)]
            out = pipe.edit_clip(frames, edit.instruction, generator=seeded(scene.seed), **self.options)
            edited = np.stack([np.asarray(image) for image in out.images])
            feather = getattr(getattr(pipe, "config", None), "mask_feather", 0.02)
            free = np.stack([_soft(mask, relative_radius(feather, size, size)) for mask in np.asarray(out.edit_masks)])
            row = score_clip(edited, np.stack(frames), free, clip, edit)
            row["mask_iou"] = _followed(np.asarray(out.masks), clip, edit)
            self.records.append({"scene": scene.seed, "kind": edit.edit_kind, **row})

    def figures(self) -> dict[str, Any]:
        """Right clips and frames, flicker, and how well what is edited was followed; over all clips and per kind of edit."""
        kinds = {kind: _figures(chosen) for kind, chosen in kinds_of(self.records).items()}
        return {**_figures(self.records), "kinds": kinds}


def _soft(mask: np.ndarray, reach: int) -> np.ndarray:
    return dilate(mask, reach) if mask.any() else mask


def _followed(masks: np.ndarray, clip: Clip, edit: Edit) -> float | None:
    """Mean IoU over the frames of what the edit is about; None for the background."""
    if not edit.targets:
        return None
    truths = [one.masks[edit.targets[0]] for one in clip.renders(masks.shape[-1])]
    return float(np.mean([metrics.iou(found, true) for found, true in zip(masks, truths, strict=True)]))


def score_clip(edited: np.ndarray, source: np.ndarray, free: np.ndarray, clip: Clip, edit: Edit) -> dict[str, Any]:
    """What one edited clip is worth.

    Args:
        edited, source: uint8 [T, S, S, 3].
        free: bool [T, S, S], the edit masks with their soft edge.
        clip, edit: of which it was made.

    Returns:
        "right", "right_frames" (share of those in which the edit shows), "psnr_inside" (dB; against the true clip), and of flicker
        in levels "flicker_outside", "flicker_outside_most", "still_outside" (1 where it is exactly 0), "flicker_inside",
        "flicker_truth". What cannot be measured is absent.
    """
    size = edited.shape[1]
    supports, truths, distances = [], [], []
    for index, picture in enumerate(edited):
        frame, here = clip.frame(index), edit_of_frame(clip, edit, index)
        inside = edit_support(frame, here, size)
        inside = dilate(inside, SUPPORT_DILATION) if inside.any() else inside
        right = possible_pictures(here.result, here, size)
        others = (frame, *alternatives(frame, here))
        wrong = np.stack([one[inside] for other in others for one in possible_pictures(other, here, size)]).astype(
            np.float32
        )
        supports.append(inside)
        truths.append(right[0])
        distances.append(
            _distances(picture[inside].astype(np.float32), np.stack([one[inside] for one in right]), wrong)
        )
    inside, true = np.stack(supports), np.stack(truths)
    found: dict[str, Any] = {}
    shown = [index for index, mask in enumerate(supports) if mask.any()]
    if shown:
        found["right"] = float(_nearest(distances))
        found["right_frames"] = float(np.mean([_nearest([distances[index]]) for index in shown]))
        found["psnr_inside"] = psnr(edited, true, inside)
    outside, within = flicker_outside(edited, source, free), flicker_inside(edited, true, inside)
    if outside is not None:
        found["flicker_outside"], found["flicker_outside_most"] = outside
        found["still_outside"] = float(outside[1] == 0)
    if within is not None:
        found["flicker_inside"], found["flicker_truth"] = within
    return found


def _distances(seen: np.ndarray, right: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a frame's pixels [P, 3]: how far they are from right answers [R, P, 3] and wrong ones [A, P, 3], as [R] and [A], and which
    wrong answers look other than which right ones, [A, R].
    """
    to_right, to_wrong = (np.abs(seen - pictures).sum(axis=(1, 2)) for pictures in (right, wrong))
    return to_right, to_wrong, np.stack([(wrong != one).any(axis=(1, 2)) for one in right], axis=1)


def _nearest(frames: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> bool:
    """Whether one right clip is nearer than every clip that differs from all right ones in some frame."""
    to_right, to_wrong = (np.sum([frame[part] for frame in frames], axis=0) for part in (0, 1))
    is_wrong = np.any([frame[2] for frame in frames], axis=0).all(axis=1)
    return bool(is_wrong.any()) and bool(to_right.min() < to_wrong[is_wrong].min())


def _figures(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = {"right": "right", "right_frames": "right_frames", "psnr_inside": "psnr_inside", "mask_mIoU": "mask_iou"}
    names |= {name: name for name in ("flicker_outside", "still_outside", "flicker_inside", "flicker_truth")}
    found: dict[str, Any] = {}
    for name, key in names.items():
        known = [record for record in records if record.get(key) is not None]
        if known:
            found[name] = figure(known, key)
    moving = [record for record in records if record.get("flicker_truth")]
    if moving:
        found["flicker_ratio"] = figure(moving, "flicker_inside", "flicker_truth")
        most = max(record["flicker_inside"] / record["flicker_truth"] for record in moving)
        found["flicker_ratio_most"] = {"value": round(most, 6), "count": len(moving)}
    levels = [record["flicker_outside_most"] for record in records if "flicker_outside_most" in record]
    if levels:
        found["flicker_outside_most"] = {"value": max(levels), "count": len(levels)}
    return found
