"""One sample of any task: what it looks like in a file, and what is read from it.

Paper: FOCUS (arXiv 2506.16806), task table of section 1. A *record* is a JSON object; its files are named relative to a folder.
What a model is shown (`Query`) and what is true (`Truth`) are read by two functions, so that an evaluation can ask
without having seen the answer. The format is this project's own; `benchmarks/` writes the published ones in it.

Every record has a `task`, and may have a `key` (its name) and anything else under `info`. Masks and regions are

    mask    "mask.png"                                    bright is inside
            {"png": "palette.png", "index": 2}            one object of a map of numbers
            {"size": [h, w], "counts": ...}               COCO run lengths
            {"size": [h, w], "polygons": [[x, y, ...]]}   COCO polygons
            {"labelme": "a.json", "label": "target"}      ReasonSeg's outlines; "ignore" are those it does not count
    region  {"point": [x, y]}, {"scribble": [[x, y], ...]}, {"box": [x0, y0, x1, y1]}, {"mask": mask}
            {"mask": mask, "grow": "point" | "scribble"}  pixels of clicks or strokes, to be drawn as thick as ours

and the tasks, with what each needs and (in brackets) may have:

    text        text, answer                                a conversation without a picture
    answer      images, text, answer [regions]              caption, question, document; `answer` may be a list of right ones
    referring   images, text, masks [ignored, labels]       one mask an object; an empty list: nothing is meant
    reasoning   images, text, masks [ignored, answer]
    class       images, names, masks, labels
    region      images, regions, masks [ignored]
    clip        images, masks, text | regions | names [labels, region_frame]    masks: for every object a mask or null a frame
    edit        images, text, result [masks, target]
    generation  text, result
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from ..processing.regions import Box, Mask, Point, Region, Scribble, point_radius, stroke_radius
from .coco_masks import annotation_mask, decode_rle, index_map, labelme_masks

# task: (fields it needs, fields it may have); `clip` needs one of text, regions and names on top.
TASKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "text": (("text", "answer"), ()),
    "answer": (("images", "text", "answer"), ("regions",)),
    "referring": (("images", "text", "masks"), ("ignored", "labels")),
    "reasoning": (("images", "text", "masks"), ("ignored", "answer")),
    "class": (("images", "names", "masks", "labels"), ()),
    "region": (("images", "regions", "masks"), ("ignored",)),
    "clip": (("images", "masks"), ("text", "regions", "names", "labels", "region_frame")),
    "edit": (("images", "text", "result"), ("masks", "target")),
    "generation": (("text", "result"), ()),
}
_ALWAYS = ("task", "key", "info")
_LISTS = ("images", "masks", "regions", "names", "labels")
_CLIP_PROMPTS = ("text", "regions", "names")


@dataclass(frozen=True)
class Query:
    """What a model is shown.

    Args:
        task: one of `TASKS`.
        key: the sample's name.
        images: RGB pictures; the frames of a clip in their order.
        text: expression, question, instruction or description; "" where the prompt is another.
        names: classes to look for.
        regions: in pixels of the picture (of frame `region_frame` of a clip).
        region_frame: the frame the regions are on.
        target: what an edit is about, where that is said apart.
    """

    task: str
    key: str
    images: tuple[Image.Image, ...] = ()
    text: str = ""
    names: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    region_frame: int = 0
    target: str | None = None


@dataclass(frozen=True)
class Truth:
    """What is true of a sample.

    Args:
        answers: right answers, the first one the one to learn.
        masks: bool [objects, height, width]; [objects, frames, height, width] of a clip; None where the task has none.
        labels: a name for each object.
        ignored: bool [height, width], pixels that count for nothing.
        result: the edited or described picture, RGB.
    """

    answers: tuple[str, ...] = ()
    masks: np.ndarray | None = None
    labels: tuple[str, ...] = ()
    ignored: np.ndarray | None = None
    result: Image.Image | None = None


@dataclass(frozen=True)
class Sample:
    """A whole sample: what is shown and what is true."""

    query: Query
    truth: Truth
    info: Mapping[str, Any] = field(default_factory=dict)


def check_record(record: Any) -> None:
    """Find fault with a record before a file is opened.

    Raises:
        ValueError: no dict, an unknown task, a field that is missing, empty, of the wrong kind or unknown.
    """
    if not isinstance(record, dict):
        raise ValueError(f"A sample is a JSON object with a task, got {type(record).__name__}.")
    task = record.get("task")
    if not isinstance(task, str) or task not in TASKS:
        raise ValueError(f"The task of a sample is {task!r}; choose from {', '.join(TASKS)}.")
    needed, allowed = TASKS[task]
    missing = [name for name in needed if name not in record]
    if missing:
        raise ValueError(f"A sample of the task {task!r} needs {', '.join(missing)}; it has {', '.join(record)}.")
    unknown = [name for name in record if name not in (*needed, *allowed, *_ALWAYS)]
    if unknown:
        raise ValueError(
            f"A sample of the task {task!r} has no field {', '.join(map(repr, unknown))}; allowed are "
            f"{', '.join((*needed, *allowed, *_ALWAYS))}. Notes belong under 'info'."
        )
    for name in _LISTS:
        if name in record and not isinstance(record[name], list):
            raise ValueError(f"{name} is a list, got {type(record[name]).__name__}.")
    for name in ("text", "target", "result", "key"):
        if name in record and not isinstance(record[name], str):
            raise ValueError(f"{name} is text, got {type(record[name]).__name__}.")
    for name in ("images", "names", "regions"):
        if name in record and not record[name]:
            raise ValueError(f"{name} is an empty list; a sample has at least one.")
    for name in ("images", "names", "labels"):
        if not all(isinstance(item, str) for item in record.get(name, [])):
            raise ValueError(f"{name} is a list of text, got {record[name]!r}.")
    if "answer" in record:
        answers = record["answer"] if isinstance(record["answer"], list) else [record["answer"]]
        if not answers or not all(isinstance(answer, str) for answer in answers):
            raise ValueError("answer is text, or a list of at least one right text.")
    if task == "clip" and not any(name in record for name in _CLIP_PROMPTS):
        raise ValueError("A clip needs something to look for: text, regions or names.")
    if "labels" in record and len(record["labels"]) != len(record["masks"]):
        raise ValueError(f"There are {len(record['labels'])} labels for {len(record['masks'])} masks; give one each.")


def read_query(record: dict[str, Any], root: Path) -> Query:
    """What a model is shown of a record; no true mask, answer or result is read.

    Args:
        record: see the module's docstring.
        root: the folder its files are named from.

    Raises:
        ValueError: the record does not fit its task, or a file is missing, damaged or outside the folder.
    """
    check_record(record)
    images = tuple(_picture(root, name) for name in record.get("images", []))
    if record["task"] == "clip" and len({image.size for image in images}) > 1:
        raise ValueError("The frames of a clip differ in size; bring them to one size first.")
    frame = record.get("region_frame", 0)
    if not isinstance(frame, int) or isinstance(frame, bool) or not 0 <= frame < max(1, len(images)):
        raise ValueError(f"region_frame is {frame!r}; the clip has the frames 0 to {len(images) - 1}.")
    regions = ()
    if "regions" in record:
        width, height = images[frame].size
        regions = tuple(_region(one, root, height, width) for one in record["regions"])
    return Query(
        task=record["task"],
        key=record.get("key", ""),
        images=images,
        text=record.get("text", ""),
        names=tuple(record.get("names", ())),
        regions=regions,
        region_frame=frame,
        target=record.get("target"),
    )


def read_truth(record: dict[str, Any], root: Path, size: tuple[int, int] | None = None) -> Truth:
    """What is true of a record.

    Args:
        record, root: as for `read_query`.
        size: (height, width) of the pictures; read from the first one where left out.

    Raises:
        ValueError: as for `read_query`; or a mask is of another size than the picture.
    """
    check_record(record)
    masks, ignored = None, None
    if size is None and record.get("images"):
        width, height = _picture(root, record["images"][0]).size
        size = (height, width)
    if "masks" in record and size is not None:
        read: list[np.ndarray] = []
        for one in record["masks"]:
            if record["task"] == "clip":
                if not isinstance(one, list) or len(one) != len(record["images"]):
                    raise ValueError(
                        f"An object of a clip has a mask or null for each of its {len(record['images'])} frames."
                    )
                frames = [np.zeros(size, dtype=bool) if m is None else _mask(m, root, *size) for m in one]
                read.append(np.stack(frames))
            else:
                read.append(_mask(one, root, *size))
        empty = (0, len(record["images"]), *size) if record["task"] == "clip" else (0, *size)
        masks = np.stack(read) if read else np.zeros(empty, dtype=bool)
        if "ignored" in record:
            ignored = _mask(record["ignored"], root, *size)
    answer = record.get("answer", ())
    return Truth(
        answers=(answer,) if isinstance(answer, str) else tuple(answer),
        masks=masks,
        labels=tuple(record.get("labels", ())),
        ignored=ignored,
        result=_picture(root, record["result"]) if "result" in record else None,
    )


def read_sample(record: dict[str, Any], root: Path) -> Sample:
    """The whole sample of a record; see `read_query` and `read_truth`."""
    query = read_query(record, root)
    size = (query.images[0].height, query.images[0].width) if query.images else None
    return Sample(query, read_truth(record, root, size), record.get("info", {}))


# --- files ----------------------------------------------------------------------------------------------------------


def inside(root: Path, name: Any) -> Path:
    """A file of the folder; ValueError where the name is no text or leads out of it."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"A file is named by text relative to {str(root)!r}, got {name!r}.")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"The file {name!r} is outside the folder {str(root)!r}; name files relative to it.")
    return root / name


def _picture(root: Path, name: Any) -> Image.Image:
    path = inside(root, name)
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except FileNotFoundError:
        raise ValueError(f"The picture {str(path)!r} is missing.") from None
    except Exception as error:  # damaged pictures raise nearly anything, SyntaxError among it
        raise ValueError(f"The picture {str(path)!r} cannot be read: {error}") from None


def _mask(value: Any, root: Path, height: int, width: int) -> np.ndarray:
    if (
        isinstance(value, dict) and "size" in value and value["size"] != [height, width]
    ):  # before memory is taken for it
        raise ValueError(
            f"A mask has the size {value['size']!r}, but its picture is [{height}, {width}] (height, width)."
        )
    if isinstance(value, str):
        mask = np.asarray(_picture(root, value).convert("L")) > 127
    elif isinstance(value, dict) and "png" in value:
        mask = index_map(inside(root, value["png"])) == value.get("index", 1)
    elif isinstance(value, dict) and "labelme" in value:
        target, ignored = labelme_masks(inside(root, value["labelme"]), height, width)
        mask = ignored if value.get("label") == "ignore" else target
    elif isinstance(value, dict) and "polygons" in value:
        if "size" not in value:
            raise ValueError("Polygons need the size [height, width] of their picture.")
        mask = annotation_mask(value["polygons"], height, width)
    elif isinstance(value, dict) and "counts" in value:
        mask = decode_rle(value)
    else:
        raise ValueError(
            f"A mask is a file name or a dict with png, counts, polygons or labelme, got {repr(value)[:60]}; see the "
            "docstring of diffusers_focus.data.samples."
        )
    if mask.shape != (height, width):
        raise ValueError(
            f"A mask is {mask.shape[1]} wide and {mask.shape[0]} high, but its picture is {width} wide and {height} high."
        )
    return mask


def _region(value: Any, root: Path, height: int, width: int) -> Region:
    kinds = {"point", "scribble", "box", "mask"} & set(value) if isinstance(value, dict) else set()
    if len(kinds) != 1:
        raise ValueError(f"A region is a dict with one of point, scribble, box and mask, got {repr(value)[:60]}.")
    (kind,) = kinds
    try:
        if kind == "point":
            region: Region = Point(*value["point"])
        elif kind == "scribble":
            region = Scribble([tuple(point) for point in value["scribble"]])
        elif kind == "box":
            region = Box(*value["box"])
        else:
            region = Mask(_grown(_mask(value["mask"], root, height, width), value.get("grow")))
        region.rasterize(height, width)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"The region {repr(value)[:60]} is not understood: {error}") from None
    return region


def _grown(mask: np.ndarray, kind: Any) -> np.ndarray:
    """Single pixels drawn as thick as a `Point` or a `Scribble` through them is (in a square brush)."""
    if kind is None:
        return mask
    radii = {"point": point_radius, "scribble": stroke_radius}
    if kind not in radii:
        raise ValueError(f"A region can grow like a point or a scribble, got {kind!r}.")
    radius = radii[kind](*mask.shape)
    return np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(2 * radius + 1))) > 0


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture, from its header. ValueError where it has none."""
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except Exception as error:  # as above
        raise ValueError(f"The picture {str(path)!r} cannot be read: {error}") from None


def names_of(records: Sequence[dict[str, Any]]) -> list[str]:
    """The key of every record, "0000012" where it has none. ValueError where two are the same."""
    keys = [record.get("key") or f"{index:07d}" for index, record in enumerate(records)]
    if len(set(keys)) != len(keys):
        ((double, _),) = Counter(keys).most_common(1)
        raise ValueError(f"Two samples are called {double!r}; a key names one.")
    return keys
