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

    text        text, answer [history]                      a conversation without a picture
    answer      images, text, answer [regions, history]     caption, question, document; `answer` may be a list of right ones
    referring   images, text, masks [ignored, labels]       one mask an object; an empty list: nothing is meant
    reasoning   images, text, masks [ignored, answer, labels]
    class       images, names, masks, labels
    region      images, regions, masks [ignored, labels]    as many regions as masks: one each; else all masks are meant by any
    clip        images, masks, text | regions | names [labels, region_frame]    masks: for every object a mask or null a frame
    edit        images, text, result [masks, target, change, labels]    masks: what is meant; change: where pixels may change
    generation  text, result

`history` holds the earlier turns of a conversation, [[question, answer], ...].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..processing.regions import Box, Mask, Point, Region, Scribble, point_radius, stroke_radius
from .coco_masks import annotation_mask, decode_rle, index_map, labelme_masks
from .files import SampleFiles
from .regions_sampling import dilate

# task: (fields it needs, fields it may have); `clip` needs one of text, regions and names on top.
TASKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "text": (("text", "answer"), ("history",)),
    "answer": (("images", "text", "answer"), ("regions", "history")),
    "referring": (("images", "text", "masks"), ("ignored", "labels")),
    "reasoning": (("images", "text", "masks"), ("ignored", "answer", "labels")),
    "class": (("images", "names", "masks", "labels"), ()),
    "region": (("images", "regions", "masks"), ("ignored", "labels")),
    "clip": (("images", "masks"), ("text", "regions", "names", "labels", "region_frame")),
    "edit": (("images", "text", "result"), ("masks", "target", "change", "labels")),
    "generation": (("text", "result"), ()),
}
_ALWAYS = ("task", "key", "info")
_LISTS = ("images", "masks", "regions", "names", "labels", "history")
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
        history: earlier turns, (question, answer) each.
    """

    task: str
    key: str
    images: tuple[Image.Image, ...] = ()
    text: str = ""
    names: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    region_frame: int = 0
    target: str | None = None
    history: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Truth:
    """What is true of a sample.

    Args:
        answers: right answers, the first one the one to learn.
        masks: bool [objects, height, width]; [objects, frames, height, width] of a clip; None where the task has none.
        labels: a name for each object.
        ignored: bool [height, width], pixels that count for nothing.
        result: the edited or described picture, RGB.
        change: bool [height, width], where pixels of an edit may change.
    """

    answers: tuple[str, ...] = ()
    masks: np.ndarray | None = None
    labels: tuple[str, ...] = ()
    ignored: np.ndarray | None = None
    result: Image.Image | None = None
    change: np.ndarray | None = None


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
    for turn in record.get("history", []):
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(said, str) for said in turn):
            raise ValueError(f"history is a list of [question, answer], got {repr(turn)[:60]}.")
    if task == "clip" and not any(name in record for name in _CLIP_PROMPTS):
        raise ValueError("A clip needs something to look for: text, regions or names.")
    if "labels" in record and len(record["labels"]) != len(record.get("masks", [])):
        raise ValueError(
            f"There are {len(record['labels'])} labels for {len(record.get('masks', []))} masks; give one each."
        )


def read_query(record: dict[str, Any], root: Path | SampleFiles) -> Query:
    """What a model is shown of a record; no true mask, answer or result is read.

    Args:
        record: see the module's docstring.
        root: the folder its files are named from, or the files themselves.

    Raises:
        ValueError: the record does not fit its task, or a file is missing, damaged or outside the folder.
    """
    check_record(record)
    files = SampleFiles.of(root)
    images = tuple(files.picture(name) for name in record.get("images", []))
    if record["task"] == "clip" and len({image.size for image in images}) > 1:
        raise ValueError("The frames of a clip differ in size; bring them to one size first.")
    frame = record.get("region_frame", 0)
    if not isinstance(frame, int) or isinstance(frame, bool) or not 0 <= frame < max(1, len(images)):
        raise ValueError(f"region_frame is {frame!r}; the clip has the frames 0 to {len(images) - 1}.")
    regions = ()
    if "regions" in record:
        width, height = images[frame].size
        regions = tuple(_region(one, files, height, width) for one in record["regions"])
    return Query(
        task=record["task"],
        key=record.get("key", ""),
        images=images,
        text=record.get("text", ""),
        names=tuple(record.get("names", ())),
        regions=regions,
        region_frame=frame,
        target=record.get("target"),
        history=tuple((question, answer) for question, answer in record.get("history", [])),
    )


def read_truth(record: dict[str, Any], root: Path | SampleFiles, size: tuple[int, int] | None = None) -> Truth:
    """What is true of a record.

    Args:
        record, root: as for `read_query`.
        size: (height, width) of the pictures; read from the first one where left out.

    Raises:
        ValueError: as for `read_query`; or a mask is of another size than the picture.
    """
    check_record(record)
    files = SampleFiles.of(root)
    masks, ignored, change = None, None, None
    if size is None and record.get("images"):
        width, height = files.picture(record["images"][0]).size
        size = (height, width)
    if "masks" in record and size is not None:
        read: list[np.ndarray] = []
        for one in record["masks"]:
            if record["task"] == "clip":
                if not isinstance(one, list) or len(one) != len(record["images"]):
                    raise ValueError(
                        f"An object of a clip has a mask or null for each of its {len(record['images'])} frames."
                    )
                frames = [np.zeros(size, dtype=bool) if m is None else _mask(m, files, *size) for m in one]
                read.append(np.stack(frames))
            else:
                read.append(_mask(one, files, *size))
        empty = (0, len(record["images"]), *size) if record["task"] == "clip" else (0, *size)
        masks = np.stack(read) if read else np.zeros(empty, dtype=bool)
        if "ignored" in record:
            ignored = _mask(record["ignored"], files, *size)
    if "change" in record and size is not None:
        change = _mask(record["change"], files, *size)
    answer = record.get("answer", ())
    return Truth(
        answers=(answer,) if isinstance(answer, str) else tuple(answer),
        masks=masks,
        labels=tuple(record.get("labels", ())),
        ignored=ignored,
        result=files.picture(record["result"]) if "result" in record else None,
        change=change,
    )


def read_sample(record: dict[str, Any], root: Path | SampleFiles) -> Sample:
    """The whole sample of a record; see `read_query` and `read_truth`."""
    root = SampleFiles.of(root)  # a picture of both is decoded once
    query = read_query(record, root)
    size = (query.images[0].height, query.images[0].width) if query.images else None
    return Sample(query, read_truth(record, root, size), record.get("info", {}))


# --- files ----------------------------------------------------------------------------------------------------------


def _mask(value: Any, files: SampleFiles, height: int, width: int) -> np.ndarray:
    if (
        isinstance(value, dict) and "size" in value and value["size"] != [height, width]
    ):  # before memory is taken for it
        raise ValueError(
            f"A mask has the size {value['size']!r}, but its picture is [{height}, {width}] (height, width)."
        )
    if isinstance(value, str):
        mask = np.asarray(files.picture(value).convert("L")) > 127
    elif isinstance(value, dict) and "png" in value:
        mask = index_map(files.open(value["png"]), files.path_of(value["png"])) == value.get("index", 1)
    elif isinstance(value, dict) and "labelme" in value:
        target, ignored = labelme_masks(files.read(value["labelme"]), files.path_of(value["labelme"]), height, width)
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


def _region(value: Any, files: SampleFiles, height: int, width: int) -> Region:
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
            region = Mask(_grown(_mask(value["mask"], files, height, width), value.get("grow")))
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
    return dilate(mask, radius)


def names_of(records: Sequence[dict[str, Any]]) -> list[str]:
    """The key of every record, "0000012" where it has none. ValueError where two are the same."""
    keys = [record.get("key") or f"{index:07d}" for index, record in enumerate(records)]
    if len(set(keys)) != len(keys):
        ((double, _),) = Counter(keys).most_common(1)
        raise ValueError(f"Two samples are called {double!r}; a key names one.")
    return keys


def rename_files(record: dict[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    """The record with every file it names called something else; what is no file name stays.

    Args:
        record: one that fits its task.
        rename: old name -> new name; called in the order of the fields, pictures first.
    """

    def mask(value: Any) -> Any:
        if isinstance(value, str):
            return rename(value)
        if isinstance(value, dict):
            return {key: rename(one) if key in ("png", "labelme") else one for key, one in value.items()}
        return [mask(one) for one in value] if isinstance(value, list) else value

    changed = dict(record)
    for name in ("images", "masks"):
        if name in record:
            changed[name] = [mask(one) for one in record[name]]
    for name in ("ignored", "change", "result"):
        if name in record:
            changed[name] = mask(record[name])
    if "regions" in record:
        changed["regions"] = [one | {"mask": mask(one["mask"])} if "mask" in one else one for one in record["regions"]]
    return changed
