"""The originals of a conversion: their weights, what their own configuration files say, and where they came from.

A source is a file or folder as it is published: one weights file, a sharded folder, or a diffusers folder whose parts lie
in subfolders. Nothing is loaded before it is read; every tensor that is read is checked for NaN. Licences are those the
publishers state, as seen in their repositories and on the Hub (of ILLUME+ the code's, its models' own pages were not seen);
the card of a converted pipeline repeats them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .families import NATIVE, Sizes, detect_family, sizes_from
from .reading import SUFFIXES, TensorFiles, TensorInfo, check_finite, open_tensors
from .table import Family

DECODER_PARTS = ("unet", "vae")
# What ILLUME+'s trainer saves of some stages beside the whole model: the projectors, and everything that was trained. Its
# own loader puts their values over the model's, in this order.
LATER_WEIGHTS = ("mm_projector.bin", "trainables.bin")
# Files of a Qwen2 tokenizer, in its older and its newer form.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_CONFIG_FILES = (
    "config.json",
    "unet/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
    "generation_config.json",
)
_SDXL = "CreativeML Open RAIL++-M (openrail++)"
_MASK2FORMER = "CC BY-NC 4.0, not for commercial use (its model zoo; the code is MIT)"
_TIMM = "as its model card says (timm/convnext_large.fb_in22k and its kin: Apache-2.0)"

# Family -> (what it is, licence).
ORIGINS: dict[str, tuple[str, str]] = {
    "dualvitok": ("ILLUME+ visual tokenizer (DualViTok)", "Apache-2.0; its vision tower is Qwen2-VL's, Apache-2.0"),
    "illume_plus": (
        "ILLUME+ language model with its vision tower",
        "Apache-2.0; Qwen2.5, of which it is made: 7B Apache-2.0, 3B Qwen Research License (not for commercial use)",
    ),
    "illume_plus_decoder": ("ILLUME+ diffusion decoder, made from SDXL", f"Apache-2.0; SDXL itself: {_SDXL}"),
    "sdxl": ("Stable Diffusion XL base", _SDXL),
    "qwen2_5": (
        "Qwen2.5",
        "3B: Qwen Research License (not for commercial use); 72B: Qwen License; other sizes: Apache-2.0",
    ),
    "qwen2_vl_vision": ("Qwen2-VL's vision tower", "Apache-2.0 (2B and 7B)"),
    "convnext_open_clip": ("ConvNeXt of an OpenCLIP model", "MIT (LAION's models)"),
    "convnext_timm": ("ConvNeXt, timm", _TIMM),
    "convnext_transformers": ("ConvNeXt, transformers", "as its model card says (facebook/convnext-*: Apache-2.0)"),
    "mask2former": ("Mask2Former", _MASK2FORMER),
    "mask2former_transformers": ("Mask2Former, transformers", _MASK2FORMER),
    "fc_clip": ("FC-CLIP", "Apache-2.0; its ConvNeXt is OpenCLIP's, MIT"),
    "hyperseg": ("HyperSeg or PSALM", f"Apache-2.0; their mask decoders began as Mask2Former's, {_MASK2FORMER}"),
}


class Source:
    """One original that is opened for reading.

    Attributes:
        role: What it is for: `tokenizer`, `language_model`, `decoder`, `hierarchical`, `mask_decoder`, `vision_tower`.
        path: The file or folder as it was given.
        infos: Shape and dtype of its tensors by name; a diffusers folder's with the subfolder in front.
        family: Its kind.
        files: Its configuration files: name in the folder -> content.
        notes: How it was read (`TensorFiles.notes`).
    """

    def __init__(self, role: str, path: str | Path, allowed: tuple[str, ...], option: str | None = None) -> None:
        """Open it.

        Args:
            role: See the attribute.
            path: A weights file or a folder.
            allowed: Names of families that can play this role.
            option: How messages call it; by default after its role.

        Raises:
            FileNotFoundError, ValueError: As `open_tensors`; or the checkpoint is of another kind than the role needs.
        """
        self.role = role
        self.path = Path(path)
        self.option = f"--{(option or role).replace('_', '-')}"
        if not self.path.exists():
            raise FileNotFoundError(f"There is no file or folder {str(path)!r}, which was given as {self.option}.")
        self.folder = self.path if self.path.is_dir() else self.path.parent
        self.files: dict[str, Any] = {
            name: _read_json(self.folder / name) for name in _CONFIG_FILES if (self.folder / name).is_file()
        }
        if "illume_plus" in allowed and "auto_map" in self.files.get("config.json", {}):
            raise ValueError(
                f"{self.option} {self.path.name} is of the kind whose code comes with it (auto_map in its config.json), as "
                'ILLUME+\'s "-hf" checkpoints are; how those name their tensors is not public. Take the other form of it, '
                "ILLUME-MLLM/illume_plus-qwen2_5-3b or -7b."
            )
        self._parts: list[TensorFiles] = []
        self._places: dict[str, tuple[TensorFiles, str]] = {}  # name -> files, name in them
        self.infos: dict[str, TensorInfo] = {}
        self.notes: list[str] = []
        if role == "decoder":
            for part in DECODER_PARTS:
                self._add(_weights_in(self.path / part), f"{part}.")
        else:
            self._add(self.path)
        if role == "language_model" and self.path.is_dir():
            for name in LATER_WEIGHTS:
                if (self.path / name).is_file():
                    self._add_later(self.path / name)
        try:
            self.family: Family = detect_family(self.infos)
        except ValueError as error:
            raise ValueError(f"{self.option} {self.path.name}: {error}") from None
        if self.family.name not in allowed:
            raise ValueError(
                f"{self.option} {self.path.name} is a checkpoint of the kind {self.family.name!r}; this needs "
                f"{' or '.join(allowed)}."
            )

    @property
    def is_native(self) -> bool:
        """Whether its names are ours already."""
        return self.family in NATIVE

    def read(self, key: str) -> torch.Tensor:
        """One tensor, on the CPU; it may be a view of the mapped file.

        Raises:
            ValueError: It holds NaN or infinite values, or the file changed.
        """
        files, name = self._places[key]
        tensor = files.read(name)
        check_finite(tensor, f"{self.role}: {key}")
        return tensor

    def sizes(self, configs: Mapping[str, Mapping[str, Any]] | None = None) -> Sizes:
        """Configurations of our components (`sizes_from`), with `configs` before what its own files say.

        Raises:
            ValueError: As `sizes_from`; tensors of ours come without their config.json.
        """
        if self.is_native:
            component = self.family.name.removeprefix("native ")
            if "config.json" not in self.files:
                raise ValueError(f"{self.option} {self.path.name} holds our {component} without its config.json.")
            own = self.files["config.json"]
            return {component: {key: value for key, value in own.items() if not key.startswith("_")}}
        return sizes_from(self.infos, {**self._own_configs(), **(configs or {})}, self.family)

    def _own_configs(self) -> dict[str, dict[str, Any]]:
        own = self.files.get("config.json", {})
        configs: dict[str, dict[str, Any]] = {}
        if self.role == "language_model":
            configs["language_model"] = own
        if "num_heads" in own.get("vision_config", {}):  # Qwen2-VL's files have it
            configs["vision_tower"] = own["vision_config"]
        if self.role == "mask_decoder" and "num_attention_heads" in own:
            configs["mask_decoder"] = {"num_heads": own["num_attention_heads"]}
        if self.role == "decoder":
            for part in DECODER_PARTS:
                if f"{part}/config.json" in self.files:
                    configs[part] = self.files[f"{part}/config.json"]
            if "scheduler/scheduler_config.json" not in self.files:
                raise ValueError(
                    f"{self.path.name} has no scheduler/scheduler_config.json, which says how the decoder was trained to "
                    "denoise. Download the whole folder."
                )
            configs["scheduler"] = self.files["scheduler/scheduler_config.json"]
        return configs

    def fingerprint(self) -> str:
        """Names, sizes and times of its files: equal as long as it is the same source."""
        lines = []
        for path in sorted(self.folder.rglob("*") if self.path.is_dir() else [self.path]):
            if path.is_file() and path.suffix in (*SUFFIXES, ".json", ".txt"):
                stat = path.stat()
                name = path.relative_to(self.folder).as_posix()
                lines.append(f"{self.role} {name} {stat.st_size} {stat.st_mtime_ns}")
        return "\n".join(lines)

    def tokenizer_files(self) -> list[Path]:
        """Its tokenizer's files.

        Raises:
            FileNotFoundError: It has none that can be loaded.
        """
        found = [self.folder / name for name in TOKENIZER_FILES if (self.folder / name).is_file()]
        names = {path.name for path in found}
        if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
            raise FileNotFoundError(
                f"{self.folder.name} has neither tokenizer.json nor vocab.json and merges.txt. The tokenizer comes with the "
                "language model; download its folder completely."
            )
        return found

    def origin(self) -> dict[str, Any]:
        """What a report and a card say about it, for JSON."""
        what, licence = ORIGINS.get(self.family.name, ("weights of this package", "as their card says"))
        return {
            "name": self.path.name,
            "family": self.family.name,
            "what": what,
            "licence": licence,
            "tensors": len(self.infos),
            "bytes": sum(info.nbytes for info in self.infos.values()),
            "notes": self.notes,
        }

    def close(self) -> None:
        """Let go of the files."""
        for part in self._parts:
            part.close()

    def _add(self, path: Path, prefix: str = "") -> None:
        """Open weights; `prefix` goes before their names."""
        files = open_tensors(path)
        self._parts.append(files)
        for key, info in files.infos.items():
            self.infos[f"{prefix}{key}"] = info
            self._places[f"{prefix}{key}"] = (files, key)
        self.notes += files.notes

    def _add_later(self, path: Path) -> None:
        """Put the tensors of a later stage over those of the whole model."""
        before = dict(self.infos)
        self._add(path)
        later = self._parts[-1].infos
        other = [key for key, info in later.items() if key in before and before[key].shape != info.shape]
        if other:
            raise ValueError(
                f"{len(other)} tensors of {path.name} in {self.path.name} have other shapes than the model's, first "
                f"{other[0]}: {later[other[0]].shape}, there {before[other[0]].shape}. They are of different models; remove the "
                "file to convert the model without it."
            )
        replaced = sum(key in before for key in later)
        self.notes.append(f"{len(later)} tensors are those of {path.name}, {replaced} of them instead of the model's")


def check_apart(output: str | Path, paths: Mapping[str, Path]) -> None:
    """Make sure that writing cannot touch a source.

    Args:
        output: The folder to be written.
        paths: Role -> file or folder that is read.

    Raises:
        ValueError: The output is a source, lies inside one or holds one.
    """
    target = Path(output).resolve()
    for role, path in paths.items():
        source = path.resolve()
        if target == source or target.is_relative_to(source) or source.is_relative_to(target):
            how = "is" if target == source else "lies inside" if target.is_relative_to(source) else "holds"
            raise ValueError(
                f"The output {str(output)!r} {how} the source {role} ({str(path)!r}). Give another folder."
            )


def _weights_in(folder: Path) -> Path:
    """The weights of one part of a diffusers folder, which often holds several copies: full safetensors first."""
    stem = "diffusion_pytorch_model"
    for middle in ("", ".fp16"):
        for suffix in (".safetensors.index", ".safetensors"):
            if suffix.endswith(".index"):
                path = folder / f"{stem}.safetensors.index{middle}.json"
            else:
                path = folder / f"{stem}{middle}{suffix}"
            if path.is_file():
                return path
    return folder


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not JSON ({error}). Download it again.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} holds {type(content).__name__}, not settings by name. Download it again.")
    return content
