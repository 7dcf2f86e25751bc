"""What the nodes look like from outside: names, inputs, limits, outputs. A table, read without ComfyUI.

`nodes.py` makes `io.Schema`s of it; the tests hold the example workflows against it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

CATEGORY = "FOCUS"
PIPELINE = "FOCUS_PIPELINE"  # the type of the link between Load FOCUS and the other nodes

DTYPES = ("auto", "float32", "bfloat16", "float16")
OFFLOAD_AFTER, OFFLOAD_PARTS, OFFLOAD_NEVER = "after each node", "part by part", "never"
OFFLOADS = (OFFLOAD_AFTER, OFFLOAD_PARTS, OFFLOAD_NEVER)
NO_FOLDER = "(none found in models/focus)"


@dataclass(frozen=True)
class Input:
    """One input. `kind` names a type of ComfyUI's `io` (Image, Mask, String, Int, Float, Combo) or is `PIPELINE`."""

    kind: str
    id: str
    tooltip: str
    optional: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def is_widget(self) -> bool:
        """Whether the value is set on the node itself unless something is linked to it."""
        return self.kind in ("String", "Int", "Float", "Combo")


@dataclass(frozen=True)
class Output:
    """One output."""

    kind: str
    id: str
    tooltip: str


@dataclass(frozen=True)
class Node:
    """One node; its id is its key in `NODES`."""

    name: str
    description: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]


def _text(name: str, tooltip: str, *, lines: bool = False, placeholder: str | None = None) -> Input:
    options: dict[str, Any] = {"default": "", "multiline": lines}
    if placeholder:  # the editor shows no name beside a text of several lines
        options["placeholder"] = f"{name}: {placeholder}" if lines else placeholder
    return Input("String", name, tooltip, options=options)


def _number(kind: str, name: str, tooltip: str, default: float, low: float, high: float, step: float) -> Input:
    return Input(kind, name, tooltip, options={"default": default, "min": low, "max": high, "step": step})


_PIPE = Input(PIPELINE, "pipeline", "From Load FOCUS.")
_IMAGE = Input("Image", "image", "One image or a batch.")
_POINTS = _text(
    "points",
    "Clicks on the object, in pixels of the image: x,y x,y ... What a point editor of another pack gives fits as well.",
    placeholder="64,48 70,60",
)
_BOX = _text("box", "A box around the object, in pixels: x0,y0,x1,y1", placeholder="10,20,60,80")
_SCRIBBLE = _text("scribble", "A stroke inside the object, in pixels: x,y x,y ...", placeholder="10,20 30,40 50,45")
_REGIONS = (_POINTS, _BOX, _SCRIBBLE)
_ROUGH_MASK = Input(
    "Mask",
    "mask",
    "Points at the object: a rough mask of the image's size, for instance painted in the mask editor. One for all images, or "
    "one for each. The empty 64x64 mask of an image without transparency counts as none.",
    optional=True,
)
_FRAMES = Input("Image", "image", "The frames, in their order.")
_FRAME = _number("Int", "frame", "The frame that points, box, scribble and mask are on, from 0.", 0, 0, 100000, 1)
_MASK_ON_FRAME = Input(
    "Mask",
    "mask",
    "Points at the object on that frame: a rough mask of the frame's size. The empty 64x64 mask of images without "
    "transparency counts as none.",
    optional=True,
)


def _seed(tooltip: str) -> Input:
    limits = {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True}
    return Input("Int", "seed", f"The same seed gives the same picture. {tooltip}", options=limits)


_SEED = _seed("Image number i of a batch is drawn with seed + i.")
_CLIP_SEED = _seed("Every frame is drawn with it.")
_STEPS = _number("Int", "steps", "Denoising steps; 0 takes the pipeline's own number.", 0, 0, 1000, 1)
_GUIDANCE = _number(
    "Float", "guidance", "How strongly the visual tokens steer the drawing; 1 switches guidance off, 0 takes the pipeline's own "
    "value.", 0.0, 0.0, 30.0, 0.1,
)  # fmt: skip

_EDITING = (
    _STEPS,
    _GUIDANCE,
    _number(
        "Float",
        "strength",
        "Share of the denoising to run on the image itself: less keeps more of it.",
        1.0,
        0.01,
        1.0,
        0.01,
    ),
    _number("Int", "grow", "Pixels to grow the region by; -1 leaves that to the pipeline.", -1, -1, 1024, 1),
    _number(
        "Int",
        "feather",
        "Reach of the region's soft edge in pixels; -1 leaves that to the pipeline.",
        -1,
        -1,
        1024,
        1,
    ),
    _number(
        "Int",
        "crop",
        "Edits only the surroundings of the region, with so many pixels on every side, at the model's full resolution: for "
        "small things in large images. -1 edits the whole image.",
        -1,
        -1,
        4096,
        1,
    ),
    _text("negative", "What the edit is guided away from; needs a pipeline that guides its visual tokens."),
)

NODES: dict[str, Node] = {
    "FocusLoad": Node(
        "Load FOCUS",
        "Loads a FOCUS pipeline: a folder with model_index.json under models/focus or models/diffusers, or a Hub repository.",
        (
            Input("Combo", "folder", "A pipeline under models/focus or models/diffusers."),
            _text(
                "hub_id",
                "A repository on the Hub in place of the folder; it is downloaded at first use.",
                placeholder="name/repository",
            ),
            _text(
                "controlnet",
                "An SDXL ControlNet in diffusers' format, for the control image of FOCUS Edit: a folder or a Hub id.",
                placeholder="diffusers/controlnet-canny-sdxl-1.0",
            ),
            Input(
                "Combo",
                "dtype",
                "Precision of the weights; auto takes what suits the device.",
                options={"options": list(DTYPES), "default": "auto"},
            ),
            Input(
                "Combo",
                "offload",
                "When the weights leave the accelerator: after each node, part by part while a node runs (least memory), or never "
                "(fastest; ComfyUI cannot take that memory back).",
                options={"options": list(OFFLOADS), "default": OFFLOAD_AFTER},
            ),
        ),
        (Output(PIPELINE, "pipeline", "For the other FOCUS nodes."),),
    ),
    "FocusAsk": Node(
        "FOCUS Ask",
        "Answers a question about an image, or about what is pointed at in it.",
        (
            _PIPE,
            _IMAGE,
            _text("question", "What you want to know.", lines=True, placeholder="how many objects are there?"),
            *_REGIONS,
            _number("Int", "max_tokens", "Longest answer, in tokens.", 128, 1, 4096, 1),
            _ROUGH_MASK,
        ),
        (Output("String", "answer", "One line for each image."),),
    ),
    "FocusSegment": Node(
        "FOCUS Segment",
        "Finds what words, clicks, a box, a stroke or a rough mask refer to; or every object of some classes.",
        (
            _PIPE,
            _IMAGE,
            _text("words", "What to look for.", lines=True, placeholder="the red circle"),
            _text(
                "class_names",
                "In place of words: names of classes, separated by commas. Every object of them is found.",
                placeholder="circle, star",
            ),
            _POINTS,
            _text(
                "negative_points",
                "Clicks on what is not meant, in pixels of the image: x,y x,y ...",
                placeholder="80,20",
            ),
            _BOX,
            _SCRIBBLE,
            _number(
                "Float",
                "threshold",
                "Objects whose score is above it count; 0 takes the pipeline's own.",
                0.0,
                0.0,
                0.99,
                0.01,
            ),
            _ROUGH_MASK,
        ),
        (
            Output(
                "Mask",
                "mask",
                "All objects of each image together: one mask for each image, empty where nothing was found.",
            ),
            Output(
                "Mask",
                "objects",
                "A mask for each object, image by image, best score first; one empty mask if there is none.",
            ),
            Output("Image", "overlay", "The images with their objects drawn over them."),
            Output("String", "scores", "The score of each mask of `objects`, one a line."),
            Output("String", "text", "Name, score and size of each object, one a line."),
            Output("Int", "count", "The number of objects."),
        ),
    ),
    "FocusSegmentClip": Node(
        "FOCUS Segment Clip",
        "Follows objects through the frames of a clip (an IMAGE batch): referred to in words, pointed at on one frame, or of some "
        "classes.",
        (
            _PIPE,
            _FRAMES,
            _text(
                "words", "What to look for; each line is an object of its own.", lines=True, placeholder="the circle"
            ),
            _text(
                "class_names",
                "In place of words: names of classes, separated by commas. Every object of them is followed.",
                placeholder="circle, star",
            ),
            *_REGIONS,
            _FRAME,
            _MASK_ON_FRAME,
        ),
        (
            Output("Mask", "mask", "All objects together: one mask for each frame, for FOCUS Edit."),
            Output(
                "Mask", "objects", "A mask for each object and frame: all frames of the first object, then of the next."
            ),
            Output("Image", "overlay", "The frames with the objects drawn over them."),
            Output("String", "text", "Name of each object and the frames it is seen in, one a line."),
            Output("Int", "count", "The number of objects."),
        ),
    ),
    "FocusEdit": Node(
        "FOCUS Edit",
        "Changes exactly the region an instruction is about. Pixels outside it stay as they are.",
        (
            _PIPE,
            _IMAGE,
            _text("instruction", "What should happen.", lines=True, placeholder="make the star blue"),
            _text(
                "target",
                "What the instruction is about, where it leaves that open. With a mask: the object that was painted over.",
                placeholder="the star",
            ),
            _SEED,
            *_EDITING,
            _number("Float", "control_strength", "Weight of the control image.", 1.0, 0.0, 4.0, 0.05),
            Input(
                "Mask",
                "mask",
                "Exactly the pixels that may change: of the image's size, one for all images or one for each. Images of a "
                "batch whose mask is empty stay as they are. The empty 64x64 mask of an image without transparency counts "
                "as none: the place is then found from the instruction.",
                optional=True,
            ),
            Input(
                "Image",
                "control_image",
                "A map (edges, depth, ...) for the ControlNet that was loaded with the pipeline, of the images' size. Zero-shot.",
                optional=True,
            ),
        ),
        (
            Output("Image", "image", "The edited images."),
            Output("Mask", "mask", "Where pixels were free to change."),
        ),
    ),
    "FocusEditClip": Node(
        "FOCUS Edit Clip",
        "One instruction for every frame of a clip (an IMAGE batch), in the place that is followed through it.",
        (
            _PIPE,
            _FRAMES,
            _text("instruction", "What should happen.", lines=True, placeholder="make the star blue"),
            _text(
                "words",
                "What the instruction is about. Without words and region the instruction itself says so, on the first frame.",
                placeholder="the star",
            ),
            *_REGIONS,
            _FRAME,
            _CLIP_SEED,
            *_EDITING,
            _MASK_ON_FRAME,
        ),
        (
            Output("Image", "image", "The edited frames."),
            Output("Mask", "mask", "Where pixels were free to change, one mask for each frame."),
        ),
    ),
    "FocusGenerate": Node(
        "FOCUS Generate",
        "Draws images from a description.",
        (
            _PIPE,
            _text("description", "What to draw.", lines=True, placeholder="a red circle and a blue star"),
            _number("Int", "width", "In pixels, one of the model's sizes; 0 takes its first.", 0, 0, 8192, 8),
            _number("Int", "height", "In pixels, one of the model's sizes; 0 takes its first.", 0, 0, 8192, 8),
            _number("Int", "batch_size", "How many pictures.", 1, 1, 64, 1),
            _SEED,
            _STEPS,
            _GUIDANCE,
        ),
        (Output("Image", "image", "The pictures."),),
    ),
}
