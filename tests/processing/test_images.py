"""Images in every form users have them, and the way back to their own pixels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from diffusers_focus.processing.images import (
    CLIP_MEAN,
    CLIP_STD,
    FocusImageProcessor,
    Placement,
    load_image_any,
    make_inputs,
)
from diffusers_focus.processing.regions import Point


@pytest.fixture(scope="module")
def processor():
    return FocusImageProcessor(buckets=[[128, 128]], tag_step=16, high_resolution=256, decode_scale=1)


@pytest.fixture(scope="module")
def picture():
    y, x = np.mgrid[0:60, 0:80]
    return np.stack([x * 3, y * 4, (x + y) % 256], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("kind", ["numpy", "pil", "torch uint8", "torch float", "path"])
def test_an_image_at_a_token_resolution_keeps_its_pixels(tmp_path, kind):
    array = torch.randint(256, (64, 96, 3), dtype=torch.uint8)
    Image.fromarray(array.numpy()).save(tmp_path / "image.png")
    image = {
        "numpy": array.numpy(),
        "pil": Image.fromarray(array.numpy()),
        "torch uint8": array.permute(2, 0, 1),
        "torch float": array.permute(2, 0, 1) / 255,
        "path": tmp_path / "image.png",
    }[kind]
    inputs = FocusImageProcessor(buckets=[[64, 96]], tag_step=16, high_resolution=None)(image)
    expected = array.permute(2, 0, 1)[None] / 127.5 - 1
    torch.testing.assert_close(inputs.pixel_values, expected, atol=1e-6, rtol=0)
    assert inputs.pixel_values_high is None and inputs.placements[0].is_identity


def test_low_resolution_follows_the_originals_chain():
    pixel_values = torch.rand(2, 3, 128, 128) * 2 - 1
    low, high = make_inputs(pixel_values, (112, 112), (256, 256))
    unit = F.interpolate((pixel_values + 1) / 2, size=(112, 112), mode="bicubic", antialias=True).clamp(0, 1)
    expected = (unit - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    torch.testing.assert_close(low, expected)
    assert high.shape == (2, 3, 256, 256)
    lowest = (0 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    assert (high.amin((0, 2, 3)) >= lowest - 1e-5).all()


def test_training_and_inference_see_the_same(processor):
    image = torch.rand(3, 128, 128)
    inputs = processor(image)
    low, high = processor.make_inputs(image[None] * 2 - 1)
    assert torch.equal(inputs.pixel_values_low, low) and torch.equal(inputs.pixel_values_high, high)


def test_making_inputs_leaves_its_input_alone():
    pixel_values = torch.rand(1, 3, 128, 128, requires_grad=True)
    before = pixel_values.detach().clone()
    low, high = make_inputs(pixel_values, (128, 128), (128, 128))
    (low.sum() + high.sum()).backward()
    assert torch.equal(pixel_values.detach(), before) and pixel_values.grad.abs().sum() > 0


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1", "I;16", "I", "F", "YCbCr"])
def test_every_pil_mode_becomes_rgb(picture, mode):
    image = Image.fromarray(picture)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode == "LA":
        image = image.convert("L").convert("LA")
    else:
        image = image.convert(mode)
    loaded = load_image_any(image)
    assert loaded.mode == "RGB" and loaded.size == (80, 60)
    reference = Image.fromarray(picture).convert("L" if mode in ("L", "LA", "I;16", "I", "F") else "RGB")
    difference = np.abs(np.asarray(loaded).astype(int) - np.asarray(reference.convert("RGB")).astype(int))
    tolerance = {"1": 255, "P": 60, "YCbCr": 4, "CMYK": 1}.get(mode, 1)
    assert difference.max() <= tolerance


def test_transparency_is_laid_on_white(picture):
    alpha = np.zeros(picture.shape[:2], np.uint8)
    alpha[:, 40:] = 255
    rgba = np.concatenate([picture, alpha[..., None]], axis=-1)
    for image in (rgba, Image.fromarray(rgba), torch.from_numpy(rgba).permute(2, 0, 1), rgba / 255.0):
        loaded = np.asarray(load_image_any(image))
        assert (loaded[:, :40] == 255).all() and (loaded[:, 40:] == picture[:, 40:]).all()
    palette = Image.fromarray(np.zeros((4, 4), np.uint8)).convert("P")
    palette.info["transparency"] = 0
    assert np.asarray(load_image_any(palette)).min() == 255


def test_photographs_are_turned_upright(picture, tmp_path):
    image = Image.fromarray(picture)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "photo.png", exif=exif)
    assert load_image_any(str(tmp_path / "photo.png")).size == (60, 80)


@pytest.mark.parametrize(
    "make",
    [
        lambda a: a.astype(np.float32) / 255,
        lambda a: a.astype(np.float64) / 255,
        lambda a: a.astype(np.uint16) * 257,
        lambda a: torch.from_numpy(a),
        lambda a: torch.from_numpy(a).permute(2, 0, 1),
        lambda a: (torch.from_numpy(a).permute(2, 0, 1) / 255).to(torch.float16),
        lambda a: a.transpose(2, 0, 1),
        lambda a: a[None],
    ],
)
def test_arrays_of_every_layout_mean_the_same(picture, make):
    assert np.abs(np.asarray(load_image_any(make(picture))).astype(int) - picture).max() <= 1


def test_grey_arrays(picture):
    grey = picture[..., 0]
    for image in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None], grey > 100):
        loaded = np.asarray(load_image_any(image))
        assert loaded.shape == (60, 80, 3) and (loaded[..., 0] == loaded[..., 2]).all()


def test_lists_are_batches_and_nested_lists_are_several_images(processor, picture):
    assert processor(picture).counts == (1,)
    assert processor([picture, picture]).counts == (1, 1)
    inputs = processor([[picture, picture], picture, [picture]])
    assert inputs.counts == (2, 1, 1) and inputs.pixel_values.shape == (4, 3, 128, 128)
    assert processor(np.stack([picture, picture])).counts == (1, 1)
    assert inputs.original_sizes == ((60, 80),) * 4 and len(inputs) == 4


def test_any_aspect_ratio_is_letterboxed_and_comes_back(processor, picture):
    inputs = processor(picture)
    placement = inputs.placements[0]
    assert placement.box == (16, 0, 96, 128)
    assert (inputs.pixel_values[0, :, :16] == 1).all() and (inputs.pixel_values[0, :, 112:] == 1).all()
    restored = processor.restore_image(inputs.pixel_values, placement)
    assert restored.shape == (1, 3, 60, 80)
    assert np.abs((restored[0].permute(1, 2, 0).numpy() + 1) * 127.5 - picture)[2:-2, 2:-2].mean() < 2
    pil = processor.restore_image(processor.postprocess(inputs.pixel_values)[0], placement)
    assert pil.size == (80, 60)


def test_results_at_another_scale_come_back_too(processor, picture):
    placement = processor(picture).placements[0]
    larger = F.interpolate(processor(picture).pixel_values, scale_factor=2.0, mode="bilinear")
    assert processor.restore_image(larger, placement).shape == (1, 3, 60, 80)
    assert processor.restore_image(larger, placement).amax() < 1.01


def test_masks_travel_both_ways(processor):
    placement = Placement.fit((300, 400), (128, 128))
    mask = torch.zeros(300, 400, dtype=torch.bool)
    mask[100:200, 40:140] = True
    on_canvas = placement.place_mask(mask, mode="area")
    assert on_canvas.shape == (128, 128) and on_canvas[:16].sum() == 0
    for grid in ((128, 128), (64, 64), (48, 48), (256, 256)):
        coarse = F.interpolate(on_canvas[None, None], size=grid, mode="bilinear", antialias=True)[0]
        back = processor.restore_mask(coarse, placement)[0] > 0.5
        assert back.shape == (300, 400)
        assert (back & mask).sum() / (back | mask).sum() > (0.95 if grid[0] >= 128 else 0.88), grid


def test_a_click_in_a_large_photograph_is_not_lost():
    placement = Placement.fit((3000, 2000), (128, 128))
    tiny = torch.zeros(3000, 2000)
    tiny[1500, 1000] = 1
    assert placement.place_mask(tiny).sum() == 1
    mask = torch.from_numpy(Point(1000, 1500).rasterize(3000, 2000))
    rows, columns = placement.place_mask(mask).nonzero().float().mean(0) + 0.5
    x, y = placement.to_canvas(1000.5, 1500.5)
    assert abs(columns - x) < 1 and abs(rows - y) < 1
    assert placement.to_source(x, y) == pytest.approx((1000.5, 1500.5))


def test_detail_of_a_large_photograph_reaches_the_high_resolution_branch(processor):
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255  # vanishes at 128 pixels
    high = processor(stripes).pixel_values_high
    assert high.shape == (1, 3, 256, 256) and high.std() > 1
    assert processor(stripes).pixel_values_low.std() < 0.5


def test_buckets_follow_the_aspect_ratio():
    processor = FocusImageProcessor(high_resolution=None)
    image = np.zeros((300, 900, 3), np.uint8)
    assert processor(image).size == (320, 960)
    assert processor(image, size=(512, 512)).size == (512, 512)
    assert processor([image, image.transpose(1, 0, 2)]).size == (512, 512)
    with pytest.raises(ValueError, match="not a bucket"):
        processor(image, size=(500, 512))


def test_config_survives_saving(processor, tmp_path):
    without = FocusImageProcessor(buckets=[[128, 128]], tag_step=16, high_resolution=None, resize_mode="stretch")
    without.save_pretrained(tmp_path)
    loaded = FocusImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == without.to_dict() and loaded.high_resolution is None
    assert FocusImageProcessor.from_pretrained(tmp_path, resize_mode="letterbox").resize_mode == "letterbox"
    with pytest.raises(ValueError, match="resize_mode"):
        FocusImageProcessor.from_pretrained(tmp_path, resize_mode="crop")


def test_inputs_move_together(processor, picture):
    inputs = processor(picture, dtype=torch.bfloat16)
    assert {inputs.pixel_values.dtype, inputs.pixel_values_low.dtype, inputs.pixel_values_high.dtype} == {
        torch.bfloat16
    }
    assert inputs.to(dtype=torch.float32).pixel_values.dtype == torch.float32


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (None, TypeError, "NoneType"),
        ("no_such_file.png", FileNotFoundError, "no_such_file"),
        ("https://example.org/a.png", ValueError, "load_image"),
        (__file__, ValueError, "cannot be read"),
        (np.zeros((8, 8, 5), np.uint8), ValueError, "channels"),
        (np.zeros((4, 4, 3), np.int64), TypeError, "int64"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "no content"),
        (np.zeros(4, np.uint8), ValueError, "dimensions"),
        (np.full((4, 4, 3), np.nan), ValueError, "NaN"),
        (torch.full((3, 128, 128), float("nan")), ValueError, "NaN"),
        (torch.full((3, 128, 128), 255.0), ValueError, "Divide"),
        (np.full((4, 4, 3), -1.0), ValueError, "from \\[-1, 1\\]"),
        (Image.fromarray(np.full((4, 4), np.inf, np.float32)), ValueError, "NaN or infinite"),
        ([], ValueError, "empty"),
        ([[]], ValueError, "empty list"),
    ],
)
def test_what_is_no_image_is_refused(processor, image, error, words):
    with pytest.raises(error, match=words):
        processor(image)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"buckets": []}, "empty"),
        ({"buckets": [[100, 128]]}, "multiples of 16"),
        ({"buckets": [[80, 80]]}, "resolution tag"),
        ({"high_resolution": 16}, "high_resolution"),
        ({"resize_mode": "crop"}, "resize_mode"),
    ],
)
def test_configs_that_cannot_work_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        FocusImageProcessor(**options)
