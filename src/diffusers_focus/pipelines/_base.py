"""What the pipelines share besides loading and saving: checking components, encoding images."""

from __future__ import annotations

from typing import Any

import torch

from ..sharing.publish import FocusHubMixin
from ..steps import encode
from ._hub import FocusLoadingMixin
from ._watch import FocusWatchMixin


class FocusPipelineMixin(FocusWatchMixin, FocusLoadingMixin, FocusHubMixin):
    """Mixed into a `DiffusionPipeline` with FOCUS components."""

    def _require(self, purpose: str, *names: str) -> None:
        """Raise ValueError unless these components are there."""
        missing = [name for name in names if getattr(self, name, None) is None]
        if missing:
            raise ValueError(
                f"This pipeline has no {', '.join(missing)}, which {purpose} needs. Load a pipeline that has it, or pass it: "
                f"{type(self).__name__}.from_pretrained(..., {missing[0]}=...)."
            )

    @torch.no_grad()
    def encode_image(self, image: Any) -> encode.FocusImageEncoding:
        """Encode images once for any number of questions, masks and edits.

        Args:
            image: an image (PIL, path, numpy array, torch tensor), a list of them (a batch), or a list of lists (several
                images in one prompt). An encoding is returned as it is.

        Raises:
            TypeError, ValueError, FileNotFoundError: not an image, no pixels, NaN, or a missing component.
        """
        if isinstance(image, encode.FocusImageEncoding):
            return image  # before the device is asked for: diffusers looks at every module of every component for that
        self._require("reading an image", "image_processor", "vision_encoder")
        if self.vision_encoder.pixel_tower is None:
            self._require("reading an image", "visual_tokenizer")
        return encode.encode_image(self, image, device=self._execution_device)
