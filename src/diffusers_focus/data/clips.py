"""Clips of the still-life world: the objects of a scene on straight or curved paths, with masks and identities a frame.

Paper: FOCUS (arXiv 2506.16806), video segmentation (there DAVIS-2017, Ref-YouTube-VOS, ReVOS, YouTube-VIS), at the size of
`focus-tiny`. Frame 0 of a clip is the scene of its seed, so every object begins at least 60% visible; afterwards objects may
hide each other, leave the picture and come back. Where an object is follows from the number of the frame alone, so a clip may
be of any length and its frames may be drawn in any order. Frames differ in noise, not in background. An object keeps its index
in `masks` (and its number, the index plus one, in DAVIS's maps) through the whole clip. The design is this project's own.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..processing.index_maps import index_map_of, save_index_map
from ..sharing.files import replace_file, replace_text
from .edits import Edit
from .folders import SAMPLES_FILE, write_records
from .language import Referral, reasoning_expressions, referring_expressions
from .world import Rendered, Scene, WorldObject, render, sample_scene, with_twin

STEADY_KINDS = ("shape", "colour", "colour_shape", "size", "striped", "largest")
"""Kinds of expression that mean the same object in every frame: what an object is, not where."""

_CLIP_STREAM = 2  # of the seed's random numbers; scenes and noise have 0 and 1
_FRAME_SEEDS = (
    2**32
)  # the noise of frame t is that of seed + t * this: none of another clip's, and frame 0 is the scene
_TRIES = 60


@dataclass(frozen=True)
class ClipSpec:
    """What a clip is like; with a seed it decides everything.

    Args:
        frames: length.
        num_objects: 1 to 8 (a twin comes on top); None draws 2 to 5.
        held_out: as in `sample_scene`.
        speed: smallest and largest speed of an object, in fractions of the image side a frame.
        curved: chance of an object to go along an ellipse; else it goes straight and turns at the edge of its range.
        leaving: chance that the path of an object leads out of the picture and back.
        twin: chance that one object has an identical twin, which only its place tells apart.

    Raises:
        ValueError: no frames, a speed below 0 or in the wrong order, or a chance outside 0..1.
    """

    frames: int = 8
    num_objects: int | None = None
    held_out: str = "exclude"
    speed: tuple[float, float] = (0.01, 0.04)
    curved: float = 0.5
    leaving: float = 0.3
    twin: float = 0.0

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"A clip of {self.frames} frames cannot be drawn; give at least 1.")
        if not 0 <= self.speed[0] <= self.speed[1]:
            raise ValueError(f"speed is {self.speed}; give the smallest and the largest, from 0 up.")
        for name in ("curved", "leaving", "twin"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a chance from 0 to 1.")


@dataclass(frozen=True)
class Straight:
    """There and back: `start` plus `step` a frame, thrown back at `low` and `high` (x, y each, in fractions of the side)."""

    start: tuple[float, float]
    step: tuple[float, float]
    low: tuple[float, float]
    high: tuple[float, float]

    def at(self, frame: int) -> tuple[float, float]:
        """The centre (cx, cy) in a frame."""
        x, y = (_fold(s + d * frame, a, b) for s, d, a, b in zip(self.start, self.step, self.low, self.high))
        return x, y


@dataclass(frozen=True)
class Curved:
    """Around an ellipse: `middle` plus (`radii` x cos, y sin) of `phase` plus `turn` (radians) a frame."""

    middle: tuple[float, float]
    radii: tuple[float, float]
    phase: float
    turn: float

    def at(self, frame: int) -> tuple[float, float]:
        """The centre (cx, cy) in a frame."""
        angle = self.phase + self.turn * frame
        return self.middle[0] + self.radii[0] * math.cos(angle), self.middle[1] + self.radii[1] * math.sin(angle)


@dataclass(frozen=True)
class Clip:
    """A clip: its first frame as a scene, and the path of every object."""

    seed: int
    spec: ClipSpec
    scene: Scene
    paths: tuple[Straight | Curved, ...]

    def __len__(self) -> int:
        return self.spec.frames

    def frame(self, index: int) -> Scene:
        """The scene of a frame; an object may lie outside of it. Raises IndexError where the clip has no such frame."""
        if not 0 <= index < len(self):
            raise IndexError(f"The clip has the frames 0 to {len(self) - 1}, not {index}.")
        if index == 0:
            return self.scene
        places = [path.at(index) for path in self.paths]
        objects = tuple(replace(item, cx=x, cy=y) for item, (x, y) in zip(self.scene.objects, places))
        return replace(self.scene, seed=self.scene.seed + index * _FRAME_SEEDS, objects=objects)

    def render(self, index: int, size: int = 128) -> Rendered:
        """A frame drawn: image uint8 `[size, size, 3]`, masks bool `[n, size, size]`, empty where an object cannot be seen."""
        return render(self.frame(index), size)

    def renders(self, size: int = 128) -> Iterator[Rendered]:
        """All frames in their order, one at a time."""
        return (self.render(index, size) for index in range(len(self)))


def sample_clip(seed: int, spec: ClipSpec | None = None, *, size: int = 128) -> Clip:
    """A random clip, the same for the same arguments.

    Args:
        seed: as of `sample_scene`: below `first_held_out_seed` for training, from there up for evaluation.
        spec: what the clip is like.
        size: the image side at which at least 60% of every object is made sure to be visible in frame 0.
    """
    spec = spec or ClipSpec()
    scene = sample_scene(seed, spec.num_objects, spec.held_out, size=size)
    rng = np.random.default_rng((seed, _CLIP_STREAM))
    if rng.random() < spec.twin:
        scene = with_twin(scene, int(rng.integers(len(scene.objects))), rng, size=size) or scene
    return Clip(seed, spec, scene, tuple(_sample_path(rng, item, spec) for item in scene.objects))


def clip_expressions(clip: Clip, rng: np.random.Generator, held_out: bool = False) -> list[Referral]:
    """Expressions that mean the same single object in every frame, indirect ones (kind "reasoning") among them."""
    referrals = [
        *referring_expressions(clip.scene, rng, held_out=held_out),
        *reasoning_expressions(clip.scene, rng),
    ]
    return [referral for referral in referrals if referral.kind in (*STEADY_KINDS, "reasoning")]


def edit_of_frame(clip: Clip, edit: Edit, index: int) -> Edit:
    """An edit of the clip's first frame as it is in another one: the same change of the same object, wherever that is by then."""
    frame = clip.frame(index)
    if edit.edit_kind == "background":
        return replace(edit, result=replace(frame, background=edit.result.background))
    (target,) = edit.targets
    changed = []
    if edit.edit_kind != "remove":
        changed = [replace(edit.result.objects[target], cx=frame.objects[target].cx, cy=frame.objects[target].cy)]
    objects = (*frame.objects[:target], *changed, *frame.objects[target + 1 :])
    return replace(edit, result=replace(frame, objects=objects))


# --- paths ----------------------------------------------------------------------------------------------------------


def _fold(value: float, low: float, high: float) -> float:
    """A value that runs on, thrown back at both ends of low..high."""
    if high <= low:
        return low
    along = (value - low) % (2 * (high - low))
    return low + min(along, 2 * (high - low) - along)


def _sample_path(rng: np.random.Generator, item: WorldObject, spec: ClipSpec) -> Straight | Curved:
    speed = float(rng.uniform(*spec.speed))
    leaves = rng.random() < spec.leaving
    if rng.random() < spec.curved:
        path = _sample_curve(rng, item, speed, leaves)
        if path is not None:
            return path
    angle = float(rng.uniform(0, 2 * math.pi))
    step = (speed * math.cos(angle), speed * math.sin(angle))
    low, high = [item.r, item.r], [1 - item.r, 1 - item.r]
    if leaves:  # across the edge it is heading for: 0.05 beyond the place where its last pixel is out
        axis = int(abs(step[1]) > abs(step[0]))
        low[axis], high[axis] = -item.r - 0.05, 1 + item.r + 0.05
    return Straight((item.cx, item.cy), step, (low[0], low[1]), (high[0], high[1]))


def _sample_curve(rng: np.random.Generator, item: WorldObject, speed: float, leaves: bool) -> Curved | None:
    """An ellipse through the object's place that stays inside, or leads out; None where none was found."""
    for _ in range(_TRIES):
        rx, ry = (float(r) for r in rng.uniform(0.05, 0.6 if leaves else 0.3, size=2))
        phase = float(rng.uniform(0, 2 * math.pi))
        mx, my = item.cx - rx * math.cos(phase), item.cy - ry * math.sin(phase)
        ends = (mx - rx, my - ry, 1 - mx - rx, 1 - my - ry)  # room between the farthest centre and each edge
        if min(ends) < -item.r - 0.02 if leaves else min(ends) >= item.r:
            turn = speed / max(rx, ry) * (1 if rng.random() < 0.5 else -1)
            return Curved((mx, my), (rx, ry), phase, turn)
    return None


# --- files ----------------------------------------------------------------------------------------------------------


def write_clip(root: str | os.PathLike, clip: Clip, size: int = 128, split: str = "val") -> Path:
    """Write a clip in the layout of DAVIS 2017, frame by frame, and a record of it.

    `JPEGImages/480p/<seed>/00000.png`, `Annotations/480p/<seed>/00000.png` (palette pictures of object numbers),
    `ImageSets/2017/<split>.txt` (the clip's name is added), `<seed>.json` (scene, paths, names, expressions) and
    `samples.jsonl` (one sample for each expression, see `samples.py`).

    Returns:
        The folder of the frames.
    """
    root, name = Path(root), str(clip.seed)
    frames, maps = root / "JPEGImages" / "480p" / name, root / "Annotations" / "480p" / name
    listing = root / "ImageSets" / "2017" / f"{split}.txt"
    for folder in (frames, maps, listing.parent):
        folder.mkdir(parents=True, exist_ok=True)
    for index, drawn in enumerate(clip.renders(size)):
        file = f"{index:05d}.png"
        replace_file(frames / file, lambda path, image=drawn.image: Image.fromarray(image).save(path, format="PNG"))
        save_index_map(maps / file, index_map_of(drawn.masks))
    referrals = clip_expressions(clip, np.random.default_rng(clip.seed), clip.spec.held_out != "exclude")
    truth = {
        "spec": asdict(clip.spec),
        "scene": asdict(clip.scene),
        "paths": [{"kind": type(path).__name__.lower(), **asdict(path)} for path in clip.paths],
        "names": [item.name for item in clip.scene.objects],
        "expressions": [asdict(referral) for referral in referrals],
    }
    text = json.dumps(truth, indent=2) + "\n"
    replace_text(root / f"{name}.json", text)
    _add_lines(root, name, listing, [_record(root, frames, maps, clip, referral) for referral in referrals])
    return frames


def _record(root: Path, frames: Path, maps: Path, clip: Clip, referral: Referral) -> dict:
    files = [f"{index:05d}.png" for index in range(len(clip))]
    (target,) = referral.targets
    number = {"index": target + 1}
    return {
        "task": "clip",
        "key": f"{clip.seed}/{referral.text}",
        "images": [(frames / file).relative_to(root).as_posix() for file in files],
        "text": referral.text,
        "masks": [[{"png": (maps / file).relative_to(root).as_posix(), **number} for file in files]],
        "labels": [clip.scene.objects[target].name],
    }


def _add_lines(root: Path, name: str, listing: Path, records: list[dict]) -> None:
    """Put a clip into the list of clips and its samples among the samples, in place of those it had."""
    known = listing.read_text(encoding="utf-8").split() if listing.is_file() else []
    names = "".join(f"{one}\n" for one in dict.fromkeys([*known, name]))
    replace_text(listing, names)
    samples = root / SAMPLES_FILE
    lines = samples.read_text(encoding="utf-8").splitlines() if samples.is_file() else []
    kept = [record for record in map(json.loads, lines) if not record["key"].startswith(f"{name}/")]
    write_records(samples, [*kept, *records])
