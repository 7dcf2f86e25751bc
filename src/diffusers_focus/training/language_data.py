"""What stages 2-4 ask about a scene: questions, expressions, region prompts and edits as prompts with their truth.

FOCUS section "Training": captions and questions (stage 2), all of segmentation, editing and generation (stages 3, 4). Several
prompts share one picture: its encoding and its prefix in the language model are paid once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ..data.edits import EDIT_KINDS, Edit, edit_support, rough_support, sample_edit
from ..data.language import (
    QUESTION_KINDS,
    Referral,
    caption,
    explanation,
    generalized_expressions,
    questions,
    reasoning_expressions,
    referring_expressions,
)
from ..data.regions_sampling import REGION_KINDS, dilate, erode, region_prompt, strokes_prompt
from ..data.world import SHAPES, Rendered, Scene, render
from ..processing.images import FocusImageInputs
from ..processing.prompts import (
    CAPTION,
    CLASS,
    EDIT,
    GENERATE,
    GENERATE_RANDOM,
    INTERACTIVE,
    REASONING,
    RECONSTRUCT,
    REFERRING,
    REGION_UNDERSTAND,
    UNDERSTAND,
    PromptPart,
    PromptStyle,
    Segment,
    build_answer,
)
from ..steps.composite import keeps_outline
from ..steps.segment import EXPLANATION_END
from .batches import SceneBatch, scene_batch, to_pixel_values

NO_TARGET = "nothing"  # what the model writes where no object matches


@dataclass
class TextPrompt:
    """A prompt answered in words. `region` indexes `LanguageBatch.regions`, None without."""

    image: int
    parts: Sequence[PromptPart | Segment]
    kind: str
    region: int | None = None


@dataclass
class MaskPrompt:
    """A prompt answered with masks.

    Args:
        image: index of the picture.
        parts: the suffix with its answer, tokenised or not.
        targets: objects meant; empty for none.
        kind: kind of expression, "click", "scribble", "box", "mask", or "edit".
        region: index of its region prompt, None without.
        change: float [S, S], where the edit changes pixels (edit prompts), None elsewhere.
        background: the prompt means everything that is no object.
        conditions: for each target the number of the condition (class or region) it answers; None: all answer the only one.
        ignored: bool [S, S], pixels that teach nothing; None without.
    """

    image: int
    parts: Sequence[PromptPart | Segment]
    targets: tuple[int, ...]
    kind: str
    region: int | None = None
    change: torch.Tensor | None = None
    background: bool = False
    conditions: tuple[int, ...] | None = None
    ignored: torch.Tensor | None = None


@dataclass
class CodePrompt:
    """A prompt answered with an image.

    Args:
        image: index of the source picture; -1 for text to image.
        parts: the suffix with its answer.
        target: index into `LanguageBatch.target_pixels`.
        change: float [1, 1, S, S], cells touching it are written, all others are the source's; None writes everything.
        seed: of the noise in what is read instead of the true history.
        about: float [1, 1, S, S], what the edit is about, roughly; None takes `change` for it, or the whole picture.
        outline: float [1, 1, S, S], what is drawn instead, nothing where that is taken away; None where it is not known.
        keeps_outline: whether the words leave the outline of `about`, which is then not foreseen (`EditPrompt.keeps_outline`).
    """

    image: int
    parts: Sequence[PromptPart | Segment]
    target: int
    change: torch.Tensor | None = None
    seed: int = 0
    about: torch.Tensor | None = None
    outline: torch.Tensor | None = None
    keeps_outline: bool = False


@dataclass
class LanguageBatch:
    """Pictures of one size and prompts about them. A canvas is [S, S] here; samples from files may have other shapes.

    Args:
        pixel_values: float [B, 3, S, S] in [-1, 1].
        masks: B float tensors [M_b, S, S], visible masks.
        regions: float [R, 1, S, S] and their pictures int64 [R].
        texts, masked, codes: the prompts; those of `masked` in the order of their pictures. A text prompt about no picture
            has the image -1.
        target_pixels: float [T, 3, S, S], pictures the code prompts aim at; the first B are the pictures themselves.
        scenes: what is drawn, where the pictures are of the still-life world.
        inputs: the pictures as the model sees them, where that is more than `pixel_values` says (X_H of a photograph); one of
            each picture where a prompt is about several, which then differ in size.
        counts: pictures of each prompt group, in that case; a prompt's `image` is then the number of its group.
    """

    pixel_values: torch.Tensor
    masks: list[torch.Tensor]
    regions: torch.Tensor
    region_images: torch.Tensor
    texts: list[TextPrompt]
    masked: list[MaskPrompt]
    codes: list[CodePrompt]
    target_pixels: torch.Tensor
    scenes: SceneBatch = field(default_factory=lambda: SceneBatch([], [], torch.zeros(0, 3, 0, 0)))
    inputs: FocusImageInputs | tuple[FocusImageInputs, ...] | None = None
    counts: tuple[int, ...] = ()

    def to(self, device: torch.device, dtype: torch.dtype) -> LanguageBatch:
        """The same batch with its pictures and regions on a device and in a floating point type, its masks on the device; what
        codes are made of stays where it is.
        """
        if device.type == "cpu" and dtype == torch.float32:
            return self

        def inputs(one: FocusImageInputs) -> FocusImageInputs:
            return one.to(device=device, dtype=dtype)

        moved = [
            replace(p, **{n: getattr(p, n).to(device) for n in ("change", "ignored") if getattr(p, n) is not None})
            for p in self.masked
        ]
        own = self.inputs
        return replace(
            self,
            pixel_values=self.pixel_values.to(device, dtype),
            masks=[mask.to(device) for mask in self.masks],
            regions=self.regions.to(device, dtype),
            region_images=self.region_images.to(device),
            masked=moved,
            target_pixels=self.target_pixels.to(device, dtype),
            inputs=tuple(map(inputs, own)) if isinstance(own, tuple) else None if own is None else inputs(own),
        )


@dataclass(frozen=True)
class Mixture:
    """How many prompts of each sort a picture gets.

    `edits` and `generations` may be fractions: 2.5 edits are two or three. `dropout` is the share of image prompts
    swapped for the unconditional prompt (10% in ILLUME+), so that guidance works. `name_noise` is the share of mask prompts whose
    names are those of a random object: the mask slots come after the names, and with true names alone they learn to read the
    answer instead of the expression. `history_noise` is the share of edits whose tokens read something else than they
    should have written, for the same reason: what has been written so far says what the instruction says. `wordings` is the
    number of instructions for each edit; they share its picture, which costs more to encode than to write. `twins` is the share of
    pictures with two identical objects, which only a region prompt tells apart. `classes` are prompts with a list of shapes to look
    for, `strokes` is the share of region prompts drawn as several clicks and scribbles, negative ones among them, `explained` that
    of pictures with an indirect expression whose answer explains itself before it names the object. `clips` is the share of pairs
    of neighbouring pictures that are two frames of one clip, from which instance embeddings are learned. `names` is whether the
    model writes the names of what it found before the masks, as FOCUS does; an ablation leaves them out.
    `edit_kinds` are drawn evenly; one that is named twice comes twice as often.
    `often` are kinds of expressions of which a picture gets one more each time they are named. `naming` are expressions and
    instructions answered with the names and the mask trigger alone, as cheap as questions: without them the names before masks were
    right in three of ten, while every kind of question was answered. `naming_generalized` are such prompts with expressions of
    none, one or many objects: whether anything is meant is a matter of words.
    """

    questions: int = 8
    question_kinds: tuple[str, ...] = QUESTION_KINDS
    referring: int = 3
    generalized: int = 1
    regions: int = 2
    edit_masks: int = 0
    edits: float = 0.0
    edit_kinds: tuple[str, ...] = EDIT_KINDS
    wordings: int = 1
    generations: float = 0.0
    dropout: float = 0.1
    name_noise: float = 0.5
    history_noise: float = 0.0
    twins: float = 0.15
    classes: int = 0
    strokes: float = 0.0
    explained: float = 0.0
    clips: float = 0.0
    names: bool = True
    often: tuple[str, ...] = ()
    naming: int = 0
    naming_generalized: int = 0

    @property
    def masks(self) -> int:
        """Mask prompts of each picture."""
        return self.referring + len(self.often) + self.generalized + self.regions + self.edit_masks + self.classes


@dataclass
class _Draft:
    """A batch under construction."""

    style: PromptStyle
    size: tuple[int, int]
    regions: list[torch.Tensor] = field(default_factory=list)
    region_images: list[int] = field(default_factory=list)
    texts: list[TextPrompt] = field(default_factory=list)
    masked: list[MaskPrompt] = field(default_factory=list)
    codes: list[CodePrompt] = field(default_factory=list)
    targets: list[np.ndarray] = field(default_factory=list)

    def add_region(self, image: int, mask: np.ndarray, kind: str, rng: np.random.Generator) -> int:
        return self.add_raster(image, region_prompt(mask, kind, rng).rasterize(*mask.shape))

    def add_raster(self, image: int, raster: np.ndarray) -> int:
        self.regions.append(torch.from_numpy(raster).float()[None])
        self.region_images.append(image)
        return len(self.regions) - 1


def draw_batch(
    style: PromptStyle,
    mixture: Mixture,
    seed: int,
    step: int,
    batch_size: int,
    *,
    size: int = 128,
    draw_edit: Callable[[Scene, np.random.Generator], Edit] = sample_edit,
) -> LanguageBatch:
    """The pictures and prompts of one step, a function of the arguments alone; `draw_edit` is where edits come from.

    What is drawn about a picture depends on its number in the run alone, so that processes may share a step.
    """
    scenes = scene_batch(seed, step, batch_size, size, twins=mixture.twins, clips=mixture.clips)
    draft = _Draft(style, (size, size))
    draft.targets = [r.image for r in scenes.rendered]
    for image, (scene, rendered) in enumerate(zip(scenes.scenes, scenes.rendered, strict=True)):
        rng = np.random.default_rng((seed, step * batch_size + image, 2))
        _add_questions(draft, image, scene, rendered, mixture, rng)
        _add_naming(draft, image, scene, mixture, draw_edit, rng)
        edits = [draw_edit(scene, rng) for _ in range(mixture.edit_masks)]
        _add_masks(draft, image, scene, rendered, mixture, edits, rng)
        for number in range(_count(mixture.edits, rng)):
            edit = edits[number] if number < len(edits) else draw_edit(scene, rng)
            _add_edit(draft, image, scene, rendered, edit, mixture, rng)
        for _ in range(_count(mixture.generations, rng)):
            random = rng.random() < mixture.dropout
            task, text = (GENERATE_RANDOM, None) if random else (GENERATE, caption(scene))
            parts = style.suffix(task, text=text, num_images=0, height_width=draft.size, answer=build_answer(task))
            draft.codes.append(CodePrompt(-1, parts, image, seed=_noise_seed(rng)))
    regions = torch.stack(draft.regions) if draft.regions else torch.zeros(0, 1, size, size)
    return LanguageBatch(
        scenes.pixel_values,
        [torch.from_numpy(r.masks).float() for r in scenes.rendered],
        regions,
        torch.tensor(draft.region_images, dtype=torch.long),
        draft.texts,
        draft.masked,
        draft.codes,
        to_pixel_values(draft.targets),
        scenes,
    )


def _noise_seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _count(number: float, rng: np.random.Generator) -> int:
    """A whole number with that mean."""
    return int(number) + (rng.random() < number % 1)


def names_of(scene: Scene, targets: Sequence[int]) -> str:
    """The names of objects from left to right, "nothing" for none."""
    ordered = sorted(targets, key=lambda i: (scene.objects[i].cx, scene.objects[i].cy))
    return ", ".join(scene.objects[i].name for i in ordered) or NO_TARGET


def _add_questions(draft, image: int, scene: Scene, rendered: Rendered, mixture: Mixture, rng) -> None:
    if not mixture.questions:
        return
    for question in questions(scene, rng, mixture.questions, mixture.question_kinds):
        region = None
        if question.kind == "region":
            region = draft.add_region(image, rendered.masks[question.target], str(rng.choice(REGION_KINDS)), rng)
            parts = draft.style.suffix(REGION_UNDERSTAND, text=question.text, num_regions=1, answer=question.answer)
        else:
            task = CAPTION if question.kind == "caption" else UNDERSTAND
            parts = draft.style.suffix(task, text=question.text, answer=question.answer)
        draft.texts.append(TextPrompt(image, parts, question.kind, region))


def _add_naming(draft, image: int, scene: Scene, mixture: Mixture, draw_edit, rng) -> None:
    """Expressions, every third time an instruction, answered with names."""

    def name(task: str, text: str, targets: Sequence[int], kind: str) -> None:
        names, trigger, _ = build_answer(task, names_of(scene, targets), masks=True, codes=False)
        draft.texts.append(
            TextPrompt(image, draft.style.suffix(task, text=text, answer=[names, trigger]), f"names_{kind}")
        )

    instructions = mixture.naming // 3
    for _ in range(instructions):
        edit = draw_edit(scene, rng)
        if edit.targets:
            name(EDIT, edit.instruction, edit.targets, "edit")
    if mixture.naming:
        for referral in referring_expressions(scene, rng, mixture.naming - instructions):
            name(REFERRING, referral.text, referral.targets, referral.kind)
    if mixture.naming_generalized:
        for referral in generalized_expressions(scene, rng, mixture.naming_generalized):
            name(REFERRING, referral.text, referral.targets, referral.kind)


def _add_masks(draft, image: int, scene: Scene, rendered: Rendered, mixture: Mixture, edits, rng) -> None:
    prompts: list[MaskPrompt] = []

    def answer(task: str, targets: Sequence[int]) -> list[PromptPart]:
        """The answer, its names now and then those of another object; those are read, not learned to be written."""
        if not mixture.names:
            return build_answer(task)
        if rng.random() >= mixture.name_noise:
            return build_answer(task, names_of(scene, targets))
        other = (int(rng.integers(len(scene.objects))),)
        names, *rest = build_answer(task, names_of(scene, other))
        return [replace(names, is_answer=False), *rest]

    def refer(referral: Referral) -> None:
        parts = draft.style.suffix(REFERRING, text=referral.text, answer=answer(REFERRING, referral.targets))
        prompts.append(MaskPrompt(image, parts, referral.targets, referral.kind))

    def explain(referral: Referral) -> None:
        names, *rest = answer(REASONING, referral.targets)
        told = replace(names, text=f"{explanation(scene, referral)}{EXPLANATION_END} {names.text}")
        parts = draft.style.suffix(REASONING, text=referral.text, answer=[told, *rest])
        prompts.append(MaskPrompt(image, parts, referral.targets, referral.kind))

    wanted = mixture.referring
    if wanted and mixture.explained and rng.random() < mixture.explained:
        for referral in reasoning_expressions(scene, rng, 1):
            explain(referral)
            wanted -= 1
    elif wanted and rng.random() < 0.15:
        for referral in reasoning_expressions(scene, rng, 1):
            refer(referral)
            wanted -= 1
    for referral in referring_expressions(scene, rng, wanted) if wanted else []:
        refer(referral)
    everything = referring_expressions(scene, rng) if mixture.often else []
    for kind in mixture.often:
        alike = [referral for referral in everything if referral.kind == kind]
        if alike:
            refer(alike[int(rng.integers(len(alike)))])
    for referral in generalized_expressions(scene, rng, mixture.generalized) if mixture.generalized else []:
        refer(referral)
    for edit in edits:
        prompts.append(_edit_mask_prompt(draft, image, scene, edit))
    for _ in range(mixture.classes):
        names = rng.permutation(SHAPES)[: int(rng.integers(1, len(SHAPES)))].tolist()
        named = {i: names.index(item.shape) for i, item in enumerate(scene.objects) if item.shape in names}
        parts = draft.style.suffix(CLASS, text=names, answer=answer(CLASS, tuple(named)))
        prompts.append(MaskPrompt(image, parts, tuple(named), "class", conditions=tuple(named.values())))
    while len(prompts) < mixture.masks:  # regions fill up where a scene offers too few expressions
        target = int(rng.integers(len(scene.objects)))
        if mixture.strokes and rng.random() < mixture.strokes:
            kind, others = "strokes", np.delete(rendered.masks, target, axis=0)
            strokes = strokes_prompt(rendered.masks[target], others, rng)
            region = draft.add_raster(image, strokes.rasterize(*rendered.masks.shape[-2:]))
        else:
            kind = REGION_KINDS[int(rng.integers(len(REGION_KINDS)))]
            region = draft.add_region(image, rendered.masks[target], kind, rng)
        parts = draft.style.suffix(INTERACTIVE, num_regions=1, answer=answer(INTERACTIVE, (target,)))
        prompts.append(MaskPrompt(image, parts, (target,), kind, region))
    draft.masked += prompts


def _edit_mask_prompt(draft, image: int, scene: Scene, edit) -> MaskPrompt:
    background = edit.edit_kind == "background"
    names = "background" if background else names_of(scene, edit.targets)
    answer = build_answer(EDIT, names, masks=True, codes=False)
    parts = draft.style.suffix(EDIT, text=edit.instruction, answer=answer)
    change = torch.from_numpy(edit_support(scene, edit, draft.size[0])).float()
    return MaskPrompt(image, parts, edit.targets, "edit", change=change, background=background)


def _add_edit(draft, image: int, scene: Scene, rendered: Rendered, edit, mixture: Mixture, rng) -> None:
    """An edit to write; unconditionally: the source again, asked to reconstruct it (ILLUME+)."""
    if rng.random() < mixture.dropout:
        parts = draft.style.suffix(RECONSTRUCT, height_width=draft.size, answer=build_answer(RECONSTRUCT))
        draft.codes.append(CodePrompt(image, parts, image, _change(scene, edit, draft.size[0], rng), _noise_seed(rng)))
        return
    answer = build_answer(EDIT)
    result = render(edit.result, draft.size[0])
    draft.targets.append(result.image)
    for text in _wordings(scene, edit, mixture.wordings, rng):
        parts = draft.style.suffix(EDIT, text=text, height_width=draft.size, answer=answer)
        change = _change(scene, edit, draft.size[0], rng)
        noise = _noise_seed(rng)
        about, outline = _about(rendered, edit, noise), _outline(result, edit)
        draft.codes.append(
            CodePrompt(
                *(image, parts, len(draft.targets) - 1, change, noise, about),
                outline=outline,
                keeps_outline=_alike(about, outline) and keeps_outline(text),
            )
        )


def _alike(about: torch.Tensor | None, outline: torch.Tensor | None) -> bool:
    """Whether what an edit is about shows what it draws as well as a mask that was found."""
    if about is None or outline is None:
        return False
    first, second = about > 0, outline > 0
    return bool((first & second).sum() > 0.8 * (first | second).sum())


def _outline(result: Rendered, edit: Edit) -> torch.Tensor | None:
    """What an edit draws in place of an object: float [1, 1, S, S]."""
    if edit.edit_kind == "background":
        return None
    masks = result.masks[list(edit.targets)] if edit.edit_kind != "remove" else result.masks[:0]
    return torch.from_numpy(masks.any(axis=0)).float()[None, None]


def _about(rendered: Rendered, edit, seed: int) -> torch.Tensor | None:
    """What an edit is about, as a model finds it: float [1, 1, S, S], mostly its very pixels, else some less or more; now and then
    not known.

    It has random numbers of its own, so that batches are what they were without it.
    """
    rng = np.random.default_rng((seed, 3))
    if edit.edit_kind == "background" or rng.random() < 0.15:
        return None
    mask, pixels = rendered.masks[list(edit.targets)].any(axis=0), int(rng.choice((0, 0, 0, 0, -1, 1, 2)))
    mask = dilate(mask, pixels) if pixels >= 0 else erode(mask, -pixels)
    return torch.from_numpy(mask).float()[None, None]


def _wordings(scene: Scene, edit, count: int, rng: np.random.Generator) -> list[str]:
    """The instruction, and others that mean the same object by other words where there are any."""
    if count == 1:
        return [edit.instruction]
    others = [
        r.text for r in referring_expressions(scene, rng) if r.targets == edit.targets and r.text != edit.target_text
    ]
    chosen = rng.permutation(len(others))[: count - 1]
    texts = [edit.instruction, *(edit.instruction.replace(edit.target_text, others[i], 1) for i in chosen)]
    return (texts * count)[:count]


def _change(scene: Scene, edit, size: int, rng: np.random.Generator) -> torch.Tensor:
    """Which pixels an edit writes: float [1, 1, S, S].

    Of a new background mostly a window is written: a whole one has as many cells as six objects and says little more.
    """
    support = rough_support(scene, edit, size, rng)
    if edit.edit_kind == "background" and rng.random() < 0.75:
        height, width = (rng.uniform(0.3, 0.6, 2) * size).astype(int)
        top, left = int(rng.integers(size - height + 1)), int(rng.integers(size - width + 1))
        window = np.zeros_like(support)
        window[top : top + height, left : left + width] = True
        support = support & window if (support & window).any() else support
    return torch.from_numpy(support).float()[None, None]
