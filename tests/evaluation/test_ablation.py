"""Arms of the ablation: what each takes out of a pipeline, and that it is put back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusers_focus import FocusPipeline
from diffusers_focus.evaluation.ablation import ARMS, _arms, _with_less

from tests.tiny import SIZE, picture, tiny_components


@pytest.fixture
def pipe() -> FocusPipeline:
    found = FocusPipeline(**tiny_components(), resolution_group=[[SIZE, SIZE]])
    found.set_progress_bar_config(disable=True)
    torch.nn.init.normal_(found.mask_conditioner.proj_out.weight)
    return found


def edited(pipe: FocusPipeline, arm: str) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[10:40, 10:40] = True
    with _with_less(pipe, arm):
        options = {"num_inference_steps": 2, "preserve_background": False, "output_type": "np"}
        generator = torch.Generator().manual_seed(0)
        return pipe.edit(picture(0), "remove it", mask_image=mask, generator=generator, **options).images


def test_each_arm_draws_another_picture_and_leaves_the_pipeline_as_it_was(pipe):
    own = edited(pipe, "own")
    unplaced, unguided = edited(pipe, "unplaced"), edited(pipe, "unguided")
    assert not np.array_equal(own, unplaced)  # other tokens
    assert not np.array_equal(unplaced, unguided)  # the same tokens, another denoiser
    assert np.array_equal(edited(pipe, "own"), own)


def test_an_arm_that_fails_leaves_the_pipeline_whole(pipe):
    whole = pipe.mask_conditioner, pipe.mask_conditioner.cell_guidance
    for arm in ("unplaced", "unguided"):
        with pytest.raises(RuntimeError), _with_less(pipe, arm):
            raise RuntimeError
        assert (pipe.mask_conditioner, pipe.mask_conditioner.cell_guidance) == whole


def test_arms_need_the_part_they_take_out(pipe):
    assert _arms(pipe) == ARMS
    pipe.mask_conditioner.cell_guidance = None
    assert _arms(pipe) == ("own", "shuffled", "none", "unguided")
    pipe.mask_conditioner = None
    assert _arms(pipe) == ("own", "shuffled", "none")
