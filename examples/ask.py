"""Ask about an image: python examples/ask.py [IMAGE] [QUESTION ...]   (default: a drawn scene, three questions)"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from diffusers_focus import FocusPipeline
from diffusers_focus.data.world import render, sample_scene

PIPELINE = Path(__file__).resolve().parents[1] / "pipelines" / "focus-tiny"

image = (
    Image.open(sys.argv[1]).convert("RGB")
    if len(sys.argv) > 1
    else Image.fromarray(render(sample_scene(1_000_000)).image)
)
questions = sys.argv[2:] or ["how many objects are there?", "is there a red circle?", "describe the image"]

pipe = FocusPipeline.from_pretrained(PIPELINE)
seen = pipe.encode_image(image)  # the image is looked at once, whatever is asked of it
for question in questions:
    print(f"{question}  {pipe.understand(seen, question).text[0]}")
