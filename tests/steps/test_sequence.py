"""Images written over images: their tokens stand where the source's stand, in training and in use alike."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from diffusers_focus.processing.grammar import VisualTokenGrammar, guide_logits
from diffusers_focus.processing.images import FocusImageProcessor
from diffusers_focus.processing.prompts import EDIT, GENERATE, RECONSTRUCT, UNDERSTAND, build_answer
from diffusers_focus.steps.encode import FocusImageEncoding, encode_image, source_codes
from diffusers_focus.steps.sampling import GREEDY
from diffusers_focus.steps.sequence import (
    FocusContext,
    PrefixCache,
    PromptRow,
    batch_rows,
    embed_prefix,
    encode_prefix,
    image_block,
    run_suffixes,
    suffix_row,
)
from diffusers_focus.steps.visual_tokens import block_template, fed_positions, write_codes

from tests.tiny import SIZE, picture, shared_pipeline, tiny_components, tiny_pipeline

SIZES = (SIZE, SIZE)
INSTRUCTIONS = ("remove the red circle", "replace the blue star with a red circle, please")


@contextmanager
def heard_positions(pipe):
    """The position ids of every forward of the language model."""
    heard: list[torch.Tensor] = []
    model = pipe.language_model.model
    hook = model.register_forward_pre_hook(lambda _, a, k: heard.append(k["position_ids"]), with_kwargs=True)
    try:
        yield heard
    finally:
        hook.remove()


def situation(pipe, images) -> SimpleNamespace:
    """Prompts with images, their prefix, and the positions that the language model heard for their first image's block."""
    context = FocusContext.of(pipe)
    encoding = encode_image(pipe, images)
    with torch.no_grad(), heard_positions(pipe) as heard:
        prefix = encode_prefix(pipe, context, encoding, task=EDIT)
    blocks = image_block(pipe, context.vocabulary, encoding.vision.vision_tokens, encoding.vision.pixel_tokens)
    embeds, mask, _ = embed_prefix(pipe, context, encoding, task=EDIT)
    length, places, first = blocks.shape[1], [], 0
    for row, count in enumerate(encoding.counts):
        windows = embeds[row].unfold(0, length, 1).transpose(1, 2)
        (start,) = (windows == blocks[first]).flatten(1).all(1).nonzero()[:1, 0].tolist()
        places.append(heard[0][row, start : start + length])
        first += count
    semantic, pixel = source_codes(pipe, encoding)
    grammar = VisualTokenGrammar(context.vocabulary, tuple(semantic.shape[-2:]), tuple(pixel.shape[-2:]))
    assert grammar.length == length  # what is written has the layout of what was read
    return SimpleNamespace(
        pipe=pipe, context=context, encoding=encoding, prefix=prefix, grammar=grammar, places=torch.stack(places)
    )


@pytest.fixture(scope="module")
@torch.no_grad()
def focus() -> SimpleNamespace:
    """Two prompts, one with two pictures: the shorter one's prefix is padded."""
    return situation(shared_pipeline(), [[picture(0)], [picture(1), picture(2)]])


@pytest.fixture(scope="module")
@torch.no_grad()
def illume() -> SimpleNamespace:
    processor = FocusImageProcessor(
        buckets=[[SIZE, SIZE]],
        tag_step=16,
        high_resolution=SIZE,
        decode_scale=1,
        vae_scale_factor=4,
        prompt_style="illume",
    )
    pipe = tiny_pipeline(image_processor=processor, lm_tokenizer=tiny_components()["lm_tokenizer"])
    return situation(pipe, [picture(0), picture(1)])


def edit_row(here: SimpleNamespace, text: str | None, code_ids=(), num_images: int = 1, code_places=None) -> PromptRow:
    """An edit's suffix, with the image already written or up to where it begins; without a text the unconditional one.
    `code_places` says which ids of the block stand there, all by default.
    """
    task = EDIT if text is not None else RECONSTRUCT
    answer = build_answer(task) if len(code_ids) else None
    parts = here.context.style.suffix(task, text=text, num_images=num_images, height_width=SIZES, answer=answer)
    if code_places is None:
        return suffix_row(here.context, parts, code_ids=list(code_ids))
    ids = [code_ids[place] for place in code_places]
    return suffix_row(here.context, parts, code_ids=ids, code_places=code_places)


def some_block(here: SimpleNamespace, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    grids = (here.grammar.semantic_grid, here.grammar.pixel_grid)
    maps = [torch.randint(0, 20, grid, generator=generator) for grid in grids]
    return here.context.vocabulary.image_ids(*maps, with_tag=False).tolist()


@torch.no_grad()
def written(here: SimpleNamespace, encoding: FocusImageEncoding, guidance: float = 1.0) -> tuple[torch.Tensor, ...]:
    """Greedy blocks [R, L] with a part of the cells free, and which positions were drawn."""
    count = len(here.places)
    first = torch.tensor([0, *encoding.counts]).cumsum(0)[:-1]
    own = tuple(codes[first] for codes in source_codes(here.pipe, encoding))
    free = tuple(torch.zeros_like(codes, dtype=torch.bool) for codes in own)
    free[0][0, 1:, :] = free[1][0, 1:3, 1:] = free[1][1, 2:, :2] = True
    template = block_template(here.grammar, count, codes=own, free=free)
    rows = [edit_row(here, text) for text in INSTRUCTIONS]
    ids = write_codes(
        here.pipe,
        here.prefix,
        rows,
        list(range(count)),
        here.grammar,
        unconditional=[edit_row(here, None)] * count,
        guidance_scale=guidance,
        semantic=GREEDY,
        pixel=GREEDY,
        template=template,
    )
    return ids, template[1]


def test_the_block_of_each_prompt_begins_after_its_system_text(focus):
    assert focus.prefix.image_starts.tolist() == focus.places[:, 0].tolist()
    assert not focus.prefix.mask[0].all() and focus.places[0, 0] == focus.places[1, 0]  # padding counts for nothing


@pytest.mark.parametrize("pad", ["left", "right"])
@torch.no_grad()
def test_written_images_are_trained_at_the_positions_of_the_image_they_change(focus, pad):
    """Suffixes of different length, some without an image, of both prompts and not in their order."""
    block = some_block(focus)
    question = suffix_row(focus.context, focus.context.style.suffix(UNDERSTAND, text="how many?", answer="two"))
    rows = [
        edit_row(focus, INSTRUCTIONS[1], block),
        question,
        edit_row(focus, INSTRUCTIONS[0], block, code_places=[3, 4, 9]),
        edit_row(focus, None, block),
    ]
    prompts = torch.tensor([1, 0, 0, 1])
    batch = batch_rows(focus.pipe, rows, pad=pad)
    with heard_positions(focus.pipe) as heard:
        run_suffixes(focus.pipe, focus.prefix, prompts, batch)
    (positions,) = heard
    for row, prompt, mask, ids, now in zip(rows, prompts, batch.mask, batch.ids, positions, strict=True):
        counted = int(focus.prefix.mask[prompt].sum()) + torch.arange(len(row.ids))
        if row.codes is not None:
            first, places = row.codes
            assert ids[mask][first : first + len(places)].tolist() == [block[place] for place in places]
            counted[first : first + len(places)] = focus.places[prompt][list(places)]
        assert torch.equal(now[mask], counted)  # all else counts on, what follows the image too


@torch.no_grad()
def test_images_are_written_at_the_positions_of_the_image_they_change(focus):
    with heard_positions(focus.pipe) as heard:
        _, drawn = written(focus, focus.encoding, guidance=2.0)
    suffix, *fed = heard
    last = int(drawn.any(0).nonzero()[-1])
    positions = torch.cat(fed, dim=1)
    read = fed_positions(drawn).any(0)[:last]  # what neither prompt needs is left out
    assert 0 < int(read.sum()) < last
    assert torch.equal(positions, focus.places.repeat(2, 1)[:, :last][:, read])  # the unconditional branch too
    lengths = [len(edit_row(focus, text).ids) for text in (*INSTRUCTIONS, None, None)]
    ends = focus.prefix.mask.sum(1).repeat(2) + torch.tensor(lengths) - 1
    assert torch.equal(suffix[:, -1], ends)


def trained_states(here: SimpleNamespace, ids: torch.Tensor, drawn: torch.Tensor, texts) -> torch.Tensor:
    """Last hidden states [R, L, H] that the drawn ids of finished blocks [R, L] are learned from; zero elsewhere."""
    everything = torch.ones_like(drawn)
    read = fed_positions(drawn) if here.context.style.writes_in_place else everything
    places = [row.nonzero()[:, 0].tolist() for row in read]
    rows = [edit_row(here, t, block.tolist(), code_places=p) for t, block, p in zip(texts, ids, places, strict=True)]
    batch = batch_rows(here.pipe, rows, pad="right")
    hidden, _, _ = run_suffixes(here.pipe, here.prefix, torch.arange(len(rows)), batch)
    states = torch.zeros(*ids.shape, hidden.shape[-1])
    for number, row in enumerate(rows):
        first, there = row.codes
        states[number, list(there)] = hidden[number, first - 1 : first - 1 + len(there)]
    return states * drawn[..., None]


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("style", ["focus", "illume"])
@torch.no_grad()
def test_what_is_written_is_what_training_finds_likeliest(style, guidance, request):
    here = request.getfixturevalue(style)
    states: list[torch.Tensor] = []
    hook = here.pipe.language_model.lm_head.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    try:
        ids, drawn = written(here, here.encoding, guidance)
    finally:
        hook.remove()
    trained = trained_states(here, ids, drawn, INSTRUCTIONS)
    places = drawn.any(0)
    branches = [trained] if guidance == 1 else [trained, trained_states(here, ids, drawn, (None, None))]
    heard = torch.stack(states, 1) * drawn[:, places].repeat(len(branches), 1)[..., None]
    torch.testing.assert_close(heard, torch.cat(branches)[:, places], atol=1e-4, rtol=1e-4)
    logits = [here.pipe.language_model.lm_head(states) for states in branches]
    for row in range(len(ids)):
        own = logits[0][row] if guidance == 1 else guide_logits(logits[0][row], logits[1][row], guidance)
        best = here.grammar.constrain(own, torch.arange(here.grammar.length)).argmax(-1)
        assert ids[row, drawn[row]].tolist() == best[drawn[row]].tolist()
    assert 0 < int(drawn.sum()) < int((here.grammar.kinds != 0).sum()) * len(ids)


@torch.no_grad()
def test_style_illume_goes_on_counting(illume):
    assert illume.prefix.image_starts is None
    rows = [edit_row(illume, text, some_block(illume)) for text in INSTRUCTIONS]
    batch = batch_rows(illume.pipe, rows, pad="right")
    assert all(span is not None for span in batch.codes)
    with heard_positions(illume.pipe) as heard:
        run_suffixes(illume.pipe, illume.prefix, torch.tensor([0, 1]), batch)
        _, drawn = written(illume, illume.encoding)
    trained, suffix, *fed = heard
    length = illume.prefix.length
    for row, positions in zip(rows, trained, strict=True):
        assert torch.equal(positions[: len(row.ids)], length + torch.arange(len(row.ids)))
    last = int(drawn.any(0).nonzero()[-1])
    assert torch.equal(torch.cat(fed, dim=1), suffix[:, -1:] + 1 + torch.arange(last))


@torch.no_grad()
def test_without_pixel_tokens_all_else_keeps_its_position(focus):
    pipe, context = focus.pipe, focus.context
    rows = [edit_row(focus, text, some_block(focus)) for text in INSTRUCTIONS]
    batch = batch_rows(pipe, rows, pad="right")
    heard, hidden, lengths = [], [], []
    for pixel_tokens, shift in ((True, 0.0), (False, 0.0), (False, 1.0)):
        encoding = encode_image(pipe, [picture(0), picture(1)])
        encoding.vision.pixel_tokens = encoding.vision.pixel_tokens + shift
        with heard_positions(pipe) as positions:
            prefix = encode_prefix(pipe, context, encoding, task=EDIT, pixel_tokens=pixel_tokens)
            hidden.append(run_suffixes(pipe, prefix, torch.tensor([1, 0]), batch)[0])
        heard.append(positions)
        lengths.append(prefix.length)
    rows_, columns = focus.grammar.pixel_grid
    (whole, after), (short, same), _ = heard
    assert lengths[0] - lengths[1] == rows_ * (columns + 1)
    assert torch.equal(after[batch.mask], same[batch.mask])
    # What is left out is one stretch: the rows of pixel tokens, before the block's last two markers.
    missing = sorted(set(whole[0].tolist()) - set(short[0].tolist()))
    assert missing == list(range(missing[0], missing[0] + len(missing))) and missing[-1] == int(focus.places[0, -1]) - 2
    assert torch.equal(hidden[1], hidden[2]) and not torch.allclose(hidden[0], hidden[1], atol=1e-3)


@torch.no_grad()
def test_images_from_text_alone_go_on_counting(focus):
    prefix: PrefixCache = encode_prefix(focus.pipe, focus.context, None, task=GENERATE)
    assert prefix.image_starts is None
    parts = focus.context.style.suffix(
        GENERATE, text="the red circle", num_images=0, height_width=SIZES, answer=build_answer(GENERATE)
    )
    row = suffix_row(focus.context, parts, code_ids=some_block(focus))
    with heard_positions(focus.pipe) as heard:
        run_suffixes(focus.pipe, prefix, torch.tensor([0]), batch_rows(focus.pipe, [row]))
    assert torch.equal(heard[0][0], prefix.length + torch.arange(len(row.ids)))
