"""Loading pipelines, from folders, from the Hub and from one another, and their place among diffusers' own.

diffusers 0.42 refuses components of third-party modules that come from a repository (`download` finds no such module),
knows no pipeline class but its own, and says of most failures that the model is "not fully cached". docs/design.md
("Loading from the Hub") has the ways around that were tried.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.utils import logging as transformers_logging

from ..models.mask_conditioner import FocusMaskConditioner
from ..models.mask_decoder import FocusMaskDecoder
from ..models.vision_encoder import FocusVisionEncoder
from ..models.visual_tokenizer import FocusVisualTokenizer
from ..processing.images import FocusImageProcessor
from ..sharing.publish import HUB_ERRORS
from ..sharing.shipped import shipped_pipeline

COMPONENTS: dict[str, type] = {
    "vision_encoder": FocusVisionEncoder,
    "visual_tokenizer": FocusVisualTokenizer,
    "mask_decoder": FocusMaskDecoder,
    "mask_conditioner": FocusMaskConditioner,
    "image_processor": FocusImageProcessor,
}
INDEX = "model_index.json"
_HUB = ("revision", "cache_dir", "token", "local_files_only", "force_download")
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(?:\.(?P<variant>[\w-]+?))?(?:-(?P<part>\d{5})-of-(?P<parts>\d{5}))?\.(?:safetensors|bin|flashpack)"
)


def register_pipeline(cls: Any, inpaints_as: str | None = None) -> None:
    """Make diffusers know a pipeline class and the modules of our components.

    Only names that are ours are added: the class on `diffusers` (where `DiffusionPipeline.from_pretrained` looks up the
    index's `_class_name`), the components' modules on `diffusers.pipelines` under their full names (where it looks up a
    component's library before it refuses it), and a row of `AutoPipelineForInpainting`.

    Args:
        cls: The pipeline class.
        inpaints_as: Its name among the pipelines that edit inside a mask; None for one that does not.
    """
    host = importlib.import_module("diffusers.pipelines")
    logging.getLogger("diffusers.pipelines.pipeline_loading_utils").addFilter(_is_news)
    for component in COMPONENTS.values():
        setattr(host, component.__module__, sys.modules[component.__module__])
    setattr(diffusers, cls.__name__, cls)
    if inpaints_as is not None:
        auto = import_quietly("diffusers.pipelines.auto_pipeline")  # and with it pipelines of all families (0.5 s)
        auto.AUTO_INPAINT_PIPELINES_MAPPING[inpaints_as] = cls


def import_quietly(name: str) -> Any:
    """A module of diffusers that imports image processors of transformers, which complain without torchvision."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        return importlib.import_module(name)
    finally:
        transformers_logging.set_verbosity(verbosity)


def _is_news(record: logging.LogRecord) -> bool:
    """Not that a passed component of ours is "non-standard" for a registered module, which is said with all its layers."""
    return not record.getMessage().startswith("You have passed a non-standard module Focus")


class FocusLoadingMixin:
    """`from_pretrained`, `download` and `from_pipe` of the pipelines; stands before `DiffusionPipeline`."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """Load a pipeline from a folder or from the Hub; no `trust_remote_code` is needed.

        diffusers' own, with `subfolder` added, and in float32 unless `dtype` (or `torch_dtype`) says otherwise: transformers
        loads a language model in the dtype it was saved in, diffusers everything else in float32, and published weights
        are float16, so the parts would differ.

        Args:
            pretrained_model_name_or_path: a folder, "name/repository", or "focus-tiny", which comes with the package.
            kwargs: what diffusers takes: `dtype` (one, or a dictionary of component -> dtype with an entry "default"),
                `variant`, `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, `device_map`,
                `quantization_config`, ...; components to use instead of the stored ones (which are then not downloaded) and
                settings of the pipeline. `subfolder` is where in the folder or repository the pipeline lies.

        Raises:
            OSError: no such folder, repository or revision, no permission, or files are missing.
            ValueError: there are no weights of this variant, or components do not fit.
            TypeError: a component that was passed is none.
        """
        subfolder = kwargs.pop("subfolder", None)
        if kwargs.get("dtype") is None and kwargs.get("torch_dtype") is None:
            kwargs["dtype"] = torch.float32
        source = os.fspath(pretrained_model_name_or_path)
        if not os.path.isdir(source):
            source = os.fspath(shipped_pipeline(source) or source)
        if subfolder:
            source = cls._subfolder(source, subfolder, kwargs)
        if os.path.isdir(source):
            check_files(source, _listing(source), cls._wanted(source, kwargs), kwargs.get("variant"))
        for name in COMPONENTS.keys() & kwargs.keys():
            component = kwargs[name]
            if component is not None and not isinstance(component, (torch.nn.Module, FocusImageProcessor)):
                raise TypeError(
                    f"{name} must be a {COMPONENTS[name].__name__}, got {type(component).__name__}. Load it first: "
                    f'{COMPONENTS[name].__name__}.from_pretrained(..., subfolder="{name}").'
                )
        return super().from_pretrained(source, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str | os.PathLike:
        """Bring a pipeline's files into the cache; diffusers' own, which says what is wrong.

        Raises:
            OSError: no such repository or revision, no permission, nothing in the cache, or files are missing.
            ValueError: there are no weights of this variant.
        """
        name, variant, trouble = pretrained_model_name, kwargs.get("variant"), None
        try:
            if not kwargs.get("local_files_only"):
                files = _repository_files(name, kwargs)
                index = hf_hub_download(name, INDEX, **{key: kwargs[key] for key in _HUB if key in kwargs})
                check_files(name, files, cls._wanted(os.path.dirname(index), kwargs), variant)
        except RemoteEntryNotFoundError as error:
            raise OSError(
                f"{name!r} has no {INDEX}: it is no pipeline (a single model is loaded by its own class), lies in a subfolder "
                "(pass subfolder=...), or its upload has not been finished."
            ) from error
        except HUB_ERRORS as error:
            trouble = error
            if not isinstance(error, HfHubHTTPError):
                kwargs["local_files_only"] = True  # no connection: the cache may do
        try:
            folder = super().download(name, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        except OSError as error:
            if trouble is None and not isinstance(error, FileNotFoundError):
                raise
            raise OSError(_explanation(name, kwargs.get("revision"), trouble or error)) from (trouble or error)
        check_files(name, _listing(folder), cls._wanted(folder, kwargs), variant)
        return folder

    @classmethod
    def _wanted(cls, folder: str | os.PathLike, kwargs: Mapping[str, Any]) -> list[str]:
        """Components that this class loads from a folder with an index, less those that are passed."""
        if not (Path(folder) / INDEX).is_file():
            raise OSError(
                f"{str(folder)!r} has no {INDEX}, so it is no pipeline's folder. A single model is loaded by its own class, such "
                "as FocusMaskDecoder.from_pretrained(folder)."
            )
        index = json.loads((Path(folder) / INDEX).read_text(encoding="utf-8"))
        names, _ = cls._get_signature_keys(cls)  # pyright: ignore[reportAttributeAccessIssue]
        there = [name for name in names if (index.get(name) or [None])[0] is not None]
        optional = cls._optional_components  # pyright: ignore[reportAttributeAccessIssue]
        missing = [name for name in names if name not in (*there, *kwargs, *optional)]
        if missing:
            raise ValueError(
                f"The pipeline in {str(folder)!r} is a {index.get('_class_name')} without {', '.join(missing)}, which "
                f"{cls.__name__} needs. Load it with its own class, or pass what is missing: "
                f"from_pretrained(..., {missing[0]}=...)."
            )
        return [name for name in there if name not in kwargs]

    @classmethod
    def _subfolder(cls, source: str, subfolder: str, kwargs: dict[str, Any]) -> str:
        """The folder of a pipeline that lies below a folder or repository, downloaded if need be."""
        if os.path.isdir(source):
            return os.path.join(source, subfolder)
        options = {key: kwargs.pop(key) for key in _HUB if key in kwargs}
        prefix, variant = f"{subfolder.strip('/')}/", kwargs.get("variant")
        try:
            if not options.get("local_files_only"):
                try:
                    there = _repository_files(source, options)
                except HUB_ERRORS as error:
                    if isinstance(error, HfHubHTTPError):
                        raise
                    options["local_files_only"] = True  # no connection: the cache may do
                else:
                    files = [file[len(prefix) :] for file in there if file.startswith(prefix)]
                    wanted = cls._wanted(os.path.dirname(hf_hub_download(source, prefix + INDEX, **options)), kwargs)
                    check_files(f"{source}/{subfolder}", files, wanted, variant)
                    chosen = [prefix + file for file in files if _is_needed(file, files, wanted, variant)]
                    snapshot_download(source, allow_patterns=chosen, **options)
            return os.path.dirname(hf_hub_download(source, prefix + INDEX, **options))
        except RemoteEntryNotFoundError as error:
            raise OSError(f"{source!r} has no pipeline in {subfolder!r}: there is no {prefix}{INDEX}.") from error
        except (*HUB_ERRORS, FileNotFoundError) as error:
            raise OSError(_explanation(source, options.get("revision"), error)) from error

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """Make a pipeline of this class that shares the components of another one.

        Any pipeline will do: one of ours, or one of SDXL's, whose VAE and scheduler (and UNet, if it reads visual tokens) are
        taken. Unlike in diffusers, nothing is cast unless `dtype` asks for it: the components belong to both.

        Args:
            pipeline: the pipeline to share with.
            kwargs: components and settings to use instead; `dtype` casts all components, of both pipelines.

        Raises:
            ValueError: components are missing or do not fit; the message names them.
        """
        if "custom_pipeline" in kwargs:
            return super().from_pipe(pipeline, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        dtype = kwargs.pop("torch_dtype", None)
        dtype = kwargs.pop("dtype", dtype)
        names, settings = cls._get_signature_keys(cls)  # pyright: ignore[reportAttributeAccessIssue]
        shared = {name: part for name, part in pipeline.components.items() if name in names and part is not None}
        unet = shared.get("unet")
        if "unet" not in kwargs and unet is not None and unet.config.in_channels == unet.config.out_channels:
            del shared["unet"]  # reads latents alone: there is no room in it for visual tokens
        parts = {name: kwargs.pop(name, shared.get(name)) for name in names}
        missing = [name for name in names if parts[name] is None and name not in cls._optional_components]  # pyright: ignore[reportAttributeAccessIssue]
        if missing:
            raise ValueError(
                f"{cls.__name__} needs {', '.join(missing)}, which {type(pipeline).__name__} does not have (or not as FOCUS needs "
                f"it). Pass what is missing: {cls.__name__}.from_pipe(pipe, {', '.join(f'{name}=...' for name in missing)})."
            )
        # Settings that a pipeline in between had no use for are kept under a name with an underscore, as diffusers does.
        config = dict(pipeline.config)
        known = {name[1:]: value for name, value in config.items() if name.startswith("_")}
        known |= {name: value for name, value in config.items() if not name.startswith("_")}
        chosen = {name: known[name] for name in settings if name in known} | kwargs
        new = cls(**parts, **chosen)
        used = {*parts, *chosen, "class_name", "diffusers_version", "name_or_path"}
        new.register_to_config(**{f"_{name}": value for name, value in known.items() if name not in used})
        if config.get("_name_or_path") is not None:
            new.register_to_config(_name_or_path=config["_name_or_path"])
        return new if dtype is None else new.to(dtype=dtype)


# --- files ---------------------------------------------------------------------------------------------------------------


def check_files(source: str, files: Iterable[str], components: Iterable[str], variant: str | None = None) -> None:
    """Raise where a pipeline's folder or repository lacks what loading needs, before anything large is downloaded or read.

    Args:
        source: The folder or repository, for the message.
        files: Paths in it.
        components: Names of the components that will be loaded.
        variant: Of the weights; components that do not have it are loaded from their plain weights.

    Raises:
        OSError: Files are missing; the message names them.
        ValueError: No component has weights of this variant, or some have none but of other variants.
    """
    inside: dict[str, set[str]] = {name: set() for name in components}
    for file in files:
        folder, _, name = file.rpartition("/")
        if folder in inside:
            inside[folder].add(name)
    missing, without, variants = [], [], set()
    for component, names in inside.items():
        sets = _weight_sets(names)
        variants |= {name for name in sets if name is not None}
        if not any(name.endswith(".json") for name in names):
            missing.append(f"{component}/ (nothing of it)" if not names else f"{component}/config.json")
        elif "config.json" in names and not sets:
            missing.append(f"{component}/ (its weights)")
        elif sets:
            found = sets[variant] if variant in sets else sets.get(None)
            if found is None:
                without.append(component)
            else:
                missing += [f"{component}/ (part {part} of its weights)" for part in found]
    if variant is not None and variant not in variants:
        there = (
            f"There is {', '.join(sorted(variants))}."
            if variants
            else "There are plain weights alone; leave variant out."
        )
        # The first words are diffusers' own, which others look for.
        raise ValueError(
            f"You are trying to load the model files of the `variant={variant}`, which {source!r} does not have. {there}"
        )
    if without:
        options = " or ".join(f"variant={name!r}" for name in sorted(variants))
        raise ValueError(f"{source!r} has weights of {', '.join(without)} as a variant alone: pass {options}.")
    if missing:
        more = f" and {len(missing) - 3} more" if missing[3:] else ""
        raise OSError(
            f"{source!r} is not complete, missing: {', '.join(missing[:3])}{more}. "
            "If it is being uploaded, wait until that is done, or repeat it; components can also be passed: "
            f"from_pretrained(..., {missing[0].partition('/')[0]}=...)."
        )


def _weight_sets(names: Iterable[str]) -> dict[str | None, list[str]]:
    """Variant (None for plain weights) -> shards of it that are missing."""
    there: dict[str | None, set[str]] = {}
    parts: dict[str | None, int] = {}
    for name in names:
        found = _WEIGHTS.fullmatch(name)
        if found:
            there.setdefault(found["variant"], set()).add(found["part"] or "")
            if found["parts"]:
                parts[found["variant"]] = int(found["parts"])
    return {
        variant: []
        if "" in have
        else [f"{part} of {parts[variant]}" for part in range(1, parts[variant] + 1) if f"{part:05d}" not in have]
        for variant, have in there.items()
    }


def _is_needed(file: str, files: Iterable[str], components: Iterable[str], variant: str | None) -> bool:
    """Whether a file of a pipeline is downloaded: the index, and of its components all but code and other weights."""
    folder, _, name = file.rpartition("/")
    if not folder:
        return name == INDEX
    if folder not in components or name.endswith((".py", ".bin", ".msgpack", ".onnx", ".pb")):
        return False
    found = _WEIGHTS.fullmatch(name)
    if not found:
        return True
    sets = _weight_sets(one.rpartition("/")[2] for one in files if one.startswith(f"{folder}/"))
    return found["variant"] == (variant if variant in sets else None)


def _listing(folder: str | os.PathLike) -> list[str]:
    """Paths of the files in a pipeline's folder."""
    return [path.relative_to(folder).as_posix() for path in Path(folder).glob("*/*")]


def _repository_files(name: str, options: Mapping[str, Any]) -> list[str]:
    """Paths of the files in a repository; raises what huggingface_hub raises."""
    info = HfApi(token=options.get("token")).model_info(name, revision=options.get("revision"))
    return [sibling.rfilename for sibling in info.siblings or []]


def _explanation(name: str, revision: str | None, error: Exception) -> str:
    """What is wrong with a repository, and what to do."""
    if isinstance(error, GatedRepoError):
        return f"{name!r} is gated. Ask for access on its page, then log in with `hf auth login` or pass token=..."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{name!r} is neither a folder here nor a repository on the Hub that you may read. Check the name; for a private one "
            "log in with `hf auth login` or pass token=..."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{name!r} has no revision {revision!r}. Pass a branch, a tag or a commit that it has, or leave revision out."
    if isinstance(error, HfHubHTTPError):
        return f"{name!r} could not be loaded from the Hub: {error}"
    return (
        f"The Hub could not be reached, and {name!r} is not completely in the cache. Load it once while connected (with the same "
        "revision and variant), or pass the folder."
    )
