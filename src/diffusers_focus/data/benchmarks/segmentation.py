"""ReasonSeg, COCO-Interactive and DAVIS 2017, read from the files their authors publish, as records of samples.py.

Formats: dvlab-research/LISA (ReasonSeg; Lai et al. 2023), zamling/PSALM (COCO-Interactive; Zhang et al. 2024) and the DAVIS 2017
challenge (Pont-Tuset et al. 2017; semi-supervised track).

    ReasonSeg          DIR/val/x.jpg, DIR/val/x.json                    (or DIR/ReasonSeg/val/...)
    COCO-Interactive   DIR/coco_interactive_val_psalm.json, DIR/val2017/*.jpg
    DAVIS 2017         DIR/JPEGImages/480p/<clip>/00000.jpg, DIR/Annotations/480p/<clip>/00000.png, DIR/ImageSets/2017/val.txt
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..coco_masks import index_map, read_labelme
from .refer import image_folder, read_json

REASON_SEG_SPLITS = ("train", "val", "test")
INTERACTIVE_SPLITS = ("train", "val")
INTERACTIVE_KINDS = ("point", "scribble", "box", "mask")
DAVIS_SPLITS = ("train", "val")


def reason_seg_records(root: Path, split: str = "val", every_question: bool = False) -> Iterator[dict[str, Any]]:
    """One record a picture: task "reasoning", its first question, the union of its target shapes.

    As LISA evaluates: shapes labelled "ignore" take pixels out of the count, and of several questions the first one is asked.
    `every_question` makes a record of each, for training.
    A picture whose file of questions is damaged gives a record that cannot be read, so that a run counts it.

    Raises:
        ValueError: an unknown split. FileNotFoundError: there is no such folder, or no picture in it.
    """
    _check("ReasonSeg", split, REASON_SEG_SPLITS)
    folder = image_folder(root, (split, f"ReasonSeg/{split}"))
    pictures = sorted((root / folder).glob("*.jpg"))
    if not pictures:
        raise FileNotFoundError(f"there is no .jpg in {str(root / folder)!r}")
    return (one for picture in pictures for one in _reason_seg(root, folder, picture, every_question))


def _reason_seg(root: Path, folder: str, picture: Path, every_question: bool) -> list[dict[str, Any]]:
    notes = f"{folder}/{picture.stem}.json"
    record: dict[str, Any] = {
        "task": "reasoning",
        "key": picture.stem,
        "images": [f"{folder}/{picture.name}"],
        "masks": [{"labelme": notes, "label": "target"}],
        "ignored": {"labelme": notes, "label": "ignore"},
        "info": {"image_id": picture.stem},
    }
    try:
        found = read_labelme((root / notes).read_bytes(), str(root / notes))
        texts = found["text"] if isinstance(found["text"], list) else [found["text"]]
        record["text"] = str(texts[0]).strip()
        record["info"]["is_sentence"] = bool(found.get("is_sentence"))
        record["info"]["questions"] = len(texts)
        others = [record | {"key": f"{picture.stem}-{i}", "text": str(t).strip()} for i, t in enumerate(texts) if i]
    except (OSError, ValueError, KeyError, IndexError) as error:
        # Without a text the record does not fit its task, which whoever reads it counts.
        record["info"]["problem"] = f"{notes} has no question that can be read: {error!r}"
        others = []
    return [record, *others] if every_question else [record]


def interactive_records(root: Path, split: str = "val", kind: str = "point") -> Iterator[dict[str, Any]]:
    """One record an object of COCO-Interactive: task "region", the prompt of a kind, the object's mask.

    A click or stroke is stored as single pixels there and drawn as thick as ours here (PSALM draws disks of 10 and 5 pixels).
    Objects for which PSALM's script drew no such prompt have an empty one; they cannot be asked, and a run counts them.

    Raises:
        ValueError: an unknown split or kind, or a damaged file. FileNotFoundError: a file or the pictures are missing.
    """
    _check("COCO-Interactive", split, INTERACTIVE_SPLITS)
    if kind not in INTERACTIVE_KINDS:
        raise ValueError(
            f"COCO-Interactive has no prompts of the kind {kind!r}; choose from {', '.join(INTERACTIVE_KINDS)}."
        )
    file = root / f"coco_interactive_{split}_psalm.json"
    found = read_json(file)
    pictures = image_folder(root, (f"{split}2017", f"images/{split}2017", f"coco/{split}2017"))
    if not isinstance(found, list):
        raise ValueError(f"{str(file)!r} holds a {type(found).__name__}; COCO-Interactive is a list of pictures.")
    return _interactive(file, found, pictures, kind)


def _interactive(file: Path, found: list[dict[str, Any]], pictures: str, kind: str) -> Iterator[dict[str, Any]]:
    for entry in found:
        try:
            size = [entry["image_info"]["height"], entry["image_info"]["width"]]
            for annotation in entry["anns"]:
                segmentation = annotation["segmentation"]
                mask = segmentation if isinstance(segmentation, dict) else {"size": size, "polygons": segmentation}
                region = {"mask": annotation[f"{kind}_visual_prompt_mask"]}
                yield {
                    "task": "region",
                    "key": str(annotation["id"]),
                    "images": [f"{pictures}/{Path(entry['image']).name}"],
                    "regions": [region | ({"grow": kind} if kind in ("point", "scribble") else {})],
                    "masks": [mask],
                    "info": {"image_id": annotation.get("image_id", entry["image"])},
                }
        except (KeyError, TypeError) as error:
            raise ValueError(f"{str(file)!r} is not in PSALM's form: {error!r} is missing.") from None


def davis_records(root: Path, split: str = "val", resolution: str = "480p") -> Iterator[dict[str, Any]]:
    """One record a clip: task "clip", every object's mask in the first frame as its region, its masks in all frames.

    Objects are the numbers 1 to the largest in the first annotated frame, as davis2017-evaluation counts them; frames without
    an annotation have no mask. 255 (void) belongs to no object.

    Raises:
        ValueError: an unknown split, or a damaged first annotation. FileNotFoundError: the list, a clip or its annotations
            are missing.
    """
    _check("DAVIS 2017", split, DAVIS_SPLITS)
    listing = root / "ImageSets" / "2017" / f"{split}.txt"
    if not listing.is_file():
        raise FileNotFoundError(f"there is no {str(listing)!r}")
    names = [name for name in listing.read_text(encoding="utf-8").split() if name]
    return (_davis(root, name, resolution) for name in names)


def _davis(root: Path, name: str, resolution: str) -> dict[str, Any]:
    folder = root / "JPEGImages" / resolution / name
    frames = sorted([*folder.glob("*.jpg"), *folder.glob("*.png")])  # DAVIS has JPEGs, clips of the world PNGs
    maps = {path.stem: path for path in sorted((root / "Annotations" / resolution / name).glob("*.png"))}
    if not frames or frames[0].stem not in maps:
        raise FileNotFoundError(f"the clip {name!r} has no frames, or no annotation of its first one, in {str(root)!r}")
    first = index_map(maps[frames[0].stem])
    count = int(first[first < 255].max(initial=0))

    def mask(frame: Path, index: int) -> dict[str, Any] | None:
        path = maps.get(frame.stem)
        return None if path is None else {"png": path.relative_to(root).as_posix(), "index": index}

    objects = range(1, count + 1)
    return {
        "task": "clip",
        "key": name,
        "images": [frame.relative_to(root).as_posix() for frame in frames],
        "regions": [{"mask": mask(frames[0], index)} for index in objects],
        "region_frame": 0,
        "masks": [[mask(frame, index) for frame in frames] for index in objects],
        "labels": [str(index) for index in objects],
        "info": {"image_id": name},
    }


def _check(what: str, split: str, splits: tuple[str, ...]) -> None:
    if split not in splits:
        raise ValueError(f"{what} has no split {split!r}; choose from {', '.join(splits)}.")
