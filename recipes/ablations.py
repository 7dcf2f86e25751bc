"""What the parts of FOCUS are worth: equal-step runs with one thing changed, three seeds each.

Command:   python recipes/ablations.py                          (every arm and seed that has no result yet, then the table)
           python recipes/ablations.py --arms base one-scale --seeds 0
           python recipes/ablations.py --table
Hardware:  one CPU core a run; two processes with other --arms may share the folder. A stopped run goes on where it was.
Hours:     a quarter of one for each of the 21 trained runs, measuring included.

Every run begins with the published encoders, visual tokenizer and mask decoder, and a language model and adapters that know
nothing, and learns words, masks and visual tokens together (the joint objective of stage 3) for the same number of steps on the
same pictures. What is compared is what the language model makes of its input, not how far a quarter of an hour goes: nothing here
is near the published weights. Measured on new scenes by the tasks of `diffusers-focus eval` (`FIGURES` names them), down to the
loss of the visual tokens of edits ("codes"). Paper: FOCUS (arXiv 2506.16806), its ablations of adapter scales,
of continuous against discrete input and of progressive resolution; names before masks and the joint objective are its claims.
Results: recipes/ablations/results.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "recipes" / "ablations" / "results.json"
FRESH = ("query_adapter", "vision_projector", "pixel_projector", "region_pooler")
MIXTURE = {
    "questions": 16,
    "referring": 2,
    "generalized": 1,
    "regions": 1,
    "classes": 1,
    "strokes": 0.3,
    "explained": 0.3,
    "edits": 1.0,
    "wordings": 2,
    "history_noise": 0.7,
}
FIGURES = {
    "words": ("referring", "mIoU"),
    "indirect": ("reasoning", "mIoU"),
    "none, one, many": ("generalized", "gIoU"),
    "lists": ("classes", "AP50"),
    "clicks": ("click", "mIoU"),
    "questions": ("questions", "exact_match"),
    "codes": ("codes", "nats_true"),
}
SEEN = tuple(FIGURES)[:-2]


@dataclass(frozen=True)
class Arm:
    """What one arm changes.

    Args:
        says: for the table.
        levels: maps that the query adapter reads, fine to coarse.
        mixture: prompts, in place of those of `MIXTURE`.
        discrete: whether the language model reads the pixel tokens quantised, as it writes them.
        small: share of the steps that see pictures of half the size.
        language_model: what is other than in focus-tiny's configuration.
        steps: in place of those of every run.
        measured: the figures that mean something.
    """

    says: str
    levels: tuple[int, ...] = (1, 2, 3)
    mixture: tuple[tuple[str, Any], ...] = ()
    discrete: bool = False
    small: float = 0.0
    language_model: tuple[tuple[str, int], ...] = ()
    steps: int | None = None
    measured: tuple[str, ...] = tuple(FIGURES)


ARMS = {
    "base": Arm("three scales, names before masks, everything at once, continuous, one resolution"),
    "two-scales": Arm("the adapter reads f2 and f3", levels=(1, 2)),
    "one-scale": Arm("the adapter reads f2", levels=(1,)),
    "no-names": Arm("masks without names before them", mixture=(("names", False),)),
    "masks-alone": Arm(
        "segmentation alone: no questions, no edits",
        mixture=(("questions", 0), ("edits", 0.0)),
        measured=SEEN,
    ),
    "discrete": Arm("quantised pixel tokens as input", discrete=True),
    "progressive": Arm("half of the steps at 64 px", small=0.5),
    "untrained": Arm("no step at all", steps=0),
}


def build(arm: Arm, seed: int) -> SimpleNamespace:
    """The components of a run before its first step."""
    from diffusers_focus.training.components import CLASSES, build_component

    published = ROOT / "pipelines" / "focus-tiny"
    names = ("lm_tokenizer", "visual_tokenizer", "mask_decoder", "image_processor")
    parts: dict[str, Any] = {name: CLASSES[name].from_pretrained(published / name) for name in names}
    encoder = CLASSES["vision_encoder"].from_pretrained(published / "vision_encoder")
    torch.manual_seed(seed)
    fresh = type(encoder).from_config({**encoder.config, "query_levels": list(arm.levels)})
    kept = {name: value for name, value in encoder.state_dict().items() if not name.startswith(FRESH)}
    missing, unknown = fresh.load_state_dict(kept, strict=False)
    assert not unknown and all(name.startswith(FRESH) for name in missing)
    parts["vision_encoder"] = fresh
    parts["language_model"] = build_component("language_model", seed=seed, **dict(arm.language_model))
    components = SimpleNamespace(**{k: v.float() if isinstance(v, torch.nn.Module) else v for k, v in parts.items()})
    if arm.discrete:
        fresh.pixel_projector.register_forward_pre_hook(lambda _, given: (_snapped(components, given[0]),))
    return components


@torch.no_grad()
def _snapped(components: Any, features: torch.Tensor) -> torch.Tensor:
    """Pixel features [B, h, w, C] as the codes that stand for them."""
    return components.visual_tokenizer.quantize_pixels(features.permute(0, 3, 1, 2))[0].permute(0, 2, 3, 1)


def train(arm: Arm, name: str, seed: int, folder: Path, steps: int) -> Any:
    """Run an arm to its last step and return its components."""
    from diffusers_focus.training.language import LanguageObjective
    from diffusers_focus.training.stages import LESSONS, get_stage
    from diffusers_focus.training.trainer import Trainer

    components = build(arm, seed)
    stage = get_stage("3")
    options = {"mixture": {**MIXTURE, "question_kinds": LESSONS, **dict(arm.mixture)}}
    options |= {"match_scale": True, "initialize_codes": True, "masks_every": 2}
    recipe = replace(
        stage,
        name=f"{name}-{seed}",
        groups=tuple(replace(group, learning_rate=2 * group.learning_rate) for group in stage.groups),
        seed=1000 + seed,
    )
    small = int(arm.small * steps)
    parts = [("small", small, {"size": 64})] * bool(small) + [("large", steps - small, {})] * bool(steps)
    for number, (part, count, more) in enumerate(parts):
        began = {} if number == 0 else {"match_scale": False, "initialize_codes": False}
        here = replace(recipe, steps=count, options={**options, **more, **began})
        Trainer(here, LanguageObjective(components, here), folder / part).run()
    return components


def evaluated(components: Any, count: int, tasks: list[str], **settings: Any) -> dict[str, Any]:
    """What `diffusers-focus eval` says of a run, on new scenes; `settings` are the pipeline's."""
    from diffusers_focus.evaluation.run import evaluate

    return evaluate(pipeline_of(components, **settings), count, ["in"], tasks)


def pipeline_of(components: Any, **settings: Any) -> Any:
    """A pipeline that asks and segments; `settings` are its own."""
    from diffusers_focus import FocusPipeline

    for part in vars(components).values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    nothing = dict.fromkeys(("mask_conditioner", "unet", "vae", "scheduler"))
    settings = {"images_trained": False, "classes_trained": False, **settings}
    pipe = FocusPipeline(**vars(components), **nothing, **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def figure_at(found: dict[str, Any], path: tuple[str, ...]) -> float | None:
    """The number that an evaluation has at a path of names; None where there was nothing to count."""
    value: Any = found["groups"]["in"]
    for key in path:
        if key not in value:
            return None
        value = value[key]
    return value["value"]


def record(name: str, seed: int, found: dict[str, Any], steps: int) -> None:
    """Add a run to the results; the file is whole at every moment."""
    from diffusers_focus.sharing.files import replace_json

    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {}}
    figures = {}
    for title in ARMS[name].measured:
        figures[title] = figure_at(found, FIGURES[title])
    results["runs"][f"{name}-{seed}"] = {
        "steps": steps,
        "date": found["date"],
        "hardware": found["hardware"],
        **figures,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    replace_json(RESULTS, results)


def table() -> str:
    """Means over the seeds, and in brackets the lowest and the highest."""
    runs = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else {}
    lines = ["| arm | runs | " + " | ".join(FIGURES) + " |", "|---|---|" + "---|" * len(FIGURES)]
    for name, arm in ARMS.items():
        own = [run for key, run in runs.items() if key.rpartition("-")[0] == name]
        cells = []
        for title in FIGURES:
            values = [run[title] for run in own if title in run]
            cells.append(f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else "")
        lines.append(f"| {name}: {arm.says} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    parser.add_argument("--steps", type=int, default=250, metavar="N", help="of every run (default: %(default)s)")
    parser.add_argument(
        "--count", type=int, default=120, metavar="N", help="scenes to measure on (default: %(default)s)"
    )
    parser.add_argument("--runs", metavar="DIR", default=str(ROOT / "runs" / "ablations"), help="folder of the runs")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--table", action="store_true", help="print the table alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.table:
        done = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else {}
        for seed in options.seeds:
            for name in options.arms:
                steps = options.steps if ARMS[name].steps is None else ARMS[name].steps
                if done.get(f"{name}-{seed}", {}).get("steps") != steps:
                    components = train(ARMS[name], name, seed, Path(options.runs) / f"{name}-{seed}", steps)
                    tasks = [FIGURES[title][0] for title in ARMS[name].measured]
                    record(name, seed, evaluated(components, options.count, tasks), steps)
    print(table())


if __name__ == "__main__":
    main()
