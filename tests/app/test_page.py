"""The app in a real browser: headless Chromium on the page that `diffusers-focus app` serves, with focus-tiny.

Runs where Gradio (`[demo]`), playwright and Chromium are, with `-m slow`. `SCREENSHOTS=docs/app` renews the pictures of
docs/app.md.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_focus.processing.masks import dilate

pytest.importorskip("gradio", reason="the app needs diffusers-focus[demo]")
sync_api = pytest.importorskip("playwright.sync_api", reason="driving a browser needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path"),
]

REACHED = (  # by the tabulator key; the picture itself is pointed at by typing a place
    "upload scene tool mode words find place point brush clear question about ask instruction crop edit stop undo "
    "image-file mask-file"
)
SCENE = 1_000_004
AT = (44, 30)  # the diamond
WAIT = 240_000  # milliseconds, for a busy machine


@pytest.fixture(scope="module")
def truth():
    from diffusers_focus.data.world import render, sample_scene

    return render(sample_scene(SCENE))


@pytest.fixture(scope="module")
def connected():
    """Addresses outside this machine that the process of the page connects to or looks up."""
    found = []

    def audit(event, arguments):
        if event == "socket.connect" and isinstance(arguments[1], tuple):
            found.append(arguments[1][0])
        elif event == "socket.getaddrinfo":
            found.append(arguments[0])

    sys.addaudithook(audit)  # for good: Python has no way to take it off again
    return found


@pytest.fixture(scope="module")
def url(root, connected):
    from diffusers_focus import FocusPipeline
    from diffusers_focus.app.page import serve

    pipe = FocusPipeline.from_pretrained(root / "pipelines" / "focus-tiny")
    pipe.set_progress_bar_config(disable=True)
    page = serve(pipe, port=0, block=False)
    yield page.local_url
    page.close()
    assert set(connected) <= {"127.0.0.1", "localhost", "::1", None}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class User:
    """A user at the page, who remembers what the browser asked for and complained of."""

    def __init__(self, browser, url):
        self.context = browser.new_context(viewport={"width": 1280, "height": 1180}, accept_downloads=True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.requests, self.complaints = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector("#canvas")

    def told(self, words):
        sync_api.expect(self.page.locator("#status")).to_contain_text(re.compile(words), timeout=WAIT)

    def refused(self, words):
        toast = self.page.locator(".toast-body", has_text=re.compile(words)).first
        toast.wait_for()
        text = toast.inner_text()
        self.page.locator(".toast-close").first.click()
        return text

    def upload(self, file):
        clear = self.page.locator("#upload button[aria-label='Clear'], #upload button[aria-label='Remove this file']")
        if clear.count():
            clear.first.click()
        self.page.locator("#upload input[type=file]").first.set_input_files(str(file))

    def click(self, x, y, size):
        image = self.page.locator("#canvas img").first
        image.wait_for()
        image.evaluate("image => image.decode()")  # the page takes no clicks on a picture that is still loading
        image.scroll_into_view_if_needed()
        box = image.bounding_box()
        natural = image.evaluate("image => [image.naturalWidth, image.naturalHeight]")
        scale = min(box["width"] / natural[0], box["height"] / natural[1])  # fitted into its frame, in the middle
        left = box["x"] + (box["width"] - scale * natural[0]) / 2
        top = box["y"] + (box["height"] - scale * natural[1]) / 2
        factor = scale * natural[0] / size[0]
        self.page.mouse.click(left + (x + 0.5) * factor, top + (y + 0.5) * factor)

    def press(self, name):
        self.page.locator(f"button#{name}, #{name} button").first.click()

    def write(self, name, text):
        self.page.locator(f"#{name} textarea, #{name} input").first.fill(str(text))

    def download(self, name, tmp_path):
        with self.page.expect_download() as waiting:
            self.page.locator(f"#{name}").first.click()
        file = tmp_path / f"{name}.png"
        waiting.value.save_as(file)
        return np.asarray(Image.open(file))

    def shoot(self, name):
        folder = os.environ.get("SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.fixture
def user(browser, url):
    user = User(browser, url)
    yield user
    outside = [one for one in user.requests if not one.startswith((url, "data:", "blob:"))]
    user.context.close()
    assert outside == [] and user.complaints == []


@pytest.fixture
def scene(truth, tmp_path):
    file = tmp_path / "scene.png"
    Image.fromarray(truth.image).save(file)
    return file


def test_a_port_that_is_taken_is_told(url):
    from diffusers_focus.app.page import serve

    port = int(url.rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(OSError, match=f"127.0.0.1:{port}: is the port taken"):
        serve(None, port=port, block=False)


def test_point_edit_undo(user, scene, truth, tmp_path):
    user.upload(scene)
    user.told("128 x 128 pixels")
    user.click(*AT, (128, 128))
    user.told("score")
    user.shoot("click")
    mask = user.download("mask-file", tmp_path) > 127
    diamond = truth.masks[2]
    assert (mask & diamond).sum() > 0.8 * (mask | diamond).sum()

    user.write("question", "how many objects are there?")
    user.press("ask")
    answer = user.page.locator("#answer textarea")
    sync_api.expect(answer).to_have_value("three", timeout=WAIT)

    user.write("instruction", "make the green diamond blue")
    user.press("edit")
    user.told("Done: make the green diamond blue")
    user.page.locator("#slider img").first.wait_for()
    user.page.wait_for_timeout(1500)
    user.shoot("edit")
    edited, free = user.download("image-file", tmp_path), user.download("mask-file", tmp_path) > 127
    changed = (edited != truth.image).any(axis=-1)
    reach = dilate(torch.from_numpy(free), 4).numpy()  # of the soft edge: 3 pixels (0.02 of the side), 4 in corners
    assert changed[diamond].mean() > 0.9 and not changed[~reach].any()
    blue = edited[diamond].astype(int).mean(axis=0)
    assert blue[2] > blue[1] + 30 and blue[2] > blue[0] + 30

    user.press("undo")
    user.told("Undone: make the green diamond blue")
    again = user.download("mask-file", tmp_path) > 127
    assert (again == mask).all()


def test_words_boxes_brush_and_places(user, scene, truth, tmp_path):
    user.upload(scene)
    user.told("128 x 128 pixels")
    user.write("words", "the green diamond")
    user.page.keyboard.press("Enter")
    user.told("score")
    by_words = user.download("mask-file", tmp_path) > 127
    user.press("clear")
    user.told("No mask")

    user.write("place", "44,30")
    user.page.keyboard.press("Enter")  # the way without a mouse
    user.told("score")
    by_place = user.download("mask-file", tmp_path) > 127
    assert (by_words & by_place).sum() > 0.9 * (by_words | by_place).sum()

    user.page.get_by_label("take away").check()
    user.write("place", "44,30")
    user.press("point")
    user.told("has 0 pixels")
    user.page.get_by_label("new mask").check()
    user.page.get_by_label("box (two clicks)").check()
    user.click(30, 12, (128, 128))
    user.told("opposite corner")
    user.click(58, 48, (128, 128))
    user.told("score")
    by_box = user.download("mask-file", tmp_path) > 127
    assert (by_box & by_place).sum() > 0.8 * (by_box | by_place).sum()

    for how, first, second in (("- does not", (62, 24), (92, 50)), ("+ belongs to it", (30, 12), (58, 48))):
        user.page.get_by_label(how).check()
        user.click(*first, (128, 128))
        user.told("opposite corner")
        user.click(*second, (128, 128))
        user.told("score")
        corrected = user.download("mask-file", tmp_path) > 127
        assert (corrected & by_box).sum() > 0.7 * (corrected | by_box).sum(), how
    user.page.get_by_label("new mask").check()

    user.page.locator("#brush button").first.click()
    user.press("load-brush")
    canvas = user.page.locator("#editor canvas").first
    canvas.wait_for()
    user.page.wait_for_timeout(4000)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    user.page.mouse.move(middle[0] - 40, middle[1])
    user.page.mouse.down()
    user.page.mouse.move(middle[0] + 40, middle[1], steps=12)
    user.page.mouse.up()
    user.page.wait_for_timeout(1500)
    user.press("paint")
    user.told("Painted")
    painted = user.download("mask-file", tmp_path) > 127
    rows, columns = np.nonzero(painted)
    assert 0 < painted.mean() < 0.2 and abs(rows.mean() - 64) < 8 and abs(columns.mean() - 64) < 8
    assert np.ptp(columns) > 2 * np.ptp(rows)


def test_stop_and_progress(user, scene):
    user.upload(scene)
    user.told("128 x 128 pixels")
    user.write("place", "44,30")
    user.press("point")
    user.told("score")
    user.page.get_by_label("steps (0: its own)").fill("900")
    user.write("instruction", "make the green diamond blue")
    user.press("edit")
    user.page.get_by_text(re.compile(r"\d+/900")).first.wait_for()
    user.press("stop")
    user.told("Stopped; the picture is as it was")

    user.page.locator("h1").click()  # from the top of the page on
    ids = "() => { let ids = []; for (let e = document.activeElement; e; e = e.parentElement) ids.push(e.id); return ids }"
    reached = set()
    for _ in range(60):
        user.page.keyboard.press("Tab")
        reached |= set(user.page.evaluate(ids))
    assert set(REACHED.split()) <= reached


def test_strange_pictures(user, tmp_path):
    fake = tmp_path / "fake.png"
    fake.write_text("this is no picture")
    user.upload(fake)
    assert "fake.png cannot be read as a picture" in user.refused("cannot be read")

    Image.new("RGB", (1, 1), (9, 9, 9)).save(tmp_path / "dot.png")
    user.upload(tmp_path / "dot.png")
    user.told("1 x 1 pixels")
    user.write("place", "0,0")
    user.press("point")
    user.told("score|Nothing found")

    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8))
    small.resize((4000, 3000), Image.Resampling.BICUBIC).save(tmp_path / "large.jpg")
    user.upload(tmp_path / "large.jpg")
    user.told("4000 x 3000 pixels")
    user.click(2000, 1500, (4000, 3000))
    user.told("score|Nothing found")
    user.write("place", "1000,800,2200,2000")
    user.press("point")
    user.told("score|Nothing found")


def test_two_users_at_once(browser, url, truth, scene, tmp_path):
    users = [User(browser, url), User(browser, url)]
    for one in users:
        one.upload(scene)
        one.told("128 x 128 pixels")
    for one, place in zip(users, ("44,30", "67,33")):
        one.write("place", place)
        one.press("point")
    for one in users:
        one.told("score")
    masks = [one.download("mask-file", tmp_path) > 127 for one in users]
    assert (masks[0] & truth.masks[2]).sum() > 0.8 * masks[0].sum()
    assert (masks[1] & truth.masks[0]).sum() > 0.8 * masks[1].sum()
    for one, name in zip(users, ("green diamond", "red triangle")):
        one.write("instruction", f"remove the {name}")
        one.press("edit")
    for one, name in zip(users, ("green diamond", "red triangle")):
        one.told(f"Done: remove the {name}")
    users[0].page.locator("#history button.thumbnail-item, #history .thumbnail-lg").first.click()
    users[0].told("Undone: remove the green diamond")
    assert users[0].page.locator("#history img").count() == 0 and users[1].page.locator("#history img").count() == 1
    for one in users:
        assert one.complaints == []
        one.context.close()
