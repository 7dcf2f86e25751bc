"""Edits of the still-life world: what an instruction says is what the edited scene shows, and nothing else."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from diffusers_focus.data.edits import EDIT_KINDS, alternatives, background_rgb, edit_support, sample_edit
from diffusers_focus.data.regions_sampling import dilate
from diffusers_focus.data.world import (
    Background,
    Scene,
    WorldObject,
    full_masks,
    render,
    sample_scene,
    visible_fractions,
)

from tests.data.test_language import C, read, rng


def check_edit(scene: Scene, edit) -> None:
    """An edit says what it does, does what it says, and touches nothing else."""
    result = edit.result
    assert (result.seed, result.noise_sigma, result.antialias) == (scene.seed, scene.noise_sigma, scene.antialias)
    if edit.edit_kind == "background":
        assert edit.targets == () and result.objects == scene.objects and result.background != scene.background
        form = f"change the background to (?:an? {C} to {C} gradient|{C} and {C} checkers)"
        found = re.fullmatch(form, edit.instruction)
        kind, colours = ("vertical", found.groups()[:2]) if found[1] else ("checkers", found.groups()[2:])
        assert result.background == Background(kind, *map(background_rgb, colours))
        return
    (target,) = edit.targets
    assert read(edit.target_text, scene.objects) == {target}
    assert result.background == scene.background
    before, after = list(scene.objects), list(result.objects)
    old = before.pop(target)
    new = None if edit.edit_kind == "remove" else after.pop(target)
    assert before == after
    x = re.escape(edit.target_text)
    if edit.edit_kind == "remove":
        assert edit.instruction == f"remove {edit.target_text}"
        return
    assert (new.cx, new.cy, new.offset) == (old.cx, old.cy, old.offset)
    changed = {key for key in ("shape", "colour", "fill", "r") if getattr(old, key) != getattr(new, key)}
    if edit.edit_kind == "replace":
        assert re.fullmatch(f"replace {x} with an? {new.colour} {new.shape}", edit.instruction)
        assert {"shape"} <= changed <= {"shape", "colour"}
    elif edit.edit_kind == "resize":
        word = "larger" if new.r > old.r else "smaller"
        assert edit.instruction == f"make {edit.target_text} {word}" and changed == {"r"}
        assert new.r == pytest.approx(old.r * (1.5 if word == "larger" else 0.67))
        assert 0.07 <= new.r <= 0.18 and new.size == ("small" if new.r < 0.12 else "large")
    else:
        attribute = {"recolour": "colour", "reshape": "shape", "fill": "fill"}[edit.edit_kind]
        words = {"recolour": f"make {x} {new.colour}", "reshape": f"change {x} to a {new.shape}"}
        assert re.fullmatch(words.get(edit.edit_kind, f"make {x} {new.fill}"), edit.instruction)
        assert changed == {attribute}


def test_edits_do_what_they_say_and_nothing_else():
    kinds = Counter()
    for seed in range(250):
        scene = sample_scene(seed)
        edit = sample_edit(scene, rng(seed))
        check_edit(scene, edit)
        assert min(visible_fractions(edit.result), default=1.0) >= 0.6
        kinds[edit.edit_kind] += 1
    assert set(kinds) == set(EDIT_KINDS) and min(kinds.values()) > 15


def test_edits_change_pixels_only_in_their_support():
    for seed in range(60):
        scene = sample_scene(seed)
        edit = sample_edit(scene, rng(seed))
        before, after = render(scene).image.astype(int), render(edit.result).image.astype(int)
        changed = (before != after).any(axis=-1)
        support = edit_support(scene, edit)
        assert changed.any()
        stray = changed & ~dilate(support, 1)
        # Behind two smoothed edges that cross, and through a heart's pinhole, a new background shines a little; so does the
        # object where others cover it.
        allowed = 4 if edit.edit_kind == "background" else 1
        assert stray.sum() <= (allowed if scene.antialias else 0), edit
        if edit.edit_kind != "background":
            assert not (stray & ~dilate(full_masks(scene)[edit.targets[0]], 1)).any(), edit
        assert np.array_equal(edit_support(scene, edit, dilation=4), dilate(support, 4))
        if edit.edit_kind in ("remove", "recolour", "background"):
            assert changed[support].mean() > 0.8


def test_alternatives_differ_from_the_truth_in_one_attribute_of_the_object():
    for seed in range(60):
        scene = sample_scene(seed)
        edit = sample_edit(scene, rng(seed))
        wrong = alternatives(scene, edit)
        assert len(set(wrong)) == len(wrong) and edit.result not in wrong and scene not in wrong
        if edit.edit_kind == "background":
            assert all(other.objects == scene.objects for other in wrong) and len(wrong) >= 14
            continue
        (target,) = edit.targets
        base = scene if edit.edit_kind == "remove" else edit.result
        differences = Counter()
        for other in wrong:
            if len(other.objects) < len(base.objects):
                assert other.objects == base.objects[:target] + base.objects[target + 1 :]
                differences["none"] += 1
                continue
            new, old = other.objects[target], base.objects[target]
            assert other.objects == (*base.objects[:target], new, *base.objects[target + 1 :])
            (key,) = [k for k in ("shape", "colour", "fill", "r") if getattr(new, k) != getattr(old, k)]
            differences[key] += 1
        # The one that would be the source itself is left out.
        assert differences["colour"] >= 6 and differences["shape"] >= 6
        assert differences["none"] == (edit.edit_kind != "remove")


def test_an_impossible_edit_is_refused():
    background = Background("plain", (90, 90, 90), (90, 90, 90))
    corner = WorldObject("circle", "red", "small", "solid", 0.08, 0.08, 0.08)
    with pytest.raises(ValueError, match="another scene"):
        sample_edit(Scene(0, (corner,), background, 0, False), rng(), ["resize"])
    with pytest.raises(ValueError, match="edit kinds"):
        sample_edit(sample_scene(0), rng(), ["paint"])
