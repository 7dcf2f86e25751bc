"""Cutting out the surroundings of an edit and pasting them back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_focus.steps.cropping import crop_box

from tests.tiny import picture, seeded, shared_pipeline

LARGE = (300, 420)  # height, width


def spot(top: int, left: int, side: int = 20) -> np.ndarray:
    mask = np.zeros(LARGE, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


@pytest.mark.parametrize(
    "mask, padding, aspect, box",
    [
        (spot(100, 200), 10, 1.0, (190, 90, 230, 130)),
        (spot(100, 200), 10, 2.0, (170, 90, 250, 130)),
        (spot(0, 0), 10, 1.0, (0, 0, 30, 30)),
        (spot(290, 410), 0, 2.0, (400, 290, 420, 300)),  # 10 x 10 pixels are inside; grown to the left, the image ends
        (spot(100, 200), 1000, 1.0, (0, 0, 420, 300)),
        (np.zeros(LARGE, dtype=bool), 10, 1.0, (0, 0, 420, 300)),
        (np.ones(LARGE, dtype=bool), 0, 1.0, (0, 0, 420, 300)),
    ],
)
def test_a_box_holds_the_mask_and_has_the_shape_asked_for(mask, padding, aspect, box):
    assert crop_box(mask, padding, aspect) == box


@pytest.fixture(scope="module")
def pipe():
    return shared_pipeline()


def test_a_part_is_edited_at_full_resolution_and_pasted_back(pipe):
    image, mask = picture(1, *LARGE), spot(100, 200)
    options = {"num_inference_steps": 2, "mask_blur": 4}
    out = pipe.edit(image, "recolour it", mask_image=mask, padding_mask_crop=12, generator=seeded(), **options)
    (result,), own = out.images, np.array(image)
    left, top, right, bottom = crop_box(mask, 12, 1.0)
    assert result.size == image.size and out.edit_masks[0].shape == LARGE and (out.edit_masks[0] == mask).all()
    changed = (np.array(result) != own).any(-1)
    assert changed[mask].any() and not changed[:96].any() and not changed[:, :196].any()
    # What the part is by itself, and not what the whole image's few tokens would make of it.
    part = image.crop((left, top, right, bottom))
    alone = pipe.edit(part, "recolour it", mask_image=mask[top:bottom, left:right], generator=seeded(), **options)
    assert np.array_equal(np.array(result)[top:bottom, left:right], np.array(alone.images[0]))
    whole = pipe.edit(image, "recolour it", mask_image=mask, generator=seeded(), **options)
    assert not np.array_equal(np.array(whole.images[0]), np.array(result))


def test_batches_of_parts_keep_their_images(pipe):
    images, masks = [picture(1, *LARGE), picture(2, 200, 180)], [spot(40, 300), np.zeros((200, 180), dtype=bool)]
    masks[1][150:170, 30:50] = True
    out = pipe.edit(
        images, ["recolour it", "remove it"], mask_image=masks, padding_mask_crop=8, num_images_per_prompt=2,
        num_inference_steps=1, output_type="np", generator=seeded(),
    )  # fmt: skip
    assert [image.shape[:2] for image in out.images] == [LARGE, LARGE, (200, 180), (200, 180)]
    for image, own, mask in zip(out.images, [images[0]] * 2 + [images[1]] * 2, [masks[0]] * 2 + [masks[1]] * 2):
        far = ~mask & (np.abs(image - np.array(own) / 255).max(-1) > 1e-6)
        assert not far[:10].any() and not far[:, :10].any()


def test_a_given_mask_is_cropped_without_encoding_the_whole_image(pipe):
    image, sizes = picture(1, *LARGE), []
    hook = pipe.vision_encoder.register_forward_hook(lambda module, inputs, out: sizes.append(len(inputs[0])))
    options = {"padding_mask_crop": 8, "num_inference_steps": 1, "generator": seeded()}
    try:
        cut = pipe.edit(image, "recolour it", mask_image=spot(40, 300), **options).images[0]
        assert sizes == [1]
        options["generator"] = seeded()
        known = pipe.edit(pipe.encode_image(image), "recolour it", mask_image=spot(40, 300), **options).images[0]
        assert np.array_equal(np.array(cut), np.array(known))
        sizes.clear()
        # Two instructions for the same part share it; without a mask the whole image has to be searched.
        pipe.edit(image, ["remove it", "recolour it"], mask_image=spot(40, 300), padding_mask_crop=8)
        assert sizes == [1]
        pipe.edit(image, "remove it", target="the red circle", padding_mask_crop=8)
        assert sizes == [1, 1, 1]
    finally:
        hook.remove()
    with pytest.raises(ValueError, match="one image per prompt"):
        pipe.edit([[image, image]], "remove it", mask_image=spot(40, 300), padding_mask_crop=8)
    with pytest.raises(ValueError, match="list of images is empty"):
        pipe.edit([], "remove it", mask_image=spot(40, 300), padding_mask_crop=8)


def test_what_is_not_found_leaves_the_whole_image_alone(pipe):
    image = picture(1, *LARGE)
    (result,) = pipe.edit(
        image, "remove it", mask_image=Image.fromarray(spot(0, 0).astype(np.uint8) * 255), padding_mask_crop=0,
        num_inference_steps=1, output_type="latent", generator=seeded(),
    ).images  # fmt: skip
    assert isinstance(result, torch.Tensor) and result.ndim == 3
    with pytest.raises(ValueError, match="padding_mask_crop is about an image"):
        pipe.generate("a star", padding_mask_crop=3)
    with pytest.raises(TypeError, match="padding_mask_crop must be a whole number"):
        pipe.edit(image, "remove it", mask_image=spot(0, 0), padding_mask_crop=1.5)


def test_negative_prompts_steer_the_tokens_only_with_guidance(pipe):
    def codes(**options):
        return pipe.generate(
            "a red circle", generator=seeded(), output_type="np", num_inference_steps=1, **options
        ).images

    guided = codes(token_guidance_scale=3.0)
    assert not np.array_equal(guided, codes(token_guidance_scale=3.0, negative_prompt="a blue star"))
    assert np.array_equal(guided, codes(token_guidance_scale=3.0, negative_prompt=""))
    assert np.array_equal(
        codes(token_guidance_scale=1.0), codes(token_guidance_scale=1.0, negative_prompt="a blue star")
    )
    with pytest.raises(ValueError, match="2 texts for 1 prompts"):
        codes(negative_prompt=["a", "b"])
