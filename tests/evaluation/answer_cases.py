"""Answers for comparing measures: plain ones, and ones with punctuation, articles, numbers and contractions."""

from __future__ import annotations

import numpy as np

_WORDS = (
    "yes no not No Not red blue two 2 none 0 the a an dog dogs don't dont isn't isnt o'clock 1,000 1000 3.5 ten".split()
)
_MARKS = ["", "", "", ".", ",", "!", "?", " .", " ,", "-", "/", "(", ")", " - ", "\n", "\t", "_", "@"]


def phrase(rng: np.random.Generator) -> str:
    """One to three words with marks between and after them."""
    count = int(rng.integers(1, 4))
    return "".join(rng.choice(_WORDS) + (rng.choice(_MARKS) or " ") for _ in range(count)).rstrip(" ")


def yes_no_cases(count: int = 300) -> tuple[list[str], list[str]]:
    """(answers, labels "yes" or "no")."""
    rng = np.random.default_rng(0)
    answers = [". ".join(phrase(rng) for _ in range(int(rng.integers(1, 3)))) for _ in range(count)]
    return answers, [str(rng.choice(["yes", "no"])) for _ in range(count)]


def vqa_cases(count: int = 300) -> list[tuple[str, list[str]]]:
    """(answer, ten given answers), from small sets so that they often agree."""
    rng = np.random.default_rng(1)
    cases = []
    for _ in range(count):
        few = [phrase(rng) for _ in range(int(rng.integers(1, 4)))]
        cases.append((str(rng.choice([*few, phrase(rng)])), [str(rng.choice(few)) for _ in range(10)]))
    return cases
