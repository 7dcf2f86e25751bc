"""What counts as the right edit: stripes that an object gets may lie in any way, those it has stay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diffusers_focus.data.edits import Edit
from diffusers_focus.data.world import Background, Scene, WorldObject, render
from diffusers_focus.evaluation.edits import edit_truth, is_right

SIZE = 128


def scene(fill: str, **changes) -> Scene:
    """A blue circle beside a striped red square, on grey."""
    circle = WorldObject("circle", "blue", "large", fill, 0.3, 0.4, 0.2)
    square = WorldObject("square", "red", "small", "striped", 0.75, 0.7, 0.12)
    return replace(Scene(5, (circle, square), Background("plain", (120,) * 3, (120,) * 3), 0.0, True), **changes)


def drawn(one: Scene) -> np.ndarray:
    return render(one, SIZE).image.astype(np.float32)


def edit(kind: str, result: Scene) -> Edit:
    return Edit("make the circle so", "the circle", (0,), "shape", result, kind)


def with_own_stripes(one: Scene, stripes: tuple[int, float]) -> np.ndarray:
    """The stripes of the circle alone lie otherwise."""
    own = render(one, SIZE).masks[0][..., None]
    return np.where(own, drawn(replace(one, stripes=stripes)), drawn(one))


@pytest.mark.parametrize("stripes", [(1, 0.0), (1, 0.3), (-1, 0.0), (-1, 0.72)])
def test_new_stripes_may_lie_in_any_way(stripes):
    truth = edit_truth(scene("solid"), edit("fill", scene("striped")), SIZE)
    assert is_right(with_own_stripes(scene("striped"), stripes), truth)


@pytest.mark.parametrize("stripes", [(1, 0.0), (-1, 0.3)])
def test_stripes_of_another_colour_or_shape_are_wrong_in_any_way(stripes):
    truth = edit_truth(scene("solid"), edit("fill", scene("striped")), SIZE)
    circle, square = scene("striped").objects
    for change in ({"colour": "green"}, {"shape": "star"}):
        other = scene("striped", objects=(replace(circle, **change), square))
        assert not is_right(with_own_stripes(other, stripes), truth)
    assert not is_right(drawn(scene("solid")), truth)
    assert not is_right(drawn(scene("striped", objects=(square,))), truth)


def test_stripes_that_are_there_stay_as_they_lie():
    source = scene("striped")
    circle, square = source.objects
    result = replace(source, objects=(replace(circle, colour="green"), square))
    truth = edit_truth(source, edit("recolour", result), SIZE)
    assert len(truth.right) == 1 and is_right(drawn(result), truth)


def test_what_becomes_solid_has_one_truth():
    truth = edit_truth(scene("striped"), edit("fill", scene("solid")), SIZE)
    assert len(truth.right) == 1
    assert is_right(drawn(scene("solid")), truth) and not is_right(drawn(scene("striped")), truth)
