"""Goldens of the families generation and generation_e2e: which ids may follow which, guidance, filters, greedy images."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
import torch

from diffusers_focus.processing import grids
from diffusers_focus.processing import vocabulary as V
from diffusers_focus.processing.grammar import (
    InterleavedLogitsProcessor,
    TokenSampling,
    VisualTokenGrammar,
    filter_logits,
    guide_logits,
    process_logits,
    unconditional_ids,
)
from diffusers_focus.processing.prompts import EDIT, UNCONDITIONAL
from diffusers_focus.processing.vocabulary import MARKERS, FocusVocabulary
from diffusers_focus.steps.editing import generation_codes
from diffusers_focus.steps.encode import FocusImageEncoding, encode_tensors
from diffusers_focus.steps.sampling import GREEDY
from diffusers_focus.steps.sequence import (
    FocusContext,
    PromptRow,
    batch_rows,
    encode_prefix,
    extend,
    run_suffixes,
    suffix_row,
)
from diffusers_focus.steps.visual_tokens import write_codes

from tests.checkpoints.goldens import Golden, Prompt, multimodal, prompts_of, size_of

SCORES = {"atol": 1e-5, "rtol": 0}
MODEL_SCORES = {"atol": 5e-5, "rtol": 0}  # with a model and its cache behind them
FIELDS = ("cond_logits", "uncond_logits", "processed", "grammar_allowed", "allowed", "tokens")


def _is_interleaved(facts: dict[str, Any]) -> bool:
    return facts["chain"] == InterleavedLogitsProcessor.__name__


interleaved = pytest.mark.golden(
    "generation", lambda golden: [name for name, facts in golden.facts["cases"].items() if _is_interleaved(facts)]
)
older_chain = pytest.mark.golden(
    "generation", lambda golden: [name for name, facts in golden.facts["cases"].items() if not _is_interleaved(facts)]
)
extras = pytest.mark.golden("generation")
written_images = pytest.mark.golden("generation_e2e", lambda golden: golden.facts["cases"])


@cache
def grammar_of(golden: Golden) -> VisualTokenGrammar:
    vocab, grid = golden.facts["vocab"], golden.facts["grid"]
    vocabulary = FocusVocabulary(
        *[vocab[token] for token in MARKERS],
        height_tags=range(*vocab["height_ids"]),
        width_tags=range(*vocab["width_ids"]),
        level0_range=vocab["level0_range"],
        level1_range=vocab["level1_range"],
        end_of_text=vocab["end_of_text"],
        pad=vocab["endoftext"],
        embedding_rows=vocab["size"],
    )
    return VisualTokenGrammar(
        vocabulary, (grid["level0_rows"], grid["level0_cols"]), (grid["level1_rows"], grid["level1_cols"])
    )


def sampling_of(facts: dict[str, Any]) -> dict[str, TokenSampling]:
    """The recorded filters by kind of token."""
    values = facts["sampling"]
    names = {"text": "default", "semantic": "level0", "pixel": "level1"}
    return {
        kind: TokenSampling(values[f"{name}_temp"], values[f"{name}_top_k"], values[f"{name}_top_p"])
        for kind, name in names.items()
    }


def fields_of(golden: Golden, case: str) -> dict[str, torch.Tensor]:
    return {field: golden.tensors[f"{case}.{field}"] for field in FIELDS}


# Logits given


@extras
def test_a_block_is_as_long_as_recorded(golden: Golden) -> None:
    assert len(grammar_of(golden)) == golden.facts["block_len_after_soi"] + 1


@interleaved
def test_every_step_is_the_recorded_one(golden: Golden, case: str) -> None:
    grammar, facts, recorded = grammar_of(golden), golden.facts["cases"][case], fields_of(golden, case)
    batch, steps, _ = recorded["cond_logits"].shape
    written = torch.tensor([facts["prefix_ids"] or []] * batch, dtype=torch.long)
    state = grammar.positions(written)
    for step in range(steps):
        logits = recorded["cond_logits"][:, step], recorded["uncond_logits"][:, step]
        position = grammar.positions(written)
        assert torch.equal(position, state)
        plain = process_logits(*logits, position, grammar, guidance_scale=facts["guidance"])
        assert torch.equal(plain.isfinite(), recorded["grammar_allowed"][:, step].bool()), step
        scores = process_logits(*logits, position, grammar, guidance_scale=facts["guidance"], **sampling_of(facts))
        assert torch.equal(scores.isfinite(), recorded["allowed"][:, step].bool()), step
        torch.testing.assert_close(scores, recorded["processed"][:, step], **SCORES)
        ids = recorded["tokens"][:, step].long()
        assert torch.equal(scores.argmax(-1), ids)
        state = grammar.advance(state, ids)
        written = torch.cat([written, ids[:, None]], dim=1)


@interleaved
def test_the_processor_and_its_unconditional_calls_are_the_recorded_ones(golden: Golden, case: str) -> None:
    grammar, facts, recorded = grammar_of(golden), golden.facts["cases"][case], fields_of(golden, case)
    batch, steps, _ = recorded["cond_logits"].shape
    start = grammar.vocabulary.start_of_image
    prompt = torch.tensor([facts["uncond_ids"]] * batch)
    calls: list[dict[str, Any]] = []

    def unconditional(written: torch.Tensor) -> torch.Tensor:
        begins = written.shape[1] == 0 or bool((written[:, -1] == start).all())
        ids = unconditional_ids(prompt, written, start) if begins else written[:, -1:]
        calls.append({"step": written.shape[1], "input_ids": ids.tolist(), "with_cache": not begins})
        return recorded["uncond_logits"][:, written.shape[1]]

    before = torch.tensor([facts["prefix_ids"]] * batch) if facts["prefix_ids"] else None
    processor = InterleavedLogitsProcessor(grammar, facts["guidance"], unconditional, before, **sampling_of(facts))
    written = torch.zeros(batch, 0, dtype=torch.long)
    for step in range(steps):
        scores = processor(written, recorded["cond_logits"][:, step])
        torch.testing.assert_close(scores, recorded["processed"][:, step], **SCORES)
        written = torch.cat([written, scores.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(written, recorded["tokens"].long())
    assert calls == facts["uncond_model_calls"]


@older_chain
def test_the_older_chain_writes_the_recorded_block(golden: Golden, case: str) -> None:
    """It only writes images: guidance at every step, raw logits without, and the end of the text after the block."""
    grammar, facts, recorded = grammar_of(golden), golden.facts["cases"][case], fields_of(golden, case)
    sampling = list(sampling_of(facts).values())
    vocabulary = grammar.vocabulary
    for step in range(recorded["cond_logits"].shape[1]):
        scores, uncond = recorded["cond_logits"][:, step], recorded["uncond_logits"][:, step]
        if facts["guidance"] != 1.0:
            scores = guide_logits(scores, uncond, facts["guidance"])
        chosen = sampling[0]
        if step < len(grammar):
            scores, chosen = grammar.constrain(scores, step), sampling[grammar.modes[step]]
        else:
            others = torch.arange(scores.shape[-1]) != vocabulary.end_of_text
            scores = scores.masked_fill(others, float("-inf"))
        assert torch.equal(scores.isfinite(), recorded["grammar_allowed"][:, step].bool()), step
        scores = filter_logits(scores, chosen.temperature, chosen.top_k, chosen.top_p)
        assert torch.equal(scores.isfinite(), recorded["allowed"][:, step].bool()), step
        torch.testing.assert_close(scores, recorded["processed"][:, step], **SCORES)
        assert torch.equal(scores.argmax(-1), recorded["tokens"][:, step].long())
    read = [[facts["uncond_ids"]] * facts["batch"], *recorded["tokens"].T[:-1, :, None].tolist()]
    calls = [{"step": step, "input_ids": ids, "with_cache": step > 0} for step, ids in enumerate(read)]
    assert facts["uncond_model_calls"] == (calls if facts["guidance"] != 1.0 else [])


# Functions of the original around images


@extras
def test_token_counts_are_the_recorded_ones(golden: Golden) -> None:
    for name, expected in golden.facts["calculate_image_token_num"].items():
        tokens = grids.num_image_tokens(*size_of(name))
        assert tokens._asdict() | {"grid": list(tokens.grid)} == expected, name


@extras
def test_the_table_of_sizes_is_the_recorded_one(golden: Golden) -> None:
    table = {size_of(name): tuple(size) for name, size in golden.facts["RESOLUTION_MAPPING_hw"].items()}
    assert grids.RESOLUTION_MAPPING == table
    assert set(grids.ORIGINAL_BUCKETS) == set(table)


@extras
def test_the_full_size_layout_is_the_recorded_one(golden: Golden) -> None:
    expected = golden.facts["upstream_special_tokens"]
    level0, level1 = expected["level0_range"], expected["level1_range"]
    codes = level0[1] - level0[0], level1[1] - level1[0]
    tokens = V.visual_tokens(*codes)
    ids = {token: expected["start_of_image"] + i for i, token in enumerate(tokens)}
    assert all(ids[f"<{name}>"] == value for name, value in expected.items() if f"<{name}>" in ids)
    assert [ids["<|image_level0_0|>"], ids["<|image_level1_0|>"]] == [level0[0], level1[0]]
    assert len(tokens) == V.num_visual_tokens(*codes) == level1[1] - expected["start_of_image"]


@cache
def tokenizer_for(golden: Golden) -> Any:
    """A tokenizer with as many codes as the golden's vocabulary, for the original's functions on text."""
    vocab = golden.facts["vocab"]
    tokenizer = V.build_tiny_tokenizer(["before mid after"], 300)
    V.extend_tokenizer(
        tokenizer, *(vocab[f"level{level}_range"][1] - vocab[f"level{level}_range"][0] for level in (0, 1))
    )
    return tokenizer, FocusVocabulary.from_tokenizer(tokenizer, embedding_rows=len(tokenizer))


@extras
def test_the_text_of_an_image_is_the_recorded_one(golden: Golden) -> None:
    recorded = golden.facts["encode_image_token_into_code"]
    tokenizer, vocabulary = tokenizer_for(golden)
    assert vocabulary.image_text(recorded["semantic"], recorded["pixel"]) == recorded["string"]
    ids = vocabulary.image_ids(torch.tensor(recorded["semantic"]), torch.tensor(recorded["pixel"]), with_tag=False)
    assert ids.tolist() == tokenizer(recorded["string"]).input_ids


@extras
def test_text_and_images_are_told_apart_as_recorded(golden: Golden) -> None:
    recorded = golden.facts["parse_interleaved_text_image"]
    tokenizer, vocabulary = tokenizer_for(golden)
    text, codes = "", []
    for part in vocabulary.split_images(tokenizer(recorded["input"]).input_ids):
        text += tokenizer.decode(part) if isinstance(part, list) else "<image>"
        codes += [] if isinstance(part, list) else [part]
    assert text == recorded["text"]
    assert [[part.semantic.flatten().tolist(), part.pixel.flatten().tolist()] for part in codes] == recorded["indices"]
    assert [vocabulary.image_text(part.semantic, part.pixel) for part in codes] == recorded["parts"]


@extras
def test_what_the_original_repairs_is_refused(golden: Golden) -> None:
    """The original repeats or drops codes until their number is right; here the grammar never lets it be wrong."""
    recorded = golden.facts["check_image_token_num"]
    _, vocabulary = tokenizer_for(golden)
    for codes, count, repaired in zip(recorded["inputs"], recorded["expected"], recorded["output"]):
        fitting = (codes + codes[-1:] * max(0, count - len(codes)))[:count]
        assert fitting == repaired  # what it does
        whole = vocabulary.image_ids(torch.zeros(2, count), torch.zeros(2, count), with_tag=False).tolist()
        assert vocabulary.parse_image_ids(whole).semantic.shape == (2, count)
        with pytest.raises(ValueError, match="unequal length"):
            vocabulary.parse_image_ids(whole[:2] + whole[3:])


# With the model: greedy images under any grids


def prompt_rows(source: Golden, prompts: list[Prompt]) -> list[PromptRow]:
    context = FocusContext.of(multimodal(source))
    return [
        suffix_row(
            context,
            context.style.suffix(p.task, text=p.text, num_images=len(p.images), height_width=p.size),
        )
        for p in prompts
    ]


def start_of(golden: Golden, case: str) -> tuple[Golden, Any, FocusImageEncoding | None, list[Prompt], list[Prompt]]:
    """Source of a case, its components, its images and its conditional and unconditional prompts."""
    source = golden.other(golden.facts["inputs"])
    name = re.sub(r"\.g[^.]*$", "", case)
    model, prompts = multimodal(source), prompts_of(source, name)
    images = [source.tensors[f"image.{image}.pixel_values"] for prompt in prompts for image in prompt.images]
    encoding = encode_tensors(model, torch.cat(images)) if images else None
    without = prompts_of(source, f"{name}_uncond")
    return source, model, encoding, prompts, (without * len(prompts))[: len(prompts)]


def grammar_for(golden: Golden, case: str, model: Any) -> VisualTokenGrammar:
    setup = golden.facts["cases"][case]
    rows, columns, pixel_rows, pixel_columns = setup["grid"] if "grid" in setup else golden.facts["grid"]
    return VisualTokenGrammar(FocusContext.of(model).vocabulary, (rows, columns), (pixel_rows, pixel_columns))


@written_images
@torch.no_grad()
def test_greedy_images_are_the_recorded_ones(golden: Golden, case: str) -> None:
    source, model, encoding, prompts, without = start_of(golden, case)
    grammar, guidance = grammar_for(golden, case, model), golden.facts["cases"][case]["guidance"]
    expected = golden.tensors[f"{case}.sequences"][:, : grammar.length].long()
    if encoding is None:
        texts = [prompt.text or "" for prompt in prompts]
        options = {"guidance_scale": guidance, "semantic": GREEDY, "pixel": GREEDY}
        sizes = grammar.semantic_grid, grammar.pixel_grid
        codes = generation_codes(model, texts, prompts[0].size, grids=sizes, **options)
        for ours, recorded in zip(codes, grammar.image_codes(expected)):
            assert torch.equal(ours, recorded)
        return
    assert (prompts[0].task, without[0].task) == (EDIT, UNCONDITIONAL[EDIT])
    prefix = encode_prefix(model, FocusContext.of(model), encoding, task=EDIT)
    ids = write_codes(
        model,
        prefix,
        prompt_rows(source, prompts),
        list(range(len(prompts))),
        grammar,
        unconditional=prompt_rows(source, without),
        guidance_scale=guidance,
        semantic=GREEDY,
        pixel=GREEDY,
    )
    assert torch.equal(ids, expected)


@written_images
@torch.no_grad()
def test_images_and_the_text_after_them_are_the_recorded_ones(golden: Golden, case: str) -> None:
    """Every id of the recording, with the processor that `generate` takes: the model decides where text goes on."""
    source, model, encoding, prompts, without = start_of(golden, case)
    context, grammar = FocusContext.of(model), grammar_for(golden, case, model)
    recorded = {name.removeprefix(f"{case}."): t for name, t in golden.tensors.items() if name.startswith(f"{case}.")}
    guidance, count = golden.facts["cases"][case]["guidance"], len(prompts)
    prefix = encode_prefix(model, context, encoding, task=prompts[0].task)
    batch = batch_rows(model, prompt_rows(source, [*prompts, *without]))
    own = list(range(count)) if encoding is not None else [0] * count
    hidden, cache, mask = run_suffixes(model, prefix, torch.tensor(own * 2), batch)
    table, head = model.language_model.get_input_embeddings(), model.language_model.lm_head
    ended = torch.zeros(count, dtype=torch.bool)
    state: dict[str, Any] = {}

    def unconditional(written: torch.Tensor) -> torch.Tensor:
        state["used"] = True
        return state["logits"]

    processor = InterleavedLogitsProcessor(grammar, guidance, unconditional)
    written = torch.zeros(count, 0, dtype=torch.long)
    for step in range(recorded["sequences"].shape[1]):
        logits = head(hidden[:, -1])
        cond, state["logits"], state["used"] = logits[:count].clone(), logits[count:], False
        if step == 0:  # as recorded: the first id is forced
            cond[:, context.vocabulary.start_of_image] = cond.amax(-1) + 5
        scores = processor(written, cond)
        if not ended[0]:
            torch.testing.assert_close(cond[:1], recorded["cond_logits"][:, step], **MODEL_SCORES)
            expected = recorded["processed"][:, step]
            assert torch.equal(scores[:1].isfinite(), expected.isfinite()), step
            torch.testing.assert_close(scores[:1], expected, **MODEL_SCORES)
            if "uncond_used" in recorded:
                assert bool(recorded["uncond_used"][0, step]) is state["used"], step
                if state["used"]:
                    torch.testing.assert_close(state["logits"][:1], recorded["uncond_logits"][:, step], **MODEL_SCORES)
        pad = model.language_model.config.pad_token_id
        ids = torch.where(ended, 0 if pad is None else pad, scores.argmax(-1))
        ended |= ids == golden.facts["eos_token_id"]
        written = torch.cat([written, ids[:, None]], dim=1)
        hidden, mask = extend(model, table(ids.repeat(2))[:, None], cache, mask)
    assert torch.equal(written, recorded["sequences"].long())
