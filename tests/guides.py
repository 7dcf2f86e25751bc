"""A ControlNet, SDXL's text encoders and an IP-Adapter that fit a UNet, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ControlNetModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
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


def ip_adapter_for(unet: Any, width: int = 24, tokens: int = 4, seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    """An adapter of the first kind: a picture's embedding becomes `tokens` rows; a key and a value matrix a cross-attention."""
    random = torch.Generator().manual_seed(seed)
    inner = unet.config.cross_attention_dim

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random) * 0.3

    weights = {"proj.weight": matrix(tokens * inner, width), "proj.bias": matrix(tokens * inner)}
    weights |= {"norm.weight": torch.ones(inner), "norm.bias": torch.zeros(inner)}
    layers: dict[str, torch.Tensor] = {}
    for place, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            hidden = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            layers |= {f"{place}.to_{key}_ip.weight": matrix(hidden, inner) for key in "kv"}
    return {"image_proj": weights, "ip_adapter": layers}


def image_encoder_for(width: int = 24) -> CLIPVisionModelWithProjection:
    """A CLIP of pictures of 28 x 28 pixels."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14,
        projection_dim=width,
    )  # fmt: skip
    return CLIPVisionModelWithProjection(config).eval()
