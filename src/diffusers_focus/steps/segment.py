"""From a prompt about an image to its objects: names, mask slots, masks, scores.

FOCUS section "Segmentation predictor": the language model first writes the names of the objects, then N mask slots are read in
one parallel forward; their states E^Q and the condition's states E^P go to the mask decoder. Selecting among the N proposals
(score threshold, duplicates by mask IoU) follows Mask2Former's inference (arXiv 2112.01527, MIT).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..models.mask_decoder import FocusMaskOutput
from ..processing.images import FocusImageProcessor, Placement
from ..processing.prompts import CLASS, INTERACTIVE, REASONING, REFERRING
from .arguments import check_count, check_numbers, check_text, region_masks, spread
from .encode import Components, FocusImageEncoding, embed_regions, mask_pixels, wake
from .sequence import FocusContext, batch_rows, condition_states, encode_prefix, extend, run_suffixes, suffix_row
from .settings import Settings
from .understand import banned_text_ids, write_text

NAME_SEPARATOR = ","
MAX_NAMES = 48  # tokens of the names before the masks, unless the caller says otherwise
NO_OBJECT = "nothing"  # what a model writes in place of names where an expression has no target


@dataclass(frozen=True, eq=False)
class MaskPrompt:
    """One thing to look for in one image.

    Args:
        image: index of the image in its encoding.
        task: a segmentation task, or "edit" for what an instruction is about.
        text: expression, question or instruction; the list of names for "class"; None for "interactive".
        regions: bool [height, width] masks at the size of the user's image, one per pointed region.
    """

    image: int
    task: str
    text: str | list[str] | None = None
    regions: tuple[np.ndarray, ...] = ()


@dataclass
class MaskReading:
    """What the mask decoder says to R prompts.

    Args:
        mask_logits, edit_logits: [R, N, h, w] on the mask decoder's grid over the canvas.
        condition_logits: [R, N, K].
        instance_embeds: [R, N, D].
        text: the names each prompt's answer holds.
    """

    mask_logits: torch.Tensor
    edit_logits: torch.Tensor
    condition_logits: torch.Tensor
    instance_embeds: torch.Tensor
    text: list[str]


@dataclass
class FoundObjects:
    """The objects a prompt refers to, best score first.

    Args:
        masks: bool [objects, height, width] at the size of the user's image.
        edit_mask: bool [height, width], the union of where their pixels may change.
        scores: float32 [objects].
        labels: a name each.
        text: the names the model wrote.
        instance_embeds: float32 [objects, D].
    """

    masks: np.ndarray
    edit_mask: np.ndarray
    scores: np.ndarray
    labels: list[str] = field(default_factory=list)
    text: str = ""
    instance_embeds: np.ndarray | None = None


def read_masks(
    components: Components,
    encoding: FocusImageEncoding,
    prompts: Sequence[MaskPrompt],
    *,
    max_new_tokens: int = MAX_NAMES,
    region_tokens: torch.Tensor | None = None,
) -> MaskReading:
    """Run R prompts and the mask decoder. The names are written greedily; the masks come whether or not the model asks for them.

    Args:
        encoding: images, one a prompt group.
        prompts: what to look for; several may be about the same image.
        max_new_tokens: longest list of names.
        region_tokens: [number of regions, H] in place of those of the prompts' regions here, such as from another frame of a clip.
    """
    context = FocusContext.of(components)
    vocabulary = context.vocabulary
    rows = [
        suffix_row(context, context.style.suffix(prompt.task, text=prompt.text, num_regions=len(prompt.regions)))
        for prompt in prompts
    ]
    if region_tokens is None:
        regions = [(prompt.image, region) for prompt in prompts for region in prompt.regions]
        region_tokens = embed_regions(
            components, encoding, [image for image, _ in regions], [mask for _, mask in regions]
        )
    slots = components.mask_decoder.slot_embeddings()
    features = mask_pixels(components, encoding)
    wake(components, "language_model")
    # One prefix whatever the tasks: only styles without segmentation make it depend on the task.
    prefix = encode_prefix(components, context, encoding, task=prompts[0].task)
    batch = batch_rows(components, rows, region_tokens=region_tokens, pad="left")
    images = torch.tensor([prompt.image for prompt in prompts])
    hidden, cache, mask = run_suffixes(components, prefix, images, batch)
    conditions, condition_mask = condition_states(hidden, batch.conditions)

    trigger = vocabulary.mask_trigger
    banned = banned_text_ids(vocabulary, components.language_model.config.vocab_size, hidden.device, allow_masks=True)
    written = write_text(
        components,
        hidden,
        cache,
        mask,
        banned=banned,
        stop_ids=(trigger, vocabulary.end_of_text, vocabulary.pad),
        max_new_tokens=max_new_tokens,
    )
    table = components.language_model.get_input_embeddings()
    start = table(torch.full((len(rows), 1), trigger, device=hidden.device))
    embeds = torch.cat([start, slots.to(start)[None].expand(len(rows), -1, -1)], dim=1)
    hidden, _ = extend(components, embeds, cache, written.mask)
    output = _decode(components, features, hidden[:, 1:], conditions, condition_mask, images.tolist())
    text = [context.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in written.ids]
    return MaskReading(*output, text)


def _decode(
    components: Components,
    features: object,
    slot_states: torch.Tensor,
    conditions: torch.Tensor,
    condition_mask: torch.Tensor,
    images: list[int],
) -> tuple[torch.Tensor, ...]:
    """The mask decoder over prompts grouped by image, so that an image's pixels are read once for all its prompts."""
    groups: dict[int, list[int]] = {}
    for row, image in enumerate(images):
        groups.setdefault(image, []).append(row)
    width = max(len(group) for group in groups.values())
    table = torch.tensor([group + group[-1:] * (width - len(group)) for group in groups.values()])
    table = table.to(slot_states.device)
    output: FocusMaskOutput = components.mask_decoder.decode(
        features.select(list(groups)), slot_states[table], conditions[table], condition_mask[table]
    )
    place = {row: (i, j) for i, group in enumerate(groups.values()) for j, row in enumerate(group)}
    first = torch.tensor([place[row][0] for row in range(len(images))], device=slot_states.device)
    second = torch.tensor([place[row][1] for row in range(len(images))], device=slot_states.device)
    fields = (output.mask_logits, output.edit_logits, output.condition_logits, output.instance_embeds)
    return tuple(field[first, second] for field in fields if field is not None)


def select_objects(
    reading: MaskReading,
    row: int,
    prompt: MaskPrompt,
    processor: FocusImageProcessor,
    placement: Placement,
    *,
    score_threshold: float = 0.5,
    fallback_threshold: float = 0.3,
    duplicate_iou: float = 0.7,
) -> FoundObjects:
    """The objects among one prompt's proposals.

    The score of a proposal is the sigmoid of its best condition logit. The model has written the names of what it means, so as
    many objects count as there are names: the best proposals above `fallback_threshold`; none after "nothing". For a list of
    classes, and where no name was written, every proposal above `score_threshold` counts. What was pointed at by regions alone is
    something that lies there: of the proposals only those that hold the regions count, and the best of them always does. Of
    proposals that overlap by more than `duplicate_iou` the better one stays.
    """
    names = _names(reading.text[row]) if prompt.task != CLASS else []
    probabilities = reading.condition_logits[row].float().sigmoid()
    scores, classes = probabilities.max(dim=-1)
    scores, order = scores.sort(descending=True)
    keep = scores > (fallback_threshold if names else score_threshold)
    if prompt.task != CLASS and reading.text[row] == NO_OBJECT:
        keep[:] = False
    if prompt.task == INTERACTIVE and prompt.regions:
        holding = _holding(reading.mask_logits[row], prompt.regions, placement)[order]
        if holding.any():
            keep &= holding
            best = int(holding.nonzero()[0, 0])
            part, wholes = _own_part(reading.mask_logits[row][order], holding, best)
            keep &= ~wholes
            keep[part] = True  # a region without any object would be a slip of the model, not of the user
    order, scores = order[keep], scores[keep]
    order, scores = _without_duplicates(reading.mask_logits[row], order, scores, duplicate_iou)
    if names:
        order, scores = order[: len(names)], scores[: len(names)]

    height, width = placement.source
    if len(order) == 0:
        embeds = np.zeros((0, reading.instance_embeds.shape[-1]), dtype=np.float32)
        nothing = np.zeros((0, height, width), dtype=bool)
        return FoundObjects(
            nothing, np.zeros((height, width), bool), np.zeros(0, np.float32), [], reading.text[row], embeds
        )
    masks = processor.restore_mask(reading.mask_logits[row, order].float(), placement) > 0
    seen = masks.flatten(1).any(dim=1)
    masks, order, scores = masks[seen], order[seen], scores[seen]
    assert reading.edit_logits is not None
    edits = processor.restore_mask(reading.edit_logits[row, order].float(), placement) > 0
    found = masks.cpu().numpy()
    if prompt.task == CLASS:
        assert prompt.text is not None
        labels = [prompt.text[index] for index in classes[order].tolist()]
    else:
        fallback = prompt.text if isinstance(prompt.text, str) else "object"
        labels = name_objects(found, reading.text[row], fallback)
    return FoundObjects(
        masks=found,
        edit_mask=edits.any(dim=0).cpu().numpy() if len(edits) else np.zeros((height, width), dtype=bool),
        scores=scores.float().cpu().numpy(),
        labels=labels,
        text=reading.text[row],
        instance_embeds=reading.instance_embeds[row, order].float().cpu().numpy(),
    )


def _holding(mask_logits: torch.Tensor, regions: Sequence[np.ndarray], placement: Placement) -> torch.Tensor:
    """Which proposals hold a region: at least half as much of it as the one that holds most; bool [N].

    Args:
        mask_logits: [N, h, w] on the mask decoder's grid over the canvas.
        regions: bool [height, width] at the size of the user's image.
    """
    inside = (mask_logits > 0).float()
    found = torch.zeros(len(inside), dtype=torch.bool, device=inside.device)
    for region in regions:
        placed = placement.place_mask(torch.from_numpy(region), mode="any").to(inside.device, torch.float32)
        cells = F.interpolate(placed[None, None], size=inside.shape[-2:], mode="area")[0, 0]
        share = torch.einsum("nhw,hw->n", inside, cells)
        found |= (share > 0) & (share >= 0.5 * share.max())
    return found


def _own_part(mask_logits: torch.Tensor, holding: torch.Tensor, best: int) -> tuple[int, torch.Tensor]:
    """Of two equal objects the model likes to see one: the proposal that is the pointed one's part of the best one, or the best;
    and bool [N], the proposals that cover that part and are more than it.

    The best proposal falls into two where one proposal within it holds the region and another within it does not, and the two
    share nothing to speak of.

    Args:
        mask_logits: [N, h, w], best score first.
        holding: bool [N], which hold the region.
        best: the first of these.
    """
    inside = (mask_logits > 0).flatten(1).float()
    area = inside.sum(1).clamp(min=1)
    shared = inside @ inside.T
    within = (shared[best] > 0.7 * area) & (area > 0.2 * area[best]) & (area < 0.8 * area[best])
    others = (within & ~holding).nonzero()[:, 0].tolist()
    for part in (within & holding).nonzero()[:, 0].tolist():
        if any(shared[part, other] < 0.1 * area[other] for other in others):
            return part, (shared[part] > 0.7 * area[part]) & (area > 1.25 * area[part])
    return best, torch.zeros_like(holding)


def _without_duplicates(
    mask_logits: torch.Tensor, order: torch.Tensor, scores: torch.Tensor, largest_iou: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Proposals in `order`, without those that repeat a better one or hold no pixel."""
    if len(order) == 0:
        return order, scores
    inside = (mask_logits[order] > 0).flatten(1).float()
    area = inside.sum(dim=1)
    shared = inside @ inside.T
    iou = (shared / (area[:, None] + area[None] - shared).clamp(min=1)).tolist()
    kept: list[int] = []
    for i, size in enumerate(area.tolist()):
        if size > 0 and all(iou[i][j] <= largest_iou for j in kept):
            kept.append(i)
    return order[kept], scores[kept]


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(NAME_SEPARATOR) if name.strip() not in ("", NO_OBJECT)]


def name_objects(masks: np.ndarray, text: str, fallback: str) -> list[str]:
    """A label for each mask: the names written, which go from left to right through the image.

    A single name is every object's; where names run out the last one is repeated; without any name it is `fallback`.
    """
    names = _names(text) or [fallback]
    columns = np.arange(masks.shape[-1])
    centres = [(mask.sum(axis=0) * columns).sum() / max(1, mask.sum()) for mask in masks]
    labels = [""] * len(masks)
    for rank, index in enumerate(np.argsort(centres, kind="stable")):
        labels[index] = names[min(rank, len(names) - 1)]
    return labels


def segment_prompts(
    components: Components,
    encoding: FocusImageEncoding,
    prompts: Sequence[MaskPrompt],
    *,
    max_new_tokens: int = MAX_NAMES,
    score_threshold: float = 0.5,
    fallback_threshold: float = 0.3,
    duplicate_iou: float = 0.7,
) -> list[FoundObjects]:
    """`read_masks`, then `select_objects` for each prompt; R prompts give R results."""
    reading = read_masks(components, encoding, prompts, max_new_tokens=max_new_tokens)
    return [
        select_objects(
            reading,
            row,
            prompt,
            components.image_processor,
            encoding.inputs.placements[prompt.image],
            score_threshold=score_threshold,
            fallback_threshold=fallback_threshold,
            duplicate_iou=duplicate_iou,
        )
        for row, prompt in enumerate(prompts)
    ]


# --- what a caller asks for ---------------------------------------------------------------------------------------------


@dataclass
class MaskRequest:
    """What a caller wants found: the prompts, and how their results go back.

    Args:
        prompts: R prompts.
        lengths: prompts of each image where several were asked of each (a list of lists); None gives one result a prompt.
    """

    prompts: list[MaskPrompt]
    lengths: list[int] | None = None

    def grouped(self, values: Sequence[Any]) -> list[Any]:
        """R results as the caller has them: one an entry, or a list for each image."""
        if self.lengths is None:
            return list(values)
        ends = np.cumsum(self.lengths)
        return [list(values[end - length : end]) for end, length in zip(ends, self.lengths)]


def check_request(target: Any, region: Any, classes: Any, task: str | None) -> None:
    """Raise TypeError or ValueError unless exactly one thing is asked for, and in words that can be read."""
    given = [
        name for name, value in (("target", target), ("region", region), ("classes", classes)) if value is not None
    ]
    if len(given) != 1:
        raise ValueError(
            f"Segmenting takes exactly one of target, region and classes, got {' and '.join(given) or 'none of them'}. Call "
            "it once for each."
        )
    if task not in (None, REFERRING, REASONING):
        raise ValueError(
            f'task must be "{REFERRING}" or "{REASONING}", got {task!r}. Regions and classes name no task.'
        )
    if target is not None:
        for text in _leaves(target):
            check_text(text, "target")
    if classes is not None:
        _class_lists(classes)


def mask_request(
    encoding: FocusImageEncoding,
    target: Any = None,
    region: Any = None,
    *,
    classes: Any = None,
    task: str | None = None,
) -> MaskRequest:
    """The prompts of one call, for single images.

    Args:
        encoding: of n images.
        target: an expression, one for each image, or a list of lists; a list for a single image asks all of it.
        region: regions in place of words, see `region_masks`; a list for a batch.
        classes: names to look for, or a list of names for each image.
        task: "referring" (default) or "reasoning".
    """
    check_request(target, region, classes, task)
    nested = isinstance(target, (list, tuple)) and any(isinstance(t, (list, tuple)) for t in target)
    if classes is not None:
        classes = _class_lists(classes)
    count, lists = spread(len(encoding), target=target, region=region, classes=classes)
    prompts: list[MaskPrompt] = []
    lengths = []
    for row in range(count):
        index = row if len(encoding) == count else 0
        if target is not None:
            texts = lists["target"][row]
            texts = list(texts) if isinstance(texts, (list, tuple)) else [texts]
            prompts += [MaskPrompt(index, task or REFERRING, text) for text in texts]
            lengths.append(len(texts))
        elif region is not None:
            masks = region_masks(lists["region"][row], encoding.original_sizes[index])
            prompts.append(MaskPrompt(index, INTERACTIVE, None, masks))
        else:
            prompts.append(MaskPrompt(index, CLASS, lists["classes"][row]))
    return MaskRequest(prompts, lengths if nested else None)


def find_objects(
    components: Components,
    encoding: FocusImageEncoding,
    prompts: Sequence[MaskPrompt],
    settings: Settings,
    *,
    max_new_tokens: int | None = None,
    score_threshold: float | None = None,
    fallback_threshold: float | None = None,
) -> list[FoundObjects]:
    """`segment_prompts` with the pipeline's settings, unless the caller has others."""
    check_numbers(score_threshold=score_threshold, fallback_threshold=fallback_threshold)
    return segment_prompts(
        components,
        encoding,
        prompts,
        max_new_tokens=MAX_NAMES if max_new_tokens is None else check_count(max_new_tokens, "max_new_tokens"),
        score_threshold=settings.score_threshold if score_threshold is None else score_threshold,
        fallback_threshold=settings.fallback_threshold if fallback_threshold is None else fallback_threshold,
        duplicate_iou=settings.duplicate_iou,
    )


def can_segment(components: Components, settings: Settings) -> bool:
    """Whether there is a mask decoder, and a trained one."""
    return getattr(components, "mask_decoder", None) is not None and bool(settings.masks_trained)


def require_masks(components: Components, settings: Settings, purpose: str) -> None:
    """Raise ValueError, with what to do instead, unless masks can be found."""
    if can_segment(components, settings):
        return
    absent = getattr(components, "mask_decoder", None) is None
    lacking = "has no mask_decoder" if absent else "has a mask_decoder that is not trained yet"
    raise ValueError(
        f"This pipeline {lacking}, which {purpose} needs. Edits take a mask instead: mask_image=..., or region=Box(...) or "
        "Mask(...). To train one, start from a ConvNeXt and Mask2Former weights and run the stages 0-encoders, 2 and 3 of "
        "`diffusers-focus train`; then load with masks_trained=True."
    )


def _leaves(values: Any) -> list[Any]:
    """All texts of a text, a list of them or a list of lists."""
    if not isinstance(values, (list, tuple)):
        return [values]
    if len(values) == 0:
        raise ValueError("target is an empty list. Pass at least one expression.")
    return [leaf for value in values for leaf in _leaves(value)]


def _class_lists(classes: Any) -> list[list[str]]:
    """Names as a list of lists; a flat list serves every image."""
    if isinstance(classes, str) or not isinstance(classes, (list, tuple)) or not classes:
        raise TypeError(f'classes must be a list of names such as ["cat", "dog"], got {classes!r}.')
    lists = [list(names) for names in classes] if isinstance(classes[0], (list, tuple)) else [list(classes)]
    for names in lists:
        for name in names:
            check_text(name, "classes")
    return lists
