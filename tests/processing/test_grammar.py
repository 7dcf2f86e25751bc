"""The grammar of images, guidance and filters, against the recorded decoding of the original."""

import json

import pytest
import torch
from safetensors.torch import load_file

from diffusers_focus.processing.grammar import (
    InterleavedLogitsProcessor,
    TokenSampling,
    VisualTokenGrammar,
    filter_logits,
    guide_logits,
    process_logits,
)
from diffusers_focus.processing.vocabulary import MARKERS, FocusVocabulary

INTERLEAVED = ["g1", "g2", "filtered", "first_soi", "self_tagged", "other_tag", "prefilled_soi", "batch2"]
FIELDS = ("cond_logits", "uncond_logits", "processed", "grammar_allowed", "allowed", "tokens")


@pytest.fixture(scope="module")
def recorded(goldens):
    return json.loads((goldens / "generation_a.json").read_text()), load_file(goldens / "generation_a.safetensors")


@pytest.fixture(scope="module")
def grammar(recorded):
    vocab, grid = recorded[0]["vocab"], recorded[0]["grid"]
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


def _sampling(case):
    names = {"text": "default", "semantic": "level0", "pixel": "level1"}
    values = case["sampling"]
    return {
        name: TokenSampling(values[f"{key}_temp"], values[f"{key}_top_k"], values[f"{key}_top_p"])
        for name, key in names.items()
    }


@pytest.mark.parametrize("name", INTERLEAVED)
def test_every_step_is_the_originals(recorded, grammar, name):
    case, tensors = recorded[0]["cases"][name], {field: recorded[1][f"{name}.{field}"] for field in FIELDS}
    batch, steps, _ = tensors["cond_logits"].shape
    written = torch.tensor([case["prefix_ids"] or []] * batch, dtype=torch.long)
    state = grammar.positions(written)
    for step in range(steps):
        cond, uncond = tensors["cond_logits"][:, step], tensors["uncond_logits"][:, step]
        position = grammar.positions(written)
        assert torch.equal(position, state)
        plain = process_logits(cond, uncond, position, grammar, guidance_scale=case["guidance"])
        assert torch.equal(plain.isfinite(), tensors["grammar_allowed"][:, step].bool()), step
        scores = process_logits(cond, uncond, position, grammar, guidance_scale=case["guidance"], **_sampling(case))
        assert torch.equal(scores.isfinite(), tensors["allowed"][:, step].bool()), step
        torch.testing.assert_close(scores, tensors["processed"][:, step], atol=1e-5, rtol=0)
        ids = tensors["tokens"][:, step].long()
        assert torch.equal(scores.argmax(-1), ids)
        state = grammar.advance(state, ids)
        written = torch.cat([written, ids[:, None]], dim=1)


@pytest.mark.parametrize("name", ["legacy_chain", "legacy_chain_g1"])
def test_the_older_chain_allows_the_same_ids(recorded, grammar, name):
    case, tensors = recorded[0]["cases"][name], {field: recorded[1][f"{name}.{field}"] for field in FIELDS}
    sampling = list(_sampling(case).values())
    for position in range(len(grammar)):
        cond, uncond = tensors["cond_logits"][:, position], tensors["uncond_logits"][:, position]
        assert torch.equal(grammar.allowed_mask(position), tensors["grammar_allowed"][0, position].bool())
        guided = cond if case["guidance"] == 1.0 else guide_logits(cond, uncond, case["guidance"])
        chosen = sampling[grammar.kinds[position]]
        scores = filter_logits(grammar.constrain(guided, position), chosen.temperature, chosen.top_k, chosen.top_p)
        assert torch.equal(scores.isfinite(), tensors["allowed"][:, position].bool())
        assert scores.argmax(-1) == tensors["tokens"][0, position]


def test_the_processor_gives_what_the_function_gives(recorded, grammar):
    case, tensors = recorded[0]["cases"]["prefilled_soi"], recorded[1]
    calls = []

    def unconditional(input_ids):
        calls.append(input_ids.shape[1])
        return tensors["prefilled_soi.uncond_logits"][:, input_ids.shape[1]]

    processor = InterleavedLogitsProcessor(
        grammar, case["guidance"], unconditional, prompt_ids=torch.tensor([case["prefix_ids"]])
    )
    written = torch.zeros(1, 0, dtype=torch.long)
    for step in range(case["steps"]):
        scores = processor(written, tensors["prefilled_soi.cond_logits"][:, step])
        torch.testing.assert_close(scores, tensors["prefilled_soi.processed"][:, step], atol=1e-5, rtol=0)
        written = torch.cat([written, scores.argmax(-1, keepdim=True)], dim=1)
    assert calls == [call["step"] for call in case["uncond_model_calls"]]  # and not once the image is complete


def test_items_of_a_batch_follow_their_own_images(grammar):
    start = grammar.vocabulary.start_of_image
    written = torch.tensor([[1, 2, 3], [1, start, 27], [1, 2, start]])
    position = grammar.positions(written)
    assert position.tolist() == [-1, 2, 1]
    scores = process_logits(torch.zeros(3, 131), None, position, grammar)
    assert scores[0].isfinite()[start] and not scores[0].isfinite()[63:127].any()
    assert scores[1].isfinite().nonzero().flatten().tolist() == list(range(63, 79))
    assert scores[2].isfinite().nonzero().flatten().tolist() == [grammar.vocabulary.start_of_level0]


def test_a_block_and_its_codes(grammar):
    vocabulary = grammar.vocabulary
    semantic, pixel = torch.randint(16, (2, 2, 3)), torch.randint(48, (2, 4, 5))
    ids = vocabulary.image_ids(semantic, pixel, with_tag=False)
    assert ids.shape[1] == len(grammar) == len(grammar.sequence_template())
    forced = grammar.forced_ids >= 0
    assert torch.equal(ids[0][forced], grammar.forced_ids[forced])
    back = grammar.image_codes(ids)
    assert torch.equal(back[0], semantic) and torch.equal(back[1], pixel)
    allowed = grammar.allowed_mask(torch.arange(len(grammar)))
    assert allowed.gather(1, ids[:1].T).all()
    assert [kind for kind, *_ in grammar.sequence_template()[:4]] == ["forced", "forced", "semantic", "semantic"]


def test_filters_per_row_agree_with_filters_for_all():
    logits = torch.randn(3, 50)
    settings = [(0.7, 5, 1.0), (1.3, 0, 0.6), (1.0, 12, 0.8)]
    columns = [torch.tensor(values) for values in zip(*settings, strict=True)]
    together = filter_logits(logits, *columns)
    apart = torch.cat([filter_logits(row[None], *values) for row, values in zip(logits, settings, strict=True)])
    torch.testing.assert_close(together, apart)
    assert together[0].isfinite().sum() == 5
    kept = (logits[1] / 1.3).softmax(-1)[together[1].isfinite()].sort().values
    assert kept.sum() >= 0.6 > kept[1:].sum()


def test_guiding_a_slice_gives_the_same_distribution():
    cond, uncond = torch.randn(2, 40), torch.randn(2, 40)
    whole = guide_logits(cond, uncond, 3.0)[:, 10:20].softmax(-1)
    torch.testing.assert_close(guide_logits(cond[:, 10:20], uncond[:, 10:20], 3.0).softmax(-1), whole)


def test_impossible_settings_are_refused(grammar):
    with pytest.raises(ValueError, match="top_k=1"):
        TokenSampling(temperature=0.0)
    with pytest.raises(ValueError, match="top_p"):
        TokenSampling(top_p=0.0)
    with pytest.raises(ValueError, match="unconditional"):
        InterleavedLogitsProcessor(grammar, guidance_scale=2.0)
    with pytest.raises(ValueError, match="at least one row"):
        VisualTokenGrammar(grammar.vocabulary, (0, 3), (4, 5))
