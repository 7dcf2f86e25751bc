"""Coarse mask logits that follow the edges of their image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from diffusers_focus.processing.images import FocusImageProcessor, Placement
from diffusers_focus.processing.outlines import outline_masks

PROCESSOR = FocusImageProcessor(buckets=[[64, 64]], tag_step=16, high_resolution=None)


def scene(height: int, width: int, surface: str) -> tuple[Image.Image, np.ndarray]:
    """A noisy picture of a disc on grey, and the disc."""
    y, x = np.mgrid[:height, :width]
    disc = (y - 0.45 * height) ** 2 + (x - 0.55 * width) ** 2 < (0.21 * min(height, width)) ** 2
    colours = np.full((height, width, 3), 128.0)
    colours[disc] = (200, 40, 30)
    if surface == "stripes":
        colours[disc & (x // max(1, width // 16) % 2 == 0)] = (30, 60, 190)
    colours += np.random.default_rng(0).normal(0, 4, colours.shape)
    return Image.fromarray(colours.clip(0, 255).astype(np.uint8)), disc


def coarse(placement: Placement, mask: np.ndarray) -> torch.Tensor:
    """What a mask decoder with a grid of 16 cells a side could say of a mask, a little blurred and a little too far right."""
    placed = placement.place_mask(torch.from_numpy(mask), mode="any")
    shares = F.avg_pool2d(F.avg_pool2d(placed[None], 4), 3, stride=1, padding=1)[0]
    return 8 * (shares.roll(1, -1) * 0.4 + shares * 0.6 - 0.5)[None]


def iou(soft: torch.Tensor, mask: np.ndarray) -> float:
    found = (soft[0] > 0).numpy()
    return (found & mask).sum() / (found | mask).sum()


@pytest.mark.parametrize("surface", ["plain", "stripes"])
@pytest.mark.parametrize("size", [(64, 64), (40, 60), (90, 50), (300, 500)])
def test_outlines_are_those_of_the_image(size, surface):
    image, disc = scene(*size, surface)
    placement = Placement.fit(size, (64, 64))
    logits = coarse(placement, disc)
    before = iou(PROCESSOR.restore_mask(logits, placement), disc)
    soft = outline_masks(PROCESSOR, logits, placement, image, 1.5)
    assert soft.shape == (1, *size) and soft.abs().max() <= 1
    assert iou(soft, disc) > 0.9 > before + 0.03


def test_a_reach_of_nothing_only_interpolates():
    image, disc = scene(40, 60, "plain")
    placement = Placement.fit((40, 60), (64, 64))
    logits = coarse(placement, disc)
    expected = PROCESSOR.restore_mask(logits, placement)
    assert torch.equal(outline_masks(PROCESSOR, logits, placement, image, 0.0), expected)
    assert torch.equal(outline_masks(PROCESSOR, logits, placement, None, 1.5), expected)
    assert outline_masks(PROCESSOR, logits[:0], placement, image, 1.5).shape == (0, 40, 60)


def test_where_the_image_says_nothing_the_mask_decoder_is_believed():
    placement = Placement.fit((64, 64), (64, 64))
    _, disc = scene(64, 64, "plain")
    logits = coarse(placement, disc)
    soft = outline_masks(PROCESSOR, logits, placement, Image.new("RGB", (64, 64), "grey"), 1.5)
    assert iou(soft, (PROCESSOR.restore_mask(logits, placement)[0] > 0).numpy()) > 0.8


def test_what_is_smaller_than_the_reach_does_not_vanish():
    placement = Placement.fit((64, 64), (64, 64))
    logits = torch.full((1, 16, 16), -5.0)
    logits[0, 8, 8] = 3.0
    soft = outline_masks(PROCESSOR, logits, placement, Image.new("RGB", (64, 64), "grey"), 1.5)
    expected = PROCESSOR.restore_mask(logits, placement) > 0
    assert expected.any() and torch.equal(soft > 0, expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (3, 2)])
def test_images_of_a_few_pixels(size):
    image = Image.new("RGB", (size[1], size[0]), "red")
    soft = outline_masks(PROCESSOR, torch.full((2, 16, 16), 3.0), Placement.fit(size, (64, 64)), image, 1.5)
    assert soft.shape == (2, *size) and (soft > 0).all()
