"""Ref-YouTube-VOS, Ref-DAVIS, ReVOS and YouTube-VIS, read from the files their authors publish, as records of samples.py ("clip").

Formats: youtube-vos.org/dataset/rvos (Seo et al. 2020), Ref-DAVIS 2017 as wjn922/ReferFormer lays it out (Khoreva et al.
2018), cilinyan/ReVOS-api (Yan et al. 2024) and youtube-vos.org/dataset/vis (Yang et al. 2019; COCO's format with a list of
run lengths for each object).

    Ref-YouTube-VOS   DIR/meta_expressions/<split>/meta_expressions.json, DIR/<split>/JPEGImages/<video>/*.jpg,
    Ref-DAVIS         DIR/<split>/Annotations/<video>/*.png (objects by their numbers)
    ReVOS             DIR/meta_expressions_valid_.json, DIR/mask_dict.json, DIR/JPEGImages/<video>/*.jpg; for its robustness
                      DIR/mask_dict_foreground.json, whose masks are made of mask_dict.json where it is missing
    YouTube-VIS       DIR/<split>.json or DIR/<split>/instances.json, DIR/<split>/JPEGImages/<video>/*.jpg

The true masks of Ref-YouTube-VOS's and YouTube-VIS's own validation videos are kept by their challenge's server.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .refer import image_folder, read_json

EXPRESSION_SPLITS = ("train", "valid", "test")
REVOS_SPLITS = ("train", "valid")
VIS_SPLITS = ("train", "valid", "test")
REVOS_KINDS = ("referring", "reasoning", "no target")


def expression_records(root: Path, split: str = "valid") -> Iterator[dict[str, Any]]:
    """One record an expression of Ref-YouTube-VOS or Ref-DAVIS: the object it means in every frame, with key <video>/<expression>.

    Frames without an annotation have no mask; a video without any cannot be scored, and has a record that says so.

    Raises:
        ValueError: an unknown split, or a damaged file. FileNotFoundError: the expressions or the frames are missing.
    """
    _check(split, EXPRESSION_SPLITS)
    file = root / "meta_expressions" / split / "meta_expressions.json"
    found = read_json(file)
    pictures = image_folder(root, (f"{split}/JPEGImages", "JPEGImages"))
    maps = root / pictures.replace("JPEGImages", "Annotations")
    categories = _categories(root / split / "meta.json")
    return _expressions(file, found, root, pictures, maps, categories)


def _expressions(
    file: Path, found: Any, root: Path, pictures: str, maps: Path, categories: dict[tuple[str, str], str]
) -> Iterator[dict[str, Any]]:
    try:
        for video, one in found["videos"].items():
            frames = sorted(one["frames"])
            drawn = [maps / video / f"{frame}.png" for frame in frames]
            known = [path.relative_to(root).as_posix() if path.is_file() else None for path in drawn]
            for name, expression in one["expressions"].items():
                number = expression.get("obj_id")
                record = {
                    "task": "clip",
                    "key": f"{video}/{name}",
                    "images": [f"{pictures}/{video}/{frame}.jpg" for frame in frames],
                    "text": expression["exp"],
                    "info": {"image_id": video, "expression": name},
                }
                if number is None or not any(known):
                    record["info"]["problem"] = f"there are no annotations of {video!r}; a server keeps them"
                else:
                    objects = [int(n) for n in (number if isinstance(number, list) else [number])]
                    record["masks"] = [[path and {"png": path, "index": n} for path in known] for n in objects]
                    labels = [categories.get((video, str(n))) for n in objects]
                    if all(labels):
                        record["labels"] = labels
                yield record
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{str(file)!r} is no file of expressions: {error!r}.") from None


def _categories(file: Path) -> dict[tuple[str, str], str]:
    """Names of objects, where meta.json is there."""
    if not file.is_file():
        return {}
    try:
        videos = read_json(file)["videos"]
        return {
            (video, str(number)): item["category"]
            for video, one in videos.items()
            for number, item in one["objects"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(file)!r} does not say what the objects are: {error!r}.") from None


def revos_records(root: Path, split: str = "valid", foreground: bool = False) -> Iterator[dict[str, Any]]:
    """One record an expression of ReVOS: none, one or several objects; `info` has its kind ("referring", "reasoning", "no target").

    Args:
        root, split: the folder and the part.
        foreground: also give, as `info["foreground"]`, for every frame the run lengths of all objects that any expression about
            the video means, which the robustness is measured with.

    Raises:
        ValueError: an unknown split, or a damaged file. FileNotFoundError: a file or the frames are missing.
    """
    _check(split, REVOS_SPLITS)
    file = root / f"meta_expressions_{split}_.json"
    found, masks = read_json(file), read_json(root / "mask_dict.json")
    known = root / "mask_dict_foreground.json"
    given = read_json(known) if foreground and known.is_file() else {} if foreground else None
    return _revos(file, found, masks, image_folder(root, ("JPEGImages",)), given)


def _foreground(video: str, one: Any, masks: Any, given: Any) -> list[list[Any]]:
    """For every frame the run lengths of all objects of a video (as VISA's tools/generate_foreground_mask.py has them)."""
    if video in given:
        return [[rle] if rle else [] for rle in given[video]["masks_rle"]]
    ids = {str(i) for expression in one["expressions"].values() for i in expression["anno_id"]}
    return [[masks[i][t] for i in sorted(ids) if masks[i][t]] for t in range(len(one["frames"]))]


def _revos(file: Path, found: Any, masks: Any, pictures: str, given: Any) -> Iterator[dict[str, Any]]:
    try:
        for video, one in found["videos"].items():
            frames = one["frames"]
            shared = {} if given is None else {"foreground": _foreground(video, one, masks, given)}
            for name, expression in one["expressions"].items():
                kind = REVOS_KINDS[expression["type_id"]]
                ids = [] if kind == "no target" else expression["anno_id"]
                yield {
                    "task": "clip",
                    "key": f"{video}/{name}",
                    "images": [f"{pictures}/{video}/{frame}.jpg" for frame in frames],
                    "text": expression["exp"],
                    "masks": [[one or None for one in masks[str(i)]] for i in ids],
                    "info": {"image_id": video, "expression": name, "kind": kind, **shared},
                }
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{str(file)!r} does not fit its mask_dict.json: {error!r}.") from None


def youtube_vis_records(root: Path, split: str = "valid") -> Iterator[dict[str, Any]]:
    """One record a video of YouTube-VIS: all names are asked for; the masks of every object in every frame, with its label.

    Raises:
        ValueError: an unknown split, or a damaged file. FileNotFoundError: a file or the frames are missing.
    """
    _check(split, VIS_SPLITS)
    files = [root / f"{split}.json", root / split / "instances.json", root / "annotations" / f"{split}.json"]
    file = next((path for path in files if path.is_file()), files[0])
    found = read_json(file)
    return _youtube_vis(file, found, image_folder(root, (f"{split}/JPEGImages", f"{split}_all_frames/JPEGImages")))


def _youtube_vis(file: Path, found: Any, pictures: str) -> Iterator[dict[str, Any]]:
    try:
        names = {one["id"]: one["name"] for one in found["categories"]}
        objects: dict[int, list[dict[str, Any]]] = {}
        for one in found.get("annotations") or []:
            if not one.get("iscrowd"):
                objects.setdefault(one["video_id"], []).append(one)
        for video in found["videos"]:
            record = {
                "task": "clip",
                "key": str(video["id"]),
                "images": [f"{pictures}/{name}" for name in video["file_names"]],
                "names": list(names.values()),
                "info": {"image_id": video["id"], "categories": list(names)},
            }
            if found.get("annotations") is None:
                record["info"]["problem"] = f"there are no annotations in {file.name}; a server keeps them"
            else:
                here = objects.get(video["id"], [])
                record["masks"] = [one["segmentations"] for one in here]
                record["labels"] = [names[one["category_id"]] for one in here]
            yield record
    except (KeyError, TypeError) as error:
        raise ValueError(f"{str(file)!r} is no file of YouTube-VIS: {error!r} is missing.") from None


def _check(split: str, splits: tuple[str, ...]) -> None:
    if split not in splits:
        raise ValueError(f"There is no split {split!r}; choose from {', '.join(splits)}.")
