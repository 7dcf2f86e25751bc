"""Train focus-tiny from nothing and publish it: `make tiny`, or `python recipes/focus_tiny.py --help`.

Command:   make tiny                                  (every stage, then pipelines/focus-tiny, then its scores)
           make tiny ARGS="--stages 2 1a-semantic"    (some stages, an interrupted one goes on where it stopped; published
             with the last)
           make tiny ARGS="--publish-only"
           make tiny ARGS="--runs runs/try --rehearse 2"  (every stage for two steps: minutes, not hours)
           make tiny ARGS="--init pipelines/focus-tiny --stages 3-identities"   (instance embeddings alone: docs/clips.md)
           ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no
             --dynamo_backend no -m diffusers_focus.cli train --stage 3-found --output runs/focus-tiny   (two processes, two cores)
           make tiny ARGS="--init pipelines/focus-tiny --stages 3"   (train the published weights further)
Hardware:  two CPU cores with AVX-512 BF16 (without it float32 is used, about half as fast); each stage uses one thread, independent
           stages may run side by side.
Hours:     16.5 core-hours for the published stages without 3-drawn and 3-redrawn (sum of the records; 3-all shared its core), and
           six minutes of a GPU for each of these two (recipes/one_gpu.py), 44,000 and 39,000 pictures. Two cores alone need 10 GB
           for them and some thirty hours each, in as many parts as one likes: on an AMD EPYC without BF16 a step with masks, one
           of four, took 10 to 11 minutes of both cores, and one without about half. They have not run to their end there; every
           stage for a step or two, published and calibrated, has (`--rehearse`, a fresh clone, 28 November 2026). Stage 3 takes an
           hour and a half on two cores, 3-guided two hours, 3-all two hours on one, 3-found an hour on two, every other an hour or
           less, and each can be stopped at any time.
Expected:  recipes/focus-tiny/<stage>/log.csv and loss.png hold the curves of the published run, the model card its figures.
           What went otherwise there (stages 3 and 3-found in two parts, stripes of either diagonal learnt late): docs/design.md,
           "State of focus-tiny". How far a second run from nothing has come, and what its stages gave beside the records:
           recipes/second-run.json (second_run.py).
Order:     0-vae | 0-features -> 0-encoders (which then stand still) -> 2 (words) | 1a-pixel -> 1b (decoder) |
           1a-semantic -> 3 (masks and visual tokens) -> 3-places (where things are) -> 3-all (everything again) ->
           3-names (names before masks) -> 3-found (many expressions) -> 3-guided (edits) -> 3-drawn (a larger language
           model: outlines of what edits draw, pictures from descriptions) -> 3-redrawn (the same, other pictures) ->
           3-identities -> 4 (mask-guided decoder; its mask conditioner guides tokens since 3). `|` marks what does not depend
           on each other.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ORDER = tuple(
    "0-vae 0-features 0-encoders 1a-pixel 2 1a-semantic 1b 3 3-places 3-all 3-names 3-found 3-guided 3-drawn 3-redrawn".split()
) + ("3-identities", "4")
# How it draws descriptions object by object: discs of sizes amid those of the world, which it calls white circles.
SKETCH = {
    "placeholder": "white circle",
    "colour": [240, 240, 240],
    "canvas": [128, 128, 128],
    "radii": {"small": 0.085, "large": 0.16, "": 0.16},
    "instruction": "replace the {placeholder} with {object}",
    "finishes": {"striped": "make the {object} striped"},
}
RECORDS = ("log.csv", "loss.png", "recipe.json")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", metavar="DIR", default=str(ROOT / "runs" / "focus-tiny"), help="training folder")
    parser.add_argument("--stages", nargs="+", metavar="STAGE", default=list(ORDER), help="default: %(default)s")
    parser.add_argument(
        "--init", metavar="DIR", help="pipeline folder whose components fill what the training folder lacks"
    )
    parser.add_argument("--threads", type=int, default=None, metavar="N")
    parser.add_argument(
        "--rehearse",
        type=int,
        metavar="N",
        help="N steps of every stage, published within the training folder",
    )
    parser.add_argument(
        "--publish-only",
        action="store_true",
        help="train nothing; publish and calibrate what the folder holds, finished or not",
    )
    parser.add_argument("--output", metavar="DIR", default=str(ROOT / "pipelines" / "focus-tiny"))
    options = parser.parse_args()
    options.records = ROOT / "recipes" / "focus-tiny"
    if options.rehearse:  # nothing of it may touch what is published
        options.output, options.records = Path(options.runs) / "pipeline", Path(options.runs) / "records"
    return options


def train(stages: list[str], runs: str, threads: int | None, trained: bool = False, steps: int | None = None) -> None:
    """Run the stages in order; finished ones return at once. What is `trained` already keeps the rows of its codes."""
    from diffusers_focus.training.run import run_stage
    from diffusers_focus.training.stages import get_stage

    for stage in stages:
        changed: dict[str, object] = {"steps": steps} if steps else {}
        if trained and "initialize_codes" in get_stage(stage).options:
            changed["initialize_codes"] = False
        run_stage(stage, runs, threads=threads, overrides=changed)


def unfinished(runs: str | Path, steps: int | None = None) -> list[str]:
    """Stages that have not come to their end in a training folder, in their order; `steps` are those of a rehearsal."""
    from diffusers_focus.training.run import is_complete
    from diffusers_focus.training.stages import get_stage

    records = {stage: Path(runs) / "stages" / stage / "recipe.json" for stage in ORDER}
    return [stage for stage, file in records.items() if not is_complete(file, steps or get_stage(stage).steps)]


def adopt(pipeline: str | Path, runs: str | Path) -> None:
    """Copy the components of a published pipeline that the training folder does not have: to train it further."""
    from diffusers_focus.training.components import CLASSES

    for name in CLASSES:
        source, target = Path(pipeline) / name, Path(runs) / "components" / name
        if not source.is_dir():
            raise ValueError(f"{pipeline} has no component {name}; --init takes the folder of a whole pipeline")
        if not target.exists():
            shutil.copytree(source, target)


def publish(
    runs: str | Path,
    output: str | Path,
    records: Path = ROOT / "recipes" / "focus-tiny",
    init: str | Path | None = None,
) -> Path:
    """Write the pipeline folder in float16, and the logs beside the recipe; the old folder stays until the new is whole.

    `init` is the pipeline whose components the training folder began with: what they were trained for, they still are.
    """
    import torch

    from diffusers_focus import FocusPipeline
    from diffusers_focus.checkpoints.layout import modular_index
    from diffusers_focus.data.world import SHAPES
    from diffusers_focus.training.components import load_components
    from diffusers_focus.training.stages import STAGES

    runs, output = Path(runs), Path(output)
    components = vars(load_components(runs))
    before = json.loads((Path(init) / "model_index.json").read_text()) if init else {}
    records_of = {stage: runs / "stages" / stage / "recipe.json" for stage in STAGES}
    done = {stage: json.loads(file.read_text())["recipe"] for stage, file in records_of.items() if file.exists()}
    mixtures = ("3-redrawn", "3-drawn", "3-guided", "3-found", "3-all", "3")
    writes_images = bool(set(mixtures) & set(done)) or bool(before.get("images_trained"))
    # Stages of the language model and of masks move the states that instance embeddings are read off: 3-identities comes after.
    moved = any(stage.startswith(("2", "3")) for stage in done)
    linked = "3-identities" in done or (not moved and bool(before.get("instances_trained")))
    # Lists of names belong to the last mixture alone: a stage after it that knows none would undo them.
    mixed = [stage for stage in mixtures if stage in done]
    last = done[mixed[0]] if mixed else None
    listed = bool(last["options"]["mixture"].get("classes")) if last else bool(before.get("classes_trained"))
    pipeline = FocusPipeline(
        **components,
        resolution_group=[[128, 128]],
        classes_trained=listed,
        caption_classes=list(SHAPES) if listed else None,
        caption_count="how many objects are there?" if listed else None,
        description_sketch=SKETCH if writes_images else None,
        edit_masks_trained=writes_images,
        instances_trained=linked,
        instruction_phrases=True,
        images_trained=writes_images,
        default_num_inference_steps=6,
        default_guidance_scale=2.5,
        default_token_guidance_scale=1.0,
        default_temperature=0.0,
        default_top_k=0,
        pixel_code_sharpness=1.5,
        mask_refinement=1.5,
        mask_feather=0.008,
    )
    pipeline.to(torch.float16)
    fresh = output.with_name(f".{output.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.save_pretrained(fresh)
    index = modular_index(json.loads((fresh / "model_index.json").read_text()))
    (fresh / "modular_model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    for file in fresh.glob("*/config.json"):  # where the weights were trained is nobody's business
        config = json.loads(file.read_text())
        if config.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for name in ("README.md", "metrics.json", "examples.jpg"):
        if (output / name).exists():
            shutil.copy2(output / name, fresh / name)
    old = output.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.exists():
        os.replace(output, old)
    os.replace(fresh, output)
    shutil.rmtree(old, ignore_errors=True)
    for stage in STAGES:
        for name in RECORDS:
            source = runs / "stages" / stage / name
            if source.exists():
                (records / stage).mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, records / stage / name)
    return output


def calibrate(folder: str | Path, scenes: int | None = None) -> None:
    """Fit scores and thresholds of a published folder on validation scenes; publishing has dropped those of the weights before."""
    count = ["--count", str(scenes)] if scenes else []
    from diffusers_focus.cli import main as command

    if command(["calibrate", "--pipeline", str(folder), *count]):
        raise SystemExit(f"{folder} is published, but its scores are not calibrated")


def main() -> None:
    """Train, publish, calibrate."""
    options = arguments()
    if options.init:
        adopt(options.init, options.runs)
    if not options.publish_only:
        train(options.stages, options.runs, options.threads, trained=bool(options.init), steps=options.rehearse)
        left = unfinished(options.runs, options.rehearse)
        if left and not options.init:
            print(f"nothing is published yet; left to train in {options.runs}: {' '.join(left)}")
            return
    published = publish(options.runs, options.output, records=options.records, init=options.init)
    print(published)
    calibrate(published, scenes=20 if options.rehearse else None)


if __name__ == "__main__":
    main()
