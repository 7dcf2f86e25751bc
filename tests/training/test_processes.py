"""Training on several processes: the step of one, written once."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffusers_focus.data.shards import write_shards
from diffusers_focus.data.world_samples import world_records
from diffusers_focus.training.trainer import Trainer, share_of

from tests.training.shared_step import RECIPE, Regression

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
ENVIRONMENT |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}


def command(module: str, *arguments, processes: int = 1) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [
        sys.executable,
        *(launcher if processes > 1 else []),
        "-m",
        f"tests.training.{module}",
        *map(str, arguments),
    ]


def run(folder: Path, processes: int, module: str = "shared_step", *arguments) -> dict[str, torch.Tensor]:
    line = command(module, folder, *arguments, processes=processes)
    done = subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(folder / "checkpoint" / "weights.safetensors")


def log_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Sixteen scenes, and a sample that is damaged in its middle."""
    folder = tmp_path_factory.mktemp("scenes")
    write_shards(folder / "shards", world_records(folder, range(16), size=64, num_questions=3), folder, per_shard=6)
    path = folder / "shards" / "shard-000001.tar"
    data = bytearray(path.read_bytes())
    start = data.index(b"\x89PNG", len(data) // 2)
    data[start : start + 16] = b"?" * 16
    path.write_bytes(data)
    return folder / "shards"


def test_two_processes_take_the_steps_of_one(tmp_path):
    one, two = run(tmp_path / "one", 1), run(tmp_path / "two", 2)
    begin = Regression(RECIPE)
    assert not torch.equal(one["line.weight"], begin.line.weight)
    # One step of AdamW, and none when nothing depends on it any more.
    assert 0 < (one["seldom.weight"] - begin.seldom.weight).abs().max() <= 1.01e-2
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-6)
    with (tmp_path / "two" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5]  # one process writes
    assert {row["samples"] for row in rows} == {"2"}  # half of the batch


@pytest.mark.slow
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


def killed_ten_times(folder: Path, train: Callable[[Path], None], wait: Callable[[], None]) -> None:
    """`train(folder)` in ten processes one after the other, each ended by SIGKILL after `wait()`."""
    kills = 0
    for _ in range(100):
        child = os.fork()
        if child == 0:
            try:
                torch.set_num_threads(1)  # another thread pool does not survive the fork
                train(folder)
            finally:
                os._exit(0)
        wait()
        os.kill(child, signal.SIGKILL)
        kills += os.waitpid(child, 0)[1] == signal.SIGKILL
        if kills == 10:
            return
    raise AssertionError(f"only {kills} of 100 processes were still at work")


def test_a_run_that_is_killed_ten_times_goes_on_to_the_identical_losses(tmp_path):
    recipe = replace(RECIPE, steps=200, save_every_minutes=0.0)  # a checkpoint after every step: most kills meet one
    rng, weights = random.Random(5), {}

    def train(folder: Path) -> None:
        trainer = Trainer(recipe, Regression(recipe), folder, cpu=True)
        assert trainer.run(progress=False)
        weights[folder.name] = trainer.parameters

    killed_ten_times(tmp_path / "killed", train, lambda: time.sleep(rng.uniform(0.02, 0.15)))
    train(tmp_path / "killed")
    train(tmp_path / "whole")
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")
    assert all(torch.equal(value, weights["whole"][name]) for name, value in weights["killed"].items())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_learn_from_shards_what_one_learns(shards, tmp_path):
    for processes in (1, 2):
        run(tmp_path / str(processes), processes, "shared_language", shards, 20, "float64")
    one, two = ([float(row["loss"]) for row in log_of(tmp_path / n)] for n in "12")
    assert len(one) == 20 and one[-1] < 0.95 * one[0]
    assert one == pytest.approx(two, rel=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_joint_objective_killed_ten_times_goes_on_to_the_identical_losses(shards, tmp_path):
    from tests.training.shared_language import train

    rng, killed = random.Random(6), tmp_path / "killed"

    def wait() -> None:
        """Until it trains, then to any point of the next steps."""
        begun = len(log_of(killed)) if (killed / "log.csv").exists() else 0
        while not (killed / "log.csv").exists() or len(log_of(killed)) <= begun:
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, 1.0))

    def steps(folder: Path) -> None:
        train(folder, shards, 60, torch.float32)

    killed_ten_times(killed, steps, wait)
    assert 10 <= len(log_of(killed)) < 60
    steps(killed)
    steps(tmp_path / "whole")
    assert log_of(killed) == log_of(tmp_path / "whole")
    assert any(float(row["skipped"]) for row in log_of(killed))  # the damaged picture was met, counted and left out
