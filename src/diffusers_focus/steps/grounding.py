"""What is in the image, found before a question about it is answered.

A language model that reads an image as tokens knows what lies in it better than which of it comes next; the mask decoder knows
where every object is. So the objects are found first and shown in front of the question, each as a region slot, from left to
right: FOCUS's own prompts of regions (section "Prompts"), with regions that nobody had to draw. The idea of asking after
localised regions is Groma's (arXiv 2404.13013); what is found and how it is shown is this project's (docs/design.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..processing.masks import left_to_right
from ..processing.prompts import CLASS
from .arguments import check_text
from .encode import Components, FocusImageEncoding, FocusMixedEncoding
from .segment import MaskPrompt, can_segment, find_objects, require_masks
from .sequence import adapter_state
from .settings import Settings

Finder = Callable[[Sequence[int]], dict[int, list[np.ndarray]]]
"""Numbers of images -> their objects, bool [height, width] in pixels of each image, from left to right."""


def object_finder(
    components: Components,
    encoding: FocusImageEncoding | FocusMixedEncoding | None,
    settings: Settings | None,
    names: list[str] | None = None,
) -> Finder | None:
    """What finds the objects of encoded images, or None where questions are asked about the images alone.

    Args:
        encoding: the images; those of questions that show several are not searched.
        settings: the pipeline's; its `grounding_classes` hold where `names` are not given and masks can be found.
        names: names to look for; an empty list asks about the images alone.

    Raises:
        TypeError, ValueError: names that are none, or nothing to find masks with.
    """
    if names is None:
        names = list(getattr(settings, "grounding_classes", None) or ()) if can_segment(components, settings) else []
    elif not isinstance(names, (list, tuple)):
        raise TypeError(
            f"grounding_classes must be a list of names, got {type(names).__name__}. An empty list finds nothing."
        )
    names = [check_text(name, "A name in grounding_classes") for name in names]
    if not names or not isinstance(encoding, FocusImageEncoding) or any(count != 1 for count in encoding.counts):
        return None
    require_masks(components, settings, "finding objects before a question")
    images = encoding

    def find(indices: Sequence[int]) -> dict[int, list[np.ndarray]]:
        # A conversation asks many questions of one encoding.
        key = (tuple(names), adapter_state(components.language_model))
        known = images.objects.setdefault(key, {})
        new = sorted(set(indices) - set(known))
        if new:
            prompts = [MaskPrompt(image=index, task=CLASS, text=names) for index in new]
            # The model weighs what it is shown, so what is doubtful is shown too.
            found = find_objects(components, images, prompts, settings, score_threshold=settings.fallback_threshold)
            for index, one in zip(new, found, strict=True):
                known[index] = [one.masks[place] for place in left_to_right(one.masks)]
        return {index: known[index] for index in indices}

    return find
