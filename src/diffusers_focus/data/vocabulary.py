"""The words of the still-life world, as sentences to make a tokenizer of."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .edits import sample_edit
from .language import (
    COUNT_WORDS,
    PLURALS,
    QUESTION_KINDS,
    REASONING,
    generalized_expressions,
    questions,
    referring_expressions,
    sayable,
)
from .world import COLOURS, SHAPES, sample_scene


def vocabulary_texts(scenes: int = 400) -> Iterator[str]:
    """Sample sentences for training a tokenizer: every word of the world occurs, in natural proportions.

    Contains no held-out pair. The same sequence on every call.
    """
    yield from COUNT_WORDS
    yield from (row[0] for row in REASONING)
    for shape in SHAPES:
        yield f"all {PLURALS[shape]}"
        for colour in COLOURS:
            if sayable(colour, shape, held_out=False):
                yield f"the {colour} {shape}"
                yield f"a large striped {colour} {shape}, a small {colour} {shape}"
    for seed in range(scenes):
        scene = sample_scene(seed)
        rng = np.random.default_rng(seed)
        for referral in referring_expressions(scene, rng, 6) + generalized_expressions(scene, rng, 3):
            yield referral.text
        for question in questions(scene, rng, len(QUESTION_KINDS)):
            yield question.text
            yield question.answer
        for _ in range(3):
            yield sample_edit(scene, rng).instruction
