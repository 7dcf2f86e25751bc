"""Structure guidance: SDXL ControlNets beside FOCUS's decoder, and the maps they read.

The decoder's UNet is SDXL's with further input channels, so an SDXL ControlNet (arXiv 2302.05543; classes of diffusers, Apache-2.0)
adds its residuals to it as it stands. That is zero-shot: no ControlNet has seen visual tokens, and FOCUS was not trained with one.
The ControlNet reads the latents alone, and of the UNet's sequence what is there.

Maps are made by controlnet-aux (Apache-2.0; extra `[controlnet]`, needs torchvision) or are the caller's own, so that the package
stays optional. Its detectors return maps of sizes of their own; here every map comes back at its image's size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.Image import Resampling

from ..processing.images import Placement
from .arguments import check_numbers

ANNOTATORS = "lllyasviel/Annotators"  # the weights that controlnet-aux itself documents
# Name -> (class of controlnet-aux, whether it has weights, arguments of its call).
DETECTORS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "canny": ("CannyDetector", False, {}),
    "scribble": ("HEDdetector", True, {"scribble": True}),
    "lineart": ("LineartDetector", True, {}),
    "depth": ("MidasDetector", True, {}),
    "pose": ("OpenposeDetector", True, {}),
}
Detector = Callable[..., Any]


def make_map(image: Image.Image, mode: str | Detector = "canny") -> Image.Image:
    """A control map of an image, at its size.

    Args:
        image: RGB.
        mode: a name of `DETECTORS`, or a detector: anything that makes an image of an image.

    Raises:
        ImportError: controlnet-aux, or the torchvision it needs, is not installed.
        ValueError: an unknown name.
    """
    arguments: dict[str, Any] = {}
    if callable(mode):
        detector = mode
    else:
        if mode not in DETECTORS:
            raise ValueError(
                f"control_mode must be one of {', '.join(DETECTORS)} or a detector, got {mode!r}. A map of your own goes into "
                "control_image, with control_mode=None."
            )
        name, has_weights, arguments = DETECTORS[mode]
        try:
            import controlnet_aux  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError(
                f"control_mode={mode!r} needs controlnet-aux, which cannot be imported here ({error}). Install it beside a torch "
                "that has torchvision: pip install 'diffusers-focus[controlnet]'. A ready map needs neither: pass it as "
                "control_image with control_mode=None."
            ) from error
        kind = getattr(controlnet_aux, name)
        detector = kind.from_pretrained(ANNOTATORS) if has_weights else kind()
    side = min(image.size)
    found = detector(image, **arguments) if callable(mode) else detector(
        image, detect_resolution=side, image_resolution=side, output_type="pil", **arguments
    )  # fmt: skip
    if not isinstance(found, Image.Image):
        found = Image.fromarray(np.asarray(found))
    # Detectors round both sides to multiples of 64.
    return found.convert("RGB").resize(image.size, Resampling.BILINEAR)


def as_map(value: Any, size: tuple[int, int] | None, name: str = "control_image") -> Image.Image:
    """One control map (PIL image, or array [height, width] or [height, width, 3], bytes or 0..1) as RGB.

    Args:
        size: (height, width) of the image it goes with; a map of another size is refused. None takes any.

    Raises:
        TypeError, ValueError: no map, or of another size.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        if value.ndim not in (2, 3) or (value.ndim == 3 and value.shape[-1] not in (1, 3)):
            raise ValueError(f"{name} must be [height, width] or [height, width, 3], got {list(value.shape)}.")
        if value.dtype != np.uint8:
            value = np.nan_to_num(np.clip(value.astype(np.float32), 0, 1) * 255).round().astype(np.uint8)
        value = Image.fromarray(value[..., 0] if value.ndim == 3 and value.shape[-1] == 1 else value)
    if not isinstance(value, Image.Image):
        raise TypeError(f"{name} must be an image or an array of one, got {type(value).__name__}.")
    if size is not None and value.size != (size[1], size[0]):
        raise ValueError(
            f"{name} has {value.size[1]} x {value.size[0]} pixels (height x width), its image {size[0]} x {size[1]}. Resize the "
            "map to the image."
        )
    return value.convert("RGB")


def blank_inside(control: Image.Image, mask: np.ndarray) -> Image.Image:
    """The map without anything inside a mask bool [height, width]: there the edit may take another shape."""
    array = np.array(control)
    array[mask] = 0
    return Image.fromarray(array)


def place_map(control: Image.Image, placement: Placement | None, size: tuple[int, int]) -> torch.Tensor:
    """A map on the canvas of its image, black around it: float32 [3, height, width] in [0, 1].

    Args:
        placement: of the image; None fills the canvas.
        size: (height, width) of the canvas.
    """
    top, left, height, width = placement.scaled(size).box if placement is not None else (0, 0, *size)
    canvas = Image.new("RGB", (size[1], size[0]))
    canvas.paste(control.resize((width, height), Resampling.BILINEAR), (left, top))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1).float().div(255)


@dataclass
class Control:
    """ControlNets of one denoising.

    Args:
        controlnet: `ControlNetModel` or `MultiControlNetModel`.
        maps: float [B, 3, H, W] for each of them.
        scales: weight of each.
        windows: share of the denoising in which each counts, (start, end).
    """

    controlnet: Any
    maps: list[torch.Tensor]
    scales: list[float]
    windows: list[tuple[float, float]]

    def residuals(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        sequence: torch.Tensor,
        added: dict[str, torch.Tensor] | None,
        share: float,
    ) -> dict[str, Any]:
        """What the UNet adds to its blocks, as its arguments; nothing outside all windows.

        Args:
            sample: [k * B, 4, h, w], the scaled latents of k branches.
            sequence: [k * B, T, D].
            added: SDXL's second conditioning of all branches.
            share: of the denoising that is done.
        """
        scales = [
            scale if start <= share < end or (share == end == 1.0) else 0.0
            for scale, (start, end) in zip(self.scales, self.windows, strict=True)
        ]
        if not any(scales):
            return {}
        branches = len(sample) // len(self.maps[0])
        maps = [one.to(sample.device, sample.dtype).repeat(branches, 1, 1, 1) for one in self.maps]
        several = hasattr(self.controlnet, "nets")
        down, middle = self.controlnet(
            sample,
            timestep,
            encoder_hidden_states=sequence,
            controlnet_cond=maps if several else maps[0],
            conditioning_scale=scales if several else scales[0],
            added_cond_kwargs=added,
            return_dict=False,
        )
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def make_control(
    controlnet: Any,
    maps: Sequence[Sequence[torch.Tensor]],
    scale: float | Sequence[float],
    start: float | Sequence[float],
    end: float | Sequence[float],
) -> Control:
    """Check the settings of a call.

    Args:
        controlnet: one or several (`nets`).
        maps: for each of them, B maps [3, H, W].
        scale, start, end: a number, or one for each of them.

    Raises:
        TypeError, ValueError: a number is missing, or a window is none.
    """
    count = len(controlnet.nets) if hasattr(controlnet, "nets") else 1
    settings: dict[str, list[float]] = {}
    given = {"controlnet_conditioning_scale": scale, "control_guidance_start": start, "control_guidance_end": end}
    for name, value in given.items():
        values = list(value) if isinstance(value, (list, tuple)) else [value] * count
        if len(values) != count:
            raise ValueError(
                f"{name} has {len(values)} numbers for {count} ControlNets. Pass one for each, or one for all."
            )
        for one in values:
            check_numbers(**{name: one})
            if one is None:
                raise TypeError(f"{name} must be a number, got None.")
        settings[name] = [float(one) for one in values]
    windows = list(zip(settings["control_guidance_start"], settings["control_guidance_end"], strict=True))
    for first, last in windows:
        if not 0 <= first < last <= 1:
            raise ValueError(
                f"A ControlNet counts from control_guidance_start to control_guidance_end, shares of the denoising with "
                f"0 <= start < end <= 1; got {first} to {last}."
            )
    stacked = [torch.stack(list(of_net)) for of_net in maps]
    return Control(controlnet, stacked, settings["controlnet_conditioning_scale"], windows)
