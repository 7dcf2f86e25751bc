"""Find what an expression means: python examples/segment_words.py [IMAGE EXPRESSION]   (default: a drawn scene)"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from diffusers_focus import FocusPipeline
from diffusers_focus.data.world import render, sample_scene
from diffusers_focus.processing.drawing import draw_masks

PIPELINE = Path(__file__).resolve().parents[1] / "pipelines" / "focus-tiny"

if len(sys.argv) == 3:
    image, expression = Image.open(sys.argv[1]).convert("RGB"), sys.argv[2]
else:
    image, expression = Image.fromarray(render(sample_scene(1_000_000)).image), "the leftmost object"

pipe = FocusPipeline.from_pretrained(PIPELINE)
out = pipe.segment(image, expression)
masks, scores, labels = out.masks[0], out.scores[0], out.labels[0]  # of the first image; none where nothing is meant
for mask, score, label in zip(masks, scores, labels):
    print(f"{expression}: {label}, score {float(score):.2f}, {int(mask.sum())} pixels")
draw_masks(image, masks).save("segment_words.png")
