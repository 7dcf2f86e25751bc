"""The command line is an interface: scripts rely on these words. Adding one means adding it here; none may vanish."""

from __future__ import annotations

import argparse

from diffusers_focus.cli import build_parser

PIPELINE = ["--device", "--dtype", "--pipeline"]
REGION = ["--box", "--mask", "--not-point", "--point", "--scribble"]
CONVERSION = [
    "--allow-partial",
    "--dry-run",
    "--output",
    "-o",
    "--overwrite",
    "--push-to-hub",
    "--resume",
    "--shard-size",
]
SAMPLING = ["--guidance-scale", "--seed", "--steps"]

FROZEN = {
    "": ["--debug", "--version"],
    "ask": [
        *["IMAGE", "QUESTION", *REGION, *PIPELINE, "--also", "--chat"],
        "--caption-classes",
        *["--max-new-tokens", "--seed", "--temperature", "--top-k", "--top-p"],
    ],
    "segment": [
        *["IMAGE", "EXPRESSION", *REGION, *PIPELINE, "--classes", "--task", "--output", "-o", "--json", "--overlay"],
        *["--frame"],
    ],
    "edit": [
        *["IMAGE", "INSTRUCTION", *REGION, *PIPELINE, *SAMPLING, "--output", "-o"],
        *["--mask-image", "--save-mask", "--strength", "--target"],
    ],
    "demo": ["--image", "--output", "--prompt", "--seed", *PIPELINE],
    "app": ["--browser", "--host", "--port", *PIPELINE],
    "generate": ["PROMPT", *PIPELINE, *SAMPLING, "--output", "-o"],
    "world": ["--clips", "--count", "--held-out", "--output", "--seed", "--size", "-o"],
    "train": [
        "--data",
        "--max-minutes",
        "--no-resume",
        "--output",
        "--resume",
        "--set",
        "--stage",
        "--threads",
        "--workers",
    ],
    "eval": [
        *["--count", "--device", "--groups", "--output", "--pipeline", "--records", "--resume", "--tasks", "-o"],
        *["BENCHMARK", "--data", "--gallery", "--predictions", "--processes", "--protocol", "--split", "--split-by"],
        *["--clip-model", "--dino-model", "--fid-model", "--lpips-weights", "--pictures", *SAMPLING],
    ],
    "data": [
        *["FORMAT", "--count", "--from", "--per-shard", "--seed", "--shards", "--split", "--split-by", "--to"],
    ],
    "calibrate": ["--count", "--output", "-o", *PIPELINE],
    "convert": [],
    "convert illume-plus": [
        *["--decoder", "--dtype", "--hierarchical", "--language-model", "--mask-decoder", "--tokenizer", *CONVERSION],
    ],
    "convert assemble": [
        *["--dtype", "--hierarchical", "--language-model", "--mask-decoder", "--sdxl", "--tokenizer", "--vision-tower"],
        *CONVERSION,
    ],
    "convert to-original": ["--pipeline", "--which", *CONVERSION],
    "info": ["DIR"],
}


def words(parser: argparse.ArgumentParser) -> list[str]:
    found = []
    for action in parser._actions:
        if not isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
            found += action.option_strings or [str(action.metavar)]
    return sorted(found)


def below(parser: argparse.ArgumentParser, name: str = "") -> dict[str, list[str]]:
    """The words of a command and of all under it."""
    found = {name: words(parser)}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for own, command in action.choices.items():
                found |= below(command, f"{name} {own}".strip())
    return found


def test_commands_and_options_are_the_frozen_ones():
    assert below(build_parser()) == {name: sorted(options) for name, options in FROZEN.items()}
