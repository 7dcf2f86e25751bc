"""What can be said about a still-life scene: expressions, and questions with answers. Editing instructions: `edits.py`.

Paper: FOCUS (arXiv 2506.16806), the tasks of section 4 (referring, generalized and reasoning segmentation, visual
question answering, captions, instruction editing), spoken about the world of `world.py`. Every text is lower case
without a full stop and has exact ground truth: an expression is produced only when its referent is unique by a margin,
and the truth of an edit is the edited scene. Needs numpy only. The grammar is this project's own.

Held-out pairs: every function takes `held_out`. While it is False (training) no text, answer or edit result combines a
colour and a shape of `HELD_OUT_PAIRS`, not even in the negative ("is there a red heart?").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .world import (
    COLOURS,
    HELD_OUT_PAIRS,
    SHAPES,
    SIZES,
    Scene,
)

POSITION_MARGIN = 0.04  # of the side: positions closer than this are not compared
LARGEST_RATIO = 1.1  # the largest object's radius over the next one's
COUNT_WORDS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight")
PLURALS = {shape: f"{shape}es" if shape == "cross" else f"{shape}s" for shape in SHAPES}
QUESTION_KINDS = ("count", "count_attribute", "exists", "relation", "colour", "shape", "caption", "region")
# Asked in training alone: one step each of what "relation" and expressions take in one.
LESSON_KINDS = ("side", "extreme", "place")

# word -> (coordinate, sign): the relation holds where sign * (a - b) > 0.
_RELATIONS = {"left of": ("cx", -1), "right of": ("cx", 1), "above": ("cy", -1), "below": ("cy", 1)}
_EXTREMES = {"leftmost": ("cx", -1), "rightmost": ("cx", 1), "topmost": ("cy", -1), "lowest": ("cy", 1)}

# Indirect expressions: (text, attribute, values that are meant, values whose presence would make it a matter of taste).
REASONING: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("the object with the most points", "shape", ("star",), ("cross",)),
    ("the one that could roll", "shape", ("circle", "ring"), ()),
    ("the one you could wear on a finger", "shape", ("ring",), ()),
    ("the one with a hole in it", "shape", ("ring",), ()),
    ("the one that stands for love", "shape", ("heart",), ()),
    ("the one with three sides", "shape", ("triangle",), ()),
    ("the one that looks like a kite", "shape", ("diamond",), ()),
    ("the one that looks like a plus sign", "shape", ("cross",), ()),
    ("the one you would see in the night sky", "shape", ("star",), ("circle",)),
    ("the one shaped like a box", "shape", ("square",), ()),
    ("the one with the colour of a ripe tomato", "colour", ("red",), ()),
    ("the one with the colour of grass", "colour", ("green",), ()),
    ("the one with the colour of a banana", "colour", ("yellow",), ()),
    ("the one with the colour of a carrot", "colour", ("orange",), ()),
    ("the one with the colour of a grape", "colour", ("purple",), ("green",)),
    ("the one with the colour of snow", "colour", ("white",), ()),
    ("the one with the colour of the deep sea", "colour", ("blue",), ("cyan",)),
    ("the one that is dressed like a zebra", "fill", ("striped",), ()),
)


@dataclass(frozen=True)
class Referral:
    """An expression and the indices of the objects it means (none for an empty one).

    `kind` is "shape", "colour", "colour_shape", "size", "extreme", "relation", "striped" or "largest" (one target),
    "plural" (one or more), "empty" (none) or "reasoning" (one).
    """

    text: str
    targets: tuple[int, ...]
    kind: str


@dataclass(frozen=True)
class Question:
    """A question with its only right answer. `target` is the object a "region" question points at, else None."""

    text: str
    answer: str
    kind: str
    target: int | None = None


def pick(rng: np.random.Generator, items):
    """One of the items."""
    return items[int(rng.integers(len(items)))]


def shuffled(rng: np.random.Generator, items: Iterable) -> list:
    """All items in a random order."""
    items = list(items)
    return [items[int(index)] for index in rng.permutation(len(items))]


def article(word: str, rng: np.random.Generator) -> str:
    """What stands before a word."""
    # People write both "an orange star" and "a orange star"; the model should read both.
    return "an" if word[0] in "aeiou" and rng.random() < 0.75 else "a"


def sayable(colour: str, shape: str, held_out: bool) -> bool:
    """Whether a text may combine the two."""
    return held_out or (colour, shape) not in HELD_OUT_PAIRS


def _where(scene: Scene, **attributes: str) -> list[int]:
    """Indices of the objects with all the given attributes."""
    return [
        index
        for index, item in enumerate(scene.objects)
        if all(getattr(item, key) == value for key, value in attributes.items())
    ]


def _only(scene: Scene, **attributes: str) -> int | None:
    found = _where(scene, **attributes)
    return found[0] if len(found) == 1 else None


def draw(rng: np.random.Generator, groups: Iterable[list], count: int) -> list:
    """Up to `count` different items, drawn evenly over the groups, then evenly within one."""
    groups = [shuffled(rng, group) for group in groups if group]
    drawn = []
    while groups and len(drawn) < count:
        index = int(rng.integers(len(groups)))
        drawn.append(groups[index].pop())
        if not groups[index]:
            del groups[index]
    return drawn


# --- expressions ----------------------------------------------------------------------------------------------------


def all_referring(scene: Scene, held_out: bool) -> list[Referral]:
    """Every expression that means exactly one object."""
    found: list[Referral] = []

    def add(text: str, target: int | None, kind: str) -> None:
        if target is not None:
            found.append(Referral(text, (target,), kind))

    shapes = sorted({item.shape for item in scene.objects})
    for shape in shapes:
        add(f"the {shape}", _only(scene, shape=shape), "shape")
        add(f"the striped {shape}", _only(scene, shape=shape, fill="striped"), "striped")
        add(f"the largest {shape}", _largest(scene, shape), "largest")
        for size in SIZES:
            add(f"the {size} {shape}", _only(scene, shape=shape, size=size), "size")
    for colour in sorted({item.colour for item in scene.objects}):
        add(f"the {colour} one", _only(scene, colour=colour), "colour")
    pairs = _named_pairs(scene, held_out)
    for (colour, shape), index in pairs.items():
        add(f"the {colour} {shape}", index, "colour_shape")
    for word, (axis, sign) in _EXTREMES.items():
        add(f"the {word} object", _extreme(scene, axis, sign), "extreme")
    for (colour, reference_shape), reference in pairs.items():
        for word in _RELATIONS:
            for shape in shapes:
                target = _related(scene, shape, word, reference)
                add(f"the {shape} {word} the {colour} {reference_shape}", target, "relation")
    return found


def _named_pairs(scene: Scene, held_out: bool) -> dict[tuple[str, str], int]:
    """The colour and shape pairs that name exactly one object and may be said, with that object's index."""
    pairs = {}
    for item in scene.objects:
        index = _only(scene, colour=item.colour, shape=item.shape)
        if index is not None and sayable(*item.pair, held_out):
            pairs[item.pair] = index
    return pairs


def _largest(scene: Scene, shape: str) -> int | None:
    ranked = sorted(_where(scene, shape=shape), key=lambda index: -scene.objects[index].r)
    if len(ranked) > 1 and scene.objects[ranked[0]].r < LARGEST_RATIO * scene.objects[ranked[1]].r:
        return None
    return ranked[0] if ranked else None


def _extreme(scene: Scene, axis: str, sign: int) -> int | None:
    ranked = sorted(range(len(scene.objects)), key=lambda index: -sign * getattr(scene.objects[index], axis))
    if len(ranked) > 1:
        first, second = (getattr(scene.objects[index], axis) for index in ranked[:2])
        if abs(first - second) < POSITION_MARGIN:
            return None
    return ranked[0] if ranked else None


def _related(scene: Scene, shape: str, word: str, reference: int) -> int | None:
    """The only object of that shape on that side of the reference, if no object of the shape is on the fence."""
    axis, sign = _RELATIONS[word]
    found = []
    for index in _where(scene, shape=shape):
        if index == reference:
            continue
        gap = sign * (getattr(scene.objects[index], axis) - getattr(scene.objects[reference], axis))
        if abs(gap) < POSITION_MARGIN:
            return None
        if gap > 0:
            found.append(index)
    return found[0] if len(found) == 1 else None


def by_kind(referrals: Iterable[Referral]) -> list[list[Referral]]:
    """Expressions in groups of one kind."""
    groups: dict[str, list[Referral]] = {}
    for referral in referrals:
        groups.setdefault(referral.kind, []).append(referral)
    return list(groups.values())


def referring_expressions(
    scene: Scene, rng: np.random.Generator, count: int | None = None, held_out: bool = False
) -> list[Referral]:
    """Expressions that mean exactly one object of the scene.

    Args:
        scene: The scene.
        rng: Used for sampling and order only.
        count: At most so many, drawn evenly over the kinds of expression; None returns all of them.
        held_out: Whether expressions may name a held-out colour and shape pair.

    Returns:
        Distinct referrals, fewer than `count` where the scene has no more (very rarely none at all).
    """
    everything = all_referring(scene, held_out)
    return everything if count is None else draw(rng, by_kind(everything), count)


def generalized_expressions(
    scene: Scene, rng: np.random.Generator, count: int | None = None, held_out: bool = False
) -> list[Referral]:
    """Expressions that mean any number of objects: "all red objects", "all circles", "the green heart" (there is none).

    Arguments as in `referring_expressions`. A sample is drawn evenly over: several targets, one target, a plural that
    matches nothing, an absent pair whose colour and shape both occur, any other absent pair.
    """
    plurals = [(f"all {colour} objects", tuple(_where(scene, colour=colour))) for colour in COLOURS]
    plurals += [(f"all {PLURALS[shape]}", tuple(_where(scene, shape=shape))) for shape in SHAPES]
    absent = _absent_pairs(scene, held_out)
    groups = [
        [Referral(text, targets, "plural") for text, targets in plurals if len(targets) > 1],
        [Referral(text, targets, "plural") for text, targets in plurals if len(targets) == 1],
        [Referral(text, targets, "empty") for text, targets in plurals if not targets],
        *([Referral(f"the {colour} {shape}", (), "empty") for colour, shape in pairs] for pairs in absent),
    ]
    if count is None:
        return [referral for group in groups for referral in group]
    return draw(rng, groups, count)


def _absent_pairs(scene: Scene, held_out: bool) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Pairs no object has: those whose colour and shape both occur in the scene, and all the others."""
    present = {item.pair for item in scene.objects}
    colours, shapes = {item.colour for item in scene.objects}, {item.shape for item in scene.objects}
    hard, easy = [], []
    for colour in COLOURS:
        for shape in SHAPES:
            if (colour, shape) not in present and sayable(colour, shape, held_out):
                (hard if colour in colours and shape in shapes else easy).append((colour, shape))
    return hard, easy


def reasoning_expressions(scene: Scene, rng: np.random.Generator, count: int | None = None) -> list[Referral]:
    """Indirect expressions of the `REASONING` table that mean exactly one object of the scene; may be none."""
    found = []
    for text, attribute, meant, doubtful in REASONING:
        values = [getattr(item, attribute) for item in scene.objects]
        targets = tuple(index for index, value in enumerate(values) if value in meant)
        if len(targets) == 1 and not any(value in doubtful for value in values):
            found.append(Referral(text, targets, "reasoning"))
    return found if count is None else draw(rng, [found], count)


def explanation(scene: Scene, referral: Referral) -> str:
    """Why an indirect expression means its object: "the star is the one you would see in the night sky"."""
    attribute = next(attribute for text, attribute, _, _ in REASONING if text == referral.text)
    (target,) = referral.targets
    value = getattr(scene.objects[target], attribute)
    return f"the {value} {'is' if attribute == 'shape' else 'object is'} {referral.text}"


# --- questions ------------------------------------------------------------------------------------------------------


def caption(scene: Scene) -> str:
    """All objects from left to right: "a small red circle, a large striped blue star"."""
    ordered = sorted(scene.objects, key=lambda item: (item.cx, item.cy))
    return ", ".join(f"a {item.name}" for item in ordered) or "nothing"


def questions(
    scene: Scene,
    rng: np.random.Generator,
    count: int,
    kinds: Iterable[str] | None = None,
    held_out: bool = False,
) -> list[Question]:
    """Different questions about a scene, evenly over the kinds it allows.

    Yes and no are drawn evenly, and so is the answer of "how many red objects are there?" among those the scene offers.
    Questions of the kind "region" ("what is this?") go with a region prompt on object `target`.

    Args:
        scene: The scene.
        rng: The source of randomness.
        count: At most so many questions; fewer come back where the scene and `kinds` have no more.
        kinds: Some of `QUESTION_KINDS` and `LESSON_KINDS`, a kind named twice is asked twice as often; None takes
            `QUESTION_KINDS`.
        held_out: Whether questions and answers may combine a held-out colour and shape pair.
    """
    kinds = QUESTION_KINDS if kinds is None else checked(kinds, (*QUESTION_KINDS, *LESSON_KINDS), "question")
    found: list[Question] = []
    for _ in range(3 * count):  # a round asks every kind once; rounds that add nothing new are cheap
        for kind in shuffled(rng, kinds):
            question = _ASK[kind](scene, rng, held_out)
            if question is None or any((q.text, q.target) == (question.text, question.target) for q in found):
                continue
            found.append(question)
            if len(found) == count:
                return found
    return found


def checked(kinds: Iterable[str] | None, allowed: tuple[str, ...], what: str) -> tuple[str, ...]:
    """The kinds asked for, all by default. Raises ValueError for one that there is not."""
    chosen = allowed if kinds is None else tuple(kinds)
    unknown = [kind for kind in chosen if kind not in allowed]
    if unknown or not chosen:
        raise ValueError(f"Unknown {what} kinds {unknown or '(none given)'}; choose from {', '.join(allowed)}.")
    return chosen


def _ask_count(scene: Scene, rng: np.random.Generator, held_out: bool) -> Question | None:
    return Question("how many objects are there?", COUNT_WORDS[len(scene.objects)], "count")


def _ask_count_attribute(scene: Scene, rng: np.random.Generator, held_out: bool) -> Question | None:
    by_number: dict[int, list[str]] = {}
    for colour in COLOURS:
        by_number.setdefault(len(_where(scene, colour=colour)), []).append(f"{colour} objects")
    for shape in SHAPES:
        by_number.setdefault(len(_where(scene, shape=shape)), []).append(PLURALS[shape])
    number = pick(rng, sorted(by_number))
    return Question(f"how many {pick(rng, by_number[number])} are there?", COUNT_WORDS[number], "count_attribute")


def _ask_exists(scene: Scene, rng: np.random.Generator, held_out: bool) -> Question | None:
    present = sorted({item.pair for item in scene.objects if sayable(*item.pair, held_out)})
    hard, easy = _absent_pairs(scene, held_out)
    yes = rng.random() < 0.5
    pairs = present if yes else hard if hard and rng.random() < 0.6 else easy
    if not pairs:
        return None
    colour, shape = pick(rng, pairs)
    return Question(f"is there {article(colour, rng)} {colour} {shape}?", "yes" if yes else "no", "exists")


def _comparable(scene: Scene, held_out: bool) -> list[tuple[str, tuple[str, str], str, int]]:
    """(shape of one object, name of another, axis, sign of their distance on it) wherever that can be asked."""
    found = []
    for shape in SHAPES:
        index = _only(scene, shape=shape)
        for pair, reference in _named_pairs(scene, held_out).items() if index is not None else ():
            for axis in ("cx", "cy") if reference != index else ():
                gap = getattr(scene.objects[index], axis) - getattr(scene.objects[reference], axis)
                if abs(gap) >= POSITION_MARGIN:
                    found.append((shape, pair, axis, 1 if gap > 0 else -1))
    return found


def _ask_side(scene: Scene, rng: np.random.Generator, held_out: bool) -> Question | None:
    """A relation without yes or no: whose answer is the sign of a distance, not its product with the sign that was asked for."""
    candidates = _comparable(scene, held_out)
    if not candidates:
        return None
    shape, pair, axis, sign = pick(rng, candidates)
    first, second = (word for word, (other, _) in _RELATIONS.items() if other == axis)
    answer = next(word for word, meaning in _RELATIONS.items() if meaning == (axis, sign))
    return Question(f"is the {shape} {first} or {second} the {pair[0]} {pair[1]}?", answer, "side")


def _ask_extreme(scene: Scene, rng: np.random.Generator, held_out: bool) -> Question | None:
    targets = {word: _extreme(scene, axis, sign) for word, (axis, sign) in _EXTREMES.items()}
    found = [(w, t) for w, t in targets.items() if t is not None and sayable(*scene.objects[t].pair, held_out)]
    if not found:
        return None
    word, target = pick(rng, found)
    return Question(f"what is the {word} object?", f"a {scene.objects[target].name}", "extreme")


def _ask_place(scene: Scene, rng: np.random.Generator, held_out: bool) -> Question | None:
    """Where one object is, in eighths of the side: what a relation compares, asked of either alone and in the words of either."""
    unique = [(item.shape, item) for item in scene.objects if _only(scene, shape=item.shape) is not None]
    unique += [(" ".join(pair), scene.objects[i]) for pair, i in _named_pairs(scene, held_out).items()]
    if not unique:
        return None
    name, item = pick(rng, unique)
    way, place = pick(rng, (("right", item.cx), ("down", item.cy)))
    return Question(f"how far {way} is the {name}?", COUNT_WORDS[min(7, int(8 * place))], "place")


def _ask_relation(scene: Scene, rng: np.random.Generator, held_out: bool) -> Question | None:
    candidates = _comparable(scene, held_out)
    if not candidates:
        return None
    shape, pair, axis, sign = pick(rng, candidates)
    yes = rng.random() < 0.5
    asked = (axis, sign if yes else -sign)
    word = next(word for word, meaning in _RELATIONS.items() if meaning == asked)
    return Question(f"is the {shape} {word} the {pair[0]} {pair[1]}?", "yes" if yes else "no", "relation")


def _ask_colour(scene: Scene, rng: np.random.Generator, held_out: bool) -> Question | None:
    unique = [item for item in scene.objects if _only(scene, shape=item.shape) is not None]
    unique = [item for item in unique if sayable(*item.pair, held_out)]
    if not unique:
        return None
    item = pick(rng, unique)
    return Question(f"what colour is the {item.shape}?", item.colour, "colour")


def _ask_shape(scene: Scene, rng: np.random.Generator, held_out: bool) -> Question | None:
    unique = [item for item in scene.objects if _only(scene, colour=item.colour) is not None]
    unique = [item for item in unique if sayable(*item.pair, held_out)]
    if not unique:
        return None
    item = pick(rng, unique)
    return Question(f"what shape is the {item.colour} object?", item.shape, "shape")


def _ask_caption(scene: Scene, rng: np.random.Generator, held_out: bool) -> Question | None:
    if scene.has_held_out_pair and not held_out:
        return None
    return Question("describe the image", caption(scene), "caption")


def _ask_region(scene: Scene, rng: np.random.Generator, held_out: bool) -> Question | None:
    targets = [index for index, item in enumerate(scene.objects) if sayable(*item.pair, held_out)]
    if not targets:
        return None
    target = pick(rng, targets)
    return Question("what is this?", f"a {scene.objects[target].name}", "region", target)


_ASK = {
    "count": _ask_count,
    "count_attribute": _ask_count_attribute,
    "exists": _ask_exists,
    "relation": _ask_relation,
    "colour": _ask_colour,
    "shape": _ask_shape,
    "caption": _ask_caption,
    "region": _ask_region,
    "side": _ask_side,
    "extreme": _ask_extreme,
    "place": _ask_place,
}
