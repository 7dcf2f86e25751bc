"""Region prompts drawn from masks: inside what they point at, and as rough as they should be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image, ImageFilter

from diffusers_focus.data.regions_sampling import REGION_KINDS, dilate, erode, region_prompt
from diffusers_focus.data.world import render, sample_scene
from diffusers_focus.processing.regions import Box, Mask, Point, Scribble, check_region


def masks(count: int):
    for seed in range(count):
        yield from render(sample_scene(seed)).masks


def test_regions_are_legal_and_deterministic():
    types = {"click": Point, "scribble": Scribble, "box": Box, "mask": Mask}
    assert set(types) == set(REGION_KINDS)
    for index, mask in enumerate(masks(10)):
        for kind, expected in types.items():
            region = region_prompt(mask, kind, np.random.default_rng(index))
            assert isinstance(region, expected)
            check_region(region, 128, 128)
            assert region == region_prompt(mask, kind, np.random.default_rng(index))


def test_growing_and_shrinking_are_rank_filters_of_a_square():
    rng = np.random.default_rng(0)
    for shape in ((40, 40), (1, 1), (3, 30), (9, 2)):
        for pixels in range(1, 6):
            mask = rng.random(shape) < rng.choice((0.03, 0.5, 0.97))
            image, side = Image.fromarray(mask.astype(np.uint8)), 2 * pixels + 1
            for grown in (dilate(mask, pixels), dilate(mask.astype(np.uint8), pixels)):
                assert np.array_equal(grown, np.asarray(image.filter(ImageFilter.MaxFilter(side))) > 0)
            assert np.array_equal(erode(mask, pixels), np.asarray(image.filter(ImageFilter.MinFilter(side))) > 0)


def test_clicks_and_strokes_lie_inside():
    lengths = []
    for index, mask in enumerate(masks(40)):
        rng = np.random.default_rng(index)
        click = region_prompt(mask, "click", rng)
        assert mask[math.floor(click.y), math.floor(click.x)]
        stroke = region_prompt(mask, "scribble", rng).points
        assert all(mask[math.floor(y), math.floor(x)] for x, y in stroke)
        assert all(math.dist(a, b) <= 1.001 for a, b in zip(stroke, stroke[1:]))
        lengths.append((len(stroke) - 1) / math.sqrt(mask.sum()))
    assert 0.3 < np.median(lengths) < 1.0


def test_clicks_spread_over_the_object():
    mask = np.zeros((40, 40), dtype=bool)
    mask[5:35, 5:35] = True
    rng = np.random.default_rng(0)
    clicks = np.array([(c.x, c.y) for c in (region_prompt(mask, "click", rng) for _ in range(100))])
    assert clicks.min() < 10 and clicks.max() > 30


def test_boxes_are_off_by_at_most_a_tenth_of_their_side():
    mask = np.zeros((100, 100), dtype=bool)
    mask[30:70, 20:40] = True
    boxes = [region_prompt(mask, "box", np.random.default_rng(seed)) for seed in range(200)]
    edges = np.array([(b.x0, b.y0, b.x1, b.y1) for b in boxes]) - (20, 30, 40, 70)
    limits = np.array([2, 4, 2, 4])
    assert (np.abs(edges) <= limits).all() and (np.abs(edges).max(axis=0) > 0.8 * limits).all()
    at_border = np.zeros((50, 50), dtype=bool)
    at_border[:30, :30] = True
    for seed in range(20):
        check_region(region_prompt(at_border, "box", np.random.default_rng(seed)), 50, 50)


def test_masks_are_three_pixels_off():
    mask = np.zeros((60, 60), dtype=bool)
    mask[20:40, 10:50] = True
    areas = {int(region_prompt(mask, "mask", np.random.default_rng(seed)).array.sum()) for seed in range(20)}
    assert areas == {14 * 34, 26 * 46}
    thin = np.zeros((60, 60), dtype=bool)
    thin[30:34, 10:50] = True
    assert {int(region_prompt(thin, "mask", np.random.default_rng(seed)).array.sum()) for seed in range(9)} == {10 * 46}


def test_dilation_and_erosion():
    mask = np.zeros((20, 20), dtype=bool)
    mask[8:12, 8:12] = True
    assert dilate(mask, 2).sum() == 64 and erode(mask, 1).sum() == 4
    assert np.array_equal(dilate(mask, 0), mask)
    assert np.array_equal(erode(dilate(mask, 3), 3), mask)
    with pytest.raises(ValueError, match="-1"):
        dilate(mask, -1)


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="non-empty"):
        region_prompt(np.zeros((8, 8), dtype=bool), "click", np.random.default_rng(0))
    with pytest.raises(ValueError, match="lasso"):
        region_prompt(np.ones((8, 8), dtype=bool), "lasso", np.random.default_rng(0))
