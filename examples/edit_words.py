"""Edit what an instruction names: python examples/edit_words.py [IMAGE INSTRUCTION]   (default: a drawn scene)"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image

from diffusers_focus import FocusPipeline
from diffusers_focus.data.world import render, sample_scene
from diffusers_focus.processing.drawing import contact_sheet, draw_masks

PIPELINE = Path(__file__).resolve().parents[1] / "pipelines" / "focus-tiny"

if len(sys.argv) == 3:
    image, instruction = Image.open(sys.argv[1]).convert("RGB"), sys.argv[2]
else:
    image, instruction = Image.fromarray(render(sample_scene(1_000_000)).image), "remove the leftmost object"

pipe = FocusPipeline.from_pretrained(PIPELINE)
out = pipe.edit(image, instruction, generator=torch.Generator("cpu").manual_seed(0))
strip = [image, draw_masks(image, out.masks[0]), draw_masks(image, out.edit_masks[0]), out.images[0]]
captions = ["input", "what is meant", "what may change", instruction]
contact_sheet(strip, captions=captions, cell=256).save("edit_words.png")
