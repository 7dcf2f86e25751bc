"""What writing visual tokens costs, as ratios in one run: python benchmarks/bench_tokens.py [--hidden 512] [--layers 8]

A Qwen2 with random weights and the originals' vocabulary (32,768 semantic and 98,304 pixel codes, 283,047 rows) writes images with
`steps.visual_tokens.write_codes`: alone, with guidance, four at once, and an edit of a tenth of the image, in place. The peer is
transformers' `generate` the way the originals use it: the grammar as a logits processor over the whole head, and the
unconditional branch in a second cache, one token at a time. All draw alike (top-k 2048). A cache that grows in place of the one
with room shows what that one is worth.

What a token costs is taken from the middle of each level: one row of cells is drawn there, the rest is known and read beforehand,
off the clock. An image is that times its cells. The ways take turns, and the figure is the median of the rounds. The edit in
place and the whole image in place are written from end to end. On one thread of a processor, seconds are those of the process, so
that a busy machine falls on all ways alike. Writes results/tokens_<hardware>_<size>px_<dtype>_<date>.json and .md.
"""

from __future__ import annotations

import argparse
import datetime
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import DynamicCache, LogitsProcessorList, Qwen2Config, Qwen2ForCausalLM

from diffusers_focus.evaluation.run import hardware, versions
from diffusers_focus.processing.grammar import InterleavedLogitsProcessor, TokenSampling, VisualTokenGrammar
from diffusers_focus.processing.grids import pixel_grid, semantic_grid
from diffusers_focus.processing.images import FocusImageProcessor
from diffusers_focus.processing.prompts import GENERATE, GENERATE_RANDOM
from diffusers_focus.processing.vocabulary import build_tiny_tokenizer, extend_tokenizer
from diffusers_focus.sharing.files import replace_json
from diffusers_focus.steps.sampling import draw_ids, uniform_numbers
from diffusers_focus.steps.sequence import (
    FocusContext,
    PrefixCache,
    batch_rows,
    encode_prefix,
    extend,
    run_suffixes,
    suffix_row,
)
from diffusers_focus.steps.visual_tokens import block_template, head_rows, write_codes

HERE = Path(__file__).resolve().parent
CODES, ROWS = (32_768, 98_304), 283_047
TARGETS = {
    "guided / unguided": 1.3,
    "batch of 4 / 1": 2.5,
    "a tenth in place / whole in place": 0.35,
    "generate / ours, guided": 2.0,
}
SAMPLING = TokenSampling(temperature=1.0, top_k=2048)
DRAWING: dict[str, Any] = {"semantic": SAMPLING, "pixel": SAMPLING}
PROMPT = "a red circle left of a blue star on a table"


class Clock:
    """Seconds of the process on one thread of a processor, of the wall everywhere else."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.of_process = device == "cpu" and torch.get_num_threads() == 1

    def __call__(self) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.process_time() if self.of_process else time.perf_counter()


class Stamps:
    """When the first and the last of `count` tokens were written, without stopping for those between."""

    def __init__(self, clock: Clock, spans: list[int]) -> None:
        self.clock, self.spans, self.seen, self.times = clock, spans, 0, []
        self.ends = {place for i, n in enumerate(spans) for place in (sum(spans[:i]), sum(spans[: i + 1]) - 1)}

    def __call__(self) -> bool:
        if self.seen in self.ends:
            self.times.append(self.clock())
        self.seen += 1
        return True

    def per_token(self) -> list[float]:
        """Seconds a token of each span, its first one left out."""
        return [(self.times[2 * i + 1] - self.times[2 * i]) / (n - 1) for i, n in enumerate(self.spans)]


def build(options: argparse.Namespace) -> Any:
    """The components that writing needs."""
    torch.manual_seed(0)
    tokenizer = build_tiny_tokenizer([PROMPT], 512)
    extend_tokenizer(tokenizer, *CODES)
    config = Qwen2Config(
        vocab_size=ROWS,
        hidden_size=options.hidden,
        intermediate_size=options.inner or 11 * options.hidden // 4,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // options.head_dim,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=None,
    )
    dtype, device = getattr(torch, options.dtype), torch.device(options.device)
    with device:
        model = Qwen2ForCausalLM(config).to(dtype).eval()
    processor = FocusImageProcessor.from_pretrained(HERE.parent / "pipelines" / "focus-3b" / "image_processor")
    return SimpleNamespace(language_model=model, lm_tokenizer=tokenizer, image_processor=processor)


class Unconditional:
    """The second cache of the originals: fed one token at a time."""

    def __init__(self, model: Any, prompt: torch.Tensor) -> None:
        self.model, self.prompt, self.cache = model, prompt, None

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits after what was written, of the prompt and the known part of the block at first."""
        new = self.prompt.expand(len(ids), -1) if self.cache is None else ids[:, -1:]
        self.cache = self.cache or DynamicCache()
        return self.model(input_ids=new, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits[:, -1]


class Ways:
    """All ways to write, on one set of components."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.parts, self.device, self.clock = build(options), options.device, Clock(options.device)
        self.context = FocusContext.of(self.parts)
        self.size = (options.size, options.size)
        self.grids = semantic_grid(*self.size), pixel_grid(*self.size)
        self.grammar = VisualTokenGrammar(self.context.vocabulary, *self.grids)
        self.prefix = encode_prefix(self.parts, self.context, None, task=GENERATE)
        self.prompt, self.without = self._row(GENERATE, PROMPT), self._row(GENERATE_RANDOM)
        self.known = tuple(torch.zeros(1, *grid, dtype=torch.long) for grid in self.grids)
        middle = tuple(torch.zeros(1, *grid, dtype=torch.bool) for grid in self.grids)
        for cells in middle:
            cells[:, cells.shape[1] // 2] = True
        self.middle = block_template(self.grammar, 1, codes=self.known, free=middle)
        # An edit in place: the source's block stands in the prefix, and a square of a tenth of the cells is written anew.
        block = self.middle[0].to(self.device)
        cache = DynamicCache()
        self.parts.language_model.model(input_ids=block, past_key_values=cache, use_cache=True)
        start = torch.zeros(1, dtype=torch.long, device=self.device)
        mask = torch.ones_like(block, dtype=torch.bool)
        self.source = PrefixCache([(layer.keys, layer.values) for layer in cache.layers], mask, start)

    def _row(self, task: str, text: str | None = None) -> Any:
        parts = self.context.style.suffix(task, text=text, num_images=0, height_width=self.size)
        return suffix_row(self.context, parts)

    def _write(self, count: int, guidance: float, prefix: PrefixCache, template: Any, on_token: Any) -> None:
        template = tuple(part.expand(count, -1) for part in template)
        write_codes(
            self.parts, prefix, [self.prompt] * count, [0] * count, self.grammar, unconditional=[self.without] * count,
            guidance_scale=guidance, template=template, on_token=on_token, **DRAWING,
            generator=[torch.Generator().manual_seed(i) for i in range(count)],
        )  # fmt: skip

    def ours(self, count: int = 1, guidance: float = 1.0) -> list[float]:
        """Seconds a semantic and a pixel token of each of `count` images at once."""
        stamps = Stamps(self.clock, [grid[1] for grid in self.grids])
        self._write(count, guidance, self.prefix, self.middle, stamps)
        return stamps.per_token()

    def growing(self, count: int = 1) -> list[float]:
        """The same as `ours`, with transformers' cache, whose tensors are made anew for every token."""
        stamps = Stamps(self.clock, [grid[1] for grid in self.grids])
        ids, draw = (part.expand(count, -1).to(self.device) for part in self.middle)
        ids, first, stop = ids.clone(), self.grammar.first.tolist(), self.grammar.stop.tolist()
        numbers = uniform_numbers(count, self.grammar.length, torch.Generator().manual_seed(0)).to(self.device)
        prompts = torch.zeros(count, dtype=torch.long)
        batch = batch_rows(self.parts, [self.prompt] * count)
        hidden, cache, mask = run_suffixes(self.parts, self.prefix, prompts, batch)
        table, head, fed = self.parts.language_model.get_input_embeddings(), self.parts.language_model.lm_head, 0
        for position in draw[0].nonzero()[:, 0].tolist():
            hidden, mask = extend(self.parts, table(ids[:, fed:position]), cache, mask)
            logits = head_rows(head, hidden[:, -1], first[position], stop[position])
            ids[:, position] = draw_ids(logits, SAMPLING, numbers[:, position]) + first[position]
            fed = position
            stamps()
        return stamps.per_token()

    def in_place(self, share: float) -> tuple[float, int]:
        """Seconds of an edit of that share of the cells from end to end, and how many were drawn."""
        cells = tuple(_square(grid, share) for grid in self.grids)
        template = block_template(self.grammar, 1, codes=self.known, free=cells)
        begin = self.clock()
        self._write(1, 1.0, self.source, template, None)
        return self.clock() - begin, int(template[1].sum())

    def generate(self, guidance: float = 1.0) -> list[float]:
        """Seconds a semantic and a pixel token."""
        model, (ids, draw) = self.parts.language_model, self.middle
        found = []
        for row, columns in zip(draw[0].nonzero()[:, 0].split([grid[1] for grid in self.grids]), self.grids):
            begun, count = ids[:, : int(row[0])], columns[1]
            prompt, uncond = (
                torch.cat([torch.tensor([one.ids]), begun], dim=1).to(self.device)
                for one in (self.prompt, self.without)
            )
            second = Unconditional(model, uncond) if guidance != 1.0 else None
            stamps = Stamps(self.clock, [count])
            steer = InterleavedLogitsProcessor(self.grammar, guidance, second, text=SAMPLING, **DRAWING)

            def stamp(_: torch.Tensor, scores: torch.Tensor, stamps: Stamps = stamps) -> torch.Tensor:
                stamps()
                return scores

            model.generate(
                input_ids=prompt, max_new_tokens=count, logits_processor=LogitsProcessorList([steer, stamp]),
                do_sample=True, top_k=0, top_p=1.0, pad_token_id=0,
            )  # fmt: skip
            found += stamps.per_token()
        return found


def _square(grid: tuple[int, int], share: float) -> torch.Tensor:
    """bool [1, rows, columns]: a square in the middle that covers about `share` of the cells."""
    cells = torch.zeros(1, *grid, dtype=torch.bool)
    high, wide = (max(1, round(side * share**0.5)) for side in grid)
    top, left = (grid[0] - high) // 2, (grid[1] - wide) // 2
    cells[:, top : top + high, left : left + wide] = True
    return cells


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of each way: a semantic token, a pixel token, an image."""
    ways = Ways(options)
    turns: dict[str, Callable[[], list[float]]] = {
        "alone": ways.ours,
        "guided": lambda: ways.ours(guidance=2.0),
        "batch of 4": lambda: ways.ours(4),
        "growing cache": ways.growing,
        "growing cache, batch of 4": lambda: ways.growing(4),
        "generate": ways.generate,
        "generate, guided": lambda: ways.generate(2.0),
    }
    turns = {name: call for name, call in turns.items() if not options.only or name in options.only}
    rounds: dict[str, list[list[float]]] = {name: [] for name in turns}
    for number in range(options.repeats + 1):  # the first one warms up
        for name, call in turns.items():
            seconds = call()
            rounds[name] += [seconds] if number else []
            print(
                f"{number} {name}: {' '.join(f'{1000 * one:.1f}' for one in seconds)} ms", file=sys.stderr, flush=True
            )
    cells = [rows * columns for rows, columns in ways.grids]
    found = {"semantic cells": float(cells[0]), "pixel cells": float(cells[1])}
    for name, taken in rounds.items():
        each = [statistics.median(level) for level in zip(*taken)]
        found |= {f"{name}, {level} token": one for level, one in zip(("semantic", "pixel"), each)}
        found[f"{name}, image"] = sum(count * one for count, one in zip(cells, each))
    if not options.only or "in place" in options.only:
        tenths = [ways.in_place(0.1) for _ in range(options.repeats)]
        found["cells of a tenth"] = float(tenths[0][1])
        found["a tenth in place"] = statistics.median(seconds for seconds, _ in tenths)
        found["whole in place"] = ways.in_place(1.0)[0]
    return found


def ratios(found: dict[str, float]) -> dict[str, float]:
    """What the targets are about."""
    of = {
        "guided / unguided": ("guided, image", "alone, image"),
        "batch of 4 / 1": ("batch of 4, image", "alone, image"),
        "a tenth in place / whole in place": ("a tenth in place", "whole in place"),
        "generate / ours, guided": ("generate, guided, image", "guided, image"),
        "generate / ours, unguided": ("generate, image", "alone, image"),
        "growing cache / ours": ("growing cache, image", "alone, image"),
        "growing cache / ours, batch of 4": ("growing cache, batch of 4, image", "batch of 4, image"),
    }
    return {name: found[top] / found[under] for name, (top, under) in of.items() if top in found and under in found}


def main() -> None:
    """Measure, then write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument(
        "--inner", type=int, help="width of the feed-forward networks (default: 11/4 of the hidden width)"
    )
    parser.add_argument(
        "--no-cudnn-attention",
        action="store_true",
        help="without an attention that is planned anew for every length",
    )
    parser.add_argument("--size", type=int, default=512, help="pixels of the token resolution, a bucket of focus-3b")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3, help="rounds, after one to warm up")
    parser.add_argument("--only", nargs="*", metavar="WAY", help="some of the ways, and nothing is written")
    parser.add_argument("--output", metavar="DIR", default=str(HERE / "results"))
    options = parser.parse_args()
    if options.no_cudnn_attention:
        torch.backends.cuda.enable_cudnn_sdp(False)
    found = measure(options)
    of = ratios(found)
    if options.only is not None:
        print(found, of, sep="\n")
        return
    facts = {
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(SimpleNamespace(device=options.device)),
        "versions": versions(),
    }
    given = {
        name: getattr(options, name) for name in ("hidden", "layers", "head_dim", "inner", "size", "dtype", "repeats")
    }
    given["cudnn attention"] = not options.no_cudnn_attention
    result = {**facts, "options": given, "figures": found, "ratios": of, "targets": TARGETS}
    of_machine = facts["hardware"]
    where = of_machine["processor"] if of_machine["device"] == "cpu" else of_machine["device"]
    slug = re.sub(r"[^a-z0-9]+", "-", f"{where}".lower()).strip("-")
    name = f"tokens_{slug}_{options.size}px_{options.dtype}_{facts['date']}"
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    replace_json(folder / f"{name}.json", result)
    lines = [f"# Writing visual tokens on {where}, {facts['date']}", "", "```", str(given), "```", ""]
    lines += ["| ratio | | target |", "|---|---|---|"]
    lines += [f"| {key} | {value:.2f} | {TARGETS.get(key, '')} |" for key, value in of.items()]
    lines += ["", "| | |", "|---|---|"]
    for key, value in found.items():
        text = f"{value:.0f}" if "cells" in key else f"{1000 * value:.1f} ms" if "token" in key else f"{value:.1f} s"
        lines.append(f"| {key} | {text} |")
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")
    print(folder / f"{name}.md")


if __name__ == "__main__":
    main()
