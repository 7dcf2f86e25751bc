"""Clips of the world: paths, masks and identities a frame, what is held out, and their files."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from diffusers_focus.data.benchmarks.segmentation import davis_records
from diffusers_focus.data.clips import ClipSpec, clip_expressions, sample_clip, write_clip
from diffusers_focus.data.coco_masks import index_map
from diffusers_focus.data.folders import SampleFolder
from diffusers_focus.data.samples import read_sample
from diffusers_focus.data.world import HELD_OUT_PAIRS, sample_scene, visible_fractions

LONG = ClipSpec(frames=200, leaving=0.5)


@pytest.fixture(scope="module")
def clips():
    return [sample_clip(seed, LONG) for seed in range(1_000_000, 1_000_030)]


def test_same_arguments_same_clip_and_any_frame_by_itself():
    spec = ClipSpec(frames=6)
    clip, again = sample_clip(5, spec), sample_clip(5, spec)
    frames = [drawn.image for drawn in clip.renders(32)]
    assert clip == again and np.array_equal(again.render(4, 32).image, frames[4])
    assert not np.array_equal(sample_clip(6, spec).render(4, 32).image, frames[4])
    # A longer clip begins like a shorter one.
    assert np.array_equal(sample_clip(5, ClipSpec(frames=9)).render(5, 32).image, frames[5])


def test_frame_0_is_the_scene_of_the_seed(clips):
    for clip in clips[:8]:
        assert clip.frame(0) == sample_scene(clip.seed) == clip.scene
        for item, path in zip(clip.scene.objects, clip.paths):
            assert math.dist(path.at(0), (item.cx, item.cy)) < 1e-9


def test_objects_keep_what_they_are_and_move_no_faster_than_said(clips):
    for clip in clips:
        moved = []
        for index in range(1, 60):
            before, now = clip.frame(index - 1).objects, clip.frame(index).objects
            assert [item.name for item in now] == [item.name for item in clip.scene.objects]
            moved += [math.hypot(a.cx - b.cx, a.cy - b.cy) for a, b in zip(before, now)]
        # Around an ellipse at most 2 sin(turn / 2) of the longer radius, which is below turn times radius.
        assert 0.004 < float(np.median(moved)) and max(moved) <= 0.04 + 1e-9


def test_objects_hide_each_other_leave_and_come_back(clips):
    hidden = returned = stayed = 0
    for clip in clips[:12]:
        for index in range(len(clip.scene.objects)):
            centres = [clip.frame(t).objects[index] for t in range(200)]
            out = [not (-o.r < o.cx < 1 + o.r and -o.r < o.cy < 1 + o.r) for o in centres]
            stayed += not any(out)
            returned += any(out) and not all(out[out.index(True) :])
        hidden += any(min(visible_fractions(clip.frame(t), 64)) < 0.5 for t in range(0, 200, 4))
    assert hidden >= 8 and returned >= 8 and stayed >= 8


def test_masks_are_disjoint_and_empty_out_of_the_picture():
    clip = next(c for c in (sample_clip(seed, LONG) for seed in range(50)) if any(map(_is_out, _objects(c))))
    outside = next((t, i) for t in range(200) for i, item in enumerate(clip.frame(t).objects) if _is_out(item))
    masks = clip.render(outside[0], 48).masks
    assert masks.shape == (len(clip.scene.objects), 48, 48) and not masks[outside[1]].any()
    assert masks.sum(axis=0).max() == 1 and masks.any()


def _objects(clip):
    return [item for t in range(len(clip)) for item in clip.frame(t).objects]


def _is_out(item) -> bool:
    return item.cx < -item.r or item.cx > 1 + item.r or item.cy < -item.r or item.cy > 1 + item.r


def test_noise_changes_from_frame_to_frame_and_the_background_does_not():
    clip = next(c for c in map(sample_clip, range(100, 140)) if c.scene.noise_sigma > 4)
    first, second = clip.render(1), clip.render(2)
    ground = ~first.masks.any(axis=0) & ~second.masks.any(axis=0)
    difference = (first.image.astype(float) - second.image)[ground]
    assert 0.5 < np.abs(difference).mean() < 3 * clip.scene.noise_sigma and abs(difference.mean()) < 1


def test_held_out_pairs_as_for_scenes():
    free = [sample_clip(seed) for seed in range(60)]
    forced = [sample_clip(seed, ClipSpec(held_out="require")) for seed in range(20)]
    assert not any(clip.scene.has_held_out_pair for clip in free)
    assert all(clip.scene.has_held_out_pair for clip in forced)


def test_a_twin_differs_in_its_place_alone():
    clip = sample_clip(3, ClipSpec(twin=1.0, frames=20))
    *others, twin = clip.scene.objects
    (double,) = [item for item in others if (item.pair, item.r, item.offset) == (twin.pair, twin.r, twin.offset)]
    assert (double.cx, double.cy) != (twin.cx, twin.cy) and len(clip.paths) == len(clip.scene.objects)


def test_expressions_mean_one_object_in_every_frame(clips):
    kinds = set()
    for clip in clips:
        for referral in clip_expressions(clip, np.random.default_rng(0)):
            kinds.add(referral.kind)
            assert len(referral.targets) == 1 and not {"left", "right", "above", "below"} & set(referral.text.split())
            assert not any(word in referral.text for word in ("most object", "lowest"))
            item = clip.scene.objects[referral.targets[0]]
            assert item.pair not in HELD_OUT_PAIRS
    assert kinds == {"shape", "colour", "colour_shape", "size", "striped", "largest", "reasoning"}


def test_files_are_those_of_davis_and_of_sample_folders(tmp_path):
    spec = ClipSpec(frames=3)
    clips = [sample_clip(seed, spec) for seed in (1_000_000, 1_000_001, 1_000_000)]
    for clip in clips:
        write_clip(tmp_path, clip, 64)
    assert (tmp_path / "ImageSets/2017/val.txt").read_text().split() == ["1000000", "1000001"]
    for clip in clips[:2]:
        for index, drawn in enumerate(clip.renders(64)):
            name = f"480p/{clip.seed}/{index:05d}.png"
            with Image.open(tmp_path / "JPEGImages" / name) as picture:
                assert np.array_equal(np.asarray(picture), drawn.image)
            numbers = index_map(tmp_path / "Annotations" / name)
            for number, mask in enumerate(drawn.masks, start=1):
                assert np.array_equal(numbers == number, mask)
    truth = json.loads((tmp_path / "1000001.json").read_text())
    assert truth["names"] == [item.name for item in clips[1].scene.objects]
    samples = list(SampleFolder(tmp_path))
    assert len(samples) == sum(len(clip_expressions(clip, np.random.default_rng(0))) for clip in clips[:2]) > 4
    for sample in samples:
        assert len(sample.query.images) == 3 and sample.truth.masks.shape == (1, 3, 64, 64)
        assert sample.truth.masks[0, 0].any()
    assert not list(tmp_path.rglob("*.tmp"))
    for clip, record in zip(clips, davis_records(tmp_path)):
        sample = read_sample(record, tmp_path)
        assert record["key"] == str(clip.seed) and sample.truth.masks.shape == (len(clip.scene.objects), 3, 64, 64)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"frames": 0}, "at least 1"),
        ({"speed": (0.2, 0.1)}, "smallest and the largest"),
        ({"curved": 1.5}, "a chance from 0 to 1"),
    ],
)
def test_a_bad_spec_is_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        ClipSpec(**changes)


def test_a_frame_beyond_the_clip_is_refused():
    with pytest.raises(IndexError, match="frames 0 to 7"):
        sample_clip(1).frame(8)
