"""Writing a folder: complete or not at all, bit by bit what was given, resumable, in little memory."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffusers_focus.checkpoints import writing
from diffusers_focus.checkpoints.reading import TensorInfo, open_tensors
from diffusers_focus.checkpoints.writing import FolderWriter, require_space

WEIGHTS = "diffusion_pytorch_model.safetensors"


def make_tensors(count: int = 6) -> dict[str, torch.Tensor]:
    """Tensors of 400 bytes and small ones of other dtypes."""
    tensors: dict[str, torch.Tensor] = {f"t{number}": torch.randn(10, 10) for number in range(count)}
    return {
        "flags": torch.tensor([True, False, True]),
        **tensors,
        "scalar": torch.tensor(3.0, dtype=torch.bfloat16),
        "none": torch.zeros(0, 2),
        "steps": torch.tensor(7),
        "turned": torch.randn(4, 6).T,
    }


def infos_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorInfo]:
    return {key: TensorInfo(tuple(value.shape), value.dtype) for key, value in tensors.items()}


def write(
    writer: FolderWriter, tensors: Mapping[str, torch.Tensor], subfolder: str = "unet", **options: Any
) -> list[str]:
    """Write tensors; returns the names of those that were asked for."""
    asked: list[str] = []

    def getter(key: str) -> Callable[[], torch.Tensor]:
        def get() -> torch.Tensor:
            asked.append(key)
            return tensors[key]

        return get

    writer.write_shards(subfolder, WEIGHTS, ((key, getter(key)) for key in tensors), infos_of(tensors), **options)
    return asked


def read_all(path: Path) -> dict[str, torch.Tensor]:
    with open_tensors(path) as files:
        return {key: files.read(key).clone() for key in files.infos}


def assert_same(read: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> None:
    assert set(read) == set(tensors)
    for key, value in tensors.items():
        assert read[key].dtype == value.dtype and torch.equal(read[key], value), key


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_one_file(tmp_path: Path) -> None:
    tensors, output = make_tensors(), tmp_path / "new" / "out"
    with FolderWriter(output) as writer:
        write(writer, tensors)
        assert not output.exists()
        writer.finish()
    assert names_in(output) == [f"unet/{WEIGHTS}"]
    assert_same(load_file(output / "unet" / WEIGHTS), tensors)
    assert os.listdir(output.parent) == ["out"]


@pytest.mark.parametrize("subfolder", ["", "unet"])
def test_shards_with_index(tmp_path: Path, subfolder: str) -> None:
    tensors = make_tensors()
    with FolderWriter(tmp_path / "out") as writer:
        write(writer, tensors, subfolder, shard_size=1000)
        writer.finish()
    folder = tmp_path / "out" / subfolder
    index = json.loads((folder / f"{WEIGHTS}.index.json").read_text())
    shards = sorted(folder.glob("*.safetensors"))
    count = len(shards)
    assert count > 2 and shards[0].name == f"diffusion_pytorch_model-00001-of-{count:05d}.safetensors"
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in tensors.values())
    assert set(index["weight_map"]) == set(tensors) and set(index["weight_map"].values()) == {
        path.name for path in shards
    }
    assert_same(read_all(folder), tensors)
    for path in shards:
        assert sum(value.nbytes for value in load_file(path).values()) <= 1000


def test_diffusers_loads_what_was_written(tmp_path: Path) -> None:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    model = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1)
    with FolderWriter(tmp_path / "out") as writer:
        write(writer, model.state_dict(), "vae", shard_size=20_000)
        writer.write_json("vae/config.json", dict(model.config))
        writer.finish()
    loaded = AutoencoderKL.from_pretrained(tmp_path / "out", subfolder="vae")
    assert_same(loaded.state_dict(), model.state_dict())


def test_a_large_tensor_has_a_file_of_its_own_and_pieces_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_PIECE", 7)
    tensors = {"a": torch.randn(3), "large": torch.randn(50), "b": torch.randn(3)}
    with FolderWriter(tmp_path / "out") as writer:
        write(writer, tensors, shard_size=100)
        writer.finish()
    weight_map = json.loads((tmp_path / "out" / "unet" / f"{WEIGHTS}.index.json").read_text())["weight_map"]
    assert len(set(weight_map.values())) == 3
    assert_same(read_all(tmp_path / "out" / "unet"), tensors)


def test_floats_are_converted_and_nothing_else(tmp_path: Path) -> None:
    tensors = make_tensors()
    with FolderWriter(tmp_path / "out") as writer:
        write(writer, tensors, dtype=torch.float16)
        writer.finish()
    floats = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
    assert_same(read_all(tmp_path / "out" / "unet" / WEIGHTS), floats)


def test_values_beyond_the_dtype(tmp_path: Path) -> None:
    with (
        FolderWriter(tmp_path / "out") as writer,
        pytest.raises(ValueError, match=r"'w' reach 7e\+04, beyond torch.float16"),
    ):
        write(writer, {"w": torch.tensor([1.0, -7e4])}, dtype=torch.float16)
    with FolderWriter(tmp_path / "out") as writer, pytest.raises(ValueError, match="'w' hold 1 NaN"):
        write(writer, {"w": torch.tensor([1.0, float("nan")])}, dtype=torch.float16)
    assert os.listdir(tmp_path) == []


def test_values_lie_at_multiples_of_their_size(tmp_path: Path) -> None:
    tensors = {
        "flags": torch.ones(3, dtype=torch.bool),
        "half": torch.ones(1, dtype=torch.float16),
        "double": torch.ones(2).double(),
    }
    with FolderWriter(tmp_path / "out") as writer:
        write(writer, tensors)
        writer.finish()
    content = (tmp_path / "out" / "unet" / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for key, value in tensors.items():
        assert (8 + length + header[key]["data_offsets"][0]) % value.dtype.itemsize == 0


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    tensors, counted = make_tensors(), []
    with FolderWriter(tmp_path / "out") as writer:
        write(writer, tensors, progress=counted.append, shard_size=1000)
    assert sum(counted) == sum(value.nbytes for value in tensors.values())


def test_report_has_checksums(tmp_path: Path) -> None:
    tensors = make_tensors()
    (tmp_path / "vocab.txt").write_text("words")
    with FolderWriter(tmp_path / "out") as writer:
        write(writer, tensors)
        writer.write_text("README.md", "# Käse\n")
        writer.copy_file(tmp_path / "vocab.txt", "tokenizer/vocab.txt")
        report = writer.finish({"source": "x"})
    output = tmp_path / "out"
    assert json.loads((output / "conversion_report.json").read_text()) == report
    assert report["source"] == "x"
    assert set(report["files"]) == {"README.md", "tokenizer/vocab.txt", f"unet/{WEIGHTS}"}
    for name, record in report["files"].items():
        content = (output / name).read_bytes()
        assert record["bytes"] == len(content)
        assert record.get("crc32", f"{zlib.crc32(content):08x}") == f"{zlib.crc32(content):08x}"
        assert ("tensors" if name.endswith(".safetensors") else "crc32") in record
    for key, checksum in report["files"][f"unet/{WEIGHTS}"]["tensors"].items():
        raw = tensors[key].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert checksum == f"{zlib.crc32(raw):08x}"


def test_tensors_that_are_not_as_announced(tmp_path: Path) -> None:
    good = infos_of({"a": torch.ones(2, 3)})
    for tensors, message in (
        (
            [("a", lambda: torch.ones(3, 2))],
            r"'a' is \(3, 2\) of torch.float32; \(2, 3\) of torch.float32 was announced",
        ),
        ([("a", lambda: torch.ones(2, 3).half())], r"of torch.float16; \(2, 3\) of torch.float32"),
        ([("a", lambda: torch.ones(2, 3))] * 2, "'a' is given twice"),
        ([("b", lambda: torch.ones(2, 3))], "'b' is given without"),
        ([], "1 tensors have a shape but no values: a"),
    ):
        with FolderWriter(tmp_path / "out") as writer, pytest.raises(ValueError, match=message):
            writer.write_shards("unet", WEIGHTS, tensors, good)
    with FolderWriter(tmp_path / "out") as writer, pytest.raises(ValueError, match="dtype torch.complex128"):
        write(writer, {"a": torch.ones(2, dtype=torch.complex128)})
    with FolderWriter(tmp_path / "out") as writer, pytest.raises(ValueError, match="written already"):
        write(writer, make_tensors())
        write(writer, make_tensors())


def test_names_stay_inside(tmp_path: Path) -> None:
    with FolderWriter(tmp_path / "out") as writer:
        for name in ("../x", str(tmp_path / "x"), "", ".journal.json"):
            with pytest.raises(ValueError, match="inside the output"):
                writer.write_text(name, "x")
        with pytest.raises(FileNotFoundError, match="no file"):
            writer.copy_file(tmp_path / "none")
    assert os.listdir(tmp_path) == []


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Path]:
    """An output of an earlier run, which is looked at again in the end."""
    with FolderWriter(tmp_path / "out") as writer:
        writer.write_text("model_index.json", "old")
        writer.finish()
    yield tmp_path / "out"
    assert (tmp_path / "out" / "model_index.json").read_text() == "old"
    assert not (tmp_path / ".out.old").exists()


def test_an_existing_output_is_refused(old: Path) -> None:
    with pytest.raises(FileExistsError, match="overwrite"):
        FolderWriter(old)
    assert os.listdir(old.parent) == ["out"]


def test_an_existing_output_is_replaced_at_the_end(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with FolderWriter(tmp_path / "out", overwrite=True) as writer:
            writer.write_text(f"{text}.txt", text)
            if text == "new":
                assert names_in(tmp_path / "out") == ["old.txt"]
            writer.finish()
    assert names_in(tmp_path / "out") == ["new.txt"]
    assert os.listdir(tmp_path) == ["out"]


def test_outputs_that_are_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        FolderWriter(tmp_path / "file", overwrite=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for output in (".", "..", tmp_path):
        with pytest.raises(ValueError, match="is not replaced"):
            FolderWriter(output, overwrite=True)


def test_killed_between_the_renames(old: Path) -> None:
    old.rename(old.with_name(".out.old"))
    with pytest.raises(FileExistsError):
        FolderWriter(old)


def test_two_writers_at_once(tmp_path: Path) -> None:
    with FolderWriter(tmp_path / "out") as first:
        first.write_text("a.txt", "a")
        with pytest.raises(BlockingIOError, match="another process"):
            FolderWriter(tmp_path / "out")
        first.finish()
    assert names_in(tmp_path / "out") == ["a.txt"]


def test_error_without_a_finished_shard_leaves_nothing(old: Path) -> None:
    with pytest.raises(RuntimeError), FolderWriter(old, overwrite=True) as writer:
        writer.write_text("model_index.json", "new")
        raise RuntimeError
    with FolderWriter(old, overwrite=True) as writer:
        writer.abort()
        writer.abort()
    assert os.listdir(old.parent) == ["out"]


class Interrupted(Exception):
    """Stands for whatever ends a run."""


def interrupt(output: Path, tensors: Mapping[str, torch.Tensor], at: str = "t4", **options: Any) -> None:
    """Write until the tensor `at` is asked for."""

    def fail() -> torch.Tensor:
        raise Interrupted

    getters = [(key, fail if key == at else (lambda key=key: tensors[key])) for key in tensors]
    with pytest.raises(Interrupted), FolderWriter(output, overwrite=True) as writer:
        writer.write_shards("unet", WEIGHTS, getters, infos_of(tensors), **{"shard_size": 1000, **options})


def test_resume_keeps_finished_shards(tmp_path: Path) -> None:
    tensors = make_tensors()
    interrupt(tmp_path / "out", tensors)
    partial = tmp_path / ".out.partial"
    assert os.listdir(tmp_path) == [".out.partial"]
    kept = {path: path.stat().st_mtime_ns for path in (partial / "unet").glob("*0000[12]-of*")}
    assert len(kept) == 2
    counted: list[int] = []
    with FolderWriter(tmp_path / "out", resume=True) as writer:
        asked = write(writer, tensors, shard_size=1000, progress=counted.append)
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        report = writer.finish({})
    assert "t4" in asked and not {"t0", "t1", "t2", "t3"} & set(asked)
    assert sum(counted) == sum(value.nbytes for value in tensors.values())
    assert_same(read_all(tmp_path / "out" / "unet"), tensors)
    assert {key for record in report["files"].values() for key in record.get("tensors", ())} == set(tensors)
    assert ".journal.json" not in names_in(tmp_path / "out")


def test_resume_writes_a_damaged_shard_again(tmp_path: Path) -> None:
    tensors = make_tensors()
    interrupt(tmp_path / "out", tensors)
    first = next((tmp_path / ".out.partial" / "unet").glob("*00001-of*"))
    first.write_bytes(first.read_bytes()[:-1] + b"?")
    with FolderWriter(tmp_path / "out", resume=True) as writer:
        assert "t0" in write(writer, tensors, shard_size=1000)
        writer.finish()
    assert_same(read_all(tmp_path / "out" / "unet"), tensors)


def test_resume_with_another_plan_is_refused(tmp_path: Path) -> None:
    tensors = make_tensors()
    interrupt(tmp_path / "out", tensors)
    others = {**tensors, "t0": torch.randn(20, 5)}
    for given, options in ((tensors, {"shard_size": 900}), (tensors, {"dtype": torch.float16}), (others, {})):
        with (
            FolderWriter(tmp_path / "out", resume=True) as writer,
            pytest.raises(ValueError, match="without resume to start"),
        ):
            write(writer, given, **{"shard_size": 1000, **options})
    with (
        FolderWriter(tmp_path / "out", resume=True, fingerprint="x") as writer,
        pytest.raises(ValueError, match="other sources"),
    ):
        write(writer, tensors, shard_size=1000)
    with FolderWriter(tmp_path / "out") as writer:  # simply started again
        assert set(write(writer, others, shard_size=900)) == set(others)
        writer.finish()
    assert_same(read_all(tmp_path / "out" / "unet"), others)


def test_leftovers_of_an_interrupted_run_are_not_published(tmp_path: Path) -> None:
    tensors = make_tensors()
    interrupt(tmp_path / "out", tensors)
    (tmp_path / ".out.partial" / "old" / "er").mkdir(parents=True)
    (tmp_path / ".out.partial" / "old" / "x.txt").write_text("x")
    with FolderWriter(tmp_path / "out", resume=True) as writer:
        write(writer, tensors, "vae")
        writer.finish()
    assert names_in(tmp_path / "out") == [f"vae/{WEIGHTS}"]
    assert not (tmp_path / "out" / "old").exists() and not (tmp_path / "out" / "unet").exists()


def test_files_that_change_after_they_were_written(old: Path) -> None:
    tensors = make_tensors()
    for damage, message in (
        (lambda content: content[:-1], "bytes"),
        (lambda content: content.replace(b'"t1"', b'"t9"'), r"not what was written: 2 tensors differ \(t1, t9\)"),
        (lambda content: content.replace(b"[10,10]", b"[20, 5]"), "not what was written: 6 tensors differ"),
    ):
        with FolderWriter(old, overwrite=True) as writer:
            write(writer, tensors)
            path = writer.folder / "unet" / WEIGHTS
            path.write_bytes(damage(path.read_bytes()))
            with pytest.raises(ValueError, match=message):
                writer.finish()


@pytest.mark.parametrize("after", [0, 700, 2500])
def test_full_disk(old: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    left, real = after, writing._write

    def fill(stream: Any, piece: bytes | memoryview) -> None:
        nonlocal left
        left -= len(piece)
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(stream, piece)

    monkeypatch.setattr(writing, "_write", fill)
    with FolderWriter(old, overwrite=True) as writer, pytest.raises(OSError, match=r"disk is full.*--resume") as caught:
        write(writer, make_tensors(), shard_size=1000)
    assert caught.value.errno == errno.ENOSPC and str(caught.value.filename).endswith(".safetensors")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_full_device_gives_the_same_error() -> None:
    with open("/dev/full", "wb", buffering=0) as stream, pytest.raises(OSError, match="disk is full"):
        with writing._disk_errors(Path("/dev/full")):
            writing._write(stream, b"x")


def test_space_is_checked_first(old: Path) -> None:
    require_space(old / "not" / "yet", 1000)
    with pytest.raises(
        OSError, match=r"bytes \(.* GiB\) are needed and [\d,]+ \(.*\) are free; make room for"
    ) as caught:
        require_space(old, 2**60)
    assert caught.value.errno == errno.ENOSPC
    huge = {"w": TensorInfo((2**58,), torch.float32)}
    with FolderWriter(old, overwrite=True) as writer, pytest.raises(OSError, match="are needed"):
        writer.write_shards("unet", WEIGHTS, [("w", lambda: torch.ones(1))], huge)


KILLED = """
import sys, time, torch
from diffusers_focus.checkpoints.reading import TensorInfo
from diffusers_focus.checkpoints.writing import FolderWriter

def get(number):
    if number == 4:
        print("waiting", flush=True)
        time.sleep(50)
    return torch.full((10, 10), float(number))

with FolderWriter(sys.argv[1], overwrite=True) as writer:
    infos = {f"t{number}": TensorInfo((10, 10), torch.float32) for number in range(6)}
    getters = [(key, lambda number=number: get(number)) for number, key in enumerate(infos)]
    writer.write_shards("unet", "diffusion_pytorch_model.safetensors", getters, infos, shard_size=1000)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_run(old: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, str(old)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        with pytest.raises(BlockingIOError):
            FolderWriter(old, overwrite=True)
        process.send_signal(signal.SIGKILL)
    assert names_in(old) == ["model_index.json"]
    tensors = {f"t{number}": torch.full((10, 10), float(number)) for number in range(6)}
    other = old.with_name("copy")
    old.with_name(".out.partial").rename(old.with_name(".copy.partial"))
    with FolderWriter(other, resume=True) as writer:
        assert write(writer, tensors, shard_size=1000) == ["t4", "t5"]
        writer.finish()
    assert_same(read_all(other / "unet"), tensors)


STREAMED = """
import re, sys, torch
from diffusers_focus.checkpoints.reading import check_finite, open_tensors
from diffusers_focus.checkpoints.writing import FolderWriter

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

def get(files, key):
    tensor = files.read(key)
    check_finite(tensor, key)
    return tensor

source, output, dtype = sys.argv[1:]
torch.ones(2).to(torch.bfloat16)
before = peak = anonymous()

def progress(_):
    global peak
    peak = max(peak, anonymous())

with open_tensors(source) as files, FolderWriter(output) as writer:
    getters = [(key, lambda key=key: get(files, key)) for key in reversed(files.infos)]
    dtype = getattr(torch, dtype)
    writer.write_shards("", "model.safetensors", getters, files.infos, dtype=dtype, shard_size=2**26, progress=progress)
    writer.finish({})
    print(files.nbytes / 2**20, peak - before)
"""


@pytest.mark.whole
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize(("kind", "dtype"), [("safetensors", "float32"), ("bin", "bfloat16")])
def test_streaming_takes_little_memory(tmp_path: Path, kind: str, dtype: str) -> None:
    tensors = {
        f"t{number}": torch.randn(2**20 * (24 if number == 0 else 3)) for number in range(9)
    }  # 192 MiB, one of 96
    if kind == "safetensors":
        with FolderWriter(tmp_path / "source") as writer:
            writer.write_shards(
                "", "model.safetensors", [(k, lambda k=k: tensors[k]) for k in tensors], infos_of(tensors)
            )
            writer.finish()
    else:
        (tmp_path / "source").mkdir()
        torch.save(tensors, tmp_path / "source" / "pytorch_model.bin")
    command = [sys.executable, "-c", STREAMED, str(tmp_path / "source"), str(tmp_path / "out"), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    size, peak = map(float, re.findall(r"[\d.]+", done.stdout)[-2:])
    print(f"{kind} to {dtype}: {size:.0f} MiB with {peak:.1f} MiB of anonymous memory above the start")
    assert size == 192 and peak < 64
    with open_tensors(tmp_path / "out") as written:
        for key, value in tensors.items():
            assert torch.equal(written.read(key), value.to(getattr(torch, dtype)))
