"""Runs the nodes in a real ComfyUI, without a window, and holds what comes out against the same calls in Python.

    PYTHON integrations/comfyui/checks/check.py --comfyui FOLDER [--device cuda] [--pictures]

FOLDER is a checkout of ComfyUI, PYTHON an interpreter in which both it and diffusers-focus are installed. A server is started on a
folder of its own (the pack and focus-tiny are linked into it), driven through its HTTP interface, and stopped. Each check prints
a line; the exit status is the number of those that failed. `--pictures` renews the pictures of the example workflows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from comfy_server import Comfy
from PIL import Image, ImageSequence

PACK = Path(__file__).resolve().parents[1]
ROOT = PACK.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]  # this repository's, whichever is installed
EXAMPLES = PACK / "example_workflows"
CHECKS = ("examples", "batch", "clip", "control", "interop", "offload", "errors", "cancel", "memory")


class Report:
    """Prints a line a check and counts what failed."""

    failed = 0

    def line(self, name: str, right: bool, detail: str = "") -> None:
        self.failed += not right
        print(f"{'ok  ' if right else 'FAIL'}  {name}{': ' + detail if detail else ''}", flush=True)


class Reference:
    """The same calls in Python."""

    def __init__(self, folder: Path, device: str) -> None:
        from diffusers_focus import FocusPipeline

        self.pipe = FocusPipeline.from_pretrained(folder).to(device)
        self.pipe.set_progress_bar_config(disable=True)
        self.image = Image.open(EXAMPLES / "input" / "focus_scene.png")

    def generator(self, seed: int = 0) -> Any:
        import torch

        return torch.Generator("cpu").manual_seed(seed)

    def saved(self, pictures: Any) -> list[np.ndarray]:
        """Pictures [n, 3, height, width] in 0..1 as SaveImage writes them."""
        return [np.clip(255.0 * one.permute(1, 2, 0).numpy(), 0, 255).astype(np.uint8) for one in pictures]

    def edit(self, instruction: str, mask: np.ndarray, seed: int = 0) -> np.ndarray:
        out = self.pipe.edit(self.image, instruction, mask_image=mask, generator=self.generator(seed), output_type="pt")
        return self.saved(out.images)[0]


def node(graph: dict[str, Any], kind: str, **inputs: Any) -> str:
    """The id of the only node of a kind; `inputs` are changed in it."""
    (number,) = [number for number, one in graph.items() if one["class_type"] == kind]
    graph[number]["inputs"].update(inputs)
    return number


def example(name: str) -> dict[str, Any]:
    """An example workflow as POST /prompt takes it."""
    return json.loads((EXAMPLES / "api" / f"{name}.json").read_text(encoding="utf-8"))


def drawing() -> dict[str, Any]:
    """Two pictures of a description. No example of its own: focus-tiny has not learnt to draw from descriptions."""
    inputs = {"description": "a red circle and a blue star", "width": 0, "height": 0, "batch_size": 2}
    inputs |= {"seed": 0, "steps": 0, "guidance": 0.0, "pipeline": ["1", 0]}
    return {
        "1": example("focus_ask")["1"],
        "2": {"class_type": "FocusGenerate", "inputs": inputs},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "focus_new"}},
    }


def saves(graph: dict[str, Any], source: str) -> str:
    """The SaveImage that saves what comes from a node of a kind."""
    (number,) = [
        number
        for number, one in graph.items()
        if one["class_type"] == "SaveImage" and graph[one["inputs"]["images"][0]]["class_type"] == source
    ]
    return number


async def check_loading(comfy: Comfy, report: Report) -> None:
    """The nodes are there, and nothing complained."""
    info = await comfy.get("/object_info")
    ours = sorted(name for name in info if name.startswith("Focus"))
    from integrations.comfyui.schema import NODES

    report.line("all nodes are listed", ours == sorted(NODES), ", ".join(ours))
    lines = [
        line for line in comfy.log.read_text().splitlines() if "focus" in line.lower() or "diffusers" in line.lower()
    ]
    bad = [line for line in lines if any(word in line.lower() for word in ("warn", "error", "fail", "deprecat"))]
    report.line("the pack loads without warnings", not bad, " | ".join(bad))
    offered = info["FocusLoad"]["input"]["required"]["folder"][1]["options"]
    report.line("folders of FOCUS are offered", offered == ["focus-tiny"], str(offered))


async def check_examples(comfy: Comfy, report: Report, reference: Reference, pictures: bool) -> None:
    """Each example workflow gives what the call in Python gives."""
    from diffusers_focus import Point
    from diffusers_focus.processing.drawing import draw_masks

    pipe, image, shown = reference.pipe, reference.image, {}

    graph = example("focus_ask")
    done = await comfy.finish(graph)
    answer = "".join(done.outputs.get(node(graph, "PreviewAny"), {}).get("text", []))
    wanted = pipe.understand(image, "how many objects are there?").text[0]
    report.line("focus_ask", answer == wanted and answer != "", f"{answer!r} {done.message}")
    shown["focus_ask"] = ([image], [f"how many objects are there? {answer}"])

    graph = example("focus_segment_by_words")
    done = await comfy.finish(graph)
    found = pipe.segment(image, "the green diamond").masks[0]
    (mask,) = await comfy.pictures(done.outputs, saves(graph, "MaskToImage"))
    (overlay,) = await comfy.pictures(done.outputs, saves(graph, "FocusSegment"))
    same = (mask == found.any(axis=0)[..., None] * 255).all() and (
        overlay == np.asarray(draw_masks(image, found))
    ).all()
    report.line("focus_segment_by_words", bool(same and found.any()), f"{int(found.sum())} pixels")
    shown["focus_segment_by_words"] = ([image, overlay, mask], ["input", "the green diamond", "mask"])

    graph = example("focus_click_to_edit")
    done = await comfy.finish(graph)
    found = pipe.segment(image, region=Point(44, 30)).masks[0].any(axis=0)
    (edited,) = await comfy.pictures(done.outputs, saves(graph, "FocusEdit"))
    wanted = reference.edit("make the green diamond blue", found)
    report.line("focus_click_to_edit", (edited == wanted).all() and found.any(), difference(edited, wanted))
    (overlay,) = await comfy.pictures(done.outputs, saves(graph, "FocusSegment"))
    shown["focus_click_to_edit"] = ([image, overlay, edited], ["input", "click", "make the green diamond blue"])
    count = pipe.config.default_num_inference_steps
    steps = list(dict.fromkeys(value for value, total in done.steps if total == count))
    report.line("every step is told", steps == list(range(count + 1)), str(steps))

    graph = example("focus_edit_painted_mask")
    done = await comfy.finish(graph)
    painted = np.asarray(Image.open(EXAMPLES / "input" / "focus_scene_painted.png").getchannel("A")) < 128
    (edited,) = await comfy.pictures(done.outputs, saves(graph, "FocusEdit"))
    wanted = reference.edit("remove the green diamond", painted)
    report.line("focus_edit_painted_mask", (edited == wanted).all(), difference(edited, wanted))
    over = Image.composite(Image.new("RGB", image.size, (255, 255, 255)), image, Image.fromarray(painted))
    shown["focus_edit_painted_mask"] = ([over, edited], ["painted", "remove the green diamond"])

    graph = drawing()
    done = await comfy.finish(graph)
    drawn = await comfy.pictures(done.outputs, saves(graph, "FocusGenerate"))
    out = pipe.generate(
        "a red circle and a blue star",
        num_images_per_prompt=2,
        generator=[reference.generator(0), reference.generator(1)],
        output_type="pt",
    )
    wanted = reference.saved(out.images)
    same = len(drawn) == 2 and all((one == other).all() for one, other in zip(drawn, wanted))
    report.line("FOCUS Generate", same, difference(drawn[0], wanted[0]))
    graph = example("focus_edit_clip")
    done = await comfy.finish(graph)
    clip = Image.open(EXAMPLES / "input" / "focus_clip.png")
    frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(clip)]
    found = pipe.segment_clip(frames, region={0: [[Point(70, 22)]]}).masks.any(axis=0)
    out = pipe.edit(
        frames,
        "remove the blue circle",
        mask_image=list(found),
        generator=[reference.generator(seed) for seed in range(len(frames))],
        output_type="pt",
    )
    wanted = np.stack(reference.saved(out.images))
    edited = np.stack(await comfy.pictures(done.outputs, saves(graph, "FocusEdit")))
    report.line(
        "focus_edit_clip", edited.shape == wanted.shape and (edited == wanted).all(), difference(edited, wanted)
    )
    overlays = await comfy.pictures(done.outputs, saves(graph, "FocusSegmentClip"))
    shown["focus_edit_clip"] = (
        [overlays[0], edited[0], overlays[-1], edited[-1]],
        ["first frame: click", "remove the blue circle", "last frame", "the same"],
    )
    if pictures:
        from diffusers_focus.processing.drawing import contact_sheet

        for name, (images, captions) in shown.items():
            columns = 2 if len(images) == 4 else len(images)  # the editor shows them in squares
            contact_sheet(images, columns, captions=captions, cell=256).save(EXAMPLES / f"{name}.jpg", quality=92)


def difference(one: np.ndarray, other: np.ndarray) -> str:
    """How far two pictures are apart."""
    if one.shape != other.shape:
        return f"{one.shape} and {other.shape}"
    apart = np.abs(one.astype(int) - other.astype(int))
    return f"largest difference {apart.max()} of 255 in {int((apart > 0).any(axis=-1).sum())} pixels"


async def check_cancel(comfy: Comfy, report: Report) -> None:
    """Cancel ends a run within one step, and the next run is whole."""
    graph = example("focus_edit_painted_mask")
    node(graph, "FocusEdit", steps=400, seed=11)
    pressed: list[int] = []

    async def press(kind: str, data: dict) -> None:
        if kind == "progress" and data["max"] == 400 and data["value"] >= 5 and not pressed:
            pressed.append(data["value"])
            await comfy.post("/interrupt")

    done = await comfy.run(graph, press)
    last = done.steps[-1][0]
    # The message that tells of a step, and the button's way back, take a moment in which a small model goes on.
    soon = done.kind == "execution_interrupted" and pressed != [] and last <= pressed[0] + 20
    report.line("cancel ends the run", soon, f"pressed at step {pressed}, ended at {last}")
    node(graph, "FocusEdit", steps=2, seed=12)
    done = await comfy.run(graph)
    report.line("the run after it is whole", done.kind == "execution_success", done.message)


async def check_memory(comfy: Comfy, report: Report) -> None:
    """Ten runs in a row leave nothing behind."""
    graph, sizes = example("focus_click_to_edit"), []
    for seed in range(100, 112):
        node(graph, "FocusEdit", seed=seed, steps=2)
        node(graph, "FocusSegment", threshold=0.5 + seed / 10000)
        done = await comfy.run(graph)
        if done.kind != "execution_success":
            report.line("ten runs in a row", False, done.message)
            return
        sizes.append(comfy.memory())
    grown = sizes[-1] - sizes[1]
    report.line("ten runs in a row leave no memory behind", grown < 20, f"{sizes[1]:.0f} MB, then {sizes[-1]:.0f} MB")


async def check_errors(comfy: Comfy, report: Report) -> None:
    """What goes wrong is told of the node's input."""
    cases: list[tuple[str, str, Callable[[dict[str, Any]], Any], str]] = [
        ("missing model", "focus_ask", lambda g: node(g, "FocusLoad", folder="no-such-model"), "no-such-model"),
        ("missing repository", "focus_ask", lambda g: node(g, "FocusLoad", hub_id="no-one/nothing"), "Input hub_id"),
        (
            "missing ControlNet",
            "focus_ask",
            lambda g: node(g, "FocusLoad", controlnet="no-one/net"),
            "Input controlnet",
        ),
        ("empty question", "focus_ask", lambda g: node(g, "FocusAsk", question=" "), "Input question"),
        ("point outside", "focus_click_to_edit", lambda g: node(g, "FocusSegment", points="500,2"), "Input points"),
        ("no number", "focus_click_to_edit", lambda g: node(g, "FocusSegment", points="here"), "Input points"),
        ("nothing asked", "focus_click_to_edit", lambda g: node(g, "FocusSegment", points=""), "Input words"),
        (
            "wrong size",
            "",
            lambda g: node(g, "FocusGenerate", width=72, height=72),
            "Input width and height",
        ),
    ]

    def scaled(graph: dict[str, Any], empty: bool) -> None:
        value = 0.0 if empty else 1.0
        side = 128 if empty else 96
        graph["9"] = {"class_type": "SolidMask", "inputs": {"value": value, "width": side, "height": side}}
        node(graph, "FocusEdit", mask=["9", 0])

    cases += [
        ("mask of another size", "focus_edit_painted_mask", lambda g: scaled(g, False), "Input mask: it is 96 wide"),
        ("empty mask", "focus_edit_painted_mask", lambda g: scaled(g, True), "Input mask: it is empty"),
    ]
    for name, workflow, change, wanted in cases:
        graph = example(workflow) if workflow else drawing()
        change(graph)
        done = await comfy.run(graph)
        right = done.kind in ("refused", "execution_error") and wanted in done.message
        report.line(name, right, f"{done.kind}, {done.message[:300]}")


async def check_batch(comfy: Comfy, report: Report, reference: Reference) -> None:
    """Three images at once, among stock nodes; and LoadImage's mask of an image without transparency, which is none."""
    graph = example("focus_click_to_edit")
    segment, edit = (
        node(graph, "FocusSegment"),
        node(graph, "FocusEdit", instruction="remove the green diamond", seed=3),
    )
    scene = node(graph, "LoadImage")
    graph |= {
        "20": {"class_type": "ImageBatch", "inputs": {"image1": [scene, 0], "image2": [scene, 0]}},
        "21": {"class_type": "ImageBatch", "inputs": {"image1": ["20", 0], "image2": [scene, 0]}},
        "22": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 128, "height": 128}},
        "23": {
            "class_type": "MaskComposite",
            "inputs": {"destination": [segment, 0], "source": ["22", 0], "x": 0, "y": 0, "operation": "multiply"},
        },
    }
    graph[segment]["inputs"]["image"] = graph[edit]["inputs"]["image"] = ["21", 0]
    graph[edit]["inputs"]["mask"] = ["23", 0]
    done = await comfy.run(graph)
    if done.kind != "execution_success":
        report.line("batch of three", False, done.message)
    else:
        from diffusers_focus import Point

        edited = await comfy.pictures(done.outputs, saves(graph, "FocusEdit"))
        found = reference.pipe.segment(reference.image, region=Point(44, 30)).masks[0].any(axis=0)
        out = reference.pipe.edit(
            [reference.image] * 3,
            "remove the green diamond",
            mask_image=[found] * 3,
            generator=[reference.generator(seed) for seed in (3, 4, 5)],
            output_type="pt",
        )
        wanted = reference.saved(out.images)
        right = len(edited) == 3 and all((one == other).all() for one, other in zip(edited, wanted))
        report.line("batch of three", right, difference(np.stack(edited), np.stack(wanted)))

    graph = example("focus_edit_painted_mask")
    node(graph, "LoadImage", image="focus_scene.png")
    done = await comfy.finish(graph)
    (edited,) = await comfy.pictures(done.outputs, saves(graph, "FocusEdit"))
    out = reference.pipe.edit(
        reference.image, "remove the green diamond", generator=reference.generator(), output_type="pt"
    )
    wanted = reference.saved(out.images)[0]
    report.line("no transparency, no mask", (edited == wanted).all(), difference(edited, wanted))


def widgets(kind: str, **values: Any) -> dict[str, Any]:
    """The inputs of one of our nodes that are set on it, `values` in place of their defaults."""
    from integrations.comfyui.schema import NODES

    defaults = {one.id: one.options.get("default") for one in NODES[kind].inputs if one.is_widget}
    return {**defaults, **values}


def save(*source: Any) -> dict[str, Any]:
    """A SaveImage of an output, given as (node, number)."""
    return {"class_type": "SaveImage", "inputs": {"images": list(source), "filename_prefix": "focus_check"}}


async def check_clip(comfy: Comfy, report: Report, reference: Reference) -> None:
    """FOCUS Edit Clip gives what the call in Python gives: pointed at on a later frame, and where the instruction says."""
    from diffusers_focus import Point

    clip = Image.open(EXAMPLES / "input" / "focus_clip.png")
    frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(clip)]
    start = example("focus_edit_clip")
    load, scene = node(start, "FocusLoad"), node(start, "LoadImage")
    for name, values, region in (
        ("FOCUS Edit Clip, pointed at", {"points": "70,22"}, {0: [[Point(70, 22)]]}),
        ("FOCUS Edit Clip, by its instruction", {"grow": 3}, None),
    ):
        inputs = widgets("FocusEditClip", instruction="remove the blue circle", seed=5, steps=4, **values)
        graph = {
            **{number: start[number] for number in (load, scene)},
            "20": {"class_type": "FocusEditClip", "inputs": {**inputs, "pipeline": [load, 0], "image": [scene, 0]}},
            "21": save("20", 0),
            "22": {"class_type": "MaskToImage", "inputs": {"mask": ["20", 1]}},
            "23": save("22", 0),
        }
        done = await comfy.finish(graph)
        out = reference.pipe.edit_clip(
            frames,
            "remove the blue circle",
            region=region,
            generator=reference.generator(5),
            num_inference_steps=4,
            mask_dilation=values.get("grow"),
        )
        edited = np.stack(await comfy.pictures(done.outputs, "21"))
        wanted = np.stack([np.asarray(image) for image in out.images])
        masks = np.stack(await comfy.pictures(done.outputs, "23"))[..., 0] == 255
        right = edited.shape == wanted.shape and (edited == wanted).all() and (masks == out.edit_masks).all()
        report.line(name, bool(right and masks.any()), difference(edited, wanted))


async def check_control(comfy: Comfy, report: Report, reference: Reference, base: Path) -> None:
    """A ControlNet (random weights) that the Load node brings, and a control image beside the mask."""
    from diffusers_focus import FocusPipeline

    from tests.guides import controlnet_for

    folder = base / "controlnet"
    net = controlnet_for(reference.pipe.unet)
    net.save_pretrained(folder)
    graph = example("focus_edit_painted_mask")
    node(graph, "FocusLoad", controlnet=str(folder))
    graph["20"] = {"class_type": "LoadImage", "inputs": {"image": "focus_scene.png"}}
    node(graph, "FocusEdit", control_image=["20", 0], control_strength=0.5, steps=4)
    done = await comfy.finish(graph)
    (edited,) = await comfy.pictures(done.outputs, saves(graph, "FocusEdit"))
    painted = np.asarray(Image.open(EXAMPLES / "input" / "focus_scene_painted.png").getchannel("A")) < 128
    pipe = FocusPipeline(**{**reference.pipe.components, "controlnet": net}, **settings_of(reference.pipe))
    pipe.set_progress_bar_config(disable=True)
    options = {"mask_image": painted, "num_inference_steps": 4, "output_type": "pt"}

    def draw(**control: Any) -> np.ndarray:
        text = "remove the green diamond"
        out = pipe.edit(reference.image, text, generator=reference.generator(), **options, **control)
        return reference.saved(out.images)[0]

    wanted = draw(control_image=reference.image, controlnet_conditioning_scale=0.5)
    steered = bool((wanted != draw()).any())
    report.line("a control image", steered and bool((edited == wanted).all()), difference(edited, wanted))


def settings_of(pipe: Any) -> dict[str, Any]:
    """The settings of a pipeline, without its components."""
    return {k: v for k, v in pipe.config.items() if k not in pipe.components and not k.startswith("_")}


async def check_interop(comfy: Comfy, report: Report, reference: Reference) -> None:
    """Masks and images through stock nodes: MaskComposite, InpaintModelConditioning, VAEDecode, SaveImage."""
    from diffusers_focus import Point

    graph = example("focus_click_to_edit")
    segment, edit = node(graph, "FocusSegment"), node(graph, "FocusEdit", steps=2)
    graph |= {
        "20": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 64, "height": 128}},
        "21": {
            "class_type": "MaskComposite",
            "inputs": {"destination": [segment, 0], "source": ["20", 0], "x": 44, "y": 0, "operation": "subtract"},
        },
        "22": {"class_type": "ProbeCondition", "inputs": {}},
        "23": {"class_type": "VAELoader", "inputs": {"vae_name": "pixel_space"}},
        "24": {
            "class_type": "InpaintModelConditioning",
            "inputs": {
                "positive": ["22", 0],
                "negative": ["22", 0],
                "vae": ["23", 0],
                "pixels": [edit, 0],
                "mask": [edit, 1],
                "noise_mask": True,
            },
        },
        "25": {"class_type": "VAEDecode", "inputs": {"samples": ["24", 2], "vae": ["23", 0]}},
        "26": save("25", 0),
        "27": {"class_type": "ProbeConcatMask", "inputs": {"conditioning": ["24", 0]}},
        "28": {"class_type": "MaskToImage", "inputs": {"mask": ["27", 0]}},
        "29": save("28", 0),
    }
    graph[edit]["inputs"]["mask"] = ["21", 0]
    done = await comfy.finish(graph)
    found = reference.pipe.segment(reference.image, region=Point(44, 30)).masks[0].any(axis=0)
    found[:, 44:108] = False
    (edited,) = await comfy.pictures(done.outputs, saves(graph, "FocusEdit"))
    out = reference.pipe.edit(
        reference.image,
        "make the green diamond blue",
        mask_image=found,
        generator=reference.generator(),
        num_inference_steps=2,
        output_type="pt",
    )
    wanted = reference.saved(out.images)[0]
    report.line("MaskComposite cuts our mask", (edited == wanted).all() and found.any(), difference(edited, wanted))
    (passed,) = await comfy.pictures(done.outputs, "26")
    (mask,) = await comfy.pictures(done.outputs, "29")
    close = np.abs(passed.astype(int) - edited).max() <= 1
    right = close and ((mask[..., 0] == 255) == found).all()
    report.line("InpaintModelConditioning takes our image and mask", bool(right), difference(passed, edited))


async def check_offload(comfy: Comfy, report: Report, reference: Reference) -> None:
    """Whenever the weights leave the accelerator, the picture is the same; without one, none has anywhere to go."""
    from integrations.comfyui.schema import OFFLOADS

    painted = np.asarray(Image.open(EXAMPLES / "input" / "focus_scene_painted.png").getchannel("A")) < 128
    wanted = reference.edit("remove the green diamond", painted, seed=7)
    for offload in OFFLOADS:
        graph = example("focus_edit_painted_mask")
        node(graph, "FocusLoad", offload=offload)
        node(graph, "FocusEdit", seed=7)
        done = await comfy.finish(graph)
        (edited,) = await comfy.pictures(done.outputs, saves(graph, "FocusEdit"))
        report.line(f"offload {offload}", (edited == wanted).all(), difference(edited, wanted))


def lay_out(base: Path) -> None:
    """A folder for the server: the pack, the pipeline and the input images."""
    for name in ("custom_nodes", "models/focus", "input", "output", "temp", "user"):
        (base / name).mkdir(parents=True)
    (base / "custom_nodes" / "focus").symlink_to(PACK)
    (base / "custom_nodes" / "probe_nodes.py").symlink_to(PACK / "checks" / "probe_nodes.py")
    (base / "models" / "focus" / "focus-tiny").symlink_to(ROOT / "pipelines" / "focus-tiny")
    for file in (EXAMPLES / "input").iterdir():
        (base / "input" / file.name).write_bytes(file.read_bytes())


async def run_checks(args: argparse.Namespace) -> int:
    """Everything, on one server."""
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        lay_out(Path(folder))
        async with Comfy(args.comfyui, Path(folder), args.port, args.device == "cpu") as comfy:
            await check_loading(comfy, report)
            reference = Reference(ROOT / "pipelines" / "focus-tiny", args.device)
            checks = {
                "examples": lambda: check_examples(comfy, report, reference, args.pictures),
                "batch": lambda: check_batch(comfy, report, reference),
                "clip": lambda: check_clip(comfy, report, reference),
                "control": lambda: check_control(comfy, report, reference, Path(folder)),
                "interop": lambda: check_interop(comfy, report, reference),
                "offload": lambda: check_offload(comfy, report, reference),
                "errors": lambda: check_errors(comfy, report),
                "cancel": lambda: check_cancel(comfy, report),
                "memory": lambda: check_memory(comfy, report),
            }
            for name in args.only or checks:
                await checks[name]()
            if args.log is not None:
                args.log.write_text(comfy.log.read_text(), encoding="utf-8")
    return report.failed


def main() -> int:
    """Run the checks and return how many failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, metavar="FOLDER", help="a checkout of ComfyUI")
    parser.add_argument("--device", default="cpu", help="cpu or the accelerator ComfyUI will choose (default: cpu)")
    parser.add_argument("--port", type=int, default=8189)
    parser.add_argument("--pictures", action="store_true", help="renew the pictures of the example workflows")
    parser.add_argument("--only", nargs="+", choices=CHECKS, metavar="CHECK", help=f"some of {', '.join(CHECKS)}")
    parser.add_argument("--log", type=Path, metavar="FILE", help="keep what the server wrote")
    return asyncio.run(run_checks(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
