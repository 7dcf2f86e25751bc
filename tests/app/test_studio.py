"""What the app does with a pipeline of test size, without its page."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffusers_focus import Box, Mask, Point, Strokes
from diffusers_focus.app.studio import ADD, MAX_PIXELS, MINUS, NEW, PLUS, TAKE, Session, Stopped, Studio

from tests.tiny import disk_mask, picture, seeded, shared_pipeline


@pytest.fixture(scope="module")
def studio():
    return Studio(shared_pipeline())


@pytest.fixture
def session():
    session = Session()
    session.show(picture())
    return session


def test_pictures_are_opened_upright_and_what_is_none_is_told(studio, session, tmp_path):
    session.mask = disk_mask()
    Image.new("RGBA", (30, 20), (255, 0, 0, 9)).save(tmp_path / "a.png")
    assert studio.open(session, tmp_path / "a.png").startswith("30 x 20 pixels.")
    assert session.image.mode == "RGB" and session.mask is None and session.past == []
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (30, 20)).save(tmp_path / "b.jpg", exif=exif)
    studio.open(session, tmp_path / "b.jpg")
    assert session.image.size == (20, 30)
    (tmp_path / "c.png").write_text("no picture")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "d.png").write_bytes(whole[: len(whole) - 30])
    for name in ("c.png", "d.png"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as a picture"):
            studio.open(session, tmp_path / name)
    Image.new("1", (10_000, MAX_PIXELS // 10_000 + 1)).save(tmp_path / "e.png")
    with pytest.raises(ValueError, match="million pixels"):
        studio.open(session, tmp_path / "e.png")
    assert session.image.size == (20, 30)  # what was there stays


def test_a_mask_is_put_together_from_pieces(studio, session):
    first = np.zeros((64, 64), dtype=bool)
    first[:20] = True
    second = first.T.copy()
    assert studio.paint(session, first).endswith("The mask has 1280 pixels.")
    studio.paint(session, second, ADD)
    assert (session.mask == (first | second)).all()
    studio.paint(session, first, TAKE)
    assert (session.mask == (second & ~first)).all()
    studio.paint(session, second, NEW)
    assert (session.mask == second).all()
    studio.paint(session, second, TAKE)
    assert session.mask is None
    with pytest.raises(ValueError, match="Nothing is painted yet"):
        studio.paint(session, np.zeros((9, 9), dtype=bool))
    studio.paint(session, np.kron(first, np.ones((4, 4))).astype(bool))  # painted on a page four times as large
    assert (session.mask == first).all()


@pytest.mark.parametrize("way", ["click", "corners", "box", "strokes", "words"])
def test_every_way_of_pointing_asks_the_pipeline_the_same(studio, session, way):
    found = {
        "click": lambda: (studio.click(session, 19, 20), {"region": Point(19, 20)}),
        "corners": lambda: (
            (studio.corner(session, 63.9, 8.2), studio.corner(session, 8, 63.5))[1],
            {"region": Box(8, 8, 64, 64)},
        ),
        "box": lambda: (studio.box(session, (8, 8, 31, 31)), {"region": Box(8, 8, 31, 31)}),
        "strokes": lambda: (studio.strokes(session, disk_mask()), {"region": Mask(disk_mask())}),
        "words": lambda: (studio.find(session, " the disk "), {"target": "the disk"}),
    }
    text, asked = found[way]()
    masks = shared_pipeline().segment(picture(), **asked).masks[0]
    if len(masks):
        assert (session.mask == masks.any(axis=0)).all() and "score" in text
    else:
        assert session.mask is None and text.startswith("Nothing found")
    assert session.corner is None


def test_plus_and_minus_improve_the_mask(studio, session):
    with pytest.raises(ValueError, match="no mask yet"):
        studio.click(session, 19, 20, PLUS)
    session.mask = disk_mask()
    pipe, said = shared_pipeline(), []
    for mode, stroke in (
        (PLUS, Point(26, 20)),
        (MINUS, Point(50, 50, positive=False)),
        (MINUS, Box(40, 40, 60, 60, positive=False)),
    ):
        said.append(stroke)
        wanted = pipe.segment(picture(), region=Strokes(*said, previous=session.mask)).masks[0].any(axis=0)
        edges = (stroke.x, stroke.y) if isinstance(stroke, Point) else (stroke.x0, stroke.y0, stroke.x1, stroke.y1)
        (studio.click if len(edges) == 2 else lambda s, *e: studio.box(s, e[:4], e[4]))(session, *edges, mode)
        assert wanted.any() and (session.mask == wanted).all() and session.strokes == said
    studio.paint(session, disk_mask(), ADD)  # from here on it is no longer one object
    assert session.strokes == []


def test_wrong_places_and_empty_words_are_told(studio, session):
    for call, error in (
        (lambda: studio.click(session, 64, 2), "outside the image"),
        (lambda: studio.box(session, (5, 5, 1, 1)), "has no area"),
        (lambda: studio.find(session, " "), "Say what to find"),
        (lambda: studio.ask(session, ""), "Write a question"),
        (lambda: studio.ask(session, "what is it?", about_mask=True), "no mask to ask about"),
        (lambda: studio.edit(session, " "), "Write what should happen"),
        (lambda: studio.undo(session), "no edit to undo"),
        (lambda: studio.click(Session(), 1, 1), "no picture yet"),
    ):
        with pytest.raises(ValueError, match=error):
            call()


def test_edit_is_the_pipelines_and_undo_goes_back(studio, session):
    session.mask = disk_mask()
    seen, before = [], session.image
    text = studio.edit(
        session, "make it blue", seed=3, steps=2, progress=lambda done, total: seen.append((done, total))
    )
    wanted = shared_pipeline().edit(
        picture(), "make it blue", mask_image=disk_mask(), num_inference_steps=2, generator=seeded(3)
    )
    assert session.image == wanted.images[0] and (session.edit_mask == wanted.edit_masks[0]).all()
    assert text.startswith("Done: make it blue") and seen[-1] == (2, 2) and len(seen) > 10
    assert session.mask is None and [one.instruction for one in session.past] == ["make it blue"]
    assert studio.undo(session) == "Undone: make it blue"
    assert session.image is before and (session.mask == disk_mask()).all() and session.past == []


def test_history_goes_back_over_several_edits(studio, session):
    pictures, masks = [], [disk_mask(), ~disk_mask(), None]
    for mask in masks:
        session.mask = mask
        pictures.append(session.image)
        studio.edit(session, f"edit {len(pictures)}", steps=1)
    assert studio.undo(session, 1) == "Undone: edit 2" and [one.instruction for one in session.past] == ["edit 1"]
    assert session.image is pictures[1] and (session.mask == masks[1]).all()
    with pytest.raises(ValueError, match="no edit to undo"):
        studio.undo(session, 1)


def test_stop_ends_an_edit_and_leaves_everything_as_it_was(studio, session):
    session.mask, before = disk_mask(), session.image

    def stop(done, total):
        session.stop = True

    with pytest.raises(Stopped):
        studio.edit(session, "make it blue", steps=2, progress=stop)
    assert session.image is before and session.past == [] and session.mask is not None
    studio.edit(session, "make it blue", steps=1, crop=True)  # the next one runs
    wanted = shared_pipeline().edit(
        picture(),
        "make it blue",
        mask_image=disk_mask(),
        num_inference_steps=1,
        padding_mask_crop=3,
        generator=seeded(),
    )
    assert len(session.past) == 1 and session.image == wanted.images[0]


def test_questions_are_about_the_picture_or_the_mask(studio, session):
    pipe, question = shared_pipeline(), "what is this?"
    assert studio.ask(session, question) == pipe.understand(picture(), question).text[0]
    session.mask = disk_mask()
    about = pipe.understand(picture(), question, Mask(disk_mask())).text[0]
    assert studio.ask(session, question, about_mask=True) == about


@pytest.mark.parametrize("size, shown", [((1, 1), (512, 512)), ((64, 48), (512, 384)), ((4000, 3000), (1536, 1152))])
def test_pages_show_small_pictures_enlarged_and_large_ones_reduced(studio, size, shown):
    session = Session()
    session.show(Image.new("RGB", size, (10, 200, 10)))
    assert session.overlay().size == shown
    session.mask = np.ones(size[::-1], dtype=bool)
    session.corner = (size[0] - 1, size[1] - 1)
    assert session.overlay().size == shown and session.overlay().getpixel((shown[0] // 2, shown[1] // 2)) != (
        10,
        200,
        10,
    )


def test_scenes_are_those_training_has_not_seen(studio):
    from diffusers_focus.data.world import render, sample_scene

    session = Session()
    studio.draw_scene(session, 4)
    assert (np.asarray(session.image) == render(sample_scene(1_000_004)).image).all()
