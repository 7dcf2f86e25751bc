"""Every command of docs/training.md, on made-up data; and that its tables name what there is."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from diffusers_focus import cli
from diffusers_focus.data.convert import FORMATS
from diffusers_focus.data.samples import TASKS, check_record
from diffusers_focus.training.run import OPTIONS

from tests.data import published

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def page(root):
    return (root / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folders that the page names."""
    here = tmp_path_factory.mktemp("page")
    published.write_refer(here / "refer")
    (here / "llava").mkdir()
    published.write_llava(here / "llava")
    return here


def commands(page: str, name: str) -> list[list[str]]:
    return [
        shlex.split(line, comments=True) for line in re.findall(rf"^diffusers-focus ({name} .+)$", page, re.MULTILINE)
    ]


def run(page, place, name, monkeypatch, capsys) -> str:
    monkeypatch.chdir(place)
    for words in commands(page, name):
        assert cli.main(words) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_data_commands(page, place, monkeypatch, capsys):
    said = run(page, place, "data", monkeypatch, capsys)
    assert re.findall(r"(\d+) samples", said)[1:] == ["12", "3"] and said.count("left out") == 1
    assert len(list((place / "scenes").glob("*.png"))) == 48


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_train_command(page, place, monkeypatch, capsys):
    if not (place / "scenes").exists():
        run(page, place, "data", monkeypatch, capsys)
    run(page, place, "train", monkeypatch, capsys)
    record = json.loads((place / "runs" / "mine" / "stages" / "3" / "recipe.json").read_text())
    assert record["complete"] and record["step"] == 2
    assert record["recipe"]["options"]["data"] == [["scenes", 3.0], ["refcoco", 1.0], ["chats", 1.0]]
    assert set(record["skipped"]) == {"reasons"}


def test_the_tables_name_every_format_task_and_setting(page):
    table = page[page.index("## Converters") :]
    assert set(re.findall(r"`([a-z0-9+-]+)`", "".join(re.findall(r"^\|([^|]+)\|", table, re.MULTILINE)))) == {
        *FORMATS,
        "world",
    }
    samples = page[page.index("## Samples") : page.index("## Shards")]
    rows = {
        row[0]: row[1:]
        for row in (line.strip("| ").split(" | ") for line in samples.splitlines() if line.startswith("| `"))
    }
    assert {name.strip("`") for name in rows} == set(TASKS)
    for name, (needs, may, *_) in rows.items():
        needed, allowed = TASKS[name.strip("`")]
        if name != "`clip`":
            assert set(re.findall(r"`(\w+)`", needs)) == set(needed)
            assert set(re.findall(r"`(\w+)`", may)) == set(allowed), name
    assert set(re.findall(r"--set (\w+)=", page)) <= OPTIONS | {"steps", "batch_size"}
    for line in re.findall(r"^(\{\"task.*\})$", page, re.MULTILINE):
        check_record(json.loads(line))
