"""Draw the sheet of examples beside focus-tiny's card: 24 unselected scenes with what was asked, found, edited and true.

Command:   python recipes/examples.py                   (pipelines/focus-tiny/examples.jpg, seeds 1,000,000 to 1,000,023)
           python recipes/examples.py --first 24 --output more.jpg
Hardware:  one CPU core, half a minute.

The expressions, instructions and random numbers are those of the same scenes in `diffusers-focus eval` (tasks "referring" and
"edits"), so the sheet shows what the card counts, failures included. A cell holds, from left to right: the scene, the mask found
and the true one for the first line of text, the edit and its true re-render for the second.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "pipelines" / "focus-tiny"
COLUMNS, CELL, LINE, MARGIN = 2, 112, 13, 6
RIGHT, WRONG = (0, 130, 50), (190, 30, 30)
MARK = {"colours": [(255, 0, 255)], "opacity": 0.7}  # no object has this colour


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", metavar="DIR", default=str(FOLDER))
    parser.add_argument("--first", type=int, default=0, metavar="N", help="seeds from 1,000,000 + N")
    parser.add_argument("--count", type=int, default=24, metavar="N")
    parser.add_argument("--output", metavar="FILE", default=str(FOLDER / "examples.jpg"))
    return parser.parse_args()


@torch.no_grad()
def examples(folder: str, first: int, count: int) -> list[tuple[list[Image.Image], list[tuple[str, bool]]]]:
    """Of each scene its five pictures, and two lines of text with whether the model was right."""
    from diffusers_focus import FocusPipeline
    from diffusers_focus.evaluation import metrics
    from diffusers_focus.evaluation.edits import edit_sample, edit_truth, is_right, seeded, to_levels
    from diffusers_focus.evaluation.tasks import draw_batch, referring_sample, union_mask
    from diffusers_focus.processing.drawing import draw_masks

    pipe = FocusPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    batch = draw_batch("in", first, count)
    images = [Image.fromarray(drawn.image) for drawn in batch.drawn]
    encoding = pipe.encode_image(images)
    asked = [referring_sample(scene) for scene in batch.scenes]
    edits = [edit_sample(scene) for scene in batch.scenes]
    found = pipe.segment(encoding, [one.text if one else "the object" for one in asked]).masks
    out = pipe.edit(
        encoding,
        [edit.instruction for edit in edits],
        generator=[seeded(scene.seed) for scene in batch.scenes],
        output_type="np",
    )
    size = images[0].height
    rows = []
    for i, (scene, picture) in enumerate(zip(batch.scenes, to_levels(out.images, size), strict=True)):
        truth = edit_truth(scene, edits[i], size)
        meant = batch.drawn[i].masks[list(asked[i].targets)].any(0) if asked[i] else None
        mask = union_mask(found[i], size)
        iou = metrics.iou(mask, meant) if meant is not None else 0.0
        panels = [
            images[i],
            draw_masks(images[i], mask[None], **MARK),
            images[i] if meant is None else draw_masks(images[i], meant[None], **MARK),
            Image.fromarray(picture.round().clip(0, 255).astype("uint8")),
            Image.fromarray(truth.truth),
        ]
        text = asked[i].text if asked[i] else "(no expression)"
        lines = [
            (f"{scene.seed}: {text} (IoU {iou:.2f})", iou >= 0.5),
            (edits[i].instruction, is_right(picture, truth)),
        ]
        rows.append((panels, lines))
    return rows


def draw_sheet(rows: list[tuple[list[Image.Image], list[tuple[str, bool]]]]) -> Image.Image:
    """All examples on one picture, in columns; right lines are green, wrong ones red."""
    width, height = 5 * CELL + 2 * MARGIN, CELL + 2 * LINE + 2 * MARGIN
    down = -(-len(rows) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width, down * height), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for i, (panels, lines) in enumerate(rows):
        left, top = (i // down) * width + MARGIN, (i % down) * height + MARGIN
        for row, (text, right) in enumerate(lines):
            draw.text((left, top + row * LINE), text, fill=RIGHT if right else WRONG)
        for place, panel in enumerate(panels):
            cell = panel.resize((CELL - 2, CELL - 2), Image.Resampling.LANCZOS)
            sheet.paste(cell, (left + place * CELL, top + 2 * LINE))
    return sheet


def main() -> None:
    """Measure, draw, write; an older sheet stays until the new one is whole."""
    options = arguments()
    rows = examples(options.pipeline, options.first, options.count)
    target = Path(options.output)
    temporary = target.with_name(f".{target.stem}.tmp{target.suffix}")
    draw_sheet(rows).save(temporary, quality=80)
    os.replace(temporary, target)
    masks, edits = (sum(lines[k][1] for _, lines in rows) for k in range(2))
    print(f"{target}: of {len(rows)} scenes {masks} expressions found (IoU at least 0.5), {edits} edits right")


if __name__ == "__main__":
    main()
