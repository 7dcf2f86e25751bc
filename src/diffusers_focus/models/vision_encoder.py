"""FocusVisionEncoder: everything that turns an image into inputs of the language model and the mask decoder.

Paper: FOCUS (arXiv 2506.16806), "Dual-branch visual encoder" and "Gated cross-attention adapter":

    X_L -> ViT      -> X'_L --+-> fusion: E' = X'_L + CrossAttn(X'_L, X'_H); E_img = E' + MLP(E') -> vision tokens
    X_H -> ConvNeXt -> f1..f4 +
                          |-> learnable queries, one gated cross-attention layer a scale (f2, f3, f4) -> query tokens
    region + f1..f4 + E_img -> pooled region tokens;   pixel features -> pixel tokens

Origins of the parts: the ViT is Qwen2-VL's and the pyramid ConvNeXt's, both as in transformers (Apache-2.0); the query
adapter has the resampler layout of HyperSeg (arXiv 2411.17606, Apache-2.0) with the tanh gates of Flamingo (arXiv
2204.14198); the projectors are ILLUME+'s (arXiv 2504.01934, Apache-2.0). Every addition to ILLUME+ starts as an
identity (zero-initialised outputs, zero gates), so weights trained without it keep working.
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
from transformers import ConvNextBackbone, ConvNextConfig

from ..sharing.publish import FocusHubMixin
from ._attention import AttentionProduct
from ._position import fourier_features, sine_position_2d
from ._vit import build_vit, vit_features
from .movq import MoVQEncoder

PYRAMID_STRIDES = (4, 8, 16, 32)
_GEOMETRY_VALUES = 9
_GEOMETRY_FREQUENCIES = 6


@dataclass
class FocusVisionOutput(BaseOutput):
    """What one image gives. Absent parts are None.

    Attributes:
        vision_features: X'_L [B, hs, ws, Dv], the ViT's merged patches.
        fused_features: E' [B, hs, ws, Dv], what the semantic codebook quantises.
        image_features: E_img [B, hs, ws, Dv], what the language model sees (before its projector).
        feature_maps: f1..f4, each [B, C, h, w] at strides 4, 8, 16, 32, for the mask decoder.
        vision_tokens: [B, hs, ws, H], projected image features.
        pixel_features: [B, C, hp, wp], continuous pixel features, given or from the own pixel encoder.
        pixel_tokens: [B, hp, wp, H], projected pixel features.
        query_tokens: [B, K, H].
        region_tokens: [R, H].
    """

    vision_features: torch.Tensor
    fused_features: torch.Tensor
    image_features: torch.Tensor
    feature_maps: tuple[torch.Tensor, ...] | None = None
    vision_tokens: torch.Tensor | None = None
    pixel_features: torch.Tensor | None = None
    pixel_tokens: torch.Tensor | None = None
    query_tokens: torch.Tensor | None = None
    region_tokens: torch.Tensor | None = None


def _split_heads(x: torch.Tensor, num_heads: int) -> torch.Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _check_heads(dim: int, num_heads: int, name: str) -> None:
    if dim % (4 * num_heads):
        raise ValueError(
            f"{name} {dim} with {num_heads} heads: the width must be a multiple of 4 x heads, because every head "
            f"carries 2-D sine positions. Use for example {4 * num_heads * max(1, dim // (4 * num_heads))}."
        )


class FeatureFusion(nn.Module):
    """E' = X'_L + out(CrossAttn(X'_L, X'_H)), E_img = E' + MLP(E'). Exactly the identity at initialisation.

    The attention runs in `inner_dim`. Fixed sine positions are added to every head's queries and keys after their
    projection: before any training a cell of the ViT already looks most at its own place in the pyramid.
    """

    def __init__(self, dim: int, level_channels: int, inner_dim: int, num_heads: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        _check_heads(inner_dim, num_heads, "fusion_dim")
        self.num_heads = num_heads
        self.attend = AttentionProduct()
        self.norm = nn.LayerNorm(dim)
        self.norm_level = nn.LayerNorm(level_channels)
        self.to_q = nn.Linear(dim, inner_dim, bias=False)
        self.to_kv = nn.Linear(level_channels, 2 * inner_dim, bias=False)
        self.to_out = nn.Linear(inner_dim, dim, bias=False)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, mlp_ratio * inner_dim), nn.GELU(), nn.Linear(mlp_ratio * inner_dim, dim)
        )
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.mlp[-1].weight)
        nn.init.zeros_(self.mlp[-1].bias)

    def forward(self, x: torch.Tensor, level: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Fuse X'_L [B, h, w, D] with a pyramid level [B, C, h', w'] (None: no second branch); return (E', E_img)."""
        if level is not None:
            height, width = x.shape[1:3]
            query = _split_heads(self.to_q(self.norm(x)).flatten(1, 2), self.num_heads)
            key, value = self.to_kv(self.norm_level(level.permute(0, 2, 3, 1))).flatten(1, 2).chunk(2, dim=-1)
            key, value = _split_heads(key, self.num_heads), _split_heads(value, self.num_heads)
            head_dim = query.shape[-1]
            query = query + sine_position_2d(height, width, head_dim, query.device, query.dtype)
            key = key + sine_position_2d(*level.shape[-2:], head_dim, key.device, key.dtype)
            attended = self.attend(query, key, value).transpose(1, 2).flatten(2)
            x = x + self.to_out(attended).unflatten(1, (height, width))
        return x, x + self.mlp(x)


class GatedQueryLayer(nn.Module):
    """h = h + tanh(gamma) CrossAttn(h, level); h = h + tanh(beta) FFN(h). Pre-norm, gates start at zero.

    Keys and values are the level's tokens followed by the queries themselves (HyperSeg's resampler), so the queries
    also see each other.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attend = AttentionProduct()
        self.norm_media = nn.LayerNorm(dim)
        self.norm_latents = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)
        self.ffn = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, mlp_ratio * dim, bias=False),
            nn.GELU(),
            nn.Linear(mlp_ratio * dim, dim, bias=False),
        )
        self.gamma = nn.Parameter(torch.zeros(()))
        self.beta = nn.Parameter(torch.zeros(()))

    def forward(self, h: torch.Tensor, media: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Update the queries [B, K, D] from a level's tokens [B, L, D] at positions [L, D / heads]."""
        latents = self.norm_latents(h)
        query = _split_heads(self.to_q(latents), self.num_heads)
        key, value = self.to_kv(torch.cat((self.norm_media(media), latents), dim=1)).chunk(2, dim=-1)
        key, value = _split_heads(key, self.num_heads), _split_heads(value, self.num_heads)
        key = key + F.pad(position, (0, 0, 0, h.shape[1])).to(key.dtype)
        attended = self.attend(query, key, value).transpose(1, 2).flatten(2)
        h = h + self.gamma.tanh().to(h.dtype) * self.to_out(attended)
        return h + self.beta.tanh().to(h.dtype) * self.ffn(h)


class GatedQueryAdapter(nn.Module):
    """K learnable queries that read one pyramid scale a layer, fine to coarse."""

    def __init__(
        self, num_queries: int, dim: int, num_heads: int, mlp_ratio: int, channels: Sequence[int], out_dim: int
    ) -> None:
        super().__init__()
        _check_heads(dim, num_heads, "query_dim")
        self.head_dim = dim // num_heads
        self.gradient_checkpointing = False
        # Embeddings, not bare parameters: sequential offloading moves a weight when its own module is called.
        self.queries = nn.Embedding(num_queries, dim)
        self.level_embed = nn.Embedding(len(channels), dim)
        self.level_projections = nn.ModuleList(nn.Linear(c, dim, bias=False) for c in channels)
        self.layers = nn.ModuleList(GatedQueryLayer(dim, num_heads, mlp_ratio) for _ in channels)
        self.norm = nn.LayerNorm(dim)
        self.projection = nn.Linear(dim, out_dim)

    def forward(self, levels: Sequence[torch.Tensor]) -> torch.Tensor:
        """Read the levels ([B, C_l, h, w], in layer order) and return the query tokens [B, K, H]."""
        device = levels[0].device
        h = self.queries(torch.arange(self.queries.num_embeddings, device=device)).expand(levels[0].shape[0], -1, -1)
        level_embed = self.level_embed(torch.arange(len(levels), device=device))
        for index, (layer, projection, level) in enumerate(zip(self.layers, self.level_projections, levels)):
            media = projection(level.permute(0, 2, 3, 1).flatten(1, 2)) + level_embed[index]
            # Values carry the place too (keys alone would tell a query what it found, but never where).
            media = media + sine_position_2d(*level.shape[-2:], media.shape[-1], media.device, media.dtype)
            position = sine_position_2d(*level.shape[-2:], self.head_dim, media.device, media.dtype)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                h = self._gradient_checkpointing_func(layer, h, media, position)
            else:
                h = layer(h, media, position)
        return self.projection(self.norm(h))


def region_geometry(regions: torch.Tensor) -> torch.Tensor:
    """Where and how large regions are, independent of resolution.

    Args:
        regions: [R, h, w] in 0..1.

    Returns:
        fp32 [R, 9], all about 0..1: centre x, y; standard deviation x, y; log area (0 at the whole image, 1 at a
        millionth of it); extents x0, y0, x1, y1. An empty region gives zeros and log area 1.
    """
    regions = regions.float()
    height, width = regions.shape[-2:]
    area = regions.sum((1, 2))
    values = []
    extents = []
    for profile in (regions.sum(1), regions.sum(2)):  # over x, then over y
        size = profile.shape[1]
        at = (torch.arange(size, device=regions.device, dtype=torch.float32) + 0.5) / size
        weight = profile / area.clamp(min=1e-6)[:, None]
        centre = (weight * at).sum(1)
        # A cell is spread over its own width too; with that the value does not depend on the resolution.
        variance = (weight * ((at - centre[:, None]).square() + 1 / (12 * size**2))).sum(1)
        values.append((centre, variance.sqrt()))
        # Half the strongest column counts as inside: soft borders of resampled masks do not widen the box.
        inside = (profile >= 0.5 * profile.amax(1, keepdim=True)) & (profile > 0)
        low = torch.where(inside, at - 0.5 / size, 2.0).amin(1)
        high = torch.where(inside, at + 0.5 / size, -1.0).amax(1)
        empty = ~inside.any(1)
        extents.append((low.masked_fill(empty, 0.0), high.masked_fill(empty, 0.0)))
    log_area = (area / (height * width)).clamp(min=1e-6, max=1.0).log() / -13.8155
    (cx, sx), (cy, sy) = values
    (x0, x1), (y0, y1) = extents
    return torch.stack((cx, cy, sx, sy, log_area, x0, y0, x1, y1), dim=1)


class RegionPooler(nn.Module):
    """One token a region: features averaged under it at every scale, plus its geometry.

    FOCUS only says "pooled region features"; HyperSeg and PSALM sample points of one map. Averaging under the
    area-resampled region keeps regions smaller than a cell and needs no random points.
    """

    def __init__(self, channels: Sequence[int], dim: int, out_dim: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in channels)
        self.projections = nn.ModuleList(nn.Linear(c, dim) for c in channels)
        self.geometry = nn.Linear(_GEOMETRY_VALUES * (1 + 2 * _GEOMETRY_FREQUENCIES), dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim))

    def forward(self, maps: Sequence[torch.Tensor], regions: torch.Tensor, image_index: torch.Tensor) -> torch.Tensor:
        """Pool maps ([B, C, h, w], one a scale) under regions [R, 1, h, w] of images image_index [R]: [R, H]."""
        geometry = region_geometry(regions[:, 0])
        geometry = torch.cat((geometry, fourier_features(geometry, _GEOMETRY_FREQUENCIES).flatten(1)), dim=1)
        h = self.geometry(geometry.to(maps[0].dtype))
        for feature_map, norm, projection in zip(maps, self.norms, self.projections):
            weight = F.adaptive_avg_pool2d(regions.float(), feature_map.shape[-2:]).flatten(1)
            weight = weight / weight.sum(1, keepdim=True).clamp(min=1e-6)
            features = feature_map.permute(0, 2, 3, 1).flatten(1, 2)[image_index]
            # The projection is linear, so the average is taken first: it costs one row a region.
            pooled = torch.bmm(weight.to(features.dtype)[:, None], features)[:, 0]
            h = h + projection(norm(pooled))
        return self.mlp(h)


def _projector(in_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim))


class FocusVisionEncoder(FocusHubMixin, ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):
    """Dual-branch vision encoder. The defaults are the published 3B sizes.

    Args:
        vision_tower: Keyword arguments of transformers' `Qwen2VLVisionConfig`; None is Qwen2-VL-7B's tower (depth 32,
            width 1280, hidden_size 3584, 16 heads).
        pyramid_depths: Blocks a ConvNeXt stage.
        pyramid_channels: Channels of f1..f4; None builds no second branch (converted originals).
        pyramid_layer_scale_init: Initial layer scale of the ConvNeXt blocks; raise it to train from scratch.
        fusion_level: Index into f1..f4 of the map that the fusion reads.
        fusion_num_heads: Heads of the fusion's cross-attention.
        fusion_dim: Its inner width.
        num_query_tokens: K; 0 builds no query adapter.
        query_dim: Width of the queries.
        query_num_heads: Heads of their cross-attention.
        query_mlp_ratio: Hidden width of their feed-forward layers over query_dim.
        query_levels: Indices into f1..f4, one adapter layer each, in reading order.
        language_hidden_size: H, width of the language model.
        pixel_feature_dim: Channels of the continuous pixel features.
        pixel_encoder: Keyword arguments of an own `MoVQEncoder` (converted originals); None takes pixel features from
            the visual tokenizer.
        region_slots: Whether to build the region pooler.
        region_dim: Its inner width.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["Qwen2VLVisionBlock", "ConvNextLayer", "FeatureFusion", "GatedQueryLayer", "MoVQResBlock"]
    _repeated_blocks = ["ConvNextLayer", "GatedQueryLayer"]
    _skip_layerwise_casting_patterns = ["norm", "queries", "level_embed", "patch_embed", "embeddings"]

    @register_to_config
    def __init__(
        self,
        vision_tower: dict[str, Any] | None = None,
        pyramid_depths: Sequence[int] = (3, 3, 27, 3),
        pyramid_channels: Sequence[int] | None = (192, 384, 768, 1536),
        pyramid_layer_scale_init: float = 1e-6,
        fusion_level: int = 3,
        fusion_num_heads: int = 16,
        fusion_dim: int = 1024,
        num_query_tokens: int = 128,
        query_dim: int = 512,
        query_num_heads: int = 8,
        query_mlp_ratio: int = 4,
        query_levels: Sequence[int] = (1, 2, 3),
        language_hidden_size: int = 2048,
        pixel_feature_dim: int = 32,
        pixel_encoder: dict[str, Any] | None = None,
        region_slots: bool = True,
        region_dim: int = 512,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.vit = build_vit(dict(vision_tower or {}))
        vision_dim = self.vit.config.hidden_size

        self.pyramid = None
        self.fusion = None
        if pyramid_channels is not None:
            _check_levels(pyramid_depths, pyramid_channels, fusion_level, query_levels)
            self.pyramid = _build_pyramid(pyramid_depths, pyramid_channels, pyramid_layer_scale_init)
            self.fusion = FeatureFusion(vision_dim, pyramid_channels[fusion_level], fusion_dim, fusion_num_heads)

        self.query_adapter = None
        if num_query_tokens:
            if pyramid_channels is None:
                raise ValueError(
                    f"num_query_tokens={num_query_tokens} with pyramid_channels=None: the queries read the pyramid. "
                    "Pass num_query_tokens=0, or give pyramid_channels."
                )
            self.query_adapter = GatedQueryAdapter(
                num_query_tokens,
                query_dim,
                query_num_heads,
                query_mlp_ratio,
                [pyramid_channels[level] for level in query_levels],
                language_hidden_size,
            )

        self.vision_projector = _projector(vision_dim, language_hidden_size)
        self.pixel_projector = _projector(pixel_feature_dim, language_hidden_size)
        self.pixel_tower = MoVQEncoder(**pixel_encoder) if pixel_encoder is not None else None
        self.region_pooler = None
        if region_slots:
            self.region_pooler = RegionPooler([*(pyramid_channels or ()), vision_dim], region_dim, language_hidden_size)

    @property
    def feature_info(self) -> list[dict[str, int]]:
        """Channels and stride of each of `feature_maps`, fine to coarse; empty without the second branch."""
        channels = self.config.pyramid_channels or ()
        return [{"channels": c, "stride": s} for c, s in zip(channels, PYRAMID_STRIDES)]

    def forward(
        self,
        pixel_values_low: torch.Tensor,
        pixel_values_high: torch.Tensor | None = None,
        pixel_features: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        regions: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> FocusVisionOutput | tuple:
        """Encode images into everything that later steps read.

        Args:
            pixel_values_low: X_L [B, 3, hl, wl], CLIP-normalised, sides multiples of 28.
            pixel_values_high: X_H [B, 3, Hh, Wh], CLIP-normalised, sides multiples of 32. None skips the second branch:
                E' = X'_L, no feature maps, no query tokens.
            pixel_features: [B, C, hp, wp] from the visual tokenizer's pixel encoder.
            pixel_values: [B, 3, H, W] in [-1, 1] for the own pixel encoder, instead of pixel_features.
            regions: [R, 1, h, w] in 0..1, any resolution, in the frame of the images.
            image_index: int64 [R], the batch index of each region; may be left out where there is one image.
            return_dict: False returns a tuple of the output's fields that are not None.

        Raises:
            ValueError: an input needs a part that this configuration lacks, or has the wrong shape.
        """
        if pixel_values_low.ndim != 4:
            raise ValueError(f"pixel_values_low has shape {tuple(pixel_values_low.shape)}; it must be [B, 3, hl, wl].")
        features = vit_features(self.vit, pixel_values_low.contiguous())
        feature_maps = None
        fused = image_features = features
        if pixel_values_high is not None:
            feature_maps = self._pyramid_features(pixel_values_high)
        if self.fusion is not None:
            level = feature_maps[self.config.fusion_level] if feature_maps is not None else None
            fused, image_features = self.fusion(features, level)

        if pixel_values is not None:
            if pixel_features is not None:
                raise ValueError("Both pixel_features and pixel_values were given; give one of them.")
            pixel_features = self.encode_pixels(pixel_values)
        query_tokens = None
        if self.query_adapter is not None and feature_maps is not None:
            query_tokens = self.query_tokens(feature_maps)
        region_tokens = None
        if regions is not None:
            region_tokens = self.region_tokens(feature_maps, image_features, regions, image_index)
        output = FocusVisionOutput(
            vision_features=features,
            fused_features=fused,
            image_features=image_features,
            feature_maps=feature_maps,
            vision_tokens=self.project_vision(image_features),
            pixel_features=pixel_features,
            pixel_tokens=self.project_pixels(pixel_features) if pixel_features is not None else None,
            query_tokens=query_tokens,
            region_tokens=region_tokens,
        )
        return output if return_dict else output.to_tuple()

    # The methods below are also called on their own, after forward; the decorator brings the weights back to the device
    # under model offloading, whose hook otherwise fires on forward only.

    @apply_forward_hook
    def project_vision(self, image_features: torch.Tensor) -> torch.Tensor:
        """Image features [B, hs, ws, Dv] to vision tokens [B, hs, ws, H]."""
        return self.vision_projector(image_features)

    @apply_forward_hook
    def project_pixels(self, pixel_features: torch.Tensor) -> torch.Tensor:
        """Continuous pixel features [B, C, hp, wp] to pixel tokens [B, hp, wp, H]."""
        expected = self.config.pixel_feature_dim
        if pixel_features.ndim != 4 or pixel_features.shape[1] != expected:
            raise ValueError(
                f"pixel_features has shape {tuple(pixel_features.shape)}; it must be [B, {expected}, hp, wp]. Pass the "
                "features of the pixel encoder this model was configured for, before quantisation."
            )
        return self.pixel_projector(pixel_features.permute(0, 2, 3, 1).to(self.dtype))

    @apply_forward_hook
    def encode_pixels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] in [-1, 1] to continuous pixel features [B, C, H/16, W/16] of the own pixel encoder."""
        if self.pixel_tower is None:
            raise ValueError(
                "This vision encoder has no pixel encoder of its own (pixel_encoder=None): take pixel features from "
                "the visual tokenizer and pass them as pixel_features."
            )
        return self.pixel_tower(pixel_values.to(self.dtype))

    @apply_forward_hook
    def query_tokens(self, feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Query tokens [B, K, H] from the feature maps f1..f4."""
        if self.query_adapter is None:
            raise ValueError("This vision encoder has no query tokens (num_query_tokens=0).")
        return self.query_adapter([feature_maps[level] for level in self.config.query_levels])

    @apply_forward_hook
    def region_tokens(
        self,
        feature_maps: Sequence[torch.Tensor] | None,
        image_features: torch.Tensor,
        regions: torch.Tensor,
        image_index: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One token a region.

        Args:
            feature_maps: f1..f4 of the B images; None only without the second branch.
            image_features: E_img [B, hs, ws, Dv].
            regions: [R, 1, h, w] in 0..1 (a filled box, a dilated stroke, a mask), any resolution.
            image_index: int64 [R], image of each region; may be left out for one image.

        Returns:
            [R, H]. An empty region has zero features and zero extents.
        """
        if self.region_pooler is None:
            raise ValueError("This vision encoder has no region slots (region_slots=False).")
        if regions.ndim != 4 or regions.shape[1] != 1:
            raise ValueError(f"regions has shape {tuple(regions.shape)}; it must be [R, 1, h, w] with values in 0..1.")
        if self.pyramid is not None and feature_maps is None:
            raise ValueError("Region tokens of this model read the feature maps: give pixel_values_high to forward.")
        if image_index is None:
            if image_features.shape[0] != 1:
                raise ValueError(
                    f"{image_features.shape[0]} images and no image_index: say which image each region is of."
                )
            image_index = torch.zeros(regions.shape[0], dtype=torch.long, device=regions.device)
        maps = [*(feature_maps or ()), image_features.permute(0, 3, 1, 2)]
        return self.region_pooler(maps, regions, image_index)

    def _pyramid_features(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.pyramid is None:
            raise ValueError(
                "pixel_values_high was given, but this vision encoder has no second branch (pyramid_channels=None). "
                "Leave pixel_values_high out."
            )
        height, width = pixel_values.shape[-2:]
        if height % PYRAMID_STRIDES[-1] or width % PYRAMID_STRIDES[-1]:
            raise ValueError(
                f"pixel_values_high is {height} x {width}; both sides must be multiples of {PYRAMID_STRIDES[-1]}. "
                "Resize or pad the image first."
            )
        # channels_last: ConvNeXt alternates convolutions with channel-wise layers, so it spares a copy at each switch,
        # and depthwise convolutions are two to four times faster on CPU.
        h = pixel_values.to(self.dtype).contiguous(memory_format=torch.channels_last)
        h = self.pyramid.embeddings(h)
        feature_maps = []
        for stage in self.pyramid.encoder.stages:
            for layer in stage.downsampling_layer:  # pyright: ignore[reportGeneralTypeIssues]
                h = layer(h)
            for layer in stage.layers:  # pyright: ignore[reportGeneralTypeIssues]
                if torch.is_grad_enabled() and self.gradient_checkpointing:
                    h = self._gradient_checkpointing_func(layer, h)
                else:
                    h = layer(h)
            feature_maps.append(h)
        return tuple(feature_maps)


def _build_pyramid(depths: Sequence[int], channels: Sequence[int], layer_scale_init: float) -> ConvNextBackbone:
    config = ConvNextConfig(
        depths=list(depths),
        hidden_sizes=list(channels),
        layer_scale_init_value=layer_scale_init,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    pyramid = ConvNextBackbone(config)
    # transformers adds fresh output norms that no published ConvNeXt has; the raw stage outputs are the features.
    pyramid.hidden_states_norms = nn.ModuleDict()
    return pyramid


def _check_levels(
    depths: Sequence[int], channels: Sequence[int], fusion_level: int, query_levels: Sequence[int]
) -> None:
    if len(depths) != 4 or len(channels) != 4:
        raise ValueError(
            f"pyramid_depths {tuple(depths)} and pyramid_channels {tuple(channels)} must have four values each."
        )
    bad = [level for level in (fusion_level, *query_levels) if not 0 <= level < 4]
    if bad:
        raise ValueError(f"fusion_level and query_levels index the maps f1..f4 as 0..3; got {bad}.")
