"""Loading from folders in all their states, sharing components between pipelines, being known to diffusers."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoPipelineForInpainting,
    DiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from diffusers_focus import FocusPipeline, FocusSegmentEditPipeline, FocusUnderstandPipeline
from diffusers_focus.pipelines._hub import check_files

from tests.tiny import disk_mask, picture, seeded, tiny_components, tiny_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("focus") / "inside" / "pipeline"
    tiny_pipeline().save_pretrained(path, max_shard_size="30KB")
    return path


def states_equal(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# --- what is saved ---------------------------------------------------------------------------------------------------------


def test_index_has_the_module_paths_that_published_pipelines_have(folder, root):
    saved = json.loads((folder / "model_index.json").read_text())
    published = json.loads((root / "pipelines" / "focus-tiny" / "model_index.json").read_text())
    ours = {name: value for name, value in saved.items() if isinstance(value, list) and "diffusers_focus" in str(value)}
    assert ours == {
        "vision_encoder": ["diffusers_focus.models.vision_encoder", "FocusVisionEncoder"],
        "visual_tokenizer": ["diffusers_focus.models.visual_tokenizer", "FocusVisualTokenizer"],
        "mask_decoder": ["diffusers_focus.models.mask_decoder", "FocusMaskDecoder"],
        "mask_conditioner": ["diffusers_focus.models.mask_conditioner", "FocusMaskConditioner"],
        "image_processor": ["diffusers_focus.processing.images", "FocusImageProcessor"],
    }
    assert ours.items() <= published.items() and saved["_class_name"] == "FocusPipeline"


def test_sharded_weights_come_back(folder):
    for name in ("unet", "vision_encoder", "language_model"):
        assert len(list((folder / name).glob("*-of-*.safetensors"))) > 1
    pipe, made = FocusPipeline.from_pretrained(folder), tiny_components()
    for name in ("unet", "vision_encoder", "language_model", "mask_decoder", "visual_tokenizer", "mask_conditioner"):
        assert states_equal(getattr(pipe, name), made[name])


# --- loading ---------------------------------------------------------------------------------------------------------------


def test_diffusers_knows_our_classes(folder):
    for one in (DiffusionPipeline, AutoPipelineForInpainting):
        pipe = one.from_pretrained(folder, dtype=torch.float32)
        assert type(pipe) is FocusPipeline
    pipe.set_progress_bar_config(disable=True)
    options = {"image": picture(), "mask_image": disk_mask(), "output_type": "np"}
    image = pipe(prompt="make it blue", generator=seeded(), **options).images
    assert image.shape == (1, 64, 64, 3)
    half = AutoPipelineForInpainting.from_pipe(FocusSegmentEditPipeline.from_pipe(pipe))
    assert type(half) is FocusSegmentEditPipeline and half.unet is pipe.unet
    half.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(half(prompt="make it blue", generator=seeded(), **options).images, image)


def test_subfolder_and_passed_components(folder, caplog):
    own = tiny_components(seed=1)
    passed = {name: own[name] for name in ("mask_decoder", "image_processor", "vae")}
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        pipe = FocusPipeline.from_pretrained(folder.parent, subfolder="pipeline", score_threshold=0.25, **passed)
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.text == ""
    assert all(getattr(pipe, name) is component for name, component in passed.items())
    assert pipe.config.mask_decoder == ("diffusers_focus.models.mask_decoder", "FocusMaskDecoder")
    assert pipe.config.score_threshold == 0.25 and states_equal(pipe.unet, tiny_components()["unet"])


def test_passed_components_have_to_be_components_and_to_fit(folder):
    with pytest.raises(TypeError, match="mask_decoder must be a FocusMaskDecoder, got str"):
        FocusPipeline.from_pretrained(folder, mask_decoder="org/mask-decoder")
    small = tiny_components()["mask_conditioner"]
    other = type(small)(**{**small.config, "cross_attention_dim": 16})
    with pytest.raises(ValueError, match="mask_conditioner and unet do not fit"):
        FocusPipeline.from_pretrained(folder, mask_conditioner=other)


def test_one_dtype_or_one_per_component(folder):
    pipe = FocusPipeline.from_pretrained(folder, dtype={"unet": torch.float16, "default": torch.bfloat16})
    assert (pipe.unet.dtype, pipe.vae.dtype, pipe.language_model.dtype) == (
        torch.float16,
        torch.bfloat16,
        torch.bfloat16,
    )
    assert FocusPipeline.from_pretrained(folder, torch_dtype=torch.float16).language_model.dtype == torch.float16


def test_folders_that_cannot_be_loaded(folder, root, tmp_path):
    with pytest.raises(
        OSError, match="'pipelines/none' is neither a folder here nor a repository|could not be reached"
    ):
        FocusPipeline.from_pretrained("pipelines/none")
    with pytest.raises(OSError, match="has no model_index.json, so it is no pipeline's folder"):
        FocusPipeline.from_pretrained(folder / "unet")
    with pytest.raises(OSError, match=r"missing: language_model/ \(its weights\), lm_tokenizer/ \(nothing of it\)"):
        FocusPipeline.from_pretrained(root / "pipelines" / "focus-3b")
    with pytest.raises(ValueError, match="`variant=fp16`, which .* does not have. There are plain weights alone"):
        FocusPipeline.from_pretrained(folder, variant="fp16")


def test_a_part_cannot_be_loaded_as_the_whole(folder, tmp_path):
    FocusUnderstandPipeline.from_pipe(FocusPipeline.from_pretrained(folder)).save_config(tmp_path)
    with pytest.raises(
        ValueError, match="is a FocusUnderstandPipeline without scheduler, unet, vae, which FocusPipeline"
    ):
        FocusPipeline.from_pretrained(tmp_path)


FILES = ["a/config.json", "a/model.safetensors", "b/config.json", "b/model.fp16.safetensors", "s/scheduler_config.json"]


def test_complete_folders_pass():
    check_files("x", FILES, ["a", "s"])
    check_files("x", FILES, ["a", "b", "s"], "fp16")
    parts = [f"a/model.fp16-0000{part}-of-00002.safetensors" for part in (1, 2)]
    check_files("x", ["a/config.json", "a/model.safetensors.index.fp16.json", *parts], ["a"], "fp16")


@pytest.mark.parametrize(
    "files, variant, kind, says",
    [
        (FILES, None, ValueError, r"weights of b as a variant alone: pass variant='fp16'"),
        (FILES, "ema", ValueError, "`variant=ema`, which 'x' does not have. There is fp16"),
        (FILES[2:], "fp16", OSError, r"missing: a/ \(nothing of it\)\. .*from_pretrained\(\.\.\., a="),
        (["a/model.safetensors", *FILES[2:]], "fp16", OSError, "missing: a/config.json"),
        (["a/config.json", *FILES[2:]], "fp16", OSError, r"missing: a/ \(its weights\)"),
        (
            ["a/config.json", "a/diffusion_pytorch_model-00001-of-00003.safetensors", *FILES[2:]],
            "fp16",
            OSError,
            r"a/ \(part 2 of 3 of its weights\), a/ \(part 3 of 3 of its weights\)",
        ),
    ],
)
def test_what_is_missing_is_named(files, variant, kind, says):
    with pytest.raises(kind, match=says):
        check_files("x", files, ["a", "b", "s"], variant)


# --- from one another --------------------------------------------------------------------------------------------------------


def sdxl():
    """SDXL's pipeline with tiny parts and without texts."""
    unet = dict(tiny_components()["unet"].config) | {"in_channels": 4}
    vae, scheduler = tiny_components()["vae"], tiny_components()["scheduler"]
    texts = dict.fromkeys(("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"))
    return StableDiffusionXLPipeline(
        vae=vae,
        unet=UNet2DConditionModel.from_config(unet),
        scheduler=scheduler,
        force_zeros_for_empty_prompt=False,
        **texts,
    )


def test_from_an_sdxl_pipeline_and_back():
    source, parts = sdxl(), tiny_components()
    ours = ("vision_encoder", "language_model", "lm_tokenizer", "visual_tokenizer", "mask_decoder", "mask_conditioner")
    with pytest.raises(ValueError) as caught:
        FocusSegmentEditPipeline.from_pipe(source)
    for name in ("language_model", "visual_tokenizer", "image_processor", "unet", "StableDiffusionXLPipeline"):
        assert name in str(caught.value)
    assert "vae" not in str(caught.value)
    given = {name: parts[name] for name in (*ours, "image_processor", "unet")}
    made = FocusSegmentEditPipeline.from_pipe(source, score_threshold=0.2, **given)
    assert made.vae is source.vae and made.scheduler is source.scheduler and made.unet is parts["unet"]
    assert made.config.score_threshold == 0.2
    back = StableDiffusionXLPipeline.from_pipe(made, unet=source.unet, dtype=torch.float32)
    assert back.vae is source.vae and back.scheduler is source.scheduler
    assert back.config.force_zeros_for_empty_prompt is False


def test_a_part_cannot_become_the_whole_and_says_what_is_missing():
    asking = FocusUnderstandPipeline.from_pipe(tiny_pipeline())
    with pytest.raises(
        ValueError, match=r"FocusPipeline needs scheduler, unet, vae, which FocusUnderstandPipeline does not"
    ):
        FocusPipeline.from_pipe(asking)


def test_sharing_casts_nothing_unless_asked(folder):
    source = FocusPipeline.from_pretrained(folder, dtype={"unet": torch.float16, "default": torch.bfloat16})
    asking = FocusUnderstandPipeline.from_pipe(source)
    whole = FocusPipeline.from_pipe(asking, **{n: getattr(source, n) for n in ("unet", "vae", "scheduler")})
    assert (whole.unet.dtype, whole.language_model.dtype) == (torch.float16, torch.bfloat16)
    assert whole.visual_tokenizer.pixel_quantizer.frozen_codebook.dtype == torch.float32
    assert whole.config.score_threshold == source.config.score_threshold == 0.1  # kept through a pipeline without it
    assert FocusPipeline.from_pipe(source, dtype=torch.float32).unet.dtype == torch.float32
    assert source.unet.dtype == torch.float32


def test_autoencoder_of_another_size_does_not_fit():
    parts = tiny_components()
    other = AutoencoderKL.from_config(dict(parts["vae"].config) | {"latent_channels": 8})
    with pytest.raises(ValueError, match="channels of the latents"):
        FocusPipeline.from_pipe(tiny_pipeline(), vae=other)
