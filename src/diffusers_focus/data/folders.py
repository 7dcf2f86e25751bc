"""Folders of samples: one JSON object a line beside the pictures it names. Damaged samples are left out and counted.

Paper: FOCUS (arXiv 2506.16806), section 3 (instruction data). The form is the usual one of JSONL next to pictures; what is in a
line is in samples.py. A sample that cannot be read is never replaced by another and never ends a run: it is left out, counted by
its reason, and the first few are told in full.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..sharing.files import replace_file
from .files import SampleFiles
from .samples import Sample, check_record, read_sample

EXAMPLES_KEPT = 20
SAMPLES_FILE = "samples.jsonl"


class SampleFolder:
    """The samples of a JSONL file, in its order, read one by one.

    Args:
        path: the file, or a folder with a `samples.jsonl`. Pictures are named relative to the folder the file is in.
        index, count: take every `count`-th line from `index` on (one process of several).

    Attributes:
        skipped: how many samples the last pass left out, by "line" (no JSON, or a record that does not fit its task) and "file"
            (a picture, mask or region that cannot be read).
        problems: the first 20 reasons, with the number of their line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: `index` is not below `count`; while reading: there are samples, and not one of them can be read.
    """

    def __init__(self, path: str | os.PathLike, index: int = 0, count: int = 1) -> None:
        path = Path(path)
        self.path = path / SAMPLES_FILE if path.is_dir() else path
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no {str(self.path)!r}; a folder of samples has a {SAMPLES_FILE}")
        if not 0 <= index < count:
            raise ValueError(f"This is process {index} of {count}; give an index from 0 to {count - 1}.")
        self.root = self.path.parent
        self.index, self.count = index, count
        self.skipped: Counter[str] = Counter()
        self.problems: list[str] = []

    def records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number of the line from 1, record) of every line that fits its task; no other file is opened."""
        self.skipped, self.problems = Counter(), []
        with self.path.open("rb") as lines:
            mine = (pair for n, pair in enumerate(self._filled(lines)) if n % self.count == self.index)
            for number, line in mine:
                try:
                    record = json.loads(line)
                    check_record(record)
                except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
                    self._skip("line", number, error)
                    continue
                record.setdefault("key", f"{number:07d}")
                yield number, record

    def __iter__(self) -> Iterator[Sample]:
        good = 0
        for number, record in self.records():
            try:
                sample = read_sample(record, self.root)
            except (ValueError, OSError) as error:
                self._skip("file", number, error)
                continue
            good += 1
            yield sample
        if self.skipped and not good:
            raise ValueError(f"Not one sample of {str(self.path)!r} can be read. The first: {self.problems[0]}")

    @staticmethod
    def _filled(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
        return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())

    def _skip(self, kind: str, number: int, error: Exception) -> None:
        self.skipped[kind] += 1
        if len(self.problems) < EXAMPLES_KEPT:
            self.problems.append(f"line {number}: {error}")


class FolderSource:
    """The samples of a JSONL file in any order: lines that follow one another and are about the same pictures are one unit.

    Args:
        path: as for `SampleFolder`. The file is read through once, for the places of its lines.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it has no line.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.folder = SampleFolder(path)
        starts, numbers = [], []
        offset, before = 0, None
        with self.folder.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    pictures = _pictures(line)
                    if pictures is None or pictures != before:
                        starts.append(offset)
                        numbers.append(number)
                    before = pictures
                offset += len(line)
        if not starts:
            raise ValueError(f"{str(self.folder.path)!r} has no sample.")
        self._starts, self._numbers = np.asarray([*starts, offset]), np.asarray(numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def order(self, seed: Sequence[int]) -> Sequence[int] | np.ndarray:
        """Every index once, in an order that the seed decides."""
        return np.random.default_rng(list(seed)).permutation(len(self))

    def unit(self, index: int) -> tuple[list[tuple[str, bytes]], SampleFiles]:
        """(name, line) pairs and the files they name."""
        with self.folder.path.open("rb") as stream:
            stream.seek(int(self._starts[index]))
            lines = stream.read(int(self._starts[index + 1] - self._starts[index])).split(b"\n")
        first, path = int(self._numbers[index]), self.folder.path
        found = [(f"{path}:{first + i}", line) for i, line in enumerate(lines) if line.strip()]
        return found, SampleFiles(self.folder.root)


def _pictures(line: bytes) -> Any:
    """What pictures a line is about; None where it says so of none."""
    try:
        return json.loads(line).get("images")
    except (ValueError, RecursionError, AttributeError):
        return None  # told when it is its turn


def write_records(path: str | os.PathLike, records: Iterable[dict[str, Any]]) -> int:
    """Write records as a JSONL file, which is complete or not there at all; its folder is made where it is missing.

    Returns:
        How many there are.

    Raises:
        ValueError: a record does not fit its task; an old file stays as it is.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0

    def write(temporary: Path) -> None:
        nonlocal written
        with temporary.open("w", encoding="utf-8") as stream:
            for record in records:
                check_record(record)
                stream.write(json.dumps(record, ensure_ascii=False) + "\n")
                written += 1

    replace_file(path, write)
    return written
