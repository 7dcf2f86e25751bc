"""Run one stage in a training folder: load what it needs, train, put the trained components back (`diffusers-focus train`)."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from ..sharing.files import replace_text
from ..steps.fit import check_fit
from .components import load_components, save_component
from .stages import NEEDS, STAGES, build_objective, get_stage
from .trainer import StageRecipe, Trainer, share_of

SKIPPED = "skipped.json"  # what a run over files has left out so far
FIXED = ("name", "objective", "groups", "options")
OPTIONS = frozenset(
    """adversarial_start adversarial_weight adversarial_width crop data edge_weight edits grow initialize initialize_codes
    keep_codes kl_weight map_drop mask_drop masks_every match_scale max_tokens mixture mse_weight noise_samples noise_tokens
    object_weight outline_dim perceptual_weight pictures_at_once pixel_drop pixel_tokens prompts resolution_index
    semantic_drop semantic_noise size twins vectors""".split()
)
"""What objectives read from a recipe's options; a slip of the pen is told instead of trained without."""


def with_overrides(recipe: StageRecipe, overrides: dict[str, Any] | None) -> StageRecipe:
    """Change numbers of a recipe.

    Args:
        overrides: fields of `StageRecipe` (steps, batch_size, seed, ...), `learning_rate_scale` (multiplies every group's
            rate), or options of an objective (`OPTIONS`).

    Raises:
        ValueError: there is no such number or option.
    """
    own = {f.name for f in fields(StageRecipe)}
    changes: dict[str, Any] = {}
    options = dict(recipe.options)
    for name, value in (overrides or {}).items():
        if name in FIXED:
            raise ValueError(
                f"{name!r} is what makes recipe {recipe.name!r}; change its numbers, or write a recipe of your own"
            )
        if name == "learning_rate_scale":
            changes["groups"] = tuple(replace(g, learning_rate=g.learning_rate * float(value)) for g in recipe.groups)
        elif name in own:
            changes[name] = value
        elif name in OPTIONS:
            options[name] = value
        else:
            known = sorted((own | OPTIONS | {"learning_rate_scale"}) - set(FIXED))
            raise ValueError(f"there is no setting {name!r} of a stage; choose one of {', '.join(known)}")
    return replace(recipe, options=options, **changes)


def is_complete(record: Path, steps: int) -> bool:
    """Whether a stage's `recipe.json` tells of a run that came to its end, after this many steps or more."""
    if not record.exists():
        return False
    content = json.loads(record.read_text())
    return bool(content["complete"]) and content["step"] >= steps


def run_stage(
    stage: str,
    output_dir: str | Path,
    *,
    resume: bool = True,
    max_minutes: float | None = None,
    threads: int | None = None,
    overrides: dict[str, Any] | None = None,
    progress: bool = True,
    variant: str = "focus-tiny",
    workers: int = 0,
) -> bool:
    """Train one stage until its last step or for `max_minutes`; a later call goes on where it stopped.

    Args:
        stage: a name of `stages.STAGES`.
        output_dir: the training folder: components of earlier stages are found in it, this stage's end up in it.
        resume: False starts the stage anew.
        threads: CPU threads, default torch's own choice.
        overrides: see `with_overrides`.
        workers: processes that draw batches ahead of each training process; the steps are the same.

    Returns:
        Whether the stage is complete. Only then its components replace those in the folder.

    Raises:
        ValueError: unknown stage or override, a checkpoint that does not fit, or components that were not made for each other.
    """
    recipe = with_overrides(get_stage(stage), overrides)
    if "data" in recipe.options and recipe.objective != "language":
        named = ", ".join(name for name, one in STAGES.items() if one.objective == "language")
        raise ValueError(f"stage {stage} draws its pictures itself; samples from files are learned in stages {named}")
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads is {threads}; it must be at least 1, or leave it out")
        torch.set_num_threads(threads)
    root = Path(output_dir)
    if resume and is_complete(root / "stages" / stage / "recipe.json", recipe.steps):
        return True  # its components may have been trained further since; the old checkpoint must not replace them
    components = load_components(root, NEEDS[recipe.objective], variant, seed=recipe.seed)
    check_fit(components)
    torch.manual_seed(recipe.seed)
    objective = build_objective(share_of(recipe), components, root)
    folder = root / "stages" / stage
    trainer = Trainer(recipe, objective, folder, workers=workers)
    skipped = getattr(getattr(getattr(objective, "samples", None), "stream", None), "skipped", None)
    if resume and skipped is not None and (folder / SKIPPED).is_file():
        skipped.merge(**json.loads((folder / SKIPPED).read_text()))
    done = trainer.run(resume=resume, max_minutes=max_minutes, progress=progress)
    if skipped is not None:
        own = {"names": skipped.names, "reasons": skipped.reasons}
        for found in gather_object([own]) if trainer.accelerator.num_processes > 1 else [own]:
            skipped.merge(**found)
    if not trainer.accelerator.is_main_process:
        return done
    record = {"recipe": asdict(recipe), "step": trainer.step, "seconds": round(trainer.seconds, 1), "complete": done}
    record |= {"processes": trainer.accelerator.num_processes, "precision": trainer.precision}
    if skipped is not None:
        record["skipped"] = {**skipped.counts, "reasons": skipped.reasons}
        replace_text(folder / SKIPPED, json.dumps({"names": skipped.names, "reasons": skipped.reasons}))
    if done:
        trainer.use_average()
        finish = getattr(objective, "finish", None)
        if finish is not None:
            record["measured"] = finish()
        trained = {group.component for group in recipe.groups}
        for name in NEEDS[recipe.objective]:
            if name in trained or name in ("lm_tokenizer", "image_processor", "scheduler"):
                save_component(root, name, getattr(components, name))
    replace_text(folder / "recipe.json", json.dumps(record, indent=1, default=list))
    return done
