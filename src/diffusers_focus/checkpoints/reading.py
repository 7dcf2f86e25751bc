"""Tensors of checkpoint files, one at a time: safetensors, torch files, detectron2 pickles, sharded folders.

A checkpoint is bigger than the memory it may cost, so nothing here holds a model: names, shapes and dtypes are read
first (`TensorFiles.infos`), a tensor when it is asked for, as a view of the mapped file. Two kinds of file cannot be
mapped and are loaded whole, one at a time, which `TensorFiles.notes` and a warning say: torch files from before
PyTorch 1.6, and plain pickles.

Nothing that a file asks for is executed. Torch files go through `torch.load(weights_only=True)`; plain pickles
(detectron2's model zoo) through an unpickler that knows arrays and plain containers only, in the way the `pickle`
documentation describes under "Restricting Globals". What a file is, is decided by its first bytes, not by its name.

The order of wrappers ("ema", "model", "state_dict") is that of ILLUME+'s own loader (arXiv 2504.01934, Apache-2.0),
"module" that of DeepSpeed; index files are Hugging Face's.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

SAFETENSORS_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".pkl")
INDEX_NAMES = (
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
WEIGHT_NAMES = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
)
_WRAPPERS = ("model", "state_dict", "module")
_ZIP_START = b"PK\x03\x04"
_LEGACY_START = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # the pickled magic number of torch.save
_LFS_START = b"version https://git-lfs"
_MAX_MAPPED = 4  # mapped shards kept open; they cost address space and a list of names


class TensorInfo(NamedTuple):
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def open_tensors(path: str | os.PathLike[str], *, use_ema: bool = False) -> TensorFiles:
    """Open a checkpoint without reading its tensors.

    Args:
        path: A .safetensors, .bin, .pth, .pt or .pkl file, an index file (`*.index.json`), or a folder that holds
            exactly one of `INDEX_NAMES` and `WEIGHT_NAMES`.
        use_ema: Take the averaged weights (`"ema"`) of a training checkpoint of torch's instead of `"model"`.

    Returns:
        The open files. Close them, or use them as a context manager.

    Raises:
        FileNotFoundError: The path, its weights or a shard that the index names is missing.
        ValueError: A file is cut short, damaged, of another kind, holds something else than tensors or would run
            code; an index does not fit its shards; a folder holds several checkpoints; there are no averaged weights.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"There is no file or folder {str(path)!r}. Give a {', '.join(SUFFIXES)} file or a folder with one of "
            f"{', '.join(INDEX_NAMES + WEIGHT_NAMES)}."
        )
    if path.is_dir():
        path = _candidate(path)
    if path.name.endswith(".index.json"):
        return TensorFiles(path.parent, _read_index(path), use_ema=use_ema, index_name=path.name)
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{str(path)!r} is not a checkpoint that can be read: its name ends with {path.suffix!r}, allowed are "
            f"{', '.join(SUFFIXES)} and *.index.json."
        )
    return TensorFiles(path.parent, {path.name: None}, use_ema=use_ema)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor of any shape and dtype holds neither NaN nor infinities; takes no memory of the tensor's size.

    (Except for 8-bit floats, which have no comparisons and are converted.)
    """
    if tensor.numel() == 0 or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    elif tensor.dtype.itemsize == 1:
        tensor = tensor.float()
    # NaN spreads to both ends and infinities are the ends, so one pass suffices.
    lowest, highest = torch.aminmax(tensor)
    return bool(torch.isfinite(lowest) and torch.isfinite(highest))


def check_finite(tensor: torch.Tensor, key: str) -> None:
    """Refuse weights that are not numbers; see `is_finite`.

    Args:
        tensor: Any shape and dtype; integers pass.
        key: Name for the message.

    Raises:
        ValueError: The tensor holds NaN or infinite values; says how many.
    """
    if is_finite(tensor):
        return
    num_nan, num_inf = int(torch.isnan(tensor).sum()), int(torch.isinf(tensor).sum())
    raise ValueError(
        f"The weights of {key!r} hold {num_nan:,} NaN and {num_inf:,} infinite values among {tensor.numel():,}. The "
        "checkpoint is damaged or its training diverged; download it again or take an earlier one."
    )


class TensorFiles:
    """The tensors of one checkpoint, spread over one file or several; made by `open_tensors`.

    Attributes:
        infos: Shape and dtype of every tensor, by name, in the order of the files.
        notes: What a report should say about how the files were read: wrappers that were descended into, prefixes
            that were removed, files that had to be loaded whole.
    """

    def __init__(
        self,
        folder: Path,
        files: Mapping[str, list[str] | None],
        *,
        use_ema: bool = False,
        index_name: str | None = None,
    ) -> None:
        """Read the names; `files` gives the names that an index puts into each file, or None for all of a file."""
        self.folder = folder
        self.infos: dict[str, TensorInfo] = {}
        self.notes: list[str] = []
        self._use_ema = use_ema
        self._open: OrderedDict[str, _File] = OrderedDict()
        self._places: dict[str, tuple[str, str]] = {}  # name -> (file, name in the file)
        is_torch = True
        for name, listed in files.items():
            file = self._file(name)
            self.notes += [note for note in file.notes if note not in self.notes]
            is_torch = is_torch and isinstance(file, _TorchFile)
            if listed is not None and set(listed) != set(file.infos):
                _refuse_index(folder, index_name or "", name, set(listed), set(file.infos))
            for key, info in file.infos.items():
                self.infos[key] = info
                self._places[key] = (name, key)
        if is_torch and self.infos and all(key.startswith("module.") for key in self.infos):
            self.infos = {key.removeprefix("module."): info for key, info in self.infos.items()}
            self._places = {key.removeprefix("module."): place for key, place in self._places.items()}
            self.notes.append("'module.' was removed from the beginning of every name")

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(info.nbytes for info in self.infos.values())

    def read(self, key: str) -> torch.Tensor:
        """One tensor, on the CPU, without gradient. It may be a view of the mapped file: do not write into it.

        Raises:
            KeyError: There is no tensor of that name.
            ValueError: The file has been changed or damaged since it was opened.
        """
        name, own_key = self._place(key)
        tensor = self._file(name).read(own_key)
        if (tuple(tensor.shape), tensor.dtype) != self.infos[key]:
            raise ValueError(f"{str(self.folder / name)!r} changed while it was read: {key!r} is not what it was.")
        return tensor

    def source_of(self, key: str) -> str:
        """Name of the file that holds a tensor, without its folder."""
        return self._place(key)[0]

    def close(self) -> None:
        """Let go of the files. Tensors that were read stay valid; reading on opens files again."""
        while self._open:
            self._open.popitem()[1].close()

    def __enter__(self) -> TensorFiles:
        """Use the files in a with block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self.close()

    def _place(self, key: str) -> tuple[str, str]:
        if key not in self._places:
            raise KeyError(f"{str(self.folder)!r} has no tensor {key!r}; it has {len(self._places)}, see .infos")
        return self._places[key]

    def _file(self, name: str) -> _File:
        """The open file of that name; those that were not used for longest are closed for it."""
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        while len(self._open) >= _MAX_MAPPED:
            self._open.popitem(last=False)[1].close()
        for other in [other for other, file in self._open.items() if file.in_memory]:
            self._open.pop(other).close()  # before the next one is loaded: never two in memory
        path = self.folder / name
        with path.open("rb") as stream:
            start = stream.read(32)
        if start.startswith(_LFS_START):
            raise ValueError(
                f"{str(path)!r} is a Git LFS pointer, not the weights. Fetch them with `git lfs pull` or download them."
            )
        if path.suffix == ".safetensors":
            file: _File = _SafetensorsFile(path, self._use_ema)
        else:
            file = _TorchFile(path, self._use_ema, start)
        self._open[name] = file
        return file


class _SafetensorsFile:
    """One .safetensors file, mapped."""

    in_memory = False

    def __init__(self, path: Path, use_ema: bool) -> None:
        if use_ema:
            raise ValueError(
                f"{str(path)!r} is a safetensors file, which has no averaged weights ('ema') beside the others. Leave "
                "out use_ema, or give the training checkpoint (.pt)."
            )
        self.path = path
        self.notes: list[str] = []
        self.infos: dict[str, TensorInfo] = {}
        try:
            self._handle: Any = safe_open(path, framework="pt", device="cpu")
            for key in self._handle.keys():
                part = self._handle.get_slice(key)
                dtype = SAFETENSORS_DTYPES.get(part.get_dtype())
                if dtype is None:
                    raise ValueError(
                        f"{str(path)!r}: {key!r} has dtype {part.get_dtype()}, allowed are {', '.join(SAFETENSORS_DTYPES)}."
                    )
                self.infos[key] = TensorInfo(tuple(part.get_shape()), dtype)
        except SafetensorError as error:
            raise _damaged(path, error) from None

    def read(self, key: str) -> torch.Tensor:
        try:
            return self._handle.get_tensor(key)
        except SafetensorError as error:
            raise _damaged(self.path, error) from None

    def close(self) -> None:
        self._handle = None  # the mapping goes with the last tensor that looks into it


class _TorchFile:
    """One file of `torch.save` (mapped, or loaded whole if it is of the old format) or a plain pickle (loaded whole)."""

    def __init__(self, path: Path, use_ema: bool, start: bytes) -> None:
        self.path = path
        self.notes: list[str] = []
        self.in_memory = not start.startswith(_ZIP_START)
        if not self.in_memory:
            loaded = _load_torch(path, mmap=True)
        elif start.startswith(_LEGACY_START):
            loaded = self._load_whole("torch's format of before 1.6", lambda: _load_torch(path, mmap=False))
        else:
            loaded = self._load_whole("a plain pickle", lambda: _load_pickle(path))
        values, descended = _unwrap(loaded, path, use_ema)
        if descended:
            self.notes.append("taken from " + "".join(f"[{name!r}]" for name in descended))
        self._tensors = _as_tensors(values, path)
        self.infos = {key: TensorInfo(tuple(value.shape), value.dtype) for key, value in self._tensors.items()}

    def _load_whole(self, what: str, load: Any) -> Any:
        size = self.path.stat().st_size
        note = f"{self.path.name} is {what}, which cannot be mapped: loaded whole, {size / 2**20:,.0f} MiB of memory"
        self.notes.append(note)
        warnings.warn(note, stacklevel=2)
        return load()

    def read(self, key: str) -> torch.Tensor:
        return self._tensors[key]

    def close(self) -> None:
        self._tensors = {}


_File = _SafetensorsFile | _TorchFile


def _candidate(folder: Path) -> Path:
    """The one checkpoint of a folder."""
    found = [folder / name for name in INDEX_NAMES + WEIGHT_NAMES if (folder / name).is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{str(folder)!r} holds several checkpoints: {', '.join(path.name for path in found)}. Give the one that is "
            "meant as a file, for instance " + repr(str(found[0])) + "."
        )
    others = sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES)
    others_text = (
        f"It has {_some(others)}: give that file itself, or restore the index." if others else "It has no weights."
    )
    raise FileNotFoundError(
        f"{str(folder)!r} holds no checkpoint under a usual name ({', '.join(INDEX_NAMES + WEIGHT_NAMES)}). {others_text}"
    )


def _read_index(path: Path) -> dict[str, list[str] | None]:
    """File name -> names of its tensors, in the order of the files' names."""
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        items = [(str(key), str(name)) for key, name in weight_map.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{str(path)!r} is not a sharded index ({type(error).__name__}: {error}); it needs a 'weight_map' of tensor "
            "names to file names. Download it again."
        ) from None
    files: dict[str, list[str] | None] = {}
    for key, name in sorted(items, key=lambda item: item[1]):
        if Path(name).name != name or "\\" in name or Path(name).suffix not in SUFFIXES:
            raise ValueError(
                f"{str(path)!r} puts {key!r} into {name!r}; allowed are files of its own folder ({', '.join(SUFFIXES)})."
            )
        listed = files.setdefault(name, [])
        assert listed is not None
        listed.append(key)
    if not files:
        raise ValueError(f"{str(path)!r} lists no tensors. Download it again.")
    missing = [name for name in files if not (path.parent / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(files)} shards that {str(path)!r} names are missing: {_some(missing)}. Download "
            "them into the same folder."
        )
    return files


def _refuse_index(folder: Path, index_name: str, name: str, listed: set[str], held: set[str]) -> None:
    """Say how an index and one of its shards differ."""
    lacking, extra = sorted(listed - held), sorted(held - listed)
    parts = []
    if lacking:
        parts.append(f"{name} lacks {len(lacking)} of the tensors it should have ({_some(lacking)})")
    if extra:
        parts.append(f"{name} holds {len(extra)} that are not said to be there ({_some(extra)})")
    raise ValueError(
        f"{str(folder / index_name)!r} and its shards do not belong together: {'; '.join(parts)}. Download index and "
        "shards again, from one place."
    )


def _load_torch(path: Path, *, mmap: bool) -> Any:
    """What `torch.save` wrote, without running anything that is not a tensor, an array or a plain container."""
    if mmap:
        _check_zip(path)
    try:
        # Namespace is how training scripts save their arguments beside the weights.
        stand_ins = [(stand_in, name) for name, stand_in in _ALLOWED_GLOBALS.items()]
        with torch.serialization.safe_globals([*stand_ins, argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        # torch says "Unsupported global: GLOBAL a.b was not ..." or "unsupported GLOBAL a.b whose module a is blocked".
        # What `_Dtype` refuses comes out as its bare name.
        asked = re.search(r"GLOBAL (\S+)|(numpy\.dtype\(.*\))", str(error))
        if asked:
            raise _refused(path, asked[1] or asked[2]) from None
        # The reason stands between what torch advises before and after it.
        parts = str(error).split("\n\n")
        raise _damaged(path, parts[-2 if len(parts) > 1 else 0]) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _damaged(path, error) from None


def _check_zip(path: Path) -> None:
    """A torch file is a zip archive; one that is cut short or was packed again cannot be mapped."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise _damaged(path, error) from None
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise ValueError(
            f"{str(path)!r} is a TorchScript program, which is not run. Save its state dict, best as .safetensors."
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError(
            f"{str(path)!r} is a compressed zip archive, torch writes its own uncompressed. If checkpoints were packed "
            "into it, unpack them and give the file inside."
        )


def _load_pickle(path: Path) -> Any:
    """A plain pickle (detectron2's model zoo), read with the encoding that detectron2 uses."""
    try:
        with path.open("rb") as stream:
            return _PlainUnpickler(stream, encoding="latin1").load()
    except _RefusedGlobalError as error:
        raise _refused(path, str(error)) from None
    except Exception as error:  # damaged pickles raise nearly anything (see the documentation of pickle)
        raise _damaged(path, error) from None


class _RefusedGlobalError(pickle.UnpicklingError):
    """A pickle asked for this class or function."""


class _Dtype:
    """Stands in for `numpy.dtype`: plain numbers only.

    Numpy's own `__setstate__` believes what the file says about references inside the values, which a crafted file
    could use to pass off bytes as objects.
    """

    def __init__(self, code: str, *_: Any) -> None:
        if not (isinstance(code, str) and re.fullmatch(r"[<>=|]?(\?|b1|[iu][1248]|f[248]|c8|c16)", code)):
            raise _RefusedGlobalError(f"numpy.dtype({code!r})")
        self.numpy = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.numpy = self.numpy.newbyteorder(state[1])


class _Array:
    """Stands in for `numpy.ndarray` and its `_reconstruct`: a shape, a dtype and bytes, which the pickle fills in."""

    value = np.zeros(0)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        self.value = _from_buffer(data, dtype, shape, "F" if is_fortran else "C").value


def _from_buffer(data: bytes | str, dtype: _Dtype, shape: tuple[int, ...], order: str = "C") -> _Array:
    """Stands in for numpy's `_frombuffer` (pickle protocol 5). Python 2 wrote bytes as text."""
    array = _Array()
    data = data.encode("latin1") if isinstance(data, str) else data
    array.value = np.frombuffer(data, dtype=dtype.numpy).reshape(shape, order="F" if order == "F" else "C")
    return array


def _from_scalar(dtype: _Dtype, data: bytes | str) -> _Array:
    """Stands in for numpy's `scalar`."""
    return _from_buffer(data, dtype, ())


def _to_bytes(text: str = "", *_: Any) -> bytes:
    """Stands in for `_codecs.encode(text, "latin1")` and `bytes()`, as old protocols write bytes: no codec is looked up."""
    return str(text).encode("latin1")


_ALLOWED_GLOBALS: dict[str, Any] = {
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    **{f"numpy.{core}.multiarray._reconstruct": _Array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _from_scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _to_bytes,
    **{f"{builtins}.bytes": _to_bytes for builtins in ("builtins", "__builtin__")},
    **{f"{builtins}.bytearray": bytearray for builtins in ("builtins", "__builtin__")},
    **{f"{builtins}.set": set for builtins in ("builtins", "__builtin__")},
    **{f"{builtins}.frozenset": frozenset for builtins in ("builtins", "__builtin__")},
}


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, strings, plain containers and numpy arrays, and refuses everything else by name."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        name = f"{module_name}.{global_name}"
        if name not in _ALLOWED_GLOBALS:
            raise _RefusedGlobalError(name)
        return _ALLOWED_GLOBALS[name]


def _unwrap(loaded: Any, path: Path, use_ema: bool) -> tuple[Mapping[str, Any], list[str]]:
    """The dict that holds the weights, and the names of the wrappers around it, outermost first."""
    descended = []
    if use_ema:
        if not (isinstance(loaded, Mapping) and isinstance(loaded.get("ema"), Mapping)):
            raise ValueError(f"{str(path)!r} has no averaged weights ('ema'). Leave out use_ema to take the others.")
        loaded, descended = loaded["ema"], ["ema"]
    while isinstance(loaded, Mapping):
        name = next((name for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)), None)
        if name is None:
            return loaded, descended
        loaded = loaded[name]
        descended.append(name)
    raise ValueError(
        f"{str(path)!r} holds a {type(loaded).__name__}; allowed is a dict of names to tensors, as it is or under "
        f"{', '.join(repr(name) for name in ('ema', *_WRAPPERS))}. Save the state dict of the model."
    )


def _as_tensors(values: Mapping[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """Every value as a plain CPU tensor."""
    tensors: dict[str, torch.Tensor] = {}
    others: list[str] = []
    for key, value in values.items():
        if isinstance(value, _Array):
            value = _to_tensor(value.value)
        if isinstance(key, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided:
            tensors[key] = value.detach()
        else:
            others.append(f"{key!r}: {type(value).__name__}")
    if others or not tensors:
        what = f"{len(others)} entries that are not plain tensors ({_some(others)})" if others else "no tensors"
        raise ValueError(
            f"{str(path)!r} holds {what}; allowed is a dict of names to tensors or arrays of numbers. Save only the "
            "state dict of the model."
        )
    return tensors


def _to_tensor(array: np.ndarray) -> torch.Tensor:
    """The array as a tensor, without a copy where the byte order allows it."""
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "not writable": nothing here writes into it
        return torch.from_numpy(array)


def _damaged(path: Path, error: object) -> ValueError:
    return ValueError(
        f"{str(path)!r} cannot be read: it is cut short, damaged or not a checkpoint ({path.stat().st_size:,} bytes; {error}). "
        "Compare its size with the original's and download it again."
    )


def _refused(path: Path, asked: str) -> ValueError:
    return ValueError(
        f"{str(path)!r} is refused, nothing of it was run: its pickle asks for {asked}, and a class or function can run "
        "code. Allowed are tensors, numpy arrays and plain containers. Save the state dict alone, best as .safetensors, "
        "on a machine where the file is trusted."
    )


def _some(names: list[str]) -> str:
    """The first three names, and how many there are beyond."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
