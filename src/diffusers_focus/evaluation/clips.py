"""Following objects through clips of the still-life world: from regions, from words, and by the names of classes.

Paper: FOCUS (arXiv 2506.16806), DAVIS17, Ref-DAVIS17, Ref-Youtube-VOS, ReVOS and YT-VIS, on the clips of `data/clips.py`. J and F
of an object are means over the frames (davis2017-evaluation; an object that is out of the picture counts, and is right where
nothing is found), figures means over objects, J&F the mean of both. The baselines look at no other frame: the mask of the first
frame all along ("echo"), and the same words asked of every frame by itself ("independent").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.clips import Clip, ClipSpec, clip_expressions, sample_clip
from ..data.language import Referral
from ..data.regions_sampling import REGION_KINDS, region_prompt
from ..data.world import SHAPES
from ..processing.regions import Mask
from . import metrics
from .tasks import GROUPS, Batch, figure, is_held_out, kinds_of, scene_rng

SPEC = ClipSpec(frames=12, speed=(0.015, 0.05), leaving=0.5)
LEAST_SHOWN = 0.6  # of its pixels in the first frame: an object that is pointed at


class ClipTask:
    """One clip a scene of the batch, with its seed, in four ways: "regions" (all objects, pointed at on one frame, any of them),
    "words" (one expression), "classes" (all shapes by their names), and "links" (which object of the last frame is which of the
    first, by the instance embeddings alone).
    """

    def __init__(self, name: str = "clips", spec: ClipSpec = SPEC) -> None:
        self.name, self.spec = name, spec
        self.regions: list[dict[str, Any]] = []
        self.words: list[dict[str, Any]] = []
        self.classes: list[dict[str, Any]] = []
        self.links: list[dict[str, Any]] = []

    @property
    def records(self) -> list[dict[str, Any]]:
        """Of all four ways."""
        return [*self.regions, *self.words, *self.classes, *self.links]

    def run(self, pipe: Any, batch: Batch) -> None:
        """Follow the objects of the clip of every scene."""
        for scene, drawn in zip(batch.scenes, batch.drawn):
            spec = ClipSpec(**{**vars(self.spec), "held_out": GROUPS[batch.group].held_out})
            clip, size = sample_clip(scene.seed, spec), drawn.image.shape[0]
            rendered = list(clip.renders(size))
            frames = [one.image for one in rendered]
            truth = np.stack([one.masks for one in rendered], axis=1)
            self._regions(pipe, clip, frames, truth)
            self._words(pipe, clip, frames, truth, batch.may_name)
            self._classes(pipe, clip, frames, truth)
            self._links(pipe, clip, frames, truth)

    def _regions(self, pipe: Any, clip: Clip, frames: list[np.ndarray], truth: np.ndarray) -> None:
        rng = scene_rng(clip.scene, self.name)
        whole = truth[:, 0].sum(axis=(1, 2))
        start = int(rng.integers(len(frames)))
        chosen = [i for i in range(len(truth)) if truth[i, start].sum() >= LEAST_SHOWN * whole[i]]
        if not chosen:
            return
        kinds = [REGION_KINDS[(clip.seed + i) % len(REGION_KINDS)] for i in chosen]
        pointed = [region_prompt(truth[i, start], kind, rng) for i, kind in zip(chosen, kinds)]
        out = pipe.segment_clip(frames, region={start: pointed})
        for place, (i, kind) in enumerate(zip(chosen, kinds)):
            others = [t for t in range(len(frames)) if t != start]
            echo = np.repeat(truth[i, start][None], len(frames), axis=0)
            self.regions.append(
                {
                    "scene": clip.seed,
                    "kind": kind,
                    **_compare(out.masks[place], truth[i], others),
                    **{f"echo_{key}": value for key, value in _compare(echo, truth[i], others).items()},
                }
            )

    def _words(self, pipe: Any, clip: Clip, frames: list[np.ndarray], truth: np.ndarray, held_out: bool) -> None:
        referral = words_sample(clip, held_out)
        if referral is None:
            return
        options = {"task": "reasoning"} if referral.kind == "reasoning" else {}
        out = pipe.segment_clip(frames, referral.text, **options)
        alone = pipe.segment(frames, referral.text, **options)
        independent = np.stack([np.asarray(masks).any(axis=0) for masks in alone.masks])
        (target,) = referral.targets
        everything = range(len(frames))
        echo = np.repeat(independent[:1], len(frames), axis=0)
        self.words.append(
            {
                "scene": clip.seed,
                "kind": referral.kind,
                **_compare(out.masks[0], truth[target], everything),
                **{f"echo_{k}": v for k, v in _compare(echo, truth[target], everything).items()},
                **{f"independent_{k}": v for k, v in _compare(independent, truth[target], everything).items()},
            }
        )

    def _classes(self, pipe: Any, clip: Clip, frames: list[np.ndarray], truth: np.ndarray) -> None:
        out = pipe.segment_clip(frames, classes=list(SHAPES))
        linked = link_objects(out.masks, truth)
        for i, item in enumerate(clip.scene.objects):
            track = linked.get(i)
            found = np.zeros_like(truth[i]) if track is None else out.masks[track]
            self.classes.append(
                {
                    "scene": clip.seed,
                    "kind": item.shape,
                    "volume": volume_iou(found, truth[i]),
                    "named": track is not None and out.labels[track] == item.shape,
                    "kept": kept_identity(out.masks, truth[i]),
                    "tracks": len(out.masks) / len(clip.scene.objects),
                }
            )

    def _links(self, pipe: Any, clip: Clip, frames: list[np.ndarray], truth: np.ndarray) -> None:
        whole = truth[:, 0].sum(axis=(1, 2))
        both = [i for i in range(len(truth)) if truth[i, -1].sum() >= LEAST_SHOWN * whole[i]]
        if len(both) < 2:
            return
        vectors, centres = [], []
        for t in (0, len(frames) - 1):
            out = pipe.segment(frames[t], region=[Mask(truth[i, t]) for i in both])
            if not all(map(len, out.instance_embeds)):
                return
            rows = np.stack([embeds[0] for embeds in out.instance_embeds])
            vectors.append(rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-9))
            centres.append(np.stack([np.argwhere(truth[i, t]).mean(axis=0) for i in both]))
        likeness = vectors[1] @ vectors[0].T
        distance = np.linalg.norm(centres[1][:, None] - centres[0][None], axis=-1)
        for place, index in enumerate(both):
            self.links.append(
                {
                    "scene": clip.seed,
                    "kind": clip.scene.objects[index].shape,
                    "right": int(likeness[place].argmax()) == place,
                    "nearest": int(distance[place].argmin()) == place,
                    "chance": 1 / len(both),
                }
            )

    def figures(self) -> dict[str, Any]:
        """J&F, J and F beside the baselines; of classes the IoU of whole tracks, how many are named right, and how well identities
        are kept.
        """
        found: dict[str, Any] = {}
        if self.regions:
            found["regions"] = {name: figure(self.regions, name) for name in ("J&F", "J", "F", "echo_J&F")}
            found["regions"]["kinds"] = _kinds(self.regions)
        if self.words:
            names = ("J&F", "J", "F", "independent_J&F", "echo_J&F")
            found["words"] = {name: figure(self.words, name) for name in names}
            found["words"]["kinds"] = _kinds(self.words)
        if self.classes:
            names = {"volume_IoU": "volume", "named": "named", "identity_kept": "kept", "tracks_an_object": "tracks"}
            rows = {name: [row for row in self.classes if row[key] is not None] for name, key in names.items()}
            found["classes"] = {name: figure(rows[name], key) for name, key in names.items() if rows[name]}
        if self.links:
            names = {"linked": "right", "linked_by_place": "nearest", "linked_by_chance": "chance"}
            found["links"] = {name: figure(self.links, key) for name, key in names.items()}
        return found


def _kinds(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {kind: {"J&F": figure(chosen, "J&F")} for kind, chosen in kinds_of(records).items()}


def words_sample(clip: Clip, held_out: bool = False) -> Referral | None:
    """The expression a clip is asked about, evenly over the kinds it allows; about a held-out pair where the group asks for it."""
    rng = scene_rng(clip.scene, "clip words")
    everything = clip_expressions(clip, rng, held_out)
    preferred = [one for one in everything if held_out and is_held_out(clip.scene, one.targets)]
    kinds: dict[str, list[Referral]] = {}
    for one in preferred or everything:
        kinds.setdefault(one.kind, []).append(one)
    if not kinds:
        return None
    chosen = kinds[sorted(kinds)[int(rng.integers(len(kinds)))]]
    return chosen[int(rng.integers(len(chosen)))]


def _compare(predicted: np.ndarray, truth: np.ndarray, frames: Sequence[int]) -> dict[str, float]:
    """J, F and J&F of one object, bool [T, H, W], over these frames."""
    j = float(np.mean([metrics.iou(predicted[t], truth[t]) for t in frames]))
    f = float(np.mean([metrics.boundary_f(predicted[t], truth[t]) for t in frames]))
    return {"J&F": (j + f) / 2, "J": j, "F": f}


def volume_iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    """IoU of two objects over all their frames together (YouTube-VIS): bool [T, H, W] each; 1 where both are empty."""
    union = (predicted | truth).sum()
    return float((predicted & truth).sum() / union) if union else 1.0


def link_objects(predicted: np.ndarray, truth: np.ndarray) -> dict[int, int]:
    """True object -> found object, one to one, from the largest IoU of their volumes down; bool [objects, T, H, W] each."""
    table = np.asarray([[volume_iou(p, t) for p in predicted] for t in truth]).reshape(len(truth), len(predicted))
    linked: dict[int, int] = {}
    for place in np.argsort(-table, axis=None, kind="stable"):
        i, j = (int(v) for v in np.unravel_index(place, table.shape))
        if table[i, j] > 0 and i not in linked and j not in linked.values():
            linked[i] = j
    return linked


def kept_identity(predicted: np.ndarray, truth: np.ndarray) -> float | None:
    """Of the frames in which an object is found at all (IoU at least 0.5), the share in which it has its commonest identity; None
    where it is never found. `predicted` bool [objects, T, H, W], `truth` bool [T, H, W].
    """
    carried: list[int] = []
    for t in range(len(truth)):
        if truth[t].any() and len(predicted):
            values = [metrics.iou(one[t], truth[t]) for one in predicted]
            if max(values) >= 0.5:
                carried.append(int(np.argmax(values)))
    return max(carried.count(number) for number in set(carried)) / len(carried) if carried else None
