"""Does a pipeline know the world, or one way of drawing it? python benchmarks/second_renderer.py [--count 100]

Scenes of the still-life world drawn a second time from what docs say of it and nothing of `data/world.py`'s drawing: outlines by
Pillow (four samples a pixel where edges are smooth), stripes anchored at the corner of the picture and across the other diagonal,
noise of its own. The same questions, expressions and clicks are asked of both, and of the own renderer held to either diagonal.
Prints a table; figures with date and hardware are in docs/design.md, "Scenes drawn by others".
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from diffusers_focus import FocusPipeline
from diffusers_focus.data import world
from diffusers_focus.evaluation import tasks
from diffusers_focus.evaluation.run import evaluate

FIGURES = (("referring", "mIoU"), ("click", "mIoU"), ("questions", "exact_match"))
SMOOTH = 4  # samples a pixel and side


def polygons(shape: str, x: float, y: float, r: float) -> list[list[tuple[float, float]]]:
    """The straight-edged shapes, in pixels."""
    if shape == "square":
        h = 0.85 * r
        return [[(x - h, y - h), (x + h, y - h), (x + h, y + h), (x - h, y + h)]]
    if shape == "triangle":
        return [[(x, y - r), (x - 0.9 * r, y + 0.8 * r), (x + 0.9 * r, y + 0.8 * r)]]
    if shape == "diamond":
        return [[(x, y - r), (x + 0.7 * r, y), (x, y + r), (x - 0.7 * r, y)]]
    if shape == "star":
        reach = [r if corner % 2 == 0 else 0.45 * r for corner in range(10)]
        turn = [corner * math.pi / 5 for corner in range(10)]
        return [[(x + s * math.sin(a), y - s * math.cos(a)) for s, a in zip(reach, turn)]]
    w = 0.35 * r  # a cross
    flat = [(x - r, y - w), (x + r, y - w), (x + r, y + w), (x - r, y + w)]
    return [flat, [(x - w, y - r), (x + w, y - r), (x + w, y + r), (x - w, y + r)]]


def outline(item: world.WorldObject, side: int) -> np.ndarray:
    """float [side, side]: 1 inside the object."""
    picture = Image.new("L", (side, side))
    draw = ImageDraw.Draw(picture)
    x, y, r = item.cx * side, item.cy * side, item.r * side
    if item.shape in ("circle", "ring"):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=1)
        if item.shape == "ring":
            hole = 0.65 * r
            draw.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
    elif item.shape == "heart":
        draw.ellipse((x - r, y - 0.9 * r, x, y + 0.1 * r), fill=1)
        draw.ellipse((x, y - 0.9 * r, x + r, y + 0.1 * r), fill=1)
        draw.polygon([(x - 0.95 * r, y - 0.2 * r), (x + 0.95 * r, y - 0.2 * r), (x, y + r)], fill=1)
    else:
        for corners in polygons(item.shape, x, y, r):
            draw.polygon(corners, fill=1)
    return np.asarray(picture, dtype=np.float32)


def background(seen: world.Background, size: int) -> np.ndarray:
    """float [size, size, 3]."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / (size - 1)
    share = {
        "vertical": y,
        "horizontal": x,
        "radial": np.clip(np.hypot(x - 0.5, y - 0.5) / math.sqrt(0.5), 0, 1),
        "checkers": (np.floor(x * 7.999) + np.floor(y * 7.999)) % 2,
        "plain": np.zeros_like(x),
    }[seen.kind]
    first, second = (np.asarray(colour, dtype=np.float32) for colour in (seen.colour1, seen.colour2))
    return first + (second - first) * share[..., None]


def draw(scene: world.Scene, size: int = 128) -> world.Rendered:
    """The scene as somebody else would draw it."""
    samples = SMOOTH if scene.antialias else 1
    side = size * samples
    picture, masks = background(scene.background, size), []
    rows, columns = np.mgrid[0:side, 0:side]
    for item in scene.objects:
        inside = outline(item, side)
        colours = np.broadcast_to(np.asarray(item.rgb, dtype=np.float32), (side, side, 3)).copy()
        if item.fill == "striped":
            colours[(columns - rows) / math.sqrt(2) / (0.5 * item.r * side) % 1 < 0.5] *= 0.55
        cells = (size, samples, size, samples)
        cover = inside.reshape(cells).mean((1, 3))
        painted = (colours * inside[..., None]).reshape(*cells, 3).mean((1, 3))
        picture = picture * (1 - cover[..., None]) + painted
        masks = [mask & (cover < 0.5) for mask in masks] + [cover >= 0.5]
    picture = picture + np.random.default_rng(scene.seed + 77).normal(0.0, 1.0, picture.shape) * scene.noise_sigma
    return world.Rendered(np.clip(picture + 0.5, 0, 255).astype(np.uint8), np.array(masks))


def held(slant: int) -> Callable[..., world.Rendered]:
    """The own renderer with all stripes across one diagonal."""
    return lambda scene, size=128: world.render(replace(scene, stripes=(slant, scene.stripes[1])), size)


RENDERERS = {"main diagonal": held(1), "other diagonal": held(-1), "second renderer": draw}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", metavar="DIR", default="focus-tiny", help="(default: %(default)s)")
    parser.add_argument("--count", type=int, default=100, metavar="N", help="scenes (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipe = FocusPipeline.from_pretrained(options.pipeline)
    print("| drawn by | " + " | ".join(f"{task} {name}" for task, name in FIGURES) + " |")
    print("|---|" + "---|" * len(FIGURES))
    for name, renderer in RENDERERS.items():
        tasks.render = renderer  # what `draw_batch` draws scenes with
        found: dict[str, Any] = evaluate(pipe, options.count, ["in"], [task for task, _ in FIGURES])["groups"]["in"]
        print(
            f"| {name} | " + " | ".join(f"{found[task][key]['value']:.3f}" for task, key in FIGURES) + " |", flush=True
        )


if __name__ == "__main__":
    main()
