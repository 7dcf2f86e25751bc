"""Attention for training a language model on CPUs: plain products of grouped heads, keys and values never repeated.

The backward pass of fused attention is slow on CPUs at small head widths, and the plain path of PyTorch repeats keys and values
for every query head and passes over the scores several times more. Here the query heads of a group stand side by side as rows of
one product. The suffixes of many prompts share a long prefix, so scores are most of a training step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

NAME = "grouped_products"


def grouped_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers.

    Args:
        query: [R, heads, T, width].
        key, value: [R, groups, S, width].
        attention_mask: added to the scores, [R, 1, T, S], or None.

    Returns:
        [R, T, heads, width] and None.

    Raises:
        ValueError: dropout, which this attention does not have.
    """
    if dropout:
        raise ValueError(f"attention dropout is {dropout}; {NAME} has none. Set attention_dropout to 0.")
    rows, heads, length, width = query.shape
    groups, span = key.shape[1:3]
    # Rotary positions and the cache widen what autocast had made narrow.
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    queries = (query * scaling).to(dtype).reshape(rows * groups, heads // groups * length, width)
    scores = torch.bmm(queries, key.to(dtype).reshape(rows * groups, span, width).transpose(1, 2))
    scores = scores.view(rows, groups, heads // groups, length, span)
    if attention_mask is not None:
        scores = scores + attention_mask[:, :, None].to(dtype)
    with torch.autocast(kind, enabled=False):  # which would widen the scores
        weights = scores.softmax(-1)
    mixed = torch.bmm(weights.view(rows * groups, -1, span), value.to(dtype).reshape(rows * groups, span, width))
    return mixed.view(rows, heads, length, width).transpose(1, 2).contiguous(), None


def use_grouped_attention(language_model: Any) -> None:
    """Let a transformers model run with it; its saved configuration stays as it was."""
    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    language_model.set_attn_implementation(NAME)
