"""Goldens of the families mllm_vision and mllm_forward: what the original language model reads, and what it makes of it.

Weights come through the converter; prompts, tokens and image blocks are ours.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffusers_focus.processing.grids import num_image_tokens, pixel_grid, semantic_grid
from diffusers_focus.processing.images import FocusImageProcessor
from diffusers_focus.processing.prompts import IMAGE, TEXT, render_prompt
from diffusers_focus.processing.vocabulary import MARKERS, resolution_text
from diffusers_focus.steps.encode import FocusMixedEncoding, encode_tensors
from diffusers_focus.steps.sequence import (
    FocusContext,
    batch_rows,
    embed_prefix,
    encode_prefix,
    image_block,
    run_suffixes,
    suffix_row,
)

from tests.checkpoints.goldens import (
    Golden,
    Prompt,
    language_tokenizer,
    multimodal,
    prompts_of,
    recorded_tokenizer,
    size_of,
    tag_step,
)

IMAGE_ID = -200  # the original's placeholder in input_ids
VISION = {"atol": 1e-5, "rtol": 0}
LANGUAGE = {"atol": 2e-5, "rtol": 0}

images = pytest.mark.golden("mllm_vision", lambda golden: golden.facts["image_shapes"])
cases = pytest.mark.golden("mllm_vision", lambda golden: golden.facts["cases"])
states = pytest.mark.golden("mllm_forward", lambda golden: _recorded_cases(golden))


def _recorded_cases(golden: Golden) -> list[str]:
    ending = ".last_hidden_state"
    return sorted(name.removesuffix(ending) for name in golden.facts["tensors"] if name.endswith(ending))


def vision_of(golden: Golden, name: str) -> Any:
    return encode_tensors(multimodal(golden), golden.tensors[f"image.{name}.pixel_values"]).vision


def block_of(golden: Golden, name: str) -> torch.Tensor:
    """An image as the language model reads it, [L, H]."""
    model, vision = multimodal(golden), vision_of(golden, name)
    return image_block(model, FocusContext.of(model).vocabulary, vision.vision_tokens, vision.pixel_tokens)[0]


def parts_of(golden: Golden, prompt: Prompt) -> tuple[list[Any], list[Any]]:
    """Prefix and suffix of a prompt in the original's style."""
    style, count = FocusContext.of(multimodal(golden)).style, len(prompt.images)
    prefix = style.prefix(count, task=prompt.task, height_width=prompt.size)
    return prefix, style.suffix(prompt.task, text=prompt.text, num_images=count, height_width=prompt.size)


# Tokenizer and vocabulary


@pytest.mark.golden("mllm_vision")
def test_the_added_tokens_are_the_originals(golden: Golden) -> None:
    tokenizer, facts = language_tokenizer(golden), golden.facts
    expected = {token["content"]: token["id"] for token in recorded_tokenizer(golden)["added_tokens"]}
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in expected} == expected
    assert len(tokenizer) == facts["len_tokenizer"]
    vocabulary = FocusContext.of(multimodal(golden)).vocabulary
    assert {token: getattr(vocabulary, token.strip("<>")) for token in MARKERS} == facts["special_tokens"]
    assert [facts["special_tokens"][token] for token in MARKERS] == facts["special_tokens_ids"]
    assert list(vocabulary.height_tags) == facts["height_tag_ids"]
    assert list(vocabulary.width_tags) == facts["width_tag_ids"]
    assert [list(vocabulary.level0_range), list(vocabulary.level1_range)] == [
        facts["level0_range"],
        facts["level1_range"],
    ]
    assert (vocabulary.end_of_text, vocabulary.pad) == (facts["im_end"], facts["endoftext"])
    assert vocabulary.embedding_rows == facts["embedding_rows"]
    assert vocabulary.tag_step == tag_step(golden)


@pytest.mark.golden("mllm_vision")
def test_word_table_and_head_are_tied_as_in_the_original(golden: Golden) -> None:
    model = multimodal(golden).language_model
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert tied is model.config.tie_word_embeddings is golden.facts["tied_lm_head"]
    expected = golden.facts["llm_config"]
    same = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "vocab_size",
    )
    assert {key: getattr(model.config, key) for key in same} == {key: expected[key] for key in same}


# Images


@images
def test_pictures_become_the_recorded_pixel_values(golden: Golden, case: str) -> None:
    processor = FocusImageProcessor(buckets=[size_of(case)], tag_step=16, high_resolution=None)
    inputs = processor(golden.tensors[f"image.{case}.uint8"].numpy())
    torch.testing.assert_close(inputs.pixel_values, golden.tensors[f"image.{case}.pixel_values"], atol=1e-6, rtol=0)
    assert inputs.pixel_values_high is None and inputs.placements[0].is_identity


@images
@torch.no_grad()
def test_features_and_projections_are_the_recorded_ones(golden: Golden, case: str) -> None:
    out = vision_of(golden, case)
    shapes = golden.facts["image_shapes"][case]
    assert list(out.vision_tokens.shape[1:3]) == shapes["semantic"] == list(semantic_grid(*size_of(case)))
    assert list(out.pixel_tokens.shape[1:3]) == shapes["pixel"] == list(pixel_grid(*size_of(case)))
    for ours, name in (
        (out.image_features[0].flatten(0, 1), "semantic_features"),
        (out.pixel_features[0].flatten(1).T, "pixel_features"),
        (out.vision_tokens[0].flatten(0, 1), "semantic_projected"),
        (out.pixel_tokens[0].flatten(0, 1), "pixel_projected"),
    ):
        torch.testing.assert_close(ours, golden.tensors[f"{case}.{name}"], **VISION)


@images
@torch.no_grad()
def test_image_blocks_have_the_recorded_layout(golden: Golden, case: str) -> None:
    block, layout = block_of(golden, case), golden.tensors[f"{case}.layout"].long()
    torch.testing.assert_close(block, golden.tensors[f"{case}.image_embeds"], **VISION)
    table = multimodal(golden).language_model.get_input_embeddings().weight
    assert torch.equal(block[layout >= 0], table[layout[layout >= 0]])
    flipped = f"{case}.hflip_image_embeds"
    if flipped in golden.tensors:
        pixel_values = golden.tensors[f"image.{case}.pixel_values"]
        model = multimodal(golden)
        vision = encode_tensors(model, torch.cat([pixel_values, pixel_values.flip(-1)])).vision
        vocabulary = FocusContext.of(model).vocabulary
        blocks = image_block(model, vocabulary, vision.vision_tokens, vision.pixel_tokens)
        torch.testing.assert_close(blocks[1], golden.tensors[flipped], **VISION)


# Prompts


@cases
def test_prompts_and_ids_are_the_recorded_ones(golden: Golden, case: str) -> None:
    facts, context = golden.facts["cases"][case], FocusContext.of(multimodal(golden))
    prompts = prompts_of(golden, case)
    assert len(prompts) == len(facts["full_prompts"]) == len(golden.tensors[f"{case}.input_ids"])
    for row, prompt in enumerate(prompts):
        parts = [part for half in parts_of(golden, prompt) for part in half]
        assert render_prompt(parts) == facts["full_prompts"][row]
        segments = context.segments(parts)
        ids = [i for s in segments for i in (s.ids if s.kind == TEXT else [IMAGE_ID])]
        attended = golden.tensors[f"{case}.input_attention_mask"][row].bool()
        assert ids == golden.tensors[f"{case}.input_ids"][row][attended].tolist()
    if "resolution" in facts:
        tokens = num_image_tokens(*facts["resolution"])
        known = {
            "max_new_tokens": tokens.max_new_tokens,
            "token_grid": list(tokens.grid),
            "tag": resolution_text(*facts["resolution"]),
        }
        assert {name: facts.get(name, value) for name, value in known.items()} == known


@cases
@torch.no_grad()
def test_prompts_are_assembled_as_recorded(golden: Golden, case: str) -> None:
    context, table = FocusContext.of(multimodal(golden)), multimodal(golden).language_model.get_input_embeddings()
    for row, prompt in enumerate(prompts_of(golden, case)):
        prefix, suffix = parts_of(golden, prompt)
        pieces, layout = [], []
        for segment in [*context.segments(prefix), *context.segments(suffix)]:
            if segment.kind == IMAGE:
                name = prompt.images[segment.index or 0]
                pieces.append(block_of(golden, name))
                layout.append(golden.tensors[f"{name}.layout"].long())
            else:
                ids = torch.tensor(segment.ids)
                pieces.append(table(ids))
                layout.append(ids)
        attended = golden.tensors[f"{case}.attention_mask"][row].bool()
        embeds = golden.tensors[f"{case}.inputs_embeds"][row][attended]
        torch.testing.assert_close(torch.cat(pieces), embeds, **VISION)
        assert torch.equal(torch.cat(layout), golden.tensors[f"{case}.layout"][row][attended].long())


# States and logits


def check_logits(golden: Golden, case: str, logits: torch.Tensor, rows: slice = slice(None)) -> None:
    """Compare logits that end where the recorded ones do, as far as both reach back."""
    name = f"{case}.logits" if f"{case}.logits" in golden.tensors else f"{case}.logits_last16"
    expected = golden.tensors[name][rows]
    length = min(logits.shape[1], expected.shape[1])
    torch.testing.assert_close(logits[:, -length:], expected[:, -length:], **LANGUAGE)


@states
@torch.no_grad()
def test_recorded_inputs_give_the_recorded_states(golden: Golden, case: str) -> None:
    source = golden.other(golden.facts["inputs"])
    model, mask = multimodal(source).language_model, source.tensors[f"{case}.attention_mask"].long()
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)
    if f"{case}.position_ids" in golden.tensors:
        assert torch.equal(positions, golden.tensors[f"{case}.position_ids"].long())
    embeds = source.tensors[f"{case}.inputs_embeds"]
    hidden = model.model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).last_hidden_state
    expected = golden.tensors[f"{case}.last_hidden_state"]
    torch.testing.assert_close(hidden * mask[..., None], expected * mask[..., None], **LANGUAGE)
    logits = model.lm_head(hidden)
    for row, count in enumerate(mask.sum(1).tolist()):
        check_logits(golden, case, logits[row : row + 1, -count:], slice(row, row + 1))


@states
@torch.no_grad()
def test_cached_prefixes_and_suffixes_give_the_recorded_states(golden: Golden, case: str) -> None:
    source = golden.other(golden.facts["inputs"])
    model, prompts = multimodal(source), prompts_of(source, case)
    context = FocusContext.of(model)
    rows = [[row] for row in range(len(prompts))]
    if not any(prompt.images for prompt in prompts):
        rows = [list(range(len(prompts)))]  # they share a prefix and stand side by side, padded
    for group in rows:
        first = prompts[group[0]]
        images = [encode_tensors(model, source.tensors[f"image.{name}.pixel_values"]) for name in first.images]
        encoding = images[0] if images else None
        if len(images) > 1:
            encoding = FocusMixedEncoding(tuple(images), (len(images),))
        batch = batch_rows(model, [suffix_row(context, parts_of(source, prompts[row])[1]) for row in group])
        start, _, _ = embed_prefix(model, context, encoding, task=first.task)
        prefix = encode_prefix(model, context, encoding, task=first.task)
        hidden, cache, mask = run_suffixes(model, prefix, torch.zeros(len(group), dtype=torch.long), batch)
        assert cache.get_seq_length() == mask.shape[1] == prefix.length + batch.mask.shape[1]
        for number, row in enumerate(group):
            attended = source.tensors[f"{case}.attention_mask"][row].bool()
            count = int(batch.mask[number].sum())
            assert prefix.length + count == int(attended.sum())
            embeds = torch.cat([start[0], batch.embeds[number, -count:]])
            torch.testing.assert_close(embeds, source.tensors[f"{case}.inputs_embeds"][row][attended], **VISION)
            expected = golden.tensors[f"{case}.last_hidden_state"][row, -count:]
            torch.testing.assert_close(hidden[number, -count:], expected, **LANGUAGE)
            logits = model.language_model.lm_head(hidden[number : number + 1, -count:])
            check_logits(golden, case, logits, slice(row, row + 1))
