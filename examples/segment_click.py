"""Segment with a click, and with a box: python examples/segment_click.py [IMAGE X Y]   (default: a drawn scene)"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from diffusers_focus import Box, FocusPipeline, Point
from diffusers_focus.data.world import render, sample_scene
from diffusers_focus.processing.drawing import contact_sheet, draw_masks

PIPELINE = Path(__file__).resolve().parents[1] / "pipelines" / "focus-tiny"

if len(sys.argv) == 4:
    image, x, y = Image.open(sys.argv[1]).convert("RGB"), float(sys.argv[2]), float(sys.argv[3])
else:
    scene = sample_scene(1_000_000)
    image, x, y = Image.fromarray(render(scene).image), scene.objects[-1].cx * 128, scene.objects[-1].cy * 128

pipe = FocusPipeline.from_pretrained(PIPELINE)
reach = min(image.size) * 0.15
box = Box(max(0, x - reach), max(0, y - reach), min(image.width, x + reach), min(image.height, y + reach))
pictures = []
for region in (Point(x, y), box):
    out = pipe.segment(image, region=region)
    print(region, out.labels[0], [round(float(score), 2) for score in out.scores[0]])
    pictures.append(draw_masks(image, out.masks[0]))
contact_sheet(pictures, captions=["click", "box"], cell=256).save("segment_click.png")
