"""Clips through the pipeline: what goes in, what comes out, in which order, and what is refused."""

from __future__ import annotations

import gc
import json
import weakref

import numpy as np
import pytest
from PIL import Image

from diffusers_focus import Box, FocusClipWriter, Mask, Point, Scribble
from diffusers_focus.data.clips import ClipSpec, sample_clip
from diffusers_focus.data.coco_masks import decode_rle, index_map
from diffusers_focus.evaluation import metrics

from tests.tiny import SIZE, disk_mask, picture, shared_pipeline


@pytest.fixture(scope="module")
def pipe():
    return shared_pipeline()


@pytest.fixture(scope="module")
def clip():
    return [picture(seed) for seed in range(4)]


SHORT = {"max_new_tokens": 2}  # random weights write names without end
REGIONS = {2: [Mask(disk_mask()), [Box(36, 36, 56, 56), Point(44, 44)]], 0: Scribble([(10, 10), (20, 20)])}


def test_objects_have_the_numbers_of_their_regions_in_every_frame(pipe, clip):
    out = pipe.segment_clip(clip, region=REGIONS, **SHORT)
    assert out.numbers == [1, 2, 3] and out.masks.shape == (3, 4, SIZE, SIZE) and out.masks.dtype == bool
    assert out.scores.shape == (3, 4) and out.scores.dtype == np.float32
    assert ((out.scores > 0) == out.masks.any(axis=(2, 3))).all()
    assert out.masks[:2, 2].any(axis=(1, 2)).all() and out.masks[2, 0].any()  # where they were pointed at
    assert out.masks.sum(axis=0).max() == 1  # no two objects share a pixel


def test_streaming_and_collecting_say_the_same(pipe, clip):
    frames = list(pipe.stream_clip(clip, region=REGIONS, **SHORT))
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    arrays = pipe.segment_clip(clip, region=REGIONS, **SHORT)
    maps = pipe.segment_clip(
        np.stack([np.asarray(image) for image in clip]), region=REGIONS, output_type="maps", **SHORT
    )
    runs, scores, labels, numbers = pipe.segment_clip(
        clip, region=REGIONS, output_type="rle", return_dict=False, **SHORT
    )
    assert maps.masks.dtype == np.uint8 and labels == arrays.labels and numbers == [1, 2, 3]
    for frame in frames:
        for number in (1, 2, 3):
            wanted = arrays.masks[number - 1, frame.index]
            assert np.array_equal(maps.masks[frame.index] == number, wanted)
            run = runs[number - 1][frame.index]
            assert not wanted.any() if run is None else np.array_equal(decode_rle(run), wanted)
            assert (number in frame.numbers) == wanted.any()
            if number in frame.numbers:
                place = frame.numbers.index(number)
                assert np.array_equal(frame.masks[place], wanted)
                assert frame.scores[place] == scores[number - 1, frame.index]


def test_a_region_on_the_last_frame_reaches_the_first_as_that_on_the_first_of_the_reversed_clip(pipe, clip):
    region = Mask(disk_mask())
    backwards = pipe.segment_clip(clip, region={3: region}, **SHORT).masks
    forwards = pipe.segment_clip(clip[::-1], region=region, **SHORT).masks
    assert np.array_equal(backwards[:, ::-1], forwards)


def test_words_and_classes(pipe, clip):
    out = pipe.segment_clip(clip, ["the red circle", "the blue star"], **SHORT)
    assert out.masks.shape == (2, 4, SIZE, SIZE) and out.numbers == [1, 2]
    assert set(out.labels) <= {"the red circle", "the blue star", ""}
    alone = pipe.segment_clip(clip, "the blue star", task="reasoning", **SHORT)
    assert alone.masks.shape == (1, 4, SIZE, SIZE)
    out = pipe.segment_clip(clip, classes=["circle", "star"], **SHORT)
    assert out.numbers == list(range(1, len(out.masks) + 1)) and set(out.labels) <= {"circle", "star"}
    assert out.masks.any() and out.masks.sum(axis=0).max() == 1


def test_nothing_is_read_before_its_turn_and_nothing_is_kept(pipe):
    alive = []

    def source():
        for seed in range(5):
            image = picture(seed)
            alive.append(weakref.ref(image))
            yield image

    stream = pipe.stream_clip(source(), region=[Point(18, 18)], **SHORT)
    assert not alive
    for done, frame in enumerate(stream, start=1):
        assert len(alive) == done
        del frame
    gc.collect()
    assert done == 5 and [ref() for ref in alive] == [None] * 5


def test_folders_hold_maps_names_runs_and_an_overlay(pipe, clip, tmp_path):
    with FocusClipWriter(tmp_path / "out", overlay="overlay.gif", rate=8, lines="masks.jsonl") as writer:
        for frame in pipe.stream_clip(clip, region=REGIONS, **SHORT):
            writer.write(frame)
    wanted = pipe.segment_clip(clip, region=REGIONS, **SHORT)
    lines = [json.loads(line) for line in (tmp_path / "out" / "masks.jsonl").read_text().splitlines()]
    for index in range(4):
        numbers = index_map(tmp_path / "out" / f"{index:05d}.png")
        for number, mask in zip(wanted.numbers, wanted.masks[:, index]):
            assert np.array_equal(numbers == number, mask)
            runs = [one["segmentation"] for one in lines[index]["objects"] if one["id"] == number]
            assert [decode_rle(run).sum() for run in runs] == ([mask.sum()] if mask.any() else [])
    objects = json.loads((tmp_path / "out" / "objects.json").read_text())
    seen = (wanted.scores > 0).sum(axis=1).tolist()
    assert [one["frames"] for one in objects.values()] == [count for count in seen if count]
    with Image.open(tmp_path / "out" / "overlay.gif") as picture_:
        assert picture_.n_frames == 4 and picture_.size == (SIZE, SIZE)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_a_broken_stream_leaves_old_results(pipe, clip, tmp_path):
    (tmp_path / "objects.json").write_text("old")
    (tmp_path / "overlay.gif").write_bytes(b"old")
    with pytest.raises(ValueError, match="Frame 1 of the clip"):
        with FocusClipWriter(tmp_path, overlay="overlay.gif") as writer:
            for frame in pipe.stream_clip([clip[0], clip[1].resize((80, 64))], region=Point(18, 18), **SHORT):
                writer.write(frame)
    assert (tmp_path / "objects.json").read_text() == "old" and (tmp_path / "overlay.gif").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.png", "objects.json", "overlay.gif"]


def test_bad_calls_are_refused_before_anything_is_read(pipe, clip):
    def unread():
        raise AssertionError("read")
        yield

    for arguments, error, says in (
        ({}, ValueError, "exactly one of target, region and classes"),
        ({"target": "the star", "region": Point(1, 1)}, ValueError, "exactly one"),
        ({"region": {}}, ValueError, "empty dict"),
        ({"region": {4: Point(1, 1)}}, ValueError, "frame 4, but the clip has the frames 0 to 3"),
        ({"region": {-1: Point(1, 1)}}, ValueError, "frame -1"),
        ({"region": {"first": Point(1, 1)}}, TypeError, "'first' is no frame number"),
        ({"region": {0: []}}, ValueError, "empty list"),
        ({"target": []}, ValueError, "empty list"),
        ({"target": ["the star", " "]}, ValueError, "target is empty"),
        ({"classes": [["circle"]]}, TypeError, "one list of names"),
        ({"classes": "circle"}, TypeError, "list of names"),
        ({"target": "the star", "task": "guess"}, ValueError, "no task 'guess' here"),
        ({"target": "the star", "output_type": "pil"}, ValueError, "np, maps, rle"),
        ({"target": "the star", "max_new_tokens": 0}, ValueError, "at least 1"),
    ):
        with pytest.raises(error, match=says):
            pipe.segment_clip(clip, **arguments)
        if "4" not in str(arguments):
            with pytest.raises(error, match=says):
                pipe.segment_clip(unread(), **arguments)
    for frames, region, says in (
        (clip, Point(64, 3), "outside the image"),
        (clip, "the middle", "must be a Point"),
        (iter(clip), {1: Point(1, 1)}, "cannot do"),
        ([], Point(1, 1), "no frames"),
    ):
        with pytest.raises((TypeError, ValueError), match=says):
            pipe.segment_clip(frames, region=region)
    with pytest.raises(ValueError, match="cannot do"):
        pipe.stream_clip(iter(clip), region={1: Point(1, 1)})


def test_focus_tiny_follows_objects_better_than_one_frame_says(root):
    folder = root / "pipelines" / "focus-tiny"
    if not (folder / "model_index.json").is_file():
        pytest.skip("pipelines/focus-tiny is not published yet")
    import torch

    from diffusers_focus import FocusPipeline

    pipe = FocusPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    clip = sample_clip(1_000_000, ClipSpec(frames=7, speed=(0.04, 0.05)))
    drawn = list(clip.renders())
    truth = np.stack([one.masks for one in drawn], axis=1)
    out = pipe.segment_clip([one.image for one in drawn], region={3: [Mask(mask) for mask in truth[:, 3]]})
    followed = [metrics.iou(out.masks[i, t], truth[i, t]) for i in range(len(truth)) for t in (0, 6)]
    echo = [metrics.iou(truth[i, 3], truth[i, t]) for i in range(len(truth)) for t in (0, 6)]
    assert np.mean(followed) > 0.6 > 0.3 > np.mean(echo)
