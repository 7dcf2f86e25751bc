"""recipes/focus_tiny.py, a stage of it: what is not trained to its end is not published."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.training.test_processes import ENVIRONMENT, ROOT

pytestmark = pytest.mark.whole


def test_some_stages_alone_are_not_published(tmp_path):
    line = [sys.executable, "recipes/focus_tiny.py", "--runs", str(tmp_path), "--rehearse", "1", "--stages", "0-vae"]
    done = subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "stages" / "0-vae" / "recipe.json").read_text())["complete"]
    assert "nothing is published yet" in done.stdout and "0-features" in done.stdout and "0-vae" not in done.stdout
    assert not (tmp_path / "pipeline").exists() and not (tmp_path / "records").exists()
