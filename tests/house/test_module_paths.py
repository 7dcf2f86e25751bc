"""Where the component classes live is part of the checkpoint format.

`save_pretrained` writes a component's full module path into model_index.json, and loading looks the class up there.
Moving one of these classes makes every published pipeline unloadable: change nothing here, add rows only.
"""

from __future__ import annotations

import importlib

import pytest

FROZEN = {
    "FocusVisionEncoder": ("diffusers_focus.models.vision_encoder", "ModelMixin"),
    "FocusVisualTokenizer": ("diffusers_focus.models.visual_tokenizer", "ModelMixin"),
    "FocusMaskDecoder": ("diffusers_focus.models.mask_decoder", "ModelMixin"),
    "FocusMaskConditioner": ("diffusers_focus.models.mask_conditioner", "ModelMixin"),
    "FocusImageProcessor": ("diffusers_focus.processing.images", "ImageProcessingMixin"),
    "FocusPipeline": ("diffusers_focus.pipelines.focus", "DiffusionPipeline"),
    "FocusUnderstandPipeline": ("diffusers_focus.pipelines.understand", "DiffusionPipeline"),
    "FocusSegmentEditPipeline": ("diffusers_focus.pipelines.segment_edit", "DiffusionPipeline"),
}


@pytest.mark.parametrize("name", FROZEN)
def test_class_stays_where_saved_pipelines_look_for_it(name):
    path, base = FROZEN[name]
    module = importlib.import_module(path)
    cls = getattr(module, name)
    assert cls.__module__ == path
    # diffusers finds out how to load a third-party class by the base class's name in the class's own module.
    assert issubclass(cls, getattr(module, base))
