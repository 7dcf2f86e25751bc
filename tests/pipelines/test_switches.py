"""diffusers' switches on whole pipelines: the same picture with less memory, or in less time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, DDPMPipeline, DDPMScheduler, PipelineQuantizationConfig, UNet2DModel
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

from diffusers_focus import FocusPipeline, Point

from tests.tiny import disk_mask, picture, seeded, shared_pipeline, tiny_pipeline

MODELS = (
    "vision_encoder",
    "visual_tokenizer",
    "mask_decoder",
    "mask_conditioner",
    "language_model",
    "unet",
    "vae",
)
OURS = MODELS[:4]


def results(pipe: Any) -> tuple[np.ndarray, np.ndarray, str]:
    """A picture with a mask, the masks of a click, and an answer: every component has a part in it."""
    seen = pipe.encode_image(picture())
    options = {"mask_image": disk_mask(), "generator": seeded(), "output_type": "np"}
    image = pipe.edit(seen, "remove the red circle", **options).images[0]
    found = pipe.segment(seen, region=Point(20, 20), score_threshold=0.0, max_new_tokens=3)
    return image, found.scores[0], pipe.understand(seen, "how many?", max_new_tokens=4).text[0]


@pytest.fixture(scope="module")
def expected() -> tuple[np.ndarray, np.ndarray, str]:
    return results(shared_pipeline())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Any:
    path = tmp_path_factory.mktemp("focus")
    shared_pipeline().save_pretrained(path)
    return path


def assert_same(found: tuple[Any, ...], expected: tuple[Any, ...], tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(found[0], expected[0], atol=tolerance, rtol=0)
    np.testing.assert_allclose(found[1], expected[1], atol=tolerance, rtol=0)
    assert found[2] == expected[2]


def load(folder: Any, **options: Any) -> Any:
    pipe = FocusPipeline.from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_group_offloading_of_all_components(expected):
    pipe = tiny_pipeline()
    pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    for name in MODELS:
        assert any(hasattr(module, "_diffusers_hook") for module in getattr(pipe, name).modules()), name
    assert_same(results(pipe), expected)


def test_a_device_map_at_loading(folder, expected):
    pipe = load(folder, device_map="balanced")
    assert pipe.device.type == "cpu" and all(parameter.device.type == "cpu" for parameter in pipe.unet.parameters())
    assert_same(results(pipe), expected)


def test_layerwise_casting_of_all_models_of_ours():
    pipe = tiny_pipeline()
    for name in (*OURS, "unet", "vae"):
        getattr(pipe, name).enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    image, scores, _ = results(pipe)
    assert np.isfinite(image).all() and image.std() > 0 and np.isfinite(scores).all()
    kept = pipe.visual_tokenizer.pixel_quantizer.code_transform.weight
    assert kept.dtype == torch.float32 and pipe.unet.conv_in.weight.dtype == torch.float8_e4m3fn


def test_one_attention_backend_for_all_models(expected):
    pipe = tiny_pipeline()
    with attention_backend(AttentionBackendName.NATIVE):  # what the method changes beyond the models ends here
        for name in (*OURS[:3], "unet", "vae"):
            getattr(pipe, name).set_attention_backend("_native_math")
        assert_same(results(pipe), expected, 1e-3)


def test_vae_slicing_tiling_and_attention_slicing(expected):
    pipe = tiny_pipeline()
    pipe.vae.enable_slicing()
    pipe.enable_attention_slicing(1)
    assert_same(results(pipe), expected, 1e-4)
    pipe.vae.enable_tiling()
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 32, 8
    tiled = results(pipe)
    assert tiled[2] == expected[2] and 0 < np.abs(tiled[0] - expected[0]).mean() < 0.1  # seams of a random decoder show


def test_fused_projections_and_freeu_come_and_go(expected):
    pipe = tiny_pipeline()
    pipe.fuse_qkv_projections()
    assert_same(results(pipe), expected, 1e-4)
    pipe.unfuse_qkv_projections()
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert np.abs(results(pipe)[0] - expected[0]).max() > 1e-3
    pipe.disable_freeu()
    assert_same(results(pipe), expected, 1e-4)


def test_repeated_blocks_compile_inside_a_pipeline(expected):
    pipe = tiny_pipeline()
    torch.compiler.reset()
    for name in ("visual_tokenizer", "unet"):
        getattr(pipe, name).compile_repeated_blocks(fullgraph=True, backend="eager")
    assert_same(results(pipe), expected, 1e-4)


def test_a_tiny_vae_decodes_too():
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8), num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    )  # fmt: skip
    image = tiny_pipeline(vae=vae).edit(picture(), "remove it", mask_image=disk_mask(), generator=seeded()).images[0]
    assert image.size == (64, 64)


@pytest.mark.parametrize("backend", ["torchao", "quanto"])
def test_quantised_models_write_and_decode(backend, folder, expected):
    """Weights of eight bits. The language model's choices may change, so its states are compared, not its words."""
    if backend == "torchao":
        torchao = pytest.importorskip("torchao.quantization")
        from diffusers import TorchAoConfig
        from transformers import TorchAoConfig as LanguageConfig

        ours, language = TorchAoConfig(torchao.Int8WeightOnlyConfig()), LanguageConfig(torchao.Int8WeightOnlyConfig())
    else:
        pytest.importorskip("optimum.quanto")
        from diffusers import QuantoConfig as OurConfig
        from transformers import QuantoConfig

        ours, language = OurConfig(weights_dtype="int8"), QuantoConfig(weights="int8")
    mapping = {name: ours for name in (*OURS, "unet")} | {"language_model": language}
    pipe = load(folder, quantization_config=PipelineQuantizationConfig(quant_mapping=mapping))
    assert pipe.visual_tokenizer.pixel_quantizer.code_transform.weight.dtype == torch.float32
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        first, second = (p.language_model.model(ids).last_hidden_state for p in (pipe, shared_pipeline()))
    assert torch.nn.functional.cosine_similarity(first, second, dim=-1).min() > 0.99
    # From the codes on: the plain language model writes, everything else is quantised.
    pipe.language_model = shared_pipeline().language_model
    image, scores, _ = results(pipe)
    assert np.abs(image - expected[0]).mean() < 0.02 and np.isfinite(scores).all()


def test_sequential_offloading_needs_an_accelerator_in_diffusers_itself():
    """Why offloading module by module is tested through accelerate (test_loading.py): on CPUs diffusers' own pipelines fail."""
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        norm_num_groups=4, layers_per_block=1,
    )  # fmt: skip
    pipe = DDPMPipeline(unet, DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_sequential_cpu_offload(device="cpu")
    with pytest.raises(TypeError, match="new"):
        pipe(num_inference_steps=1)
