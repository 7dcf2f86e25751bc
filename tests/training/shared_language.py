"""Run by `test_processes.py` in one process and in two, and killed: the joint objective on shards of samples, in float32.

python -m tests.training.shared_language OUTPUT SHARDS STEPS
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

if __name__ == "__main__":
    output, shards, steps = sys.argv[1:]
    torch.set_num_threads(1)
    options = {**RECIPE.options, "data": [(shards, 1.0)]}
    recipe = share_of(replace(RECIPE, steps=int(steps), options=options))
    trainer = Trainer(recipe, LanguageObjective(parts(), recipe), output, cpu=True)
    assert trainer.run(progress=False)
