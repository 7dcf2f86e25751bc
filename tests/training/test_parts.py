"""Batches too large for memory, gathered in parts: the step of the whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffusers_focus.data.folders import write_records
from diffusers_focus.data.world_samples import world_records
from diffusers_focus.training.batches import parts_of
from diffusers_focus.training.language import LanguageObjective
from diffusers_focus.training.stages import get_stage

from tests.training.test_language import EVERYTHING, RECIPE, SIZE, parts

PARTED = {"mixture": EVERYTHING, "size": SIZE, "pictures_at_once": 1}


def objective_of(**changes) -> LanguageObjective:
    options = {**PARTED, **changes.pop("options", {})}
    return LanguageObjective(parts(), replace(RECIPE, options=options, **changes))


def bytes_held(objective: LanguageObjective, batch) -> tuple[torch.Tensor, dict[str, float], int]:
    """Loss, figures, and how much is kept for the backward pass beside the weights."""
    weights = {p.untyped_storage().data_ptr() for m in objective.modules().values() for p in m.parameters()}
    held: dict[int, int] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        loss, figures = objective.loss(batch, 0)
    return loss, figures, sum(held.values())


@pytest.mark.parametrize("autocast", [False, True])
def test_parts_have_the_gradients_of_the_whole_and_keep_nothing_for_them(autocast):
    parted = objective_of(batch_size=3)
    whole = LanguageObjective(parted.components, parted.recipe)
    whole.parts = 1  # the same parts, in one go
    batch = parted.batch(0)
    assert [len(part.pixel_values) for part in batch] == [1, 1, 1]
    parameters = [p for name in ("language_model", "mask_decoder") for p in parted.modules()[name].parameters()]
    found = []
    for objective in (whole, parted):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss, figures, held = bytes_held(objective, batch)
        found.append((loss, figures, held, torch.autograd.grad(loss, parameters, allow_unused=True)))
    (loss, figures, held, gradients), (same, again, little, others) = found
    torch.testing.assert_close(same, loss, rtol=1e-6, atol=0)
    assert again == pytest.approx(figures, rel=1e-6) and "edit_codes" in figures
    assert little < held / 100 and held > 1e6
    assert sum(g is not None and bool(g.any()) for g in gradients) > 30
    for gradient, other in zip(gradients, others, strict=True):
        assert (gradient is None) == (other is None)
        if gradient is not None:
            torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-5 if autocast else 1e-7)


def test_parts_are_the_draws_of_as_many_processes():
    parted = objective_of(batch_size=4, options={"pictures_at_once": 2, "masks_every": 2})
    process = objective_of(batch_size=2, options={"pictures_at_once": 2, "masks_every": 2, "processes": 2})
    for step in (0, 1):
        drawn = parted.batch(step)
        assert len(drawn) == 2
        for number, part in enumerate(drawn):
            other = process.batch(2 * step + number)
            assert torch.equal(part.pixel_values, other.pixel_values)
            assert [p.parts for p in part.texts] == [p.parts for p in other.texts]
            assert bool(part.masked) == bool(other.masked) == (step == 0)
    first, second = parted.batch(0)
    assert not torch.equal(first.pixel_values, second.pixel_values)


def test_samples_from_files_come_in_parts_too(tmp_path):
    write_records(tmp_path / "samples.jsonl", world_records(tmp_path, range(4), size=SIZE, num_questions=2))
    options = {"mixture": EVERYTHING, "data": [(str(tmp_path), 1.0)]}
    components = parts()
    recipe = replace(RECIPE, batch_size=4, options=options)
    whole = LanguageObjective(components, recipe)
    parted = LanguageObjective(components, replace(recipe, options={**options, "pictures_at_once": 2}))
    together, apart = whole.batch(0), parted.batch(0)
    assert [len(part.pixel_values) for part in together if part.masks] == [4]
    assert [len(part.pixel_values) for part in apart if part.masks] == [2, 2]
    losses = [objective.loss(batch, 0) for objective, batch in ((whole, together), (parted, apart))]
    assert losses[1][0].item() == pytest.approx(losses[0][0].item(), rel=2e-5)
    assert losses[1][1]["bce"] == pytest.approx(losses[0][1]["bce"], rel=1e-4)


def test_batches_come_in_equal_parts_as_few_as_can_be():
    assert [parts_of(168, n) for n in (None, 200, 168, 84, 24, 23, 1)] == [1, 1, 1, 2, 7, 8, 168]
    assert parts_of(84, 24) == 4 and parts_of(7, 6) == 7  # 21 each; seven has no other parts
    for wrong in (0, -1, 2.0, True, "8"):
        with pytest.raises(ValueError, match="pictures_at_once is .* 1 or more"):
            parts_of(8, wrong)


def test_the_stages_of_large_batches_come_in_parts():
    for name, stage in ((name, get_stage(name)) for name in ("3-drawn", "3-redrawn")):
        assert parts_of(stage.batch_size, stage.options["pictures_at_once"]) == 21, name
