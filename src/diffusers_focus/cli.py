"""The command line: `diffusers-focus ask | segment | edit | generate | app | world | train | eval | ...`.

A thin layer over the Python interface: every command reads its arguments, calls one function of the rooms below and
writes what comes back. Whatever is slow to import is imported inside the command that needs it, so `--help` is instant.

Results are written to a temporary file next to the target and renamed, so an interrupted or failed command leaves no
half a picture behind. What the user got wrong is told in one line on the standard error stream with exit status 2;
`--debug` shows the traceback instead.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .checkpoints.command import add_conversions

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from .data.language import Edit
    from .data.world import Scene

DEFAULT_PIPELINE = Path("pipelines") / "focus-tiny"
USER_ERROR = 2


# --- arguments ------------------------------------------------------------------------------------------------------


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
        help=f"pipeline folder or Hub id (default: {DEFAULT_PIPELINE.as_posix()} here or in the repository)",
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


def build_parser() -> argparse.ArgumentParser:
    """The whole command line as an argparse parser; each command's function is its `run` default."""
    parser = _Parser(prog="diffusers-focus", description="Ask about an image, segment it, edit exactly that part.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=run)
        return sub

    ask = command("ask", _ask, "answer a question about an image")
    ask.add_argument("image", metavar="IMAGE")
    ask.add_argument("question", metavar="QUESTION", nargs="?", help="(default: a caption, or what lies in the region)")
    ask.add_argument("--also", action="append", default=[], metavar="FILE", help="a further image of the question")
    ask.add_argument("--chat", action="store_true", help="go on with questions from the standard input, one a line")
    _add_region(ask)
    ask.add_argument("--max-new-tokens", type=_positive, default=128, metavar="N", help="(default: %(default)s)")
    ask.add_argument(
        "--temperature", type=float, metavar="T", help="draw words at this temperature (default: the likeliest)"
    )
    ask.add_argument("--top-k", type=_positive, metavar="K", help="words to draw from (default: all)")
    ask.add_argument("--top-p", type=float, metavar="P", help="probability to draw from (default: 1)")
    ask.add_argument("--seed", type=_seed, default=0, metavar="N", help="random seed (default: %(default)s)")
    _add_pipeline(ask)

    segment = command("segment", _segment, "find what an expression or a region refers to, in an image or a clip")
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

    edit = command("edit", _edit, "change a part of an image and nothing else")
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

    generate = command("generate", _generate, "draw an image from a description")
    generate.add_argument("prompt", metavar="PROMPT")
    _add_sampling(generate)
    generate.add_argument("-o", "--output", default="image.png", metavar="FILE", help="image (default: %(default)s)")
    _add_pipeline(generate)

    app = command("app", _app, "open a page to point at things in an image and edit them")
    app.add_argument(
        "--host", default="127.0.0.1", metavar="H", help="0.0.0.0 shows it to the network (default: %(default)s)"
    )
    app.add_argument("--port", type=_port, default=7860, metavar="N", help="0 takes any (default: %(default)s)")
    app.add_argument("--browser", action="store_true", help="open it in the browser")
    _add_pipeline(app)

    world = command("world", _world, "draw scenes of the still-life world with their truth")
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

    train = command("train", _train, "run one training stage of focus-tiny")
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
        "--set",
        dest="overrides",
        type=_override,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting of the stage; may be repeated",
    )

    evaluate = command("eval", _eval, "measure a pipeline on held-out scenes, or on a benchmark")
    evaluate.add_argument(
        "benchmark",
        nargs="?",
        metavar="BENCHMARK",
        help="such as refcoco, grefcoco, reasonseg; an unknown name lists them all",
    )
    evaluate.add_argument("--pipeline", metavar="DIR", help=f"pipeline folder (default: {DEFAULT_PIPELINE.as_posix()})")
    evaluate.add_argument("--count", type=_positive, metavar="N", help="scenes (default: 1000); samples (default: all)")
    evaluate.add_argument("--groups", nargs="+", metavar="GROUP", help="groups of scenes, such as in held_out")
    evaluate.add_argument("--tasks", nargs="+", metavar="TASK", help="tasks to measure on scenes (default: all)")
    evaluate.add_argument("--data", metavar="DIR", help="folder of the benchmark, as its authors publish it")
    evaluate.add_argument(
        "--split", metavar="NAME", help="split of the benchmark, such as testA (default: its validation)"
    )
    evaluate.add_argument("--split-by", metavar="WHO", help="whose splits: unc, google or umd (default: the usual one)")
    evaluate.add_argument(
        "--protocol",
        metavar="NAME",
        help="sentence or merged (RefCOCO, gRefCOCO); point, scribble, box or mask (COCO-Interactive)",
    )
    evaluate.add_argument("--predictions", metavar="DIR", help="score finished results of clips in a folder")
    evaluate.add_argument(
        "--gallery", type=_positive, metavar="N", help="draw so many of the worst samples as a picture"
    )
    evaluate.add_argument("--processes", type=_positive, default=1, metavar="N", help="share a benchmark (default: 1)")
    evaluate.add_argument("-o", "--output", default="metrics.json", metavar="FILE", help="(default: %(default)s)")

    calibrate = command(
        "calibrate", _calibrate, "fit scores and thresholds on validation scenes, into a pipeline's index"
    )
    calibrate.add_argument("--count", type=_positive, default=400, metavar="N", help="scenes (default: %(default)s)")
    calibrate.add_argument(
        "-o", "--output", metavar="FILE", help="write the fit there as JSON and leave the pipeline alone"
    )
    _add_pipeline(calibrate)

    data = command("data", _data, "turn a published data set into samples to train on and to measure with")
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

    info = command("info", _info, "show components, sizes and versions")
    info.add_argument("directory", nargs="?", metavar="DIR", help="pipeline folder (default: focus-tiny)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the program's own) and return the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.version:
        from . import __version__

        print(f"diffusers-focus {__version__}")
        return 0
    if not hasattr(args, "run"):
        parser.print_help()
        return USER_ERROR
    try:
        args.run(args)
    except (ValueError, TypeError, OSError) as error:
        if args.debug:
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return " ".join(str(error).split()) or type(error).__name__


# --- files ----------------------------------------------------------------------------------------------------------


def _check_target(path: str, *, image: bool = True) -> Path:
    """The output path, found fault with before the work starts rather than after."""
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {str(target.parent)!r} of the output does not exist; create it first")
    if target.is_dir():
        raise ValueError(f"the output {path!r} is a folder; name a file in it")
    if image:
        _image_format(target)
    return target


def _image_format(path: Path) -> str:
    from PIL import Image

    found = Image.registered_extensions().get(path.suffix.lower())
    if found is None or found not in Image.SAVE:
        raise ValueError(f"cannot write an image to {str(path)!r}: end the name in .png, .jpg or .webp")
    return found


def _write(path: Path, write: Callable[[Any], None]) -> None:
    """Let `write` fill a binary file that appears under its name only once it is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_image(path: Path, image: Image.Image) -> None:
    _write(path, lambda file: image.save(file, format=_image_format(path)))


def _write_mask(path: Path, mask: np.ndarray) -> None:
    from PIL import Image

    _write_image(path, Image.fromarray(mask.astype("uint8") * 255))


def _write_json(path: Path, content: Any) -> None:
    _write(path, lambda file: file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()))


def _read_image(path: str, mode: str = "RGB") -> Image.Image:
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert(mode)


def _find_pipeline(given: str | None) -> str:
    """A folder that holds a pipeline, or a Hub id as it was given."""
    if given is None:
        # The second place is the repository's own, for an editable installation used from another folder.
        places = [DEFAULT_PIPELINE, Path(__file__).resolve().parents[2] / DEFAULT_PIPELINE]
        for place in places:
            if (place / "model_index.json").is_file():
                return str(place)
        raise FileNotFoundError(f"no pipeline in {DEFAULT_PIPELINE.as_posix()!r}; name one with --pipeline DIR")
    if (Path(given) / "model_index.json").is_file():
        return given
    if Path(given).exists() or given.startswith((".", "/", "~")) or given.count("/") != 1:
        raise FileNotFoundError(f"no pipeline in {given!r}: it has no model_index.json; name its folder or a Hub id")
    return given


# --- commands -------------------------------------------------------------------------------------------------------


def _load(args: argparse.Namespace) -> Any:
    return _load_folder(_find_pipeline(args.pipeline), args.device, args.dtype)


def _load_folder(folder: str, device: str = "cpu", dtype: str = "float32") -> Any:
    import torch
    from diffusers.utils import logging
    from transformers.utils import logging as transformers_logging

    from . import FocusPipeline

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
    pipe = FocusPipeline.from_pretrained(folder, dtype=getattr(torch, dtype))
    pipe.set_progress_bar_config(disable=not sys.stderr.isatty())
    try:
        return pipe.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"cannot run on the device {device!r}: {str(error).splitlines()[0]}") from error


def _region(args: argparse.Namespace) -> Any:
    """The region of the options, `Strokes` where it takes several of them to say it."""
    from .processing.regions import Box, Mask, Point, Scribble, Strokes

    strokes: list[Any] = [Point(*point) for point in args.point or ()]
    if args.box:
        strokes.append(Box(*args.box))
    if args.scribble:
        strokes.append(Scribble(args.scribble))
    if args.mask:
        import numpy as np

        strokes.append(Mask(np.asarray(_read_image(args.mask, "L"))))
    strokes += [Point(*point, positive=False) for point in args.not_point or ()]
    if len(strokes) < 2 and not args.not_point:
        return strokes[0] if strokes else None
    return Strokes(*strokes)


def _sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling arguments that were given; the pipeline knows its own defaults."""
    import torch

    given = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
    given = {name: value for name, value in given.items() if value is not None}
    return {**given, "generator": torch.Generator("cpu").manual_seed(args.seed)}


def _ask(args: argparse.Namespace) -> None:
    images, region = [_read_image(path) for path in (args.image, *args.also)], _region(args)
    import torch
    from transformers import TextStreamer

    pipe = _load(args)
    options = {name: getattr(args, name) for name in ("max_new_tokens", "temperature", "top_k", "top_p")}
    options["generator"] = torch.Generator("cpu").manual_seed(args.seed)
    pictures = [pipe.encode_image(image) for image in images]
    shown = pictures[0] if len(pictures) == 1 else [pictures]
    # A conversation is a list of messages; without an earlier question there is nothing to be continued.
    said: list[dict[str, Any]] = []
    questions = [args.question] if args.question is not None or not args.chat else []
    further = filter(None, map(str.strip, sys.stdin)) if args.chat else ()
    for question in itertools.chain(questions, further):
        asked = question if question is None else [*said, {"role": "user", "content": question}]
        streamer = TextStreamer(pipe.lm_tokenizer, skip_prompt=True, skip_special_tokens=True)
        text = pipe.understand(shown, asked, region, streamer=streamer, **options).text[0]
        if question is not None:
            turn = {"role": "user", "content": question, **({} if region is None else {"region": region})}
            said += [turn, {"role": "assistant", "content": text}]
        region = None  # it stays in its turn


def _segment(args: argparse.Namespace) -> None:
    from .processing.clips import is_clip

    if is_clip(args.image):
        _segment_clip(args)
        return
    if args.frame is not None:
        raise ValueError(f"--frame belongs to a clip, but {args.image!r} is a single image")
    target = _check_target(args.output or "mask.png")
    overlay = _check_target(args.overlay) if args.overlay else None
    content = _check_target(args.json, image=False) if args.json else None
    image, region = _read_image(args.image), _region(args)
    if args.expression is None and region is None and args.classes is None:
        raise ValueError("nothing to look for: give an EXPRESSION, --classes, --point, --box, --scribble or --mask")
    out = _load(args).segment(image, args.expression, region, classes=args.classes, task=args.task)
    masks, scores, labels, qualities = out.masks[0], out.scores[0], out.labels[0], out.qualities[0]
    _write_mask(target, masks.any(axis=0))
    if len(masks) == 0:
        print(f"nothing found  presence {out.presence[0]:.2f}")
    for mask, score, label in zip(masks, scores, labels, strict=True):
        print(f"{label}  score {float(score):.2f}  {int(mask.sum())} pixels")
    print(target)
    if overlay is not None:
        _write_image(overlay, out.to_overlays(image)[0])
        print(overlay)
    if content is not None:
        found = zip(labels, scores, qualities, out.to_boxes()[0].tolist(), out.to_rle()[0], strict=True)
        objects = [
            {"label": label, "score": float(score), "quality": float(quality), "box": box, "segmentation": rle}
            for label, score, quality, box, rle in found
        ]
        _write_json(content, {"text": out.text[0], "presence": out.presence[0], "objects": objects})
        print(content)


def _segment_clip(args: argparse.Namespace) -> None:
    from .pipelines.clip_command import write_clip_masks

    region = _region(args)
    if args.expression is None and region is None and args.classes is None:
        raise ValueError("nothing to look for: give an EXPRESSION, --classes, --point, --box, --scribble or --mask")
    write_clip_masks(
        lambda: _load(args),
        args.image,
        args.output or "masks",
        {"target": args.expression, "region": region, "classes": args.classes, "task": args.task},
        frame=args.frame,
        overlay=args.overlay,
        lines=args.json,
    )


def _edit(args: argparse.Namespace) -> None:
    target = _check_target(args.output)
    mask_target = _check_target(args.save_mask) if args.save_mask else None
    image, region = _read_image(args.image), _region(args)
    options: dict[str, Any] = {"target": args.target, "region": region}
    if args.mask_image:
        options["mask_image"] = _read_image(args.mask_image, "L")
    if args.strength is not None:
        options["strength"] = args.strength
    pipe = _load(args)
    out = pipe.edit(image, args.instruction, **options, **_sampling(args))
    _write_image(target, out.images[0])
    print(target)
    if mask_target is not None:
        _write_mask(mask_target, out.edit_masks[0])
        print(mask_target)


def _generate(args: argparse.Namespace) -> None:
    target = _check_target(args.output)
    pipe = _load(args)
    _write_image(target, pipe.generate(args.prompt, **_sampling(args)).images[0])
    print(target)


def _app(args: argparse.Namespace) -> None:
    from .app.page import serve  # first: it says what to install where Gradio is missing

    pipe = _load(args)
    pipe.set_progress_bar_config(disable=True)
    serve(pipe, host=args.host, port=args.port, browser=args.browser)


def _world(args: argparse.Namespace) -> None:
    import numpy as np
    from PIL import Image

    from .data.language import sample_edit
    from .data.world import render, sample_scene

    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    if args.clips is not None:
        from .data.clips import ClipSpec, sample_clip, write_clip

        spec = ClipSpec(frames=args.clips, held_out=args.held_out)
        for seed in range(args.seed, args.seed + args.count):
            print(write_clip(folder, sample_clip(seed, spec), args.size))
        return
    may_name = args.held_out != "exclude"
    for seed in range(args.seed, args.seed + args.count):
        scene = sample_scene(seed, held_out=args.held_out)
        rng = np.random.default_rng(seed)
        edit = sample_edit(scene, rng, held_out=may_name)
        drawn = render(scene, args.size)
        for index, mask in enumerate(drawn.masks):
            _write_mask(folder / f"{seed}-object{index}.png", mask)
        _write_image(folder / f"{seed}-edited.png", Image.fromarray(render(edit.result, args.size).image))
        _write_json(folder / f"{seed}.json", _truth(scene, edit, rng, may_name))
        _write_image(folder / f"{seed}.png", Image.fromarray(drawn.image))
        print(folder / f"{seed}.png")


def _truth(scene: Scene, edit: Edit, rng: np.random.Generator, held_out: bool) -> dict[str, Any]:
    """What is true of a scene, ready for JSON; objects are numbered as their masks are."""
    from dataclasses import asdict

    from .data import language

    referrals = [
        *language.referring_expressions(scene, rng, held_out=held_out),
        *language.generalized_expressions(scene, rng, 6, held_out),
        *language.reasoning_expressions(scene, rng),
    ]
    return {
        "scene": asdict(scene),
        "names": [item.name for item in scene.objects],
        "caption": language.caption(scene),
        "expressions": [asdict(referral) for referral in referrals],
        "questions": [asdict(question) for question in language.questions(scene, rng, 12, held_out=held_out)],
        "edit": asdict(edit),
    }


def _train(args: argparse.Namespace) -> None:
    from .data.sources import parse_sources
    from .training.run import run_stage

    overrides = dict(args.overrides)
    if args.data is not None:
        overrides["data"] = parse_sources(args.data)
    run_stage(
        args.stage,
        args.output,
        resume=args.resume,
        max_minutes=args.max_minutes,
        threads=args.threads,
        overrides=overrides,
    )


def _data(args: argparse.Namespace) -> None:
    from .data.convert import FORMATS, convert_data, write_world

    options = {"shards": args.shards, "per_shard": args.per_shard}
    if args.format == "world":
        done = write_world(args.target, range(args.seed, args.seed + (args.count or 200)), **options)
    elif args.format not in FORMATS:
        raise ValueError(f"unknown format {args.format!r}; choose from world, {', '.join(FORMATS)}")
    elif args.source is None:
        raise ValueError(f"{args.format} needs its files: give --from DIR")
    else:
        chosen = {"split": args.split, "split_by": args.split_by, "count": args.count}
        done = convert_data(args.format, args.source, args.target, **chosen, **options)
    print(f"{done.written} samples")
    if done.left_out:
        print(f"left out: {done.left_out} that are no samples, the first {done.problems[0]}")
    print(args.target)


def _eval(args: argparse.Namespace) -> None:
    target = _check_target(args.output, image=False)
    if args.benchmark is not None:
        _eval_benchmark(args, target)
        return
    foreign = [
        name
        for name in ("data", "split", "split_by", "protocol", "predictions", "gallery")
        if getattr(args, name) is not None
    ]
    foreign += ["processes"] if args.processes > 1 else []
    if foreign:
        options = ", ".join("--" + name.replace("_", "-") for name in foreign)
        raise ValueError(f"{options} belong to a benchmark; name it, such as eval refcoco --data DIR")
    folder = _find_pipeline(args.pipeline)
    from .evaluation.run import evaluate

    count = 1000 if args.count is None else args.count
    evaluate(folder, count=count, groups=args.groups, tasks=args.tasks, output=target, loader=_load_evaluated)
    print(target)


def _eval_benchmark(args: argparse.Namespace, target: Path) -> None:
    if args.groups is not None or args.tasks is not None:
        raise ValueError("--groups and --tasks belong to held-out scenes; leave them out, or leave out the benchmark")
    from .evaluation.benchmarks import BENCHMARKS, run_benchmark, table

    if args.benchmark not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {args.benchmark!r}; choose from {', '.join(BENCHMARKS)}")
    if args.data is None:
        raise ValueError(f"{args.benchmark} needs its files: give --data DIR")
    options = {
        "split": args.split,
        "split_by": args.split_by,
        "protocol": args.protocol,
        "count": args.count,
        "predictions": args.predictions,
    }
    asked = _find_pipeline(args.pipeline) if args.predictions is None else None
    arguments = (asked, args.benchmark, args.data, str(target), options)
    launched = int(os.environ.get("WORLD_SIZE", "1"))  # by accelerate or torchrun
    if launched > 1:
        from accelerate import PartialState

        state = PartialState(cpu=True)
        _eval_part(arguments, state.process_index, launched)
        state.wait_for_everyone()
        if not state.is_main_process:
            return
    elif args.processes > 1:
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        shares = [(arguments, index, args.processes) for index in range(args.processes)]
        children = [context.Process(target=_eval_part, args=share) for share in shares]
        for child in children:
            child.start()
        for child in children:
            child.join()
        # What a process left undone is asked below, and what stopped it told there.
    result = run_benchmark(*arguments[:4], **options, gallery=args.gallery or 0, loader=_load_evaluated)
    print(table(result))
    print(target)


def _calibrate(args: argparse.Namespace) -> None:
    target = None if args.output is None else _check_target(args.output, image=False)
    folder = _find_pipeline(args.pipeline)
    if target is None and not Path(folder).is_dir():
        raise ValueError(
            f"{folder!r} is no folder here, so its index cannot be written; load it into one, or give --output FILE"
        )
    from .evaluation.calibration import fit, write

    result = fit(_load(args), args.count)
    for name, values in result["report"].items():
        print(f"{name}: {json.dumps(values)}")
    for file in write(folder, result) if target is None else [target]:
        if target is not None:
            _write_json(target, result)
        print(file)


def _eval_part(arguments: tuple[Any, ...], index: int, count: int) -> None:
    """One process's share of a benchmark."""
    import torch

    from .evaluation.benchmarks import run_benchmark

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    run_benchmark(*arguments[:4], **arguments[4], part=(index, count), loader=_load_evaluated)


def _load_evaluated(folder: str) -> Any:
    """The pipeline without bars of its own: the evaluation shows one for the whole run."""
    pipe = _load_folder(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _info(args: argparse.Namespace) -> None:
    from importlib.metadata import PackageNotFoundError, version

    for package in ("diffusers-focus", "diffusers", "transformers", "torch", "accelerate", "safetensors"):
        try:
            print(f"{package:<18}{version(package)}")
        except PackageNotFoundError:
            print(f"{package:<18}not installed")
    print(f"{'python':<18}{sys.version.split()[0]}")

    try:
        folder = Path(_find_pipeline(args.directory))
    except FileNotFoundError:
        if args.directory is not None:
            raise
        print(f"\nno pipeline in {DEFAULT_PIPELINE.as_posix()}")
        return
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r}: info reads local pipelines only")
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    print(f"\n{folder}: {index.get('_class_name', 'unknown class')}")
    print(f"{'component':<18}{'class':<28}{'parameters':>14}{'MB':>10}")
    total, size = 0, 0
    for name, entry in index.items():
        # A setting may be a list too, such as resolution_group.
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[1], str):
            continue
        part = folder / name
        weights = sorted(part.glob("*.safetensors"))
        count = sum(_count_parameters(file) for file in weights)
        stored = sum(file.stat().st_size for file in part.rglob("*") if file.is_file())
        total, size = total + count, size + stored
        shown = f"{count:,}" if weights else "-"
        print(f"{name:<18}{entry[1]:<28}{shown:>14}{stored / 1e6:>10.2f}")
    print(f"{'total':<46}{total:>14,}{size / 1e6:>10.2f}")


def _count_parameters(file: Path) -> int:
    """The number of values in a safetensors file, from its header alone: 8 bytes of length, then JSON."""
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= file.stat().st_size - 8:
            raise ValueError(f"{str(file)!r} is not a safetensors file; was it downloaded completely (git lfs pull)?")
        header = json.loads(stream.read(length))
    count = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            values = 1
            for side in tensor["shape"]:
                values *= side
            count += values
    return count


if __name__ == "__main__":
    sys.exit(main())
