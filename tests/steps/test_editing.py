"""Where an edit takes place, and what is left of the source."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_focus import Point
from diffusers_focus.data.edits import EDIT_KINDS
from diffusers_focus.data.world import sample_scene
from diffusers_focus.evaluation.edits import edit_sample
from diffusers_focus.processing.grammar import TokenSampling
from diffusers_focus.processing.images import FocusImageProcessor, Placement
from diffusers_focus.processing.prompts import EDIT, INTERACTIVE, REFERRING
from diffusers_focus.steps import composite
from diffusers_focus.steps.editing import (
    EditPrompt,
    drawing,
    edit_codes,
    edit_place,
    edit_places,
    edit_prompts,
    generation_codes,
    told,
)
from diffusers_focus.steps.encode import source_codes
from diffusers_focus.steps.sampling import GREEDY
from diffusers_focus.steps.segment import FoundObjects

from tests.tiny import disk_mask, picture, seeded, shared_pipeline


def found(edit: bool) -> FoundObjects:
    masks = np.zeros((1, 64, 64), dtype=bool)
    masks[0, 20:30, 20:30] = True
    own = masks[0] & (np.arange(64) < 25) if edit else np.zeros((64, 64), dtype=bool)
    return FoundObjects(masks, own, np.ones(1, np.float32))


def test_where_is_asked_the_way_the_model_was_trained():
    region = (disk_mask(),)
    assert EditPrompt(0, "remove it").where.task == EDIT
    assert EditPrompt(0, "remove it", target="the star").where.task == REFERRING
    assert EditPrompt(0, "remove it", regions=region).where.task == INTERACTIVE
    assert EditPrompt(0, "remove it", regions=region, region_slots=True).where.task == EDIT
    assert EditPrompt(0, "remove it", mask=disk_mask()).where is None
    # With a mask only what the edit is about is looked for, where somebody says it and it is not known yet.
    assert EditPrompt(0, "remove it", target="the star", mask=disk_mask()).where.task == REFERRING
    for slots in (False, True):
        assert (
            EditPrompt(0, "remove it", regions=region, region_slots=slots, mask=disk_mask()).where.task == INTERACTIVE
        )
    assert EditPrompt(0, "remove it", target="the star", mask=disk_mask(), about=disk_mask()).where is None
    assert EditPrompt(0, "remove it", target="the star", mask=np.zeros((64, 64), dtype=bool)).where is None


def test_the_models_own_edit_mask_is_used_where_it_was_asked_for_one():
    place = edit_place(EditPrompt(0, "remove it"), found(True))
    assert (place.edit_mask == found(True).edit_mask).all() and place.masks.shape == (1, 64, 64)
    # A new outline needs room, twice as much as around a mask of the object.
    grown = edit_place(EditPrompt(0, "replace it with a star"), found(True), dilation=0.03).edit_mask
    assert grown[16, 22] and grown[25, 28] and not grown[15, 22] and not grown[25, 29]  # by 4 pixels
    for prompt, options in (
        (EditPrompt(0, "remove it", target="the star"), {}),
        (EditPrompt(0, "remove it"), {"edit_masks_trained": False}),
    ):
        grown = edit_place(prompt, found(True), dilation=0.03, **options).edit_mask
        assert grown[18, 25] and not grown[17, 25] and not grown[18, 18]  # a disk of 2 pixels leaves the corners


def test_a_background_does_not_grow_into_the_objects_before_it():
    ground = ~disk_mask()
    whole = FoundObjects(ground[None], ground, np.ones(1, np.float32))
    assert (edit_place(EditPrompt(0, "change the background to red"), whole, dilation=0.03).edit_mask == ground).all()
    grown = edit_place(EditPrompt(0, "change the background to red"), whole, mask_dilation=2).edit_mask
    assert grown.sum() > ground.sum()


def test_a_new_outline_gets_the_box():
    mask = edit_place(EditPrompt(0, "replace it with a star", target="it"), found(False), dilation=0.03).edit_mask
    assert mask[18:32, 18:32].all() and mask.sum() == 14 * 14


@pytest.mark.parametrize(
    ("instruction", "box"),
    [
        ("replace the circle with a star", True),
        ("change the circle to a star", True),
        ("make the circle larger", True),
        ("make the circle red", False),
        ("remove the circle", False),
    ],
)
def test_instructions_that_change_the_outline(instruction, box):
    assert composite.needs_box(instruction) == box


def test_a_mask_from_outside_is_taken_as_it_is():
    mask = disk_mask()
    place = edit_place(EditPrompt(0, "replace it with a star", mask=mask), None)
    assert (place.edit_mask == mask).all()
    grown = edit_place(EditPrompt(0, "replace it with a star", mask=mask), None, mask_dilation=3).edit_mask
    assert grown.sum() > mask.sum() and not (mask & ~grown).any()


def test_what_is_found_within_a_mask_from_outside_is_what_the_edit_is_about():
    disk, away = disk_mask(), np.zeros((64, 64), dtype=bool)
    away[50:60, 50:60] = True
    painted = composite.grow_mask(disk, 6)
    prompt = EditPrompt(0, "make it blue", target="the disks", mask=painted)
    both = FoundObjects(np.stack([away, disk]), away, np.ones(2, np.float32))
    place = edit_place(prompt, both)
    assert (place.edit_mask == painted).all() and (place.masks == disk[None]).all()
    (known,) = told([prompt], [place.masks])
    assert known.keeps_outline and not told([prompt], [painted[None]])[0].keeps_outline
    elsewhere = edit_place(prompt, FoundObjects(away[None], away, np.ones(1, np.float32)))
    assert (elsewhere.edit_mask == painted).all() and (elsewhere.masks == painted[None]).all()


@pytest.mark.parametrize("reach", [0, 1, 2, 3, 5])
def test_a_soft_edge_stays_within_its_reach(reach):
    mask = np.zeros((40, 40), dtype=bool)
    mask[15:25, 15:25] = True
    soft = composite.soft_mask(mask, reach)
    outside = soft.clone()
    outside[15 - reach : 25 + reach, 15 - reach : 25 + reach] = 0
    assert not outside.any()
    assert (soft[mask] == 1).all()
    if reach > 1:
        assert 0 < soft[20, 25] < 1


def test_pixels_outside_come_back_bit_for_bit_whatever_the_scale():
    image = picture(3, 50, 70)
    placement = Placement.fit((50, 70), (64, 64))
    processor = FocusImageProcessor(buckets=[[64, 64]], tag_step=16, high_resolution=None)
    mask = np.zeros((50, 70), dtype=bool)
    mask[10:20, 30:40] = True
    soft = composite.soft_mask(mask, 2)
    decoded = torch.zeros(3, 128, 128)
    (result,) = composite.to_output([composite.composite(image, decoded, soft, processor, placement)], "pil")
    changed = (np.array(result) != np.array(image)).any(-1)
    assert isinstance(result, Image.Image) and not changed[soft.numpy() == 0].any() and changed[mask].all()
    raw = composite.composite(image, decoded, None, processor, placement)
    assert raw.shape == (3, 50, 70) and (raw == 0.5).all()


@torch.no_grad()
def test_codes_outside_the_edit_are_the_sources_own():
    pipe = shared_pipeline()
    encoding = pipe.encode_image([picture(0), picture(1)])
    corner = np.zeros((64, 64), dtype=bool)
    corner[:10, :10] = True
    prompts = [EditPrompt(1, "remove the red circle"), EditPrompt(0, "remove the blue star")]
    codes = edit_codes(pipe, encoding, prompts, [corner, np.zeros_like(corner)], semantic=GREEDY, pixel=GREEDY)
    for now, own in zip(codes, source_codes(pipe, encoding)):
        assert torch.equal(now[1], own[0])
        assert torch.equal(now[0].flatten()[1:], own[1].flatten()[1:])


@torch.no_grad()
def test_all_cells_of_an_edit_are_drawn_where_they_are_not_limited():
    """And none of a picture that an empty mask leaves alone."""
    pipe = shared_pipeline()
    encoding, masks = pipe.encode_image([picture(0), picture(1)]), [disk_mask(), np.zeros((64, 64), dtype=bool)]
    prompts, drawn = [EditPrompt(i, "remove the red circle", mask=masks[i]) for i in (0, 1)], []
    options = {"semantic": GREEDY, "pixel": GREEDY, "start_tokens": lambda count: drawn.append(count) or (lambda: True)}
    limited = edit_codes(pipe, encoding, prompts, masks, **options)
    whole = edit_codes(pipe, encoding, prompts, masks, limited=False, **options)
    everywhere = edit_codes(pipe, encoding, prompts, [np.ones_like(masks[0]), masks[1]], **options)
    assert drawn[1] == drawn[2] == sum(codes[0].numel() for codes in limited) > drawn[0]
    assert torch.equal(whole[0][0], everywhere[0][0])  # semantic codes: where the place is guides pixel codes alone
    assert not torch.equal(whole[1][0], limited[1][0])
    for codes, own in zip(whole, source_codes(pipe, encoding)):
        assert torch.equal(codes[1], own[1])


@torch.no_grad()
def test_what_an_edit_is_about_guides_its_pixel_codes_alone():
    pipe = shared_pipeline()
    encoding, mask = pipe.encode_image(picture(0)), np.ones((64, 64), dtype=bool)

    def written(about):
        return edit_codes(
            pipe, encoding, [EditPrompt(0, "remove it", about=about)], [mask], semantic=GREEDY, pixel=GREEDY
        )

    left, right = np.zeros_like(mask), np.zeros_like(mask)
    left[20:40, 5:25], right[20:40, 40:60] = True, True
    semantic, pixel = zip(written(left), written(right), written(None), written(mask))
    assert all(torch.equal(one, semantic[0]) for one in semantic)
    assert not torch.equal(pixel[0], pixel[1])
    assert torch.equal(pixel[2], pixel[3])  # where nothing is known of the object, the place stands for it


@torch.no_grad()
def test_guided_edits_are_the_same_alone_and_together():
    pipe = shared_pipeline()
    encoding, places = pipe.encode_image([picture(0), picture(1)]), np.zeros((2, 64, 64), dtype=bool)
    places[0, 10:30, 10:30], places[1, 30:60, 20:60] = True, True
    prompts = [EditPrompt(i, "remove the red circle", about=places[i]) for i in (0, 1)]
    options = {"semantic": GREEDY, "pixel": GREEDY, "guidance_scale": 2.0}
    together = edit_codes(pipe, encoding, prompts, list(places), **options)
    for i in (0, 1):
        alone = edit_codes(pipe, encoding, [prompts[i]], [places[i]], **options)
        assert all(torch.equal(both[i], one[0]) for both, one in zip(together, alone))


@torch.no_grad()
def test_edits_that_keep_an_outline_may_be_guided_otherwise():
    pipe = shared_pipeline()
    encoding = pipe.encode_image([picture(), picture(3)])
    masks = [disk_mask(), disk_mask()]
    prompts = [
        EditPrompt(0, "make the disk red", mask=masks[0]),
        EditPrompt(1, "replace it with a star", mask=masks[1]),
    ]

    def codes(**options) -> list[list[int]]:
        _, pixel = edit_codes(pipe, encoding, prompts, masks, semantic=GREEDY, pixel=GREEDY, **options)
        return pixel.flatten(1).tolist()

    plain, guided = codes(), codes(guidance_scale=4.0)
    assert plain[0] != guided[0] and plain[1] != guided[1]
    assert codes(kept_guidance_scale=4.0) == [guided[0], plain[1]]


def test_each_level_of_tokens_may_be_drawn_in_its_own_way():
    settings = shared_pipeline().config
    one = drawing(settings, temperature=0.5, top_k=4, top_p=0.9)
    assert (one["semantic"], one["pixel"]) == (TokenSampling(0.5, 4, 0.9), TokenSampling(0.5, 12, 0.9))
    pair = drawing(settings, temperature=(0.5, 0), top_k=(4, 5), top_p=[0.9, 1.0])
    assert (pair["semantic"], pair["pixel"]) == (TokenSampling(0.5, 4, 0.9), GREEDY)
    assert drawing(settings, temperature=(0.5, 0.7), top_k=(4, 5))["pixel"].top_k == 5


def test_pixel_tokens_follow_the_pair_and_semantic_tokens_stay():
    pipe = shared_pipeline()

    @torch.no_grad()
    def codes(seed: int, **options) -> tuple[torch.Tensor, torch.Tensor]:
        options = drawing(pipe.config, **options)
        return generation_codes(pipe, ["a disk"], (64, 64), generator=seeded(seed), **options)

    (first, pixels), (second, others) = (codes(seed, temperature=(0, 2.0)) for seed in (1, 2))
    assert torch.equal(first, second) and not torch.equal(pixels, others)
    (first, _), (second, _) = (codes(seed, temperature=(2.0, 0)) for seed in (1, 2))
    assert not torch.equal(first, second)


def test_a_guidance_that_is_asked_for_is_that_of_all_edits():
    settings = shared_pipeline().config
    assert drawing(settings, edits=True)["kept_guidance_scale"] is None and "kept_guidance_scale" not in drawing(
        settings
    )
    wanting = SimpleNamespace(**{**settings, "kept_outline_token_guidance_scale": 1.5})
    assert drawing(wanting, edits=True)["kept_guidance_scale"] == 1.5
    assert drawing(wanting, edits=True, token_guidance_scale=3.0)["kept_guidance_scale"] is None


@pytest.mark.parametrize(
    ("instruction", "phrase"),
    [
        ("please remove the cup.", "the cup"),
        ("Replace the man with a dog", "the man"),
        ("change the object next to the cup to a bowl", "the object next to the cup"),
        ("make the dog's fur  white", "the dog's fur"),
        ("paint the large door red!", "the large door"),
        ("change the background to a red to blue gradient", None),
        ("make it night", None),
        ("add a hat", None),
        ("remove", None),
    ],
)
def test_the_object_of_an_instruction_has_words(instruction, phrase):
    assert composite.object_phrase(instruction) == phrase


def test_the_object_of_every_instruction_of_the_world_has_its_words():
    kinds = set()
    for seed in range(200):
        edit = edit_sample(sample_scene(seed))
        kinds.add(edit.edit_kind)
        expected = None if edit.edit_kind == "background" else edit.target_text
        assert composite.object_phrase(edit.instruction) == expected
    assert kinds == set(EDIT_KINDS)


@pytest.mark.parametrize(
    ("instruction", "keeps"),
    [
        ("make the star red", True),
        ("Make it  striped.", True),
        ("paint the square left of the orange cross green!", True),
        ("make the star larger", False),
        ("make the star a circle", False),
        ("make it into a circle", False),
        ("change the star to a circle", False),
        ("replace the star with a circle", False),
        ("remove the star", False),
        ("make the background blue", False),
        ("make everything red", False),
        ("add a hat", False),
    ],
)
def test_instructions_that_keep_an_outline(instruction, keeps):
    assert composite.keeps_outline(instruction) is keeps


def test_of_the_world_other_colours_and_fills_keep_an_outline():
    kept = {True: set(), False: set()}
    for seed in range(200):
        edit = edit_sample(sample_scene(seed))
        kept[composite.keeps_outline(edit.instruction)].add(edit.edit_kind)
    assert kept[True] == {"recolour", "fill"} and kept[False] == set(EDIT_KINDS) - kept[True]


def test_an_outline_is_known_where_the_object_was_found():
    disk, nothing = disk_mask(), np.zeros((64, 64), dtype=bool)
    same, other = "make the disk red", "replace the disk with a star"
    around = composite.grow_mask(disk, 3)
    for prompt, about, known in (
        (EditPrompt(0, same), disk, True),
        (EditPrompt(0, same, mask=around), disk, True),  # both come from an earlier call
        (EditPrompt(0, same, mask=disk), disk, False),  # given: it may be drawn roughly
        (EditPrompt(0, same), nothing, False),
        (EditPrompt(0, other), disk, False),
    ):
        (one,) = told([prompt], [about[None]])
        assert one.keeps_outline is known
        np.testing.assert_array_equal(one.about, about)


@torch.no_grad()
def test_where_an_instruction_and_its_objects_words_differ_the_words_count():
    pipe = shared_pipeline()
    asking = SimpleNamespace(**{**pipe.config, "instruction_phrases": True})
    encoding = pipe.encode_image([picture(seed) for seed in range(6)])

    def places(settings, **options):
        return edit_places(pipe, encoding, edit_prompts(pipe, encoding, texts, settings, **options), settings)

    outcomes = set()
    for phrase in ("the disk", "the blue square", "it is all"):
        texts = [f"make {phrase} larger"] * len(encoding)
        both, whole, words = places(asking), places(pipe.config), places(pipe.config, target=phrase)
        for got, own, other in zip(both, whole, words, strict=True):
            first, second = own.masks.any(axis=0), other.masks.any(axis=0)
            differ = phrase != "it is all" and 2 * (first & second).sum() < (first | second).sum()
            outcomes.add(bool(differ))
            expected = other if differ and second.any() else own
            np.testing.assert_array_equal(got.masks, expected.masks)
            np.testing.assert_array_equal(got.edit_mask, expected.edit_mask)
        for given in ({"target": "the disk"}, {"region": Point(19, 19)}, {"mask_image": disk_mask()}):
            for got, expected in zip(places(asking, **given), places(pipe.config, **given), strict=True):
                np.testing.assert_array_equal(got.edit_mask, expected.edit_mask)
    assert outcomes == {False, True}
