"""Hungarian matching of proposals to objects, as Mask2Former (Cheng et al. 2022, MIT) does it, on dense small masks.

The cost of (proposal, object) is 2 * class + 5 * BCE + 5 * Dice (segmentation.md section 4). The class part is optional:
FOCUS's proposals are found by mask alone where the condition only selects among them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT = 2.0, 5.0, 5.0


@torch.no_grad()
def mask_costs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Pairwise 5*BCE + 5*Dice of proposals and objects.

    Args:
        logits: [..., N, P], mask logits of the proposals at P pixels.
        targets: [..., M, P] in 0..1.

    Returns:
        float32 [..., N, M].
    """
    logits, targets = logits.float(), targets.float()
    pixels = logits.shape[-1]
    positive, negative = F.softplus(-logits), F.softplus(logits)
    bce = (positive @ targets.mT + negative @ (1 - targets).mT) / pixels
    probabilities = logits.sigmoid()
    sizes = probabilities.sum(-1)[..., None] + targets.sum(-1)[..., None, :]
    dice = 1 - (2 * probabilities @ targets.mT + 1) / (sizes + 1)
    return MASK_WEIGHT * bce + DICE_WEIGHT * dice


@torch.no_grad()
def match(
    mask_logits: torch.Tensor,
    targets: torch.Tensor | Sequence[torch.Tensor],
    class_costs: torch.Tensor | Sequence[torch.Tensor] | None = None,
    counts: Sequence[int] | None = None,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Assign each object of each sample to one proposal. All costs are worked out at once: one wait for an accelerator.

    Args:
        mask_logits: [B, N, h, w].
        targets: B tensors [M_b, h, w] in 0..1, M_b <= N; or [B, M, h, w], of which the first `counts[b]` are there.
        class_costs: B tensors [N, M_b], smaller is better; or [B, N, M]; or None.
        counts: M_b of each sample, needed where the targets are one tensor.

    Returns:
        B pairs (proposal indices, object indices), int64 [M_b].
    """
    from scipy.optimize import linear_sum_assignment

    if not isinstance(targets, torch.Tensor):
        counts, targets = [len(target) for target in targets], pad_sequence(list(targets), batch_first=True)
    if counts is None:
        raise ValueError("targets are one tensor, so `counts` must say how many objects each sample has")
    costs = mask_costs(mask_logits.flatten(2), targets.flatten(2))
    if class_costs is not None:
        if not isinstance(class_costs, torch.Tensor):
            class_costs = pad_sequence([cost.T for cost in class_costs], batch_first=True).mT
        costs = costs + CLASS_WEIGHT * class_costs.float()
    pairs = [linear_sum_assignment(cost[:, :count]) for cost, count in zip(costs.cpu().numpy(), counts, strict=True)]
    return [(torch.as_tensor(rows), torch.as_tensor(columns)) for rows, columns in pairs]
