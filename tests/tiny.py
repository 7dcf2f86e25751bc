"""A complete pipeline at test size: every real class, random weights, widths 16 to 32, images of 64 x 64 pixels."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from diffusers_focus.models.mask_conditioner import FocusMaskConditioner
from diffusers_focus.models.mask_decoder import FocusMaskDecoder
from diffusers_focus.models.vision_encoder import FocusVisionEncoder
from diffusers_focus.models.visual_tokenizer import FocusVisualTokenizer
from diffusers_focus.processing.images import FocusImageProcessor
from diffusers_focus.processing.vocabulary import build_tiny_tokenizer, extend_tokenizer
from diffusers_focus.training.growth import with_outlines

SIZE = 64
SEMANTIC_CODES, PIXEL_CODES, TAG_STEP = 24, 40, 16
WIDTH = 32
CHANNELS = (8, 16, 16, 24)
TEXTS = [
    "Please segment the target referred to by the language description.",
    "Please edit the image according to the following instruction.",
    "how many objects are there? the red circle, the blue star, remove replace with a nothing background",
]


def tiny_tokenizer() -> Qwen2Tokenizer:
    """A tokenizer with the visual tokens."""
    tokenizer = build_tiny_tokenizer(TEXTS, 380)
    extend_tokenizer(tokenizer, SEMANTIC_CODES, PIXEL_CODES, TAG_STEP)
    return tokenizer


def _mask_conditioner() -> FocusMaskConditioner:
    """With guidance that says something: as it begins, it would hide what goes wrong with it."""
    conditioner = FocusMaskConditioner(
        patch_size=4,
        code_channels=8,
        cross_attention_dim=32,
        hidden_dim=16,
        guidance_dim=16,
        language_hidden_size=WIDTH,
    )
    torch.nn.init.normal_(conditioner.cell_guidance.proj_out.weight)
    conditioner = with_outlines(conditioner, 8)
    with torch.random.fork_rng():
        torch.nn.init.normal_(conditioner.cell_guidance.outline_in.weight)
    return conditioner


def tiny_components(seed: int = 0) -> dict[str, Any]:
    """All components of `FocusPipeline`, made for each other. Outputs that start at zero are opened, so all of it counts."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    rows = len(tokenizer) + 6
    components: dict[str, Any] = {
        "vision_encoder": FocusVisionEncoder(
            vision_tower={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
            pyramid_depths=(1, 1, 1, 1),
            pyramid_channels=CHANNELS,
            pyramid_layer_scale_init=0.5,
            fusion_num_heads=2,
            fusion_dim=16,
            num_query_tokens=3,
            query_dim=16,
            query_num_heads=2,
            query_mlp_ratio=2,
            language_hidden_size=WIDTH,
            pixel_feature_dim=4,
            region_dim=16,
        ),
        "language_model": Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=rows,
                hidden_size=WIDTH,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=2048,
                initializer_range=0.3,
                tie_word_embeddings=True,
                eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
                pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
                bos_token_id=None,
            )
        ),
        "visual_tokenizer": FocusVisualTokenizer(
            code_dim=4,
            semantic_input_dim=32,
            semantic_embed_dim=16,
            semantic_num_blocks=1,
            semantic_num_heads=2,
            semantic_codebook_size=SEMANTIC_CODES,
            pixel_channels=8,
            pixel_decoder_channels=8,
            pixel_channel_mult=(1, 1, 1, 1, 2),
            pixel_num_res_blocks=1,
            pixel_attention_stages=(),
            pixel_codebook_size=PIXEL_CODES,
            norm_groups=4,
        ),
        "mask_decoder": FocusMaskDecoder(
            in_channels=CHANNELS,
            language_hidden_size=WIDTH,
            hidden_dim=16,
            mask_dim=16,
            num_heads=2,
            encoder_layers=1,
            decoder_layers=1,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            num_slots=4,
            num_points=2,
            instance_dim=8,
            norm_groups=4,
        ),
        "mask_conditioner": _mask_conditioner(),
        "unet": UNet2DConditionModel(
            sample_size=SIZE // 4,
            in_channels=12,
            out_channels=4,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            transformer_layers_per_block=(1, 1),
            attention_head_dim=(2, 4),
            norm_num_groups=8,
            cross_attention_dim=32,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=32 + 48,
        ),
        "vae": AutoencoderKL(
            block_out_channels=(8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=SIZE,
        ),
        "scheduler": DDIMScheduler(),
        "image_processor": FocusImageProcessor(
            buckets=[[SIZE, SIZE], [48, 96]],
            tag_step=TAG_STEP,
            high_resolution=SIZE,
            decode_scale=1,
            vae_scale_factor=4,
        ),
    }
    components["lm_tokenizer"] = tokenizer
    for component in components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
            with torch.no_grad():
                for parameter in component.parameters():
                    if parameter.dim() and parameter.count_nonzero() == 0:
                        parameter.normal_(std=0.1)
    return components


SETTINGS: dict[str, Any] = {
    "resolution_group": [[SIZE, SIZE], [96, 48]],
    "score_threshold": 0.1,
    "fallback_threshold": 0.0,
    "default_num_inference_steps": 2,
    "default_temperature": 1.0,
    "default_top_k": 0,
}


def tiny_pipeline(cls: Any = None, **changes: Any) -> Any:
    """A pipeline of test size without progress bars; `changes` are components or settings."""
    if cls is None:
        from diffusers_focus.pipelines.focus import FocusPipeline as cls  # noqa: N813
    accepted = inspect.signature(cls.__init__).parameters
    pipe = cls(**{k: v for k, v in {**tiny_components(), **SETTINGS}.items() if k in accepted} | changes)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def shared_pipeline() -> Any:
    """One pipeline for tests that leave it as it is."""
    return tiny_pipeline()


def picture(seed: int = 0, height: int = SIZE, width: int = SIZE) -> Image.Image:
    """A disk and a square on a noisy ground."""
    rng = np.random.default_rng(seed)
    array = rng.integers(90, 130, (height, width, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:height, :width]
    array[(rows - height * 0.3) ** 2 + (columns - width * 0.3) ** 2 < (min(height, width) * 0.18) ** 2] = (220, 30, 30)
    array[int(height * 0.6) : int(height * 0.85), int(width * 0.6) : int(width * 0.85)] = (30, 60, 220)
    return Image.fromarray(array)


def disk_mask(height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """The disk of `picture`, bool [height, width]."""
    rows, columns = np.mgrid[:height, :width]
    return (rows - height * 0.3) ** 2 + (columns - width * 0.3) ** 2 < (min(height, width) * 0.18) ** 2


def seeded(seed: int = 0) -> torch.Generator:
    """A generator on the CPU."""
    return torch.Generator("cpu").manual_seed(seed)
