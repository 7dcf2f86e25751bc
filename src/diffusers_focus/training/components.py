"""The parts a stage trains or uses: built from a variant's numbers, or loaded from the folder of an earlier stage.

Layout of a training folder: `components/<name>/` as `save_pretrained` writes them (what a pipeline folder holds), and
`stages/<stage>/` with checkpoint, log and plot.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from ..checkpoints.variants import TINY, TINY_VOCABULARY, VARIANTS
from ..data.vocabulary import vocabulary_texts
from ..models.mask_conditioner import FocusMaskConditioner
from ..models.mask_decoder import FocusMaskDecoder
from ..models.vision_encoder import FocusVisionEncoder
from ..models.visual_tokenizer import FocusVisualTokenizer
from ..processing.images import FocusImageProcessor
from ..processing.prompts import FOCUS
from ..processing.vocabulary import build_tiny_tokenizer, extend_tokenizer
from .initialize import initialize_convolutions, initialize_pyramid

CLASSES: dict[str, Any] = {
    "vision_encoder": FocusVisionEncoder,
    "language_model": Qwen2ForCausalLM,
    "lm_tokenizer": Qwen2Tokenizer,
    "visual_tokenizer": FocusVisualTokenizer,
    "mask_decoder": FocusMaskDecoder,
    "mask_conditioner": FocusMaskConditioner,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "scheduler": EulerDiscreteScheduler,
    "image_processor": FocusImageProcessor,
}


def tiny_tokenizer() -> Qwen2Tokenizer:
    """The tokenizer of `focus-tiny`: one token for every word of the world and of the prompts, then the visual tokens.

    Raises:
        ValueError: the text table is not full, so the visual tokens would not start where the variant says.
    """
    sentences = [FOCUS.system, "system user assistant", "a c nothing background", *FOCUS.tasks.values()]
    texts = [*vocabulary_texts(), *(sentences + list(FOCUS.defaults.values())) * 200]
    tokenizer = build_tiny_tokenizer(texts, TINY_VOCABULARY["text_rows"])
    if len(tokenizer) != TINY_VOCABULARY["text_rows"]:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} text tokens where {TINY_VOCABULARY['text_rows']} rows are laid out; change "
            "TINY_VOCABULARY['text_rows']"
        )
    extend_tokenizer(
        tokenizer, TINY_VOCABULARY["semantic_codes"], TINY_VOCABULARY["pixel_codes"], TINY_VOCABULARY["tag_step"]
    )
    return tokenizer


def build_component(name: str, variant: str = "focus-tiny", *, seed: int = 0, **changes: Any) -> Any:
    """A component with fresh weights; the same `seed` gives the same weights. `changes` are numbers other than the variant's.

    Raises:
        ValueError: an unknown component or variant; or the tokenizer of a variant whose text tokens are not ours to make.
    """
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    if name not in CLASSES:
        raise ValueError(f"there is no component {name!r}; choose one of {', '.join(CLASSES)}")
    if name == "lm_tokenizer":
        if VARIANTS[variant] is not TINY:
            raise ValueError(
                f"the tokenizer of {variant} comes with the source checkpoint; put it into components/lm_tokenizer"
            )
        return tiny_tokenizer()
    config = {**VARIANTS[variant][name], **changes}
    torch.manual_seed(seed)
    if name == "language_model":
        return Qwen2ForCausalLM(Qwen2Config(**config))
    component = CLASSES[name](**config)
    if name == "vae":
        initialize_convolutions(component)
        with torch.no_grad():  # a posterior of small spread to begin with: noise of unit size drowns an untrained code
            component.quant_conv.bias[config["latent_channels"] :] = -6
    elif name == "vision_encoder" and component.pyramid is not None:
        initialize_pyramid(component.pyramid)
    elif name == "unet":
        initialize_convolutions(component)
        torch.nn.init.zeros_(component.conv_out.weight)
    return component


def load_component(root: str | Path, name: str, variant: str = "focus-tiny", *, seed: int = 0) -> Any:
    """`<root>/components/<name>` where an earlier stage left it, otherwise a fresh one."""
    folder = Path(root) / "components" / name
    if not folder.exists():
        folder = folder.with_name(f".{name}.old")  # a stop between the two renames of save_component
    if not folder.exists():
        return build_component(name, variant, seed=seed)
    loaded = CLASSES[name].from_pretrained(folder)
    return loaded.float() if isinstance(loaded, torch.nn.Module) else loaded


def load_components(
    root: str | Path, names: Iterable[str] = tuple(CLASSES), variant: str = "focus-tiny", *, seed: int = 0
) -> SimpleNamespace:
    """The named components as attributes of one object (see `load_component`)."""
    return SimpleNamespace(**{name: load_component(root, name, variant, seed=seed) for name in names})


def save_component(root: str | Path, name: str, component: Any) -> Path:
    """Write `<root>/components/<name>`; an interrupted write leaves the old folder as it was."""
    folder = Path(root) / "components" / name
    fresh, old = folder.with_name(f".{name}.new"), folder.with_name(f".{name}.old")
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(fresh, ignore_errors=True)
    component.save_pretrained(fresh)
    if folder.exists():  # without it `old` is all there is, and must outlast the next rename
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder
