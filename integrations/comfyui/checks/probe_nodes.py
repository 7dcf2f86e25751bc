"""Two nodes for check.py, which links this file into the server's custom nodes: an empty condition, and what a condition carries.

ComfyUI makes conditions with a text encoder, which the checks do without.
"""

from __future__ import annotations

from typing import Any

import torch


class ProbeCondition:
    """A condition of zeros."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"
    CATEGORY = "probes"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        """None."""
        return {"required": {}}

    def make(self) -> tuple[Any]:
        """One entry of SDXL's size."""
        return ([[torch.zeros(1, 77, 2048), {}]],)


class ProbeConcatMask:
    """The mask that InpaintModelConditioning put into a condition."""

    RETURN_TYPES = ("MASK",)
    FUNCTION = "read"
    CATEGORY = "probes"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """The condition."""
        return {"required": {"conditioning": ("CONDITIONING",)}}

    def read(self, conditioning: Any) -> tuple[torch.Tensor]:
        """[B, height, width]."""
        return (conditioning[0][1]["concat_mask"].squeeze(1),)


NODE_CLASS_MAPPINGS = {"ProbeCondition": ProbeCondition, "ProbeConcatMask": ProbeConcatMask}
