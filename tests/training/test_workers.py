"""Batches that other processes draw ahead are the ones the run would have drawn."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from diffusers_focus.training.workers import check_workers, drawn_ahead

from .test_trainer import RECIPE, Killed, assert_equal_weights, kill_after, log_of, vae_trainer


class Numbers:
    """An objective whose batches say what they are and who drew them."""

    def batch(self, step: int) -> tuple[int, int]:
        return step, os.getpid()


def test_draws_come_in_their_order_from_other_processes():
    drawn = list(drawn_ahead(Numbers(), range(3, 11, 2), 2))
    assert [step for step, _ in drawn] == [3, 5, 7, 9]
    assert os.getpid() not in {process for _, process in drawn} and len({process for _, process in drawn}) == 2


def test_a_run_with_workers_takes_the_same_steps_killed_and_resumed(tmp_path):
    recipe = replace(RECIPE, steps=4)
    whole = vae_trainer(tmp_path / "alone", recipe)
    assert whole.run(progress=False)
    killed = vae_trainer(tmp_path / "helped", recipe, workers=2, on_checkpoint=kill_after(2))
    with pytest.raises(Killed):
        killed.run(progress=False)
    resumed = vae_trainer(tmp_path / "helped", recipe, seed=1, workers=2)
    assert resumed.run(progress=False)
    assert log_of(tmp_path / "helped") == log_of(tmp_path / "alone")
    assert_equal_weights(resumed.parameters, whole.parameters)


def test_an_error_of_a_draw_reaches_the_run():
    class Broken:
        def batch(self, step: int) -> int:
            raise ValueError(f"no picture {step}")

    with pytest.raises(ValueError, match="no picture 5"):
        list(drawn_ahead(Broken(), range(5, 6), 1))


@pytest.mark.parametrize("count", [-1, 1.5, True])
def test_what_is_no_number_of_workers_is_refused(count):
    with pytest.raises(ValueError, match="whole number"):
        check_workers(count)
