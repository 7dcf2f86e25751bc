"""Answers of question benchmarks, judged as their authors judge them.

POPE (Li et al. 2023, AoiDragon/POPE `evaluate.py`), VQA v2 (Antol et al. 2015, GT-Vision-Lab/VQA `vqaEval.py`) and MMBench (Liu et
al. 2023, circular evaluation); restated here from facts.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

import numpy as np

from ..processing.numerals import NUMERALS

_NEGATIONS = ("No", "not", "no")
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll let's ma'am mightn't mightn't've might've mustn't "
    "must've needn't not've o'clock oughtn't shan't she'd've she's should've shouldn't shouldn't've that's there'd "
    "there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll "
    "what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's "
    "won't would've wouldn't wouldn't've y'all you'd you'd've you'll you're you've"
).split()
_CONTRACTIONS = {word.replace("'", ""): word for word in _CONTRACTED}


def says_yes(answer: str) -> bool:
    """POPE's reading of an answer: its first sentence means no if one of its words is "No", "not" or "no", else yes."""
    return not set(_NEGATIONS) & set(answer.split(".")[0].replace(",", "").split(" "))


def yes_no_figures(said: Sequence[bool], true: Sequence[bool]) -> dict[str, float | None]:
    """POPE's figures: accuracy, precision, recall and F1 of "yes", and how often yes was said. None where one has no value."""
    a, b = np.asarray(said, dtype=bool), np.asarray(true, dtype=bool)
    hits = int((a & b).sum())
    precision = hits / int(a.sum()) if a.any() else None
    recall = hits / int(b.sum()) if b.any() else None
    f1 = (
        2 * precision * recall / (precision + recall) if precision and recall else (0.0 if a.any() or b.any() else None)
    )
    return {
        "accuracy": float((a == b).mean()),
        "precision": precision,
        "recall": recall,
        "F1": f1,
        "yes_ratio": float(a.mean()),
    }


def vqa_accuracy(answer: str, given: Sequence[str]) -> float:
    """VQA v2: the mean over the people who were asked of min(1, n / 3), n being how many of the others gave this answer.

    Where people disagree, answers are brought to one form first: punctuation, articles, number words, contractions. (The
    official list of contractions has some with half of their apostrophes too; those are not brought together here.)
    """
    answer, given = _one_line(answer), [_one_line(one) for one in given]
    if len(set(given)) > 1:
        answer, given = _plain(answer), [_plain(one) for one in given]
    same = [one == answer for one in given]
    return float(np.mean([min(1.0, (sum(same) - own) / 3) for own in same]))


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _plain(text: str) -> str:
    comma_in_number = re.search(r"\d,\d", text) is not None
    plain = text
    for mark in _PUNCTUATION:
        beside_space = mark + " " in text or " " + mark in text
        plain = plain.replace(mark, "" if beside_space or comma_in_number else " ")
    plain = re.sub(r"\.(?!\d)", "", plain, count=int(re.UNICODE))  # the official code passes the flag as the count
    words = [str(NUMERALS.get(word, word)) for word in plain.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def chosen_letter(answer: str) -> str | None:
    """The choice an answer names, "A" to "D": the one letter that stands by itself in it ("B", "(C) a dog", "The answer is D.").

    None where there is none or several. The article in "A dog" is no choice.
    """
    found = set(re.findall(r"(?<![\w'])([B-D]|A(?! [a-z]))(?![\w'])", answer))
    return found.pop() if len(found) == 1 else None


def circular_accuracy(right: Sequence[bool], questions: Sequence[Hashable]) -> float:
    """MMBench's CircularEval: the share of questions answered rightly in every rotation of their choices."""
    by_question: dict[Hashable, bool] = {}
    for held, question in zip(right, questions, strict=True):
        by_question[question] = by_question.get(question, True) and bool(held)
    return float(np.mean(list(by_question.values())))
