"""Prompts -> the language model's input -> E^P and E^Q (FOCUS section "Prompts"; focus.md section 5, "Sequence").

A prompt is a prefix (system text, image blocks, query slots) and a suffix (task, condition, answer). The prefix does not
depend on what is asked, so it runs once per image; its cache is handed to every suffix on that image, in training and in
use alike. Suffixes of different length stand side by side in a batch, padded and masked.

Shapes: R suffixes ("rows"), T their length, P the prefix's, H the language model's width, K conditions, N mask slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, overload

import torch
from transformers.cache_utils import DynamicCache

from ..processing.prompts import (
    CODES,
    IMAGE,
    MASKS,
    QUERIES,
    REGION,
    TEXT,
    PromptPart,
    PromptStyle,
    Segment,
    encode_prompt,
    get_prompt_style,
)
from ..processing.vocabulary import FocusVocabulary
from .attention import unplanned_attention
from .encode import Components, FocusImageEncoding, FocusMixedEncoding
from .fixed_cache import FixedCache
from .step_graph import LONGEST, StepRecorder, is_compiled, uncompiled

IGNORED = -100  # label of what the model is not asked to write
SLOT = -1  # id of a position whose embedding does not come from the table


class FocusContext:
    """Vocabulary, prompt style and tokenisation of one set of components, made once and kept with its tokenizer."""

    def __init__(self, components: Components):
        processor = components.image_processor
        self.tokenizer = components.lm_tokenizer
        self.vocabulary = FocusVocabulary.from_tokenizer(
            self.tokenizer, embedding_rows=components.language_model.config.vocab_size, tag_step=processor.tag_step
        )
        self.style: PromptStyle = get_prompt_style(processor.prompt_style)
        self._encode = lru_cache(maxsize=4096)(self._encode_parts)

    @classmethod
    def of(cls, components: Components) -> FocusContext:
        """The context of these components; reading 131,072 visual tokens off a tokenizer is worth doing once."""
        processor, rows = components.image_processor, components.language_model.config.vocab_size
        key = (rows, processor.tag_step, processor.prompt_style)
        kept = getattr(components.lm_tokenizer, "_focus_context", None)
        if kept is None or kept[0] != key:
            kept = (key, cls(components))
            components.lm_tokenizer._focus_context = kept
        return kept[1]

    def _encode_parts(self, parts: tuple[PromptPart, ...]) -> tuple[Segment, ...]:
        return tuple(encode_prompt(parts, self.tokenizer, self.vocabulary))

    def segments(self, parts: Sequence[PromptPart | Segment]) -> tuple[Segment, ...]:
        """Ids and slots of a prompt; equal prompts are tokenised once, and those that are segments already not at all."""
        given = tuple(parts)
        return given if given and isinstance(given[0], Segment) else self._encode(given)  # type: ignore[return-value]


@dataclass
class PrefixCache:
    """Keys and values of the prefixes of B prompts.

    Args:
        layers: (keys, values) of each layer, [B, kv heads, P, head dim].
        mask: bool [B, P], False at left padding (prompts with different numbers of images).
        image_starts: int64 [B], position of the first token of the first image, for styles that write in place; else None.
        skipped: positions that were left out, and that suffixes count all the same.
    """

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    mask: torch.Tensor
    image_starts: torch.Tensor | None = None
    skipped: int = 0

    @property
    def length(self) -> int:
        """P."""
        return self.mask.shape[1]

    def cache(self, rows: torch.Tensor) -> DynamicCache:
        """A cache for R rows; `rows` int64 [R] says which prompt each belongs to."""
        return DynamicCache(ddp_cache_data=[(keys[rows], values[rows]) for keys, values in self.layers])

    def cache_with_room(self, rows: torch.Tensor, room: int) -> FixedCache:
        """The same with room for `room` positions; not differentiable."""
        return FixedCache(self.layers, self.mask, rows, room)


@dataclass
class PromptRow:
    """One suffix as ids.

    Args:
        ids: token ids, `SLOT` where the embedding comes from elsewhere.
        conditions: for each position the number of its condition, -1 for none.
        answers: for each position whether the model is to write it.
        regions: (position, region) pairs.
        mask_slots: position of the first mask slot, -1 without.
        codes: position of the first id of a written image, and the positions in its block of the ids that stand here; None
            without.
    """

    ids: list[int]
    conditions: list[int]
    answers: list[bool]
    regions: list[tuple[int, int]]
    mask_slots: int = -1
    codes: tuple[int, tuple[int, ...]] | None = None


@dataclass
class SuffixBatch:
    """R suffixes ready for the language model.

    Args:
        embeds: [R, T, H].
        mask: bool [R, T], False at padding.
        ids: int64 [R, T], `SLOT` at slots and padding.
        labels: int64 [R, T], the id at each position where the model is to write it, else -100.
        conditions: int64 [R, T], -1 for none.
        mask_slots: int64 [R], first mask slot, -1 without.
        codes: of each row as in `PromptRow`.
    """

    embeds: torch.Tensor
    mask: torch.Tensor
    ids: torch.Tensor
    labels: torch.Tensor
    conditions: torch.Tensor
    mask_slots: torch.Tensor
    codes: list[tuple[int, tuple[int, ...]] | None]


def image_block(
    components: Components, vocabulary: FocusVocabulary, vision_tokens: torch.Tensor, pixel_tokens: torch.Tensor
) -> torch.Tensor:
    """Images as the language model reads them, wrapped in the markers of the original's output layout.

    Args:
        vision_tokens: [n, hs, ws, H].
        pixel_tokens: [n, hp, wp, H].

    Returns:
        [n, 6 + hs * (ws + 1) + hp * (wp + 1), H].
    """
    table = components.language_model.get_input_embeddings()
    v = vocabulary
    ids = torch.tensor(
        [
            v.start_of_image, v.start_of_level0, v.end_of_line, v.end_of_level0, v.start_of_level1, v.end_of_level1,
            v.end_of_image,
        ],
        device=vision_tokens.device,
    )  # fmt: skip
    marks = table(ids).to(vision_tokens.dtype)[:, None, None]
    count = len(vision_tokens)

    def mark(index: int) -> torch.Tensor:
        return marks[index].expand(count, 1, -1)

    def rows(tokens: torch.Tensor) -> torch.Tensor:
        ends = marks[2][None].expand(count, tokens.shape[1], 1, -1)
        return torch.cat([tokens, ends.to(tokens.dtype)], dim=2).flatten(1, 2)

    return torch.cat(
        [
            mark(0),
            mark(1),
            rows(vision_tokens),
            mark(3),
            mark(4),
            rows(pixel_tokens.to(vision_tokens.dtype)),
            mark(5),
            mark(6),
        ],
        dim=1,
    )


def embed_prefix(
    components: Components,
    context: FocusContext,
    encoding: FocusImageEncoding | FocusMixedEncoding | None,
    *,
    task: str | None = None,
    num_prompts: int = 1,
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Embeddings [B, P, H] and mask bool [B, P] of the prefixes of a batch of prompts, left-padded, and for each the position of
    its first image's first token, -1 without.

    Args:
        encoding: the images; None for prompts without (text to image): then `num_prompts` equal prefixes.
        task: matters to styles that put the resolution tag before the image.
    """
    table = components.language_model.get_input_embeddings()
    counts = encoding.counts if encoding is not None else (0,) * num_prompts
    blocks, queries = [], []
    for part in encoding.images if isinstance(encoding, FocusMixedEncoding) else filter(None, [encoding]):
        vision = part.vision
        blocks += image_block(components, context.vocabulary, vision.vision_tokens, vision.pixel_tokens)
        queries += [] if vision.query_tokens is None else vision.query_tokens
    size = encoding.size if isinstance(encoding, FocusImageEncoding) else None
    rows, starts, first = [], [], 0
    for number in counts:
        start = -1
        parts = context.style.prefix(number, task=task, height_width=size)
        pieces = []
        for segment in context.segments(parts):
            if segment.kind == TEXT:
                ids = torch.tensor(segment.ids, device=_device_of(table))
                pieces.append(table(ids))
            elif segment.kind == IMAGE and blocks:
                start = sum(len(piece) for piece in pieces) if start < 0 else start
                pieces.append(blocks[first + (segment.index or 0)])
            elif segment.kind == QUERIES and queries:
                pieces.append(queries[first + (segment.index or 0)])
        rows.append(torch.cat([p.to(pieces[0].dtype) for p in pieces]))
        starts.append(start)
        first += number
    return *_pad(rows, left=True), starts


def encode_prefix(
    components: Components,
    context: FocusContext,
    encoding: FocusImageEncoding | FocusMixedEncoding | None,
    *,
    task: str | None = None,
    num_prompts: int = 1,
    pixel_tokens: bool = True,
) -> PrefixCache:
    """Run the prefixes through the language model, once per encoding (see `embed_prefix` for the other arguments).

    Args:
        pixel_tokens: False leaves the continuous pixel tokens out, everything else keeps its position: four fifths of a prefix
            of focus-tiny, which say little about what a question asks. For training; needs one image a prompt.
    """
    key = (task if context.style.before_image else None, adapter_state(components.language_model))
    if encoding is not None and pixel_tokens and key in encoding.prefixes:
        return encoding.prefixes[key]
    if encoding is not None and not pixel_tokens and any(count != 1 for count in encoding.counts):
        raise ValueError(
            f"pixel_tokens=False needs one image a prompt, got prompts of {tuple(encoding.counts)} images."
        )
    embeds, mask, starts = embed_prefix(components, context, encoding, task=task, num_prompts=num_prompts)
    positions = counted_positions(mask, mask.shape[1])
    skipped = 0
    if encoding is not None and not pixel_tokens:
        assert isinstance(encoding, FocusImageEncoding)
        assert encoding.vision.vision_tokens is not None and encoding.vision.pixel_tokens is not None
        (hs, ws), (hp, wp) = encoding.vision.vision_tokens.shape[1:3], encoding.vision.pixel_tokens.shape[1:3]
        first, skipped = starts[0] + 4 + hs * (ws + 1), hp * (wp + 1)  # after the semantic rows and four markers
        kept = torch.cat([torch.arange(first), torch.arange(first + skipped, mask.shape[1])]).to(mask.device)
        embeds, mask, positions = embeds[:, kept], mask[:, kept], positions[:, kept]
    cache = DynamicCache()
    _run(components.language_model, embeds, mask, cache, positions)
    in_place = context.style.writes_in_place and encoding is not None
    image_starts = torch.tensor(starts, device=mask.device) if in_place else None
    result = PrefixCache([(layer.keys, layer.values) for layer in cache.layers], mask, image_starts, skipped)
    if encoding is not None and not skipped:
        encoding.prefixes[key] = result
    return result


def adapter_state(language_model: Any) -> tuple[Any, ...]:
    """What LoRA adapters do to a language model at the moment. A prefix that was run under another state is of no use.

    Adapters in the layers are looked at as they are; what leaves no trace in them (weights put in or taken out by a pipeline) is
    counted in the model's `_focus_changes`.
    """
    changes = getattr(language_model, "_focus_changes", 0)
    if not getattr(language_model, "_hf_peft_config_loaded", False):
        return (changes,)
    layers = [module for module in language_model.modules() if hasattr(module, "merged_adapters")]
    return changes, *(
        (layer.disable_adapters, *layer.active_adapters, *layer.merged_adapters, *layer.scaling.items())
        for layer in layers
        if hasattr(layer, "scaling")
    )


def suffix_row(
    context: FocusContext,
    parts: Sequence[PromptPart],
    *,
    num_mask_slots: int = 0,
    code_ids: Sequence[int] = (),
    code_places: Sequence[int] | None = None,
    code_answers: Sequence[bool] | None = None,
) -> PromptRow:
    """Turn the parts of a suffix into ids and slots.

    Args:
        parts: from `PromptStyle.suffix`.
        num_mask_slots: N, for a "masks" part.
        code_ids: ids of the image a "codes" part stands for.
        code_places: their positions in the image's block; default: they are the whole block.
        code_answers: which of them the model is to write; default: all.
    """
    row = PromptRow([], [], [], [])
    for segment in context.segments(parts):
        if segment.kind == TEXT:
            row.ids += segment.ids
            row.conditions += segment.conditions
            row.answers += [segment.is_answer] * len(segment.ids)
        elif segment.kind == REGION:
            row.regions.append((len(row.ids), segment.index or 0))
            _extend(row, [SLOT], segment.conditions[0] if segment.conditions else -1, False)
        elif segment.kind == MASKS:
            row.mask_slots = len(row.ids)
            _extend(row, [SLOT] * num_mask_slots, -1, False)
        elif segment.kind == CODES:
            places = range(len(code_ids)) if code_places is None else code_places
            row.codes = (len(row.ids), tuple(places)) if code_ids else None
            row.ids += code_ids
            row.conditions += [-1] * len(code_ids)
            row.answers += [True] * len(code_ids) if code_answers is None else code_answers
        else:
            raise ValueError(
                f"A suffix cannot hold a part of kind {segment.kind!r}; images and queries belong to the prefix."
            )
    return row


def _extend(row: PromptRow, ids: list[int], condition: int, is_answer: bool) -> None:
    row.ids += ids
    row.conditions += [condition] * len(ids)
    row.answers += [is_answer] * len(ids)


def batch_rows(
    components: Components,
    rows: Sequence[PromptRow],
    *,
    region_tokens: torch.Tensor | None = None,
    region_offsets: Sequence[int] | None = None,
    pad: str = "left",
) -> SuffixBatch:
    """Put suffixes side by side and fill their slots.

    Args:
        rows: R rows.
        region_tokens: [number of regions, H] of all rows.
        region_offsets: for each row the index of its first region token; default: rows' regions follow one another.
        pad: "left" to go on writing at the end, "right" for training.
    """
    table = components.language_model.get_input_embeddings()
    device = _device_of(table)
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), SLOT)
    conditions = torch.full((len(rows), length), -1)
    labels = torch.full((len(rows), length), IGNORED)
    mask = torch.zeros((len(rows), length), dtype=torch.bool)
    starts = torch.full((len(rows),), -1)
    codes: list[tuple[int, tuple[int, ...]] | None] = []
    slot_rows, slot_positions, slot_regions = [], [], []
    region = 0
    for i, row in enumerate(rows):
        shift = length - len(row.ids) if pad == "left" else 0
        here = slice(shift, shift + len(row.ids))
        ids[i, here] = torch.tensor(row.ids)
        conditions[i, here] = torch.tensor(row.conditions)
        answers = torch.tensor(row.answers, dtype=torch.bool)
        labels[i, here] = torch.where(answers, ids[i, here], IGNORED)
        mask[i, here] = True
        if row.mask_slots >= 0:
            starts[i] = row.mask_slots + shift
        codes.append(None if row.codes is None else (row.codes[0] + shift, row.codes[1]))
        first = region_offsets[i] if region_offsets is not None else region
        for position, index in row.regions:
            slot_rows.append(i)
            slot_positions.append(position + shift)
            slot_regions.append(first + index)
        region += len(row.regions)
    embeds = table(ids.clamp(min=0).to(device))
    if slot_rows:
        if region_tokens is None:
            raise ValueError(
                f"The prompts have {len(slot_rows)} region slots but region_tokens is None; pass the tokens."
            )
        embeds = embeds.index_put(
            (torch.tensor(slot_rows, device=device), torch.tensor(slot_positions, device=device)),
            region_tokens[torch.tensor(slot_regions, device=device)].to(embeds.dtype),
        )
    with_masks = (starts >= 0).nonzero()[:, 0]
    if len(with_masks):
        slots = components.mask_decoder.slot_embeddings()
        positions = starts[with_masks, None] + torch.arange(len(slots))
        embeds = embeds.index_put(
            (with_masks[:, None].expand_as(positions).to(device), positions.to(device)),
            slots.to(embeds.dtype)[None].expand(len(with_masks), -1, -1),
        )
    return SuffixBatch(
        embeds, mask.to(device), ids.to(device), labels.to(device), conditions.to(device), starts.to(device), codes
    )


@overload
def run_suffixes(
    components: Components, prefix: PrefixCache, rows: torch.Tensor, batch: SuffixBatch
) -> tuple[torch.Tensor, DynamicCache, torch.Tensor]: ...
@overload
def run_suffixes(
    components: Components, prefix: PrefixCache, rows: torch.Tensor, batch: SuffixBatch, room: int
) -> tuple[torch.Tensor, FixedCache, torch.Tensor]: ...
def run_suffixes(
    components: Components, prefix: PrefixCache, rows: torch.Tensor, batch: SuffixBatch, room: int | None = None
) -> tuple[torch.Tensor, DynamicCache | FixedCache, torch.Tensor]:
    """Run suffixes after their prefixes; differentiable through both, but for a cache with room.

    Args:
        prefix: the prefixes' cache.
        rows: int64 [R], the prompt (row of `prefix`) each suffix belongs to.
        batch: the suffixes.
        room: how many positions will follow, where that is known: `feed` then goes on. Default: `extend` does.

    Returns:
        Last hidden states [R, T, H] (after the final norm), the grown cache, and its mask bool [R, P + T], to go on from.
    """
    rows = rows.to(batch.mask.device)
    cache = prefix.cache(rows) if room is None else prefix.cache_with_room(rows, batch.mask.shape[1] + room)
    mask = torch.cat([prefix.mask[rows], batch.mask], dim=1)
    positions = counted_positions(mask, batch.embeds.shape[1]) + prefix.skipped
    spans = [(row, *span) for row, span in enumerate(batch.codes) if span is not None]
    if spans and prefix.image_starts is not None:
        here = torch.tensor([(row, first + i, place) for row, first, at in spans for i, place in enumerate(at)])
        row, column, place = here.to(rows.device).unbind(1)
        positions[row, column] = prefix.image_starts[rows[row]] + place
    if isinstance(cache, FixedCache):
        new = None if bool(batch.mask.all()) else batch.mask
        return feed(components, batch.embeds, cache, new, positions), cache, mask
    return _run(components.language_model, batch.embeds, mask, cache, positions), cache, mask


def feed(
    components: Components,
    embeds: torch.Tensor,
    cache: FixedCache,
    new: torch.Tensor | None,
    positions: torch.Tensor,
    recorder: StepRecorder | None = None,
) -> torch.Tensor:
    """Feed positions to a cache with room. Nothing here waits for the device.

    A language model that was compiled (`language_model.model.compile()`) is so for one token, or one and the end of a row; longer
    runs have a length of their own each time and go through it as it is.

    Args:
        embeds: [R, t, H].
        new: bool [R, t], False where a row has nothing to say; None where all have.
        positions: int64 [R, t].
        recorder: of this cache, from `recorder_for`: short runs are played back. Without one every run goes through the model.

    Returns:
        Hidden states [R, t, H]; with a recorder, until the next call.
    """
    model = components.language_model.model
    watched = model._forward_pre_hooks or model._forward_hooks  # a graph cannot hold somebody else's code
    short = embeds.shape[1] <= LONGEST
    compiled = is_compiled(model) and short and not watched
    recorder = recorder if short else None
    mask: Any = cache.take(embeds.shape[1], new, whole=compiled or recorder is not None)
    # As it is: the model makes none of its own.
    as_it_is = model.config._attn_implementation == "sdpa" and not model.has_sliding_layers
    if not as_it_is and mask is not None:
        mask = mask[:, 0, -1].long()  # which slots are in use: none after the last of this step is

    def run(embeds: torch.Tensor, mask: Any, positions: torch.Tensor) -> torch.Tensor:
        mask = {"full_attention": mask} if as_it_is else mask
        out = model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        return out.last_hidden_state

    with nullcontext() if compiled else uncompiled(model), unplanned_attention(embeds.device):
        return recorder(run, embeds, mask, positions) if recorder else run(embeds, mask, positions)


def extend(
    components: Components,
    embeds: torch.Tensor,
    cache: DynamicCache,
    mask: torch.Tensor,
    new: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Feed further positions to a cache from `run_suffixes`.

    Args:
        embeds: [R, t, H].
        mask: bool [R, what is in the cache].
        new: bool [R, t], False where a row has nothing to say; default: all True.
        positions: int64 [R, t]; default: they go on counting.

    Returns:
        Hidden states [R, t, H] and the grown mask.
    """
    if new is None:
        new = torch.ones(embeds.shape[:2], dtype=torch.bool, device=mask.device)
    mask = torch.cat([mask, new], dim=1)
    return _run(components.language_model, embeds, mask, cache, positions), mask


def counted_positions(mask: torch.Tensor, length: int) -> torch.Tensor:
    """Positions [R, length] of the last `length` tokens: they count what is not masked, as `generate` does."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)[:, -length:]


def image_positions(
    prefix: PrefixCache, rows: torch.Tensor, places: Sequence[int] | torch.Tensor
) -> torch.Tensor | None:
    """Positions [R, n] of the tokens at `places` of images written over those of prompts `rows` [R]; None where the style goes
    on counting.
    """
    if prefix.image_starts is None:
        return None
    return prefix.image_starts[rows][:, None] + torch.as_tensor(places, device=rows.device)


def _run(
    language_model: Any,
    embeds: torch.Tensor,
    mask: torch.Tensor,
    cache: DynamicCache,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """Last hidden states of new positions."""
    if positions is None:
        positions = counted_positions(mask, embeds.shape[1])
    with uncompiled(language_model.model), unplanned_attention(embeds.device):
        out = language_model.model(
            inputs_embeds=embeds,
            attention_mask=mask.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
    return out.last_hidden_state


def condition_states(hidden: torch.Tensor, conditions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """E^P: the mean last hidden state over each condition's tokens.

    Args:
        hidden: [R, T, H].
        conditions: int64 [R, T], number of the condition at each position, -1 for none.

    Returns:
        [R, K, H] with K the largest number of conditions in a row (at least 1), and bool [R, K], which of them exist.
    """
    count = max(1, int(conditions.max()) + 1)
    member = conditions[:, None] == torch.arange(count, device=conditions.device)[None, :, None]
    size = member.sum(-1)
    weights = member / size.clamp(min=1)[..., None]
    return torch.bmm(weights.to(hidden.dtype), hidden), size > 0


def slot_states(hidden: torch.Tensor, starts: torch.Tensor, num_slots: int) -> torch.Tensor:
    """E^Q: the last hidden states [R, N, H] of the mask slots that begin at `starts` int64 [R]."""
    positions = starts[:, None] + torch.arange(num_slots, device=starts.device)
    return hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))


def _device_of(table: torch.nn.Module) -> torch.device:
    """Where an embedding computes; under sequential offloading its weight rests on the meta device."""
    device = next(table.parameters()).device
    hook = getattr(table, "_hf_hook", None)
    return torch.device(hook.execution_device) if device.type == "meta" and hook is not None else device


def _pad(rows: Sequence[torch.Tensor], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(len(row) for row in rows)
    if all(len(row) == length for row in rows):
        stacked = torch.stack(list(rows))
        return stacked, torch.ones(stacked.shape[:2], dtype=torch.bool, device=stacked.device)
    padded = rows[0].new_zeros(len(rows), length, rows[0].shape[-1])
    mask = torch.zeros(len(rows), length, dtype=torch.bool, device=padded.device)
    for i, row in enumerate(rows):
        here = slice(length - len(row), length) if left else slice(0, len(row))
        padded[i, here] = row
        mask[i, here] = True
    return padded, mask
