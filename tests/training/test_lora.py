"""Training adapters: what they learn from, that nothing but them changes, and that a run goes on where it stopped."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

from diffusers_focus.data.world import render, sample_scene
from diffusers_focus.training.lora import RECIPES, ColourWordObjective, add_adapter, colour_word_edit, train_lora
from diffusers_focus.training.trainer import shortened

from tests.tiny import SIZE, tiny_components

TEAL = (70, 150, 150)


def parts() -> SimpleNamespace:
    components = tiny_components()
    components["scheduler"] = EulerDiscreteScheduler(prediction_type="v_prediction")
    return SimpleNamespace(**components)


def recipe(component: str):
    base = shortened(RECIPES[component], 2)
    return replace(base, batch_size=1, log_every=1, options={**base.options, "size": SIZE})


def test_an_edit_with_the_new_word_shows_the_new_colour():
    scene = sample_scene(3)
    edit = colour_word_edit(scene, np.random.default_rng(0), "teal", TEAL)
    assert edit.instruction.startswith("make ") and edit.instruction.endswith(" teal")
    drawn = render(replace(edit.result, noise_sigma=0.0), 128)
    index = edit.targets[0]
    pixels = drawn.image[drawn.masks[index]]
    assert (np.abs(pixels.astype(int) - TEAL).max(axis=1) <= 2).mean() > (
        0.3 if "striped" in scene.objects[index].fill else 0.8
    )
    for number, (before, after) in enumerate(zip(scene.objects, edit.result.objects)):
        assert (before == after) == (number != index)


def test_the_words_share_of_the_edits():
    objective = ColourWordObjective(parts(), recipe("language_model"), "teal", TEAL, share=0.5)
    rng = np.random.default_rng(0)
    said = [objective.draw_edit(sample_scene(number), rng).instruction.endswith(" teal") for number in range(60)]
    assert 0.3 < np.mean(said) < 0.7
    batch = objective.batch(0)
    assert batch.codes and not batch.texts and not batch.masked


@pytest.mark.parametrize("component", ["language_model", "unet"])
def test_only_the_adapter_learns(component, tmp_path):
    components = parts()
    before = {
        f"{name}.{key}": value.clone()
        for name, part in vars(components).items()
        if isinstance(part, torch.nn.Module)
        for key, value in part.state_dict().items()
    }
    given = {"word": "teal", "rgb": TEAL} if component == "language_model" else {}
    done = train_lora(
        components, component, tmp_path, name="new", rank=2, recipe=recipe(component), progress=False, **given
    )
    assert done and (tmp_path / "log.csv").exists()
    model, moved = getattr(components, component), 0
    for name, part in vars(components).items():
        if not isinstance(part, torch.nn.Module):
            continue
        for key, value in part.state_dict().items():
            if "lora_" in key:
                moved += int("lora_B" in key and bool(value.count_nonzero()))
            else:
                assert torch.equal(value, before[f"{name}.{key.replace('.base_layer', '')}"]), key
    assert moved and list(model.peft_config) == ["new"] and not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_run_goes_on_where_it_stopped(tmp_path):
    whole = {**vars(parts())}
    arguments = {"rank": 2, "word": "teal", "rgb": TEAL, "progress": False}
    train_lora(SimpleNamespace(**whole), "language_model", tmp_path / "a", recipe=recipe("language_model"), **arguments)
    half, rest = parts(), parts()
    stopped = train_lora(
        half, "language_model", tmp_path / "b", recipe=recipe("language_model"), max_minutes=0, **arguments
    )
    assert not stopped
    assert train_lora(rest, "language_model", tmp_path / "b", recipe=recipe("language_model"), **arguments)
    expected = whole["language_model"].state_dict()
    for key, value in rest.language_model.state_dict().items():
        torch.testing.assert_close(value, expected[key], atol=1e-6, rtol=0) if "lora_B" in key else None


def test_wrong_words_colours_and_components_are_refused():
    components = parts()
    for word, rgb, said in (("red", TEAL, "none of red"), (" ", TEAL, "none of"), ("teal", (1, 2), "three numbers")):
        with pytest.raises(ValueError, match=said):
            ColourWordObjective(components, recipe("language_model"), word, rgb)
    with pytest.raises(ValueError, match="language_model or unet"):
        add_adapter(components.vae, "vae", "new")
    with pytest.raises(ValueError, match="rank must be at least 1"):
        add_adapter(components.unet, "unet", "new", rank=0)
    with pytest.raises(ValueError, match="pass word and rgb"):
        train_lora(components, "language_model", "nowhere")
