"""Writing text: answers to questions, and the names that come before masks.

FOCUS section "Prompts". Rows of a batch are left-padded suffixes on the prefixes of their images; each stops on its own. A row
that has stopped says nothing more: its further positions are masked out of its cache, so what is fed later (mask slots) follows
directly on what it wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import DynamicCache

from ..processing.conversations import Conversation, conversations
from ..processing.grammar import TokenSampling, text_banned_ids
from ..processing.prompts import CAPTION, REGION_UNDERSTAND, UNDERSTAND
from ..processing.regions import Mask
from ..processing.vocabulary import FocusVocabulary
from .arguments import check_count, check_streamer, generator_list, region_masks, spread, token_sampling
from .encode import Components, FocusImageEncoding, FocusMixedEncoding, embed_regions, wake
from .sampling import GREEDY, Generators, draw_ids, is_greedy, uniform_numbers
from .sequence import (
    FocusContext,
    PrefixCache,
    PromptRow,
    batch_rows,
    encode_prefix,
    extend,
    run_suffixes,
    suffix_row,
)


@dataclass
class WrittenText:
    """What R rows wrote.

    Args:
        ids: of each row, without the id that ended it.
        ended_by: the stop id that ended each row, -1 where it was cut off.
        mask: bool [R, positions in the cache], to go on from; all ids are in the cache, the stop ids are not.
    """

    ids: list[list[int]]
    ended_by: list[int]
    mask: torch.Tensor


def banned_text_ids(
    vocabulary: FocusVocabulary, vocab_size: int, device: torch.device | str, *, allow_masks: bool = False
) -> torch.Tensor:
    """bool [vocab_size]: everything that is not text, of the mask trigger all but `allow_masks`.

    Beyond `text_banned_ids` these are the image markers, the resolution tags and the unused rows, which the original leaves to
    training: an answer shown to a user must not hold any of them.
    """
    banned = text_banned_ids(vocabulary, vocab_size, device)
    ids = torch.arange(vocab_size, device=device)
    banned |= ids >= vocabulary.level1_range[1]
    for marker in (vocabulary.start_of_image, vocabulary.end_of_image, *vocabulary.resolution_tags):
        banned |= ids == marker
    if allow_masks:
        banned &= ids != vocabulary.mask_trigger
    return banned


def write_text(
    components: Components,
    hidden: torch.Tensor,
    cache: DynamicCache,
    mask: torch.Tensor,
    *,
    banned: torch.Tensor,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    sampling: TokenSampling = GREEDY,
    generator: Generators = None,
    on_ids: Callable[[torch.Tensor], None] | None = None,
) -> WrittenText:
    """Write until every row has stopped.

    Args:
        hidden: last hidden states [R, T, H] of what was fed last; every row ends at T (left padding).
        cache, mask: from `run_suffixes`; the cache grows in place.
        banned: bool [vocab], ids never to write.
        stop_ids: ids that end a row.
        max_new_tokens: of each row, the stop id not counted.
        sampling, generator: how ids are drawn; greedy by default.
        on_ids: called with the ids int64 [R] of each step, -1 for a row that has stopped; not called once all have.
    """
    table = components.language_model.get_input_embeddings()
    rows = hidden.shape[0]
    numbers = None if is_greedy(sampling) else uniform_numbers(rows, max_new_tokens + 1, generator)
    active = torch.ones(rows, dtype=torch.bool, device=hidden.device)
    stops = torch.tensor(sorted(stop_ids), device=hidden.device)
    steps: list[torch.Tensor] = []
    for step in range(max_new_tokens + 1):
        logits = components.language_model.lm_head(hidden[:, -1]).float().masked_fill(banned, float("-inf"))
        ids = draw_ids(logits, sampling, None if numbers is None else numbers[:, step])
        steps.append(torch.where(active, ids, -1))
        active = active & ~torch.isin(ids, stops)
        if step == max_new_tokens or not bool(active.any()):
            break
        if on_ids is not None:
            on_ids(torch.where(active, ids, -1))
        hidden, mask = extend(components, table(ids)[:, None], cache, mask, active[:, None])
    written = torch.stack(steps, dim=1).tolist()
    ended_by, kept, stop_set = [], [], set(stop_ids)
    for row in written:
        row = [i for i in row if i >= 0]
        ended_by.append(row[-1] if row[-1] in stop_set else -1)
        kept.append(row[:-1] if ended_by[-1] >= 0 else row[:max_new_tokens])
    return WrittenText(kept, ended_by, mask)


def answer_prompts(
    components: Components,
    encoding: FocusImageEncoding | FocusMixedEncoding | None,
    rows: Sequence[PromptRow],
    prompt_index: Sequence[int],
    *,
    task: str,
    region_tokens: torch.Tensor | None = None,
    max_new_tokens: int = 128,
    sampling: TokenSampling = GREEDY,
    generator: Generators = None,
    streamer: Any = None,
) -> list[str]:
    """Answer R questions about encoded images.

    Args:
        encoding: the images; None for questions without.
        rows: R suffixes that end where the answer begins.
        prompt_index: the prompt (group of images) of the encoding that each row is about.
        task: of the rows.
        region_tokens: [regions, H] of all rows, in their order.
        max_new_tokens, sampling, generator: see `write_text`.
        streamer: is given the ids of the prompts [R, T], then those of each step [R] as they are written, as transformers'
            `generate` does it; of rows that have ended (and in front of shorter prompts) the padding id.

    Returns:
        R texts, control tokens left out.
    """
    context = FocusContext.of(components)
    wake(components, "language_model")
    prefix: PrefixCache = encode_prefix(components, context, encoding, task=task)
    batch = batch_rows(components, rows, region_tokens=region_tokens)
    hidden, cache, mask = run_suffixes(components, prefix, torch.tensor(prompt_index), batch)
    vocabulary = context.vocabulary
    banned = banned_text_ids(vocabulary, components.language_model.config.vocab_size, hidden.device)

    def show(ids: torch.Tensor) -> None:
        streamer.put(ids.masked_fill(ids < 0, vocabulary.pad).cpu())

    if streamer is not None:
        show(batch.ids)
    written = write_text(
        components,
        hidden,
        cache,
        mask,
        banned=banned,
        stop_ids=(vocabulary.end_of_text, vocabulary.pad),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        generator=generator,
        on_ids=None if streamer is None else show,
    )
    return [context.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in written.ids]


LIST_SEPARATOR = ", "  # between the objects of a caption
MAX_ANSWER = 128  # tokens of an answer, unless the caller says otherwise


@contextmanager
def streaming(streamer: Any) -> Iterator[None]:
    """Check a streamer, and end it whatever happens: who reads from it in another thread waits for that."""
    check_streamer(streamer)
    try:
        yield
    finally:
        if streamer is not None:
            streamer.end()


def answer_questions(
    components: Components,
    encoding: FocusImageEncoding | FocusMixedEncoding | None,
    prompt: Any = None,
    region: Any = None,
    *,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: Generators = None,
    streamer: Any = None,
    find: Callable[[Sequence[int]], dict[int, list[np.ndarray]]] | None = None,
) -> list[str]:
    """Answer the questions of a caller, one for each prompt of the encoding or several about a single image.

    Args:
        encoding: the images; None for questions without.
        prompt: a question, None for a caption, or the messages of a conversation (`processing.conversations`); or a list of them.
        region: what the question is about: None, regions of `processing.regions`, or a list with one entry a question.
        max_new_tokens: longest answer; `MAX_ANSWER` by default.
        temperature, top_k, top_p: sampling; by default the likeliest token is taken.
        generator: for sampling; a list has one for each answer.
        streamer: see `answer_prompts`; to be used within `streaming`.
        find: from `description.object_finder`: where a caption is asked for, each object it finds is asked about instead, and what
            is said of them is the caption. `max_new_tokens` are then those of each. A streamer is given all answers at the end.

    Raises:
        TypeError, ValueError: an argument does not fit.
    """
    length = MAX_ANSWER if max_new_tokens is None else check_count(max_new_tokens, "max_new_tokens")
    sampling = token_sampling(temperature, top_k, top_p)
    groups = 1 if encoding is None else len(encoding.counts)
    count, given = spread(groups, prompt=conversations(prompt), region=region)
    generator = generator_list(generator, count)
    prompts = list(range(groups)) if groups == count else [0] * count
    context = FocusContext.of(components)
    asks = list(zip(prompts, given["prompt"], given["region"]))
    described = _objects_to_name(context, asks, find)
    rows, owners, masks = [], [], []
    for owner, (index, asked, pointed) in enumerate(asks):
        # A caption is as many questions as there are objects.
        parts = [(Conversation(None), Mask(one)) for one in described.get(owner, ())] or [(asked, pointed)]
        for question, where in parts:
            row, regions = _question_row(context, encoding, index, question, where)
            rows.append(row)
            owners.append(owner)
            masks.append(regions)
    shown = [prompts[owner] for owner in owners]
    region_tokens = None
    if isinstance(encoding, FocusImageEncoding):  # regions are asked about one image at a time
        images = [index for index, regions in zip(shown, masks) for _ in regions]
        region_tokens = embed_regions(components, encoding, images, [mask for regions in masks for mask in regions])
    texts = answer_prompts(
        components,
        encoding,
        rows,
        shown,
        task=UNDERSTAND,
        region_tokens=region_tokens,
        max_new_tokens=length,
        sampling=sampling,
        generator=[generator[owner] for owner in owners] if isinstance(generator, list) else generator,
        streamer=None if described else streamer,
    )
    said = [[text for text, owner in zip(texts, owners) if owner == number] for number in range(count)]
    answers = [LIST_SEPARATOR.join(filter(None, parts)) for parts in said]
    if described and streamer is not None:
        # The questions as they were asked; of them only the ids are shown, whatever stands in their region slots.
        questions = [_question_row(context, encoding, *ask)[0] for ask in asks]
        _stream_finished(context, streamer, batch_rows(components, questions, region_tokens=region_tokens).ids, answers)
    return answers


def ask_each(components: Components, encoding: FocusImageEncoding, images: Sequence[int], question: str) -> list[str]:
    """The likeliest answer to one question, for each of some images of an encoding by their numbers."""
    context = FocusContext.of(components)
    rows = [_question_row(context, encoding, image, Conversation(question), None)[0] for image in images]
    return answer_prompts(components, encoding, rows, images, task=UNDERSTAND, max_new_tokens=MAX_ANSWER)


def _objects_to_name(
    context: FocusContext,
    asks: Sequence[tuple[int, Conversation, Any]],
    find: Callable[[Sequence[int]], dict[int, list[np.ndarray]]] | None,
) -> dict[int, list[np.ndarray]]:
    """The objects of each question that asks for a caption, by its number; those in whose image nothing is found are not in it."""
    captions = (None, context.style.defaults.get(CAPTION))
    numbers = [
        number
        for number, (_, asked, region) in enumerate(asks)
        if asked.text in captions and asked.region is None and region is None
    ]
    if find is None or not numbers:
        return {}
    found = find([asks[number][0] for number in numbers])
    return {number: found[asks[number][0]] for number in numbers if found[asks[number][0]]}


def _stream_finished(context: FocusContext, streamer: Any, prompts: torch.Tensor, answers: Sequence[str]) -> None:
    """Give a streamer answers that are finished, as if they were written now: `prompts` [R, T], then ids [R] step by step."""
    pad = context.vocabulary.pad
    streamer.put(prompts.masked_fill(prompts < 0, pad).cpu())
    ids = [context.tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    ids = [torch.tensor(one, dtype=torch.long) for one in ids]  # an answer may be empty
    for step in torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad).T:
        streamer.put(step)


def _question_row(
    context: FocusContext,
    encoding: FocusImageEncoding | FocusMixedEncoding | None,
    index: int,
    asked: Conversation,
    region: Any,
) -> tuple[PromptRow, list[np.ndarray]]:
    """One question with its history as a suffix, and the regions in it, bool [height, width], in the order of their slots."""
    number = 0 if encoding is None else encoding.counts[index]
    if asked.images not in (0, number):
        raise ValueError(
            f"The messages show {asked.images} images, but {number} are given. Give as many, or leave the image parts out."
        )
    if region is not None and asked.region is not None:
        raise ValueError("A region was given in the messages and beside them. Leave one of them out.")
    region = asked.region if region is None else region
    masks: list[tuple[np.ndarray, ...]] = []
    for one in [*(turn.region for turn in asked.history), region]:
        if one is None:
            masks.append(())
        elif isinstance(encoding, FocusImageEncoding) and number == 1:
            masks.append(region_masks(one, encoding.original_sizes[index]))
        else:
            raise ValueError("A region needs exactly one image in its question. Ask about that image alone.")
    task = REGION_UNDERSTAND if masks[-1] else CAPTION if asked.text is None else UNDERSTAND
    history = [(turn.text, turn.answer, len(own)) for turn, own in zip(asked.history, masks)]
    parts = context.style.suffix(task, text=asked.text, num_images=number, num_regions=len(masks[-1]), history=history)
    return suffix_row(context, parts), [mask for own in masks for mask in own]
