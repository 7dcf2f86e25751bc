"""An output folder that appears complete or not at all: sharded safetensors files, configs, a report.

`FolderWriter` works in a hidden folder beside the output (`.<name>.partial`) and renames it at the end, when every
file has been written, synced to disk, and read back (names, shapes, dtypes, sizes). Until then an older output stays
as it is. A journal in the hidden folder says which shards are complete, so that an interrupted run can go on.

A shard is written as a stream: shapes and dtypes are known before any tensor is read, so the header of the
safetensors format (8 bytes of length, JSON, the values) can be written first, and then one tensor after the other in
pieces of `_PIECE` values. Names of shards and index are Hugging Face's.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .reading import SAFETENSORS_DTYPES, TensorInfo, check_finite, is_finite, open_tensors

Progress = Callable[[int], object]

SHARD_SIZE = 5 * 1024**3  # bytes; Hugging Face's limit
_PIECE = 2**22  # values that are converted and written at once: at most 32 MiB
_JOURNAL = ".journal.json"
_SPACE_MARGIN = 2**24  # bytes for headers, configs and the file system's own
_DTYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


def require_space(folder: str | os.PathLike[str], nbytes: int) -> None:
    """Make sure that so many bytes can be written.

    Args:
        folder: Where they would go; it need not exist yet.
        nbytes: Bytes needed.

    Raises:
        OSError: (ENOSPC) The disk has less free; the message says how much is needed, free and missing.
    """
    place = Path(folder).resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < nbytes:
        raise OSError(
            errno.ENOSPC,
            f"{nbytes:,} bytes ({nbytes / 2**30:.2f} GiB) are needed and {free:,} ({free / 2**30:.2f} GiB) are free; make "
            f"room for {nbytes - free:,} more, or write to another disk",
            str(folder),
        )


@dataclass(frozen=True)
class _Shard:
    """One file to be written: its tensors in the order of the file, shapes and dtypes as in the file."""

    name: str
    tensors: dict[str, TensorInfo]

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.tensors.values())

    def header(self) -> bytes:
        """The file up to the first value."""
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        start = 0
        for key, info in self.tensors.items():
            entries[key] = {
                "dtype": _DTYPE_NAMES[info.dtype],
                "shape": list(info.shape),
                "data_offsets": [start, start + info.nbytes],
            }
            start += info.nbytes
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # values begin at multiples of 8, as the reference implementation has it
        return len(text).to_bytes(8, "little") + text


class FolderWriter:
    """Writes one folder, atomically.

        with FolderWriter("pipelines/focus-3b") as writer:
            writer.write_shards("unet", "diffusion_pytorch_model.safetensors", tensors, infos)
            writer.write_json("model_index.json", {...})
            writer.finish({"source": "..."})

    Left without `finish`, by an error or otherwise, nothing stands at the output that was not there before; what is
    finished of the shards is kept for `resume`, and removed if there is nothing to keep.

    Attributes:
        files: What was written so far: path in the folder -> `bytes`, and the CRC-32 of its content (`crc32`), of weights
            that of every tensor's bytes as stored (`tensors`).
    """

    def __init__(
        self,
        output: str | os.PathLike[str],
        *,
        resume: bool = False,
        overwrite: bool = False,
        fingerprint: str = "",
    ) -> None:
        """Begin, or go on.

        Args:
            output: The folder to make; folders above it are made if need be. An empty one counts as none.
            resume: Keep the finished shards of an interrupted run with the same tensors, shapes, dtypes, shard size and
                fingerprint; otherwise its remains are removed.
            overwrite: Replace an existing folder, at the end.
            fingerprint: What else has to be equal to go on with an interrupted run, such as the names and sizes of the
                source files.

        Raises:
            FileExistsError: The output exists and `overwrite` is False.
            ValueError: The output is a file, or must not be replaced (the current folder, home or one above them).
            BlockingIOError: Another process is writing this output.
        """
        self.output = Path(output).resolve()
        self.folder = self.output.parent / f".{self.output.name}.partial"
        self._old = self.output.parent / f".{self.output.name}.old"
        self.files: dict[str, dict[str, Any]] = {}
        self._shards: dict[str, _Shard] = {}
        self._fingerprint = fingerprint
        self._resume = resume
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.folder, self.output)
        self._active = True
        try:
            if self._old.is_dir():  # a run was killed between the two renames of `finish`
                if self.output.exists():
                    shutil.rmtree(self._old)
                else:
                    self._old.rename(self.output)
            self._check_output(overwrite)
        except BaseException:
            self._leave()
            if not any(self.folder.iterdir()):
                self.folder.rmdir()
            raise
        if not resume:
            _clear(self.folder)
        self._journal = self._read_journal()

    def __enter__(self) -> FolderWriter:
        """Use the writer in a with block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Without `finish`: keep what can be used by `resume`, remove the rest."""
        if self._journal["files"]:
            self._leave()
        else:
            self.abort()

    def require_space(self, nbytes: int) -> None:
        """Raise OSError unless a folder of so many bytes of weights fits, less the shards that are there to go on with."""
        kept = sum(path.stat().st_size for path in self.folder.rglob("*.safetensors")) if self._resume else 0
        require_space(self.output.parent, max(0, nbytes - kept))

    def write_shards(
        self,
        subfolder: str,
        weights_name: str,
        tensors: Iterable[tuple[str, Callable[[], torch.Tensor]]],
        infos: Mapping[str, TensorInfo],
        *,
        dtype: torch.dtype | None = None,
        shard_size: int = SHARD_SIZE,
        progress: Progress | None = None,
    ) -> None:
        """Write the weights of one component, one tensor after the other.

        Args:
            subfolder: Folder of the component; "" for the output itself.
            weights_name: `model.safetensors`, `diffusion_pytorch_model.safetensors` or alike; with more than one shard
                the names are `model-00001-of-00002.safetensors` and `model.safetensors.index.json`.
            tensors: Names, and functions that give the tensor when its turn has come; each is called at most once, in
                this order except that wider dtypes come first within a shard.
            infos: Shape and dtype of what each function gives.
            dtype: Floating tensors are converted to it; others stay.
            shard_size: Bytes of values in one file at most; a larger tensor has a file of its own.
            progress: Called with the number of bytes after every piece, and with the size of a shard that is kept.

        Raises:
            ValueError: Names are given twice or lack an info; a tensor is not what its info says, or leaves the range of
                `dtype`; the interrupted run that is resumed had other tensors, dtype, shard size or fingerprint.
            OSError: The disk is full (checked first, but others write too) or fails.
        """
        getters = _unique(tensors, infos)
        stored = {key: _stored(key, infos[key], dtype) for key in getters}
        shards = _split(Path(subfolder).as_posix(), weights_name, stored, shard_size)
        for shard in shards:
            if shard.name in self._shards:
                raise ValueError(
                    f"The weights {shard.name!r} have been written already; every component is written once."
                )
        self._check_plan(f"{Path(subfolder).as_posix()}/{weights_name}", shards, infos)
        kept = [shard for shard in shards if self._is_complete(shard)]
        require_space(self.output.parent, sum(shard.nbytes for shard in shards if shard not in kept) + _SPACE_MARGIN)
        for shard in shards:
            self._shards[shard.name] = shard
            if shard in kept:
                self.files[shard.name] = self._journal["files"][shard.name]
                if progress is not None:
                    progress(shard.nbytes)
                continue
            record = self._write_shard(shard, getters, infos, progress)
            _verify(self.folder, shard, record["bytes"])
            self.files[shard.name] = self._journal["files"][shard.name] = record
            self._write_journal()
        if len(shards) > 1:
            weight_map = {key: Path(shard.name).name for shard in shards for key in shard.tensors}
            index = {"metadata": {"total_size": sum(shard.nbytes for shard in shards)}}
            index["weight_map"] = dict(sorted(weight_map.items()))
            self.write_json(
                f"{subfolder}/{weights_name}.index.json" if subfolder else f"{weights_name}.index.json", index
            )

    def write_text(self, name: str, content: str) -> None:
        """Write a text file (UTF-8); `name` is its path in the folder."""
        self._write_other(name, iter([content.encode()]))

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file; `name` is its path in the folder."""
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def copy_file(self, source: str | os.PathLike[str], name: str | None = None) -> None:
        """Copy a file into the folder, under its own name or as `name`."""
        source = Path(source)
        if not source.is_file():
            raise FileNotFoundError(f"There is no file {str(source)!r} to be copied to {name or source.name!r}.")
        with source.open("rb") as stream:
            self._write_other(name or source.name, iter(lambda: stream.read(_PIECE), b""))

    def finish(
        self, report: Mapping[str, Any] | None = None, report_name: str = "conversion_report.json"
    ) -> dict[str, Any]:
        """Check everything that was written and put it in its place.

        Args:
            report: Written into the folder as JSON, with `files` (see the attribute) added.
            report_name: Its name.

        Returns:
            The report with `files`.

        Raises:
            ValueError: A file is not what was written; nothing has been put in place then.
        """
        full = {**(report or {}), "files": dict(self.files)}
        if report is not None:
            self.write_json(report_name, full)
        for name, record in self.files.items():
            path = self.folder / name
            size = path.stat().st_size if path.is_file() else 0
            if size != record["bytes"]:
                raise ValueError(f"{str(path)!r} has {size:,} bytes, {record['bytes']:,} were written. Write it again.")
            if name in self._shards:
                _verify(self.folder, self._shards[name], record["bytes"])
        for path in sorted(self.folder.rglob("*"), reverse=True):  # what an earlier, interrupted run left
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
            elif path.is_file() and path.relative_to(self.folder).as_posix() not in self.files:
                path.unlink()
        for path in [*self.folder.rglob("*"), self.folder]:
            if path.is_dir():
                _sync_folder(path)
        if self.output.exists():
            self.output.rename(self._old)
        try:
            self.folder.rename(self.output)
        except OSError:
            if self._old.exists():
                self._old.rename(self.output)
            raise
        _sync_folder(self.output.parent)
        if self._old.exists():
            shutil.rmtree(self._old)
        self._leave()
        return full

    def abort(self) -> None:
        """Remove everything that was written so far. Does nothing after `finish`."""
        if self._active:
            shutil.rmtree(self.folder)
        self._leave()

    def _check_output(self, overwrite: bool) -> None:
        if not self.output.exists():
            return
        if not self.output.is_dir():
            raise ValueError(f"The output {str(self.output)!r} is a file; give the name of a folder.")
        for kept in (Path.cwd(), Path.home()):
            if kept.resolve().is_relative_to(self.output):
                raise ValueError(
                    f"The output {str(self.output)!r} holds {str(kept)!r} and is not replaced; give another."
                )
        if any(self.output.iterdir()) and not overwrite:
            raise FileExistsError(
                f"The output {str(self.output)!r} exists. Give another one, or overwrite=True (--overwrite) to replace it "
                "once the new one is complete."
            )

    def _read_journal(self) -> dict[str, Any]:
        try:
            journal = json.loads((self.folder / _JOURNAL).read_text(encoding="utf-8"))
            return {"plans": dict(journal["plans"]), "files": dict(journal["files"])}
        except (OSError, ValueError, KeyError, TypeError):
            return {"plans": {}, "files": {}}  # no earlier run, or one that was killed before it had a shard

    def _write_journal(self) -> None:
        path = self.folder / _JOURNAL
        new = path.with_name(_JOURNAL + ".new")
        with new.open("wb") as stream, _disk_errors(new):
            stream.write(json.dumps(self._journal).encode())
            _sync(stream)
        new.replace(path)

    def _check_plan(self, name: str, shards: list[_Shard], infos: Mapping[str, TensorInfo]) -> None:
        """Refuse to go on with another run's shards; remember this run's."""
        digest = hashlib.sha256(self._fingerprint.encode())
        for shard in shards:
            digest.update(shard.name.encode() + shard.header())
            digest.update(json.dumps([str(infos[key].dtype) for key in shard.tensors]).encode())
        plan = digest.hexdigest()
        if self._journal["plans"].get(name, plan) != plan:
            raise ValueError(
                f"The interrupted run in {str(self.folder)!r} wrote {name!r} from other sources or with other tensors, dtype "
                "or shard size. Repeat with what it was given, or without resume to start again."
            )
        self._journal["plans"][name] = plan

    def _is_complete(self, shard: _Shard) -> bool:
        """Whether an interrupted run has finished this shard and its bytes are still those that it wrote."""
        record = self._journal["files"].get(shard.name)
        path = self.folder / shard.name
        if not self._resume or record is None or not path.is_file() or path.stat().st_size != record["bytes"]:
            return False
        header = shard.header()
        with path.open("rb") as stream:
            if stream.read(len(header)) != header:
                return False
            for key, info in shard.tensors.items():
                checksum = 0
                for start in range(0, info.nbytes, _PIECE):
                    checksum = zlib.crc32(stream.read(min(_PIECE, info.nbytes - start)), checksum)
                if f"{checksum:08x}" != record["tensors"].get(key):
                    return False
        return True

    def _write_shard(
        self,
        shard: _Shard,
        getters: Mapping[str, Callable[[], torch.Tensor]],
        infos: Mapping[str, TensorInfo],
        progress: Progress | None,
    ) -> dict[str, Any]:
        """Stream one shard to disk; returns its record."""
        checksums: dict[str, str] = {}
        keys = list(shard.tensors)

        def pieces() -> Iterator[bytes | memoryview]:
            yield shard.header()
            # The next tensor is read and checked while this one is summed and written: two in memory at most.
            with ThreadPoolExecutor(1, "read ahead") as reader:
                coming = reader.submit(getters[keys[0]])
                for key, after in zip(keys, [*keys[1:], None]):
                    tensor = coming.result()
                    if after is not None:
                        coming = reader.submit(getters[after])
                    checksum = 0
                    for piece in _bytes_of(tensor, key, infos[key], shard.tensors[key].dtype):
                        checksum = zlib.crc32(piece, checksum)
                        yield piece
                        if progress is not None:
                            progress(len(piece))
                    checksums[key] = f"{checksum:08x}"

        _, size = self._write_file(shard.name, pieces())
        return {"bytes": size, "tensors": checksums}

    def _write_other(self, name: str, pieces: Iterator[bytes]) -> None:
        """Write a file that is not weights and keep its record."""
        checksum = 0

        def watched() -> Iterator[bytes]:
            nonlocal checksum
            for piece in pieces:
                checksum = zlib.crc32(piece, checksum)
                yield piece

        name, size = self._write_file(name, watched())
        self.files[name] = {"bytes": size, "crc32": f"{checksum:08x}"}

    def _write_file(self, name: str, pieces: Iterator[bytes | memoryview]) -> tuple[str, int]:
        """Write and sync one file of the folder; returns its path there and its size."""
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder) or path == self.folder or path.name.startswith(_JOURNAL):
            raise ValueError(f"{name!r} is not a file name inside the output folder.")
        path.parent.mkdir(parents=True, exist_ok=True)
        size = 0
        with path.open("wb", buffering=0) as stream:  # what a buffer keeps would fail once more when it is closed
            for piece in pieces:
                with _disk_errors(path):
                    _write(stream, piece)
                size += len(piece)
            with _disk_errors(path):
                _sync(stream)
        return path.relative_to(self.folder).as_posix(), size

    def _leave(self) -> None:
        """Let go of the hidden folder."""
        self._active = False
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _unique(
    tensors: Iterable[tuple[str, Callable[[], torch.Tensor]]], infos: Mapping[str, TensorInfo]
) -> dict[str, Callable[[], torch.Tensor]]:
    getters: dict[str, Callable[[], torch.Tensor]] = {}
    for key, getter in tensors:
        if key in getters or key not in infos:
            raise ValueError(
                f"The tensor {key!r} is {'given twice' if key in getters else 'given without shape and dtype'}."
            )
        getters[key] = getter
    lacking = [key for key in infos if key not in getters]
    if lacking or not getters:
        raise ValueError(
            f"{len(lacking)} tensors have a shape but no values: {', '.join(lacking[:3]) or 'nothing given'}."
        )
    return getters


def _stored(key: str, info: TensorInfo, dtype: torch.dtype | None) -> TensorInfo:
    """Shape and dtype in the file."""
    target = dtype if dtype is not None and info.dtype.is_floating_point else info.dtype
    if target not in _DTYPE_NAMES:
        raise ValueError(
            f"{key!r} would have dtype {target}; safetensors files hold {', '.join(map(str, _DTYPE_NAMES))}."
        )
    return TensorInfo(tuple(info.shape), target)


def _split(folder: str, weights_name: str, stored: Mapping[str, TensorInfo], shard_size: int) -> list[_Shard]:
    """Share the tensors out, in their order, to files of at most `shard_size` bytes of values."""
    if not weights_name.endswith(".safetensors") or shard_size < 1:
        raise ValueError(
            f"Weights are written to *.safetensors of at least one byte, not {weights_name!r}, {shard_size}."
        )
    groups: list[dict[str, TensorInfo]] = [{}]
    size = 0
    for key, info in stored.items():
        if groups[-1] and size + info.nbytes > shard_size:
            groups.append({})
            size = 0
        groups[-1][key] = info
        size += info.nbytes
    shards = []
    for index, group in enumerate(groups, start=1):
        # Wider dtypes first keeps every tensor at a multiple of its own item size, whatever the shapes are.
        ordered = dict(sorted(group.items(), key=lambda item: -item[1].dtype.itemsize))
        stem = weights_name.removesuffix(".safetensors")
        name = weights_name if len(groups) == 1 else f"{stem}-{index:05d}-of-{len(groups):05d}.safetensors"
        shards.append(_Shard(name if folder in ("", ".") else f"{folder}/{name}", ordered))
    return shards


def _bytes_of(tensor: torch.Tensor, key: str, info: TensorInfo, dtype: torch.dtype) -> Iterator[memoryview]:
    """The tensor's bytes as `dtype`, in pieces; copies only what is converted."""
    if (tuple(tensor.shape), tensor.dtype) != (tuple(info.shape), info.dtype):
        raise ValueError(
            f"The tensor {key!r} is {tuple(tensor.shape)} of {tensor.dtype}; {tuple(info.shape)} of {info.dtype} was announced."
        )
    narrows = dtype != tensor.dtype and torch.finfo(dtype).max < torch.finfo(tensor.dtype).max
    flat = tensor.detach().reshape(-1)
    for start in range(0, math.prod(info.shape), _PIECE):
        piece = flat[start : start + _PIECE]
        converted = piece.to(dtype)
        if narrows and not is_finite(converted):
            check_finite(piece, key)  # NaN and infinities of the source are its own fault
            raise ValueError(
                f"Values of {key!r} reach {piece.abs().max().item():.4g}, beyond {dtype} ({torch.finfo(dtype).max:.4g}). Use a "
                "dtype of the same range, such as bfloat16."
            )
        yield memoryview(converted.contiguous().view(torch.uint8).numpy())


def _verify(folder: Path, shard: _Shard, nbytes: int) -> None:
    """Read names, shapes and dtypes back from the file."""
    path = folder / shard.name
    with open_tensors(path) as written:
        differing = [key for key in shard.tensors if written.infos.get(key) != shard.tensors[key]]
        differing += [key for key in written.infos if key not in shard.tensors]
    if differing or path.stat().st_size != nbytes:
        raise ValueError(
            f"{str(path)!r} is not what was written: {len(differing)} tensors differ ({', '.join(differing[:3])}), "
            f"{path.stat().st_size:,} of {nbytes:,} bytes. Check the disk and write it again."
        )


def _write(stream: BinaryIO, piece: bytes | memoryview) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[stream.write(rest) :]


def _sync(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; Windows has no such call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Say what a full disk means for the run."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            error.errno,
            f"the disk is full or a quota reached ({error.strerror}), {shutil.disk_usage(path.parent).free:,} bytes are free. "
            "No output was changed; make room and repeat with resume=True (--resume) to keep the finished shards",
            str(path),
        ) from error


def _lock(folder: Path, output: Path) -> int | None:
    """Keep other processes out until this one ends, however it ends."""
    if os.name != "posix":
        return None
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise BlockingIOError(
            errno.EWOULDBLOCK, "another process is writing this output; wait for it, or give another", str(output)
        ) from None
    return descriptor


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
