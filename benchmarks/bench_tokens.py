"""What writing visual tokens costs, as ratios in one run: python benchmarks/bench_tokens.py [--hidden 512] [--layers 8]

A Qwen2 with random weights and the originals' vocabulary (32,768 semantic and 98,304 pixel codes, 283,047 rows) writes images with
`steps.visual_tokens.write_codes`: a whole one, one with guidance, a batch of four, and an edit of a tenth of the image, in place.
The peer is transformers' `generate` the way the originals use it: the grammar as a logits processor over the whole head, and the
unconditional branch in a second cache, one token at a time. Every figure is the median of `--repeats` after one to warm up; the
image stands at `--size` pixels, in the grids of the originals' table. Writes results/tokens_<hardware>_<date>.json and .md.
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

from diffusers_focus.evaluation.run import hardware, versions, write_json
from diffusers_focus.processing.grammar import InterleavedLogitsProcessor, TokenSampling, VisualTokenGrammar
from diffusers_focus.processing.grids import pixel_grid, semantic_grid
from diffusers_focus.processing.images import FocusImageProcessor
from diffusers_focus.processing.prompts import GENERATE, GENERATE_RANDOM
from diffusers_focus.processing.vocabulary import build_tiny_tokenizer, extend_tokenizer
from diffusers_focus.steps.sequence import FocusContext, PrefixCache, encode_prefix, suffix_row
from diffusers_focus.steps.visual_tokens import block_template, write_codes

HERE = Path(__file__).resolve().parent
CODES, ROWS = (32_768, 98_304), 283_047
TARGETS = {
    "guided / unguided": 1.3,
    "batch of 4 / 1": 2.5,
    "a tenth in place / whole": 0.35,
    "generate / ours, guided": 2.0,
}
SAMPLING = TokenSampling(temperature=1.0, top_k=2048)
PROMPT = "a red circle left of a blue star on a table"


def build(options: argparse.Namespace) -> Any:
    """The components that writing needs."""
    torch.manual_seed(0)
    tokenizer = build_tiny_tokenizer([PROMPT], 512)
    extend_tokenizer(tokenizer, *CODES)
    config = Qwen2Config(
        vocab_size=ROWS,
        hidden_size=options.hidden,
        intermediate_size=11 * options.hidden // 4,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=None,
    )
    dtype, device = getattr(torch, options.dtype), torch.device(options.device)
    with device:
        model = Qwen2ForCausalLM(config).to(dtype).eval()
    processor = FocusImageProcessor.from_pretrained(HERE.parent / "pipelines" / "focus-3b" / "image_processor")
    return SimpleNamespace(language_model=model, lm_tokenizer=tokenizer, image_processor=processor)


def timed(call: Callable[[], Any], repeats: int, device: str) -> float:
    """Median seconds of a call, once to warm up."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


class Unconditional:
    """The second cache of the originals: fed one token at a time."""

    def __init__(self, model: Any, prompt: torch.Tensor) -> None:
        self.model, self.prompt, self.cache = model, prompt, None

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits after what was written, of the prompt alone at first."""
        new = self.prompt.expand(len(ids), -1) if self.cache is None else ids[:, -1:]
        self.cache = self.cache or DynamicCache()
        return self.model(input_ids=new, past_key_values=self.cache, use_cache=True).logits[:, -1]


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of each way."""
    parts = build(options)
    context = FocusContext.of(parts)
    size = (options.size, options.size)
    grids = semantic_grid(*size), pixel_grid(*size)
    grammar = VisualTokenGrammar(context.vocabulary, *grids)

    def row(task: str, text: str | None = None) -> Any:
        return suffix_row(context, context.style.suffix(task, text=text, num_images=0, height_width=size))

    prefix = encode_prefix(parts, context, None, task=GENERATE)
    prompt, without = row(GENERATE, PROMPT), row(GENERATE_RANDOM)

    def write(count: int = 1, guidance: float = 1.0, **more: Any) -> Callable[[], Any]:
        given = {
            "unconditional": [without] * count,
            "guidance_scale": guidance,
            "semantic": SAMPLING,
            "pixel": SAMPLING,
        }
        generator = [torch.Generator().manual_seed(i) for i in range(count)]
        return lambda: write_codes(
            parts, more.get("prefix", prefix), [prompt] * count, [0] * count, grammar, **given, generator=generator,
            template=more.get("template"),
        )  # fmt: skip

    # An edit in place: the source's block stands in the prefix, and a square of a tenth of the cells is written anew.
    block = torch.randint(0, 100, (1, grammar.length), device=options.device) + context.vocabulary.level0_range[0]
    cache = DynamicCache()
    parts.language_model.model(input_ids=block, past_key_values=cache, use_cache=True)
    start = torch.zeros(1, dtype=torch.long, device=options.device)
    mask = torch.ones_like(block, dtype=torch.bool)
    source = PrefixCache([(layer.keys, layer.values) for layer in cache.layers], mask, start)
    free = tuple(_square(grid, 0.1) for grid in grids)
    known = tuple(torch.zeros(1, *grid, dtype=torch.long) for grid in grids)
    tenth = block_template(grammar, 1, codes=known, free=free)
    every = block_template(grammar, 1, codes=known, free=tuple(torch.ones_like(cells) for cells in free))

    ids = torch.tensor([prompt.ids], device=options.device)
    uncond = torch.tensor([without.ids], device=options.device)

    def generate(guidance: float) -> Callable[[], Any]:
        def call() -> Any:
            second = Unconditional(parts.language_model, uncond) if guidance != 1.0 else None
            drawing = {"semantic": SAMPLING, "pixel": SAMPLING}
            steer = InterleavedLogitsProcessor(grammar, guidance, second, **drawing)
            return parts.language_model.generate(
                input_ids=ids, max_new_tokens=grammar.length, logits_processor=LogitsProcessorList([steer]),
                do_sample=True, top_k=0, top_p=1.0, pad_token_id=0,
            )  # fmt: skip

        return call

    ways = {
        "whole": write(),
        "whole, guided": write(guidance=2.0),
        "batch of 4": write(4),
        "edit of all, in place": write(prefix=source, template=every),
        "edit of a tenth, in place": write(prefix=source, template=tenth),
        "generate": generate(1.0),
        "generate, guided": generate(2.0),
    }
    found = {"tokens of an image": float(grammar.length), "drawn in a tenth": float(tenth[1].sum())}
    for name, call in ways.items():
        found[name] = timed(call, options.repeats, options.device)
        print(f"{name}: {found[name]:.2f} s", file=sys.stderr, flush=True)
    return found


def _square(grid: tuple[int, int], share: float) -> torch.Tensor:
    """bool [1, rows, columns]: a square in the middle that covers about `share` of the cells."""
    cells = torch.zeros(1, *grid, dtype=torch.bool)
    high, wide = (max(1, round(side * share**0.5)) for side in grid)
    top, left = (grid[0] - high) // 2, (grid[1] - wide) // 2
    cells[:, top : top + high, left : left + wide] = True
    return cells


def ratios(found: dict[str, float]) -> dict[str, float]:
    """What the targets are about."""
    return {
        "guided / unguided": found["whole, guided"] / found["whole"],
        "batch of 4 / 1": found["batch of 4"] / found["whole"],
        "a tenth in place / whole": found["edit of a tenth, in place"] / found["edit of all, in place"],
        "generate / ours, guided": found["generate, guided"] / found["whole, guided"],
        "generate / ours, unguided": found["generate"] / found["whole"],
    }


def main() -> None:
    """Measure, then write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--size", type=int, default=512, help="pixels of the token resolution, a bucket of focus-3b")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", metavar="DIR", default=str(HERE / "results"))
    options = parser.parse_args()
    found = measure(options)
    facts = {
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(SimpleNamespace(device=options.device)),
        "versions": versions(),
    }
    of = ratios(found)
    given = {name: getattr(options, name) for name in ("hidden", "layers", "size", "dtype", "repeats")}
    result = {**facts, "options": given, "figures": found, "ratios": of, "targets": TARGETS}
    of_machine = facts["hardware"]
    where = of_machine["processor"] if of_machine["device"] == "cpu" else of_machine["device"]
    name = "tokens_" + re.sub(r"[^a-z0-9]+", "-", str(where).lower()).strip("-") + f"_{facts['date']}"
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", result)
    lines = [
        f"# Writing visual tokens on {where}, {facts['date']}",
        "",
        "```",
        str(given),
        "```",
        "",
        "| | |",
        "|---|---|",
    ]
    lines += [
        f"| {key} | {value:.2f}{'' if 'token' in key or 'drawn' in key else ' s'} |" for key, value in found.items()
    ]
    lines += ["", "| ratio | | target |", "|---|---|---|"]
    lines += [f"| {key} | {value:.2f} | {TARGETS.get(key, '')} |" for key, value in of.items()]
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")
    print(folder / f"{name}.md")


if __name__ == "__main__":
    main()
