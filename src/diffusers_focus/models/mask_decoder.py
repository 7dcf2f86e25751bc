"""The mask predictor: from mask-slot states and image features to masks, scores and instance embeddings.

Paper: FOCUS (arXiv 2506.16806), section "Segmentation predictor": F_p(E^P, E^Q, f1..f4) -> (mask, class scores,
instance embedding) for N proposals, where the condition embeddings E^P act as the classifier. FOCUS leaves the layers
open and builds on HyperSeg (arXiv 2411.17606), whose predictor is Mask2Former's (arXiv 2112.01527, MIT; Apache-2.0 port
in transformers): a deformable-attention pixel decoder, then masked cross-attention over three scales.

What differs from Mask2Former:
- the content of a query is the language model's state at its mask slot, not a learned vector;
- there is no fixed class layer: scores are dot products with the condition embeddings;
- several prompts about one image share its pixel features, keys and values;
- a second mask head says where pixels may change in an edit.

Everything else computes what Mask2Former computes, so its weights can be loaded (`checkpoints/mask2former.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
from ._attention import AttentionProduct
from ._pixel_decoder import NUM_LEVELS, FeedForward, FocusPixelFeatures, LearnedRows, MaskPixelDecoder, sine_positions


@dataclass
class FocusMaskOutput(BaseOutput):
    """Predictions for B images, G prompts per image, N mask slots per prompt, K conditions per prompt.

    All logits are before the sigmoid; masks have the size (h, w) of the stride-4 feature map.

    Attributes:
        mask_logits (`(B, G, N, h, w)`): what was referred to; `None` with `dense=False`.
        edit_logits (`(B, G, N, h, w)`): where pixels may change; `None` with `dense=False`.
        condition_logits (`(B, G, N, K)`): does slot n show condition k; padded conditions hold the dtype's minimum.
        quality_logits (`(B, G, N)`): predicted IoU of the slot's mask.
        instance_embeds (`(B, G, N, instance_dim)`): to link a slot's object between frames.
        mask_embeds, edit_embeds (`(B, G, N, mask_dim)`): `mask_logits` is their product with `mask_features`.
        mask_features (`(B, mask_dim, h, w)`): the pixel side of that product, for losses at sampled points.
        auxiliary: with `return_auxiliary`, the predictions before each of the L decoder layers, first to last: a list
            of L tuples `(mask_logits, edit_logits, condition_logits)`.
        auxiliary_embeds: the same L predictions as tuples `(mask_embeds, edit_embeds)`.
    """

    mask_logits: torch.Tensor | None = None
    edit_logits: torch.Tensor | None = None
    condition_logits: torch.Tensor | None = None
    quality_logits: torch.Tensor | None = None
    instance_embeds: torch.Tensor | None = None
    mask_embeds: torch.Tensor | None = None
    edit_embeds: torch.Tensor | None = None
    mask_features: torch.Tensor | None = None
    auxiliary: list[tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor]] | None = None
    auxiliary_embeds: list[tuple[torch.Tensor, torch.Tensor]] | None = None


class MaskAttention(nn.Module):
    """Multi-head attention whose position embeddings join queries and keys, never values."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.attend = AttentionProduct()
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        for linear in (self.q_proj, self.k_proj, self.v_proj):
            # The range Xavier gives to the three as one stacked matrix, which is how Mask2Former starts.
            nn.init.xavier_uniform_(linear.weight, gain=1 / math.sqrt(2))
            nn.init.zeros_(linear.bias)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, allowed: torch.Tensor | None = None
    ) -> torch.Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection, x in ((self.q_proj, queries), (self.k_proj, keys), (self.v_proj, values))
        )
        out = self.attend(q, k, v, allowed)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class MaskDecoderLayer(nn.Module):
    """Masked cross-attention to one scale, self-attention among a prompt's slots, feed-forward; all post-norm."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int):
        super().__init__()
        self.cross_attention = MaskAttention(dim, num_heads)
        self.cross_attention_norm = nn.LayerNorm(dim)
        self.self_attention = MaskAttention(dim, num_heads)
        self.self_attention_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, dim)
        self.ffn_norm = nn.LayerNorm(dim)
        for index in (0, 2):
            nn.init.xavier_uniform_(self.ffn[index].weight)

    def forward(
        self,
        x: torch.Tensor,
        query_positions: torch.Tensor,
        pixels: torch.Tensor,
        pixel_positions: torch.Tensor,
        allowed: torch.Tensor,
        num_prompts: int,
    ) -> torch.Tensor:
        """`x` `(B, G*N, C)`; `query_positions` `(N, C)`; `pixels` `(B, S, C)`; `pixel_positions` `(S, C)`; `allowed`
        `(B, 1, G*N, S)` bool, True where a slot may look.
        """
        tiled = query_positions.repeat(num_prompts, 1)
        attended = self.cross_attention(x + tiled, pixels + pixel_positions, pixels, allowed)
        x = self.cross_attention_norm(x + attended)
        # Slots of one prompt compete for objects; slots of different prompts must not see each other.
        y = x.unflatten(1, (num_prompts, -1)).flatten(0, 1)
        attended = self.self_attention(y + query_positions, y + query_positions, y)
        x = self.self_attention_norm(y + attended).view_as(x)
        return self.ffn_norm(x + self.ffn(x))


class ConditionClassifier(nn.Module):
    """Scores slots against condition embeddings: the condition is the classifier."""

    def __init__(self, dim: int, condition_dim: int):
        super().__init__()
        self.slot_head = FeedForward(dim, dim, dim)
        self.condition_projection = nn.Linear(condition_dim, dim)
        self.condition_norm = nn.LayerNorm(dim)
        # Most pairs of slot and condition do not match: start near a score of 0.12.
        self.bias = nn.Parameter(torch.full((1,), -2.0))
        nn.init.xavier_uniform_(self.condition_projection.weight)
        nn.init.zeros_(self.condition_projection.bias)

    def forward(
        self, slots: Sequence[torch.Tensor], conditions: torch.Tensor, mask: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """`slots`: tensors `(B, G, N, C)`, one per prediction; `conditions` `(B, G, K, H)`; `mask` `(B, G, K)` bool.
        Returns one `(B, G, N, K)` per prediction.
        """
        keys = self.condition_norm(self.condition_projection(conditions)).transpose(-1, -2)
        scale = keys.shape[-2] ** -0.5
        logits = [(self.slot_head(x) * scale) @ keys + self.bias for x in slots]
        if mask is not None:
            logits = [x.masked_fill(~mask[:, :, None], torch.finfo(x.dtype).min) for x in logits]
        return logits


def _shrink(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bilinear resizing without antialiasing. By an even factor that is the mean of each block's four middle pixels;
    reading only those is ten times faster on CPU than `F.interpolate`.
    """
    rows, columns = x.shape[-2] // height, x.shape[-1] // width
    if x.shape[-2:] != (height * rows, width * columns) or rows % 2 or columns % 2:
        return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
    i, j = rows // 2, columns // 2
    x = x[..., i - 1 :: rows, :] + x[..., i::rows, :]
    return (x[..., j - 1 :: columns] + x[..., j::columns]) * 0.25


class FocusMaskDecoder(FocusHubMixin, ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):
    """Mask2Former-style mask predictor whose queries are a language model's mask-slot states.

    Args:
        in_channels: channels of the feature maps at strides 4, 8, 16, 32.
        language_hidden_size: width of the language model, H.
        hidden_dim: width of the pixel decoder and of the queries.
        mask_dim: width of the per-pixel and per-mask embeddings.
        num_heads: attention heads, of all attentions.
        encoder_layers: deformable encoder layers of the pixel decoder.
        decoder_layers: masked-attention layers, L.
        encoder_ffn_dim, decoder_ffn_dim: feed-forward widths.
        num_slots: mask slots per prompt, N.
        num_points: sampling points per head and level.
        instance_dim: width of the instance embeddings.
        norm_groups: groups of the pixel decoder's group norms.
        answer_condition: whether the state after the written names is a part of every condition, through a projection that begins
            at zero. The paper's conditions end before the names, and only the slots read them.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DeformableEncoderLayer", "MaskDecoderLayer"]
    _repeated_blocks = ["DeformableEncoderLayer", "MaskDecoderLayer"]
    _skip_layerwise_casting_patterns = ["slots", "query_embed", "level_embed", "norm", "sampling_offsets"]

    @register_to_config
    def __init__(
        self,
        in_channels: Sequence[int] = (192, 384, 768, 1536),
        language_hidden_size: int = 2048,
        hidden_dim: int = 256,
        mask_dim: int = 256,
        num_heads: int = 8,
        encoder_layers: int = 6,
        decoder_layers: int = 9,
        encoder_ffn_dim: int = 1024,
        decoder_ffn_dim: int = 2048,
        num_slots: int = 100,
        num_points: int = 4,
        instance_dim: int = 256,
        norm_groups: int = 32,
        answer_condition: bool = False,
    ):
        super().__init__()
        if len(in_channels) != NUM_LEVELS + 1:
            raise ValueError(
                f"in_channels has {len(in_channels)} entries: {tuple(in_channels)}. Give four, the channels of the "
                "feature maps at strides 4, 8, 16 and 32."
            )
        if hidden_dim % 4 or hidden_dim % num_heads or hidden_dim % norm_groups:
            raise ValueError(
                f"hidden_dim is {hidden_dim}; it must be a multiple of 4 (sine positions), of num_heads={num_heads} "
                f"and of norm_groups={norm_groups}. Change one of the three."
            )
        if mask_dim % 4:
            raise ValueError(
                f"mask_dim is {mask_dim}; it must be a multiple of 4, because mask features carry sine positions."
            )
        if num_slots < 1:
            raise ValueError(f"num_slots is {num_slots}; a mask decoder needs at least 1 slot.")

        self.slots = LearnedRows(num_slots, language_hidden_size)
        nn.init.normal_(self.slots.weight, std=0.02)  # the scale of a language model's own input embeddings
        self.pixel_decoder = MaskPixelDecoder(
            in_channels, hidden_dim, mask_dim, num_heads, encoder_layers, num_points, encoder_ffn_dim, norm_groups
        )

        self.slot_projection = nn.Linear(language_hidden_size, hidden_dim)
        nn.init.xavier_uniform_(self.slot_projection.weight)
        nn.init.zeros_(self.slot_projection.bias)
        self.query_embed = LearnedRows(num_slots, hidden_dim)
        self.level_embed = LearnedRows(NUM_LEVELS, hidden_dim)
        self.layers = nn.ModuleList(
            MaskDecoderLayer(hidden_dim, num_heads, decoder_ffn_dim) for _ in range(decoder_layers)
        )
        self.norm = nn.LayerNorm(hidden_dim)

        self.mask_head = FeedForward(hidden_dim, hidden_dim, hidden_dim, mask_dim)
        self.edit_head = FeedForward(hidden_dim, hidden_dim, hidden_dim, mask_dim)
        self.condition_head = ConditionClassifier(hidden_dim, language_hidden_size)
        self.answer_projection = None
        if answer_condition:
            self.answer_projection = nn.Linear(language_hidden_size, language_hidden_size, bias=False)
            nn.init.zeros_(self.answer_projection.weight)
        self.quality_head = FeedForward(hidden_dim, hidden_dim, 1)
        self.instance_head = FeedForward(hidden_dim, hidden_dim, hidden_dim, instance_dim)
        self.gradient_checkpointing = False

    @apply_forward_hook
    def slot_embeddings(self) -> torch.Tensor:
        """The learned mask slots `(N, H)`: input embeddings for the language model, whose states come back to
        `decode` as `slot_states`.
        """
        return self.slots()

    @apply_forward_hook
    def encode(self, feature_maps: Sequence[torch.Tensor]) -> FocusPixelFeatures:
        """Pixel features of a batch of images, computed once per image whatever is asked about it.

        Args:
            feature_maps: four tensors `(B, in_channels[i], h_i, w_i)` of strides 4, 8, 16, 32, fine to coarse.

        Raises:
            ValueError: if there are not four maps or their channels differ from the config's.
        """
        channels = [x.shape[1] for x in feature_maps]
        if channels != list(self.config.in_channels):
            raise ValueError(
                f"feature_maps have {channels} channels, this mask decoder takes {list(self.config.in_channels)}. Pass "
                "the four maps f1..f4 of the vision encoder it was made for, strides 4, 8, 16, 32 in that order."
            )
        # Group norm's backward is many times slower on channels-last maps, which a ConvNeXt may well hand over.
        cast = self._caster(feature_maps[0].device.type)
        return self.pixel_decoder([cast(x).contiguous() for x in feature_maps])

    @apply_forward_hook
    def decode(
        self,
        pixel_features: FocusPixelFeatures,
        slot_states: torch.Tensor,
        condition_states: torch.Tensor,
        condition_mask: torch.Tensor | None = None,
        return_auxiliary: bool = False,
        dense: bool = True,
        answer_states: torch.Tensor | None = None,
    ) -> FocusMaskOutput:
        """Masks and scores for G prompts per image. Prompts do not influence each other.

        Args:
            pixel_features: result of `encode` for the B images.
            slot_states: `(B, G, N, H)`, E^Q: the language model's last hidden states at the mask slots.
            condition_states: `(B, G, K, H)`, E^P: one embedding per condition.
            condition_mask: `(B, G, K)` bool, False for padding; `None` when all K are real.
            return_auxiliary: also return the predictions before each layer, for deep supervision.
            dense: `False` leaves out all mask logits: a loss at sampled points needs only the embeddings.
            answer_states: `(B, G, H)`, the language model's last hidden state at the mask trigger, after the names; needed with
                `answer_condition`, else not read.

        Returns:
            `FocusMaskOutput`, in the model's dtype (under autocast, the autocast dtype).

        Raises:
            ValueError: if shapes do not fit the config or each other.
        """
        self._check(pixel_features, slot_states, condition_states, condition_mask)
        batch, prompts, num_slots, _ = slot_states.shape
        cast = self._caster(slot_states.device.type)
        mask_features = cast(pixel_features.mask_features)
        height, width = mask_features.shape[-2:]

        level_embed, query_positions = self.level_embed(), self.query_embed()
        pixels, pixel_positions, coarse_masks = [], [], []
        for i, level in enumerate(pixel_features.multi_scale):
            size = tuple(level.shape[-2:])
            pixels.append(cast(level).flatten(2).transpose(1, 2) + level_embed[i])
            positions = sine_positions(*size, level.shape[1], level.device)
            pixel_positions.append(positions.to(pixels[-1].dtype))
            # Bilinear resizing commutes with the product over channels: resizing the features once gives the masks at
            # the size the attention needs without ever computing them at full size.
            coarse_masks.append(_shrink(mask_features.detach(), *size).flatten(2))

        def per_prompt(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(1, (prompts, num_slots))

        x = self.slot_projection(cast(slot_states)).flatten(1, 2)
        normed, embeds = [], []
        for i, layer in enumerate(self.layers):
            level = i % NUM_LEVELS
            with torch.set_grad_enabled(torch.is_grad_enabled() and return_auxiliary):
                states = self.norm(x)
                mask_embeds = self.mask_head(states)
                if return_auxiliary:
                    normed.append(per_prompt(states))
                    embeds.append((per_prompt(mask_embeds), per_prompt(self.edit_head(states))))
            with torch.no_grad():
                allowed = mask_embeds @ coarse_masks[level] >= 0
                allowed |= ~allowed.any(dim=-1, keepdim=True)
            arguments = (x, query_positions, pixels[level], pixel_positions[level], allowed[:, None], prompts)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(layer, *arguments)
            else:
                x = layer(*arguments)

        states = self.norm(x)
        normed.append(per_prompt(states))
        embeds.append((per_prompt(self.mask_head(states)), per_prompt(self.edit_head(states))))
        conditions = self.condition_head(normed, self._with_answers(condition_states, answer_states), condition_mask)

        def masks(embeddings: torch.Tensor) -> torch.Tensor | None:
            if not dense:
                return None
            logits = embeddings.flatten(1, 2) @ mask_features.flatten(2)
            return logits.view(batch, prompts, num_slots, height, width)

        auxiliary = auxiliary_embeds = None
        if return_auxiliary:
            auxiliary_embeds = embeds[:-1]
            auxiliary = [
                (masks(mask), masks(edit), condition) for (mask, edit), condition in zip(auxiliary_embeds, conditions)
            ]
        mask_embeds, edit_embeds = embeds[-1]
        return FocusMaskOutput(
            mask_logits=masks(mask_embeds),
            edit_logits=masks(edit_embeds),
            condition_logits=conditions[-1],
            quality_logits=per_prompt(self.quality_head(states).squeeze(-1)),
            instance_embeds=per_prompt(self.instance_head(x)),
            mask_embeds=mask_embeds,
            edit_embeds=edit_embeds,
            mask_features=mask_features,
            auxiliary=auxiliary,
            auxiliary_embeds=auxiliary_embeds,
        )

    def forward(
        self,
        feature_maps: Sequence[torch.Tensor] | None,
        slot_states: torch.Tensor,
        condition_states: torch.Tensor,
        condition_mask: torch.Tensor | None = None,
        pixel_features: FocusPixelFeatures | None = None,
        return_auxiliary: bool = False,
        dense: bool = True,
        answer_states: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> FocusMaskOutput | tuple:
        """`encode` and `decode` in one call; with `pixel_features`, `feature_maps` may be `None` and is not read."""
        if pixel_features is None:
            if feature_maps is None:
                raise ValueError(
                    "Neither feature_maps nor pixel_features was given. Pass the vision encoder's four feature maps, "
                    "or what an earlier encode() returned for these images."
                )
            pixel_features = self.encode(feature_maps)
        output = self.decode(
            pixel_features,
            slot_states,
            condition_states,
            condition_mask,
            return_auxiliary=return_auxiliary,
            dense=dense,
            answer_states=answer_states,
        )
        return output if return_dict else output.to_tuple()

    def _caster(self, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """What brings tensors to the weights' dtype; autocast does its own casting.

        diffusers looks at every module for `dtype` (one may compute in another), so it is asked once a call.
        """
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            return lambda x: x
        dtype = self.dtype
        return lambda x: x.to(dtype)

    def _with_answers(self, conditions: torch.Tensor, answers: torch.Tensor | None) -> torch.Tensor:
        """Conditions `(B, G, K, H)` with what was written to each prompt, where the model takes that in."""
        cast = self._caster(conditions.device.type)
        if self.answer_projection is None:
            return cast(conditions)
        if answers is None or answers.shape != (*conditions.shape[:2], conditions.shape[-1]):
            raise ValueError(
                f"answer_states is {'missing' if answers is None else f'of shape {tuple(answers.shape)}'}; this mask decoder "
                "(answer_condition) takes the state at the mask trigger of each prompt, (images, prompts, width) = "
                f"{(*conditions.shape[:2], conditions.shape[-1])}."
            )
        return cast(conditions) + self.answer_projection(cast(answers))[:, :, None]

    def _check(
        self,
        pixel_features: FocusPixelFeatures,
        slot_states: torch.Tensor,
        condition_states: torch.Tensor,
        condition_mask: torch.Tensor | None,
    ) -> None:
        config = self.config
        images = pixel_features.mask_features.shape[0]
        if slot_states.ndim != 4 or slot_states.shape[0] != images or slot_states.shape[2] != config.num_slots:
            raise ValueError(
                f"slot_states has shape {tuple(slot_states.shape)}; expected (images, prompts, slots, width) = "
                f"({images}, any, {config.num_slots}, {config.language_hidden_size}). For one prompt per image add a "
                "dimension of size 1; for a subset of the images use pixel_features.select(index)."
            )
        if condition_states.ndim != 4 or condition_states.shape[:2] != slot_states.shape[:2]:
            raise ValueError(
                f"condition_states has shape {tuple(condition_states.shape)}; expected (images, prompts, conditions, "
                f"width) = ({images}, {slot_states.shape[1]}, any, {config.language_hidden_size})."
            )
        for name, states in (("slot_states", slot_states), ("condition_states", condition_states)):
            if states.shape[-1] != config.language_hidden_size:
                raise ValueError(
                    f"{name} has width {states.shape[-1]}, this mask decoder takes language_hidden_size="
                    f"{config.language_hidden_size}. Pass the states of the language model it was made for."
                )
        if condition_mask is not None and (
            condition_mask.dtype != torch.bool or condition_mask.shape != condition_states.shape[:3]
        ):
            raise ValueError(
                f"condition_mask is {condition_mask.dtype} of shape {tuple(condition_mask.shape)}; expected torch.bool "
                f"of shape {tuple(condition_states.shape[:3])}, True where a condition is real."
            )
