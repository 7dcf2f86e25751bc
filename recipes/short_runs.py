"""What a short run teaches, task group by task group: before it, after it, and what needs no training at all.

Command:   python recipes/short_runs.py                        (the runs that are not there yet, then the table)
           python recipes/short_runs.py --table
Hardware:  one CPU core; on an AMD EPYC without bfloat16, its other core busy, 49 minutes for "asking", 66 for "expressions" and
           27 for "pointing", and five to ten to measure each. A stopped run goes on where it was.

Three runs, of pictures that are drawn anew for every step. Each begins with a language model and adapters that know nothing; the
published encoders and mask decoder can tell objects apart, but nobody has asked them for one yet:
  "asking"       the recipe of stage 2: questions alone.
  "expressions"  the joint objective on expressions of one object, and of none, one or many, lists of names and questions.
  "pointing"     regions, and clips as pairs of frames; what scores a mask against a prompt, its quality and its identity knows
                 nothing either. The head of identities goes on alone afterwards (`3-identities`).
Measured with the tasks of `diffusers-focus eval` on new scenes. Beside them stand baselines that see no picture or do not read: the
most frequent answer of a kind of question, the outline of the largest object whatever the words (true to the pixel), no mask at
all, the prompt itself as the mask, the mask of the given frame all along, the nearest place.
Scores of "expressions" are calibrated before they are measured, as behind every training.
Results: recipes/short-runs/results.json; docs/training.md has the table.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ablations
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "recipes" / "short-runs" / "results.json"
STEPS = {"asking": 400, "expressions": 600, "pointing": 250}
HEADS = ("condition_head", "quality_head", "instance_head")
SETTINGS = {"mask_refinement": 1.5}  # as published
VALIDATION_SCENES = 80
EXPRESSIONS = {
    **ablations.MIXTURE,
    **{"questions": 8, "naming": 4, "naming_generalized": 6, "referring": 3, "generalized": 3, "edits": 0.0},
}
POINTING = {"questions": 0, "referring": 1, "generalized": 0, "regions": 4, "twins": 0.15, "clips": 1.0}
TASKS = {
    "asking": ("questions",),
    "expressions": ("referring", "reasoning", "generalized", "classes", "clips"),
    "pointing": ("click", "scribble", "box", "mask", "clips"),
}
# title, run, path to the figure, path to its baseline (None: computed here), what the baseline is
ROWS = (
    (
        "questions, exact match",
        "asking",
        ("questions", "exact_match"),
        ("questions", "blind"),
        "most frequent answer",
    ),
    ("expressions, mIoU", "expressions", ("referring", "mIoU"), None, "the largest object"),
    ("indirect expressions, mIoU", "expressions", ("reasoning", "mIoU"), None, "the largest object"),
    ("none, one or many, gIoU", "expressions", ("generalized", "gIoU"), None, "never a mask"),
    ("is anything meant, mean of N-acc and T-acc", "expressions", ("generalized", "told"), None, "always yes, or no"),
    ("lists of names, AP50", "expressions", ("classes", "AP50"), None, ""),
    ("a click, mIoU", "pointing", ("click", "mIoU"), ("click", "echo_mIoU"), "the prompt itself"),
    ("a scribble, mIoU", "pointing", ("scribble", "mIoU"), ("scribble", "echo_mIoU"), "the prompt itself"),
    ("a box, mIoU", "pointing", ("box", "mIoU"), ("box", "echo_mIoU"), "the prompt itself"),
    ("a rough mask, mIoU", "pointing", ("mask", "mIoU"), ("mask", "echo_mIoU"), "the prompt itself"),
    (
        "clips, pointed at, J&F",
        "pointing",
        ("clips", "regions", "J&F"),
        ("clips", "regions", "echo_J&F"),
        "the true first mask",
    ),
    (
        "clips, words, J&F",
        "expressions",
        ("clips", "words", "J&F"),
        ("clips", "words", "echo_J&F"),
        "its first mask all along",
    ),
    ("clips, by names, IoU over all frames", "expressions", ("clips", "classes", "volume_IoU"), None, ""),
    (
        "clips, identities linked",
        "pointing",
        ("clips", "links", "linked"),
        ("clips", "links", "linked_by_place"),
        "nearest place",
    ),
)


def begin(run: str, seed: int = 0) -> SimpleNamespace:
    """The components of a run before its first step."""
    components = ablations.build(ablations.ARMS["base"], seed)
    if run == "pointing":
        known = components.mask_decoder
        torch.manual_seed(seed)
        fresh = type(known).from_config(known.config)
        for head in HEADS:
            getattr(known, head).load_state_dict(getattr(fresh, head).state_dict())
    return components


def train(run: str, folder: Path) -> Any:
    """A run to its end, after those it goes on with; its components."""
    from diffusers_focus.training.language import LanguageObjective
    from diffusers_focus.training.stages import get_stage
    from diffusers_focus.training.trainer import ParameterGroup, Trainer

    def go_on(components: Any, recipe: Any, name: str) -> Any:
        Trainer(recipe, LanguageObjective(components, recipe), folder / name).run()
        return components

    if run == "asking":
        known = get_stage("2")
        # Measured as a pipeline asks, with the pixel tokens in the prompt, so learned with them.
        options = {**known.options, "pixel_tokens": True}
        return go_on(begin(run), replace(known, name=run, steps=STEPS[run], seed=1000, options=options), run)
    stage = get_stage("3")
    fast = tuple(replace(group, learning_rate=2 * group.learning_rate) for group in stage.groups)
    recipe = replace(stage, name=run, steps=STEPS[run], seed=1000)
    if run == "expressions":
        kinds = get_stage("2").options["mixture"]["question_kinds"]
        options = {"mixture": {**EXPRESSIONS, "question_kinds": kinds}, "masks_every": 2, "match_scale": True}
        return go_on(begin(run), replace(recipe, groups=fast, options=options), run)
    options = {"mixture": POINTING, "match_scale": True}
    reading = tuple(group for group in fast if group.component in ("language_model", "vision_encoder"))
    groups = (*reading, ParameterGroup("mask_decoder", 1.5e-3))
    components = go_on(begin(run), replace(recipe, groups=groups, options=options), run)
    head = get_stage("3-identities")
    return go_on(components, replace(head, batch_size=4), "identities")


def measure(components: Any, run: str, count: int, clips: int) -> dict[str, Any]:
    """What `diffusers-focus eval` says of the run's tasks; clips are fewer, since each has the frames of a dozen scenes."""
    tasks, settings = TASKS[run], dict(SETTINGS)
    if "generalized" in tasks:
        settings |= calibrated(components)
    found = ablations.evaluated(components, count, [task for task in tasks if task != "clips"], **settings)
    if "clips" in tasks:
        found["groups"]["in"].update(ablations.evaluated(components, clips, ["clips"], **settings)["groups"]["in"])
    if "generalized" in tasks:  # six in ten of these expressions mean nothing
        figures = found["groups"]["in"]["generalized"]
        shares = [figures[name]["value"] for name in ("N-acc", "T-acc")]
        figures["told"] = {"value": sum(shares) / 2, "count": figures["gIoU"]["count"]}
    return found


def calibrated(components: Any) -> dict[str, Any]:
    """Maps and thresholds of scores, as they are chosen behind every training (`diffusers-focus calibrate`), on few scenes."""
    from diffusers_focus.evaluation.calibration import SETTINGS as FITTED
    from diffusers_focus.evaluation.calibration import fit

    fitted = fit(ablations.pipeline_of(components, classes_trained=True, **SETTINGS), VALIDATION_SCENES)
    return {"classes_trained": True, **{name: fitted[name] for name in FITTED}}


def blind(count: int) -> dict[str, float]:
    """Baselines that read no words and have true outlines: the largest object's mask, or no mask."""
    from diffusers_focus.evaluation import metrics
    from diffusers_focus.evaluation.tasks import SegmentTask, draw_batch

    batch = draw_batch("in", 0, count)
    values: dict[str, list[float]] = {"referring/mIoU": [], "reasoning/mIoU": [], "generalized/gIoU": []}
    for scene, drawn in zip(batch.scenes, batch.drawn):
        largest = drawn.masks[int(drawn.masks.sum(axis=(1, 2)).argmax())]
        for name, kept in values.items():
            task = name.partition("/")[0]
            for referral in SegmentTask(task).samples(scene, False):
                truth = drawn.masks[list(referral.targets)].any(axis=0)
                kept.append(float(not truth.any()) if task == "generalized" else metrics.iou(largest, truth))
    return {"generalized/told": 0.5} | {name: float(np.mean(kept)) for name, kept in values.items()}


def table(results: dict[str, Any]) -> str:
    """Rows of the task groups."""
    lines = ["| | before | needs no training | after |", "|---|---|---|---|"]
    for title, run, path, baseline, what in ROWS:
        stages = [ablations.figure_at(results[run][when], path) for when in ("before", "after")]
        if baseline is not None:
            other = f"{_written(ablations.figure_at(results[run]['after'], baseline))} ({what})"
        else:
            other = f"{results['blind']['/'.join(path)]:.2f} ({what})" if what else ""
        lines.append(f"| {title} | {_written(stages[0])} | {other} | {_written(stages[1])} |")
    return "\n".join(lines)


def _written(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def main() -> None:
    """Train and measure what is missing, then print the table."""
    from diffusers_focus.sharing.files import replace_json

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100, metavar="N", help="scenes (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=12, metavar="N", help="clips (default: %(default)s)")
    parser.add_argument("--runs", metavar="DIR", default=str(ROOT / "runs" / "short-runs"), help="folder of the runs")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--table", action="store_true", help="print the table alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not options.table:
        results["blind"] = blind(options.count)
        for run in TASKS:
            results.setdefault(run, {})
            for when in ("after", "before"):
                if when not in results[run]:
                    components = train(run, Path(options.runs)) if when == "after" else begin(run)
                    results[run][when] = measure(components, run, options.count, options.clips)
                    RESULTS.parent.mkdir(parents=True, exist_ok=True)
                    replace_json(RESULTS, results)
    print(table(results))


if __name__ == "__main__":
    main()
