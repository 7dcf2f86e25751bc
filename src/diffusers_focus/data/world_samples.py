"""The still-life world as a folder of samples: every task of samples.py, in the files that photographs come in.

For trials of what reads such folders, and as an example of one. Texts and truths are those of language.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..processing.regions import Box, Mask, Point, Region, Scribble
from .coco_masks import encode_rle
from .edits import edit_support, sample_edit
from .language import caption, generalized_expressions, questions, reasoning_expressions, referring_expressions
from .regions_sampling import REGION_KINDS, region_prompt
from .world import Scene, render, sample_scene


def world_records(
    folder: Path,
    seeds: Iterable[int],
    *,
    size: int = 128,
    num_questions: int = 8,
    num_referring: int = 3,
    num_edits: int = 1,
) -> Iterator[dict[str, Any]]:
    """Draw scenes into a folder and say what is true of them, scene by scene.

    Args:
        folder: pictures go there as <seed>.png, edited ones as <seed>-edit<i>.png.
        seeds: of the scenes.
        size: their side in pixels.
        num_questions, num_referring, num_edits: of each scene; beside them a generalized expression, a region prompt, a
            reasoning expression and a list of classes.

    Returns:
        Records; those of a scene follow one another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        scene = sample_scene(seed, size=size)
        rng = np.random.default_rng((seed, 11))
        drawn = render(scene, size)
        Image.fromarray(drawn.image).save(folder / f"{seed}.png")
        picture = {"images": [f"{seed}.png"]}
        info = {"image_id": seed}
        masks = [encode_rle(mask) for mask in drawn.masks]
        names = [item.name for item in scene.objects]

        for i, question in enumerate(questions(scene, rng, num_questions)):
            record = {"task": "answer", "text": question.text, "answer": question.answer}
            if question.target is not None:
                mask = drawn.masks[question.target]
                kind = REGION_KINDS[int(rng.integers(len(REGION_KINDS)))]
                record["regions"] = [_region(region_prompt(mask, kind, rng))]
            yield {**picture, **record, "key": f"{seed}-q{i}", "info": {**info, "kind": question.kind}}
        referrals = referring_expressions(scene, rng, num_referring) + generalized_expressions(scene, rng, 1)
        for i, referral in enumerate(referrals + reasoning_expressions(scene, rng, 1)):
            yield {
                **picture,
                "task": "reasoning" if referral.kind == "reasoning" else "referring",
                "key": f"{seed}-r{i}",
                "text": referral.text,
                "masks": [masks[t] for t in referral.targets],
                "labels": [names[t] for t in referral.targets],
                "info": {**info, "kind": referral.kind},
            }
        target = int(rng.integers(len(masks)))
        kind = REGION_KINDS[int(rng.integers(len(REGION_KINDS)))]
        yield {
            **picture,
            "task": "region",
            "key": f"{seed}-p",
            "regions": [_region(region_prompt(drawn.masks[target], kind, rng))],
            "masks": [masks[target]],
            "labels": [names[target]],
            "info": {**info, "kind": kind},
        }
        yield {**picture, **_classes(scene, masks), "key": f"{seed}-c", "info": info}
        for i in range(num_edits):
            edit = sample_edit(scene, rng)
            result = f"{seed}-edit{i}.png"
            Image.fromarray(render(edit.result, size).image).save(folder / result)
            meant = [drawn.masks[t] for t in edit.targets] or [~drawn.masks.any(axis=0)]
            yield {
                **picture,
                "task": "edit",
                "key": f"{seed}-e{i}",
                "text": edit.instruction,
                "target": edit.target_text,
                "masks": [encode_rle(mask) for mask in meant],
                "labels": [names[t] for t in edit.targets] or ["background"],
                "change": encode_rle(edit_support(scene, edit, size)),
                "result": result,
                "info": {**info, "kind": edit.edit_kind},
            }
        yield {
            "task": "generation",
            "key": f"{seed}-g",
            "text": caption(scene),
            "result": f"{seed}.png",
            "info": info,
        }


def _classes(scene: Scene, masks: list[dict[str, Any]]) -> dict[str, Any]:
    """Instance segmentation by the names of shapes, two that are not there among them."""
    labels = [item.shape for item in scene.objects]
    others = [shape for shape in ("circle", "square", "triangle", "star", "ring", "cross") if shape not in labels][:2]
    return {"task": "class", "names": sorted({*labels, *others}), "masks": masks, "labels": labels}


def _region(region: Region) -> dict[str, Any]:
    """A region as a record has it."""
    if isinstance(region, Point):
        return {"point": [region.x, region.y]}
    if isinstance(region, Box):
        return {"box": [region.x0, region.y0, region.x1, region.y1]}
    if isinstance(region, Scribble):
        return {"scribble": [list(point) for point in region.points]}
    assert isinstance(region, Mask)
    return {"mask": encode_rle(region.array)}
