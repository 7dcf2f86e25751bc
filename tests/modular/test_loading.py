"""Modular pipelines on disk: folders of standard pipelines, indexes saved, moved and published."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from diffusers import __version__ as diffusers_version
from diffusers.modular_pipelines.components_manager import ComponentsManager
from diffusers.modular_pipelines.modular_pipeline import ModularPipeline

from diffusers_focus import (
    FocusAskBlocks,
    FocusBlocks,
    FocusGenerateBlocks,
    FocusModularPipeline,
    FocusUnderstandPipeline,
)
from diffusers_focus.checkpoints.layout import modular_index

from tests.modular.shared import assert_equal, modular
from tests.tiny import picture, seeded, shared_pipeline

INDEX = "modular_model_index.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Any:
    """A standard pipeline as it saves itself: no modular index."""
    path = tmp_path_factory.mktemp("standard")
    shared_pipeline().save_pretrained(path)
    assert not (path / INDEX).exists()
    return path


def ready(pipe: Any, **options: Any) -> Any:
    pipe.load_components(**options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: Any) -> Any:
    return pipe(prompt="a star", generator=seeded(), output_type="np", output="images")


@pytest.fixture(scope="module")
def expected() -> Any:
    return drawn(modular())


@pytest.mark.parametrize(
    "make",
    [
        lambda path: FocusBlocks().init_pipeline(path),
        lambda path: FocusModularPipeline(pretrained_model_name_or_path=path, workflow="generate"),
        lambda path: FocusModularPipeline.from_pretrained(path, workflow="generate"),
        lambda path: FocusBlocks().get_workflow("generate").init_pipeline(path),
    ],
    ids=["blocks", "constructor", "from_pretrained", "get_workflow"],
)
def test_folders_of_standard_pipelines_load(make, folder, expected):
    pipe = make(folder)
    assert isinstance(pipe, FocusModularPipeline)
    assert_equal(expected, drawn(ready(pipe)))
    assert pipe.config.default_num_inference_steps == 2  # the folder's, not the block's
    assert "text_encoder" not in pipe.components
    if len(pipe.component_names) < 10:
        assert pipe.null_component_names == [] and "mask_decoder" not in pipe.components


def test_a_saved_pipeline_comes_back_and_may_be_moved(folder, tmp_path, expected):
    pipe = ready(FocusBlocks().init_pipeline(folder))
    pipe.update_components(score_threshold=0.25)
    pipe.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / INDEX).read_text())
    standard = json.loads((folder / "model_index.json").read_text())
    assert index.keys() == modular_index(standard).keys() and index["_blocks_class_name"] == "FocusBlocks"
    shutil.move(tmp_path / "saved", tmp_path / "moved")
    back = FocusModularPipeline.from_pretrained(tmp_path / "moved")
    assert type(back.blocks) is FocusBlocks and back.config.score_threshold == 0.25
    assert_equal(expected, drawn(ready(back)))


def test_diffusers_own_class_finds_ours(folder, tmp_path, expected):
    index = modular_index(json.loads((folder / "model_index.json").read_text()))
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / INDEX).write_text(json.dumps(index))
    pipe = ModularPipeline.from_pretrained(tmp_path / "copy", workflow="generate")
    assert type(pipe) is FocusModularPipeline
    assert_equal(expected, drawn(ready(pipe)))
    (tmp_path / "copy" / INDEX).write_text(json.dumps({**index, "_blocks_class_name": "FocusAskBlocks"}))
    assert type(ModularPipeline.from_pretrained(tmp_path / "copy").blocks) is FocusAskBlocks
    # What diffusers passes for a folder without a modular index.
    standard = json.loads((folder / "model_index.json").read_text())
    pipe = FocusModularPipeline(pretrained_model_name_or_path=folder, config_dict=standard)
    assert pipe.get_component_spec("unet").pretrained_model_name_or_path == str(folder)


def test_the_index_names_the_workflow(folder, tmp_path):
    ready(FocusAskBlocks().init_pipeline(folder)).save_pretrained(tmp_path)
    back = FocusModularPipeline.from_pretrained(tmp_path)
    assert type(back.blocks) is FocusAskBlocks and "unet" not in back.components
    answer = ready(back)(image=picture(), question="how many?", max_new_tokens=3, output="text")
    assert answer == shared_pipeline().understand(picture(), "how many?", max_new_tokens=3).text


def test_a_repository_of_the_hub_is_read_from_the_cache(folder, tmp_path, expected):
    """The cache's own layout, without network: every part comes from the commit that the index came from."""
    repository, commit = tmp_path / "models--me--tiny", "0123456789abcdef" * 2 + "01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(folder, repository / "snapshots" / commit)
    where = {"cache_dir": tmp_path, "local_files_only": True}
    pipe = FocusModularPipeline.from_pretrained("me/tiny", workflow="generate", **where)
    assert pipe.get_component_spec("unet").pretrained_model_name_or_path == "me/tiny"
    assert_equal(expected, drawn(ready(pipe, **where)))


def test_weights_come_in_one_precision(folder):
    pipe = FocusAskBlocks().init_pipeline(folder)
    pipe.load_components("language_model", dtype=torch.bfloat16)
    assert pipe.language_model.dtype == torch.bfloat16 and pipe.vision_encoder is None
    pipe.load_components()  # the others
    assert pipe.language_model.dtype == torch.bfloat16 and pipe.vision_encoder.dtype == torch.float32


def test_components_are_managed_and_shared(folder, expected):
    manager = ComponentsManager()
    first = ready(FocusBlocks().init_pipeline(folder, components_manager=manager, collection="focus"))
    assert {name.rsplit("_", 1)[0] for name in manager.components} == set(first.component_names)
    second = FocusGenerateBlocks().init_pipeline(components_manager=manager)
    second.update_components(**{name: manager.get_one(name=name) for name in second.component_names})
    second.update_components(**{spec.name: first.config[spec.name] for spec in second.blocks.expected_configs})
    second.set_progress_bar_config(disable=True)
    assert second.unet is first.unet and len(manager.components) == len(first.component_names)
    assert_equal(expected, drawn(second))


@pytest.mark.parametrize("variant", ["focus-tiny", "focus-3b"])
def test_published_indexes_are_the_standard_ones(root, variant):
    folder = root / "pipelines" / variant
    standard, index = (json.loads((folder / name).read_text()) for name in ("model_index.json", INDEX))
    assert index == modular_index(standard)
    pipe = FocusModularPipeline.from_pretrained(folder)
    assert type(pipe.blocks) is FocusBlocks
    for name in pipe.component_names:
        spec = pipe.get_component_spec(name)
        assert spec.pretrained_model_name_or_path == str(folder) and (folder / spec.subfolder).is_dir() == (
            (folder / name).is_dir()
        )
        assert [spec.type_hint.__module__.split(".")[0], spec.type_hint.__name__] == [
            standard[name][0].split(".")[0],
            standard[name][1],
        ]
    assert {name: pipe.config[name] for name in ("default_top_k", "resolution_group", "masks_trained")} == {
        name: standard[name] for name in ("default_top_k", "resolution_group", "masks_trained")
    }


def test_an_index_without_a_decoder_asks_only(tmp_path):
    wanted, _ = FocusUnderstandPipeline._get_signature_keys(FocusUnderstandPipeline)
    parts = {name: one for name, one in shared_pipeline().components.items() if name in wanted}
    FocusUnderstandPipeline(**parts).save_config(tmp_path)
    index = modular_index(json.loads((tmp_path / "model_index.json").read_text()))
    assert index["_blocks_class_name"] == "FocusAskBlocks" and index["_diffusers_version"] == diffusers_version
    assert "unet" not in index and index["language_model"][2]["subfolder"] == "language_model"
