"""Measure focus-tiny on everything its card tells, then write its figures and the card.

Command:   python recipes/card.py                        (pipelines/focus-tiny: metrics.json and README.md)
           python recipes/card.py --runs runs/try --rehearse 2   (two scenes of everything: minutes; the pipeline keeps its card)
Hardware:  two CPU cores, one thread each; five core-hours on an AMD EPYC without bfloat16 (28 November 2026), edits, descriptions
           and clips most of it. A stopped run goes on: what every batch of scenes gave is kept in the runs folder.

Counts are those of the floors that the model was built for (1,000 new scenes, 200 clips), and as many scenes of the other groups
as an interval of a few hundredths takes. The sheet of examples beside the card is drawn by `examples.py`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SEEING = tuple("referring reasoning generalized click scribble box mask questions classes".split())
OTHERS = ("referring", "click", "box", "mask", "questions")
# groups, tasks, scenes
MEASURED: tuple[tuple[tuple[str, ...], tuple[str, ...], int], ...] = (
    (("in",), (*SEEING, "edits"), 1000),
    (("in",), ("clips",), 200),
    (("in",), ("generation",), 320),
    (("held_out",), (*SEEING, "edits"), 300),
    (("held_out",), ("generation",), 32),
    (("crowded", "192px", "256px"), OTHERS, 64),
)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", metavar="DIR", default=str(ROOT / "pipelines" / "focus-tiny"))
    parser.add_argument("--runs", metavar="DIR", default=str(ROOT / "runs" / "card"), help="what batches gave is here")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="default: %(default)s")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rehearse", type=int, metavar="N", help="N scenes of everything; the card is left as it is")
    options = parser.parse_args()
    if options.processes < 1 or (options.rehearse is not None and options.rehearse < 1):
        parser.error("--processes and --rehearse take whole numbers from 1 up")
    return options


def measure(options: argparse.Namespace, index: int = 0, processes: int = 1, output: Path | None = None) -> None:
    """One process's share of all measurements into the records; with `output`, the figures of all of them."""
    import torch

    from diffusers_focus import FocusPipeline
    from diffusers_focus.evaluation.run import evaluate

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.processes))
    pipe = FocusPipeline.from_pretrained(options.pipeline).to(options.device)
    pipe.set_progress_bar_config(disable=True)
    for groups, tasks, count in MEASURED:
        count = min(count, options.rehearse or count)
        records = Path(options.runs) / "records"
        if output is None:
            evaluate(pipe, count, groups, tasks, records=records, part=(index, processes))
        else:
            evaluate(pipe, count, groups, tasks, output, records=records, resume=True)


def main() -> None:
    """Measure in processes, put the figures together, write the card."""
    options = arguments()
    from diffusers_focus.evaluation.records import in_processes
    from diffusers_focus.sharing.card import write_card
    from diffusers_focus.sharing.files import replace_text

    if options.processes > 1:
        in_processes(measure, options, options.processes)
    figures = Path(options.runs) / "metrics.json"
    figures.unlink(missing_ok=True)  # of an earlier run: measured again from the records, or not at all
    measure(options, output=figures)  # whatever a process left undone is done here
    if options.rehearse:
        print(figures)
        return
    folder = Path(options.pipeline)
    replace_text(folder / "metrics.json", figures.read_text(encoding="utf-8"))
    write_card(folder / "metrics.json", None, folder / "README.md")
    print(folder / "README.md")


if __name__ == "__main__":
    main()
