"""What can be changed about a still-life scene: editing instructions, the scenes they make, and where pixels change.

Paper: FOCUS (arXiv 2506.16806), instruction editing. The truth of an edit is the edited scene; the texts follow the rules of
`language.py`, whose expressions name what is edited. Needs numpy only. The grammar is this project's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from .language import Referral, all_referring, article, by_kind, checked, draw, pick, sayable, shuffled
from .regions_sampling import dilate
from .world import (
    BACKGROUND_RANGE,
    COLOURS,
    FILLS,
    MIN_VISIBLE,
    SHAPES,
    SIZES,
    Background,
    Scene,
    WorldObject,
    in_frame,
    render,
    size_name,
    visible_fractions,
)

RESIZE_FACTORS = {"larger": 1.5, "smaller": 0.67}
EDIT_KINDS = ("remove", "replace", "recolour", "reshape", "fill", "resize", "background")


@dataclass(frozen=True)
class Edit:
    """An instruction and its truth.

    `target_text` is the expression inside the instruction ("the background" for background edits), `targets` the
    indices it means in the source scene (empty for the background) and `kind` the `Referral.kind` of that expression
    ("background" there). `edit_kind` is one of `EDIT_KINDS`; `result` keeps seed, noise and colour offsets.
    """

    instruction: str
    target_text: str
    targets: tuple[int, ...]
    kind: str
    result: Scene
    edit_kind: str


def sample_edit(
    scene: Scene, rng: np.random.Generator, kinds: Iterable[str] | None = None, held_out: bool = False
) -> Edit:
    """One random editing instruction with its truth, evenly over the kinds the scene allows.

    The result is a proper scene again: every object in the frame and at least 60% visible. The background's new colours
    are named colours brought into the range of backgrounds and, as far as there are enough, none of an object's; "a red
    to blue gradient" is red at the top and blue at the bottom.

    Args:
        scene: The source.
        rng: The source of randomness.
        kinds: A subset of `EDIT_KINDS`; None takes all.
        held_out: Whether the instruction and the edited object may combine a held-out colour and shape pair.

    Raises:
        ValueError: No edit of these kinds is possible (e.g. nothing can be resized in place): try another scene.
    """
    kinds = checked(kinds, EDIT_KINDS, "edit")
    by_target: dict[int, list[Referral]] = {}
    for referral in all_referring(scene, held_out):
        by_target.setdefault(referral.targets[0], []).append(referral)
    for edit_kind in shuffled(rng, kinds):
        if edit_kind == "background":
            return _background_edit(scene, rng)
        for target in shuffled(rng, sorted(by_target)):
            referral = draw(rng, by_kind(by_target[target]), 1)[0]
            for instruction, edited in _object_edits(scene.objects[target], referral.text, edit_kind, rng, held_out):
                result = _with_object(scene, target, edited)
                if _is_proper(result):
                    return Edit(instruction, referral.text, (target,), referral.kind, result, edit_kind)
    raise ValueError(f"This scene allows no edit of the kinds {', '.join(kinds)}; try another scene or more kinds.")


def _object_edits(
    item: WorldObject, text: str, edit_kind: str, rng: np.random.Generator, held_out: bool
) -> Iterator[tuple[str, WorldObject | None]]:
    """Candidate (instruction, edited object or None for removal) in random order."""
    if edit_kind == "remove":
        yield f"remove {text}", None
    elif edit_kind == "replace":
        for shape in shuffled(rng, (shape for shape in SHAPES if shape != item.shape)):
            colour = pick(rng, [colour for colour in COLOURS if sayable(colour, shape, held_out)])
            new = replace(item, colour=colour, shape=shape)
            yield f"replace {text} with {article(colour, rng)} {colour} {shape}", new
    elif edit_kind == "recolour":
        for colour in shuffled(rng, (colour for colour in COLOURS if colour != item.colour)):
            if sayable(colour, item.shape, held_out):
                yield f"make {text} {colour}", replace(item, colour=colour)
    elif edit_kind == "reshape":
        for shape in shuffled(rng, (shape for shape in SHAPES if shape != item.shape)):
            if sayable(item.colour, shape, held_out):
                yield f"change {text} to a {shape}", replace(item, shape=shape)
    elif edit_kind == "fill":
        fill = FILLS[1 - FILLS.index(item.fill)]
        yield f"make {text} {fill}", replace(item, fill=fill)
    elif edit_kind == "resize":
        for word in shuffled(rng, RESIZE_FACTORS):
            r = item.r * RESIZE_FACTORS[word]
            if SIZES["small"][0] <= r <= SIZES["large"][1]:
                yield f"make {text} {word}", replace(item, r=r, size=size_name(r))


def _with_object(scene: Scene, index: int, edited: WorldObject | None) -> Scene:
    """The scene with one object replaced, or taken away for None."""
    middle = () if edited is None else (edited,)
    return replace(scene, objects=(*scene.objects[:index], *middle, *scene.objects[index + 1 :]))


def _is_proper(scene: Scene) -> bool:
    return all(in_frame(item) for item in scene.objects) and all(
        fraction >= MIN_VISIBLE for fraction in visible_fractions(scene)
    )


def background_rgb(colour: str) -> tuple[int, int, int]:
    """A named colour as a background shows it: channels brought into 60..200."""
    low, high = BACKGROUND_RANGE
    red, green, blue = (min(high, max(low, channel)) for channel in COLOURS[colour])
    return red, green, blue


def _background_edit(scene: Scene, rng: np.random.Generator) -> Edit:
    used = {item.colour for item in scene.objects}
    free = [colour for colour in COLOURS if colour not in used]
    first, second = shuffled(rng, free if len(free) > 1 else COLOURS)[:2]
    if rng.random() < 0.5:
        kind, words = "vertical", f"{article(first, rng)} {first} to {second} gradient"
    else:
        kind, words = "checkers", f"{first} and {second} checkers"
    result = replace(scene, background=Background(kind, background_rgb(first), background_rgb(second)))
    return Edit(f"change the background to {words}", "the background", (), "background", result, "background")


def alternatives(scene: Scene, edit: Edit) -> list[Scene]:
    """The wrong answers an edit is told apart from: re-renders that differ from the truth in one attribute.

    For an edited object: every other colour, every other shape, the other fill, and no object. After a removal: the
    source object in every other colour, shape and fill. For the background: every other named colour in either place,
    and the other kinds (gradient, checkers, plain; the direction of a gradient is not an attribute). The source itself
    is never in the list. For evaluation only: held-out pairs do occur.
    """
    if edit.edit_kind == "background":
        truth = edit.result.background
        variants = [replace(truth, colour1=background_rgb(colour)) for colour in COLOURS]
        variants += [replace(truth, colour2=background_rgb(colour)) for colour in COLOURS]
        variants += [replace(truth, kind=kind) for kind in ("vertical", "checkers", "plain")]
        scenes = [replace(edit.result, background=variant) for variant in dict.fromkeys(variants)]
    else:
        index = edit.targets[0]
        base = scene if edit.edit_kind == "remove" else edit.result
        item = base.objects[index]
        objects: list[WorldObject | None] = [replace(item, colour=colour) for colour in COLOURS]
        objects += [replace(item, shape=shape) for shape in SHAPES]
        objects += [replace(item, fill=fill) for fill in FILLS]
        objects.append(None)
        scenes = [_with_object(base, index, variant) for variant in dict.fromkeys(objects)]
    return [candidate for candidate in scenes if candidate not in (scene, edit.result)]


def edit_support(scene: Scene, edit: Edit, size: int = 128, dilation: int = 0) -> np.ndarray:
    """Where an edit may change pixels: bool `[size, size]`.

    The visible source object together with the visible edited one; for the background, everything that is no object.
    Smoothed edges reach up to one pixel further; measures use a `dilation` of 4 pixels.
    """
    masks = render(replace(scene, noise_sigma=0.0), size).masks
    if edit.edit_kind == "background":
        support = ~masks.any(axis=0)
    else:
        index = edit.targets[0]
        support = masks[index]
        if edit.edit_kind != "remove":
            support = support | render(replace(edit.result, noise_sigma=0.0), size).masks[index]
    return dilate(support, dilation)


def rough_support(scene: Scene, edit: Edit, size: int, rng: np.random.Generator) -> np.ndarray:
    """Where an edit may write as a user or a model says it: bool `[size, size]`, the support grown, now and then to its box.

    Trained on nothing but the true support, a model would read off the outline of the place the outline to draw.
    """
    support = edit_support(scene, edit, size, dilation=int(rng.integers(0, 7)))
    if edit.edit_kind != "background" and rng.random() < 0.2:
        rows, columns = support.any(1).nonzero()[0], support.any(0).nonzero()[0]
        support[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return support
