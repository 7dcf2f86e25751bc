"""Grouped attention gives what the stock model's own attention gives, forward and backward, over a cache and padding."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.cache_utils import DynamicCache

from diffusers_focus.training.attention import grouped_attention, use_grouped_attention


def small_model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        vocab_size=50,
    )
    return Qwen2ForCausalLM(config)


def run(model: Qwen2ForCausalLM) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Hidden states of padded suffixes after a shared prefix, and the gradients of their squares."""
    model.zero_grad()
    generator = torch.Generator().manual_seed(1)
    prefix = torch.randint(0, 50, (1, 7), generator=generator)
    suffix = torch.randint(0, 50, (3, 5), generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    cache = DynamicCache()
    model.model(input_ids=prefix, past_key_values=cache, use_cache=True)
    rows = torch.zeros(3, dtype=torch.long)
    grown = DynamicCache(ddp_cache_data=[(layer.keys[rows], layer.values[rows]) for layer in cache.layers])
    whole = torch.cat([torch.ones(3, 7, dtype=torch.long), mask], dim=1)
    out = model.model(input_ids=suffix, attention_mask=whole, past_key_values=grown, use_cache=True).last_hidden_state
    seen = out[mask.bool()]
    seen.square().sum().backward()
    return seen.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_equals_the_models_own_attention() -> None:
    model = small_model()
    expected, gradients = run(model)
    use_grouped_attention(model)
    found, own = run(model)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(own) == len(gradients) > 10
    for a, b in zip(own, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_saved_model_does_not_ask_for_it(tmp_path) -> None:
    model = small_model()
    use_grouped_attention(model)
    model.save_pretrained(tmp_path)
    assert "grouped" not in (tmp_path / "config.json").read_text()
    assert Qwen2ForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_dropout_is_refused() -> None:
    q = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="dropout"):
        grouped_attention(torch.nn.Identity(), q, q, q, None, scaling=0.5, dropout=0.1)
