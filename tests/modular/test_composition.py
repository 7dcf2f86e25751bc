"""Blocks of FOCUS among others: in diffusers' own SDXL inpainting, and others among ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLAutoBlocks
from diffusers.modular_pipelines.modular_pipeline import (
    ModularPipeline,
    ModularPipelineBlocks,
    SequentialPipelineBlocks,
)
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam
from diffusers.modular_pipelines.stable_diffusion_xl.modular_pipeline import StableDiffusionXLModularPipeline
from PIL import Image

from diffusers_focus import FocusBlocks, FocusEditBlocks, FocusSegmentBlocks, FocusSegmentStep

from tests.modular.shared import assert_equal, modular, sdxl_components
from tests.tiny import SETTINGS, picture, seeded, shared_pipeline

SDXL = {
    "prompt": "a blue star",
    "strength": 0.9,
    "num_inference_steps": 3,
    "height": 64,
    "width": 64,
    "output_type": "np",
}


class RedSegmenter(ModularPipelineBlocks):
    """A segmenter of somebody else's: what is red. No components."""

    @property
    def description(self) -> str:
        return "Finds what is red."

    @property
    def inputs(self) -> list[InputParam]:
        return [InputParam("image", required=True, description="An image.")]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("mask_image", type_hint=Image.Image, description="What is red, white.")]

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        block_state = self.get_block_state(state)
        levels = np.asarray(block_state.image).astype(int)
        red = (levels[..., 0] > 200) & (levels[..., 1:].max(axis=-1) < 100)
        block_state.mask_image = Image.fromarray(red.astype(np.uint8) * 255)
        self.set_block_state(state, block_state)
        return components, state


class CountSteps(ModularPipelineBlocks):
    """A block within the denoising loop."""

    @property
    def inputs(self) -> list[InputParam]:
        return [InputParam("latents", required=True)]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("seen")]

    def __call__(self, components: Any, block_state: Any, i: int, t: torch.Tensor) -> tuple[Any, Any]:
        block_state.seen = [*(getattr(block_state, "seen", None) or []), (i, float(block_state.latents.std()))]
        return components, block_state


@pytest.fixture(scope="module")
def sdxl() -> dict[str, Any]:
    return sdxl_components()


def test_the_segment_blocks_make_sdxls_inpainting_take_words(sdxl):
    blocks = StableDiffusionXLAutoBlocks().get_workflow("inpainting")
    blocks.sub_blocks.insert("segment", FocusSegmentBlocks({"image_processor": "focus_image_processor"}), 0)
    assert "mask_image" not in blocks.input_names and {"image", "target", "region", "prompt"} <= set(blocks.input_names)
    pipe = blocks.init_pipeline()
    assert type(pipe) is StableDiffusionXLModularPipeline
    focus = {name: one for name, one in shared_pipeline().components.items() if name in pipe.component_names}
    for taken in ("image_processor", *sdxl):
        focus.pop(taken, None)
    pipe.update_components(**sdxl, **focus, focus_image_processor=shared_pipeline().image_processor)
    pipe.update_components(score_threshold=SETTINGS["score_threshold"], fallback_threshold=0.0)
    state = pipe(image=picture(), target="the red circle", generator=seeded(), **SDXL)
    found = shared_pipeline().segment(picture(), "the red circle").masks[0].any(axis=0)
    assert found.any() and (np.asarray(state.get("mask_image")[0]) == found * 255).all()

    plain = StableDiffusionXLAutoBlocks().get_workflow("inpainting").init_pipeline()
    plain.update_components(**sdxl)
    mask = Image.fromarray(found.astype(np.uint8) * 255)
    drawn = plain(image=picture(), mask_image=mask, generator=seeded(), output="images", **SDXL)
    assert_equal(drawn, state.get("images"))
    options = {"image": picture(), "mask_image": Image.new("L", (64, 64), 0), "generator": seeded(), **SDXL}
    assert np.abs(drawn - plain(output="images", **options)).max() > 0.01


def test_parts_for_a_foreign_workflow_load_from_a_folder_of_focus(root):
    """Each part says its subfolder, so that `ComponentSpec.load` needs nothing but the folder."""
    folder, blocks = root / "pipelines" / "focus-tiny", FocusSegmentBlocks({"image_processor": "focus_image_processor"})
    parts = {
        spec.name: spec.load(pretrained_model_name_or_path=str(folder), dtype=torch.float32)
        for spec in blocks.expected_components
    }
    pipe = SequentialPipelineBlocks.from_blocks_dict({"segment": blocks}).init_pipeline()
    pipe.update_components(**parts)
    assert type(pipe) is ModularPipeline and not hasattr(pipe, "image_processor")
    found = pipe(image=picture(0, 128, 128), target="the red circle", output="masks")
    assert found[0].shape[1:] == (128, 128) and found[0].any()


@pytest.mark.parametrize("foreign", [RedSegmenter, FocusSegmentStep])
def test_another_segmenter_can_take_the_place_of_ours(foreign):
    blocks = FocusEditBlocks()
    blocks.sub_blocks["locate"] = foreign()
    words = {"target": "the red circle"} if foreign is FocusSegmentStep else {}
    state = modular(blocks)(image=picture(), prompt="make it blue", generator=seeded(), **words)
    mask = state.get("mask_image")
    if foreign is RedSegmenter:
        red = (np.asarray(picture()) == (220, 30, 30)).all(axis=-1)
        assert "target" not in blocks.input_names and (np.asarray(mask) == red * 255).all()
    expected = shared_pipeline().edit(picture(), "make it blue", mask_image=mask, generator=seeded())
    assert expected.edit_masks[0].any()
    assert_equal(expected.images, state.get("images"))
    assert_equal(expected.edit_masks, state.get("edit_masks"))


def test_a_segmenter_that_finds_nothing_leaves_the_image_alone():
    blocks = FocusEditBlocks()
    blocks.sub_blocks["locate"] = RedSegmenter()
    grey = Image.new("RGB", (64, 64), (90, 90, 90))
    assert_equal(np.asarray(grey), np.asarray(modular(blocks)(image=grey, prompt="remove it", output="images")[0]))


def test_a_mask_may_come_from_the_caller_alone():
    blocks = FocusEditBlocks()
    blocks.sub_blocks.pop("locate")
    assert "mask_image" in blocks.required_inputs
    pipe, mask = modular(blocks), Image.fromarray((np.asarray(picture())[..., 2] > 200).astype(np.uint8) * 255)
    options = {"mask_image": mask, "num_inference_steps": 1}
    drawn = pipe(image=picture(), prompt="remove it", generator=seeded(), output="images", **options)
    assert_equal(shared_pipeline().edit(picture(), "remove it", generator=seeded(), **options).images, drawn)
    with pytest.raises(ValueError, match="no mask for some of the edits"):
        pipe(image=picture(), prompt="remove it", mask_image=[None])


def test_a_block_of_ones_own_runs_within_the_denoising_loop():
    blocks = FocusBlocks().get_workflow("generate")
    blocks.sub_blocks["denoise"].sub_blocks.insert("count", CountSteps(), 2)
    state = modular(blocks)(prompt="a star", generator=seeded(), num_inference_steps=3)
    assert [step for step, _ in state.get("seen")] == [0, 1, 2]
    expected = shared_pipeline().generate("a star", generator=seeded(), num_inference_steps=3).images
    assert_equal(expected, state.get("images"))
