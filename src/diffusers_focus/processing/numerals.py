"""Numbers in words, as answers say them."""

from __future__ import annotations

NUMERALS = dict(zip("none zero one two three four five six seven eight nine ten".split(), [0, *range(11)]))


def read_numeral(text: str) -> int | None:
    """The whole number that a text is ("three", "3", "Three."), None where it is something else."""
    word = text.strip().rstrip(".").lower()
    return int(word) if word.isdecimal() else NUMERALS.get(word)
