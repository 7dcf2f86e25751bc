"""Pipelines that know the world instead of having learnt it: the evaluation must give them what they deserve.

`Oracle` recognises a scene by its pixels and answers from its truth; `Blind` looks at nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

from diffusers_focus.data.language import (
    COLOURS,
    QUESTION_KINDS,
    explanation,
    generalized_expressions,
    reasoning_expressions,
    referring_expressions,
)
from diffusers_focus.data.regions_sampling import dilate
from diffusers_focus.data.world import render
from diffusers_focus.evaluation.ablation import LOCAL_KINDS, twin_scene
from diffusers_focus.evaluation.edits import edit_sample, edit_truth
from diffusers_focus.evaluation.tasks import DEFAULT_GROUPS, SIZE, blind_answers, draw_batch, question_sample
from diffusers_focus.processing.regions import Box


class Oracle:
    """Right about everything on the first `count` scenes of both groups (and on their twins)."""

    def __init__(self, count: int, groups: Sequence[str] = DEFAULT_GROUPS):
        self.known, self.truths, self.calls = {}, {}, 0
        for group in groups:
            batch = draw_batch(group, 0, count)
            for scene, drawn in zip(batch.scenes, batch.drawn):
                self._learn(scene, drawn, batch.may_name)
                twin = twin_scene(scene)
                if twin is not None:
                    self._learn(twin[0], render(twin[0], SIZE), batch.may_name)

    def _learn(self, scene, drawn, held_out):
        self.known[drawn.image.tobytes()] = SimpleNamespace(scene=scene, drawn=drawn, held_out=held_out)

    def encode_image(self, image):
        self.calls += 1
        return SimpleNamespace(images=image)

    def look(self, image):
        return [self.known[np.asarray(one).tobytes()] for one in getattr(image, "images", image)]

    def segment(self, image, expression=None, region=None, task="referring", classes=None):
        masks, labels, text = [], [], []
        for row, seen in enumerate(self.look(image)):
            if classes is not None:
                named = [(item.shape, mask) for item, mask in zip(seen.scene.objects, seen.drawn.masks)]
                named = [(name, mask) for name, mask in named if name in classes[row]]
                if task == "semantic":
                    named = [(n, np.any([m for own, m in named if own == n], axis=0)) for n in dict(named)]
                labels.append([name for name, _ in named])
                masks.append(np.array([mask for _, mask in named], dtype=bool).reshape(-1, SIZE, SIZE))
                continue
            targets = [self.pointed(seen, region[row])] if region else self.meant(seen, expression[row])
            masks.append(seen.drawn.masks[list(targets)])
            text.append(self.explained(seen, expression[row]) if task == "reasoning" else "")
        ones = [[1.0] * len(mask) for mask in masks]
        presence = [float(len(mask) > 0) for mask in masks]
        return SimpleNamespace(masks=masks, scores=ones, qualities=ones, presence=presence, labels=labels, text=text)

    def explained(self, seen, text):
        rng = np.random.default_rng(0)
        told = next(one for one in reasoning_expressions(seen.scene, rng) if one.text == text)
        return f"{explanation(seen.scene, told)}: {seen.scene.objects[told.targets[0]].name}"

    def meant(self, seen, text):
        rng = np.random.default_rng(0)
        said = referring_expressions(seen.scene, rng, held_out=True)
        said += generalized_expressions(seen.scene, rng, held_out=True) + reasoning_expressions(seen.scene, rng)
        return next(referral.targets for referral in said if referral.text == text)

    def pointed(self, seen, region):
        raster = region.rasterize(SIZE, SIZE)

        def fit(mask):
            if isinstance(region, Box):
                rows, columns = np.nonzero(mask)
                mask = Box(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1).rasterize(SIZE, SIZE)
                return (mask & raster).sum() / (mask | raster).sum()
            return (mask & raster).sum() / raster.sum() + 0.1 * (mask & raster).sum() / (mask | raster).sum()

        return int(np.argmax([fit(mask) for mask in seen.drawn.masks]))

    def understand(self, image, question, region=None):
        answers = []
        for row, seen in enumerate(self.look(image)):
            if region is not None:
                answers.append(f"a {seen.scene.objects[self.pointed(seen, region[row])].name}")
                continue
            asked = [question_sample(seen.scene, kind, seen.held_out) for kind in QUESTION_KINDS]
            answers.append(next(q.answer for q in asked if q is not None and q.text == question[row]))
        return SimpleNamespace(text=answers)

    def edit(self, image, instruction, mask_image=None, generator=None, output_type="pil", **options):
        images, masks, free = [], [], []
        for row, seen in enumerate(self.look(image)):
            truth, target, support = self.redrawn(seen, instruction[row])
            if mask_image is not None:
                inside = dilate(np.asarray(mask_image[row]) > 127, 3)
                truth = np.where(inside[..., None], truth, seen.drawn.image)
            images.append(truth.astype(np.float32) / 255)
            masks.append(target[None])
            free.append(support)
        return SimpleNamespace(images=images, masks=masks, edit_masks=free)

    def redrawn(self, seen, instruction):
        """Picture, target and support of an edit; the ablation asks for each many times."""
        key = seen.scene.seed, seen.held_out, instruction
        if key not in self.truths:
            self.truths[key] = self._redrawn(seen, instruction)
        return self.truths[key]

    def _redrawn(self, seen, instruction):
        for task, kinds in (("edits", None), ("ablation", LOCAL_KINDS)):
            edit = edit_sample(seen.scene, seen.held_out, task, kinds)
            if edit.instruction == instruction:
                truth = edit_truth(seen.scene, edit, SIZE)
                return truth.truth, truth.target, truth.support
        # Both twins are meant, as far as words go.
        _, _, colour, shape, new = instruction.split()
        truth = seen.drawn.image.copy()
        for item, mask in zip(seen.scene.objects, seen.drawn.masks):
            if item.pair == (colour, shape):
                truth[mask] = COLOURS[new]
        return truth, seen.drawn.masks[-1], seen.drawn.masks[-1]


class Blind(Oracle):
    """Finds nothing, changes nothing, and answers every question with the most frequent answer of its kind."""

    def segment(self, image, expression=None, region=None, task="referring", classes=None):
        masks = [np.zeros((0, SIZE, SIZE), dtype=bool) for _ in self.look(image)]
        nothing = [[] for _ in masks]
        return SimpleNamespace(
            masks=masks,
            scores=nothing,
            qualities=nothing,
            presence=[0.0] * len(masks),
            labels=nothing,
            text=["the one: nothing"] * len(masks),
        )

    def understand(self, image, question, region=None):
        answers = []
        for row, seen in enumerate(self.look(image)):
            asked = {kind: question_sample(seen.scene, kind, seen.held_out) for kind in QUESTION_KINDS}
            kind = next(kind for kind, q in asked.items() if q is not None and q.text == question[row])
            answers.append(blind_answers()[kind])
        return SimpleNamespace(text=answers)

    def edit(self, image, instruction, preserve_background=True, **options):
        seen = self.look(image)
        images = [one.drawn.image.astype(np.float32) / 255 for one in seen]
        nothing = [np.zeros((SIZE, SIZE), dtype=bool) for _ in seen]
        return SimpleNamespace(images=images, masks=[mask[None] for mask in nothing], edit_masks=nothing)
