"""Matching against costs worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from diffusers_focus.training.matcher import mask_costs, match

LOG3 = math.log(3.0)


def logits_of(masks: torch.Tensor) -> torch.Tensor:
    return 8 * (2 * masks - 1)


def test_costs_by_hand():
    costs = mask_costs(torch.tensor([[LOG3, -LOG3]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    right = -math.log(0.75) * 5 + 5 * (1 - (2 * 0.75 + 1) / (1 + 1 + 1))
    wrong = -math.log(0.25) * 5 + 5 * (1 - (2 * 0.25 + 1) / (1 + 1 + 1))
    assert costs.tolist() == [pytest.approx([right, wrong])]


def test_each_object_gets_the_proposal_that_looks_like_it():
    targets = torch.eye(4)[[2, 0]].view(2, 2, 2)
    proposals = torch.eye(4)[[1, 0, 3, 2]].view(1, 4, 2, 2)
    ((rows, columns),) = match(logits_of(proposals), [targets])
    assert dict(zip(columns.tolist(), rows.tolist(), strict=True)) == {0: 3, 1: 1}


def test_the_best_assignment_is_the_cheapest_sum_not_the_cheapest_pair():
    # Proposal 0 suits both objects, proposal 1 suits only the first: object 1 must have proposal 0.
    targets = torch.tensor([[[1.0, 1.0, 0.0, 0.0]], [[1.0, 1.0, 1.0, 0.0]]])
    proposals = torch.tensor([[[1.0, 1.0, 1.0, 0.0]], [[1.0, 1.0, 0.0, 0.0]]])
    ((rows, columns),) = match(logits_of(proposals)[None], [targets])
    assert dict(zip(columns.tolist(), rows.tolist(), strict=True)) == {0: 1, 1: 0}


def test_class_costs_decide_between_equal_masks():
    proposals = torch.zeros(1, 2, 2, 2)
    targets = torch.ones(1, 2, 2)
    for best in (0, 1):
        costs = torch.ones(2, 1)
        costs[best] = 0
        ((rows, _),) = match(proposals, [targets], [costs])
        assert rows.tolist() == [best]


def test_a_sample_without_objects_matches_nothing():
    pairs = match(torch.zeros(2, 3, 2, 2), [torch.zeros(0, 2, 2), torch.ones(1, 2, 2)])
    assert [len(rows) for rows, _ in pairs] == [0, 1]
