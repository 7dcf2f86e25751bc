"""Run by `test_processes.py` in one process and in two: a regression whose samples are a function of their number."""

from __future__ import annotations

import sys

import torch
from torch import nn

from diffusers_focus.training.trainer import ParameterGroup, StageRecipe, Trainer, share_of

RECIPE = StageRecipe(
    name="shared",
    objective="regression",
    groups=(ParameterGroup("line", 1e-2), ParameterGroup("seldom", 1e-2)),
    steps=5,
    batch_size=4,
    warmup_steps=1,
    mixed_precision="no",
    log_every=1,
)


class Regression:
    """Sample i is drawn with seed i; the second output has no loss, hence no gradient of its own, and "seldom" has one in the
    first step alone, from sample 0.
    """

    def __init__(self, recipe: StageRecipe):
        torch.manual_seed(0)
        self.line, self.seldom, self.batch_size = nn.Linear(3, 2), nn.Linear(3, 1), recipe.batch_size

    def modules(self):
        return {"line": self.line, "seldom": self.seldom}

    def batch(self, step: int):
        numbers = range(step * self.batch_size, (step + 1) * self.batch_size)
        samples = torch.stack([torch.randn(3, generator=torch.Generator().manual_seed(i)) for i in numbers])
        return numbers, samples

    def loss(self, batch, step: int):
        numbers, samples = batch
        error = (self.line(samples)[:, 0] - samples.sum(1)).square().mean()
        if 0 in numbers:
            error = error + self.seldom(samples[0]).square().sum() / len(samples)
        return error, {"samples": float(len(samples))}


if __name__ == "__main__":
    trainer = Trainer(RECIPE, Regression(share_of(RECIPE)), sys.argv[1], cpu=True)
    assert trainer.run(progress=False)
