"""Images in and out: anything a user may hand over <-> the three inputs of the model.

Paper: FOCUS (arXiv 2506.16806), "Dual-branch encoder": one image is seen as X_L (ViT, low resolution), as X_H
(ConvNeXt, high resolution) and, for the pixel tokenizer, at the token resolution. The X_L chain (bicubic with
antialiasing, clamp, CLIP statistics) and the letterbox of edits follow ILLUME+ (arXiv 2504.01934, Apache-2.0).

Every image is letterboxed (white) into the token resolution whose aspect ratio is nearest, so any aspect ratio works.
Its `Placement` says where it lies and takes coordinates, masks and results back to the user's own pixels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError

# diffusers looks for the name ImageProcessingMixin in the module of a saved component to learn how it is loaded.
from transformers.image_processing_base import ImageProcessingMixin  # noqa: F401
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs

from . import grids
from .masks import resample_mask

ImageLike = Image.Image | np.ndarray | torch.Tensor | str | os.PathLike

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
RESIZE_MODES = ("letterbox", "stretch")
_FLOAT_SLACK = 1e-3  # resized float images overshoot [0, 1] by rounding


@dataclass(frozen=True)
class Placement:
    """Where an image lies on the canvas of a token resolution.

    Attributes:
        source: (height, width) of the user's image.
        canvas: (height, width) of the token resolution.
        box: (top, left, height, width) of the image on the canvas, in canvas pixels.
    """

    source: tuple[int, int]
    canvas: tuple[int, int]
    box: tuple[int, int, int, int]

    @classmethod
    def fit(cls, source: tuple[int, int], canvas: tuple[int, int], mode: str = "letterbox") -> Placement:
        """Place an image: centred with its aspect ratio kept ("letterbox") or filling the canvas ("stretch")."""
        if mode == "stretch":
            return cls(tuple(source), tuple(canvas), (0, 0, *canvas))
        scale = min(canvas[0] / source[0], canvas[1] / source[1])
        height, width = (min(c, max(1, round(s * scale))) for s, c in zip(source, canvas))
        return cls(tuple(source), tuple(canvas), ((canvas[0] - height) // 2, (canvas[1] - width) // 2, height, width))

    @property
    def is_identity(self) -> bool:
        """Whether the canvas is the image itself, pixel by pixel."""
        return self.source == self.canvas and self.box == (0, 0, *self.canvas)

    def scaled(self, canvas: tuple[int, int]) -> Placement:
        """The same placement on a canvas of another size."""
        fy, fx = canvas[0] / self.canvas[0], canvas[1] / self.canvas[1]
        top, left, height, width = self.box
        y0, x0, y1, x1 = round(top * fy), round(left * fx), round((top + height) * fy), round((left + width) * fx)
        y0, x0 = min(y0, canvas[0] - 1), min(x0, canvas[1] - 1)
        return Placement(self.source, tuple(canvas), (y0, x0, max(1, y1 - y0), max(1, x1 - x0)))

    def to_canvas(self, x: float, y: float) -> tuple[float, float]:
        """(x, y) in canvas pixels of a position in the user's image."""
        top, left, height, width = self.box
        return left + x * width / self.source[1], top + y * height / self.source[0]

    def to_source(self, x: float, y: float) -> tuple[float, float]:
        """(x, y) in the user's image of a position on the canvas; outside of it where the canvas is padding."""
        top, left, height, width = self.box
        return (x - left) * self.source[1] / width, (y - top) * self.source[0] / height

    def place_mask(self, mask: torch.Tensor, mode: str = "any") -> torch.Tensor:
        """A mask of the user's image on the canvas; the padding is outside.

        Args:
            mask: [..., height, width] of the source size, float in [0, 1] or bool.
            mode: see `resample_mask`.

        Returns:
            float [..., canvas height, canvas width].
        """
        if tuple(mask.shape[-2:]) != self.source:
            raise ValueError(
                f"The mask is {mask.shape[-1]} wide and {mask.shape[-2]} high, but its image is {self.source[1]} wide "
                f"and {self.source[0]} high. Resize the mask to the image first."
            )
        top, left, height, width = self.box
        inner = resample_mask(mask, (height, width), mode)
        bottom, right = self.canvas[0] - top - height, self.canvas[1] - left - width
        return F.pad(inner, (left, right, top, bottom))


@dataclass(frozen=True)
class FocusImageInputs:
    """A batch of images as the model sees them.

    Attributes:
        pixel_values: float [N, 3, H, W] in [-1, 1] at the token resolution.
        pixel_values_low: float [N, 3, h, w], X_L, CLIP statistics, sides multiples of 28.
        pixel_values_high: float [N, 3, h', w'], X_H, CLIP statistics, sides multiples of 32; None without that branch.
        placements: one `Placement` per image.
        counts: images per prompt, in order; they sum to N.
    """

    pixel_values: torch.Tensor
    pixel_values_low: torch.Tensor
    pixel_values_high: torch.Tensor | None
    placements: tuple[Placement, ...]
    counts: tuple[int, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the token resolution."""
        height, width = self.pixel_values.shape[-2:]
        return height, width

    @property
    def original_sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each image as it was given."""
        return tuple(placement.source for placement in self.placements)

    def __len__(self) -> int:
        return len(self.placements)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> FocusImageInputs:
        """The same inputs on another device or in another floating point type."""
        names = ("pixel_values", "pixel_values_low", "pixel_values_high")
        moved = {name: getattr(self, name) for name in names}
        return replace(
            self, **{name: value.to(device=device, dtype=dtype) for name, value in moved.items() if value is not None}
        )


def make_inputs(
    pixel_values: torch.Tensor,
    low_size: tuple[int, int],
    high_size: tuple[int, int] | None,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """X_L and X_H of a batch that is already at the token resolution. Tensors only, for training loops.

    Args:
        pixel_values: float [N, 3, H, W] in [-1, 1].
        low_size, high_size: (height, width) of X_L and X_H; no X_H where `high_size` is None.
        mean, std: statistics both are normalised with.

    Returns:
        float [N, 3, *low_size] and float [N, 3, *high_size] (or None), of the dtype and on the device of the input.
    """
    unit = (pixel_values + 1).mul_(0.5)
    low = _normalize(_resize(unit, low_size), mean, std)
    return low, None if high_size is None else _normalize(_resize(unit, high_size), mean, std)


def load_image_any(image: ImageLike) -> Image.Image:
    """Anything that is one image, as an upright RGB image of 8 bits a channel.

    Args:
        image: a path; a PIL image of any mode (transparency is laid on white, EXIF rotation applied); a numpy array
            [height, width] or [height, width, channels]; a torch tensor [height, width] or [channels, height, width]
            (or channels last). Arrays hold uint8, uint16, bool, or floats in [0, 1]; 1 (grey), 2 (grey, alpha), 3
            (RGB) or 4 (RGBA) channels.

    Raises:
        TypeError: not an image, or a dtype that cannot be one.
        FileNotFoundError: there is no file at that path.
        ValueError: unreadable file, no pixels, NaN, values out of range, or a wrong number of channels.
    """
    if isinstance(image, (str, os.PathLike)):
        image = _open(image)
    elif isinstance(image, torch.Tensor):
        image = _from_array(_tensor_to_numpy(image), channels_first=True)
    elif isinstance(image, np.ndarray):
        image = _from_array(image, channels_first=False)
    elif not isinstance(image, Image.Image):
        raise TypeError(
            f"An image must be a PIL image, numpy array, torch tensor or path, got {type(image).__name__}. Load other "
            "formats with PIL.Image first."
        )
    if image.width == 0 or image.height == 0:
        raise ValueError(
            f"The image is {image.width} x {image.height} pixels: it has no content. Pass at least one pixel."
        )
    return _to_rgb(ImageOps.exif_transpose(image))


class FocusImageKwargs(ImagesKwargs, total=False):
    """The options of `FocusImageProcessor`, which `from_pretrained(..., option=value)` may override."""

    buckets: list
    tag_step: int
    high_resolution: int | None
    decode_scale: int
    vae_scale_factor: int
    prompt_style: str
    resize_mode: str


class FocusImageProcessor(BaseImageProcessor):
    """Loads, letterboxes and normalises images for FOCUS, and takes results back to the user's pixels.

    Args:
        buckets: [height, width] token resolutions, multiples of 16.
        tag_step: pixels between two resolution tags; 64 for the originals. Every bucket must have a tag.
        high_resolution: side of the square whose area X_H has; None without the ConvNeXt branch.
        decode_scale: the diffusion decoder renders at this multiple of the token resolution.
        vae_scale_factor: pixels of the decoded image per latent.
        prompt_style: name of the prompt templates the model was trained on, see `prompts.PROMPT_STYLES`.
        resize_mode: "letterbox" (aspect ratio kept, white padding) or "stretch".
        image_mean, image_std: statistics of X_L and X_H, three numbers each.

    Raises:
        ValueError: a bucket or option that cannot work.
    """

    model_input_names = ["pixel_values", "pixel_values_low", "pixel_values_high"]
    valid_kwargs = FocusImageKwargs
    high_resolution = 768  # as a class attribute too: the base class saves a None only where the class says otherwise

    def __init__(
        self,
        buckets: Sequence[Sequence[int]] = grids.BUCKETS_512,
        tag_step: int = 64,
        high_resolution: int | None = 768,
        decode_scale: int = 2,
        vae_scale_factor: int = 8,
        prompt_style: str = "focus",
        resize_mode: str = "letterbox",
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if resize_mode not in RESIZE_MODES:
            raise ValueError(f"resize_mode must be one of {', '.join(RESIZE_MODES)}, got {resize_mode!r}.")
        if high_resolution is not None and high_resolution < 32:
            raise ValueError(f"high_resolution must be at least 32 pixels or None, got {high_resolution}.")
        if not buckets:
            raise ValueError("buckets is empty. Give at least one [height, width] token resolution.")
        for height, width in buckets:
            grids.check_resolution(height, width)
            grids.latent_grid(height, width, decode_scale, vae_scale_factor)
            if height % tag_step or width % tag_step:
                raise ValueError(
                    f"The bucket {height} x {width} has no resolution tag: tags are multiples of tag_step={tag_step}. "
                    "Change the bucket or tag_step."
                )
        self.buckets = [[int(height), int(width)] for height, width in buckets]
        self.tag_step = tag_step
        self.high_resolution = high_resolution
        self.decode_scale = decode_scale
        self.vae_scale_factor = vae_scale_factor
        self.prompt_style = prompt_style
        self.resize_mode = resize_mode
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def __call__(self, images: Any, **kwargs: Any) -> FocusImageInputs:
        return self.preprocess(images, **kwargs)

    def token_resolution(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) bucket an image of this size goes into."""
        return grids.nearest_bucket(height, width, [tuple(bucket) for bucket in self.buckets])

    def batch_resolution(self, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """The token resolution of a batch of images of these (height, width): the one nearest to their mean aspect ratio."""
        height, width = np.exp(np.log(np.asarray(sizes, dtype=np.float32)).mean(0))
        return self.token_resolution(max(1, round(float(height))), max(1, round(float(width))))

    def low_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of X_L at a token resolution."""
        return grids.vit_size(height, width)

    def high_size(self, height: int, width: int) -> tuple[int, int] | None:
        """(height, width) of X_H at a token resolution; None without that branch."""
        if self.high_resolution is None:
            return None
        return grids.high_resolution_size(height, width, self.high_resolution)

    def make_inputs(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """X_L and X_H of a batch [N, 3, H, W] in [-1, 1] at a token resolution; see the function of this name."""
        size = tuple(pixel_values.shape[-2:])
        return make_inputs(pixel_values, self.low_size(*size), self.high_size(*size), self.image_mean, self.image_std)

    def preprocess(
        self,
        images: Any,
        *,
        size: tuple[int, int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> FocusImageInputs:
        """Images as model inputs.

        Args:
            images: one image; a list (or a [N, ...] array) of images, one per prompt; or a list of lists, several
                images per prompt.
            size: (height, width) of the token resolution, one of the buckets. Default: the one nearest to the images'
                mean aspect ratio (a batch has one size).
            device, dtype: where the tensors go; float32 on the CPU (or the images' device) by default.

        Raises:
            TypeError, ValueError, FileNotFoundError: see `load_image_any`; also for an empty list and an unknown size.
        """
        nested = nest_images(images)
        counts = tuple(len(group) for group in nested)
        flat = [image for group in nested for image in group]
        if size is not None and list(size) not in self.buckets:
            raise ValueError(
                f"size {tuple(size)} (height, width) is not a bucket of this model. Choose from {self.buckets}."
            )
        # Tensors that already are at the token resolution need no detour through 8-bit images.
        ready = [_ready_tensor(image) for image in flat]
        loaded = [load_image_any(image) if tensor is None else None for image, tensor in zip(flat, ready)]
        sources = [_size_of(image, tensor) for image, tensor in zip(loaded, ready)]
        if size is None:
            size = self.batch_resolution(sources)
        placements = tuple(Placement.fit(source, size, self.resize_mode) for source in sources)
        high_size = self.high_size(*size)
        canvases, detailed = [], {}
        for index, (placement, tensor) in enumerate(zip(placements, ready)):
            if tensor is not None and placement.is_identity:
                canvases.append(tensor)
                continue
            image = loaded[index] or load_image_any(flat[index])
            canvases.append(_to_unit(_paste(image, placement)))
            # X_H of a large photograph is made from the photograph, not from its reduction to the token resolution.
            if high_size is not None and placement.box[2] < placement.source[0] and high_size[0] > size[0]:
                detailed[index] = _to_unit(_paste(image, placement.scaled(high_size)))
        pixel_values = torch.stack([canvas.to(device or canvas.device) for canvas in canvases]).mul(2).sub(1)
        low, high = self.make_inputs(pixel_values)
        if high is not None:
            for index, canvas in detailed.items():
                high[index] = _normalize(canvas.to(high.device), self.image_mean, self.image_std)
        return FocusImageInputs(pixel_values, low, high, placements, counts).to(dtype=dtype or torch.float32)

    def postprocess(self, images: torch.Tensor, output_type: str = "pil") -> Any:
        """Decoded images [N, 3, H, W] in [-1, 1] as a list of PIL images or as floats in [0, 1].

        `output_type` is "pil", "np" (an array [N, H, W, 3]) or "pt" (a tensor [N, 3, H, W]).
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f'output_type must be "pil", "np" or "pt", got {output_type!r}.')
        unit = images.detach().float().add(1).div(2).clamp(0, 1)
        if output_type == "pt":
            return unit
        array = unit.permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "np":
            return array
        return [Image.fromarray(np.round(image * 255).astype(np.uint8)) for image in array]

    def restore_image(self, image: torch.Tensor | Image.Image, placement: Placement) -> torch.Tensor | Image.Image:
        """Cut a result out of its canvas and bring it to the size of the user's image.

        Args:
            image: [..., 3, H, W] in [-1, 1] or a PIL image, on the canvas at any scale (the decoder renders at
                `decode_scale` times the token resolution).

        Returns:
            The same kind, of the size `placement.source`.
        """
        if isinstance(image, Image.Image):
            top, left, height, width = placement.scaled((image.height, image.width)).box
            image = image.crop((left, top, left + width, top + height))
            size = (placement.source[1], placement.source[0])
            return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
        top, left, height, width = placement.scaled(tuple(image.shape[-2:])).box
        image = image[..., top : top + height, left : left + width]
        if tuple(image.shape[-2:]) == placement.source:
            return image
        lead = image.shape[:-3]
        resized = _resize(image.reshape(-1, *image.shape[-3:]), placement.source).clamp(-1, 1)
        return resized.reshape(*lead, *resized.shape[-3:])

    def restore_mask(self, mask: torch.Tensor, placement: Placement) -> torch.Tensor:
        """Bring mask probabilities or logits from the canvas to the user's image.

        Args:
            mask: float [..., rows, columns] on any grid over the canvas.

        Returns:
            float [..., height, width] of `placement.source`, interpolated bilinearly; threshold it afterwards.
        """
        lead = mask.shape[:-2]
        planes = mask.reshape(-1, 1, *mask.shape[-2:])
        if mask.shape[-2] % placement.canvas[0] or mask.shape[-1] % placement.canvas[1]:
            # The image's edge falls between cells of a coarse grid: cut at the resolution that knows where it is.
            planes = F.interpolate(planes, size=placement.canvas, mode="bilinear", align_corners=False)
        top, left, height, width = placement.scaled(tuple(planes.shape[-2:])).box
        planes = planes[..., top : top + height, left : left + width]
        if tuple(planes.shape[-2:]) != placement.source:
            smaller = placement.source[0] < height
            planes = F.interpolate(
                planes, size=placement.source, mode="bilinear", align_corners=False, antialias=smaller
            )
        return planes.reshape(*lead, *placement.source)


def _resize(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    dtype = images.dtype
    if dtype not in (torch.float32, torch.float64):  # half precision rounds the filter's weights visibly
        images = images.float()
    return F.interpolate(images, size=tuple(size), mode="bicubic", align_corners=False, antialias=True).to(dtype)


def _normalize(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Images [..., 3, H, W] around [0, 1], clamped to it, with the statistics taken off."""
    # In place, because X_H of a training batch is large; by numbers, because copying them to a device waits for it.
    images = images.clamp(0, 1)
    for channel in range(3):
        images.select(-3, channel).sub_(mean[channel]).div_(std[channel])
    return images


def _to_unit(image: Image.Image) -> torch.Tensor:
    """RGB image -> float [3, H, W] in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)


def _paste(image: Image.Image, placement: Placement) -> Image.Image:
    top, left, height, width = placement.box
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    if (height, width) == placement.canvas:
        return image
    canvas = Image.new("RGB", (placement.canvas[1], placement.canvas[0]), (255, 255, 255))
    canvas.paste(image, (left, top))
    return canvas


def nest_images(images: Any) -> list[list[Any]]:
    """One image, a list of images or a list of lists, as a list of lists."""
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        images = list(images)
    if not isinstance(images, (list, tuple)):
        return [[images]]
    if len(images) == 0:
        raise ValueError("The list of images is empty. Pass at least one image.")
    nested = [list(group) if isinstance(group, (list, tuple)) else [group] for group in images]
    if any(len(group) == 0 for group in nested):
        raise ValueError("One of the prompts has an empty list of images. Give each prompt at least one image.")
    return nested


def _ready_tensor(image: Any) -> torch.Tensor | None:
    """A torch RGB image [3, H, W] as float32 in [0, 1], None where it is anything else (or invalid: said elsewhere)."""
    if not isinstance(image, torch.Tensor) or image.dim() != 3 or image.shape[0] != 3 or 0 in image.shape:
        return None
    if image.shape[-1] in (1, 3, 4):
        return None
    image = image.detach()
    if image.dtype == torch.uint8:
        return image.float().div(255)
    if not image.is_floating_point():
        return None
    _check_unit(float(image.min()), float(image.max()))
    return image.float().clamp(0, 1)


def _size_of(image: Image.Image | None, tensor: torch.Tensor | None) -> tuple[int, int]:
    """(height, width) of whichever is there."""
    if tensor is not None:
        return tensor.shape[-2], tensor.shape[-1]
    assert image is not None
    return image.height, image.width


def _check_unit(low: float, high: float) -> None:
    # A NaN anywhere makes min and max NaN, and comparisons with it are False.
    if not (low == low and high == high):
        raise ValueError("The image holds NaN values. Check how it was computed or loaded.")
    if low < -_FLOAT_SLACK or high > 1 + _FLOAT_SLACK:
        raise ValueError(
            f"A floating point image must hold values in [0, 1], got {low:g} to {high:g}. Divide 0..255 by 255 or pass "
            "uint8; from [-1, 1] use (x + 1) / 2."
        )


def _open(path: str | os.PathLike) -> Image.Image:
    name = os.fspath(path)
    if isinstance(name, str) and name.startswith(("http://", "https://")):
        raise ValueError(
            f"{name} is an address, not a file. Load it first, for example with diffusers.utils.load_image."
        )
    if not os.path.isfile(name):
        raise FileNotFoundError(f"There is no image file at {name}. Check the path; it is relative to {os.curdir!r}.")
    try:
        image = Image.open(name)
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"The file {name} cannot be read as an image: {error}. Convert it to PNG or JPEG.") from error
    return image


def _tensor_to_numpy(image: torch.Tensor) -> np.ndarray:
    image = image.detach()
    if image.is_floating_point():
        image = image.float()  # numpy has no bfloat16
    return image.cpu().numpy()


def _from_array(array: np.ndarray, channels_first: bool) -> Image.Image:
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim not in (2, 3):
        raise ValueError(
            f"An image array must have 2 or 3 dimensions, got the shape {list(array.shape)}. Pass several images as a "
            "list."
        )
    if array.size == 0:
        raise ValueError(f"The image has the shape {list(array.shape)}: it has no content. Pass at least one pixel.")
    if array.ndim == 3:
        allowed = (1, 2, 3, 4)
        first, last = array.shape[0] in allowed, array.shape[-1] in allowed
        if not first and not last:
            raise ValueError(
                f"An image must have 1, 2, 3 or 4 channels, got the shape {list(array.shape)}. Pass numpy arrays as "
                "[height, width, channels] and torch tensors as [channels, height, width]."
            )
        if first and (channels_first or not last):
            array = np.moveaxis(array, 0, -1)
    if array.dtype == np.uint16:
        array = np.round(array.astype(np.float32) / 257).astype(np.uint8)
    elif array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif np.issubdtype(array.dtype, np.floating):
        _check_unit(float(array.min()), float(array.max()))
        array = np.round(np.clip(array.astype(np.float32), 0, 1) * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise TypeError(
            f"An image array must be uint8, uint16, bool or floating point, got {array.dtype}. For values 0..255 "
            "convert with .astype('uint8')."
        )
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return Image.fromarray(np.ascontiguousarray(array))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        array = np.asarray(image)
        if not np.isfinite(array).all():
            raise ValueError("The image holds NaN or infinite values. Check how it was computed or loaded.")
        # Wide grey modes name no range; the smallest usual one that holds the values is taken.
        top = 65535 if image.mode.startswith("I;16") else next((t for t in (1, 255) if array.max() <= t), 65535)
        top = 255 if image.mode == "I" and top == 1 else top
        if array.min() < 0 or array.max() > top:
            raise ValueError(
                f"A grey image of mode {image.mode} must hold values in [0, 1] (F), 0..255 or 0..65535, got "
                f"{array.min():g} to {array.max():g}. Scale it first."
            )
        return Image.fromarray(np.round(array.astype(np.float32) * (255 / top)).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert("RGB")
