"""What is shipped: the wheel holds the whole package and works far away from the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path


def test_wheel_is_complete_and_imports_outside_the_repository(root, tmp_path):
    # Built from a copy: setuptools leaves build/ and *.egg-info beside what it builds.
    copy = tmp_path / "copy"
    shutil.copytree(root / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("setup.cfg", "setup.py", "MANIFEST.in", "pyproject.toml", "LICENSE", "NOTICE", "README.md"):
        shutil.copy(root / name, copy / name)
    shutil.copytree(root / "pipelines" / "focus-tiny", copy / "pipelines" / "focus-tiny")
    code = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    site, built = tmp_path / "site", tmp_path / done.stdout.split()[-1]
    assert built.stat().st_size < 60e6
    with zipfile.ZipFile(built) as wheel:
        wheel.extractall(site)
    shipped = {path.relative_to(site) for path in site.rglob("*") if path.is_file()}
    wanted = {path.relative_to(copy / "src") for path in (copy / "src" / "diffusers_focus").rglob("*.py")}
    assert wanted and wanted <= shipped
    names = {path.name for path in shipped}
    assert {"py.typed", "LICENSE", "NOTICE", "entry_points.txt"} <= names
    assert {path.parts[0].split("-")[0] for path in shipped} == {"diffusers_focus"}

    published = {path.relative_to(copy / "pipelines") for path in (copy / "pipelines").rglob("*") if path.is_file()}
    assert {Path("diffusers_focus", "shipped", path) for path in published} <= shipped

    code = "import diffusers_focus as d; from diffusers_focus.cli import main; print(d.__file__); main(['--version'])"
    code += "; main(['info'])"
    env = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    where, version, *lines = out.stdout.splitlines()
    assert where.startswith(str(site))
    assert version == "diffusers-focus 0.1.0"
    # The default pipeline is the wheel's own.
    assert f"{site / 'diffusers_focus' / 'shipped' / 'focus-tiny'}: FocusPipeline" in lines
