"""Writing images: semantic codes, then pixel codes, in raster order, under the grammar and with guidance.

FOCUS section "Visual tokens", decoding after ILLUME+ (arXiv 2504.01934, Apache-2.0), re-implemented for batches. What is known
beforehand (markers; in a local edit the source's codes outside the edit mask) is never drawn: it is fed in runs, one forward
each, or left out where an image is written in place of its source (`fed_positions`). The unconditional branch of guidance stands
in the same batch and the same cache as the conditional one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ..processing.grammar import TokenSampling, VisualTokenGrammar, guide_logits
from .encode import Components
from .guidance import CellGuide
from .sampling import Generators, draw_ids, is_greedy, nearest_to_mean, uniform_numbers
from .sequence import (
    PrefixCache,
    PromptRow,
    batch_rows,
    counted_positions,
    feed,
    image_positions,
    run_suffixes,
)
from .step_graph import recorder_for


def block_template(
    grammar: VisualTokenGrammar,
    rows: int,
    *,
    codes: tuple[torch.Tensor, torch.Tensor] | None = None,
    free: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is known of R image blocks before anything is drawn.

    Args:
        grammar: of the block.
        rows: R.
        codes: known codes, int64 semantic [R, h1, w1] and pixel [R, h2, w2]; None where nothing is known.
        free: bool, of the same shapes: which cells are to be drawn; None draws all.

    Returns:
        ids int64 [R, L], the first code where unknown; draw bool [R, L], True where the id is to be drawn. On the grammar's device.
    """
    device = grammar.kinds.device
    ids = grammar.first.expand(rows, -1).clone()  # a whole block even where drawing is interrupted
    draw = (grammar.kinds != 0).expand(rows, -1).clone()
    if codes is not None and free is not None:
        vocabulary = grammar.vocabulary
        levels = (
            (grammar.semantic_positions, grammar.semantic_grid, vocabulary.level0_range[0]),
            (grammar.pixel_positions, grammar.pixel_grid, vocabulary.level1_range[0]),
        )
        for (positions, grid, first), known, cells in zip(levels, codes, free):
            if tuple(known.shape) != (rows, *grid) or tuple(cells.shape) != (rows, *grid):
                raise ValueError(
                    f"Known codes {list(known.shape)} and free cells {list(cells.shape)} must be [{rows}, {grid[0]}, "
                    f"{grid[1]}], the rows and grid of the block. Resample the mask to the token grid first."
                )
            ids[:, positions] = known.flatten(1).to(device) + first
            draw[:, positions] = cells.flatten(1).to(device)
    return ids, draw


def fed_positions(draw: torch.Tensor) -> torch.Tensor:
    """What a local edit in place reads of its own block: bool [..., L] from `draw` bool [..., L], where ids are drawn.

    The ids that are drawn, and the one before each run of them, whose position says which cell comes next. All others are the
    source's, and the source's tokens stand at the same positions in the prefix: the tokens follow the area of the edit.
    """
    return draw | F.pad(draw[..., 1:], (0, 1))


def head_rows(head: nn.Module, hidden: torch.Tensor, first: int, stop: int) -> torch.Tensor:
    """Logits [R, stop - first] of the ids first..stop, for hidden states [R, H].

    Only those rows of a plain output head are multiplied: at 3B the head of all 284,000 ids is a sixth of the model, and the
    grammar allows an eighth or a third of them. A head that is adapted, quantised, cast or kept elsewhere runs as a whole.
    """
    weight = getattr(head, "weight", None)
    plain = (
        type(head) is nn.Linear
        and type(weight) is nn.Parameter
        and head.bias is None
        and weight.device == hidden.device
        and weight.dtype == hidden.dtype
        and not (head._forward_hooks or head._forward_pre_hooks)
        and not any(hasattr(head, hook) for hook in ("_hf_hook", "_diffusers_hook"))  # offloading, casting
    )
    return F.linear(hidden, head.weight[first:stop]) if plain else head(hidden)[:, first:stop]


def write_codes(
    components: Components,
    prefix: PrefixCache,
    rows: Sequence[PromptRow],
    prompt_index: Sequence[int],
    grammar: VisualTokenGrammar,
    *,
    unconditional: Sequence[PromptRow] | None = None,
    guidance_scale: float | Sequence[float] = 1.0,
    semantic: TokenSampling = TokenSampling(),  # noqa: B008 - frozen
    pixel: TokenSampling = TokenSampling(),  # noqa: B008
    sharpness: float = 0.0,
    template: tuple[torch.Tensor, torch.Tensor] | None = None,
    region_tokens: torch.Tensor | None = None,
    guide: CellGuide | None = None,
    generator: Generators = None,
    on_token: Callable[[], bool] | None = None,
) -> torch.Tensor:
    """Write one image block for each of R prompts.

    Args:
        prefix: prefixes of the prompts' images.
        rows: R suffixes that end with the resolution tag.
        prompt_index: row of the prefix for each suffix.
        grammar: the block; one grid for the whole batch.
        unconditional: R suffixes of the unconditional branch; needed where `guidance_scale` is not 1.
        guidance_scale: scale * (log p_cond - log p_uncond) + log p_uncond; a list has one for each suffix.
        semantic, pixel: how ids of each level are drawn.
        sharpness: above 0, greedy pixel codes are those nearest to the mean of what could be written (`nearest_to_mean`). Guidance
            above 1 raises odds as well, so the power is this over its scale.
        template: from `block_template`; by default every cell is drawn.
        region_tokens: [regions, H] of `rows`, in their order.
        guide: from `cell_guide`; the states that pixel codes are read from go through it.
        generator: for drawing; unused where both levels are greedy.
        on_token: called after each drawn position; returning False stops, and cells not yet drawn keep the template's ids.

    Returns:
        Block ids int64 [R, L]; `grammar.image_codes` turns them into index maps.

    Raises:
        ValueError: guidance without unconditional prompts.
    """
    scales = torch.tensor(guidance_scale, dtype=torch.float32).reshape(-1, 1).expand(len(rows), 1)
    guided = bool((scales != 1.0).any())
    if guided and (unconditional is None or len(unconditional) != len(rows)):
        raise ValueError(
            f"guidance_scale={guidance_scale} needs one unconditional prompt for each of the {len(rows)} prompts. Pass them, or "
            "1.0 for no guidance."
        )
    count, branches = len(rows), 2 if guided else 1
    batch = batch_rows(
        components, [*rows, *(unconditional or ())] if guided else list(rows), region_tokens=region_tokens, pad="left"
    )
    device = batch.mask.device
    grammar, scales = grammar.to(device), scales.to(device)
    ids, draw = template if template is not None else block_template(grammar, count)
    ids, draw = ids.to(device).clone(), draw.to(device)
    drawn_at = draw.any(dim=0).nonzero()[:, 0].tolist()
    if not drawn_at:
        return ids
    numbers = None
    if not (is_greedy(semantic) and is_greedy(pixel)):
        # One number for each position, drawn or not: a cell draws the same whatever else is known.
        numbers = uniform_numbers(count, grammar.length, generator).to(device)
    vectors = None
    if sharpness and is_greedy(pixel):
        vectors = components.visual_tokenizer.pixel_quantizer.vectors().to(device)
    first, stop = grammar.first.tolist(), grammar.stop.tolist()
    cell_of = {position: cell for cell, position in enumerate(grammar.pixel_positions.tolist())}
    needed = torch.ones_like(draw) if prefix.image_starts is None else fed_positions(draw)
    order = needed[:, : drawn_at[-1] + 1].any(dim=0).nonzero()[:, 0]  # what is read, and the last one drawn
    place_of = {place: index for index, place in enumerate(order.tolist())}
    # From here on an index is one into `order`. All that is known beforehand is made ready; the loop waits for nothing.
    line, new = ids[:, order], needed[:, order].repeat(branches, 1)
    prompt_rows = torch.tensor(list(prompt_index) * branches, device=device)
    table, head = components.language_model.get_input_embeddings(), components.language_model.lm_head
    hidden, cache, mask = run_suffixes(components, prefix, prompt_rows, batch, room=len(order) - 1)
    places = image_positions(prefix, prompt_rows, order)
    if places is None:
        places = counted_positions(torch.cat([mask, new], dim=1), len(order)) + prefix.skipped
    same, fed = bool(new.all()), 0
    recorder = recorder_for(components.language_model.model, len(drawn_at))
    for position in drawn_at:
        index = place_of[position]
        if index > fed:
            embeds = table(line[:, fed:index]).repeat(branches, 1, 1)
            said = None if same else new[:, fed:index]
            hidden = feed(components, embeds, cache, said, places[:, fed:index], recorder)
        fed = index
        state, cell = hidden[:, -1], cell_of.get(position)  # of semantic codes None
        if guide is not None and cell is not None:
            state = guide(state, cell)
        logits = head_rows(head, state, first[position], stop[position])
        if guided:
            logits = guide_logits(logits[:count], logits[count:], scales)
        if vectors is not None and cell is not None:
            drawn = nearest_to_mean(logits, vectors, sharpness / scales.clamp(min=1)) + first[position]
        else:
            sampling = semantic if cell is None else pixel
            drawn = draw_ids(logits, sampling, None if numbers is None else numbers[:, position]) + first[position]
        line[:, index] = torch.where(draw[:, position], drawn, line[:, index])
        if on_token is not None and not on_token():
            break
    ids[:, order] = line
    return ids
