"""Describing an image object by object: find what is there, then ask what each of it is.

A language model that reads an image as tokens knows what lies in it better than which of it comes next (docs/design.md, "Asking");
the mask decoder knows where every object is, and a region prompt (FOCUS section "Prompts") asks about one of them. Together
they make a caption that leaves nothing out and says nothing twice. How many objects there are is asked too, for a score alone does
not tell which of what may be an object is one. To answer from localised regions is Groma's idea (arXiv 2404.13013); that the model
asks itself, without having been trained to, is this project's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..processing.masks import left_to_right
from ..processing.numerals import read_numeral
from ..processing.prompts import CLASS
from .arguments import check_text
from .encode import Components, FocusImageEncoding, FocusMixedEncoding
from .segment import FoundObjects, MaskPrompt, can_segment, distinct_masks, find_objects, require_masks
from .sequence import adapter_state
from .settings import Settings
from .understand import ask_each

SAME_IOU = 0.5  # outlines of visible objects share less, two of one object more
DOUBTFUL, SURE = 0.05, 0.9  # scores: what may be an object if the count says so, and what is one whatever it says


@dataclass(frozen=True)
class ObjectFinder:
    """Looks for names in encoded images.

    Args:
        components: with a mask decoder.
        encoding: the images, one a prompt.
        settings: the pipeline's.
        names: what to look for.
        count: the question for the number of objects; None goes by scores alone.
    """

    components: Components
    encoding: FocusImageEncoding
    settings: Settings
    names: tuple[str, ...]
    count: str | None = None

    def __call__(self, images: Sequence[int]) -> dict[int, list[np.ndarray]]:
        """The objects of images by their numbers: bool [height, width] in pixels of the image, from left to right.

        They are kept in the encoding, since a conversation asks many questions of one.
        """
        key = (self.names, self.count, adapter_state(self.components.language_model))
        known = self.encoding.objects.setdefault(key, {})
        new = sorted(set(images) - set(known))
        if new:
            prompts = [MaskPrompt(image=image, task=CLASS, text=list(self.names)) for image in new]
            # What is doubtful is asked about too: a name left out is as wrong as one too many, and comes more often.
            least = self.settings.fallback_threshold
            counts: list[int | None] = [None] * len(new)
            if self.count is not None:
                counts = [read_numeral(text) for text in ask_each(self.components, self.encoding, new, self.count)]
            lowest = least if self.count is None else min(least, DOUBTFUL)
            found = find_objects(self.components, self.encoding, prompts, self.settings, score_threshold=lowest)
            for image, one, count in zip(new, found, counts, strict=True):
                masks = objects_among(one, count, least)
                known[image] = [masks[place] for place in left_to_right(masks)]
        return {image: known[image] for image in images}


def objects_among(found: FoundObjects, count: int | None, least: float) -> np.ndarray:
    """Which proposals are objects of their own: bool [objects, height, width], best score first.

    Of two that are one object the better one stays. Then the best `count` stay and whatever is sure, and where nobody counted
    those above the score `least`.
    """
    kept = distinct_masks(found.masks, range(len(found.masks)), SAME_IOU)
    scores = found.scores[kept]
    number = (scores >= least).sum() if count is None else max(count, (scores >= SURE).sum())
    return found.masks[kept][:number]


def object_finder(
    components: Components,
    encoding: FocusImageEncoding | FocusMixedEncoding | None,
    settings: Settings,
    names: Sequence[str] | None = None,
) -> ObjectFinder | None:
    """What finds the objects of images that are to be described, or None where they are described as a whole.

    Args:
        encoding: the images; those of questions that show several are described as a whole.
        settings: the pipeline's; its `caption_classes` and `caption_count` hold where `names` are not given and masks can be found.
        names: names to look for; none describes the image as a whole.

    Raises:
        TypeError, ValueError: names that are none, or nothing to find masks with.
    """
    if names is not None and not isinstance(names, (list, tuple)):
        raise TypeError(
            f"caption_classes must be a list of names, got {type(names).__name__}. An empty list describes the image as a whole."
        )
    count = getattr(settings, "caption_count", None) if names is None else None  # of some names it would ask too much
    if names is None:
        own = getattr(settings, "caption_classes", None) if can_segment(components, settings) else None
        names = [name.strip() for name in own.split(",")] if own else ()
    names = tuple(check_text(name, "A name in caption_classes") for name in names)
    if not names:
        return None
    require_masks(components, settings, "describing an image object by object")
    if not isinstance(encoding, FocusImageEncoding) or any(count != 1 for count in encoding.counts):
        return None
    return ObjectFinder(components, encoding, settings, names, count)
