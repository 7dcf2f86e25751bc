"""Ask, segment and edit one image with focus-tiny: python examples/demo.py [--image photo.png] [--prompt "..."]

Without an image a scene is drawn that training has never seen. Writes input.png, mask_overlay.png, edited.png and
contact_sheet.png (scene -> mask -> edit) to the output folder, and prints answers, timings and memory.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

PIPELINE = Path(__file__).resolve().parents[1] / "pipelines" / "focus-tiny"
QUESTIONS = ("how many objects are there?", "describe the image")
DEFAULT_PROMPT = "make the leftmost object blue"
UNSEEN = 1_000_000  # training draws its scenes from the seeds below
SCENE = UNSEEN  # the one of the README's picture
_TARGET = re.compile(r"^(?:remove|make|replace|change) (.+?)(?: with .+| to .+| \w+)?$")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", metavar="FILE", help="any image file (default: a drawn scene)")
    parser.add_argument("--prompt", metavar="TEXT", help='an instruction such as "make the star blue"')
    parser.add_argument("--pipeline", metavar="DIR", default=str(PIPELINE), help="pipeline folder")
    parser.add_argument("--output", metavar="DIR", default="demo_output", help="folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SCENE, metavar="N", help="of the scene and the edit")
    return parser.parse_args()


def target_of(instruction: str) -> str:
    """What an instruction is about: "remove the red star" -> "the red star"; anything else is taken whole."""
    if instruction.startswith("remove "):
        return instruction.removeprefix("remove ")
    match = _TARGET.match(instruction)
    return match.group(1) if match else instruction


def scene_and_prompt(seed: int):
    """A scene that training has not seen, and an instruction that makes sense in it."""
    import numpy as np
    from PIL import Image

    from diffusers_focus.data.language import sample_edit
    from diffusers_focus.data.world import render, sample_scene

    scene = sample_scene(seed if seed >= UNSEEN else seed + UNSEEN)
    edit = sample_edit(scene, np.random.default_rng(seed), kinds=("recolour",))
    return Image.fromarray(render(scene).image), edit.instruction


def peak_memory() -> str:
    """The most memory this process has used so far."""
    try:
        import resource
    except ImportError:  # Windows
        return "unknown"
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{used / (1e6 if sys.platform == 'darwin' else 1e3):.0f} MB"


class Clock:
    """Prints how long each step took."""

    def __init__(self) -> None:
        self.last = time.perf_counter()

    def lap(self, step: str) -> None:
        now = time.perf_counter()
        print(f"  [{step}: {now - self.last:.2f} s]")
        self.last = now


def main() -> int:
    """Run the demo and return the exit status."""
    args = arguments()
    if not (Path(args.pipeline) / "model_index.json").is_file():
        print(f"error: no pipeline in {args.pipeline}; train one with `make tiny` or name one: --pipeline DIR")
        return 2
    clock = Clock()
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    from diffusers_focus import FocusPipeline
    from diffusers_focus.processing.drawing import contact_sheet, draw_masks

    pipe = FocusPipeline.from_pretrained(args.pipeline)
    pipe.set_progress_bar_config(disable=True)
    print(f"{Path(args.pipeline).name} is ready")
    clock.lap("load")

    if args.image:
        try:
            image = ImageOps.exif_transpose(Image.open(args.image)).convert("RGB")
        except OSError as error:
            print(f"error: cannot read {args.image}: {error}")
            return 2
        prompt = args.prompt or DEFAULT_PROMPT
    else:
        image, prompt = scene_and_prompt(args.seed)
        prompt = args.prompt or prompt
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / "input.png")

    seen = pipe.encode_image(image)  # once; every question, mask and edit below reuses it
    clock.lap("look")
    for question in QUESTIONS:
        print(f"{question}  {pipe.understand(seen, question).text[0]}")
    clock.lap("ask")

    expression = target_of(prompt)
    found = pipe.segment(seen, expression)
    masks, options = np.asarray(found.masks[0]), {}
    for label, score, mask in zip(found.labels[0], found.scores[0], masks):
        print(f"{expression}: {label}, score {float(score):.2f}, {int(mask.sum())} pixels")
    if not masks.any():
        print(f"{expression}: nothing found; the middle of the image is edited instead")
        middle = np.zeros((image.height, image.width), dtype=bool)
        middle[image.height // 4 : -(-3 * image.height // 4), image.width // 4 : -(-3 * image.width // 4)] = True
        masks = middle[None]
        options["mask_image"] = Image.fromarray(middle.astype(np.uint8) * 255)
    overlay = draw_masks(image, masks)
    overlay.save(folder / "mask_overlay.png")
    clock.lap("segment")

    strip, captions = [image, overlay], ["input", expression]
    if getattr(pipe, "unet", None) is None:
        print("this pipeline has no image decoder (unet) yet, so there is no edit")
    else:
        generator = torch.Generator("cpu").manual_seed(args.seed)
        edited = pipe.edit(seen, prompt, generator=generator, **options).images[0]
        edited.save(folder / "edited.png")
        print(f"edited: {prompt}")
        if pipe.config.images_trained:
            strip.append(edited)
            captions.append(prompt)
        else:
            print(
                "  (this checkpoint was not trained to write images yet: the place is its answer, the content is not)"
            )
        clock.lap("edit")
    contact_sheet(strip, captions=captions, cell=256).save(folder / "contact_sheet.png")
    print(f"peak memory {peak_memory()}; see {folder / 'contact_sheet.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
