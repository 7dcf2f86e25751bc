"""Every command and snippet of docs/evaluation.md, with the published focus-tiny on made-up files in the published formats."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex

import pytest

from diffusers_focus import cli
from diffusers_focus.data.benchmarks.refer import refer_records
from diffusers_focus.data.folders import write_records
from diffusers_focus.evaluation.benchmarks import BENCHMARKS

from tests.data import published
from tests.evaluation.tiny_models import write_clip, write_dino, write_inception

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def place(tmp_path_factory, root):
    """The folders that the page names."""
    here = tmp_path_factory.mktemp("page")
    (here / "pipelines").symlink_to(root / "pipelines")
    published.write_refer(here / "refer")
    published.write_refer(here / "refer", "refcocog", "umd")
    published.write_grefer(here / "refer")
    published.write_reason_seg(here)
    published.write_interactive(here / "coco")
    published.write_pope(here / "coco")
    published.write_vqa(here / "coco")
    (here / "mmbench").mkdir()
    published.write_mmbench(here / "mmbench")
    published.write_davis(here / "DAVIS")
    for clip in ("bear", "camel"):
        for frame in range(6):
            published.save_map(here / "found" / clip / f"{frame:05d}.png", published.davis_map(frame))
    published.write_expressions(here / "ref-davis")
    published.write_expressions(here / "ref-youtube")
    published.write_revos(here / "ReVOS")
    published.write_youtube_vis(here / "ytvis")
    (here / "ytvis" / "results.json").write_text("[]")
    for video, names, frames in (("0a1b", "0123", range(0, 30, 5)), ("set/clip", "012", range(5))):
        for name in names:
            for frame in frames:
                folder = "expressions" if video == "0a1b" else "revos-found"
                published.save_map(here / folder / video / name / f"{frame:05d}.png", published.davis_map(0))
    published.write_emu_edit(here / "emu-edit")
    published.write_magicbrush(here / "MagicBrush")
    published.write_imgedit(here / "ImgEdit")
    published.write_gedit(here / "GEdit-Bench")
    published.write_geneval(here / "geneval")
    published.write_mjhq(here / "MJHQ-30K")
    write_clip(here / "clip")
    write_dino(here / "dino")
    write_inception(here / "inception.pt")
    published.write_refer(here / "mine")
    write_records(here / "mine" / "samples.jsonl", list(refer_records(here / "mine", "refcoco", "testA"))[:2])
    return here


@pytest.fixture(scope="module")
def page(root):
    return (root / "docs" / "evaluation.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def loaded():
    """The pipeline, the same in all commands: it is read once."""
    return []


@pytest.mark.parametrize("draws", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_commands(draws, page, place, root, loaded, monkeypatch, capsys):
    if not (root / "pipelines" / "focus-tiny" / "model_index.json").is_file():
        pytest.skip("pipelines/focus-tiny is not published yet")
    monkeypatch.chdir(place)
    load = cli._load_evaluated
    monkeypatch.setattr(
        cli, "_load_evaluated", lambda *at, **on: loaded[0] if loaded else loaded.append(load(*at, **on)) or loaded[0]
    )
    commands = re.findall(r"^diffusers-focus (eval .+)$", page, re.MULTILINE)
    assert {shlex.split(command)[1] for command in commands} == set(BENCHMARKS) - {
        "refcoco+"
    }  # the same reader as refcoco
    for words in map(shlex.split, commands):
        if BENCHMARKS[words[1]].draws != draws:
            continue
        if words[1] == "youtube-vis" and importlib.util.find_spec("pycocotools") is None:
            continue
        count = 1 if draws and words[1] != "mjhq" else 2  # FID is a matter of several pictures
        brief = ["--steps", "1"] if draws else []
        assert cli.main([*words, "--count", str(count), *brief]) == 0, capsys.readouterr().err
        result = json.loads((place / words[-1]).read_text())
        assert result["benchmark"] == words[1] and result["samples"] == count and result["skipped"] == 0
        assert "FID" in result["figures"] or words[1] != "mjhq"
        assert words[1] in capsys.readouterr().out
    assert len(loaded) == 1


def test_the_table_names_every_benchmark_and_its_protocols(page):
    table = page[page.index("| name |") : page.index("The result is")]
    for name, benchmark in BENCHMARKS.items():
        (row,) = [line for line in table.splitlines() if line and f"`{name}`" in line.split("|")[1]]
        assert all(f"`{protocol}`" in row for protocol in benchmark.protocols)


def test_snippet(page, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    (code,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(compile(code, "docs/evaluation.md", "exec"), names)
    assert (
        names["written"] == 12
        and "the red thing (1, 64, 64)" in capsys.readouterr().out
        and not names["folder"].skipped
    )
