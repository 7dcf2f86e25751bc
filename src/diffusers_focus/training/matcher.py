"""Hungarian matching of proposals to objects, as Mask2Former (Cheng et al. 2022, MIT) does it, on dense small masks.

The cost of (proposal, object) is 2 * class + 5 * BCE + 5 * Dice (segmentation.md section 4). The class part is optional:
FOCUS's proposals are found by mask alone where the condition only selects among them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT = 2.0, 5.0, 5.0


@torch.no_grad()
def mask_costs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Pairwise 5*BCE + 5*Dice of proposals and objects.

    Args:
        logits: [N, P], mask logits of the proposals at P pixels.
        targets: [M, P] in 0..1.

    Returns:
        float32 [N, M].
    """
    logits, targets = logits.float(), targets.float()
    pixels = logits.shape[1]
    positive, negative = F.softplus(-logits), F.softplus(logits)
    bce = (positive @ targets.T + negative @ (1 - targets).T) / pixels
    probabilities = logits.sigmoid()
    dice = 1 - (2 * probabilities @ targets.T + 1) / (probabilities.sum(-1)[:, None] + targets.sum(-1)[None] + 1)
    return MASK_WEIGHT * bce + DICE_WEIGHT * dice


@torch.no_grad()
def match(
    mask_logits: torch.Tensor, targets: Sequence[torch.Tensor], class_costs: Sequence[torch.Tensor] | None = None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Assign each object of each sample to one proposal.

    Args:
        mask_logits: [B, N, h, w].
        targets: B tensors [M_b, h, w] in 0..1, M_b <= N.
        class_costs: B tensors [N, M_b], smaller is better, or None.

    Returns:
        B pairs (proposal indices, object indices), int64 [M_b].
    """
    from scipy.optimize import linear_sum_assignment

    result = []
    for i, target in enumerate(targets):
        if not len(target):
            empty = torch.zeros(0, dtype=torch.long)
            result.append((empty, empty))
            continue
        cost = mask_costs(mask_logits[i].flatten(1), target.flatten(1))
        if class_costs is not None:
            cost = cost + CLASS_WEIGHT * class_costs[i].float()
        rows, columns = linear_sum_assignment(cost.cpu().numpy())
        result.append((torch.as_tensor(rows), torch.as_tensor(columns)))
    return result
