"""The floor plan: who may import whom, how large a room may grow, what stays outside."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

MAX_LINES = 700
OUTER_ROOMS = {"tests", "examples", "recipes", "benchmarks", "conversion", "integrations"}


def sources(root):
    """(path, text) of every Python file of the package."""
    files = sorted((root / "src" / "diffusers_focus").rglob("*.py"))
    assert files
    return [(path.relative_to(root), path.read_text(encoding="utf-8")) for path in files]


def imported(text: str) -> set[str]:
    """The top-level packages a file imports, wherever in the file it does."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_imports_point_down(root):
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    env = {**os.environ, "PYTHONPATH": str(root / "src")}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_imports_torchvision_or_an_outer_room(root):
    forbidden = OUTER_ROOMS | {"torchvision", "einops"}
    found = {str(path): names for path, text in sources(root) if (names := imported(text) & forbidden)}
    assert found == {}


def test_no_file_outgrows_its_room(root):
    long = {str(path): lines for path, text in sources(root) if (lines := len(text.splitlines())) > MAX_LINES}
    assert long == {}


def test_every_file_says_what_it_is(root):
    silent = [str(path) for path, text in sources(root) if text.strip() and not ast.get_docstring(ast.parse(text))]
    assert silent == []


def test_facts_live_in_setup_cfg_alone(root):
    # A [project] table in pyproject.toml beside setup.cfg's [metadata] breaks the build.
    lines = (root / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if line.startswith("[project")]
