"""The scripts people copy, run as they are: each in a process and a folder of its own. Slow: every one loads focus-tiny."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.hub.stand_in import Hub

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(root, folder, script, *arguments, **changes):
    """What a script prints; it has to end well."""
    env = {**os.environ, "PYTHONPATH": str(root / "src"), "HF_HUB_OFFLINE": "1", **changes}
    command = [sys.executable, str(root / "examples" / script), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_masks_of_another_segmenter(root, tmp_path):
    assert "file and block give the same picture: True" in run(root, tmp_path, "foreign_masks.py")
    assert Image.open(tmp_path / "foreign_masks.png").width > 700
    Image.new("RGB", (128, 128), (90, 90, 90)).save(tmp_path / "scene.png")
    mask = np.zeros((128, 128), dtype=np.uint8)
    mask[40:80, 40:80] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    run(root, tmp_path, "foreign_masks.py", "scene.png", "mask.png", "remove it")


def test_words_for_sdxl(root, tmp_path):
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

    from tests.modular.shared import sdxl_components

    StableDiffusionXLPipeline(**sdxl_components()).save_pretrained(tmp_path / "sdxl")
    run(root, tmp_path, "words_for_sdxl.py", "--sdxl", tmp_path / "sdxl", "--steps", 2)
    sheet = np.asarray(Image.open(tmp_path / "words_for_sdxl.png").convert("RGB")).astype(int)
    third = sheet.shape[1] // 3
    scene, marked, drawn = (sheet[:, part * third : (part + 1) * third] for part in range(3))
    assert np.abs(scene - marked).max() > 50 and np.abs(scene - drawn).max() > 50


def test_folder_in_batches(root, tmp_path):
    assert run(root, tmp_path, "batch_folder.py").count("edited") == 4
    assert len(list((tmp_path / "scenes" / "edited").glob("*.png"))) == 4


def test_clip_is_edited_frame_by_frame(root, tmp_path):
    printed = run(root, tmp_path, "edit_clip.py")
    assert [line.split(":")[0] for line in printed.splitlines()] == [f"frame {index}" for index in range(4)]
    assert Image.open(tmp_path / "edit_clip.gif").n_frames == 4


def test_variant_is_pushed_and_loaded(root, tmp_path):
    with Hub() as hub:
        env = hub.environment(tmp_path / "home")
        assert "me/tuned is there" in run(root, tmp_path, "push_variant.py", "me/tuned", "--private", **env)
        files = hub.files("me/tuned")
    assert {"model_index.json", "README.md", "unet/diffusion_pytorch_model.fp16.safetensors"} <= set(files)
    assert "unet/diffusion_pytorch_model.safetensors" in files
