"""Muon in float32: torch's updates, without the rounding of bfloat16."""

from __future__ import annotations

import pytest
import torch

from diffusers_focus.training.muon import Float32Muon, orthogonalize

OPTIONS = {"lr": 0.1, "weight_decay": 0.01, "adjust_lr_fn": "match_rms_adamw"}


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
def test_updates_are_torchs_but_for_the_rounding(shape):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    gradients = [torch.randn(shape, generator=generator) for _ in range(3)]
    ends = []
    for kind in (Float32Muon, torch.optim.Muon):
        weight = torch.nn.Parameter(start.clone())
        optimizer = kind([weight], **OPTIONS)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        ends.append(weight.detach() - start)
    assert (ends[0] - ends[1]).norm() < 0.03 * ends[1].norm()


def test_directions_become_about_as_long():
    values = torch.linalg.svdvals(
        orthogonalize(torch.diag(torch.logspace(0, -2, 8)), (3.4445, -4.775, 2.0315), 5, 1e-7)
    )
    assert 0.3 < values.min() and values.max() < 1.3


def test_a_checkpoint_goes_on_with_either():
    weight, other = (torch.nn.Parameter(torch.eye(4)) for _ in range(2))
    first, second = Float32Muon([weight], **OPTIONS), torch.optim.Muon([other], **OPTIONS)
    weight.grad = torch.ones(4, 4)
    first.step()
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.state[other]["momentum_buffer"], first.state[weight]["momentum_buffer"])


def test_what_it_does_not_do_is_refused():
    with pytest.raises(ValueError, match="match_rms_adamw"):
        Float32Muon([torch.nn.Parameter(torch.eye(2))], lr=0.1)
