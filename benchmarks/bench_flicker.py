"""What keeps an edited clip still: the same random numbers in every frame against new ones, on the same clips and places.

Command:  python benchmarks/bench_flicker.py            (8 clips of 8 frames, edited twice; about 15 minutes of one shared core)
Prints:   of both, the change from frame to frame inside the edit as a ratio to the true clip's, the largest one of a single clip,
          the change outside the edit masks, the share of right frames and the PSNR inside (see evaluation/edit_clips.py).

Clips are of seeds from 900,000 up, which are neither trained on nor evaluated. docs/design.md, "Edits of clips", has the figures.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from diffusers_focus import FocusPipeline
from diffusers_focus.data.world import render, sample_scene
from diffusers_focus.evaluation.edit_clips import EditClipTask
from diffusers_focus.evaluation.tasks import SIZE, Batch

ROOT = Path(__file__).resolve().parents[1]
FIRST_SEED = 900_000
FIGURES = ("flicker_ratio", "flicker_ratio_most", "flicker_outside_most", "right_frames", "psnr_inside")


class Running(torch.Generator):
    """A generator that is not set back: every frame goes on where the one before stopped."""

    def set_state(self, _: torch.Tensor) -> None:  # what a clip's edit does before each frame
        """Nothing."""


def with_new_numbers(pipe: Any) -> Any:
    """The pipeline, each frame drawing from random numbers of its own."""

    def edit_clip(*args: Any, generator: torch.Generator, **options: Any) -> Any:
        running = Running()
        running.manual_seed(generator.initial_seed())
        return pipe.edit_clip(*args, generator=running, **options)

    return SimpleNamespace(edit_clip=edit_clip, config=pipe.config)


def main() -> None:
    """Edit the clips both ways, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", metavar="DIR", default=str(ROOT / "pipelines" / "focus-tiny"))
    parser.add_argument("--clips", type=int, default=8, metavar="N")
    options = parser.parse_args()
    pipe = FocusPipeline.from_pretrained(options.pipeline, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    scenes = [sample_scene(seed) for seed in range(FIRST_SEED, FIRST_SEED + options.clips)]
    batch = Batch("in", scenes, [render(scene, SIZE) for scene in scenes])
    for name, edited in (("the same numbers", pipe), ("new numbers", with_new_numbers(pipe))):
        task = EditClipTask()
        with torch.no_grad():
            task.run(edited, batch)
        figures = task.figures()
        shown = "  ".join(f"{key} {figures[key]['value']:.3f}" for key in FIGURES if key in figures)
        print(f"{name:<20}{shown}")
        for row in task.records:
            print(f"  {row['scene']} {row['kind']:<12}{row['flicker_inside'] / row['flicker_truth']:.3f}")


if __name__ == "__main__":
    main()
