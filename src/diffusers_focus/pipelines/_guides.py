"""What may steer the decoder besides visual tokens and masks: ControlNets and SDXL's own words. Both optional, both zero-shot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from PIL import Image

from ..processing.images import Placement
from ..steps.arguments import as_list
from ..steps.control import Control, as_map, blank_inside, make_control, make_map, place_map
from ..steps.cropping import CropBox
from ..steps.text import DecoderText, encode_decoder_prompt
from ._base import FocusPipelineMixin


@dataclass(frozen=True, eq=False)
class GuideRow:
    """One prompt's picture, as far as it has one.

    Args:
        image: the user's; None where one is drawn from a description.
        mask: bool [height, width] of the image, where it may change.
        box: the part of the image that is edited; None for all of it.
        placement: of the image, or of that part, on its canvas.
    """

    image: Image.Image | None = None
    mask: np.ndarray | None = None
    box: CropBox | None = None
    placement: Placement | None = None


@dataclass(frozen=True)
class ControlOptions:
    """What a call says about ControlNets; see `FocusEditMixin.__call__`."""

    image: Any = None
    mode: Any = None
    outside_only: bool = False
    scale: Any = 1.0
    start: Any = 0.0
    end: Any = 1.0


class FocusGuidesMixin(FocusPipelineMixin):
    """Mixed into the pipelines that draw."""

    def _control(
        self, options: ControlOptions, rows: list[GuideRow], repeats: int, decoded: tuple[int, int]
    ) -> Control | None:
        """The ControlNets of a call with their maps on canvases of the decoded size; None where it asks for none.

        Args:
            rows: one a prompt.
            repeats: results for each.

        Raises:
            ImportError, TypeError, ValueError: a detector that is not installed, no ControlNet, or maps that do not fit.
        """
        if options.image is None and options.mode is None:
            return None
        net = getattr(self, "controlnet", None)
        if net is None:
            raise ValueError(
                "control_image and control_mode need a ControlNet, and this pipeline has none. Load it with "
                "FocusPipeline.from_pretrained(..., controlnet=ControlNetModel.from_pretrained(...)), an SDXL one."
            )
        several = isinstance(net, MultiControlNetModel)
        images, modes = _for_each_net(options.image, options.mode, len(net.nets) if several else 1, several)
        maps = []
        for given, mode in zip(images, modes, strict=True):
            values = as_list(given, "control_image") or [given] * len(rows)
            if len(values) != len(rows):
                raise ValueError(
                    f"control_image has {len(values)} maps for {len(rows)} prompts. Pass one map, or one for each prompt."
                )
            of_net = [self._placed(value, mode, row, decoded, options.outside_only) for value, row in zip(values, rows)]
            maps.append([one for one in of_net for _ in range(repeats)])
        return make_control(net, maps, options.scale, options.start, options.end)

    def _placed(
        self, value: Any, mode: Any, row: GuideRow, decoded: tuple[int, int], outside_only: bool
    ) -> torch.Tensor:
        if value is None and row.image is None:
            raise ValueError("control_mode makes a map of an image, and there is none here. Pass control_image too.")
        size = (row.image.size[1], row.image.size[0]) if row.image is not None else None
        control = row.image if value is None else as_map(value, size)
        assert control is not None
        if mode is not None:
            control = make_map(control, mode)
        if outside_only and row.mask is not None:
            control = blank_inside(control, row.mask)
        if row.box is not None:
            control = control.crop(row.box)
        return place_map(control, row.placement, decoded)

    def _decoder_text(
        self, prompt: Any, negative: Any, weighted: bool, count: int, repeats: int, device: torch.device
    ) -> DecoderText | None:
        """The words of a call for the decoder; None where it has none."""
        if prompt is None:
            if negative is not None or weighted:
                raise ValueError(
                    "negative_decoder_prompt and prompt_weighting go with decoder_prompt. Pass that, or leave them out."
                )
            return None
        return encode_decoder_prompt(self, prompt, negative, count, weighted=weighted, device=device).repeat(repeats)


def _for_each_net(image: Any, mode: Any, count: int, several: bool) -> tuple[list[Any], list[Any]]:
    """What belongs to each ControlNet: with several, `image` and `mode` are lists with one entry for each, or one for all."""
    if not several:
        return [image], [mode]
    found = []
    for name, value in (("control_image", image), ("control_mode", mode)):
        values = as_list(value, name) or [value] * count
        if len(values) != count:
            raise ValueError(
                f"{name} has {len(values)} entries for {count} ControlNets. Pass one for each, or one for all."
            )
        found.append(values)
    return found[0], found[1]
