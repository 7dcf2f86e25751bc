"""What edits pay for looking, and what two of one picture cost together: pictures encoded and processor time of a call.

    python benchmarks/bench_edits.py [PIPELINE]

A clip of 8 frames edited in a place that is followed, and a photograph of 1,536 x 1,024 pixels edited around a given mask, with
one denoising step so that the looking shows; two edits of a scene in one call and one after the other, with the pipeline's own
number of steps; how much of what resized objects and new backgrounds change lies in the model's own edit masks. One thread,
medians of three.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from diffusers_focus import FocusPipeline, Mask
from diffusers_focus.data.clips import ClipSpec, sample_clip
from diffusers_focus.data.language import edit_support, sample_edit
from diffusers_focus.data.world import render, sample_scene
from diffusers_focus.steps.editing import edit_places, edit_prompts

FOLDER = Path(__file__).resolve().parent.parent / "pipelines" / "focus-tiny"
CLIP = 1_000_001  # a blue circle at 70, 22
SEED = 1_000_000  # scenes that training does not draw
SCENE = 1_000_004  # a red triangle, an orange ring and a green diamond
RUNS = 3


def measure(pipe: FocusPipeline, name: str, call: Callable[[], object]) -> None:
    """Print the pictures that one call encodes and its median processor seconds."""
    encoded: list[int] = []
    hook = pipe.vision_encoder.register_forward_hook(lambda module, inputs, output: encoded.append(len(inputs[0])))
    seconds = []
    for _ in range(RUNS):
        encoded.clear()
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    hook.remove()
    print(f"{name}: {sum(encoded)} pictures encoded, {median(seconds):.2f} s")


@torch.no_grad()
def places(pipe: FocusPipeline, kind: str, count: int = 14) -> None:
    """Print the shares of what edits of a kind change that lie in the model's own edit masks, and the masks' areas beside it."""
    held, areas, seed = [], [], SEED
    while len(held) < count:
        scene, seed = sample_scene(seed), seed + 1
        try:
            edit = sample_edit(scene, np.random.default_rng(seed - 1), kinds=(kind,))
        except ValueError:  # this scene allows none
            continue
        seen = pipe.encode_image(Image.fromarray(render(scene, 128).image))
        (place,) = edit_places(pipe, seen, edit_prompts(pipe, seen, edit.instruction, pipe.config), pipe.config)
        truth = edit_support(scene, edit)
        held.append((place.edit_mask & truth).sum() / truth.sum())
        areas.append(place.edit_mask.sum() / truth.sum())
    print(f"{kind}: held {np.round(sorted(held), 2).tolist()}, areas {np.round(sorted(areas), 2).tolist()}")


def main() -> None:
    """Measure all."""
    torch.set_num_threads(1)
    pipe = FocusPipeline.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else FOLDER)
    pipe.set_progress_bar_config(disable=True)
    frames = [Image.fromarray(one.image) for one in sample_clip(CLIP, ClipSpec(frames=8)).renders()]
    steps = {"num_inference_steps": 1, "temperature": 0.0}
    first = pipe.segment(frames[0], "the blue circle").masks[0][0]
    measure(pipe, "clip", lambda: pipe.edit_clip(frames, "make it red", region=Mask(first), **steps))
    photograph = frames[0].resize((1536, 1024), Image.Resampling.NEAREST)
    mask = np.zeros((1024, 1536), dtype=bool)
    mask[500:560, 700:780] = True
    crop = {"mask_image": mask, "padding_mask_crop": 32, **steps}
    measure(pipe, "part of a photograph", lambda: pipe.edit(photograph, "make it red", **crop))
    scene, texts = (
        Image.fromarray(render(sample_scene(SCENE)).image),
        ["remove the red triangle", "make the orange ring blue"],
    )
    measure(pipe, "two edits in one call", lambda: pipe.edit(scene, [texts]))
    measure(pipe, "one after the other", lambda: pipe.edit(pipe.edit(scene, texts[0]).images[0], texts[1]))
    for kind in ("resize", "background"):
        places(pipe, kind)


if __name__ == "__main__":
    main()
