"""All of FOCUS in one pipeline: `FocusPipeline`."""

from __future__ import annotations

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ._hub import register_pipeline
from .segment_edit import FocusSegmentEditMixin
from .understand import FocusUnderstandMixin


class FocusPipeline(FocusUnderstandMixin, FocusSegmentEditMixin, DiffusionPipeline):
    """Answers questions about an image, segments what you refer to, edits exactly that, draws from descriptions.

    Components and settings are those of `FocusSegmentEditPipeline`, and so is `__call__`; asking is `understand`.

    Example:
        ```python
        pipe = FocusPipeline.from_pretrained("pipelines/focus-tiny")
        seen = pipe.encode_image(image)
        pipe.understand(seen, "how many objects are there?").text
        pipe.segment(seen, "the red circle").masks
        pipe.edit(seen, "replace the red circle with a blue star").images
        pipe.generate("a red circle and a blue star").images
        ```
    """


register_pipeline(FocusPipeline, "focus")
