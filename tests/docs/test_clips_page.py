"""docs/clips.md: every snippet runs, and its commands are understood."""

from __future__ import annotations

import os
import re
import shlex

import pytest

from diffusers_focus.cli import build_parser

from tests.conftest import ROOT
from tests.docs.page import enter, names_for, read_blocks

pytestmark = pytest.mark.whole

PAGE = ROOT / "docs" / "clips.md"
BLOCKS = read_blocks(PAGE)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The names of the page's first block."""
    if not (ROOT / "pipelines" / "focus-tiny" / "model_index.json").is_file():
        pytest.skip("pipelines/focus-tiny is not published yet")
    before = os.getcwd()
    enter(tmp_path_factory.mktemp("page"), ROOT)
    names = BLOCKS[0].run({})
    names["pipe"].set_progress_bar_config(disable=True)
    yield names
    os.chdir(before)


@pytest.mark.parametrize("block", [pytest.param(block, id=f"{block.line}-{block.heading}") for block in BLOCKS[1:]])
def test_snippet_runs(first, block):
    block.run(names_for(block, first))
    if "FocusClipWriter" in block.code:
        frames = [f"{index:05d}.png" for index in range(5)]
        assert sorted(os.listdir("found")) == [*frames, "masks.jsonl", "objects.json", "overlay.gif"]


def test_commands_are_understood():
    commands = re.findall(r"^diffusers-focus ([^#\n]+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        build_parser().parse_args(shlex.split(command))
