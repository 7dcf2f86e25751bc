"""The command line without a trained pipeline: arguments, errors, files. Run: pytest tests/test_cli.py"""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

from diffusers_focus import cli
from diffusers_focus.processing.regions import Box, Mask, Point, Scribble, Strokes


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.zeros((32, 48, 3), dtype=np.uint8)).save(path)
    return str(path)


def status(*argv) -> int:
    """The exit status of a command line, whoever sets it."""
    try:
        return cli.main([str(word) for word in argv])
    except SystemExit as stop:
        return int(stop.code or 0)


def error_of(capsys) -> str:
    """The one line on the standard error stream."""
    captured = capsys.readouterr().err
    assert captured.startswith("error: ") and captured.count("\n") == 1, captured
    return captured


@pytest.mark.parametrize(
    ("flags", "region"),
    [
        ([], None),
        (["--point", "3,4.5"], Point(3, 4.5)),
        (["--point", "3,4", "--point", "5,6"], Strokes(Point(3, 4), Point(5, 6))),
        (["--box", "1,2,30,20", "--not-point", "9,9"], Strokes(Box(1, 2, 30, 20), Point(9, 9, positive=False))),
        (["--box", "1,2,30,20"], Box(1, 2, 30, 20)),
        (["--scribble", "1,2 3,4"], Scribble([(1, 2), (3, 4)])),
    ],
)
def test_region_flags_become_regions(flags, region, picture):
    args = cli.build_parser().parse_args(["segment", picture, *flags])
    assert cli._region(args) == region


def test_mask_flag_reads_a_file(tmp_path, picture):
    array = np.zeros((32, 48), dtype=bool)
    array[4:9, 10:20] = True
    Image.fromarray(array.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    args = cli.build_parser().parse_args(["segment", picture, "--mask", str(tmp_path / "mask.png")])
    assert cli._region(args) == Mask(array)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["segment", "{picture}", "--point", "3"], "expected 2 numbers"),
        (["segment", "{picture}", "--box", "3,4,5,x"], "expected 4 numbers"),
        (["segment", "{picture}", "--scribble", " "], "got nothing"),
        (["segment", "{picture}", "--point", "1,2", "--box", "1,2,3,4"], "not allowed with"),
        (["segment", "{picture}", "--box", "9,9,3,3"], "has no area"),
        (["segment", "{picture}"], "give an EXPRESSION"),
        (["segment", "missing.png", "the star"], "missing.png: no such file"),
        (["segment", "{picture}", "the star", "--pipeline", "./nowhere"], "no pipeline in './nowhere'"),
        (["segment", "{picture}", "the star", "-o", "{folder}/none/mask.png"], "does not exist; create it first"),
        (["segment", "{picture}", "the star", "-o", "{folder}"], "is a folder"),
        (["segment", "{picture}", "the star", "--frame", "2"], "belongs to a clip"),
        (["segment", "{folder}", "the star", "--frame", "2"], "which frame a region is on"),
        (["segment", "{folder}"], "give an EXPRESSION"),
        (["segment", "{folder}", "the star", "-o", "{picture}"], "go into a folder"),
        (
            ["segment", "{folder}", "--point", "1,2", "--frame", "1", "--pipeline", "./nowhere"],
            "no pipeline in './nowhere'",
        ),
        (["edit", "{picture}", "make it blue", "-o", "{folder}/edit.xyz"], "end the name in .png"),
        (["edit", "{picture}", "make it blue", "--steps", "0"], "from 1 up"),
        (["edit", "{picture}", "make it blue", "--seed", "-1"], "from 0 up"),
        (["train", "--stage", "1", "--set", "rate"], "KEY=VALUE"),
        (["world"], "--seed"),
        (["info", "./nowhere"], "no pipeline in './nowhere'"),
        (["paint"], "invalid choice: 'paint'"),
    ],
)
def test_user_errors_are_one_line_and_status_2(argv, says, picture, tmp_path, capsys):
    argv = [word.format(picture=picture, folder=tmp_path) for word in argv]
    assert status(*argv) == 2
    assert says in error_of(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["picture.png"]


def test_debug_shows_the_traceback(picture):
    with pytest.raises(ValueError, match="give an EXPRESSION"):
        cli.main(["--debug", "segment", picture])


def test_overrides_are_read_as_json_or_text():
    args = cli.build_parser().parse_args(["train", "--stage", "1a", "--set", "steps=10", "--set", "name=x"])
    assert dict(args.overrides) == {"steps": 10, "name": "x"}
    assert args.resume is True


def test_world_writes_pictures_masks_and_truth_that_agree(tmp_path, capsys):
    assert status("world", "--seed", 7, "--count", 2, "--size", 64, "-o", tmp_path / "w") == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "w" / "7.png"), str(tmp_path / "w" / "8.png")]
    truth = json.loads((tmp_path / "w" / "7.json").read_text())
    masks = [np.asarray(Image.open(path)) > 0 for path in sorted((tmp_path / "w").glob("7-object*.png"))]
    assert Image.open(tmp_path / "w" / "7.png").size == (64, 64)
    assert len(masks) == len(truth["names"]) == len(truth["scene"]["objects"])
    for mask, item in zip(masks, truth["scene"]["objects"]):
        rows, columns = np.nonzero(mask)
        assert abs(columns.mean() / 64 - item["cx"]) < 0.1 and abs(rows.mean() / 64 - item["cy"]) < 0.1
    assert {expression["kind"] for expression in truth["expressions"]} >= {"colour_shape", "empty"}
    assert truth["edit"]["instruction"] and all(question["answer"] for question in truth["questions"])


def test_info_counts_parameters_from_the_headers(tmp_path, capsys):
    import torch
    from safetensors.torch import save_file

    (tmp_path / "vae").mkdir()
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(2)}, tmp_path / "vae" / "weights.safetensors")
    index = {"_class_name": "FocusPipeline", "vae": ["diffusers", "AutoencoderKL"], "controlnet": [None, None], "n": 1}
    index["resolution_group"] = [[64, 64]]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert status("info", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line.split() for line in lines if line.startswith("vae"))
    assert row[1:3] == ["AutoencoderKL", "17"]
    assert not any(line.startswith("controlnet") for line in lines)
    assert any(line.split()[:1] == ["torch"] for line in lines)


def test_info_names_a_pointer_file(tmp_path, capsys):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "weights.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "model_index.json").write_text(json.dumps({"vae": ["diffusers", "AutoencoderKL"]}))
    assert status("info", tmp_path) == 2
    assert "is not a safetensors file" in error_of(capsys)


@pytest.mark.skipif(importlib.util.find_spec("gradio") is not None, reason="Gradio is there")
def test_app_says_what_to_install_where_gradio_is_missing(capsys):
    assert status("app") == 2
    assert "pip install 'diffusers-focus[demo]'" in error_of(capsys)


@pytest.mark.parametrize("port", ["-1", "65536", "web"])
def test_app_wants_a_port(port, capsys):
    assert status("app", "--port", port) == 2
    assert "a port from 0 up to 65535" in error_of(capsys)
