"""Words for the decoder itself: SDXL's two text encoders in front of the UNet's sequence, optionally weighted by compel.

FOCUS's decoder was trained with zero rows where SDXL has its text (ILLUME+, arXiv 2504.01934), and reads the visual tokens instead.
A pipeline that carries SDXL's text encoders (`tokenizer`, `tokenizer_2`, `text_encoder`, `text_encoder_2`) may put words there
(`decoder_prompt`): zero-shot unless that decoder was trained with them. compel (MIT; extra `[compel]`) weights words ("red++",
"(glossy)1.3") and reads more than 77 tokens; it is opt-in, for it takes parentheses and quotes out of plain text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from .arguments import as_list, check_texts

PARTS = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2")


@dataclass
class DecoderText:
    """Encoded words of B results.

    Args:
        embeds: [B, T, D] with D the UNet's cross-attention width.
        pooled: [B, P], SDXL's second conditioning.
        negative_embeds, negative_pooled: of the unconditional branch; zeros where no negative words were given.
    """

    embeds: torch.Tensor
    pooled: torch.Tensor
    negative_embeds: torch.Tensor
    negative_pooled: torch.Tensor

    def repeat(self, count: int) -> DecoderText:
        """Each row `count` times."""
        return DecoderText(*(value.repeat_interleave(count, dim=0) for value in vars(self).values()))


def encode_decoder_prompt(
    components: Any,
    prompt: str | Sequence[str],
    negative: str | Sequence[str] | None,
    count: int,
    *,
    weighted: bool = False,
    device: torch.device | str = "cpu",
) -> DecoderText:
    """Encode the words for B = `count` results.

    Args:
        components: with SDXL's tokenizers and text encoders.
        prompt, negative: a text, or one for each result.
        weighted: read compel's syntax, and any length.

    Raises:
        ImportError: compel is not installed.
        TypeError, ValueError: no texts, the wrong number of them, or text encoders that are missing.
    """
    missing = [name for name in PARTS if getattr(components, name, None) is None]
    if missing:
        raise ValueError(
            f"decoder_prompt needs SDXL's text encoders, and this pipeline has no {', '.join(missing)}. Load it with "
            "FocusPipeline.from_pretrained(..., tokenizer=..., tokenizer_2=..., text_encoder=..., text_encoder_2=...), the "
            "parts of an SDXL checkpoint."
        )
    texts = _texts(prompt, "decoder_prompt", count)
    negatives = None if negative is None else _texts(negative, "negative_decoder_prompt", count)
    if weighted:
        return _weighted(components, texts, negatives, device)
    embeds, pooled = _encode(components, texts, device)
    if negatives is None:
        return DecoderText(embeds, pooled, torch.zeros_like(embeds), torch.zeros_like(pooled))
    return DecoderText(embeds, pooled, *_encode(components, negatives, device))


def _texts(value: Any, name: str, count: int) -> list[str]:
    check_texts(value, name)
    texts = as_list(value, name) or [value] * count
    if len(texts) != count:
        raise ValueError(f"{name} has {len(texts)} texts for {count} prompts. Pass one text, or one for each prompt.")
    return texts


def _encode(components: Any, texts: list[str], device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, 77, D1 + D2] and pooled [B, P]: the last but one layer of both encoders side by side, as SDXL was trained."""
    parts: list[torch.Tensor] = []
    pooled = None
    for tokenizer, encoder in (
        (components.tokenizer, components.text_encoder),
        (components.tokenizer_2, components.text_encoder_2),
    ):
        ids = tokenizer(
            texts,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        out = encoder(ids.to(device), output_hidden_states=True)
        parts.append(out.hidden_states[-2])
        pooled = out[0]  # the second encoder's projection
    assert pooled is not None
    return torch.cat(parts, dim=-1), pooled


def _weighted(
    components: Any, texts: list[str], negatives: list[str] | None, device: torch.device | str
) -> DecoderText:
    try:
        from compel import CompelForSDXL
    except ImportError as error:
        raise ImportError(
            f"prompt_weighting=True needs compel, which cannot be imported here ({error}). Install it with "
            "pip install 'diffusers-focus[compel]', or leave prompt_weighting out to take the words as they are."
        ) from error
    parts = SimpleNamespace(**{name: getattr(components, name) for name in PARTS})
    # An empty negative text has embeddings of its own; no negative text means zeros, as everywhere in diffusers.
    found = CompelForSDXL(parts, device=str(device))(texts, negative_prompt=negatives)
    embeds, pooled = found.embeds, found.pooled_embeds
    if negatives is None:
        return DecoderText(embeds, pooled, torch.zeros_like(embeds), torch.zeros_like(pooled))
    return DecoderText(embeds, pooled, found.negative_embeds, found.negative_pooled_embeds)
