"""From a prompt about an image to its objects: names, mask slots, masks, scores.

FOCUS section "Segmentation predictor": the language model first writes the names of the objects, then N mask slots are read in
one parallel forward; their states E^Q and the condition's states E^P go to the mask decoder. Selecting among the N proposals
(score threshold, duplicates by mask IoU) follows Mask2Former's inference (arXiv 2112.01527, MIT).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..models.mask_decoder import FocusMaskOutput
from ..processing.images import FocusImageProcessor, Placement
from ..processing.masks import left_to_right
from ..processing.outlines import outline_masks
from ..processing.prompts import CLASS, EDIT, INTERACTIVE, REFERRING
from .arguments import check_count, check_numbers
from .composite import needs_box
from .confidence import Confidence, kind_of, probability, something_logits
from .encode import Components, FocusImageEncoding, embed_regions, mask_pixels, own_images, wake
from .pointing import StrokeMasks, holding, own_part, stroked_object
from .sequence import FocusContext, batch_rows, condition_states, encode_prefix, extend, run_suffixes, suffix_row
from .settings import Settings
from .understand import banned_text_ids, write_text

NAME_SEPARATOR = ","
EXPLANATION_END = ":"  # stands between an explanation and the names
MAX_NAMES = 48  # tokens of the names before the masks, unless the caller says otherwise
NO_OBJECT = "nothing"  # what a model writes in place of names where an expression has no target
INSTANCE, SEMANTIC, PANOPTIC = CLASS_LAYOUTS = ("instance", "semantic", "panoptic")
VISIBLE = 0.8  # share of a mask that better ones must leave to it in a panoptic or semantic layout (Mask2Former)


@dataclass(frozen=True, eq=False)
class MaskPrompt:
    """One thing to look for in one image.

    Args:
        image: index of the image in its encoding.
        task: a segmentation task, or "edit" for what an instruction is about.
        text: expression, question or instruction; the list of names for "class"; None for "interactive".
        regions: bool [height, width] masks at the size of the user's image, one per pointed region.
        strokes: what several strokes say about the one object that `regions` then holds.
        layout: of a list of names: a mask for each object ("instance"), for each name ("semantic"), or for each object but of
            the `stuff` for each name ("panoptic"); in the last two no pixel is in two masks.
        stuff: names without objects to count, such as "grass".
    """

    image: int
    task: str
    text: str | list[str] | None = None
    regions: tuple[np.ndarray, ...] = ()
    strokes: StrokeMasks | None = None
    layout: str = INSTANCE
    stuff: tuple[str, ...] = ()


@dataclass
class MaskReading:
    """What the mask decoder says to R prompts.

    Args:
        mask_logits, edit_logits: [R, N, h, w] on the mask decoder's grid over the canvas.
        condition_logits: [R, N, K].
        instance_embeds: [R, N, D].
        quality_logits: [R, N], of the IoU to expect.
        something_logits: [R], log odds that the first word written is not "nothing".
        text: what each prompt's answer holds before the masks: names, and maybe an explanation.
    """

    mask_logits: torch.Tensor
    edit_logits: torch.Tensor
    condition_logits: torch.Tensor
    instance_embeds: torch.Tensor
    quality_logits: torch.Tensor
    something_logits: torch.Tensor
    text: list[str]


@dataclass
class FoundObjects:
    """The objects a prompt refers to, best score first.

    Args:
        masks: bool [objects, height, width] at the size of the user's image.
        edit_mask: bool [height, width], the union of where their pixels may change.
        scores: float32 [objects].
        labels: a name each.
        text: what the model wrote.
        instance_embeds: float32 [objects, D].
        presence: how sure it is that there is anything the prompt means.
        qualities: float32 [objects], the IoU to expect.
        proposals: int64 [objects], which of the mask decoder's N they are.
    """

    masks: np.ndarray
    edit_mask: np.ndarray
    scores: np.ndarray
    labels: list[str] = field(default_factory=list)
    text: str = ""
    instance_embeds: np.ndarray | None = None
    presence: float = 0.0
    qualities: np.ndarray | None = None
    proposals: np.ndarray | None = None


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
    first = components.language_model.lm_head(hidden[:, -1]).float().masked_fill(banned, float("-inf"))
    nothing = context.tokenizer(NO_OBJECT, add_special_tokens=False)["input_ids"][0]
    something = something_logits(first, nothing)
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
    output = _decode(components, features, hidden, conditions, condition_mask, images.tolist())
    text = [context.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in written.ids]
    return MaskReading(*output, something, text)


def _decode(
    components: Components,
    features: object,
    hidden: torch.Tensor,
    conditions: torch.Tensor,
    condition_mask: torch.Tensor,
    images: list[int],
) -> tuple[torch.Tensor, ...]:
    """The mask decoder over prompts grouped by image, so that an image's pixels are read once for all its prompts.

    `hidden` [R, 1 + N, H] are the states at the mask trigger and at the slots after it.
    """
    answers, slot_states = hidden[:, 0], hidden[:, 1:]
    groups: dict[int, list[int]] = {}
    for row, image in enumerate(images):
        groups.setdefault(image, []).append(row)
    width = max(len(group) for group in groups.values())
    table = torch.tensor([group + group[-1:] * (width - len(group)) for group in groups.values()])
    table = table.to(slot_states.device)
    output: FocusMaskOutput = components.mask_decoder.decode(
        features.select(list(groups)),
        slot_states[table],
        conditions[table],
        condition_mask[table],
        answer_states=answers[table],
    )
    place = {row: (i, j) for i, group in enumerate(groups.values()) for j, row in enumerate(group)}
    first = torch.tensor([place[row][0] for row in range(len(images))], device=slot_states.device)
    second = torch.tensor([place[row][1] for row in range(len(images))], device=slot_states.device)
    fields = (
        *(output.mask_logits, output.edit_logits, output.condition_logits, output.instance_embeds),
        output.quality_logits,
    )
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
    presence_threshold: float = 0.0,
    calibration: Mapping[str, Any] | None = None,
    mask_refinement: float = 0.0,
    image: Image.Image | None = None,
) -> FoundObjects:
    """The objects among one prompt's proposals.

    The score of a proposal comes from its best condition logit (and its quality, where `calibration` says so). The model has
    written the names of what it means, so as many objects count as there are names: the best proposals above
    `fallback_threshold`; none after "nothing", or where the presence is below a `presence_threshold` above 0, which then
    decides in place of the word. For a list of classes, and where no name was written, every proposal above `score_threshold`
    counts. What was pointed at by regions alone is something that lies there: of the proposals only those that hold the
    regions count, and the best of them always does. Several strokes about one object have one result. Of proposals that
    overlap by more than `duplicate_iou` the better one stays. With an `image` (RGB, as the user gave it) and a `mask_refinement`
    above 0 the outlines follow its edges (`outline_masks`), those of edit masks where the object keeps its outline.
    """
    sure = Confidence.of(calibration, kind_of(prompt.task))
    names = _names(reading.text[row]) if prompt.task != CLASS else []
    logits, classes = reading.condition_logits[row].float().max(dim=-1)
    quality_logits, mask_logits = reading.quality_logits[row].float(), reading.mask_logits[row]
    scores = probability(sure.score, logits, quality_logits)
    qualities = probability(sure.quality, quality_logits)
    presence = float(probability(sure.presence, logits.max(), reading.something_logits[row]))
    if prompt.strokes is not None:
        best, meant = stroked_object(mask_logits, scores, prompt.strokes, placement)
        index = torch.tensor([best], device=meant.device)
        mask_logits = mask_logits.index_copy(0, index, meant[None].to(mask_logits.dtype))
        order, scores = index, scores[best : best + 1]
    else:
        scores, order = scores.sort(descending=True)
        keep = scores > (fallback_threshold if names else score_threshold)
        absent = presence < presence_threshold if presence_threshold > 0 else says_nothing(reading.text[row])
        if prompt.task != CLASS and absent:
            keep[:] = False
        if prompt.task == INTERACTIVE and prompt.regions:
            held = holding(mask_logits, prompt.regions, placement)[order]
            if held.any():
                keep &= held
                best = int(held.nonzero()[0, 0])
                part, wholes = own_part(mask_logits[order], held, best)
                keep &= ~wholes
                keep[part] = True  # a region without any object would be a slip of the model, not of the user
        order, scores = order[keep], scores[keep]
        order, scores = _without_duplicates(mask_logits, order, scores, duplicate_iou)
        if names:
            order, scores = order[: len(names)], scores[: len(names)]

    height, width = placement.source
    if len(order) == 0:
        return FoundObjects(
            masks=np.zeros((0, height, width), dtype=bool),
            edit_mask=np.zeros((height, width), dtype=bool),
            scores=np.zeros(0, np.float32),
            text=reading.text[row],
            instance_embeds=np.zeros((0, reading.instance_embeds.shape[-1]), np.float32),
            presence=presence,
            qualities=np.zeros(0, np.float32),
            proposals=np.zeros(0, np.int64),
        )
    masks = outline_masks(processor, mask_logits[order].float(), placement, image, mask_refinement) > 0
    seen = masks.flatten(1).any(dim=1)
    masks, order, scores = masks[seen], order[seen], scores[seen]
    stays = prompt.task == EDIT and not needs_box(str(prompt.text))  # another outline is not in the image yet
    edit_logits = reading.edit_logits[row, order].float()
    edits = outline_masks(processor, edit_logits, placement, image if stays else None, mask_refinement) > 0
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
        presence=presence,
        qualities=qualities[order].cpu().numpy(),
        proposals=order.cpu().numpy(),
    )


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
    """The names in what a model wrote; an explanation may stand before them."""
    names = text.rpartition(EXPLANATION_END)[2].split(NAME_SEPARATOR)
    return [name.strip() for name in names if name.strip() not in ("", NO_OBJECT)]


def says_nothing(text: str) -> bool:
    """Whether a model wrote that there is no object."""
    return text.rpartition(EXPLANATION_END)[2].strip() == NO_OBJECT


def name_objects(masks: np.ndarray, text: str, fallback: str) -> list[str]:
    """A label for each mask: the names written, which go from left to right through the image.

    A single name is every object's; where names run out the last one is repeated; without any name it is `fallback`.
    """
    names = _names(text) or [fallback]
    labels = [""] * len(masks)
    for rank, index in enumerate(left_to_right(masks)):
        labels[index] = names[min(rank, len(names) - 1)]
    return labels


def segment_prompts(
    components: Components,
    encoding: FocusImageEncoding,
    prompts: Sequence[MaskPrompt],
    *,
    max_new_tokens: int = MAX_NAMES,
    classes_trained: bool = True,
    **selection: Any,
) -> list[FoundObjects]:
    """`read_masks`, then `select_objects` for each prompt (`selection` goes there); R prompts give R results.

    Args:
        classes_trained: whether the language model knows lists of names. Without, every name of a list is asked by itself, and
            what several names claim is the most certain one's.
    """
    asked, owners = [], []
    for row, prompt in enumerate(prompts):
        by_name = prompt.task == CLASS and not classes_trained
        parts = [replace(prompt, task=REFERRING, text=name) for name in prompt.text or ()] if by_name else [prompt]
        asked += parts
        owners += [row] * len(parts)
    reading = read_masks(components, encoding, asked, max_new_tokens=max_new_tokens)
    placements = encoding.inputs.placements
    pictures = own_images(components, encoding) if selection.get("mask_refinement") else (None,) * len(encoding)
    found = [
        select_objects(
            *(reading, i, one, components.image_processor, placements[one.image]),
            image=pictures[one.image],
            **selection,
        )
        for i, one in enumerate(asked)
    ]
    results = []
    for row, prompt in enumerate(prompts):
        own = [one for one, owner in zip(found, owners) if owner == row]
        by_name = prompt.task == CLASS and not classes_trained
        one = _merged(prompt, own, selection.get("duplicate_iou", 0.7)) if by_name else own[0]
        results.append(_laid_out(one, prompt) if prompt.layout != INSTANCE else one)
    return results


def distinct_masks(masks: np.ndarray, order: Iterable[int], duplicate_iou: float) -> list[int]:
    """Of masks, bool [n, height, width], taken in this order, those that overlap none before them by more than `duplicate_iou`."""
    kept: list[int] = []
    for index in order:
        shared = (masks[kept] & masks[index]).sum(axis=(1, 2))
        joined = (masks[kept] | masks[index]).sum(axis=(1, 2))
        if (shared <= duplicate_iou * joined).all():
            kept.append(index)
    return kept


def _merged(prompt: MaskPrompt, found: Sequence[FoundObjects], duplicate_iou: float) -> FoundObjects:
    """What the names of a list mean, each asked by itself, as one result; an object that several names claim is the best one's."""
    assert prompt.text is not None
    names = [name for name, one in zip(prompt.text, found, strict=True) for _ in one.scores]
    scores = np.concatenate([one.scores for one in found])
    masks = np.concatenate([one.masks for one in found])
    kept = distinct_masks(masks, np.argsort(-scores, kind="stable").tolist(), duplicate_iou)
    return FoundObjects(
        masks=masks[kept],
        edit_mask=np.logical_or.reduce([one.edit_mask for one in found]),
        scores=scores[kept],
        labels=[names[index] for index in kept],
        text=f"{NAME_SEPARATOR} ".join(one.text for one in found if one.text and not says_nothing(one.text))
        or NO_OBJECT,
        instance_embeds=np.concatenate([one.instance_embeds for one in found])[kept],
        presence=max(one.presence for one in found),
        qualities=np.concatenate([one.qualities for one in found])[kept],
    )


def _laid_out(found: FoundObjects, prompt: MaskPrompt) -> FoundObjects:
    """The same objects without overlaps, in the manner of Mask2Former's panoptic inference.

    A pixel is the best object's that holds it; an object that better ones leave less than `VISIBLE` of its pixels is dropped.
    Objects of one name are joined in a semantic layout, and in a panoptic one those of `stuff`.
    """
    free = np.ones(found.masks.shape[-2:], dtype=bool)
    groups: dict[tuple[str, int], list[np.ndarray]] = {}
    first: list[int] = []
    for index, (mask, label) in enumerate(zip(found.masks, found.labels)):
        own = mask & free
        if own.sum() < VISIBLE * mask.sum():
            continue
        free &= ~mask
        joined = prompt.layout == SEMANTIC or label in prompt.stuff
        group = groups.setdefault((label, -1 if joined else index), [])
        first += [] if group else [index]
        group.append(own)
    assert found.instance_embeds is not None and found.qualities is not None
    return replace(
        found,
        masks=np.stack([np.logical_or.reduce(group) for group in groups.values()]) if groups else found.masks[:0],
        scores=found.scores[first],
        labels=[found.labels[index] for index in first],
        instance_embeds=found.instance_embeds[first],
        qualities=found.qualities[first],
        proposals=None if found.proposals is None else found.proposals[first],
    )


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
        presence_threshold=settings.presence_threshold,
        classes_trained=settings.classes_trained,
        calibration=settings.calibration,
        mask_refinement=settings.mask_refinement,
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
