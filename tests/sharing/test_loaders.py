"""The files through which diffusers alone finds our classes."""

from __future__ import annotations

import importlib
import json
import re

import pytest

from diffusers_focus.sharing.loaders import loader_files, shim_name


@pytest.mark.parametrize("variant", ["focus-tiny", "focus-3b"])
def test_published_folders_have_them(root, variant):
    folder = root / "pipelines" / variant
    wanted = loader_files(json.loads((folder / "model_index.json").read_text()))
    there = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.py")}
    assert there == wanted and len(wanted) == 6


def test_each_file_names_one_class_that_is_there():
    index = {
        "_class_name": "FocusUnderstandPipeline",
        "vision_encoder": ["diffusers_focus.models.vision_encoder", "FocusVisionEncoder"],
        "language_model": ["transformers", "Qwen2ForCausalLM"],
        "mask_decoder": [None, None],
        "resolution_group": [[128, 128]],
    }
    files = loader_files(index)
    assert list(files) == [
        "focus_understand_pipeline.py",
        "vision_encoder/diffusers_focus.models.vision_encoder.py",
    ]
    for text in files.values():
        module, name = re.search(r"^from (\S+) import (\w+) ", text, re.MULTILINE).groups()
        assert getattr(importlib.import_module(module), name).__name__ == name


def test_shims_of_two_classes_never_share_a_file():
    names = ("FocusPipeline", "FocusUnderstandPipeline", "FocusSegmentEditPipeline")
    assert [shim_name(name) for name in names] == [
        "focus_pipeline",
        "focus_understand_pipeline",
        "focus_segment_edit_pipeline",
    ]
