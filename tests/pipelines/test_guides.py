"""ControlNets and SDXL's own words beside the visual tokens: tiny random ones, through the whole pipeline."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from diffusers_focus import FocusPipeline
from diffusers_focus.steps.control import as_map, blank_inside, make_map, place_map
from diffusers_focus.steps.text import encode_decoder_prompt

from tests.guides import controlnet_for, text_parts_for
from tests.tiny import SIZE, disk_mask, picture, seeded, tiny_pipeline

EDGES = picture(0).filter(ImageFilter.FIND_EDGES)


@pytest.fixture(scope="module")
def pipe() -> Any:
    unet = tiny_pipeline().unet
    return tiny_pipeline(controlnet=controlnet_for(unet), **text_parts_for(unet))


def edit(pipe: Any, **options: Any) -> np.ndarray:
    given = {"mask_image": disk_mask(), "generator": seeded(), "output_type": "np", "guidance_scale": 2.0, **options}
    return pipe.edit(picture(), "remove the red circle", **given).images[0]


@pytest.fixture(scope="module")
def plain(pipe) -> np.ndarray:
    return edit(pipe)


def test_a_map_steers_the_edit_and_none_changes_nothing(pipe, plain):
    bare = edit(tiny_pipeline())
    assert np.array_equal(plain, bare)  # a ControlNet that is not asked for is not there
    steered = edit(pipe, control_image=EDGES)
    assert np.abs(steered - plain).max() > 1e-3
    assert np.abs(edit(pipe, control_image=EDGES, controlnet_conditioning_scale=0.0) - plain).max() == 0
    assert not np.array_equal(steered, edit(pipe, control_image=EDGES, control_guidance_end=0.5))
    blank = Image.new("RGB", EDGES.size)
    inside = edit(pipe, control_image=EDGES, control_outside_only=True)
    assert not np.array_equal(inside, steered) and not np.array_equal(inside, edit(pipe, control_image=blank))
    made = edit(
        pipe, control_mode=lambda image: image.filter(ImageFilter.FIND_EDGES).resize((128, 64)).resize(image.size)
    )
    assert not np.array_equal(made, plain)


def test_several_controlnets_are_several_and_come_back_from_a_folder(pipe, tmp_path):
    both = tiny_pipeline(controlnet=[pipe.controlnet, controlnet_for(pipe.unet, 1)])
    options = {"control_image": [EDGES, picture(1)], "controlnet_conditioning_scale": [1.0, 0.0]}
    alone = edit(pipe, control_image=EDGES)
    np.testing.assert_allclose(edit(both, **options), alone, atol=1e-5)
    assert np.abs(edit(both, **{**options, "controlnet_conditioning_scale": 1.0}) - alone).max() > 1e-3
    both.save_pretrained(tmp_path)
    back = FocusPipeline.from_pretrained(tmp_path)
    back.set_progress_bar_config(disable=True)
    np.testing.assert_allclose(edit(back, **options), alone, atol=1e-5)


def test_generation_and_parts_of_images_take_maps_too(pipe):
    options = {"generator": seeded(), "output_type": "np", "num_images_per_prompt": 2}
    drawn = pipe.generate("a star", control_image=EDGES.resize((200, 100)), **options).images
    assert drawn.shape == (2, SIZE, SIZE, 3)
    large = picture(1, 300, 420)
    mask = np.zeros((300, 420), dtype=bool)
    mask[100:130, 200:230] = True
    given = {"mask_image": mask, "padding_mask_crop": 10, "output_type": "np", "mask_blur": 2}
    edges = large.filter(ImageFilter.FIND_EDGES)
    whole = pipe.edit(large, "remove it", control_image=edges, generator=seeded(), **given).images[0]
    box = (190, 90, 240, 140)
    given |= {"mask_image": mask[90:140, 190:240], "padding_mask_crop": None}
    part = pipe.edit(large.crop(box), "remove it", control_image=edges.crop(box), generator=seeded(), **given).images[0]
    np.testing.assert_allclose(whole[90:140, 190:240], part, atol=1e-6)


def test_words_of_the_decoder_steer_it_and_guidance_of_the_mask_leaves_them(pipe, plain):
    glossy = edit(pipe, decoder_prompt="a glossy photograph")
    assert np.abs(glossy - plain).max() > 1e-3
    assert not np.array_equal(
        glossy, edit(pipe, decoder_prompt="a glossy photograph", negative_decoder_prompt="blurred")
    )
    one = edit(pipe, decoder_prompt="a glossy photograph", mask_guidance_scale=1.5)
    assert np.isfinite(one).all() and not np.array_equal(one, glossy)
    drawn = pipe.generate(
        ["a star", "a ring"], decoder_prompt=["ink", "oil"], generator=seeded(), output_type="np"
    ).images
    assert len(drawn) == 2


def test_words_are_sdxl_s_and_may_be_weighted(pipe):
    pytest.importorskip("compel")
    words = encode_decoder_prompt(pipe, "a glossy star", None, 2)
    assert words.embeds.shape == (2, 77, 32) and words.pooled.shape == (2, 32) and not words.negative_embeds.any()
    same = encode_decoder_prompt(pipe, "a glossy star", None, 1, weighted=True)
    torch.testing.assert_close(same.embeds, words.embeds[:1], atol=1e-5, rtol=1e-5)
    weighted = encode_decoder_prompt(pipe, "a glossy++ star", None, 1, weighted=True)
    assert (weighted.embeds - same.embeds).abs().max() > 1e-3
    longer = encode_decoder_prompt(pipe, "a very long text " * 12, "blurred", 1, weighted=True)
    assert longer.embeds.shape[1] > 77 and longer.embeds.shape == longer.negative_embeds.shape
    long = edit(pipe, decoder_prompt="a very long text " * 12, prompt_weighting=True)
    assert np.isfinite(long).all()


@pytest.mark.parametrize(
    "options, kind, says",
    [
        ({"control_image": EDGES.resize((8, 8))}, ValueError, "8 x 8 pixels .* Resize the map"),
        ({"control_image": [EDGES, EDGES]}, ValueError, "2 maps for 1 prompts"),
        ({"control_image": "edges.png"}, TypeError, "must be an image or an array of one, got str"),
        ({"control_mode": "edges"}, ValueError, "control_mode must be one of canny"),
        (
            {"control_image": EDGES, "controlnet_conditioning_scale": [1.0, 1.0]},
            ValueError,
            "2 numbers for 1 ControlNets",
        ),
        (
            {"control_image": EDGES, "control_guidance_start": 0.9, "control_guidance_end": 0.2},
            ValueError,
            "start < end",
        ),
        ({"control_image": EDGES, "controlnet_conditioning_scale": None}, TypeError, "must be a number, got None"),
        ({"decoder_prompt": ["a", "b"]}, ValueError, "2 texts for 1 prompts"),
        ({"decoder_prompt": ""}, ValueError, "decoder_prompt is empty"),
        ({"negative_decoder_prompt": "blurred"}, ValueError, "go with decoder_prompt"),
    ],
)
def test_mistakes_are_named(pipe, options, kind, says):
    with pytest.raises(kind, match=says):
        edit(pipe, **options)


def test_what_does_not_fit_is_refused_before_a_token_is_written(pipe):
    written = []
    watch = pipe.language_model.lm_head.register_forward_hook(lambda *_: written.append(1))
    try:
        for options in ({"control_image": EDGES.resize((8, 8))}, {"decoder_prompt": ["a", "b"]}):
            with pytest.raises(ValueError):
                edit(pipe, **options)
        assert not written
        edit(pipe)
        assert written
    finally:
        watch.remove()


def test_what_is_missing_is_named(pipe, monkeypatch):
    bare = tiny_pipeline()
    with pytest.raises(ValueError, match="need a ControlNet, and this pipeline has none"):
        edit(bare, control_image=EDGES)
    with pytest.raises(ValueError, match="no tokenizer, tokenizer_2, text_encoder, text_encoder_2"):
        edit(bare, decoder_prompt="glossy")
    with pytest.raises(ValueError, match="there is none here"):
        pipe.generate("a star", control_mode="canny")
    monkeypatch.setitem(sys.modules, "controlnet_aux", None)
    with pytest.raises(ImportError, match=r"diffusers-focus\[controlnet\]"):
        edit(pipe, control_mode="canny")
    monkeypatch.setitem(sys.modules, "compel", None)
    with pytest.raises(ImportError, match=r"diffusers-focus\[compel\]"):
        edit(pipe, decoder_prompt="glossy", prompt_weighting=True)


def test_maps_of_any_kind_come_to_one_form():
    mask = disk_mask()
    array = np.array(EDGES)
    for value in (EDGES, array, array.astype(np.float32) / 255, torch.from_numpy(array)):
        assert np.array_equal(np.array(as_map(value, (SIZE, SIZE))), array)
    assert as_map(array[..., 0], None).mode == "RGB"
    assert not np.array(blank_inside(EDGES, mask))[mask].any()
    assert np.array_equal(np.array(blank_inside(EDGES, mask))[~mask], array[~mask])
    placed = place_map(Image.new("RGB", (40, 20), "white"), None, (32, 64))
    assert placed.shape == (3, 32, 64) and placed.min() == 1
    with pytest.raises(ValueError, match=r"must be \[height, width\]"):
        as_map(np.zeros((3, 4, 5, 6)), None)


def test_detectors_of_controlnet_aux_make_maps_of_the_image_s_size():
    """Only where torchvision is: `make test-extras` has it."""
    pytest.importorskip("controlnet_aux", reason="controlnet-aux, or the torchvision it needs, is not installed")
    image = picture(1, 96, 160)
    found = make_map(image, "canny")
    assert found.size == image.size and found.mode == "RGB" and np.array(found).any()
    assert make_map(image, lambda given: np.array(given)[..., 0]).size == image.size
