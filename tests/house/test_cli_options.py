"""The command line is an interface: scripts rely on these words. Adding one means adding it here; none may vanish."""

from __future__ import annotations

import argparse

from diffusers_focus.cli import build_parser

PIPELINE = ["--device", "--dtype", "--pipeline"]
REGION = ["--box", "--mask", "--point", "--scribble"]
SAMPLING = ["--guidance-scale", "--seed", "--steps"]

FROZEN = {
    "": ["--debug", "--version"],
    "ask": ["IMAGE", "QUESTION", *REGION, *PIPELINE],
    "segment": ["IMAGE", "EXPRESSION", *REGION, *PIPELINE, "--output", "-o"],
    "edit": [
        *["IMAGE", "INSTRUCTION", *REGION, *PIPELINE, *SAMPLING, "--output", "-o"],
        *["--mask-image", "--save-mask", "--strength", "--target"],
    ],
    "generate": ["PROMPT", *PIPELINE, *SAMPLING, "--output", "-o"],
    "world": ["--count", "--held-out", "--output", "--seed", "--size", "-o"],
    "train": ["--max-minutes", "--no-resume", "--output", "--resume", "--set", "--stage", "--threads"],
    "eval": ["--count", "--groups", "--output", "--pipeline", "--tasks", "-o"],
    "info": ["DIR"],
}


def words(parser: argparse.ArgumentParser) -> list[str]:
    found = []
    for action in parser._actions:
        if not isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
            found += action.option_strings or [str(action.metavar)]
    return sorted(found)


def test_commands_and_options_are_the_frozen_ones():
    parser = build_parser()
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction)).choices
    found = {"": words(parser), **{name: words(command) for name, command in commands.items()}}
    assert found == {name: sorted(options) for name, options in FROZEN.items()}
