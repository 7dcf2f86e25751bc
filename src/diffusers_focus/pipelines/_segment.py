"""`segment`: what an expression, a region or a list of names refers to (FOCUS section "Segmentation predictor")."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..processing.prompts import CLASS, INTERACTIVE, REASONING, REFERRING
from ..steps.segment import FoundObjects, MaskPrompt, segment_prompts
from ._base import FocusPipelineMixin, check_count, check_numbers, check_text, region_masks, spread
from .outputs import FocusImageEncoding, FocusSegmentOutput


class FocusSegmentMixin(FocusPipelineMixin):
    """Mixed into a `DiffusionPipeline` with a vision encoder, a language model and a mask decoder."""

    @torch.no_grad()
    def segment(
        self,
        image: Any,
        target: str | list[str] | list[list[str]] | None = None,
        region: Any = None,
        *,
        classes: list[str] | list[list[str]] | None = None,
        task: str | None = None,
        max_new_tokens: int = 48,
        score_threshold: float | None = None,
        fallback_threshold: float | None = None,
        return_dict: bool = True,
    ) -> FocusSegmentOutput | tuple[Any, ...]:
        """Find what an expression, a region or a list of names refers to.

        Args:
            image: an image, a list of images (a batch) or an encoding from `encode_image`.
            target: an expression, or one for each image; a list of lists asks several of each image. A list for a single image
                asks all of it.
            region: in place of words: a `Point`, `Scribble`, `Box` or `Mask`, in pixels of the input image; a list for a batch,
                a list of lists for regions that belong together.
            classes: in place of both: names to look for, or a list of names for each image. Every object is labelled with one.
            task: "referring" (default) or "reasoning", for indirect expressions.
            max_new_tokens: longest list of names the model writes before the masks.
            score_threshold, fallback_threshold: see `select_objects`; by default the pipeline's own.
            return_dict: False returns a tuple.

        Returns:
            `FocusSegmentOutput` with one entry per image (per expression, where a single image has a list of them).

        Raises:
            TypeError, ValueError: an argument or a component does not fit.
        """
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
        self._require_masks("segmenting")
        self._require("segmenting", "language_model", "lm_tokenizer")
        check_count(max_new_tokens, "max_new_tokens")
        check_numbers(score_threshold=score_threshold, fallback_threshold=fallback_threshold)
        nested = (
            target is not None
            and isinstance(target, (list, tuple))
            and any(isinstance(t, (list, tuple)) for t in target)
        )
        if target is not None:
            for text in _leaves(target):
                check_text(text, "target")
        if classes is not None:
            classes = _class_lists(classes)
        encoding = self._single_images(image, "Segmenting")
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
                continue
            if region is not None:
                masks = region_masks(lists["region"][row], encoding.original_sizes[index])
                prompts.append(MaskPrompt(index, INTERACTIVE, None, masks))
            else:
                prompts.append(MaskPrompt(index, CLASS, lists["classes"][row]))
            lengths.append(1)
        found = self._find(encoding, prompts, max_new_tokens, score_threshold, fallback_threshold)
        self.maybe_free_model_hooks()

        def entries(read: Callable[[FoundObjects], Any]) -> list[Any]:
            values = [read(one) for one in found]
            if not nested:
                return values
            ends = np.cumsum(lengths)
            return [values[end - length : end] for end, length in zip(ends, lengths)]

        output = FocusSegmentOutput(
            masks=entries(lambda one: one.masks),
            scores=entries(lambda one: one.scores),
            labels=entries(lambda one: one.labels),
            text=entries(lambda one: one.text),
            instance_embeds=entries(lambda one: one.instance_embeds),
        )
        return output if return_dict else output.to_tuple()

    @property
    def _can_segment(self) -> bool:
        """Whether there is a mask decoder, and a trained one."""
        return getattr(self, "mask_decoder", None) is not None and bool(self.config.masks_trained)

    def _require_masks(self, purpose: str) -> None:
        """Raise ValueError, with what to do instead, unless masks can be found."""
        if self._can_segment:
            return
        lacking = "has no mask_decoder" if self.mask_decoder is None else "has a mask_decoder that is not trained yet"
        raise ValueError(
            f"This pipeline {lacking}, which {purpose} needs. Edits take a mask instead: mask_image=..., or region=Box(...) or "
            "Mask(...). To train one, start from a ConvNeXt and Mask2Former weights and run the stages 0-encoders, 2 and 3 of "
            "`diffusers-focus train`; then load with masks_trained=True."
        )

    def _find(
        self,
        encoding: FocusImageEncoding,
        prompts: Sequence[MaskPrompt],
        max_new_tokens: int = 48,
        score_threshold: float | None = None,
        fallback_threshold: float | None = None,
    ) -> list[FoundObjects]:
        config = self.config
        return segment_prompts(
            self,
            encoding,
            prompts,
            max_new_tokens=max_new_tokens,
            score_threshold=config.score_threshold if score_threshold is None else score_threshold,
            fallback_threshold=config.fallback_threshold if fallback_threshold is None else fallback_threshold,
            duplicate_iou=config.duplicate_iou,
            before_model=self._wake,
        )

    def _single_images(self, image: Any, what: str) -> FocusImageEncoding:
        encoding = self.encode_image(image)
        if any(number != 1 for number in encoding.counts):
            raise ValueError(
                f"{what} takes one image per prompt, got {encoding.counts} images. Pass a flat list of images."
            )
        return encoding


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
