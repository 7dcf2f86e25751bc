"""Gives every test marked `golden(family, items)` each golden of that family in the folder of `--goldens`.

`items` is a function of the golden that names its cases; such a test takes `golden` and `case`, any other `golden`.
"""

from __future__ import annotations

import pytest

from tests.checkpoints.goldens import Golden, find_goldens


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is None:
        return
    family, items = marker.args[0], marker.args[1] if len(marker.args) > 1 else None
    folder = metafunc.config.option.goldens
    found: list[Golden] = find_goldens(folder)[family]
    if items is None:
        names, rows = ["golden"], [pytest.param(golden, id=golden.name) for golden in found]
    else:
        names = ["golden", "case"]
        rows = [pytest.param(golden, one, id=f"{golden.name}-{one}") for golden in found for one in items(golden)]
    if not found:
        missing = pytest.mark.skip(reason=f"no golden of the family {family} in {folder}")
        rows = [pytest.param(*[None] * len(names), marks=missing, id=f"no {family}")]
    metafunc.parametrize(names, rows)
