"""Benchmarks of edits, read from the files their authors publish: Emu-Edit, MagicBrush, ImgEdit, GEdit-Bench.

Formats and licences of the data:

    Emu-Edit (Sheynin et al. 2023; huggingface.co/datasets/facebook/emu_edit_test_set; CC BY-NC 4.0): rows of idx, image,
        instruction, input_caption, output_caption, task, split; see tables.py for where they are.
    MagicBrush (Zhang et al. 2023; OSU-NLP-Group/MagicBrush; CC BY 4.0; the test split comes as an archive with a password):
        DIR/edit_sessions.json {id: [{"input", "mask", "output", "instruction"}, ...]} or DIR/edit_turns.json (the same turns as
        one list), DIR/images/<id>/<id>-input.png, <id>-mask1.png, <id>-output1.png, ..., and captions of pictures
        {id: {name: text}}: DIR/local_descriptions.json (of what was edited), DIR/global_descriptions.json (of all).
    ImgEdit (Ye et al. 2025; PKU-YuanGroup/ImgEdit): DIR/basic_edit.json {key: {"id", "prompt", "edit_type"}} or
        DIR/UGE_edit.json {key: {"id", "prompt"}}; pictures DIR/<id> or DIR/original_images/<id>.
    GEdit-Bench (Liu et al. 2025; stepfun-ai/Step1X-Edit; huggingface.co/datasets/stepfun-ai/GEdit-Bench): rows of key, task_type,
        instruction, instruction_language ("en", "cn"), input_image (what the judge is shown), Intersection_exist; split "train".

A record is {"task": "edit", "key", "images": [source], "text": instruction, "result": target where there is one, "info"}, and
`info` has "place" (the result's name in the layout the benchmark's own scorer reads), "kind", and what a benchmark gives of
"source_caption", "target_caption", "direction_captions" [before, after], "mask", "turns" [[instruction, place, mask], ...] of a
session that is edited turn by turn, and "source_place" (the source is to lie beside the result).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .refer import read_json
from .tables import table_rows

EMU_SPLITS = ("test", "validation")
MAGICBRUSH_SPLITS = ("test", "dev")
MAGICBRUSH_PROTOCOLS = ("single-turn", "multi-turn", "single-turn-mask", "multi-turn-mask")
IMGEDIT_FILES = {"basic": "basic_edit.json", "uge": "UGE_edit.json"}
GEDIT_LANGUAGES = ("en", "cn", "all")


def emu_edit_records(root: Path, split: str = "test") -> Iterator[dict[str, Any]]:
    """One record an instruction of Emu-Edit's test set; there are captions of before and after, and no true picture.

    Raises:
        ValueError: an unknown split, or damaged rows. FileNotFoundError: there are no rows.
    """
    _choose(split, EMU_SPLITS, "split")
    rows = table_rows(root, split, ("image",), lambda row, _: f"{path_part(row['task'])}/{path_part(row['idx'])}")
    return _emu_edit(root, rows)


def _emu_edit(root: Path, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows):
        try:
            name = f"{path_part(row['task'])}/{path_part(row['idx'])}"
            before, after = row["input_caption"], row["output_caption"]
            yield {
                "task": "edit",
                "key": name,
                "images": [row["image"]],
                "text": row["instruction"],
                "info": {
                    **{"image_id": name, "kind": row["task"], "place": f"{name}.png"},
                    **{"target_caption": after, "direction_captions": [before, after]},
                },
            }
        except KeyError as error:
            raise ValueError(f"Row {number} of Emu-Edit in {str(root)!r} has no {error}.") from None


def magicbrush_records(root: Path, split: str = "test", protocol: str = "single-turn") -> Iterator[dict[str, Any]]:
    """One record a turn, edited from the true picture before it (single-turn), or one a session, edited turn by turn from its own
    results and compared at the end (multi-turn); with "-mask" the region that people drew is given.

    Raises:
        ValueError: an unknown split or protocol, or damaged files. FileNotFoundError: there are no sessions.
    """
    _choose(split, MAGICBRUSH_SPLITS, "split")
    _choose(protocol, MAGICBRUSH_PROTOCOLS, "protocol")
    folder = root / split if (root / split).is_dir() else root
    sessions = _sessions(root, folder, split)
    captions = {kind: _captions(folder, kind) for kind in ("local", "global")}
    return _magicbrush(sessions, captions, protocol)


def _sessions(root: Path, folder: Path, split: str) -> dict[str, list[dict[str, Any]]]:
    """Turns by session; files are named from `root`."""
    pictures = (folder / "images").relative_to(root).as_posix()
    if (folder / "edit_sessions.json").is_file():
        file = folder / "edit_sessions.json"
        turns = [turn for session in _values(read_json(file), file) for turn in session]
    elif (folder / "edit_turns.json").is_file():
        file = folder / "edit_turns.json"
        turns = read_json(file)
    else:
        return _table_sessions(root, split)
    sessions: dict[str, list[dict[str, Any]]] = {}
    try:
        for turn in turns:
            name = path_part(turn["input"].split("-")[0])
            files = {key: f"{pictures}/{name}/{turn[key]}" for key in ("input", "mask", "output")}
            sessions.setdefault(name, []).append({**files, "instruction": turn["instruction"]})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(file)!r} is no file of MagicBrush's turns: {error!r}.") from None
    return sessions


def _table_sessions(root: Path, split: str) -> dict[str, list[dict[str, Any]]]:
    """The dev split as the Hub has it: img_id, turn_index, source_img, mask_img, instruction, target_img."""
    columns = {"source_img": "input", "mask_img": "mask", "target_img": "output"}

    def name(row: dict[str, Any], column: str) -> str:
        turn, which = int(row["turn_index"]), columns[column]
        # The source of a turn is the true result of the one before.
        last = f"output{turn - 1}" if which == "input" and turn > 1 else which + ("" if which == "input" else str(turn))
        return f"{path_part(row['img_id'])}/{path_part(row['img_id'])}-{last}"

    sessions: dict[str, list[dict[str, Any]]] = {}
    try:
        for row in table_rows(root, split, tuple(columns), name):
            turn = {new: row[old] for old, new in columns.items()}
            sessions.setdefault(str(row["img_id"]), []).append(
                {**turn, "instruction": row["instruction"], "turn": int(row["turn_index"])}
            )
    except KeyError as error:
        raise ValueError(f"A row of MagicBrush in {str(root)!r} has no {error}.") from None
    return {name: sorted(turns, key=lambda turn: turn["turn"]) for name, turns in sessions.items()}


def _captions(folder: Path, kind: str) -> dict[str, dict[str, str]]:
    file = next(
        (f for f in (folder / f"{kind}_descriptions.json", folder / f"{kind}_captions.json") if f.is_file()), None
    )
    return {} if file is None else read_json(file)


def _magicbrush(
    sessions: dict[str, list[dict[str, Any]]], captions: dict[str, Any], protocol: str
) -> Iterator[dict[str, Any]]:
    for name, turns in sessions.items():
        info = {"image_id": name, "kind": "", "mask_given": protocol.endswith("-mask")}
        known = {kind: found.get(name, {}) for kind, found in captions.items()}
        places = {
            kind: [f"{name}/{name}_" + ("1" if n == 1 else f"{kind}_{n}") + ".png" for n in range(1, len(turns) + 1)]
            for kind in ("inde", "iter")
        }
        if protocol.startswith("single"):
            for number, (turn, place) in enumerate(zip(turns, places["inde"]), start=1):
                yield _turn_record(f"{name}-{number}", turn, turn, known, {**info, "place": place})
        else:
            chain = [[t["instruction"], place, t["mask"]] for t, place in zip(turns, places["iter"])]
            yield _turn_record(name, turns[0], turns[-1], known, {**info, "place": chain[-1][1], "turns": chain})


def _turn_record(
    key: str, first: dict[str, Any], last: dict[str, Any], known: dict[str, Any], info: dict[str, Any]
) -> dict[str, Any]:
    """From the source of the first turn to the result of the last one."""
    info["mask"] = last["mask"]
    caption = known["local"].get(Path(last["output"]).name)
    before, after = (known["global"].get(Path(name).name) for name in (first["input"], last["output"]))
    if caption is not None:
        info["target_caption"] = caption
    if before is not None and after is not None:
        info["direction_captions"] = [before, after]
    text, result = last["instruction"], last["output"]
    return {"task": "edit", "key": key, "images": [first["input"]], "text": text, "result": result, "info": info}


def imgedit_records(root: Path, part: str = "basic") -> Iterator[dict[str, Any]]:
    """One record an instruction of ImgEdit's Basic or UGE suite; a language model judges the results, there is no true picture.

    Raises:
        ValueError: an unknown part, or a damaged file. FileNotFoundError: the file is missing.
    """
    _choose(part, tuple(IMGEDIT_FILES), "protocol")
    file = root / IMGEDIT_FILES[part]
    found = read_json(file)
    folder = "original_images/" if (root / "original_images").is_dir() else ""
    return _imgedit(file, found, folder)


def _imgedit(file: Path, found: Any, folder: str) -> Iterator[dict[str, Any]]:
    try:
        for key, one in found.items():
            info = {"image_id": one["id"], "kind": one.get("edit_type", ""), "place": f"{path_part(key)}.png"}
            images = [f"{folder}{one['id']}"]
            yield {"task": "edit", "key": key, "images": images, "text": one["prompt"], "info": info}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(file)!r} is no list of ImgEdit's edits: {error!r}.") from None


def gedit_records(root: Path, split: str = "train", language: str = "en") -> Iterator[dict[str, Any]]:
    """One record an instruction of GEdit-Bench, in English, Chinese or both; a language model judges the results.

    Raises:
        ValueError: an unknown language, or damaged rows. FileNotFoundError: there are no rows.
    """
    _choose(language, GEDIT_LANGUAGES, "protocol")
    rows = table_rows(root, split, ("input_image",), lambda row, _: path_part(row["key"]))
    return _gedit(root, rows, language)


def _gedit(root: Path, rows: Iterator[dict[str, Any]], language: str) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows):
        try:
            spoken = row["instruction_language"]
            if language not in ("all", spoken):
                continue
            place = f"fullset/{path_part(row['task_type'])}/{path_part(spoken)}/{path_part(row['key'])}"
            info = {"image_id": row["key"], "kind": row["task_type"], "place": f"{place}.png"}
            info |= {"source_place": f"{place}_SRCIMG.png", "intersection": bool(row.get("Intersection_exist"))}
            yield {
                **{"task": "edit", "key": f"{row['key']}-{spoken}", "images": [row["input_image"]]},
                **{"text": row["instruction"], "info": info},
            }
        except KeyError as error:
            raise ValueError(f"Row {number} of GEdit-Bench in {str(root)!r} has no {error}.") from None


# --- names ----------------------------------------------------------------------------------------------------------


def path_part(value: Any) -> str:
    """A key as a part of a path: it comes from a data file, so it may not lead anywhere else."""
    text = str(value)
    if not re.fullmatch(r"[\w .()&+,=@-]+", text) or text.strip(". ") != text:
        raise ValueError(f"{text!r} cannot name a file; the data are not as published.")
    return text


def _values(found: Any, file: Path) -> Any:
    if not isinstance(found, dict) or not all(isinstance(one, list) for one in found.values()):
        raise ValueError(f"{str(file)!r} does not map sessions to their turns.")
    return found.values()


def _choose(value: str, allowed: tuple[str, ...], what: str) -> None:
    if value not in allowed:
        raise ValueError(f"There is no {what} {value!r}; choose from {', '.join(allowed)}.")
