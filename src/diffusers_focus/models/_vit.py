"""The vision transformer that the vision encoder and the visual tokenizer share, and the tokenizer's own blocks.

The tower is transformers' Qwen2-VL vision model (Apache-2.0): 14-pixel patches, 2-D rotary positions, quick-GELU
MLPs and a merger that joins 2x2 patches, so one feature stands for 28x28 pixels. FOCUS calls it the vanilla ViT
(QwenViT); ILLUME+ (arXiv 2504.01934) takes its features after the merger, from all layers.

Shapes: B images of one size, H W pixels, N patches of one image, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import (
    Qwen2VisionTransformerPretrainedModel,
    apply_rotary_pos_emb_vision,
)

from ._attention import AttentionProduct

VIT_CONFIG_KEYS = (
    "depth",
    "embed_dim",
    "hidden_size",
    "num_heads",
    "mlp_ratio",
    "patch_size",
    "spatial_merge_size",
    "temporal_patch_size",
    "in_channels",
)


def build_vit(config: dict[str, Any]) -> Qwen2VisionTransformerPretrainedModel:
    """Build a Qwen2-VL vision tower with fresh weights.

    Args:
        config: Any of `depth`, `embed_dim`, `hidden_size` (width after the merger), `num_heads`, `mlp_ratio`,
            `patch_size`, `spatial_merge_size`, `temporal_patch_size`, `in_channels`. Missing keys take the values of
            the published 7B tower.

    Returns:
        The tower; `vit_features` calls it.

    Raises:
        ValueError: A key is unknown, or `embed_dim` gives heads that cannot be rotated in two dimensions.
    """
    unknown = sorted(set(config) - set(VIT_CONFIG_KEYS))
    if unknown:
        raise ValueError(f"Unknown vision tower config keys {unknown}; allowed keys are {list(VIT_CONFIG_KEYS)}.")
    vit_config = Qwen2VLVisionConfig(**config)
    if vit_config.embed_dim % (4 * vit_config.num_heads):
        raise ValueError(
            f"A vision tower of embed_dim={vit_config.embed_dim} with num_heads={vit_config.num_heads} has heads that "
            "2-D rotary positions cannot use; choose an embed_dim that is a multiple of 4 * num_heads."
        )
    vit_config._attn_implementation = "sdpa"
    return Qwen2VisionTransformerPretrainedModel(vit_config)


def patchify(
    pixel_values: torch.Tensor, patch_size: int = 14, spatial_merge_size: int = 2, temporal_patch_size: int = 2
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut images of one size into flat patches in the order the Qwen2-VL tower expects.

    The four patches of a merge cell are neighbours (merge-major), cells run in raster order, and a still image is
    repeated along time to fill a temporal patch.

    Args:
        pixel_values: [B, 3, H, W], already CLIP-normalised; H and W multiples of `patch_size * spatial_merge_size`.
        patch_size: Side of a patch in pixels.
        spatial_merge_size: Side of a merge cell in patches.
        temporal_patch_size: Frames of a patch.

    Returns:
        Patches [B*N, 3 * temporal_patch_size * patch_size^2] and `grid_thw` int64 [B, 3] = (1, H, W in patches).

    Raises:
        ValueError: H or W is no multiple of the merged patch.
    """
    batch, channels, height, width = pixel_values.shape
    cell = patch_size * spatial_merge_size
    if height % cell or width % cell:
        raise ValueError(
            f"The vision tower got {height}x{width} images; height and width must be multiples of {cell}. "
            "Resize the images to the grid that processing computes first."
        )
    rows, columns = height // cell, width // cell
    patches = pixel_values.view(
        batch, channels, rows, spatial_merge_size, patch_size, columns, spatial_merge_size, patch_size
    )
    patches = patches.permute(0, 2, 5, 3, 6, 1, 4, 7)  # B, row, column, y in cell, x in cell, C, y, x in patch
    patches = patches.unsqueeze(6).expand(*patches.shape[:6], temporal_patch_size, patch_size, patch_size)
    patches = patches.reshape(batch * rows * columns * spatial_merge_size**2, -1)
    grid = (1, rows * spatial_merge_size, columns * spatial_merge_size)
    return patches, torch.tensor([grid] * batch, dtype=torch.int64, device=pixel_values.device)


def vit_features(vit: Qwen2VisionTransformerPretrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Run the tower, all layers and the merger.

    Args:
        vit: From `build_vit`.
        pixel_values: [B, 3, H, W], CLIP-normalised, H and W multiples of 28 (patch times merge size).

    Returns:
        [B, H/28, W/28, hidden_size] in raster order.
    """
    config = vit.config
    patches, grid_thw = patchify(pixel_values, config.patch_size, config.spatial_merge_size, config.temporal_patch_size)
    merged = vit(patches, grid_thw=grid_thw).pooler_output
    rows, columns = (grid_thw[0, 1:] // config.spatial_merge_size).tolist()
    return merged.view(pixel_values.shape[0], rows, columns, config.hidden_size)


def rotary_2d(rows: int, columns: int, head_dim: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of 2-D rotary positions (theta 1e4) on a raster grid, each float32 [rows*columns, head_dim]."""
    half = head_dim // 2
    frequencies = 1e4 ** -(torch.arange(0, half, 2, dtype=torch.float32, device=device) / half)
    y = torch.arange(rows, dtype=torch.float32, device=device)[:, None, None].expand(rows, columns, 1)
    x = torch.arange(columns, dtype=torch.float32, device=device)[None, :, None].expand(rows, columns, 1)
    angles = torch.cat([y * frequencies, x * frequencies], dim=-1).flatten(0, 1)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


class SemanticAttention(nn.Module):
    """Full self-attention with rotary positions over a batch of equally long sequences."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attend = AttentionProduct()
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)  # [B, N, heads, head_dim]
        q, k = apply_rotary_pos_emb_vision(q, k, *rotary)
        # A copy, since torch 2.13's flex attention, compiled for a CPU, reads a lone view from its buffer's beginning.
        out = self.attend(q.transpose(1, 2), k.transpose(1, 2), v.contiguous().transpose(1, 2))
        return self.proj(out.transpose(1, 2).flatten(2))


class SemanticMLP(nn.Module):
    """Linear -> quick GELU -> Linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))


class SemanticBlock(nn.Module):
    """The tower's block on the post-merge grid, batched: LN, attention, LN, MLP (x4), both residual. [B, N, C]."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = SemanticAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = SemanticMLP(dim, dim * 4)

    def forward(self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), rotary)
        return x + self.mlp(self.norm2(x))
