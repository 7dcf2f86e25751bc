"""Edit what a click points at: python examples/edit_click.py [IMAGE X Y INSTRUCTION]   (default: a drawn scene)

The click is segmented first, and its mask handed to the edit: exactly that object changes, whatever else looks alike.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image

from diffusers_focus import FocusPipeline, Point
from diffusers_focus.data.world import render, sample_scene
from diffusers_focus.processing.drawing import contact_sheet, draw_masks

PIPELINE = Path(__file__).resolve().parents[1] / "pipelines" / "focus-tiny"

if len(sys.argv) == 5:
    image, click, instruction = Image.open(sys.argv[1]).convert("RGB"), Point(*map(float, sys.argv[2:4])), sys.argv[4]
else:
    scene = sample_scene(1_000_000)
    item = scene.objects[-1]
    image, click = Image.fromarray(render(scene).image), Point(item.cx * 128, item.cy * 128)
    instruction = f"remove the {item.colour} {item.shape}"

pipe = FocusPipeline.from_pretrained(PIPELINE)
seen = pipe.encode_image(image)
mask = pipe.segment(seen, region=click).masks[0].any(axis=0)
chosen = Image.fromarray(mask.astype("uint8") * 255)
out = pipe.edit(seen, instruction, mask_image=chosen, generator=torch.Generator("cpu").manual_seed(0))
strip = [image, draw_masks(image, mask), out.images[0]]
contact_sheet(strip, captions=["input", "the click", instruction], cell=256).save("edit_click.png")
