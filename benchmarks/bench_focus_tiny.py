"""How long focus-tiny takes and how much memory: python benchmarks/bench_focus_tiny.py [--repeats 7] [--steps 20]

Times asking, segmenting and editing one 128 x 128 image, and in the same run a `StableDiffusionXLInpaintPipeline` with
random weights whose UNet and VAE have focus-tiny's sizes, at the same number of steps and guidance: the ratio says what
understanding the instruction costs on top of drawing. Writes results/<hardware>_<date>.json and .md beside this file.
See README.md for what is and is not counted.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLInpaintPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from diffusers_focus import FocusPipeline
from diffusers_focus.data.world import render, sample_scene
from diffusers_focus.evaluation.run import hardware, versions
from diffusers_focus.sharing.files import replace_json

HERE = Path(__file__).resolve().parent
PIPELINE = HERE.parent / "pipelines" / "focus-tiny"
SIZE = 128
INSTRUCTION = "make the leftmost object blue"


class Memory:
    """The largest resident size of this process while it was watched, in MB (0 where the system does not say)."""

    def __init__(self) -> None:
        self.peak = 0.0

    def __enter__(self) -> Memory:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        statm = Path("/proc/self/statm")
        while True:
            if statm.is_file():
                self.peak = max(self.peak, int(statm.read_text().split()[1]) * 4096 / 1e6)
            if self._done.wait(0.005):
                return


def measure(call: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Median and range of the seconds of a call, after one that is not counted, and the peak memory."""
    call()
    seconds = []
    with Memory() as memory:
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    found = {
        "median_s": round(statistics.median(seconds), 4),
        "min_s": round(min(seconds), 4),
        "max_s": round(max(seconds), 4),
        "peak_process_mb": round(memory.peak, 1),
    }
    if torch.cuda.is_available():
        found["peak_device_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return found


def reference(unet: UNet2DConditionModel, vae: AutoencoderKL) -> StableDiffusionXLInpaintPipeline:
    """SDXL inpainting with random weights: a UNet and a VAE of the given ones' sizes, tiny text encoders."""
    width = unet.config.cross_attention_dim
    width = width if isinstance(width, int) else width[0]
    time_width = unet.config.addition_time_embed_dim or 32
    pooled = 32
    config = {
        **unet.config,
        "in_channels": 2 * vae.config.latent_channels + 1,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": time_width,
        "projection_class_embeddings_input_dim": 6 * time_width + pooled,
    }
    halves = (width // 2, width - width // 2)
    encoders = []
    for part, kind in zip(halves, (CLIPTextModel, CLIPTextModelWithProjection)):
        text = CLIPTextConfig(
            vocab_size=600,
            hidden_size=part,
            intermediate_size=2 * part,
            num_hidden_layers=2,
            num_attention_heads=2 if part % 2 == 0 else 1,
            projection_dim=pooled,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
        encoders.append(kind(text))
    tokenizer = byte_tokenizer()
    return StableDiffusionXLInpaintPipeline(
        vae=AutoencoderKL.from_config(vae.config),
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=UNet2DConditionModel.from_config(config),
        scheduler=EulerDiscreteScheduler(),
    )


def byte_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that knows single letters only, made on the spot: nothing is downloaded."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocabulary.write_text(json.dumps({token: index for index, token in enumerate(tokens)}), encoding="utf-8")
        merges.write_text("#version: 0.2\n", encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def run(pipe: Any, repeats: int, steps: int, guidance: float) -> dict[str, dict[str, float]]:
    """All timings."""
    image = Image.fromarray(render(sample_scene(1_000_000), SIZE).image)
    mask = Image.fromarray(np.pad(np.full((48, 48), 255, dtype=np.uint8), 40))
    device = pipe.device
    drawing = {"num_inference_steps": steps, "guidance_scale": guidance}

    def generator() -> torch.Generator:
        return torch.Generator("cpu").manual_seed(0)

    found = {
        "ask": measure(lambda: pipe.understand(image, "how many objects are there?"), repeats),
        "segment": measure(lambda: pipe.segment(image, "the leftmost object"), repeats),
    }
    if getattr(pipe, "unet", None) is None:
        return found
    found["edit"] = measure(lambda: pipe.edit(image, INSTRUCTION, generator=generator(), **drawing), repeats)
    seen = pipe.encode_image(image)
    found["edit_again"] = measure(lambda: pipe.edit(seen, INSTRUCTION, generator=generator(), **drawing), repeats)
    sdxl = reference(pipe.unet, pipe.vae).to(device, pipe.unet.dtype)
    sdxl.set_progress_bar_config(disable=True)

    def inpaint() -> None:
        sdxl(
            prompt=INSTRUCTION,
            image=image,
            mask_image=mask,
            height=SIZE,
            width=SIZE,
            strength=1.0,
            generator=generator(),
            **drawing,
        )

    found["sdxl_inpaint_same_size"] = measure(inpaint, repeats)
    return found


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    timings = result["timings"]
    base = timings.get("sdxl_inpaint_same_size", {}).get("median_s")
    lines = [
        f"# focus-tiny on {result['hardware']['processor']} ({result['hardware']['device']}), {result['date']}",
        "",
        f"{result['settings']['repeats']} runs each, {result['settings']['steps']} steps, guidance scale "
        f"{result['settings']['guidance_scale']}, {result['hardware']['threads']} threads, "
        + ", ".join(f"{name} {number}" for name, number in result["versions"].items())
        + ".",
        "",
        "| step | seconds (median) | range | peak process memory (MB) | ratio to SDXL inpainting of the same size |",
        "|---|---|---|---|---|",
    ]
    for name, row in timings.items():
        share = f"{row['median_s'] / base:.2f}" if base else "-"
        spread = f"{row['min_s']:.3f} to {row['max_s']:.3f}"
        lines.append(f"| {name} | {row['median_s']:.3f} | {spread} | {row['peak_process_mb']:.0f} | {share} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", default=str(PIPELINE), metavar="DIR")
    parser.add_argument("--repeats", type=int, default=7, metavar="N")
    parser.add_argument("--steps", type=int, default=20, metavar="N")
    parser.add_argument("--guidance-scale", type=float, default=2.0, metavar="G")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    parser.add_argument("--output", default=str(HERE / "results"), metavar="DIR")
    args = parser.parse_args()
    if not (Path(args.pipeline) / "model_index.json").is_file():
        print(f"error: no pipeline in {args.pipeline}; train one with `make tiny` or name one: --pipeline DIR")
        return 2
    if args.threads:
        torch.set_num_threads(args.threads)
    logging.getLogger("diffusers_focus").setLevel(logging.ERROR)  # what an edit means is no matter here
    pipe = FocusPipeline.from_pretrained(args.pipeline).to(args.device)
    pipe.set_progress_bar_config(disable=True)
    result = {
        "pipeline": Path(args.pipeline).name,
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(pipe),
        "versions": versions(),
        "settings": {"repeats": args.repeats, "steps": args.steps, "guidance_scale": args.guidance_scale, "size": SIZE},
        "timings": run(pipe, args.repeats, args.steps, args.guidance_scale),
    }
    where = result["hardware"]["processor" if result["hardware"]["device"] == "cpu" else "device"]
    name = re.sub(r"[^a-z0-9]+", "-", where.lower()).strip("-") + f"_{result['date']}"
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    replace_json(folder / f"{name}.json", result)
    text = report(result)
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
