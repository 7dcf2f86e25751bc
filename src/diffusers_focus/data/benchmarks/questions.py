"""POPE, VQA v2 and MMBench, read from the files their authors publish, as records of samples.py (task "answer").

Formats: AoiDragon/POPE (Li et al. 2023), visualqa.org (Goyal et al. 2017; also OK-VQA) and open-compass/MMBench (Liu et al. 2023).

    POPE       DIR/coco_pope_random.json (or DIR/coco/..., DIR/output/coco/...), one question a line; DIR/val2014/*.jpg
    VQA v2     DIR/v2_OpenEnded_mscoco_val2014_questions.json, DIR/v2_mscoco_val2014_annotations.json; DIR/val2014/*.jpg
    MMBench    DIR/mmbench_dev_en.tsv (any *.tsv by its name without the ending): pictures are inside, as base64
"""

from __future__ import annotations

import base64
import binascii
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...sharing.files import replace_file
from .refer import image_folder, read_json

POPE_SPLITS = ("random", "popular", "adversarial")
VQA_SPLITS = ("train", "val")
CHOICES = "ABCD"
CIRCLE = 1_000_000  # the same question with its choices rotated has its index raised by multiples of this
_SHORT = "Answer the question using a single word or phrase."
_LETTER = "Answer with the option's letter from the given choices directly."
_COCO = ("{0}2014", "images/{0}2014", "coco/{0}2014", "images/mscoco/images/{0}2014")


def pope_records(root: Path, split: str = "random") -> Iterator[dict[str, Any]]:
    """Questions whether an object is there, answered yes or no; the prompt asks for a single word as LLaVA's evaluation does.

    Raises:
        ValueError: an unknown split, or a damaged line. FileNotFoundError: the file or the pictures are missing.
    """
    if split not in POPE_SPLITS:
        raise ValueError(f"POPE has no split {split!r}; choose from {', '.join(POPE_SPLITS)}.")
    name = f"coco_pope_{split}.json"
    files = [root / name, root / "coco" / name, root / "output" / "coco" / name]
    file = next((path for path in files if path.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"there is no {name!r} in {str(root)!r}")
    return _pope(file, image_folder(root, tuple(place.format("val") for place in _COCO)))


def _pope(file: Path, pictures: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            yield {
                "task": "answer",
                "key": str(found["question_id"]),
                "images": [f"{pictures}/{found['image']}"],
                "text": f"{found['text']}\n{_SHORT}",
                "answer": found["label"],
                "info": {"image_id": found["image"]},
            }
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"Line {number} of {str(file)!r} is no question of POPE: {error!r}.") from None


def vqa_records(root: Path, split: str = "val") -> Iterator[dict[str, Any]]:
    """Open questions with the ten answers people gave; `answer` holds all of them, in their order.

    Raises:
        ValueError: an unknown split, or files that do not fit together. FileNotFoundError: a file or the pictures are missing.
    """
    if split not in VQA_SPLITS:
        raise ValueError(f"VQA v2 has no split {split!r} with answers; choose from {', '.join(VQA_SPLITS)}.")
    questions = read_json(root / f"v2_OpenEnded_mscoco_{split}2014_questions.json")
    annotations = read_json(root / f"v2_mscoco_{split}2014_annotations.json")
    pictures = image_folder(root, tuple(place.format(split) for place in _COCO))
    try:
        answers = {one["question_id"]: one for one in annotations["annotations"]}
        return iter(
            [
                {
                    "task": "answer",
                    "key": str(one["question_id"]),
                    "images": [f"{pictures}/COCO_{split}2014_{one['image_id']:012d}.jpg"],
                    "text": f"{one['question']}\n{_SHORT}",
                    "answer": [answer["answer"] for answer in answers[one["question_id"]]["answers"]],
                    "info": {"image_id": one["image_id"], "kind": answers[one["question_id"]].get("answer_type", "")},
                }
                for one in questions["questions"]
            ]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The questions and answers in {str(root)!r} do not fit together: {error!r}.") from None


def mmbench_records(root: Path, split: str = "mmbench_dev_en") -> Iterator[dict[str, Any]]:
    """Questions with two to four choices; the answer is a letter. Rows without an answer (the test set) are an error.

    Pictures are written beside the table, into `<table>-images/`, when they are first read.

    Raises:
        ValueError: a damaged row. FileNotFoundError: there is no such table.
    """
    file = root / f"{split}.tsv"
    if not file.is_file():
        tables = ", ".join(sorted(path.stem for path in root.glob("*.tsv"))) or "none"
        raise FileNotFoundError(f"there is no {str(file)!r}; tables here: {tables}")
    return _mmbench(root, file)


def _mmbench(root: Path, file: Path) -> Iterator[dict[str, Any]]:
    folder = root / f"{file.stem}-images"
    folder.mkdir(exist_ok=True)
    csv.field_size_limit(1 << 30)  # a picture is one field
    with file.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream, delimiter="\t"):
            try:
                index, answer = row["index"], (row.get("answer") or "").strip()
                image = row["image"]
                if answer not in CHOICES or not answer:
                    raise ValueError("no answer: only the tables with answers can be evaluated here")
                # A short field is the index of the row that has the picture.
                name = image if len(image) < 64 else index
                if name == index and not (folder / f"{name}.jpg").is_file():
                    picture = base64.b64decode(image, validate=True)
                    replace_file(folder / f"{name}.jpg", lambda path, picture=picture: path.write_bytes(picture))
            except (KeyError, TypeError, ValueError, binascii.Error) as error:
                raise ValueError(f"Row {row.get('index')} of {str(file)!r} cannot be read: {error}.") from None
            choices = [
                f"{letter}. {row[letter]}" for letter in CHOICES if (row.get(letter) or "").strip() not in ("", "nan")
            ]
            hint = (row.get("hint") or "").strip()
            lines = [hint] if hint and hint != "nan" else []
            yield {
                "task": "answer",
                "key": index,
                "images": [f"{folder.name}/{name}.jpg"],
                "text": "\n".join([*lines, row["question"], *choices, _LETTER]),
                "answer": answer,
                "info": {"image_id": name, "kind": row.get("category") or "", "question": int(index) % CIRCLE},
            }
