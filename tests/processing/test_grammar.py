"""The grammar of images, guidance and filters (against the original's recorded decoding: tests/checkpoints)."""

import pytest
import torch

from diffusers_focus.processing.grammar import (
    InterleavedLogitsProcessor,
    TokenSampling,
    VisualTokenGrammar,
    filter_logits,
    guide_logits,
    process_logits,
    unconditional_ids,
)
from diffusers_focus.processing.vocabulary import FocusVocabulary


@pytest.fixture(scope="module")
def grammar():
    vocabulary = FocusVocabulary(
        *range(24, 31),
        height_tags=range(31, 47),
        width_tags=range(47, 63),
        level0_range=(63, 79),
        level1_range=(79, 127),
        end_of_text=2,
        pad=0,
        embedding_rows=131,
    )
    return VisualTokenGrammar(vocabulary, (2, 3), (4, 5))


def test_the_processor_gives_what_the_function_gives(grammar):
    cond, uncond = torch.randn(2, 1, len(grammar), 131)
    calls = []

    def unconditional(input_ids):
        calls.append(input_ids.shape[1])
        return uncond[:, input_ids.shape[1]]

    prompt = torch.tensor([[9, 10, grammar.vocabulary.start_of_image]])
    processor = InterleavedLogitsProcessor(grammar, 1.5, unconditional, prompt_ids=prompt)
    written = torch.zeros(1, 0, dtype=torch.long)
    for step in range(len(grammar)):
        scores = processor(written, cond[:, step])
        position = grammar.positions(torch.cat([prompt, written], dim=1))
        expected = process_logits(cond[:, step], uncond[:, step], position, grammar, guidance_scale=1.5)
        torch.testing.assert_close(scores, expected)
        written = torch.cat([written, scores.argmax(-1, keepdim=True)], dim=1)
    assert calls == list(range(len(grammar) - 1))  # and not once the image is complete


@pytest.mark.parametrize(
    ("prompt", "written", "expected"),
    [
        ([5, 31, 47], [31, 47, 24], [5, 31, 47, 24]),
        ([5, 31, 47], [32, 47, 24], [5, 31, 47, 32, 47, 24]),
        ([5, 31, 47], [7, 8, 9, 24], [5, 31, 47, 8, 9, 24]),
        ([5, 31, 47], [24], [5, 31, 47, 24]),
        ([5, 31, 47, 24], [], [5, 31, 47, 24]),
    ],
)
def test_the_unconditional_prompt_ends_as_the_image_was_opened(prompt, written, expected):
    written = torch.tensor([written], dtype=torch.long)
    assert unconditional_ids(torch.tensor([prompt]), written, start_of_image=24).tolist() == [expected]


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
