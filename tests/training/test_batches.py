"""Batches: a function of seed and step, and never a held-out scene."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from diffusers_focus.data.world import sample_scene
from diffusers_focus.training.batches import FIRST_HELD_OUT_SEED, sample_seed, scene_batch, to_pixel_values


def test_a_step_always_draws_the_same_pictures():
    first, again = scene_batch(3, 5, 2, 32), scene_batch(3, 5, 2, 32)
    assert first.scenes == again.scenes
    assert torch.equal(first.pixel_values, again.pixel_values)
    assert first.scenes != scene_batch(3, 6, 2, 32).scenes
    assert first.scenes != scene_batch(4, 5, 2, 32).scenes


def test_steps_do_not_share_scenes_and_stay_in_the_training_seeds():
    seeds = [sample_seed(0, index) for index in range(5000)]
    assert len(set(seeds)) == len(seeds)
    assert 0 <= min(seeds) and max(seeds) < FIRST_HELD_OUT_SEED


def test_no_held_out_pair_is_drawn():
    scenes = [scene for step in range(50) for scene in scene_batch(0, step, 4, 16).scenes]
    assert not any(scene.has_held_out_pair for scene in scenes)


def test_the_number_of_objects_can_be_bounded():
    scenes = [s for step in range(15) for s in scene_batch(0, step, 4, 32, num_objects=(4, 8)).scenes]
    assert {len(s.objects) for s in scenes} == {4, 5, 6, 7, 8}
    usual = [s for step in range(15) for s in scene_batch(0, step, 4, 32).scenes]
    assert {len(s.objects) for s in usual} == {2, 3, 4, 5}
    assert usual[0] == sample_scene(sample_seed(0, 0), size=32)


def twins_of(scene) -> list[tuple[int, int]]:
    alike = [replace(item, cx=0.0, cy=0.0) for item in scene.objects]
    return [(i, j) for j in range(len(alike)) for i in range(j) if alike[i] == alike[j]]


def test_twins_are_added_to_the_asked_share_of_pictures():
    plain = [s for step in range(20) for s in scene_batch(0, step, 4, 32).scenes]
    assert not any(twins_of(s) for s in plain)
    for share, low, high in ((1.0, 0.85, 1.0), (0.3, 0.15, 0.45)):
        doubled = [s for step in range(20) for s in scene_batch(0, step, 4, 32, twins=share).scenes]
        with_twins = [bool(twins_of(s)) for s in doubled]
        assert low <= np.mean(with_twins) <= high
        for before, after, twin in zip(plain, doubled, with_twins, strict=True):
            assert after.objects[: len(before.objects)] == before.objects  # the pictures are the same but for it
            assert len(after.objects) == len(before.objects) + twin and not after.has_held_out_pair


def test_crowds_and_twins_are_a_function_of_the_arguments_too():
    arguments = {"num_objects": (1, 6), "twins": 0.5}
    first, again = scene_batch(3, 5, 6, 32, **arguments), scene_batch(3, 5, 6, 32, **arguments)
    assert first.scenes == again.scenes and torch.equal(first.pixel_values, again.pixel_values)
    assert first.scenes != scene_batch(3, 6, 6, 32, **arguments).scenes
    assert any(twins_of(s) for s in first.scenes) and not all(twins_of(s) for s in first.scenes)


def test_pixel_values_span_minus_one_to_one_channels_first():
    image = np.zeros((2, 2, 3), np.uint8)
    image[0, 1] = (255, 0, 255)
    values = to_pixel_values([image])
    assert values.shape == (1, 3, 2, 2) and values.dtype == torch.float32
    assert values[0, :, 0, 1].tolist() == [1, -1, 1] and values[0, :, 0, 0].tolist() == [-1, -1, -1]


def test_a_share_of_the_pairs_are_frames_of_one_clip():
    batches = [scene_batch(1, step, 5, 32, clips=0.5, twins=0.3) for step in range(12)]
    pairs = [(batch, i) for batch in batches for i in (0, 2) if batch.clips[i] == batch.clips[i + 1]]
    assert 6 < len(pairs) < 18 and all(batch.clips[4] == 4 for batch in batches)  # the fifth picture has no neighbour
    for batch, i in pairs:
        first, second = batch.scenes[i : i + 2]
        assert [item.name for item in first.objects] == [item.name for item in second.objects]
        assert [(a.cx, a.cy) != (b.cx, b.cy) for a, b in zip(first.objects, second.objects)] == [True] * len(
            first.objects
        )
        assert batch.rendered[i + 1].masks.any(axis=(1, 2)).all() and not first.has_held_out_pair
    plain = scene_batch(1, 0, 5, 32, twins=0.3)
    assert plain.clips == [0, 1, 2, 3, 4]
    again = scene_batch(1, 0, 5, 32, clips=0.5, twins=0.3)
    assert again.scenes == batches[0].scenes and again.clips == batches[0].clips
    # Pictures that are no frames are those that a run without clips draws.
    alone = [i for i in range(5) if batches[0].clips.count(batches[0].clips[i]) == 1]
    assert [batches[0].scenes[i] for i in alone] == [plain.scenes[i] for i in alone]
