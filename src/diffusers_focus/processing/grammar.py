"""How images are written: which ids may follow which, guidance, and sampling filters.

Paper: FOCUS (arXiv 2506.16806) writes semantic tokens, then pixel tokens, row by row; grammar, guidance on log
probabilities and the filters per kind of token are those of ILLUME+ (arXiv 2504.01934, Apache-2.0), re-implemented:
here every item of a batch has a state of its own, and nothing waits for the device.

Given the two grids, an image block has a fixed length and structure, so a position in the block says everything:

    position   0      1      2 ...                     length - 1
    id       <soi>  <sol0>  semantic ... <eol> ...      <eoi>

`VisualTokenGrammar` is that table; it serves decoding loops that know where they are. `InterleavedLogitsProcessor`
finds the position in the ids written so far and serves `generate`, where text and images alternate freely.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import LogitsProcessor

from .grids import block_length
from .vocabulary import FocusVocabulary

TEXT_MODE, SEMANTIC_MODE, PIXEL_MODE = 0, 1, 2
FORCED = 0  # in `VisualTokenGrammar.kinds`: a marker, not a cell


class VisualTokenGrammar:
    """The structure of one image block.

    Args:
        vocabulary: the ids.
        semantic_grid: (rows, columns) of semantic tokens.
        pixel_grid: (rows, columns) of pixel tokens.

    Attributes:
        length: ids in the block, start and end marker included.
        kinds: int64 [length]: 0 a forced marker, 1 a semantic cell, 2 a pixel cell.
        modes: int64 [length]: whose filters apply: 1 semantic, 2 pixel (ends included), 0 text (start markers).
        first, stop: int64 [length]: ids first <= id < stop are allowed.
        forced_ids: int64 [length]: the only id allowed, -1 at cells.
        semantic_positions, pixel_positions: int64 [cells] in raster order.
    """

    def __init__(
        self, vocabulary: FocusVocabulary, semantic_grid: tuple[int, int], pixel_grid: tuple[int, int]
    ) -> None:
        if min(*semantic_grid, *pixel_grid) < 1:
            raise ValueError(
                f"Both grids need at least one row and one column, got {tuple(semantic_grid)} semantic and "
                f"{tuple(pixel_grid)} pixel tokens."
            )
        self.vocabulary = vocabulary
        self.semantic_grid = tuple(semantic_grid)
        self.pixel_grid = tuple(pixel_grid)
        self.length = block_length(semantic_grid, pixel_grid)
        v = vocabulary
        cell = -1
        ids, kinds, modes = [v.start_of_image], [FORCED], [TEXT_MODE]
        levels = (
            (SEMANTIC_MODE, self.semantic_grid, v.start_of_level0, v.end_of_level0),
            (PIXEL_MODE, self.pixel_grid, v.start_of_level1, v.end_of_level1),
        )
        for mode, (rows, columns), start, end in levels:
            ids += [start, *([cell] * columns + [v.end_of_line]) * rows, end]
            kinds += [FORCED, *([mode] * columns + [FORCED]) * rows, FORCED]
            modes += [TEXT_MODE] + [mode] * (rows * (columns + 1) + 1)
        ids, kinds, modes = ids + [v.end_of_image], kinds + [FORCED], modes + [TEXT_MODE]
        self.forced_ids, self.kinds, self.modes = torch.tensor(ids), torch.tensor(kinds), torch.tensor(modes)
        ranges = torch.tensor([(0, 0), v.level0_range, v.level1_range])
        is_cell = self.kinds != FORCED
        self.first = torch.where(is_cell, ranges[self.kinds, 0], self.forced_ids)
        self.stop = torch.where(is_cell, ranges[self.kinds, 1], self.forced_ids + 1)
        self.semantic_positions = (self.kinds == SEMANTIC_MODE).nonzero().flatten()
        self.pixel_positions = (self.kinds == PIXEL_MODE).nonzero().flatten()

    def to(self, device: torch.device | str) -> VisualTokenGrammar:
        """Move the table, in place; returns itself."""
        for name in ("forced_ids", "kinds", "modes", "first", "stop", "semantic_positions", "pixel_positions"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def __len__(self) -> int:
        return self.length

    def sequence_template(self) -> list[tuple[str, int, int]]:
        """The block as plain data, for each position: (kind, first id, one past the last id).

        Kinds are "forced" (one id), "semantic" and "pixel" (a range).
        """
        names = ("forced", "semantic", "pixel")
        return [
            (names[kind], first, stop)
            for kind, first, stop in zip(self.kinds.tolist(), self.first.tolist(), self.stop.tolist(), strict=True)
        ]

    def allowed_mask(self, position: int | torch.Tensor, vocab_size: int | None = None) -> torch.Tensor:
        """Which ids may stand at a position.

        Args:
            position: of the id to be written, 0 for the start marker; int, or int64 [batch].
            vocab_size: rows of the logits; the vocabulary's by default.

        Returns:
            bool [vocab] or [batch, vocab] on the grammar's device.
        """
        ids = torch.arange(vocab_size or self.vocabulary.embedding_rows, device=self.first.device)
        first, stop = self.first[position], self.stop[position]
        return (ids >= first.unsqueeze(-1)) & (ids < stop.unsqueeze(-1))

    def constrain(self, logits: torch.Tensor, position: int | torch.Tensor) -> torch.Tensor:
        """Logits [batch, vocab] with every id that may not stand at `position` (int or [batch]) at minus infinity."""
        return logits.masked_fill(~self.allowed_mask(position, logits.shape[-1]), float("-inf"))

    def positions(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Where in a block the next id of each sequence stands.

        Args:
            input_ids: int64 [batch, length] of what has been written; may be empty.

        Returns:
            int64 [batch]: position in the block, -1 outside of images.
        """
        length = input_ids.shape[1]
        if length == 0:
            return input_ids.new_full((input_ids.shape[0],), -1)
        column = torch.arange(length, device=input_ids.device)
        starts = torch.where(input_ids == self.vocabulary.start_of_image, column, -self.length - length)
        position = length - starts.max(dim=1).values
        return torch.where(position < self.length, position, -1)

    def advance(self, position: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The positions after writing `ids` [batch] at `position` [batch]; -1 stands for text."""
        inside = torch.where(position + 1 < self.length, position + 1, -1)
        outside = torch.where(ids == self.vocabulary.start_of_image, 1, -1)
        return torch.where(position >= 0, inside, outside)

    def image_codes(self, block_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Written blocks int64 [..., length] -> codebook indices [..., h1, w1] and [..., h2, w2]."""
        if block_ids.shape[-1] != self.length:
            raise ValueError(
                f"A block of these grids has {self.length} ids, got {block_ids.shape[-1]}. Pass the ids from start to "
                "end of one image."
            )
        lead = block_ids.shape[:-1]
        semantic = block_ids[..., self.semantic_positions] - self.vocabulary.level0_range[0]
        pixel = block_ids[..., self.pixel_positions] - self.vocabulary.level1_range[0]
        return semantic.reshape(*lead, *self.semantic_grid), pixel.reshape(*lead, *self.pixel_grid)


@dataclass(frozen=True)
class TokenSampling:
    """How one kind of token is drawn.

    Attributes:
        temperature: divides the logits; above zero.
        top_k: keep this many of the likeliest ids; 0 keeps all.
        top_p: keep the likeliest ids that together have this probability; 1.0 keeps all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}. For greedy decoding use top_k=1.")
        if self.top_k < 0 or self.top_k != int(self.top_k):
            raise ValueError(f"top_k must be a whole number, 0 to keep all ids, got {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}. 1.0 keeps all ids.")


def guide_logits(cond: torch.Tensor, uncond: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    """Classifier-free guidance on log probabilities: scale * (cond - uncond) + uncond.

    Args:
        cond, uncond: logits [..., vocab] of the same shape.
        scale: 1.0 gives the log probabilities of `cond`; a tensor that broadcasts has one a row.

    The normalisers shift a whole row, so guiding only the slice of ids that will be sampled from gives the same
    distribution as guiding the whole vocabulary.
    """
    cond = torch.log_softmax(cond.float(), dim=-1)
    if not isinstance(scale, torch.Tensor) and scale == 1.0:
        return cond
    uncond = torch.log_softmax(uncond.float(), dim=-1)
    guided = scale * (cond - uncond) + uncond
    return torch.where(scale == 1.0, cond, guided) if isinstance(scale, torch.Tensor) else guided


def filter_logits(
    logits: torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    top_k: int | torch.Tensor = 0,
    top_p: float | torch.Tensor = 1.0,
) -> torch.Tensor:
    """Temperature, then top-k, then top-p.

    Args:
        logits: [batch, vocab]; banned ids at minus infinity.
        temperature, top_k, top_p: one number, or one a row: tensors [batch]. top_k 0 and top_p 1.0 are off.

    Returns:
        [batch, vocab], ids that are filtered out at minus infinity. Ids tied with the last of the top k stay.
    """
    per_row = any(isinstance(value, torch.Tensor) for value in (temperature, top_k, top_p))
    batch, vocab = logits.shape
    if not per_row and top_p == 1.0:  # what most draw with, without sorting 98,304 ids
        logits = logits / temperature if temperature != 1.0 else logits
        if not 0 < top_k < vocab:
            return logits
        smallest = logits.topk(top_k, dim=-1).values[:, -1:]
        return torch.where(logits < smallest, float("-inf"), logits)

    def column(value: float | torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if isinstance(value, torch.Tensor):
            return value.to(dtype).expand(batch).unsqueeze(-1)
        return torch.full((batch, 1), value, dtype=dtype, device=logits.device)

    logits = logits / column(temperature, logits.dtype)
    k, p = column(top_k, torch.long), column(top_p, torch.float32)
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    last = torch.where(k > 0, k.clamp(max=vocab), vocab) - 1
    ordered = ordered.masked_fill(ordered < ordered.gather(-1, last), float("-inf"))
    # An id goes when those likelier than it already hold top_p; the likeliest one always stays.
    probabilities = ordered.softmax(dim=-1, dtype=torch.float32)
    before = probabilities.cumsum(dim=-1) - probabilities
    drop = (before >= p) & (p < 1)
    drop[:, 0] = False
    ordered = ordered.masked_fill(drop, float("-inf"))
    return torch.empty_like(logits).scatter_(-1, order, ordered)


def text_banned_ids(vocabulary: FocusVocabulary, vocab_size: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """bool [vocab_size]: ids that may not stand outside of images: codes, ends of lines and level markers.

    Start and end of image, resolution tags and unused rows (the mask trigger among them) may, as in the original.
    """
    v = vocabulary
    ids = torch.arange(vocab_size, device=device)
    banned = (ids >= v.level0_range[0]) & (ids < v.level0_range[1])
    banned |= (ids >= v.level1_range[0]) & (ids < v.level1_range[1])
    for marker in (v.end_of_line, v.start_of_level0, v.end_of_level0, v.start_of_level1, v.end_of_level1):
        banned |= ids == marker
    return banned


def process_logits(
    cond: torch.Tensor,
    uncond: torch.Tensor | None,
    position: torch.Tensor,
    grammar: VisualTokenGrammar,
    *,
    guidance_scale: float = 1.0,
    text: TokenSampling = TokenSampling(),  # noqa: B008 - frozen
    semantic: TokenSampling = TokenSampling(),  # noqa: B008
    pixel: TokenSampling = TokenSampling(),  # noqa: B008
) -> torch.Tensor:
    """One step of interleaved writing: guidance inside images, the grammar, the filters of each item's mode.

    Args:
        cond, uncond: logits [batch, vocab]; `uncond` may be None where the guidance scale is 1.0.
        position: int64 [batch], see `VisualTokenGrammar.positions`; -1 outside of images.
        grammar: on the device of the logits.
        guidance_scale: applied inside images only.
        text, semantic, pixel: how each kind of token is drawn.

    Returns:
        float32 [batch, vocab]: log probabilities inside images, logits outside; what may not follow at minus infinity.
    """
    if uncond is None and guidance_scale != 1.0:
        raise ValueError(
            f"guidance_scale={guidance_scale} needs unconditional logits. Pass them, or 1.0 for no guidance."
        )
    in_image = position >= 0
    guided = guide_logits(cond, cond if uncond is None else uncond, guidance_scale)
    scores = torch.where(in_image.unsqueeze(-1), guided, cond.float())
    safe = position.clamp(min=0)
    banned = torch.where(
        in_image.unsqueeze(-1),
        ~grammar.allowed_mask(safe, cond.shape[-1]),
        text_banned_ids(grammar.vocabulary, cond.shape[-1], cond.device),
    )
    scores = scores.masked_fill(banned, float("-inf"))
    mode = torch.where(in_image, grammar.modes[safe], TEXT_MODE)

    def pick(name: str) -> float | torch.Tensor:
        of_text, of_semantic, of_pixel = (getattr(sampling, name) for sampling in (text, semantic, pixel))
        if of_text == of_semantic == of_pixel:
            return of_text
        return torch.where(mode == TEXT_MODE, of_text, torch.where(mode == SEMANTIC_MODE, of_semantic, of_pixel))

    return filter_logits(scores, pick("temperature"), pick("top_k"), pick("top_p"))


def unconditional_ids(prompt_ids: torch.Tensor, written: torch.Tensor, start_of_image: int) -> torch.Tensor:
    """What the unconditional branch reads when an image begins, as in ILLUME+: its prompt, and how the image was opened.

    After the prompt come the last three ids that were written (a resolution tag and the start marker; stray text where the
    model wrote no tag), the marker alone where the prompt ends with that very tag, and nothing where it ends with the
    marker. From then on the branch reads what is written, id by id.

    Args:
        prompt_ids: int64 [batch, P], the unconditional prompt.
        written: int64 [batch, L], what has been written, up to the start marker.
        start_of_image: the id of the start marker.

    Returns:
        int64 [batch, P + 0, 1, 2 or 3].
    """
    if bool((prompt_ids[:, -1] == start_of_image).all()):
        return prompt_ids
    opening = written[:, -3:]
    if opening.shape[1] == 3 and torch.equal(opening[:, :2], prompt_ids[:, -2:]):
        opening = opening[:, 2:]
    return torch.cat([prompt_ids, opening], dim=1)


class InterleavedLogitsProcessor(LogitsProcessor):
    """`process_logits` for transformers' `generate`; each item of the batch follows its own text and images.

    Args:
        grammar: the block to write.
        guidance_scale: inside images.
        unconditional: called with the ids written so far [batch, length] while any item is inside an image; returns the
            unconditional logits [batch, vocab]. It keeps its own cache; `unconditional_ids` says what it reads when an
            image begins. Not needed at a guidance scale of 1.0.
        prompt_ids: int64 [batch, length] that came before what `generate` sees, where it was given embeddings instead
            of ids: a start marker at its end means that images begin at once.
        text, semantic, pixel: how each kind of token is drawn. Leave `generate`'s own temperature, top_k and top_p off,
            they would apply a second time.
    """

    def __init__(
        self,
        grammar: VisualTokenGrammar,
        guidance_scale: float = 1.0,
        unconditional: Callable[[torch.Tensor], torch.Tensor] | None = None,
        prompt_ids: torch.Tensor | None = None,
        text: TokenSampling = TokenSampling(),  # noqa: B008 - frozen
        semantic: TokenSampling = TokenSampling(),  # noqa: B008
        pixel: TokenSampling = TokenSampling(),  # noqa: B008
    ) -> None:
        if guidance_scale != 1.0 and unconditional is None:
            raise ValueError(f"guidance_scale={guidance_scale} needs `unconditional`. Pass it, or 1.0 for no guidance.")
        self.grammar = grammar
        self.guidance_scale = guidance_scale
        self.unconditional = unconditional
        self.prompt_ids = prompt_ids
        self.text, self.semantic, self.pixel = text, semantic, pixel

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        grammar = self.grammar.to(scores.device)
        written = input_ids
        if self.prompt_ids is not None:
            written = torch.cat([self.prompt_ids.to(input_ids.device), input_ids], dim=1)
        position = grammar.positions(written)
        uncond = None
        scale = self.guidance_scale
        if scale != 1.0:
            # The one look at the device: a second model pass in pure text would cost far more.
            if bool((position >= 0).any()):
                uncond = self.unconditional(input_ids)
            else:
                scale = 1.0
        return process_logits(
            scores,
            uncond,
            position,
            grammar,
            guidance_scale=scale,
            text=self.text,
            semantic=self.semantic,
            pixel=self.pixel,
        )
