"""Does the mask steer the decoder? Own mask, somebody else's, none; and a choice only the mask can tell.

Paper: FOCUS (arXiv 2506.16806), the ablation of mask guidance (no mask / shuffled mask / own mask). Three random seeds; scenes are
drawn for the intervals, with all seeds of a scene together. The measurement is this project's own.

1. Arms. The same instruction in four places: the one the pipeline finds itself ("own"), the support of the true change
   grown by 4 pixels ("true"), the place it found in the next scene of the batch ("shuffled"), and the whole picture, which
   says nothing about where ("none"); all but the first are `mask_image`. Each of them as it is; with a mask that the UNet
   does not read ("_unread"); with every visual token written anew and not those in the place alone ("_unlimited"); and
   with neither ("_neither"). Of the own place also without telling the language model where a cell lies in it
   ("own_unplaced"). Every arm is drawn raw (`preserve_background=False`: what compositing would hide shows) and
   composited. Scenes in which the pipeline finds nothing are left out and counted; so are background edits.
2. Twins. Scenes with two identical objects; the instruction names both ("make the red circle blue"), a click that the
   language model is not shown chooses one: `mask_image` is what `segment(region=Point(...))` gives. Measured is which
   share of the changed pixels lies inside the chosen object, inside its twin (both grown by 4 pixels) and elsewhere. A
   pixel has changed where the mean absolute difference, over the channels, is above 0.15 of the range; the new colour is
   one that lies further off than that. What the edit changed is the difference to the same picture drawn raw from the
   same noise with no more than a pixel of a corner free to change; the difference to the source picture holds what the
   decoder cannot keep as well ("from_source").
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from ..data.edits import EDIT_KINDS, Edit
from ..data.regions_sampling import dilate, region_prompt
from ..data.world import COLOURS, HELD_OUT_PAIRS, Scene, WorldObject, render, with_twin
from . import metrics
from .edits import SUPPORT_DILATION, edit_sample, edit_truth, is_right, seeded, to_levels
from .picture_metrics import psnr
from .tasks import Batch, figure, scene_rng, union_mask

SEEDS = (0, 1, 2)
PLACES = ("none", "shuffled", "true", "own")
SWITCHES: dict[str, dict[str, Any]] = {
    "": {},
    "_unread": {"mask_guidance_scale": 0.0},
    "_unlimited": {"limit_tokens": False},
    "_neither": {"mask_guidance_scale": 0.0, "limit_tokens": False},
}
# Where the place is all of the picture, all tokens are written in any case.
ARMS = tuple(
    place + switch
    for place in PLACES
    for switch in SWITCHES
    if place != "none" or "limit_tokens" not in SWITCHES[switch]
) + ("own_unplaced",)
CHANGED = 0.15  # of the range 0..255, mean over the channels
LOCAL_KINDS = tuple(kind for kind in EDIT_KINDS if kind != "background")
_SEED_STEP = 7919


def changed_pixels(picture: np.ndarray, source: np.ndarray) -> np.ndarray:
    """bool [H, W]: where two pictures [H, W, 3] in 0..255 differ by more than 0.15 of the range, mean over channels."""
    return np.abs(picture.astype(np.float32) - source.astype(np.float32)).mean(axis=-1) > CHANGED * 255.0


def twin_scene(scene: Scene) -> tuple[Scene, int, int, str] | None:
    """A scene with an identical twin of one of its objects.

    Returns:
        (scene, index of the chosen object, index of its twin, instruction), or None where no object's twin finds room.
        The instruction recolours "the C S", which both are and no other object is.
    """
    rng = scene_rng(scene, "twins")
    for index in rng.permutation(len(scene.objects)):
        item = scene.objects[int(index)]
        if item.pair in HELD_OUT_PAIRS:
            continue
        others = tuple(other for other in scene.objects if other.pair != item.pair)
        colours = _far_colours(item)
        if not colours:
            continue
        # The two last, with room between their grown masks.
        doubled = with_twin(replace(scene, objects=(*others, item)), len(others), rng, gap=0.1)
        if doubled is not None:
            colour = colours[int(rng.integers(len(colours)))]
            chosen, twin = len(others), len(others) + 1
            if rng.random() < 0.5:
                chosen, twin = twin, chosen
            return doubled, chosen, twin, f"make the {item.colour} {item.shape} {colour}"
    return None


def _far_colours(item: WorldObject) -> list[str]:
    """Colours the object may take (no held-out pair) that differ from its own by clearly more than `CHANGED`."""
    own = np.asarray(item.rgb, dtype=np.float32)
    return [
        name
        for name, rgb in COLOURS.items()
        if (name, item.shape) not in HELD_OUT_PAIRS and np.abs(own - rgb).mean() > 1.5 * CHANGED * 255.0
    ]


@contextlib.contextmanager
def _unplaced(pipe: Any) -> Iterator[None]:
    """The pipeline without the guidance of its tokens, for a while."""
    conditioner = pipe.mask_conditioner
    guidance, conditioner.cell_guidance = conditioner.cell_guidance, None
    try:
        yield
    finally:
        conditioner.cell_guidance = guidance


def _arms(pipe: Any) -> tuple[str, ...]:
    """The arms that a pipeline can run."""
    conditioner = getattr(pipe, "mask_conditioner", None)
    lacking = {"own_unplaced"} if getattr(conditioner, "cell_guidance", None) is None else set()
    if conditioner is None:  # nothing that could be read
        lacking |= {arm for arm in ARMS if arm.endswith(("_unread", "_neither"))}
    return tuple(arm for arm in ARMS if arm not in lacking)


class AblationTask:
    """The arms and the twins."""

    def __init__(self, name: str = "ablation", options: dict[str, Any] | None = None) -> None:
        self.name = name
        self.options = options or {}
        self.arms: list[dict[str, Any]] = []
        self.twins: list[dict[str, Any]] = []
        self.asked = {"arms": 0, "twins": 0}

    def run(self, pipe: Any, batch: Batch) -> None:
        """Both parts on the scenes of the batch."""
        self._run_arms(pipe, batch)
        self._run_twins(pipe, batch)

    def _run_arms(self, pipe: Any, batch: Batch) -> None:
        size = batch.drawn[0].image.shape[0]
        chosen = []
        for index, scene in enumerate(batch.scenes):
            try:
                chosen.append((index, edit_sample(scene, batch.may_name, "ablation", LOCAL_KINDS)))
            except ValueError:  # this scene allows background edits alone
                continue
        self.asked["arms"] += len(chosen)
        if not chosen:
            return
        places = self._edit(pipe, batch, chosen, None, SEEDS[0])[1]
        kept = [row for row, mask in enumerate(places) if mask.any()]
        if len(kept) < 2:  # nobody else's place to borrow
            return
        edits = [chosen[row] for row in kept]
        own = [places[row] for row in kept]
        truths = [edit_truth(batch.scenes[index], edit, size) for index, edit in edits]
        everywhere = np.ones((size, size), dtype=bool)
        masks = {
            "none": [everywhere] * len(own),
            "shuffled": own[1:] + own[:1],
            "true": [truth.inside for truth in truths],
            "own": None,
        }
        rows: list[dict[str, Any]] = [
            {"scene": batch.scenes[index].seed, "kind": edit.edit_kind, "seed": seed}
            for seed in SEEDS
            for index, edit in edits
        ]
        arms = _arms(pipe)
        for arm in arms:
            place, _, switch = arm.partition("_")
            options = SWITCHES.get(f"_{switch}" if switch else "", {})
            with _unplaced(pipe) if switch == "unplaced" else contextlib.nullcontext():
                raw = self._edit(pipe, batch, edits, masks[place], *SEEDS, **options)[0]
                composited = self._edit(pipe, batch, edits, masks[place], *SEEDS, preserve_background=True, **options)[
                    0
                ]
            for row, picture, kept_outside, truth in zip(rows, raw, composited, truths * len(SEEDS), strict=True):
                changed = changed_pixels(picture, truth.source)
                row[f"{arm}_right"] = float(is_right(picture, truth))
                row[f"{arm}_psnr"] = psnr(picture, truth.truth, truth.inside)
                row[f"{arm}_inside"] = float((changed & truth.inside).sum())
                row[f"{arm}_changed"] = float(changed.sum())
                row[f"{arm}_composited_right"] = float(is_right(kept_outside, truth))
                row[f"{arm}_composited_psnr"] = psnr(kept_outside, truth.truth, truth.inside)
        for row in rows:
            for arm in arms:
                row[f"own_minus_{arm}"] = row["own_right"] - row[f"{arm}_right"]
        self.arms += rows

    def _edit(
        self,
        pipe: Any,
        batch: Batch,
        edits: list[tuple[int, Edit]],
        masks: list[np.ndarray] | None,
        *seeds: int,
        **options: Any,
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Results as levels in 0..255, and where pixels were free to change: all edits with the first seed, with the next."""
        indices = [index for index, _ in edits] * len(seeds)
        return self._draw(
            pipe,
            batch.source(pipe, indices),
            [edit.instruction for _, edit in edits] * len(seeds),
            None if masks is None else masks * len(seeds),
            [batch.scenes[index].seed + _SEED_STEP * seed for seed in seeds for index, _ in edits],
            batch.drawn[0].image.shape[0],
            **options,
        )

    def _run_twins(self, pipe: Any, batch: Batch) -> None:
        size = batch.drawn[0].image.shape[0]
        found = [twin for twin in map(twin_scene, batch.scenes) if twin is not None]
        self.asked["twins"] += len(found)
        if not found:
            return
        drawn = [render(scene, size) for scene, *_ in found]
        images = [Image.fromarray(picture.image) for picture in drawn]
        clicks = [
            region_prompt(picture.masks[chosen], "click", scene_rng(scene, "twins click"))
            for (scene, chosen, _, _), picture in zip(found, drawn)
        ]
        masks = [union_mask(masks, size) for masks in pipe.segment(images, region=clicks).masks]
        kept = [row for row, mask in enumerate(masks) if mask.any()]
        if not kept:
            return
        encoding = pipe.encode_image([images[row] for row in kept])
        instructions, chosen_masks = [found[row][3] for row in kept], [masks[row] for row in kept]
        corners = [_far_corner(mask) for mask in chosen_masks]
        for seed in SEEDS:
            seeds = [found[row][0].seed + _SEED_STEP * seed for row in kept]
            pictures, _ = self._draw(pipe, encoding, instructions, chosen_masks, seeds, size)
            unedited, _ = self._draw(pipe, encoding, instructions, corners, seeds, size)
            for row, picture, before in zip(kept, pictures, unedited, strict=True):
                scene, chosen, twin, _ = found[row]
                places = drawn[row].masks[chosen], drawn[row].masks[twin]
                from_source = _where_changed(picture, drawn[row].image, *places)
                self.twins.append(
                    {
                        "scene": scene.seed,
                        "seed": seed,
                        "mask_iou": metrics.iou(masks[row], drawn[row].masks[chosen]),
                        **_where_changed(picture, before, *places),
                        **{f"from_source_{name}": value for name, value in from_source.items()},
                    }
                )

    def _draw(
        self,
        pipe: Any,
        source: Any,
        instructions: list[str],
        masks: list[np.ndarray] | None,
        seeds: list[int],
        size: int,
        **options: Any,
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        options = {"preserve_background": False, **self.options, **options}
        if masks is not None:
            options["mask_image"] = [Image.fromarray(mask.astype(np.uint8) * 255) for mask in masks]
        out = pipe.edit(
            source,
            instructions,
            generator=[seeded(seed) for seed in seeds],
            output_type="np",
            **options,
        )
        return to_levels(out.images, size), [union_mask(mask, size) for mask in out.edit_masks]

    def figures(self) -> dict[str, Any]:
        """Each arm: right share and PSNR inside, raw and composited, share of the changed pixels inside; the differences in what is
        right of the raw ones; the twins.
        """
        found: dict[str, Any] = {"seeds": len(SEEDS), "asked": dict(self.asked)}
        arms = [arm for arm in ARMS if self.arms and f"{arm}_right" in self.arms[0]]
        for arm in arms:
            found[arm] = {
                "right": figure(self.arms, f"{arm}_right"),
                "psnr_inside": figure(self.arms, f"{arm}_psnr"),
                "composited_right": figure(self.arms, f"{arm}_composited_right"),
                "composited_psnr_inside": figure(self.arms, f"{arm}_composited_psnr"),
            }
            found[arm]["right_by_seed"] = [
                figure([row for row in self.arms if row["seed"] == seed], f"{arm}_right")["value"] for seed in SEEDS
            ]
            if any(row[f"{arm}_changed"] for row in self.arms):
                found[arm]["changed_inside"] = figure(self.arms, f"{arm}_inside", f"{arm}_changed")
            if arm != "own":
                found[f"own_minus_{arm}"] = figure(self.arms, f"own_minus_{arm}")
        if self.twins:
            found["twins"] = {"mask_mIoU": figure(self.twins, "mask_iou"), "changed": figure(self.twins, "has_changed")}
            for start, title in (("", "changed"), ("from_source_", "from_source")):
                if any(row[f"{start}changed"] for row in self.twins):
                    for key in ("chosen", "twin", "elsewhere"):
                        found["twins"][f"{title}_in_{key}"] = figure(self.twins, start + key, f"{start}changed")
            if any(row["changed"] for row in self.twins):
                known = [row for row in self.twins if row["has_changed"]]
                found["twins"]["prefers_chosen"] = figure(known, "prefers_chosen")
        return found


def _far_corner(mask: np.ndarray) -> np.ndarray:
    """bool [H, W]: the pixel in the corner that is furthest from the middle of a mask."""
    rows, columns = mask.nonzero()
    corner = np.zeros_like(mask)
    corner[-1 if 2 * rows.mean() < len(mask) else 0, -1 if 2 * columns.mean() < mask.shape[1] else 0] = True
    return corner


def _where_changed(
    picture: np.ndarray, source: np.ndarray, chosen: np.ndarray, twin: np.ndarray
) -> dict[str, float | bool]:
    """Counts of changed pixels inside the chosen object, inside its twin, elsewhere, and in all."""
    changed = changed_pixels(picture, source)
    here, there = dilate(chosen, SUPPORT_DILATION), dilate(twin, SUPPORT_DILATION)
    there = there & ~here
    counts = {
        "chosen": float((changed & here).sum()),
        "twin": float((changed & there).sum()),
        "elsewhere": float((changed & ~here & ~there).sum()),
        "changed": float(changed.sum()),
    }
    return {**counts, "has_changed": bool(changed.any()), "prefers_chosen": counts["chosen"] > counts["twin"]}
