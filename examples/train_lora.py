"""Teach focus-tiny a new colour word with a LoRA: python examples/train_lora.py [--word teal --colour 70,150,150 --minutes 10]

Trains an adapter of the language model on edits "make the ... teal" of drawn scenes (ten minutes at most), saves it,
loads it into a fresh pipeline, and measures on scenes that training never saw: of how many recoloured objects the mean colour is
nearest to the new colour, with the adapter, without it and switched off. Writes pytorch_lora_weights.safetensors, lora.json and a
strip of pictures into --output.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffusers_focus import FocusPipeline
from diffusers_focus.data.world import COLOURS, render, sample_scene
from diffusers_focus.evaluation.run import hardware
from diffusers_focus.processing.drawing import contact_sheet
from diffusers_focus.training.batches import FIRST_HELD_OUT_SEED
from diffusers_focus.training.lora import colour_word_edit, train_lora

PIPELINE = Path(__file__).resolve().parents[1] / "pipelines" / "focus-tiny"


def load(folder: str) -> FocusPipeline:
    """A fresh pipeline without progress bars."""
    pipe = FocusPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def recolour(pipe: FocusPipeline, word: str, rgb: tuple[int, int, int], count: int, own_place: bool = False) -> dict:
    """Edit `count` held-out scenes; how near the object's colour comes to `rgb`, and the pictures."""
    scenes = [sample_scene(FIRST_HELD_OUT_SEED + 500 + number) for number in range(count)]
    edits = [colour_word_edit(scene, np.random.default_rng(scene.seed), word, rgb) for scene in scenes]
    drawn = [render(scene, 128) for scene in scenes]
    masks = [picture.masks[edit.targets[0]] for picture, edit in zip(drawn, edits)]
    out = pipe.edit(
        [Image.fromarray(picture.image) for picture in drawn],
        [edit.instruction for edit in edits],
        mask_image=None if own_place else masks,
        generator=[torch.Generator("cpu").manual_seed(scene.seed) for scene in scenes],
        output_type="np",
    )
    pictures = out.images * 255
    palette = np.array([rgb, *COLOURS.values()], dtype=np.float32)
    means = np.stack([picture[mask].mean(axis=0) for picture, mask in zip(pictures, masks)])
    distances = np.linalg.norm(means[:, None] - palette, axis=2)
    return {
        "nearest_is_new": float((distances.argmin(axis=1) == 0).mean()),
        "distance": float(distances[:, 0].mean()),
        "pictures": pictures,
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", default=str(PIPELINE), metavar="DIR")
    parser.add_argument("--word", default="teal")
    parser.add_argument("--colour", default="70,150,150", metavar="R,G,B")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=10.0, help="longest training time")
    parser.add_argument("--count", type=int, default=32, help="scenes to measure on")
    parser.add_argument("--output", default="runs/lora", metavar="DIR")
    args = parser.parse_args()
    rgb = tuple(int(value) for value in args.colour.split(","))
    output = Path(args.output)
    logging.getLogger("diffusers_focus").setLevel(logging.ERROR)

    pipe = load(args.pipeline)
    base = recolour(pipe, args.word, rgb, args.count)
    started, used = time.monotonic(), time.process_time()
    train_lora(
        pipe, "language_model", output / "training", name=args.word, rank=args.rank, word=args.word, rgb=rgb,
        max_minutes=args.minutes,
    )  # fmt: skip
    seconds, processor = time.monotonic() - started, time.process_time() - used
    trained = recolour(pipe, args.word, rgb, args.count)
    pipe.save_lora_weights(output, **pipe.lora_layers(args.word))

    pipe = load(args.pipeline)
    pipe.load_lora_weights(str(output), adapter_name=args.word)
    loaded = recolour(pipe, args.word, rgb, args.count)
    own_place = recolour(pipe, args.word, rgb, args.count, own_place=True)
    pipe.fuse_lora()
    fused = recolour(pipe, args.word, rgb, args.count)
    pipe.unfuse_lora()
    pipe.disable_lora()
    off = recolour(pipe, args.word, rgb, args.count)
    pipe.unload_lora_weights()
    unloaded = recolour(pipe, args.word, rgb, args.count)

    def apart(first: dict, second: dict) -> float:
        return float(np.abs(first["pictures"] - second["pictures"]).max())

    arms = {"base": base, "trained": trained, "loaded": loaded, "own_place": own_place, "fused": fused, "off": off}
    result = {
        "date": date.today().isoformat(),
        "hardware": hardware(pipe),
        "word": args.word,
        "colour": rgb,
        "rank": args.rank,
        "training_seconds": round(seconds, 1),
        "training_processor_seconds": round(processor, 1),
        "scenes": args.count,
        **{name: {key: round(arm[key], 3) for key in ("nearest_is_new", "distance")} for name, arm in arms.items()},
        "largest_difference_in_levels": {
            "loaded to trained": apart(loaded, trained),
            "off to base": apart(off, base),
            "unloaded to base": apart(unloaded, base),
            "fused to loaded": apart(fused, loaded),
        },
    }
    (output / "lora.json").write_text(json.dumps(result, indent=1))
    rows = [sample for pair in zip(base["pictures"][:6], loaded["pictures"][:6]) for sample in pair]
    contact_sheet(
        [Image.fromarray(row.round().astype(np.uint8)) for row in rows], captions=["base", args.word] * 6, cell=160
    ).save(output / "strip.png")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
