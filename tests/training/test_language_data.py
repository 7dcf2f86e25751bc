"""Prompts of stages 2-4: every text is re-read from its words and must be true of its picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from diffusers_focus.data.language import caption
from diffusers_focus.data.regions_sampling import REGION_KINDS, dilate
from diffusers_focus.data.world import HELD_OUT_PAIRS
from diffusers_focus.processing.prompts import FOCUS, render_prompt
from diffusers_focus.training.language_data import LanguageBatch, Mixture, draw_batch, names_of

from tests.data.test_language import answer, pairs_said, read

SIZE = 64
EVERYTHING = Mixture(questions=6, referring=3, generalized=1, regions=2, edit_masks=1, edits=1.0, generations=1.0)
PLAIN = Mixture(questions=0, referring=0, generalized=0, regions=1)  # one cheap prompt a picture


def draw(mixture: Mixture, step: int = 0, batch_size: int = 1) -> LanguageBatch:
    return draw_batch(FOCUS, mixture, 3, step, batch_size, size=SIZE)


@pytest.fixture(scope="module")
def batches() -> list[LanguageBatch]:
    return [draw(EVERYTHING, step, 2) for step in range(25)]


def user(prompt) -> str:
    """What the user said, without the sentence of the task."""
    text = render_prompt(prompt.parts).split("<|im_end|>")[0]
    return text.split("description. ")[-1].split("instruction. ")[-1]


def reply(prompt) -> str:
    return render_prompt(prompt.parts).split("assistant\n")[1].removesuffix("<|im_end|>")


def written(prompt) -> str:
    return "".join(part.text or f"<{part.kind}>" for part in prompt.parts if part.is_answer)


def test_a_batch_is_a_function_of_its_step():
    first, again, other = draw(EVERYTHING, 5), draw(EVERYTHING, 5), draw(EVERYTHING, 6)
    for name in ("texts", "masked", "codes"):
        prompts, same, different = ([render_prompt(p.parts) for p in getattr(b, name)] for b in (first, again, other))
        assert prompts == same != different
    assert torch.equal(first.target_pixels, again.target_pixels) and torch.equal(first.regions, again.regions)


def test_answers_are_true(batches):
    kinds = set()
    for batch in batches:
        for prompt in batch.texts:
            objects = batch.scenes.scenes[prompt.image].objects
            kinds.add(prompt.kind)
            if prompt.region is None:
                assert written(prompt) == answer(user(prompt), objects) + "<|im_end|>", user(prompt)
                continue
            # "what is this?" is answered with the name of an object that lies under the region.
            assert int(batch.region_images[prompt.region]) == prompt.image
            raster = batch.regions[prompt.region, 0] > 0
            under = [i for i, mask in enumerate(batch.masks[prompt.image]) if (raster & (mask > 0)).any()]
            assert reply(prompt) in {f"a {objects[i].name}" for i in under}
    assert {"count", "exists", "colour", "caption", "region"} <= kinds


def test_masks_are_of_what_the_words_mean(batches):
    seen = set()
    for batch in batches:
        for prompt in batch.masked:
            scene = batch.scenes.scenes[prompt.image]
            seen.add(prompt.kind)
            if prompt.region is not None:
                (target,) = prompt.targets
                assert int(batch.region_images[prompt.region]) == prompt.image
                raster, mask = batch.regions[prompt.region, 0] > 0, batch.masks[prompt.image][target] > 0
                assert (raster & mask).any()
            elif prompt.kind not in ("edit", "reasoning"):
                assert read(user(prompt), scene.objects) == set(prompt.targets), user(prompt)
            assert prompt.background == (prompt.kind == "edit" and not prompt.targets)
    assert {"plural", "empty", "edit", "colour_shape"} | set(REGION_KINDS) <= seen


def test_every_picture_has_the_same_number_of_mask_prompts_in_order(batches):
    for batch in batches:
        assert [p.image for p in batch.masked] == [i for i in range(2) for _ in range(EVERYTHING.masks)]


def test_twins_come_in_the_asked_share_and_only_a_region_means_one_of_them():
    def twins(scene) -> set[int]:
        alike = [replace(item, cx=0, cy=0) for item in scene.objects]
        return {i for i, item in enumerate(alike) if alike.count(item) > 1}

    def share(amount: float) -> float:
        scenes = [draw(replace(PLAIN, twins=amount), step).scenes.scenes[0] for step in range(60)]
        return float(np.mean([bool(twins(scene)) for scene in scenes]))

    assert Mixture().twins > 0
    assert share(0.0) == 0 and share(1.0) > 0.8
    assert share(0.4) == pytest.approx(0.4, abs=0.15)
    meant = 0
    for step in range(30):
        batch = draw(replace(EVERYTHING, twins=1.0), step)
        pair = twins(batch.scenes.scenes[0])
        for prompt in batch.masked:
            if len(prompt.targets) == 1 and prompt.targets[0] in pair and prompt.region is not None:
                meant += 1
                raster = batch.regions[prompt.region, 0] > 0
                (other,) = pair - set(prompt.targets)
                mine, its = (int((raster & (batch.masks[0][i] > 0)).sum()) for i in (prompt.targets[0], other))
                assert mine > its
    assert meant > 10


def test_names_go_from_left_to_right():
    scene = draw(PLAIN).scenes.scenes[0]
    first, second = scene.objects[0], scene.objects[1]
    scene = replace(scene, objects=(replace(first, cx=0.7), replace(second, cx=0.3)))
    assert names_of(scene, (0, 1)) == f"{second.name}, {first.name}"
    assert names_of(scene, ()) == "nothing"


def test_names_that_are_written_are_the_targets_own(batches):
    for batch in batches:
        for prompt in batch.masked:
            scene = batch.scenes.scenes[prompt.image]
            names, tail = reply(prompt).split("<trigger>")
            assert tail == "<masks>"
            if written(prompt).startswith(names):
                assert names == ("background" if prompt.background else names_of(scene, prompt.targets))
            else:  # noise: read only
                assert written(prompt) == "<trigger><|im_end|>"
                assert names in {item.name for item in scene.objects}


def test_naming_asks_for_the_names_that_stand_before_masks():
    naming, masks = (
        replace(PLAIN, regions=0, naming=9),
        replace(PLAIN, regions=0, referring=6, often=("extreme", "extreme")),
    )
    kinds, ends = set(), set()
    for step in range(6):
        batch, beside = draw(naming, step), draw(masks, step)
        assert not batch.masked and len(batch.texts) <= 9
        scene = batch.scenes.scenes[0]
        own = {item.name for item in scene.objects}
        for prompt in batch.texts:
            kinds.add(prompt.kind)
            words, _, end = written(prompt).partition("<")
            ends.add(end)
            if prompt.kind == "names_edit":
                assert words in own
            else:
                assert words == names_of(scene, read(user(prompt), scene.objects))
        assert len(beside.masked) == 8 and sum(prompt.kind == "extreme" for prompt in beside.masked) >= 2
    assert {"names_edit", "names_extreme", "names_relation", "names_colour"} <= kinds and ends == {"trigger><|im_end|>"}


def test_naming_knows_expressions_of_nothing_where_it_is_asked_to():
    batches = [draw(replace(PLAIN, regions=0, naming_generalized=5), step) for step in range(4)]
    assert all(len(batch.texts) == 5 and not batch.masked for batch in batches)
    numbers = set()
    for batch in batches:
        for prompt in batch.texts:
            objects = batch.scenes.scenes[0].objects
            targets = read(user(prompt), objects)
            numbers.add(min(len(targets), 2))
            assert written(prompt).partition("<")[0] == names_of(batch.scenes.scenes[0], targets)
    assert numbers == {0, 1, 2}
    assert {p.kind for b in batches for p in b.texts} == {"names_empty", "names_plural"}


def test_noise_in_names_comes_in_the_asked_share():
    def share(noise: float) -> float:
        found = [p for step in range(40) for p in draw(replace(PLAIN, regions=5, name_noise=noise), step).masked]
        return float(np.mean([written(p) == "<trigger><|im_end|>" for p in found]))

    assert share(0.0) == 0 and share(1.0) == 1
    assert share(0.3) == pytest.approx(0.3, abs=0.1)


def test_edits_change_pixels_in_their_region_only(batches):
    kinds = set()
    for batch in batches:
        scenes = batch.scenes
        assert torch.equal(batch.target_pixels[: len(scenes.scenes)], scenes.pixel_values)
        for prompt in batch.codes:
            if prompt.image < 0:
                continue
            inside = dilate(prompt.change[0, 0].numpy() > 0, 1)  # smoothed edges reach a pixel further
            before, after = scenes.pixel_values[prompt.image], batch.target_pixels[prompt.target]
            different = (before != after).any(0).numpy()
            stray = different & ~inside
            if "background" in user(prompt):  # mostly a window of it is written
                assert (different & inside).any()
            elif scenes.scenes[prompt.image].antialias:
                # Behind another object's smoothed edge a sliver may show through that is no pixel of any mask.
                assert stray.sum() <= 2 and (before - after).abs().numpy()[:, stray].max(initial=0) < 0.2
            else:
                assert not stray.any()
            unconditional = "reconstruct" in user(prompt)
            assert different.any() != unconditional and unconditional == (prompt.target == prompt.image)
            kinds.add(user(prompt).split()[0])
    assert len(kinds) >= 4


def test_the_edits_mask_prompt_and_code_prompt_are_of_one_edit(batches):
    pairs = 0
    for batch in batches:
        for masked in (p for p in batch.masked if p.kind == "edit"):
            for codes in (p for p in batch.codes if p.image == masked.image and p.target != p.image):
                assert user(masked) == user(codes)
                # Grown by up to four pixels; of a background mostly a window.
                assert masked.background or (codes.change[0, 0] >= masked.change).all()
                pairs += 1
    assert pairs > 20


def test_text_to_image_is_of_the_picture_its_caption_describes(batches):
    found = [(b, p) for b in batches for p in b.codes if p.image < 0 and "random" not in user(p)]
    assert len(found) > 20
    for batch, prompt in found:
        assert user(prompt) == caption(batch.scenes.scenes[prompt.target]) and prompt.change is None
        assert reply(prompt) == f"<height_{SIZE}><width_{SIZE}><codes>"
        assert "height" not in written(prompt)  # the tag is given, not written


def test_unconditional_prompts_come_in_the_asked_share():
    mixture = replace(PLAIN, edits=1.0, generations=1.0, dropout=0.3)
    prompts = [p for step in range(120) for p in draw(mixture, step).codes]
    for kind, word in ((0, "reconstruct the given"), (-1, "generate a random")):
        asked = [word in user(p) for p in prompts if p.image == kind]
        assert len(asked) == 120 and np.mean(asked) == pytest.approx(0.3, abs=0.12)
    assert not any("reconstruct" in user(p) for s in range(30) for p in draw(replace(mixture, dropout=0.0), s).codes)


def test_wordings_ask_for_one_edit_by_different_words():
    different = 0
    for step in range(30):
        batch = draw(replace(PLAIN, edits=2.0, wordings=3, dropout=0.0), step)
        targets: dict[int, list[str]] = {}
        for prompt in batch.codes:
            targets.setdefault(prompt.target, []).append(user(prompt))
        assert len(targets) == 2 * len(batch.scenes.scenes) == len(batch.target_pixels) - len(batch.scenes.scenes)
        for texts in targets.values():
            assert len(texts) == 3 and len({text.split()[0] for text in texts}) == 1
            different += len(set(texts)) > 1
    assert different > 35


def test_of_new_backgrounds_mostly_a_window_is_written():
    shares = []
    for step in range(60):
        batch = draw(replace(PLAIN, edits=6.0, dropout=0.0), step, 1)
        free = ~batch.scenes.rendered[0].masks.any(axis=0)
        for prompt in batch.codes:
            if "background" in user(prompt):
                written_pixels = prompt.change[0, 0].numpy() > 0
                assert written_pixels.any()
                shares.append((written_pixels & free).sum() / free.sum())
    assert len(shares) > 20
    assert 0.1 < np.mean([share > 0.95 for share in shares]) < 0.45 and np.median(shares) < 0.4


def test_no_held_out_pair_is_ever_said():
    said = set()
    for step in range(200):
        batch = draw(EVERYTHING, step)
        for prompt in (*batch.texts, *batch.masked, *batch.codes):
            said |= pairs_said(render_prompt(prompt.parts))
    assert len(said) == 64 - len(HELD_OUT_PAIRS)  # and every other pair is
    assert not said & HELD_OUT_PAIRS


def test_names_strokes_and_explanations():
    mixture = Mixture(
        questions=0, referring=2, generalized=0, regions=2, classes=2, strokes=1.0, explained=1.0, name_noise=0
    )
    batch = draw(mixture, batch_size=8)
    assert len(batch.masked) == 8 * mixture.masks
    named = [prompt for prompt in batch.masked if prompt.kind == "class"]
    assert len(named) == 16 and {len(prompt.targets) for prompt in named} >= {0, 1}
    for prompt in named:
        names = (
            user(prompt)
            .removeprefix("Please segment all the positive objects by the following candidate categories.")
            .strip()
            .split(", ")
        )
        items = batch.scenes.scenes[prompt.image].objects
        shown = {i: item.shape for i, item in enumerate(items) if item.shape in names}
        assert dict(zip(prompt.targets, (names[k] for k in prompt.conditions))) == shown
    told = [prompt for prompt in batch.masked if prompt.kind == "reasoning"]
    assert len(told) >= 4
    for prompt in told:
        why, name = reply(prompt).split(": ")
        said = batch.scenes.scenes[prompt.image].objects[prompt.targets[0]]
        assert name.removesuffix("<trigger><masks>") == said.name

        assert why.split()[1] in (said.shape, said.colour, said.fill) and " is the " in why
    strokes = [prompt for prompt in batch.masked if prompt.kind == "strokes"]
    assert strokes and not {prompt.kind for prompt in batch.masked} & set(REGION_KINDS)
    for prompt in strokes:
        inside = batch.masks[prompt.image][prompt.targets[0]] > 0
        drawn = batch.regions[prompt.region, 0] > 0
        assert (drawn & inside).sum() > 0.5 * drawn.sum()
