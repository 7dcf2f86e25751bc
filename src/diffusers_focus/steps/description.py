"""Describing an image object by object: find what is there, then ask what each of it is.

A language model that reads an image as tokens knows what lies in it better than which of it comes next (docs/design.md, "Asking");
the mask decoder knows where every object is, and a region prompt (FOCUS section "Prompts") asks about one of them. Together
they make a caption that leaves nothing out and says nothing twice. To answer from localised regions is Groma's idea (arXiv
2404.13013); that the model asks itself, without having been trained to, is this project's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..processing.masks import left_to_right
from ..processing.prompts import CLASS
from .arguments import check_text
from .encode import Components, FocusImageEncoding, FocusMixedEncoding
from .segment import MaskPrompt, can_segment, find_objects, require_masks
from .sequence import adapter_state
from .settings import Settings


@dataclass(frozen=True)
class ObjectFinder:
    """Looks for names in encoded images.

    Args:
        components: with a mask decoder.
        encoding: the images, one a prompt.
        settings: the pipeline's.
        names: what to look for.
    """

    components: Components
    encoding: FocusImageEncoding
    settings: Settings
    names: tuple[str, ...]

    def __call__(self, images: Sequence[int]) -> dict[int, list[np.ndarray]]:
        """The objects of images by their numbers: bool [height, width] in pixels of the image, from left to right.

        They are kept in the encoding, since a conversation asks many questions of one.
        """
        known = self.encoding.objects.setdefault((self.names, adapter_state(self.components.language_model)), {})
        new = sorted(set(images) - set(known))
        if new:
            prompts = [MaskPrompt(image=image, task=CLASS, text=list(self.names)) for image in new]
            # What is doubtful is asked about too: a name left out is as wrong as one too many, and comes more often.
            least = self.settings.fallback_threshold
            found = find_objects(self.components, self.encoding, prompts, self.settings, score_threshold=least)
            for image, one in zip(new, found, strict=True):
                known[image] = [one.masks[place] for place in left_to_right(one.masks)]
        return {image: known[image] for image in images}


def object_finder(
    components: Components,
    encoding: FocusImageEncoding | FocusMixedEncoding | None,
    settings: Settings,
    names: Sequence[str] | None = None,
) -> ObjectFinder | None:
    """What finds the objects of images that are to be described, or None where they are described as a whole.

    Args:
        encoding: the images; those of questions that show several are described as a whole.
        settings: the pipeline's; its `caption_classes` hold where `names` are not given and masks can be found.
        names: names to look for; none describes the image as a whole.

    Raises:
        TypeError, ValueError: names that are none, or nothing to find masks with.
    """
    if names is not None and not isinstance(names, (list, tuple)):
        raise TypeError(
            f"caption_classes must be a list of names, got {type(names).__name__}. An empty list describes the image as a whole."
        )
    if names is None:
        own = getattr(settings, "caption_classes", None) if can_segment(components, settings) else None
        names = [name.strip() for name in own.split(",")] if own else ()
    names = tuple(check_text(name, "A name in caption_classes") for name in names)
    if not names:
        return None
    require_masks(components, settings, "describing an image object by object")
    if not isinstance(encoding, FocusImageEncoding) or any(count != 1 for count in encoding.counts):
        return None
    return ObjectFinder(components, encoding, settings, names)
