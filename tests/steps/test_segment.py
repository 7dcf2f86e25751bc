"""Selecting and naming objects among proposals; reading masks for several prompts about one image at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_focus.processing.images import FocusImageProcessor, Placement
from diffusers_focus.processing.prompts import CLASS, EDIT, INTERACTIVE, REFERRING
from diffusers_focus.steps.pointing import StrokeMasks
from diffusers_focus.steps.segment import (
    MaskPrompt,
    MaskReading,
    name_objects,
    read_masks,
    segment_prompts,
    select_objects,
)

from tests.tiny import picture, shared_pipeline

PLACE = Placement.fit((16, 16), (16, 16))


def reading(text: str, scores: list[list[float]], boxes: list[tuple[int, int, int, int]]) -> MaskReading:
    """One prompt whose proposals are boxes (x0, y0, x1, y1) on a 16 x 16 grid."""
    masks = torch.full((1, len(boxes), 16, 16), -5.0)
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        masks[0, i, y0:y1, x0:x1] = 5.0
    logits = torch.tensor(scores).logit()[None]
    embeds, quality = torch.zeros(1, len(boxes), 2), torch.zeros(1, len(boxes))
    return MaskReading(masks, masks.roll(1, -1), logits, embeds, quality, torch.full((1,), 3.0), [text])


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


def test_outlines_follow_the_image_where_a_checkpoint_wants_it():
    read = reading("a", [[0.9]], [(3, 3, 9, 9)])
    colours = np.zeros((16, 16, 3), np.uint8)
    colours[3:8, 3:9] = 255  # the object is a row less than the mask decoder says
    plain, refined = (select(read, mask_refinement=reach, image=Image.fromarray(colours)) for reach in (0.0, 1.5))
    assert plain.masks[0].sum() == 36
    assert np.array_equal(refined.masks[0], colours[..., 0] > 0)


@pytest.mark.parametrize(
    ("instruction", "stays"), [("make the square red", True), ("replace the square with a star", False)]
)
def test_an_edit_mask_follows_the_image_where_the_outline_stays(instruction, stays):
    read = reading("a", [[0.9]], [(3, 3, 9, 9)])
    read.edit_logits = read.mask_logits
    colours = np.zeros((16, 16, 3), np.uint8)
    colours[3:8, 3:9] = 255
    found = select(read, MaskPrompt(0, EDIT, instruction), mask_refinement=1.5, image=Image.fromarray(colours))
    assert np.array_equal(found.masks[0], colours[..., 0] > 0)
    assert found.edit_mask.sum() == (30 if stays else 36)


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
def test_what_was_written_counts_where_the_decoder_reads_it():
    pipe = shared_pipeline()
    encoding = pipe.encode_image(picture())
    prompts = [MaskPrompt(0, REFERRING, "the red circle")]
    plain = read_masks(pipe, encoding, prompts, max_new_tokens=3)
    decoder = pipe.mask_decoder
    width = decoder.config.language_hidden_size
    decoder.answer_projection = torch.nn.Linear(width, width, bias=False)
    try:
        torch.nn.init.zeros_(decoder.answer_projection.weight)
        unchanged = read_masks(pipe, encoding, prompts, max_new_tokens=3)
        torch.nn.init.eye_(decoder.answer_projection.weight)
        longer = [read_masks(pipe, encoding, prompts, max_new_tokens=count) for count in (3, 1)]
    finally:
        decoder.answer_projection = None
    assert torch.equal(plain.condition_logits, unchanged.condition_logits)
    assert not torch.allclose(longer[0].condition_logits, plain.condition_logits)
    assert not torch.allclose(longer[0].condition_logits, longer[1].condition_logits)


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


def strokes(*positive: tuple[int, int], negative: tuple = (), previous: np.ndarray | None = None) -> MaskPrompt:
    """One cell each; (x, y)."""

    def cells(points):
        masks = []
        for x, y in points:
            masks.append(np.zeros((16, 16), dtype=bool))
            masks[-1][y, x] = True
        return tuple(masks)

    said = StrokeMasks(cells(positive), cells(negative), previous)
    union = np.logical_or.reduce([*said.positive, np.zeros((16, 16), dtype=bool)])
    return MaskPrompt(0, INTERACTIVE, None, (union,), said)


def test_a_negative_click_rejects_what_it_lies_in():
    read = reading("a", [[0.9], [0.6]], [(0, 0, 12, 6), (0, 0, 5, 6)])
    found = select(read, strokes((2, 2), negative=[(9, 2)]))
    assert len(found.masks) == 1 and found.masks[0].sum() == 30 and not found.masks[0, 2, 9]
    np.testing.assert_allclose(found.scores, [0.6], atol=1e-6)
    assert select(read, strokes((2, 2))).masks[0].sum() == 72


def test_where_no_proposal_agrees_the_mask_is_cut_between_the_clicks():
    read = reading("a", [[0.9]], [(0, 0, 12, 6)])
    found = select(read, strokes((2, 2), negative=[(9, 2)])).masks[0]
    assert found[:6, :5].all() and not found[:, 7:].any()  # nearer to one, nearer to the other
    whole = reading("a", [[0.9]], [(0, 0, 16, 16)])
    whole.mask_logits[0, 0, :, 6:9] = -5.0  # two parts of one mask
    apart = select(whole, strokes((2, 2), negative=[(12, 12)])).masks[0]
    assert apart[:, :6].all() and not apart[:, 9:].any()


def test_a_further_click_joins_another_part():
    read = reading("a", [[0.9], [0.4]], [(0, 0, 5, 6), (8, 0, 12, 6)])
    found = select(read, strokes((2, 2), (9, 2)))
    assert len(found.masks) == 1 and found.masks[0].sum() == 54
    nowhere = select(read, strokes((2, 2), (2, 14))).masks[0]
    assert nowhere[14, 2] and nowhere[:6, :5].all()
    read.mask_logits = read.mask_logits.half()
    assert (select(read, strokes((2, 2), (2, 14))).masks[0] == nowhere).all()


def test_the_mask_to_improve_speaks_for_what_it_resembles():
    read = reading("a", [[0.6], [0.5]], [(0, 0, 12, 6), (0, 0, 7, 6)])
    before = np.zeros((16, 16), dtype=bool)
    before[:6, :6] = True
    assert select(read, strokes((2, 2))).masks[0].sum() == 72
    assert select(read, strokes((2, 2), previous=before)).masks[0].sum() == 42
    cut = select(read, strokes(negative=[(6, 2)], previous=before)).masks[0]  # no positive stroke at all
    assert cut.any() and not cut[2, 6]


def test_presence_score_and_quality_are_three_things():
    read = reading("a", [[0.9]], [(0, 0, 4, 4)])
    read.quality_logits[:] = 1.0
    found = select(read)
    assert found.presence == pytest.approx(1 / (1 + np.exp(-3.0)), abs=1e-5)  # of the first word
    np.testing.assert_allclose(found.qualities, [1 / (1 + np.exp(-1.0))], atol=1e-5)
    assert select(read, MaskPrompt(0, CLASS, ["cat"])).presence == pytest.approx(0.9, abs=1e-5)  # of the best score
    gone = select(reading("nothing", [[0.9]], [(0, 0, 4, 4)]))
    assert gone.qualities is not None and len(gone.qualities) == 0


def test_the_maps_of_the_config_change_scores_and_with_them_the_choice():
    read = reading("a", [[0.8], [0.7]], [(0, 0, 4, 4), (8, 8, 12, 12)])
    read.quality_logits[0, 1] = 4.0
    maps = {"words": {"score": [-1.0, 0.5, 0.5], "presence": [1.0, 0.0, -2.0], "quality": [0.5, 2.0]}}
    found = select(read, calibration=maps)
    assert found.masks[0, 9, 9]  # the better mask wins
    logit = -1 + 0.5 * np.log(0.7 / 0.3) + 2
    np.testing.assert_allclose(found.scores, [1 / (1 + np.exp(-logit))], rtol=1e-5)
    np.testing.assert_allclose(found.qualities, [1 / (1 + np.exp(-8.5))], rtol=1e-5)
    assert found.presence == pytest.approx(1 / (1 + np.exp(5.0)), abs=1e-5)
    assert len(select(read, calibration=maps, presence_threshold=0.5).masks) == 0
    assert len(select(read, MaskPrompt(0, CLASS, ["b"]), calibration=maps).masks) == 2  # maps of words alone
    for wrong in ({"words": {"score": [1.0]}}, {"words": {"mood": [1.0, 2.0]}}, {"words": {"quality": 3}}):
        with pytest.raises(ValueError, match="diffusers-focus calibrate"):
            select(read, calibration=wrong)


def test_presence_decides_in_place_of_the_word_where_it_has_a_threshold():
    read = reading("nothing", [[0.9]], [(0, 0, 4, 4)])
    assert len(select(read, presence_threshold=0.5).masks) == 1  # the first word was hardly likely
    read.something_logits[:] = -3.0
    assert len(select(read, presence_threshold=0.5).masks) == 0
    assert len(select(read, pointed((1, 1, 3, 3)), presence_threshold=0.5).masks) == 1  # something lies there


def test_an_explanation_is_no_name():
    boxes = [(0, 0, 4, 4), (8, 8, 12, 12)]
    found = select(reading("it has the most points, more than any: blue star", [[0.9], [0.8]], boxes))
    assert found.labels == ["blue star"] and found.text.startswith("it has")
    assert len(select(reading("there is no ring: nothing", [[0.9], [0.8]], boxes)).masks) == 0


@torch.no_grad()
def test_names_are_asked_together_or_each_by_itself_and_laid_out_without_overlaps():
    pipe = shared_pipeline()
    encoding = pipe.encode_image(picture())
    options = {"score_threshold": 0.0, "fallback_threshold": 0.0, "max_new_tokens": 3}
    names = ["red", "blue", "star"]
    apart = segment_prompts(pipe, encoding, [MaskPrompt(0, CLASS, names)], classes_trained=False, **options)[0]
    each = segment_prompts(pipe, encoding, [MaskPrompt(0, REFERRING, name) for name in names], **options)
    best = max((float(score), name) for name, one in zip(names, each) for score in one.scores)
    assert (apart.scores[0], apart.labels[0]) == (pytest.approx(best[0], abs=1e-5), best[1])
    assert apart.presence == pytest.approx(max(one.presence for one in each), abs=1e-5)
    together = segment_prompts(pipe, encoding, [MaskPrompt(0, CLASS, names)], **options)[0]
    assert set(together.labels) <= set(names)
    for layout in ("semantic", "panoptic"):
        prompt = MaskPrompt(0, CLASS, names, layout=layout, stuff=("red",))
        found = segment_prompts(pipe, encoding, [prompt], **options)[0]
        assert len(found.masks) and found.masks.sum(axis=0).max() == 1
        assert (found.masks.any(axis=(1, 2))).all() and len(found.scores) == len(found.labels) == len(found.masks)
        if layout == "semantic":
            assert len(set(found.labels)) == len(found.labels)
