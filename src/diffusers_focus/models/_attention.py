"""The product at the heart of every attention here, by whichever backend diffusers was told to use.

`model.set_attention_backend("flex")` and diffusers' `attention_backend(...)` context look for modules of diffusers' own attention
class and talk to their processors. `AttentionProduct` is such a module without any weights: an attention projects its queries, keys
and values as it likes and calls it, so checkpoints keep their keys and all backends serve all models.
"""

from __future__ import annotations

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import nn


class AttentionProductProcessor:
    """Hands the product to a backend: the model's own where one was set, otherwise the one in force."""

    _attention_backend: AttentionBackendName | None = None
    _parallel_config = None

    def __call__(
        self,
        attention: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # diffusers has heads after positions
        out = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return out.transpose(1, 2)


class AttentionProduct(nn.Module, AttentionModuleMixin):
    """softmax(q k / sqrt(d)) v over queries, keys and values [B, heads, L, d]; `mask` [B, 1 or heads, L, S] bool, True where a
    query may look. Returns [B, heads, L, d].
    """

    _default_processor_cls = AttentionProductProcessor
    _available_processors = [AttentionProductProcessor]
    _supports_qkv_fusion = False  # the projections belong to whoever calls

    def __init__(self) -> None:
        super().__init__()
        self.set_processor(AttentionProductProcessor())

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.processor(self, query, key, value, mask)
