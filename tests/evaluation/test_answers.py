"""Answers judged as the benchmarks judge them."""

from __future__ import annotations

import pytest

from diffusers_focus.evaluation.answers import chosen_letter, circular_accuracy, says_yes, vqa_accuracy, yes_no_figures


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes", True),
        ("No, there is none.", False),
        ("There is not", False),
        ("I see one. No doubt.", True),  # the first sentence counts
        ("nothing of the sort", True),  # words, not letters
        ("NO", True),  # the official code knows these three spellings
        ("", True),
    ],
)
def test_pope_reads_answers_as_published(answer, yes):
    assert says_yes(answer) == yes


def test_pope_figures():
    found = yes_no_figures([True, True, False, False], [True, False, True, False])
    assert found == {"accuracy": 0.5, "precision": 0.5, "recall": 0.5, "F1": 0.5, "yes_ratio": 0.5}
    assert yes_no_figures([False], [True])["precision"] is None


@pytest.mark.parametrize(
    ("answer", "given", "value"),
    [
        ("red", ["red"] * 10, 1.0),
        ("blue", ["red"] * 10, 0.0),
        ("red", ["red"] + ["blue"] * 9, 9 * (1 / 3) / 10),
        ("red", ["red"] * 3 + ["blue"] * 7, (3 * (2 / 3) + 7) / 10),
        ("The Red.", ["red"] * 5 + ["blue"] * 5, 1.0),
        ("two", ["2"] * 5 + ["3"] * 5, 1.0),
        ("dont know", ["don't know"] * 4 + ["yes"] * 6, 1.0),
        ("The red", ["red"] * 10, 0.0),  # where all agree, nothing is brought to one form
        ("1,000", ["1000"] * 5 + ["many"] * 5, 1.0),
        ("yes/no", ["yes no"] * 5 + ["x"] * 5, 1.0),
    ],
)
def test_vqa_accuracy(answer, given, value):
    assert vqa_accuracy(answer, given) == pytest.approx(value)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(C) a dog", "C"),
        ("D. a cat", "D"),
        ("The answer is B.", "B"),
        ("A", "A"),
        ("A.", "A"),
        ("A dog", None),
        ("Dogs", None),
        ("B or C", None),
        ("I think it's C", "C"),
        ("E", None),
        ("", None),
    ],
)
def test_letters(answer, letter):
    assert chosen_letter(answer) == letter


def test_circular_accuracy_wants_every_rotation():
    assert circular_accuracy([True, False, True, True], [0, 0, 1, 1]) == 0.5
