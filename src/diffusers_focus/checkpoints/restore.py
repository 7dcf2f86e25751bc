"""A pipeline folder -> original checkpoints: the reverse of `convert.py`, with the same key tables turned round.

What a conversion wrote comes back bit by bit, names included; its report says which family each part had, and which sizes
(so that widened inputs and enlarged tables are cut back). A pipeline without that report is written as ILLUME+'s three
checkpoints, in the sizes it has. Parts the originals lack (queries, masks) are left out and reported.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .convert import REPORT
from .families import FAMILIES
from .layout import weights_name
from .plan import Plan, apply_step, check_duplicates, make_reverse_plan
from .reading import TensorFiles, TensorInfo, check_finite, open_tensors
from .report import report, report_text
from .sources import DECODER_PARTS, TOKENIZER_FILES, check_apart
from .writing import SHARD_SIZE, FolderWriter

# Role -> family, where no report says it.
DEFAULTS = {"tokenizer": "dualvitok", "language_model": "illume_plus", "decoder": "illume_plus_decoder"}
_BY_NAME = {family.name: family for family in FAMILIES}


@dataclass
class _Part:
    """One original that is written."""

    role: str
    plan: Plan
    files: dict[str, Any]  # configuration files: name -> content


def convert_focus_to_original(
    pipeline_folder: str | Path,
    output: str | Path,
    *,
    which: Sequence[str] | None = None,
    shard_size: int = SHARD_SIZE,
    dry_run: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    allow_partial: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Write the original checkpoints that a pipeline was, or could have been, converted from.

    Args:
        pipeline_folder: A local pipeline with weights.
        output: The folder to write, a subfolder for each original.
        which: Of `tokenizer`, `language_model`, `decoder` and, of pipelines that a conversion wrote, its other sources;
            by default all.
        shard_size, dry_run, resume, overwrite, progress: See `convert_illume_plus`.
        allow_partial: Write what there is where an original has parts that the pipeline does not.

    Returns:
        The report, as it is written to `conversion_report.json`: one plan's for each original.

    Raises:
        FileNotFoundError: There is no pipeline, or a component has no weights.
        ValueError: An unknown name in `which`; a component does not fit its original.
    """
    folder = Path(pipeline_folder)
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} is no pipeline: it has no model_index.json. Give a pipeline's folder."
        )
    check_apart(output, {"pipeline": folder})
    known = _recorded(folder)
    names = list(known) if which is None else list(which)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(
            f"{unknown[0] if unknown else 'nothing'!r} is no original of it; choose of {', '.join(known)}."
        )
    with ExitStack() as stack:
        opened: dict[str, TensorFiles] = {}
        parts = [_part(folder, role, known[role], opened, stack, allow_partial) for role in names]

        def read(name: str) -> torch.Tensor:
            component, _, key = name.partition(".")
            tensor = opened[component].read(key)
            check_finite(tensor, name)
            return tensor

        def info(plan_step: Any) -> TensorInfo:
            component, _, key = plan_step.sources[0].partition(".")
            return TensorInfo(plan_step.shape, opened[component].infos[key].dtype)

        infos = {part.role: {step.key: info(step) for step in part.plan.steps} for part in parts}
        total = sum(one.nbytes for tensors in infos.values() for one in tensors.values())
        facts = {
            "title": "back to the originals",
            "bytes": total,
            "originals": {part.role: report(part.plan) for part in parts},
        }
        if dry_run:
            return facts
        with FolderWriter(output, resume=resume, overwrite=overwrite, fingerprint=_fingerprint(folder)) as writer:
            writer.require_space(total)
            bar = stack.enter_context(
                tqdm(total=total, unit="B", unit_scale=True, desc="writing", disable=not progress)
            )
            for part in parts:
                check_duplicates(part.plan, read)
                for subfolder, prefix in _places(part.role):
                    steps = [step for step in part.plan.steps if step.key.startswith(prefix)]
                    writer.write_shards(
                        subfolder,
                        weights_name("unet" if prefix else "language_model"),
                        [(step.key.removeprefix(prefix), lambda step=step: apply_step(step, read)) for step in steps],
                        {step.key.removeprefix(prefix): infos[part.role][step.key] for step in steps},
                        shard_size=shard_size,
                        progress=bar.update,
                    )
                for name, content in part.files.items():
                    writer.write_json(f"{part.role}/{name}", content)
                if part.role == "language_model":
                    for name in TOKENIZER_FILES:
                        if (folder / "lm_tokenizer" / name).is_file():
                            writer.copy_file(folder / "lm_tokenizer" / name, f"{part.role}/{name}")
            writer.write_text("conversion_report.txt", "\n\n".join(report_text(part.plan) for part in parts) + "\n")
            return writer.finish(facts, REPORT)


def _recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """Role -> family, and of pipelines that a conversion wrote the original's prefix, shapes and files."""
    path = folder / REPORT
    if not path.is_file():
        return {role: {"family": family} for role, family in DEFAULTS.items()}
    facts = json.loads(path.read_text(encoding="utf-8"))
    return {
        role: {"family": facts["origins"][role]["family"], **original} for role, original in facts["originals"].items()
    }


def _part(
    folder: Path,
    role: str,
    known: dict[str, Any],
    opened: dict[str, TensorFiles],
    stack: ExitStack,
    allow_partial: bool,
) -> _Part:
    """Open the components of one original and plan the way back."""
    family = _BY_NAME[known["family"]]
    names = {ours.partition(".")[0] for rule in family.rules for ours in rule.targets}
    components = {}
    for name in sorted(names):
        if name == "vision_encoder" and role == "mask_decoder":
            continue  # FC-CLIP's ConvNeXt, which may have come from elsewhere
        if name not in opened and (folder / name).is_dir():
            opened[name] = stack.enter_context(open_tensors(folder / name))
        if name not in opened:
            raise FileNotFoundError(
                f"{str(folder)!r} has no {name}, which the original {role!r} holds. Leave it out of which."
            )
        components[name] = opened[name].infos
    shapes = known.get("shapes")
    plan = make_reverse_plan(
        family, components, shapes, prefix=known.get("prefix"), allow_partial=allow_partial or shapes is None
    )
    lacking = _lacking(role, plan) if shapes is None and not allow_partial else []
    if lacking:
        raise ValueError(
            f"The original {role!r} has {lacking[0]}, which this pipeline does not: it is FOCUS's own, not a converted one. "
            "Leave it out of which, or write what there is with allow_partial=True (--allow-partial)."
        )
    files = known.get("files")
    if files is None:
        files = _own_files(folder, role)
    return _Part(role, plan, files)


def _lacking(role: str, plan: Plan) -> list[str]:
    """Parts without which an original would not load."""
    wanted = {
        "tokenizer": ("semantic_encoder.model.",),
        "language_model": ("model.vision_tower.pixel_encoder.",),
    }
    keys = [step.key for step in plan.steps]
    return [part for part in wanted.get(role, ()) if not any(key.startswith(part) for key in keys)]


def _own_files(folder: Path, role: str) -> dict[str, Any]:
    """Configuration files from ours; those of an ILLUME+ language model lack what only its own code knows."""
    places = {"language_model": {"config.json": "language_model/config.json"}}
    places["decoder"] = {f"{part}/config.json": f"{part}/config.json" for part in DECODER_PARTS}
    places["decoder"]["scheduler/scheduler_config.json"] = "scheduler/scheduler_config.json"
    return {
        name: json.loads((folder / path).read_text(encoding="utf-8"))
        for name, path in places.get(role, {}).items()
        if (folder / path).is_file()
    }


def _places(role: str) -> list[tuple[str, str]]:
    """Subfolders of an original's weights, and what stands before their names in a plan."""
    if role == "decoder":
        return [(f"{role}/{part}", f"{part}.") for part in DECODER_PARTS]
    return [(role, "")]


def _fingerprint(folder: Path) -> str:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return "\n".join(f"{f.relative_to(folder).as_posix()} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files)
