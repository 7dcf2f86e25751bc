"""How far more parameters and more samples go: the language model in four sizes, the same samples, one curve each.

Command:   python recipes/scaling.py                     (every size that has no result yet, then table and picture)
           python recipes/scaling.py --sizes half double
Hardware:  one CPU core; two processes with other --sizes may share the folder. A stopped run goes on where it was.
Hours:     ten to forty minutes a size for 200 steps of four pictures, the smallest first. In the results the three smaller ones
           took two minutes each on an H200, side by side, the largest 40 of a core of an AMD EPYC.

Runs of `ablations.py` (arm "base", seed 0) whose language model has other numbers of layers, and other widths inside; the hidden
width is that of the tokens and stays. Every step draws new pictures, so the curves of training are curves on unseen scenes; what a
run has learned at its end is measured as the ablations are. Paper: FOCUS (arXiv 2506.16806) knows one size.
Results: recipes/scaling/results.json and curves.png.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import ablations
import torch

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "recipes" / "scaling"
STEPS = 200
SIZES = {  # layers, inner width of each
    "half": (3, 384),
    "focus-tiny": (5, 512),
    "double": (6, 1024),
    "quadruple": (10, 1280),
}
CURVES = {
    "edit_codes": "codes of edits, nats",
    "miou_referring": "expressions, mIoU",
    "questions": "questions, share right",
}


def train(name: str, runs: Path, steps: int, count: int) -> dict[str, Any]:
    """A size to its last step: parameters, curves, time, and what it has learned."""
    layers, width = SIZES[name]
    arm = ablations.Arm(name, language_model=(("num_hidden_layers", layers), ("intermediate_size", width)))
    began = time.process_time()
    components = ablations.train(arm, name, 0, runs / name, steps)
    with (runs / name / "large" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    curves = {key: [float(row[key]) if row.get(key) else None for row in rows] for key in CURVES}
    found = ablations.evaluated(components, count, [path[0] for path in ablations.FIGURES.values()])
    figures = {title: ablations.figure_at(found, path) for title, path in ablations.FIGURES.items()}
    return {
        "parameters": sum(p.numel() for p in components.language_model.parameters()),
        "samples": [int(row["step"]) * 4 for row in rows],
        "curves": curves,
        "figures": figures,
        "processor_seconds": round(time.process_time() - began),
        "date": found["date"],
        "hardware": found["hardware"],
    }


def table(results: dict[str, Any]) -> str:
    """A row a size."""
    lines = ["| language model | parameters | " + " | ".join(ablations.FIGURES) + " |"]
    lines.append("|---|---|" + "---|" * len(ablations.FIGURES))
    for name in sorted(results, key=lambda one: results[one]["parameters"]):
        layers, width = SIZES[name]
        cells = " | ".join(f"{results[name]['figures'][title]:.3f}" for title in ablations.FIGURES)
        millions = results[name]["parameters"] / 1e6
        lines.append(f"| {name}: {layers} layers, {width} wide inside | {millions:.1f} M | {cells} |")
    return "\n".join(lines)


def plot(results: dict[str, Any], path: Path) -> None:
    """The curves of all sizes against samples."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(CURVES), figsize=(4.2 * len(CURVES), 3.2))
    for axis, (key, title) in zip(axes, CURVES.items(), strict=True):
        for name in sorted(results, key=lambda one: results[one]["parameters"]):
            points = [(x, y) for x, y in zip(results[name]["samples"], results[name]["curves"][key]) if y is not None]
            axis.plot(*zip(*points), label=f"{name} ({results[name]['parameters'] / 1e6:.1f} M)")
        axis.set(title=title, xlabel="pictures")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=90, format="png")


def main() -> None:
    """Run what is missing, then table and picture."""
    from diffusers_focus.sharing.files import replace_file, replace_json

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help="of every run (default: %(default)s)")
    parser.add_argument(
        "--count", type=int, default=100, metavar="N", help="scenes to measure on (default: %(default)s)"
    )
    parser.add_argument("--sizes", nargs="+", choices=tuple(SIZES), default=list(SIZES), metavar="SIZE")
    parser.add_argument("--runs", metavar="DIR", default=str(ROOT / "runs" / "scaling"), help="folder of the runs")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--table", action="store_true", help="table and picture alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    file = FOLDER / "results.json"

    def known() -> dict[str, Any]:
        return json.loads(file.read_text()) if file.exists() else {}

    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in () if options.table else options.sizes:
        if name not in known():
            found = train(name, Path(options.runs), options.steps, options.count)
            replace_json(file, {**known(), name: found})
    results = known()
    if results:
        replace_file(FOLDER / "curves.png", lambda path: plot(results, path))
        print(table(results))


if __name__ == "__main__":
    main()
