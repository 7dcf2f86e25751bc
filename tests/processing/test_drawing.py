"""Overlays and contact sheets."""

import numpy as np
import pytest
import torch

from diffusers_focus.processing.drawing import COLOURS, contact_sheet, draw_masks


def test_a_mask_colours_its_pixels_and_no_others():
    image = np.zeros((32, 40, 3), np.uint8)
    mask = torch.zeros(32, 40)
    mask[8:20, 10:30] = 0.9
    drawn = np.asarray(draw_masks(image, mask))
    inside = mask.numpy() > 0.5
    assert (drawn[~inside] == 0).all() and (drawn[inside].sum(-1) > 0).all()
    assert tuple(drawn[8, 10]) == COLOURS[0]  # outline
    assert tuple(drawn[14, 20]) != COLOURS[0]  # see-through filling


def test_labels_lists_and_nothing():
    image = np.zeros((64, 64, 3), np.uint8)
    masks = np.zeros((2, 64, 64), bool)
    masks[0, 5:30, 5:30] = masks[1, 40:60, 40:60] = True
    plain = np.asarray(draw_masks(image, list(masks)))
    labelled = np.asarray(draw_masks(image, masks, ["red circle", "star"]))
    assert (plain != labelled).any()
    assert (np.asarray(draw_masks(image, None)) == 0).all()
    with pytest.raises(ValueError, match="one label per mask"):
        draw_masks(image, masks, ["one"])
    with pytest.raises(ValueError, match="Resize"):
        draw_masks(image, masks[:, :32])


def test_contact_sheet_places_images_row_by_row():
    images = [np.full((20, 20, 3), value, np.uint8) for value in (10, 20, 30)]
    sheet = np.asarray(contact_sheet(images, columns=2, gap=4))
    assert sheet.shape == (4 + 2 * 24, 4 + 2 * 24, 3)
    assert (sheet[4:24, 4:24] == 10).all() and (sheet[4:24, 28:48] == 20).all() and (sheet[28:48, 4:24] == 30).all()
    assert (sheet[28:48, 28:48] == 255).all()
    captioned = contact_sheet(images, captions=["a", "b", "a very long caption that does not fit"])
    assert captioned.height > 28
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet([])
