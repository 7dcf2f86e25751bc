"""Segmenting, editing and generating: `FocusSegmentEditPipeline`."""

from __future__ import annotations

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, StableDiffusionMixin
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerBase,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,  # noqa: F401 - looked up when a pipeline is loaded
)
from transformers.image_processing_utils import BaseImageProcessor

from ..models.mask_conditioner import FocusMaskConditioner
from ..models.mask_decoder import FocusMaskDecoder
from ..models.vision_encoder import FocusVisionEncoder
from ..models.visual_tokenizer import FocusVisualTokenizer
from ..processing.images import FocusImageProcessor
from ..steps.fit import check_fit
from ..steps.settings import RESOLUTION_GROUP
from ._edit_clip import FocusEditClipMixin
from ._hub import register_pipeline
from ._lora import FocusLoraMixin


class FocusSegmentEditMixin(FocusLoraMixin, StableDiffusionMixin, FocusEditClipMixin):
    """Components and settings of the pipelines that segment and edit. Their constructor is this one."""

    model_cpu_offload_seq = "->".join(
        (
            "text_encoder",
            "text_encoder_2",
            "image_encoder",
            "vision_encoder",
            "visual_tokenizer",
            "mask_decoder",
            "mask_conditioner",
        )
        + ("language_model", "unet", "vae")
    )
    _optional_components = [
        "mask_decoder",
        "mask_conditioner",
        "tokenizer",
        "tokenizer_2",
        "text_encoder",
        "text_encoder_2",
        "controlnet",
        "image_encoder",
        "feature_extractor",
    ]
    _callback_tensor_inputs = [
        "latents",
        "token_map",
        "prompt_embeds",
        "negative_prompt_embeds",
        "add_text_embeds",
        "add_time_ids",
    ]

    def __init__(
        self,
        vision_encoder: FocusVisionEncoder,
        language_model: Qwen2ForCausalLM,
        lm_tokenizer: PreTrainedTokenizerBase,
        visual_tokenizer: FocusVisualTokenizer,
        mask_decoder: FocusMaskDecoder,
        mask_conditioner: FocusMaskConditioner,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: KarrasDiffusionSchedulers,
        image_processor: FocusImageProcessor,
        tokenizer: CLIPTokenizer | None = None,
        tokenizer_2: CLIPTokenizer | None = None,
        text_encoder: CLIPTextModel | None = None,
        text_encoder_2: CLIPTextModelWithProjection | None = None,
        controlnet: ControlNetModel | list[ControlNetModel] | MultiControlNetModel | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        feature_extractor: BaseImageProcessor | None = None,
        resolution_group: list | tuple = RESOLUTION_GROUP,
        score_threshold: float = 0.5,
        fallback_threshold: float = 0.3,
        duplicate_iou: float = 0.7,
        presence_threshold: float = 0.0,
        calibration: dict | None = None,
        mask_refinement: float = 0.0,
        mask_dilation: float = 0.02,
        mask_feather: float = 0.02,
        masks_trained: bool = True,
        classes_trained: bool = True,
        caption_classes: str | list[str] | None = None,
        caption_count: str | None = None,
        edit_masks_trained: bool = True,
        instances_trained: bool = False,
        edit_regions_trained: bool = False,
        instruction_phrases: bool = False,
        edit_without_mask: bool = False,
        description_sketch: dict | None = None,
        images_trained: bool = True,
        num_text_tokens: int = 77,
        default_num_inference_steps: int = 50,
        default_guidance_scale: float = 2.0,
        default_token_guidance_scale: float = 2.0,
        kept_outline_token_guidance_scale: float | None = None,
        default_temperature: float = 1.0,
        default_top_k: int = 2048,
        default_top_p: float = 1.0,
        pixel_code_sharpness: float = 0.0,
    ) -> None:
        super().__init__()
        if isinstance(controlnet, (list, tuple)):
            controlnet = MultiControlNetModel(controlnet)
        self.register_modules(
            vision_encoder=vision_encoder,
            language_model=language_model,
            lm_tokenizer=lm_tokenizer,
            visual_tokenizer=visual_tokenizer,
            mask_decoder=mask_decoder,
            mask_conditioner=mask_conditioner,
            unet=unet,
            vae=vae,
            scheduler=scheduler,
            image_processor=image_processor,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            text_encoder=text_encoder,
            text_encoder_2=text_encoder_2,
            controlnet=controlnet,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
        )
        self.register_to_config(
            resolution_group=[list(size) for size in resolution_group],
            score_threshold=score_threshold,
            fallback_threshold=fallback_threshold,
            duplicate_iou=duplicate_iou,
            presence_threshold=presence_threshold,
            calibration=calibration,
            mask_refinement=mask_refinement,
            mask_dilation=mask_dilation,
            mask_feather=mask_feather,
            masks_trained=masks_trained,
            classes_trained=classes_trained,
            # One text: diffusers takes a list of words in model_index.json for a component.
            caption_classes=", ".join(caption_classes)
            if isinstance(caption_classes, (list, tuple))
            else caption_classes,
            caption_count=caption_count,
            edit_masks_trained=edit_masks_trained,
            instances_trained=instances_trained,
            edit_regions_trained=edit_regions_trained,
            instruction_phrases=instruction_phrases,
            edit_without_mask=edit_without_mask,
            description_sketch=description_sketch,
            images_trained=images_trained,
            num_text_tokens=num_text_tokens,
            default_num_inference_steps=default_num_inference_steps,
            default_guidance_scale=default_guidance_scale,
            default_token_guidance_scale=default_token_guidance_scale,
            kept_outline_token_guidance_scale=kept_outline_token_guidance_scale,
            default_temperature=default_temperature,
            default_top_k=default_top_k,
            default_top_p=default_top_p,
            pixel_code_sharpness=pixel_code_sharpness,
        )
        check_fit(self)


class FocusSegmentEditPipeline(FocusSegmentEditMixin, DiffusionPipeline):
    """Finds what you refer to and edits exactly that; also draws images from descriptions.

    Args:
        vision_encoder ([`FocusVisionEncoder`]): image -> tokens of the language model, and feature maps.
        language_model ([`Qwen2ForCausalLM`]): with the visual tokens in its vocabulary.
        lm_tokenizer ([`Qwen2Tokenizer`]): its tokenizer.
        visual_tokenizer ([`FocusVisualTokenizer`]): images to discrete codes and back.
        mask_decoder ([`FocusMaskDecoder`]): mask slots and feature maps -> masks. None where a model cannot segment.
        mask_conditioner ([`FocusMaskConditioner`]): edit mask -> sequence for the UNet. None where it was not trained with one.
        unet ([`UNet2DConditionModel`]): SDXL's, with the token embeddings as further input channels.
        vae ([`AutoencoderKL`]): images to latents and back.
        scheduler ([`SchedulerMixin`]): any Karras-style scheduler.
        image_processor ([`FocusImageProcessor`]): images in and out, prompt style and token resolutions.
        tokenizer, tokenizer_2, text_encoder, text_encoder_2: SDXL's, for `decoder_prompt`. None where the decoder takes no words.
        controlnet ([`ControlNetModel`], a list of them or [`MultiControlNetModel`]): SDXL's, for `control_image`.
        image_encoder ([`CLIPVisionModelWithProjection`]), feature_extractor ([`CLIPImageProcessor`]): of an IP-Adapter, for
            `ip_adapter_image`; `load_ip_adapter` brings them.
        resolution_group: [width, height] of the sizes the UNet was trained on; the place in the list is its condition.
        score_threshold, fallback_threshold, duplicate_iou, presence_threshold: which proposals count, see
            `steps.segment.select_objects`.
        calibration: the maps that make scores, qualities and presence probabilities, see `steps.confidence`; written by
            `diffusers-focus calibrate`. None is plain sigmoids.
        mask_refinement: how far outlines look for the image's own edges, in cells of the mask decoder's grid (four pixels of the
            canvas; see `processing.outlines`). 0 leaves them as the mask decoder draws them, as the paper does.
        mask_dilation: growth of a referred mask into an edit mask, as a share of the image's shorter side; the model's own edit
            masks grow by twice that where an instruction asks for another outline, else not.
        mask_feather: reach of the soft edge of an edit, likewise.
        masks_trained: whether the mask decoder was trained with this language model. Without, `segment` refuses, and the place of
            an edit is a mask, box or rough mask from outside, or the whole image.
        classes_trained: whether the language model knows lists of names. Without, `segment(classes=...)` asks each name by itself.
        caption_classes: names (a list, or a text with commas between) of what is looked for where `understand` is asked for a
            caption: each object found is asked about, from left to right, and what is said of them is the caption. None leaves the
            whole of it to the language model.
        caption_count: the question for the number of objects ("how many objects are there?"), asked before: as many of those found
            are asked about. None goes by their scores.
        edit_masks_trained: whether the mask decoder's edit masks can be used.
        instances_trained: whether instance embeddings tell objects apart (stage 3-identities, or `clips` in stage 3's mixture);
            without, features under the masks link the frames of a clip.
        edit_regions_trained: whether the language model knows edit prompts with regions in them.
        instruction_phrases: whether the object of an instruction is looked for by its own words too ("the large ring" of "make the
            large ring red"); where the two readings differ, these count.
        edit_without_mask: whether an instruction that finds nothing edits the whole image, instead of leaving it unchanged.
        description_sketch: how the objects of a description are laid out in a sketch, whose edits they then are (a dictionary of
            the fields of `steps.sketch.SketchStyle`). None draws a description in one go, as the paper does.
        images_trained: whether the language model was trained to write images; without it, edits and generations come with a
            warning.
        num_text_tokens: zero rows in front of the UNet's sequence, where SDXL has its text.
        default_num_inference_steps, default_guidance_scale: what a call uses unless it says otherwise.
        default_token_guidance_scale, default_temperature, default_top_k, default_top_p: the same for drawing visual tokens.
        kept_outline_token_guidance_scale: the same for edits after which an object has the outline it had (anything but replacing,
            reshaping and resizing); None takes `default_token_guidance_scale`.
        pixel_code_sharpness: above 0, pixel tokens at temperature 0 are those nearest to the mean of what could be written, whose
            odds are raised to this power first; 0 takes the likeliest.
    """


register_pipeline(FocusSegmentEditPipeline, "focus-segment-edit")
