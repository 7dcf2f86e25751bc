"""Key tables: rules between an original's parameter names and ours, and what is known about each kind of checkpoint.

Names: ours are "component.key" (`vision_encoder.vit.patch_embed.proj.weight`); originals are as stored, without the
family's prefix. In a pattern `#` stands for a number, `{a,b}` for alternatives, and a final "." (or nothing at all) for
any ending. The idea of a key table that serves both directions is torchtitan's (BSD-3-Clause, `state_dict_adapter.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Protocol

Shape = tuple[int, ...]

# Operation -> the one that undoes it. `apply_step` says what each does; `fit` is a copy whose target starts anew where the
# shapes differ, instead of that being an error.
INVERSE = {
    "copy": "copy",
    "fit": "fit",
    "reshape": "reshape",
    "split": "stack",
    "stack": "split",
    "widen": "narrow",
    "narrow": "widen",
    "add_rows": "drop_rows",
    "drop_rows": "add_rows",
}


class HasShape(Protocol):
    """Anything that knows its shape: a `TensorInfo`, a tensor."""

    @property
    def shape(self) -> Sequence[int]: ...


@dataclass(frozen=True)
class Rule:
    """One line of a key table.

    Args:
        original: Pattern of the original's names.
        ours: Pattern of "component.key"; as many `#` as `original`.
        operation: A key of `INVERSE`, read from original to ours. `split` wants braces in `ours`, `stack` in `original`.
    """

    original: str
    ours: str
    operation: str = "copy"

    def __post_init__(self) -> None:
        if self.operation not in INVERSE:
            raise ValueError(f"{self} has an unknown operation; known are {', '.join(INVERSE)}.")
        counts = {pattern.count("#") for pattern in (self.original, self.ours)}
        if len(counts) > 1 or is_prefix(self.original) != is_prefix(self.ours):
            raise ValueError(f"The two sides of {self} do not have the same free parts.")
        if (len(self.sources) > 1, len(self.targets) > 1) != (self.operation == "stack", self.operation == "split"):
            raise ValueError(f"{self}: braces stand on the many side of a split or stack, and nowhere else.")

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """`original` with its braces written out."""
        return alternatives(self.original)

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """`ours` with its braces written out."""
        return alternatives(self.ours)

    def turned(self) -> Rule:
        """The same rule from ours to the original."""
        return Rule(self.ours, self.original, INVERSE[self.operation])


@dataclass(frozen=True)
class Family:
    """A kind of checkpoint: its key table and what is known about the rest.

    Args:
        name: How reports and messages call it.
        rules: The table; the first rule that fits a key, and whose target exists, is the one.
        dropped: (pattern of original names, reason) of what has no place here.
        ties: (name, name it equals) of originals that may be stored once, or twice with equal values.
        prefixes: What may stand before every original name. The first is written when converting back.
        evidence: Original patterns, all of which a checkpoint of this kind has, to the shape they must have; None is any
            shape, and None in a shape any size.
        refusal: Why such a checkpoint cannot be converted; "" where it can.
    """

    name: str
    rules: tuple[Rule, ...]
    dropped: tuple[tuple[str, str], ...] = ()
    ties: tuple[tuple[str, str], ...] = ()
    prefixes: tuple[str, ...] = ("",)
    evidence: tuple[tuple[str, tuple[int | None, ...] | None], ...] = ()
    refusal: str = ""

    def moved(self, old: str, new: str) -> Family:
        """The same family with parts going elsewhere: `old` at the start of our names becomes `new`."""

        def move(ours: str) -> str:
            return new + ours[len(old) :] if ours.startswith(old) else ours

        return replace(self, rules=tuple(replace(rule, ours=move(rule.ours)) for rule in self.rules))

    def find_prefix(self, infos: Mapping[str, HasShape]) -> str | None:
        """The prefix under which `infos` has all of the family's evidence, or None."""
        for prefix in self.prefixes if self.evidence else ():
            inside = [(key[len(prefix) :], info) for key, info in infos.items() if key.startswith(prefix)]
            if all(_has(inside, pattern, shape) for pattern, shape in self.evidence):
                return prefix
        return None


def numbers(infos: Mapping[str, HasShape], pattern: str) -> int:
    """How many there are: one more than the largest number at the (only) `#` of a prefix pattern, 0 without any."""
    found = [int(match[1]) for key in infos if (match := regex(pattern).fullmatch(key))]
    return max(found, default=-1) + 1


def shape_of(infos: Mapping[str, HasShape], key: str) -> tuple[int, ...]:
    """Shape of a tensor whose absence is an error.

    Raises:
        ValueError: It is missing.
    """
    if key not in infos:
        raise ValueError(f"The checkpoint has no {key}, from which sizes are read.")
    return tuple(infos[key].shape)


def is_prefix(pattern: str) -> bool:
    """Whether a pattern leaves the ending open."""
    return pattern == "" or pattern.endswith(".")


@cache
def alternatives(pattern: str) -> tuple[str, ...]:
    """A pattern with its braces written out; itself where it has none."""
    braces = re.fullmatch(r"(.*)\{(.*)\}(.*)", pattern)
    return (pattern,) if braces is None else tuple(f"{braces[1]}{part}{braces[3]}" for part in braces[2].split(","))


@cache
def regex(pattern: str) -> re.Pattern[str]:
    """A pattern without braces, compiled: a group for every number, and one for an open ending."""
    return re.compile(re.escape(pattern).replace(r"\#", r"(\d+)") + r"(.*)" * is_prefix(pattern))


def fill(pattern: str, parts: Sequence[str]) -> str:
    """A pattern with the groups of another one's match put in."""
    pieces = pattern.split("#")
    return "".join(piece + part for piece, part in zip(pieces, [*parts, *[""] * (len(pieces) - len(parts))]))


def _has(infos: Sequence[tuple[str, HasShape]], pattern: str, shape: tuple[int | None, ...] | None) -> bool:
    forms = [regex(form) for form in alternatives(pattern)]
    return any(_shape_fits(info, shape) and any(form.fullmatch(key) for form in forms) for key, info in infos)


def _shape_fits(info: HasShape, shape: tuple[int | None, ...] | None) -> bool:
    if shape is None:
        return True
    return len(info.shape) == len(shape) and all(want in (None, size) for size, want in zip(info.shape, shape))
