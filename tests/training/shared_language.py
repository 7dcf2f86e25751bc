"""Run by `test_processes.py` in one process and in two, and killed: the joint objective on shards of samples.

python -m tests.training.shared_language OUTPUT SHARDS STEPS float32|float64

Two processes add up in another order. In float32 that is 1e-7 of a gradient, which AdamW makes a step of where a gradient is nearly
zero; in float64 it does not show, so a wrong share or mean would.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from diffusers_focus.training.language import LanguageObjective
from diffusers_focus.training.stages import ADAPTERS
from diffusers_focus.training.trainer import ParameterGroup, StageRecipe, Trainer, share_of

from tests.training.test_language import parts

RECIPE = StageRecipe(
    name="shared-language",
    objective="language",
    groups=(
        ParameterGroup("language_model", 5e-4),
        ParameterGroup("mask_decoder", 5e-4),
        ParameterGroup("vision_encoder", 5e-4, include=ADAPTERS),
    ),
    steps=20,
    batch_size=4,
    warmup_steps=5,
    mixed_precision="no",
    save_every_minutes=0.0,
    log_every=1,
    options={"mixture": {"name_noise": 0.5, "dropout": 0.2, "history_noise": 0.5}, "prompts": 6},
)


def train(output, shards, steps: int, dtype: torch.dtype) -> None:
    """Train to the end, from wherever `output` has got to."""
    components = parts()
    for component in vars(components).values():
        if isinstance(component, torch.nn.Module):
            component.to(dtype)
    options = {**RECIPE.options, "data": [(str(shards), 1.0)]}
    recipe = share_of(replace(RECIPE, steps=steps, options=options))
    trainer = Trainer(recipe, LanguageObjective(components, recipe), output, cpu=True)
    assert trainer.run(progress=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(sys.argv[1], sys.argv[2], int(sys.argv[3]), getattr(torch, sys.argv[4]))
