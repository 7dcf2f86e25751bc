"""The four workflows say, find and draw what the standard pipeline does, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, HeunDiscreteScheduler

from diffusers_focus import (
    Box,
    FocusBlocks,
    FocusEditBlocks,
    FocusGenerateBlocks,
    FocusModularPipeline,
    FocusPipeline,
    Point,
    Strokes,
)

from tests.modular.shared import assert_equal, modular
from tests.tiny import disk_mask, picture, seeded, shared_pipeline, tiny_pipeline

FOUND = ("masks", "scores", "labels", "text", "instance_embeds", "presence", "qualities")
TALK = [
    {"role": "user", "content": "how many?"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "it?"},
]
DRAWN = ("images", "masks", "edit_masks")
WIDE, LARGE = (48, 80), (150, 210)
DISK = np.pad(disk_mask(40, 40), ((20, 90), (30, 140)))


@pytest.fixture(scope="module")
def standard() -> Any:
    return shared_pipeline()


@pytest.fixture(scope="module")
def pipe() -> Any:
    return modular()


def assert_drawn(output: Any, state: Any, names: tuple[str, ...] = DRAWN) -> None:
    for name in names:
        assert_equal(output[name], state.get(name))


@pytest.mark.parametrize(
    "options",
    [
        {"image": picture(0, *WIDE), "prompt": "how many objects are there?"},
        {"image": [picture(0), picture(1)], "prompt": ["how many?", "what is this?"], "region": [None, Point(9, 9)]},
        {"image": None, "prompt": "how many?"},
        {"image": picture(), "prompt": [TALK, "how many?"]},
        {"image": picture(), "prompt": "describe the image", "caption_classes": ["circle", "square"]},
        {"image": picture(), "prompt": "how many?", "temperature": 1.0, "top_k": 9, "generator": 3},
    ],
    ids=["one", "batch", "no image", "conversation", "object by object", "sampled"],
)
def test_ask(standard, pipe, options):
    options = {"max_new_tokens": 5, **options}
    seed = options.pop("generator", None)
    draw = (lambda: {}) if seed is None else (lambda: {"generator": seeded(seed)})
    expected = standard.understand(**options, **draw()).text
    question = options.pop("prompt")
    assert_equal(expected, pipe(question=question, output="text", **options, **draw()))


@pytest.mark.parametrize(
    "options",
    [
        {"target": "the red circle"},
        {"target": ["the red circle", "it"], "task": "reasoning", "max_new_tokens": 3},
        {"target": [["the red circle", "it"]], "score_threshold": 0.0},
        {"region": [[Point(20, 20), Box(3, 3, 40, 40)]]},
        {"classes": ["circle", "star"], "fallback_threshold": 0.2},
        {"classes": ["circle", "star"], "task": "panoptic", "stuff": ["star"]},
        {"target": ["the red circle", None], "region": [None, Strokes(Point(20, 20), Point(60, 9, positive=False))]},
    ],
    ids=["words", "several", "nested", "regions", "classes", "panoptic", "mixed"],
)
def test_segment(standard, pipe, options):
    image = picture(0, *WIDE)
    found, state = standard.segment(image, **options), pipe(image=image, **options)
    for name in FOUND:
        assert_equal(found[name], state.get(name))
    masks = found.masks[0] if isinstance(found.masks[0], list) else found.masks
    where = np.asarray(state.get("mask_image")[0]) == 255
    expected = (
        np.any([one.any(axis=0) for one in masks], axis=0) if len(state.get("mask_image")) == 1 else masks[0].any(0)
    )
    assert (where == expected).all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target": "the red circle", "num_images_per_prompt": 2, "preserve_background": False},
        {"region": Point(20, 20), "output_type": "np", "temperature": 0.0},
        {"limit_tokens": False, "mask_guidance_scale": 0.0, "num_inference_steps": 1},
        {
            **{
                "mask_image": disk_mask(*WIDE),
                "mask_dilation": 2,
                "mask_blur": 3,
                "strength": 0.6,
                "guidance_scale": 3.0,
            },
            **{"num_inference_steps": 4, "mask_guidance_scale": 2.0, "eta": 0.5, "output_type": "pt"},
        },
        {"output_type": "latent", "guidance_scale": 1.0, "latents": torch.ones(1, 4, 12, 24)},
        {"mask_image": np.ones(WIDE, dtype=bool), "target": "the red circle"},
    ],
    ids=["instruction", "target", "region", "switches", "mask", "latent", "object in a mask"],
)
def test_edit(standard, pipe, options):
    image, text = picture(0, *WIDE), "replace it with a star"
    output = standard.edit(image, text, generator=seeded(1), **options)
    assert_drawn(output, pipe(image=image, prompt=text, generator=seeded(1), **options))


def test_edit_of_a_batch_with_a_generator_for_each(standard):
    def options() -> dict[str, Any]:
        return {"generator": [seeded(1), seeded(2)], "region": [Point(3, 3), None], "num_inference_steps": 1}

    images, texts = [picture(0, 48, 80), picture(1, 64, 70)], ["remove it", "make it blue"]
    state = modular(FocusEditBlocks())(image=images, prompt=texts, **options())
    assert_drawn(standard.edit(images, texts, **options()), state)


@pytest.mark.parametrize(
    "options",
    [
        {"mask_image": [DISK, DISK], "num_images_per_prompt": 2, "mask_blur": 3},
        {
            "mask_image": [[DISK, ~DISK & np.roll(DISK, 30, 1)], DISK],
            "prompt": [["remove it", "a star"], "make it blue"],
        },
        {"target": ["the red circle", "it"], "output_type": "latent"},
        {"mask_image": DISK, "region": Point(50, 40)},
    ],
    ids=["repeated", "several edits", "latent", "object in a mask"],
)
def test_edits_in_place_of_parts_of_large_images(standard, pipe, options):
    image, plain = picture(1, *LARGE), {"num_inference_steps": 1, "padding_mask_crop": 6, "output_type": "np"}
    options = {"prompt": ["remove it", "make it blue"], **plain, **options}
    output = standard(image=image, generator=seeded(1), **options)
    state = pipe(image=image, generator=seeded(1), **options)
    assert_drawn(output, state)
    assert state.get("image_encoding").original_sizes == (LARGE,)  # for the next run, and not the parts
    if options.get("output_type") == "latent":
        fixed = modular(FocusBlocks().get_workflow("edit"))(image=image, generator=seeded(1), **options)
        assert_drawn(output, fixed)


@pytest.mark.parametrize(
    "options",
    [
        {"mask_image": [[disk_mask(), np.roll(disk_mask(), 8, 0)]]},
        {"target": [["the red circle", None]], "num_images_per_prompt": 2},
    ],
    ids=["overlapping", "found"],
)
def test_several_edits_of_one_picture(standard, pipe, options):
    given = {"prompt": [["remove it", "make it blue"]], "num_inference_steps": 1, "output_type": "np", **options}
    output = standard(image=picture(), generator=seeded(1), **given)
    assert_drawn(output, pipe(image=picture(), generator=seeded(1), **given))


@pytest.mark.parametrize("scheduler", [EulerAncestralDiscreteScheduler, HeunDiscreteScheduler])
def test_edit_with_schedulers_that_draw_or_repeat(scheduler):
    own = scheduler()
    options = {"num_inference_steps": 3, "strength": 0.7, "mask_image": disk_mask(), "output_type": "np"}
    output = tiny_pipeline(scheduler=own).edit(picture(), "remove it", generator=seeded(), **options)
    state = modular(scheduler=own)(image=picture(), prompt="remove it", generator=seeded(), **options)
    assert_drawn(output, state)


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": ["a red circle", "a star"], "num_images_per_prompt": 2},
        {"prompt": "a star", "height": 48, "width": 96, "output_type": "np", "temperature": 0.0},
        {"prompt": "a star", "guidance_scale": 1.0, "token_guidance_scale": 3.0, "output_type": "latent"},
    ],
    ids=["several", "wide", "latent"],
)
def test_generate(standard, pipe, options):
    output = standard(generator=seeded(1), **options)
    assert_drawn(output, pipe(generator=seeded(1), **options), ("images",))
    assert_drawn(output, modular(FocusGenerateBlocks())(generator=seeded(1), **options), ("images",))


def test_an_edit_of_nothing_draws_nothing():
    thresholds = {"score_threshold": 1.0, "fallback_threshold": 1.0}
    pipe, steps = modular(**thresholds), []
    hook = pipe.unet.register_forward_hook(lambda *_: steps.append(1))
    try:
        state = pipe(image=picture(), prompt="remove the star", **thresholds)
        assert steps == []
        # Chosen beforehand, the workflow has no such branch: it draws, and every pixel is still the image's own.
        drawn = modular(FocusBlocks().get_workflow("edit"), **thresholds)(image=picture(), prompt="remove the star")
        assert steps != []
    finally:
        hook.remove()
    output = tiny_pipeline(**thresholds).edit(picture(), "remove the star")
    assert not output.edit_masks[0].any()
    assert_drawn(output, state)
    assert_drawn(output, drawn)


def test_an_encoding_serves_several_runs(standard, pipe):
    seen = pipe(image=picture(), question="how many?", max_new_tokens=2, output="image_encoding")
    calls = []
    hook = pipe.vision_encoder.register_forward_hook(lambda *_: calls.append(1))
    try:
        found = pipe(image=seen, target="the red circle", output="masks")
        drawn = pipe(image=seen, prompt="remove it", generator=seeded(), output="images")
        assert calls == []
    finally:
        hook.remove()
    assert_equal(standard.segment(picture(), "the red circle").masks, found)
    assert_equal(standard.edit(picture(), "remove it", generator=seeded()).images, drawn)


def test_half_precision():
    standard = tiny_pipeline()
    pipe = modular(**standard.components).to(torch.bfloat16)  # and the standard one with it
    options = {"mask_image": disk_mask(), "generator": seeded()}
    image = pipe(image=picture(), prompt="remove it", output="images", **options)
    options["generator"] = seeded()
    assert_equal(standard.edit(picture(), "remove it", **options).images, image)


@pytest.mark.whole
def test_the_published_pipeline(root):
    folder = root / "pipelines" / "focus-tiny"
    standard = FocusPipeline.from_pretrained(folder)
    pipe = FocusModularPipeline.from_pretrained(folder)
    pipe.load_components()
    for one in (standard, pipe):
        one.set_progress_bar_config(disable=True)
    for name in pipe.component_names:
        if isinstance(getattr(pipe, name), torch.nn.Module):
            expected = getattr(standard, name).state_dict()
            assert_equal(list(expected.items()), list(getattr(pipe, name).state_dict().items()))
    image, steps = picture(0, 128, 128), {"num_inference_steps": 2}
    question = "how many objects are there?"
    assert_equal(standard.understand(image, question).text, pipe(image=image, question=question, output="text"))
    found, state = standard.segment(image, "the red circle"), pipe(image=image, target="the red circle")
    for name in FOUND:
        assert_equal(found[name], state.get(name))
    text = "remove the red circle"
    output = standard.edit(image, text, generator=seeded(), **steps)
    assert_drawn(output, pipe(image=image, prompt=text, generator=seeded(), **steps))
    # Drawn at a temperature, so that the order of random numbers is compared too; the first tokens settle it.
    options = {"temperature": 1.0, "top_k": 50, "generator": seeded()}
    output = standard.generate("a red circle", **options, **steps)
    options["generator"] = seeded()
    assert_drawn(output, pipe(prompt="a red circle", **options, **steps), ("images",))


def test_attention_arguments_reach_the_unet():
    lora = pytest.importorskip("peft").LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    standard = tiny_pipeline()
    standard.unet.add_adapter(lora)
    pipe = modular(**standard.components)
    drawn = []
    for scale in (0.5, 1.0):
        options = {"cross_attention_kwargs": {"scale": scale}, "output_type": "np"}
        drawn.append(standard.generate("a star", generator=seeded(), **options).images)
        assert_equal(drawn[-1], pipe(prompt="a star", generator=seeded(), output="images", **options))
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3
