"""Samples from folders and shards as prompts with their truth: what `language_data.py` draws of the still-life world, from files.

FOCUS section 3 (its training mixture). Each task of data/samples.py becomes the prompt that pipelines ask it with; pictures of any
size are fitted to a token resolution as the pipelines fit them, and a step's pictures of one resolution make one part of the
batch. Every object that any sample of a picture knows supervises a proposal, whichever was meant.

Which units a step has, and all that is drawn about them, depends on their numbers in the run alone (`data/sources.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.regions_sampling import REGION_KINDS, dilate, region_prompt
from ..data.samples import Sample
from ..data.sources import SampleStream
from ..processing.images import FocusImageProcessor, Placement
from ..processing.prompts import (
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
    build_answer,
)
from ..processing.vocabulary import CHAT_TOKENS
from ..steps.composite import keeps_outline
from ..steps.sequence import FocusContext
from .batches import parts_of
from .language_data import NO_TARGET, CodePrompt, LanguageBatch, MaskPrompt, Mixture, TextPrompt
from .trainer import StageRecipe

UNNAMED = "object"  # what the model writes for an object whose label is not known
SAME_OBJECT = 0.9  # masks of two samples of a picture with a larger IoU are of one object
GROWN = 4  # pixels an edit's region may be wider than what is meant
MAX_TOKENS = 1024


class SampleBatches:
    """Batches of samples by their number.

    Args:
        stream: where the samples come from.
        context: tokenizer, vocabulary and prompt style.
        processor: fits pictures.
        mixture: its `dropout` and `name_noise` apply to samples too.
        batch_size: units of a batch.
        prompts: samples of one picture that are asked at once, at most.
        max_tokens: longest prompt with its answer; longer ones are left out.
        pictures_at_once: how many units a part may hold; as many as there are where left out.

    Attributes:
        left_out: how much of the last batch could not be read or asked.
    """

    def __init__(
        self,
        stream: SampleStream,
        context: FocusContext,
        processor: FocusImageProcessor,
        mixture: Mixture,
        batch_size: int,
        *,
        prompts: int = 24,
        max_tokens: int = MAX_TOKENS,
        pictures_at_once: int | None = None,
    ) -> None:
        missing = [task for task in (CLASS, REFERRING, REASONING, INTERACTIVE) if task not in context.style.tasks]
        if missing:
            raise ValueError(
                f"The prompt style {context.style.name!r} has no task {', '.join(missing)}; samples are learned in the style "
                "'focus': set prompt_style of the image processor."
            )
        self.stream, self.context, self.processor = stream, context, processor
        self.mixture, self.batch_size = mixture, batch_size
        self.prompts, self.max_tokens = prompts, max_tokens
        self.parts = parts_of(batch_size, pictures_at_once)
        self.left_out = 0

    @classmethod
    def of(cls, components: Any, recipe: StageRecipe) -> SampleBatches:
        """As a recipe's options say: "data" ((path, weight) pairs), "mixture", "prompts", "max_tokens" and "pictures_at_once"."""
        options = recipe.options
        return cls(
            SampleStream.open(options["data"], recipe.seed),
            FocusContext.of(components),
            components.image_processor,
            Mixture(**options.get("mixture", {})),
            recipe.batch_size,
            prompts=options.get("prompts", 24),
            max_tokens=options.get("max_tokens", MAX_TOKENS),
            pictures_at_once=options.get("pictures_at_once"),
        )

    def draw(self, number: int) -> list[LanguageBatch]:
        """The parts of batch `number`, of one resolution each; none where nothing of it can be read."""
        drawn: list[dict[Any, _Part]] = [{} for _ in range(self.parts)]
        before = self.stream.skipped.times
        for place in range(self.batch_size):
            unit, parts = number * self.batch_size + place, drawn[place * self.parts // self.batch_size]
            samples = self.stream.samples(unit, self.prompts)
            rng = np.random.default_rng((self.stream.seed, unit, 5))
            # Frames as a clip are seen one at a time, the same pictures in a question all at once.
            for is_clip in (False, True):
                alike = [(name, one) for name, one in samples if (one.query.task == "clip") == is_clip]
                if alike:
                    self._add(parts, unit, alike, rng)
        self.left_out = self.stream.skipped.times - before
        every = (part for parts in drawn for part in parts.values())
        return [part.batch(self.processor) for part in every if part.texts or part.masked or part.codes]

    def _add(
        self, parts: dict[Any, _Part], unit: int, samples: list[tuple[str, Sample]], rng: np.random.Generator
    ) -> None:
        """Put a unit into the part of its resolution: all its samples are about the same pictures."""
        query, truth = samples[0][1].query, samples[0][1].truth
        frame = 0
        if query.task == "clip":
            frame = _frame([sample for _, sample in samples], rng)
        elif query.task != "generation" and len(query.images) != 1:
            # Words alone, or several pictures, which stand side by side at their own resolutions.
            part = parts.setdefault(("unit", unit) if query.images else "words", _Part(None))
            part.several = query.images
            view = _View(self, part, 0 if query.images else -1, None, rng)
            self._ask_all(view, samples, 0)
            return
        picture = truth.result if query.task == "generation" else query.images[frame]
        assert picture is not None
        size = self.processor.token_resolution(picture.height, picture.width)
        placement = Placement.fit((picture.height, picture.width), size, self.processor.resize_mode)
        part = parts.setdefault(size, _Part(size))
        part.pictures.append(picture)
        view = _View(self, part, len(part.pictures) - 1, placement, rng)
        self._ask_all(view, samples, frame)
        part.masks.append(view.objects())

    def _ask_all(self, view: _View, samples: list[tuple[str, Sample]], frame: int) -> None:
        asked = []
        for name, sample in samples:
            try:
                asked.append((name, sample, view.prepare(sample, frame)))
            except ValueError as error:
                self.stream.skipped.add("prompt", name, error)
        for name, sample, found in asked:  # once all objects of the picture are known
            try:
                view.ask(sample, found)
            except (ValueError, TypeError) as error:
                self.stream.skipped.add("prompt", name, error)

    def check(self, parts: Sequence[PromptPart]) -> None:
        """ValueError where a prompt is too long."""
        length = sum(max(1, len(segment.ids)) for segment in self.context.segments(parts))
        if length > self.max_tokens:
            raise ValueError(f"the prompt has {length} tokens, more than max_tokens={self.max_tokens}")


@dataclass
class _Part:
    """Units of one resolution under construction; `size` is None for words alone, or several pictures a prompt."""

    size: tuple[int, int] | None
    pictures: list[Image.Image] = field(default_factory=list)
    several: tuple[Image.Image, ...] = ()
    masks: list[torch.Tensor] = field(default_factory=list)
    regions: list[torch.Tensor] = field(default_factory=list)
    region_images: list[int] = field(default_factory=list)
    texts: list[TextPrompt] = field(default_factory=list)
    masked: list[MaskPrompt] = field(default_factory=list)
    codes: list[CodePrompt] = field(default_factory=list)
    results: list[tuple[CodePrompt, Image.Image]] = field(default_factory=list)

    def batch(self, processor: FocusImageProcessor) -> LanguageBatch:
        none = torch.zeros(0, 3, 0, 0)
        if self.size is None:
            inputs = tuple(processor.preprocess(picture) for picture in self.several)
            counts = (len(inputs),) if inputs else ()
            empty, nowhere = torch.zeros(0, 1, 0, 0), torch.zeros(0, dtype=torch.long)
            return LanguageBatch(
                none, [], empty, nowhere, self.texts, [], [], none, inputs=inputs or None, counts=counts
            )
        seen = processor.preprocess(list(self.pictures), size=self.size)
        targets = seen.pixel_values
        if self.results:
            others = processor.preprocess([picture for _, picture in self.results], size=self.size)
            targets = torch.cat([targets, others.pixel_values])
            for index, (prompt, _) in enumerate(self.results):
                prompt.target = len(self.pictures) + index
        return LanguageBatch(
            seen.pixel_values,
            self.masks,
            torch.stack(self.regions) if self.regions else torch.zeros(0, 1, *self.size),
            torch.tensor(self.region_images, dtype=torch.long),
            self.texts,
            self.masked,
            self.codes,
            targets,
            inputs=seen,
        )


@dataclass
class _Found:
    """What a sample says of its picture: the objects meant and what it calls them, their conditions, pixels that do not count."""

    targets: list[int] = field(default_factory=list)
    labels: dict[int, str] = field(default_factory=dict)
    conditions: list[int] | None = None
    ignored: torch.Tensor | None = None
    regions: list[np.ndarray] = field(default_factory=list)


class _View:
    """One picture of a part, the objects known of it, and the prompts about it."""

    def __init__(
        self, batches: SampleBatches, part: _Part, image: int, placement: Placement | None, rng: np.random.Generator
    ) -> None:
        self.batches, self.part, self.image, self.placement, self.rng = batches, part, image, placement, rng
        self.style = batches.context.style
        self._masks: list[torch.Tensor] = []
        self._labels: list[str] = []

    def objects(self) -> torch.Tensor:
        """float [M, H, W] on the canvas."""
        assert self.part.size is not None
        return torch.stack(self._masks) if self._masks else torch.zeros(0, *self.part.size)

    def _place(self, mask: np.ndarray, mode: str = "area") -> torch.Tensor:
        assert self.placement is not None
        return self.placement.place_mask(torch.from_numpy(np.ascontiguousarray(mask)), mode)

    def _object(self, mask: np.ndarray, label: str) -> int:
        """The number of an object; two samples may know the same one."""
        placed = self._place(mask)
        inside = placed > 0.5
        if not inside.any():
            raise ValueError("an object is too small to be seen at the token resolution")
        for index, other in enumerate(self._masks):
            there = other > 0.5
            if (inside & there).sum() > SAME_OBJECT * (inside | there).sum():
                if self._labels[index] == UNNAMED:
                    self._labels[index] = label
                return index
        self._masks.append(placed)
        self._labels.append(label)
        return len(self._masks) - 1

    # -- first: what there is --------------------------------------------------------------------------------------

    def prepare(self, sample: Sample, frame: int) -> _Found:
        """Enter the objects of a sample."""
        query, truth, found = sample.query, sample.truth, _Found()
        if self.placement is None and (query.task not in ("text", "answer") or query.regions):
            raise ValueError(f"what is asked here is asked of one picture, not of {len(query.images)}")
        if truth.masks is not None:
            masks = truth.masks[:, frame] if query.task == "clip" else truth.masks
            labels = truth.labels or (UNNAMED,) * len(masks)
            if query.task == "clip" and not query.names:
                # Objects are told apart by numbers there ("1", "2"), which are no names.
                labels = tuple(UNNAMED if label.isdigit() else label for label in labels)
            there = [i for i, mask in enumerate(masks) if mask.any()]
            regions = self._regions(query, masks, there, frame)
            pairs = []
            strange = next((labels[i] for i in there if query.names and labels[i] not in query.names), None)
            if strange is not None:
                raise ValueError(f"the label {strange!r} is none of the names that are asked for")
            for i in there:
                number = self._object(masks[i], labels[i])
                if labels[i] != UNNAMED:
                    found.labels[number] = labels[i]
                if regions is None:
                    pairs.append((number, query.names.index(labels[i]) if query.names else 0))
                elif len(query.regions) == len(masks):
                    pairs.append((number, there.index(i) if query.task == "clip" else i))
                else:
                    pairs += [(number, region) for region in range(len(regions))]
            pairs = list(dict.fromkeys(pairs))
            found.targets, conditions = [number for number, _ in pairs], [condition for _, condition in pairs]
            found.conditions = conditions if max(len(query.names), len(regions or ()), 1) > 1 else None
            found.regions = regions or []
        elif query.regions and self.placement is not None:
            found.regions = [region.rasterize(*self.placement.source) for region in query.regions]
        if truth.ignored is not None and truth.ignored.any():
            found.ignored = self._place(truth.ignored, "any") > 0
        return found

    def _regions(self, query: Any, masks: np.ndarray, there: list[int], frame: int) -> list[np.ndarray] | None:
        """Regions bool [h, w] of a prompt about regions, None of another; in other frames of a clip they are drawn anew."""
        if not query.regions or query.task not in ("region", "clip") or (query.task == "clip" and query.text):
            return None
        if query.task == "region" or len(query.regions) != len(masks):
            return [region.rasterize(*masks.shape[-2:]) for region in query.regions]
        drawn = []
        for i in there:
            kind = REGION_KINDS[int(self.rng.integers(len(REGION_KINDS)))]
            region = query.regions[i] if frame == query.region_frame else region_prompt(masks[i], kind, self.rng)
            drawn.append(region.rasterize(*masks.shape[-2:]))
        return drawn

    # -- then: what is asked ---------------------------------------------------------------------------------------

    def ask(self, sample: Sample, found: _Found) -> None:
        """Enter the prompts of a sample."""
        query = sample.query
        if query.task in ("text", "answer"):
            self._words(sample, found)
        elif query.task == "edit":
            self._edit(sample, found)
        elif query.task == "generation":
            self._generation(query.text)
        else:
            task = {"referring": REFERRING, "reasoning": REASONING, "class": CLASS, "region": INTERACTIVE}.get(
                query.task
            )
            if task is None:  # a frame of a clip
                task = CLASS if query.names else REFERRING if query.text else INTERACTIVE
            if task == INTERACTIVE and not found.regions:
                return  # nothing that was pointed at is in this frame
            given = {CLASS: list(query.names), INTERACTIVE: None}.get(task, query.text)
            parts = self.style.suffix(
                task, text=given, num_regions=len(found.regions), answer=self._answer(task, found)
            )
            self.batches.check(parts)
            region = self._add_regions(found.regions) if found.regions else None
            kind = query.task if found.targets else "empty"
            conditions = None if found.conditions is None else tuple(found.conditions)
            self.part.masked.append(
                MaskPrompt(
                    self.image, parts, tuple(found.targets), kind, region, conditions=conditions, ignored=found.ignored
                )
            )

    def _add_regions(self, regions: Sequence[np.ndarray]) -> int:
        first = len(self.part.regions)
        for region in regions:
            self.part.regions.append(self._place(region, "any")[None].float())
            self.part.region_images.append(self.image)
        return first

    def _names(self, targets: Sequence[int], labels: dict[int, str]) -> str:
        """Labels from left to right: the sample's own, or what other samples call these objects."""

        def middle(number: int) -> float:
            columns = self._masks[number].sum(0)
            return float((columns * torch.arange(len(columns))).sum() / columns.sum())

        ordered = sorted(dict.fromkeys(targets), key=middle)
        return ", ".join(labels.get(i, self._labels[i]) for i in ordered) or NO_TARGET

    def _answer(self, task: str, found: _Found) -> list[PromptPart]:
        """Names and masks; now and then the names of another object, which are read and not learned (`Mixture.name_noise`)."""
        if not self._masks or self.rng.random() >= self.batches.mixture.name_noise:
            return build_answer(task, self._names(found.targets, found.labels))
        names, *rest = build_answer(task, self._names([int(self.rng.integers(len(self._masks)))], {}))
        return [replace(names, is_answer=False), *rest]

    def _words(self, sample: Sample, found: _Found) -> None:
        query = sample.query
        images = len(query.images)
        parts: list[PromptPart] = []
        for question, answer in query.history:
            parts += self.style.suffix(UNDERSTAND, text=question, num_images=images, answer=answer)
            parts.append(PromptPart("text", f"\n{CHAT_TOKENS[1]}user\n"))
        task = REGION_UNDERSTAND if found.regions else UNDERSTAND
        answer = sample.truth.answers[0]
        parts += self.style.suffix(
            task, text=query.text, num_images=images, num_regions=len(found.regions), answer=answer
        )
        self.batches.check(parts)
        region = self._add_regions(found.regions) if found.regions else None
        kind = str(sample.info.get("kind") or query.task)
        self.part.texts.append(TextPrompt(self.image, parts, kind, region))

    def _edit(self, sample: Sample, found: _Found) -> None:
        query, truth = sample.query, sample.truth
        source, result = query.images[0], truth.result
        assert result is not None and self.part.size is not None
        if result.size != source.size:
            if abs(result.width * source.height / (result.height * source.width) - 1) > 0.02:
                raise ValueError(f"the result is {result.size} pixels, its source {source.size}: another shape")
            result = result.resize(source.size, Image.Resampling.LANCZOS)
        change = truth.change
        if change is None and truth.masks is not None and truth.masks.any():
            change = dilate(truth.masks.any(axis=0), 2)
        if change is not None and change.any() and found.targets:
            answer = build_answer(EDIT, self._names(found.targets, found.labels), masks=True, codes=False)
            parts = self.style.suffix(EDIT, text=query.text, answer=answer)
            self.batches.check(parts)
            place = self._place(change, "any").float()
            self.part.masked.append(MaskPrompt(self.image, parts, tuple(found.targets), "edit", change=place))
        cells = about = None
        if change is not None and change.any():
            cells = self._place(dilate(change, int(self.rng.integers(GROWN + 1))), "any").float()[None, None]
        if truth.masks is not None and truth.masks.any():
            about = self._place(truth.masks.any(axis=0), "any").float()[None, None]
        seed = int(self.rng.integers(2**31))
        if self.rng.random() < self.batches.mixture.dropout:  # unconditionally: the source again (ILLUME+)
            parts = self.style.suffix(RECONSTRUCT, height_width=self.part.size, answer=build_answer(RECONSTRUCT))
            self.part.codes.append(CodePrompt(self.image, parts, self.image, cells, seed))
            return
        parts = self.style.suffix(EDIT, text=query.text, height_width=self.part.size, answer=build_answer(EDIT))
        self.batches.check(parts)
        keeps = about is not None and keeps_outline(query.text)
        prompt = CodePrompt(self.image, parts, -1, cells, seed, about, keeps_outline=keeps)
        self.part.codes.append(prompt)
        self.part.results.append((prompt, result))

    def _generation(self, text: str) -> None:
        random = self.rng.random() < self.batches.mixture.dropout
        task, given = (GENERATE_RANDOM, None) if random else (GENERATE, text)
        parts = self.style.suffix(
            task, text=given, num_images=0, height_width=self.part.size, answer=build_answer(task)
        )
        self.batches.check(parts)
        self.part.codes.append(CodePrompt(-1, parts, self.image, seed=int(self.rng.integers(2**31))))


def _frame(samples: Sequence[Sample], rng: np.random.Generator) -> int:
    """A frame of a clip to learn from: mostly one in which something is to be seen."""
    count = len(samples[0].query.images)
    seen = np.zeros(count, dtype=bool)
    for sample in samples:
        if sample.truth.masks is not None and len(sample.truth.masks):
            seen |= sample.truth.masks.any(axis=(0, 2, 3))
    pointed = all(sample.query.regions and not sample.query.text for sample in samples)
    chosen = np.nonzero(seen)[0] if seen.any() and (pointed or rng.random() < 0.8) else np.arange(count)
    return int(chosen[int(rng.integers(len(chosen)))])
