"""Several edits of one picture: drawn in their own places, merged into one picture, denoised and put back once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusers_focus import Box, Mask, Point
from diffusers_focus.processing.images import Placement
from diffusers_focus.steps.editing import EditPrompt, edit_codes
from diffusers_focus.steps.encode import source_codes
from diffusers_focus.steps.joint_edits import cell_owners, drawing_rounds, joint_codes
from diffusers_focus.steps.sampling import GREEDY

from tests.tiny import SIZE, disk_mask, picture, seeded, shared_pipeline

TEXTS = ["remove the red circle", "make the blue star green"]
STEPS = {"num_inference_steps": 1}


def block(top: int, left: int, height: int, width: int, size: int = SIZE) -> np.ndarray:
    mask = np.zeros((size, size), dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


APART = [block(0, 0, 20, 20), block(40, 40, 20, 20)]
OVER = [block(0, 0, 40, 40), block(24, 24, 40, 40)]


@pytest.fixture(scope="module")
def pipe():
    return shared_pipeline()


@pytest.fixture(scope="module")
def seen(pipe):
    return pipe.encode_image([picture(0), picture(1)])


def same(one, other) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def test_what_overlaps_waits_for_what_came_before():
    left, right, far = block(0, 0, 9, 9), block(8, 8, 9, 9), block(40, 40, 9, 9)
    assert drawing_rounds([left, far, right]) == [0, 0, 1]
    assert drawing_rounds([left, left, left]) == [0, 1, 2]
    assert drawing_rounds([np.zeros_like(left), left]) == [0, 0]


def test_a_pixel_is_the_last_edit_s_and_a_cell_the_one_s_that_has_most_of_it():
    placement = Placement.fit((8, 8), (8, 8))
    first, second = block(0, 0, 8, 3, 8), block(0, 3, 8, 3, 8)
    owners = cell_owners([first, second], placement, (2, 2))
    assert owners.tolist() == [[0, 1], [0, 1]]  # of the left cells 12 pixels are the first's, 4 the second's
    assert cell_owners([first, first], placement, (2, 2)).tolist() == [[1, -1], [1, -1]]
    half = cell_owners([block(0, 0, 4, 2, 8), block(0, 2, 4, 2, 8)], placement, (2, 2))
    assert half.tolist() == [[1, -1], [-1, -1]]


@torch.no_grad()
def test_edits_that_lie_apart_have_the_codes_each_has_alone(pipe, seen):
    prompts = [EditPrompt(1, text, mask=mask, picture=0) for text, mask in zip(TEXTS, APART)]
    drawn = {"semantic": GREEDY, "pixel": GREEDY}
    joint = edit_codes(pipe, seen, prompts, APART, **drawn)
    alone = [edit_codes(pipe, seen, [one], [mask], **drawn) for one, mask in zip(prompts, APART)]
    own = source_codes(pipe, seen)
    for level, grid in enumerate([(2, 2), (4, 4)]):
        assert joint[level].shape == (1, *grid)
        owners = cell_owners(APART, seen.inputs.placements[1], grid)
        expected = torch.where(owners == 0, alone[0][level], torch.where(owners == 1, alone[1][level], own[level][1]))
        assert torch.equal(joint[level], expected)
    assert any((one != other[1]).any() for one, other in zip(joint, own))


@torch.no_grad()
def test_the_outline_of_what_was_edited_before_is_not_known(pipe, seen):
    asked: list[bool] = []

    def write(encoding, prompts, masks, **options):
        asked.extend(prompt.keeps_outline for prompt in prompts)
        return edit_codes(pipe, encoding, prompts, masks, semantic=GREEDY, pixel=GREEDY)

    for masks, known in ((APART, [True, True]), (OVER, [True, False])):
        prompts = [EditPrompt(0, "make it red", about=mask, picture=0, keeps_outline=True) for mask in masks]
        joint_codes(write, pipe, seen, prompts, masks)
        assert asked == known
        asked.clear()


@torch.no_grad()
def test_a_later_edit_that_overlaps_is_drawn_on_what_the_earlier_made(pipe, seen):
    reads = []
    hook = pipe.vision_encoder.register_forward_hook(
        lambda module, inputs, kwargs, out: reads.append(out), with_kwargs=True
    )
    try:
        prompts = [EditPrompt(0, text, mask=mask, picture=3) for text, mask in zip(TEXTS, OVER)]
        joint = edit_codes(pipe, seen, prompts, OVER, semantic=GREEDY, pixel=GREEDY)
        assert len(reads) == 1  # the picture that the first edit makes; the second reads that
        edit_codes(pipe, seen, [EditPrompt(0, TEXTS[0], mask=m, picture=3) for m in APART], APART, semantic=GREEDY)
        assert len(reads) == 1
    finally:
        hook.remove()
    first = edit_codes(pipe, seen, [prompts[0]], [OVER[0]], semantic=GREEDY, pixel=GREEDY)
    owners = cell_owners(OVER, seen.inputs.placements[0], (4, 4))
    assert torch.equal(joint[1][0][owners == 0], first[1][0][owners == 0])
    moved = (reads[0].image_features - seen.vision.image_features[:1]).abs().max()
    assert moved > 1e-3


def test_one_picture_is_edited_twice_and_denoised_once(pipe):
    image, calls = picture(), []
    hook = pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    try:
        out = pipe.edit(image, [TEXTS], mask_image=[APART], generator=seeded(), num_inference_steps=3, mask_blur=0)
    finally:
        hook.remove()
    (result,), own = out.images, np.asarray(image)
    assert len(calls) == 3
    changed = (np.asarray(result) != own).any(-1)
    assert not changed[~(APART[0] | APART[1])].any() and all(changed[mask].any() for mask in APART)
    assert [[same(one, mask) for one, mask in zip(out.edit_masks[0], APART)]] == [[True, True]]
    assert len(out.masks[0]) == 2 and same(out.union_masks[0], APART[0] | APART[1])


def test_a_list_of_one_edit_is_that_edit_and_lists_may_stand_beside_single_ones(pipe):
    images, places = [picture(0), picture(1)], [APART[0], APART[1]]
    plain = pipe.edit(images[0], TEXTS[0], mask_image=places[0], generator=seeded(1), **STEPS)
    listed = pipe.edit(images[0], [[TEXTS[0]]], mask_image=[[places[0]]], generator=[seeded(1)], **STEPS)
    assert same(plain.images[0], listed.images[0]) and same(plain.edit_masks[0], listed.edit_masks[0][0])
    mixed = pipe.edit(
        images, [TEXTS[0], TEXTS], mask_image=[places[0], APART], generator=[seeded(1), seeded(2)], **STEPS
    )
    assert np.abs(np.asarray(mixed.images[0]).astype(int) - np.asarray(plain.images[0])).max() <= 1
    assert mixed.edit_masks[0].shape == (SIZE, SIZE) and len(mixed.edit_masks[1]) == 2
    twice = pipe.edit(
        images[1], [TEXTS], mask_image=[APART], num_images_per_prompt=2, generator=[seeded(2), seeded(3)], **STEPS
    )
    assert len(twice.images) == 2 and len(twice.edit_masks) == 1
    assert np.abs(np.asarray(twice.images[0]).astype(int) - np.asarray(mixed.images[1])).max() <= 1
    assert not same(twice.images[0], twice.images[1])


def test_all_places_are_found_in_one_reading(pipe):
    readings = []
    hook = pipe.mask_decoder.layers[0].register_forward_hook(lambda *_: readings.append(1))
    try:
        out = pipe.edit(
            picture(), [["remove it", "make it blue", TEXTS[1]]], region=[[Point(20, 20), Box(40, 40, 60, 60), None]],
            **STEPS,
        )  # fmt: skip
    finally:
        hook.remove()
    assert len(readings) == 1 and [mask.shape for mask in out.edit_masks[0]] == [(SIZE, SIZE)] * 3
    words = pipe.edit(picture(), [TEXTS], target=[["the red circle", None]], **STEPS)
    assert same(words.edit_masks[0][0], pipe.edit(picture(), TEXTS[0], target="the red circle", **STEPS).edit_masks[0])
    assert same(words.edit_masks[0][1], pipe.edit(picture(), TEXTS[1], **STEPS).edit_masks[0])


def test_masks_that_come_back_go_in_again_as_they_are_or_changed(pipe):
    images = [picture(0, 48, 80), picture(1, 64, 70)]
    prompts = ["remove it", TEXTS]
    out = pipe.edit(images, prompts, target=["the red circle", ["it", None]], output_type="np", **STEPS)
    again = pipe.edit(images, prompts, mask_image=out.edit_masks, generator=seeded(), output_type="np", **STEPS)
    assert same(again.edit_masks[0], out.edit_masks[0])
    assert all(same(one, other) for one, other in zip(again.edit_masks[1], out.edit_masks[1]))
    meant = pipe.edit(images, prompts, mask_image=out.masks, **STEPS)
    assert same(meant.edit_masks[0], out.masks[0].any(axis=0))
    smaller = [out.edit_masks[0] & block(0, 0, 48, 48, 80)[:48], [~out.edit_masks[1][0], np.zeros((64, 70), bool)]]
    changed = pipe.edit(images, prompts, mask_image=smaller, mask_blur=0, output_type="np", **STEPS)
    for image, result, union in zip(images, changed.images, changed.union_masks):
        assert same(np.rint(result * 255).astype(np.uint8)[~union], np.asarray(image)[~union])
    # In a batch, what has an empty mask stays as it is; alone that is a slip.
    nothing = [np.zeros((48, 80), dtype=bool), [np.zeros((64, 70), dtype=bool), out.edit_masks[1][1]]]
    kept = pipe.edit(images, prompts, mask_image=nothing, **STEPS)
    assert same(kept.images[0], images[0]) and not same(kept.images[1], images[1])
    with pytest.raises(ValueError, match="mask_image is empty"):
        pipe.edit(images[0], "remove it", mask_image=nothing[0], **STEPS)


def test_the_surroundings_of_all_edits_are_one_part(pipe):
    image = picture(1, 300, 420)
    places = [Box(200, 100, 220, 120).rasterize(300, 420), Box(230, 100, 250, 130).rasterize(300, 420)]
    options = {"generator": seeded(), "padding_mask_crop": 8, "mask_blur": 2, **STEPS}
    (result,) = pipe.edit(image, [TEXTS], mask_image=[places], **options).images
    left, top, right, bottom = 192, 86, 258, 144
    options |= {"generator": seeded(), "padding_mask_crop": None}
    inside = [place[top:bottom, left:right] for place in places]
    (part,) = pipe.edit(image.crop((left, top, right, bottom)), [TEXTS], mask_image=[inside], **options).images
    changed = (np.asarray(result) != np.asarray(image)).any(-1)
    rows, columns = np.nonzero(changed.any(1))[0], np.nonzero(changed.any(0))[0]
    assert (rows.min(), columns.min()) >= (98, 198) and rows.max() < 132 and columns.max() < 252
    assert part.size == (right - left, bottom - top)


@pytest.mark.parametrize(
    "options, kind, says",
    [
        ({"mask_image": APART}, ValueError, "holds 2 edits of one picture.* Nest them"),
        ({"region": [[Point(3, 3)]]}, ValueError, "region has 1 entries for the 2 edits"),
        ({"prompt": [[]]}, ValueError, "prompt is an empty list"),
        ({"prompt": [["a", 3]]}, TypeError, "prompt must be a string"),
        ({"prompt": [["a", ["b"]]]}, TypeError, "prompt must be a string"),
        ({"target": [["it", 3]]}, TypeError, "target must be a string"),
        ({"target": [["it", "a"]], "region": Point(3, 3)}, ValueError, "Pass one of them"),
        ({"mask_image": [[disk_mask(), np.zeros((SIZE, SIZE + 1), bool)]]}, ValueError, "mask_image cannot be used"),
        ({"mask_image": [[np.zeros((SIZE, SIZE), bool)] * 2]}, ValueError, "mask_image is empty"),
        ({"negative_prompt": ["a", "b"]}, ValueError, "2 texts for 1 prompts"),
        ({"image": None}, ValueError, "several edits of one picture, but image is None"),
    ],
)
def test_mistakes_are_named(pipe, options, kind, says):
    with pytest.raises(kind, match=says):
        pipe(**{"image": picture(), "prompt": [TEXTS], **STEPS, **options})


def test_regions_of_one_edit_stay_regions_of_one_edit(pipe):
    two = pipe.edit(
        picture(), [["remove it", "make it blue"]], region=[[[Point(9, 9), Point(50, 50)], Mask(disk_mask())]], **STEPS
    )
    assert len(two.edit_masks[0]) == 2
    one = pipe.edit(picture(), "remove it", region=[[Point(9, 9), Point(50, 50)]], **STEPS)
    assert same(one.edit_masks[0], two.edit_masks[0][0])
