"""Edited clips: who makes the true edit in every frame is right and still; who does nothing is still; who shakes is found out."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from diffusers_focus.data.clips import ClipSpec, edit_of_frame, sample_clip
from diffusers_focus.data.edits import EDIT_KINDS, edit_support
from diffusers_focus.data.world import render
from diffusers_focus.evaluation.edit_clips import EditClipTask, _nearest, score_clip
from diffusers_focus.evaluation.edits import edit_sample
from diffusers_focus.evaluation.run import DEFAULT_TASKS, evaluate
from diffusers_focus.evaluation.tasks import SIZE, draw_batch

pytestmark = pytest.mark.whole

SPEC = ClipSpec(frames=3, speed=(0.015, 0.05))
COUNT = 3
GROW = ImageFilter.MaxFilter(3)


class Editor:
    """Makes the true edit of the clips it knows by their frames, then spoils it."""

    def __init__(self, spoil=lambda frame, picture, support: picture, blind=False):
        self.spoil, self.blind = spoil, blind

    def edit_clip(self, frames, instruction, generator):
        clip = next(
            one for seed in range(COUNT) if (one := known(seed)).render(0, SIZE).image.tobytes() == frames[0].tobytes()
        )
        edit = edit_sample(clip.scene, False, "edit_clips")
        assert edit.instruction == instruction and generator.initial_seed() == clip.seed
        images, masks, free = [], [], []
        for index, frame in enumerate(frames):
            here = edit_of_frame(clip, edit, index)
            support = edit_support(clip.frame(index), here, SIZE)
            drawn = clip.render(index, SIZE)
            masks.append(drawn.masks[edit.targets[0]] if edit.targets else ~drawn.masks.any(axis=0))
            # Smoothed edges of what is drawn reach one pixel further.
            free.append(np.asarray(Image.fromarray(support).convert("L").filter(GROW)) > 0)
            picture = frame if self.blind else render(here.result, SIZE).image
            images.append(Image.fromarray(self.spoil(index, picture.copy(), support)))
        if self.blind:
            free = masks = [np.zeros_like(one) for one in free]
        return SimpleNamespace(images=images, masks=np.stack(masks), edit_masks=np.stack(free))


@cache
def known(index):
    return sample_clip(1_000_000 + index, SPEC)


def measured(pipe):
    task = EditClipTask(spec=SPEC)
    task.run(pipe, draw_batch("in", 0, COUNT))
    return task.figures(), task.records


def value(figures, name):
    return figures[name]["value"]


def test_the_true_edit_is_right_and_still():
    figures, records = measured(Editor())
    for name in ("right", "right_frames", "still_outside", "mask_mIoU"):
        assert value(figures, name) == 1.0, name
    assert value(figures, "psnr_inside") == 100.0
    assert value(figures, "flicker_ratio") == value(figures, "flicker_ratio_most") == 1.0
    assert value(figures, "flicker_truth") > 0.5
    assert value(figures, "flicker_outside") == value(figures, "flicker_outside_most") == 0.0
    assert set(figures["kinds"]) == {row["kind"] for row in records} <= set(EDIT_KINDS) and len(figures["kinds"]) > 2


def test_doing_nothing_is_still_and_wrong():
    figures, _ = measured(Editor(blind=True))
    assert value(figures, "right") == value(figures, "right_frames") == value(figures, "mask_mIoU") == 0.0
    assert value(figures, "still_outside") == 1.0 and value(figures, "psnr_inside") < 40


def test_what_shakes_is_found_out():
    def shake(frame, picture, support):
        levels = picture.astype(int)
        levels[support] += 60 * (-1) ** frame
        return np.clip(levels, 0, 255).astype(np.uint8)

    figures, _ = measured(Editor(shake))
    assert (
        value(figures, "flicker_ratio_most") >= value(figures, "flicker_ratio") > 1.5
        and value(figures, "still_outside") == 1.0
    )

    def leak(frame, picture, support):
        picture[0, 0] ^= 2 * (frame == 1)
        return picture

    figures, records = measured(Editor(leak))
    assert value(figures, "still_outside") < 1.0 and value(figures, "flicker_outside_most") == 2.0
    assert value(figures, "right") == 1.0 and all(row["flicker_outside_most"] in (0, 2) for row in records)


def test_new_stripes_may_lie_in_any_way_but_in_one():
    clips = (sample_clip(seed, SPEC) for seed in range(100))
    striped = ((clip, _becomes_striped(clip)) for clip in clips)
    clip, edit = next((clip, edit) for clip, edit in striped if edit is not None)
    source = np.stack([clip.render(index, SIZE).image for index in range(SPEC.frames)])
    there = [edit_of_frame(clip, edit, index) for index in range(SPEC.frames)]
    own = clip.scene.stripes

    def right(*ways):
        edited = [
            np.where(render(here.result, SIZE).masks[edit.targets[0]][..., None], drawn, kept)
            for here, drawn, kept in zip(
                there,
                (render(replace(here.result, stripes=way), SIZE).image for here, way in zip(there, ways, strict=True)),
                (render(here.result, SIZE).image for here in there),
            )
        ]
        return score_clip(np.stack(edited), source, np.zeros(source.shape[:3], bool), clip, edit)

    other, shifted = (-own[0], own[1]), (own[0], own[1] + 0.5)
    assert right(own, own, own)["right"] == right(other, other, other)["right"] == 1.0
    assert right(shifted, shifted, shifted)["right"] == 1.0
    solid = score_clip(source, source, np.zeros(source.shape[:3], bool), clip, edit)
    assert solid["right"] == solid["right_frames"] == 0.0
    assert right(own, other, own)["right_frames"] == 1.0
    # One lay is compared through all frames: two right pictures of two lays may be further from either than a wrong clip is.
    first, second = (
        (np.array(to_right), np.array([4.0]), np.ones((1, 2), bool)) for to_right in ([0.0, 10.0], [10.0, 0.0])
    )
    assert _nearest([first]) and _nearest([second]) and not _nearest([first, second])


def _becomes_striped(clip):
    try:
        edit = edit_sample(clip.scene, False, "edit_clips", ["fill"])
    except ValueError:
        return None
    return edit if edit.result.objects[edit.targets[0]].fill == "striped" else None


def test_an_edit_keeps_what_it_changes_through_the_clip():
    clip = known(0)
    for kind in EDIT_KINDS:
        try:
            edit = edit_sample(clip.scene, False, "edit_clips", [kind])
        except ValueError:
            continue
        assert edit_of_frame(clip, edit, 0).result == edit.result
        later, frame = edit_of_frame(clip, edit, 2).result, clip.frame(2)
        assert later.seed == frame.seed
        if kind == "background":
            assert later.objects == frame.objects and later.background == edit.result.background
        elif kind == "remove":
            assert [one for one in frame.objects if one not in later.objects] == [frame.objects[edit.targets[0]]]
        else:
            new = later.objects[edit.targets[0]]
            assert (new.cx, new.cy) == (frame.objects[edit.targets[0]].cx, frame.objects[edit.targets[0]].cy)
            assert (new.shape, new.colour, new.r) == tuple(
                getattr(edit.result.objects[edit.targets[0]], name) for name in ("shape", "colour", "r")
            )


def test_clips_are_edited_only_when_asked_for():
    assert "edit_clips" not in DEFAULT_TASKS
    with pytest.raises(ValueError, match="has no unet"):
        evaluate(SimpleNamespace(unet=None), 1, ["in"], ["edit_clips"])
