"""One instruction for a clip: where it goes, what stays, what is the same in every frame, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusers_focus import FocusPipeline, Mask, Point
from diffusers_focus.data.clips import ClipSpec, sample_clip
from diffusers_focus.data.world import first_held_out_seed
from diffusers_focus.steps.editing import EditPlace

from tests.tiny import SIZE, disk_mask, picture, seeded, shared_pipeline, tiny_pipeline

pytestmark = pytest.mark.whole

OPTIONS = {"num_inference_steps": 1}


@pytest.fixture(scope="module")
def pipe():
    return shared_pipeline()


@pytest.fixture(scope="module")
def clip():
    return [picture(seed) for seed in (0, 1, 0)]


@pytest.fixture(scope="module")
def edited(pipe, clip):
    return pipe.edit_clip(clip, "make it blue", region={1: Mask(disk_mask())}, generator=seeded(3), **OPTIONS)


def test_every_frame_is_edited_in_the_place_that_is_followed(pipe, clip, edited):
    found = pipe.segment_clip(clip, region={1: Mask(disk_mask())})
    assert len(edited.images) == 3 and edited.masks.shape == edited.edit_masks.shape == (3, SIZE, SIZE)
    assert np.array_equal(edited.masks, found.masks[0]) and edited.masks[1].any()
    assert (edited.edit_masks & edited.masks == edited.masks).all()  # grown, never smaller
    for image, own, mask, free in zip(edited.images, clip, edited.masks, edited.edit_masks):
        changed = (np.asarray(image) != np.asarray(own)).any(-1)
        assert changed.any() == mask.any()
        for place, alike in ((EditPlace(mask[None], free), True), (free, not mask.any())):
            again = (
                pipe.edit(own, "make it blue", mask_image=place, generator=seeded(3), **OPTIONS) if free.any() else None
            )
            same = np.array_equal(np.asarray(image), np.asarray(again.images[0] if again else own))
            assert same == alike  # what each frame gives by itself, told what the edit is about


def test_equal_frames_are_edited_alike_and_streams_say_the_same(pipe, clip, edited):
    region = {0: Mask(disk_mask()), 2: Mask(disk_mask())}
    first, _, last = pipe.edit_clip(clip, "make it blue", region=region, **OPTIONS).images
    both = [frame for frame in pipe.stream_clip_edit(clip, "make it blue", region=region, **OPTIONS)]
    assert [frame.index for frame in both] == [0, 1, 2]
    assert np.array_equal(np.asarray(both[0].image), np.asarray(first))
    if np.array_equal(both[0].edit_mask, both[2].edit_mask):
        assert np.array_equal(np.asarray(first), np.asarray(last))
    images, masks, free = pipe.edit_clip(
        clip, "make it blue", region={1: Mask(disk_mask())}, generator=seeded(3), return_dict=False, **OPTIONS
    )
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(images, edited.images))
    assert np.array_equal(masks, edited.masks) and np.array_equal(free, edited.edit_masks)


def test_the_place_may_come_from_words_or_from_the_instruction(pipe, clip):
    words = pipe.edit_clip(clip, "make it blue", "the red circle", **OPTIONS)
    found = pipe.segment_clip(clip, "the red circle")
    assert np.array_equal(words.masks, found.masks.any(axis=0))
    own = pipe.edit_clip(clip, "remove the red circle", **OPTIONS)
    place = pipe.edit(clip[0], "remove the red circle", **OPTIONS).masks[0].any(axis=0)
    assert place.any() and own.masks[0].any()
    nowhere = tiny_pipeline(score_threshold=1.0, fallback_threshold=1.0)
    nothing = nowhere.edit_clip(clip, "remove the star", **OPTIONS)
    assert not nothing.edit_masks.any()
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(nothing.images, clip))


def test_a_frame_is_encoded_once_for_its_place_and_its_edit(pipe, clip):
    calls = []
    hook = pipe.vision_encoder.register_forward_hook(lambda *_: calls.append(1))
    try:
        for options in ({"region": Mask(disk_mask())}, {"target": "the red circle"}, {}):
            calls.clear()
            pipe.edit_clip(clip, "remove the red circle", **options, **OPTIONS)
            assert len(calls) == len(clip)
        calls.clear()
        pipe.edit_clip([clip[0]] * 3, "remove it", region=Mask(disk_mask()), **OPTIONS)
        assert len(calls) == 1  # nothing moves
    finally:
        hook.remove()


def test_its_progress_bar_is_the_clip_s(pipe, clip, capsys):
    pipe.set_progress_bar_config(disable=False, desc="clip")
    try:
        pipe.edit_clip(clip, "make it blue", region=Mask(disk_mask()), **OPTIONS)
    finally:
        pipe.set_progress_bar_config(disable=True)
    shown = capsys.readouterr().err
    assert "3/3" in shown and "/1 " not in shown


@pytest.mark.parametrize(
    "options, kind, says",
    [
        ({"prompt": ["a", "b"]}, TypeError, "one instruction, got a list"),
        ({"prompt": " "}, ValueError, "prompt is empty"),
        ({"mask_image": disk_mask()}, TypeError, "mask_image cannot be given for a clip"),
        ({"generator": 3}, TypeError, "must be a torch.Generator, got int"),
        ({"mask_dilation": -1}, ValueError, "mask_dilation must be at least 0"),
        ({"region": Point(3, 3), "target": "it"}, ValueError, "target and region"),
        ({"region": {9: Point(3, 3)}}, ValueError, "9"),
        ({"frames": []}, ValueError, "frame"),
        ({"frames": iter([picture()])}, ValueError, "read only once needs a target or a region"),
        ({"nonsense": 1, "region": Point(30, 30)}, TypeError, "nonsense"),
    ],
)
def test_mistakes_are_named(pipe, clip, options, kind, says):
    given = {"frames": clip, "prompt": "make it blue", **options}
    with pytest.raises(kind, match=says):
        list(pipe.stream_clip_edit(given.pop("frames"), given.pop("prompt"), **given))


def test_a_generator_goes_on_from_the_edit_of_one_frame(pipe, clip):
    """As after one edit: a second clip is not the first one again."""
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()
    pipe.edit_clip(clip[:2], "make it blue", region=Mask(disk_mask()), generator=generator, **OPTIONS)
    assert not torch.equal(before, generator.get_state())


def test_a_new_background_is_asked_of_every_frame():
    """What covers most of the picture is no object to follow, and its mask leaves the objects of each frame alone."""
    tiny = FocusPipeline.from_pretrained("focus-tiny")
    clip = sample_clip(first_held_out_seed + 8, ClipSpec(frames=8, speed=(0.015, 0.05)))
    shown = list(clip.renders(128))[::3]
    frames = [one.image for one in shown]
    edited = tiny.edit_clip(frames, "change the background to green and red checkers", **OPTIONS)
    for image, frame, one, free in zip(edited.images, frames, shown, edited.edit_masks, strict=True):
        objects = one.masks.any(axis=0)
        assert (free & ~objects).sum() > 0.9 * (~objects).sum() and (free & objects).sum() < 0.2 * objects.sum()
        assert (np.asarray(image) != frame).any(-1)[~objects].mean() > 0.9
    nothing = tiny.edit_clip(frames, "remove the green star", **OPTIONS)
    assert all(np.array_equal(np.asarray(image), frame) for image, frame in zip(nothing.images, frames, strict=True))
