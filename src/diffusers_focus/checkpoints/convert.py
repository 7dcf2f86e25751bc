"""Whole checkpoints -> a pipeline folder, and back: `diffusers-focus convert`.

`convert_illume_plus` joins ILLUME+'s three published checkpoints (arXiv 2504.01934, Apache-2.0) into a pipeline that reads
and writes exactly what they did; `assemble_focus` makes the start of a FOCUS training run from public parts;
`convert_focus_to_original` goes back. Each plans first (nothing is written before every name and shape has its place),
then streams: one tensor at a time from source to file. Memory is what a single tensor and the parts without a source take.

The folder is written as data, because pipelines are a room above this one; see `layout.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import Qwen2Tokenizer

from ..processing.vocabulary import FocusVocabulary, extend_tokenizer, num_visual_tokens
from ..sharing.loaders import loader_files
from . import layout
from .illume import WITHOUT_NEW_PARTS
from .plan import Plan, apply_step, check_duplicates, make_plan, merge_plans, target_shapes
from .reading import TensorInfo, is_finite
from .report import report, report_text
from .sources import Source, check_apart
from .table import Family
from .variants import PUBLISHED_3B
from .writing import SHARD_SIZE, FolderWriter

CONVNEXT = ("convnext_open_clip", "convnext_timm", "convnext_transformers", "fc_clip")
MASK_DECODERS = ("fc_clip", "mask2former", "mask2former_transformers", "hyperseg", "native mask_decoder")
REPORT = "conversion_report.json"
_NEW = Family("new parts", rules=())

Configs = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class ConvertOptions:
    """How both conversions read and write.

    Args:
        dtype: Floating weights are converted to it; by default they stay as they are. Codebooks always stay.
        shard_size: Bytes of weights in one file at most.
        dry_run: Plan, check and report, but write nothing.
        resume: Go on with an interrupted run.
        overwrite: Replace an existing output, once the new one is complete.
        allow_partial: Leave out what does not match instead of raising; the report lists it.
        progress: Whether to show a bar.
        configs: What the sources' own files lack: `vision_tower` or `mask_decoder` with `num_heads`, `language_model`.
        buckets: [height, width] token resolutions, where they are not the published eleven.
    """

    dtype: torch.dtype | None = None
    shard_size: int = SHARD_SIZE
    dry_run: bool = False
    resume: bool = False
    overwrite: bool = False
    allow_partial: bool = False
    progress: bool = True
    configs: Configs | None = None
    buckets: Sequence[Sequence[int]] | None = None


@dataclass
class Job:
    """What a conversion writes.

    Args:
        output: The folder.
        components: Component -> its configuration.
        plan: Steps, whose sources read "role:key".
        sources: By role.
        fills: Role -> components it fills.
        settings: The pipeline's.
        processor: Content of the image processor's file.
        tokenizer_files: The language model's tokenizer.
    """

    output: Path
    components: dict[str, dict[str, Any]]
    plan: Plan
    sources: dict[str, Source]
    fills: dict[str, list[str]]
    settings: dict[str, Any]
    processor: dict[str, Any]
    tokenizer_files: list[Path] = field(default_factory=list)


def convert_illume_plus(
    tokenizer: str | Path,
    language_model: str | Path,
    decoder: str | Path,
    output: str | Path,
    *,
    hierarchical: str | Path | None = None,
    mask_decoder: str | Path | None = None,
    options: ConvertOptions = ConvertOptions(),
) -> dict[str, Any]:
    """Convert ILLUME+ to a pipeline that `FocusPipeline.from_pretrained` loads.

    The pipeline sees what ILLUME+ was trained on: its prompts, size tags and image layout, no query or mask tokens, two
    copies of the vision tower. A ConvNeXt and a mask decoder may be added for training; they change nothing before it.

    Args:
        tokenizer: DualViTok, a file or folder (`ILLUME-MLLM/dualvitok`).
        language_model: Folder with weights, config.json and tokenizer (`ILLUME-MLLM/illume_plus-qwen2_5-3b`, or -7b).
        decoder: diffusers folder (`ILLUME-MLLM/dualvitok-sdxl-decoder`).
        output: The folder to write.
        hierarchical: ConvNeXt for the second branch: OpenCLIP, timm, transformers or FC-CLIP weights.
        mask_decoder: Mask2Former, FC-CLIP, HyperSeg or PSALM weights. FC-CLIP brings the ConvNeXt too; others need
            `hierarchical`.
        options: How; see there.

    Returns:
        The report, as it is written to `conversion_report.json`.

    Raises:
        FileNotFoundError: A source, or one of its files, is missing.
        FileExistsError: The output exists.
        ValueError: A source is of another kind, damaged or does not match; sources do not fit each other; weights are NaN.
        OSError: The disk is too small (checked before the first byte).
    """
    paths = _paths(
        tokenizer=tokenizer,
        language_model=language_model,
        decoder=decoder,
        hierarchical=hierarchical,
        mask_decoder=mask_decoder,
    )
    allowed = {
        "tokenizer": ("dualvitok", "native visual_tokenizer"),
        "language_model": ("illume_plus",),
        "decoder": ("illume_plus_decoder",),
        "hierarchical": CONVNEXT,
        "mask_decoder": MASK_DECODERS,
    }
    with ExitStack() as stack:
        sources = _open(stack, paths, allowed, output)
        sizes = {role: source.sizes(options.configs) for role, source in sources.items()}
        vision = {**WITHOUT_NEW_PARTS, **sizes["language_model"]["vision_encoder"]}
        pyramid = _pyramid(sizes)
        if pyramid is None and mask_decoder is not None:
            raise ValueError(
                "A mask decoder reads the maps of a ConvNeXt; give one with --hierarchical (FC-CLIP's weights hold both)."
            )
        components = {
            "vision_encoder": {**vision, **(pyramid or {})},
            "language_model": sizes["language_model"]["language_model"],
            "visual_tokenizer": sizes["tokenizer"]["visual_tokenizer"],
            "unet": sizes["decoder"]["unet"],
            "vae": sizes["decoder"]["vae"],
        }
        if mask_decoder is not None:
            components["mask_decoder"] = _mask_decoder(sizes, components)
        components["mask_conditioner"] = _mask_conditioner(components)
        _check_codes(components)
        files = sources["language_model"].tokenizer_files()
        job = _plan(output, components, sources, layout.ILLUME_SETTINGS, "illume", options)
        job.tokenizer_files = files
        _check_vocabulary(files, components)
        return _write(job, "ILLUME+", options)


def assemble_focus(
    language_model: str | Path,
    vision_tower: str | Path,
    output: str | Path,
    *,
    hierarchical: str | Path | None = None,
    mask_decoder: str | Path | None = None,
    sdxl: str | Path | None = None,
    tokenizer: str | Path | None = None,
    options: ConvertOptions = ConvertOptions(),
) -> dict[str, Any]:
    """Assemble the start of a FOCUS training run from public parts. Nothing of it works before it is trained.

    Parts that are not given start at random, in the published sizes; without `sdxl` the folder has no UNet and VAE, and
    only `FocusUnderstandPipeline` loads it.

    Args:
        language_model: Qwen2.5 Instruct folder; rows for the visual tokens are added to its table and its tokenizer.
        vision_tower: Qwen2-VL folder or file (`Qwen/Qwen2-VL-7B-Instruct`); only its vision tower is taken.
        output: The folder to write.
        hierarchical: ConvNeXt weights, see `convert_illume_plus`.
        mask_decoder: Mask2Former-like weights, see `convert_illume_plus`.
        sdxl: Stable Diffusion XL base, a diffusers folder. Its UNet's input is widened with zeros.
        tokenizer: DualViTok; it keeps its own vision tower.

    The options, the result and the errors are those of `convert_illume_plus`.
    """
    paths = _paths(
        language_model=language_model,
        vision_tower=vision_tower,
        tokenizer=tokenizer,
        decoder=sdxl,
        hierarchical=hierarchical,
        mask_decoder=mask_decoder,
    )
    allowed = {
        "language_model": ("qwen2_5",),
        "vision_tower": ("qwen2_vl_vision",),
        "tokenizer": ("dualvitok", "native visual_tokenizer"),
        "decoder": ("sdxl",),
        "hierarchical": CONVNEXT,
        "mask_decoder": MASK_DECODERS,
    }
    with ExitStack() as stack:
        sources = _open(stack, paths, allowed, output, {"decoder": "sdxl"})
        sizes = {role: source.sizes(options.configs) for role, source in sources.items()}
        tower = sizes["vision_tower"]["vision_encoder"]["vision_tower"]
        if tokenizer is None:
            codes = {**PUBLISHED_3B["visual_tokenizer"], "semantic_input_dim": tower["hidden_size"]}
        else:
            codes = sizes["tokenizer"]["visual_tokenizer"]
        words = sizes["language_model"]["language_model"]
        rows = sources["language_model"].infos["model.embed_tokens.weight"].shape[0]
        words["vocab_size"] = rows + num_visual_tokens(codes["semantic_codebook_size"], codes["pixel_codebook_size"])
        components: dict[str, dict[str, Any]] = {
            "vision_encoder": {
                **PUBLISHED_3B["vision_encoder"],
                "vision_tower": tower,
                "language_hidden_size": words["hidden_size"],
                "pixel_feature_dim": codes["code_dim"],
                **(_pyramid(sizes) or {}),
            },
            "language_model": words,
            "visual_tokenizer": codes,
        }
        if sdxl is not None:
            unet = sizes["decoder"]["unet"]
            unet["in_channels"] = unet.get("out_channels", 4) + 2 * codes["code_dim"]
            components |= {"unet": unet, "vae": sizes["decoder"]["vae"]}
        components["mask_decoder"] = _mask_decoder(sizes, components)
        components["mask_conditioner"] = _mask_conditioner(components)
        folder = stack.enter_context(TemporaryDirectory())
        job = _plan(output, components, sources, layout.ASSEMBLED_SETTINGS, "focus", options)
        job.tokenizer_files = _extended(sources["language_model"], codes, Path(folder))
        _check_vocabulary(job.tokenizer_files, components)
        return _write(job, "FOCUS, untrained", options)


# --- planning -----------------------------------------------------------------------------------------------------------


def _paths(**given: str | Path | None) -> dict[str, Path]:
    return {role: Path(path) for role, path in given.items() if path is not None}


def _open(
    stack: ExitStack,
    paths: Mapping[str, Path],
    allowed: Mapping[str, tuple[str, ...]],
    output: str | Path,
    options: Mapping[str, str] | None = None,
) -> dict[str, Source]:
    """Open all sources, to be closed with the stack."""
    check_apart(output, paths)
    sources = {}
    for role, path in paths.items():
        sources[role] = Source(role, path, allowed[role], (options or {}).get(role))
        stack.callback(sources[role].close)
    return sources


def _pyramid(sizes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The vision encoder's settings for the ConvNeXt that is given, on its own or inside FC-CLIP."""
    for role in ("hierarchical", "mask_decoder"):
        found = sizes.get(role, {}).get("vision_encoder")
        if found is not None:
            return dict(found)
    return None


def _mask_decoder(sizes: Mapping[str, Mapping[str, Any]], components: Mapping[str, Any]) -> dict[str, Any]:
    vision = components["vision_encoder"]
    return {
        **PUBLISHED_3B["mask_decoder"],
        **sizes.get("mask_decoder", {}).get("mask_decoder", {}),
        "in_channels": list(vision["pyramid_channels"]),
        "language_hidden_size": vision["language_hidden_size"],
    }


def _mask_conditioner(components: Mapping[str, Any]) -> dict[str, Any]:
    config = {**PUBLISHED_3B["mask_conditioner"], "code_channels": 2 * components["visual_tokenizer"]["code_dim"]}
    if "unet" in components:
        config["cross_attention_dim"] = components["unet"]["cross_attention_dim"]
    return config


def _check_codes(components: Mapping[str, Any]) -> None:
    """The decoder and the language model must read the tokenizer's codes."""
    codes = 2 * components["visual_tokenizer"]["code_dim"]
    unet = components["unet"]
    if unet["in_channels"] - unet.get("out_channels", 4) != codes:
        raise ValueError(
            f"The decoder's UNet reads {unet['in_channels']} channels, of which {unet.get('out_channels', 4)} are latents; the "
            f"tokenizer's codes have {codes}. Take both from the same release."
        )


def _check_vocabulary(files: Sequence[Path], components: Mapping[str, Any]) -> None:
    """The words' tokenizer must have the visual tokens, as many as there are codes."""
    whole = next((path for path in files if path.name == "tokenizer.json"), None)
    # With 131,111 added tokens the class of transformers takes four seconds more to load, for nothing that is read here.
    words = Qwen2Tokenizer.from_pretrained(files[0].parent) if whole is None else Tokenizer.from_file(str(whole))
    vocabulary = FocusVocabulary.from_tokenizer(
        words, embedding_rows=components["language_model"]["vocab_size"], tag_step=layout.TAG_STEP
    )
    codes = components["visual_tokenizer"]
    expected = (codes["semantic_codebook_size"], codes["pixel_codebook_size"])
    if (vocabulary.semantic_codes, vocabulary.pixel_codes) != expected:
        raise ValueError(
            f"The language model writes {vocabulary.semantic_codes} semantic and {vocabulary.pixel_codes} pixel codes, the "
            f"visual tokenizer has {expected[0]} and {expected[1]}. Take both from the same release."
        )


def _extended(source: Source, codes: Mapping[str, Any], folder: Path) -> list[Path]:
    """The tokenizer of a text model with the visual tokens added, written to `folder`."""
    words = Qwen2Tokenizer.from_pretrained(source.tokenizer_files()[0].parent)
    extend_tokenizer(words, codes["semantic_codebook_size"], codes["pixel_codebook_size"], layout.TAG_STEP)
    words.save_pretrained(folder)
    return sorted(path for path in folder.iterdir() if path.is_file())


def _plan(
    output: str | Path,
    components: dict[str, dict[str, Any]],
    sources: dict[str, Source],
    settings: Mapping[str, Any],
    prompt_style: str,
    options: ConvertOptions,
) -> Job:
    """Match every source with what it fills; names of sources get their role in front, so that none is mistaken."""
    targets = {}
    for name, config in components.items():
        with torch.device("meta"):
            targets[name] = target_shapes(layout.make_component(name, config))
    plans, fills, filled = [], {}, set()
    for role, source in sources.items():
        reached = {ours.partition(".")[0] for rule in source.family.rules for ours in rule.targets}
        if source.family.name == "fc_clip":  # its two halves may be wanted for one role each
            reached = {"vision_encoder"} if role == "hierarchical" else reached
            reached -= {"vision_encoder"} if role == "mask_decoder" and "hierarchical" in sources else set()
        wanted = {name: shapes for name, shapes in targets.items() if name in reached}
        plan = make_plan(source.family, source.infos, wanted, allow_partial=options.allow_partial)
        plans.append(_with_role(plan, role))
        fills[role] = sorted({step.component for step in plan.steps})
        filled |= set(wanted)
    rest = {name: shapes for name, shapes in targets.items() if name not in filled}
    plans.append(make_plan(_NEW, {}, rest))
    plan = merge_plans(plans)
    pixels = 8
    if "vae" in components:
        pixels = 2 ** (len(components["vae"]["block_out_channels"]) - 1)
    has_pyramid = components["vision_encoder"]["pyramid_channels"] is not None
    processor = layout.image_processor(prompt_style, pixels, has_pyramid=has_pyramid, buckets=options.buckets)
    return Job(Path(output), components, plan, sources, fills, dict(settings), processor)


def _with_role(plan: Plan, role: str) -> Plan:
    def named(key: str) -> str:
        return f"{role}:{key}"

    return replace(
        plan,
        family=f"{role} ({plan.family})",
        steps=[replace(step, sources=tuple(map(named, step.sources))) for step in plan.steps],
        dropped={named(key): why for key, why in plan.dropped.items()},
        duplicates={named(key): named(twin) for key, twin in plan.duplicates.items()},
        problems=[f"{role}: {problem}" for problem in plan.problems],
    )


# --- writing ------------------------------------------------------------------------------------------------------------


@dataclass
class _Weights:
    """One component's tensors as the writer takes them."""

    getters: list[tuple[str, Callable[[], torch.Tensor]]]
    infos: dict[str, TensorInfo]
    dtype: torch.dtype | None  # None: they have their dtype already

    @property
    def nbytes(self) -> int:
        return sum(
            TensorInfo(info.shape, self.dtype).nbytes if self.dtype and info.dtype.is_floating_point else info.nbytes
            for info in self.infos.values()
        )


def _write(job: Job, title: str, options: ConvertOptions) -> dict[str, Any]:
    """Write the folder that a job describes; returns the report."""

    def read(name: str) -> torch.Tensor:
        role, _, key = name.partition(":")
        return job.sources[role].read(key)

    weights = {name: _weights(job, name, read, options.dtype) for name in job.components}
    total = sum(one.nbytes for one in weights.values())
    facts = _facts(job, title, total, options.dtype)
    if options.dry_run:
        return facts
    fingerprint = _fingerprint(job)
    with FolderWriter(
        job.output, resume=options.resume, overwrite=options.overwrite, fingerprint=fingerprint
    ) as writer:
        writer.require_space(total)
        check_duplicates(job.plan, read)
        with _bar(total, options.progress) as bar:
            for name, one in weights.items():
                writer.write_shards(
                    name,
                    layout.weights_name(name),
                    one.getters,
                    one.infos,
                    dtype=one.dtype,
                    shard_size=options.shard_size,
                    progress=bar.update,
                )
                one.getters.clear()  # they hold the parts that were made for this component
        _write_configs(job, writer)
        card = layout.card(job.output.name, facts["origins"], job.plan, job.fills, "mask_decoder" in weights)
        writer.write_text("README.md", card)
        writer.write_text("conversion_report.txt", report_text(job.plan) + "\n")
        return writer.finish(facts, REPORT)


def _weights(job: Job, name: str, read: Callable[[str], torch.Tensor], dtype: torch.dtype | None) -> _Weights:
    """Names, shapes and values to come of one component."""
    steps = [step for step in job.plan.steps if step.component == name]
    new = [key.partition(".")[2] for key in job.plan.initialised if key.partition(".")[0] == name]
    infos, getters = {}, []
    for step in steps:
        role, _, key = step.sources[0].partition(":")
        infos[step.key] = TensorInfo(step.shape, job.sources[role].infos[key].dtype)
        getters.append((step.key, lambda step=step: apply_step(step, read)))
    if new:
        fresh = layout.fresh_parameters(name, job.components[name], new)
        floating = [info.dtype for info in infos.values() if info.dtype.is_floating_point]
        beside = floating[0] if floating else dtype or torch.float32
        with torch.device("meta"):
            shapes = target_shapes(layout.make_component(name, job.components[name]))
        for key in new:
            infos[key] = TensorInfo(shapes[key], beside)
            getters.append((key, lambda key=key: fresh(key).to(beside)))
    if dtype is None or not any(layout.kept_in_float32(name, key) for key in infos):
        return _Weights(getters, infos, dtype)
    # The writer has one dtype for all; where some tensors keep theirs, the others are converted before.
    for index, (key, getter) in enumerate(getters):
        if infos[key].dtype.is_floating_point and not layout.kept_in_float32(name, key):
            infos[key] = TensorInfo(infos[key].shape, dtype)
            getters[index] = (key, lambda key=key, getter=getter: _converted(getter(), dtype, key))
    return _Weights(getters, infos, None)


def _converted(tensor: torch.Tensor, dtype: torch.dtype, key: str) -> torch.Tensor:
    converted = tensor.to(dtype)
    if not is_finite(converted):
        raise ValueError(
            f"Values of {key!r} leave the range of {dtype}. Use a dtype of the same range, such as bfloat16."
        )
    return converted


def _write_configs(job: Job, writer: FolderWriter) -> None:
    for name, config in job.components.items():
        with torch.device("meta"):
            model = layout.make_component(name, config)
        writer.write_json(f"{name}/config.json", layout.component_config(name, model))
    for path in job.tokenizer_files:
        writer.copy_file(path, layout.copied_name(path))
    writer.write_json("image_processor/preprocessor_config.json", job.processor)
    scheduler = None
    if "decoder" in job.sources:
        config = job.sources["decoder"].files["scheduler/scheduler_config.json"]
        scheduler = config.get("_class_name", "EulerDiscreteScheduler")
        writer.write_json("scheduler/scheduler_config.json", {"_class_name": scheduler, **config})
    present = [*job.components, "lm_tokenizer", "image_processor"]
    index = layout.model_index(present, scheduler, job.settings)
    writer.write_json("model_index.json", index)
    writer.write_json("modular_model_index.json", layout.modular_index(index))
    for path, text in loader_files(index).items():
        writer.write_text(path, text)


def _facts(job: Job, title: str, nbytes: int, dtype: torch.dtype | None) -> dict[str, Any]:
    """The report: `report` of the plan and what is needed to go back."""
    return {
        "title": title,
        "dtype": str(dtype).removeprefix("torch.") if dtype else "as the sources",
        "bytes": nbytes,
        "origins": {role: source.origin() for role, source in job.sources.items()},
        "fills": job.fills,
        **report(job.plan),
        "originals": {
            role: {
                "files": source.files,
                "prefix": source.family.find_prefix(source.infos) or "",
                "shapes": {key: list(info.shape) for key, info in source.infos.items()},
            }
            for role, source in job.sources.items()
        },
    }


def _fingerprint(job: Job) -> str:
    lines = [source.fingerprint() for source in job.sources.values()]
    return "\n".join([*lines, json.dumps(job.components, sort_keys=True, default=list)])


def _bar(total: int, shown: bool) -> tqdm:
    return tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, desc="writing", disable=not shown)
