"""What diffusers' switches cost and save on focus-tiny: python benchmarks/bench_switches.py [--repeats 3] [--only plain]

One process for each switch: it loads the pipeline, throws the switch, edits one 128 x 128 image and segments in it. Written down
are the seconds of an edit (by the clock, and of the processors, which other programs disturb less), the peak memory of the process
above what importing the libraries took, the megabytes of weights, and how far the result is from the plain run's: mean and largest
difference of the picture (0..1) and the overlap of the masks. Where the language model is quantised the picture is compared with
the plain model's visual tokens, for one other token is another picture. Writes results/switches_<hardware>_<date>.json and .md.
Rows whose library is missing are left out (`[quant]`).
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
PIPELINE = HERE.parent / "pipelines" / "focus-tiny"
OURS = ("vision_encoder", "visual_tokenizer", "mask_decoder", "mask_conditioner")
DRAWN = (*OURS, "unet", "vae")


def _each(method: str, *names: str, **options: Any) -> Callable[[Any], None]:
    def throw(pipe: Any) -> None:
        for name in names:
            getattr(getattr(pipe, name), method)(**options)

    return throw


def _plain(pipe: Any) -> None:
    pass


def _layerwise(pipe: Any) -> None:
    import torch

    _each("enable_layerwise_casting", *DRAWN, storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)(pipe)


def _sequential(pipe: Any) -> None:
    import torch
    from accelerate import cpu_offload

    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            cpu_offload(component, torch.device("cpu"), offload_buffers=len(component._parameters) > 0)


def _group(pipe: Any) -> None:
    import torch

    pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")


SWITCHES: dict[str, Callable[[Any], None]] = {
    "plain": _plain,
    "bfloat16": _plain,
    "model offload": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    "sequential offload": _sequential,
    "group offload": _group,
    "device_map balanced": _plain,
    "layerwise casting fp8": _layerwise,
    "int8 torchao": _plain,
    "int8 quanto": _plain,
    "attention _native_math": _each("set_attention_backend", *DRAWN[:3], "unet", "vae", backend="_native_math"),
    "compiled blocks": _each("compile_repeated_blocks", "visual_tokenizer", "mask_decoder", "unet", fullgraph=True),
    "VAE tiling": _each("enable_tiling", "vae"),
    "fused projections": lambda pipe: pipe.fuse_qkv_projections(),
}
"""Name -> what is done to a loaded pipeline; precision and quantisation are matters of loading (see `loading`)."""


def loading(switch: str) -> dict[str, Any]:
    """Arguments of `from_pretrained`. Raises ImportError where a library is missing."""
    if switch == "bfloat16":
        import torch

        return {"dtype": torch.bfloat16}
    if switch == "device_map balanced":
        return {"device_map": "balanced"}
    if not switch.startswith("int8"):
        return {}
    import diffusers
    import transformers

    if switch == "int8 torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        ours: Any = diffusers.TorchAoConfig(Int8WeightOnlyConfig())
        language: Any = transformers.TorchAoConfig(Int8WeightOnlyConfig())
    else:
        import optimum.quanto  # noqa: F401

        ours, language = diffusers.QuantoConfig(weights_dtype="int8"), transformers.QuantoConfig(weights="int8")
    mapping = {name: ours for name in (*OURS, "unet")} | {"language_model": language}
    return {"quantization_config": diffusers.PipelineQuantizationConfig(quant_mapping=mapping)}


def weight_megabytes(pipe: Any) -> float:
    """Weights and buffers, at the size they are stored in; what rests on the meta device is elsewhere."""
    import torch

    total = 0
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            for tensor in (*component.parameters(), *component.buffers()):
                inner = [getattr(tensor, name) for name in getattr(tensor, "__tensor_flatten__", lambda: ((), {}))()[0]]
                stored = [one for one in inner if isinstance(one, torch.Tensor)] or [tensor]
                total += sum(one.numel() * one.element_size() for one in stored if not one.is_meta)
    return total / 1e6


def measure_one(switch: str, folder: str, repeats: int, steps: int, target: Path) -> None:
    """Run one switch in this process and write its figures and results to `target` (.json and .npz)."""
    import torch
    from bench_focus_tiny import Memory
    from PIL import Image

    from diffusers_focus import FocusPipeline
    from diffusers_focus.data.world import render, sample_scene

    logging.getLogger("diffusers_focus").setLevel(logging.ERROR)
    image = Image.fromarray(render(sample_scene(1_000_000), 128).image)
    with Memory() as before:
        pass
    with Memory() as memory:
        pipe = FocusPipeline.from_pretrained(folder, **loading(switch))
        pipe.set_progress_bar_config(disable=True)
        SWITCHES[switch](pipe)
        weights = weight_megabytes(pipe)

        def edit() -> Any:
            generator = torch.Generator("cpu").manual_seed(0)
            return pipe.edit(
                image, "remove the leftmost object", generator=generator, num_inference_steps=steps, output_type="np"
            )

        edit()  # what is compiled or cached by the first call is not counted
        walls, processors = [], []
        for _ in range(repeats):
            wall, processor = time.perf_counter(), time.process_time()
            picture = edit().images[0]
            walls.append(time.perf_counter() - wall)
            processors.append(time.process_time() - processor)
    found = pipe.segment(image, "the leftmost object", score_threshold=0.0)
    if switch.startswith("int8"):
        pipe.language_model = FocusPipeline.from_pretrained(folder).language_model
        picture = edit().images[0]
    row = {
        "median_s": round(statistics.median(walls), 4),
        "min_s": round(min(walls), 4),
        "max_s": round(max(walls), 4),
        "processor_s": round(statistics.median(processors), 4),
        "peak_mb_above_imports": round(memory.peak - before.peak, 1),
        "weights_mb": round(weights, 2),
    }
    target.with_suffix(".json").write_text(json.dumps(row), encoding="utf-8")
    np.savez(target.with_suffix(".npz"), picture=picture, mask=found.masks[0].any(axis=0))


def compare(row: dict[str, Any], results: Any, plain: Any) -> dict[str, Any]:
    """A row with its distance from the plain run."""
    apart = np.abs(results["picture"] - plain["picture"])
    union = (results["mask"] | plain["mask"]).sum()
    overlap = float((results["mask"] & plain["mask"]).sum() / union) if union else 1.0
    return {
        **row,
        "mean_difference": round(float(apart.mean()), 6),
        "largest_difference": round(float(apart.max()), 6),
        "mask_iou": round(overlap, 4),
    }


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    settings = result["settings"]
    lines = [
        f"# Switches on focus-tiny, {result['hardware']['processor']} ({result['hardware']['device']}), {result['date']}",
        "",
        f"An edit of {settings['steps']} steps, median of {settings['repeats']} runs, {result['hardware']['threads']} threads, "
        + ", ".join(f"{name} {number}" for name, number in result["versions"].items())
        + ".",
        "",
        "| switch | seconds | range | processor seconds | peak memory above imports (MB) | weights (MB) | mean difference "
        "| largest | mask IoU |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["switches"].items():
        cells = [
            f"{row['median_s']:.3f}",
            f"{row['min_s']:.3f} to {row['max_s']:.3f}",
            f"{row['processor_s']:.3f}",
            f"{row['peak_mb_above_imports']:.0f}",
            f"{row['weights_mb']:.1f}",
            f"{row['mean_difference']:.5f}",
            f"{row['largest_difference']:.4f}",
            f"{row['mask_iou']:.3f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", default=str(PIPELINE), metavar="DIR")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--steps", type=int, default=12, metavar="N")
    parser.add_argument("--only", nargs="+", choices=sorted(SWITCHES), metavar="SWITCH", help="some of the switches")
    parser.add_argument("--output", default=str(HERE / "results"), metavar="DIR")
    parser.add_argument("--child", nargs=2, metavar=("SWITCH", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure_one(args.child[0], args.pipeline, args.repeats, args.steps, Path(args.child[1]))
        return 0
    from diffusers_focus.evaluation.run import hardware, versions
    from diffusers_focus.sharing.files import replace_json

    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        plain = None
        for number, switch in enumerate(dict.fromkeys(["plain", *(args.only or SWITCHES)])):
            target = Path(work) / str(number)
            command = [sys.executable, str(Path(__file__)), "--pipeline", args.pipeline, "--repeats", str(args.repeats)]
            command += ["--steps", str(args.steps), "--child", switch, str(target)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(
                    f"{switch}: left out, {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'no reason given'}"
                )
                continue
            results = np.load(target.with_suffix(".npz"))
            plain = results if plain is None else plain
            row = json.loads(target.with_suffix(".json").read_text(encoding="utf-8"))
            rows[switch] = compare(row, results, plain)
            print(switch, json.dumps(rows[switch]), flush=True)
    if "plain" not in rows:
        print("error: the plain run failed; is there a pipeline in " + args.pipeline + "?")
        return 2
    result = {
        "pipeline": Path(args.pipeline).name,
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(),
        "versions": versions(),
        "settings": {"repeats": args.repeats, "steps": args.steps},
        "switches": rows,
    }
    name = re.sub(r"[^a-z0-9]+", "-", result["hardware"]["processor"].lower()).strip("-") + f"_{result['date']}"
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    replace_json(folder / f"switches_{name}.json", result)
    text = report(result)
    (folder / f"switches_{name}.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
