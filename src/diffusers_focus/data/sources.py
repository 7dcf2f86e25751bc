"""Samples to learn from, by their number: folders and shards, mixed by weight, in an order that a seed decides.

Training asks for unit 0, 1, 2, ... and gets what the seed says, whoever asks: a run that goes on after a crash needs no state
but its step, and of several processes each asks for its own part of a step's numbers. A *unit* is one picture (or clip, or
conversation) with all that is asked about it, since encoding a picture is what costs.

What cannot be read is left out and counted; it is never replaced by another, never counted twice, and never ends a run.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .files import SampleFiles
from .folders import FolderSource
from .samples import Sample, check_record, read_sample
from .shards import ShardSource

EXAMPLES_KEPT = 20
_MIXED_AT_ONCE = 1 << 14


class Source(Protocol):
    """Units by their index."""

    def __len__(self) -> int: ...

    def order(self, seed: Sequence[int]) -> Sequence[int] | np.ndarray:
        """Every index once, in an order that the seed decides."""
        ...

    def unit(self, index: int) -> tuple[list[tuple[str, bytes]], SampleFiles]:
        """(name, JSON of a record or of a list of records) pairs, and the files they name; ValueError or OSError where damaged."""
        ...


class Skipped:
    """What was left out, each thing once, however often it is met.

    Attributes:
        names: name -> its kind: "line" (no record), "file" (damaged or missing) or "prompt" (cannot be asked).
        reasons: name -> reason, of the first 20.
        times: how often something was left out, the same thing again included.
    """

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        self.times = 0

    def add(self, kind: str, name: str, reason: Any) -> None:
        """Note what is left out."""
        self.times += 1
        if name not in self.names:
            self.names[name] = kind
            if len(self.reasons) < EXAMPLES_KEPT:
                self.reasons[name] = str(reason)

    @property
    def counts(self) -> dict[str, int]:
        """How many of each kind."""
        return dict(Counter(self.names.values()))

    def merge(self, names: dict[str, str], reasons: dict[str, str]) -> None:
        """Add what another process, or an earlier part of a run, left out."""
        self.names = {**names, **self.names}
        self.reasons = dict(list({**reasons, **self.reasons}.items())[:EXAMPLES_KEPT])


def open_source(path: str | os.PathLike) -> Source:
    """A folder of tar files, a tar file, a JSONL file, or a folder with a `samples.jsonl`.

    Raises:
        FileNotFoundError: it is none of these.
    """
    path = Path(path)
    if path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar"))):
        return ShardSource(path)
    return FolderSource(path)


def parse_sources(text: str) -> list[tuple[str, float]]:
    """ "DIR[:WEIGHT],DIR[:WEIGHT]..." as (path, weight) pairs; a weight left out is 1.

    Raises:
        ValueError: nothing, or a weight that is no positive number.
    """
    found = []
    for part in filter(None, (one.strip() for one in text.split(","))):
        path, colon, weight = part.rpartition(":")
        if not colon:
            path, weight = part, "1"
        try:
            value = float(weight)
        except ValueError:
            path, value = part, 1.0  # a colon of the path itself
        if not (value > 0 and value < float("inf")) or not path:
            raise ValueError(f"{part!r} has no weight above 0; write DIR:WEIGHT, such as data/refcoco:2.")
        found.append((path, value))
    if not found:
        raise ValueError("There is no folder of samples; write DIR[:WEIGHT],DIR[:WEIGHT]...")
    return found


class SampleStream:
    """Units of several sources by their number.

    A source's units come once a round, in another order each round; which source is next is drawn by weight.

    Args:
        sources: where they come from.
        weights: a share each, in any unit.
        seed: decides order and mixture.

    Attributes:
        skipped: what was left out so far.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float], seed: int) -> None:
        if not sources or len(sources) != len(weights):
            raise ValueError(
                f"There are {len(sources)} sources and {len(weights)} weights; give one each, at least one."
            )
        self.sources, self.seed = list(sources), seed
        self._shares = np.asarray(weights, dtype=float) / sum(weights)
        self.skipped = Skipped()
        self._order = lru_cache(maxsize=2 * len(sources))(self._shuffled)
        self._drawn: list[np.ndarray] = []  # for each block, how many units of each source come before it
        self._block = lru_cache(maxsize=4)(self._mixed)

    @classmethod
    def open(cls, pairs: Sequence[tuple[str, float]], seed: int) -> SampleStream:
        """From (path, weight) pairs, see `parse_sources`."""
        return cls([open_source(path) for path, _ in pairs], [weight for _, weight in pairs], seed)

    def _shuffled(self, source: int, round_number: int) -> Sequence[int] | np.ndarray:
        return self.sources[source].order((self.seed, source, round_number))

    def _mixed(self, block: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, len(self.sources), block, 7))
        return rng.choice(len(self.sources), size=_MIXED_AT_ONCE, p=self._shares)

    def _before(self, block: int) -> np.ndarray:
        while len(self._drawn) <= block:
            known = len(self._drawn)
            counts = np.bincount(self._mixed(known - 1), minlength=len(self.sources)) if known else 0
            self._drawn.append((self._drawn[-1] if known else np.zeros(len(self.sources), dtype=np.int64)) + counts)
        return self._drawn[block]

    def place(self, number: int) -> tuple[int, int, int]:
        """(source, round, index in it) of a unit."""
        block, rest = divmod(number, _MIXED_AT_ONCE)
        here = self._block(block)
        source = int(here[rest])
        position = int(self._before(block)[source]) + int((here[:rest] == source).sum())
        round_number, position = divmod(position, len(self.sources[source]))
        return source, round_number, int(self._order(source, round_number)[position])

    def samples(self, number: int, limit: int | None = None) -> list[tuple[str, Sample]]:
        """(name, sample) pairs of a unit: all about the same pictures, in their order; [] where nothing of it can be read.

        Args:
            number: from 0 up.
            limit: at most so many; which ones is drawn anew each round.
        """
        source, round_number, index = self.place(number)
        try:
            lines, files = self.sources[source].unit(index)
        except (ValueError, OSError) as error:
            self.skipped.add("file", f"source {source}, sample {index}", error)
            return []
        records: list[tuple[str, Any]] = []
        for name, line in lines:
            try:
                found = json.loads(line)
            except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
                self.skipped.add("line", name, error)
                continue
            several = isinstance(found, list)
            records += [(f"{name}[{i}]", one) for i, one in enumerate(found)] if several else [(name, found)]
        if limit is not None and len(records) > limit:
            rng = np.random.default_rng((self.seed, source, round_number, index, 3))
            records = [records[i] for i in sorted(rng.permutation(len(records))[:limit])]
        samples = []
        for name, record in records:
            try:
                check_record(record)
            except ValueError as error:
                self.skipped.add("line", name, error)
                continue
            try:
                samples.append((name, read_sample({"key": name, **record}, files)))
            except (ValueError, OSError) as error:
                self.skipped.add("file", name, error)
        return samples
