"""`diffusers-focus demo`: ask, segment and edit one image, in a minute, with what comes with the package.

Without an image a scene is drawn that training has never seen. Writes input.png, mask_overlay.png, edited.png and
contact_sheet.png (scene -> mask -> edit) to a folder, and prints answers, timings and memory.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.edits import sample_edit
from ..data.world import first_held_out_seed, render, sample_scene
from ..processing.drawing import contact_sheet, draw_masks

QUESTIONS = ("how many objects are there?", "describe the image")
DEFAULT_PROMPT = "make the leftmost object blue"
_TARGET = re.compile(r"^(?:remove|make|replace|change) (.+?)(?: with .+| to .+| \w+)?$")


def target_of(instruction: str) -> str:
    """What an instruction is about: "remove the red star" -> "the red star"; anything else is taken whole."""
    if instruction.startswith("remove "):
        return instruction.removeprefix("remove ")
    match = _TARGET.match(instruction)
    return match.group(1) if match else instruction


def scene_and_prompt(seed: int) -> tuple[Image.Image, str]:
    """A scene that training has not seen, and an instruction that makes sense in it."""
    scene = sample_scene(seed if seed >= first_held_out_seed else seed + first_held_out_seed)
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


class _Clock:
    """Prints how long each step took."""

    def __init__(self) -> None:
        self.last = time.perf_counter()

    def lap(self, step: str) -> None:
        now = time.perf_counter()
        print(f"  [{step}: {now - self.last:.2f} s]")
        self.last = now


def run_demo(
    pipe: Any, image: Image.Image | None, prompt: str | None, folder: str | Path, seed: int = first_held_out_seed
) -> None:
    """Look at one image in every way and edit it.

    Args:
        pipe: a `FocusPipeline`.
        image: an RGB image; None draws a scene.
        prompt: an instruction; by default one that fits the scene.
        folder: where the pictures go; created where it is missing.
        seed: of the scene and of the edit.

    Raises:
        OSError: the folder cannot be written.
    """
    clock, folder = _Clock(), Path(folder)
    if image is None:
        image, drawn_prompt = scene_and_prompt(seed)
        prompt = prompt or drawn_prompt
    prompt = prompt or DEFAULT_PROMPT
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
        generator = torch.Generator("cpu").manual_seed(seed)
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
