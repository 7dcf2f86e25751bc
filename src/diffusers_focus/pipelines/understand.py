"""Asking about images: FOCUS section "Prompts", understanding tasks."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM, Qwen2Tokenizer  # noqa: F401 - looked up when loading

from ..models.vision_encoder import FocusVisionEncoder
from ..models.visual_tokenizer import FocusVisualTokenizer
from ..processing.images import FocusImageProcessor
from ..processing.prompts import REGION_UNDERSTAND, UNDERSTAND
from ..steps.segment import embed_regions
from ..steps.sequence import FocusContext, suffix_row
from ..steps.understand import answer_prompts
from ._base import (
    FocusPipelineMixin,
    as_list,
    check_count,
    check_fit,
    check_text,
    generator_list,
    region_masks,
    spread,
    token_sampling,
)
from ._lora import FocusLoraMixin
from .outputs import FocusTextOutput


class FocusUnderstandMixin(FocusPipelineMixin):
    """`understand`, for pipelines with a vision encoder and a language model."""

    @torch.no_grad()
    def understand(
        self,
        image: Any,
        prompt: str | list[str],
        region: Any = None,
        *,
        max_new_tokens: int = 128,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> FocusTextOutput | tuple[list[str]]:
        """Answer a question about an image.

        Args:
            image: an image, a list of images (a batch), a list of lists (several images in one question), or an encoding from
                `encode_image`; None for a question without an image.
            prompt: the question, or one for each image. Several questions about one image are a list too.
            region: a `Point`, `Scribble`, `Box` or `Mask` that the question is about, in pixels of the input image; a list for
                a batch, a list of lists for several regions in one question.
            max_new_tokens: longest answer.
            temperature, top_k, top_p: sampling; by default the likeliest token is taken.
            generator: for sampling; a list has one for each answer.
            return_dict: False returns a tuple.

        Returns:
            `FocusTextOutput`: `text`, one answer for each question.

        Raises:
            TypeError, ValueError: an argument or a component does not fit.
        """
        self._require("answering questions", "language_model", "lm_tokenizer")
        check_count(max_new_tokens, "max_new_tokens")
        for text in as_list(prompt, "prompt") or [prompt]:
            check_text(text, "prompt")
        sampling = token_sampling(temperature, top_k, top_p)
        encoding = None if image is None else self.encode_image(image)
        groups = 1 if encoding is None else len(encoding.counts)
        count, given = spread(groups, prompt=prompt, region=region)
        generator = generator_list(generator, count)
        prompts = list(range(groups)) if groups == count else [0] * count
        if region is not None and (encoding is None or any(number != 1 for number in encoding.counts)):
            raise ValueError("A region needs exactly one image in its question. Ask about that image alone.")
        masks = [
            region_masks(one, encoding.original_sizes[index]) if encoding is not None else ()
            for index, one in zip(prompts, given["region"])
        ]
        context = FocusContext.of(self)
        rows = []
        for index, text, regions in zip(prompts, given["prompt"], masks):
            task = REGION_UNDERSTAND if regions else UNDERSTAND
            number = 0 if encoding is None else encoding.counts[index]
            parts = context.style.suffix(task, text=text, num_images=number, num_regions=len(regions))
            rows.append(suffix_row(context, parts))
        region_tokens = None
        if encoding is not None:
            images = [index for index, regions in zip(prompts, masks) for _ in regions]
            region_tokens = embed_regions(self, encoding, images, [mask for regions in masks for mask in regions])
        self._wake("language_model")
        text = answer_prompts(
            self,
            encoding,
            rows,
            prompts,
            task=UNDERSTAND,
            region_tokens=region_tokens,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            generator=generator,
        )
        self.maybe_free_model_hooks()
        return FocusTextOutput(text=text) if return_dict else (text,)


class FocusUnderstandPipeline(FocusUnderstandMixin, FocusLoraMixin, DiffusionPipeline):
    """Questions about images, without the parts that segment and draw.

    Args:
        vision_encoder ([`FocusVisionEncoder`]): image -> tokens of the language model.
        language_model ([`Qwen2ForCausalLM`]): with the visual tokens in its vocabulary.
        lm_tokenizer ([`Qwen2Tokenizer`]): its tokenizer.
        visual_tokenizer ([`FocusVisualTokenizer`]): its pixel encoder gives the continuous pixel tokens.
        image_processor ([`FocusImageProcessor`]): images in, prompt style and token resolutions.
    """

    model_cpu_offload_seq = "vision_encoder->visual_tokenizer->language_model"
    _lora_loadable_modules = ["language_model"]

    def __init__(
        self,
        vision_encoder: FocusVisionEncoder,
        language_model: Qwen2ForCausalLM,
        lm_tokenizer: PreTrainedTokenizerBase,
        visual_tokenizer: FocusVisualTokenizer,
        image_processor: FocusImageProcessor,
    ) -> None:
        super().__init__()
        self.register_modules(
            vision_encoder=vision_encoder,
            language_model=language_model,
            lm_tokenizer=lm_tokenizer,
            visual_tokenizer=visual_tokenizer,
            image_processor=image_processor,
        )
        check_fit(self)

    def __call__(
        self,
        image: Any,
        prompt: str | list[str],
        region: Any = None,
        *,
        max_new_tokens: int = 128,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> FocusTextOutput | tuple[list[str]]:
        """Answer a question about an image; the arguments are those of `understand`."""
        return self.understand(
            image,
            prompt,
            region,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            generator=generator,
            return_dict=return_dict,
        )
