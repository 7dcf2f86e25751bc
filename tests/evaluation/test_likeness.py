"""Likeness of pictures and texts by small random CLIPs and DINOs, against transformers' own way of asking them."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from diffusers_focus.evaluation.likeness import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Clip,
    Dino,
    Inception,
    Lpips,
    Preparation,
    cosine,
    direction,
    feature_model,
)

from tests.evaluation.tiny_models import SIDE, write_clip, write_dino, write_inception
from tests.tiny import picture

TEXTS = ["a red disk", "a blue square. and a rather long description of everything else that could be in it, " * 3]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    write_clip(place / "clip")
    write_clip(place / "bare", prepared=False)
    write_dino(place / "dino")
    write_dino(place / "dinov2", second=True)
    write_inception(place / "inception.pt")
    return place


@pytest.fixture(scope="module")
def pictures():
    return [picture(0, 64, 64), picture(1, 64, 96), picture(2, 80, 48)]


def test_clip_is_transformers_clip(models, pictures):
    ours, model = Clip(models / "clip"), CLIPModel.from_pretrained(models / "clip").eval()
    processor = CLIPImageProcessorPil.from_pretrained(models / "clip")
    tokenizer = CLIPTokenizer.from_pretrained(models / "clip")
    tokens = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        images = model.get_image_features(**processor(images=pictures, return_tensors="pt")).pooler_output.numpy()
        texts = model.get_text_features(**tokens).pooler_output.numpy()
    assert ours.features(pictures) == pytest.approx(images, abs=2e-4)
    for found, expected in ((ours.pictures(pictures), images), (ours.texts(TEXTS), texts)):
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        assert found == pytest.approx(expected, abs=1e-4)
        assert cosine(found[0], found[1]) < 0.999  # or nothing would be told apart
    bare = Clip(models / "bare")  # without a file that says so, CLIP's own levels and the model's size
    assert bare.prepare == Preparation(SIDE, SIDE, CLIP_MEAN, CLIP_STD)
    assert bare.pictures(pictures) == pytest.approx(ours.pictures(pictures), abs=1e-6)


@pytest.mark.parametrize("name", ["dino", "dinov2"])
def test_dino_is_the_class_token(name, models, pictures):
    ours, model = Dino(models / name), AutoModel.from_pretrained(models / name).eval()
    assert ours.prepare == Preparation(round(SIDE * 256 / 224), SIDE, IMAGENET_MEAN, IMAGENET_STD)
    with torch.no_grad():
        seen = model(pixel_values=ours.prepare(pictures)).last_hidden_state[:, 0].numpy()
    assert ours.features(pictures) == pytest.approx(seen, abs=1e-5)
    assert np.linalg.norm(ours.pictures(pictures), axis=1) == pytest.approx(1.0, abs=1e-5)
    assert cosine(*ours.pictures(pictures[:2])) < 0.999


def test_pictures_are_resized_by_their_shorter_side_and_cut_in_the_middle():
    wide = np.zeros((20, 61, 3), dtype=np.uint8)
    wide[:, 20:41] = 255
    seen = Preparation(20, 20, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))([Image.fromarray(wide)])
    assert seen.shape == (1, 3, 20, 20) and bool((seen == 1).all())
    assert Preparation(10, 10, (0.5,) * 3, (0.5,) * 3)([Image.fromarray(wide)]).max() == 1.0


def test_inception_sees_what_clean_fid_shows_it(models, pictures):
    found = Inception(models / "inception.pt").features(pictures)
    assert found.shape == (3, 12)
    flat = Image.new("RGB", (40, 30), (255, 0, 128))
    (levels,) = Inception(models / "inception.pt").features([flat])
    assert levels.reshape(3, 4) == pytest.approx(np.repeat([[127 / 128], [-1.0], [0.0]], 4, axis=1), abs=1e-5)


def test_a_model_for_fid_is_a_file_or_a_folder(models):
    assert type(feature_model(models / "inception.pt")) is Inception
    assert type(feature_model(models / "clip")) is Clip and type(feature_model(models / "dino")) is Dino


def test_what_is_no_model_is_named(models, tmp_path):
    for kind in (Clip, Dino, feature_model):
        with pytest.raises(FileNotFoundError, match="config.json"):
            kind(tmp_path)
    with pytest.raises(ValueError, match="type 'vit', not CLIP"):
        Clip(models / "dino")
    with pytest.raises(ValueError, match="type 'clip', not DINO"):
        Dino(models / "clip")
    (tmp_path / "notes.pt").write_text("no model")
    with pytest.raises(ValueError, match="no TorchScript file"):
        Inception(tmp_path / "notes.pt")
    with pytest.raises(FileNotFoundError, match="TorchScript file or a folder"):
        feature_model(tmp_path / "nowhere.pt")
    torch.jit.script(torch.nn.Flatten()).save(str(tmp_path / "flat.pt"))
    with pytest.raises(ValueError, match="no module called 'layers'"):
        Inception(tmp_path / "flat.pt")


def test_direction_is_that_of_the_captions():
    before, after = np.asarray([1.0, 0, 0]), np.asarray([0, 1.0, 0])
    source, result = np.asarray([0, 0, 1.0]), np.asarray([-0.6, 0.6, 0.53])
    assert direction(before, after, before, after) == pytest.approx(1.0)
    assert direction(after, before, before, after) == pytest.approx(-1.0)
    change = result - source
    assert direction(source, result, before, after) == pytest.approx(
        change @ (after - before) / np.linalg.norm(change) / 2**0.5
    )
    assert direction(source, source, before, after) == 0.0  # nothing was done
    assert direction(source, result, before, before) is None  # nothing was to be done


def test_lpips_without_its_package_names_the_extra(tmp_path):
    if importlib.util.find_spec("lpips") and importlib.util.find_spec("torchvision"):
        pytest.skip("lpips is installed")
    with pytest.raises(ValueError, match=r"diffusers-focus\[lpips\]"):
        Lpips(tmp_path / "alexnet.pth")
