"""A pipeline within ComfyUI: where it is found, how it is loaded, where its weights are, progress and interruption."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management as memory
import folder_paths
import torch
from comfy.utils import ProgressBar

from .schema import NO_FOLDER, OFFLOAD_AFTER, OFFLOAD_PARTS
from .tensors import InputError

FOLDERS = ("focus", "diffusers")  # under ComfyUI's models folder, or wherever extra_model_paths.yaml says


def register_folder() -> None:
    """Let ComfyUI know of models/focus."""
    folder_paths.add_model_folder_path("focus", os.path.join(folder_paths.models_dir, "focus"))


def find_pipelines() -> dict[str, Path]:
    """FOCUS pipelines by their path below models/focus or models/diffusers."""
    found: dict[str, Path] = {}
    for kind in FOLDERS:
        for top in folder_paths.get_folder_paths(kind):
            for folder, inner, files in os.walk(top, followlinks=True):
                if "model_index.json" in files:
                    inner.clear()  # what lies deeper are the pipeline's parts
                    if pipeline_class(Path(folder)) is not None:
                        found.setdefault(os.path.relpath(folder, top), Path(folder))
    return dict(sorted(found.items()))


def pipeline_class(folder: Path) -> str | None:
    """The name of a FOCUS pipeline class in a folder's index; None for other pipelines and damaged files."""
    try:
        name = json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError):
        return None
    name = name[-1] if isinstance(name, list) and name else name
    return name if isinstance(name, str) and name.startswith("Focus") and name.endswith("Pipeline") else None


def load(folder: str, hub_id: str, controlnet: str, dtype: str, offload: str) -> LoadedPipeline:
    """Load a pipeline onto the CPU, or ready to go part by part.

    Raises:
        ValueError: a folder, repository or file that is not there or cannot be read; the message names the input.
    """
    import diffusers_focus

    device = memory.get_torch_device()
    if hub_id.strip():
        name, source, cls = "hub_id", hub_id.strip(), diffusers_focus.FocusPipeline
    else:
        known = find_pipelines()
        if folder not in known:
            places = ", ".join(path for kind in FOLDERS for path in folder_paths.get_folder_paths(kind))
            raise InputError(
                "folder",
                f"there is no FOCUS pipeline {folder!r}; found {', '.join(known) or 'none'} in {places}. Put the folder that "
                "holds its model_index.json there, or write a Hub id.",
            )
        name, source, cls = "folder", known[folder], getattr(diffusers_focus, str(pipeline_class(known[folder])))
    parts: dict[str, Any] = {}
    if controlnet.strip():
        from diffusers.models.controlnets.controlnet import ControlNetModel

        with _naming("controlnet"):
            parts["controlnet"] = ControlNetModel.from_pretrained(controlnet.strip(), dtype=_dtype(dtype, device))
    with _naming(name):
        pipe = cls.from_pretrained(source, dtype=_dtype(dtype, device), **parts)
    pipe.set_progress_bar_config(disable=True)  # ComfyUI shows its own
    if offload == OFFLOAD_PARTS and device.type != "cpu":
        pipe.enable_model_cpu_offload(device=device)
    return LoadedPipeline(pipe, offload)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """What cannot be loaded is told of the input that asked for it."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise InputError(name, str(error)) from error


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name != "auto":
        return getattr(torch, name)
    if memory.should_use_bf16(device):
        return torch.bfloat16
    return torch.float16 if memory.should_use_fp16(device) else torch.float32


@dataclass
class LoadedPipeline:
    """What runs along the link from Load FOCUS."""

    pipe: Any
    offload: str

    @contextmanager
    def at_work(self) -> Iterator[Any]:
        """The pipeline on ComfyUI's device, with progress and interruption; afterwards the memory is ComfyUI's again.

        Raises:
            comfy.model_management.InterruptProcessingException: the user pressed cancel.
        """
        device = memory.get_torch_device()
        if self.offload == OFFLOAD_PARTS:
            needed = max(sizes(self.pipe))
        else:
            needed = sum(sizes(self.pipe)) if self.pipe.device != device else 0
        if device.type != "cpu":
            memory.free_memory(needed + memory.minimum_inference_memory(), device)
            if self.offload != OFFLOAD_PARTS:
                self.pipe.to(device)
        try:
            with self.pipe.watched(_watcher()):
                yield self.pipe
        finally:
            if device.type != "cpu" and self.offload == OFFLOAD_AFTER:
                self.pipe.to("cpu", silence_dtype_warnings=True)
            memory.soft_empty_cache()


def _watcher() -> Any:
    bar = ProgressBar(1)

    def watch(done: int, total: int) -> None:
        memory.throw_exception_if_processing_interrupted()
        if total:
            bar.update_absolute(done, total)

    return watch


def sizes(pipe: Any) -> list[int]:
    """Bytes of each component's weights."""
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return [sum(one.numel() * one.element_size() for one in part.parameters()) for part in modules]


def fingerprint(folder: str, hub_id: str) -> str:
    """Changes when the pipeline in a folder is another one than before."""
    path = None if hub_id.strip() else find_pipelines().get(folder)
    return hub_id if path is None else f"{path} {(path / 'model_index.json').stat().st_mtime_ns}"


def folder_options() -> list[str]:
    """What the node offers."""
    return list(find_pipelines()) or [NO_FOLDER]
