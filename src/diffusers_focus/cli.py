"""The command line: `diffusers-focus ask | segment | edit | generate | demo | app | world | train | eval | ...`.

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
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command_line import DEFAULT_PIPELINE, USER_ERROR, command_line
from .sharing.files import replace_file, replace_json
from .sharing.shipped import shipped_pipeline

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from .data.edits import Edit
    from .data.world import Scene


def build_parser() -> argparse.ArgumentParser:
    """The whole command line as an argparse parser; each command's function is its `run` default."""
    return command_line(
        {
            "ask": _ask,
            "segment": _segment,
            "edit": _edit,
            "generate": _generate,
            "demo": _demo,
            "app": _app,
            "world": _world,
            "train": _train,
            "eval": _eval,
            "calibrate": _calibrate,
            "data": _data,
            "info": _info,
        }
    )


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


def _write_image(path: Path, image: Image.Image) -> None:
    replace_file(path, lambda file: image.save(file, format=_image_format(path)))


def _write_mask(path: Path, mask: np.ndarray) -> None:
    from PIL import Image

    _write_image(path, Image.fromarray(mask.astype("uint8") * 255))


def _read_image(path: str, mode: str = "RGB") -> Image.Image:
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert(mode)


def _find_pipeline(given: str | None) -> str:
    """A folder that holds a pipeline, or a Hub id as it was given."""
    if given is None:
        if (DEFAULT_PIPELINE / "model_index.json").is_file():
            return str(DEFAULT_PIPELINE)
        given = DEFAULT_PIPELINE.name
        if shipped_pipeline(given) is None:
            raise FileNotFoundError(
                f"no pipeline in {DEFAULT_PIPELINE.as_posix()!r}, and none came with the package; name one with --pipeline DIR"
            )
    if (Path(given) / "model_index.json").is_file():
        return given
    shipped = shipped_pipeline(given)
    if shipped is not None:
        return str(shipped)
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

    pipe = _load(args)
    options = {name: getattr(args, name) for name in ("max_new_tokens", "temperature", "top_k", "top_p")}
    options["generator"] = torch.Generator("cpu").manual_seed(args.seed)
    options["caption_classes"] = args.caption_classes
    pictures = [pipe.encode_image(image) for image in images]
    shown = pictures[0] if len(pictures) == 1 else [pictures]
    # A conversation is a list of messages; without an earlier question there is nothing to be continued.
    said: list[dict[str, Any]] = []
    questions = [args.question] if args.question is not None or not args.chat else []
    further = filter(None, map(str.strip, sys.stdin)) if args.chat else ()
    for question in itertools.chain(questions, further):
        asked = question if question is None else [*said, {"role": "user", "content": question}]
        text = pipe.understand(shown, asked, region, streamer=_printer(pipe.lm_tokenizer), **options).text[0]
        if question is not None:
            turn = {"role": "user", "content": question, **({} if region is None else {"region": region})}
            said += [turn, {"role": "assistant", "content": text}]
        region = None  # it stays in its turn


def _printer(tokenizer: Any) -> Any:
    """Prints an answer while it is written: what `understand` returns, so no space before the end of the line."""
    from transformers import TextStreamer

    class Printer(TextStreamer):
        spaces = ""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            text = self.spaces + text
            words = text.rstrip()
            self.spaces = text[len(words) :]
            super().on_finalized_text(words, stream_end)

    return Printer(tokenizer, skip_prompt=True, skip_special_tokens=True)


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
        replace_json(content, {"text": out.text[0], "presence": out.presence[0], "objects": objects})
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


def _demo(args: argparse.Namespace) -> None:
    started = time.perf_counter()
    image = _read_image(args.image) if args.image else None
    pipe = _load(args)
    pipe.set_progress_bar_config(disable=True)
    from .app.demo import run_demo

    print(f"{Path(_find_pipeline(args.pipeline)).name} is ready\n  [load: {time.perf_counter() - started:.2f} s]")
    run_demo(pipe, image, args.prompt, args.output, args.seed)


def _app(args: argparse.Namespace) -> None:
    from .app.page import serve  # first: it says what to install where Gradio is missing

    pipe = _load(args)
    pipe.set_progress_bar_config(disable=True)
    serve(pipe, host=args.host, port=args.port, browser=args.browser)


def _world(args: argparse.Namespace) -> None:
    import numpy as np
    from PIL import Image

    from .data.edits import sample_edit
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
        replace_json(folder / f"{seed}.json", _truth(scene, edit, rng, may_name))
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
        workers=args.workers,
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


# Options of eval that only benchmarks with drawn pictures have.
_DRAWING = ("pictures", "clip_model", "dino_model", "lpips_weights", "fid_model", "steps", "guidance_scale", "seed")


def _eval(args: argparse.Namespace) -> None:
    target = _check_target(args.output, image=False)
    if args.benchmark is not None:
        _eval_benchmark(args, target)
        return
    of_benchmarks = ("data", "split", "split_by", "protocol", "predictions", "gallery", *_DRAWING)
    foreign = [name for name in of_benchmarks if getattr(args, name) is not None]
    if foreign:
        words = ", ".join("--" + name.replace("_", "-") for name in foreign)
        raise ValueError(f"{words} belong to a benchmark; name it, such as eval refcoco --data DIR")
    folder = _find_pipeline(args.pipeline)
    from .evaluation.records import in_processes
    from .evaluation.run import evaluate

    options: dict[str, Any] = {name: getattr(args, name) for name in ("groups", "tasks", "records")}
    options |= {"count": args.count or 1000, "loader": partial(_load_evaluated, device=args.device)}
    if args.processes > 1:
        options["records"] = args.records or str(target.with_suffix(".records"))
        in_processes(_eval_scenes, (folder, options), args.processes)
    evaluate(folder, output=target, resume=args.resume, **options)
    print(target)


def _eval_scenes(arguments: tuple[Any, ...], index: int, count: int) -> None:
    """One process's share of held-out scenes."""
    import torch

    from .evaluation.run import evaluate

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    evaluate(arguments[0], **arguments[1], part=(index, count))


def _eval_benchmark(args: argparse.Namespace, target: Path) -> None:
    if args.groups is not None or args.tasks is not None or args.resume or args.records is not None:
        raise ValueError(
            "--resume, --records, --groups and --tasks belong to held-out scenes; leave them out, or leave out the benchmark"
        )
    from .evaluation.benchmarks import BENCHMARKS, run_benchmark, table
    from .evaluation.picture_scores import Measures
    from .evaluation.records import in_processes

    if args.benchmark not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {args.benchmark!r}; choose from {', '.join(BENCHMARKS)}")
    if args.data is None:
        raise ValueError(f"{args.benchmark} needs its files: give --data DIR")
    foreign = [name for name in _DRAWING if getattr(args, name) is not None]
    if foreign and not BENCHMARKS[args.benchmark].draws:
        words = ", ".join("--" + name.replace("_", "-") for name in foreign)
        drawn = ", ".join(name for name, benchmark in BENCHMARKS.items() if benchmark.draws)
        raise ValueError(f"{words} belong to benchmarks that draw pictures ({drawn}); leave them out")
    drawing = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale, "seed": args.seed}
    options = {
        "split": args.split,
        "split_by": args.split_by,
        "protocol": args.protocol,
        "count": args.count,
        "predictions": args.predictions,
        "pictures": args.pictures,
        "measures": Measures(args.clip_model, args.dino_model, args.lpips_weights, args.fid_model),
        "drawing": {name: value for name, value in drawing.items() if value is not None},
        "loader": partial(_load_evaluated, device=args.device),
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
        in_processes(_eval_part, arguments, args.processes)
    result = run_benchmark(*arguments[:4], **options, gallery=args.gallery or 0)
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
            replace_json(target, result)
        print(file)


def _eval_part(arguments: tuple[Any, ...], index: int, count: int) -> None:
    """One process's share of a benchmark."""
    import torch

    from .evaluation.benchmarks import run_benchmark

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    run_benchmark(*arguments[:4], **arguments[4], part=(index, count))


def _load_evaluated(folder: str, device: str) -> Any:
    """The pipeline without bars of its own: the evaluation shows one for the whole run."""
    pipe = _load_folder(folder, device)
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
