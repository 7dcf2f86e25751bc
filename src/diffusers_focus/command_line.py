"""What can be written on the command line: the words of every command, and how they are read.

What the commands do is in `cli.py`. Nothing here imports more than argparse needs, so `--help` is instant.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from .checkpoints.command import add_conversions

DEFAULT_PIPELINE = Path("pipelines") / "focus-tiny"
USER_ERROR = 2
DEMO_SEED = 1_000_003  # of the scene in the README; training draws from the seeds below 1,000,000


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors look like all other errors of the program."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"error: {message} (see: {self.prog} --help)\n")


def _numbers(text: str, count: int, example: str) -> tuple[float, ...]:
    parts = text.replace(",", " ").split()
    try:
        values = tuple(float(part) for part in parts)
    except ValueError:
        values = ()
    if len(values) != count:
        raise argparse.ArgumentTypeError(f"expected {count} numbers in pixels such as {example}, got {text!r}")
    return values


def _point(text: str) -> tuple[float, ...]:
    return _numbers(text, 2, "64,48")


def _box(text: str) -> tuple[float, ...]:
    return _numbers(text, 4, "10,20,60,80")


def _scribble(text: str) -> list[tuple[float, ...]]:
    pairs = [_numbers(pair, 2, '"10,20 30,40"') for pair in text.split()]
    if not pairs:
        raise argparse.ArgumentTypeError('expected x,y pairs in pixels such as "10,20 30,40 50,45", got nothing')
    return pairs


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add `--set KEY=VALUE`, the values as JSON where they are JSON; pairs in `overrides`."""
    parser.add_argument(
        "--set",
        dest="overrides",
        type=_override,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting of the stage; may be repeated",
    )


def _override(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not (key and sign):
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE such as learning_rate_scale=0.5, got {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 up, got {text!r}")
    return int(text)


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 up, got {text!r}")
    return int(text)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= 2**16:
        raise argparse.ArgumentTypeError(f"expected a port from 0 up to 65535, got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 up to 2**63 - 1, got {text!r}")
    return int(text)


def _add_pipeline(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pipeline",
        metavar="DIR",
        help=f"pipeline folder or Hub id (default: {DEFAULT_PIPELINE.as_posix()} here, or the one that came with the package)",
    )
    parser.add_argument("--device", default="cpu", help="where to run: cpu, cuda, mps, ... (default: %(default)s)")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="precision of the weights (default: %(default)s)",
    )


def _add_region(parser: argparse.ArgumentParser) -> None:
    region = parser.add_mutually_exclusive_group()
    region.add_argument(
        "--point", type=_point, action="append", metavar="X,Y", help="a click on the object, in pixels; may be repeated"
    )
    region.add_argument("--box", type=_box, metavar="X0,Y0,X1,Y1", help="a box around the object, in pixels")
    region.add_argument("--scribble", type=_scribble, metavar='"X,Y X,Y ..."', help="a stroke inside the object")
    region.add_argument("--mask", metavar="FILE", help="a rough mask of the object: bright is inside, the image's size")
    parser.add_argument(
        "--not-point", type=_point, action="append", metavar="X,Y", help="a click on what is not meant; may be repeated"
    )


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=_positive, metavar="N", help="denoising steps (default: the pipeline's)")
    parser.add_argument("--guidance-scale", type=float, metavar="G", help="guidance scale (default: the pipeline's)")
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="random seed (default: %(default)s)")


def command_line(run: Mapping[str, Callable[[argparse.Namespace], None]]) -> argparse.ArgumentParser:
    """The whole command line as an argparse parser; `run` has the function of each command, which becomes its `run` default."""
    parser = _Parser(prog="diffusers-focus", description="Ask about an image, segment it, edit exactly that part.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=run[name])
        return sub

    ask = command("ask", "answer a question about an image")
    ask.add_argument("image", metavar="IMAGE")
    ask.add_argument("question", metavar="QUESTION", nargs="?", help="(default: a caption, or what lies in the region)")
    ask.add_argument("--also", action="append", default=[], metavar="FILE", help="a further image of the question")
    ask.add_argument("--chat", action="store_true", help="go on with questions from the standard input, one a line")
    _add_region(ask)
    ask.add_argument(
        "--caption-classes",
        nargs="*",
        metavar="NAME",
        help="names to look for in an image that is to be described (default: the pipeline's own; no name: as a whole)",
    )
    ask.add_argument("--max-new-tokens", type=_positive, default=128, metavar="N", help="(default: %(default)s)")
    ask.add_argument(
        "--temperature", type=float, metavar="T", help="draw words at this temperature (default: the likeliest)"
    )
    ask.add_argument("--top-k", type=_positive, metavar="K", help="words to draw from (default: all)")
    ask.add_argument("--top-p", type=float, metavar="P", help="probability to draw from (default: 1)")
    ask.add_argument("--seed", type=_seed, default=0, metavar="N", help="random seed (default: %(default)s)")
    _add_pipeline(ask)

    segment = command("segment", "find what an expression or a region refers to, in an image or a clip")
    segment.add_argument("image", metavar="IMAGE", help="an image; or a clip: a video, a GIF, or a folder of frames")
    segment.add_argument("expression", metavar="EXPRESSION", nargs="?", help='such as "the red circle"')
    _add_region(segment)
    segment.add_argument("--classes", nargs="+", metavar="NAME", help="names to look for, in place of both")
    segment.add_argument(
        "--task",
        choices=("referring", "reasoning", "instance", "semantic", "panoptic"),
        help="of an expression referring or reasoning, of names a mask for each object, for each name, or without overlaps",
    )
    segment.add_argument(
        "-o", "--output", metavar="PATH", help="mask, or folder of a clip (default: mask.png, or masks)"
    )
    segment.add_argument(
        "--overlay",
        metavar="FILE",
        help="also write the image with the masks drawn over it; of a clip a .gif (default: overlay.gif in the folder) or video",
    )
    segment.add_argument(
        "--json", metavar="FILE", help="also write labels, scores, boxes and COCO run lengths; of a clip a line a frame"
    )
    segment.add_argument(
        "--frame", type=_seed, metavar="N", help="the frame of a clip that the region is on (default: 0)"
    )
    _add_pipeline(segment)

    edit = command("edit", "change a part of an image and nothing else")
    edit.add_argument("image", metavar="IMAGE")
    edit.add_argument("instruction", metavar="INSTRUCTION", help='such as "make the star blue"')
    edit.add_argument("--target", metavar="TEXT", help="what the edit is about, where the instruction leaves it open")
    _add_region(edit)
    edit.add_argument("--mask-image", metavar="FILE", help="exactly the pixels that may change: bright is inside")
    edit.add_argument("--strength", type=float, metavar="S", help="share of the denoising to run, above 0 up to 1")
    _add_sampling(edit)
    edit.add_argument("-o", "--output", default="edit.png", metavar="FILE", help="image (default: %(default)s)")
    edit.add_argument("--save-mask", metavar="FILE", help="also write the mask of the pixels that were free to change")
    _add_pipeline(edit)

    generate = command("generate", "draw an image from a description")
    generate.add_argument("prompt", metavar="PROMPT")
    _add_sampling(generate)
    generate.add_argument("-o", "--output", default="image.png", metavar="FILE", help="image (default: %(default)s)")
    _add_pipeline(generate)

    demo = command("demo", "ask, segment and edit one image, to see what this does")
    demo.add_argument("--image", metavar="FILE", help="any image file (default: a drawn scene)")
    demo.add_argument("--prompt", metavar="TEXT", help='an instruction such as "make the star blue"')
    demo.add_argument("--output", default="demo_output", metavar="DIR", help="folder (default: %(default)s)")
    demo.add_argument(
        "--seed", type=_seed, default=DEMO_SEED, metavar="N", help="of the scene and the edit (default: %(default)s)"
    )
    _add_pipeline(demo)

    app = command("app", "open a page to point at things in an image and edit them")
    app.add_argument(
        "--host", default="127.0.0.1", metavar="H", help="0.0.0.0 shows it to the network (default: %(default)s)"
    )
    app.add_argument("--port", type=_port, default=7860, metavar="N", help="0 takes any (default: %(default)s)")
    app.add_argument("--browser", action="store_true", help="open it in the browser")
    _add_pipeline(app)

    world = command("world", "draw scenes of the still-life world with their truth")
    world.add_argument("--seed", type=_seed, required=True, metavar="N", help="seed of the first scene")
    world.add_argument("--count", type=_positive, default=1, metavar="K", help="how many scenes (default: %(default)s)")
    world.add_argument("--size", type=_positive, default=128, metavar="S", help="side in pixels (default: %(default)s)")
    world.add_argument(
        "--held-out",
        choices=("exclude", "require", "allow"),
        default="exclude",
        help="the colour and shape pairs that training never sees (default: %(default)s)",
    )
    world.add_argument(
        "--clips",
        type=_positive,
        nargs="?",
        const=24,
        metavar="FRAMES",
        help="clips of so many frames in place of scenes, in the layout of DAVIS (default: 24 frames)",
    )
    world.add_argument("-o", "--output", default="world", metavar="DIR", help="folder (default: %(default)s)")

    train = command("train", "run one training stage of focus-tiny")
    train.add_argument("--stage", required=True, metavar="NAME", help="the stage; an unknown name lists them all")
    train.add_argument(
        "--data",
        metavar="DIR[:WEIGHT],...",
        help="folders of samples or shards to learn from, mixed by weight (default: the still-life world)",
    )
    train.add_argument("--output", default="runs/focus-tiny", metavar="DIR", help="folder (default: %(default)s)")
    train.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on from the last checkpoint in the folder (default: yes)",
    )
    train.add_argument("--max-minutes", type=float, metavar="M", help="stop and save after this long")
    train.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: torch's choice)")
    train.add_argument(
        "--workers", type=_whole, default=0, metavar="N", help="processes that draw batches ahead (default: none)"
    )
    add_overrides(train)

    evaluate = command("eval", "measure a pipeline on held-out scenes, or on a benchmark")
    evaluate.add_argument(
        "benchmark",
        nargs="?",
        metavar="BENCHMARK",
        help="such as refcoco, grefcoco, reasonseg; an unknown name lists them all",
    )
    evaluate.add_argument("--pipeline", metavar="DIR", help=f"pipeline folder (default: {DEFAULT_PIPELINE.as_posix()})")
    evaluate.add_argument("--device", default="cpu", help="where to run: cpu, cuda, ... (default: %(default)s)")
    evaluate.add_argument("--count", type=_positive, metavar="N", help="scenes (default: 1000); samples (default: all)")
    evaluate.add_argument("--groups", nargs="+", metavar="GROUP", help="groups of scenes, such as in held_out")
    evaluate.add_argument("--tasks", nargs="+", metavar="TASK", help="tasks to measure on scenes (default: all)")
    evaluate.add_argument(
        "--resume", action="store_true", help="keep what the output holds of other tasks and groups of this pipeline"
    )
    evaluate.add_argument(
        "--records", metavar="DIR", help="keep what every batch of scenes gave, so that a stopped run goes on"
    )
    evaluate.add_argument("--data", metavar="DIR", help="folder of the benchmark, as its authors publish it")
    evaluate.add_argument(
        "--split", metavar="NAME", help="split of the benchmark, such as testA (default: its validation)"
    )
    evaluate.add_argument("--split-by", metavar="WHO", help="whose splits: unc, google or umd (default: the usual one)")
    evaluate.add_argument(
        "--protocol",
        metavar="NAME",
        help="sentence or merged (RefCOCO, gRefCOCO); point, scribble, box or mask (COCO-Interactive); see docs/evaluation.md",
    )
    evaluate.add_argument("--predictions", metavar="DIR", help="score finished results of clips, or finished pictures")
    evaluate.add_argument(
        "--pictures", metavar="DIR", help="folder of drawn pictures (default: the output's, ending .pictures)"
    )
    evaluate.add_argument("--clip-model", metavar="DIR", help="a CLIP: CLIP-I, CLIP-T and CLIP-DIR of drawn pictures")
    evaluate.add_argument("--dino-model", metavar="DIR", help="a DINO: likeness of drawn pictures")
    evaluate.add_argument("--lpips-weights", metavar="FILE", help="torchvision's AlexNet: LPIPS (extra lpips)")
    evaluate.add_argument("--fid-model", metavar="PATH", help="Inception as TorchScript, or a CLIP or DINO: FID")
    evaluate.add_argument("--steps", type=_positive, metavar="N", help="denoising steps of drawn pictures")
    evaluate.add_argument("--guidance-scale", type=float, metavar="G", help="guidance scale of drawn pictures")
    evaluate.add_argument("--seed", type=_seed, metavar="N", help="random seed of drawn pictures (default: 0)")
    evaluate.add_argument(
        "--gallery", type=_positive, metavar="N", help="draw so many of the worst samples as a picture"
    )
    evaluate.add_argument("--processes", type=_positive, default=1, metavar="N", help="share the work (default: 1)")
    evaluate.add_argument("-o", "--output", default="metrics.json", metavar="FILE", help="(default: %(default)s)")

    calibrate = command("calibrate", "fit scores and thresholds on validation scenes, into a pipeline's index")
    calibrate.add_argument("--count", type=_positive, default=400, metavar="N", help="scenes (default: %(default)s)")
    calibrate.add_argument(
        "-o", "--output", metavar="FILE", help="write the fit there as JSON and leave the pipeline alone"
    )
    _add_pipeline(calibrate)

    data = command("data", "turn a published data set into samples to train on and to measure with")
    data.add_argument("format", metavar="FORMAT", help="such as refcoco, llava, davis; an unknown name lists them all")
    data.add_argument("--from", dest="source", metavar="DIR", help="folder of the data set, as its authors publish it")
    data.add_argument("--to", dest="target", required=True, metavar="DIR", help="folder of the samples")
    data.add_argument("--split", metavar="NAME", help="split; of lists the name of their file (default: train)")
    data.add_argument("--split-by", metavar="WHO", help="whose splits: unc, google or umd (default: the usual one)")
    data.add_argument(
        "--count", type=_positive, metavar="N", help="only the first so many samples; scenes of the world"
    )
    data.add_argument("--seed", type=_seed, default=0, metavar="N", help="first scene of the world (default: 0)")
    data.add_argument("--shards", action="store_true", help="write tar files instead of a folder")
    data.add_argument(
        "--per-shard", type=_positive, default=1000, metavar="N", help="pictures of a tar file (default: 1000)"
    )

    convert = commands.add_parser("convert", help="turn original checkpoints into a pipeline, or back")
    add_conversions(convert, _Parser)

    info = command("info", "show components, sizes and versions")
    info.add_argument("directory", nargs="?", metavar="DIR", help="pipeline folder (default: focus-tiny)")
    return parser
