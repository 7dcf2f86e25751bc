"""The folder that a conversion writes: `pipelines/focus-3b`'s layout, with weights, and the card of it.

`model_index.json` is written as data: this room lies below the pipelines and does not know their classes. A test holds
the settings against the pipeline's signature. Components are made on the meta device, for their shapes and their
config.json; only parts without any source are made for real, with everything that has a source made as small as it can be.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import __version__ as diffusers_version
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from ..models.mask_conditioner import FocusMaskConditioner
from ..models.mask_decoder import FocusMaskDecoder
from ..models.vision_encoder import FocusVisionEncoder
from ..models.visual_tokenizer import FocusVisualTokenizer
from ..processing.grids import BUCKETS_512
from ..processing.images import FocusImageProcessor
from .plan import Plan

_OURS = "diffusers_focus.models"
# Component -> (library, class) as model_index.json has them.
LIBRARIES: dict[str, tuple[str, str]] = {
    "vision_encoder": (f"{_OURS}.vision_encoder", "FocusVisionEncoder"),
    "language_model": ("transformers", "Qwen2ForCausalLM"),
    "lm_tokenizer": ("transformers", "Qwen2Tokenizer"),
    "visual_tokenizer": (f"{_OURS}.visual_tokenizer", "FocusVisualTokenizer"),
    "mask_decoder": (f"{_OURS}.mask_decoder", "FocusMaskDecoder"),
    "mask_conditioner": (f"{_OURS}.mask_conditioner", "FocusMaskConditioner"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "image_processor": ("diffusers_focus.processing.images", "FocusImageProcessor"),
}
RESERVED = (
    *("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "controlnet"),
    *("image_encoder", "feature_extractor"),
)
CLASSES: dict[str, Any] = {
    "vision_encoder": FocusVisionEncoder,
    "visual_tokenizer": FocusVisualTokenizer,
    "mask_decoder": FocusMaskDecoder,
    "mask_conditioner": FocusMaskConditioner,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
}
# Settings of the pipeline. What is not trained is said here, and the pipeline keeps out of its way.
ILLUME_SETTINGS: dict[str, Any] = {
    "masks_trained": False,
    "edit_masks_trained": False,
    "edit_without_mask": True,
    "images_trained": True,
    "default_num_inference_steps": 50,
    "default_guidance_scale": 2.0,
    "default_token_guidance_scale": 2.0,
    "default_temperature": 1.0,
    "default_top_k": 2048,
    "default_top_p": 1.0,
}
ASSEMBLED_SETTINGS: dict[str, Any] = {
    "masks_trained": False,
    "edit_masks_trained": False,
    "edit_without_mask": False,
    "images_trained": False,
}
TAG_STEP = 64  # pixels between two size tags of the originals


def make_component(name: str, config: Mapping[str, Any]) -> nn.Module:
    """A component of this configuration, on the device in use; stock classes ignore settings they do not know."""
    if name == "language_model":
        model = Qwen2ForCausalLM(Qwen2Config(**config))
        model.config.architectures = ["Qwen2ForCausalLM"]
        return model
    if name in ("unet", "vae"):
        return CLASSES[name].from_config(dict(config))
    return CLASSES[name](**config)


def weights_name(component: str) -> str:
    """File name of a component's weights."""
    return "model.safetensors" if component == "language_model" else "diffusion_pytorch_model.safetensors"


def component_config(name: str, model: nn.Module) -> dict[str, Any]:
    """Content of a component's config.json."""
    text = model.config.to_json_string() if name == "language_model" else model.to_json_string()
    return json.loads(text)


def kept_in_float32(component: str, key: str) -> bool:
    """Whether a parameter keeps its source's precision whatever dtype is asked for, as the model itself loads it."""
    parts = getattr(CLASSES.get(component), "_keep_in_fp32_modules", None) or ()
    return any(part in key.split(".") for part in parts)


def fresh_parameters(name: str, config: Mapping[str, Any], wanted: Iterable[str]) -> Callable[[str], torch.Tensor]:
    """Initial values of parameters without a source, the same ones in every run.

    The component is built for real when the first is asked for, with the parts that nothing is wanted of made small: new
    parts of the vision encoder are 0.3 GB in float32, its tower and pyramid would be 3.5.

    Args:
        name: Component.
        config: Its configuration.
        wanted: Names of the parameters.

    Returns:
        Name -> float32 tensor.
    """
    wanted = set(wanted)
    small = dict(config)

    def untouched(prefix: str) -> bool:
        return not any(key.startswith(prefix) for key in wanted)

    if name == "vision_encoder":
        if untouched("vit."):
            small["vision_tower"] = {**(config.get("vision_tower") or {}), "depth": 1}
        if untouched("pixel_tower."):
            small["pixel_encoder"] = None
        if untouched("pyramid."):
            small["pyramid_depths"] = [1] * len(config.get("pyramid_depths", (1,) * 4))
    elif name == "visual_tokenizer" and untouched("vit."):
        small["vision_tower"] = None
    values: dict[str, torch.Tensor] = {}

    def read(key: str) -> torch.Tensor:
        if not values:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(zlib.crc32(name.encode()))
                state = make_component(name, small).state_dict()
            values.update({k: v for k, v in state.items() if k in wanted})
        return values[key]

    return read


def image_processor(
    prompt_style: str, vae_scale_factor: int, *, has_pyramid: bool, buckets: Sequence[Sequence[int]] | None = None
) -> dict[str, Any]:
    """Content of the image processor's file.

    Args:
        prompt_style: "illume" or "focus".
        vae_scale_factor: Pixels of the decoded image per latent.
        has_pyramid: Whether there is a branch that reads X_H.
        buckets: [height, width] token resolutions; by default the originals' eleven.
    """
    processor = FocusImageProcessor(
        buckets=buckets or BUCKETS_512,
        tag_step=TAG_STEP,
        high_resolution=768 if has_pyramid else None,
        decode_scale=2,
        vae_scale_factor=vae_scale_factor,
        prompt_style=prompt_style,
    )
    return json.loads(processor.to_json_string())


def model_index(components: Iterable[str], scheduler: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Content of model_index.json; parts that are not there are null.

    Without UNet and VAE only `FocusUnderstandPipeline` can load the folder; the index says so.
    """
    present = set(components)
    index: dict[str, Any] = {
        "_class_name": "FocusPipeline" if {"unet", "vae"} <= present else "FocusUnderstandPipeline",
        "_diffusers_version": diffusers_version,
    }
    for name, entry in LIBRARIES.items():
        index[name] = list(entry) if name in present else [None, None]
    index["scheduler"] = ["diffusers", scheduler] if scheduler else [None, None]
    index |= {name: [None, None] for name in RESERVED}
    return {**index, **settings}


def modular_index(standard: Mapping[str, Any]) -> dict[str, Any]:
    """Content of modular_model_index.json, from that of model_index.json: the parts that are there, and the settings.

    Parts name no folder or repository: `FocusModularPipeline` looks for them where it found the index, so that a folder can be
    moved, copied and uploaded as it is.
    """
    whole = standard.get("_class_name") != "FocusUnderstandPipeline"
    index: dict[str, Any] = {
        "_blocks_class_name": "FocusBlocks" if whole else "FocusAskBlocks",
        "_class_name": "FocusModularPipeline",
        "_diffusers_version": standard.get("_diffusers_version", diffusers_version),
    }
    for name, value in standard.items():
        if name.startswith("_") or name in RESERVED:
            continue
        if name in LIBRARIES or name == "scheduler":
            if value[1] is None:
                continue
            place = {"pretrained_model_name_or_path": None, "subfolder": name, "variant": None, "revision": None}
            value = [*value, {"type_hint": list(value), **place}]
        index[name] = value
    return index


def card(
    title: str, origins: Mapping[str, Mapping[str, Any]], plan: Plan, fills: Mapping[str, Sequence[str]], masks: bool
) -> str:
    """The README.md of a converted pipeline.

    Args:
        title: Heading.
        origins: Role -> `Source.origin`.
        plan: What was made of them; its `initialised` parts are those that are not trained.
        fills: Role -> components it went to.
        masks: Whether there is a mask decoder, untrained.
    """
    lines = [
        "---",
        "library_name: diffusers",
        "pipeline_tag: image-to-image",
        "license: other",
        "license_name: several-see-below",
        "tags:",
        "- diffusers-focus",
        "- image-editing",
        "---",
        "",
        f"# {title}",
        "",
        "Weights of others in the layout of `diffusers-focus`; `conversion_report.json` says of every tensor where it came from.",
        "",
        "```python",
        "import torch",
        "from diffusers_focus import FocusPipeline",
        "",
        f'pipe = FocusPipeline.from_pretrained("{title}", dtype=torch.bfloat16)',
        "```",
        "",
        "| from | is | went to | licence |",
        "|---|---|---|---|",
    ]
    for role, origin in origins.items():
        where = ", ".join(f"`{part}`" for part in fills.get(role, ()))
        lines.append(f"| `{origin['name']}` ({role}) | {origin['what']} | {where} | {origin['licence']} |")
    lines += ["", "Each licence goes on to apply to what came from there. Please cite the authors of all of them.", ""]
    untrained = initialised_parts(plan)
    lines += ["## Not trained", ""]
    if untrained:
        lines += [f"- `{part}`: {count} parameters, {how}" for part, (count, how) in untrained.items()]
    else:
        lines += ["Nothing: every parameter has a source."]
    lines += [
        "",
        ("The mask decoder's weights are a start for training. " if masks else "There is no mask decoder. ")
        + "`segment` says so and refuses; edits take a mask (`mask_image=`) or a `Box` or `Mask` region instead, and without "
        "one change the whole image.",
        "",
    ]
    return "\n".join(lines)


def initialised_parts(plan: Plan) -> dict[str, tuple[int, str]]:
    """Part of a component -> number of its parameters without a source, and how they start."""
    groups: dict[str, list[str]] = {}
    for name, how in plan.initialised.items():
        groups.setdefault(".".join(name.split(".")[:2]), []).append(how)
    return {
        part: (
            len(hows),
            "zero" if set(hows) == {"zero"} else "random, its output at zero" if "zero" in hows else "random",
        )
        for part, hows in groups.items()
    }


def copied_name(path: Path) -> str:
    """Where a file of the source's tokenizer goes."""
    return f"lm_tokenizer/{path.name}"
