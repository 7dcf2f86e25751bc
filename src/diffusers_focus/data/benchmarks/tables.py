"""Rows of data sets as the Hub keeps them: parquet files with pictures inside, or the same rows as JSONL beside picture files.

Formats: huggingface/datasets (Apache-2.0), its parquet files (an image is {"bytes", "path"}) and its folders of images
(metadata.jsonl with `file_name`). Parquet needs pyarrow (extra "eval"). Pictures of a parquet file are written once into
`<split>-pictures/` beside it, and read from there like all others.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from ...sharing.files import replace_file

_BATCH = 16  # rows of a parquet file at a time; each may hold megabytes of pictures


def table_rows(
    root: Path, split: str, pictures: tuple[str, ...], name: Callable[[dict[str, Any], str], str]
) -> Iterator[dict[str, Any]]:
    """The rows of a split; columns of pictures hold names of files relative to `root`, or None.

    Args:
        root: has `<split>.jsonl` or `metadata.jsonl`, or `<split>-*.parquet`, `<split>.parquet` (all of them also in `data/`).
        split: of a `metadata.jsonl`, whose rows may be of several, those whose `split` is this one or is not given.
        pictures: columns that are pictures; `file_name` of a metadata.jsonl is the first of them.
        name: (row, column) -> what the picture's file is called, without ending.

    Raises:
        FileNotFoundError: there is none of these files. ValueError: one is damaged, or parquet cannot be read here.
    """
    for file in (root / f"{split}.jsonl", root / "data" / f"{split}.jsonl", root / "metadata.jsonl"):
        if file.is_file():
            return _json_rows(root, file, split, pictures)
    patterns = (f"data/{split}-*.parquet", f"{split}-*.parquet", f"data/{split}.parquet", f"{split}.parquet")
    files = next((found for pattern in patterns if (found := sorted(root.glob(pattern)))), [])
    if not files:
        raise FileNotFoundError(
            f"there is no {split}.jsonl, no metadata.jsonl and no {split}-*.parquet in {str(root)!r} (or in its folder data)"
        )
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError(
            f"{str(files[0])!r} is read by pyarrow, which is not installed; pip install 'diffusers-focus[eval]', or export the "
            f"rows to {split}.jsonl beside picture files."
        )
    return _parquet_rows(root, files, split, pictures, name)


def _json_rows(root: Path, file: Path, split: str, pictures: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if row.get("split", split) != split:
                    continue
                if "file_name" in row:
                    row.setdefault(pictures[0], row["file_name"])
                for column in pictures:
                    if isinstance(row.get(column), dict):
                        row[column] = row[column].get("path")
                    if row.get(column) is not None:
                        row[column] = (file.parent.relative_to(root) / row[column]).as_posix()
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(f"Line {number} of {str(file)!r} is no row: {error}.") from None
            yield row


def _parquet_rows(
    root: Path, files: list[Path], split: str, pictures: tuple[str, ...], name: Callable[[dict[str, Any], str], str]
) -> Iterator[dict[str, Any]]:
    parquet = importlib.import_module("pyarrow.parquet")
    for file in files:
        try:
            table = parquet.ParquetFile(file)
        except Exception as error:  # pyarrow's own errors, some of them no ValueError
            raise ValueError(f"{str(file)!r} cannot be read: {error}") from None
        with table:
            for batch in table.iter_batches(batch_size=_BATCH):
                for row in batch.to_pylist():
                    for column in pictures:
                        if row.get(column) is not None:
                            row[column] = _stored(root, f"{split}-pictures/{name(row, column)}", row[column], file)
                    yield row


def _stored(root: Path, name: str, cell: Any, file: Path) -> str:
    """Write a picture where it is not there yet; returns its name."""
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise ValueError(f"{str(file)!r} has no picture for {name!r}, got {type(data).__name__}.")
    try:
        ending = (Image.open(io.BytesIO(data)).format or "png").lower()
    except OSError:
        ending = "png"  # told when it is read
    path = root / f"{name}.{ending}"
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{str(file)!r} calls a picture {name!r}, which leads out of its folder.")
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda temporary: temporary.write_bytes(data))
    return path.relative_to(root).as_posix()
