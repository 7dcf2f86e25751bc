"""What every batch of scenes gave, kept in files: a stopped measurement goes on, and several processes share one.

Paper: FOCUS (arXiv 2506.16806), section 4. Engineering of this project, as for the benchmarks. A file holds a task's results of one
batch, complete or not there; figures come from all of them together. Results are numbers and texts, no tensors.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..sharing.files import replace_json

_OPTIONS = frozenset({"name", "options", "spec"})  # of a task; whatever else it holds are results


def results(task: Any) -> dict[str, Any]:
    """What a task has gathered so far: lists, numbers and dictionaries of them, by their names."""
    return {name: value for name, value in vars(task).items() if name not in _OPTIONS}


def add_results(task: Any, found: dict[str, Any]) -> None:
    """Give a task what another of its kind has gathered."""
    for name, value in found.items():
        setattr(task, name, _sum(getattr(task, name), value))


def _sum(one: Any, other: Any) -> Any:
    if isinstance(one, dict):
        return {key: _sum(one[key], other[key]) for key in one}
    return one + other


def fingerprint(pipeline: Any) -> str:
    """A short text that changes with a pipeline's settings and weights."""
    settings = {name: value for name, value in dict(getattr(pipeline, "config", {})).items() if name[0] != "_"}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, part in sorted(getattr(pipeline, "components", {}).items()):
        if isinstance(part, torch.nn.Module):
            sums = [float(value.double().sum()) for value in part.state_dict().values()]
            digest.update(f"{name} {sums}".encode())
    return digest.hexdigest()[:16]


class BatchRecords:
    """A folder of results, group / task / first scene and number of scenes.

    Args:
        folder: made where it is missing.
        about: whose results these are, and how they were made.

    Raises:
        ValueError: the folder holds another pipeline's, or results of other options.
    """

    def __init__(self, folder: str | os.PathLike, about: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "about.json"
        if not file.exists():
            # Another process may be here too, with the same file in hand.
            if any(one.name[0] != "." and one != file for one in self.folder.iterdir()):
                raise ValueError(f"{str(self.folder)!r} holds other files; name an empty or a new folder for records.")
            replace_json(file, about)
        known = json.loads(file.read_text(encoding="utf-8"))
        if known != about:
            differing = sorted(name for name in {*known, *about} if known.get(name) != about.get(name))
            raise ValueError(
                f"{str(self.folder)!r} holds records of another measurement ({', '.join(differing)} differ); name another folder, "
                "or remove this one to begin anew."
            )

    def _file(self, group: str, task: str, start: int, count: int) -> Path:
        return self.folder / group / task / f"{start:06d}-{count}.json"

    def read(self, group: str, task: str, start: int, count: int) -> dict[str, Any] | None:
        """A batch's `results` ("found") and seconds, None where it is still to be measured."""
        file = self._file(group, task, start, count)
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    def write(self, group: str, task: str, start: int, count: int, found: dict[str, Any], seconds: float) -> None:
        """Keep them."""
        file = self._file(group, task, start, count)
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_json(file, json.loads(json.dumps({"seconds": seconds, "found": found}, default=lambda one: one.item())))


def in_processes(work: Callable[[Any, int, int], None], arguments: Any, count: int) -> None:
    """Let `count` processes do their shares, `work(arguments, index, count)`.

    What one of them leaves undone is for the caller to do afterwards, where what stopped it is told.
    """
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=work, args=(arguments, index, count)) for index in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join()
