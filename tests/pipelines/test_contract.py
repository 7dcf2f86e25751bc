"""The pipelines' contract, on random weights at test size: what goes in, what comes out, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_focus import Box, FocusPipeline, FocusSegmentEditPipeline, FocusUnderstandPipeline, Mask, Point, Scribble

from tests.tiny import disk_mask, picture, seeded, shared_pipeline, tiny_pipeline

WIDE = (48, 80)  # height, width: not the model's own aspect ratio
REGIONS = (Point(20, 20), Scribble([(10, 10), (20, 15)]), Box(5, 5, 40, 30), Mask(disk_mask(*WIDE)))
STEPS = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipe():
    return shared_pipeline()


def as_mask_image(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255)


def test_answers_come_one_per_image(pipe):
    assert len(pipe.understand(picture(), "how many objects are there?", max_new_tokens=4).text) == 1
    answers = pipe.understand([picture(0), picture(1)], ["how many?", "what is this?"], max_new_tokens=4).text
    assert len(answers) == 2 and all(isinstance(answer, str) for answer in answers)


@pytest.mark.parametrize("region", REGIONS, ids=lambda r: type(r).__name__)
def test_segmenting_a_region_gives_masks_of_the_input_size(pipe, region):
    out = pipe.segment(picture(0, *WIDE), region=region, score_threshold=0.0, fallback_threshold=0.0, max_new_tokens=4)
    masks, scores = out.masks[0], out.scores[0]
    assert masks.dtype == bool and masks.ndim == 3 and masks.shape[1:] == WIDE
    assert len(masks) == len(scores) == len(out.labels[0]) and isinstance(out.text[0], str)


def test_no_prompt_segments_and_no_image_generates(pipe):
    found = pipe(image=picture(), target="the red circle")
    assert hasattr(found, "masks") and not hasattr(found, "images")
    drawn = pipe("a red circle", generator=seeded(), **STEPS)
    assert drawn.images[0].size == (64, 64)


@pytest.mark.parametrize(
    "where",
    [{}, {"target": "the red circle"}, {"region": Point(9, 9)}, {"mask_image": as_mask_image(disk_mask(*WIDE))}],
    ids=["instruction", "target", "region", "mask"],
)
def test_an_edit_has_the_size_of_its_image(pipe, where):
    out = pipe.edit(picture(0, *WIDE), "remove the red circle", generator=seeded(), **where, **STEPS)
    assert out.images[0].size == WIDE[::-1]
    assert np.asarray(out.edit_masks[0]).shape == WIDE and np.asarray(out.masks[0]).shape[-2:] == WIDE


def test_pixels_outside_the_edit_are_the_inputs_own(pipe):
    image, mask = picture(0, *WIDE), np.zeros(WIDE, dtype=bool)
    mask[10:30, 10:40] = True
    out = pipe.edit(image, "remove it", mask_image=as_mask_image(mask), generator=seeded(), **STEPS)
    far = np.ones(WIDE, dtype=bool)
    far[6:34, 6:44] = False
    before, after = np.asarray(image), np.asarray(out.images[0])
    assert (before[far] == after[far]).all()
    assert (before[mask] != after[mask]).any()
    raw = pipe.edit(
        image, "remove it", mask_image=as_mask_image(mask), generator=seeded(), preserve_background=False, **STEPS
    )
    assert (np.asarray(raw.images[0])[far] != before[far]).any()


def test_equal_seeds_give_equal_results_and_other_seeds_others(pipe):
    mask = as_mask_image(disk_mask())
    first, again, other = (
        np.asarray(pipe.edit(picture(), "remove it", mask_image=mask, generator=seeded(s), **STEPS).images[0])
        for s in (3, 3, 4)
    )
    assert (first == again).all() and (first != other).any()


def test_a_batch_gives_what_its_images_give_alone(pipe):
    images, expressions = [picture(0), picture(1)], ["the red circle", "the blue star"]
    options = {"score_threshold": 0.0, "fallback_threshold": 0.0, "max_new_tokens": 4}
    together = pipe.segment(images, expressions, **options)
    for i in range(2):
        alone = pipe.segment(images[i], expressions[i], **options)
        assert together.text[i] == alone.text[0]
        np.testing.assert_allclose(together.scores[i], alone.scores[0], atol=1e-4)


def test_the_image_is_encoded_once_and_never_again_with_an_encoding(pipe):
    calls = []
    hook = pipe.vision_encoder.register_forward_hook(lambda *_: calls.append(1))
    try:
        seen = pipe.encode_image(picture())
        pipe.understand(seen, "what is this?", max_new_tokens=2)
        pipe.segment(seen, "the red circle", max_new_tokens=2)
        pipe.edit(seen, "remove the red circle", region=Point(9, 9), generator=seeded(), **STEPS)
        assert len(calls) == 1
        pipe.edit(picture(1), "remove the red circle", generator=seeded(), **STEPS)
        assert len(calls) == 2
    finally:
        hook.remove()


@pytest.mark.parametrize(("kind", "check"), [("np", np.ndarray), ("pt", torch.Tensor), ("latent", torch.Tensor)])
def test_output_types(pipe, kind, check):
    images = pipe.generate("a red circle", generator=seeded(), output_type=kind, **STEPS).images
    assert isinstance(images if isinstance(images, check) else images[0], check)


def test_callbacks_see_every_step_and_can_stop(pipe):
    steps = []

    def stop_after_first(pipeline, step, timestep, tensors):
        steps.append((step, tuple(tensors["latents"].shape)))
        pipeline._interrupt = True
        return tensors

    pipe.generate("a red circle", generator=seeded(), num_inference_steps=3, callback_on_step_end=stop_after_first)
    assert [step for step, _ in steps] == [0]
    steps.clear()
    pipe.generate(
        "a red circle",
        generator=seeded(),
        num_inference_steps=3,
        callback_on_step_end=lambda p, s, t, k: steps.append(s) or k,
    )
    assert steps == [0, 1, 2]


def test_several_images_per_prompt_and_tuples(pipe):
    assert len(pipe.generate("a red circle", generator=seeded(), num_images_per_prompt=2, **STEPS).images) == 2
    assert isinstance(pipe.generate("a red circle", generator=seeded(), return_dict=False, **STEPS), tuple)


@pytest.mark.parametrize("cls", [FocusPipeline, FocusSegmentEditPipeline, FocusUnderstandPipeline])
def test_saved_pipelines_come_back_the_same(cls, tmp_path):
    pipe = tiny_pipeline(cls)
    pipe.save_pretrained(tmp_path)
    back = cls.from_pretrained(tmp_path)
    if cls is FocusUnderstandPipeline:
        assert (
            back(picture(), "what is this?", max_new_tokens=4).text
            == pipe(picture(), "what is this?", max_new_tokens=4).text
        )
        return
    options = {"mask_image": as_mask_image(disk_mask()), **STEPS}
    before = pipe("remove it", picture(), generator=seeded(), **options).images[0]
    after = back("remove it", picture(), generator=seeded(), **options).images[0]
    assert (np.asarray(before) == np.asarray(after)).all()


def nan_image():
    image = np.zeros((8, 8, 3), dtype=np.float32)
    image[0, 0, 0] = np.nan
    return image


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda p: p.understand(picture(), ""), ValueError, "empty"),
        (lambda p: p.understand(picture(), 3), TypeError, "str"),
        (lambda p: p.understand(5, "what is this?"), TypeError, "int"),
        (lambda p: p.segment(nan_image(), "the circle"), ValueError, "(?i)nan"),
        (lambda p: p.segment(np.zeros((0, 4, 3), np.uint8), "the circle"), ValueError, "pixel|0"),
        (lambda p: p.segment(picture(), region=Point(70, 3)), ValueError, "70"),
        (lambda p: p.segment(picture(), region=Mask(disk_mask(10, 12))), ValueError, "10|12"),
        (lambda p: p.segment(picture(), region="left"), TypeError, "Point"),
        (lambda p: p.segment(picture()), ValueError, "target"),
        (lambda p: p.edit(picture(), "remove it", num_inference_steps=0), ValueError, "num_inference_steps"),
        (lambda p: p.edit(picture(), "remove it", height=50, width=64), ValueError, "50"),
        (lambda p: p.edit(picture(), "remove it", strength=0.0), ValueError, "strength"),
        (lambda p: p.edit(picture(), "remove it", output_type="jpeg"), ValueError, "jpeg"),
        (lambda p: p.edit(picture(), "remove it", speed=3), TypeError, "speed"),
        (lambda p: p.edit(picture(), "remove it", mask_image=Image.new("L", (9, 9), 255)), ValueError, "9"),
        (lambda p: p.generate("  "), ValueError, "empty"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_what_to_do(pipe, call, kind, said):
    with pytest.raises(kind, match=said):
        call(pipe)


def test_a_missing_component_is_named():
    with pytest.raises(ValueError, match="unet"):
        tiny_pipeline(unet=None).generate("a red circle")


def test_components_of_different_checkpoints_are_refused():
    from diffusers_focus.models.mask_conditioner import FocusMaskConditioner

    other = FocusMaskConditioner(patch_size=2, code_channels=6, cross_attention_dim=8, hidden_dim=8)
    with pytest.raises(ValueError, match="fit"):
        tiny_pipeline(mask_conditioner=other)
