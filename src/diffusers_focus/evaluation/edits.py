"""Is an edit right? The nearest-re-render rule on held-out scenes.

Paper: FOCUS (arXiv 2506.16806), section 4.5 (instruction editing; figures and Emu-Edit scores there). The world knows
the truth of every edit, so a stricter question can be asked than a similarity: inside the support of the source and the
true object, grown by 4 pixels, is the result nearer (mean L1) to the true re-render than to the source and to every
re-render that differs from the truth in one attribute (other colours, other shapes, the other fill, no object)? How new stripes
lie is no attribute: docs/design.md, "Benchmarks and data".

Every edit runs twice: composited (the default, the input's own pixels outside the edit mask) and raw (the decoder's
whole picture). They are reported apart, so that compositing alone cannot earn a figure. Of the composited run the place is
measured too: what was kept outside, how the edit mask fits the true change, and the seam. The rules are this project's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..data.edits import Edit, alternatives, edit_support, sample_edit
from ..data.regions_sampling import dilate
from ..data.world import HELD_OUT_PAIRS, Scene, render
from ..steps.composite import relative_radius
from . import metrics
from .picture_metrics import psnr
from .tasks import Batch, figure, kinds_of, scene_rng, union_mask

SUPPORT_DILATION = 4
EXCESS_DILATION = 8
PLACE_FIGURES = ("background_kept", "coverage", "excess", "seam", "seam_true")
STRIPES = tuple((slant, shift / 8) for slant in (1, -1) for shift in range(8))
"""Ways in which stripes may lie: either diagonal, from eight places of their period."""
_TRIES = 8


@dataclass(frozen=True)
class EditTruth:
    """What an edit is measured against.

    Args:
        source: uint8 [S, S, 3], the picture before.
        truth: uint8 [S, S, 3], the true re-render.
        right: uint8 [T, P, 3], at the P pixels of `inside` only: the true re-render, and where an object becomes striped the same
            with its stripes lying in other ways, which the world leaves open and nothing in the picture says.
        wrong: uint8 [A, P, 3], the other re-renders, their stripes in all these ways too.
        inside: bool [S, S], the support of source and true object, grown by 4 pixels.
        support: bool [S, S], the same before it was grown.
        target: bool [S, S], the visible object the instruction is about (for background edits, all that is no object).
    """

    source: np.ndarray
    truth: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    inside: np.ndarray
    support: np.ndarray
    target: np.ndarray


def touches_held_out(scene: Scene, edit: Edit) -> bool:
    """Whether the edited object has a held-out colour and shape pair, before or after."""
    if not edit.targets:
        return False
    index = edit.targets[0]
    pairs = {scene.objects[index].pair}
    if edit.edit_kind != "remove":
        pairs.add(edit.result.objects[index].pair)
    return bool(pairs & HELD_OUT_PAIRS)


def edit_sample(scene: Scene, held_out: bool = False, task: str = "edits", kinds: Sequence[str] | None = None) -> Edit:
    """The edit of a scene, evenly over the kinds it allows.

    With `held_out`, one about a held-out pair where eight further tries find one.

    Raises:
        ValueError: the scene allows no edit of these kinds.
    """
    rng = scene_rng(scene, task)
    edit = sample_edit(scene, rng, kinds, held_out)
    for _ in range(_TRIES if held_out else 0):
        if touches_held_out(scene, edit):
            break
        edit = sample_edit(scene, rng, kinds, held_out)
    return edit


def edit_truth(scene: Scene, edit: Edit, size: int) -> EditTruth:
    """The pictures and masks an edit is measured with, at `size` pixels."""
    drawn = render(scene, size)
    support = edit_support(scene, edit, size)
    inside = dilate(support, SUPPORT_DILATION)
    true = possible_pictures(edit.result, edit, size)
    right = [pixels[inside] for pixels in true]
    others = (scene, *alternatives(scene, edit))
    wrong = [pixels[inside] for other in others for pixels in possible_pictures(other, edit, size)]
    # A re-render that looks like the truth here (an attribute that does not show) is not a wrong answer.
    wrong = [pixels for pixels in wrong if all((pixels != one).any() for one in right)]
    target = drawn.masks[edit.targets[0]] if edit.targets else ~drawn.masks.any(axis=0)
    return EditTruth(drawn.image, true[0], np.stack(right), np.stack(wrong), inside, support, target)


def possible_pictures(scene: Scene, edit: Edit, size: int) -> list[np.ndarray]:
    """An edit's outcome, uint8 [S, S, 3], and again for every way in which the stripes of an object that was solid may lie."""
    drawn = render(scene, size)
    became_striped = edit.edit_kind == "fill" and edit.result.objects[edit.targets[0]].fill == "striped"
    there = len(scene.objects) == len(edit.result.objects)  # one alternative has no object
    if not (became_striped and there and scene.objects[edit.targets[0]].fill == "striped"):
        return [drawn.image]
    own = drawn.masks[edit.targets[0]][..., None]
    ways = (render(replace(scene, stripes=way), size).image for way in STRIPES)
    return [drawn.image, *(np.where(own, picture, drawn.image) for picture in ways)]


def is_right(picture: np.ndarray, truth: EditTruth) -> bool:
    """Whether a result [S, S, 3] in 0..255 is nearer to the true re-render than to every other one, inside."""
    seen = picture[truth.inside].astype(np.float32)
    to_right, to_wrong = (np.abs(seen[None] - pixels).mean(axis=(1, 2)).min() for pixels in (truth.right, truth.wrong))
    return bool(to_right < to_wrong)


def score_edit(picture: np.ndarray, truth: EditTruth) -> dict[str, float]:
    """right, PSNR inside (against the true re-render) and outside (against the source) of one result in 0..255.

    "psnr_background" is absent where nothing lies outside the grown support.
    """
    found = {
        "right": float(is_right(picture, truth)),
        "psnr_inside": psnr(picture, truth.truth, truth.inside),
    }
    if not truth.inside.all():
        found["psnr_background"] = psnr(picture, truth.source, ~truth.inside)
    return found


def score_place(picture: np.ndarray, free: np.ndarray, truth: EditTruth, reach: int) -> dict[str, float]:
    """What a composited result kept outside its edit mask, how well the mask fits the change, and how visible its border is.

    Args:
        picture: [S, S, 3] in 0..255.
        free: bool [S, S], the edit mask.
        reach: pixels that its soft edge goes beyond it.

    Returns:
        "background_kept": 1 where every level outside the soft edge is the source's own, else 0;
        "coverage": share of the true change inside the mask; "excess": the mask's area over that of the change grown by 8 pixels;
        "seam" and "seam_true": mean absolute step between neighbours across the mask's border, in the result and in the true
        re-render. The last four are absent where either mask is empty, the last two where there is no border.
    """
    outside = ~dilate(free, reach) if free.any() else np.ones_like(free)
    found = {"background_kept": float((picture[outside].round() == truth.source[outside]).all())}
    if not (free.any() and truth.support.any()):
        return found
    found["coverage"] = float((free & truth.support).sum() / truth.support.sum())
    found["excess"] = float(free.sum() / dilate(truth.support, EXCESS_DILATION).sum())
    steps, true_steps = (_border_steps(one, free) for one in (picture, truth.truth))
    if len(steps):
        found |= {"seam": float(steps.mean()), "seam_true": float(true_steps.mean())}
    return found


def _border_steps(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Absolute steps [n] over the border of a mask, mean over the channels."""
    values, found = picture.astype(np.float32), []
    for axis in (0, 1):
        crossing = np.diff(mask, axis=axis)
        found.append(np.abs(np.diff(values, axis=axis)).mean(axis=-1)[crossing])
    return np.concatenate(found)


def to_levels(images: Any, size: int) -> list[np.ndarray]:
    """A pipeline's pictures (output_type "np": [S, S, 3] floats in [0, 1] each) as float32 levels in 0..255."""
    pictures = []
    for image in images:
        picture = np.asarray(image)
        picture = picture.astype(np.float32) * (255.0 if np.issubdtype(picture.dtype, np.floating) else 1.0)
        if picture.shape != (size, size, 3):
            raise ValueError(
                f"The pipeline returned a picture of shape {picture.shape} for an input of {size} x {size} pixels; "
                "an edit keeps the input's size."
            )
        pictures.append(picture)
    return pictures


def seeded(seed: int) -> Any:
    """A generator on the CPU, where every device draws the same numbers."""
    import torch

    return torch.Generator("cpu").manual_seed(seed)


class EditTask:
    """One instruction a scene, composited and raw."""

    def __init__(self, name: str = "edits", options: dict[str, Any] | None = None) -> None:
        self.name = name
        self.options = options or {}
        self.records: list[dict[str, Any]] = []

    def run(self, pipe: Any, batch: Batch) -> None:
        """Edit every scene of the batch, twice with the same random numbers."""
        edits = [edit_sample(scene, batch.may_name) for scene in batch.scenes]
        size = batch.drawn[0].image.shape[0]
        truths = [edit_truth(scene, edit, size) for scene, edit in zip(batch.scenes, edits)]
        rows: list[dict[str, Any]] = [
            {"scene": scene.seed, "kind": edit.edit_kind} for scene, edit in zip(batch.scenes, edits)
        ]
        indices = range(len(edits))
        for name, preserve in (("composited", True), ("raw", False)):
            out = pipe.edit(
                batch.source(pipe, indices),
                [edit.instruction for edit in edits],
                generator=[seeded(scene.seed) for scene in batch.scenes],
                preserve_background=preserve,
                output_type="np",
                **self.options,
            )
            for row, picture, truth in zip(rows, to_levels(out.images, size), truths, strict=True):
                row.update({f"{name}_{key}": value for key, value in score_edit(picture, truth).items()})
            if preserve:
                pictures = to_levels(out.images, size)
                feather = getattr(getattr(pipe, "config", None), "mask_feather", 0.02)
                reach = relative_radius(feather, size, size)
                for row, picture, free, truth in zip(rows, pictures, out.edit_masks, truths, strict=True):
                    row.update(score_place(picture, union_mask(free, size), truth, reach))
                for row, mask, free, truth in zip(rows, out.masks, out.edit_masks, truths, strict=True):
                    row["mask_iou"] = metrics.iou(union_mask(mask, size), truth.target)
                    row["edit_mask_iou"] = metrics.iou(union_mask(free, size), truth.support)
        self.records += rows

    def figures(self) -> dict[str, Any]:
        """Right share, PSNR inside and of the background, composited and raw; over all edits and per kind."""
        return {
            **_edit_figures(self.records),
            "kinds": {kind: _edit_figures(chosen) for kind, chosen in kinds_of(self.records).items()},
        }


def _edit_figures(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("composited", "raw"):
        found[name] = {}
        for key in ("right", "psnr_inside", "psnr_background"):
            known = [record for record in records if f"{name}_{key}" in record]
            if known:
                found[name][key] = figure(known, f"{name}_{key}")
    # Of the background nothing is referred to, so its masks would only blur the figure.
    local = [record for record in records if record["kind"] != "background"]
    if local:
        found["mask_mIoU"] = figure(local, "mask_iou")
    found["edit_mask_mIoU"] = figure(records, "edit_mask_iou")
    for key in PLACE_FIGURES:
        known = [record for record in records if key in record]
        if known:
            found[key] = figure(known, key)
    if "seam" in found and found["seam_true"]["value"] > 0:
        found["seam_ratio"] = {"value": round(found["seam"]["value"] / found["seam_true"]["value"], 6)}
    return found
