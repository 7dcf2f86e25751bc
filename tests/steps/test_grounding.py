"""Questions after what was found: which are, in which order it is shown, and that it can be left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusers_focus import FocusUnderstandPipeline, Mask, Point
from diffusers_focus.processing.masks import left_to_right
from diffusers_focus.processing.prompts import GROUNDED, PromptStyle
from diffusers_focus.steps.grounding import object_finder

from tests.tiny import picture, shared_pipeline, tiny_pipeline

NAMES = ["circle", "square"]
OPTIONS = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(grounding_classes=NAMES)


@pytest.fixture
def asked(monkeypatch):
    """(task, number of regions) of every prompt that is made."""
    seen, suffix = [], PromptStyle.suffix

    def watched(self, task, **options):
        seen.append((task, options.get("num_regions", 0)))
        return suffix(self, task, **options)

    monkeypatch.setattr(PromptStyle, "suffix", watched)
    return seen


@torch.no_grad()
def found(pipe, encoding, indices):
    return object_finder(pipe, encoding, pipe.config)(indices)


def test_what_is_found_is_what_segmenting_finds_from_left_to_right(pipe):
    seen = pipe.encode_image([picture(), picture(1)])
    objects = found(pipe, seen, [1, 0, 1])
    masks = pipe.segment(seen, classes=[NAMES, NAMES], score_threshold=pipe.config.fallback_threshold).masks
    assert set(objects) == {0, 1}
    for index, expected in enumerate(map(np.asarray, masks)):
        assert len(objects[index]) == len(expected) > 1
        np.testing.assert_array_equal(np.stack(objects[index]), expected[left_to_right(expected)])
        centres = [np.nonzero(mask)[1].mean() for mask in objects[index]]
        assert centres == sorted(centres)


def test_questions_come_after_the_objects_and_regions_after_the_question(pipe, asked):
    seen = pipe.encode_image(picture())
    count = len(found(pipe, seen, [0])[0])
    asked.clear()
    pipe.understand(seen, ["how many?", "what is this?", None], [None, Point(19, 19), None], **OPTIONS)
    tasks = [one for one in asked if one[0] != "class"]
    assert tasks == [(GROUNDED, count), ("region_understand", 1), (GROUNDED, count)]


def test_objects_are_found_once_for_all_questions_about_an_encoding(pipe, monkeypatch):
    seen, calls = pipe.encode_image(picture()), []
    decode = type(pipe.mask_decoder).decode
    monkeypatch.setattr(type(pipe.mask_decoder), "decode", lambda *a, **k: calls.append(1) or decode(*a, **k))
    first = pipe.understand(seen, "how many?", **OPTIONS).text
    assert calls == [1]
    assert pipe.understand(seen, ["how many?", "what is this?"], **OPTIONS).text[:1] == first
    assert calls == [1]
    pipe.understand(seen, "what is this?", Mask(np.ones((64, 64), dtype=bool)), **OPTIONS)
    assert calls == [1]


def test_what_is_shown_counts_and_an_empty_list_shows_nothing(pipe):
    plain = shared_pipeline()  # the same weights, without the setting
    image, question = picture(), "how many objects are there?"
    alone = plain.understand(image, question, **OPTIONS).text
    assert pipe.understand(image, question, grounding_classes=[], **OPTIONS).text == alone
    assert plain.understand(image, question, grounding_classes=NAMES, **OPTIONS).text == (
        pipe.understand(image, question, **OPTIONS).text
    )
    assert pipe.understand(image, question, **OPTIONS).text != alone
    batch = pipe.understand([image, picture(1)], question, **OPTIONS).text
    assert batch == [pipe.understand(one, question, **OPTIONS).text[0] for one in (image, picture(1))]


def test_an_image_in_which_nothing_is_found_is_asked_about_alone(pipe, asked):
    nothing = tiny_pipeline(grounding_classes=NAMES, score_threshold=1.0, fallback_threshold=1.0)
    nothing.understand(picture(), "how many?", **OPTIONS)
    assert asked[-1] == ("understand", 0)


def test_several_images_no_image_and_no_mask_decoder_are_asked_about_alone(pipe, asked):
    pipe.understand([[picture(), picture(1)]], "how many?", **OPTIONS)
    pipe.understand(None, "how many?", **OPTIONS)
    parts = {n: getattr(pipe, n) for n in ("vision_encoder", "language_model", "lm_tokenizer")}
    parts |= {n: getattr(pipe, n) for n in ("visual_tokenizer", "image_processor")}
    reader = FocusUnderstandPipeline(**parts)
    reader.understand(picture(), "how many?", **OPTIONS)
    untrained = tiny_pipeline(grounding_classes=NAMES, masks_trained=False)
    untrained.understand(picture(), "how many?", **OPTIONS)
    assert [one[0] for one in asked] == ["understand"] * 4
    with pytest.raises(ValueError, match="no mask_decoder"):
        reader.understand(picture(), "how many?", grounding_classes=NAMES)
    with pytest.raises(ValueError, match="not trained"):
        untrained.understand(picture(), "how many?", grounding_classes=NAMES)


@pytest.mark.parametrize(
    ("names", "kind", "words"),
    [("circle", TypeError, "list of names"), ([3], TypeError, "grounding_classes"), ([" "], ValueError, "empty")],
)
def test_names_that_are_none_are_refused(pipe, names, kind, words):
    with pytest.raises(kind, match=words):
        pipe.understand(picture(), "how many?", grounding_classes=names)


def test_the_setting_travels_with_the_pipeline(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = type(pipe).from_pretrained(tmp_path)
    assert again.config.grounding_classes == NAMES
    assert FocusUnderstandPipeline.from_pretrained(tmp_path).understand(picture(), "how many?", **OPTIONS).text
