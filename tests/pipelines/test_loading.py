"""Pipelines on disk, from one another, and with their weights elsewhere between two uses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload

from diffusers_focus import FocusPipeline, FocusSegmentEditPipeline, FocusUnderstandPipeline, Point

from tests.tiny import disk_mask, picture, seeded, shared_pipeline, tiny_components, tiny_pipeline

UNDERSTAND_PARTS = ("vision_encoder", "language_model", "lm_tokenizer", "visual_tokenizer", "image_processor")
WIDE = (40, 90)


def everything(pipe: Any) -> dict[str, np.ndarray]:
    """What a pipeline says to every call it has, as arrays."""
    image, results = picture(0, *WIDE), {}
    if hasattr(pipe, "understand"):
        answers = pipe.understand(image, ["how many?", "what is this?"], [None, Point(30, 12)], max_new_tokens=6).text
        results["answers"] = np.array(answers)
    if hasattr(pipe, "segment"):
        options = {"score_threshold": 0.0, "max_new_tokens": 4}
        for name, found in (
            ("words", pipe.segment(image, "the red circle", **options)),
            ("region", pipe.segment(image, region=Point(27, 12), **options)),
            ("classes", pipe.segment(image, classes=["circle", "star"], **options)),
        ):
            results[f"{name}.masks"], results[f"{name}.scores"] = found.masks[0], found.scores[0]
            results[f"{name}.labels"] = np.array(found.labels[0])
        local = pipe.edit(image, "make it blue", mask_image=disk_mask(*WIDE), generator=seeded(), output_type="np")
        found = pipe.edit(image, "remove the circle", generator=seeded(), output_type="np")
        results["edit"], results["found"], results["place"] = local.images, found.images, found.edit_masks[0]
        results["drawn"] = pipe.generate("a star", generator=seeded(), output_type="np").images
    return results


def assert_same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        if value.dtype.kind == "f":
            # Loaded tensors may be aligned otherwise in memory, which changes the last bit of a sum.
            np.testing.assert_allclose(value, second[name], atol=1e-5, rtol=0, err_msg=name)
        else:
            np.testing.assert_array_equal(value, second[name], err_msg=name)


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return everything(shared_pipeline())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("focus")
    tiny_pipeline().save_pretrained(path)
    return path


def load(cls: Any, path: Any, **options: Any) -> Any:
    pipe = cls.from_pretrained(path, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("cls", [FocusPipeline, FocusSegmentEditPipeline, FocusUnderstandPipeline])
def test_one_folder_serves_all_pipelines_with_the_same_results(cls, folder, expected):
    pipe, source = load(cls, folder), shared_pipeline()
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            saved = getattr(source, name).state_dict()
            assert saved.keys() == part.state_dict().keys()
            assert all(torch.equal(value, saved[key]) for key, value in part.state_dict().items()), name
    results = everything(pipe)
    assert results and results.keys() <= expected.keys()
    assert_same(results, {name: expected[name] for name in results})
    if cls is not FocusUnderstandPipeline:
        assert pipe.config.resolution_group == source.config.resolution_group


def test_the_understanding_pipeline_comes_back_from_its_own_folder(tmp_path, expected):
    parts = tiny_components()
    FocusUnderstandPipeline(**{name: parts[name] for name in UNDERSTAND_PARTS}).save_pretrained(tmp_path)
    assert {entry.name for entry in tmp_path.iterdir() if entry.is_dir()} == set(UNDERSTAND_PARTS)
    assert_same(everything(load(FocusUnderstandPipeline, tmp_path)), {"answers": expected["answers"]})


def test_a_model_that_cannot_segment_comes_back_without_those_parts(tmp_path):
    pipe = tiny_pipeline(mask_decoder=None, mask_conditioner=None)
    pipe.save_pretrained(tmp_path)
    back = load(FocusPipeline, tmp_path)
    assert back.mask_decoder is None and back.mask_conditioner is None
    first, second = (np.asarray(p.edit(picture(), "make it blue", generator=seeded()).images[0]) for p in (pipe, back))
    assert (first == second).all()


def test_settings_of_a_call_can_be_changed_at_loading(folder):
    pipe = load(FocusPipeline, folder, score_threshold=1.0, fallback_threshold=1.0)
    assert pipe.segment(picture(), "the red circle", max_new_tokens=2).masks[0].shape == (0, 64, 64)


def test_loading_in_half_precision_leaves_nothing_in_float32_but_what_must(folder):
    pipe = load(FocusPipeline, folder, torch_dtype=torch.bfloat16)
    assert pipe.unet.dtype == pipe.language_model.dtype == pipe.mask_decoder.dtype == torch.bfloat16
    assert pipe.visual_tokenizer.pixel_quantizer.frozen_codebook.dtype == torch.float32
    assert everything(pipe)["edit"].shape == (1, *WIDE, 3)


def test_pipelines_are_made_from_one_another(expected):
    whole = tiny_pipeline()
    asking = FocusUnderstandPipeline.from_pipe(whole)
    assert asking.language_model is whole.language_model
    assert_same(everything(asking), {"answers": expected["answers"]})
    editing = FocusSegmentEditPipeline.from_pipe(whole)
    editing.set_progress_bar_config(disable=True)
    results = everything(editing)
    assert_same(results, {name: expected[name] for name in results})


@pytest.mark.whole
@pytest.mark.parametrize("tied", [True, False])
def test_weights_may_be_away_between_two_uses(tied):
    """What sequential offloading does: each module's weights exist only while its forward runs."""

    def make() -> Any:
        parts = tiny_components()
        if not tied:
            model = parts["language_model"]
            model.config.tie_word_embeddings = False
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().flip(0).clone())
        return tiny_pipeline(language_model=parts["language_model"])

    plain, away = make(), make()
    for part in away.components.values():
        if isinstance(part, torch.nn.Module):
            cpu_offload(part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0)
    assert all(parameter.is_meta for parameter in away.unet.parameters())
    assert_same(everything(plain), everything(away))
    assert all(parameter.is_meta for parameter in away.language_model.parameters())
