"""Measure a pipeline on held-out scenes and write `metrics.json`.

Paper: FOCUS (arXiv 2506.16806), section 4; the measures of the still-life world. `diffusers-focus eval` calls this.

`metrics.json` says what was measured on what: groups -> tasks -> figures, each figure with its 95% bootstrap interval
and sample count, and beside them the settings, seconds, hardware, versions and date. A figure that was not measured is
absent, never zero.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..data.world import first_held_out_seed
from ..sharing.files import replace_json
from .ablation import AblationTask
from .clicks import ClicksTask
from .clips import ClipTask
from .codes import CodesTask
from .edit_clips import EditClipTask
from .edits import EditTask
from .generation import GenerationTask, PlainGenerationTask
from .records import BatchRecords, add_results, fingerprint, results
from .tasks import (
    DEFAULT_GROUPS,
    GROUPS,
    Batch,
    ClassTask,
    PlainQuestionTask,
    QuestionTask,
    RegionTask,
    SegmentTask,
    draw_batch,
)

TASKS: dict[str, type] = {
    "referring": SegmentTask,
    "reasoning": SegmentTask,
    "generalized": SegmentTask,
    "click": RegionTask,
    "scribble": RegionTask,
    "box": RegionTask,
    "mask": RegionTask,
    "questions": QuestionTask,
    "plain_questions": PlainQuestionTask,
    "edits": EditTask,
    "ablation": AblationTask,
    "codes": CodesTask,
    "classes": ClassTask,
    "clicks": ClicksTask,
    "clips": ClipTask,
    "edit_clips": EditClipTask,
    "generation": GenerationTask,
    "plain_generation": PlainGenerationTask,
}
# Plain questions leave captions to the language model, the ablation draws every edit ninety times, codes are for looking into a
# model, a list of names may be asked one by one, clicks are ten calls a scene, a clip has the frames of eight to twelve scenes, and
# what is drawn from a description is looked for all over the picture: they run only when they are asked for.
ON_DEMAND = frozenset(
    {
        "plain_questions",
        "ablation",
        "codes",
        "classes",
        "clicks",
        "clips",
        "edit_clips",
        "generation",
        "plain_generation",
    }
)
DEFAULT_TASKS = tuple(name for name in TASKS if name not in ON_DEMAND)
DECODER_TASKS = frozenset({"edits", "ablation", "edit_clips", "generation", "plain_generation"})
BATCH_SIZE = 32
_PACKAGES = ("diffusers-focus", "diffusers", "transformers", "torch", "accelerate", "numpy")


def evaluate(
    pipeline: Any,
    count: int = 1000,
    groups: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    output: str | os.PathLike | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    loader: Callable[[str], Any] | None = None,
    edit_options: dict[str, Any] | None = None,
    progress: bool | None = None,
    resume: bool = False,
    records: str | os.PathLike | None = None,
    part: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Measure a pipeline.

    Several processes share a measurement: each calls with the same `records` and its `part`, and when they are done, one calls
    without `part`.

    Args:
        pipeline: A loaded pipeline (the calls of `FocusPipeline`), or a folder together with `loader`.
        count: Scenes in each group.
        groups: "in" (new scenes) and "held_out" (scenes with colour and shape pairs never trained), both by default; "crowded" (new
            scenes of six to eight objects, training had two to five), "192px" and "256px" (drawn larger, training had 128).
        tasks: Names of `TASKS`; by default all but those of `ON_DEMAND`. Those that draw are left out where the
            pipeline was not trained to (no `unet`, or `images_trained` is False), and an error without a `unet`.
        output: Where to write the result as JSON; the file is complete or not there, and grows group by group.
        batch_size: Scenes a call; only the ablation's shuffled masks depend on it.
        loader: Turns the folder into a pipeline; called after the arguments are found to be good.
        edit_options: Further arguments of every `edit`, such as `num_inference_steps`; the pipeline's own by default.
        progress: Show a progress bar; None does so on a terminal.
        resume: Keep what the file `output` holds of other tasks and groups of this pipeline, such as a slow task measured on fewer
            scenes. What is measured again takes the place of what was there.
        records: A folder where the results of every batch are kept: what it holds already is not measured again.
        part: (index, number of processes): measure every so-manieth batch into `records`, and stop there.

    Returns:
        What is written: see the module's docstring. Of a part only what it is a part of.

    Raises:
        ValueError: an unknown group or task, a count or batch size below 1, a part without records, or a file or records to go on
            with that are of another pipeline.
    """
    group_names = _checked(groups, GROUPS, "group", DEFAULT_GROUPS)
    task_names = _checked(tasks, TASKS, "task", DEFAULT_TASKS)
    if part is not None and (records is None or not 0 <= part[0] < part[1]):
        raise ValueError(
            f"part is {part!r}; give (index, number of processes) with the index below the number, and records."
        )
    if count < 1 or batch_size < 1:
        raise ValueError(f"count is {count} and batch_size {batch_size}; give whole numbers from 1 up.")
    name = getattr(pipeline, "name_or_path", None) or type(pipeline).__name__
    name = Path(name).name if os.path.isdir(name) else name  # where a folder lies is nobody's business
    if isinstance(pipeline, (str, os.PathLike)):
        if loader is None:
            raise TypeError(
                f"Cannot load {os.fspath(pipeline)!r} here; pass a loaded pipeline, such as "
                "FocusPipeline.from_pretrained(folder), or a loader."
            )
        name = Path(pipeline).name
        pipeline = loader(os.fspath(pipeline))
    has_unet = getattr(pipeline, "unet", True) is not None
    draws = has_unet and getattr(getattr(pipeline, "config", None), "images_trained", True)
    if not has_unet and tasks is not None and DECODER_TASKS & set(task_names):
        raise ValueError(
            f"This pipeline has no unet, so it cannot be measured on {', '.join(sorted(DECODER_TASKS))}; choose "
            f"from {', '.join(task for task in TASKS if task not in DECODER_TASKS)}."
        )
    if not draws and tasks is None:
        task_names = tuple(task for task in task_names if task not in DECODER_TASKS)

    result: dict[str, Any] = {
        "pipeline": str(name),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "settings": {
            "scenes_per_group": count,
            "first_seed": first_held_out_seed,
            "batch_size": batch_size,
            "edit_options": edit_options or {},
        },
        "hardware": hardware(pipeline),
        "versions": versions(),
        "seconds": 0.0,
        "groups": {},
    }
    kept = None
    if records is not None:
        made = {"pipeline": str(name), "model": fingerprint(pipeline), "versions": result["versions"]}
        kept = BatchRecords(
            records, {**made, **{key: value for key, value in result["settings"].items() if key != "scenes_per_group"}}
        )
    if part is not None:
        for group in group_names:
            _measure(pipeline, group, count, task_names, batch_size, edit_options, progress, kept, part)
        return {"pipeline": str(name), "part": list(part)}
    earlier = _earlier(output, str(name)) if resume else {}
    if earlier:
        result |= {"settings": earlier["settings"], "groups": earlier["groups"]}
    for group in group_names:
        found = _measure(pipeline, group, count, task_names, batch_size, edit_options, progress, kept)
        known = result["groups"].get(group, {})
        result["groups"][group] = {**known, **found, "scenes": max(known.get("scenes", 0), count)}
        result["seconds"] = round(sum(_seconds(one) for one in result["groups"].values()), 1)
        if output is not None:
            replace_json(Path(output), result)
    return result


def _seconds(group: dict[str, Any]) -> float:
    return sum(task["seconds"] for task in group.values() if isinstance(task, dict))


def _earlier(output: str | os.PathLike | None, name: str) -> dict[str, Any]:
    """What a file holds of a pipeline already; nothing where there is none yet."""
    if output is None or not Path(output).exists():
        return {}
    earlier = json.loads(Path(output).read_text(encoding="utf-8"))
    if earlier.get("pipeline") != name or not {"settings", "groups"} <= set(earlier):
        raise ValueError(
            f"{os.fspath(output)} holds no figures of {name} (but of {earlier.get('pipeline')!r}); name another file, or begin "
            "anew without resume."
        )
    return earlier


def _measure(
    pipeline: Any,
    group: str,
    count: int,
    names: Sequence[str],
    batch_size: int,
    edit_options: dict[str, Any] | None,
    progress: bool | None,
    kept: BatchRecords | None = None,
    part: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Figures and seconds of every task on one group of scenes; of a part nothing, it is all in the records."""
    import torch

    running = {name: _task(name, edit_options) for name in names}
    seconds = dict.fromkeys(names, 0.0)
    hidden = not (sys.stderr.isatty() if progress is None else progress)
    with torch.no_grad(), tqdm(total=count * len(names), desc=group, unit="scene", disable=hidden) as bar:
        for number, start in enumerate(range(0, count, batch_size)):
            batch, scenes = None, min(batch_size, count - start)
            for name, task in running.items():
                bar.set_postfix_str(name)
                here = (group, name, start, scenes)
                done = kept.read(*here) if kept is not None else None
                if done is None and (part is None or number % part[1] == part[0]):
                    batch = draw_batch(group, start, scenes) if batch is None else batch
                    done = _run(_task(name, edit_options), pipeline, batch)
                    if kept is not None:
                        kept.write(*here, **done)
                if done is not None:
                    add_results(task, done["found"])
                    seconds[name] += done["seconds"]
                bar.update(scenes)
    if part is not None:
        return {}
    found: dict[str, Any] = {"scenes": count}
    for name, task in running.items():
        if getattr(task, "records", True):  # a handful of scenes may hold no sample of a task
            found[name] = {"seconds": round(seconds[name], 1), **task.figures()}
    return found


def _task(name: str, edit_options: dict[str, Any] | None) -> Any:
    return TASKS[name](name, edit_options) if name in DECODER_TASKS else TASKS[name](name)


def _run(task: Any, pipeline: Any, batch: Batch) -> dict[str, Any]:
    """Results and seconds of a fresh task on one batch."""
    began = time.perf_counter()
    task.run(pipeline, batch)
    return {"found": results(task), "seconds": time.perf_counter() - began}


def _checked(
    chosen: Sequence[str] | None, allowed: dict[str, Any], what: str, default: tuple[str, ...]
) -> tuple[str, ...]:
    if chosen is None:
        return default
    if isinstance(chosen, str):
        chosen = [chosen]
    unknown = [name for name in chosen if name not in allowed]
    if unknown or not chosen:
        raise ValueError(
            f"Unknown {what} {', '.join(map(repr, unknown)) or '(none)'}; choose from {', '.join(allowed)}."
        )
    return tuple(dict.fromkeys(chosen))


def hardware(pipeline: Any = None) -> dict[str, Any]:
    """The machine: processor, cores, threads of torch, and the accelerator the pipeline is on, if any."""
    import torch

    found = {"processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    device = getattr(pipeline, "device", None)
    device = torch.device(device) if device is not None else torch.device("cpu")
    found["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Python and the packages that matter, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
