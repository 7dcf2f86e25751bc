"""Benchmarks that are drawn: every record through the pipeline, its picture into the layout the benchmark's own scorer reads.

Paper: FOCUS (arXiv 2506.16806), section 4.5 and the generation table. Where a language model or a detector judges (ImgEdit,
GEdit-Bench, GenEval), the pictures are what counts, and the figures here stand beside that judgement, not in its place.

Every picture draws from random numbers of its own, which its name decides, so that it does not depend on what else is drawn, in
which order, or by how many processes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.files import SampleFiles
from ..sharing.files import replace_file
from .gallery import Strip, write_sheet
from .picture_scores import Drawn, Measures, picture_row

_WORST_FIRST = ("region_accuracy", "CLIP-DIR", "CLIP-T", "DINO")


class Drawing:
    """Draws records, or finds what was drawn, and measures it.

    Args:
        pipe: with the calls of `FocusPipeline`; None where all pictures lie in `place` already.
        root: the folder of the data.
        place: the folder of the pictures.
        measures: what they are measured with.
        options: further arguments of every call, such as `num_inference_steps`; and the "seed" of all random numbers.

    Raises:
        ValueError: the pipeline cannot draw.
    """

    def __init__(self, pipe: Any, root: Path, place: Path, measures: Measures, options: dict[str, Any]) -> None:
        if pipe is not None and (not hasattr(pipe, "edit") or getattr(pipe, "unet", True) is None):
            raise ValueError(
                f"{type(pipe).__name__} cannot draw: it has no unet. Load a pipeline with all its components."
            )
        self.pipe, self.root, self.place, self.measures = pipe, root, place, measures
        self.options = {name: value for name, value in options.items() if name != "seed"}
        self.seed = options.get("seed", 0)

    def answer(self, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """A row for each record; one that cannot be read says why."""
        return [self._edit(record) if record["task"] == "edit" else self._generate(record) for record in records]

    def _edit(self, record: dict[str, Any]) -> dict[str, Any]:
        files, info = SampleFiles(self.root), record["info"]
        turns = info.get("turns") or [[record["text"], info["place"], info.get("mask")]]
        try:
            source = files.picture(record["images"][0])
            given = [
                {"mask_image": painted_region(files, mask, source.size)} if info.get("mask_given") else {}
                for *_, mask in turns
            ]
            result = self._drawn(info["place"]) if self.pipe is None else source
        except ValueError as error:
            return {"skipped": str(error)}
        edit_mask = None
        if self.pipe is not None:
            for (text, place, _), options in zip(turns, given):
                out = self.pipe.edit(result, text, generator=self._generator(place), **self.options, **options)
                result, edit_mask = out.images[0], np.asarray(out.edit_masks[0], dtype=bool)
                self._save(place, result)
            if "source_place" in info:
                self._save(info["source_place"], source)
        # Only now is the truth read.
        try:
            target = files.picture(record["result"]) if "result" in record else None
            # A session's turns have regions of their own, and its result differs from the source in all of them.
            known = "mask" in info and "turns" not in info
            region = painted_region(files, info["mask"], source.size) if known else None
        except ValueError as error:
            return {"skipped": str(error)}
        captions = info.get("direction_captions")
        drawn = Drawn(
            result=result,
            source=source,
            target=target,
            region=region,
            edit_mask=None if info.get("mask_given") else edit_mask,
            caption=info.get("target_caption"),
            captions=None if captions is None else (captions[0], captions[1]),
        )
        head = {"scene": info.get("image_id", record["key"]), "kind": info.get("kind", ""), "place": info["place"]}
        return head | picture_row(drawn, self.measures)

    def _generate(self, record: dict[str, Any]) -> dict[str, Any]:
        info = record["info"]
        if self.pipe is None:
            try:
                pictures = [self._drawn(place) for place in info["places"]]
            except ValueError as error:
                return {"skipped": str(error)}
        else:
            generators = [self._generator(place) for place in info["places"]]
            out = self.pipe.generate(
                record["text"], num_images_per_prompt=len(generators), generator=generators, **self.options
            )
            pictures = list(out.images)
            for name, text in info.get("beside", {}).items():
                self._write(name, lambda path, text=text: path.write_text(text, encoding="utf-8"))
            for place, picture in zip(info["places"], pictures, strict=True):
                self._save(place, picture)
        found = [picture_row(Drawn(result=one, caption=record["text"]), self.measures) for one in pictures]
        means = {name: float(np.mean([row[name] for row in found])) for name in found[0]}
        return {"scene": record["key"], "kind": info.get("kind", ""), "place": info["places"][0], **means}

    def _generator(self, place: str) -> torch.Generator:
        return torch.Generator("cpu").manual_seed(zlib.crc32(f"{self.seed}/{place}".encode()))

    def _drawn(self, place: str) -> Image.Image:
        return SampleFiles(self.place).picture(place)

    def _save(self, place: str, picture: Image.Image) -> None:
        self._write(place, lambda path: picture.save(path, format="PNG"))

    def _write(self, name: str, write: Callable[[Path], Any]) -> None:
        path = self.place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, write)


def painted_region(files: SampleFiles, name: str, size: tuple[int, int]) -> np.ndarray:
    """bool [H, W]: where MagicBrush's annotators wanted an edit, transparent in the mask's picture; in one without transparency
    what is white.

    Raises:
        ValueError: it is missing, damaged or of another size (width, height) than its picture.
    """
    try:
        with Image.open(files.open(name)) as picture:
            levels = np.asarray(picture.convert("RGBA"))
    except FileNotFoundError:
        raise ValueError(f"The mask {files.path_of(name)!r} is missing.") from None
    except Exception as error:
        raise ValueError(f"The mask {files.path_of(name)!r} cannot be read: {error}") from None
    if levels.shape[1::-1] != size:
        raise ValueError(
            f"The mask {files.path_of(name)!r} is {levels.shape[1]} x {levels.shape[0]} pixels, its picture {size[0]} x {size[1]}."
        )
    clear = levels[..., 3] < 255
    return clear if clear.any() else (levels[..., :3] == 255).all(axis=-1)


def write_drawn_gallery(
    path: Path, rows: Sequence[dict[str, Any]], records: dict[str, dict[str, Any]], root: Path, place: Path, count: int
) -> int:
    """Draw before and after (and the true picture) of `count` samples side by side, worst first where a figure says which.

    Returns:
        How many were drawn; no file is written where it is none.
    """
    name = next((one for one in _WORST_FIRST if any(one in row for row in rows)), None)
    chosen = sorted(rows, key=lambda row: row.get(name, np.inf)) if name is not None else list(rows)
    strips = []
    for row in chosen[:count]:
        record, files = records[row["key"]], SampleFiles(root)
        panels = [("before", files.picture(one)) for one in record.get("images", ())]
        panels.append(("after", SampleFiles(place).picture(row["place"])))
        if "result" in record and (root / record["result"]).is_file():
            panels.append(("true", files.picture(record["result"])))
        said = ", ".join(f"{key} {row[key]:.3f}" for key in (*_WORST_FIRST, "CLIP-I", "L1") if key in row)
        lines = [f"{row['key']}: {' | '.join(label for label, _ in panels)}", record["text"], *([said] if said else [])]
        strips.append(Strip(lines, [picture for _, picture in panels]))
    return write_sheet(path, strips)
