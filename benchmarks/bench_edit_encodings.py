"""What an edit pays for looking: how often pictures are encoded, and the processor time of a call.

    python benchmarks/bench_edit_encodings.py [PIPELINE]

A clip of 8 frames edited in a place that is followed, and a photograph of 1,536 x 1,024 pixels edited around a given
mask. One thread, one denoising step, so that the looking shows; medians of three.
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

FOLDER = Path(__file__).resolve().parent.parent / "pipelines" / "focus-tiny"
CLIP = 1_000_001  # a blue circle at 70, 22
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


def main() -> None:
    """Measure both."""
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


if __name__ == "__main__":
    main()
