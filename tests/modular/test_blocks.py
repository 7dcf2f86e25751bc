"""What blocks say of themselves, and what they refuse."""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
import pytest
from diffusers.modular_pipelines.modular_pipeline import ModularPipelineBlocks
from PIL import Image

import diffusers_focus
from diffusers_focus import FocusBlocks, FocusEditBlocks, FocusPipeline, Point
from diffusers_focus.modular.modular_blocks import WORKFLOWS
from diffusers_focus.steps.settings import RESOLUTION_GROUP, SETTINGS, Settings

from tests.modular.shared import modular
from tests.tiny import disk_mask, picture

PUBLIC = [
    getattr(diffusers_focus, name) for name, home in diffusers_focus._HOMES.items() if home.startswith("modular.")
]
BLOCKS = [one for one in PUBLIC if issubclass(one, ModularPipelineBlocks)]

DRAW = ["set_timesteps", "prepare_latents", "condition", "denoise", "decode"]
ORDER = {
    "ask": ["encode_image", "ask"],
    "segment": ["encode_image", "segment"],
    "edit": ["encode_image", "locate", "edit_input", "crop", "tokens", *DRAW],
    "generate": ["tokens", *DRAW],
}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return modular()


def below(block: Any) -> list[Any]:
    """A block and all blocks in it."""
    return [block, *[deeper for part in block.sub_blocks.values() for deeper in below(part)]]


@pytest.mark.parametrize("cls", BLOCKS, ids=lambda cls: cls.__name__)
def test_blocks_say_what_they_are_read_and_write(cls):
    block = cls()
    assert cls.__doc__ and len(block.description) > 20
    assert block.expected_components and all(spec.type_hint and spec.description for spec in block.expected_components)
    assert all(param.type_hint is not None and len(param.description) > 10 for param in (*block.inputs, *block.outputs))
    assert block.outputs and "TODO" not in block.doc
    assert all(spec.description and spec.default == SETTINGS[spec.name].default for spec in block.expected_configs)
    assert block.model_name is None  # so that a foreign workflow with such a block in it stays what it was


def test_every_block_of_a_workflow_has_a_public_name():
    inner = {"FocusLoopDenoiser", "FocusLoopScheduler", "FocusLoopBackground"}  # parts of FocusDenoiseStep
    found = {
        type(block).__name__ for workflow in WORKFLOWS.values() for block in below(workflow()) if not block.sub_blocks
    }
    assert found - inner <= {cls.__name__ for cls in BLOCKS}


def test_workflows_are_these_blocks_in_this_order():
    blocks = FocusBlocks()
    assert blocks.available_workflows == list(ORDER)
    assert {name: list(blocks.get_workflow(name).sub_blocks) for name in ORDER} == ORDER
    assert "`edit`: requires `image`, `prompt`" in blocks.doc
    needs = {name: {spec.name for spec in blocks.get_workflow(name).expected_components} for name in ORDER}
    assert not needs["ask"] & {"mask_decoder", "unet", "vae", "scheduler"} and "unet" not in needs["segment"]
    assert "mask_decoder" not in needs["generate"] and needs["edit"] == {
        spec.name for spec in blocks.expected_components
    }


def test_settings_are_the_pipelines_own():
    signature = inspect.signature(FocusPipeline.__init__).parameters
    own = {name: one.default for name, one in signature.items() if name in Settings.__annotations__}
    assert own.pop("resolution_group") == RESOLUTION_GROUP
    given = {name: setting.default for name, setting in SETTINGS.items()}
    assert given.pop("resolution_group") == [list(size) for size in RESOLUTION_GROUP]
    assert own == given and Settings.__annotations__.keys() == SETTINGS.keys()
    assert {spec.name for spec in FocusBlocks().expected_configs} == SETTINGS.keys()


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({}, ValueError, "Nothing was asked for"),
        ({"image": picture()}, ValueError, "Nothing was asked for"),
        ({"target": "the star"}, ValueError, "with image="),
        ({"image": picture(), "question": "how many?", "prompt": "remove it"}, ValueError, "one at a time"),
        ({"image": picture(), "question": ""}, ValueError, "empty"),
        ({"question": "how many?", "region": Point(3, 3)}, ValueError, "one image"),
        ({"image": picture(), "target": "it", "classes": ["star"]}, ValueError, "target and classes"),
        ({"image": picture(), "target": "it", "max_new_tokens": 0}, ValueError, "max_new_tokens"),
        ({"image": picture(), "prompt": "remove it", "target": "it", "region": Point(3, 3)}, ValueError, "one of them"),
        ({"image": picture(), "prompt": "remove it", "mask_image": np.zeros((64, 64), bool)}, ValueError, "empty"),
        ({"image": picture(), "prompt": "remove it", "strength": 0.0}, ValueError, "strength"),
        ({"image": picture(), "prompt": "remove it", "height": 50, "width": 64}, ValueError, "50 x 64"),
        ({"image": [[picture(), picture(1)]], "prompt": "remove it"}, ValueError, "one image per prompt"),
        ({"prompt": "a star", "num_images_per_prompt": 0}, ValueError, "num_images_per_prompt"),
        ({"prompt": "a star", "num_inference_steps": 2.5}, TypeError, "num_inference_steps"),
        ({"prompt": "a star", "guidance_scale": "high"}, TypeError, "guidance_scale"),
        ({"prompt": "a star", "generator": 3}, TypeError, "torch.Generator"),
        ({"prompt": "a star", "output_type": "jpeg"}, ValueError, "jpeg"),
        ({"image": picture(), "prompt": "remove it", "mask_blur": -1}, ValueError, "mask_blur"),
        ({"image": picture(), "prompt": "remove it", "padding_mask_crop": 1.5}, TypeError, "padding_mask_crop"),
        ({"prompt": "a star", "eta": "little"}, TypeError, "eta"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_what_to_do(pipe, given, kind, said):
    steps = []
    hook = pipe.unet.register_forward_hook(lambda *_: steps.append(1))
    try:
        with pytest.raises(kind, match=said):
            pipe(**given)
    finally:
        hook.remove()
    assert steps == []  # not after minutes of denoising


def test_components_that_are_not_loaded_are_named():
    pipe = FocusBlocks().init_pipeline()
    with pytest.raises(ValueError, match=r"FocusImageEncoderStep needs vision_encoder.*load_components\(\)"):
        pipe(image=picture(), question="how many?")
    given = modular(FocusEditBlocks()).components
    for name in ("unet", "vae", "visual_tokenizer"):
        pipe = FocusEditBlocks().init_pipeline()
        pipe.update_components(**{part: one for part, one in given.items() if part != name})
        with pytest.raises(ValueError, match=rf"{name}.*update_components\({name}=\.\.\.\)"):
            pipe(image=picture(), prompt="remove it", mask_image=disk_mask())


def test_components_of_different_checkpoints_are_refused():
    from diffusers_focus.models.mask_conditioner import FocusMaskConditioner

    other = FocusMaskConditioner(patch_size=2, code_channels=6, cross_attention_dim=8, hidden_dim=8)
    with pytest.raises(ValueError, match="do not fit"):
        modular(mask_conditioner=other)(prompt="a star")


def test_without_a_mask_decoder_a_mask_from_outside_is_the_place():
    pipe = modular(mask_conditioner=None)
    pipe.mask_decoder = None
    options = {"image": picture(), "prompt": "make it blue", "num_inference_steps": 1}
    given = pipe(mask_image=Image.fromarray(disk_mask()), **options)
    assert (given.get("edit_masks")[0] == disk_mask()).all()
    assert pipe(**options).get("edit_masks")[0].all()
    with pytest.raises(ValueError, match="no mask_decoder"):
        pipe(target="the star", **options)
    with pytest.raises(ValueError, match="no mask_decoder"):
        pipe(image=picture(), target="the star")


def test_progress_bars_are_reached_however_deep(capfd):
    pipe = modular()
    pipe(prompt="a star", num_inference_steps=2)
    assert "2/2" not in capfd.readouterr().err
    pipe.set_progress_bar_config(disable=False)
    pipe(prompt="a star", num_inference_steps=2)
    shown = capfd.readouterr().err
    assert len(ended := set(re.findall(r"100%.*?(\d+)/\1 ", shown))) == 2 and "2" in ended  # tokens, steps
