"""A ControlNet and SDXL's text encoders that fit a UNet, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ControlNetModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

_SHARED = (
    "block_out_channels", "down_block_types", "layers_per_block", "transformer_layers_per_block", "attention_head_dim",
    "norm_num_groups", "cross_attention_dim", "use_linear_projection", "addition_embed_type", "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
)  # fmt: skip


def controlnet_for(unet: Any, seed: int = 0) -> ControlNetModel:
    """For latents of a fourth of the map's side; its last layers, which start at zero, are opened."""
    torch.manual_seed(seed)
    net = ControlNetModel(
        in_channels=4, conditioning_embedding_out_channels=(4, 8, 8), **{name: unet.config[name] for name in _SHARED}
    )
    for parameter in net.parameters():
        if parameter.count_nonzero() == 0:
            torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


def text_parts_for(unet: Any) -> dict[str, Any]:
    """tokenizer, tokenizer_2 (which spell every word), text_encoder and text_encoder_2."""
    letters = list(bytes_to_unicode().values())
    words = [*letters, *[letter + "</w>" for letter in letters], "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)
    pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
    width = unet.config.cross_attention_dim // 2

    def encoder(kind: Any, seed: int) -> Any:
        torch.manual_seed(seed)
        config = CLIPTextConfig(
            vocab_size=len(words), hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            projection_dim=pooled, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        return kind(config).eval()

    return {
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "text_encoder": encoder(CLIPTextModel, 0),
        "text_encoder_2": encoder(CLIPTextModelWithProjection, 1),
    }
