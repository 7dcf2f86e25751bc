"""Edit all images of a folder, a batch at a time: python examples/batch_folder.py [FOLDER INSTRUCTION]

Results go to FOLDER/edited. By default four scenes are drawn into the folder `scenes` first.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image

from diffusers_focus import FocusPipeline
from diffusers_focus.data.world import render, sample_scene

PIPELINE = Path(__file__).resolve().parents[1] / "pipelines" / "focus-tiny"
BATCH = 8

folder = Path(sys.argv[1] if len(sys.argv) == 3 else "scenes")
instruction = sys.argv[2] if len(sys.argv) == 3 else "make the leftmost object striped"
(folder / "edited").mkdir(parents=True, exist_ok=True)
if len(sys.argv) != 3:
    for seed in range(1_000_000, 1_000_004):
        Image.fromarray(render(sample_scene(seed)).image).save(folder / f"{seed}.png")

pipe = FocusPipeline.from_pretrained(PIPELINE)
files = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
for start in range(0, len(files), BATCH):
    chunk = files[start : start + BATCH]  # a list of images is a batch; they must have one size
    images = [Image.open(file).convert("RGB") for file in chunk]
    out = pipe.edit(images, [instruction] * len(images), generator=torch.Generator("cpu").manual_seed(0))
    for file, image in zip(chunk, out.images):
        image.save(folder / "edited" / f"{file.stem}.png")
        print(folder / "edited" / f"{file.stem}.png")
