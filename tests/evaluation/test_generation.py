"""Whether a picture shows an object somewhere: true pictures, wrong attributes, empty pictures, and the task itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diffusers_focus import FocusPipeline
from diffusers_focus.data.world import Background, Scene, WorldObject, render
from diffusers_focus.evaluation.generation import GenerationTask, shows
from diffusers_focus.evaluation.run import evaluate
from diffusers_focus.evaluation.tasks import draw_batch

from tests.tiny import SIZE, tiny_components

PLAIN, CHECKERS = (Background(kind, (90, 110, 100), (140, 150, 120)) for kind in ("plain", "checkers"))
CIRCLE = WorldObject("circle", "red", "small", "solid", 0.3, 0.62, 0.088, (8, -5, 4))
STAR = WorldObject("star", "blue", "large", "striped", 0.71, 0.41, 0.171)


def drawn(*items: WorldObject, ground: Background = PLAIN, stripes: tuple[int, float] = (1, 0.3)) -> np.ndarray:
    return render(Scene(3, items, ground, 4.0, True, stripes), 128).image.astype(np.float32)


@pytest.mark.parametrize("ground", [PLAIN, CHECKERS])
@pytest.mark.parametrize("stripes", [(1, 0.3), (-1, 0.8)])
def test_an_object_is_found_wherever_it_is_and_however_its_stripes_lie(ground, stripes):
    picture = drawn(CIRCLE, STAR, ground=ground, stripes=stripes)
    assert shows(picture, CIRCLE) and shows(picture, STAR)
    elsewhere = drawn(replace(CIRCLE, cx=0.85, cy=0.12), replace(STAR, cx=0.2, cy=0.8), ground=ground, stripes=stripes)
    assert shows(elsewhere, CIRCLE) and shows(elsewhere, STAR)


@pytest.mark.parametrize("change", [{"colour": "orange"}, {"shape": "square"}, {"fill": "striped"}])
def test_what_differs_in_one_attribute_is_not_shown(change):
    picture = drawn(replace(CIRCLE, **change), STAR)
    assert not shows(picture, CIRCLE) and shows(picture, replace(CIRCLE, **change))


def test_another_size_is_not_shown():
    assert not shows(drawn(replace(STAR, r=0.09)), STAR)


def test_pictures_without_objects_show_nothing():
    for picture in (drawn(), drawn(ground=CHECKERS), np.random.default_rng(0).uniform(0, 255, (128, 128, 3))):
        assert not shows(picture.astype(np.float32), CIRCLE) and not shows(picture.astype(np.float32), STAR)


def test_pictures_are_drawn_and_measured_beside_the_true_and_another_one():
    pipe = FocusPipeline(**tiny_components(), resolution_group=[[SIZE, SIZE]])
    task = GenerationTask(options={"num_inference_steps": 1})
    batch = draw_batch("in", 0, 2, SIZE)
    task.run(pipe, batch)
    figures = task.figures()
    assert len(task.records) == sum(len(scene.objects) for scene in batch.scenes)
    assert figures["true_picture"]["value"] > figures["right"]["value"]
    assert evaluate(pipe, 2, ["in"], ["generation"], edit_options={"num_inference_steps": 1})["groups"]["in"][
        "generation"
    ]
    assert sum(one["right"]["count"] for one in figures["kinds"].values()) == figures["right"]["count"]
