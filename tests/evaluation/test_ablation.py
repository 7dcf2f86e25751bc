"""Arms of the ablation: what each takes out of an edit, and that the pipeline is left whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusers_focus import FocusPipeline
from diffusers_focus.evaluation.ablation import ARMS, SWITCHES, _arms, _unplaced

from tests.tiny import SIZE, picture, tiny_components


@pytest.fixture
def pipe() -> FocusPipeline:
    found = FocusPipeline(**tiny_components(), resolution_group=[[SIZE, SIZE]])
    found.set_progress_bar_config(disable=True)
    torch.nn.init.normal_(found.mask_conditioner.proj_out.weight)
    return found


def edited(pipe: FocusPipeline, **options) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[10:40, 10:40] = True
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 2, "preserve_background": False, "output_type": "np", **options}
    return pipe.edit(picture(0), "remove it", mask_image=mask, generator=generator, **options).images


def test_each_switch_draws_another_picture(pipe):
    pictures = [edited(pipe, **options) for options in SWITCHES.values()]
    with _unplaced(pipe):
        pictures.append(edited(pipe))
    assert len({one.tobytes() for one in pictures}) == len(SWITCHES) + 1
    assert np.array_equal(edited(pipe), pictures[0])


def test_what_fails_without_a_part_puts_it_back(pipe):
    whole = pipe.mask_conditioner.cell_guidance
    with pytest.raises(RuntimeError), _unplaced(pipe):
        assert pipe.mask_conditioner.cell_guidance is None
        raise RuntimeError
    assert pipe.mask_conditioner.cell_guidance is whole


def test_arms_need_the_part_they_take_out(pipe):
    assert _arms(pipe) == ARMS
    assert [arm for arm in ARMS if arm.startswith("none")] == ["none", "none_unread"]
    pipe.mask_conditioner.cell_guidance = None
    assert _arms(pipe) == ARMS[:-1]
    pipe.mask_conditioner = None
    kept = ("none", "shuffled", "shuffled_unlimited", "true", "true_unlimited", "own", "own_unlimited")
    assert _arms(pipe) == kept
