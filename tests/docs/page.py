"""The Python blocks of a page, and how they are run: each after the page's first one, in a folder of its own.

A comment `<!-- test: WORD -->` on the line before a block says what it needs: `hub` the stand-in of the Hub (run by
tests/hub), `sdxl` a `StableDiffusionXLPipeline` called sdxl, `guides` a ControlNet, SDXL's text encoders and an IP-Adapter
called as they are, `quant` the extra of that name, `slow` and `gpu` their markers. Blocks see the names of the first one;
the pipeline is a copy, so that a block may do with it what it likes.
"""

from __future__ import annotations

import copy
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from diffusers_focus.data.world import render, sample_scene

NEEDS = ("", "hub", "sdxl", "guides", "quant", "slow", "gpu")
_BLOCK = re.compile(r"(?:^<!-- test: (?P<need>\w+) -->\n)?^```python\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block: its page, the line it begins on, the heading it stands under, its text and what it needs."""

    page: str
    line: int
    heading: str
    code: str
    need: str

    def run(self, names: dict[str, Any]) -> dict[str, Any]:
        """Run it; returns its names."""
        # Line numbers of errors are those of the page.
        code = compile("\n" * self.line + self.code, self.page, "exec")
        exec(code, names)
        return names


def read_blocks(page: Path) -> list[Block]:
    """The blocks of a page in their order."""
    text, blocks = page.read_text(encoding="utf-8"), []
    for found in _BLOCK.finditer(text):
        before = text[: found.start("code")]
        headings = re.findall(r"^#+ (.+)$", before, re.MULTILINE)
        blocks.append(Block(page.name, before.count("\n"), headings[-1], found["code"], found["need"] or ""))
    return blocks


def enter(place: Path, root: Path) -> None:
    """Make a folder look like the repository to the blocks, and go there."""
    (place / "pipelines").symlink_to(root / "pipelines")
    Image.fromarray(render(sample_scene(1_000_000), 128).image).save(place / "scene.png")
    os.chdir(place)


def names_for(block: Block, first: dict[str, Any]) -> dict[str, Any]:
    """What a block begins with."""
    return {**first, "pipe": copy.deepcopy(first["pipe"])} if re.search(r"\bpipe\b", block.code) else dict(first)
