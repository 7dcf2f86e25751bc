"""What is measured on held-out scenes of the still-life world: referring, pointing, counting on nothing, questions.

Paper: FOCUS (arXiv 2506.16806), section 4.2 to 4.4 (referring, generalized, reasoning and interactive segmentation;
visual question answering), on the world of `data/world.py`. Editing is in `edits.py`.

A task asks the pipeline about a batch of scenes and keeps one record a sample; its figures are made from the records at
the end. Which samples a scene gives depends on the scene and the task alone (never on batch size, order or the other
tasks), so two runs and two models are compared on the same ones. In the group "held_out" every scene shows a colour and
shape pair that no training scene had, and samples are about such an object wherever the scene offers one.

The pipeline is any object with the calls of `FocusPipeline`: `encode_image`, `segment`, `understand`, `edit`.
"""

from __future__ import annotations

import contextlib
import functools
import zlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ..data.coco_masks import encode_rle
from ..data.language import (
    QUESTION_KINDS,
    Question,
    Referral,
    explanation,
    generalized_expressions,
    questions,
    reasoning_expressions,
    referring_expressions,
)
from ..data.regions_sampling import REGION_KINDS, region_prompt
from ..data.world import HELD_OUT_PAIRS, SHAPES, Rendered, Scene, first_held_out_seed, render, sample_scene
from ..processing.regions import Region
from ..steps.segment import EXPLANATION_END
from . import metrics
from .average_precision import Instance, mean_average_precision

SIZE = 128


@dataclass(frozen=True)
class Group:
    """Which scenes a group has: whether they show held-out pairs (`sample_scene`), how many objects (least and most; None draws 2
    to 5 as in training), and the side they are drawn at.
    """

    held_out: str = "exclude"
    objects: tuple[int, int] | None = None
    size: int = SIZE

    def scene(self, seed: int) -> Scene:
        """The scene of a seed; numbers of objects take turns."""
        count = None
        if self.objects is not None:
            least, most = self.objects
            count = least + seed % (most - least + 1)
        return sample_scene(seed, count, held_out=self.held_out, size=self.size)


GROUPS = {
    "in": Group(),
    "held_out": Group("require"),
    "crowded": Group(objects=(6, 8)),
    "192px": Group(size=192),
    "256px": Group(size=256),
}
DEFAULT_GROUPS = ("in", "held_out")
GENERALIZED_PER_SCENE = 2
_BLIND_SCENES = 500


@dataclass
class Batch:
    """Scenes of one group, drawn, and (once a task asks for it) what the pipeline saw in them."""

    group: str
    scenes: list[Scene]
    drawn: list[Rendered]
    _encoding: Any = field(default=None, repr=False)

    @property
    def may_name(self) -> bool:
        """Whether texts of this group may combine a held-out colour and shape."""
        return self.group == "held_out"

    def images(self, indices: Iterable[int]) -> list[Image.Image]:
        """The pictures of some scenes."""
        return [Image.fromarray(self.drawn[index].image) for index in indices]

    def source(self, pipe: Any, indices: Sequence[int]) -> Any:
        """What to hand the pipeline for these scenes: the shared encoding where it is all of them, else pictures."""
        if list(indices) != list(range(len(self.scenes))):
            return self.images(indices)
        if self._encoding is None:
            self._encoding = pipe.encode_image(self.images(indices))
        return self._encoding


def draw_batch(group: str, start: int, count: int, size: int | None = None) -> Batch:
    """Scenes `start` to `start + count` of a group; their seeds are from 1,000,000 up."""
    if group not in GROUPS:
        raise ValueError(f"Unknown group {group!r}; choose from {', '.join(GROUPS)}.")
    seeds = range(first_held_out_seed + start, first_held_out_seed + start + count)
    scenes = [GROUPS[group].scene(seed) for seed in seeds]
    return Batch(group, scenes, [render(scene, size or GROUPS[group].size) for scene in scenes])


def scene_rng(scene: Scene, task: str) -> np.random.Generator:
    """The random numbers of one task on one scene."""
    return np.random.default_rng((scene.seed, zlib.crc32(task.encode())))


def is_held_out(scene: Scene, targets: Iterable[int]) -> bool:
    """Whether one of these objects has a held-out colour and shape pair."""
    return any(scene.objects[index].pair in HELD_OUT_PAIRS for index in targets)


def _prefer(candidates: list, wanted: Callable[[Any], bool], active: bool) -> list:
    """The wanted candidates where there are any and the group asks for them, else all."""
    chosen = [candidate for candidate in candidates if wanted(candidate)] if active else []
    return chosen or candidates


def union_mask(masks: Any, size: int) -> np.ndarray:
    """All objects of one image together: bool [size, size] from masks [objects, size, size]; none give an empty one."""
    masks = np.asarray(masks.detach().cpu() if hasattr(masks, "detach") else masks)
    if masks.size == 0:
        return np.zeros((size, size), dtype=bool)
    return masks.astype(bool).reshape(-1, *masks.shape[-2:]).any(axis=0)


def kinds_of(records: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Records by their kind, in alphabetical order."""
    return {kind: [r for r in records if r["kind"] == kind] for kind in sorted({r["kind"] for r in records})}


def figure(records: Sequence[dict[str, Any]], key: str, below: str | None = None) -> dict[str, float | int]:
    """The mean of `key` over the records (or the ratio of the sums of `key` and `below`), with its interval."""
    clusters: list[Hashable] = [record["scene"] for record in records]
    bottom = None if below is None else [record[below] for record in records]
    return metrics.ratio([record[key] for record in records], bottom, clusters).as_dict()


# --- samples --------------------------------------------------------------------------------------------------------


def referring_sample(scene: Scene, held_out: bool = False) -> Referral | None:
    """The expression this scene is asked about, evenly over the kinds it allows; None where it has none."""
    rng = scene_rng(scene, "referring")
    everything = referring_expressions(scene, rng, held_out=held_out)
    everything = _prefer(everything, lambda item: is_held_out(scene, item.targets), held_out)
    by_kind: dict[str, list[Referral]] = {}
    for referral in everything:
        by_kind.setdefault(referral.kind, []).append(referral)
    if not by_kind:
        return None
    chosen = by_kind[sorted(by_kind)[int(rng.integers(len(by_kind)))]]
    return chosen[int(rng.integers(len(chosen)))]


def region_sample(scene: Scene, masks: np.ndarray, kind: str, held_out: bool = False) -> tuple[Region, int]:
    """A region prompt of a kind and the object it points at; all kinds of one scene point at the same object."""
    pick = scene_rng(scene, "pointing")
    targets = _prefer(list(range(len(scene.objects))), lambda index: is_held_out(scene, [index]), held_out)
    target = targets[int(pick.integers(len(targets)))]
    return region_prompt(masks[target], kind, scene_rng(scene, kind)), target


def class_sample(scene: Scene) -> tuple[list[str], list[str]]:
    """The names a scene is asked for, half of all shapes with about half of its own among them, and the name of each object."""
    rng = scene_rng(scene, "classes")
    labels = [item.shape for item in scene.objects]
    own, others = rng.permutation(sorted(set(labels))).tolist(), [name for name in SHAPES if name not in labels]
    names = own[: int(rng.integers(len(own) + 1))]
    names += rng.permutation(others).tolist()[: len(SHAPES) // 2 - len(names)]
    return rng.permutation(names).tolist(), labels


def question_sample(scene: Scene, kind: str, held_out: bool = False) -> Question | None:
    """The question of a kind this scene is asked; None where it allows none."""
    rng = scene_rng(scene, f"question {kind}")
    found = questions(scene, rng, 6 if kind == "region" else 1, [kind], held_out)
    found = _prefer(found, lambda item: item.target is not None and is_held_out(scene, [item.target]), held_out)
    return found[0] if found else None


@functools.lru_cache(maxsize=1)
def blind_answers(scenes: int = _BLIND_SCENES) -> dict[str, str]:
    """The most frequent answer of every question kind, counted over training scenes (seeds from 0 up)."""
    answers: dict[str, list[str]] = {kind: [] for kind in QUESTION_KINDS}
    for seed in range(scenes):
        scene = sample_scene(seed)
        for kind in QUESTION_KINDS:
            question = question_sample(scene, kind)
            if question is not None:
                answers[kind].append(question.answer)
    return {kind: metrics.most_frequent(found) for kind, found in answers.items()}


# --- tasks ----------------------------------------------------------------------------------------------------------


class SegmentTask:
    """Expressions that mean one object ("referring", "reasoning") or any number of objects ("generalized")."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.records: list[dict[str, Any]] = []

    def samples(self, scene: Scene, held_out: bool) -> list[Referral]:
        """The expressions this scene is asked about."""
        rng = scene_rng(scene, self.name)
        if self.name == "generalized":
            return generalized_expressions(scene, rng, GENERALIZED_PER_SCENE, held_out)
        if self.name == "reasoning":
            found = reasoning_expressions(scene, rng)
            found = _prefer(found, lambda item: is_held_out(scene, item.targets), held_out)
            return [found[int(rng.integers(len(found)))]] if found else []
        found = referring_sample(scene, held_out)
        return [] if found is None else [found]

    def run(self, pipe: Any, batch: Batch) -> None:
        """Ask the pipeline about every scene of the batch."""
        asked = [self.samples(scene, batch.may_name) for scene in batch.scenes]
        for turn in range(max(map(len, asked))):
            indices = [index for index, referrals in enumerate(asked) if len(referrals) > turn]
            referrals = [asked[index][turn] for index in indices]
            reasons = self.name == "reasoning"
            options = {"task": "reasoning"} if reasons else {}
            out = pipe.segment(batch.source(pipe, indices), [referral.text for referral in referrals], **options)
            for row, (index, referral) in enumerate(zip(indices, referrals)):
                truth = np.asarray(batch.drawn[index].masks[list(referral.targets)].any(axis=0))
                told = {"told": _is_told(out.text[row], batch.scenes[index], referral)} if reasons else {}
                self.records.append(
                    {
                        "scene": batch.scenes[index].seed,
                        "kind": referral.kind,
                        **told,
                        "score": max((float(score) for score in out.scores[row]), default=0.0),
                        "presence": float(out.presence[row]),
                        "qualities": [float(quality) for quality in out.qualities[row]],
                        "shown": _shown(out.masks[row], batch.drawn[index].masks),
                        **_compare(union_mask(out.masks[row], truth.shape[0]), truth),
                    }
                )

    def figures(self) -> dict[str, Any]:
        """mIoU (or gIoU, N-acc, T-acc), cIoU, P@0.5 and the calibration of the score; per kind of expression.

        Of indirect expressions also "told", the share of answers that explain themselves rightly before they name the object.
        """
        records = self.records
        if self.name == "generalized":
            absent, present = [r for r in records if r["no_target"]], [r for r in records if not r["no_target"]]
            found = {"gIoU": figure(records, "iou")}
            if any(record["union"] for record in records):
                found["cIoU"] = figure(records, "intersection", "union")
            if absent:
                found["N-acc"] = figure(absent, "said_empty")
            if present:
                found["T-acc"] = figure(present, "said_something")
            found["presence_error"] = calibration(
                [{**r, "there": not r["no_target"]} for r in records], "presence", "there"
            )
            return found
        found = {**_mask_figures(records), **_calibration_figures(records)}
        if self.name == "reasoning":
            found["told"] = figure(records, "told")
        if self.name == "referring":
            found["kinds"] = {kind: _mask_figures(chosen) for kind, chosen in kinds_of(records).items()}
        return found


class RegionTask:
    """Interactive segmentation with one kind of region prompt, beside the prompt itself taken as the answer."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.records: list[dict[str, Any]] = []

    def run(self, pipe: Any, batch: Batch) -> None:
        """Point at one object of every scene of the batch."""
        indices = range(len(batch.scenes))
        pointed = [region_sample(batch.scenes[i], batch.drawn[i].masks, self.name, batch.may_name) for i in indices]
        out = pipe.segment(batch.source(pipe, indices), region=[region for region, _ in pointed])
        for index, (region, target) in enumerate(pointed):
            truth = batch.drawn[index].masks[target]
            echo = _compare(region.rasterize(*truth.shape), truth)
            self.records.append(
                {
                    "scene": batch.scenes[index].seed,
                    "kind": self.name,
                    "score": max((float(score) for score in out.scores[index]), default=0.0),
                    "qualities": [float(quality) for quality in out.qualities[index]],
                    "shown": _shown(out.masks[index], batch.drawn[index].masks),
                    **_compare(union_mask(out.masks[index], truth.shape[0]), truth),
                    **{f"echo_{key}": value for key, value in echo.items()},
                }
            )

    def figures(self) -> dict[str, Any]:
        """mIoU, cIoU, P@0.5 and calibration, and the same of the echo."""
        return {
            **_mask_figures(self.records),
            **_calibration_figures(self.records),
            "echo_mIoU": figure(self.records, "echo_iou"),
            "echo_P@0.5": figure(self.records, "echo_hit"),
        }


class ClassTask:
    """Lists of shapes to look for: instances, and one mask for each name."""

    def __init__(self, name: str = "classes") -> None:
        self.name = name
        self.records: list[dict[str, Any]] = []
        # Run lengths, name and score (of truths none) of each instance, scene by scene.
        self.instances: dict[str, list[list[list[Any]]]] = {"found": [], "true": []}

    def run(self, pipe: Any, batch: Batch) -> None:
        """Look for some names in every scene of the batch."""
        indices = range(len(batch.scenes))
        asked = [class_sample(scene) for scene in batch.scenes]
        source = batch.source(pipe, indices)
        names = [names for names, _ in asked]
        instances = pipe.segment(source, classes=names)
        maps = pipe.segment(source, classes=names, task="semantic")
        for index, (wanted, labels) in enumerate(asked):
            truths = [(mask, name) for mask, name in zip(batch.drawn[index].masks, labels) if name in wanted]
            pairs = _matched(instances.masks[index], instances.labels[index], truths)
            found = zip(instances.masks[index], instances.labels[index], instances.scores[index], strict=True)
            self.instances["found"].append([[encode_rle(mask), name, float(score)] for mask, name, score in found])
            self.instances["true"].append([[encode_rle(mask), name] for mask, name in truths])
            pixels = dict(zip(maps.labels[index], maps.masks[index]))
            nothing = np.zeros(batch.drawn[index].masks.shape[-2:], dtype=bool)
            for name in wanted:
                truth = np.logical_or.reduce([nothing, *(mask for mask, own in truths if own == name)])
                found = pixels.get(name, nothing)
                self.records.append({"scene": batch.scenes[index].seed, "kind": "semantic", **_compare(found, truth)})
            # Of each match at least half of the union, so a mask matches one object at most.
            matched = [value for value in pairs if value >= 0.5]
            missed, wrong = len(truths) - len(matched), len(pairs) - len(matched)
            self.records.append(
                {
                    "scene": batch.scenes[index].seed,
                    "kind": "instance",
                    "matched_iou": sum(matched),
                    "quality_base": len(matched) + 0.5 * (missed + wrong),
                }
            )

    def figures(self) -> dict[str, Any]:
        """PQ (panoptic quality: IoU of matched instances over matches and half of all misses), mIoU of the names' maps, and COCO's
        AP50 and mAP of instances where pycocotools is installed (extra `eval`).
        """
        kinds = kinds_of(self.records)
        found = {"mIoU": figure(kinds["semantic"], "iou")}
        if any(record["quality_base"] for record in kinds["instance"]):
            found["PQ"] = figure(kinds["instance"], "matched_iou", "quality_base")
        with contextlib.suppress(ImportError):
            instances = {
                name: [[Instance(*one) for one in row] for row in rows] for name, rows in self.instances.items()
            }
            precision = mean_average_precision(instances["found"], instances["true"])
            count = sum(map(len, instances["true"]))
            for name in ("AP50", "mAP"):
                value = precision[name]
                if value is not None:
                    found[name] = {"value": round(value, 6), "count": count}
        return found


class QuestionTask:
    """Questions with one right answer, beside the most frequent answer of their kind in training."""

    options: dict[str, Any] = {}  # further arguments of `understand`

    def __init__(self, name: str = "questions") -> None:
        self.name = name
        self.records: list[dict[str, Any]] = []

    def run(self, pipe: Any, batch: Batch) -> None:
        """Ask every scene of the batch one question of every kind it allows."""
        for kind in QUESTION_KINDS:
            asked = [(i, question_sample(scene, kind, batch.may_name)) for i, scene in enumerate(batch.scenes)]
            asked = [(index, question) for index, question in asked if question is not None]
            if not asked:
                continue
            indices = [index for index, _ in asked]
            options = dict(self.options)
            if kind == "region":
                regions = []
                for index, question in asked:
                    rng = scene_rng(batch.scenes[index], "question region prompt")
                    how = REGION_KINDS[batch.scenes[index].seed % len(REGION_KINDS)]
                    regions.append(region_prompt(batch.drawn[index].masks[question.target], how, rng))
                options["region"] = regions
            texts = [question.text for _, question in asked]
            answers = pipe.understand(batch.source(pipe, indices), texts, **options).text
            for (index, question), answer in zip(asked, answers, strict=True):
                self.records.append(
                    {
                        "scene": batch.scenes[index].seed,
                        "kind": kind,
                        "right": metrics.same_answer(answer, question.answer),
                        "blind": metrics.same_answer(blind_answers()[kind], question.answer),
                    }
                )

    def figures(self) -> dict[str, Any]:
        """Exact match and blind baseline over all questions and per kind."""
        return {
            **_answer_figures(self.records),
            "kinds": {
                kind: {**_answer_figures(chosen), "blind_answer": blind_answers()[kind]}
                for kind, chosen in kinds_of(self.records).items()
            },
        }


class PlainQuestionTask(QuestionTask):
    """The same questions, captions left to the language model where a pipeline would ask about each object (`caption_classes`)."""

    options = {"caption_classes": []}


def _is_told(text: str, scene: Scene, referral: Referral) -> bool:
    """Whether a right explanation stands before the names."""
    told, end, _ = text.rpartition(EXPLANATION_END)
    return bool(end) and metrics.same_answer(told, explanation(scene, referral))


def _matched(masks: Any, labels: Sequence[str], truths: Sequence[tuple[np.ndarray, str]]) -> list[float]:
    """For each mask its IoU with an object of its name that no better mask has taken, 0 without."""
    free, values = list(truths), []
    for mask, label in zip(masks, labels, strict=True):
        overlaps = [metrics.iou(mask, truth) if name == label else 0.0 for truth, name in free]
        best = int(np.argmax(overlaps)) if overlaps else -1
        values.append(overlaps[best] if overlaps else 0.0)
        if values[-1] >= 0.5:
            free.pop(best)
    return values


def _compare(predicted: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    value, intersection, union = metrics.generalized_overlap(predicted, truth)
    return {
        "iou": value,
        "hit": value >= 0.5,
        "intersection": intersection,
        "union": union,
        "no_target": not truth.any(),
        "said_empty": not predicted.any(),
        "said_something": bool(predicted.any()),
    }


def _mask_figures(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "mIoU": figure(records, "iou"),
        "cIoU": figure(records, "intersection", "union"),
        "P@0.5": figure(records, "hit"),
    }


def _shown(masks: Any, objects: np.ndarray) -> list[float]:
    """For each mask its IoU with the object it shows, meant or not."""
    return [max(metrics.iou(mask, one) for one in objects) for mask in np.asarray(masks)]


def calibration(records: Sequence[dict[str, Any]], stated: str = "score", held: str = "hit") -> dict[str, float | int]:
    """How far what is `stated` is from what `held`: masks' scores from the share of masks with IoU >= 0.5."""
    error = metrics.expected_calibration_error([r[stated] for r in records], [r[held] for r in records])
    return {"value": round(error, 6), "count": len(records)}


def _calibration_figures(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The error of scores, and that of qualities against the IoU with the object shown."""
    pairs = [
        {"quality": quality, "iou": shown}
        for record in records
        for quality, shown in zip(record["qualities"], record["shown"], strict=True)
    ]
    found = {"calibration_error": calibration(records)}
    return {**found, "quality_error": calibration(pairs, "quality", "iou")} if pairs else found


def _answer_figures(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"exact_match": figure(records, "right"), "blind": figure(records, "blind")}
