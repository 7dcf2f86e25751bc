"""Modular pipelines at test size, on the components of `shared_pipeline`; and the parts of a tiny SDXL."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from diffusers_focus import FocusBlocks

from tests.tiny import SETTINGS, shared_pipeline


def modular(blocks: Any = None, **changes: Any) -> Any:
    """A modular pipeline of `blocks` (`FocusBlocks`) with the components and settings of `shared_pipeline`."""
    pipe = (FocusBlocks() if blocks is None else blocks).init_pipeline()
    given = {**shared_pipeline().components, **SETTINGS, **changes}
    known = {*pipe.component_names, *(spec.name for spec in pipe.blocks.expected_configs)}
    pipe.update_components(**{name: value for name, value in given.items() if name in known})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def assert_equal(first: Any, second: Any) -> None:
    """Bit for bit, however nested."""
    assert type(first) is type(second)
    if isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second):
            assert_equal(one, other)
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, np.ndarray):
        assert first.dtype == second.dtype and np.array_equal(first, second)
    else:
        assert first == second


def sdxl_components() -> dict[str, Any]:
    """What diffusers' modular SDXL works with, random weights, images of 64 x 64 pixels; the tokenizer spells every word."""
    letters = list(bytes_to_unicode().values())
    words = [*letters, *[letter + "</w>" for letter in letters], "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    return {
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "text_encoder": CLIPTextModel(text).eval(),
        "text_encoder_2": CLIPTextModelWithProjection(text).eval(),
        "unet": UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            transformer_layers_per_block=(1, 1),
            attention_head_dim=(2, 4),
            norm_num_groups=8,
            cross_attention_dim=64,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=32 + 48,
        ).eval(),
        "vae": AutoencoderKL(
            block_out_channels=(8, 16, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=64,
        ).eval(),
        "scheduler": EulerDiscreteScheduler(),
    }
