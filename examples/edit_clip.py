"""Follow what a click points at through a clip, and edit it in every frame: python examples/edit_clip.py [CLIP X Y INSTRUCTION]

CLIP is a folder of pictures or a GIF (or a video, with diffusers-focus[video]); X, Y a place on its first frame. By default a clip
of four frames is drawn. Writes edit_clip.gif: the masks above, the edits
below.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from diffusers_focus import FocusPipeline, Point
from diffusers_focus.data.clips import ClipSpec, sample_clip
from diffusers_focus.processing.clips import open_clip
from diffusers_focus.processing.drawing import contact_sheet, draw_masks

PIPELINE = Path(__file__).resolve().parents[1] / "pipelines" / "focus-tiny"

if len(sys.argv) == 5:
    clip, click, instruction = sys.argv[1], Point(*map(float, sys.argv[2:4])), sys.argv[4]
else:
    clip = [Image.fromarray(frame.image) for frame in sample_clip(1_000_001, ClipSpec(frames=4)).renders()]
    click, instruction = Point(70, 22), "remove the blue circle"

pipe = FocusPipeline.from_pretrained(PIPELINE)
sheets = []
for frame, own in zip(pipe.stream_clip_edit(clip, instruction, region=click), open_clip(clip).forwards()):
    sheets.append(contact_sheet([draw_masks(own[1], frame.mask), frame.image], 1, cell=256))
    print(f"frame {frame.index}: {int(frame.mask.sum())} pixels")
sheets[0].save("edit_clip.gif", save_all=True, append_images=sheets[1:], duration=250, loop=0)
