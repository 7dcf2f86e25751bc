"""Every size in the system: token resolutions, encoder inputs, token grids, latent grids.

Paper: FOCUS (arXiv 2506.16806), "Visual tokenizer"; the numbers are ILLUME+'s (arXiv 2504.01934, Apache-2.0). All sizes
are (height, width).

An image is handled at a *token resolution* (multiples of 16, one of the model's buckets). From it follow
 - the ViT input: a table for the original's resolutions, otherwise each side floored to a multiple of 28;
 - the semantic grid: one token per 28 x 28 pixels of the ViT input;
 - the pixel grid: one token per 16 x 16 pixels of the image;
 - the decoded size: `decode_scale` times the token resolution, and the latents of that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

SEMANTIC_STRIDE = 28  # 14 pixel patches, merged 2 x 2
PIXEL_STRIDE = 16

# Token resolution -> ViT input. Not always the nearest multiples of 28: 384 x 512 becomes 336 x 448, not 364 x 504.
RESOLUTION_MAPPING: dict[tuple[int, int], tuple[int, int]] = {
    (256, 256): (252, 252),
    (512, 512): (504, 504),
    (512, 384): (448, 336),
    (384, 512): (336, 448),
    (768, 384): (728, 364),
    (384, 768): (364, 728),
    (1024, 256): (1008, 252),
    (256, 1024): (252, 1008),
    (384, 576): (336, 504),
    (576, 384): (504, 336),
    (960, 320): (924, 308),
    (320, 960): (308, 924),
}

# The 11 aspect ratios of the originals: 1:1 3:4 4:3 2:3 3:2 1:2 2:1 1:3 3:1 1:4 4:1.
BUCKETS_512: tuple[tuple[int, int], ...] = (
    (512, 512),
    (384, 512),
    (512, 384),
    (384, 576),
    (576, 384),
    (384, 768),
    (768, 384),
    (320, 960),
    (960, 320),
    (256, 1024),
    (1024, 256),
)
BUCKETS_256: tuple[tuple[int, int], ...] = ((256, 256),)
ORIGINAL_BUCKETS = BUCKETS_512 + BUCKETS_256


class ImageTokens(NamedTuple):
    """How many tokens an image of one token resolution takes.

    Attributes:
        semantic_tokens, pixel_tokens: cells of the two grids.
        max_new_tokens: what `generate` has to be allowed: resolution tag, the whole image block and room for the end.
        grid: (semantic rows, semantic columns, pixel rows, pixel columns).
    """

    semantic_tokens: int
    pixel_tokens: int
    max_new_tokens: int
    grid: tuple[int, int, int, int]


def check_resolution(height: int, width: int) -> None:
    """Raise ValueError unless `height` x `width` can be a token resolution."""
    if height < SEMANTIC_STRIDE or width < SEMANTIC_STRIDE or height % PIXEL_STRIDE or width % PIXEL_STRIDE:
        raise ValueError(
            f"{height} x {width} (height x width) is not a token resolution: both sides must be multiples of "
            f"{PIXEL_STRIDE} and at least {2 * PIXEL_STRIDE}. Pick one of the buckets of the image processor."
        )


def vit_size(
    height: int, width: int, mapping: Mapping[tuple[int, int], tuple[int, int]] = RESOLUTION_MAPPING
) -> tuple[int, int]:
    """(height, width) of the ViT input for a token resolution: the table's, else floored to multiples of 28."""
    if (height, width) in mapping:
        return mapping[(height, width)]
    rows, columns = max(1, height // SEMANTIC_STRIDE), max(1, width // SEMANTIC_STRIDE)
    return rows * SEMANTIC_STRIDE, columns * SEMANTIC_STRIDE


def semantic_grid(
    height: int, width: int, mapping: Mapping[tuple[int, int], tuple[int, int]] = RESOLUTION_MAPPING
) -> tuple[int, int]:
    """(rows, columns) of semantic tokens at a token resolution."""
    vit_height, vit_width = vit_size(height, width, mapping)
    return vit_height // SEMANTIC_STRIDE, vit_width // SEMANTIC_STRIDE


def pixel_grid(height: int, width: int) -> tuple[int, int]:
    """(rows, columns) of pixel tokens at a token resolution. Raises ValueError where a side is no multiple of 16."""
    check_resolution(height, width)
    return height // PIXEL_STRIDE, width // PIXEL_STRIDE


def block_length(semantic: tuple[int, int], pixel: tuple[int, int]) -> int:
    """Tokens of an image block: six markers, two grids, one end-of-line per row."""
    return 6 + semantic[0] * (semantic[1] + 1) + pixel[0] * (pixel[1] + 1)


def num_image_tokens(height: int, width: int) -> ImageTokens:
    """The token counts of an image at the token resolution `height` x `width`."""
    semantic, pixel = semantic_grid(height, width), pixel_grid(height, width)
    return ImageTokens(
        semantic_tokens=semantic[0] * semantic[1],
        pixel_tokens=pixel[0] * pixel[1],
        max_new_tokens=block_length(semantic, pixel) + 4,  # two tags, end of text, one spare
        grid=(*semantic, *pixel),
    )


def nearest_bucket(height: int, width: int, buckets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The (height, width) of `buckets` whose aspect ratio is nearest to the image's, on a logarithmic scale.

    Buckets of equal aspect ratio: the one whose area is nearest to the image's, the larger one where that ties too.
    """
    if not buckets:
        raise ValueError("There are no buckets to choose from. Give at least one (height, width) token resolution.")
    if height < 1 or width < 1:
        raise ValueError(f"An image of {height} x {width} pixels (height x width) has no aspect ratio.")

    def distance(bucket: Sequence[int]) -> tuple[float, float, int]:
        ratio = abs(math.log(bucket[0] * width / (bucket[1] * height)))
        area = bucket[0] * bucket[1]
        return round(ratio, 6), round(abs(math.log(area / (height * width))), 6), -area

    best = min(buckets, key=distance)
    return int(best[0]), int(best[1])


def decoded_size(height: int, width: int, decode_scale: int) -> tuple[int, int]:
    """(height, width) of the image the diffusion decoder renders for a token resolution."""
    return height * decode_scale, width * decode_scale


def latent_grid(height: int, width: int, decode_scale: int, vae_scale_factor: int) -> tuple[int, int]:
    """(rows, columns) of the diffusion decoder's latents for a token resolution.

    Raises:
        ValueError: the decoded size is no multiple of `vae_scale_factor`.
    """
    decoded = decoded_size(height, width, decode_scale)
    if decoded[0] % vae_scale_factor or decoded[1] % vae_scale_factor:
        raise ValueError(
            f"The decoded size {decoded[0]} x {decoded[1]} is no multiple of the VAE's factor {vae_scale_factor}. "
            "Change the bucket or decode_scale."
        )
    return decoded[0] // vae_scale_factor, decoded[1] // vae_scale_factor


def high_resolution_size(height: int, width: int, side: int, multiple: int = 32) -> tuple[int, int]:
    """(height, width) of the ConvNeXt input X_H for a token resolution.

    The shape follows the token resolution's aspect ratio, the area is about `side` squared and both sides are multiples
    of `multiple` (the coarsest stride of the pyramid).
    """
    ratio = math.sqrt(height / width)
    rows, columns = max(1, round(side * ratio / multiple)), max(1, round(side / ratio / multiple))
    return rows * multiple, columns * multiple
