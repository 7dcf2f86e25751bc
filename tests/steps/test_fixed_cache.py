"""The cache with room: the same states as one that grows, shapes that stay, and a step that compiles once."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.utils import counters

from diffusers_focus.processing.grammar import TokenSampling, VisualTokenGrammar
from diffusers_focus.processing.prompts import GENERATE, GENERATE_RANDOM
from diffusers_focus.steps.sequence import (
    FocusContext,
    PrefixCache,
    batch_rows,
    counted_positions,
    encode_prefix,
    extend,
    feed,
    run_suffixes,
    suffix_row,
)
from diffusers_focus.steps.visual_tokens import write_codes

from tests.tiny import SIZE, WIDTH, seeded, shared_pipeline

RUNS = (2, 1, 1, 5, 1)


@pytest.fixture(scope="module")
def here():
    pipe = shared_pipeline()
    context = FocusContext.of(pipe)

    def row(task, text=None):
        return suffix_row(context, context.style.suffix(task, text=text, num_images=0, height_width=(SIZE, SIZE)))

    rows = [row(GENERATE, "the red circle"), row(GENERATE, "a blue star and the red circle")]
    with torch.no_grad():
        prefix = encode_prefix(pipe, context, None, task=GENERATE)
        # A second prompt with a shorter prefix, so that there is padding in it as well.
        mask = prefix.mask.repeat(2, 1)
        mask[1, :4] = False
        prefix = PrefixCache([(k.repeat(2, 1, 1, 1), v.repeat(2, 1, 1, 1)) for k, v in prefix.layers], mask)
    return SimpleNamespace(pipe=pipe, context=context, rows=rows, without=row(GENERATE_RANDOM), prefix=prefix)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_states_are_those_of_a_cache_that_grows(here, attention):
    """Rows of different length, prompts in another order, runs of several tokens, and rows with nothing to say."""
    pipe = SimpleNamespace(**here.pipe.components)
    pipe.language_model = copy.deepcopy(pipe.language_model)
    pipe.language_model.set_attn_implementation(attention)
    batch, prompts = batch_rows(pipe, [*here.rows, here.without]), torch.tensor([1, 0, 1])
    embeds = torch.randn(3, sum(RUNS), WIDTH, generator=seeded())
    new = torch.rand(3, sum(RUNS), generator=seeded(1)) > 0.4
    grown, growing, mask = run_suffixes(pipe, here.prefix, prompts, batch)
    states, cache, same = run_suffixes(pipe, here.prefix, prompts, batch, room=sum(RUNS))
    torch.testing.assert_close(states[batch.mask], grown[batch.mask])
    assert torch.equal(same, mask)
    shapes, first = [layer.keys.shape for layer in cache.layers], 0
    places = counted_positions(torch.cat([mask, new], dim=1), sum(RUNS))
    for length in RUNS:
        run = slice(first, first + length)
        expected, mask = extend(pipe, embeds[:, run], growing, mask, new[:, run])
        states = feed(pipe, embeds[:, run], cache, new[:, run], places[:, run])
        torch.testing.assert_close(states[new[:, run]], expected[new[:, run]])
        first += length
    assert [layer.keys.shape for layer in cache.layers] == shapes  # and full:
    assert torch.equal(cache.mask, mask)
    with pytest.raises(ValueError, match="more room"):
        cache.take(1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_states_are_the_same_where_nothing_is_padded(here, attention):
    """Then a single token sees all there is, and no mask is made."""
    pipe = SimpleNamespace(**here.pipe.components)
    pipe.language_model = copy.deepcopy(pipe.language_model)
    pipe.language_model.set_attn_implementation(attention)
    batch, prompts = batch_rows(pipe, [here.rows[0]] * 2), torch.tensor([0, 0])
    embeds = torch.randn(2, sum(RUNS), WIDTH, generator=seeded())
    _, growing, mask = run_suffixes(pipe, here.prefix, prompts, batch)
    _, cache, _ = run_suffixes(pipe, here.prefix, prompts, batch, room=sum(RUNS))
    assert cache.unpadded
    places, first = counted_positions(torch.cat([mask, torch.ones(2, sum(RUNS))], dim=1), sum(RUNS)), 0
    for length in RUNS:
        run = slice(first, first + length)
        expected, mask = extend(pipe, embeds[:, run], growing, mask)
        torch.testing.assert_close(feed(pipe, embeds[:, run], cache, None, places[:, run]), expected)
        first += length


@torch.no_grad()
def test_a_prefix_is_left_as_it_was(here):
    before = [tensor.clone() for layer in here.prefix.layers for tensor in layer]
    batch = batch_rows(here.pipe, here.rows)
    run_suffixes(here.pipe, here.prefix, torch.tensor([0, 1]), batch, room=3)
    assert all(torch.equal(a, b) for a, b in zip(before, [t for layer in here.prefix.layers for t in layer]))


@pytest.mark.slow
@pytest.mark.timeout(180)  # torch's compiler alone takes seconds to import
@torch.no_grad()
def test_a_compiled_model_compiles_a_token_and_the_end_of_a_row_and_nothing_else(here):
    """Without a graph break; tokens, prompts of other lengths and larger images make nothing anew."""
    pipe = SimpleNamespace(**here.pipe.components)
    pipe.language_model = copy.deepcopy(pipe.language_model)
    pipe.language_model.config.num_hidden_layers = 1  # a graph takes seconds a layer
    sampling = TokenSampling(top_k=9)

    def write(text, *grids):
        grammar = VisualTokenGrammar(here.context.vocabulary, *grids)
        parts = here.context.style.suffix(GENERATE, text=text, num_images=0, height_width=(SIZE, SIZE))
        prefix = encode_prefix(pipe, here.context, None, task=GENERATE)
        return write_codes(
            pipe, prefix, [suffix_row(here.context, parts)], [0], grammar, unconditional=[here.without],
            guidance_scale=2.0, semantic=sampling, pixel=sampling, generator=seeded(3),
        )  # fmt: skip

    cases = [
        ("the red circle", (2, 3), (3, 4)),
        ("a blue star and the red circle", (2, 3), (3, 4)),
        ("a star", (3, 3), (4, 6)),
    ]
    plain = [write(*case) for case in cases]
    torch.compiler.reset()
    counters.clear()
    try:
        pipe.language_model.model.compile(fullgraph=True, dynamic=True, backend="eager")
        for case, expected in zip(cases, plain):
            assert torch.equal(write(*case), expected)
            assert counters["stats"]["unique_graphs"] == 2
        seen = []  # whoever watches the model sees it run
        pipe.language_model.model.register_forward_pre_hook(lambda *_: seen.append(1))
        assert torch.equal(write(*cases[0]), plain[0])
        assert len(seen) > sum(rows * columns for rows, columns in cases[0][1:])
    finally:
        torch.compiler.reset()
