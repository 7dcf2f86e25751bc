"""Reading checkpoints: every kind of file, one tensor at a time; damaged and malicious files are refused."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffusers_focus.checkpoints.reading import TensorInfo, check_finite, open_tensors

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b.scale": torch.tensor(2.5, dtype=torch.bfloat16),
    "c.table": torch.arange(5),
    "d.none": torch.zeros(0, 3, dtype=torch.float16),
}


class Payload:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.path}'",)


def assert_holds(path: Path, tensors: dict[str, torch.Tensor] = TENSORS, **options: Any) -> list[str]:
    with open_tensors(path, **options) as files:
        assert files.infos == {key: TensorInfo(tuple(value.shape), value.dtype) for key, value in tensors.items()}
        assert files.nbytes == sum(value.nbytes for value in tensors.values())
        for key, value in tensors.items():
            read = files.read(key)
            assert read.dtype == value.dtype and torch.equal(read, value)
        return files.notes


def save_shards(folder: Path, kind: str = "safetensors", rename: Any = lambda key: key, **options: Any) -> Path:
    """TENSORS over two shards with an index; the first holds the first two."""
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    weight_map = {}
    for number, keys in enumerate((list(TENSORS)[:2], list(TENSORS)[2:]), start=1):
        part = {rename(key): TENSORS[key] for key in keys}
        name = f"{stem}-{number:05d}-of-00002.{suffix}"
        if kind == "safetensors":
            save_file(part, folder / name)
        else:
            torch.save(part, folder / name, **options)
        weight_map.update(dict.fromkeys(part, name))
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_safetensors_file_and_folder(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "diffusion_pytorch_model.safetensors")
    assert_holds(tmp_path / "diffusion_pytorch_model.safetensors")
    assert assert_holds(tmp_path) == []


@pytest.mark.parametrize("suffix", ["bin", "pth", "pt", "pkl"])
def test_torch_file_is_mapped(tmp_path: Path, suffix: str) -> None:
    torch.save(TENSORS, tmp_path / f"x.{suffix}")
    assert_holds(tmp_path / f"x.{suffix}")


def test_old_torch_file_is_loaded_whole_and_says_so(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    with pytest.warns(UserWarning, match="cannot be mapped"):
        notes = assert_holds(tmp_path / "x.bin")
    assert "loaded whole" in notes[0]


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards(tmp_path: Path, kind: str) -> None:
    index = save_shards(tmp_path, kind)
    assert_holds(tmp_path)
    assert_holds(index)
    with open_tensors(tmp_path) as files:
        assert files.source_of("a.weight").endswith(f"00001-of-00002.{kind}")
        assert files.source_of("c.table").endswith(f"00002-of-00002.{kind}")
        with pytest.raises(KeyError, match=r"no tensor 'e'"):
            files.read("e")


def test_old_shards_are_in_memory_one_at_a_time(tmp_path: Path) -> None:
    save_shards(tmp_path, "bin", _use_new_zipfile_serialization=False)
    with pytest.warns(UserWarning, match="cannot be mapped"), open_tensors(tmp_path) as files:
        for key in ("a.weight", "c.table", "a.weight"):
            assert torch.equal(files.read(key), TENSORS[key])
            assert len(files._open) == 1


def test_few_shards_stay_open_and_tensors_outlive_them(tmp_path: Path) -> None:
    names = [f"model-{number:05d}-of-00009.safetensors" for number in range(1, 10)]
    for number, name in enumerate(names):
        save_file({f"t{number}": torch.full((4,), number)}, tmp_path / name)
    weight_map = {f"t{number}": name for number, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    files = open_tensors(tmp_path)
    read = [files.read(f"t{number}") for number in range(9)]
    assert len(files._open) <= 4
    files.close()
    assert [int(tensor[0]) for tensor in read] == list(range(9))


@pytest.mark.parametrize(
    ("wrap", "use_ema", "descended"),
    [
        (lambda ours, other: {"model": ours, "state_dict": other, "ema": other, "steps": 3}, False, ["model"]),
        (lambda ours, other: {"model": other, "ema": ours}, True, ["ema"]),
        (lambda ours, other: {"model": other, "ema": {"state_dict": ours}}, True, ["ema", "state_dict"]),
        (lambda ours, other: {"state_dict": ours, "module": other}, False, ["state_dict"]),
        (lambda ours, other: {"module": ours, "args": argparse.Namespace(lr=1e-4)}, False, ["module"]),
        (
            lambda ours, other: {"model": {"state_dict": ours}, "optimizer": {"state": {0: other}}},
            False,
            ["model", "state_dict"],
        ),
    ],
)
def test_wrappers_are_descended_in_order(tmp_path: Path, wrap: Any, use_ema: bool, descended: list[str]) -> None:
    torch.save(wrap(TENSORS, {"z": torch.ones(2)}), tmp_path / "x.pt")
    notes = assert_holds(tmp_path / "x.pt", use_ema=use_ema)
    assert notes == ["taken from " + "".join(f"[{name!r}]" for name in descended)]


def test_missing_averages_are_an_error(tmp_path: Path) -> None:
    torch.save({"model": TENSORS}, tmp_path / "x.pt")
    save_file(TENSORS, tmp_path / "x.safetensors")
    for name in ("x.pt", "x.safetensors"):
        with pytest.raises(ValueError, match="averaged weights"):
            open_tensors(tmp_path / name, use_ema=True)


def test_module_prefix_goes_where_every_name_has_it(tmp_path: Path) -> None:
    save_shards(tmp_path, "bin", rename=lambda key: "module." + key)
    assert "'module.' was removed" in assert_holds(tmp_path)[-1]
    mixed = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(mixed, tmp_path / "x.pt")
    assert_holds(tmp_path / "x.pt", mixed)


ARRAYS = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "f": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    "big": np.arange(3, dtype=">f4"),
    "scalar": np.float64(0.5),
    "empty": np.zeros((0, 2), dtype=np.uint8),
    "flag": np.array([True, False]),
}
ARRAY_TENSORS = {
    "w": torch.arange(6.0).reshape(2, 3),
    "f": torch.arange(6).reshape(2, 3),
    "big": torch.arange(3.0),
    "scalar": torch.tensor(0.5, dtype=torch.float64),
    "empty": torch.zeros(0, 2, dtype=torch.uint8),
    "flag": torch.tensor([True, False]),
}


@pytest.mark.parametrize("protocol", range(6))
def test_detectron2_pickle(tmp_path: Path, protocol: int) -> None:
    content = {"model": OrderedDict(ARRAYS), "__author__": "x", "matching_heuristics": True, "s": {1}, "b": b"\x00\xff"}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
    with pytest.warns(UserWarning, match="plain pickle"):
        assert_holds(tmp_path / "x.pkl", ARRAY_TENSORS)


def test_pickle_of_python_2(tmp_path: Path) -> None:
    """Text opcodes, `numpy.core`, and bytes written as text, as the model zoo's oldest files have them."""
    dtype = b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
    state = b"(I1\n(I2\nt" + dtype + b"I00\nS'\\x00\\x00\\x80?\\x00\\x00\\x00@'\ntb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR" + state
    (tmp_path / "x.pkl").write_bytes(b"(dS'model'\n(dS'w'\n" + array + b"ss.")
    with pytest.warns(UserWarning, match="plain pickle"):
        assert_holds(tmp_path / "x.pkl", {"w": torch.tensor([1.0, 2.0])})


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.filterwarnings("ignore:.*cannot be mapped")
def test_arrays_in_torch_files(tmp_path: Path, old: bool) -> None:
    torch.save({"model": ARRAYS}, tmp_path / "x.pth", _use_new_zipfile_serialization=not old)
    assert_holds(tmp_path / "x.pth", ARRAY_TENSORS)


@pytest.mark.parametrize("suffix", ["bin", "pth", "pt", "pkl"])
@pytest.mark.parametrize("how", ["zip", "old", "pickle", "pickle0", "stack_global"])
@pytest.mark.filterwarnings("ignore:.*cannot be mapped")
def test_code_is_refused_and_not_run(tmp_path: Path, suffix: str, how: str) -> None:
    path, made = tmp_path / f"x.{suffix}", tmp_path / "made"
    content = {"model": {"w": torch.ones(2) if how in ("zip", "old") else np.ones(2), "evil": Payload(made)}}
    if how in ("zip", "old"):
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    else:
        path.write_bytes(pickle.dumps(content, {"pickle": 2, "pickle0": 0, "stack_global": 4}[how]))
    with pytest.raises(ValueError, match=r"nothing of it was run: its pickle asks for (posix|nt|os)\.system"):
        open_tensors(path)
    assert not made.exists()


@pytest.mark.parametrize(
    ("code", "asked"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"cbuiltins\ngetattr\n.", "builtins.getattr"),
        (b"cnumpy\nload\n.", "numpy.load"),
        (b"cnumpy.core.multiarray\nfromfile\n.", "numpy.core.multiarray.fromfile"),
        (b"cdiffusers_focus.checkpoints.reading\nos.system\n.", "diffusers_focus.checkpoints.reading.os.system"),
        (b"(S'x'\nios\nsystem\n.", "os.system"),
        (b"cnumpy\ndtype\n(S'O8'\ntR.", r"numpy.dtype\('O8'\)"),
        (b"cnumpy\ndtype\n(S'i4,O'\ntR.", r"numpy.dtype\('i4,O'\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*cannot be mapped")
def test_only_arrays_and_containers_are_known(tmp_path: Path, code: bytes, asked: str) -> None:
    (tmp_path / "x.pkl").write_bytes(code)
    with pytest.raises(ValueError, match=f"asks for {asked}"):
        open_tensors(tmp_path / "x.pkl")


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.filterwarnings("ignore:.*cannot be mapped")
def test_arrays_of_objects_and_modules_in_torch_files(tmp_path: Path, old: bool) -> None:
    objects = np.array([1, None], dtype=object)
    for content, asked in (
        ({"w": objects}, r"numpy.dtype\('O8'\)"),
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    ):
        torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not old)
        with pytest.raises(ValueError, match=f"asks for {asked}"):
            open_tensors(tmp_path / "x.pth")


@pytest.mark.parametrize("state", [b"I1\n", b"(I1\n(I9\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntRI00\nS'xy'\nt"])
@pytest.mark.filterwarnings("ignore:.*cannot be mapped")
def test_arrays_with_impossible_states(tmp_path: Path, state: bytes) -> None:
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR" + state + b"b"
    (tmp_path / "x.pkl").write_bytes(b"(dS'w'\n" + array + b"s.")
    with pytest.raises(ValueError, match="cut short, damaged"):
        open_tensors(tmp_path / "x.pkl")


@pytest.mark.filterwarnings("ignore:.*cannot be mapped")
@pytest.mark.parametrize("kind", ["safetensors", "zip", "old", "pickle"])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.95, 0.999])
def test_files_cut_short(tmp_path: Path, kind: str, part: float) -> None:
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.bin")
    tensors = {f"t{number}": torch.randn(64) for number in range(16)}
    if kind == "safetensors":
        save_file(tensors, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({key: value.numpy() for key, value in tensors.items()}))
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match=r"cut short, damaged .* download it again"):
        open_tensors(path)


def test_damaged_header(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path)
    content = path.read_bytes()
    for damaged in (struct.pack("<Q", 2**60) + content[8:], content[:8] + b"?" + content[9:], content + b"more"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="cut short, damaged"):
            open_tensors(path)


def test_storage_beyond_the_file(tmp_path: Path) -> None:
    """The pickle of a mapped file says how long its values are; it must not be believed."""
    path, bigger = tmp_path / "x.bin", tmp_path / "y.bin"
    torch.save({"w": torch.zeros(5)}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(bigger, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert data.count(b"K\x05") == 2  # storage size and shape
                data = data.replace(b"K\x05", b"J" + struct.pack("<i", 10_000))
            new.writestr(entry.filename, data)
    with pytest.raises(ValueError, match="cut short, damaged"):
        open_tensors(bigger)


def test_compressed_archive(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "x.bin")
    with (
        zipfile.ZipFile(tmp_path / "x.bin") as old,
        zipfile.ZipFile(tmp_path / "y.bin", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(ValueError, match="compressed zip"):
        open_tensors(tmp_path / "y.bin")


def test_program(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"N.")
        archive.writestr("x/constants.pkl", b"N.")
    with pytest.raises(ValueError, match="TorchScript program"):
        open_tensors(tmp_path / "x.pt")


def test_pointer_of_git_lfs(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        open_tensors(tmp_path)


@pytest.mark.filterwarnings("ignore:.*cannot be mapped")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"w": torch.ones(1), "step": 5, "name": "x"},
            r"2 entries that are not plain tensors \('step': int, 'name': str",
        ),
        ({"w": np.ones(1), 7: np.ones(1)}, r"1 entries that are not plain tensors \(7: "),
        ({"w": torch.ones(2, 2).to_sparse()}, "not plain tensors"),
        ({}, "no tensors"),
        ([torch.ones(1)], "holds a list; allowed is a dict"),
    ],
)
def test_other_things_than_tensors(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message):
        open_tensors(tmp_path / "x.pt")


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        open_tensors(tmp_path / "x.bin")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint under a usual name .* It has no weights"):
        open_tensors(tmp_path)
    save_file(TENSORS, tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match=r"It has other.safetensors: give that file"):
        open_tensors(tmp_path)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(ValueError, match=r"ends with '.txt', allowed are .safetensors"):
        open_tensors(tmp_path / "x.txt")


def test_several_checkpoints_in_a_folder(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    save_shards(tmp_path, "bin")
    with pytest.raises(ValueError, match=r"several checkpoints: pytorch_model.bin.index.json, model.safetensors"):
        open_tensors(tmp_path)


def test_missing_shard(tmp_path: Path) -> None:
    save_shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 shards .* missing: model-00002-of-00002.safetensors"):
        open_tensors(tmp_path)


def test_index_and_shards_that_differ(tmp_path: Path) -> None:
    index = save_shards(tmp_path)
    original = json.loads(index.read_text())["weight_map"]
    first, second = sorted(set(original.values()))
    for changed, message in (
        ({**original, "e": first}, r"00001-of-00002.safetensors lacks 1 of the tensors it should have \(e\)"),
        (
            {key: name for key, name in original.items() if key != "c.table"},
            r"holds 1 that are not said .* \(c.table\)",
        ),
        ({**original, "a.weight": second}, r"holds 1 that are not said to be there \(a.weight\)"),
    ):
        index.write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(ValueError, match=message):
            open_tensors(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": {"a": "../x.bin"}}']
)
def test_damaged_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"not a sharded index|lists no tensors|files of its own folder"):
        open_tensors(tmp_path)


def test_values_that_are_no_numbers() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.complex64):
        tensor = torch.ones(4, 5, dtype=torch.float32).to(dtype)
        check_finite(tensor, "w")
        tensor[1, 2], tensor[3, 3] = float("nan"), float("inf")
        with pytest.raises(ValueError, match=r"'w' hold 1 NaN and 1 infinite values among 20"):
            check_finite(tensor, "w")
    check_finite(torch.arange(3), "w")
    check_finite(torch.zeros(0), "w")


PEAK = """
import re, sys
from diffusers_focus.checkpoints.reading import check_finite, open_tensors

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

with open_tensors(sys.argv[1]) as files:
    before = peak = anonymous()
    for key in files.infos:
        tensor = files.read(key)
        check_finite(tensor, key)
        peak = max(peak, anonymous())
    print(files.nbytes / 2**20, peak - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_reading_takes_no_memory(tmp_path: Path, kind: str) -> None:
    tensors = {f"t{number}": torch.ones(2**22 * (3 if number == 0 else 1)) for number in range(8)}  # 160 MiB
    if kind == "safetensors":
        save_file(tensors, tmp_path / "model.safetensors")
    else:
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=True)
    size, peak = map(float, re.findall(r"[\d.]+", done.stdout)[-2:])
    assert size == 160 and peak < 20
