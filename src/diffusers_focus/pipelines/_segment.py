"""`segment`: what an expression, a region or a list of names refers to (FOCUS section "Segmentation predictor")."""

from __future__ import annotations

from typing import Any

import torch

from ..steps.encode import single_images
from ..steps.segment import MAX_NAMES, check_request, find_objects, mask_request, require_masks
from ._base import FocusPipelineMixin
from .outputs import FocusSegmentOutput


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
        max_new_tokens: int = MAX_NAMES,
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
        check_request(target, region, classes, task)  # before the images are read
        require_masks(self, self.config, "segmenting")
        self._require("segmenting", "language_model", "lm_tokenizer")
        encoding = single_images(self.encode_image(image), "Segmenting")
        request = mask_request(encoding, target, region, classes=classes, task=task)
        found = find_objects(
            self,
            encoding,
            request.prompts,
            self.config,
            max_new_tokens=max_new_tokens,
            score_threshold=score_threshold,
            fallback_threshold=fallback_threshold,
        )
        self.maybe_free_model_hooks()
        output = FocusSegmentOutput(
            masks=request.grouped([one.masks for one in found]),
            scores=request.grouped([one.scores for one in found]),
            labels=request.grouped([one.labels for one in found]),
            text=request.grouped([one.text for one in found]),
            instance_embeds=request.grouped([one.instance_embeds for one in found]),
        )
        return output if return_dict else output.to_tuple()
