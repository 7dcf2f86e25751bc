"""Does `make tiny` reproduce focus-tiny? A second run's logs beside those of the published one, stage by stage.

Command:   python recipes/second_run.py --runs runs/focus-tiny             (the table; stages may be unfinished)
           python recipes/second_run.py --runs runs/focus-tiny --json recipes/second-run.json
Hardware:  none to speak of; it reads log.csv of every stage that has begun.

Every row compares what both logs hold at the last step that they share: means of up to five logged rows there (a row itself is
the mean of `log_every` steps). Two runs differ in the last bits of sums from machine to machine, and more in bfloat16, so
figures agree within what these rows scatter, not to the digit; the standard deviation of the record's own rows stands beside.
Records of the stages to `3-all` are older than stripes of either diagonal (26 November 2026), so a second run of 0-features and
0-encoders learns from harder pictures than they tell of; the published encoders learnt them later (same_features.py). Where a
recipe has changed since its record, the last column says in what.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import math
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from focus_tiny import ORDER, ROOT

from diffusers_focus.evaluation.run import hardware
from diffusers_focus.sharing.files import replace_text
from diffusers_focus.training.stages import get_stage

RECORDS = ROOT / "recipes" / "focus-tiny"
ROWS = 5
FIELDS = (
    "objective",
    "steps",
    "batch_size",
    "warmup_steps",
    "gradient_clip",
    "betas",
    "seed",
    "first_sample",
    "ema_decay",
)
GROUP = {"component": "", "learning_rate": 0.0, "include": [], "exclude": [], "optimizer": "adamw", "optional": False}
FIGURES = tuple(
    """loss psnr psnr_objects cosine shape region_shape query_shape iou questions miou_referring edit_codes_top1 edit_distance
    linked mse_clean_half mse_noisy_half""".split()
)  # of those a stage logs, in this order


def read_log(file: Path) -> dict[int, dict[str, float]]:
    """Rows of a stage's log by their step; what a row lacks is left out."""
    with file.open(encoding="utf-8", newline="") as lines:
        rows = [{name: float(text) for name, text in row.items() if name and text} for row in csv.DictReader(lines)]
    return {int(row["step"]): row for row in rows}


def compare(run: Path, record: Path) -> dict[str, Any] | None:
    """One stage in both: None while they share no step."""
    ours, theirs = read_log(run / "log.csv"), read_log(record / "log.csv")
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return None
    last = shared[-ROWS:]
    figures = {}
    for name in FIGURES:
        pairs = [(ours[step][name], theirs[step][name]) for step in last if name in ours[step] and name in theirs[step]]
        if pairs:
            here, there = ([pair[k] for pair in pairs] for k in range(2))
            scatter = stdev(there) if len(there) > 1 else None
            figures[name] = {"second": fmean(here), "record": fmean(there), "scatter": scatter}
    seconds = {"second": ours[last[-1]]["seconds"], "record": theirs[last[-1]]["seconds"]}
    steps = max(theirs)
    return {"step": last[-1], "steps": steps, "rows": len(last), "seconds": seconds, "figures": figures}


def changes(stage: str, record: Path) -> list[str]:
    """What of a stage's recipe is not what the record was made with; where and how often it was logged and saved is left out."""
    then = json.loads((record / "recipe.json").read_text(encoding="utf-8"))["recipe"]
    now = json.loads(json.dumps(asdict(get_stage(stage)), default=list))
    names = [name for name in FIELDS if then.get(name) != now[name]]
    names += [] if math.isclose(then["decay_fraction"], now["decay_fraction"], abs_tol=0.001) else ["decay_fraction"]
    groups = [[{key: one.get(key, GROUP[key]) for key in GROUP} for one in recipe["groups"]] for recipe in (then, now)]
    names += ["groups"] if groups[0] != groups[1] else []
    options = sorted(name for name in {*then["options"], *now["options"]} - {"pictures_at_once"})
    return names + [name for name in options if then["options"].get(name) != now["options"].get(name)]


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown, a line a stage."""
    lines = [
        "| stage | step | second run / record (scatter of the record's rows) | minutes | changed since |",
        "|---|---|---|---|---|",
    ]
    for stage, one in found.items():
        figures = "; ".join(
            f"{name.replace('_', ' ')} {f['second']:.4g} / {f['record']:.4g}"
            + (f" ({f['scatter']:.1g})" if f["scatter"] is not None else "")
            for name, f in one["figures"].items()
        )
        minutes = " / ".join(f"{one['seconds'][which] / 60:.0f}" for which in ("second", "record"))
        lines.append(
            f"| {stage} | {one['step']} of {one['steps']} | {figures} | {minutes} | {', '.join(one['changed'])} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Read, compare, print; write the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--runs", metavar="DIR", default=str(ROOT / "runs" / "focus-tiny"), help="the second run's folder"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    stages = Path(options.runs) / "stages"
    both = [
        stage for stage in ORDER if (stages / stage / "log.csv").exists() and (RECORDS / stage / "log.csv").exists()
    ]
    if not both:
        parser.error(f"{stages} holds no log of a stage that recipes/focus-tiny has; train one first (make tiny)")
    compared = {stage: compare(stages / stage, RECORDS / stage) for stage in both}
    found = {stage: {**one, "changed": changes(stage, RECORDS / stage)} for stage, one in compared.items() if one}
    where = {"date": datetime.date.today().isoformat(), "hardware": hardware()}
    print(f"{where['hardware']['processor']}, {where['date']}\n\n{table(found)}")
    if options.json:
        replace_text(Path(options.json), json.dumps({**where, "stages": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
