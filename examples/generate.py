"""Draw an image from a description: python examples/generate.py [DESCRIPTION]"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from diffusers_focus import FocusPipeline

PIPELINE = Path(__file__).resolve().parents[1] / "pipelines" / "focus-tiny"

prompt = sys.argv[1] if len(sys.argv) > 1 else "a small red circle, a large striped blue star"
pipe = FocusPipeline.from_pretrained(PIPELINE)
image = pipe.generate(prompt, generator=torch.Generator("cpu").manual_seed(0)).images[0]
image.save("generate.png")
print(f"generate.png: {prompt}")
