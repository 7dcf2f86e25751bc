"""Prompts as data: what is asked of the model, as a list of parts.

Paper: FOCUS (arXiv 2506.16806), "Task prompts": an instruction S_I, then a condition S_C (words, or the features of a
region). The style "focus" carries the paper's sentences; the style "illume" carries those of ILLUME+ (arXiv 2504.01934,
Apache-2.0), so that a converted original reads exactly what it was trained on.

A prompt is a prefix (system text, images, query slots) and a suffix (task, condition, start of the answer). In the
style "focus" the prefix depends on the images alone: its keys and values serve every question, mask and edit of them.

Not everything in a prompt is text. Parts of the kinds "image", "queries", "region", "masks" and "codes" stand for runs
of embeddings whose length the caller knows; `encode_prompt` turns the rest into ids.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from transformers import PreTrainedTokenizerBase

from .vocabulary import CHAT_TOKENS, MARKERS, FocusVocabulary, resolution_text

TEXT, IMAGE, QUERIES, REGION, TRIGGER, MASKS, CODES = "text", "image", "queries", "region", "trigger", "masks", "codes"

UNDERSTAND = "understand"
REGION_UNDERSTAND = "region_understand"
CAPTION = "caption"
CLASS = "class"
REFERRING = "referring"
REASONING = "reasoning"
INTERACTIVE = "interactive"
GENERATE = "generate"
EDIT = "edit"
GENERATE_RANDOM = "generate_random"
RECONSTRUCT = "reconstruct"

UNDERSTANDING_TASKS = (UNDERSTAND, REGION_UNDERSTAND, CAPTION)
SEGMENTATION_TASKS = (CLASS, REFERRING, REASONING, INTERACTIVE)
IMAGE_TASKS = (GENERATE, EDIT, GENERATE_RANDOM, RECONSTRUCT)
TASKS = UNDERSTANDING_TASKS + SEGMENTATION_TASKS + IMAGE_TASKS
REGION_TASKS = (REGION_UNDERSTAND, INTERACTIVE)
IMAGE_FREE_TASKS = (UNDERSTAND, GENERATE, GENERATE_RANDOM)
TEXT_FREE_TASKS = (INTERACTIVE, GENERATE_RANDOM, RECONSTRUCT)
UNCONDITIONAL = MappingProxyType({GENERATE: GENERATE_RANDOM, EDIT: RECONSTRUCT})
"""The task whose prompt stands in for a task's own in the unconditional branch of guidance."""


@dataclass(frozen=True)
class PromptPart:
    """One part of a prompt.

    Attributes:
        kind: "text"; "image" (a whole image block with its markers); "queries" (query slots of the image `index`);
            "region" (one slot with the features of region `index`); "trigger" (the mask trigger token); "masks" (the
            mask slots); "codes" (an image the model writes, start to end marker).
        text: of a text part.
        index: which image or region.
        condition: number of the condition this part belongs to: E^P of that condition is the mean state over it.
        is_answer: whether the model is to write this (the training loss counts here).
        is_tag: the text is a resolution tag.
    """

    kind: str
    text: str = ""
    index: int | None = None
    condition: int | None = None
    is_answer: bool = False
    is_tag: bool = False


@dataclass(frozen=True, eq=False)
class PromptStyle:
    """The texts around images, conditions and answers.

    In a task's template `{text}` is the user's text, `{tag}` the resolution tag, `{regions}` one slot for each region.
    `class_separator` stands between the names of a class-based prompt.

    Attributes:
        name: what a checkpoint calls it.
        system: the system text.
        tasks: task -> template of the suffix, up to the end of the user's turn.
        defaults: task -> the user's text where none is given.
        before_image: template before the images of tasks that write an image.
        between_images: text between two images.
        queries: whether query slots follow each image.
        writes_in_place: whether an image written over an image takes that image's positions instead of going on counting: the
            source's token at a place is then always at the same distance, however long the instruction is.
    """

    name: str
    tasks: Mapping[str, str]
    defaults: Mapping[str, str] = field(default_factory=dict)
    system: str = "You are a helpful assistant."
    before_image: str = ""
    between_images: str = ""
    queries: bool = True
    writes_in_place: bool = True
    class_separator: str = ", "

    def prefix(
        self, num_images: int = 1, *, task: str | None = None, height_width: tuple[int, int] | None = None
    ) -> list[PromptPart]:
        """System text, images and query slots: what a cache may keep.

        `task` and `height_width` matter only to styles with a tag before the image ("illume").
        """
        head = f"{CHAT_TOKENS[1]}system\n{self.system}{CHAT_TOKENS[2]}\n{CHAT_TOKENS[1]}user\n"
        parts = [PromptPart(TEXT, head)]
        if num_images and self.before_image and task in IMAGE_TASKS:
            parts += _fill(self.before_image, height_width=height_width)
        for index in range(num_images):
            if index and self.between_images:
                parts.append(PromptPart(TEXT, self.between_images))
            parts.append(PromptPart(IMAGE, index=index))
            if self.queries:
                parts.append(PromptPart(QUERIES, index=index))
        return parts

    def suffix(
        self,
        task: str,
        *,
        text: str | Sequence[str] | None = None,
        num_images: int = 1,
        height_width: tuple[int, int] | None = None,
        num_regions: int = 0,
        answer: str | Sequence[PromptPart] | None = None,
        history: Sequence[tuple[str, str, int]] = (),
    ) -> list[PromptPart]:
        """Task, condition and the start of the answer (or the whole of it). Arguments: see `build_prompt`.

        `history` holds earlier turns (question, answer, number of regions in the question); regions are counted through all turns.
        """
        text = _check(self, task, text, num_images, height_width, num_regions)
        parts = [PromptPart(TEXT, self.between_images)] if num_images and self.between_images else []
        to_answer = PromptPart(TEXT, f"{CHAT_TOKENS[2]}\n{CHAT_TOKENS[1]}assistant\n")
        first = 0
        for question, said, regions in history:
            sort = REGION_UNDERSTAND if regions else UNDERSTAND
            words = _check(self, sort, question, num_images, None, regions)
            parts += _earlier(_fill(self.tasks[sort], words, None, regions, task=sort), first)
            parts.append(to_answer)
            if said:
                parts.append(PromptPart(TEXT, _check_text(said, "An earlier answer")))
            parts.append(PromptPart(TEXT, f"{CHAT_TOKENS[2]}\n{CHAT_TOKENS[1]}user\n"))
            first += regions
        template = self.tasks[task]
        if num_regions and task == EDIT:
            template += " {regions}"
        asked = _fill(template, text, height_width, num_regions, self.class_separator, task)
        parts += [replace(part, index=part.index + first) if part.index is not None else part for part in asked]
        parts.append(to_answer)
        if isinstance(answer, str):
            answer = build_answer(task, answer)
        tag = [_tag(height_width)] if task in IMAGE_TASKS and height_width is not None else []
        if answer is None:
            return parts + tag
        for part in answer:
            if part.kind == CODES:
                if not tag:
                    raise ValueError(
                        "An answer with image codes needs their resolution. Pass height_width and one of the tasks "
                        f"{', '.join(IMAGE_TASKS)} (got {task!r})."
                    )
                parts += tag
            parts.append(part)
        return [*parts, PromptPart(TEXT, CHAT_TOKENS[2], is_answer=True)]


# The sentences of the paper, unchanged.
FOCUS = PromptStyle(
    name="focus",
    tasks=MappingProxyType(
        {
            UNDERSTAND: "{text}",
            REGION_UNDERSTAND: "{text} {regions}",
            CAPTION: "{text}",
            CLASS: "Please segment all the positive objects by the following candidate categories. {text}",
            REFERRING: "Please segment the target referred to by the language description. {text}",
            REASONING: "Please segment the target referred to by the reasoning-based description. {text}",
            INTERACTIVE: "Please segment according to the given visual reference regions. {regions}",
            GENERATE: "Please generate an image according to the following description. {text}",
            EDIT: "Please edit the image according to the following instruction. {text}",
            GENERATE_RANDOM: "Please generate a random image.",
            RECONSTRUCT: "Please reconstruct the given image.",
        }
    ),
    defaults=MappingProxyType({CAPTION: "describe the image", REGION_UNDERSTAND: "what is this?"}),
)

# ILLUME+ was trained on understanding, generation and editing; it has no queries, and a tag before the image it edits.
ILLUME = PromptStyle(
    name="illume",
    tasks=MappingProxyType(
        {
            UNDERSTAND: "{text}",
            CAPTION: "{text}",
            GENERATE: "Generate an image of {tag}, the content of image is {text}\n",
            EDIT: "Please edit the image according to the instruction: {text}\n",
            GENERATE_RANDOM: "Generate a random image of {tag}\n",
            RECONSTRUCT: "Reconstruct the image according to the given image\n",
        }
    ),
    defaults=MappingProxyType({CAPTION: "Describe the image."}),
    before_image="{tag}",
    between_images="\n",
    queries=False,
    writes_in_place=False,
)

PROMPT_STYLES: Mapping[str, PromptStyle] = MappingProxyType({style.name: style for style in (FOCUS, ILLUME)})


def get_prompt_style(name: str) -> PromptStyle:
    """The style of that name. Raises ValueError where there is none."""
    if name not in PROMPT_STYLES:
        raise ValueError(f"There is no prompt style {name!r}. Choose one of {', '.join(PROMPT_STYLES)}.")
    return PROMPT_STYLES[name]


def build_prompt(
    style: PromptStyle | str,
    task: str,
    *,
    text: str | Sequence[str] | None = None,
    num_images: int | None = None,
    height_width: tuple[int, int] | None = None,
    num_regions: int = 0,
    answer: str | Sequence[PromptPart] | None = None,
) -> list[PromptPart]:
    """A whole prompt: `style.prefix(...)` and `style.suffix(...)`.

    Args:
        style: a style or its name.
        task: one of `TASKS`.
        text: question, expression, description or instruction; for "class" a list of names. Each name is a condition of
            its own, any other text is condition 0.
        num_images: images in the prompt; by default none to generate from text, otherwise one.
        height_width: token resolution of the image to write. Image tasks then end with the resolution tag, from which
            the model goes on; without it an "edit" prompt ends at the start of the answer, where its masks are read.
        num_regions: region slots: each a condition of its own. Beside an instruction ("edit") they are what the masks
            are about, so the instruction is then no condition.
        answer: for training: what the model is to write, as text (then with masks or codes as the task has them) or as
            parts, see `build_answer`.

    Returns:
        The parts in order.

    Raises:
        TypeError, ValueError: an unknown task, or arguments that do not fit it.
    """
    style = get_prompt_style(style) if isinstance(style, str) else style
    if num_images is None:
        num_images = 0 if task in (GENERATE, GENERATE_RANDOM) else 1
    suffix = style.suffix(
        task, text=text, num_images=num_images, height_width=height_width, num_regions=num_regions, answer=answer
    )
    return style.prefix(num_images, task=task, height_width=height_width) + suffix


def build_answer(
    task: str, text: str = "", *, masks: bool | None = None, codes: bool | None = None
) -> list[PromptPart]:
    """What the model is to write: text (for masks the names of the objects), mask trigger and slots, an image.

    Args:
        task: one of `TASKS`.
        text: may be empty.
        masks: whether masks follow the text; by default they do in segmentation tasks.
        codes: whether an image follows; by default it does in image tasks.
    """
    _check_task(task)
    masks = task in SEGMENTATION_TASKS if masks is None else masks
    codes = task in IMAGE_TASKS if codes is None else codes
    if not (text or masks or codes):
        raise ValueError(f"The answer of a {task!r} prompt is empty. Give the text the model is to write.")
    parts = [PromptPart(TEXT, _check_text(text, "The answer"), is_answer=True)] if text else []
    if masks:
        parts += [PromptPart(TRIGGER, is_answer=True), PromptPart(MASKS)]
    if codes:
        parts.append(PromptPart(CODES, is_answer=True))
    return parts


def render_prompt(parts: Sequence[PromptPart]) -> str:
    """A prompt as readable text; what is not text appears as its kind: `<image>`, `<queries>`, `<region>` ..."""
    return "".join(part.text if part.kind == TEXT else f"<{part.kind}>" for part in parts)


@dataclass(frozen=True)
class Segment:
    """A stretch of an encoded prompt.

    Attributes:
        kind: "text" for ids (resolution tags and the mask trigger included), else the kind of the part it stands for.
        ids: token ids of a text segment.
        conditions: for each id the number of its condition, -1 for none; for a slot one entry.
        is_answer: whether the model is to write it.
        index: which image or region.
    """

    kind: str
    ids: tuple[int, ...] = ()
    conditions: tuple[int, ...] = ()
    is_answer: bool = False
    index: int | None = None


def encode_prompt(
    parts: Sequence[PromptPart], tokenizer: PreTrainedTokenizerBase, vocabulary: FocusVocabulary
) -> list[Segment]:
    """Ids and slots of a prompt.

    Neighbouring texts are tokenised as one string, so where a condition begins never changes how words are cut; text
    the model writes is tokenised apart from what it is given, as when it is generated.
    """
    segments: list[Segment] = []
    run: list[PromptPart] = []

    def flush() -> None:
        if run:
            segments.append(_encode_text(run, tokenizer))
            run.clear()

    for part in parts:
        if part.kind == TEXT:
            if run and run[-1].is_answer != part.is_answer:
                flush()
            run.append(part)
            continue
        flush()
        condition = -1 if part.condition is None else part.condition
        if part.kind == TRIGGER:
            segments.append(Segment(TEXT, (vocabulary.mask_trigger,), (condition,), part.is_answer))
        else:
            segments.append(Segment(part.kind, (), (condition,), part.is_answer, part.index))
    flush()
    return segments


def _encode_text(run: Sequence[PromptPart], tokenizer: PreTrainedTokenizerBase) -> Segment:
    text = "".join(part.text for part in run)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans, position = [], 0
    for part in run:
        if part.condition is not None:
            spans.append((position, position + len(part.text), part.condition))
        position += len(part.text)
    conditions = tuple(
        next((number for start, stop, number in spans if first < stop and last > start), -1)
        for first, last in encoded["offset_mapping"]
    )
    return Segment(TEXT, tuple(encoded["input_ids"]), conditions, run[0].is_answer)


def _fill(
    template: str,
    text: str | Sequence[str] | None = None,
    height_width: tuple[int, int] | None = None,
    num_regions: int = 0,
    separator: str = ", ",
    task: str | None = None,
) -> list[PromptPart]:
    """The parts of a template."""
    parts: list[PromptPart] = []
    for literal, name, _, _ in string.Formatter().parse(template):
        if literal:
            parts.append(PromptPart(TEXT, literal))
        if name == "tag":
            parts.append(_tag(height_width))
        elif name == "regions":
            parts += [PromptPart(REGION, index=index, condition=index) for index in range(num_regions)]
        elif name == "text":
            names = [text] if isinstance(text, str) else list(text)
            for number, words in enumerate(names):
                if number:
                    parts.append(PromptPart(TEXT, separator))
                given = num_regions and task in (EDIT, REGION_UNDERSTAND)
                parts.append(PromptPart(TEXT, words, condition=None if given else number))
    return _hug(parts)


def _earlier(parts: list[PromptPart], first: int) -> list[PromptPart]:
    """The parts of an earlier question: no condition any more, its regions counted from `first` on."""
    return [replace(part, condition=None, index=None if part.index is None else part.index + first) for part in parts]


def _hug(parts: list[PromptPart]) -> list[PromptPart]:
    """Move a space before a condition into it: a word and the space before it are one token."""
    hugged: list[PromptPart] = []
    for part in parts:
        before = hugged[-1] if hugged else None
        if part.kind == TEXT and part.condition is not None and before is not None and before.text.endswith(" "):
            hugged[-1] = replace(before, text=before.text[:-1])
            part = replace(part, text=" " + part.text)
        hugged.append(part)
    return [part for part in hugged if part.kind != TEXT or part.text]


def _tag(height_width: tuple[int, int] | None) -> PromptPart:
    if height_width is None:
        raise ValueError("This prompt names the resolution of its image. Pass height_width=(height, width) in pixels.")
    return PromptPart(TEXT, resolution_text(*height_width), is_tag=True)


def _check_task(task: str) -> None:
    if task not in TASKS:
        raise ValueError(f"There is no task {task!r}. Choose one of {', '.join(TASKS)}.")


def _check_text(text: str, what: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a string, got {type(text).__name__}.")
    if not text.strip():
        raise ValueError(f"{what} is empty. Write at least one word.")
    found = next((token for token in (*CHAT_TOKENS, *MARKERS) if token in text), None)
    if found is not None:
        raise ValueError(
            f"{what} contains the control token {found!r}, which would end or rewrite the turn. Remove it."
        )
    return text


def _check(
    style: PromptStyle,
    task: str,
    text: str | Sequence[str] | None,
    num_images: int,
    height_width: tuple[int, int] | None,
    num_regions: int,
) -> str | list[str] | None:
    """Validate the arguments of a suffix; the text, or the style's own where none is given."""
    _check_task(task)
    if task not in style.tasks:
        raise ValueError(
            f"The prompt style {style.name!r} has no task {task!r}: a model of that style was not trained on it. Its "
            f"tasks are {', '.join(style.tasks)}."
        )
    if num_images < 0 or (num_images == 0 and task not in IMAGE_FREE_TASKS):
        raise ValueError(f"The task {task!r} needs at least one image, got {num_images}.")
    if num_images and task in (GENERATE, GENERATE_RANDOM):
        raise ValueError(f"The task {task!r} takes no image, got {num_images}. To start from an image use {EDIT!r}.")
    if task in REGION_TASKS and num_regions < 1:
        raise ValueError(f"The task {task!r} needs a region. Pass a Point, Scribble, Box or Mask.")
    if num_regions and task not in (*REGION_TASKS, EDIT):
        raise ValueError(
            f"The task {task!r} takes no region, got {num_regions}. Tasks with regions: "
            f"{', '.join((*REGION_TASKS, EDIT))}."
        )
    if height_width is not None and task not in IMAGE_TASKS:
        raise ValueError(
            f"The task {task!r} writes no image, so it has no height_width (got {height_width}). Leave it out."
        )
    if task in TEXT_FREE_TASKS:
        if text is not None:
            raise ValueError(f"The task {task!r} takes no text, got {text!r}. Leave it out.")
        return None
    if text is None:
        text = style.defaults.get(task)
    if text is None:
        raise ValueError(f"The task {task!r} needs text. Pass text=...")
    if task == CLASS:
        if isinstance(text, str):
            raise TypeError(f'The task "class" needs a list of names, got the string {text!r}. Pass [{text!r}].')
        names = [_check_text(name, f"Name {index}") for index, name in enumerate(text)]
        if not names:
            raise ValueError("The list of names is empty. Give at least one category.")
        return names
    return _check_text(text, f"The text of a {task!r} prompt")
