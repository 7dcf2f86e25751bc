"""Samples in tar files, as webdataset packs them: many small files as a few large ones, read in nearly the order they lie in.

Form: github.com/webdataset/webdataset (BSD-3-Clause). Files whose names agree up to the first dot of their base name are one
sample: `000012.json` (a record of samples.py, or a list of records about the same pictures) beside `000012.0.jpg` and
`000012.mask.png`, which the record names by what follows the first dot: "0.jpg", "mask.png". A picture beside a text and
without a record is a picture with its caption. `shards.json` says how many samples each shard has; without it
they are counted by their headers. Nothing but the standard library reads or writes them.

The order is that of shuffled shards, shuffled again within windows of `buffer` samples. It is known from a seed alone: no sample is
kept waiting in memory, and sample i is found without reading those before it.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..sharing.files import replace_file, replace_text
from .files import SampleFiles
from .samples import check_record, rename_files

INDEX_FILE = "shards.json"
BUFFER = 1000
PER_SHARD = 1000
CAPTION_PROMPT = "describe the image"
_PICTURES = ("jpg", "jpeg", "png", "webp")
_TEXTS = ("txt", "text", "caption")
_OPEN_AT_ONCE = 8


class ShardSource:
    """The samples of all tar files of a folder, in any order.

    Args:
        path: a folder of tar files, or one of them.
        buffer: samples of a window that is shuffled.

    Raises:
        FileNotFoundError: there is no tar file. ValueError: there is no sample in them, or a damaged `shards.json`.
    """

    def __init__(self, path: str | os.PathLike, buffer: int = BUFFER) -> None:
        path = Path(path)
        self.paths = sorted(path.glob("*.tar")) if path.is_dir() else [path]
        if not self.paths or not self.paths[0].is_file():
            raise FileNotFoundError(f"there is no .tar file in {str(path)!r}")
        if buffer < 1:
            raise ValueError(f"The buffer is {buffer} samples; give a number from 1 up.")
        self.buffer = buffer
        self._members = lru_cache(maxsize=_OPEN_AT_ONCE)(_members)
        known = _read_index(self.paths[0].parent / INDEX_FILE)
        counts = []
        for shard in self.paths:
            written = known.get(shard.name)
            if written is None or written["bytes"] != shard.stat().st_size:
                written = {"samples": len(self._members(shard))}
            counts.append(written["samples"])
        self._ends = np.cumsum(counts)
        if not self._ends[-1]:
            raise ValueError(f"The tar files in {str(path)!r} hold no samples.")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def order(self, seed: Sequence[int]) -> Sequence[int]:
        """Every index once: shards in a shuffled order, shuffled again in windows."""
        return _Windows(np.random.default_rng(list(seed)).permutation(len(self.paths)), self._ends, self.buffer, seed)

    def unit(self, index: int) -> tuple[list[tuple[str, bytes]], SampleFiles]:
        """(name, JSON) pairs and the files they name.

        Raises:
            ValueError, OSError: the shard is damaged there.
        """
        shard = bisect_right(self._ends, index)
        path = self.paths[shard]
        place = index - (int(self._ends[shard - 1]) if shard else 0)
        members = self._members(path)
        if place >= len(members):
            raise ValueError(f"the shard {str(path)!r} ends, or is damaged, after {len(members)} samples")
        key, files = members[place]
        found: dict[str, bytes] = {}
        with path.open("rb") as stream:
            for ending, start, size in files:
                stream.seek(start)
                found[ending] = stream.read(size)
                if len(found[ending]) != size:
                    raise ValueError(f"the shard {str(path)!r} ends within {key}.{ending}")
        name = f"{path}:{key}"
        return [(name, _record_of(found, name))], SampleFiles(found, name)


def _record_of(files: dict[str, bytes], name: str) -> bytes:
    """The record of a sample as JSON: its own, or that of a picture and its caption."""
    record = files.get("json")
    if record is not None and b'"task"' in record:
        return record
    picture = next((ending for ending in _PICTURES if ending in files), None)
    text = next((ending for ending in _TEXTS if ending in files), None)
    if picture is None or text is None:
        raise ValueError(f"{name} has neither a record (.json with a task) nor a picture with a text")
    caption = {"task": "answer", "images": [picture], "text": CAPTION_PROMPT, "answer": files[text].decode().strip()}
    return json.dumps(caption).encode()


class _Windows(Sequence):
    """Indices of samples: shards in the given order, each window of `buffer` samples shuffled; worked out where asked for."""

    def __init__(self, shards: np.ndarray, ends: np.ndarray, buffer: int, seed: Sequence[int]) -> None:
        counts = np.diff(ends, prepend=0)
        self._firsts = (ends - counts)[shards]
        self._ends = np.cumsum(counts[shards])
        self._buffer, self._seed = buffer, list(seed)
        self._window = lru_cache(maxsize=4)(self._shuffled)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _shuffled(self, window: int) -> np.ndarray:
        size = min(self._buffer, len(self) - window * self._buffer)
        return np.random.default_rng([*self._seed, window]).permutation(size)

    def __getitem__(self, position: Any) -> int:
        if not 0 <= position < len(self):
            raise IndexError(position)
        window, place = divmod(position, self._buffer)
        position = window * self._buffer + int(self._window(window)[place])
        shard = bisect_right(self._ends, position)
        return int(self._firsts[shard]) + position - (int(self._ends[shard - 1]) if shard else 0)


def _read_index(path: Path) -> dict[str, dict[str, int]]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
        return {str(name): {key: int(one[key]) for key in ("samples", "bytes")} for name, one in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{str(path)!r} is damaged; delete it, and the samples are counted again.") from None


def _members(path: Path) -> list[tuple[str, list[tuple[str, int, int]]]]:
    """[(key, [(ending, first byte, bytes), ...]), ...] from the headers, as far as they are whole.

    What comes after damage cannot be found. It is one sample more, of no files, so that it is told and counted.
    """
    samples: dict[str, list[tuple[str, int, int]]] = {}
    end, whole = 0, False
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, _, base = member.name.rpartition("/")
                key, dot, ending = base.partition(".")
                if member.isfile() and key and dot:
                    name = f"{folder}/{key}" if folder else key
                    samples.setdefault(name, []).append((ending.lower(), member.offset_data, member.size))
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        with path.open("rb") as stream:
            stream.seek(end)
            whole = end <= path.stat().st_size and not stream.read(tarfile.BLOCKSIZE).strip(b"\0")
    except (tarfile.TarError, EOFError):
        pass
    return [*samples.items(), *([] if whole else [(f"damaged at byte {end}", [])])]


# --- writing --------------------------------------------------------------------------------------------------------


def write_shards(
    directory: str | os.PathLike, records: Iterable[dict[str, Any]], root: Path, per_shard: int = PER_SHARD
) -> int:
    """Pack records and the files they name into `shard-000000.tar`, ... and `shards.json`.

    Args:
        directory: where they go; made where it is missing.
        records: in their order; those that follow one another with the same pictures become one sample.
        root: the folder the records' files are named from.
        per_shard: samples of a shard.

    Returns:
        How many samples there are.

    Raises:
        FileExistsError: the folder has tar files already.
        ValueError: a record does not fit its task, or a file it names is missing; shards that were whole before stay.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.glob("*.tar")):
        raise FileExistsError(f"there are tar files in {str(directory)!r} already; name another folder, or delete them")
    if per_shard < 1:
        raise ValueError(f"A shard has {per_shard} samples; give a number from 1 up.")
    index: dict[str, dict[str, int]] = {}
    files = SampleFiles(root)
    units = enumerate(_units(records))
    pending = next(units, None)
    while pending is not None:
        name = f"shard-{len(index):06d}.tar"
        count = 0

        def write(path: Path) -> None:
            nonlocal pending, count
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
                while pending is not None and count < per_shard:
                    _pack(archive, f"{pending[0]:08d}", pending[1], files)
                    count += 1
                    pending = next(units, None)

        replace_file(directory / name, write)
        index[name] = {"samples": count, "bytes": (directory / name).stat().st_size}
    replace_text(directory / INDEX_FILE, json.dumps(index, indent=1))
    return sum(one["samples"] for one in index.values())


def _units(records: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    unit: list[dict[str, Any]] = []
    for record in records:
        check_record(record)
        if unit and (record.get("images") is None or record.get("images") != unit[0].get("images")):
            yield unit
            unit = []
        unit.append(record)
    if unit:
        yield unit


def _pack(archive: tarfile.TarFile, key: str, records: list[dict[str, Any]], files: SampleFiles) -> None:
    endings: dict[str, str] = {}

    def rename(name: str) -> str:
        if name not in endings:
            endings[name] = f"{len(endings)}{Path(name).suffix.lower() or '.bin'}"
        return endings[name]

    renamed = [rename_files(record, rename) for record in records]
    text = json.dumps(renamed[0] if len(renamed) == 1 else renamed, ensure_ascii=False).encode()
    contents = {"json": text, **{ending: files.read(name) for name, ending in endings.items()}}
    for ending, data in contents.items():
        member = tarfile.TarInfo(f"{key}.{ending}")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
