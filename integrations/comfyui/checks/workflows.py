"""Writes the example workflows, in the editor's format and in the HTTP API's, and the images they read.

    python integrations/comfyui/checks/workflows.py

One description serves both formats, so they cannot drift apart. `check.py` runs the second kind, `check_editor.py` opens the
first kind in ComfyUI's own editor and compares what it would send.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PACK.parents[1])]

from integrations.comfyui.schema import NODES, OFFLOAD_AFTER, PIPELINE  # noqa: E402

FOLDER = PACK / "example_workflows"
SCENE = 1_000_004  # of the still-life world: an orange ring, a red triangle, a striped green diamond before it
CLIP = 1_000_001
IMAGE, PAINTED, FRAMES = "focus_scene.png", "focus_scene_painted.png", "focus_clip.png"

# Stock nodes as far as the examples use them: sockets, widgets, what the editor stores beyond the widgets, outputs.
STOCK: dict[str, tuple[dict[str, str], list[str], list[Any], dict[str, str]]] = {
    "LoadImage": ({}, ["image"], ["image"], {"IMAGE": "IMAGE", "MASK": "MASK"}),
    "SaveImage": ({"images": "IMAGE"}, ["filename_prefix"], [], {}),
    "MaskToImage": ({"mask": "MASK"}, [], [], {"IMAGE": "IMAGE"}),
    "PreviewAny": ({"source": "*"}, [], [], {}),
}

SIZES = {  # of nodes in the editor: widgets and, where pictures are shown, room for them
    "FocusLoad": (360, 180),
    "FocusAsk": (380, 260),
    "FocusSegment": (380, 350),
    "FocusSegmentClip": (380, 350),
    "FocusEdit": (380, 430),
    "LoadImage": (360, 330),
    "SaveImage": (360, 360),
    "MaskToImage": (220, 30),
    "PreviewAny": (380, 110),
}


@dataclass
class Step:
    """A node of a workflow. `links` names for an input the step and the output it comes from."""

    type: str
    at: tuple[int, int]
    values: dict[str, Any] = field(default_factory=dict)
    links: dict[str, tuple[str, str]] = field(default_factory=dict)

    def sockets(self) -> dict[str, str]:
        """Inputs that take links only, with their types."""
        if self.type in STOCK:
            return STOCK[self.type][0]
        return {one.id: _type(one.kind) for one in NODES[self.type].inputs if not one.is_widget}

    def widgets(self) -> dict[str, Any]:
        """All widgets with their values."""
        if self.type in STOCK:
            return {name: self.values[name] for name in STOCK[self.type][1]}
        widgets = [one for one in NODES[self.type].inputs if one.is_widget]
        assert set(self.values) <= {one.id for one in widgets}, self.values
        return {one.id: self.values.get(one.id, one.options.get("default")) for one in widgets}

    def outputs(self) -> dict[str, str]:
        """Outputs with their types."""
        if self.type in STOCK:
            return STOCK[self.type][3]
        return {one.id: _type(one.kind) for one in NODES[self.type].outputs}


def _type(kind: str) -> str:
    return kind if kind == PIPELINE else kind.upper()


def _start(image: str = IMAGE) -> dict[str, Step]:
    return {
        "load": Step("FocusLoad", (40, 60), {"folder": "focus-tiny", "dtype": "float32", "offload": OFFLOAD_AFTER}),
        "scene": Step("LoadImage", (40, 300), {"image": image}),
    }


_FROM = {"pipeline": ("load", "pipeline"), "image": ("scene", "IMAGE")}


def workflows() -> dict[str, dict[str, Step]]:
    """The examples, one a feature."""
    return {
        "focus_ask": {
            **_start(),
            "ask": Step("FocusAsk", (460, 60), {"question": "how many objects are there?"}, _FROM),
            "answer": Step("PreviewAny", (900, 60), {}, {"source": ("ask", "answer")}),
        },
        "focus_segment_by_words": {
            **_start(),
            "find": Step("FocusSegment", (460, 60), {"words": "the green diamond"}, _FROM),
            "overlay": Step("SaveImage", (900, 60), {"filename_prefix": "focus_overlay"}, {"images": ("find", "overlay")}),
            "white": Step("MaskToImage", (1320, 60), {}, {"mask": ("find", "mask")}),
            "mask": Step("SaveImage", (1320, 160), {"filename_prefix": "focus_mask"}, {"images": ("white", "IMAGE")}),
            "text": Step("PreviewAny", (460, 480), {}, {"source": ("find", "text")}),
        },
        "focus_click_to_edit": {
            **_start(),
            "click": Step("FocusSegment", (460, 60), {"points": "44,30"}, _FROM),
            "edit": Step(
                "FocusEdit", (900, 60), {"instruction": "make the green diamond blue"}, {**_FROM, "mask": ("click", "mask")}
            ),
            "overlay": Step("SaveImage", (460, 480), {"filename_prefix": "focus_click"}, {"images": ("click", "overlay")}),
            "save": Step("SaveImage", (1340, 60), {"filename_prefix": "focus_edit"}, {"images": ("edit", "image")}),
        },
        "focus_edit_painted_mask": {
            **_start(PAINTED),
            "edit": Step(
                "FocusEdit", (460, 60), {"instruction": "remove the green diamond"}, {**_FROM, "mask": ("scene", "MASK")}
            ),
            "save": Step("SaveImage", (900, 60), {"filename_prefix": "focus_painted"}, {"images": ("edit", "image")}),
        },
        "focus_edit_clip": {
            **_start(FRAMES),
            "follow": Step("FocusSegmentClip", (460, 60), {"points": "70,22"}, _FROM),
            "edit": Step(
                "FocusEdit", (900, 60), {"instruction": "remove the blue circle"}, {**_FROM, "mask": ("follow", "mask")}
            ),
            "overlay": Step("SaveImage", (460, 480), {"filename_prefix": "focus_follow"}, {"images": ("follow", "overlay")}),
            "save": Step("SaveImage", (1340, 60), {"filename_prefix": "focus_clip"}, {"images": ("edit", "image")}),
        },
    }  # fmt: skip


def api_format(steps: dict[str, Step]) -> dict[str, Any]:
    """What POST /prompt takes."""
    numbers = {name: str(index) for index, name in enumerate(steps, 1)}
    graph = {}
    for name, step in steps.items():
        links = {
            key: [numbers[source], list(steps[source].outputs()).index(out)]
            for key, (source, out) in step.links.items()
        }
        graph[numbers[name]] = {"class_type": step.type, "inputs": {**step.widgets(), **links}}
    return graph


def editor_format(steps: dict[str, Step]) -> dict[str, Any]:
    """What the editor opens and saves."""
    numbers = {name: index for index, name in enumerate(steps, 1)}
    links: list[list[Any]] = []
    for name, step in steps.items():
        for key, (source, out) in step.links.items():
            slots = list(step.sockets())
            from_slot = list(steps[source].outputs()).index(out)
            kind = steps[source].outputs()[out]
            links.append([len(links) + 1, numbers[source], from_slot, numbers[name], slots.index(key), kind])
    nodes = []
    for order, (name, step) in enumerate(steps.items()):
        number = numbers[name]
        values: list[Any] = []
        for widget, value in step.widgets().items():
            values += [value, "fixed"] if widget == "seed" else [value]
        nodes.append(
            {
                "id": number,
                "type": step.type,
                "pos": list(step.at),
                "size": list(SIZES[step.type]),
                "flags": {},
                "order": order,
                "mode": 0,
                "inputs": [
                    {
                        "name": key,
                        "type": kind,
                        "link": next((one[0] for one in links if one[3] == number and one[4] == slot), None),
                    }
                    for slot, (key, kind) in enumerate(step.sockets().items())
                ],
                "outputs": [
                    {
                        "name": key,
                        "type": kind,
                        "links": [one[0] for one in links if one[1] == number and one[2] == slot] or None,
                    }
                    for slot, (key, kind) in enumerate(step.outputs().items())
                ],
                "properties": {"Node name for S&R": step.type},
                "widgets_values": values + (STOCK[step.type][2] if step.type in STOCK else []),
            }
        )
    return {
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def write_inputs(folder: Path) -> None:
    """The scene, the scene with the diamond painted over (transparent there, as the mask editor saves it), and a clip."""
    from PIL import Image, ImageDraw

    from diffusers_focus.data.clips import ClipSpec, sample_clip
    from diffusers_focus.data.world import render, sample_scene

    folder.mkdir(parents=True, exist_ok=True)
    scene = Image.fromarray(render(sample_scene(SCENE)).image)
    scene.save(folder / IMAGE)
    alpha = Image.new("L", scene.size, 255)
    ImageDraw.Draw(alpha).line([(44, 9), (35, 30), (44, 49), (52, 30), (44, 9)], fill=0, width=17, joint="curve")
    scene.putalpha(alpha)
    scene.save(folder / PAINTED)
    first, *others = [Image.fromarray(one.image) for one in sample_clip(CLIP, ClipSpec(frames=4)).renders()]
    first.save(
        folder / FRAMES, save_all=True, append_images=others, duration=250
    )  # an animated PNG: LoadImage gives a batch


def main() -> None:
    """Write everything."""
    (FOLDER / "api").mkdir(parents=True, exist_ok=True)
    for name, steps in workflows().items():
        for path, content in (
            (FOLDER / f"{name}.json", editor_format(steps)),
            (FOLDER / "api" / f"{name}.json", api_format(steps)),
        ):
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    write_inputs(FOLDER / "input")


if __name__ == "__main__":
    main()
