"""FocusVisualTokenizer: an image to two grids of discrete tokens, and back.

FOCUS (arXiv 2506.16806), visual tokenizer: a semantic branch quantises vision-encoder features (28x, cosine target), a
pixel branch quantises a convolutional encoding (16x), and one decoder turns both back into the image. Widths, norms
and checkpoint names after ILLUME+'s DualViTok (arXiv 2504.01934, Apache-2.0); quantiser SimVQ (arXiv 2411.02038, MIT
implementations).

Shapes: B batch, C code_dim, Dv semantic feature width, H W image, hs ws semantic grid, hp wp pixel grid (H/16 at the
published sizes). Codes and losses are float32 whatever the weights are; indices are int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from diffusers.utils.outputs import BaseOutput
from torch import nn

from ..sharing.publish import FocusHubMixin
from ._vit import SemanticBlock, build_vit, rotary_2d, vit_features
from .movq import MoVQDecoder, MoVQEncoder

COMMITMENT_WEIGHT = 0.25
CODE_BLOCK = 32768  # codes compared at once
FEATURE_BLOCK = 2048  # features compared at once: with CODE_BLOCK, a 256 MiB distance table at most


@dataclass
class FocusTokenizerOutput(BaseOutput):
    """What `FocusVisualTokenizer.encode` returns.

    Args:
        semantic_codes (`torch.Tensor`): float32 [B, C, hs, ws], straight-through to the semantic encoder.
        semantic_indices (`torch.Tensor`): int64 [B, hs, ws] in [0, semantic_codebook_size).
        semantic_loss (`torch.Tensor`): float32 scalar, SimVQ loss.
        semantic_target (`torch.Tensor`): [B, hs, ws, Dv], layer-normed features, target of the cosine loss.
        pixel_codes (`torch.Tensor`): float32 [B, C, hp, wp], straight-through to the pixel encoder.
        pixel_indices (`torch.Tensor`): int64 [B, hp, wp] in [0, pixel_codebook_size).
        pixel_loss (`torch.Tensor`): float32 scalar, SimVQ loss.
        pixel_features (`torch.Tensor`): [B, C, hp, wp], continuous, before `pixel_quant_conv`.
    """

    semantic_codes: torch.Tensor
    semantic_indices: torch.Tensor
    semantic_loss: torch.Tensor
    semantic_target: torch.Tensor
    pixel_codes: torch.Tensor
    pixel_indices: torch.Tensor
    pixel_loss: torch.Tensor
    pixel_features: torch.Tensor


@dataclass
class FocusTokenizerForwardOutput(FocusTokenizerOutput):
    """`FocusTokenizerOutput` and the two reconstructions: all that training the tokenizer needs.

    Args:
        reconstruction (`torch.Tensor`): [B, 3, H, W], about [-1, 1], not clamped.
        semantic_reconstruction (`torch.Tensor`): [B, hs, ws, Dv], compared with `semantic_target`.
    """

    reconstruction: torch.Tensor
    semantic_reconstruction: torch.Tensor


class SimVQ(nn.Module):
    """Vector quantiser whose codebook is one learned linear map of a frozen random one.

    Every code moves when the map moves, so codes that were never chosen stay usable; there is no reset or moving
    average. Nearest neighbour by L2, always in float32.
    """

    def __init__(self, codebook_size: int, code_dim: int) -> None:
        super().__init__()
        # Persistent: the random values are part of what a checkpoint means.
        self.register_buffer("frozen_codebook", torch.randn(codebook_size, code_dim))
        self.code_transform = nn.Linear(code_dim, code_dim, bias=False)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Quantise a map.

        Args:
            features: [B, C, h, w], any float dtype.

        Returns:
            Codes float32 [B, C, h, w] with straight-through gradient, indices int64 [B, h, w], loss float32 scalar.
        """
        # Under bf16 autocast distances of close codes collapse, and cdist of mixed dtypes fails: leave autocast here.
        with torch.autocast(features.device.type, enabled=False):
            x = features.float().movedim(1, -1)
            indices = self.nearest(x.detach().reshape(-1, x.shape[-1])).view(x.shape[:-1])
            codes = self.lookup(indices)
            loss = F.mse_loss(codes, x.detach()) + COMMITMENT_WEIGHT * F.mse_loss(x, codes.detach())
            if x.requires_grad:
                codes = x + (codes - x).detach()
        return codes.movedim(-1, 1).contiguous(), indices, loss

    @torch.no_grad()
    def nearest(self, x: torch.Tensor) -> torch.Tensor:
        """Index of the nearest code, int64 [M], for each row of float32 `x` [M, C]."""
        codebook = self._transform(self.frozen_codebook)
        blocks = [(block, block.square().sum(dim=-1)) for block in codebook.split(CODE_BLOCK)]
        result = []
        for rows in x.split(FEATURE_BLOCK):
            best_distance, best_index = None, None
            for number, (block, norms) in enumerate(blocks):
                # |x - c|^2 without |x|^2, which is the same for every code.
                distance, index = torch.addmm(norms, rows, block.T, alpha=-2.0).min(dim=-1)
                index = index + number * CODE_BLOCK
                if best_distance is None:
                    best_distance, best_index = distance, index
                else:
                    closer = distance < best_distance
                    best_distance = torch.where(closer, distance, best_distance)
                    best_index = torch.where(closer, index, best_index)
            result.append(best_index)
        return torch.cat(result)

    def lookup(self, indices: torch.Tensor) -> torch.Tensor:
        """Codes float32 [..., C] of int64 `indices` [...]; the learned map receives their gradient."""
        with torch.autocast(self.frozen_codebook.device.type, enabled=False):
            return self._transform(F.embedding(indices, self.frozen_codebook))

    def vectors(self) -> torch.Tensor:
        """All codes float32 [K, C], in their order; the learned map receives their gradient."""
        with torch.autocast(self.frozen_codebook.device.type, enabled=False):
            return self._transform(self.frozen_codebook)

    def _transform(self, codes: torch.Tensor) -> torch.Tensor:
        return self.code_transform(codes.to(self.code_transform.weight.dtype)).float()


class _SemanticBranch(nn.Module):
    """Transformer blocks on the semantic grid, with the hook that `enable_gradient_checkpointing` fills."""

    def __init__(self, embed_dim: int, num_blocks: int, num_heads: int) -> None:
        super().__init__()
        if embed_dim % (4 * num_heads):
            raise ValueError(
                f"semantic_embed_dim={embed_dim} with semantic_num_heads={num_heads} has heads that 2-D rotary "
                "positions cannot use; choose an embed_dim that is a multiple of 4 * num_heads."
            )
        self.head_dim = embed_dim // num_heads
        self.gradient_checkpointing = False
        self.blocks = nn.ModuleList([SemanticBlock(embed_dim, num_heads) for _ in range(num_blocks)])

    def _run_blocks(self, x: torch.Tensor) -> torch.Tensor:
        """[B, h, w, C] to [B, h, w, C]."""
        rows, columns = x.shape[1:3]
        rotary = rotary_2d(rows, columns, self.head_dim, x.device)
        x = x.flatten(1, 2)
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x, rotary)
            else:
                x = block(x, rotary)
        return x.unflatten(1, (rows, columns))


class SemanticEncoder(_SemanticBranch):
    """Normalised features [B, hs, ws, Dv] to unquantised codes [B, hs, ws, C]."""

    def __init__(self, input_dim: int, embed_dim: int, num_blocks: int, num_heads: int, code_dim: int) -> None:
        super().__init__(embed_dim, num_blocks, num_heads)
        self.proj_in = nn.Conv2d(input_dim, embed_dim, kernel_size=1)
        self.proj_out = nn.Linear(embed_dim, code_dim)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        x = self.proj_in(features.movedim(-1, 1)).movedim(1, -1)
        return self.proj_out(self._run_blocks(x))


class SemanticDecoder(_SemanticBranch):
    """Codes [B, hs, ws, C] to reconstructed normalised features [B, hs, ws, Dv]."""

    def __init__(self, output_dim: int, embed_dim: int, num_blocks: int, num_heads: int, code_dim: int) -> None:
        super().__init__(embed_dim, num_blocks, num_heads)
        self.proj_in = nn.Linear(code_dim, embed_dim)
        self.proj_out = nn.Linear(embed_dim, output_dim)
        self.norm_out = nn.LayerNorm(output_dim, eps=1e-5)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        return self.norm_out(self.proj_out(self._run_blocks(self.proj_in(codes))))


class FocusVisualTokenizer(FocusHubMixin, ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):
    """Dual-branch image tokenizer; the defaults are the published size.

    Args:
        code_dim: Width of a code, both branches.
        semantic_input_dim: Width Dv of the vision features that the semantic branch quantises.
        semantic_embed_dim: Width of the semantic branch's transformer blocks.
        semantic_num_blocks: Blocks in the semantic encoder, and again in its decoder.
        semantic_num_heads: Attention heads of those blocks.
        semantic_codebook_size: Semantic codes.
        vision_tower: Config (see `build_vit`) of a frozen tower of the tokenizer's own, as converted originals have.
            None: features come from the vision encoder, as FOCUS does.
        pixel_channels: Base width of the pixel encoder.
        pixel_decoder_channels: Base width of the pixel decoder.
        pixel_channel_mult: Width factor a stage; each stage after the first halves the resolution.
        pixel_num_res_blocks: Residual blocks an encoder stage (decoder: one more).
        pixel_attention_stages: Indices of the stages with self-attention.
        pixel_codebook_size: Pixel codes.
        norm_groups: GroupNorm groups of the pixel branch.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["SemanticBlock", "MoVQResBlock", "MoVQAttention", "Qwen2VLVisionBlock"]
    _repeated_blocks = ["SemanticBlock"]
    _skip_layerwise_casting_patterns = ["quantizer", "norm", "ln_q", "patch_embed"]
    # Rounding a codebook to 16 bits changes which code is nearest.
    _keep_in_fp32_modules = ["semantic_quantizer", "pixel_quantizer"]

    @register_to_config
    def __init__(
        self,
        code_dim: int = 32,
        semantic_input_dim: int = 3584,
        semantic_embed_dim: int = 1280,
        semantic_num_blocks: int = 4,
        semantic_num_heads: int = 16,
        semantic_codebook_size: int = 32768,
        vision_tower: dict[str, Any] | None = None,
        pixel_channels: int = 128,
        pixel_decoder_channels: int = 384,
        pixel_channel_mult: Sequence[int] = (1, 1, 2, 2, 4),
        pixel_num_res_blocks: int = 2,
        pixel_attention_stages: Sequence[int] = (4,),
        pixel_codebook_size: int = 98304,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        # Not named like the config key: diffusers answers a shared name with the config's value.
        self.vit = None
        if vision_tower is not None:
            self.vit = build_vit(vision_tower).requires_grad_(False)
            if self.vit.config.hidden_size != semantic_input_dim:
                raise ValueError(
                    f"The vision tower's features have width {self.vit.config.hidden_size}, but "
                    f"semantic_input_dim is {semantic_input_dim}; set both to the same value."
                )
        semantic = (semantic_input_dim, semantic_embed_dim, semantic_num_blocks, semantic_num_heads, code_dim)
        self.semantic_encoder = SemanticEncoder(*semantic)
        self.semantic_quantizer = SimVQ(semantic_codebook_size, code_dim)
        self.semantic_decoder = SemanticDecoder(*semantic)
        self.pixel_encoder = MoVQEncoder(
            channels=pixel_channels,
            channel_mult=pixel_channel_mult,
            num_res_blocks=pixel_num_res_blocks,
            attention_stages=pixel_attention_stages,
            z_channels=code_dim,
            norm_groups=norm_groups,
        )
        self.pixel_quant_conv = nn.Conv2d(code_dim, code_dim, kernel_size=1)
        self.pixel_quantizer = SimVQ(pixel_codebook_size, code_dim)
        self.pixel_post_quant_conv = nn.Conv2d(code_dim * 2, code_dim * 2, kernel_size=1)
        self.pixel_decoder = MoVQDecoder(
            channels=pixel_decoder_channels,
            channel_mult=pixel_channel_mult,
            num_res_blocks=pixel_num_res_blocks,
            attention_stages=pixel_attention_stages,
            z_channels=code_dim * 2,
            cond_channels=code_dim * 2,
            norm_groups=norm_groups,
        )

    @property
    def pixel_downsample_factor(self) -> int:
        """Image pixels per pixel token, along each side."""
        return 2 ** (len(self.config.pixel_channel_mult) - 1)

    @apply_forward_hook
    def encode_pixels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Continuous pixel features, before `pixel_quant_conv` and quantisation: what the language model reads.

        Args:
            pixel_values: [B, 3, H, W] in [-1, 1]; H and W multiples of `pixel_downsample_factor`.

        Returns:
            [B, C, hp, wp].
        """
        return self.pixel_encoder(pixel_values.to(self.dtype))

    @apply_forward_hook
    def quantize_pixels(self, pixel_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Quantise the output of `encode_pixels` [B, C, hp, wp].

        Returns:
            Codes float32 [B, C, hp, wp], indices int64 [B, hp, wp], SimVQ loss.
        """
        return self.pixel_quantizer(self.pixel_quant_conv(pixel_features.to(self.dtype)))

    @apply_forward_hook
    def encode_semantic(
        self, semantic_features: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Quantise vision features.

        Args:
            semantic_features: [B, hs, ws, Dv], raw (they are layer-normed here).

        Returns:
            Codes float32 [B, C, hs, ws], indices int64 [B, hs, ws], SimVQ loss, target [B, hs, ws, Dv].
        """
        width = self.config.semantic_input_dim
        if semantic_features.ndim != 4 or semantic_features.shape[-1] != width:
            raise ValueError(
                f"semantic_features has shape {tuple(semantic_features.shape)}; expected [B, rows, columns, {width}]. "
                "Pass the vision encoder's feature grid, channels last."
            )
        target = F.layer_norm(semantic_features.to(self.dtype), (width,), eps=1e-6)
        codes, indices, loss = self.semantic_quantizer(self.semantic_encoder(target).movedim(-1, 1))
        return codes, indices, loss, target

    @apply_forward_hook
    def encode(
        self,
        pixel_values: torch.Tensor,
        semantic_features: torch.Tensor | None = None,
        pixel_values_low: torch.Tensor | None = None,
    ) -> FocusTokenizerOutput:
        """Tokenise images.

        Args:
            pixel_values: [B, 3, H, W] in [-1, 1].
            semantic_features: [B, hs, ws, Dv] from the vision encoder; needed unless the model has its own tower.
            pixel_values_low: [B, 3, 28*hs, 28*ws], CLIP-normalised; input of the model's own tower.

        Returns:
            `FocusTokenizerOutput`.

        Raises:
            ValueError: Neither or both of the two semantic inputs fit this model.
        """
        semantic_features = self._semantic_input(semantic_features, pixel_values_low)
        semantic_codes, semantic_indices, semantic_loss, target = self.encode_semantic(semantic_features)
        pixel_features = self.encode_pixels(pixel_values)
        pixel_codes, pixel_indices, pixel_loss = self.quantize_pixels(pixel_features)
        return FocusTokenizerOutput(
            semantic_codes=semantic_codes,
            semantic_indices=semantic_indices,
            semantic_loss=semantic_loss,
            semantic_target=target,
            pixel_codes=pixel_codes,
            pixel_indices=pixel_indices,
            pixel_loss=pixel_loss,
            pixel_features=pixel_features,
        )

    @apply_forward_hook
    def indices_to_codes(
        self, semantic_indices: torch.Tensor, pixel_indices: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes float32 [B, C, hs, ws] and [B, C, hp, wp] of int64 index maps [B, hs, ws] and [B, hp, wp]."""
        semantic = self.semantic_quantizer.lookup(semantic_indices).movedim(-1, 1)
        return semantic.contiguous(), self.pixel_quantizer.lookup(pixel_indices).movedim(-1, 1).contiguous()

    def merge(self, semantic_codes: torch.Tensor, pixel_codes: torch.Tensor) -> torch.Tensor:
        """One conditioning map [B, 2C, hp, wp]: semantic codes resized (bicubic) to the pixel grid, then pixel codes.

        Also what the diffusion decoder reads beside its latents.
        """
        resized = F.interpolate(semantic_codes, size=pixel_codes.shape[-2:], mode="bicubic", align_corners=False)
        return torch.cat([resized, pixel_codes], dim=1)

    @apply_forward_hook
    def decode(self, semantic_codes: torch.Tensor, pixel_codes: torch.Tensor) -> torch.Tensor:
        """Image [B, 3, H, W], about [-1, 1] and not clamped, of codes [B, C, hs, ws] and [B, C, hp, wp]."""
        merged = self.merge(semantic_codes, pixel_codes).to(self.dtype)
        return self.pixel_decoder(self.pixel_post_quant_conv(merged), merged)

    def decode_indices(self, semantic_indices: torch.Tensor, pixel_indices: torch.Tensor) -> torch.Tensor:
        """`decode` of int64 index maps [B, hs, ws] and [B, hp, wp]."""
        return self.decode(*self.indices_to_codes(semantic_indices, pixel_indices))

    @apply_forward_hook
    def decode_semantic(self, semantic_codes: torch.Tensor) -> torch.Tensor:
        """Normalised vision features [B, hs, ws, Dv] reconstructed from codes [B, C, hs, ws]."""
        return self.semantic_decoder(semantic_codes.movedim(1, -1).to(self.dtype))

    def forward(
        self,
        pixel_values: torch.Tensor,
        semantic_features: torch.Tensor | None = None,
        pixel_values_low: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> FocusTokenizerForwardOutput | tuple[torch.Tensor, ...]:
        """Encode and reconstruct, for training.

        Args:
            pixel_values: [B, 3, H, W] in [-1, 1].
            semantic_features: See `encode`.
            pixel_values_low: See `encode`.
            return_dict: False returns a tuple of the output's fields.

        Returns:
            `FocusTokenizerForwardOutput`.
        """
        encoded = self.encode(pixel_values, semantic_features, pixel_values_low)
        output = FocusTokenizerForwardOutput(
            **encoded,
            reconstruction=self.decode(encoded.semantic_codes, encoded.pixel_codes),
            semantic_reconstruction=self.decode_semantic(encoded.semantic_codes),
        )
        return output if return_dict else output.to_tuple()

    def _semantic_input(
        self, semantic_features: torch.Tensor | None, pixel_values_low: torch.Tensor | None
    ) -> torch.Tensor:
        if semantic_features is not None:
            return semantic_features
        if self.vit is None:
            raise ValueError(
                "This tokenizer has no vision tower of its own, and semantic_features is None; pass the vision "
                "encoder's features as semantic_features [B, rows, columns, channels]."
            )
        if pixel_values_low is None:
            raise ValueError(
                "Neither semantic_features nor pixel_values_low was given; pass the CLIP-normalised low-resolution "
                "image as pixel_values_low [B, 3, height, width], height and width multiples of 28."
            )
        with torch.no_grad():  # the tower is frozen
            return vit_features(self.vit, pixel_values_low.to(self.dtype))
