"""The worst samples of a benchmark as one picture: what was asked, what is true and what came back, side by side.

A row of the sheet is a sample: the picture, the true masks (green), the found ones (red) and, above them, its name, its prompt
and how good it was; of answers the words. What is drawn comes from the rows of a run, so nothing is asked again. Rows of drawn
pictures are chosen in drawing.py.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data.coco_masks import decode_rle
from ..data.samples import Query, Truth, read_query, read_truth
from ..sharing.files import replace_file

PANEL = 240  # pixels, the height of a picture
TEXT_LINES = 4
_LINE, _MARGIN = 13, 8
_TRUE, _FOUND = (0, 190, 60), (230, 40, 40)


def worst(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The `count` worst rows, worst first; none of scores that say nothing about a single sample (mAP)."""
    good = [(value, place) for place, row in enumerate(rows) if (value := goodness(row)) is not None and value < 1]
    return [rows[place] for _, place in sorted(good)[:count]]


def goodness(row: dict[str, Any]) -> float | None:
    """How good a sample's answer is, 0 to 1; None where its row does not say."""
    for name in ("iou", "J&F", "right"):
        if name in row:
            return float(row[name])
    if row.get("objects"):
        return float(np.mean([one["J"][0] for one in row["objects"]]))
    return None


def write_gallery(
    path: str | os.PathLike, rows: Sequence[dict[str, Any]], records: dict[str, dict[str, Any]], root: Path, count: int
) -> int:
    """Draw the worst samples of a run.

    Args:
        path: of the picture, a PNG.
        rows: of the run.
        records: by their keys.
        root: the folder their files are named from.
        count: at most so many samples.

    Returns:
        How many were drawn; the file is not written where it is none.
    """
    strips = []
    for row in worst(rows, count):
        record = records[row["key"]]
        query, truth = read_query(record, root), read_truth(record, root)
        strips.append(_sample_strip(row, query, truth))
    return write_sheet(path, strips)


@dataclass(frozen=True)
class Strip:
    """A row of a sheet: lines of text above pictures side by side."""

    lines: list[str]
    panels: list[Image.Image]


def write_sheet(path: str | os.PathLike, rows: Sequence[Strip]) -> int:
    """Write the rows as one picture, a PNG that is complete or not there at all (nor where there is none); returns their number."""
    strips = [_drawn(row) for row in rows]
    if not strips:
        return 0
    width = max(strip.width for strip in strips)
    sheet = Image.new("RGB", (width, sum(strip.height for strip in strips)), (255, 255, 255))
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    replace_file(Path(path), lambda temporary: sheet.save(temporary, format="PNG"))
    return len(strips)


def _sample_strip(row: dict[str, Any], query: Query, truth: Truth) -> Strip:
    frame = row.get("worst_frame", 0)
    picture = query.images[frame] if query.images else Image.new("RGB", (PANEL, PANEL), (240, 240, 240))
    panels = [picture]
    if truth.masks is not None:
        masks = truth.masks[:, frame] if truth.masks.ndim == 4 else truth.masks
        panels.append(_painted(picture, masks.any(axis=0), _TRUE))
        if "found" in row:
            panels.append(_painted(picture, decode_rle(row["found"]), _FOUND))
    asked = query.text or ", ".join(query.names) or " ".join(type(one).__name__.lower() for one in query.regions)
    lines = [f"{row['key']}: {goodness(row):.3f}" + (f", frame {frame}" if query.task == "clip" else ""), asked]
    if "answer" in row:
        lines += [f"answer: {row['answer']}", f"right: {' | '.join(dict.fromkeys(truth.answers))}"]
    return Strip(lines, panels)


def _drawn(row: Strip) -> Image.Image:
    panels = [panel.resize((max(1, round(panel.width * PANEL / panel.height)), PANEL)) for panel in row.panels]
    width = max(sum(panel.width for panel in panels) + _MARGIN * (len(panels) + 1), 2 * PANEL)
    font = ImageFont.load_default()
    wrapped = [part for line in row.lines for part in textwrap.wrap(_plain(line), max(20, width // 7))[:TEXT_LINES]]
    strip = Image.new("RGB", (width, PANEL + 3 * _MARGIN + _LINE * len(wrapped)), (255, 255, 255))
    draw = ImageDraw.Draw(strip)
    for index, line in enumerate(wrapped):
        draw.text((_MARGIN, _MARGIN + _LINE * index), line, fill=(0, 0, 0), font=font)
    left = _MARGIN
    for panel in panels:
        strip.paste(panel, (left, 2 * _MARGIN + _LINE * len(wrapped)))
        left += panel.width + _MARGIN
    return strip


def _plain(text: str) -> str:
    """What Pillow's own font can draw."""
    return " ".join(text.split()).encode("latin-1", "replace").decode("latin-1")


def _painted(picture: Image.Image, mask: np.ndarray, colour: tuple[int, int, int]) -> Image.Image:
    """Half the colour inside the mask, grey outside of it."""
    pixels = np.asarray(picture, dtype=np.float32)
    inside = mask[..., None]
    painted = np.where(inside, (pixels + np.asarray(colour, dtype=np.float32)) / 2, pixels * 0.5 + 60)
    return Image.fromarray(painted.round().clip(0, 255).astype(np.uint8))
