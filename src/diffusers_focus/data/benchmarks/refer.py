"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO, read from the files their authors publish, as records of samples.py.

Formats: lichengunc/refer (`refs(unc).p` beside `instances.json`; Yu et al. 2016, Mao et al. 2016) and henghuiding/gRefCOCO
(`grefs(unc).json` or `.p`; Liu et al. 2023). Splits are named by who made them: unc (RefCOCO, RefCOCO+, gRefCOCO), google (RefCOCO,
RefCOCOg) and umd (RefCOCOg).

    DIR/refcoco/refs(unc).p       DIR/refcoco+/...       DIR/refcocog/refs(umd).p       DIR/grefcoco/grefs(unc).json
    DIR/refcoco/instances.json    DIR/images/mscoco/images/train2014/*.jpg, or images/train2014, train2014

Two protocols are in use, and their figures do not compare: "sentence" asks every sentence by itself (LISA and most others),
"merged" joins all sentences about an object to one prompt (HyperSeg, PSALM, InstructSeg), which is easier.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

SPLITS: dict[str, dict[str, tuple[str, ...]]] = {
    "refcoco": {"unc": ("train", "val", "testA", "testB"), "google": ("train", "val", "test")},
    "refcoco+": {"unc": ("train", "val", "testA", "testB")},
    "refcocog": {"umd": ("train", "val", "test"), "google": ("train", "val")},
    "grefcoco": {"unc": ("train", "val", "testA", "testB")},
}
PROTOCOLS = ("sentence", "merged")
_IMAGES = ("images/mscoco/images/train2014", "images/mscoco/train2014", "images/train2014", "train2014")


def refer_records(
    root: Path, dataset: str, split: str = "val", split_by: str | None = None, protocol: str = "sentence"
) -> Iterator[dict[str, Any]]:
    """The records of one split: task "referring", one mask an object (none, one or several in gRefCOCO).

    Args:
        root: the folder with the data sets and the pictures.
        dataset: "refcoco", "refcoco+", "refcocog" or "grefcoco".
        split: see `SPLITS`.
        split_by: whose splits; by default the first of the data set.
        protocol: "sentence" or "merged".

    Returns:
        Records with the keys "<ref>-<sentence>" ("<ref>" of merged ones); `info` has the image id.

    Raises:
        ValueError: an unknown name, or a damaged or dangerous file.
        FileNotFoundError: a file or the folder of the pictures is missing.
    """
    if dataset not in SPLITS:
        raise ValueError(f"Unknown data set {dataset!r}; choose from {', '.join(SPLITS)}.")
    by = split_by or next(iter(SPLITS[dataset]))
    if by not in SPLITS[dataset]:
        raise ValueError(f"{dataset} has no splits by {by!r}; choose from {', '.join(SPLITS[dataset])}.")
    if split not in SPLITS[dataset][by]:
        raise ValueError(f"{dataset} ({by}) has no split {split!r}; choose from {', '.join(SPLITS[dataset][by])}.")
    if protocol not in PROTOCOLS:
        raise ValueError(f"Unknown protocol {protocol!r}; choose from {', '.join(PROTOCOLS)}.")
    folder = root / dataset
    refs = _refs(folder, ("grefs" if dataset == "grefcoco" else "refs") + f"({by})")
    instances = read_json(folder / "instances.json")
    pictures = image_folder(root, _IMAGES)
    try:
        images = {image["id"]: image for image in instances["images"]}
        annotations = {annotation["id"]: annotation for annotation in instances["annotations"]}
        names = {category["id"]: category["name"] for category in instances.get("categories") or []}
    except (KeyError, TypeError):
        raise ValueError(
            f"{str(folder / 'instances.json')!r} is no COCO file: it needs images and annotations."
        ) from None
    return _records(folder, refs, images, annotations, names, pictures, split, protocol)


def _records(
    folder: Path,
    refs: list[dict[str, Any]],
    images: dict[int, Any],
    annotations: dict[int, Any],
    names: dict[int, str],
    pictures: str,
    split: str,
    protocol: str,
) -> Iterator[dict[str, Any]]:
    for ref in refs:
        try:
            if ref["split"] != split:
                continue
            image = images[ref["image_id"]]
            size = [image["height"], image["width"]]
            ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
            chosen = [annotations[i] for i in ids if i != -1]  # -1 is gRefCOCO's "nothing is meant"
            chosen = [one for one in chosen if not one.get("iscrowd")]
            masks = [_mask(one["segmentation"], size) for one in chosen]
            labels = [names.get(one.get("category_id")) for one in chosen]
            texts = [(str(one["sent_id"]), one.get("sent") or one["raw"]) for one in ref["sentences"]]
            record = {
                "task": "referring",
                "images": [f"{pictures}/{image['file_name']}"],
                "masks": masks,
                "info": {"image_id": ref["image_id"], "ref_id": ref["ref_id"]},
            }
            if all(labels):
                record["labels"] = labels
            if protocol == "merged":
                texts = [("", " ".join(f"{text}." for _, text in texts))]
            for sentence, text in texts:
                key = f"{ref['ref_id']}-{sentence}" if sentence else str(ref["ref_id"])
                yield {**record, "key": key, "text": text}
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"The references in {str(folder)!r} do not fit its instances.json: {error!r} is missing."
            ) from None


def _mask(segmentation: Any, size: list[int]) -> dict[str, Any]:
    if isinstance(segmentation, dict):
        return dict(segmentation)
    return {"size": size, "polygons": segmentation}


# --- files ----------------------------------------------------------------------------------------------------------


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, text and containers. Those need no names, so every name a file asks for is refused."""

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, which could run code")


def read_plain_pickle(path: Path) -> Any:
    """A pickle of plain containers, as Python 2 or 3 wrote it; nothing it asks for is executed.

    Raises:
        ValueError: it is damaged, or wants anything but numbers, text and containers.
    """
    try:
        with path.open("rb") as stream:
            return _PlainUnpickler(stream, encoding="utf-8", errors="replace").load()
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged pickles raise nearly anything (see the documentation of pickle)
        raise ValueError(
            f"{str(path)!r} is refused, nothing of it was run: {error}. Allowed are numbers, text and plain containers; "
            "download the file again from its authors."
        ) from None


def _refs(folder: Path, name: str) -> list[dict[str, Any]]:
    for suffix, read in ((".p", read_plain_pickle), (".json", read_json)):
        path = folder / f"{name}{suffix}"
        if path.is_file():
            found = read(path)
            if not isinstance(found, list):
                raise ValueError(f"{str(path)!r} holds a {type(found).__name__}; references are a list.")
            return found
    raise FileNotFoundError(f"there is no {name}.p or {name}.json in {str(folder)!r}")


def read_json(path: Path) -> Any:
    """A JSON file. FileNotFoundError where it is missing, ValueError where it is damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no {str(path)!r}")
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not JSON: {error}") from None


def image_folder(root: Path, names: tuple[str, ...]) -> str:
    """The first of these folders that is there, relative to `root`."""
    for name in names:
        if (root / name).is_dir():
            return name
    raise FileNotFoundError(f"there are no pictures in {str(root)!r}: looked for {', '.join(names)}")
