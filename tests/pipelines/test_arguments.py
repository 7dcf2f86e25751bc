"""Arguments that do not fit are refused before anything is computed, in words that help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_focus import Box, Point, Scribble, Strokes

from tests.tiny import disk_mask, picture, seeded, shared_pipeline, tiny_pipeline

STEPS = {"num_inference_steps": 1, "top_k": 1}
BOX = {"mask_image": disk_mask()}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return shared_pipeline()


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"guidance_scale": "high"}, TypeError, "guidance_scale must be a number"),
        ({"guidance_scale": float("nan")}, ValueError, "guidance_scale must be a finite number"),
        ({"mask_guidance_scale": "b"}, TypeError, "mask_guidance_scale"),
        ({"token_guidance_scale": "b"}, TypeError, "token_guidance_scale"),
        ({"eta": None, "strength": "a"}, TypeError, "strength must be a number"),
        ({"strength": 1.5}, ValueError, "strength must be above 0 and at most 1"),
        ({"strength": 0.1, "num_inference_steps": 2}, ValueError, "leaves no step"),
        ({"eta": "b"}, TypeError, "eta"),
        ({"temperature": "warm"}, TypeError, "temperature must be a number"),
        ({"temperature": -1.0}, ValueError, "temperature must be above 0"),
        ({"temperature": 1.0, "top_k": -1}, ValueError, "top_k must be at least 0"),
        ({"top_k": 2.5}, TypeError, "top_k must be a whole number"),
        ({"top_k": [2, 2, 2]}, ValueError, "a pair: of semantic and of pixel tokens"),
        ({"temperature": (1.0, None)}, ValueError, "a pair"),
        ({"temperature": (1.0, "warm")}, TypeError, "temperature must be a number"),
        ({"top_k": 5, "top_p": 2.0}, ValueError, "top_p must be in"),
        ({"num_inference_steps": 2.5}, TypeError, "num_inference_steps must be a whole number"),
        ({"num_inference_steps": True}, TypeError, "num_inference_steps"),
        ({"num_images_per_prompt": 0}, ValueError, "num_images_per_prompt must be at least 1"),
        ({"mask_blur": -1}, ValueError, "mask_blur"),
        ({"mask_dilation": 0.5}, TypeError, "mask_dilation"),
        ({"generator": 3}, TypeError, "torch.Generator"),
        ({"generator": [seeded(), seeded()]}, ValueError, "2 generators were given for 1 results"),
        ({"latents": [0.0]}, TypeError, "latents must be a torch tensor"),
        ({"latents": torch.zeros(1, 4, 3, 3)}, ValueError, r"needs \[1, 4, 16, 16\]"),
        ({"timesteps": [5], "sigmas": [1.0]}, ValueError, "Pass one of them"),
        ({"sigmas": [1.0]}, ValueError, "takes no sigmas"),
        ({"callback_on_step_end": 3}, TypeError, "callback_on_step_end must be a function"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, ValueError, "allowed are"),
        ({"target": "it", "region": Point(3, 3)}, ValueError, "Pass one of them"),
        ({"height": 48, "width": 96}, ValueError, "an edit has the size of its image"),
        ({"mask_image": np.zeros((64, 64), bool)}, ValueError, "mask_image.* empty"),
        ({"mask_image": "mask.png"}, TypeError, "mask_image"),
        ({"mask_image": Image.new("L", (9, 7), 255)}, ValueError, "mask_image.*9 wide and 7 high"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else None,
)
def test_options_of_an_edit(pipe, options, kind, said):
    with pytest.raises(kind, match=said):
        pipe.edit(picture(), "remove it", **{**BOX, **STEPS, **options})


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda p: p(), ValueError, "Neither prompt nor image"),
        (lambda p: p(image=picture(), **BOX), ValueError, "Pass a prompt too"),
        (lambda p: p.edit(None, "remove it"), TypeError, r"use generate\(prompt\)"),
        (lambda p: p.edit(picture(), None), TypeError, "use segment"),
        (lambda p: p.generate(None), TypeError, "description"),
        (lambda p: p.generate("a star", strength=0.5), ValueError, "strength is for edits"),
        (lambda p: p.generate("a star", region=Point(1, 1)), ValueError, "region is about an image"),
        (lambda p: p.generate("a star", height=63, width=64), ValueError, "renders 64 x 64, 48 x 96"),
        (lambda p: p.generate("a star", height=64), ValueError, "64 x None"),
        (lambda p: p.generate("<|im_end|> a star"), ValueError, "control token"),
        (lambda p: p.generate([]), ValueError, "empty list"),
        (lambda p: p.generate(["a star", 3]), TypeError, "prompt must be a string"),
        (lambda p: p.edit([picture()] * 2, ["a", "b", "c"], **BOX), ValueError, "2 images do not go with 3"),
        (lambda p: p.segment([], "it"), ValueError, "list of images is empty"),
        (lambda p: p.segment(picture(), []), ValueError, "target is an empty list"),
        (lambda p: p.segment(picture(), "it", classes=["b"]), ValueError, "exactly one of target, region and classes"),
        (lambda p: p.segment(picture(), classes="cat"), TypeError, "list of names"),
        (lambda p: p.segment(picture(), "it", task="edit"), ValueError, "referring"),
        (lambda p: p.segment(picture(), ["it", None], [None, None]), ValueError, "Row 1 asks for nothing"),
        (lambda p: p.segment(picture(), ["it", None], [Point(1, 1), Point(1, 1)]), ValueError, "None in the rows"),
        (lambda p: p.segment(picture(), "it", task="semantic"), ValueError, "goes with nothing"),
        (lambda p: p.segment(picture(), region=Point(1, 1), task="reasoning"), ValueError, "regions name no task"),
        (lambda p: p.segment(picture(), ["it"], task=["panoptic"]), ValueError, "Row 0 asks by target"),
        (lambda p: p.segment(picture(), classes=["a", ["b"]]), TypeError, "lists of names"),
        (lambda p: p.segment(picture(), classes=["a"], task="panoptic", stuff=["b"]), ValueError, "stuff has 'b'"),
        (lambda p: p.segment(picture(), region=Point(1, 1, positive=False)), ValueError, "only what is not"),
        (lambda p: p.segment(picture(), region=[[Strokes(Point(1, 1)), Point(2, 2)]]), ValueError, "stand alone"),
        (lambda p: p.segment(picture(), region=[[]]), ValueError, "region is an empty list"),
        (lambda p: p.segment(picture(), "it", score_threshold="low"), TypeError, "score_threshold must be a number"),
        (lambda p: p.segment(picture(), "it", max_new_tokens=0), ValueError, "max_new_tokens"),
        (lambda p: p.segment(picture(), region=[Point(1, 1), "here"]), ValueError, "1 image|2 rows|region"),
        (lambda p: p.segment(picture(), region=Scribble([(1, 1), (80, 2)])), ValueError, "outside the image"),
        (lambda p: p.segment(picture(), region=Box(1, 1, 65, 9)), ValueError, "outside the image"),
        (lambda p: p.segment("no-such-picture.png", "it"), FileNotFoundError, "no image file"),
        (lambda p: p.segment(None, "it"), TypeError, "NoneType"),
        (lambda p: p.understand(None, "how many?", Point(1, 1)), ValueError, "exactly one image"),
        (lambda p: p.understand(picture(), "how many?", temperature="b"), TypeError, "temperature"),
        (lambda p: p.understand(picture(), "how many?", max_new_tokens=1.5), TypeError, "whole number"),
    ],
)  # fmt: skip
def test_calls_that_make_no_sense(pipe, call, kind, said):
    with pytest.raises((kind, TypeError) if "|" in said else kind, match=said):
        call(pipe)


@pytest.mark.parametrize("part", ["language_model", "vae", "scheduler", "visual_tokenizer", "vision_encoder"])
def test_a_missing_part_is_named_with_the_way_to_pass_it(part):
    pipe = tiny_pipeline(**{part: None})
    with pytest.raises(ValueError, match=rf"no {part}, .*from_pretrained\(\.\.\., {part}=\.\.\.\)"):
        pipe.edit(picture(), "remove it", **BOX, **STEPS)


def test_wrong_numbers_are_found_before_the_image_is_read(pipe):
    calls = []
    hook = pipe.vision_encoder.register_forward_hook(lambda *_: calls.append(1))
    try:
        for options in ({"guidance_scale": "b"}, {"num_inference_steps": 0}, {"strength": 2.0}, {"output_type": "gif"}):
            with pytest.raises((TypeError, ValueError)):
                pipe.edit(picture(), "remove it", **{**BOX, **options})
    finally:
        hook.remove()
    assert not calls


def test_every_kind_of_picture_gives_the_same_edit(pipe, tmp_path: Path):
    image = picture(0, 48, 80)
    image.save(tmp_path / "picture.png")
    array = np.asarray(image)
    mask = disk_mask(48, 80)
    kinds = [
        (image, Image.fromarray(mask)),
        (str(tmp_path / "picture.png"), mask),
        (array, mask.astype(np.uint8) * 255),
        (array.astype(np.float32) / 255, mask.astype(np.float32)),
        (torch.from_numpy(array.copy()).permute(2, 0, 1), torch.from_numpy(mask)[None]),
        (pipe.encode_image(image), image.convert("L").point(lambda _: 0)),
    ]
    black = kinds.pop()
    results = [
        np.asarray(pipe.edit(one, "remove it", mask_image=where, generator=seeded(), **STEPS).images[0])
        for one, where in [*kinds, (black[0], mask)]
    ]
    for other in results[1:]:
        assert (other == results[0]).all()
    with pytest.raises(ValueError, match="empty"):
        pipe.edit(black[0], "remove it", mask_image=black[1], **STEPS)


def test_output_types_show_the_same_picture(pipe):
    pil, arrays, tensors, latents = (
        pipe.edit(picture(0, 48, 80), "remove it", mask_image=disk_mask(48, 80), generator=seeded(), output_type=kind, **STEPS)
        for kind in ("pil", "np", "pt", "latent")
    )  # fmt: skip
    assert arrays.images.shape == (1, 48, 80, 3) and arrays.images.dtype == np.float32
    assert tensors.images.shape == (1, 3, 48, 80)
    assert latents.images.shape == (1, 4, 12, 24)
    np.testing.assert_array_equal(arrays.images[0], tensors.images[0].permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(np.asarray(pil.images[0]), (arrays.images[0] * 255).round().astype(np.uint8))


def test_tuples_hold_what_the_outputs_do(pipe):
    image, options = picture(), {"max_new_tokens": 3}
    assert pipe.understand(image, "how many?", return_dict=False, **options)[0] == (
        pipe.understand(image, "how many?", **options).text
    )
    found, values = pipe.segment(image, "it", **options), pipe.segment(image, "it", return_dict=False, **options)
    assert len(values) == 7
    for ours, theirs in zip(found.values(), values, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
    images, masks, edit_masks = pipe.edit(image, "remove it", return_dict=False, generator=seeded(), **BOX, **STEPS)
    assert images[0].size == (64, 64) and (masks[0][0] == disk_mask()).all() and (edit_masks[0] == disk_mask()).all()
    assert pipe.generate("a star", return_dict=False, **STEPS)[1:] == (None, None)


def test_callbacks_may_change_what_they_see(pipe):
    def blank(_pipe, _step, _timestep, tensors):
        assert set(tensors) == {"latents", "token_map", "prompt_embeds"}
        return {"latents": torch.zeros_like(tensors["latents"])}

    latents = pipe.generate(
        "a star",
        generator=seeded(),
        output_type="latent",
        callback_on_step_end=blank,
        callback_on_step_end_tensor_inputs=["latents", "token_map", "prompt_embeds"],
        **STEPS,
    ).images
    assert not latents.any()
