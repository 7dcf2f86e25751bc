"""Benchmarks of text-to-image generation, read from the files their authors publish: GenEval and MJHQ-30K.

Formats and licences of the data:

    GenEval (Ghosh et al. 2023; djghosh13/geneval; MIT): DIR/evaluation_metadata.jsonl (or DIR/prompts/evaluation_metadata.jsonl), a
        line a prompt: {"tag", "include": [...], "prompt"}. Its scorer reads <number>/metadata.jsonl, the prompt's line, and
        <number>/samples/0000.png to 0003.png.
    MJHQ-30K (Li et al. 2024; huggingface.co/datasets/playgroundai/MJHQ-30K): DIR/meta_data.json {name: {"category", "prompt"}} and
        pictures DIR/<category>/<name>.jpg or DIR/mjhq30k_imgs/<category>/<name>.jpg.

A record is {"task": "generation", "key", "text": description, "result": the real picture of MJHQ, "info"}; `info` has "places" (the
pictures to draw, by their names in the layout the benchmark's own scorer reads), "kind", and "beside" {name: text} of files that
have to lie there too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .edits import path_part
from .refer import read_json

GENEVAL_SAMPLES = 4
MJHQ_CATEGORIES = ("animals", "art", "fashion", "food", "indoor", "landscape", "logo", "people", "plants", "vehicles")


def geneval_records(root: Path) -> Iterator[dict[str, Any]]:
    """One record a prompt, to be drawn four times.

    Raises:
        ValueError: a line is damaged. FileNotFoundError: there is no such file.
    """
    files = [root / "evaluation_metadata.jsonl", root / "prompts" / "evaluation_metadata.jsonl"]
    file = next((path for path in files if path.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"there is no {str(files[0])!r}")
    return _geneval(file)


def _geneval(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            try:
                found = json.loads(line)
                folder = f"{number:05d}"
                places = [f"{folder}/samples/{sample:04d}.png" for sample in range(GENEVAL_SAMPLES)]
                info = {
                    "kind": found["tag"],
                    "places": places,
                    "beside": {f"{folder}/metadata.jsonl": json.dumps(found)},
                }
                yield {"task": "generation", "key": folder, "text": found["prompt"], "info": info}
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"Line {number + 1} of {str(file)!r} is no prompt of GenEval: {error!r}.") from None


def mjhq_records(root: Path, split: str = "all") -> Iterator[dict[str, Any]]:
    """One record a picture of MJHQ-30K, of all categories or of one.

    Raises:
        ValueError: an unknown category, or a damaged file. FileNotFoundError: there is no meta_data.json.
    """
    if split not in ("all", *MJHQ_CATEGORIES):
        raise ValueError(f"MJHQ-30K has no category {split!r}; choose from all, {', '.join(MJHQ_CATEGORIES)}.")
    file = root / "meta_data.json"
    found = read_json(file)
    folder = "mjhq30k_imgs/" if (root / "mjhq30k_imgs").is_dir() else ""
    return _mjhq(file, found, folder, split)


def _mjhq(file: Path, found: Any, folder: str, split: str) -> Iterator[dict[str, Any]]:
    try:
        for name, one in found.items():
            category = one["category"]
            if split not in ("all", category):
                continue
            place = f"{path_part(category)}/{path_part(name)}"
            info = {"kind": category, "places": [f"{place}.png"]}
            result = f"{folder}{place}.jpg"
            yield {"task": "generation", "key": name, "text": one["prompt"], "result": result, "info": info}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(file)!r} is no meta_data.json of MJHQ-30K: {error!r}.") from None
