"""The still-life world against its specification: geometry, truth, determinism, and what is held out."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from diffusers_focus.data.world import (
    BACKGROUNDS,
    COLOURS,
    FILLS,
    HELD_OUT_PAIRS,
    SHAPES,
    SIZES,
    Background,
    Scene,
    WorldObject,
    first_held_out_seed,
    full_masks,
    in_frame,
    render,
    sample_scene,
    size_name,
    visible_fractions,
    with_twin,
)

GREY = Background("plain", (100, 100, 100), (100, 100, 100))


def one(shape: str, *, fill: str = "solid", antialias: bool = False, **kwargs) -> Scene:
    item = WorldObject(shape, "red", "large", fill, **{"cx": 0.47, "cy": 0.52, "r": 0.3, **kwargs})
    return Scene(7, (item,), GREY, 0.0, antialias)


def in_polygon(x: float, y: float, corners: list[tuple[float, float]]) -> bool:
    inside = False
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1]):
        if (ay > y) != (by > y) and x < ax + (y - ay) / (by - ay) * (bx - ax):
            inside = not inside
    return inside


def expected_inside(shape: str, x: float, y: float) -> bool:
    """The specification, word for word, for a point relative to the centre in units of r."""
    distance = math.hypot(x, y)
    if shape == "circle":
        return distance <= 1
    if shape == "ring":
        return 1 - 0.35 <= distance <= 1
    if shape == "square":
        return max(abs(x), abs(y)) <= 0.85
    if shape == "cross":
        return (abs(x) <= 1 and abs(y) <= 0.35) or (abs(x) <= 0.35 and abs(y) <= 1)
    if shape == "triangle":
        return in_polygon(x, y, [(0, -1), (-0.9, 0.8), (0.9, 0.8)])
    if shape == "diamond":
        return in_polygon(x, y, [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)])
    if shape == "star":
        angles = [math.pi * k / 5 for k in range(10)]
        radii = [1, 0.45] * 5
        return in_polygon(x, y, [(r * math.sin(a), -r * math.cos(a)) for r, a in zip(radii, angles)])
    lobes = any(((x - c) / 0.5) ** 2 + ((y + 0.4) / 0.5) ** 2 <= 1 for c in (-0.5, 0.5))
    return lobes or in_polygon(x, y, [(-0.95, -0.2), (0.95, -0.2), (0, 1)])


@pytest.mark.parametrize("shape", SHAPES)
def test_mask_holds_exactly_the_pixels_whose_centre_is_inside(shape):
    size, scene = 64, one(shape)
    item = scene.objects[0]
    r = item.r * size
    expected = [
        [expected_inside(shape, (j + 0.5 - item.cx * size) / r, (i + 0.5 - item.cy * size) / r) for j in range(size)]
        for i in range(size)
    ]
    for antialias in (False, True):
        mask = render(replace(scene, antialias=antialias), size).masks[0]
        # A centre on the outline to within rounding may fall either way.
        assert (mask != np.array(expected)).sum() <= 2
        assert np.array_equal(mask, full_masks(scene, size)[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_hard_edges_paint_the_mask_and_nothing_else(shape):
    drawn = render(one(shape, offset=(5, -7, 11)), 64)
    painted = (drawn.image == (225, 33, 51)).all(axis=-1)
    assert np.array_equal(painted, drawn.masks[0])
    assert (drawn.image[~drawn.masks[0]] == 100).all()


def test_smooth_edges_keep_the_inside_and_mix_the_rim():
    hard, soft = render(one("circle"), 64), render(one("circle", antialias=True), 64)
    changed = (hard.image != soft.image).any(axis=-1)
    assert 20 < changed.sum() < 200
    assert (soft.image[changed][:, 0] > 100).all() and (soft.image[changed][:, 0] < 220).all()
    # The area is conserved: what a pixel of the rim loses in cover it loses in colour.
    assert abs(float(soft.image[..., 0].sum()) - float(hard.image[..., 0].sum())) < 120 * 12


def test_stripes_have_period_half_r_and_a_second_tone_45_percent_darker():
    scene = one("square", fill="striped", r=0.4, cx=0.5, cy=0.5)
    image = render(scene, 400).image
    tones = {tuple(int(v) for v in pixel) for pixel in image[render(scene, 400).masks[0]]}
    assert tones == {(220, 40, 40), (121, 22, 22)}
    diagonal = np.array([image[k, k, 0] == 220 for k in range(80, 320)])
    switches = np.nonzero(np.diff(diagonal.astype(int)))[0]
    # Across the bands (down the diagonal) a half period is 0.25 r = 40 pixels, that is 40 / sqrt(2) diagonal steps.
    assert np.allclose(np.diff(switches), 40 / math.sqrt(2), atol=1.01)
    # Along the bands nothing changes.
    assert len({tuple(image[150 + k, 250 - k]) for k in range(100)}) == 1


def test_stripes_cross_either_diagonal_and_begin_anywhere():
    scene = one("square", fill="striped", r=0.4, cx=0.5, cy=0.5)
    image = render(scene, 400).image
    mirrored = render(replace(scene, stripes=(-1, 0.0)), 400).image
    assert (mirrored[::-1] == image).mean() > 0.99 and (mirrored != image).any()  # one up to the rims of bands
    assert (render(replace(scene, stripes=(1, 1.0)), 400).image == image).all()  # a whole period
    other = render(replace(scene, stripes=(1, 0.5)), 400).image
    inside = render(scene, 400).masks[0]
    assert (other[inside] != image[inside]).any(axis=-1).mean() > 0.99  # half a period: the tones change places
    drawn = [sample_scene(seed).stripes for seed in range(200)]
    assert 60 < sum(slant == 1 for slant, _ in drawn) < 140
    assert np.histogram([shift for _, shift in drawn], bins=4, range=(0, 1))[0].min() > 25


def test_later_objects_lie_on_top():
    below = WorldObject("square", "red", "large", "solid", 0.45, 0.5, 0.2)
    above = WorldObject("circle", "blue", "large", "solid", 0.6, 0.5, 0.2)
    drawn = render(Scene(0, (below, above), GREY, 0.0, False), 100)
    whole = full_masks(Scene(0, (below, above), GREY, 0.0, False), 100)
    assert (whole[0] & whole[1]).sum() > 100
    assert np.array_equal(drawn.masks[1], whole[1])
    assert np.array_equal(drawn.masks[0], whole[0] & ~whole[1])
    assert (drawn.image[whole[0] & whole[1]] == COLOURS["blue"]).all()


def test_backgrounds():
    def draw(kind):
        return render(Scene(0, (), Background(kind, (60, 100, 200), (200, 120, 60)), 0.0, False), 64).image.astype(int)

    assert (draw("plain") == (60, 100, 200)).all()
    vertical, horizontal = draw("vertical"), draw("horizontal")
    assert (np.diff(vertical[:, 3, 0]) > 0).all() and (vertical[:, :1] == vertical).all()
    assert abs(vertical[0, 0] - (60, 100, 200)).max() <= 2 and abs(vertical[-1, 0] - (200, 120, 60)).max() <= 2
    assert np.array_equal(vertical.transpose(1, 0, 2), horizontal)
    radial = draw("radial")
    assert abs(radial[32, 32] - (60, 100, 200)).max() <= 3 and abs(radial[0, 0] - (200, 120, 60)).max() <= 3
    checkers = draw("checkers")
    assert (checkers[:8, :8] == (60, 100, 200)).all() and (checkers[:8, 8:16] == (200, 120, 60)).all()
    assert (checkers[8:16, 8:16] == (60, 100, 200)).all()


def test_noise_belongs_to_the_canvas_not_to_the_objects():
    scene = replace(one("circle"), noise_sigma=6.0)
    empty = replace(scene, objects=())
    with_object, without = render(scene, 128), render(empty, 128)
    outside = ~with_object.masks[0]
    assert np.array_equal(with_object.image[outside], without.image[outside])
    noise = without.image.astype(float) - 100
    assert abs(noise.std() - 6.0) < 0.2 and abs(noise.mean()) < 0.2
    assert not np.array_equal(without.image, render(replace(empty, seed=8), 128).image)


def test_scenes_and_drawings_are_deterministic():
    scenes = [sample_scene(seed) for seed in range(20)]
    assert scenes == [sample_scene(seed) for seed in range(20)]
    assert len(set(scenes)) == 20
    first, again = render(scenes[3]), render(scenes[3])
    assert np.array_equal(first.image, again.image) and np.array_equal(first.masks, again.masks)
    assert first.image.dtype == np.uint8 and first.image.shape == (128, 128, 3)
    assert first.masks.dtype == bool and first.masks.shape == (len(scenes[3].objects), 128, 128)


def test_sampled_scenes_keep_the_contract():
    scenes = [sample_scene(seed) for seed in range(200)]
    for scene in scenes:
        assert 2 <= len(scene.objects) <= 5 and 0 <= scene.noise_sigma <= 8
        assert all(60 <= c <= 200 for c in scene.background.colour1 + scene.background.colour2)
        for item in scene.objects:
            low, high = SIZES[item.size]
            assert low <= item.r <= high and in_frame(item) and size_name(item.r) == item.size
            assert all(-18 <= offset <= 18 for offset in item.offset)
        assert not scene.has_held_out_pair
    everything = [item for scene in scenes for item in scene.objects]
    assert {item.shape for item in everything} == set(SHAPES)
    assert {item.colour for item in everything} == set(COLOURS)
    assert {item.fill for item in everything} == set(FILLS)
    assert {scene.background.kind for scene in scenes} == set(BACKGROUNDS)
    assert {len(scene.objects) for scene in scenes} == {2, 3, 4, 5}
    # Neither word alone is enough: a good part of the scenes repeats a colour or a shape.
    repeated = [len({i.colour for i in s.objects}) < len(s.objects) for s in scenes]
    assert 0.4 < np.mean(repeated) < 0.95


def test_every_object_is_visible_and_fractions_are_those_of_the_masks():
    occluded = 0
    for seed in range(60):
        scene = sample_scene(seed)
        for size in (128, 256):
            drawn, whole = render(scene, size).masks, full_masks(scene, size)
            shares = drawn.sum(axis=(1, 2)) / whole.sum(axis=(1, 2))
            assert shares.min() >= 0.6
            assert visible_fractions(scene, size) == pytest.approx(shares.tolist())
        occluded += bool((shares < 1).any())
    assert occluded > 15


def test_held_out_pairs_are_excluded_or_required():
    assert all(sample_scene(seed, held_out="require").has_held_out_pair for seed in range(200))
    assert not any(sample_scene(seed).has_held_out_pair for seed in range(200, 600))
    allowed = [sample_scene(seed, held_out="allow").has_held_out_pair for seed in range(200)]
    assert 0.05 < np.mean(allowed) < 0.6
    found = {i.pair for seed in range(200) for i in sample_scene(seed, 2, "require").objects} & HELD_OUT_PAIRS
    assert found == HELD_OUT_PAIRS
    assert not sample_scene(first_held_out_seed).has_held_out_pair


def test_names():
    item = WorldObject("star", "blue", "large", "striped", 0.5, 0.5, 0.15)
    assert item.name == "large striped blue star"
    assert replace(item, shape="circle", colour="red", size="small", fill="solid").name == "small red circle"


def test_the_number_of_objects_can_be_given():
    assert [len(sample_scene(3, count).objects) for count in (1, 2, 5, 8)] == [1, 2, 5, 8]


@pytest.mark.parametrize("gap", [0.0, 0.1])
def test_a_twin_differs_in_its_place_alone(gap):
    rng, found = np.random.default_rng(0), 0
    for seed in range(40):
        scene = sample_scene(seed)
        index = seed % len(scene.objects)
        doubled = with_twin(scene, index, rng, gap=gap)
        if doubled is None:
            continue
        found += 1
        *others, twin = doubled.objects
        item = scene.objects[index]
        assert tuple(others) == scene.objects and replace(doubled, objects=scene.objects) == scene
        assert replace(twin, cx=item.cx, cy=item.cy) == item and in_frame(twin)
        assert math.hypot(twin.cx - item.cx, twin.cy - item.cy) > 2 * item.r + gap
        shares = render(doubled).masks.sum(axis=(1, 2)) / full_masks(doubled, 128).sum(axis=(1, 2))
        assert shares.min() >= 0.6
    assert found > 25
    again = [with_twin(sample_scene(3), 0, np.random.default_rng(5), gap=gap) for _ in range(2)]
    assert again[0] == again[1]


def test_where_there_is_no_room_there_is_no_twin():
    assert with_twin(one("circle", cx=0.5, cy=0.5), 0, np.random.default_rng(0)) is None
    # In the corner there is room for another, but not with so much space between the two.
    cornered = one("circle", cx=0.2, cy=0.2, r=0.2)
    assert with_twin(cornered, 0, np.random.default_rng(0)) is not None
    assert with_twin(cornered, 0, np.random.default_rng(0), gap=0.6) is None
    # Small objects are covered by a large twin wherever it lies.
    large = replace(cornered.objects[0], r=0.24)
    small = tuple(replace(large, cx=x / 8, cy=y / 8, r=0.06) for x in range(1, 8) for y in range(1, 8))
    crowd = replace(cornered, objects=(large, *small))
    assert with_twin(crowd, 0, np.random.default_rng(0)) is None


@pytest.mark.parametrize(
    "call",
    [
        lambda: sample_scene(0, held_out="never"),
        lambda: sample_scene(-1),
        lambda: sample_scene(0, 0),
        lambda: sample_scene(0, 9),
        lambda: render(sample_scene(0), 4),
        lambda: render(one("blob")),
        lambda: render(replace(one("star"), background=Background("plaid", (0, 0, 0), (0, 0, 0)))),
    ],
)
def test_what_the_world_does_not_have_is_refused(call):
    with pytest.raises(ValueError):
        call()
