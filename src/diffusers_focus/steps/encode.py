"""Image -> everything later steps read: vision, pixel and query tokens, feature maps; once per image.

FOCUS section "Dual-branch encoder": continuous features go into the language model; its continuous pixel tokens are those of
the visual tokenizer's pixel encoder before quantisation. What only some tasks need (the mask decoder's pixel features, the
image's own codes, the language model's prefix) is computed at first use and kept in the encoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image

from ..models.mask_decoder import FocusMaskDecoder, FocusPixelFeatures
from ..models.vision_encoder import FocusVisionEncoder, FocusVisionOutput
from ..models.visual_tokenizer import FocusVisualTokenizer
from ..processing.images import FocusImageInputs, FocusImageProcessor, Placement, load_image_any, nest_images

if TYPE_CHECKING:
    from .sequence import PrefixCache


class Components(Protocol):
    """The parts the steps work with: a pipeline, modular components or a training bundle."""

    vision_encoder: FocusVisionEncoder
    language_model: Any
    lm_tokenizer: Any
    visual_tokenizer: FocusVisualTokenizer
    mask_decoder: FocusMaskDecoder
    mask_conditioner: Any
    unet: Any
    vae: Any
    scheduler: Any
    image_processor: FocusImageProcessor


@dataclass
class FocusImageEncoding:
    """An encoded batch of images; pass it to later calls in place of the images.

    Args:
        inputs: the preprocessed images (n of them), their placements on the canvas and the images of each prompt.
        vision: tokens and feature maps, batch n.
        mask_pixels: the mask decoder's pixel features, filled by `mask_pixels`.
        codes: (semantic [n, hs, ws], pixel [n, hp, wp]) int64, the images' own codes, filled by `source_codes`.
        images: the images as they were given, upright RGB of 8 bits a channel, whose pixels edits keep; see `own_images`.
        prefixes: the language model's caches over system text, image blocks and query slots, filled by
            `sequence.encode_prefix`; one entry unless the style puts a tag before the image, or LoRA adapters change.
        objects: what `description.ObjectFinder` found, by what it looked for and the number of the image.
    """

    inputs: FocusImageInputs
    vision: FocusVisionOutput
    mask_pixels: FocusPixelFeatures | None = None
    codes: tuple[torch.Tensor, torch.Tensor] | None = None
    images: tuple[Image.Image, ...] = ()
    prefixes: dict[Any, PrefixCache] = field(default_factory=dict)
    objects: dict[Any, dict[int, list[np.ndarray]]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.inputs.placements)

    @property
    def counts(self) -> tuple[int, ...]:
        """Images of each prompt."""
        return self.inputs.counts

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the token resolution."""
        return self.inputs.size

    @property
    def original_sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each image as given."""
        return self.inputs.original_sizes


@dataclass
class FocusMixedEncoding:
    """The images of prompts that show several, each encoded by itself at the token resolution nearest to its own shape.

    As ILLUME+ reads them. The language model takes it in place of a `FocusImageEncoding`; masks and edits are about one image.

    Args:
        images: an encoding of one image each, in the order of the prompts.
        counts: images of each prompt.
        prefixes: as `FocusImageEncoding.prefixes`.
    """

    images: tuple[FocusImageEncoding, ...]
    counts: tuple[int, ...]
    prefixes: dict[Any, PrefixCache] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = [len(image) for image in self.images]
        if any(size != 1 for size in sizes) or sum(self.counts) != len(sizes):
            raise ValueError(
                f"Prompts with {self.counts} images need as many encodings of one image each, got {len(sizes)} of {sizes} "
                "images. Encode the images one by one."
            )

    @property
    def original_sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each image as given."""
        return tuple(image.original_sizes[0] for image in self.images)


def _weights_of(module: torch.nn.Module) -> tuple[torch.device, torch.dtype]:
    parameter = next(module.parameters())
    return parameter.device, parameter.dtype


def encode_image(components: Components, image: Any, *, device: torch.device | None = None) -> FocusImageEncoding:
    """Encode images of any kind `FocusImageProcessor` takes; an encoding is returned as it is.

    Args:
        components: needs `image_processor`, `vision_encoder` and `visual_tokenizer`.
        image: an image, a list (one a prompt) or a list of lists (several a prompt).
        device: where to compute; default: where the vision encoder is.
    """
    if isinstance(image, FocusImageEncoding):
        return image
    own_device, dtype = _weights_of(components.vision_encoder)
    inputs = components.image_processor.preprocess(image)
    encoding = encode_inputs(components, inputs.to(device=device or own_device, dtype=dtype))
    encoding.images = tuple(load_image_any(one) for group in nest_images(image) for one in group)
    return encoding


@dataclass(frozen=True)
class LoadedImages:
    """Images that nothing has been asked of yet: enough for an edit with a given mask until its surroundings are cut out.

    Args:
        images: upright RGB of 8 bits a channel.
        counts: images of each prompt.
        size: (height, width), the token resolution that encoding them would have.
    """

    images: tuple[Image.Image, ...]
    counts: tuple[int, ...]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def original_sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each image as given."""
        return tuple((image.height, image.width) for image in self.images)


ImagesT = TypeVar("ImagesT", FocusImageEncoding, LoadedImages)


def load_images(components: Components, image: Any) -> LoadedImages:
    """Read images as `encode_image` does, without encoding them."""
    nested = nest_images(image)
    images = tuple(load_image_any(one) for group in nested for one in group)
    size = components.image_processor.batch_resolution([(one.height, one.width) for one in images])
    return LoadedImages(images, tuple(len(group) for group in nested), size)


def encode_tensors(
    components: Components, pixel_values: torch.Tensor, *, pixel_features: torch.Tensor | None = None
) -> FocusImageEncoding:
    """Encode a batch [n, 3, H, W] in [-1, 1] that is already at a token resolution (training).

    Args:
        pixel_features: the tokenizer's continuous features where they are known already.
    """
    low, high = components.image_processor.make_inputs(pixel_values)
    size = tuple(pixel_values.shape[-2:])
    placement = Placement.fit(size, size, components.image_processor.resize_mode)
    count = len(pixel_values)
    inputs = FocusImageInputs(pixel_values, low, high, (placement,) * count, (1,) * count)
    return encode_inputs(components, inputs, pixel_features)


def encode_inputs(
    components: Components, inputs: FocusImageInputs, pixel_features: torch.Tensor | None = None
) -> FocusImageEncoding:
    """Encode preprocessed images, on the device and in the dtype they have; `pixel_features` as for `encode_tensors`."""
    encoder = components.vision_encoder
    pixel_values = None
    if encoder.pixel_tower is not None:
        pixel_values = inputs.pixel_values
    elif pixel_features is None:
        tokenizer = components.visual_tokenizer
        with torch.no_grad():  # the tokenizer is frozen wherever a language model is trained (FOCUS section 3)
            pixel_features = tokenizer.encode_pixels(inputs.pixel_values.to(_weights_of(tokenizer)[1]))
        pixel_features = pixel_features.to(inputs.pixel_values.dtype)
    vision = encoder(
        inputs.pixel_values_low, inputs.pixel_values_high, pixel_features=pixel_features, pixel_values=pixel_values
    )
    return FocusImageEncoding(inputs, vision)


def own_images(components: Components, encoding: FocusImageEncoding | LoadedImages) -> tuple[Image.Image, ...]:
    """The images as they were given; of an encoding made from tensors, what its canvases show at the images' size."""
    if isinstance(encoding, FocusImageEncoding) and not encoding.images:
        processor = components.image_processor
        canvases = processor.postprocess(encoding.inputs.pixel_values, "pil")
        places = encoding.inputs.placements
        encoding.images = tuple(processor.restore_image(canvas, place) for canvas, place in zip(canvases, places))
    return encoding.images


def single_images(encoding: ImagesT, what: str) -> ImagesT:
    """The images themselves; raises ValueError where a prompt has several images."""
    if any(number != 1 for number in encoding.counts):
        raise ValueError(
            f"{what} takes one image per prompt, got {encoding.counts} images. Pass a flat list of images."
        )
    return encoding


def wake(components: Components, name: str) -> None:
    """Bring a component to its device before it is used through its parts; offloading watches its forward only."""
    module = getattr(components, name)
    hook = getattr(module, "_hf_hook", None)
    if hook is not None and hasattr(hook, "pre_forward"):
        hook.pre_forward(module)


def embed_regions(
    components: Components, encoding: FocusImageEncoding, image_index: Sequence[int], regions: Sequence[np.ndarray]
) -> torch.Tensor | None:
    """Region tokens [R, H] of masks bool [height, width] in the pixels of their images; None where there are none."""
    if not regions:
        return None
    device = encoding.inputs.pixel_values.device
    placed = [
        encoding.inputs.placements[image].place_mask(torch.from_numpy(region), mode="any")
        for image, region in zip(image_index, regions)
    ]
    return components.vision_encoder.region_tokens(
        encoding.vision.feature_maps,
        encoding.vision.image_features,
        torch.stack(placed)[:, None].to(device),
        torch.tensor(list(image_index), device=device),
    )


def mask_pixels(components: Components, encoding: FocusImageEncoding) -> FocusPixelFeatures:
    """The mask decoder's features of each image, computed once."""
    if encoding.mask_pixels is None:
        if encoding.vision.feature_maps is None:
            raise ValueError(
                "This model has no high-resolution branch, so it cannot segment (vision_encoder.config.pyramid_channels is "
                "None). Load a model with one, or add and train it."
            )
        encoding.mask_pixels = components.mask_decoder.encode(encoding.vision.feature_maps)
    return encoding.mask_pixels


@torch.no_grad()
def source_codes(components: Components, encoding: FocusImageEncoding) -> tuple[torch.Tensor, torch.Tensor]:
    """The images' own codes: semantic int64 [n, hs, ws] and pixel int64 [n, hp, wp], computed once."""
    if encoding.codes is None:
        tokenizer = components.visual_tokenizer
        own_tower = tokenizer.config.vision_tower is not None
        dtype = _weights_of(tokenizer)[1]
        out = tokenizer.encode(
            encoding.inputs.pixel_values.to(dtype),
            None if own_tower else encoding.vision.fused_features,
            encoding.inputs.pixel_values_low.to(dtype) if own_tower else None,
        )
        encoding.codes = (out.semantic_indices, out.pixel_indices)
    return encoding.codes
