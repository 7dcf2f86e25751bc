"""Conversions on the command line: the arguments and the run of `diffusers-focus convert`.

Kept beside what it calls, so that the command line itself stays thin. Importing this brings in nothing heavy.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_TRAINING = {
    "hierarchical": "ConvNeXt-L weights for the second branch, to be trained",
    "mask-decoder": "Mask2Former or FC-CLIP weights, to be trained",
}
_ILLUME_PLUS = {
    "tokenizer": "DualViTok, file or folder",
    "language-model": "ILLUME+ language model, folder",
    "decoder": "diffusion decoder, diffusers folder",
}
_PARTS = {
    "language-model": "Qwen2.5 Instruct, folder",
    "vision-tower": "Qwen2-VL, folder or file",
    "sdxl": "Stable Diffusion XL base, diffusers folder",
    "tokenizer": "DualViTok, file or folder",
}
# Conversion -> (what it does, its sources, those that it cannot do without).
CONVERSIONS: dict[str, tuple[str, dict[str, str], tuple[str, ...]]] = {
    "illume-plus": ("convert ILLUME+'s three checkpoints", {**_ILLUME_PLUS, **_TRAINING}, tuple(_ILLUME_PLUS)),
    "assemble": (
        "assemble the start of a training run from public parts",
        {**_PARTS, **_TRAINING},
        ("language-model", "vision-tower"),
    ),
    "to-original": ("write the originals of a pipeline", {"pipeline": "pipeline folder"}, ("pipeline",)),
}
_FLAGS = {
    "dry-run": "check and report, write nothing",
    "resume": "go on with an interrupted run",
    "overwrite": "replace an existing output once the new one is complete",
    "allow-partial": "leave out what does not match instead of stopping",
}


def add_conversions(parser: argparse.ArgumentParser, parser_class: type[argparse.ArgumentParser]) -> None:
    """Give a parser one command for each conversion; their function is its `run` default.

    Args:
        parser: That of `convert`.
        parser_class: What the commands' parsers are made of.
    """
    kinds = parser.add_subparsers(
        title="conversions", metavar="KIND", parser_class=parser_class, dest="kind", required=True
    )
    for name, (text, sources, required) in CONVERSIONS.items():
        sub = kinds.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=run)
        for option, what in sources.items():
            sub.add_argument(f"--{option}", metavar="PATH", required=option in required, help=what)
        sub.add_argument("--output", "-o", metavar="DIR", required=True, help="folder to write; must not exist")
        if name == "to-original":
            sub.add_argument("--which", nargs="+", metavar="NAME", help="such as tokenizer language_model decoder")
        else:
            sub.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="(default: as the sources)")
        sub.add_argument("--shard-size", type=_bytes, metavar="SIZE", default="5GB", help="(default: %(default)s)")
        for option, what in _FLAGS.items():
            sub.add_argument(f"--{option}", action="store_true", help=what)
        sub.add_argument("--push-to-hub", metavar="ID", help="upload the result to this repository of the Hub")


def run(args: argparse.Namespace) -> None:
    """Do what the arguments of a conversion say; prints the report's sums and the output.

    Raises:
        ValueError, OSError: As the conversions and the upload.
    """
    from dataclasses import fields

    import torch

    from ..sharing.publish import create_repository, upload
    from .convert import ConvertOptions, assemble_focus, convert_illume_plus
    from .restore import convert_focus_to_original

    ours = ("run", "kind", "version", "debug")
    given: dict[str, Any] = {key: value for key, value in vars(args).items() if key not in ours}
    push = given.pop("push_to_hub")
    if given.get("dtype") is not None:
        given["dtype"] = getattr(torch, given["dtype"])
    if args.kind == "to-original":
        given["pipeline_folder"] = given.pop("pipeline")
        convert_focus_to_original(**given, progress=sys.stderr.isatty())
    else:
        how = {field.name: given.pop(field.name) for field in fields(ConvertOptions) if field.name in given}
        convert = convert_illume_plus if args.kind == "illume-plus" else assemble_focus
        report = convert(**given, options=ConvertOptions(**how, progress=sys.stderr.isatty()))
        for name, origin in report["origins"].items():
            print(f"{name:<16}{origin['family']:<28}{origin['tensors']:>6} tensors, {origin['bytes'] / 2**30:.2f} GiB")
        counts = report["counts"]
        print(
            f"{counts['targets']} parameters, {counts['initialised']} of them new; {counts['dropped']} tensors not used"
        )
    if args.dry_run:
        print("nothing was written (--dry-run)")
        return
    if push is not None:
        try:
            repo_id = create_repository(push, private=True)
            print(upload(args.output, repo_id, commit_message="Converted weights"))
        except OSError as error:
            raise OSError(
                f"{error} The result is complete in {args.output!r}; `hf upload {push} {args.output}` puts it there later."
            ) from error
    print(args.output)


def _bytes(text: str) -> int:
    number = text.upper().removesuffix("B").rstrip("KMG")
    unit = text.upper().removesuffix("B")[len(number) :]
    if not number.isascii() or not number.isdigit() or int(number) == 0 or unit not in _UNITS:
        raise argparse.ArgumentTypeError(f"expected a size such as 5GB or 500MB, got {text!r}")
    return int(number) * _UNITS[unit]
