"""Training on several processes: the step of one, written once."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from diffusers_focus.training.trainer import share_of

from tests.training.shared_step import RECIPE, Regression

ROOT = Path(__file__).parents[2]


def run(folder: Path, processes: int) -> dict[str, torch.Tensor]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "tests.training.shared_step", str(folder)]
    environment = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    done = subprocess.run(
        command, cwd=ROOT, env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(folder / "checkpoint" / "weights.safetensors")


def test_two_processes_take_the_steps_of_one(tmp_path):
    one, two = run(tmp_path / "one", 1), run(tmp_path / "two", 2)
    begin = Regression(RECIPE).line.state_dict()
    assert not torch.equal(one["line.weight"], begin["weight"])
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-6)
    with (tmp_path / "two" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5]  # one process writes
    assert {row["samples"] for row in rows} == {"2"}  # half of the batch


def test_a_batch_that_does_not_divide_is_refused():
    assert share_of(RECIPE) == RECIPE
    script = (
        "from dataclasses import replace\nfrom diffusers_focus.training.trainer import share_of\n"
        "from tests.training.shared_step import RECIPE\nshare_of(replace(RECIPE, batch_size=3))"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    done = subprocess.run(
        [*command, sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0 and "3 samples a step, which 2 processes cannot share" in done.stderr
