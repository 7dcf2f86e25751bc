"""What converting ILLUME+ costs at full size: python benchmarks/bench_conversion.py [--sizes 3b 7b] [--folder DIR]

Nobody can download anything here, so the originals are made up: the names and shapes of the published checkpoints
(tests/goldens/keys, the UNet and VAE of pipelines/focus-3b), random values, bfloat16, in the layouts in which they are
published. They are converted through `conversion/convert_illume_plus.py` in a process of its own, whose memory is watched,
between two plain copies of the same files (read, write, fsync); the result is loaded on the meta device, mapped, and
compared with the originals. Needs twice the size of the originals on disk (3B: 33 GiB, 7B: 50 GiB) and removes all of it.
Writes results/conversion_<hardware>_<date>.json and .md beside this file. See README.md for what is and is not counted.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open

from diffusers_focus.evaluation.run import hardware, versions
from diffusers_focus.sharing.files import replace_json

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
VARIANT = ROOT / "pipelines" / "focus-3b"
RECORDED = ROOT / "tests" / "goldens"
TARGETS = {"peak_anonymous_gib": 4.0, "ratio_to_copy": 2.0}
SHARD = {"safetensors": 5 * 2**30, "bin": 2 * 2**30}  # torch.save holds a shard in memory
PIECE = 16 * 2**20
GIB = 2**30
Shapes = dict[str, tuple[int, ...]]

# What the published config.json of each size holds besides the sizes of its tensors (Qwen2.5's), and its kind of files.
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "3b": {"num_attention_heads": 16, "num_key_value_heads": 2, "files": "safetensors"},
    "7b": {"num_attention_heads": 28, "num_key_value_heads": 4, "files": "bin"},
}
TEXT_TOKENS = 151_643  # Qwen2.5's, before its special tokens
SPECIAL_TOKENS = 22
CODES = (32_768, 98_304)


# --- originals ----------------------------------------------------------------------------------------------------------


def listed(name: str) -> Shapes:
    """Names and shapes of a published checkpoint."""
    pairs = (line.split("\t") for line in (RECORDED / "keys" / f"{name}.txt").read_text().splitlines())
    return {key: tuple(ast.literal_eval(shape)) for key, shape in pairs}


def decoder_shapes(part: str) -> Shapes:
    """Names and shapes of SDXL's UNet with 68 input channels, or of its VAE."""
    cls = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part]
    with torch.device("meta"):
        model = cls.from_config(json.loads((VARIANT / part / "config.json").read_text()))
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


class RandomValues:
    """Random bfloat16 tensors, different for every name, cut out of one block of 64 MiB so that making them is fast."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.block = torch.randn(2**25, generator=generator).mul_(0.02).bfloat16().view(torch.uint8)
        self.block = torch.cat([self.block, self.block])  # any start has 64 MiB behind it

    def pieces(self, key: str, nbytes: int) -> Iterator[torch.Tensor]:
        start = zlib.crc32(key.encode()) % 2**25 * 2
        for first in range(0, nbytes, 2**26):
            yield self.block[start : start + min(2**26, nbytes - first)]

    def tensor(self, key: str, shape: tuple[int, ...]) -> torch.Tensor:
        nbytes = 2 * torch.Size(shape).numel()
        return torch.cat(list(self.pieces(key, nbytes))).view(torch.bfloat16).reshape(shape)


def write_shards(folder: Path, stem: str, files: str, shapes: Shapes, values: RandomValues) -> None:
    """A checkpoint in one file or several with an index, as transformers and diffusers name them."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[Shapes] = [{}]
    size = 0
    for key, shape in shapes.items():
        nbytes = 2 * torch.Size(shape).numel()
        if shards[-1] and size + nbytes > SHARD[files]:
            shards.append({})
            size = 0
        shards[-1][key] = shape
        size += nbytes
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"{stem}.{files}" if len(shards) == 1 else f"{stem}-{number:05d}-of-{len(shards):05d}.{files}"
        write = write_safetensors if files == "safetensors" else write_bin
        write(folder / name, shard, values)
        weight_map |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        (folder / f"{stem}.{files}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_safetensors(path: Path, shapes: Shapes, values: RandomValues) -> None:
    """One file, streamed."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for key, shape in shapes.items():
            for piece in values.pieces(key, 2 * torch.Size(shape).numel()):
                stream.write(piece.numpy())
        os.fsync(stream.fileno())


def write_bin(path: Path, shapes: Shapes, values: RandomValues) -> None:
    """One file of `torch.save`."""
    torch.save({key: values.tensor(key, shape) for key, shape in shapes.items()}, path)
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def write_language_files(folder: Path, size: str, shapes: Shapes) -> None:
    """config.json and a tokenizer of as many words as Qwen2.5's, with the tokens that ILLUME+ adds."""
    rows, hidden = shapes["model.embed_tokens.weight"]
    layers = len([key for key in shapes if key.endswith(".input_layernorm.weight")])
    own = {key: value for key, value in LANGUAGE_MODELS[size].items() if key != "files"}
    config = {
        "architectures": ["IllumeQwen2ForCausalLM"],
        "model_type": "illume_qwen2",
        "hidden_size": hidden,
        "intermediate_size": shapes["model.layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": layers,
        "vocab_size": rows,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 32_768,
        "bos_token_id": TEXT_TOKENS,
        "eos_token_id": TEXT_TOKENS + 2,
        "tie_word_embeddings": False,
        **own,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((RECORDED / "tokenizer_a.json").read_text())
    words = list(tokenizer["model"]["vocab"])
    words += [f"w{number}" for number in range(TEXT_TOKENS - len(words))]
    tokenizer["model"]["vocab"] = {word: number for number, word in enumerate(words)}
    chat = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    chat += [f"<|special_{number}|>" for number in range(SPECIAL_TOKENS - len(chat))]
    visual = ["<start_of_image>", "<end_of_image>", "<end_of_line>"]
    visual += [f"<{end}_of_level{level}>" for level in (0, 1) for end in ("start", "end")]
    visual += [f"<{side}_{pixels}>" for side in ("height", "width") for pixels in range(64, 1025, 64)]
    visual += [f"<|image_level{level}_{code}|>" for level, count in enumerate(CODES) for code in range(count)]
    plain = {"single_word": False, "lstrip": False, "rstrip": False}
    tokenizer["added_tokens"] = [
        {"id": TEXT_TOKENS + number, "content": token, **plain, "normalized": not special, "special": special}
        for number, (token, special) in enumerate([*((t, True) for t in chat), *((t, False) for t in visual)])
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    facts = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": chat[2], "pad_token": chat[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))


def write_originals(folder: Path, size: str) -> Path:
    """ILLUME+'s three checkpoints of a size."""
    values = RandomValues()
    write_shards(folder / "tokenizer", "pytorch_model", "bin", listed("dualvitok"), values)
    shapes = listed(f"illume_plus_{size}")
    files = LANGUAGE_MODELS[size]["files"]
    write_shards(
        folder / "language_model", "model" if files == "safetensors" else "pytorch_model", files, shapes, values
    )
    write_language_files(folder / "language_model", size, shapes)
    for part in ("unet", "vae"):
        name = "diffusion_pytorch_model"
        write_shards(folder / "decoder" / part, name, "safetensors", decoder_shapes(part), values)
        shutil.copy(VARIANT / part / "config.json", folder / "decoder" / part)
    (folder / "decoder" / "scheduler").mkdir()
    shutil.copy(VARIANT / "scheduler" / "scheduler_config.json", folder / "decoder" / "scheduler")
    return folder


def bytes_needed(size: str) -> int:
    """Size of the originals."""
    shapes = [listed("dualvitok"), listed(f"illume_plus_{size}"), decoder_shapes("unet"), decoder_shapes("vae")]
    return sum(2 * torch.Size(shape).numel() for part in shapes for shape in part.values())


# --- measuring ----------------------------------------------------------------------------------------------------------


def forget(folder: Path) -> None:
    """Take the files of a folder out of the page cache, so that every reader finds them on the disk."""
    for path in files_of(folder):
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def files_of(folder: Path) -> list[Path]:
    """All files of a folder, in one order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def copy(source: Path, target: Path) -> dict[str, float]:
    """Read, write and sync all files of a folder, with one buffer; the copy is removed again."""
    forget(source)
    buffer = memoryview(bytearray(PIECE))
    start, cpu = time.perf_counter(), time.process_time()
    for path in files_of(source):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb", buffering=0) as stream, place.open("wb", buffering=0) as out:
            while count := stream.readinto(buffer):
                out.write(buffer[:count])
            os.fsync(out.fileno())
    found = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    shutil.rmtree(target)
    return {key: round(value, 1) for key, value in found.items()}


def watched(arguments: list[str], log: Path) -> dict[str, Any]:
    """Run a Python script to its end and watch its memory: anonymous pages apart from those of mapped files.

    Raises:
        RuntimeError: it failed; the message ends with what it said.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    peaks = {"RssAnon": 0, "RssFile": 0}
    with log.open("w") as stream:
        child = subprocess.Popen([sys.executable, *arguments], stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT)
        status = Path(f"/proc/{child.pid}/status")
        while child.poll() is None:
            try:
                for name, kib in re.findall(r"^(RssAnon|RssFile):\s+(\d+) kB", status.read_text(), re.MULTILINE):
                    peaks[name] = max(peaks[name], int(kib))
            except (FileNotFoundError, ProcessLookupError):
                pass
            time.sleep(0.02)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if child.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {child.returncode}:\n{log.read_text()[-3000:]}")
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "peak_anonymous_gib": round(peaks["RssAnon"] / 2**20, 2),
        "peak_file_backed_gib": round(peaks["RssFile"] / 2**20, 2),
    }


# --- the result ---------------------------------------------------------------------------------------------------------


def component_classes() -> dict[str, Callable[[dict[str, Any]], torch.nn.Module]]:
    """Component -> its class, as a user gets it."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    import diffusers_focus as focus

    ours = {
        "vision_encoder": focus.FocusVisionEncoder,
        "visual_tokenizer": focus.FocusVisualTokenizer,
        "mask_conditioner": focus.FocusMaskConditioner,
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
    }
    made: dict[str, Any] = {name: lambda config, cls=cls: cls.from_config(config) for name, cls in ours.items()}
    made["language_model"] = lambda config: Qwen2ForCausalLM(Qwen2Config.from_dict(config))
    return made


def load(folder: Path, size: str) -> dict[str, Any]:
    """Load a converted pipeline on the meta device, strictly, with mapped weights, and compare some with the originals.

    Returns:
        Parameters, those that have no file of their own (tied), and the number of tensors that were compared bit by bit.
    """
    report = json.loads((folder / "conversion_report.json").read_text())
    found: dict[str, Any] = {"components": {}}
    states = {}
    for name, make in component_classes().items():
        with torch.device("meta"):
            model = make(json.loads((folder / name / "config.json").read_text()))
        state: dict[str, torch.Tensor] = {}
        for path in sorted((folder / name).glob("*.safetensors")):
            with safe_open(path, framework="pt", device="cpu") as stream:  # maps the file
                state |= {key: stream.get_tensor(key) for key in stream.keys()}
        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
        if hasattr(model, "tie_weights"):
            model.tie_weights()
        on_meta = [key for key, value in model.state_dict().items() if value.is_meta]
        if unexpected or on_meta:
            raise RuntimeError(
                f"{name}: {len(unexpected)} tensors too many, {len(on_meta)} without values: {on_meta[:3]}"
            )
        found["components"][name] = {"tensors": len(state), "tied": len(missing)}
        states[name] = model.state_dict()
    found["compared"] = compare(report, states, size)
    return found


def compare(report: Mapping[str, Any], states: Mapping[str, Mapping[str, torch.Tensor]], size: str) -> int:
    """Compare 20 tensors of every original, and the largest of each, with what became of them.

    Raises:
        RuntimeError: one differs.
    """
    values, shapes = RandomValues(), {"tokenizer": listed("dualvitok"), "language_model": listed(f"illume_plus_{size}")}
    shapes["decoder"] = {f"{p}.{key}": shape for p in ("unet", "vae") for key, shape in decoder_shapes(p).items()}
    choose = random.Random(0)
    count = 0
    for role, names in shapes.items():
        largest = max(names, key=lambda key: torch.Size(names[key]).numel())
        for key in [largest, *choose.sample(sorted(names), 20)]:
            own = key.partition(".")[2] if role == "decoder" else key
            target = report["sources"][f"{role}:{key}"]["to"][0]
            component, _, name = target.partition(".")
            ours = states[component][name]
            expected = values.tensor(own, names[key])
            if not torch.equal(ours.to(expected.dtype).reshape(expected.shape), expected):
                raise RuntimeError(f"{role}:{key} is not what became of it ({target})")
            count += 1
    return count


def measure(size: str, place: Path, repeats: int) -> dict[str, Any]:
    """All figures of one size."""
    originals, output, log = place / "originals", place / "pipeline", place / "log.txt"
    print(f"{size}: writing originals", flush=True)
    write_originals(originals, size)
    nbytes = sum(path.stat().st_size for path in files_of(originals))
    arguments = [str(ROOT / "conversion" / "convert_illume_plus.py"), "--output", str(output)]
    for role in ("tokenizer", "language-model", "decoder"):
        arguments += [f"--{role}", str(originals / role.replace("-", "_"))]
    found: dict[str, Any] = {
        "gib": round(nbytes / GIB, 2),
        "language_model_files": LANGUAGE_MODELS[size]["files"],
        "dry_run": watched([*arguments, "--dry-run"], log),
    }
    copies, conversions = [copy(originals, place / "copy")], []
    for number in range(repeats):
        print(f"{size}: converting ({copies[-1]['seconds']} s for a copy)", flush=True)
        forget(originals)
        conversions.append(watched(arguments, log))
        if number < repeats - 1:
            shutil.rmtree(output)
            copies.append(copy(originals, place / "copy"))
    report = json.loads((output / "conversion_report.json").read_text())
    new = {name.partition(".")[0] for name, entry in report["targets"].items() if "initialised" in entry}
    found["keys"] = {
        "sources": report["counts"]["sources"],
        "dropped": report["counts"]["dropped"],
        "unmatched": len(report["problems"]),
        "parameters": report["counts"]["targets"],
        "initialised": report["counts"]["initialised"],
        "initialised_components": sorted(new),
    }
    print(f"{size}: loading ({conversions[-1]['seconds']} s for the conversion)", flush=True)
    found["load"] = watched([__file__, "--load", str(output), "--sizes", size], log)
    found["load"] |= json.loads(log.read_text().splitlines()[-1])
    shutil.rmtree(output)
    copies.append(copy(originals, place / "copy"))
    shutil.rmtree(originals)
    found |= {"copies": copies, "conversions": conversions}
    found["ratios_to_copy"] = [  # each conversion to the copies before and after it
        round(2 * one["seconds"] / (before["seconds"] + after["seconds"]), 2)
        for one, before, after in zip(conversions, copies, copies[1:])
    ]
    return found


def text_of(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    machine = result["hardware"]
    lines = [
        f"# Converting ILLUME+ at full size on {machine['processor']}, {result['date']}",
        "",
        f"{machine['cores']} cores, {machine['threads']} threads; "
        + ", ".join(f"{name} {number}" for name, number in result["versions"].items())
        + ".",
        "",
        "| | " + " | ".join(result["sizes"]) + " |",
        "|---|" + "---|" * len(result["sizes"]),
    ]

    def row(title: str, cell: Callable[[dict[str, Any]], str]) -> None:
        lines.append(f"| {title} | " + " | ".join(cell(one) for one in result["sizes"].values()) + " |")

    row("load average at the start", lambda one: str(one["load_average_at_start"]))
    row("originals (bfloat16)", lambda one: f"{one['gib']:.1f} GiB, language model as .{one['language_model_files']}")

    def seconds(parts: list[dict[str, Any]], key: str = "seconds") -> str:
        return ", ".join(f"{part[key]:.0f}" for part in parts)

    row("plain copies, seconds", lambda one: seconds(one["copies"]))
    row("conversions between them, start of Python included, seconds", lambda one: seconds(one["conversions"]))
    row(
        "**ratio, each to its neighbours** (at most 2)", lambda one: f"**{', '.join(map(str, one['ratios_to_copy']))}**"
    )
    row("processor seconds of copies", lambda one: seconds(one["copies"], "cpu_seconds"))
    row("processor seconds of conversions", lambda one: seconds(one["conversions"], "cpu_seconds"))
    row("dry run (start, names, shapes)", lambda one: f"{one['dry_run']['seconds']:.0f} s")
    row(
        "**peak anonymous memory** (at most 4)",
        lambda one: f"**{max(c['peak_anonymous_gib'] for c in one['conversions']):.2f} GiB**",
    )
    row(
        "mapped pages of files, at most",
        lambda one: f"{max(c['peak_file_backed_gib'] for c in one['conversions']):.1f} GiB",
    )
    row(
        "source tensors / dropped / unmatched",
        lambda one: " / ".join(str(one["keys"][k]) for k in ("sources", "dropped", "unmatched")),
    )
    row(
        "parameters / initialised",
        lambda one: (
            f"{one['keys']['parameters']} / {one['keys']['initialised']} ({', '.join(one['keys']['initialised_components'])})"
        ),
    )
    row("loaded: tensors, all mapped", lambda one: str(sum(c["tensors"] for c in one["load"]["components"].values())))
    row("compared bit by bit", lambda one: str(one["load"]["compared"]))
    row("anonymous memory of loading", lambda one: f"{one['load']['peak_anonymous_gib']:.2f} GiB")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=tuple(LANGUAGE_MODELS), default=list(LANGUAGE_MODELS))
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="conversions of each size")
    parser.add_argument(
        "--folder", metavar="DIR", default=tempfile.gettempdir(), help="where to work (a disk, not memory)"
    )
    parser.add_argument("--output", default=str(HERE / "results"), metavar="DIR")
    parser.add_argument("--load", metavar="DIR", help=argparse.SUPPRESS)  # the part that runs in a process of its own
    args = parser.parse_args()
    if args.load:
        print(json.dumps(load(Path(args.load), args.sizes[0])))
        return 0
    needed, free = max(map(bytes_needed, args.sizes)) * 2 + 2**30, shutil.disk_usage(args.folder).free
    if free < needed:
        print(
            f"error: {needed / GIB:.0f} GiB are needed in {args.folder} and {free / GIB:.0f} are free; name another: --folder DIR"
        )
        return 2
    name = "conversion_" + re.sub(r"[^a-z0-9]+", "-", hardware()["processor"].lower()).strip("-")
    folder = Path(args.output)
    path = folder / f"{name}_{datetime.date.today().isoformat()}.json"
    folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(),
        "versions": versions(),
        "targets": TARGETS,
        "sizes": json.loads(path.read_text())["sizes"] if path.is_file() else {},  # measured earlier on the same day
    }
    for size in args.sizes:
        busy = round(os.getloadavg()[0], 1)
        with tempfile.TemporaryDirectory(dir=args.folder, prefix="bench-conversion-") as place:
            result["sizes"][size] = {"load_average_at_start": busy, **measure(size, Path(place), args.repeats)}
        replace_json(path, result)
        path.with_suffix(".md").write_text(text_of(result), encoding="utf-8")
    print(text_of(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
