"""What do outlines along the image's edges bring? python benchmarks/outlines.py [--count 100] [--reach 0 1.5] [--edits 48]

The masks of new scenes with several reaches of `mask_refinement` (0: as the mask decoder draws them), the time of a prompt, and
with --edits how well edit masks fit. Prints a table; figures with date and hardware are in docs/design.md, "Outlines".
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from PIL import Image

from diffusers_focus import FocusPipeline
from diffusers_focus.evaluation.run import evaluate
from diffusers_focus.evaluation.tasks import draw_batch

TASKS = ("referring", "click", "box", "mask")
EDITS = {
    "coverage": ("coverage",),
    "excess": ("excess",),
    "seam": ("seam_ratio",),
    "edits right": ("composited", "right"),
}


def seconds(pipe: FocusPipeline, count: int = 16) -> float:
    """Of one prompt about an encoded image, the fastest of three rounds."""
    batch = draw_batch("in", 0, count)
    encoded = [pipe.encode_image(Image.fromarray(drawn.image)) for drawn in batch.drawn]
    rounds = []
    for _ in range(4):  # the first also computes what an image needs once
        began = time.perf_counter()
        for one in encoded:
            pipe.segment(one, "the circle")
        rounds.append((time.perf_counter() - began) / count)
    return min(rounds[1:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", metavar="DIR", default="focus-tiny", help="(default: %(default)s)")
    parser.add_argument("--count", type=int, default=100, metavar="N", help="scenes (default: %(default)s)")
    parser.add_argument("--edits", type=int, default=0, metavar="N", help="scenes to edit (default: %(default)s)")
    parser.add_argument(
        "--reach", type=float, nargs="+", default=[0.0, 1.5], metavar="R", help="cells (default: 0 1.5)"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipe = FocusPipeline.from_pretrained(options.pipeline)
    pipe.set_progress_bar_config(disable=True)
    titles = [*TASKS, *(EDITS if options.edits else ()), "ms a prompt"]
    print("| reach | " + " | ".join(titles) + " |\n|---|" + "---|" * len(titles))
    for reach in options.reach:
        pipe.register_to_config(mask_refinement=reach)
        found: dict[str, Any] = evaluate(pipe, options.count, ["in"], list(TASKS))["groups"]["in"]
        figures = [f"{found[task]['mIoU']['value']:.3f}" for task in TASKS]
        if options.edits:
            edits = evaluate(pipe, options.edits, ["in"], ["edits"])["groups"]["in"]["edits"]
            for path in EDITS.values():
                value: Any = edits
                for key in path:
                    value = value[key]
                figures.append(f"{value['value']:.3f}")
        print(f"| {reach} | " + " | ".join(figures) + f" | {1000 * seconds(pipe):.0f} |", flush=True)


if __name__ == "__main__":
    main()
