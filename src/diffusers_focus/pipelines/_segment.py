"""`segment`: what an expression, a region or a list of names refers to (FOCUS section "Segmentation predictor")."""

from __future__ import annotations

from typing import Any

import torch

from ..steps.encode import single_images
from ..steps.mask_requests import check_request, mask_request
from ..steps.segment import MAX_NAMES, find_objects, require_masks
from ._base import FocusPipelineMixin
from .outputs import FocusSegmentOutput


class FocusSegmentMixin(FocusPipelineMixin):
    """Mixed into a `DiffusionPipeline` with a vision encoder, a language model and a mask decoder."""

    @torch.no_grad()
    def segment(
        self,
        image: Any,
        target: str | list[Any] | None = None,
        region: Any = None,
        *,
        classes: list[Any] | None = None,
        task: str | list[str | None] | None = None,
        stuff: list[str] | None = None,
        max_new_tokens: int = MAX_NAMES,
        score_threshold: float | None = None,
        fallback_threshold: float | None = None,
        return_dict: bool = True,
    ) -> FocusSegmentOutput | tuple[Any, ...]:
        """Find what an expression, a region or a list of names refers to: no object, one, or many.

        Args:
            image: an image, a list of images (a batch) or an encoding from `encode_image`.
            target: an expression, or one for each image; a list of lists asks several of each image. A list for a single image
                asks all of it.
            region: in place of words: a `Point`, `Scribble`, `Box` or `Mask`, in pixels of the input image; a list for a batch, or
                for several results of a single image; a list of lists for regions that belong together. `Strokes` are several
                clicks, scribbles, boxes or masks about one object, negative ones (`Point(80, 20, positive=False)`) and the mask to
                improve (`previous=`) among them; a list in a list with a negative one in it is such a `Strokes` too.
            classes: in place of both: names to look for, or a list of names for each image. Every object is labelled with one.
            task: "referring" (default) or "reasoning", for indirect expressions, whose `text` explains where the model was taught
                to; with `classes` "instance" (default: a mask for each object), "semantic" (for each name) or "panoptic" (for each
                object, but for each name of `stuff`), the last two without overlaps. A list has one for each row.
            stuff: of the classes, those whose objects are not told apart in a panoptic result.
            max_new_tokens: the most the model writes before the masks.
            score_threshold, fallback_threshold: see `select_objects`; by default the pipeline's own.
            return_dict: False returns a tuple.

        Rows of a batch may ask for different things: lists then have None in the rows of the others, such as
        `segment([a, b], ["the red circle", None], [None, Point(40, 52)])`.

        Returns:
            `FocusSegmentOutput` with one entry per image (per expression, where a single image has a list of them).

        Raises:
            TypeError, ValueError: an argument or a component does not fit.
        """
        check_request(target, region, classes, task, stuff)  # before the images are read
        require_masks(self, self.config, "segmenting")
        self._require("segmenting", "language_model", "lm_tokenizer")
        encoding = single_images(self.encode_image(image), "Segmenting")
        request = mask_request(encoding, target, region, classes=classes, task=task, stuff=stuff)
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
        names = ("masks", "scores", "labels", "text", "instance_embeds", "presence", "qualities")
        output = FocusSegmentOutput(**{name: request.grouped([getattr(one, name) for one in found]) for name in names})
        return output if return_dict else output.to_tuple()
