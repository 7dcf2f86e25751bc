"""The public door: cheap to open, and every name behind it exists."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

import diffusers_focus

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "numpy", "PIL")


def run(code: str, root) -> str:
    """The standard output of `code` in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], cwd=root / "src", capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["diffusers_focus", "diffusers_focus.cli"])
def test_import_is_fast_and_brings_in_nothing_heavy(module, root):
    code = (
        "import sys, time; start = time.perf_counter(); "
        f"import {module}; took = time.perf_counter() - start; "
        f"print(took, *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    results = [run(code, root).split() for _ in range(3)]
    assert all(len(result) == 1 for result in results), f"import {module} brought in {results[0][1:]}"
    assert min(float(result[0]) for result in results) < 0.3


def test_help_does_not_import_torch(root):
    code = (
        "import sys\nfrom diffusers_focus.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print('torch' in sys.modules or 'diffusers' in sys.modules)"
    )
    assert run(code, root).splitlines()[-1] == "False"


@pytest.mark.parametrize("name", sorted(diffusers_focus._HOMES))
def test_public_name_comes_from_the_module_that_defines_it(name):
    value = getattr(diffusers_focus, name)
    assert value.__name__ == name
    assert value.__module__ == f"diffusers_focus.{diffusers_focus._HOMES[name]}"


def test_door_tells_type_checkers_the_same_as_the_interpreter(root):
    tree = ast.parse((root / "src" / "diffusers_focus" / "__init__.py").read_text(encoding="utf-8"))
    told = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    assert told == diffusers_focus._HOMES
    assert set(diffusers_focus.__all__) == {*told, "__version__"}
    assert set(diffusers_focus.__all__) <= set(dir(diffusers_focus))


def test_version_is_the_one_in_setup_cfg(root):
    from configparser import ConfigParser

    facts = ConfigParser()
    facts.read(root / "setup.cfg", encoding="utf-8")
    assert diffusers_focus.__version__ == facts["metadata"]["version"]


def test_unknown_name_says_what_there_is():
    with pytest.raises(AttributeError, match="FocusPipelin'; it has .*FocusPipeline"):
        _ = diffusers_focus.FocusPipelin
