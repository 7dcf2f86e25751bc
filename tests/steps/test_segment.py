"""Selecting and naming objects among proposals; reading masks for several prompts about one image at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusers_focus.processing.images import FocusImageProcessor, Placement
from diffusers_focus.processing.prompts import CLASS, INTERACTIVE, REFERRING
from diffusers_focus.steps.segment import MaskPrompt, MaskReading, name_objects, read_masks, select_objects

from tests.tiny import picture, shared_pipeline

PLACE = Placement.fit((16, 16), (16, 16))


def reading(text: str, scores: list[list[float]], boxes: list[tuple[int, int, int, int]]) -> MaskReading:
    """One prompt whose proposals are boxes (x0, y0, x1, y1) on a 16 x 16 grid."""
    masks = torch.full((1, len(boxes), 16, 16), -5.0)
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        masks[0, i, y0:y1, x0:x1] = 5.0
    logits = torch.tensor(scores).logit()[None]
    return MaskReading(masks, masks.roll(1, -1), logits, torch.zeros(1, len(boxes), 2), [text])


def select(read: MaskReading, prompt: MaskPrompt | None = None, **options):
    processor = FocusImageProcessor(buckets=[[64, 64]], tag_step=16, high_resolution=None)
    return select_objects(read, 0, prompt or MaskPrompt(0, REFERRING, "the circle"), processor, PLACE, **options)


def test_objects_come_best_first_with_names_from_left_to_right():
    boxes = [(10, 2, 14, 6), (1, 1, 5, 5), (0, 8, 4, 12)]
    found = select(reading("red circle, blue star", [[0.7], [0.9], [0.1]], boxes))
    assert found.labels == ["red circle", "blue star"] and found.masks.shape == (2, 16, 16)
    np.testing.assert_allclose(found.scores, [0.9, 0.7], atol=1e-6)
    assert found.masks[0, 1:5, 1:5].all() and found.masks[0].sum() == 16
    assert found.edit_mask.sum() == 32 and found.edit_mask[1, 5] and not found.edit_mask[1, 1]


def test_of_two_masks_of_one_object_the_better_stays():
    found = select(reading("a, b", [[0.8], [0.9], [0.7]], [(0, 0, 8, 8), (0, 0, 8, 7), (9, 9, 14, 14)]))
    np.testing.assert_allclose(found.scores, [0.9, 0.7], atol=1e-6)


def test_nothing_is_found_where_the_model_wrote_nothing():
    found = select(reading("nothing", [[0.9]], [(0, 0, 4, 4)]))
    assert found.masks.shape == (0, 16, 16) and found.labels == [] and not found.edit_mask.any()


def test_a_mask_without_a_pixel_is_no_object():
    assert len(select(reading("a", [[0.9]], [(0, 0, 0, 0)])).masks) == 0


def test_classes_label_each_mask_and_need_the_full_threshold():
    prompt = MaskPrompt(0, CLASS, ["cat", "dog"])
    read = reading("cat, dog", [[0.2, 0.8], [0.45, 0.1]], [(0, 0, 4, 4), (8, 8, 12, 12)])
    assert select(read, prompt).labels == ["dog"]
    assert select(read, prompt, score_threshold=0.4).labels == ["dog", "cat"]


def test_names_repeat_where_they_run_out_and_fall_back_without_any():
    masks = np.zeros((3, 4, 9), dtype=bool)
    masks[0, :, 6], masks[1, :, 0], masks[2, :, 3] = True, True, True
    assert name_objects(masks, "red, blue", "it") == ["blue", "red", "blue"]
    assert name_objects(masks, "", "it") == ["it"] * 3


@torch.no_grad()
def test_prompts_share_an_image_without_seeing_each_other():
    pipe = shared_pipeline()
    encoding = pipe.encode_image([picture(0), picture(1)])
    prompts = [
        MaskPrompt(1, REFERRING, "the blue star"),
        MaskPrompt(0, REFERRING, "the red circle"),
        MaskPrompt(1, CLASS, ["red", "blue", "star"]),
    ]
    together = read_masks(pipe, encoding, prompts, max_new_tokens=4)
    assert together.condition_logits.shape[:2] == (3, 4)
    for i, prompt in enumerate(prompts):
        alone = read_masks(pipe, encoding, [prompt], max_new_tokens=4)
        assert alone.text[0] == together.text[i]
        torch.testing.assert_close(together.mask_logits[i], alone.mask_logits[0], atol=1e-4, rtol=1e-4)
        known = alone.condition_logits.shape[-1]
        torch.testing.assert_close(
            together.condition_logits[i, :, :known], alone.condition_logits[0], atol=1e-4, rtol=1e-4
        )


@torch.no_grad()
def test_masks_come_even_where_the_model_never_asks_for_them():
    pipe = shared_pipeline()
    read = read_masks(
        pipe, pipe.encode_image(picture()), [MaskPrompt(0, REFERRING, "the red circle")], max_new_tokens=1
    )
    assert read.mask_logits.shape == (1, 4, 16, 16) and read.mask_logits.isfinite().all()


@pytest.mark.parametrize("score", [0.2, 0.4])
def test_thresholds_of_named_objects(score):
    found = select(reading("a", [[score]], [(0, 0, 4, 4)]), fallback_threshold=0.3)
    assert len(found.masks) == (score > 0.3)


def pointed(*boxes: tuple[int, int, int, int]) -> MaskPrompt:
    regions = []
    for x0, y0, x1, y1 in boxes:
        region = np.zeros((16, 16), dtype=bool)
        region[y0:y1, x0:x1] = True
        regions.append(region)
    return MaskPrompt(0, INTERACTIVE, None, tuple(regions))


def test_of_two_equal_objects_the_one_under_the_click_is_meant():
    read = reading("red circle", [[0.95], [0.05]], [(0, 0, 4, 4), (10, 10, 14, 14)])
    assert select(read, pointed((2, 2, 3, 3))).masks[0, 2, 2]
    found = select(read, pointed((11, 11, 12, 12)))  # whatever the model thinks of it
    assert found.masks.shape[0] == 1 and found.masks[0, 11, 11] and not found.masks[0, 2, 2]
    np.testing.assert_allclose(found.scores, [0.05], atol=1e-6)


def test_a_box_means_what_fills_it_most_and_not_what_it_grazes():
    read = reading("red circle", [[0.9], [0.5]], [(0, 0, 6, 6), (5, 5, 12, 12)])
    assert select(read, pointed((4, 4, 13, 13))).masks[0].sum() == 49


def test_each_region_has_its_object():
    read = reading("a, b", [[0.9], [0.8], [0.7]], [(0, 0, 3, 3), (6, 0, 9, 3), (10, 10, 14, 14)])
    found = select(read, pointed((1, 1, 2, 2), (10, 10, 14, 14)))
    np.testing.assert_allclose(found.scores, [0.9, 0.7], atol=1e-6)


def test_where_no_proposal_holds_the_region_the_scores_decide():
    read = reading("a", [[0.6], [0.9]], [(0, 0, 3, 3), (6, 0, 9, 3)])
    np.testing.assert_allclose(select(read, pointed((14, 14, 15, 15))).scores, [0.9], atol=1e-6)


def test_a_region_always_means_something():
    assert len(select(reading("nothing", [[0.2]], [(0, 0, 4, 4)]), pointed((1, 1, 3, 3))).masks) == 1


def test_of_a_mask_over_two_equal_objects_the_pointed_one_is_kept():
    boxes = [(0, 0, 12, 4), (0, 0, 5, 4), (7, 0, 12, 4), (0, 0, 12, 3)]
    read = reading("red circle", [[0.99], [0.02], [0.01], [0.9]], boxes)
    for x, here in ((2, slice(0, 5)), (9, slice(7, 12))):
        found = select(read, pointed((x, 1, x + 1, 2)))
        assert len(found.masks) == 1 and found.masks[0, :4, here].all() and found.masks[0].sum() == 20
    # A part that overlaps the other part is no object of its own, and without another part nothing is two.
    assert select(reading("a", [[0.9], [0.1]], boxes[:2]), pointed((2, 1, 3, 2))).masks[0].sum() == 48
