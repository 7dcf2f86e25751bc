"""The pixel decoder: image features at strides 4..32 -> per-pixel mask embeddings and three refined scales.

Part of `FocusMaskDecoder`. The structure is Mask2Former's (arXiv 2112.01527, MIT; Apache-2.0 port in transformers):
multi-scale deformable attention (arXiv 2010.04159) over strides 32, 16, 8, then one feature-pyramid step to stride 4.
Deformable attention is plain PyTorch, so there is no extension to compile, and always samples in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.utils.outputs import BaseOutput
from torch import nn

from ._position import sine_position_2d

NUM_LEVELS = 3  # scales of the deformable encoder and of the masked attention: strides 32, 16, 8


@dataclass
class FocusPixelFeatures(BaseOutput):
    """What the mask decoder knows about an image, whatever is asked about it.

    Attributes:
        mask_features (`torch.Tensor` of shape `(B, mask_dim, h, w)`): per-pixel embeddings at stride 4.
        multi_scale (`tuple` of 3 `torch.Tensor` of shape `(B, hidden_dim, h_l, w_l)`): strides 32, 16, 8, in order.
    """

    mask_features: torch.Tensor
    multi_scale: tuple[torch.Tensor, ...]

    def select(self, index: int | slice | Sequence[int] | torch.Tensor) -> FocusPixelFeatures:
        """The features of some images of the batch; an index may repeat. An `int` keeps the batch dimension."""
        if isinstance(index, int):
            index = [index]
        if not isinstance(index, slice):
            index = torch.as_tensor(index, device=self.mask_features.device)
        return FocusPixelFeatures(
            mask_features=self.mask_features[index], multi_scale=tuple(level[index] for level in self.multi_scale)
        )


def sine_positions(height: int, width: int, channels: int, device: torch.device | str) -> torch.Tensor:
    """2-D sine position embedding `(height * width, channels)` in fp32: y in the first half of the channels, x in the
    second, sine and cosine interleaved, coordinates normalised to (0, 2 pi].
    """
    half = channels // 2
    index = torch.arange(half, device=device, dtype=torch.float32)
    frequencies = 10000.0 ** (2 * torch.div(index, 2, rounding_mode="floor") / half)

    def embed(length: int) -> torch.Tensor:
        steps = torch.arange(1, length + 1, device=device, dtype=torch.float32) / (length + 1e-6) * (2 * math.pi)
        angles = steps[:, None] / frequencies
        return torch.stack((angles[:, 0::2].sin(), angles[:, 1::2].cos()), dim=2).flatten(1)

    y = embed(height)[:, None].expand(height, width, half)
    x = embed(width)[None, :].expand(height, width, half)
    return torch.cat((y, x), dim=2).flatten(0, 1)


def deformable_sample(
    value: torch.Tensor, shapes: Sequence[tuple[int, int]], locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Weighted bilinear samples of several feature maps.

    Args:
        value: `(B, S, heads, d)`, the maps of all levels flattened and concatenated.
        shapes: (height, width) of each level.
        locations: `(B, Q, heads, levels, points, 2)` fp32, (x, y) as fractions of the map; outside reads zeros.
        weights: `(B, Q, heads, levels, points)`, summing to one over the last two.

    Returns:
        `(B, Q, heads * d)` in fp32.
    """
    batch, _, heads, dim = value.shape
    queries = locations.shape[1]
    # Coordinates in 16 bits are off by tenths of a pixel, and grid_sample wants one dtype: sample in fp32.
    # Points before queries: (levels, B*heads, points, Q, 2) and (levels, B*heads, 1, points, Q). The sum over points
    # then runs along whole rows of queries.
    grids = (2 * locations - 1).permute(3, 0, 2, 4, 1, 5).flatten(1, 2)
    weights = weights.float().permute(3, 0, 2, 4, 1).flatten(1, 2).unsqueeze(2)
    parts = []
    for level, (height, width) in enumerate(shapes):
        start = sum(h * w for h, w in shapes[:level])
        maps = value[:, start : start + height * width].permute(0, 2, 3, 1)
        maps = maps.reshape(batch * heads, dim, height, width).float()
        samples = F.grid_sample(maps, grids[level], mode="bilinear", padding_mode="zeros", align_corners=False)
        parts.append((samples * weights[level]).sum(2))
    return torch.stack(parts).sum(0).reshape(batch, heads * dim, queries).transpose(1, 2)


class LearnedRows(nn.Embedding):
    """An embedding table that is always read whole. Calling it (instead of reading `.weight`) lets offloading hooks
    bring the weight in; the view outlives the hook that sends the weight back.
    """

    def forward(self) -> torch.Tensor:
        return self.weight[:]


class FeedForward(nn.Sequential):
    """Linear layers with ReLU between: `FeedForward(a, b, c)` has weights a->b and b->c under keys 0 and 2."""

    def __init__(self, *widths: int):
        layers: list[nn.Module] = []
        for i, (width_in, width_out) in enumerate(zip(widths[:-1], widths[1:])):
            layers += [nn.ReLU()] * (i > 0) + [nn.Linear(width_in, width_out)]
        super().__init__(*layers)


class MultiScaleDeformableAttention(nn.Module):
    """Deformable attention (arXiv 2010.04159) over three levels, in plain PyTorch."""

    def __init__(self, dim: int, num_heads: int, num_points: int):
        super().__init__()
        self.num_heads, self.num_points = num_heads, num_points
        self.sampling_offsets = nn.Linear(dim, num_heads * NUM_LEVELS * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * NUM_LEVELS * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # Head k starts out looking in direction k, point p at distance p + 1, whatever the content.
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        distances = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = directions[:, None, None] * distances[None, None, :, None]
        with torch.no_grad():
            nn.init.zeros_(self.sampling_offsets.weight)
            self.sampling_offsets.bias.copy_(offsets.expand(-1, NUM_LEVELS, -1, -1).flatten())
            nn.init.zeros_(self.attention_weights.weight)
            nn.init.zeros_(self.attention_weights.bias)
            for linear in (self.value_proj, self.output_proj):
                nn.init.xavier_uniform_(linear.weight)
                nn.init.zeros_(linear.bias)

    def forward(
        self, x: torch.Tensor, positions: torch.Tensor, references: torch.Tensor, shapes: Sequence[tuple[int, int]]
    ) -> torch.Tensor:
        batch, length, _ = x.shape
        queries = x + positions
        value = self.value_proj(x).view(batch, length, self.num_heads, -1)
        offsets = self.sampling_offsets(queries).float()
        offsets = offsets.view(batch, length, self.num_heads, NUM_LEVELS, self.num_points, 2)
        weights = self.attention_weights(queries).view(batch, length, self.num_heads, NUM_LEVELS * self.num_points)
        weights = weights.float().softmax(-1).view(batch, length, self.num_heads, NUM_LEVELS, self.num_points)
        sizes = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float32, device=x.device)
        # Offsets count pixels of the level they read; references are fractions of the map.
        locations = references[:, None, None, None] + offsets / sizes[:, None]
        return self.output_proj(deformable_sample(value, shapes, locations, weights).to(x.dtype))


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention, then a feed-forward network; both post-norm."""

    def __init__(self, dim: int, num_heads: int, num_points: int, ffn_dim: int):
        super().__init__()
        self.attention = MultiScaleDeformableAttention(dim, num_heads, num_points)
        self.attention_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, dim)
        self.ffn_norm = nn.LayerNorm(dim)
        for index in (0, 2):
            nn.init.xavier_uniform_(self.ffn[index].weight)

    def forward(
        self, x: torch.Tensor, positions: torch.Tensor, references: torch.Tensor, shapes: Sequence[tuple[int, int]]
    ) -> torch.Tensor:
        x = self.attention_norm(x + self.attention(x, positions, references, shapes))
        return self.ffn_norm(x + self.ffn(x))


class MaskPixelDecoder(nn.Module):
    """Multi-scale deformable encoder over f4, f3, f2, then one feature-pyramid step up to f1's stride of 4."""

    def __init__(
        self,
        in_channels: Sequence[int],
        dim: int,
        mask_dim: int,
        num_heads: int,
        num_layers: int,
        num_points: int,
        ffn_dim: int,
        norm_groups: int,
    ):
        super().__init__()
        self.input_projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, dim, 1), nn.GroupNorm(norm_groups, dim))
            for channels in reversed(in_channels[1:])
        )
        self.level_embed = LearnedRows(NUM_LEVELS, dim)
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(dim, num_heads, num_points, ffn_dim) for _ in range(num_layers)
        )
        self.lateral = nn.Sequential(nn.Conv2d(in_channels[0], dim, 1, bias=False), nn.GroupNorm(norm_groups, dim))
        self.merge = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.GroupNorm(norm_groups, dim), nn.ReLU()
        )
        self.mask_projection = nn.Conv2d(dim, mask_dim, 1)
        self.gradient_checkpointing = False

        for projection in self.input_projections:
            nn.init.xavier_uniform_(projection[0].weight)
            nn.init.zeros_(projection[0].bias)
        for conv in (self.lateral[0], self.merge[0], self.mask_projection):
            nn.init.kaiming_uniform_(conv.weight, a=1)
        nn.init.zeros_(self.mask_projection.bias)
        # Where a pixel is, for prompts that mean a place. Zero at first: Mask2Former's weights keep their meaning.
        self.position_projection = nn.Linear(mask_dim, mask_dim, bias=False)
        nn.init.zeros_(self.position_projection.weight)

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> FocusPixelFeatures:
        finest, *coarser = feature_maps
        levels = [project(x) for project, x in zip(self.input_projections, reversed(coarser))]
        shapes = [tuple(level.shape[-2:]) for level in levels]
        x = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)

        # Positions and reference points are the same for every image of the batch.
        level_embed = self.level_embed()
        positions = torch.cat(
            [
                sine_positions(h, w, x.shape[-1], x.device).to(level_embed.dtype) + level_embed[i]
                for i, (h, w) in enumerate(shapes)
            ]
        ).to(x.dtype)
        references = torch.cat([_cell_centres(h, w, x.device) for h, w in shapes])
        for layer in self.layers:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(layer, x, positions, references, shapes)
            else:
                x = layer(x, positions, references, shapes)

        maps = [
            tokens.transpose(1, 2).unflatten(2, shape)
            for tokens, shape in zip(x.split([h * w for h, w in shapes], dim=1), shapes)
        ]
        lateral = self.lateral(finest)
        upsampled = F.interpolate(maps[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        mask_features = self.mask_projection(self.merge(lateral + upsampled))
        height, width = mask_features.shape[-2:]
        places = sine_position_2d(height, width, mask_features.shape[1], mask_features.device, mask_features.dtype)
        places = self.position_projection(places).T.unflatten(1, (height, width))
        return FocusPixelFeatures(mask_features=mask_features + places, multi_scale=tuple(maps))


def _cell_centres(height: int, width: int, device: torch.device) -> torch.Tensor:
    """`(height * width, 2)` fp32: (x, y) of each cell's centre as fractions of the map."""
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    return torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1).flatten(0, 1)
