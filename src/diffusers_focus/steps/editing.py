"""What an edit changes and into which codes: the two readings of an edit prompt, and text to image.

FOCUS section "Mask-guided editing"; focus.md section 5. The first reading says where (masks of what the instruction is about and
of the pixels that may change), the second writes the new image's codes. In a local edit the codes outside the edit mask are the
source's own, so only the cells inside are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging

from ..processing.grammar import TokenSampling, VisualTokenGrammar
from ..processing.grids import pixel_grid, semantic_grid
from ..processing.prompts import EDIT, GENERATE, INTERACTIVE, REFERRING, UNCONDITIONAL
from ..processing.regions import Point, Scribble, Strokes
from .arguments import (
    as_list,
    check_count,
    check_numbers,
    check_text,
    check_texts,
    edit_mask,
    mask_list,
    pointed_regions,
    spread,
    token_sampling,
)
from .composite import grow_mask, keeps_outline, latent_masks, needs_box, object_phrase, place_on_grid, relative_radius
from .encode import Components, FocusImageEncoding, LoadedImages, embed_regions, source_codes, wake
from .guidance import cell_guide, guiding
from .joint_edits import edits_by_picture, joint_codes
from .pointing import StrokeMasks
from .sampling import Generators
from .segment import FoundObjects, MaskPrompt, can_segment, find_objects, require_masks
from .sequence import FocusContext, encode_prefix, suffix_row
from .settings import Settings
from .visual_tokens import block_template, write_codes

logger = logging.get_logger(__name__)


@dataclass(frozen=True, eq=False)
class EditPrompt:
    """One edit of one image.

    Args:
        image: index of the image in its encoding.
        instruction: what to do.
        target: what it is about, in words, where the instruction leaves that open.
        regions: what it is about, bool [height, width] at the size of the user's image.
        mask: bool [height, width]: exactly the pixels that may change, given from outside.
        region_slots: whether the model was trained on edit prompts with region slots. Without, a region is found by the
            interactive task, and the instruction stands alone.
        strokes: what several strokes say about the one object that `regions` then holds.
        picture: number of the picture that the edit is part of; edits of the same number are applied to one picture, in their
            order. None is a picture of its own.
        joint: whether the instruction stood in a list of edits of one picture.
        about: bool [height, width], what the edit was found to be about; None where only `mask` is known.
        keeps_outline: whether it leaves the outline of that, and `about` shows it.
    """

    image: int
    instruction: str
    target: str | None = None
    regions: tuple[np.ndarray, ...] = ()
    mask: np.ndarray | None = None
    region_slots: bool = False
    strokes: StrokeMasks | None = None
    picture: int | None = None
    joint: bool = False
    about: np.ndarray | None = None
    keeps_outline: bool = False

    @property
    def slots(self) -> tuple[np.ndarray, ...]:
        """The regions that stand in the edit prompt itself."""
        return self.regions if self.region_slots else ()

    @property
    def asks_edit(self) -> bool:
        """Whether `where` is an edit prompt, the only kind whose edit masks are trained."""
        return self.mask is None and not (self.target if not self.regions else not self.region_slots)

    @property
    def where(self) -> MaskPrompt | None:
        """The prompt that finds the place, or with a mask only what it is about; None where what is given says it all."""
        if self.mask is not None and (
            self.about is not None or not self.mask.any() or not (self.target or self.regions)
        ):
            return None
        if self.asks_edit:
            return MaskPrompt(self.image, EDIT, self.instruction, self.slots)
        if self.regions:
            return MaskPrompt(self.image, INTERACTIVE, None, self.regions, self.strokes)
        return MaskPrompt(self.image, REFERRING, self.target)


@dataclass
class EditPlace:
    """Where an edit takes place, at the size of the user's image.

    Args:
        masks: bool [objects, height, width], what the edit is about.
        edit_mask: bool [height, width], where pixels may change.
    """

    masks: np.ndarray
    edit_mask: np.ndarray


def check_place(prompt: Any, target: Any, region: Any) -> None:
    """Raise TypeError or ValueError where instructions are no texts or their place is said in two ways."""
    for one in as_list(prompt, "prompt") or [prompt]:
        check_texts(one, "prompt")
    for one in as_list(target, "target") or [target]:
        for text in as_list(one, "target") or [one]:
            if text is not None:
                check_text(text, "target")
    if target is not None and region is not None:
        raise ValueError("Both target and region were given; they say the same in two ways. Pass one of them.")


def places_given(mask_image: Any) -> bool:
    """Whether a `mask_image` argument says the place of every edit, so that no model is asked for it."""
    values = as_list(mask_list(mask_image), "mask_image") or [mask_image]
    return all(one is not None for value in values for one in (as_list(value, "mask_image") or [value]))


def edit_prompts(
    components: Components,
    encoding: FocusImageEncoding | LoadedImages,
    prompt: Any,
    settings: Settings,
    *,
    target: Any = None,
    region: Any = None,
    mask_image: Any = None,
    masks_may_be_empty: bool = False,
) -> list[EditPrompt]:
    """What a caller wants changed, edit by edit: one picture for each image, or several of a single one.

    Args:
        encoding: of single images.
        prompt: an instruction, or a list with an entry a picture; an entry that is a list itself holds the edits of one picture.
        target, region: what it is about, in words or by pointing; a list has one entry a picture, nested as `prompt` is.
        mask_image: exactly the pixels that may change, at the size of the image; a list likewise. Alone it is what it is about too.
        masks_may_be_empty: whether masks without any pixel may be all there is, and mean that nothing was found. Otherwise only
            some of several edits may have one; they change nothing.

    Raises:
        TypeError, ValueError: an argument does not fit, or a place that only a mask decoder can find where there is none.
    """
    check_place(prompt, target, region)
    places = {"target": target, "region": region, "mask_image": mask_list(mask_image)}
    count, given = spread(len(encoding), prompt=prompt, **places)
    if isinstance(prompt, (list, tuple)) and len(prompt) == 1 < count and count != len(encoding):
        _check_nesting(prompt[0], count)
    prompts = []
    for row in range(count):
        index = row if len(encoding) == count else 0
        entry = given["prompt"][row]
        joint = isinstance(entry, (list, tuple))
        edits = [{"prompt": entry, **{name: given[name][row] for name in places}}]
        if joint:
            edits = _one_each(entry, **{name: given[name][row] for name in places})
        for edit in edits:
            one = _edit_prompt(components, encoding.original_sizes[index], settings, **edit)
            prompts.append(replace(one, image=index, picture=row, joint=joint))
    if not masks_may_be_empty and all(one.mask is not None and not one.mask.any() for one in prompts):
        raise ValueError(
            "mask_image is empty: not a single pixel may change. Mark at least one pixel, or leave mask_image out."
        )
    return prompts


def _check_nesting(entry: Any, count: int) -> None:
    """Raise ValueError where several edits of one picture come with a flat list, which means a list of pictures."""
    if isinstance(entry, (list, tuple)):
        raise ValueError(
            f"prompt holds {len(entry)} edits of one picture, but target, region or mask_image has {count} entries, one a picture. "
            "Nest them as prompt is: [[first, second]]."
        )


def _one_each(texts: Sequence[str], **places: Any) -> list[dict[str, Any]]:
    """The arguments of each edit of one picture; a single value serves all of them."""
    edits: list[dict[str, Any]] = [{"prompt": text} for text in texts]
    for name, value in places.items():
        value = mask_list(value) if name == "mask_image" else value
        values = as_list(value, name) or [value] * len(edits)
        if len(values) != len(edits):
            raise ValueError(
                f"{name} has {len(values)} entries for the {len(edits)} edits of one picture. Pass one for each, or a single one."
            )
        for edit, one in zip(edits, values):
            edit[name] = one
    return edits


def _edit_prompt(
    components: Components,
    size: tuple[int, int],
    settings: Settings,
    *,
    prompt: str,
    target: Any,
    region: Any,
    mask_image: Any,
) -> EditPrompt:
    """One edit of an image of `size`."""
    pointed = pointed_regions(region)
    regions = tuple(one.rasterize(*size) for one in pointed)
    about = None
    if isinstance(mask_image, EditPlace):  # found by an earlier call, as in a clip
        about, mask_image = mask_image.masks.any(axis=0), mask_image.edit_mask
    mask = edit_mask(mask_image, size)
    if mask is None and not can_segment(components, settings):
        if target is not None or any(isinstance(one, (Point, Scribble, Strokes)) for one in pointed):
            require_masks(components, settings, "finding the place of an edit from words, a point or a scribble")
        # Nothing can say what lies in a box, so the box itself is the place.
        mask = np.logical_or.reduce(regions) if regions else None
    return EditPrompt(
        image=0,
        instruction=prompt,
        target=target,
        regions=regions,
        mask=mask,
        region_slots=settings.edit_regions_trained,
        strokes=StrokeMasks.of(pointed, size),
        about=about,
    )


def edit_place(
    prompt: EditPrompt,
    found: FoundObjects | None,
    *,
    edit_masks_trained: bool = True,
    dilation: float = 0.02,
    mask_dilation: int | None = None,
) -> EditPlace:
    """The masks of an edit.

    A mask given from outside is taken as it is (grown only by an explicit `mask_dilation`), and the edit is about the found objects
    that it touches, or it. Otherwise the edit mask is what the model says of an edit prompt, if it was trained to, grown by twice
    `dilation` (a share of the shorter side) for an instruction after which the object may have another outline; failing that, the
    objects' mask grown by `dilation`, and its bounding box for such an instruction. What is more than half of the picture is a
    background, and would grow into the objects before it.

    Args:
        found: the answer to `prompt.where`.
        edit_masks_trained: whether the model's edit masks can be used.
        dilation, mask_dilation: share of the shorter side; pixels to grow by instead, for all kinds of edit masks.
    """
    if prompt.mask is not None:
        mask = prompt.mask if not mask_dilation else grow_mask(prompt.mask, mask_dilation)
        about = (prompt.mask if prompt.about is None else prompt.about)[None]
        if found is not None and (touched := (found.masks & prompt.mask).any(axis=(1, 2))).any():
            about = found.masks[touched]
        return EditPlace(about, mask)
    assert found is not None
    mask, reshaped = found.masks.any(axis=0), needs_box(prompt.instruction)
    boxed = reshaped
    if edit_masks_trained and prompt.asks_edit and found.edit_mask.any():
        mask, boxed, dilation = found.edit_mask, False, 2 * dilation * reshaped
    if 0 < mask.mean() <= 0.5 or mask_dilation is not None:
        radius = relative_radius(dilation, *mask.shape) if mask_dilation is None else mask_dilation
        mask = grow_mask(mask, radius, boxed=boxed)
    return EditPlace(found.masks, mask)


def _differ(instruction: FoundObjects, phrase: FoundObjects) -> bool:
    """Whether the words of an object mean something that the instruction was not read as: less than half of both in common."""
    first, second = instruction.masks.any(axis=0), phrase.masks.any(axis=0)
    return bool(second.any()) and 2 * (first & second).sum() < (first | second).sum()


def edit_places(
    components: Components,
    encoding: FocusImageEncoding | LoadedImages,
    prompts: Sequence[EditPrompt],
    settings: Settings,
    *,
    mask_dilation: int | None = None,
) -> list[EditPlace]:
    """Where B edits take place; one reading of the language model for all whose place is not given.

    Args:
        encoding: of single images; where every place is given, they need not be encoded.
    """
    if mask_dilation is not None:
        check_count(mask_dilation, "mask_dilation", least=0)
    everywhere = {one.image: np.ones(encoding.original_sizes[one.image], dtype=bool) for one in prompts}
    if not can_segment(components, settings):
        # An original without segmentation edits the whole image, as it was trained to.
        return [
            EditPlace(everywhere[one.image][None], everywhere[one.image])
            if one.mask is None
            else edit_place(one, None, mask_dilation=mask_dilation)
            for one in prompts
        ]
    asked = {row: one.where for row, one in enumerate(prompts) if one.where is not None}
    # An instruction says in its words, too, what it is about; as an expression that may be easier to read.
    phrases = {
        row: phrase
        for row, one in enumerate(prompts)
        if settings.instruction_phrases and one.asks_edit and not one.slots
        if (phrase := object_phrase(one.instruction)) is not None
    }
    found, named = {}, {}
    if asked:
        assert isinstance(encoding, FocusImageEncoding)
        second = [MaskPrompt(prompts[row].image, REFERRING, phrase) for row, phrase in phrases.items()]
        answers = find_objects(components, encoding, [*asked.values(), *second], settings)
        found = dict(zip(asked, answers))
        named = dict(zip(phrases, answers[len(asked) :]))
    places = []
    for row, one in enumerate(prompts):
        if row in named and _differ(found[row], named[row]):
            one, found[row] = replace(one, target=phrases[row]), named[row]
        place = edit_place(
            one,
            found.get(row),
            edit_masks_trained=settings.edit_masks_trained,
            dilation=settings.mask_dilation,
            mask_dilation=mask_dilation,
        )
        if not place.edit_mask.any() and one.mask is None:
            if settings.edit_without_mask and one.target is None and not one.regions:
                place.edit_mask = everywhere[one.image]
            else:
                text = one.target or one.instruction
                logger.warning(
                    f"Nothing in the image was found for {text if len(text) <= 80 else text[:77] + '...'!r}; it is returned "
                    "unchanged. Point at the object with region=..., or pass mask_image."
                )
        places.append(place)
    return places


def told(prompts: Sequence[EditPrompt], masks: Sequence[np.ndarray]) -> list[EditPrompt]:
    """The edits with what they were found to be about: bool [objects, height, width] each."""
    known = []
    for prompt, found in zip(prompts, masks, strict=True):
        about = found.any(axis=0)
        # A mask from outside need not be the object's outline.
        own = about.any() and not (prompt.mask is not None and np.array_equal(about, prompt.mask))
        known.append(replace(prompt, about=about, keeps_outline=bool(own) and keeps_outline(prompt.instruction)))
    return known


def drawing(
    settings: Settings,
    *,
    edits: bool = False,
    token_guidance_scale: float | None = None,
    temperature: float | Sequence[float] | None = None,
    top_k: int | Sequence[int] | None = None,
    top_p: float | Sequence[float] | None = None,
    limit_tokens: bool = True,
) -> dict[str, Any]:
    """How visual tokens are drawn, as arguments of `generation_codes` or (`edits`) `edit_codes`; None takes the pipeline's own.

    `temperature`, `top_k` and `top_p` are one value for both levels (of `top_k` pixel tokens get three times), or a pair: semantic
    tokens, pixel tokens.
    """
    check_numbers(token_guidance_scale=token_guidance_scale)
    heat = _by_level(settings.default_temperature if temperature is None else temperature, "temperature")
    most = _by_level(settings.default_top_k if top_k is None else top_k, "top_k", 3)
    share = _by_level(settings.default_top_p if top_p is None else top_p, "top_p")
    semantic, pixel = (token_sampling(*values) for values in zip(heat, most, share, strict=True))
    scale = settings.default_token_guidance_scale if token_guidance_scale is None else token_guidance_scale
    options: dict[str, Any] = {
        "guidance_scale": scale,
        "semantic": semantic,
        "pixel": pixel,
        "sharpness": settings.pixel_code_sharpness,
    }
    if edits:
        options["limited"] = limit_tokens
        own = token_guidance_scale is None
        options["kept_guidance_scale"] = settings.kept_outline_token_guidance_scale if own else None
    return options


def _by_level(value: Any, name: str, factor: int = 1) -> tuple[Any, Any]:
    """The value for semantic and the one for pixel tokens, which is `factor` times a single one."""
    if not isinstance(value, (list, tuple)):
        numeric = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        return value, value * factor if numeric and factor != 1 else value
    if len(value) != 2 or None in value:
        raise ValueError(f"{name} is one number, or a pair: of semantic and of pixel tokens; got {value!r}.")
    return value[0], value[1]


def warn_untrained(settings: Settings) -> None:
    """Say so where a language model was not trained to write images."""
    if not settings.images_trained:
        logger.warning(
            "The language model of this checkpoint was not trained to write images: where an edit goes is its answer, what it "
            "puts there means nothing yet."
        )


def negative_prompts(negative: Any, count: int, repeats: int = 1) -> list[str] | None:
    """What each of `count * repeats` results is guided away from; None where it is the empty prompt.

    Raises:
        TypeError, ValueError: `negative` is neither a text nor a list with one for each of `count` prompts.
    """
    if negative is None or (isinstance(negative, str) and not negative.strip()):
        return None
    check_texts(negative, "negative_prompt")
    texts = [negative] * count if isinstance(negative, str) else list(negative)
    if len(texts) != count:
        raise ValueError(
            f"negative_prompt has {len(texts)} texts for {count} prompts. Pass one text, or a list with one for each prompt."
        )
    return [text for text in texts for _ in range(repeats)]


def edit_codes(
    components: Components,
    encoding: FocusImageEncoding,
    prompts: Sequence[EditPrompt],
    edit_masks: Sequence[np.ndarray],
    *,
    negative: Sequence[str] | None = None,
    guidance_scale: float = 1.0,
    kept_guidance_scale: float | None = None,
    semantic: TokenSampling = TokenSampling(),  # noqa: B008 - frozen
    pixel: TokenSampling = TokenSampling(),  # noqa: B008
    sharpness: float = 0.0,
    limited: bool = True,
    generator: Generators = None,
    start_tokens: Callable[[int], Callable[[], bool]] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes of B edited pictures: semantic int64 [B, hs, ws] and pixel int64 [B, hp, wp].

    Args:
        prompts: their edits; several of one picture as `joint_edits` says.
        edit_masks: bool [height, width] of each edit; cells they touch are drawn, the others keep the source's codes.
        negative: from `negative_prompts`, one a picture.
        guidance_scale, semantic, pixel, sharpness: see `write_codes`.
        kept_guidance_scale: in place of `guidance_scale` for edits that leave an object's outline as it is.
        limited: False draws the cells outside the masks, too. Of several edits of one picture each still leaves its own alone.
        generator: likewise; a list has one a picture.
        start_tokens: called with the number of positions to draw; returns `on_token` of `write_codes`.
    """
    write = partial(
        _write_edits,
        components,
        guidance_scale=guidance_scale,
        kept_guidance_scale=kept_guidance_scale,
        semantic=semantic,
        pixel=pixel,
        sharpness=sharpness,
        limited=limited,
        start_tokens=start_tokens,
    )
    if len(edits_by_picture(prompts)) == len(prompts):
        return write(encoding, prompts, edit_masks, negative=negative, generator=generator)
    return joint_codes(write, components, encoding, prompts, edit_masks, negative=negative, generator=generator)


def _write_edits(
    components: Components,
    encoding: FocusImageEncoding,
    prompts: Sequence[EditPrompt],
    edit_masks: Sequence[np.ndarray],
    *,
    negative: Sequence[str] | None,
    guidance_scale: float,
    kept_guidance_scale: float | None,
    semantic: TokenSampling,
    pixel: TokenSampling,
    sharpness: float,
    limited: bool,
    generator: Generators,
    start_tokens: Callable[[int], Callable[[], bool]] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`edit_codes` of edits that are a picture each."""
    context = FocusContext.of(components)
    size = encoding.size
    regions = [(prompt.image, region) for prompt in prompts for region in prompt.slots]
    region_tokens = embed_regions(components, encoding, [image for image, _ in regions], [mask for _, mask in regions])
    own = source_codes(components, encoding)
    grammar = VisualTokenGrammar(context.vocabulary, tuple(own[0].shape[-2:]), tuple(own[1].shape[-2:]))
    images = torch.tensor([prompt.image for prompt in prompts], device=own[0].device)
    free = tuple(
        torch.stack(
            [
                (place_on_grid(mask, encoding.inputs.placements[prompt.image], grid, "any") > 0)
                | (not limited and bool(mask.any()))
                for prompt, mask in zip(prompts, edit_masks)
            ]
        )
        for grid in (grammar.semantic_grid, grammar.pixel_grid)
    )
    template = block_template(grammar, len(prompts), codes=(own[0][images], own[1][images]), free=free)
    rows = [
        suffix_row(
            context,
            context.style.suffix(EDIT, text=prompt.instruction, num_regions=len(prompt.slots), height_width=size),
        )
        for prompt in prompts
    ]
    if negative is None:
        without = [suffix_row(context, context.style.suffix(UNCONDITIONAL[EDIT], height_width=size))] * len(rows)
    else:
        without = [suffix_row(context, context.style.suffix(EDIT, text=text, height_width=size)) for text in negative]
    guide = None
    if guiding(components) is not None:
        about = [mask if prompt.about is None else prompt.about for prompt, mask in zip(prompts, edit_masks)]
        placed = (latent_masks(encoding, images.tolist(), masks, size) for masks in (about, edit_masks))
        guide = cell_guide(components, *placed, grammar.pixel_grid, [prompt.keeps_outline for prompt in prompts])
    kept = guidance_scale if kept_guidance_scale is None else kept_guidance_scale
    scales = [guidance_scale if needs_box(prompt.instruction) else kept for prompt in prompts]
    wake(components, "language_model")
    prefix = encode_prefix(components, context, encoding, task=EDIT)
    ids = write_codes(
        components,
        prefix,
        rows,
        images.tolist(),
        grammar,
        unconditional=without,
        guidance_scale=scales,
        semantic=semantic,
        pixel=pixel,
        sharpness=sharpness,
        template=template,
        region_tokens=region_tokens,
        guide=guide,
        generator=generator,
        on_token=start_tokens(int(template[1].any(dim=0).sum())) if start_tokens is not None else None,
    )
    return grammar.image_codes(ids)


def generation_codes(
    components: Components,
    prompts: Sequence[str],
    size: tuple[int, int],
    *,
    grids: tuple[tuple[int, int], tuple[int, int]] | None = None,
    negative: Sequence[str] | None = None,
    guidance_scale: float = 1.0,
    semantic: TokenSampling = TokenSampling(),  # noqa: B008
    pixel: TokenSampling = TokenSampling(),  # noqa: B008
    sharpness: float = 0.0,
    generator: Generators = None,
    start_tokens: Callable[[int], Callable[[], bool]] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes of B images drawn from descriptions; see `edit_codes`.

    Args:
        prompts: B descriptions.
        size: (height, width), the token resolution.
        grids: (rows, columns) of semantic and of pixel tokens where they are not those of `size`.
    """
    context = FocusContext.of(components)
    grammar = VisualTokenGrammar(context.vocabulary, *(grids or (semantic_grid(*size), pixel_grid(*size))))
    rows = [
        suffix_row(context, context.style.suffix(GENERATE, text=prompt, num_images=0, height_width=size))
        for prompt in prompts
    ]
    here = {"num_images": 0, "height_width": size}
    if negative is None:
        without = [suffix_row(context, context.style.suffix(UNCONDITIONAL[GENERATE], **here))] * len(rows)
    else:
        without = [suffix_row(context, context.style.suffix(GENERATE, text=text, **here)) for text in negative]
    guide = None
    if guiding(components) is not None:
        canvas = torch.ones(len(rows), 1, *size)
        guide = cell_guide(components, canvas, canvas, grammar.pixel_grid)
    wake(components, "language_model")
    prefix = encode_prefix(components, context, None, task=GENERATE)
    drawn = len(grammar.semantic_positions) + len(grammar.pixel_positions)
    ids = write_codes(
        components,
        prefix,
        rows,
        [0] * len(rows),
        grammar,
        unconditional=without,
        guidance_scale=guidance_scale,
        semantic=semantic,
        pixel=pixel,
        sharpness=sharpness,
        guide=guide,
        generator=generator,
        on_token=start_tokens(drawn) if start_tokens is not None else None,
    )
    return grammar.image_codes(ids)
