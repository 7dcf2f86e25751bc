"""Asking about images: FOCUS section "Prompts", understanding tasks."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM, Qwen2Tokenizer  # noqa: F401 - looked up when loading

from ..models.vision_encoder import FocusVisionEncoder
from ..models.visual_tokenizer import FocusVisualTokenizer
from ..processing.conversations import conversations
from ..processing.images import FocusImageProcessor
from ..steps.description import object_finder
from ..steps.encode import FocusImageEncoding, FocusMixedEncoding
from ..steps.fit import check_fit
from ..steps.understand import MAX_ANSWER, answer_questions, streaming
from ._base import FocusPipelineMixin
from ._hub import register_pipeline
from ._lora import FocusLoraMixin
from .outputs import FocusTextOutput


class FocusUnderstandMixin(FocusPipelineMixin):
    """`understand`, for pipelines with a vision encoder and a language model."""

    @torch.no_grad()
    def understand(
        self,
        image: Any,
        prompt: str | list[Any] | None = None,
        region: Any = None,
        *,
        max_new_tokens: int = MAX_ANSWER,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        streamer: Any = None,
        caption_classes: list[str] | None = None,
        return_dict: bool = True,
    ) -> FocusTextOutput | tuple[list[str]]:
        """Answer a question about an image.

        Args:
            image: an image, a list of images (a batch), a list of lists (several images in one question, each read at its own
                token resolution), or an encoding from `encode_image`; None for a question without an image. Encodings of one
                image each may stand in a list of lists too, as may the frames of a clip.
            prompt: the question, or one for each image. Several questions about one image are a list too. None asks for a
                caption, of a region for what it is. A conversation is a list of messages, [{"role": "user", "content": "how
                many?"}, {"role": "assistant", "content": "two"}, {"role": "user", "content": "which colours?"}], where a
                message of the user may have a "region" of its own; a batch of them is a list of lists.
            region: a `Point`, `Scribble`, `Box` or `Mask` (or `Strokes` of them) that the question is about, in pixels of the
                input image; a list for a batch, a list of lists for several regions in one question.
            max_new_tokens: longest answer.
            temperature, top_k, top_p: sampling; by default the likeliest token is taken.
            generator: for sampling; a list has one for each answer.
            streamer: shows the answer while it is written: transformers' `TextStreamer` or `TextIteratorStreamer` on
                `lm_tokenizer`, or anything with their `put` and `end`. The first `put` is the prompt: give them
                `skip_prompt=True`.
            caption_classes: names of what is looked for where a caption is asked for (no prompt, or the prompt style's own) of a
                single image: each object found is asked about, from left to right, and what is said of them is the caption.
                Default: the pipeline's setting of this name (focus-tiny has one, converted originals have none). An empty list
                leaves the whole caption to the language model.
            return_dict: False returns a tuple.

        Returns:
            `FocusTextOutput`: `text`, one answer for each question.

        Raises:
            TypeError, ValueError: an argument or a component does not fit.
        """
        self._require("answering questions", "language_model", "lm_tokenizer")
        with streaming(streamer):
            conversations(prompt)  # before the images are read
            encoding = None if image is None else self._question_images(image)
            text = answer_questions(
                self,
                encoding,
                prompt,
                region,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                generator=generator,
                streamer=streamer,
                find=object_finder(self, encoding, self.config, caption_classes),
            )
        self.maybe_free_model_hooks()
        return FocusTextOutput(text=text) if return_dict else (text,)

    def _question_images(self, image: Any) -> FocusImageEncoding | FocusMixedEncoding:
        """Encoded images; those of a question that shows several are encoded one by one."""
        groups = image if isinstance(image, (list, tuple)) else ()
        if not any(isinstance(group, (list, tuple)) and len(group) > 1 for group in groups):
            return self.encode_image(image)
        lists = [list(group) if isinstance(group, (list, tuple)) else [group] for group in groups]
        images = tuple(self.encode_image(one) for group in lists for one in group)
        return FocusMixedEncoding(images, tuple(map(len, lists)))


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
        prompt: str | list[Any] | None = None,
        region: Any = None,
        *,
        max_new_tokens: int = MAX_ANSWER,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        streamer: Any = None,
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
            streamer=streamer,
            return_dict=return_dict,
        )


register_pipeline(FocusUnderstandPipeline)
