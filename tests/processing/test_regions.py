"""Regions: what they cover, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_focus.processing.regions import (
    Box,
    Mask,
    Point,
    Scribble,
    Strokes,
    check_region,
    point_radius,
    stroke_radius,
)


def test_point_is_a_disk_of_the_pixel_that_contains_it():
    mask = Point(30.7, 12.2).rasterize(100, 200)
    assert mask.shape == (100, 200) and mask.dtype == bool
    rows, columns = np.nonzero(mask)
    radius = point_radius(100, 200)
    assert radius == 2
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 14, 28, 32)
    assert not mask[10, 28]  # a disk, not a square


def test_point_at_the_border_is_cut_not_wrapped():
    mask = Point(0, 0).rasterize(128, 128)
    assert mask[0, 0] and not mask[-5:].any() and not mask[:, -5:].any()


def test_scribble_joins_its_points_without_gaps():
    mask = Scribble([(5, 5), (60, 40), (60, 60)]).rasterize(64, 64)
    assert stroke_radius(64, 64) == 1
    assert all(mask[:, column].any() for column in range(5, 61))
    assert mask[40:61, 60].all() and not mask[0:3].any()


def test_scribble_accepts_arrays_points_and_a_single_point():
    pairs = [(3, 4), (10, 12)]
    assert Scribble(np.array(pairs)) == Scribble(pairs) == Scribble([Point(3, 4), Point(10, 12)])
    assert np.array_equal(Scribble([(3, 4)]).rasterize(32, 32), Point(3, 4).rasterize(32, 32))


def test_box_covers_every_pixel_it_touches():
    assert Box(0, 0, 7, 5).rasterize(5, 7).all()
    mask = Box(1.5, 2, 3.2, 3).rasterize(5, 7)
    assert mask.sum() == 3 and mask[2, 1:4].all()


@pytest.mark.parametrize(
    "array",
    [
        np.eye(6, dtype=bool),
        np.eye(6, dtype=np.uint8),
        np.eye(6, dtype=np.uint8) * 255,
        np.eye(6, dtype=np.float32) * 0.7,
        torch.eye(6, dtype=torch.bfloat16),
        torch.eye(6)[None],
        Image.fromarray(np.eye(6, dtype=np.uint8) * 255),
    ],
)
def test_masks_of_every_kind_mean_the_same(array):
    mask = Mask(array)
    assert np.array_equal(mask.rasterize(6, 6), np.eye(6, dtype=bool))
    assert mask == Mask(np.eye(6, dtype=bool)) and hash(mask) == hash(Mask(np.eye(6, dtype=bool)))


def test_a_mask_is_a_copy_and_cannot_be_changed():
    source = np.eye(4, dtype=bool)
    mask = Mask(source)
    source[:] = False
    assert mask.array.sum() == 4
    with pytest.raises(ValueError, match="read-only"):
        mask.array[0, 0] = False


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Point(float("nan"), 1), ValueError, "finite"),
        (lambda: Point("3", 1), TypeError, "number of pixels"),
        (lambda: Point(True, 1), TypeError, "number of pixels"),
        (lambda: Scribble([]), ValueError, "empty"),
        (lambda: Scribble([(1, 2, 3)]), TypeError, "pair"),
        (lambda: Box(5, 5, 5, 9), ValueError, "no area"),
        (lambda: Box(5, 5, 1, 9), ValueError, "top left corner first"),
        (lambda: Mask(np.zeros((4, 4))), ValueError, "empty"),
        (lambda: Mask(np.full((4, 4), np.nan)), ValueError, "NaN"),
        (lambda: Mask(np.full((4, 4), 300)), ValueError, "300"),
        (lambda: Mask(np.ones((4, 4, 3))), ValueError, "shape"),
        (lambda: Mask("mask.png"), TypeError, "PIL image"),
        (lambda: check_region(Point(64, 3), 64, 64), ValueError, "outside"),
        (lambda: check_region(Point(3, -0.5), 64, 64), ValueError, "outside"),
        (lambda: check_region(Scribble([(3, 3), (3, 64)]), 64, 64), ValueError, "Scribble point 1"),
        (lambda: check_region(Box(0, 0, 65, 3), 64, 64), ValueError, "Clip the box"),
        (lambda: check_region(Mask(np.eye(4)), 64, 64), ValueError, "4 wide"),
        (lambda: check_region((3, 4), 64, 64), TypeError, "Point, Scribble, Box or Mask"),
        (lambda: Point(1, 1).rasterize(0, 4), ValueError, "at least 1"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_advice(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_strokes_are_what_is_meant_without_what_is_not():
    square = np.zeros((32, 32), bool)
    square[4:20, 4:20] = True
    strokes = Strokes(Mask(square), Point(10, 10), Box(12, 0, 32, 32, positive=False))
    assert len(strokes.parts(32, 32, positive=True)) == 2 and len(strokes.parts(32, 32, positive=False)) == 1
    drawn = strokes.rasterize(32, 32)
    assert drawn[5, 5] and not drawn[:, 12:].any() and not drawn[21:].any()
    assert (Strokes([Point(10, 10)]).rasterize(32, 32) == Point(10, 10).rasterize(32, 32)).all()
    improved = Strokes(Scribble([(5, 5), (5, 9)], positive=False), previous=square).rasterize(32, 32)
    assert improved[15, 15] and not improved[6, 5]
    assert not (Strokes(Point(30, 30), previous=square).rasterize(32, 32) & square).any()  # a further click says enough
    assert Point(1, 2, positive=False) != Point(1, 2) and Mask(square, positive=False) != Mask(square)


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: Strokes(), ValueError, "what is meant"),
        (lambda: Strokes(Point(1, 1, positive=False)), ValueError, "Add a positive one"),
        (lambda: Strokes((1, 2)), TypeError, "Strokes are Point"),
        (lambda: Strokes(Point(1, 1), previous=np.zeros((4, 4))), ValueError, "empty"),
        (lambda: Strokes(Point(1, 1), Box(0, 0, 8, 8, positive=False)).rasterize(8, 8), ValueError, "cover everything"),
        (lambda: Strokes(Point(1, 1), Point(9, 1)).rasterize(8, 8), ValueError, "outside"),
    ],
)
def test_strokes_that_say_nothing(make, kind, words):
    with pytest.raises(kind, match=words):
        make()
