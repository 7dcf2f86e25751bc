"""CLIP, DINO and an Inception of test size, saved as their folders and files are published."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTModel,
)

SIDE = 32
WIDTHS = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_clip(folder: Path, prepared: bool = True) -> None:
    """CLIPModel and its tokenizer, which spells; with preprocessor_config.json as OpenAI's have it."""
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,'-"]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)
    text = CLIPTextConfig(
        **{"vocab_size": len(words), "max_position_embeddings": 77, "eos_token_id": tokenizer.eos_token_id, **WIDTHS},
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(11)
    config = CLIPConfig(
        text_config=text.to_dict(),
        vision_config=CLIPVisionConfig(image_size=SIDE, patch_size=8, **WIDTHS).to_dict(),
        projection_dim=12,
    )
    model = CLIPModel(config)
    with torch.no_grad():  # wide enough for pictures and texts to differ
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if prepared:
        from diffusers_focus.evaluation.likeness import CLIP_MEAN, CLIP_STD

        given = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}, "resample": 3}
        given |= {"image_processor_type": "CLIPImageProcessor", "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
        (folder / "preprocessor_config.json").write_text(json.dumps(given))


def write_dino(folder: Path, second: bool = False) -> None:
    """DINO (a ViT), or DINOv2; without preprocessor_config.json."""
    torch.manual_seed(12)
    config = (Dinov2Config if second else ViTConfig)(
        image_size=SIDE, patch_size=8, **{k: v for k, v in WIDTHS.items() if not (second and k == "intermediate_size")}
    )
    model = Dinov2Model(config) if second else ViTModel(config, add_pooling_layer=False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    model.save_pretrained(folder)


class _Network(torch.nn.Module):
    """Has `layers`, as Inception's TorchScript does: colours of a grid of 2 x 2 cells."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.layers(pictures)


def write_inception(path: Path) -> None:
    """A TorchScript file of 12 features."""
    torch.jit.script(_Network().eval()).save(str(path))
