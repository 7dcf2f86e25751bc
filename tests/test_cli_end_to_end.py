"""The command line with the published focus-tiny, from a drawn scene to files. Run: pytest tests/test_cli_end_to_end.py

Whether its answers are good is measured elsewhere (`diffusers-focus eval`); here every command has to work.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusers_focus import Point, cli
from diffusers_focus.data.coco_masks import decode_rle
from diffusers_focus.data.regions_sampling import dilate

PIPELINE = Path(__file__).resolve().parent.parent / "pipelines" / "focus-tiny"
INDEX = PIPELINE / "model_index.json"

pytestmark = [
    pytest.mark.whole,
    pytest.mark.skipif(not INDEX.is_file(), reason="pipelines/focus-tiny is not published yet"),
]


def needs_decoder():
    """Skip where the published pipeline cannot draw yet."""
    if json.loads(INDEX.read_text()).get("unet", [None, None])[1] is None:
        pytest.skip("pipelines/focus-tiny has no unet yet")


def status(*argv) -> int:
    """The exit status of a command line, whoever sets it."""
    try:
        return cli.main([str(word) for word in argv])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A drawn scene as the command line writes it: (picture, truth)."""
    folder = tmp_path_factory.mktemp("world")
    assert status("world", "--seed", 1_000_000, "-o", folder) == 0
    return folder / "1000000.png", json.loads((folder / "1000000.json").read_text())


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_ask(scene, capsys):
    assert status("ask", scene[0], "how many objects are there?", "--pipeline", PIPELINE) == 0
    assert len(capsys.readouterr().out.split()) >= 1


def test_segment_by_words_and_by_click(scene, tmp_path, capsys):
    item = scene[1]["scene"]["objects"][-1]
    click = f"{item['cx'] * 128:.0f},{item['cy'] * 128:.0f}"
    for name, how in (("words", ["the leftmost object"]), ("click", ["--point", click])):
        target = tmp_path / f"{name}.png"
        assert status("segment", scene[0], *how, "-o", target, "--pipeline", PIPELINE) == 0
        assert capsys.readouterr().out.splitlines()[-1] == str(target)
        assert pixels(target).shape == (128, 128) and set(np.unique(pixels(target))) <= {0, 255}


def test_segment_a_clip_from_a_region_on_one_of_its_frames(tmp_path, capsys):
    assert status("world", "--clips", 3, "--seed", 1_000_001, "-o", tmp_path / "world") == 0
    frames = tmp_path / "world" / "JPEGImages" / "480p" / "1000001"
    assert capsys.readouterr().out.split() == [str(frames)]
    item = json.loads((tmp_path / "world" / "1000001.json").read_text())["scene"]["objects"][-1]
    click = f"{item['cx'] * 128:.0f},{item['cy'] * 128:.0f}"
    argv = [
        "segment",
        frames,
        "--point",
        click,
        "--frame",
        0,
        "-o",
        tmp_path / "out",
        "--overlay",
        tmp_path / "out" / "seen.gif",
    ]
    argv += ["--json", tmp_path / "out" / "masks.jsonl"]
    assert status(*argv, "--pipeline", PIPELINE) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"00000.png", "00001.png", "00002.png", "objects.json", "masks.jsonl", "seen.gif"}
    wanted = pixels(tmp_path / "world" / "Annotations" / "480p" / "1000001" / "00002.png")
    assert set(np.unique(pixels(tmp_path / "out" / "00002.png"))) <= {0, 1} and wanted.shape == (128, 128)
    with Image.open(tmp_path / "out" / "seen.gif") as overlay:
        assert overlay.n_frames == 3
    # The animated picture that was written is a clip too.
    assert (
        status("segment", tmp_path / "out" / "seen.gif", "the star", "-o", tmp_path / "again", "--pipeline", PIPELINE)
        == 0
    )
    assert (tmp_path / "again" / "00002.png").is_file()


@pytest.fixture(scope="module")
def loaded():
    """The pipeline, read once for the tests that use it often; by the name under which it comes with the package."""
    return cli._load_folder("focus-tiny")


def test_a_conversation_goes_on_from_the_standard_input(scene, loaded, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_load", lambda args: loaded)
    monkeypatch.setattr("sys.stdin", io.StringIO("how many objects are there?\n\ndescribe the image\n"))
    click = f"{scene[1]['scene']['objects'][-1]['cx'] * 128:.0f},{scene[1]['scene']['objects'][-1]['cy'] * 128:.0f}"
    assert status("ask", scene[0], "what is this?", "--point", click, "--chat", "--pipeline", PIPELINE) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(lines)
    # Each answer is that to a conversation of all before it.
    said, seen = [], loaded.encode_image(Image.open(scene[0]).convert("RGB"))
    region = Point(*map(float, click.split(",")))
    for question, line in zip(("what is this?", "how many objects are there?", "describe the image"), lines):
        said.append({"role": "user", "content": question, **({} if said else {"region": region})})
        assert loaded.understand(seen, [*said]).text[0] == line
        said.append({"role": "assistant", "content": line})
    assert status("ask", scene[0], "--also", scene[0], "--temperature", 1, "--seed", 3, "--pipeline", PIPELINE) == 0
    assert capsys.readouterr().out.strip()


def test_segment_by_names_and_by_several_clicks(scene, loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "_load", lambda args: loaded)
    files = {name: tmp_path / name for name in ("mask.png", "over.png", "found.json")}
    argv = ["-o", files["mask.png"], "--overlay", files["over.png"], "--json", files["found.json"]]
    names = [item["shape"] for item in scene[1]["scene"]["objects"]]
    assert status("segment", scene[0], "--classes", *names, "--task", "panoptic", *argv, "--pipeline", PIPELINE) == 0
    found = json.loads(files["found.json"].read_text())
    assert found["objects"] and all(one["label"] in names for one in found["objects"])
    union = np.any([decode_rle(one["segmentation"]) for one in found["objects"]], axis=0)
    assert (union == (pixels(files["mask.png"]) > 0)).all() and pixels(files["over.png"]).shape == (128, 128, 3)
    first, last = (
        f"{item['cx'] * 128:.0f},{item['cy'] * 128:.0f}" for item in (scene[1]["scene"]["objects"][i] for i in (0, -1))
    )
    assert status("segment", scene[0], "--point", last, "--not-point", first, *argv[:2], "--pipeline", PIPELINE) == 0
    x, y = map(int, first.split(","))
    assert not pixels(files["mask.png"])[y, x]


def test_demo(scene, loaded, tmp_path, monkeypatch, capsys):
    needs_decoder()
    monkeypatch.setattr(cli, "_load", lambda args: loaded)
    Image.new("RGB", (40, 30), "grey").save(tmp_path / "grey.png")  # nothing to find
    for name, argv in (("drawn", []), ("own", ["--image", tmp_path / "grey.png", "--prompt", "remove the red star"])):
        assert status("demo", *argv, "--output", tmp_path / name) == 0
        sheet = pixels(tmp_path / name / "contact_sheet.png")
        assert sheet.shape[1] > 3 * 256 and sheet.std() > 5
        before, after = pixels(tmp_path / name / "input.png"), pixels(tmp_path / name / "edited.png")
        assert before.shape == after.shape
    out = capsys.readouterr().out
    assert (
        "focus-tiny is ready" in out and "how many objects are there?" in out and "edited: remove the red star" in out
    )


def test_edit_changes_nothing_but_its_place(scene, tmp_path):
    needs_decoder()
    target, mask = tmp_path / "edit.png", tmp_path / "free.png"
    argv = ["edit", scene[0], scene[1]["edit"]["instruction"], "-o", target, "--save-mask", mask, "--steps", 4]
    assert status(*argv, "--pipeline", PIPELINE) == 0
    before, after = pixels(scene[0]), pixels(target)
    free = dilate(pixels(mask) > 0, 4)  # the soft edge
    assert after.shape == before.shape
    assert (after[~free] == before[~free]).all()


def test_generate_is_the_same_for_the_same_seed(tmp_path):
    needs_decoder()
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file in files:
        argv = ["generate", "a small red circle, a large blue star", "--steps", 2, "--seed", 3, "-o", file]
        assert status(*argv, "--pipeline", PIPELINE) == 0
    assert (pixels(files[0]) == pixels(files[1])).all()


def test_eval_writes_what_it_measured(tmp_path):
    target = tmp_path / "metrics.json"
    argv = ["eval", "--count", 2, "--tasks", "referring", "click", "questions", "-o", target, "--pipeline", PIPELINE]
    assert status(*argv) == 0
    found = json.loads(target.read_text())
    assert set(found["groups"]) == {"in", "held_out"} and found["pipeline"] == "focus-tiny"
    for group in found["groups"].values():
        assert set(group) == {"scenes", "referring", "click", "questions"}
        assert 0 <= group["referring"]["mIoU"]["value"] <= 1


def test_eval_of_edits(tmp_path):
    needs_decoder()
    target = tmp_path / "metrics.json"
    argv = ["eval", "--count", 1, "--groups", "in", "--tasks", "edits", "-o", target, "--pipeline", PIPELINE]
    assert status(*argv) == 0
    assert set(json.loads(target.read_text())["groups"]["in"]["edits"]) >= {"composited", "raw", "kinds"}


def test_info_in_a_process_of_its_own():
    code = "import sys; from diffusers_focus.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, "info", str(PIPELINE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "language_model" in done.stdout and "total" in done.stdout


@pytest.mark.parametrize(
    "argv",
    [
        ["ask", "missing.png", "how many objects are there?"],
        ["ask", "{picture}", ""],
        ["segment", "{picture}", ""],
        ["segment", "{picture}", "--point", "500,20"],
        ["edit", "{picture}", ""],
        ["edit", "{picture}", "make it blue", "--point", "500,20"],
        ["eval", "--tasks", "painting"],
        ["eval", "--groups", "nobody"],
        ["eval", "--device", "nowhere"],
    ],
)
def test_bad_input_is_one_line_and_status_2(argv, scene, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if argv[0] == "edit":
        needs_decoder()
    argv = [word.format(picture=scene[0]) for word in argv]
    assert status(*argv, "--pipeline", PIPELINE) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert list(tmp_path.iterdir()) == []
