"""Drawing ids and writing image blocks: prefilled runs, the cache, guidance, independence of the rows."""

from __future__ import annotations

import pytest
import torch
from transformers.cache_utils import DynamicCache

from diffusers_focus.processing.grammar import TokenSampling, VisualTokenGrammar, guide_logits
from diffusers_focus.processing.prompts import GENERATE, GENERATE_RANDOM
from diffusers_focus.steps.sampling import GREEDY, draw_ids, nearest_to_mean, uniform_numbers
from diffusers_focus.steps.sequence import FocusContext, embed_prefix, encode_prefix, suffix_row
from diffusers_focus.steps.visual_tokens import block_template, head_rows, write_codes

from tests.tiny import SIZE, seeded, shared_pipeline

PROMPTS = ("the red circle", "a blue star and the red circle")
GRIDS = ((2, 3), (3, 4))


@pytest.fixture(scope="module")
def parts():
    pipe = shared_pipeline()
    context = FocusContext.of(pipe)

    def row(task, text=None):
        parts = context.style.suffix(task, text=text, num_images=0, height_width=(SIZE, SIZE))
        return suffix_row(context, parts)

    return pipe, context, [row(GENERATE, text) for text in PROMPTS], row(GENERATE_RANDOM)


@torch.no_grad()
def write(parts, rows, **options):
    pipe, context, _, without = parts
    prefix = encode_prefix(pipe, context, None, task=GENERATE)
    grammar = options.pop("grammar", None) or VisualTokenGrammar(context.vocabulary, *GRIDS)
    return grammar, write_codes(
        pipe, prefix, rows, [0] * len(rows), grammar, unconditional=[without] * len(rows), **options
    )


@torch.no_grad()
def whole_logits(parts, row, ids):
    """Logits [L, V] for every position of a written block [L], from one forward without any cache."""
    pipe, context, _, _ = parts
    table = pipe.language_model.get_input_embeddings()
    prefix, _, _ = embed_prefix(pipe, context, None, task=GENERATE)
    embeds = torch.cat([prefix[0], table(torch.tensor(row.ids)), table(ids)])[None]
    logits = pipe.language_model(inputs_embeds=embeds, past_key_values=DynamicCache()).logits[0]
    return logits[-len(ids) - 1 : -1]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_greedy_blocks_are_the_likeliest_at_every_position(parts, guidance):
    """Left padding, caches and the shared batch of both branches change nothing."""
    grammar, ids = write(parts, parts[2], guidance_scale=guidance, semantic=GREEDY, pixel=GREEDY)
    for row, block in zip(parts[2], ids):
        logits = guide_logits(whole_logits(parts, row, block), whole_logits(parts, parts[3], block), guidance)
        allowed = grammar.constrain(logits, torch.arange(grammar.length))
        assert block.tolist() == allowed.argmax(-1).tolist()


def test_each_row_may_have_a_guidance_of_its_own(parts):
    """The power of the least expected error is divided by it."""
    options = {"semantic": GREEDY, "pixel": GREEDY, "sharpness": 1.4}
    _, both = write(parts, parts[2], guidance_scale=[1.0, 2.0], **options)
    _, plain = write(parts, parts[2], **options)
    _, guided = write(parts, parts[2], guidance_scale=2.0, **options)
    assert both.tolist() == [plain[0].tolist(), guided[1].tolist()]
    assert plain[1].tolist() != guided[1].tolist()
    vectors = parts[0].visual_tokenizer.pixel_quantizer.vectors()
    first, stop = parts[1].vocabulary.level1_range
    block = guided[1]
    logits = guide_logits(whole_logits(parts, parts[2][1], block), whole_logits(parts, parts[3], block), 2.0)
    pixels = (block >= first) & (block < stop)
    mean = (0.7 * logits[pixels, first:stop]).softmax(-1) @ vectors
    assert (block[pixels] - first).tolist() == torch.cdist(mean, vectors).argmin(-1).tolist()


def test_guidance_below_one_leaves_the_power_as_it_is(parts):
    _, ids = write(parts, parts[2], guidance_scale=0.0, semantic=GREEDY, pixel=GREEDY, sharpness=0.7)
    vectors = parts[0].visual_tokenizer.pixel_quantizer.vectors()
    first, stop = parts[1].vocabulary.level1_range
    pixels = (ids[0] >= first) & (ids[0] < stop)
    logits = whole_logits(parts, parts[3], ids[0])  # nothing but the unconditional prompt
    mean = (0.7 * logits[pixels, first:stop]).softmax(-1) @ vectors
    assert (ids[0][pixels] - first).tolist() == torch.cdist(mean, vectors).argmin(-1).tolist()


def test_pixel_codes_may_be_those_of_the_least_expected_error(parts):
    """Codes of both levels are the likeliest where the odds are sharp; otherwise pixel codes are nearest to the mean of all."""
    quantizer = parts[0].visual_tokenizer.pixel_quantizer
    vectors = quantizer.lookup(torch.arange(len(quantizer.frozen_codebook)))
    greedy = {"semantic": GREEDY, "pixel": GREEDY}
    grammar, likeliest = write(parts, parts[2], **greedy)
    assert write(parts, parts[2], sharpness=1e4, **greedy)[1].tolist() == likeliest.tolist()
    _, ids = write(parts, parts[2], sharpness=0.7, **greedy)
    assert ids.tolist() != likeliest.tolist()
    first, stop = parts[1].vocabulary.level1_range
    for row, block in zip(parts[2], ids):
        logits = whole_logits(parts, row, block)
        pixels = (block >= first) & (block < stop)
        mean = (0.7 * logits[pixels, first:stop]).softmax(-1) @ vectors
        assert (block[pixels] - first).tolist() == torch.cdist(mean, vectors).argmin(-1).tolist()
        allowed = grammar.constrain(logits, torch.arange(grammar.length)).argmax(-1)
        assert block[~pixels].tolist() == allowed[~pixels].tolist()
    drawn = [
        write(parts, parts[2], pixel=TokenSampling(1.2), generator=[seeded(1), seeded(2)], sharpness=sharpness)[1]
        for sharpness in (0.0, 0.7)
    ]
    assert drawn[0].tolist() == drawn[1].tolist()


def test_the_least_expected_error_lies_between_two_likely_codes():
    vectors = torch.tensor([[0.0, 0.0], [4.0, 0.0], [2.0, 0.5], [9.0, 9.0]])
    logits = torch.tensor([[0.46, 0.44, 0.09, 0.01], [0.9, 0.05, 0.04, 0.01]]).log()
    assert nearest_to_mean(logits, vectors, 1.0).tolist() == [2, 0]
    assert nearest_to_mean(logits, vectors, 200.0).tolist() == [0, 0]


def test_known_cells_stay_and_the_others_see_them(parts):
    grammar = VisualTokenGrammar(parts[1].vocabulary, *GRIDS)
    generator = seeded(3)
    codes = tuple(torch.randint(0, 20, (2, *grid), generator=generator) for grid in GRIDS)
    free = tuple(torch.zeros(2, *grid, dtype=torch.bool) for grid in GRIDS)
    free[0][0, 1, 2] = free[1][0, 2, 0] = free[1][1, 0, 0] = True
    template = block_template(grammar, 2, codes=codes, free=free)
    _, ids = write(parts, parts[2], grammar=grammar, semantic=GREEDY, pixel=GREEDY, template=template)
    written = grammar.image_codes(ids)
    for known, cells, now in zip(codes, free, written):
        assert (known[~cells] == now[~cells]).all()
    for row, block, drawn in zip(parts[2], ids, template[1]):
        allowed = grammar.constrain(whole_logits(parts, row, block), torch.arange(grammar.length))
        assert block[drawn].tolist() == allowed.argmax(-1)[drawn].tolist()


def test_known_runs_cost_one_forward_each(parts):
    grammar = VisualTokenGrammar(parts[1].vocabulary, *GRIDS)
    codes = tuple(torch.zeros(1, *grid, dtype=torch.long) for grid in GRIDS)
    free = tuple(torch.zeros(1, *grid, dtype=torch.bool) for grid in GRIDS)
    free[1][0, 1, 1] = free[1][0, 1, 2] = True
    calls = []
    hook = parts[0].language_model.model.register_forward_hook(lambda *_: calls.append(1))
    try:
        template = block_template(grammar, 1, codes=codes, free=free)
        write(parts, parts[2][:1], grammar=grammar, semantic=GREEDY, pixel=GREEDY, template=template)
    finally:
        hook.remove()
    assert len(calls) == 4  # prefix, suffix, everything before the first free cell, the first free cell
    calls.clear()


def test_rows_draw_the_same_alone_and_together(parts):
    sampling = {"semantic": TokenSampling(1.3), "pixel": TokenSampling(1.1, top_k=9, top_p=0.9)}
    _, both = write(parts, parts[2], guidance_scale=1.5, generator=[seeded(1), seeded(2)], **sampling)
    for i in range(2):
        _, alone = write(parts, parts[2][i : i + 1], guidance_scale=1.5, generator=[seeded(i + 1)], **sampling)
        assert both[i].tolist() == alone[0].tolist()
    _, other = write(parts, parts[2], guidance_scale=1.5, generator=[seeded(5), seeded(6)], **sampling)
    assert both.tolist() != other.tolist()


def test_an_interrupted_block_is_still_one(parts):
    left = iter([True, True, False])
    grammar, ids = write(parts, parts[2], semantic=GREEDY, pixel=GREEDY, on_token=lambda: next(left))
    semantic, pixel = grammar.image_codes(ids)
    assert semantic.min() >= 0 and pixel.min() >= 0


def test_draws_follow_the_probabilities_and_never_take_a_banned_id():
    logits = torch.tensor([0.5, 0.2, 0.3]).log()
    logits = torch.cat([torch.tensor([-float("inf")]), logits, torch.tensor([-float("inf")])])
    numbers = torch.cat([torch.tensor([0.0, 1 - 2**-24]), torch.rand(4000, generator=seeded())])
    ids = draw_ids(logits.expand(len(numbers), -1), TokenSampling(), numbers)
    share = ids.bincount(minlength=5) / len(ids)
    torch.testing.assert_close(share, torch.tensor([0.0, 0.5, 0.2, 0.3, 0.0]), atol=0.03, rtol=0)
    assert draw_ids(logits[None], GREEDY, None).tolist() == [1]


def test_a_wrong_number_of_generators_is_refused():
    with pytest.raises(ValueError, match="3 generators"):
        uniform_numbers(2, 5, [seeded(), seeded(), seeded()])


def test_only_the_rows_that_are_allowed_are_multiplied():
    """The same numbers from a plain head, an adapted one and one that offloading watches."""
    head, hidden = torch.nn.Linear(8, 20, bias=False), torch.randn(3, 8)
    expected = head(hidden)[:, 5:9]
    torch.testing.assert_close(head_rows(head, hidden, 5, 9), expected)
    counted = []
    head.register_forward_hook(lambda *_: counted.append(1))
    torch.testing.assert_close(head_rows(head, hidden, 5, 9), expected)
    assert counted  # whoever watches the head sees it run
    adapted = torch.nn.Sequential(torch.nn.Linear(8, 20, bias=False))
    torch.testing.assert_close(head_rows(adapted, hidden, 5, 9), adapted(hidden)[:, 5:9])
