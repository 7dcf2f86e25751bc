"""Drawing object by object: how a description is read and laid out, what a layout decides, and when it is drawn in one go."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffusers_focus import Box, FocusPipeline
from diffusers_focus.modular.modular_blocks import FocusBlocks, FocusGenerateBlocks
from diffusers_focus.steps.editing import EditPrompt, edit_codes
from diffusers_focus.steps.sampling import GREEDY
from diffusers_focus.steps.sketch import Disc, SketchObject, SketchStyle, description_codes, draw_sketch, lay_out

from tests.modular.shared import modular
from tests.tiny import SIZE, picture, seeded, shared_pipeline, tiny_components, tiny_pipeline

STYLE = {
    "placeholder": "white circle",
    "colour": [240, 240, 240],
    "canvas": [128, 128, 128],
    "radii": {"small": 0.08, "large": 0.17, "": 0.12},
    "instruction": "replace the {placeholder} with {object}",
    "finishes": {"striped": "make the {object} striped"},
}
TEXT = "a small red circle, a large striped blue star"
BOXES = [Box(4, 4, 20, 20), Box(36, 30, 60, 54)]
DRAWING = {"semantic": GREEDY, "pixel": GREEDY}
OPTIONS = {"output_type": "np", "num_inference_steps": 1}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(description_sketch=STYLE)


@pytest.fixture(scope="module")
def style(pipe):
    return SketchStyle.of(pipe.config)


def drawn(pipe, prompt=TEXT, seed=0, **options) -> np.ndarray:
    return pipe.generate(prompt, generator=seeded(seed), **OPTIONS, **options).images


@torch.no_grad()
def codes(pipe, texts=(TEXT,), seed=0, **options):
    return description_codes(pipe, list(texts), (SIZE, SIZE), pipe.config, generator=seeded(seed), **DRAWING, **options)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TEXT, [("a red circle", 0.08, []), ("a blue star", 0.17, ["striped"])]),
        ("A Large Striped orange ring and the cat.", [("an orange ring", 0.17, ["striped"]), ("the cat", 0.12, [])]),
        ("an astronaut; one dog, and sand", [("an astronaut", 0.12, []), ("one dog", 0.12, []), ("sand", 0.12, [])]),
        ("a small", [("a small", 0.08, [])]),  # a word for a size alone still is the object
        (", and ", [(", and", 0.12, [])]),
        ("a land of sand", [("a land of sand", 0.12, [])]),
    ],
)
def test_a_description_is_read_as_objects(style, text, expected):
    objects = style.objects(text)
    assert [(one.phrase, one.radius, list(one.finishes)) for one in objects] == expected


def test_every_object_is_told_as_edits_of_its_disc(style):
    plain, striped = style.objects(TEXT)
    assert style.instructions(plain) == ["replace the white circle with a red circle"]
    assert style.instructions(striped) == ["replace the white circle with a blue star", "make the blue star striped"]


@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_discs_lie_from_left_to_right_inside_and_apart(size):
    items = [SketchObject("a", "a", radius) for radius in (0.17, 0.08, 0.12, 0.17)]
    layouts = [lay_out(items, size, seed) for seed in range(20)]
    for discs in layouts:
        assert [disc.x for disc in discs] == sorted(disc.x for disc in discs)
        for disc in discs:
            assert disc.radius <= disc.x <= size[1] - disc.radius and disc.radius <= disc.y <= size[0] - disc.radius
        for one, other in itertools.combinations(discs, 2):
            assert np.hypot(one.x - other.x, one.y - other.y) > 1.1 * (one.radius + other.radius)
        assert discs[0].radius / discs[1].radius == pytest.approx(0.17 / 0.08)
    assert lay_out(items, size, 3) == layouts[3] != layouts[4]


def test_many_objects_are_smaller_and_too_many_are_refused():
    items = [SketchObject("a", "a", 0.17)] * 12
    discs = lay_out(items, (64, 64), 0)
    assert len(discs) == 12 and discs[0].radius < 0.17 * 64
    with pytest.raises(ValueError, match=r"names 3000 objects.*layout=\[\]"):
        lay_out(items * 250, (64, 64), 0)


def test_a_sketch_shows_its_discs(style):
    sketch = np.asarray(draw_sketch([Disc(16, 20, 8), Disc(44, 40, 12)], (64, 64), style))
    assert sketch.shape == (64, 64, 3)
    assert sketch[20, 16].tolist() == sketch[40, 44].tolist() == [240] * 3
    assert sketch[2, 2].tolist() == sketch[20, 30].tolist() == [128] * 3
    white = (sketch[..., 0] > 184).sum()
    assert white == pytest.approx(np.pi * (64 + 144), rel=0.03)


@pytest.mark.parametrize(
    "change",
    [
        {"placeholder": ...},
        {"radii": {"small": 0.1}},
        {"radii": {"": 0.7}},
        {"radii": [0.1]},
        {"colour": [1, 2]},
        {"instruction": "replace the {thing}"},
        {"finishes": {"striped": "make the {it} striped"}},
    ],
)
def test_a_style_that_is_none_is_refused(change):
    own = {name: value for name, value in {**STYLE, **change}.items() if value is not ...}
    pipe = tiny_pipeline(description_sketch=own)
    with pytest.raises(ValueError, match="description_sketch is no style"):
        pipe.generate(TEXT)


def test_what_is_drawn_are_the_edits_of_the_sketch(pipe, style):
    """What a caller would put together by hand."""
    discs = [Disc(12, 12, 8), Disc(48, 42, 12)]
    sketch = draw_sketch(discs, (SIZE, SIZE), style)
    masks = [disc.mask(SIZE, SIZE, reach=SIZE / 32) for disc in discs]
    edits = [
        EditPrompt(0, text, mask=masks[row], picture=0, joint=True)
        for row, text in (
            (0, "replace the white circle with a red circle"),
            (1, "replace the white circle with a blue star"),
            (1, "make the blue star striped"),
        )
    ]
    with torch.no_grad():
        encoding = pipe.encode_image(sketch)
        expected = edit_codes(pipe, encoding, edits, [one.mask for one in edits], **DRAWING)
    found = codes(pipe, layout=BOXES)
    for level in (0, 1):
        assert torch.equal(found[level], expected[level])
    own = encoding.codes[1][0]
    assert (found[1][0] != own).any() and (found[1][0] == own).any()


def test_an_empty_layout_and_a_pipeline_without_sketches_draw_in_one_go(pipe):
    plain = drawn(shared_pipeline())  # the same weights, without the setting
    np.testing.assert_array_equal(drawn(pipe, layout=[]), plain)
    np.testing.assert_array_equal(drawn(shared_pipeline(), layout=[]), plain)
    assert np.abs(drawn(pipe) - plain).max() > 0.01


def test_the_generator_decides_the_layout_and_boxes_override_it(pipe):
    one, other = codes(pipe, seed=1)[1], codes(pipe, seed=2)[1]
    assert torch.equal(codes(pipe, seed=1)[1], one) and not torch.equal(one, other)
    assert torch.equal(codes(pipe, seed=1, layout=BOXES)[1], codes(pipe, seed=2, layout=BOXES)[1])
    assert torch.equal(codes(pipe, seed=1, layout=[None])[1], one)


def test_boxes_are_in_pixels_of_the_result(pipe):
    double = [Box(*(2 * edge for edge in (box.x0, box.y0, box.x1, box.y1))) for box in BOXES]
    same = codes(pipe, layout=double, decoded=(2 * SIZE, 2 * SIZE))
    assert torch.equal(same[1], codes(pipe, layout=BOXES)[1])


def test_rows_of_a_batch_are_what_each_is_alone(pipe):
    texts = [TEXT, "a blue star"]
    both = pipe.generate(texts, num_images_per_prompt=2, generator=[seeded(i) for i in range(4)], **OPTIONS).images
    for row in range(4):
        alone = pipe.generate(texts[row // 2], generator=[seeded(row)], **OPTIONS).images
        np.testing.assert_allclose(both[row], alone[0], atol=1e-4)
    assert np.abs(both[0] - both[1]).max() > 0.01


def test_each_prompt_may_have_its_own_layout(pipe):
    texts = [TEXT, "a blue star"]
    both = codes(pipe, texts, layout=[BOXES, [BOXES[1]]])
    for row, boxes in enumerate((BOXES, [BOXES[1]])):
        assert torch.equal(both[1][row], codes(pipe, [texts[row]], layout=boxes)[1][0])
    twice = codes(pipe, [TEXT, TEXT], layout=BOXES, repeats=2)[1]
    assert torch.equal(twice[0], twice[1])


@pytest.mark.parametrize(
    ("layout", "error", "message"),
    [
        (BOXES[:1], ValueError, "1 boxes for a description of 2 objects"),
        ([BOXES, BOXES], ValueError, "2 entries for 1 descriptions"),
        ([Box(0, 0, 10, 10), Box(50, 50, SIZE + 1, 60)], ValueError, "outside the image"),
        ([["left"]], TypeError, "list of boxes or None"),
        (Box(0, 0, 5, 5), TypeError, "layout must be a list"),
        ("left", TypeError, "layout must be a list"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(pipe, layout, error, message):
    with pytest.raises(error, match=message):
        pipe.generate(TEXT, layout=layout)


def test_a_layout_needs_sketches_and_no_image(pipe):
    with pytest.raises(ValueError, match="no description_sketch"):
        shared_pipeline().generate(TEXT, layout=BOXES)
    with pytest.raises(ValueError, match="layout is for descriptions"):
        pipe.edit(picture(), "remove the star", layout=BOXES)


@pytest.mark.parametrize("blocks", [FocusGenerateBlocks, FocusBlocks])
def test_the_modular_workflow_draws_the_same(pipe, blocks):
    workflow = modular(blocks(), description_sketch=STYLE)
    for layout in (None, [], BOXES):
        image = workflow(prompt=TEXT, generator=seeded(0), layout=layout, output="images", **OPTIONS)
        np.testing.assert_allclose(image, drawn(pipe, layout=layout), atol=1e-5)


def test_the_setting_is_saved_and_loaded(tmp_path):
    FocusPipeline(**tiny_components(), resolution_group=[[SIZE, SIZE]], description_sketch=STYLE).save_pretrained(
        tmp_path
    )
    again = FocusPipeline.from_pretrained(tmp_path)
    assert SketchStyle.of(again.config) == SketchStyle.of(tiny_pipeline(description_sketch=STYLE).config)


def test_there_is_an_error_where_nothing_reads_the_sketch(pipe):
    blind = SimpleNamespace(**{**pipe.components, "vision_encoder": None})
    with pytest.raises(ValueError, match="no vision_encoder"):
        description_codes(blind, [TEXT], (SIZE, SIZE), pipe.config)
