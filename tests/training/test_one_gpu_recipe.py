"""The recipe that shares a device among processes: its command line, on a processor."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.training.test_processes import ENVIRONMENT, ROOT, log_of


@pytest.mark.slow
def test_processes_share_a_stage_and_its_settings(tmp_path):
    line = [sys.executable, "recipes/one_gpu.py", "--stage", "0-vae", "--output", str(tmp_path), "--processes", "2"]
    line += ["--pictures", "3", "--steps", "4", "--set", "crop=32", "--set", "log_every=1"]
    done = subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "stages" / "0-vae"
    record = json.loads((folder / "recipe.json").read_text())
    assert record["complete"] and record["step"] == 4 and record["processes"] == 2
    assert record["recipe"]["batch_size"] == 6 and record["recipe"]["options"]["crop"] == 32
    assert [int(row["step"]) for row in log_of(folder)] == [1, 2, 3, 4]
    assert (tmp_path / "components" / "vae").is_dir()

    wrong = subprocess.run(
        [*line, "--set", "crop"], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert wrong.returncode == 2 and "KEY=VALUE" in wrong.stderr
