"""The language of the still-life world: every text is re-read by an independent interpreter and must be true."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from diffusers_focus.data import language
from diffusers_focus.data.edits import sample_edit
from diffusers_focus.data.language import (
    COUNT_WORDS,
    LESSON_KINDS,
    QUESTION_KINDS,
    REASONING,
    caption,
    generalized_expressions,
    questions,
    reasoning_expressions,
    referring_expressions,
)
from diffusers_focus.data.vocabulary import vocabulary_texts
from diffusers_focus.data.world import (
    COLOURS,
    HELD_OUT_PAIRS,
    SHAPES,
    Background,
    Scene,
    WorldObject,
    sample_scene,
)

C = "(" + "|".join(COLOURS) + ")"
S = "(" + "|".join(SHAPES) + ")"
NUMBERS = ["none", "one", "two", "three", "four", "five", "six", "seven", "eight"]


def singular(plural: str) -> str:
    return "cross" if plural == "crosses" else plural.removesuffix("s")


def holds(relation: str, a: WorldObject, b: WorldObject) -> bool:
    return {
        "left of": a.cx < b.cx,
        "right of": a.cx > b.cx,
        "above": a.cy < b.cy,
        "below": a.cy > b.cy,
    }[relation]


def read(text: str, objects: tuple[WorldObject, ...]) -> set[int]:
    """What an expression means, read from its words alone."""
    every = list(enumerate(objects))

    def match(pattern: str) -> tuple[str, ...] | None:
        found = re.fullmatch(pattern, text)
        return found.groups() if found else None

    if found := match(f"the {S} (left of|right of|above|below) the {C} {S}"):
        shape, relation, colour, other = found
        (anchor,) = [i for i, o in every if (o.colour, o.shape) == (colour, other)]
        return {i for i, o in every if o.shape == shape and i != anchor and holds(relation, o, objects[anchor])}
    if found := match("the (leftmost|rightmost|topmost|lowest) object"):
        key = {
            "leftmost": lambda o: o.cx,
            "rightmost": lambda o: -o.cx,
            "topmost": lambda o: o.cy,
            "lowest": lambda o: -o.cy,
        }[found[0]]
        return {i for i, o in every if key(o) <= min(map(key, objects)) + 0.039}
    if found := match(f"the largest {S}"):
        radius = max(o.r for o in objects if o.shape == found[0])
        return {i for i, o in every if o.shape == found[0] and o.r * 1.099 > radius}
    if found := match(f"the (large|small) {S}"):
        return {i for i, o in every if (o.size, o.shape) == found}
    if found := match(f"the striped {S}"):
        return {i for i, o in every if o.fill == "striped" and o.shape == found[0]}
    if found := match(f"the {C} one") or match(f"all {C} objects"):
        return {i for i, o in every if o.colour == found[0]}
    if found := match(f"the {C} {S}"):
        return {i for i, o in every if (o.colour, o.shape) == found}
    if found := match(f"the {S}"):
        return {i for i, o in every if o.shape == found[0]}
    if found := match("all ([a-z]+)"):
        return {i for i, o in every if o.shape == singular(found[0])}
    raise AssertionError(f"not in the grammar: {text!r}")


def answer(text: str, objects: tuple[WorldObject, ...]) -> str:
    """What a question's answer is, read from its words alone."""
    if text == "how many objects are there?":
        return NUMBERS[len(objects)]
    if found := re.fullmatch(r"how many (.*) are there\?", text):
        return NUMBERS[len(read(f"all {found[1]}", objects))]
    if found := re.fullmatch(rf"is there an? {C} {S}\?", text):
        return "yes" if any((o.colour, o.shape) == found.groups() for o in objects) else "no"
    if found := re.fullmatch(rf"is the {S} (left of|right of|above|below) the {C} {S}\?", text):
        (subject,) = read(f"the {found[1]}", objects)
        (anchor,) = read(f"the {found[3]} {found[4]}", objects)
        assert subject != anchor
        return "yes" if holds(found[2], objects[subject], objects[anchor]) else "no"
    if found := re.fullmatch(rf"what colour is the {S}\?", text):
        (subject,) = read(f"the {found[1]}", objects)
        return objects[subject].colour
    if found := re.fullmatch(rf"what shape is the {C} object\?", text):
        (subject,) = read(f"the {found[1]} one", objects)
        return objects[subject].shape
    assert text == "describe the image"
    return ", ".join(f"a {o.name}" for o in sorted(objects, key=lambda o: o.cx))


def pairs_said(text: str) -> set[tuple[str, str]]:
    return {(c, s) for c, s in re.findall(rf"\b{C} {S}\b", text)}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_referring_expressions_mean_exactly_their_target():
    kinds = Counter()
    for seed in range(120):
        scene = sample_scene(seed)
        found = referring_expressions(scene, rng(seed))
        assert found and len({referral.text for referral in found}) == len(found)
        for referral in found:
            assert read(referral.text, scene.objects) == set(referral.targets), referral
            assert len(referral.targets) == 1
            kinds[referral.kind] += 1
    assert set(kinds) == {"shape", "colour", "colour_shape", "size", "extreme", "relation", "striped", "largest"}


def test_a_sample_of_expressions_is_drawn_evenly_over_the_kinds():
    kinds = Counter()
    for seed in range(150):
        scene = sample_scene(seed)
        sample = referring_expressions(scene, rng(seed), 4)
        assert len(sample) == 4 and set(sample) <= set(referring_expressions(scene, rng(seed)))
        kinds.update(referral.kind for referral in sample)
    assert max(kinds.values()) < 2.5 * min(kinds.values())


def test_what_is_a_matter_of_measure_is_not_said():
    background = Background("plain", (90, 90, 90), (90, 90, 90))
    left = WorldObject("circle", "red", "large", "solid", 0.30, 0.3, 0.15)
    near = WorldObject("circle", "blue", "large", "solid", 0.33, 0.7, 0.16)
    texts = {r.text for r in referring_expressions(Scene(0, (left, near), background, 0, False), rng())}
    assert "the topmost object" in texts and "the circle above the blue circle" in texts
    assert "the leftmost object" not in texts and "the circle left of the blue circle" not in texts
    assert "the largest circle" not in texts and "the large circle" not in texts and "the circle" not in texts
    scene = Scene(0, (left, near), background, 0, False)
    asked = [question.text for seed in range(40) for question in questions(scene, rng(seed), 9)]
    assert not any(re.search("left of|right of|what colour|what shape is the .* circle", text) for text in asked)


def test_generalized_expressions_mean_all_their_targets_or_none():
    groups = Counter()
    for seed in range(80):
        scene = sample_scene(seed)
        for referral in generalized_expressions(scene, rng(seed)):
            assert read(referral.text, scene.objects) == set(referral.targets), referral
            assert (referral.kind == "empty") == (not referral.targets)
        sample = generalized_expressions(scene, rng(seed), 3)
        assert len(sample) == 3
        groups.update(min(len(referral.targets), 2) for referral in sample)
    assert all(groups[number] >= 25 for number in (0, 1, 2))


def test_reasoning_expressions_are_unique():
    assert all(set(meant) & set(doubtful) == set() for _, _, meant, doubtful in REASONING)
    seen = set()
    for seed in range(150):
        scene = sample_scene(seed)
        for referral in reasoning_expressions(scene, rng()):
            row = next(row for row in REASONING if row[0] == referral.text)
            meant = {i for i, item in enumerate(scene.objects) if getattr(item, row[1]) in row[2]}
            assert meant == set(referral.targets) and len(meant) == 1
            seen.add(referral.text)
    assert seen == {row[0] for row in REASONING}


def test_answers_are_true():
    for seed in range(120):
        scene = sample_scene(seed)
        for question in questions(scene, rng(seed), 12):
            if question.kind == "region":
                assert question.text == "what is this?"
                assert question.answer == f"a {scene.objects[question.target].name}"
            else:
                assert question.answer == answer(question.text, scene.objects), question
                assert question.target is None


def test_lessons_are_one_step_of_what_is_asked_later():
    """Their answers follow from the yes or no, or from the expression, that they prepare; all answers occur."""
    words, named = Counter(), 0
    for seed in range(150):
        scene = sample_scene(seed)
        for question in questions(scene, rng(seed), 6, LESSON_KINDS):
            words[question.answer] += 1
            if question.kind == "extreme":
                (target,) = read(f"the {question.text.removeprefix('what is the ').rstrip('?')}", scene.objects)
                assert question.answer == f"a {scene.objects[target].name}"
                assert scene.objects[target].pair not in HELD_OUT_PAIRS
                continue
            if question.kind == "place":
                way, name = re.fullmatch(r"how far (right|down) is (.*)\?", question.text).groups()
                (index,) = read(name, scene.objects)
                target = scene.objects[index]
                named += name.count(" ") == 2
                eighths = 8 * (target.cx if way == "right" else target.cy)
                assert COUNT_WORDS.index(question.answer) == int(eighths)
                continue
            first, second = re.search("(left of|above) or (right of|below)", question.text).groups()
            for word in (first, second):
                asked = question.text.replace(f"{first} or {second}", word)
                assert answer(asked, scene.objects) == ("yes" if word == question.answer else "no"), question
    assert min(words[word] for word in ("left of", "right of", "above", "below")) > 0.2 * words["left of"] > 10
    assert named > 50  # "the red circle", as the other side of a relation is called


def test_questions_are_balanced():
    answers = defaultdict(Counter)
    for seed in range(400):
        for question in questions(sample_scene(seed), rng(seed), 4):
            answers[question.kind][question.answer] += 1
    assert set(answers) == set(QUESTION_KINDS)
    totals = {kind: sum(counter.values()) for kind, counter in answers.items()}
    assert max(totals.values()) < 2 * min(totals.values())
    for kind in ("exists", "relation"):
        assert 0.4 < answers[kind]["yes"] / totals[kind] < 0.6
    assert answers["count_attribute"]["none"] < 0.5 * totals["count_attribute"]
    assert answers["count_attribute"]["two"] > 0.1 * totals["count_attribute"]
    assert set(answers["colour"]) == set(COLOURS) and set(answers["shape"]) == set(SHAPES)


def test_questions_come_in_the_asked_number_and_kinds():
    scene = sample_scene(3)
    found = questions(scene, rng(), 8)
    # No shape occurs only once in this scene, so two of the kinds have nothing to ask about.
    assert Counter(item.shape for item in scene.objects) == {"diamond": 2, "cross": 3}
    assert len(found) == 8 and {q.kind for q in found} == set(QUESTION_KINDS) - {"relation", "colour"}
    assert [q.kind for q in questions(scene, rng(), 5, ["caption"])] == ["caption"]
    assert {q.kind for q in questions(scene, rng(), 5, ["exists", "count"])} == {"exists", "count"}
    with pytest.raises(ValueError, match="question kinds"):
        questions(scene, rng(), 5, ["riddle"])


def test_captions_run_from_left_to_right():
    background = Background("plain", (90, 90, 90), (90, 90, 90))
    star = WorldObject("star", "blue", "large", "striped", 0.7, 0.3, 0.15)
    circle = WorldObject("circle", "red", "small", "solid", 0.2, 0.8, 0.08)
    assert caption(Scene(0, (star, circle), background, 0, False)) == "a small red circle, a large striped blue star"


def test_training_texts_never_name_a_held_out_pair():
    for seed in range(200):
        for mode in ("exclude", "require"):
            scene = sample_scene(seed, held_out=mode)
            random = rng(seed)
            referrals = referring_expressions(scene, random) + generalized_expressions(scene, random)
            asked = questions(scene, random, 10)
            edits = [sample_edit(scene, random) for _ in range(2)]
            texts = [r.text for r in referrals] + [q.text for q in asked] + [q.answer for q in asked]
            texts += [edit.instruction for edit in edits]
            assert not {pair for text in texts for pair in pairs_said(text)} & HELD_OUT_PAIRS
            if mode == "exclude":
                assert not any(edit.result.has_held_out_pair for edit in edits)
            for question in asked:
                if question.kind == "colour":
                    assert (question.answer, question.text.split()[-1][:-1]) not in HELD_OUT_PAIRS
                if question.kind == "shape":
                    assert (question.text.split()[-2], question.answer) not in HELD_OUT_PAIRS


def test_held_out_pairs_can_be_asked_for():
    said, made = set(), 0
    for seed in range(120):
        scene = sample_scene(seed, held_out="require")
        referrals = referring_expressions(scene, rng(seed), held_out=True)
        said |= {pair for referral in referrals for pair in pairs_said(referral.text)}
        edit = sample_edit(sample_scene(seed), rng(seed), ["replace", "recolour"], held_out=True)
        made += edit.result.has_held_out_pair
    assert said >= HELD_OUT_PAIRS and made > 3


def test_everything_is_deterministic_in_scene_and_generator():
    scene = sample_scene(5)
    for sample in (
        lambda r: referring_expressions(scene, r, 5),
        lambda r: generalized_expressions(scene, r, 5),
        lambda r: questions(scene, r, 8),
        lambda r: sample_edit(scene, r),
    ):
        assert sample(rng(3)) == sample(rng(3))


def test_vocabulary_holds_every_word_and_no_held_out_pair():
    texts = list(vocabulary_texts(60))
    words = {word for text in texts for word in re.findall("[a-z]+", text)}
    needed = {*COLOURS, *SHAPES, *language.PLURALS.values(), *NUMBERS, *"yes no small large striped solid".split()}
    needed |= set("leftmost rightmost topmost lowest left right of above below largest gradient checkers".split())
    needed |= set("remove replace make change larger smaller background describe image an a what colour shape".split())
    needed |= {word for row in REASONING for word in row[0].split()}
    assert needed <= words
    assert not {pair for text in texts for pair in pairs_said(text)} & HELD_OUT_PAIRS
    assert all(text == text.lower() and not text.endswith(".") for text in texts)
