"""What edits pay for looking, and what two of one picture cost together: pictures encoded and processor time of a call.

    python benchmarks/bench_edits.py [PIPELINE]

A clip of 8 frames edited in a place that is followed, and a photograph of 1,536 x 1,024 pixels edited around a given mask, with
one denoising step so that the looking shows; two edits of a scene in one call and one after the other, with the pipeline's own
number of steps; how much of what edits change lies in the model's own edit masks, as they are and grown. One thread, medians of
three.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from PIL import Image

from diffusers_focus import FocusPipeline, Mask
from diffusers_focus.data.clips import ClipSpec, sample_clip
from diffusers_focus.data.edits import EDIT_KINDS, edit_support, sample_edit
from diffusers_focus.data.regions_sampling import dilate
from diffusers_focus.data.world import render, sample_scene
from diffusers_focus.evaluation.edits import EXCESS_DILATION
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
def places(pipe: FocusPipeline, count: int = 40, growths: tuple[int | None, ...] = (0, None, 6)) -> None:
    """Print how edit masks fit what edits change, per kind of edit, growth in pixels (None: the pipeline's own) and whether the
    object was found: the share of the change that they hold, and their area over that of the change grown by 8 pixels.
    """
    rows: list[tuple[str, int | None, bool, float, float]] = []
    for kind in EDIT_KINDS:
        done, seed = 0, SEED
        while done < count:
            scene, seed = sample_scene(seed), seed + 1
            try:
                edit = sample_edit(scene, np.random.default_rng(seed - 1), kinds=(kind,))
            except ValueError:  # this scene allows none
                continue
            done, drawn, truth = done + 1, render(scene, 128), edit_support(scene, edit)
            seen = pipe.encode_image(Image.fromarray(drawn.image))
            prompts = edit_prompts(pipe, seen, edit.instruction, pipe.config)
            target = drawn.masks[edit.targets[0]] if edit.targets else truth
            for growth in growths:
                (place,) = edit_places(pipe, seen, prompts, pipe.config, mask_dilation=growth)
                meant = place.masks.any(axis=0)
                found = (meant & target).sum() > 0.5 * (meant | target).sum()
                share = (place.edit_mask & truth).sum() / truth.sum()
                excess = place.edit_mask.sum() / dilate(truth, EXCESS_DILATION).sum()
                rows.append((kind, growth, bool(found), float(share), float(excess)))
    for kind in (*EDIT_KINDS, "all"):
        for growth in growths:
            own = [row for row in rows if row[1] == growth and kind in (row[0], "all")]
            right = [row for row in own if row[2]]
            figures = " ".join(f"{mean(r[i] for r in some):.3f}" for some in (own, right) for i in (3, 4))
            print(f"{kind}, grown by {growth}: held, area; the same where found ({len(right)}/{len(own)}): {figures}")


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
    places(pipe)


if __name__ == "__main__":
    main()
