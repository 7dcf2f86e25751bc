"""Edit masks, and putting an edit back into the picture it came from.

FOCUS changes exactly the region an edit is about. The decoder renders the whole canvas, so at the end every pixel outside the
soft edit mask is the user's own, bit for bit and at the user's resolution.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from ..processing.images import FocusImageProcessor, Placement
from ..processing.masks import box_mask, dilate, resample_mask
from ..processing.masks import feather as soften
from .denoise import encode_latents
from .encode import Components, FocusImageEncoding, LoadedImages, own_images

# Verbs after which an object may take another outline, so that its own mask is too small a place.
_NEW_OUTLINE = re.compile(
    r"\b(replace|swap|exchange|reshape|resize|enlarge|shrink|grow|bigger|larger|smaller|taller|wider|thinner|move|"
    r"(turn|change|transform|convert)\b.+\b(to|into) (a|an|the|some)\b)",
    re.IGNORECASE,
)


# What an instruction does to an object, and the words for that object.
_OBJECT = re.compile(
    r"(?:please )?(?:"
    r"(?:remove|delete|erase|take away|get rid of) (?P<removed>.+)"
    r"|(?:replace|swap|exchange|substitute) (?P<replaced>.+?) (?:with|by|for) .+"
    r"|(?:turn|change|transform|convert) (?P<changed>.+) (?:to|into) .+"
    r"|(?:make|paint|colou?r) (?P<made>.+) [\w-]+"
    r")",
    re.IGNORECASE,
)
_WHOLE = "background|scene|image|picture|photo|photograph|everything"
_NO_OBJECT = re.compile(rf"\b({_WHOLE}|it|them|this|that)\b", re.IGNORECASE)
# Made into something ("the star a" circle) rather than to look otherwise ("the star" red), or no single thing.
_BECOMES = re.compile(rf"\b({_WHOLE})\b|.\b(an?|the|into|to)$", re.IGNORECASE)


def object_phrase(instruction: str) -> str | None:
    """The words an instruction has for what it is about: "the large ring" of "make the large ring red".

    None where it is of another form, or about no single thing ("change the background to ...", "make it night").
    """
    found = _OBJECT.fullmatch(" ".join(instruction.split()).rstrip(".!"))
    phrase = next(filter(None, found.groups()), None) if found else None
    return None if phrase is None or _NO_OBJECT.search(phrase) else phrase


def needs_box(instruction: str) -> bool:
    """Whether an instruction replaces, reshapes or resizes, so that the edit may leave the outline of its object."""
    return _NEW_OUTLINE.search(instruction) is not None


def keeps_outline(instruction: str) -> bool:
    """Whether the words say that an object stays where it is, as large as it is, and only looks otherwise ("make the star red")."""
    found = _OBJECT.fullmatch(" ".join(instruction.split()).rstrip(".!"))
    made = found["made"] if found else None
    return made is not None and _BECOMES.search(made) is None and not needs_box(instruction)


def relative_radius(share: float, height: int, width: int) -> int:
    """A radius given as a share of the shorter side, in whole pixels; at least 1 unless the share is 0."""
    return max(1, round(share * min(height, width))) if share else 0


def grow_mask(mask: np.ndarray, radius: int, boxed: bool = False) -> np.ndarray:
    """The mask bool [height, width] grown by `radius` pixels; `boxed` fills the bounding box of that."""
    grown = dilate(torch.from_numpy(mask), radius)
    return (box_mask(grown) if boxed else grown).numpy()


def soft_mask(mask: np.ndarray, reach: int) -> torch.Tensor:
    """A mask with a soft edge: float32 [height, width], 1 inside, exactly 0 further than `reach` pixels outside."""
    if reach < 0:
        raise ValueError(f"The reach of a soft edge must be zero or more pixels, got {reach}.")
    # All of the inside is the edit's, or a rim of the old object would stay; the slope lies outside, half of it grown first.
    slope = (reach + 1) // 2
    hard = torch.from_numpy(mask)
    soft = soften(dilate(hard, reach - slope).float(), slope)
    return torch.where(hard, 1.0, soft)


def canvas_image(image: Image.Image, placement: Placement, size: tuple[int, int]) -> torch.Tensor:
    """The user's image on a canvas of `size` (height, width), white around it: float32 [3, height, width] in [-1, 1]."""
    top, left, height, width = placement.scaled(size).box
    canvas = Image.new("RGB", (size[1], size[0]), (255, 255, 255))
    inner = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)
    canvas.paste(inner, (left, top))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1).float().div(127.5).sub(1)


def place_on_grid(mask: np.ndarray, placement: Placement, size: tuple[int, int], mode: str) -> torch.Tensor:
    """A mask of the user's image on a grid over the canvas: float32 [rows, columns].

    Args:
        mask: bool [height, width].
        size: rows and columns.
        mode: "any" (token grids) or "area" (latent grid), see `resample_mask`.
    """
    return resample_mask(placement.place_mask(torch.from_numpy(mask), mode), size, mode)


def latent_masks(
    encoding: FocusImageEncoding, images: Sequence[int], edit_masks: Sequence[np.ndarray], grid: tuple[int, int]
) -> torch.Tensor:
    """Edit masks on the latent grid: float32 [B, 1, rows, columns], the share of each cell that may change.

    Args:
        images: of each edit, its image in the encoding.
        edit_masks: bool [height, width], of each edit.
    """
    placements = encoding.inputs.placements
    on_grid = [place_on_grid(mask, placements[image], grid, "area") for image, mask in zip(images, edit_masks)]
    return torch.stack(on_grid)[:, None]


def source_latents(
    components: Components,
    encoding: FocusImageEncoding,
    images: Sequence[int],
    size: tuple[int, int],
    device: torch.device | str,
) -> torch.Tensor:
    """Latents of the images of B edits on canvases of the decoded size, [B, 4, h, w]; each image is encoded once."""
    used = sorted(set(images))
    own, placements = own_images(components, encoding), encoding.inputs.placements
    canvases = torch.stack([canvas_image(own[i], placements[i], size) for i in used])
    latents = encode_latents(components.vae, canvases.to(device))
    return latents[[used.index(i) for i in images]]


def composite(
    image: Image.Image,
    decoded: torch.Tensor,
    soft: torch.Tensor | None,
    processor: FocusImageProcessor,
    placement: Placement,
) -> torch.Tensor:
    """The edited image at the user's size.

    Args:
        image: the user's.
        decoded: [3, H, W] in [-1, 1], the canvas at any scale.
        soft: float [height, width] from `soft_mask`; None takes the decoded image as it is.

    Returns:
        float32 [3, height, width] in [0, 1] on the CPU; where `soft` is 0 it is exactly the user's 8-bit value / 255.
    """
    restored = processor.restore_image(decoded.float().cpu(), placement).add(1).div(2).clamp(0, 1)
    if soft is None:
        return restored
    own = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
    return torch.where(soft > 0, own + soft * (restored - own), own)


def composite_edits(
    components: Components,
    encoding: FocusImageEncoding,
    images: Sequence[int],
    edit_masks: Sequence[np.ndarray],
    pictures: torch.Tensor,
    *,
    feather: float,
    mask_blur: int | None = None,
    preserve_background: bool = True,
) -> list[torch.Tensor]:
    """B edited images at the size of their originals, float32 [3, height, width] in [0, 1]; see `composite`.

    Args:
        images: of each edit, its image in the encoding.
        edit_masks: bool [height, width] of each.
        pictures: [B, 3, H, W] in [-1, 1] from the decoder.
        feather: reach of the soft edge as a share of the shorter side; `mask_blur` is the same in pixels and comes first.
        preserve_background: False takes the decoded picture everywhere.
    """
    own, results = own_images(components, encoding), []
    for image, mask, picture in zip(images, edit_masks, pictures):
        soft = None
        if preserve_background:
            soft = soft_mask(mask, relative_radius(feather, *mask.shape) if mask_blur is None else mask_blur)
        placement = encoding.inputs.placements[image]
        results.append(composite(own[image], picture, soft, components.image_processor, placement))
    return results


def own_pixels(
    components: Components, encoding: FocusImageEncoding | LoadedImages, images: Sequence[int]
) -> list[torch.Tensor]:
    """The images of B edits as they were given: float32 [3, height, width] in [0, 1]."""
    own = own_images(components, encoding)
    return [torch.from_numpy(np.array(own[image])).permute(2, 0, 1).float().div(255) for image in images]


def levels(pictures: torch.Tensor) -> list[torch.Tensor]:
    """Decoded pictures [B, 3, H, W] in [-1, 1] as float32 [3, H, W] in [0, 1] on the CPU."""
    return list(pictures.float().cpu().add(1).div(2).clamp(0, 1))


def to_output(images: list[torch.Tensor], output_type: str) -> list[Image.Image] | np.ndarray | torch.Tensor | list:
    """Images float [3, height, width] in [0, 1] as "pil", "np" ([n, height, width, 3]) or "pt" ([n, 3, height, width]).

    Arrays and tensors of different sizes come as a list.
    """
    if output_type == "pil":
        return [Image.fromarray(image.permute(1, 2, 0).mul(255).round().to(torch.uint8).numpy()) for image in images]
    same = len({tuple(image.shape) for image in images}) == 1
    if output_type == "pt":
        return torch.stack(images) if same else images
    arrays = [image.permute(1, 2, 0).numpy() for image in images]
    return np.stack(arrays) if same else arrays
