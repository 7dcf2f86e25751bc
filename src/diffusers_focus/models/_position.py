"""Fixed 2-D sine positions and Fourier features, on coordinates relative to the image.

Attention positions follow the sine form of DETR / Mask2Former (MIT), with one change: coordinates are cell centres
divided by the image side, so the same place in an image has the same position on grids of different sizes, and the
frequencies are spaced between half a wave and 64 waves an image instead of DETR's temperature.
"""

from __future__ import annotations

import math

import torch

_MAX_OCTAVE = 7  # 2^7 half waves an image side: tells neighbours of a 128-cell grid apart


def fourier_features(x: torch.Tensor, num_frequencies: int) -> torch.Tensor:
    """Sine and cosine of `x` at geometrically spaced frequencies.

    Args:
        x: Any shape [...], values about 0..1; computed in fp32.
        num_frequencies: Frequencies from pi to 128 pi.

    Returns:
        fp32 [..., 2 * num_frequencies]: sines, then cosines.
    """
    octaves = torch.linspace(0, _MAX_OCTAVE, num_frequencies, device=x.device, dtype=torch.float32)
    angles = x.float().unsqueeze(-1) * (math.pi * torch.exp2(octaves))
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def sine_position_2d(
    height: int,
    width: int,
    dim: int,
    device: torch.device,
    dtype: torch.dtype,
    extent: tuple[float, float] = (1.0, 1.0),
) -> torch.Tensor:
    """Positions of the cell centres of a `height` x `width` grid: [height * width, dim], row-major.

    `dim` must be a multiple of 4 (sine and cosine of each axis); the first half is y, the second x. `extent` is the
    (height, width) of the grid in image sides, above 1 where padding reaches past the image.
    """
    assert dim % 4 == 0, f"sine positions need a multiple of 4 channels, not {dim}"
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) * (extent[0] / height)
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) * (extent[1] / width)
    y = fourier_features(y, dim // 4)[:, None].expand(height, width, dim // 2)
    x = fourier_features(x, dim // 4)[None].expand(height, width, dim // 2)
    return torch.cat((y, x), dim=-1).reshape(height * width, dim).to(dtype)
