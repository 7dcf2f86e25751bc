"""Batches: a function of seed and step, and never a held-out scene."""

from __future__ import annotations

import numpy as np
import torch

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


def test_pixel_values_span_minus_one_to_one_channels_first():
    image = np.zeros((2, 2, 3), np.uint8)
    image[0, 1] = (255, 0, 255)
    values = to_pixel_values([image])
    assert values.shape == (1, 3, 2, 2) and values.dtype == torch.float32
    assert values[0, :, 0, 1].tolist() == [1, -1, 1] and values[0, :, 0, 0].tolist() == [-1, -1, -1]
