"""Conversations and edits, read from the files their authors publish, as records of samples.py ("answer", "text", "edit").

Formats: haotian-liu/LLaVA (Liu et al. 2023; also ShareGPT4V, M4-Instruct and others in its JSON), timothybrooks/instruct-pix2pix
(Brooks et al. 2023) and lists of edits with the names of their pictures (MagicBrush, UltraEdit, SEED-Edit and others).

    LLaVA              FILE.json, a list of {"id", "image", "conversations": [{"from": "human" | "gpt", "value"}, ...]}; pictures
                       relative to its folder or to DIR/images
    InstructPix2Pix    DIR/seeds.json, DIR/<name>/prompt.json, DIR/<name>/<seed>_0.jpg (before), <seed>_1.jpg (after)
    lists of edits     DIR/*.json or *.jsonl of {"instruction", "source_image", "target_image"} or other usual names for these
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .refer import read_json

IMAGE_MARK = "<image>"
_FIELDS = {
    "text": ("instruction", "edit_prompt", "edit", "prompt", "instruction_new"),
    "image": ("source_image", "source_img", "input_image", "input", "image_file", "src_img", "original_image"),
    "result": ("target_image", "target_img", "edited_image", "output_image", "output", "edited_file", "edited_img"),
    "mask": ("mask_image", "mask_img", "mask"),
}


def llava_records(root: Path, name: str | None = None) -> Iterator[dict[str, Any]]:
    """One record a conversation: its earlier turns are `history`, its last one is asked. Those without a picture are texts.

    Args:
        root: the folder.
        name: the JSON file; left out where there is one only.

    Raises:
        ValueError: no such list, or several files. FileNotFoundError: there is no file. A conversation that is damaged gives a
            record that does not fit its task, so that whoever reads it counts it.
    """
    file = _file(root, name, (".json", ".jsonl"))
    rows = _rows(file)
    return (_conversation(root, file, index, row) for index, row in enumerate(rows))


def _conversation(root: Path, file: Path, index: int, row: Any) -> dict[str, Any]:
    record: dict[str, Any] = {"task": "answer", "key": f"{file.stem}-{index}", "info": {}}
    try:
        record["info"]["id"] = row.get("id", index)
        given = row.get("image")
        images = [] if given is None else given if isinstance(given, list) else [given]
        said = [(turn["from"], turn["value"].replace(IMAGE_MARK, "").strip()) for turn in row["conversations"]]
        if said and said[0][0] == "system":
            said = said[1:]
        questions, answers = said[0::2], said[1::2]
        if len(questions) != len(answers) or any(who not in ("human", "user") for who, _ in questions):
            raise ValueError("its turns do not alternate between a human and an answer")
        turns = [[question, answer] for (_, question), (_, answer) in zip(questions, answers)]
        record |= {"text": turns[-1][0], "answer": turns[-1][1]}
        if len(turns) > 1:
            record["history"] = turns[:-1]
        if images:
            record["images"] = [_place(root, file, one) for one in images]
        else:
            record["task"] = "text"
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        record["info"]["problem"] = f"conversation {index} of {file.name} cannot be read: {error!r}"
    return record


def _place(root: Path, file: Path, name: str) -> str:
    """A picture's name from the folder; where it is not there, as it is given."""
    for folder in ("", "images", file.parent.relative_to(root).as_posix()):
        path = (Path(folder) / name).as_posix()
        if (root / path).is_file():
            return path
    return name


def instruct_pix2pix_records(root: Path) -> Iterator[dict[str, Any]]:
    """One record a pair of pictures of InstructPix2Pix; several pairs share an instruction.

    Raises:
        ValueError: damaged lists. FileNotFoundError: there is no seeds.json.
    """
    file = root / "seeds.json"
    seeds = read_json(file)
    try:
        pairs = [(str(name), [str(seed) for seed in given]) for name, given in seeds]
    except (TypeError, ValueError):
        raise ValueError(f"{str(file)!r} is no list of [name, seeds].") from None
    return _pix2pix(root, pairs)


def _pix2pix(root: Path, pairs: Iterable[tuple[str, list[str]]]) -> Iterator[dict[str, Any]]:
    for name, seeds in pairs:
        try:
            notes = read_json(root / name / "prompt.json")
            text, problem = str(notes["edit"]), None
        except (ValueError, KeyError, TypeError, OSError) as error:
            text, problem = None, f"{name}/prompt.json has no instruction: {error!r}"
        for seed in seeds:
            record = {
                "task": "edit",
                "key": f"{name}-{seed}",
                "images": [f"{name}/{seed}_0.jpg"],
                "result": f"{name}/{seed}_1.jpg",
                "info": {} if problem is None else {"problem": problem},
            }
            yield record if text is None else {**record, "text": text}


def edit_records(root: Path, name: str | None = None) -> Iterator[dict[str, Any]]:
    """One record a row of a list of edits; where pixels may change, where the list names a mask.

    Args:
        root: the folder the pictures are named from.
        name: the file of the list; left out where there is one only.

    Raises:
        ValueError: no such list, or several files. FileNotFoundError: there is no file.
    """
    file = _file(root, name, (".json", ".jsonl"))
    return (_edit(root, file, index, row) for index, row in enumerate(_rows(file)))


def _edit(root: Path, file: Path, index: int, row: Any) -> dict[str, Any]:
    record: dict[str, Any] = {"task": "edit", "key": f"{file.stem}-{index}", "info": {}}
    if not isinstance(row, dict):
        return record | {"info": {"problem": f"row {index} of {file.name} is no object"}}
    found = {
        field: next((row[name] for name in names if isinstance(row.get(name), str)), None)
        for field, names in _FIELDS.items()
    }
    missing = [
        f"{field} ({', '.join(_FIELDS[field][:3])}, ...)" for field in ("text", "image", "result") if not found[field]
    ]
    if missing:
        return record | {"info": {"problem": f"row {index} of {file.name} has no {' and no '.join(missing)}"}}
    record |= {
        "images": [_place(root, file, found["image"])],
        "text": found["text"],
        "result": _place(root, file, found["result"]),
    }
    if found["mask"]:
        record["change"] = _place(root, file, found["mask"])
    return record


# --- files ----------------------------------------------------------------------------------------------------------


def _file(root: Path, name: str | None, endings: tuple[str, ...]) -> Path:
    if name is not None:
        if not (root / name).is_file():
            raise FileNotFoundError(f"there is no {name!r} in {str(root)!r}")
        return root / name
    found = sorted(path for ending in endings for path in root.glob(f"*{ending}") if path.name != "samples.jsonl")
    if not found:
        raise FileNotFoundError(f"there is no .json or .jsonl file in {str(root)!r}")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"There are several lists in {str(root)!r}: {names}. Name one as the split.")
    return found[0]


def _rows(file: Path) -> list[Any]:
    if file.suffix == ".jsonl":
        rows = []
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    rows.append({"problem": f"line {number}: {error}"})
        return rows
    found = read_json(file)
    if not isinstance(found, list):
        raise ValueError(f"{str(file)!r} holds a {type(found).__name__}; it should be a list.")
    return found
