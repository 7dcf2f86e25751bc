"""Between ComfyUI's tensors and the pipeline's arguments: exact values, and errors that name the node's input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_focus import Box, Mask, Point, Scribble

from integrations.comfyui.tensors import (
    InputError,
    keep_own_values,
    read_images,
    read_masks,
    read_names,
    read_regions,
    write_images,
    write_masks,
    write_pictures,
)

SIZE = (5, 7)
LEVELS = (np.arange(2 * 5 * 7 * 3) % 256).astype(np.uint8).reshape(2, 5, 7, 3)
IMAGE = torch.from_numpy(LEVELS.astype(np.float32) / 255.0)  # as LoadImage reads a file
NO_MASK = torch.zeros(1, 64, 64)  # what LoadImage gives where a file has no transparency


def test_files_come_in_and_go_out_with_the_same_levels():
    pictures = read_images(IMAGE)
    assert [one.size for one in pictures] == [(7, 5)] * 2 and all(one.mode == "RGB" for one in pictures)
    assert (np.stack([np.asarray(one) for one in pictures]) == LEVELS).all()
    assert torch.equal(write_pictures(pictures), IMAGE)
    assert torch.equal(write_images(IMAGE.movedim(-1, 1)), IMAGE)
    assert (
        np.clip(255.0 * write_pictures(pictures).numpy(), 0, 255).astype(np.uint8) == LEVELS
    ).all()  # SaveImage's way


def test_grey_and_transparent_images_are_read_as_rgb():
    grey = read_images(IMAGE[..., :1])[1]
    assert (np.asarray(grey) == LEVELS[1, ..., :1]).all()
    four = torch.cat([IMAGE, torch.zeros(2, *SIZE, 1)], dim=-1)
    assert (np.asarray(read_images(four)[0]) == LEVELS[0]).all()
    wild = np.asarray(read_images(IMAGE * 8 - 1)[0])
    assert wild.max() == 255 and wild.min() == 0  # other nodes may leave 0..1


@pytest.mark.parametrize(
    "image", [IMAGE[0], IMAGE[..., :2], torch.zeros(0, 5, 7, 3), torch.full((1, 5, 7, 3), torch.nan), "scene.png"]
)
def test_what_is_no_image_is_refused_by_the_inputs_name(image):
    with pytest.raises(InputError, match="^Input image: "):
        read_images(image)


def test_unchanged_pixels_keep_the_floats_they_came_with():
    image = torch.rand(1, *SIZE, 3, generator=torch.Generator().manual_seed(0))
    edited = image.mul(255).round().div(255)
    edited[0, 2, 3] = torch.tensor([0.0, 0.5, 1.0]) + 0.0001
    kept = keep_own_values(edited, image)
    changed = torch.zeros(SIZE, dtype=torch.bool)
    changed[2, 3] = True
    assert torch.equal(kept[0][~changed], image[0][~changed]) and torch.equal(kept[0][changed], edited[0][changed])


def test_masks_are_cut_at_one_half_and_spread_over_the_batch():
    mask = torch.tensor([[0.0, 0.5, 0.51, 1.0, 0.0, 0.0, 0.0]]).expand(5, 7)
    wanted = np.broadcast_to(np.array([0, 0, 1, 1, 0, 0, 0], dtype=bool), SIZE)
    for given in (mask, mask[None], mask[None, None]):
        read = read_masks(given, SIZE, 3)
        assert len(read) == 3 and all((one == wanted).all() and one.dtype == bool for one in read)
    two = read_masks(torch.stack([mask, torch.zeros(SIZE)]), SIZE, 2)
    assert (two[0] == wanted).all() and not two[1].any()


def test_loadimages_empty_mask_is_none_whatever_the_images_size():
    assert read_masks(None, SIZE, 1) is None
    assert read_masks(NO_MASK, SIZE, 1) is None and read_masks(NO_MASK, (64, 64), 1) is None
    painted = NO_MASK.clone()
    painted[0, 3, 4] = 1
    assert read_masks(painted, (64, 64), 1)[0].sum() == 1
    assert not read_masks(torch.zeros(1, *SIZE), SIZE, 1)[0].any()  # of the image's size it is an empty mask
    with pytest.raises(InputError, match="Input mask: it is 64 wide and 64 high, but the image is 7 wide and 5 high"):
        read_masks(painted, SIZE, 1)


def test_number_of_masks_has_to_fit():
    with pytest.raises(InputError, match="2 masks for 3 images"):
        read_masks(torch.ones(2, *SIZE), SIZE, 3)


def test_no_objects_are_one_empty_mask():
    assert torch.equal(write_masks([], SIZE), torch.zeros(1, *SIZE))
    masks = [np.eye(5, 7, dtype=bool), np.ones(SIZE, dtype=bool)]
    written = write_masks(masks, SIZE)
    assert written.dtype == torch.float32 and (written.numpy() == np.stack(masks)).all()


def test_regions_are_read_from_text_and_mask():
    mask = torch.zeros(2, *SIZE)
    mask[0, 1, 1] = mask[1, 2, 2] = 1
    first, second = read_regions(SIZE, 2, points="1,2; 3 4", box="0,0,7,5", scribble="0,0 6,4", mask=mask)
    common = [Point(1, 2), Point(3, 4), Box(0, 0, 7, 5), Scribble([(0, 0), (6, 4)])]
    assert first == [*common, Mask(mask[0].numpy())] and second == [*common, Mask(mask[1].numpy())]
    assert read_regions(SIZE, 2, points=" 1,2 ", mask=NO_MASK) == [[Point(1, 2)]] * 2
    assert read_regions(SIZE, 1, points="1,2", negative_points="3,4") == [[Point(1, 2), Point(3, 4, positive=False)]]
    assert read_regions(SIZE, 2, mask=NO_MASK) is None and read_regions(SIZE, 1) is None
    linked = read_regions(
        SIZE, 1, points='[{"x": 1, "y": 2}]', negative_points="[]"
    )  # from another pack's point editor
    assert linked == [[Point(1, 2)]] and read_regions(SIZE, 1, points="[]", negative_points='""') is None
    assert read_names("circle, star\n ring,,") == ["circle", "star", "ring"]


@pytest.mark.parametrize(
    "given, name",
    [
        ({"points": "1,2,3"}, "points"),
        ({"points": "here"}, "points"),
        ({"points": "nan,2"}, "points"),
        ({"points": '[{"x": 1}]'}, "points"),
        ({"points": "[1, 2]"}, "points"),
        ({"points": "[1, 2"}, "points"),
        ({"points": '"1, 2"'}, "points"),
        ({"points": "7,2"}, "points"),
        ({"box": "1,2,3"}, "box"),
        ({"box": "3,3,1,1"}, "box"),
        ({"box": "0,0,8,5"}, "box"),
        ({"scribble": "0,0 0,5"}, "scribble"),
        ({"mask": torch.zeros(1, *SIZE)}, "mask"),
        ({"negative_points": "1,2"}, "negative_points"),
        ({"negative_points": "1,2", "mask": NO_MASK}, "negative_points"),
        ({"points": "1,2", "negative_points": "9,9"}, "negative_points"),
    ],
)
def test_wrong_regions_are_told_of_their_input(given, name):
    with pytest.raises(InputError, match=f"^Input {name}: "):
        read_regions(SIZE, 1, **given)


def test_pictures_of_pil_keep_their_levels():
    assert torch.equal(
        write_pictures([Image.new("RGB", (2, 1), (0, 51, 255))]), torch.tensor([[[[0.0, 0.2, 1.0]] * 2]])
    )
