"""diffusers-focus: an open implementation of FOCUS (arXiv 2506.16806) as a plugin for diffusers.

One vision-language model answers questions about an image, segments what is referred to and edits exactly that region
with an SDXL decoder. This module is the public door, and a lazy one: importing it costs nothing, and a name brings in
its own module (and with it torch, diffusers and transformers) only when it is first used.

A new public name is one row in `_HOMES` and one line under `TYPE_CHECKING`; a test keeps the two alike.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .models.mask_conditioner import FocusMaskConditioner as FocusMaskConditioner
    from .models.mask_decoder import FocusMaskDecoder as FocusMaskDecoder
    from .models.vision_encoder import FocusVisionEncoder as FocusVisionEncoder
    from .models.visual_tokenizer import FocusVisualTokenizer as FocusVisualTokenizer
    from .modular.before_denoise import FocusConditionStep as FocusConditionStep
    from .modular.before_denoise import FocusCropStep as FocusCropStep
    from .modular.before_denoise import FocusEditInputStep as FocusEditInputStep
    from .modular.before_denoise import FocusEditPrepareLatentsStep as FocusEditPrepareLatentsStep
    from .modular.before_denoise import FocusEditSetTimestepsStep as FocusEditSetTimestepsStep
    from .modular.before_denoise import FocusEditTokensStep as FocusEditTokensStep
    from .modular.before_denoise import FocusGenerateTokensStep as FocusGenerateTokensStep
    from .modular.before_denoise import FocusPrepareLatentsStep as FocusPrepareLatentsStep
    from .modular.before_denoise import FocusSetTimestepsStep as FocusSetTimestepsStep
    from .modular.decoders import FocusDecodeStep as FocusDecodeStep
    from .modular.decoders import FocusEditDecodeStep as FocusEditDecodeStep
    from .modular.decoders import FocusKeepImageStep as FocusKeepImageStep
    from .modular.denoise import FocusDenoiseStep as FocusDenoiseStep
    from .modular.encoders import FocusImageEncoderStep as FocusImageEncoderStep
    from .modular.encoders import FocusLocateStep as FocusLocateStep
    from .modular.encoders import FocusSegmentStep as FocusSegmentStep
    from .modular.encoders import FocusUnderstandStep as FocusUnderstandStep
    from .modular.modular_blocks import FocusAskBlocks as FocusAskBlocks
    from .modular.modular_blocks import FocusBlocks as FocusBlocks
    from .modular.modular_blocks import FocusEditBlocks as FocusEditBlocks
    from .modular.modular_blocks import FocusGenerateBlocks as FocusGenerateBlocks
    from .modular.modular_blocks import FocusSegmentBlocks as FocusSegmentBlocks
    from .modular.modular_pipeline import FocusModularPipeline as FocusModularPipeline
    from .pipelines._edit_clip import FocusClipEditOutput as FocusClipEditOutput
    from .pipelines._edit_clip import FocusEditedFrame as FocusEditedFrame
    from .pipelines.clip_outputs import FocusClipOutput as FocusClipOutput
    from .pipelines.clip_outputs import FocusClipWriter as FocusClipWriter
    from .pipelines.focus import FocusPipeline as FocusPipeline
    from .pipelines.outputs import FocusEditOutput as FocusEditOutput
    from .pipelines.outputs import FocusSegmentOutput as FocusSegmentOutput
    from .pipelines.outputs import FocusTextOutput as FocusTextOutput
    from .pipelines.segment_edit import FocusSegmentEditPipeline as FocusSegmentEditPipeline
    from .pipelines.understand import FocusUnderstandPipeline as FocusUnderstandPipeline
    from .processing.images import FocusImageProcessor as FocusImageProcessor
    from .processing.regions import Box as Box
    from .processing.regions import Mask as Mask
    from .processing.regions import Point as Point
    from .processing.regions import Scribble as Scribble
    from .processing.regions import Strokes as Strokes
    from .steps.clips import FocusClipFrame as FocusClipFrame
    from .steps.encode import FocusImageEncoding as FocusImageEncoding

    __version__: str

# Public name -> the module that defines it. The modules of component classes are written into saved pipelines
# (model_index.json), so those rows are part of the checkpoint format.
_HOMES: dict[str, str] = {
    "Box": "processing.regions",
    "FocusAskBlocks": "modular.modular_blocks",
    "FocusBlocks": "modular.modular_blocks",
    "FocusClipEditOutput": "pipelines._edit_clip",
    "FocusClipFrame": "steps.clips",
    "FocusEditedFrame": "pipelines._edit_clip",
    "FocusClipOutput": "pipelines.clip_outputs",
    "FocusClipWriter": "pipelines.clip_outputs",
    "FocusConditionStep": "modular.before_denoise",
    "FocusDecodeStep": "modular.decoders",
    "FocusDenoiseStep": "modular.denoise",
    "FocusEditBlocks": "modular.modular_blocks",
    "FocusEditDecodeStep": "modular.decoders",
    "FocusCropStep": "modular.before_denoise",
    "FocusEditInputStep": "modular.before_denoise",
    "FocusEditOutput": "pipelines.outputs",
    "FocusEditPrepareLatentsStep": "modular.before_denoise",
    "FocusEditSetTimestepsStep": "modular.before_denoise",
    "FocusEditTokensStep": "modular.before_denoise",
    "FocusGenerateBlocks": "modular.modular_blocks",
    "FocusGenerateTokensStep": "modular.before_denoise",
    "FocusImageEncoderStep": "modular.encoders",
    "FocusImageEncoding": "steps.encode",
    "FocusImageProcessor": "processing.images",
    "FocusKeepImageStep": "modular.decoders",
    "FocusLocateStep": "modular.encoders",
    "FocusMaskConditioner": "models.mask_conditioner",
    "FocusMaskDecoder": "models.mask_decoder",
    "FocusModularPipeline": "modular.modular_pipeline",
    "FocusPipeline": "pipelines.focus",
    "FocusPrepareLatentsStep": "modular.before_denoise",
    "FocusSegmentBlocks": "modular.modular_blocks",
    "FocusSegmentEditPipeline": "pipelines.segment_edit",
    "FocusSegmentOutput": "pipelines.outputs",
    "FocusSegmentStep": "modular.encoders",
    "FocusSetTimestepsStep": "modular.before_denoise",
    "FocusTextOutput": "pipelines.outputs",
    "FocusUnderstandPipeline": "pipelines.understand",
    "FocusUnderstandStep": "modular.encoders",
    "FocusVisionEncoder": "models.vision_encoder",
    "FocusVisualTokenizer": "models.visual_tokenizer",
    "Mask": "processing.regions",
    "Point": "processing.regions",
    "Scribble": "processing.regions",
    "Strokes": "processing.regions",
}

__all__ = [*_HOMES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("diffusers-focus")
    elif name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
