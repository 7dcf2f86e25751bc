"""Which proposal a region means: what holds it, one of two equal objects, several clicks with negative ones, a mask to improve.

FOCUS (arXiv 2506.16806), interactive segmentation, pools features under one region and leaves the rest open. The model is
asked about the union of the positive strokes; negative strokes and the mask found so far then choose among its proposals, and
what no proposal gets right is cut or joined so that every stroke lies on its side. The rules are this project's own; "positive
and negative clicks" are those of interactive segmentation (SAM, arXiv 2304.02643).

Shapes: N proposals, (h, w) the mask decoder's grid over the canvas, (height, width) the user's image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..processing.images import Placement
from ..processing.regions import Region, Strokes

HELD = 0.5  # share of a stroke that lies in a mask which holds it
NEAR = (
    2.5  # cells of the mask decoder's grid: so near to an edge a stroke is about the edge, and not about another object
)


@dataclass(frozen=True, eq=False)
class StrokeMasks:
    """What several strokes say about one object, bool [height, width] each.

    Args:
        positive, negative: the strokes.
        previous: the mask to improve, or None.
    """

    positive: tuple[np.ndarray, ...]
    negative: tuple[np.ndarray, ...]
    previous: np.ndarray | None = None

    @classmethod
    def of(cls, regions: Sequence[Region], size: tuple[int, int]) -> StrokeMasks | None:
        """Of a prompt that is one `Strokes`, in an image of `size`; None for other regions."""
        if len(regions) != 1 or not isinstance(regions[0], Strokes):
            return None
        (strokes,) = regions
        previous = None if strokes.previous is None else strokes.previous.rasterize(*size)
        return cls(strokes.parts(*size, positive=True), strokes.parts(*size, positive=False), previous)


def holding(mask_logits: torch.Tensor, regions: Sequence[np.ndarray], placement: Placement) -> torch.Tensor:
    """Which proposals hold a region: at least half as much of it as the one that holds most; bool [N].

    Args:
        mask_logits: [N, h, w].
        regions: bool [height, width].
    """
    inside = (mask_logits > 0).float()
    found = torch.zeros(len(inside), dtype=torch.bool, device=inside.device)
    for cells in _cells(regions, inside, placement):
        share = torch.einsum("nhw,hw->n", inside, cells)
        found |= (share > 0) & (share >= 0.5 * share.max())
    return found


def own_part(mask_logits: torch.Tensor, holding: torch.Tensor, best: int) -> tuple[int, torch.Tensor]:
    """Of two equal objects the model likes to see one: the proposal that is the pointed one's part of the best one, or the best;
    and bool [N], the proposals that cover that part and are more than it.

    The best proposal falls into two where one proposal within it holds the region and another within it does not, and the two
    share nothing to speak of.

    Args:
        mask_logits: [N, h, w], best score first.
        holding: bool [N], which hold the region.
        best: the first of these.
    """
    inside = (mask_logits > 0).flatten(1).float()
    area = inside.sum(1).clamp(min=1)
    shared = inside @ inside.T
    within = (shared[best] > 0.7 * area) & (area > 0.2 * area[best]) & (area < 0.8 * area[best])
    others = (within & ~holding).nonzero()[:, 0].tolist()
    for part in (within & holding).nonzero()[:, 0].tolist():
        if any(shared[part, other] < 0.1 * area[other] for other in others):
            return part, (shared[part] > 0.7 * area[part]) & (area > 1.25 * area[part])
    return best, torch.zeros_like(holding)


def stroked_object(
    mask_logits: torch.Tensor, scores: torch.Tensor, strokes: StrokeMasks, placement: Placement
) -> tuple[int, torch.Tensor]:
    """The proposal that several strokes mean, and its mask logits [h, w] with every stroke on its side.

    A proposal is worth its score, the share of the positive strokes it holds less that of the negative ones, and its overlap
    with the mask to improve. Strokes that the best one has on the wrong side change its mask.

    Args:
        mask_logits: [N, h, w].
        scores: [N] in 0..1.
    """
    inside = (mask_logits > 0).float()
    positive, negative = (_cells(part, inside, placement) for part in (strokes.positive, strokes.negative))
    held, wrong = _shares(inside, positive), _shares(inside, negative)
    worth = scores + (held >= HELD).float().mean(0) - (wrong >= HELD).float().mean(0)
    if strokes.previous is not None:
        (before,) = _cells([strokes.previous], inside, placement)
        both = torch.einsum("nhw,hw->n", inside, before)
        worth += both / (inside.sum((1, 2)) + before.sum() - both).clamp(min=1)
    best = int(worth.argmax())
    logits = mask_logits[best].clone()
    for cells, shares in zip(positive, held):
        if _share(logits, cells) < HELD:
            others = (shares >= HELD) & (wrong < HELD).all(0)
            joined = _around(logits <= 0, cells, mask_logits, others, worth)
            logits = torch.maximum(logits, cells - 0.5 if joined is None else joined)
    for cells, shares in zip(negative, wrong):
        if _share(logits, cells) >= HELD:
            others = (shares >= HELD) & (held < HELD).all(0)
            taken = _around(logits > 0, cells, mask_logits, others, scores)
            logits = logits if taken is None else torch.minimum(logits, -taken)
    if any(_share(logits, cells) >= HELD for cells in negative):
        keep = _side(logits > 0, positive, negative)
        logits = torch.where(keep | (logits <= 0), logits, -logits)
    return best, logits


def _around(
    wrong_side: torch.Tensor, stroke: torch.Tensor, mask_logits: torch.Tensor, others: torch.Tensor, worth: torch.Tensor
) -> torch.Tensor | None:
    """What goes to the other side of a mask with a stroke, as logits [h, w].

    Near the edge that is the surroundings of the stroke as far as the edge; else the best of the proposals that hold it. None
    where there is no such proposal.

    Args:
        wrong_side: bool [h, w], the side of the mask the stroke is on now.
        stroke: float [h, w].
        others: bool [N], which proposals hold it and nothing that speaks against them.
        worth: [N].
    """
    reach = float(_distance(~wrong_side)[stroke > 0].min()) if bool((~wrong_side).any()) else float("inf")
    if reach <= NEAR:
        return (reach + 0.5 - _distance(stroke > 0)).clamp(min=-1.0)
    if others.any():
        return mask_logits[int(torch.where(others, worth, -torch.inf).argmax())]
    return None


def _cells(regions: Sequence[np.ndarray], like: torch.Tensor, placement: Placement) -> list[torch.Tensor]:
    """Regions on the proposals' grid, float [h, w]: the share of each cell that is inside."""
    placed = [placement.place_mask(torch.from_numpy(region), mode="any") for region in regions]
    return [
        F.interpolate(one[None, None].to(like.device, torch.float32), size=like.shape[-2:], mode="area")[0, 0]
        for one in placed
    ]


def _shares(inside: torch.Tensor, strokes: Sequence[torch.Tensor]) -> torch.Tensor:
    """[strokes, N]: which share of each stroke lies in each mask; [1, N] zeros where there are no strokes."""
    if not strokes:
        return inside.new_zeros(1, len(inside))
    cells = torch.stack(list(strokes))
    return torch.einsum("nhw,shw->sn", inside, cells) / cells.sum((1, 2)).clamp(min=1e-6)[:, None]


def _share(logits: torch.Tensor, stroke: torch.Tensor) -> float:
    """Which share of a stroke lies in a mask."""
    return float(_shares((logits > 0).float()[None], [stroke])[0, 0])


def _side(inside: torch.Tensor, positive: Sequence[torch.Tensor], negative: Sequence[torch.Tensor]) -> torch.Tensor:
    """The part of a mask [h, w] that belongs to the positive strokes: all that does not hang together with a negative one; of
    a part that hangs together with both, the cells nearer to the positive ones.
    """
    unwanted = torch.stack(list(negative)).amax(0) > 0
    bad = _reached(unwanted, inside)
    if positive:
        wanted = torch.stack(list(positive)).amax(0) > 0
    elif bool((inside & ~bad).any()):  # a mask to improve, of several parts
        return inside & ~bad
    else:  # of one part: it is farthest from the negative strokes
        farthest = torch.where(inside, _distance(unwanted), -1).argmax()
        wanted = torch.zeros_like(inside).flatten().index_fill(0, farthest, True).view_as(inside)
    torn = bad & _reached(wanted, inside)
    nearer = _distance(wanted) < _distance(unwanted)
    return inside & (~bad | (torn & nearer))


def _reached(seeds: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """The cells of a mask that hang together with the seeds in it."""
    reached = seeds & inside
    while True:
        grown = (F.max_pool2d(reached[None, None].float(), 3, 1, 1)[0, 0] > 0) & inside
        if bool((grown == reached).all()):
            return reached
        reached = grown


def _distance(cells: torch.Tensor) -> torch.Tensor:
    """From every cell [h, w] to the nearest one that is set."""
    rows, columns = cells.nonzero(as_tuple=True)
    h, w = cells.shape
    y, x = torch.arange(h, device=cells.device), torch.arange(w, device=cells.device)
    down = (y[:, None] - rows[None]).square()  # [h, set]
    across = (x[:, None] - columns[None]).square()  # [w, set]
    return (down[:, None] + across[None]).amin(-1).float().sqrt()
