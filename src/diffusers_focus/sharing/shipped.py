"""The pipeline that comes with the package: `FocusPipeline.from_pretrained("focus-tiny")` needs no network and no clone.

A wheel holds it in `diffusers_focus/shipped/`, where setup.py puts it; a clone or an editable installation has it where it is
published, in `pipelines/`. Options were a download on first use (no demo offline, and somebody has to host it) and a package of
weights alone (a second name to install and to keep in step); 33 MB in the wheel is the simplest.
"""

from __future__ import annotations

import os
from pathlib import Path

SHIPPED = ("focus-tiny",)
_PACKAGE = Path(__file__).resolve().parents[1]
_PLACES = (_PACKAGE / "shipped", _PACKAGE.parents[1] / "pipelines")


def shipped_pipeline(name: str | os.PathLike) -> Path | None:
    """The folder of a pipeline that comes with the package; None for any other name, and where its weights were left out."""
    if os.fspath(name) not in SHIPPED:
        return None
    folders = (place / os.fspath(name) for place in _PLACES)
    return next((folder for folder in folders if (folder / "model_index.json").is_file()), None)
