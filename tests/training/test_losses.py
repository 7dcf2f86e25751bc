"""Losses against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from diffusers_focus.training.losses import (
    PatchDiscriminator,
    PerceptualLoss,
    cosine_loss,
    dice_loss,
    hinge_loss,
    identity_loss,
    mask_iou,
    mask_loss,
    selection_loss,
)

LOG3 = math.log(3.0)  # sigmoid(log 3) = 3/4


def test_dice_by_hand():
    logits = torch.tensor([[LOG3, -LOG3, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    targets = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    # Row 0: overlap 3/4 + 1/2, sums 3/4 + 1/4 + 1/2 + 1/2 = 2 and 2. Row 1: nothing to find, two pixels' worth predicted.
    expected = [1 - (2 * 1.25 + 1) / (2 + 2 + 1), 1 - 1 / (2 + 0 + 1)]
    assert dice_loss(logits, targets).tolist() == pytest.approx(expected)


def test_mask_loss_by_hand():
    logits = torch.tensor([[[LOG3, -LOG3]]])
    bce, dice = mask_loss(logits, torch.tensor([[[1.0, 1.0]]]))
    assert bce.item() == pytest.approx((-math.log(0.75) - math.log(0.25)) / 2)
    assert dice.item() == pytest.approx(1 - (2 * 1.0 + 1) / (1 + 2 + 1))


def test_no_matched_mask_costs_nothing_and_keeps_the_graph():
    logits = torch.zeros(0, 4, 4, requires_grad=True)
    bce, dice = mask_loss(logits, torch.zeros(0, 4, 4))
    (bce + dice).backward()
    assert bce.item() == dice.item() == 0


def test_selection_weighs_the_positives_like_the_negatives():
    logits = torch.zeros(1, 4)
    # One positive of four weighs 3: (3 + 3) * log 2 / 4.
    assert selection_loss(logits, torch.tensor([[1.0, 0, 0, 0]])).item() == pytest.approx(6 / 4 * math.log(2))
    # Never below 1, and a row without positives is plain.
    assert selection_loss(logits, torch.ones(1, 4)).item() == pytest.approx(math.log(2))
    assert selection_loss(logits, torch.zeros(1, 4)).item() == pytest.approx(math.log(2))


def test_selection_leaves_out_rows_that_do_not_count():
    logits = torch.tensor([[0.0, 0.0], [9.0, 9.0]])
    targets = torch.zeros(2, 2)
    valid = torch.tensor([True, False])
    assert selection_loss(logits, targets, valid).item() == pytest.approx(math.log(2))
    assert selection_loss(logits, targets, torch.tensor([False, False])).item() == 0


def test_iou_by_hand():
    logits = torch.tensor([[[1.0, 1.0, -1.0, -1.0]], [[-1.0, -1.0, -1.0, -1.0]]])
    targets = torch.tensor([[[1.0, 0.0, 1.0, 0.0]], [[0.0, 0.0, 0.0, 0.0]]])
    assert mask_iou(logits, targets).tolist() == pytest.approx([1 / 3, 0.0])


def test_cosine_loss_sees_directions_only():
    target = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert cosine_loss(5 * target, target).item() == pytest.approx(0.0, abs=1e-6)
    assert cosine_loss(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), target).item() == pytest.approx(0.5)


def test_perceptual_loss_compares_directions_of_features_and_teaches_the_prediction_only():
    def features(x):
        return [F.avg_pool2d(x, 1), F.avg_pool2d(x, 2)]

    loss = PerceptualLoss(features)
    target = torch.rand(2, 3, 4, 4, requires_grad=True)
    assert loss(2 * target.detach(), target).item() == pytest.approx(0.0, abs=1e-6)
    predicted = torch.rand(2, 3, 4, 4, requires_grad=True)
    value = loss(predicted, target)
    value.backward()
    assert value > 0 and predicted.grad is not None and target.grad is None
    # Opposite unit vectors are at squared distance 4 at either scale.
    ones = torch.ones(1, 3, 4, 4)
    assert loss(-ones, ones).item() == pytest.approx(8.0)


def test_hinge_by_hand():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert hinge_loss(real, fake).item() == pytest.approx(0.5 * ((0 + 0.5) / 2 + (0 + 1) / 2))


def test_discriminator_judges_patches():
    assert PatchDiscriminator(width=8, layers=2)(torch.randn(2, 3, 32, 32)).shape == (2, 1, 6, 6)


def test_identity_loss_by_hand():
    """Two frames of a clip with two objects; in another clip an object that must not count."""
    embeds = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 1.0], [1.0, 0.0]], requires_grad=True)
    objects, clips, frames = torch.tensor([0, 1, 0, 1, 0]), torch.tensor([0, 0, 0, 0, 1]), torch.tensor([0, 0, 1, 1, 2])
    # Each of the four finds itself at cosine 1 against one other at cosine 0.
    wanted = math.log(1 + math.exp(-1 / 0.5))
    assert identity_loss(embeds, objects, clips, frames, 0.5).tolist() == pytest.approx([wanted] * 4)
    swapped = identity_loss(embeds, torch.tensor([0, 1, 1, 0, 0]), clips, frames, 0.5)
    assert swapped.tolist() == pytest.approx([wanted + 1 / 0.5] * 4)
    # Several proposals of one object: any of them will do.
    twice = torch.cat([embeds, embeds[2:3]])
    more = identity_loss(
        twice, torch.tensor([0, 1, 0, 1, 0, 0]), torch.tensor([0, 0, 0, 0, 1, 0]), torch.tensor([0, 0, 1, 1, 2, 1]), 0.5
    )
    of_the_first = -math.log(2 * math.exp(2) / (2 * math.exp(2) + 1))
    of_the_second = -math.log(math.exp(2) / (math.exp(2) + 2))
    others = math.log(1 + math.exp(-2))
    assert more.tolist() == pytest.approx([of_the_first, of_the_second, others, others, others], rel=1e-5)


def test_identity_loss_is_about_other_frames_alone():
    frames = torch.zeros(3, dtype=torch.long)
    assert len(identity_loss(torch.randn(3, 4), torch.tensor([0, 1, 0]), frames, frames)) == 0
