"""The training loop: exact resumption, safe checkpoints, groups, rates, averages."""

from __future__ import annotations

import csv
import os
from dataclasses import replace

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn

from diffusers_focus.training.autoencoder import AutoencoderObjective
from diffusers_focus.training.initialize import initialize_convolutions
from diffusers_focus.training.muon import Float32Muon
from diffusers_focus.training.perception import PerceptionObjective
from diffusers_focus.training.trainer import (
    ParameterGroup,
    StageRecipe,
    Trainer,
    build_optimizers,
    computes_bfloat16,
    fastest_precision,
    select_parameters,
    shortened,
)

from tests.tiny import SIZE, tiny_components

RECIPE = StageRecipe(
    name="test",
    objective="autoencoder",
    groups=(ParameterGroup("vae", 2e-3),),
    steps=8,
    batch_size=2,
    warmup_steps=2,
    ema_decay=0.9,
    save_every_minutes=0.0,  # a checkpoint after every step
    log_every=1,
    options={"size": 64, "crop": 32},
)


class Killed(Exception):
    """Stands for whatever ends a process."""


def small_vae(seed: int = 0) -> AutoencoderKL:
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    initialize_convolutions(vae)
    with torch.no_grad():
        vae.quant_conv.bias[4:] = -6
    return vae


def vae_trainer(folder, recipe: StageRecipe = RECIPE, seed: int = 0, **arguments) -> Trainer:
    return Trainer(recipe, AutoencoderObjective(small_vae(seed), recipe), folder, cpu=True, **arguments)


def perception_trainer(folder, recipe: StageRecipe, seed: int = 0, **arguments) -> Trainer:
    parts = tiny_components(seed)
    encoder, decoder = parts["vision_encoder"], parts["mask_decoder"]
    encoder = type(encoder).from_config(
        encoder.config, num_query_tokens=8
    )  # as many queries as slots, and enough for a scene
    decoder = type(decoder).from_config(decoder.config, num_slots=8)
    objective = PerceptionObjective(encoder, decoder, recipe, low_size=(56, 56), high_size=(SIZE, SIZE))
    return Trainer(recipe, objective, folder, cpu=True, **arguments)


def kill_after(step: int):
    def on_checkpoint(done: int) -> None:
        if done == step:
            raise Killed

    return on_checkpoint


def log_of(folder) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def killed_and_resumed(make, recipe: StageRecipe, folder) -> tuple[Trainer, Trainer]:
    """A run without interruption, and one that is killed half-way and continued by a trainer on other weights."""
    whole = make(folder / "whole", recipe)
    assert whole.run(progress=False)
    killed = make(folder / "killed", recipe, on_checkpoint=kill_after(recipe.steps // 2))
    with pytest.raises(Killed):
        killed.run(progress=False)
    resumed = make(folder / "killed", recipe, seed=1)  # what is trained comes from the checkpoint, not from the seed
    assert resumed.run(progress=False)
    return whole, resumed


def assert_equal_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []


def test_a_killed_run_goes_on_to_the_same_losses_and_weights(tmp_path):
    whole, resumed = killed_and_resumed(vae_trainer, RECIPE, tmp_path)
    assert len(log_of(tmp_path / "whole")) == RECIPE.steps
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")
    assert_equal_weights(resumed.parameters, whole.parameters)
    assert_equal_weights(resumed.average, whole.average)


@pytest.mark.whole
def test_a_killed_perception_run_goes_on_to_the_same_losses_and_weights(tmp_path):
    groups = tuple(ParameterGroup(name, 1e-3) for name in ("vision_encoder", "mask_decoder", "heads"))
    recipe = replace(RECIPE, groups=groups, steps=4, ema_decay=0.0, options={"size": SIZE})
    whole, resumed = killed_and_resumed(perception_trainer, recipe, tmp_path)
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")
    assert_equal_weights(resumed.parameters, whole.parameters)


def test_the_loss_falls_on_one_batch(tmp_path):
    class OneBatch(AutoencoderObjective):
        def batch(self, step: int) -> torch.Tensor:
            torch.manual_seed(0)
            return super().batch(0)

    recipe = replace(RECIPE, steps=12, warmup_steps=1, save_every_minutes=60.0)
    trainer = Trainer(recipe, OneBatch(small_vae(), recipe), tmp_path, cpu=True)
    losses = [trainer.train_step()["loss"] for _ in range(recipe.steps)]
    assert losses[-1] < 0.8 * losses[0]


def test_a_time_limit_ends_the_run_with_a_checkpoint(tmp_path):
    trainer = vae_trainer(tmp_path)
    assert not trainer.run(max_minutes=0.0, progress=False)
    assert trainer.step == 1
    again = vae_trainer(tmp_path)
    assert again.load_checkpoint()
    assert again.step == 1


def test_without_resume_the_run_and_its_log_begin_anew(tmp_path):
    recipe = replace(RECIPE, steps=2)
    vae_trainer(tmp_path, recipe).run(progress=False)
    first = log_of(tmp_path)
    again = vae_trainer(tmp_path, recipe)
    assert again.run(resume=False, progress=False)
    assert log_of(tmp_path) == first


def test_an_interrupted_write_leaves_the_last_checkpoint_usable(tmp_path):
    trainer = vae_trainer(tmp_path)
    trainer.train_step()
    trainer.save_checkpoint()
    kept = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    unfinished = tmp_path / ".checkpoint.new"
    unfinished.mkdir()
    (unfinished / "weights.safetensors").write_bytes(b"half a fi")
    again = vae_trainer(tmp_path, seed=1)
    assert again.load_checkpoint()
    assert_equal_weights(again.parameters, kept)

    os.replace(tmp_path / "checkpoint", tmp_path / ".checkpoint.old")  # stopped between the two renames
    again = vae_trainer(tmp_path, seed=1)
    assert again.load_checkpoint()
    assert_equal_weights(again.parameters, kept)
    again.save_checkpoint()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint"]


def test_another_stages_checkpoint_is_refused(tmp_path):
    trainer = vae_trainer(tmp_path)
    trainer.save_checkpoint()
    part = replace(RECIPE, groups=(ParameterGroup("vae", 1e-3, include=("decoder",)),))
    with pytest.raises(ValueError, match="does not fit stage 'test'.*choose another"):
        vae_trainer(tmp_path, part).load_checkpoint()


def test_without_a_checkpoint_there_is_nothing_to_load(tmp_path):
    assert not vae_trainer(tmp_path).load_checkpoint()


def test_the_average_follows_the_weights_and_replaces_them_on_request(tmp_path):
    trainer = vae_trainer(tmp_path)
    name = "vae.decoder.conv_out.weight"
    start = trainer.parameters[name].detach().clone()
    trainer.train_step()
    trained = trainer.parameters[name].detach().clone()
    # Early on the average forgets fast: its decay at step 0 is 1 / 10.
    torch.testing.assert_close(trainer.average[name], start.lerp(trained, 0.9))
    trainer.use_average()
    assert torch.equal(trainer.parameters[name], trainer.average[name])


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    trainer = vae_trainer(tmp_path)
    with torch.no_grad():
        trainer.parameters["vae.decoder.conv_out.bias"].fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="at step 0"):
        trainer.train_step()


def test_groups_choose_what_is_trained():
    modules: dict[str, nn.Module] = {"a": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "b": nn.Linear(2, 2)}
    groups = (
        ParameterGroup("a", 1.0, include=("weight",), exclude=("1.",)),
        ParameterGroup("a", 0.1, include=("0.", "1.bias")),
    )
    selected = select_parameters(modules, groups)
    # The first group that matches a parameter has it.
    assert [list(chosen) for _, chosen in selected] == [["a.0.weight"], ["a.0.bias", "a.1.bias"]]
    trained = [name for name, p in modules["a"].named_parameters() if p.requires_grad]
    assert trained == ["0.weight", "0.bias", "1.bias"]
    assert not any(p.requires_grad for p in modules["b"].parameters())


@pytest.mark.parametrize(
    ("group", "words"),
    [(ParameterGroup("c", 1.0), "only \\['a'\\]"), (ParameterGroup("a", 1.0, ("gamma",)), "check the names")],
)
def test_a_group_that_trains_nothing_is_refused(group, words):
    with pytest.raises(ValueError, match=words):
        select_parameters({"a": nn.Linear(2, 2)}, (group,))


def test_muon_turns_matrices_and_adamw_the_rest():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    before = [p.detach().clone() for p in model.parameters()]
    groups = (ParameterGroup("m", 0.1, include=(".weight",), optimizer="muon"), ParameterGroup("m", 0.01))
    recipe = replace(RECIPE, groups=groups)
    optimizers = build_optimizers(recipe, select_parameters({"m": model}, groups))
    assert isinstance(optimizers["adamw"], torch.optim.AdamW) and isinstance(optimizers["muon"], torch.optim.Muon)
    assert isinstance(optimizers["muon"], Float32Muon) == (fastest_precision(cpu=True) == "no")
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    for optimizer in optimizers.values():
        optimizer.step()
    steps = [(p.detach() - q) for p, q in zip(model.parameters(), before, strict=True)]
    for step in (
        steps[0],
        steps[2],
    ):  # as long in every direction: an orthogonal matrix, about as large as AdamW's step
        values = torch.linalg.svdvals(step)
        assert values.max() / values.min() < 2
        assert 0.1 * 0.1 < step.square().mean().sqrt() < 0.1 * 0.4
    for step in (steps[1], steps[3]):
        torch.testing.assert_close(step.abs(), torch.full_like(step, 0.01), rtol=1e-3, atol=0)


def test_muon_is_refused_what_is_no_matrix():
    model = nn.Linear(2, 2)
    groups = select_parameters({"m": model}, (ParameterGroup("m", 0.1, optimizer="muon"),))
    with pytest.raises(ValueError, match=r"'m\.bias' and 0 more"):
        build_optimizers(RECIPE, groups)
    with pytest.raises(ValueError, match="choose one of adamw, muon"):
        build_optimizers(RECIPE, [(ParameterGroup("m", 0.1, optimizer="sgd"), groups[0][1])])


def test_a_checkpoint_of_other_optimisers_is_refused(tmp_path):
    vae_trainer(tmp_path, replace(RECIPE, steps=1)).run(progress=False)
    other = vae_trainer(tmp_path)
    other.optimizers = {"muon": other.optimizers["adamw"]}
    with pytest.raises(ValueError, match=r"other optimisers \(adamw\)"):
        other.load_checkpoint()


def test_bfloat16_is_for_processors_that_compute_it():
    assert computes_bfloat16({"architecture": "x86_64", "avx2": True, "avx512_f": True, "avx512_bf16": True})
    assert computes_bfloat16({"architecture": "aarch64", "neon": True, "bf16": True})
    assert not computes_bfloat16({"architecture": "x86_64", "avx2": True, "avx512_f": True, "avx512_bf16": False})
    assert not computes_bfloat16({})


@pytest.mark.parametrize("precision", [None, "no", "bf16"])
def test_a_run_computes_in_the_precision_of_its_recipe_or_of_its_device(tmp_path, precision):
    trainer = vae_trainer(tmp_path, replace(RECIPE, mixed_precision=precision))
    wanted = precision or fastest_precision(cpu=True)
    assert trainer.precision == trainer.accelerator.mixed_precision == wanted
    with trainer.accelerator.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if wanted == "bf16" else torch.float32)


def test_the_rate_warms_up_stays_and_falls_to_two_percent():
    recipe = replace(RECIPE, steps=100, warmup_steps=10, decay_fraction=0.5)
    factors = [recipe.learning_rate_factor(step) for step in (0, 4, 9, 50, 75, 99)]
    assert factors == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.5, 0.02])
    assert shortened(recipe, 20).learning_rate_factor(1) == 1.0
