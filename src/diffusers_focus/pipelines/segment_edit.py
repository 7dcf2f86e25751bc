"""Segmenting, editing and generating: `FocusSegmentEditPipeline`."""

from __future__ import annotations

from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,  # noqa: F401 - looked up when a pipeline is loaded
)

from ..models.mask_conditioner import FocusMaskConditioner
from ..models.mask_decoder import FocusMaskDecoder
from ..models.vision_encoder import FocusVisionEncoder
from ..models.visual_tokenizer import FocusVisualTokenizer
from ..processing.images import FocusImageProcessor
from ._base import check_fit
from ._segment_edit import FocusSegmentEditMixin

OFFLOAD_SEQUENCE = "vision_encoder->visual_tokenizer->mask_decoder->mask_conditioner->language_model->unet->vae"
RESERVED = ["tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "controlnet"]
CALLBACK_TENSORS = ["latents", "token_map", "prompt_embeds", "negative_prompt_embeds"]


def setup(pipeline: Any, settings: dict[str, Any], **components: Any) -> None:
    """Register components and settings on a new pipeline and check that they fit each other."""
    pipeline.register_modules(**components)
    unknown = sorted(set(settings) - set(pipeline.settings))
    if unknown:
        raise TypeError(f"Unknown settings {unknown}; known are {sorted(pipeline.settings)}.")
    pipeline.register_to_config(**{**pipeline.settings, **settings})
    pipeline._guidance_scale, pipeline._interrupt, pipeline._num_timesteps = 1.0, False, 0
    check_fit(pipeline)


class FocusSegmentEditPipeline(FocusSegmentEditMixin, DiffusionPipeline):
    """One model that finds what you refer to and edits exactly that.
