"""What all blocks of FOCUS share: the parts, settings, inputs and outputs they can name, and how a leaf block runs.

A leaf block here says as class attributes what diffusers asks of a `ModularPipelineBlocks` as properties (Apache-2.0), so that a
name has one type and one wording wherever it appears.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.modular_pipelines.modular_pipeline import LoopSequentialPipelineBlocks, ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, ConfigSpec, InputParam, OutputParam
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from PIL import Image
from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

from ..models.mask_conditioner import FocusMaskConditioner
from ..models.mask_decoder import FocusMaskDecoder
from ..models.vision_encoder import FocusVisionEncoder
from ..models.visual_tokenizer import FocusVisualTokenizer
from ..processing.images import FocusImageProcessor
from ..processing.regions import Region
from ..steps.denoise import LatentBackground
from ..steps.editing import EditPrompt
from ..steps.encode import FocusImageEncoding
from ..steps.segment import MAX_NAMES
from ..steps.settings import SETTINGS
from ..steps.understand import MAX_ANSWER

# Component -> class and what it does. The scheduler may be any Karras-style one; the index of a checkpoint names its own.
PARTS: dict[str, tuple[type, str]] = {
    "vision_encoder": (FocusVisionEncoder, "image -> tokens of the language model, and feature maps"),
    "language_model": (Qwen2ForCausalLM, "with the visual tokens in its vocabulary"),
    "lm_tokenizer": (Qwen2Tokenizer, "the language model's tokenizer"),
    "visual_tokenizer": (FocusVisualTokenizer, "images to discrete codes and back"),
    "mask_decoder": (FocusMaskDecoder, "mask slots and feature maps -> masks"),
    "mask_conditioner": (FocusMaskConditioner, "edit mask -> sequence for the UNet"),
    "unet": (UNet2DConditionModel, "SDXL's, with the token embeddings as further input channels"),
    "vae": (AutoencoderKL, "images to latents and back"),
    "scheduler": (EulerDiscreteScheduler, "any Karras-style scheduler"),
    "image_processor": (FocusImageProcessor, "images in and out, prompt style and token resolutions"),
}

_Picture = Image.Image | FocusImageEncoding | list[Image.Image]
_Masks = Image.Image | list[Image.Image]
_Generators = torch.Generator | list[torch.Generator]

# Name -> type, default, meaning. A default of None is resolved by the block that reads it: in a sequence the first block's
# default would count for all of them.
INPUTS: dict[str, tuple[Any, Any, str]] = {
    "image": (_Picture, None, "An image, a list of images, or the `image_encoding` of an earlier run."),
    "image_encoding": (FocusImageEncoding, None, "The encoded images, from `encode_image`."),
    "question": (str | list, None, "A question or the messages of a conversation, or one for each image."),
    "streamer": (Any, None, "Shows an answer while it is written: transformers' `TextStreamer`, or its like."),
    "caption_classes": (
        list,
        None,
        "Names of what is looked for where a caption is asked for; an empty list leaves it to the language model.",
    ),
    "prompt": (
        str | list,
        None,
        "With an image the instruction, without one the description; a list is a batch, a list in it several edits of one picture.",
    ),
    "target": (str | list, None, "What is meant, in words; a list has one entry an image."),
    "region": (Region | list[Region], None, "The same by pointing, in pixels of the input image."),
    "classes": (list, None, "Names to look for, in place of both; or a list of names for each image."),
    "task": (str | list, None, 'Of words "referring" or "reasoning", of names "instance", "semantic" or "panoptic".'),
    "stuff": (list[str], None, "Of the names, those whose objects are not told apart in a panoptic result."),
    "max_new_tokens": (int, None, f"Longest answer ({MAX_ANSWER}), or list of names before masks ({MAX_NAMES})."),
    "score_threshold": (float, None, "Least score of an object without a name; the pipeline's own by default."),
    "fallback_threshold": (float, None, "Least score of a named object; the pipeline's own by default."),
    "mask_image": (_Masks, None, "The pixels that may change (bright is inside), at the size of the image."),
    "mask_dilation": (int, None, "Pixels to grow the edit mask by, in place of the pipeline's own rule."),
    "mask_blur": (int, None, "Reach of its soft edge in pixels; the pipeline's own by default."),
    "padding_mask_crop": (
        int,
        None,
        "Edit only the surroundings of the edit masks, with so many pixels on every side, at full resolution.",
    ),
    "limit_tokens": (
        bool,
        True,
        "Write only the visual tokens that the edit mask touches; False writes all of an edit.",
    ),
    "preserve_background": (bool, True, "Keep every pixel outside the soft edit mask."),
    "height": (int, None, "Of the result in pixels, one of the model's sizes; an edit has the size of its image."),
    "width": (int, None, "Of the result in pixels, likewise."),
    "num_images_per_prompt": (int, 1, "Results for each prompt."),
    "layout": (
        list,
        None,
        "Of a description, a `Box` for each object in pixels of the result; by default by chance, an empty list draws in one go.",
    ),
    "generator": (_Generators, None, "For tokens and noise; a list has one for each result."),
    "temperature": (
        float,
        None,
        "Of drawing tokens; 0 takes the likeliest, answers do so by default. Of visual tokens a pair may do: semantic, pixel.",
    ),
    "top_k": (
        int,
        None,
        "Tokens to draw from; pixel tokens get three times as many. Of visual tokens a pair, likewise.",
    ),
    "top_p": (float, None, "Probability to draw from. Of visual tokens a pair, likewise."),
    "token_guidance_scale": (float, None, "Guidance when visual tokens are written; the pipeline's own by default."),
    "num_inference_steps": (int, None, "Denoising steps; the pipeline's own by default."),
    "timesteps": (list[int] | torch.Tensor, None, "A schedule of one's own; after set_timesteps, the one to run."),
    "sigmas": (list[float], None, "A schedule of one's own, as noise levels."),
    "strength": (float, 1.0, "Share of the denoising to run on the image's own latents, above 0 up to 1."),
    "eta": (float, 0.0, "Share of fresh noise in a step of DDIM; other schedulers ignore it."),
    "guidance_scale": (float, None, "How strongly the visual tokens steer the denoising; 1 switches guidance off."),
    "mask_guidance_scale": (
        float,
        1.0,
        "The same for the edit mask; 0 keeps it from the UNet, anything but 0 and 1 costs a further UNet pass a step.",
    ),
    "cross_attention_kwargs": (
        dict[str, Any],
        None,
        'For the UNet\'s attention; "scale" is the weight of its LoRA adapters.',
    ),
    "latents": (torch.Tensor, None, "[B, 4, h, w]: initial noise of unit variance, then the latents as they are."),
    "output_type": (str, "pil", '"pil", "np", "pt" or "latent".'),
    "masks": (list, None, "bool [objects, height, width] per edit, what it is about; None takes `mask_image` for it."),
    "edits": (list[EditPrompt], None, "Edits with their masks, from `edit_input`."),
    "whole": (tuple, None, "The images that parts were cut out of, and where each part lies; from `crop`."),
    "token_resolution": (tuple[int, int], None, "(height, width) that the visual tokens stand for."),
    "token_map": (torch.Tensor, None, "[B, C, rows, columns], embeddings of the visual tokens."),
    "latent_mask": (
        torch.Tensor,
        None,
        "[B, 1, h, w], the share of each latent that may change; None without an image.",
    ),
    "background": (LatentBackground, None, "What the latents keep outside the edit masks; None keeps nothing."),
    "prompt_embeds": (torch.Tensor, None, "[B, T, D], what the UNet's cross-attention reads."),
    "negative_prompt_embeds": (torch.Tensor, None, "The same for the unconditional branch."),
}

OUTPUTS: dict[str, tuple[Any, str]] = {
    **{name: (kind, meaning) for name, (kind, _, meaning) in INPUTS.items()},
    "text": (list[str], "One answer per question; of a segmentation, the names the model wrote."),
    "masks": (list, "bool [objects, height, width] per prompt, best score first."),
    "scores": (list, "float32 [objects] in 0..1 per prompt."),
    "labels": (list, "A name for each object, per prompt."),
    "presence": (list, "In 0..1 per prompt: how sure it is that there is anything it means."),
    "qualities": (list, "float32 [objects] per prompt, the IoU to expect."),
    "instance_embeds": (list, "float32 [objects, D] per prompt, to recognise an object in another frame."),
    "mask_image": (list[Image.Image], 'What was meant, one image (mode "L", 255 inside) per prompt.'),
    "edit_masks": (list, "bool [height, width] per edit, nested as `prompt`: where pixels may change."),
    "images": (list[Image.Image], "The results, by `output_type`."),
}


def read(name: str, **changes: Any) -> InputParam:
    """The input `name`; `changes` are fields of its `InputParam`."""
    kind, default, meaning = INPUTS[name]
    return replace(InputParam(name, type_hint=kind, default=default, description=meaning), **changes)


def write(name: str, **changes: Any) -> OutputParam:
    """The output `name`; `changes` are fields of its `OutputParam`."""
    kind, meaning = OUTPUTS[name]
    return replace(OutputParam(name, type_hint=kind, description=meaning), **changes)


def part_spec(name: str, known_as: str | None = None) -> ComponentSpec:
    """The component `name`, `known_as` something else in a workflow where that name is taken."""
    kind, meaning = PARTS[name]
    return ComponentSpec(known_as or name, kind, description=meaning, subfolder=name)


def setting_specs(*names: str) -> list[ConfigSpec]:
    """Settings of the pipeline."""
    return [ConfigSpec(name, SETTINGS[name].default, SETTINGS[name].meaning) for name in names]


class _Renamed:
    """Components under their own names, in a pipeline that knows some by others."""

    def __init__(self, components: Any, names: dict[str, str]) -> None:
        self._components, self._names = components, names

    def __getattr__(self, name: str) -> Any:
        return getattr(self._components, self._names.get(name, name))


class FocusStep(ModularPipelineBlocks):
    """A leaf block: subclasses name what they need, read and write, and `run`.

    Args:
        known_as: component -> its name in this workflow, where a foreign block has taken the usual one.
    """

    about: ClassVar[str] = ""
    parts: ClassVar[tuple[str, ...]] = ()
    may_lack: ClassVar[tuple[str, ...]] = ()  # of the parts, those it can do without
    settings: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[tuple[InputParam, ...]] = ()
    writes: ClassVar[tuple[OutputParam, ...]] = ()

    def __init__(self, known_as: dict[str, str] | None = None) -> None:
        super().__init__()
        self._known_as = dict(known_as or {})

    @property
    def description(self) -> str:
        """What the block does."""
        return self.about

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """The components it works with."""
        return [part_spec(name, self._known_as.get(name)) for name in self.parts]

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        """The settings it reads."""
        return setting_specs(*self.settings)

    @property
    def inputs(self) -> list[InputParam]:
        """What it reads."""
        return [replace(param) for param in self.reads]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """What it writes."""
        return [replace(param) for param in self.writes]

    def run(self, components: Any, block_state: Any) -> None:
        """Read inputs from `block_state` and set outputs on it."""
        raise NotImplementedError

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Run on a pipeline and its state; ValueError where a component is missing."""
        block_state = self.get_block_state(state)
        named = self.named(components)
        require(self, named)
        self.run(named, block_state)
        self.set_block_state(state, block_state)
        return components, state

    def named(self, components: Any) -> Any:
        """The components under the names the steps use."""
        return _Renamed(components, self._known_as) if self._known_as else components


def require(block: FocusStep, components: Any) -> None:
    """Raise ValueError unless the parts of a block are there."""
    needed = [name for name in block.parts if name not in block.may_lack]
    missing = [name for name in needed if getattr(components, name, None) is None]
    if missing:
        own = block._known_as.get(missing[0], missing[0])
        raise ValueError(
            f"{type(block).__name__} needs {', '.join(missing)}, which this pipeline has not got. Call load_components() first, "
            f"or pass it: update_components({own}=...)."
        )


class WithProgress:
    """A progress bar for a leaf block, as loops have it."""

    progress_bar = LoopSequentialPipelineBlocks.progress_bar
    set_progress_bar_config = LoopSequentialPipelineBlocks.set_progress_bar_config

    def token_bar(self, total: int) -> Any:
        """A bar over `total` visual tokens, as `on_token` of `write_codes`."""
        if total == 0:
            return lambda: True
        bar, left = self.progress_bar(total=total), [total]

        def step() -> bool:
            bar.update()
            left[0] -= 1
            if left[0] == 0:
                bar.close()
            return True

        return step
