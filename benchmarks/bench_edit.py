"""What an edit costs beside SDXL inpainting, at a size where drawing dominates: python benchmarks/bench_edit.py [--steps 4]

focus-tiny with a UNet of SDXL's shape and half its widths (random weights; `--channels` for others) edits from an instruction:
encoding, finding the place, writing visual tokens, drawing, compositing. Beside it in the same process, in turns, a
`StableDiffusionXLInpaintPipeline` with random weights, the same UNet and VAE, size, steps and guidance, and a mask that somebody
else has drawn. The ratio is that of the edit without the time of its visual tokens (`bench_tokens.py` measures those) to
inpainting. On one thread of a processor seconds are those of the process, so that a busy machine falls on both alike. Writes
results/edit_<hardware>_<date>.json and .md.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_focus_tiny import HERE, INSTRUCTION, PIPELINE, SIZE, reference
from bench_tokens import Clock
from diffusers import UNet2DConditionModel
from PIL import Image

from diffusers_focus import FocusPipeline
from diffusers_focus.data.world import render, sample_scene
from diffusers_focus.evaluation.run import hardware, versions
from diffusers_focus.sharing.files import replace_json
from diffusers_focus.steps import editing

TARGET = 1.15


class Tokens:
    """Seconds that the calls of `write_codes` took."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.seconds, self.write = clock, 0.0, editing.write_codes

    def __call__(self, *args: Any, **options: Any) -> torch.Tensor:
        begin = self.clock()
        ids = self.write(*args, **options)
        self.seconds += self.clock() - begin
        return ids


def large_unet(small: UNet2DConditionModel, channels: list[int]) -> UNet2DConditionModel:
    """SDXL's shape (three levels, 1, 2 and 4 transformer layers) with the inputs of the given UNet."""
    config = {
        **small.config,
        "block_out_channels": channels,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 4],
        "attention_head_dim": [max(1, width // 64) for width in channels],
        "norm_num_groups": 32,
    }
    torch.manual_seed(0)
    return UNet2DConditionModel.from_config(config).eval()


def main() -> None:
    """Measure, then write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, nargs=3, default=[160, 320, 640], metavar="C")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--guidance-scale", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", metavar="DIR", default=str(HERE / "results"))
    options = parser.parse_args()
    logging.getLogger("diffusers_focus").setLevel(logging.ERROR)  # what an edit means is no matter here
    pipe = FocusPipeline.from_pretrained(PIPELINE)
    pipe.register_modules(unet=large_unet(pipe.unet, options.channels))
    pipe.to(options.device)
    sdxl = reference(pipe.unet, pipe.vae).to(options.device)
    for one in (pipe, sdxl):
        one.set_progress_bar_config(disable=True)
    clock = Clock(options.device)
    editing.write_codes = tokens = Tokens(clock)
    image = Image.fromarray(render(sample_scene(1_000_000), SIZE).image)
    mask = Image.fromarray(np.pad(np.full((48, 48), 255, dtype=np.uint8), 40))
    drawing = {"num_inference_steps": options.steps, "guidance_scale": options.guidance_scale}
    given = {"prompt": INSTRUCTION, "image": image, "mask_image": mask, "height": SIZE, "width": SIZE, "strength": 1.0}
    turns: dict[str, Callable[[], Any]] = {
        "edit": lambda: pipe.edit(image, INSTRUCTION, generator=torch.Generator().manual_seed(0), **drawing),
        "inpaint": lambda: sdxl(**given, generator=torch.Generator().manual_seed(0), **drawing),
    }
    seconds: dict[str, list[float]] = {"edit": [], "of it tokens": [], "inpaint": []}
    for number in range(options.repeats + 1):  # the first round warms up
        for name, call in turns.items():
            tokens.seconds, begin = 0.0, clock()
            call()
            taken = clock() - begin
            if number:
                seconds[name].append(taken)
            if number and name == "edit":
                seconds["of it tokens"].append(tokens.seconds)
            print(f"{number} {name}: {taken:.2f} s, tokens {tokens.seconds:.2f} s", file=sys.stderr, flush=True)
    without = [edit - written for edit, written in zip(seconds["edit"], seconds["of it tokens"])]
    ratio = statistics.median(without) / statistics.median(seconds["inpaint"])
    result = {
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(pipe),
        "versions": versions(),
        "settings": {
            **{name: getattr(options, name) for name in ("channels", "steps", "guidance_scale", "repeats")},
            "unet parameters": pipe.unet.num_parameters(),
            "latents": SIZE // pipe.image_processor.vae_scale_factor,
        },
        "seconds": seconds,
        "edit without tokens / inpaint": ratio,
        "target": TARGET,
    }
    where = result["hardware"]["processor" if result["hardware"]["device"] == "cpu" else "device"]
    name = f"edit_{re.sub(r'[^a-z0-9]+', '-', where.lower()).strip('-')}_{result['date']}"
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    replace_json(folder / f"{name}.json", result)
    lines = [
        f"# An edit beside SDXL inpainting on {where}, {result['date']}",
        "",
        f"UNet of {pipe.unet.num_parameters() / 1e6:.0f} M parameters, {options.steps} steps, guidance scale "
        f"{options.guidance_scale}, {result['settings']['latents']} x {result['settings']['latents']} latents, "
        f"{result['hardware']['threads']} thread(s), medians of {options.repeats} rounds.",
        "",
        "| | seconds | range |",
        "|---|---|---|",
    ]
    rows = [*seconds.items(), ("edit without tokens", without)]
    lines += [f"| {key} | {statistics.median(of):.2f} | {min(of):.2f} to {max(of):.2f} |" for key, of in rows]
    lines += ["", f"Edit without tokens / inpainting: {ratio:.2f} (at most {TARGET})."]
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")
    print(folder / f"{name}.md")


if __name__ == "__main__":
    main()
