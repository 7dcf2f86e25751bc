"""Blocks that read images: encode, answer, segment, and find the place of an edit (FOCUS sections "Dual-branch encoder", "Prompts",
"Segmentation predictor").

Named and cut as diffusers' own modular encoders (Apache-2.0). `FocusSegmentStep` and `FocusLocateStep` write `mask_image`, the name
inpainting blocks read, so the first fits into foreign workflows and any block that writes it can stand in for the second.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from ..steps import encode
from ..steps.description import object_finder
from ..steps.editing import edit_places, edit_prompts
from ..steps.joint_edits import nested
from ..steps.mask_requests import mask_request
from ..steps.segment import find_objects, require_masks
from ..steps.understand import answer_questions, streaming
from ._step import FocusStep, read, write

_SELECTING = (
    "score_threshold",
    "fallback_threshold",
    "duplicate_iou",
    "presence_threshold",
    "calibration",
    "mask_refinement",
    "classes_trained",
)
_FOUND = ("masks", "scores", "labels", "text", "instance_embeds", "presence", "qualities")
_LANGUAGE = ("vision_encoder", "language_model", "lm_tokenizer", "image_processor")


class FocusImageEncoderStep(FocusStep):
    """`image` -> `image_encoding`: each image is encoded once, whatever is asked of it."""

    about = "Encodes images once for any number of questions, masks and edits."
    parts = ("vision_encoder", "visual_tokenizer", "image_processor")
    may_lack = ("visual_tokenizer",)  # an encoder with a pixel tower of its own does without
    reads = (read("image", required=True),)
    writes = (write("image_encoding"),)

    def run(self, components: Any, block_state: Any) -> None:
        """Encode; an encoding stays as it is."""
        image = block_state.image
        if not isinstance(image, encode.FocusImageEncoding) and components.vision_encoder.pixel_tower is None:
            if components.visual_tokenizer is None:
                raise ValueError(
                    "This vision encoder reads the visual tokenizer's pixel features, and there is no visual_tokenizer. Call "
                    "load_components() first, or pass it: update_components(visual_tokenizer=...)."
                )
        block_state.image_encoding = encode.encode_image(components, image, device=components._execution_device)


class FocusUnderstandStep(FocusStep):
    """`question` (about `image_encoding`, or about nothing) -> `text`."""

    about = "Answers questions about encoded images, about a region of one, or without an image."
    parts = _LANGUAGE  # the mask decoder, which captions may use, is not loaded for asking alone
    may_lack = ("vision_encoder",)
    settings = (*_SELECTING, "masks_trained", "caption_classes", "caption_count")
    reads = (
        read("image_encoding"),
        read("question", required=True),
        read("region"),
        read("max_new_tokens"),
        read("temperature"),
        read("top_k"),
        read("top_p"),
        read("generator"),
        read("streamer"),
        read("caption_classes"),
    )
    writes = (write("text"),)

    def run(self, components: Any, block_state: Any) -> None:
        """Answer."""
        with streaming(block_state.streamer):
            block_state.text = answer_questions(
                components,
                block_state.image_encoding,
                block_state.question,
                block_state.region,
                max_new_tokens=block_state.max_new_tokens,
                temperature=block_state.temperature,
                top_k=block_state.top_k,
                top_p=block_state.top_p,
                generator=block_state.generator,
                streamer=block_state.streamer,
                find=object_finder(
                    *(components, block_state.image_encoding, components.config, block_state.caption_classes)
                ),
            )


class FocusSegmentStep(FocusStep):
    """`target`, `region` or `classes` in `image_encoding` -> `masks` and the rest of a `FocusSegmentOutput`, and `mask_image`.

    With several expressions an image (a list of lists), an image's `mask_image` is the union of all its masks.
    """

    about = "Finds what an expression, a region or a list of names refers to."
    parts = (*_LANGUAGE, "mask_decoder")
    may_lack = ("mask_decoder",)  # its own error says what to do without one
    settings = (*_SELECTING, "masks_trained", "instances_trained")
    reads = (
        read("image_encoding", required=True),
        read("target"),
        read("region"),
        read("classes"),
        read("task"),
        read("stuff"),
        read("max_new_tokens"),
        read("score_threshold"),
        read("fallback_threshold"),
    )
    writes = tuple(write(name) for name in (*_FOUND, "mask_image"))

    def run(self, components: Any, block_state: Any) -> None:
        """Find the objects."""
        settings = components.config
        require_masks(components, settings, "segmenting")
        encoding = encode.single_images(block_state.image_encoding, "Segmenting")
        request = mask_request(
            encoding,
            block_state.target,
            block_state.region,
            classes=block_state.classes,
            task=block_state.task,
            stuff=block_state.stuff,
        )
        found = find_objects(
            components,
            encoding,
            request.prompts,
            settings,
            max_new_tokens=block_state.max_new_tokens,
            score_threshold=block_state.score_threshold,
            fallback_threshold=block_state.fallback_threshold,
        )
        for name in _FOUND:
            setattr(block_state, name, request.grouped([getattr(one, name) for one in found]))
        unions = request.grouped([one.masks.any(axis=0) for one in found])
        block_state.mask_image = [
            mask_picture(np.logical_or.reduce(one) if isinstance(one, list) else one) for one in unions
        ]


class FocusLocateStep(FocusStep):
    """Where an edit takes place: the instruction (or `target`, `region`, `mask_image`) -> `mask_image` and `masks`.

    Any block that writes `mask_image`, one image an edit, nested as `prompt` is, can take its place.
    """

    about = "Finds where an edit takes place: the pixels that may change, and what the edit is about."
    parts = (*_LANGUAGE, "mask_decoder")
    may_lack = ("mask_decoder",)
    settings = (
        *_SELECTING,
        "masks_trained",
        "edit_masks_trained",
        "edit_regions_trained",
        "instruction_phrases",
        "edit_without_mask",
        "mask_dilation",
    )
    reads = (
        read("image_encoding", required=True),
        read("prompt", required=True),
        read("target"),
        read("region"),
        read("mask_image"),
        read("mask_dilation"),
    )
    writes = (write("masks"), write("mask_image", description='Where pixels may change, mode "L", one image an edit.'))

    def run(self, components: Any, block_state: Any) -> None:
        """Find the places."""
        settings = components.config
        encoding = encode.single_images(block_state.image_encoding, "An edit")
        prompts = edit_prompts(
            components,
            encoding,
            block_state.prompt,
            settings,
            target=block_state.target,
            region=block_state.region,
            mask_image=block_state.mask_image,
        )
        places = edit_places(components, encoding, prompts, settings, mask_dilation=block_state.mask_dilation)
        block_state.masks = nested(prompts, [place.masks for place in places])
        block_state.mask_image = nested(prompts, [mask_picture(place.edit_mask) for place in places])


def mask_picture(mask: np.ndarray) -> Image.Image:
    """A mask bool [height, width] as an image of mode "L", 255 inside."""
    return Image.fromarray(mask.astype(np.uint8) * 255)
