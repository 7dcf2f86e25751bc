"""recipes/segment_illume.py at reduced width: a pipeline without queries, of random weights, becomes one that segments."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusers_focus import FocusPipeline
from diffusers_focus.data.folders import write_records
from diffusers_focus.data.world_samples import world_records
from diffusers_focus.models.vision_encoder import FocusVisionEncoder

from tests.tiny import SIZE, picture, tiny_components, tiny_pipeline

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """As a conversion leaves it: no query tokens, no region slots, ILLUME+'s prompts, masks untrained."""
    folder = tmp_path_factory.mktemp("start")
    config = dict(tiny_components()["vision_encoder"].config) | {"num_query_tokens": 0, "region_slots": False}
    encoder = FocusVisionEncoder(**{k: v for k, v in config.items() if not k.startswith("_")})
    pipe = tiny_pipeline(vision_encoder=encoder, masks_trained=False)
    pipe.image_processor.prompt_style = "illume"
    pipe.save_pretrained(folder / "pipeline")
    write_records(
        folder / "data" / "samples.jsonl", world_records(folder / "data", range(4), size=SIZE, num_questions=2)
    )
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", ["lora", "frozen"])
def test_a_converted_pipeline_learns_to_segment(how, start, tmp_path):
    line = [sys.executable, ROOT / "recipes" / "segment_illume.py", "--pipeline", start / "pipeline"]
    line += ["--data", start / "data", "--runs", tmp_path / "run", "--output", tmp_path / "out", "--queries", "3"]
    line += ["--language-model", how, "--rank", "2", "--steps", "3", "--batch-size", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    words = [str(word) for word in line]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out")
    before = FocusPipeline.from_pretrained(start / "pipeline")
    pipe = FocusPipeline.from_pretrained(tmp_path / "out", score_threshold=0.0, fallback_threshold=0.0)
    assert pipe.config.masks_trained and pipe.image_processor.prompt_style == "focus"
    old, new = before.language_model.state_dict(), pipe.language_model.state_dict()
    assert old.keys() == new.keys()  # a stock model again
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert bool(moved) == (how == "lora") and all("_proj.weight" in name for name in moved)
    for name, value in before.vision_encoder.vit.state_dict().items():
        assert torch.equal(value, pipe.vision_encoder.vit.state_dict()[name])
    found = pipe.segment(picture(), "the red circle")
    assert found.masks[0].shape[1:] == (SIZE, SIZE)
