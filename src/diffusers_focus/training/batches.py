"""Batches of the still-life world as tensors: a function of (recipe seed, step), so a resumed run sees the same samples."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from ..data.clips import ClipSpec, sample_clip
from ..data.world import MIN_VISIBLE, Rendered, Scene, in_frame, render, sample_scene, visible_fractions, with_twin

CLIP_FRAMES = 8  # the second frame of a pair is one of these
FIRST_HELD_OUT_SEED = 1_000_000
SEED_SPACE = FIRST_HELD_OUT_SEED  # training seeds are 0 .. 999,999, as data/world.py's contract demands


def parts_of(pictures: int, at_once: int | None) -> int:
    """The fewest parts of equal size that `pictures` come in with at most `at_once` in each; 1 without a bound.

    Raises:
        ValueError: a bound that is no positive whole number.
    """
    if at_once is None:
        return 1
    if not isinstance(at_once, int) or isinstance(at_once, bool) or at_once < 1:
        raise ValueError(
            f"pictures_at_once is {at_once!r}; pass a whole number of pictures, 1 or more, or leave it out for whole batches"
        )
    return next(n for n in range(-(-pictures // at_once), pictures + 1) if pictures % n == 0)


@dataclass
class SceneBatch:
    """Scenes with their pictures.

    Args:
        scenes: B scenes.
        rendered: B renderings (uint8 images, bool masks).
        pixel_values: float32 [B, 3, S, S] in [-1, 1].
        clips: B numbers; pictures with the same one are frames of one clip, with the same objects in the same order.
    """

    scenes: list[Scene]
    rendered: list[Rendered]
    pixel_values: torch.Tensor
    clips: list[int] = field(default_factory=list)


def to_pixel_values(images: list[np.ndarray]) -> torch.Tensor:
    """uint8 [S, S, 3] arrays -> float32 [B, 3, S, S] in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0).contiguous()


def sample_seed(seed: int, index: int) -> int:
    """The training scene of sample `index` in a run with `seed`: a fixed shuffle of the training seeds."""
    return ((index + 1) * 611_953 + seed * 104_729) % SEED_SPACE


def scene_batch(
    seed: int,
    step: int,
    batch_size: int,
    size: int = 128,
    *,
    num_objects: tuple[int, int] | None = None,
    twins: float = 0.0,
    clips: float = 0.0,
) -> SceneBatch:
    """Draw the scenes of one step; no held-out pair and no held-out seed ever appears.

    Args:
        num_objects: fewest and most objects of a picture; None draws as the world does (2 to 5).
        twins: share of pictures in which one object gets an identical twin, which only its place tells apart.
        clips: share of pairs of neighbouring pictures that are two frames of one clip.
    """
    scenes: list[Scene] = []
    numbers: list[int] = []
    for i in range(batch_size):
        if i < len(scenes):
            continue  # the second frame of a clip
        number = sample_seed(seed, step * batch_size + i)
        if clips and i % 2 == 0 and i + 1 < batch_size:
            pair = _two_frames(number, np.random.default_rng((number, seed, 5)), num_objects, twins, clips, size)
            scenes += pair
            numbers += [i] * len(pair)
            if pair:
                continue
        rng = np.random.default_rng((number, seed, 4))
        count = None if num_objects is None else int(rng.integers(num_objects[0], num_objects[1] + 1))
        scene = sample_scene(number, count, size=size)
        if twins and rng.random() < twins:
            scene = with_twin(scene, int(rng.integers(len(scene.objects))), rng, size=size) or scene
        scenes.append(scene)
        numbers.append(i)
    rendered = [render(scene, size) for scene in scenes]
    return SceneBatch(scenes, rendered, to_pixel_values([r.image for r in rendered]), numbers)


def _two_frames(
    number: int,
    rng: np.random.Generator,
    num_objects: tuple[int, int] | None,
    twins: float,
    clips: float,
    size: int,
) -> list[Scene]:
    """The first frame of a clip and a later one in which every object is as visible as in a scene; none with chance 1 - `clips`."""
    if rng.random() >= clips:
        return []
    count = None if num_objects is None else int(rng.integers(num_objects[0], num_objects[1] + 1))
    clip = sample_clip(number, ClipSpec(CLIP_FRAMES, count, twin=twins), size=size)
    for index in rng.permutation(np.arange(1, CLIP_FRAMES)):
        later = clip.frame(int(index))
        if all(map(in_frame, later.objects)) and min(visible_fractions(later, size)) >= MIN_VISIBLE:
            return [clip.scene, later]
    return []
