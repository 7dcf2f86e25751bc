"""Batches drawn ahead by processes of their own, so that an accelerator does not wait for pictures to be drawn or read.

torch's `DataLoader` does the work. A batch is a function of its number (`Objective.batch`), so a run with workers takes the steps
of one without them. A batch crosses as bytes: it holds hundreds of small tensors, each of which would otherwise be an open file.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset


class _Draws(Dataset):
    """Pickled (batch, newly skipped samples) by the number of the draw."""

    def __init__(self, objective: Any, prepare: Callable[[int], None]) -> None:
        self.objective, self.prepare = objective, prepare
        self.told: set[str] = set()

    def __getitem__(self, draw: int) -> bytes:
        self.prepare(draw)
        batch, samples = self.objective.batch(draw), getattr(self.objective, "samples", None)
        left_out = None
        if samples is not None:
            skipped = samples.stream.skipped
            new = {name: kind for name, kind in skipped.names.items() if name not in self.told}
            self.told |= new.keys()
            reasons = {name: reason for name, reason in skipped.reasons.items() if name in new}
            left_out = samples.left_out, new, reasons
        return pickle.dumps((batch, left_out))


def check_workers(count: int) -> None:
    """Raise ValueError where so many workers cannot be had."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise ValueError(f"workers is {count!r}; pass a whole number, 0 to draw batches in the training process itself")
    if count and "fork" not in multiprocessing.get_all_start_methods():
        raise ValueError("workers share the loaded models by forking, which this system cannot do; pass workers=0")


def drawn_ahead(
    objective: Any, draws: Sequence[int], count: int, prepare: Callable[[int], None] = lambda draw: None
) -> Iterator[Any]:
    """The batches of `draws` in their order, drawn by `count` processes, two ahead in each.

    Args:
        objective: see `trainer.Objective`; what its stream of samples skips is noted in this process too.
        count: at least 1.
        prepare: called before each draw in the process that draws, such as to seed it.
    """
    context = multiprocessing.get_context("fork")
    loader = DataLoader(
        _Draws(objective, prepare),
        batch_size=None,
        sampler=draws,
        num_workers=count,
        prefetch_factor=2,
        collate_fn=_as_it_is,
        multiprocessing_context=context,
    )
    for content in loader:
        batch, left_out = pickle.loads(content)
        if left_out is not None:
            objective.samples.left_out, names, reasons = left_out
            objective.samples.stream.skipped.merge(names, reasons)
        yield batch


def _as_it_is(value: Any) -> Any:
    return value
