"""LoRA through the pipelines: UNet and language model, files of diffusers' and kohya's kind, on and off without a trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from diffusers_focus import FocusPipeline, FocusUnderstandPipeline

from tests.tiny import disk_mask, picture, seeded, tiny_components, tiny_pipeline

LAYERS = {"unet": ["to_q", "to_k", "to_v", "to_out.0"], "language_model": ["q_proj", "v_proj", "o_proj", "up_proj"]}


def drawn(pipe: Any, **options: Any) -> np.ndarray:
    """An edit inside a mask: tokens by the language model, pixels by the UNet."""
    options = {"mask_image": disk_mask(), "generator": seeded(), "output_type": "np", **options}
    return pipe.edit(picture(), "remove the red circle", **options).images


def logits(pipe: Any) -> torch.Tensor:
    with torch.no_grad():
        return pipe.language_model(torch.arange(20, 40)[None]).logits


def add(pipe: Any, component: str, name: str = "default", **options: Any) -> None:
    torch.manual_seed(len(name))
    config = LoraConfig(r=2, target_modules=LAYERS[component], init_lora_weights=False, **options)
    getattr(pipe, component).add_adapter(config, adapter_name=name)


@pytest.fixture(scope="module")
def base() -> tuple[np.ndarray, torch.Tensor]:
    pipe = tiny_pipeline()
    return drawn(pipe), logits(pipe)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Any, np.ndarray, torch.Tensor]:
    """A folder with an adapter for both components, and what the pipeline made with it."""
    pipe, folder = tiny_pipeline(), tmp_path_factory.mktemp("lora")
    for component in LAYERS:
        add(pipe, component)
    pipe.save_lora_weights(folder, **pipe.lora_layers("default"))
    return folder, drawn(pipe), logits(pipe)


def test_an_adapter_comes_back_and_goes_without_a_trace(base, saved):
    folder, image, scores = saved
    assert np.abs(image - base[0]).max() > 1e-3 and (scores - base[1]).abs().max() > 1e-2
    pipe = tiny_pipeline()
    pipe.load_lora_weights(folder, adapter_name="new")
    assert pipe.get_list_adapters() == {"unet": ["new"], "language_model": ["new"]}
    np.testing.assert_allclose(drawn(pipe), image, atol=1e-5)
    torch.testing.assert_close(logits(pipe), scores, atol=1e-5, rtol=0)
    pipe.disable_lora()
    assert (drawn(pipe) == base[0]).all() and torch.equal(logits(pipe), base[1])
    pipe.enable_lora()
    pipe.fuse_lora()
    assert pipe.num_fused_loras == 1
    np.testing.assert_allclose(drawn(pipe), image, atol=1e-5)
    pipe.unfuse_lora()
    np.testing.assert_allclose(drawn(pipe), image, atol=1e-5)
    pipe.unload_lora_weights()
    # Fusing and taking out again rounds the weights once.
    np.testing.assert_allclose(drawn(pipe), base[0], atol=1e-5)
    torch.testing.assert_close(logits(pipe), base[1], atol=1e-5, rtol=0)


def test_unloading_restores_the_base_bit_for_bit(base, saved):
    pipe = tiny_pipeline()
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    pipe.load_lora_weights(saved[0])
    pipe.unload_lora_weights()
    assert (drawn(pipe) == base[0]).all() and torch.equal(logits(pipe), base[1])
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())


def test_adapters_are_weighed_mixed_and_deleted(base, saved):
    pipe = tiny_pipeline()
    pipe.load_lora_weights(saved[0], adapter_name="one")
    add(pipe, "unet", "two")
    pipe.set_adapters(["one", "two"], [0.5, 0.25])
    mixed = drawn(pipe)
    assert pipe.get_active_adapters() == ["one", "two"]
    pipe.delete_adapters("two")
    assert pipe.get_list_adapters()["unet"] == ["one"]
    pipe.set_adapters("one", 1.0)
    np.testing.assert_allclose(drawn(pipe), saved[1], atol=1e-5)
    assert np.abs(mixed - saved[1]).max() > 1e-3
    half = drawn(pipe, cross_attention_kwargs={"scale": 0.5})
    pipe.set_adapters("one", 0.5)
    np.testing.assert_allclose(drawn(pipe), half, atol=1e-5)
    np.testing.assert_allclose(drawn(pipe, cross_attention_kwargs={"scale": 0.0}), base[0], atol=1e-5)
    np.testing.assert_allclose(drawn(pipe), half, atol=1e-5)  # a scale is a call's own


def test_an_encoding_does_not_remember_another_adapter(saved):
    pipe = tiny_pipeline()
    seen = pipe.encode_image(picture())

    def states(encoding: Any) -> torch.Tensor:
        from diffusers_focus.steps.sequence import FocusContext, encode_prefix

        with torch.no_grad():
            return encode_prefix(pipe, FocusContext.of(pipe), encoding).layers[-1][1]

    plain = states(seen)
    pipe.load_lora_weights(saved[0])
    adapted = states(seen)
    assert not torch.equal(plain, adapted) and torch.equal(adapted, states(pipe.encode_image(picture())))
    pipe.fuse_lora()
    pipe.unload_lora_weights()  # fused weights stay
    torch.testing.assert_close(states(seen), adapted, atol=1e-4, rtol=1e-4)
    assert states(seen) is states(seen)


def as_kohya(folder: Any, target: Any) -> None:
    """The UNet's part of a LoRA file in kohya's keys, with alphas, and a text encoder's part that FOCUS has no use for."""
    weights = {}
    for key, value in load_file(folder / "pytorch_lora_weights.safetensors").items():
        if not key.startswith("unet."):
            continue
        module, kind, _ = key.removeprefix("unet.").rsplit(".", 2)
        module = "lora_unet_" + module.replace(".", "_")
        weights[f"{module}.{'lora_down' if kind == 'lora_A' else 'lora_up'}.weight"] = value.clone()
        weights[f"{module}.alpha"] = torch.tensor(1.0)
    part = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    weights[f"{part}.lora_down.weight"], weights[f"{part}.lora_up.weight"] = torch.ones(2, 8), torch.ones(8, 2)
    weights[f"{part}.alpha"] = torch.tensor(1.0)
    save_file(weights, target)


def test_kohyas_files_load_without_their_text_encoder_part(saved, tmp_path, caplog):
    as_kohya(saved[0], tmp_path / "kohya.safetensors")
    first, second = tiny_pipeline(), tiny_pipeline()
    first.load_lora_weights(str(tmp_path), weight_name="kohya.safetensors", adapter_name="kohya")
    assert "2 weights of this LoRA are for SDXL's text encoders" in caplog.text
    second.load_lora_weights(saved[0], adapter_name="own")
    # Alpha over rank is 1 / 2 in kohya's file and peft's 8 / 2 in the other, which also holds a language model's part.
    second.set_adapters("own", {"unet": 0.125, "language_model": 0.0})
    np.testing.assert_allclose(drawn(first), drawn(second), atol=1e-5)


def sdxl_unet() -> UNet2DConditionModel:
    """A UNet with the block layout of SDXL's, which kohya's block numbers count, and FOCUS's further input channels."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        in_channels=12,
        out_channels=4,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 2, 2),
        norm_num_groups=4,
        cross_attention_dim=32,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 48,
    )


def test_sdxls_block_numbers_and_first_convolution_find_their_places():
    pipe = tiny_pipeline(unet=sdxl_unet())
    places = {
        "input_blocks_4_1_transformer_blocks_0_attn1_to_q": "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "input_blocks_8_1_transformer_blocks_1_attn2_to_k": "down_blocks.2.attentions.1.transformer_blocks.1.attn2.to_k",
        "middle_block_1_transformer_blocks_0_attn2_to_v": "mid_block.attentions.0.transformer_blocks.0.attn2.to_v",
        "output_blocks_3_1_transformer_blocks_0_attn1_to_out_0": "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
    }
    weights = {}
    for number, (kohya, module) in enumerate(places.items()):
        layer = pipe.unet.get_submodule(module)
        weights[f"lora_unet_{kohya}.lora_down.weight"] = torch.full((2, layer.in_features), 0.1 * (number + 1))
        weights[f"lora_unet_{kohya}.lora_up.weight"] = torch.full((layer.out_features, 2), 0.1)
        weights[f"lora_unet_{kohya}.alpha"] = torch.tensor(2.0)
    pipe.load_lora_weights(weights, adapter_name="sdxl")
    for number, module in enumerate(places.values()):
        assert (pipe.unet.get_submodule(module).lora_A["sdxl"].weight == 0.1 * (number + 1)).all()
    first = {"unet.conv_in.lora_A.weight": torch.ones(2, 4, 3, 3), "unet.conv_in.lora_B.weight": torch.ones(8, 2, 1, 1)}
    pipe.load_lora_weights(first, adapter_name="first")
    widened = pipe.unet.conv_in.lora_A["first"].weight
    assert widened.shape == (2, 12, 3, 3) and (widened[:, :4] == 1).all() and (widened[:, 4:] == 0).all()


def test_a_language_models_file_without_settings_loads_everywhere(saved, base, tmp_path):
    """Ranks are read off the weights; a pipeline that only asks takes its part of a file."""
    weights = load_file(saved[0] / "pytorch_lora_weights.safetensors")
    save_file({k: v for k, v in weights.items() if k.startswith("language_model.")}, tmp_path / "words.safetensors")
    pipe = tiny_pipeline()
    pipe.load_lora_weights(str(tmp_path), weight_name="words.safetensors")
    assert set(pipe.get_list_adapters()) == {"language_model"}
    shift = (logits(pipe) - base[1]).abs().max()
    assert shift > 1e-2
    parts = tiny_components()
    asking = FocusUnderstandPipeline(
        **{
            name: parts[name]
            for name in ("vision_encoder", "language_model", "lm_tokenizer", "visual_tokenizer", "image_processor")
        }
    )
    asking.load_lora_weights(saved[0], adapter_name="both")
    torch.testing.assert_close(logits(asking), saved[2], atol=1e-5, rtol=0)


def test_what_cannot_be_loaded_or_saved_is_said(saved, tmp_path):
    pipe = tiny_pipeline()
    with pytest.raises(ValueError, match="no LoRA.*conv.weight"):
        pipe.load_lora_weights({"unet.conv.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="holds nothing for a FocusPipeline"):
        pipe.load_lora_weights({"text_encoder.x.lora_A.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="no adapter 'style'"):
        pipe.lora_layers("style")
    with pytest.raises(ValueError, match="no LoRA layers to write"):
        FocusPipeline.save_lora_weights(tmp_path)
    assert list(tmp_path.iterdir()) == []
