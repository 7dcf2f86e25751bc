"""MoVQ encoder and decoder: the convolutional half of the visual tokenizer's pixel branch.

FOCUS (arXiv 2506.16806), visual tokenizer, pixel branch (16x); structure after MoVQ (arXiv 2209.09002) as used by
ILLUME+ (arXiv 2504.01934, Apache-2.0) with the space-to-depth residual resampling of DC-AE (arXiv 2410.10733,
Apache-2.0).
Module names follow the ILLUME+ checkpoint, so its weights load without renaming inside these two classes.

The encoder is plain GroupNorm; in the decoder every norm is *spatial*: normalised features are scaled and shifted by
two 1x1 convolutions of the quantised map itself, which is what lets few, coarse codes carry fine detail.

Shapes: B batch, C channels, H W image, h w latent grid (H / 2^(levels-1)).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ._attention import AttentionProduct

NORM_EPS = 1e-6


class PlainNorm(nn.GroupNorm):
    """GroupNorm that ignores the condition, so that one residual block serves encoder and decoder."""

    def forward(self, x: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x)


class SpatialNorm(nn.Module):
    """`GroupNorm(x) * conv_y(condition) + conv_b(condition)`, the condition resized to `x` by nearest neighbour."""

    def __init__(self, channels: int, condition_channels: int, groups: int) -> None:
        super().__init__()
        self.norm_layer = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        self.conv_y = nn.Conv2d(condition_channels, channels, kernel_size=1)
        self.conv_b = nn.Conv2d(condition_channels, channels, kernel_size=1)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        # A 1x1 convolution commutes with nearest resizing; convolving the small map first costs up to 256x less.
        scale = F.interpolate(self.conv_y(condition), size=x.shape[-2:], mode="nearest")
        shift = F.interpolate(self.conv_b(condition), size=x.shape[-2:], mode="nearest")
        return self.norm_layer(x) * scale + shift


def _make_norm(channels: int, condition_channels: int | None, groups: int) -> nn.Module:
    if channels % groups:
        raise ValueError(
            f"A MoVQ stage has {channels} channels, which norm_groups={groups} does not divide; choose a norm_groups "
            "that divides every channels * channel_mult."
        )
    if condition_channels is None:
        return PlainNorm(groups, channels, eps=NORM_EPS)
    return SpatialNorm(channels, condition_channels, groups)


class MoVQResBlock(nn.Module):
    """norm -> SiLU -> 3x3 conv, twice, plus the (1x1-projected) input. Input and output [B, C, H, W]."""

    def __init__(self, in_channels: int, out_channels: int, condition_channels: int | None, groups: int) -> None:
        super().__init__()
        self.norm1 = _make_norm(in_channels, condition_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm2 = _make_norm(out_channels, condition_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1) if in_channels != out_channels else None

    def forward(self, x: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x, condition)))
        h = self.conv2(F.silu(self.norm2(h, condition)))
        shortcut = x if self.nin_shortcut is None else self.nin_shortcut(x)
        return shortcut + h


class MoVQAttention(nn.Module):
    """Single-head self-attention over all positions, residual. Input and output [B, C, H, W]."""

    def __init__(self, channels: int, condition_channels: int | None, groups: int) -> None:
        super().__init__()
        self.attend = AttentionProduct()
        self.norm = _make_norm(channels, condition_channels, groups)
        self.q = nn.Conv2d(channels, channels, kernel_size=1)
        self.k = nn.Conv2d(channels, channels, kernel_size=1)
        self.v = nn.Conv2d(channels, channels, kernel_size=1)
        self.proj_out = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        h = self.norm(x, condition)
        q, k, v = (conv(h).flatten(2).transpose(1, 2).unsqueeze(1) for conv in (self.q, self.k, self.v))
        h = self.attend(q, k, v)  # [B, 1, H*W, C]
        h = h.squeeze(1).transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(h)


class SpaceToDepthDown(nn.Module):
    """Halve the resolution: 3x3 conv to C/4 then pixel-unshuffle, plus the mean of each 2x2 cell of the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels // 4, kernel_size=3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # DC-AE's "unshuffle, then mean over groups of four channels" is 2x2 average pooling.
        return F.pixel_unshuffle(self.conv(x), 2) + F.avg_pool2d(x, 2)


class DepthToSpaceUp(nn.Module):
    """Double the resolution: 3x3 conv to 4C then pixel-shuffle, plus the shuffled 4-fold repeat of the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels * 4, kernel_size=3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Shuffling a 4-fold channel repeat puts the same value into each 2x2 cell: a nearest-neighbour enlargement.
        shortcut = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return F.pixel_shuffle(self.conv(x), 2) + shortcut


class MoVQStage(nn.Module):
    """The parts of one resolution level; called piece by piece by the encoder and decoder, never as a whole."""

    def __init__(self, block: list[nn.Module], attn: list[nn.Module]) -> None:
        super().__init__()
        self.block = nn.ModuleList(block)
        self.attn = nn.ModuleList(attn)
        self.downsample: SpaceToDepthDown | None = None
        self.upsample: DepthToSpaceUp | None = None


class MoVQMiddle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution; a container like `MoVQStage`."""

    def __init__(self, channels: int, condition_channels: int | None, groups: int) -> None:
        super().__init__()
        self.block_1 = MoVQResBlock(channels, channels, condition_channels, groups)
        self.attn_1 = MoVQAttention(channels, condition_channels, groups)
        self.block_2 = MoVQResBlock(channels, channels, condition_channels, groups)


class _Checkpointed(nn.Module):
    """Hook used by `ModelMixin.enable_gradient_checkpointing`, which sets both attributes on every such module."""

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False

    def _call(self, block: nn.Module, *args: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)


class MoVQEncoder(_Checkpointed):
    """Image to continuous features, before any quantisation.

    Args:
        in_channels: Image channels.
        channels: Base width; stage i has `channels * channel_mult[i]`.
        channel_mult: One factor a stage; each stage after the first halves the resolution.
        num_res_blocks: Residual blocks a stage.
        attention_stages: Indices of the stages that attend after every residual block.
        z_channels: Feature channels; must divide the last stage's width (the tail adds a group mean of it).
        norm_groups: GroupNorm groups; must divide every stage's width.
    """

    def __init__(
        self,
        in_channels: int = 3,
        channels: int = 128,
        channel_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        attention_stages: Sequence[int] = (4,),
        z_channels: int = 32,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        widths = [channels * mult for mult in channel_mult]
        _check_widths(widths, z_channels, "encoder")
        self.z_channels = z_channels
        self.conv_in = nn.Conv2d(in_channels, channels, kernel_size=3, padding=1)
        self.down = nn.ModuleList()
        width = channels
        for level, out_width in enumerate(widths):
            blocks = []
            for _ in range(num_res_blocks):
                blocks.append(MoVQResBlock(width, out_width, None, norm_groups))
                width = out_width
            attends = level in attention_stages
            attention = [MoVQAttention(width, None, norm_groups) for _ in range(num_res_blocks if attends else 0)]
            stage = MoVQStage(blocks, attention)
            if level < len(widths) - 1:
                stage.downsample = SpaceToDepthDown(width)
            self.down.append(stage)
        self.mid = MoVQMiddle(width, None, norm_groups)
        self.norm_out = _make_norm(width, None, norm_groups)
        self.conv_out = nn.Conv2d(width, z_channels, kernel_size=3, padding=1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode images.

        Args:
            pixel_values: [B, in_channels, H, W] in [-1, 1]; H and W multiples of 2^(stages-1).

        Returns:
            Features [B, z_channels, h, w].
        """
        factor = 2 ** (len(self.down) - 1)
        height, width = pixel_values.shape[-2:]
        if height % factor or width % factor:
            raise ValueError(
                f"The pixel encoder got a {height}x{width} image; height and width must be multiples of {factor}. "
                "Resize or pad the image first."
            )
        h = self.conv_in(pixel_values)
        for stage in self.down:
            for index, block in enumerate(stage.block):
                h = self._call(block, h)
                if stage.attn:
                    h = self._call(stage.attn[index], h)
            if stage.downsample is not None:
                h = self._call(stage.downsample, h)
        h = self._call(self.mid.block_1, h)
        h = self._call(self.mid.attn_1, h)
        h = self._call(self.mid.block_2, h)
        h = F.silu(self.norm_out(h))
        return self.conv_out(h) + h.unflatten(1, (self.z_channels, -1)).mean(dim=2)


class MoVQDecoder(_Checkpointed):
    """Quantised map to image, every norm conditioned on that map.

    Args:
        out_channels: Image channels.
        channels: Base width; stage i has `channels * channel_mult[i]`.
        channel_mult: One factor a stage, full resolution first (the encoder's order).
        num_res_blocks: The encoder's number; the decoder has one more a stage.
        attention_stages: Indices of the stages that attend after every residual block.
        z_channels: Channels of the input; must divide the last stage's width (the head repeats the input).
        cond_channels: Channels of the conditioning map.
        norm_groups: GroupNorm groups; must divide every stage's width.
    """

    def __init__(
        self,
        out_channels: int = 3,
        channels: int = 384,
        channel_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        attention_stages: Sequence[int] = (4,),
        z_channels: int = 64,
        cond_channels: int = 64,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        widths = [channels * mult for mult in channel_mult]
        _check_widths(widths, z_channels, "decoder")
        width = widths[-1]
        self.repeats = width // z_channels
        self.conv_in = nn.Conv2d(z_channels, width, kernel_size=3, padding=1)
        self.mid = MoVQMiddle(width, cond_channels, norm_groups)
        stages = []
        for level in reversed(range(len(widths))):
            blocks = []
            for _ in range(num_res_blocks + 1):
                blocks.append(MoVQResBlock(width, widths[level], cond_channels, norm_groups))
                width = widths[level]
            count = num_res_blocks + 1 if level in attention_stages else 0
            stage = MoVQStage(blocks, [MoVQAttention(width, cond_channels, norm_groups) for _ in range(count)])
            if level > 0:
                stage.upsample = DepthToSpaceUp(width)
            stages.insert(0, stage)
        self.up = nn.ModuleList(stages)
        self.norm_out = _make_norm(width, cond_channels, norm_groups)
        self.conv_out = nn.Conv2d(width, out_channels, kernel_size=3, padding=1)

    def forward(self, z: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Decode a latent map.

        Args:
            z: [B, z_channels, h, w].
            condition: [B, cond_channels, h, w], the quantised map that steers the norms.

        Returns:
            Image [B, out_channels, H, W], about [-1, 1], not clamped.
        """
        h = self.conv_in(z) + z.repeat_interleave(self.repeats, dim=1)
        h = self._call(self.mid.block_1, h, condition)
        h = self._call(self.mid.attn_1, h, condition)
        h = self._call(self.mid.block_2, h, condition)
        for stage in reversed(self.up):
            for index, block in enumerate(stage.block):
                h = self._call(block, h, condition)
                if stage.attn:
                    h = self._call(stage.attn[index], h, condition)
            if stage.upsample is not None:
                h = self._call(stage.upsample, h)
        return self.conv_out(F.silu(self.norm_out(h, condition)))


def _check_widths(widths: list[int], z_channels: int, name: str) -> None:
    if widths[-1] % z_channels:
        raise ValueError(
            f"The pixel {name}'s last stage has {widths[-1]} channels, which is no multiple of {z_channels} latent "
            "channels; change its base channels or the code width."
        )
    if any(width % 4 for width in widths):
        raise ValueError(
            f"The pixel {name}'s stage widths are {widths}; they must be multiples of 4 (2x2 space-to-depth). Change "
            "its base channels."
        )
