"""Speed and memory at the paper's size, with random weights on one GPU: python benchmarks/bench_full_size.py [--repeats 2]

Every part of `pipelines/focus-3b` is made on the device in bfloat16 (about 16 GB, nothing is downloaded) and asks, segments and
edits one 512 x 512 image. Beside the edit, in turns, a `StableDiffusionXLInpaintPipeline` with a UNet of the same shape and the
same VAE draws the same size with the same steps and guidance. Random weights take as long as trained ones, but say nothing and
never stop in the right place: an answer is therefore written to its last token, and an object counts whatever its score.
`--tiny` runs the same code with focus-tiny's configurations, on a processor too; its figures mean nothing.

How fast tokens can be read: each token reads the language model's layers and the pixel codes' rows of the head once, both branches
of guidance together. These bytes over the measured bandwidth of a copy are the least time of a token; keys and values are left out.

A task that fails is reported with its error, the others are still measured, and the exit status is 1. Writes, after each task,
results/full_size_<hardware>_<date>.json and .md (`full_size_tiny_...` with `--tiny`).
"""

from __future__ import annotations

import argparse
import datetime
import logging
import re
import statistics
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import bench_edit
import torch
from bench_focus_tiny import HERE, reference
from bench_tokens import CODES, Clock
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from PIL import Image
from transformers import Qwen2Config

from diffusers_focus import FocusPipeline
from diffusers_focus.checkpoints.variants import PUBLISHED_3B, TINY, TINY_VOCABULARY
from diffusers_focus.data.world import render, sample_scene
from diffusers_focus.evaluation.run import hardware, versions
from diffusers_focus.processing.prompts import FOCUS
from diffusers_focus.processing.vocabulary import build_tiny_tokenizer, extend_tokenizer
from diffusers_focus.sharing.files import replace_json
from diffusers_focus.steps import editing, segment, understand
from diffusers_focus.steps.sequence import FocusContext
from diffusers_focus.training.components import CLASSES

QUESTION, EXPRESSION = "how many objects are there?", "the leftmost object"
INSTRUCTION = "make the leftmost object blue"
ANSWER_TOKENS, NAME_TOKENS = 32, 8
GUIDANCE, SHARE = 2.0, 0.1
GB = 1e9


class Tokens(bench_edit.Tokens):
    """Seconds that the calls of `write_codes` took, and how many positions the last one drew."""

    drawn = 0

    def __call__(self, *args: Any, **options: Any) -> torch.Tensor:
        self.drawn = int(options["template"][1].sum())
        return super().__call__(*args, **options)


class Run(NamedTuple):
    """Seconds of a call, GB it took beyond what was there (None on a processor), seconds of its visual tokens."""

    seconds: float
    added: float | None
    tokens: float


class Written:
    """`write_text` that goes on to the last token it may write, and how many those were.

    A trained model ends an answer, random weights end it anywhere. The id given to stop at is one that can never be written.
    """

    def __init__(self) -> None:
        self.write, self.tokens = understand.write_text, 0

    def __call__(self, components: Any, *args: Any, **options: Any) -> Any:
        never = components.language_model.config.vocab_size - 1
        written = self.write(components, *args, **{**options, "stop_ids": (never,)})
        self.tokens = len(written.ids[0])
        return written


@contextmanager
def made_on(device: str, dtype: torch.dtype) -> Iterator[None]:
    """What is built within has its weights on the device and in the dtype from the start: 7 billion would take minutes else."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def build(options: argparse.Namespace) -> Any:
    """The pipeline with random weights."""
    variant = TINY if options.tiny else PUBLISHED_3B
    torch.manual_seed(0)
    parts: dict[str, Any] = {}
    for name, numbers in variant.items():
        kind = CLASSES[name]
        if not issubclass(kind, torch.nn.Module):  # a scheduler does part of its work in numpy, on the processor
            parts[name] = kind(**numbers)
            continue
        if name == "vae":  # stock inpainting would encode in float32; so both work in the same dtype
            numbers = {**numbers, "force_upcast": False}
        with made_on(options.device, getattr(torch, options.dtype)):
            part = kind(Qwen2Config(**numbers)) if name == "language_model" else kind(**numbers)
        parts[name] = part.eval().requires_grad_(False)
    for name in CLASSES["visual_tokenizer"]._keep_in_fp32_modules:  # as `from_pretrained` loads them
        getattr(parts["visual_tokenizer"], name).float()
    # Prompts are as long as with Qwen2.5's tokenizer where every word is one token; the table's other rows are not written.
    texts = [FOCUS.system, *FOCUS.tasks.values(), QUESTION, EXPRESSION, INSTRUCTION, "system user assistant nothing"]
    parts["lm_tokenizer"] = build_tiny_tokenizer(texts, 512)
    codes = (TINY_VOCABULARY["semantic_codes"], TINY_VOCABULARY["pixel_codes"]) if options.tiny else CODES
    extend_tokenizer(parts["lm_tokenizer"], *codes, parts["image_processor"].tag_step)
    pipe = FocusPipeline(**parts, **({"resolution_group": [[128, 128]]} if options.tiny else {}))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def peer(pipe: Any, options: argparse.Namespace) -> Any:
    """SDXL inpainting with the pipeline's own VAE and a UNet of its shape with 9 input channels."""
    with made_on(options.device, getattr(torch, options.dtype)):
        sdxl = reference(pipe.unet, pipe.vae)
    sdxl.register_modules(vae=pipe.vae, scheduler=EulerDiscreteScheduler())  # that one was made on the device
    for name in ("unet", "text_encoder", "text_encoder_2"):
        getattr(sdxl, name).eval().requires_grad_(False)
    sdxl.set_progress_bar_config(disable=True)
    return sdxl


def size_of(*modules: Any) -> float:
    """GB of the weights."""
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters()) / GB


class Bench:
    """The tasks; each leaves its figures in `timings`, `figures` or `finite`, or its error in `errors`."""

    def __init__(self, options: argparse.Namespace, machine: dict[str, Any]) -> None:
        self.options, self.clock, self.cuda = options, Clock(options.device), options.device.startswith("cuda")
        self.machine = machine
        self.timings: dict[str, dict[str, Any]] = {}
        self.figures: dict[str, Any] = {}
        self.parameters: dict[str, float] = {}
        self.finite: dict[str, bool] = {}
        self.errors: dict[str, str] = {}
        self.settings: dict[str, Any] = {}
        self.pipe: Any = None
        self.tokens, self.written = Tokens(self.clock), Written()
        editing.write_codes = self.tokens
        understand.write_text = segment.write_text = self.written

    def save(self) -> Path:
        """Write both files with what there is so far; returns the path of the table."""
        options, machine = self.options, self.machine
        given = {"variant": "focus-tiny" if options.tiny else "focus-3b", "dtype": options.dtype, **self.settings}
        given |= {"repeats": options.repeats, "steps": options.steps, "guidance scale": GUIDANCE, "edited share": SHARE}
        result = {
            **{"date": datetime.date.today().isoformat(), "hardware": machine, "versions": versions()},
            "settings": given,
            **{name: getattr(self, name) for name in ("parameters", "timings", "figures", "finite", "errors")},
        }
        where = machine["processor" if machine["device"] == "cpu" else "device"]
        slug = re.sub(r"[^a-z0-9]+", "-", where.lower()).strip("-")
        path = Path(options.output) / f"full_size_{'tiny_' if options.tiny else ''}{slug}_{result['date']}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_json(path.with_suffix(".json"), result)
        path.write_text(report(result, where), encoding="utf-8")
        return path

    def attempt(self, name: str, task: Callable[[], Any]) -> Any:
        """What a task returns; None where it fails: its error is kept and the next one has its turn."""
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            return task()
        except Exception:
            self.errors[name] = traceback.format_exc()
            print(self.errors[name], file=sys.stderr, flush=True)
        with suppress(Exception):  # after some errors CUDA answers nothing any more; what was measured is still written
            torch.cuda.empty_cache()
        return None

    def once(self, call: Callable[[], Any]) -> Run:
        """Seconds of a call, GB that it took beyond what was there, seconds of its visual tokens."""
        before, self.tokens.seconds = 0, 0.0
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        begin = self.clock()
        call()
        seconds = self.clock() - begin
        added = (torch.cuda.max_memory_allocated() - before) / GB if self.cuda else None
        return Run(seconds, added, self.tokens.seconds)

    def row(self, name: str, runs: list[Run], weights: float, note: str) -> None:
        """A line of the table; the peak is `weights` (what the task's own pipeline holds) and what the call took beyond."""
        seconds, added = [run.seconds for run in runs], [run.added for run in runs if run.added is not None]
        self.timings[name] = {
            **{"median_s": statistics.median(seconds), "min_s": min(seconds), "max_s": max(seconds)},
            "added_gb": max(added) if added else None,
            "peak_gb": weights + max(added) if added else None,
            "note": note,
        }

    def measure(self, name: str, call: Callable[[], Any], note: Callable[[], str]) -> None:
        """Time a task of the pipeline after one run that is not counted."""
        call()
        runs = [self.once(call) for _ in range(self.options.repeats)]
        self.row(name, runs, self.figures["GB after loading"], note())

    def load(self) -> None:
        """The pipeline; the image and the mask of all tasks."""
        begin = self.clock()
        pipe = build(self.options)
        modules = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
        self.parameters = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in modules.items()}
        loaded = torch.cuda.memory_allocated() / GB if self.cuda else size_of(*modules.values())
        self.figures |= {"seconds to make it": self.clock() - begin, "GB after loading": loaded}
        side = pipe.image_processor.buckets[0][0]
        self.settings = {"read": side, "drawn": side * pipe.image_processor.decode_scale}
        self.image = Image.fromarray(render(sample_scene(1_000_000), side).image)
        inner = round(side * SHARE**0.5)
        self.mask = Image.new("L", (side, side))
        self.mask.paste(255, ((side - inner) // 2,) * 2 + ((side - inner) // 2 + inner,) * 2)
        self.drawing = {"num_inference_steps": self.options.steps, "guidance_scale": GUIDANCE}
        self.pipe = pipe

    def ask(self) -> None:
        """Encoding the image, which all tasks below begin with; then a question with its image."""
        self.measure("encode", partial(self.pipe.encode_image, self.image), lambda: "the beginning of all below")
        call = partial(self.pipe.understand, self.image, QUESTION, max_new_tokens=ANSWER_TOKENS)
        self.measure("ask", call, lambda: f"{self.written.tokens} tokens written")

    def segment(self) -> None:
        """One expression."""
        least, found = {"score_threshold": 0.0, "fallback_threshold": 0.0}, {}
        ask = partial(self.pipe.segment, self.image, EXPRESSION, max_new_tokens=NAME_TOKENS, **least)
        self.measure(
            "segment",
            lambda: found.update(ask()),
            lambda: f"{self.written.tokens} tokens of names, {len(found['masks'][0])} object(s)",
        )

    def edit(self, **options: Any) -> Any:
        """An edit of the place that is given."""
        options |= {"mask_image": self.mask, "generator": torch.Generator().manual_seed(0), **self.drawing}
        return self.pipe.edit(self.image, INSTRUCTION, **options)

    def check(self) -> None:
        """Whether anything overflows in this dtype: NaN takes as long, but says that something else is wrong."""
        seen = self.pipe.encode_image(self.image)
        self.pipe.understand(seen, QUESTION, max_new_tokens=1)
        held = {name: getattr(seen.vision, name) for name in ("vision_tokens", "pixel_tokens", "query_tokens")}
        held["language model"] = next(iter(seen.prefixes.values())).layers[-1][1]

        def keep(_: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            held["latents"] = tensors["latents"]
            return {}

        held["picture"] = self.edit(callback_on_step_end=keep, output_type="pt").images
        self.finite = {name: bool(torch.isfinite(values).all()) for name, values in held.items()}

    def edit_and_inpaint(self) -> None:
        """The edit and SDXL inpainting in turns; one that fails leaves the other's figures."""
        sdxl: Any = self.attempt("make inpainting", lambda: peer(self.pipe, self.options))
        side = self.settings["drawn"]
        given = {"prompt": INSTRUCTION, "image": self.image, "mask_image": self.mask, "strength": 1.0, **self.drawing}
        turns: dict[str, Callable[[], Any]] = {"edit": self.edit}
        own = 0.0
        if sdxl is not None:
            own = size_of(sdxl.unet, sdxl.vae, sdxl.text_encoder, sdxl.text_encoder_2)
            size = {"height": side, "width": side}
            turns["inpaint"] = lambda: sdxl(**given, **size, generator=torch.Generator().manual_seed(0))
        runs: dict[str, list[Run]] = {name: [] for name in turns}
        for number in range(self.options.repeats + 1):  # the first round warms up
            for name, call in turns.items():
                run = self.attempt(name, lambda call=call: self.once(call))
                runs[name] += [run] if number and run is not None else []
            if runs["edit"]:
                self.compare(runs, own)
                self.save()

    def compare(self, runs: dict[str, list[Run]], own: float) -> None:
        """What the rounds so far say; `own` are the GB that inpainting holds."""
        self.row("edit", runs["edit"], self.figures["GB after loading"], f"{self.tokens.drawn} visual tokens")
        spent = statistics.median(run.tokens for run in runs["edit"])
        without = statistics.median(run.seconds - run.tokens for run in runs["edit"])
        self.figures |= {"visual tokens": self.tokens.drawn, "seconds of visual tokens": spent}
        self.figures["seconds of the edit without them"] = without
        if runs.get("inpaint"):
            self.row("inpaint, stock SDXL", runs["inpaint"], own, "a mask that somebody else has drawn")
            ratio = without / self.timings["inpaint, stock SDXL"]["median_s"]
            self.figures |= {"edit without tokens / inpaint": ratio, "target, at most": bench_edit.TARGET}

    def limits(self) -> None:
        """The least time of a token: what it reads over what a copy moves."""
        model = self.pipe.language_model
        first, stop = FocusContext.of(self.pipe).vocabulary.level1_range
        layers = size_of(model.model.layers)
        rows = (stop - first) * model.lm_head.weight[0].nbytes / GB
        source = torch.zeros(4 * 10**9 if self.cuda else 10**8, dtype=torch.uint8, device=self.options.device)
        target = torch.empty_like(source)
        target.copy_(source)
        seconds = statistics.median(self.once(lambda: target.copy_(source)).seconds for _ in range(5))
        bandwidth = 2 * source.nbytes / GB / seconds  # read and written
        limit = bandwidth / (layers + rows)
        self.figures |= {"GB of layers a token": layers, "GB of head rows a token": rows}
        self.figures |= {"bandwidth of a copy, GB/s": bandwidth, "tokens/s at that bandwidth": limit}
        if self.figures.get("seconds of visual tokens"):
            speed = self.figures["visual tokens"] / self.figures["seconds of visual tokens"]
            self.figures |= {"tokens/s of the edit": speed, "share of the limit": speed / limit}


def report(result: dict[str, Any], where: str) -> str:
    """The result as Markdown."""
    of = result["settings"]
    lines = [f"# {of['variant']}'s size with random weights on {where}, {result['date']}", ""]
    lines += [", ".join(f"{name} {value}" for name, value in {**of, **result["versions"]}.items()) + ".", ""]
    lines += ["| component | parameters (M) |", "|---|---|"]
    parameters = {**result["parameters"], "all": sum(result["parameters"].values())}
    lines += [f"| {name} | {count:,.1f} |" for name, count in parameters.items()]
    lines += ["", "| task | seconds (median) | range | peak memory (GB) | of it beyond the weights | |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, row in result["timings"].items():
        peak, added = ("-" if row[key] is None else f"{row[key]:.2f}" for key in ("peak_gb", "added_gb"))
        spread = f"{row['min_s']:.2f} to {row['max_s']:.2f}"
        lines.append(f"| {name} | {row['median_s']:.2f} | {spread} | {peak} | {added} | {row['note']} |")
    lines += ["", "| | |", "|---|---|"]
    for name, value in result["figures"].items():
        lines.append(f"| {name} | {value:,} |" if isinstance(value, int) else f"| {name} | {value:,.3f} |")
    wrong = [name for name, finite in result["finite"].items() if not finite]
    found = ", ".join(wrong) or ("nothing" if result["finite"] else "not checked")
    lines += ["", f"NaN or infinite: {found}."]
    for name, text in result["errors"].items():
        lines += ["", f"**{name} failed:**", "", "```", text.strip(), "```"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, write both files and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="focus-tiny's configurations, to try this file out")
    parser.add_argument("--output", metavar="DIR", default=str(HERE / "results"))
    options = parser.parse_args()
    logging.getLogger("diffusers_focus").setLevel(logging.ERROR)  # what an edit means is no matter here
    machine = hardware(argparse.Namespace(device=options.device))
    bench = Bench(options, machine)
    bench.attempt("load", bench.load)
    if bench.pipe is not None:
        # Bandwidth first: it takes no time, and a run that is cut off keeps what is saved.
        for task in (bench.limits, bench.ask, bench.segment, bench.edit_and_inpaint, bench.check, bench.limits):
            bench.attempt(task.__name__, task)
            bench.save()
    print(bench.save())
    return 1 if bench.errors else 0


if __name__ == "__main__":
    sys.exit(main())
