"""recipes/second_run.py: two logs of a stage, compared where both have been."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.training.test_processes import ENVIRONMENT, ROOT

pytestmark = pytest.mark.whole


def call(*words: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "recipes/second_run.py", *words]
    return subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)


def test_means_are_of_the_last_steps_that_both_have(tmp_path):
    record = (ROOT / "recipes" / "focus-tiny" / "0-vae" / "log.csv").read_text().splitlines()
    names = record[0].split(",")
    rows = [dict(zip(names, line.split(","), strict=True)) for line in record[1:10]]  # to step 180
    loss = [float(row["loss"]) for row in rows]
    for row in rows:
        row["loss"] = str(float(row["loss"]) + 1)
    del rows[-1]["psnr"]  # a run that was cut while it wrote
    lines = [",".join(row.get(name, "") for name in names) for row in rows]
    folder = tmp_path / "stages" / "0-vae"
    folder.mkdir(parents=True)
    (folder / "log.csv").write_text("\n".join([record[0], *lines]) + "\n")
    done = call("--runs", str(tmp_path), "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())["stages"]
    assert list(found) == ["0-vae"]
    stage = found["0-vae"]
    assert (stage["step"], stage["steps"], stage["rows"]) == (180, 3200, 5)
    mean = sum(loss[-5:]) / 5
    assert stage["figures"]["loss"]["record"] == pytest.approx(mean)
    assert stage["figures"]["loss"]["second"] == pytest.approx(mean + 1)
    assert stage["figures"]["psnr"]["second"] == pytest.approx(stage["figures"]["psnr"]["record"])
    assert "| 0-vae | 180 of 3200 | loss " in done.stdout and stage["changed"] == []


def test_a_folder_without_logs_is_told(tmp_path):
    done = call("--runs", str(tmp_path))
    assert done.returncode == 2 and "no log of a stage" in done.stderr
