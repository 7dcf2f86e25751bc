"""A loss of several terms over the parts of a batch and the processes that share a step: one mean for each term.

FOCUS section 3 sums cross-entropy, Dice and BCE over batches of mixed tasks. Means of means would weigh a part with one mask like
one with twenty, and two processes would differ from one; docs/design.md, "Benchmarks and data".
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .trainer import mean_over_processes


class Terms:
    """The terms of a loss as sums and counts, so that parts of a batch, and processes, share one mean; `device` is the model's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, value: torch.Tensor, count: int | None = None, weight: float = 1.0) -> None:
        """Values [n], or the mean of `count` values. A term of several `weight`s is a sum of that many means."""
        total, number = (value.sum(), len(value)) if count is None else (value * count, count)
        self._sums[name] = self._sums.get(name, 0.0) + weight * total.float()
        if weight == 1.0:
            self._counts[name] = self._counts.get(name, 0) + number

    def join(self, other: Terms) -> None:
        """Take what another part of the batch has."""
        for name, value in other._sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + other._counts.get(name, 0)

    def means(self) -> dict[str, float]:
        """Each term as this process alone has it."""
        return {name: float(value.detach()) / max(1, self._counts[name]) for name, value in self._sums.items()}

    def total(self, weights: Mapping[str, float]) -> torch.Tensor:
        """The sum weighted by `weights`, which has every name. Its mean over processes is that of one with all batches."""
        counts = torch.tensor([float(self._counts.get(name, 0)) for name in weights], device=self._device)
        counts = dict(zip(weights, mean_over_processes(counts).clamp(min=1e-6)))
        terms = [weights[name] * value / counts[name] for name, value in self._sums.items()]
        return torch.stack(terms).sum() if terms else torch.zeros((), device=self._device)


class Figures:
    """Figures of the log as sums and counts."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def add(self, name: str, total: float, count: int) -> None:
        """A sum of `count` values."""
        here = self._sums.setdefault(name, [0.0, 0])
        here[0] += total
        here[1] += count

    def join(self, other: Figures) -> None:
        """Take what another part of the batch has."""
        for name, (total, count) in other._sums.items():
            self.add(name, total, count)

    def means(self) -> dict[str, float]:
        """Each figure as this process alone has it."""
        return {name: total / count for name, (total, count) in self._sums.items() if count}
