"""Publish a fine-tuned variant: python examples/push_variant.py REPOSITORY [--lora DIR] [--base DIR] [--private]

Loads the base pipeline, puts a LoRA into its weights (for instance the one that examples/train_lora.py writes), and pushes the
whole pipeline to the Hub in float32 and, beside it, as the variant "fp16". A repository without a model card gets one that says
where the weights come from. You have to be logged in (`hf auth login`) or have HF_TOKEN set. At the end the variant is loaded
from the Hub as everybody else would.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from diffusers_focus import FocusPipeline

PIPELINE = Path(__file__).resolve().parents[1] / "pipelines" / "focus-tiny"

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("repository", metavar="REPOSITORY", help="name/repository; it is created if it is not there")
parser.add_argument("--base", default=str(PIPELINE), metavar="DIR", help="folder or Hub id (default: focus-tiny)")
parser.add_argument(
    "--lora", metavar="DIR", help="folder with pytorch_lora_weights.safetensors to put into the weights"
)
parser.add_argument("--private", action="store_true", help="only for you")
args = parser.parse_args()

pipe = FocusPipeline.from_pretrained(args.base)
if args.lora:
    pipe.load_lora_weights(args.lora, adapter_name="tuned")
    pipe.fuse_lora()  # from here on the weights are the tuned ones, and no adapter is left to load
    pipe.unload_lora_weights()
pipe.push_to_hub(args.repository, private=args.private)
pipe.to(torch.float16).push_to_hub(args.repository, variant="fp16", private=args.private)

again = FocusPipeline.from_pretrained(args.repository, variant="fp16", dtype=torch.float16)
size = sum(weight.numel() * weight.element_size() for weight in again.unet.parameters()) / 1e6
print(f"{args.repository} is there: its UNet has {size:.1f} MB in float16")
