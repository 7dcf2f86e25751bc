"""Edit where another segmenter says: python examples/foreign_masks.py [IMAGE MASK INSTRUCTION]   (default: a drawn scene)

Two ways, with the same result. A mask that lies there as a file (bright is inside, the image's size) goes in as `mask_image`. A
segmenter that runs in the same process becomes a block: it takes the place of FOCUS's own "locate" in the modular pipeline, and
all it has to do is to write `mask_image`. The one here takes what is green; put SAM, SegFormer or your own in its place.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.modular_pipelines.modular_pipeline import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam
from PIL import Image

from diffusers_focus import FocusEditBlocks, FocusPipeline
from diffusers_focus.data.world import render, sample_scene
from diffusers_focus.processing.drawing import contact_sheet, draw_masks

PIPELINE = Path(__file__).resolve().parents[1] / "pipelines" / "focus-tiny"


def green_things(image: Image.Image) -> Image.Image:
    """What another segmenter finds: an image of mode "L", white inside."""
    red, green, blue = np.moveaxis(np.asarray(image).astype(int), -1, 0)
    return Image.fromarray(((green > red + 25) & (green > blue + 25)).astype(np.uint8) * 255)


class GreenThings(ModularPipelineBlocks):
    """That segmenter as a block."""

    @property
    def description(self) -> str:
        """One sentence for the pipeline's own listing."""
        return "Finds what is green."

    @property
    def inputs(self) -> list[InputParam]:
        """What it reads."""
        return [InputParam("image", required=True, description="The image.")]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """What it writes for the blocks after it."""
        return [OutputParam("mask_image", type_hint=Image.Image, description="What is green, white.")]

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Find it."""
        block_state = self.get_block_state(state)
        block_state.mask_image = green_things(block_state.image)
        self.set_block_state(state, block_state)
        return components, state


if len(sys.argv) == 4:
    image, mask, instruction = Image.open(sys.argv[1]).convert("RGB"), Image.open(sys.argv[2]).convert("L"), sys.argv[3]
else:
    image, instruction = Image.fromarray(render(sample_scene(1_000_004)).image), "make the green diamond blue"
    mask = green_things(image)

pipe = FocusPipeline.from_pretrained(PIPELINE)
by_file = pipe.edit(image, instruction, mask_image=mask, generator=torch.Generator("cpu").manual_seed(0)).images[0]
pictures = [image, draw_masks(image, np.asarray(mask) > 127), by_file]
contact_sheet(pictures, captions=["input", "mask", instruction], cell=256).save("foreign_masks.png")
if len(sys.argv) != 4:
    blocks = FocusEditBlocks()
    blocks.sub_blocks["locate"] = GreenThings()
    modular = blocks.init_pipeline(str(PIPELINE))
    modular.load_components()
    by_block = modular(
        image=image, prompt=instruction, generator=torch.Generator("cpu").manual_seed(0), output="images"
    )[0]
    print("file and block give the same picture:", np.array_equal(np.asarray(by_file), np.asarray(by_block)))
print("foreign_masks.png")
