"""The workflows of FOCUS as sequences of blocks, and `FocusBlocks`, which chooses one by what it is given.

Laid out as diffusers' Qwen-Image edit blocks (Apache-2.0). A workflow is taken apart and put together through `sub_blocks`.
"""

from __future__ import annotations

import os
from copy import deepcopy
from typing import Any

from diffusers.modular_pipelines.components_manager import ComponentsManager
from diffusers.modular_pipelines.modular_pipeline import (
    AutoPipelineBlocks,
    ConditionalPipelineBlocks,
    SequentialPipelineBlocks,
)
from diffusers.modular_pipelines.modular_pipeline_utils import InsertableDict

from .before_denoise import (
    FocusConditionStep,
    FocusCropStep,
    FocusEditInputStep,
    FocusEditPrepareLatentsStep,
    FocusEditSetTimestepsStep,
    FocusEditTokensStep,
    FocusGenerateTokensStep,
    FocusPrepareLatentsStep,
    FocusSetTimestepsStep,
)
from .decoders import FocusDecodeStep, FocusEditDecodeStep, FocusKeepImageStep
from .denoise import FocusDenoiseStep
from .encoders import FocusImageEncoderStep, FocusLocateStep, FocusSegmentStep, FocusUnderstandStep


class FocusSequence(SequentialPipelineBlocks):
    """Blocks in a row, whose pipeline is a `FocusModularPipeline`.

    Blocks of FOCUS have no `model_name`: a foreign workflow with one of them in it stays what it was.
    """

    about = "Blocks of FOCUS in a row."

    @property
    def description(self) -> str:
        """What the sequence does, and its blocks."""
        return "\n".join([self.about, *_list_blocks(self)])

    def init_pipeline(
        self,
        pretrained_model_name_or_path: str | os.PathLike | None = None,
        components_manager: ComponentsManager | None = None,
        collection: str | None = None,
    ) -> Any:
        """A `FocusModularPipeline` of these blocks.

        Args:
            pretrained_model_name_or_path: folder or Hub id with a modular_model_index.json or a model_index.json; its components
                come with `load_components()`.
            components_manager, collection: where components are kept and shared.
        """
        from .modular_pipeline import FocusModularPipeline

        return FocusModularPipeline(deepcopy(self), pretrained_model_name_or_path, components_manager, collection)

    def get_execution_blocks(self, **kwargs: Any) -> FocusSequence:
        """The blocks that these inputs would run, in a row."""
        blocks = super().get_execution_blocks(**kwargs)
        return FocusSequence.from_blocks_dict(dict(blocks.sub_blocks))  # pyright: ignore[reportReturnType]


def _list_blocks(blocks: Any) -> list[str]:
    return [f" - `{name}`: {block.description.splitlines()[0]}" for name, block in blocks.sub_blocks.items()]


class FocusAutoImageEncoderStep(AutoPipelineBlocks):
    """Encodes images where there are any."""

    block_classes = [FocusImageEncoderStep]
    block_names = ["encode"]
    block_trigger_inputs = ["image"]

    @property
    def description(self) -> str:
        """What it does."""
        return "Encodes `image` where one is given."


class FocusAskBlocks(FocusSequence):
    """`question`, with or without `image` -> `text`."""

    about = "Answers questions about images."
    block_classes = [FocusAutoImageEncoderStep, FocusUnderstandStep]
    block_names = ["encode_image", "ask"]


class FocusSegmentBlocks(FocusSequence):
    """`image` and `target`, `region` or `classes` -> `masks`, `mask_image`.

    Fits into a foreign inpainting workflow, in front of the block that reads `mask_image`:
    `blocks.sub_blocks.insert("segment", FocusSegmentBlocks({"image_processor": "focus_image_processor"}), 0)`.

    Args:
        known_as: component -> its name in this workflow, where a foreign block has taken the usual one, as SDXL's blocks have
            with `image_processor`.
    """

    about = "Finds what an expression, a region or a list of names refers to in images."
    block_classes = [FocusImageEncoderStep, FocusSegmentStep]
    block_names = ["encode_image", "segment"]

    def __init__(self, known_as: dict[str, str] | None = None) -> None:
        super().__init__()
        if known_as:
            parts = zip(self.block_names, self.block_classes)
            self.sub_blocks = InsertableDict((name, block(known_as)) for name, block in parts)


class FocusDrawEditStep(FocusSequence):
    """`edits` with their masks -> `images`."""

    about = "Writes the visual tokens of edits, denoises and puts the edits back into their images."
    block_classes = [
        FocusCropStep,
        FocusEditTokensStep,
        FocusEditSetTimestepsStep,
        FocusEditPrepareLatentsStep,
        FocusConditionStep,
        FocusDenoiseStep,
        FocusEditDecodeStep,
    ]
    block_names = ["crop", "tokens", "set_timesteps", "prepare_latents", "condition", "denoise", "decode"]


class FocusAutoDrawStep(ConditionalPipelineBlocks):
    """Draws edits, unless no pixel of any may change: then the images go back as they are."""

    block_classes = [FocusDrawEditStep, FocusKeepImageStep]
    block_names = ["draw", "keep"]
    block_trigger_inputs = ["edits", "preserve_background", "output_type"]
    default_block_name = "draw"

    @property
    def description(self) -> str:
        """What it does."""
        return "Draws the edits; where nothing may change, returns the images as they are."

    def select_block(self, edits: Any = None, preserve_background: Any = None, output_type: Any = None) -> str | None:
        """ "keep" where there is nothing to draw; told of names alone (`get_workflow`), "draw"."""
        nothing = isinstance(edits, list) and not any(one.mask.any() for one in edits)
        return "keep" if nothing and preserve_background is not False and output_type != "latent" else "draw"


class FocusCoreEditStep(FocusSequence):
    """An edit of `image_encoding`: where, then what."""

    about = "Edits exactly what an instruction is about."
    block_classes = [FocusLocateStep, FocusEditInputStep, FocusAutoDrawStep]
    block_names = ["locate", "edit_input", "draw"]


class FocusEditBlocks(FocusSequence):
    """`image` and `prompt` (with `target`, `region` or `mask_image`) -> `images`, `masks`, `edit_masks`.

    Any block that writes `mask_image` can take the place of "locate": `blocks.sub_blocks["locate"] = ThatBlock()`.
    """

    about = "Edits exactly what an instruction is about."
    block_classes = [FocusImageEncoderStep, FocusLocateStep, FocusEditInputStep, FocusAutoDrawStep]
    block_names = ["encode_image", "locate", "edit_input", "draw"]


class FocusGenerateBlocks(FocusSequence):
    """`prompt` -> `images`."""

    about = "Draws images from descriptions."
    block_classes = [
        FocusGenerateTokensStep,
        FocusSetTimestepsStep,
        FocusPrepareLatentsStep,
        FocusConditionStep,
        FocusDenoiseStep,
        FocusDecodeStep,
    ]
    block_names = ["tokens", "set_timesteps", "prepare_latents", "condition", "denoise", "decode"]


class FocusAutoTaskStep(ConditionalPipelineBlocks):
    """One of the four tasks, by what is given."""

    block_classes = [FocusUnderstandStep, FocusSegmentStep, FocusCoreEditStep, FocusGenerateBlocks]
    block_names = ["ask", "segment", "edit", "generate"]
    block_trigger_inputs = ["question", "prompt", "image_encoding", "target", "region", "classes"]

    @property
    def description(self) -> str:
        """Which task is chosen when."""
        return (
            "Runs one task, by what is given.\n"
            " - `ask`: `question` is given\n"
            " - `edit`: `prompt` and an image\n"
            " - `generate`: `prompt` alone\n"
            " - `segment`: an image and `target`, `region` or `classes`"
        )

    def select_block(
        self,
        question: Any = None,
        prompt: Any = None,
        image_encoding: Any = None,
        target: Any = None,
        region: Any = None,
        classes: Any = None,
    ) -> str | None:
        """The task; ValueError where none or two are asked for."""
        if question is not None and prompt is not None:
            raise ValueError(
                "Both question and prompt were given. Ask with question=..., edit or draw with prompt=..., one at a time."
            )
        if question is not None:
            return "ask"
        if prompt is not None:
            return "generate" if image_encoding is None else "edit"
        if image_encoding is not None and not (target is None and region is None and classes is None):
            return "segment"
        raise ValueError(
            "Nothing was asked for. Pass question=..., prompt=... to draw or (with image=...) to edit, or image=... with "
            "target=..., region=... or classes=... to segment."
        )


class FocusBlocks(FocusSequence):
    """All of FOCUS: answers, segments, edits or draws, by what it is given."""

    about = "Answers questions about images, segments what is referred to, edits exactly that, draws from descriptions."
    block_classes = [FocusAutoImageEncoderStep, FocusAutoTaskStep]
    block_names = ["encode_image", "core"]
    _workflow_map = {
        "ask": {"question": True, "image": True},
        "segment": (
            {"image": True, "target": True},
            {"image": True, "region": True},
            {"image": True, "classes": True},
        ),
        "edit": {"image": True, "prompt": True},
        "generate": {"prompt": True},
    }

    def get_workflow(self, workflow_name: str) -> FocusSequence:
        """The blocks of "ask", "segment", "edit" or "generate", named as in `FocusEditBlocks` and its neighbours."""
        blocks = super().get_workflow(workflow_name).sub_blocks
        names = [workflow_name if name == "core" else name.rsplit(".", 1)[-1] for name in blocks]
        return FocusSequence.from_blocks_dict(dict(zip(names, blocks.values())))  # pyright: ignore[reportReturnType]


# What `_blocks_class_name` of a modular_model_index.json may name.
WORKFLOWS: dict[str, type[FocusSequence]] = {
    cls.__name__: cls for cls in (FocusBlocks, FocusAskBlocks, FocusSegmentBlocks, FocusEditBlocks, FocusGenerateBlocks)
}
