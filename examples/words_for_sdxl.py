"""Words in place of a mask for diffusers' own SDXL inpainting: FOCUS's segment block in front of its blocks.

    python examples/words_for_sdxl.py --sdxl SDXL [IMAGE WORDS PROMPT]     (default: a drawn scene)

SDXL is a folder or Hub id of an SDXL pipeline, such as stabilityai/stable-diffusion-xl-base-1.0; FOCUS finds what WORDS refer to,
SDXL draws PROMPT there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import StableDiffusionXLAutoBlocks
from PIL import Image

from diffusers_focus import FocusSegmentBlocks
from diffusers_focus.data.world import render, sample_scene
from diffusers_focus.processing.drawing import contact_sheet, draw_masks

PIPELINE = Path(__file__).resolve().parents[1] / "pipelines" / "focus-tiny"

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("scene", nargs="*", metavar="IMAGE WORDS PROMPT", help="what to edit (default: a drawn scene)")
parser.add_argument("--sdxl", required=True, metavar="SDXL", help="folder or Hub id of an SDXL pipeline")
parser.add_argument("--focus", default=str(PIPELINE), metavar="DIR", help="FOCUS pipeline (default: focus-tiny)")
parser.add_argument("--device", default="cpu")
parser.add_argument("--steps", type=int, default=30)
args = parser.parse_args()
if len(args.scene) == 3:
    image, words, prompt = Image.open(args.scene[0]).convert("RGB"), *args.scene[1:]
else:
    image, words, prompt = Image.fromarray(render(sample_scene(1_000_004)).image), "the green diamond", "a wooden door"

# Both sides have a component called image_processor, of different classes: FOCUS's gets another name here.
segment = FocusSegmentBlocks({"image_processor": "focus_image_processor"})
blocks = StableDiffusionXLAutoBlocks().get_workflow("inpainting")
blocks.sub_blocks.insert("segment", segment, 0)
pipe = blocks.init_pipeline(args.sdxl)
ours = {
    spec.name: spec.load(pretrained_model_name_or_path=args.focus, dtype=torch.float32)
    for spec in segment.expected_components
}
pipe.load_components(names=[name for name in pipe.component_names if name not in ours], dtype=torch.float32)
pipe.update_components(**ours)
pipe.to(args.device)

state = pipe(
    image=image,
    target=words,  # mask_image is what FOCUS finds
    prompt=prompt,
    strength=0.9,  # has to be given: without it diffusers 0.42 ends with latents of batch size 0
    num_inference_steps=args.steps,
    height=image.height // 8 * 8,
    width=image.width // 8 * 8,
    generator=torch.Generator("cpu").manual_seed(0),
)
mask = state.get("mask_image")[0]
pictures = [image, draw_masks(image, mask), state.get("images")[0]]
contact_sheet(pictures, captions=["input", words, prompt], cell=256).save("words_for_sdxl.png")
print("words_for_sdxl.png")
