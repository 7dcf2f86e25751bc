"""Readers of benchmarks that are drawn, from small made-up files in the published formats."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

from diffusers_focus.data.benchmarks import edits, generation
from diffusers_focus.data.benchmarks.tables import table_rows

from tests.data import published

needs_pyarrow = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed")
PARQUET = [False, pytest.param(True, marks=needs_pyarrow)]


def pixels(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize("parquet", PARQUET)
def test_emu_edit(parquet, tmp_path):
    published.write_emu_edit(tmp_path, parquet)
    records = list(edits.emu_edit_records(tmp_path))
    assert [record["key"] for record in records] == ["remove/0", "color/1", "color/2"]
    assert [record["text"] for record in records[:2]] == ["remove the red thing", "make the red thing green"]
    info = records[1]["info"]
    assert (info["kind"], info["place"]) == ("color", "color/1.png")
    assert info["target_caption"] == info["direction_captions"][1] == "a green thing and a blue thing"
    assert "result" not in records[0]
    for index, record in enumerate(records):
        assert (pixels(tmp_path / record["images"][0]) == published.drawn(index)).all()
    with pytest.raises(ValueError, match="split 'dev'; choose from test, validation"):
        edits.emu_edit_records(tmp_path, "dev")


@pytest.mark.parametrize("parquet", PARQUET)
def test_magicbrush(parquet, tmp_path):
    published.write_magicbrush(tmp_path, "dev", parquet)
    records = list(edits.magicbrush_records(tmp_path, "dev"))
    assert [record["key"] for record in records] == ["100-1", "100-2", "101-1"]
    assert [record["info"]["place"] for record in records] == ["100/100_1.png", "100/100_inde_2.png", "101/101_1.png"]
    second = records[1]  # from the true result of the first turn
    assert (pixels(tmp_path / second["images"][0]) == published.edited(0, "green")).all()
    assert (pixels(tmp_path / second["result"]) == published.edited(0, "blue")).all()
    assert second["text"] == "make the thing at the top left blue" and not second["info"]["mask_given"]
    if not parquet:  # the Hub's rows have no captions
        assert second["info"]["target_caption"] == "a thing in blue"
        assert second["info"]["direction_captions"] == [
            "a thing in green beside others",
            "a thing in blue beside others",
        ]

    session, single = edits.magicbrush_records(tmp_path, "dev", "multi-turn-mask")
    assert session["key"] == "100" and session["info"]["mask_given"]
    assert [turn[1] for turn in session["info"]["turns"]] == ["100/100_1.png", "100/100_iter_2.png"]
    assert [turn[0] for turn in session["info"]["turns"]] == [
        f"make the thing at the top left {c}" for c in ("green", "blue")
    ]
    assert (pixels(tmp_path / session["images"][0]) == published.drawn(0)).all()
    assert session["result"] == second["result"] and session["info"]["place"] == "100/100_iter_2.png"
    assert [turn[1] for turn in single["info"]["turns"]] == ["101/101_1.png"]


def test_magicbrush_by_its_list_of_turns(tmp_path):
    published.write_magicbrush(tmp_path)
    sessions = list(edits.magicbrush_records(tmp_path, protocol="multi-turn"))
    (tmp_path / "test" / "edit_sessions.json").unlink()
    assert list(edits.magicbrush_records(tmp_path, protocol="multi-turn")) == sessions
    (tmp_path / "test" / "edit_turns.json").write_text('[{"input": "1-input.png"}]')
    with pytest.raises(ValueError, match="no file of MagicBrush's turns"):
        edits.magicbrush_records(tmp_path)
    with pytest.raises(ValueError, match="protocol 'both'"):
        edits.magicbrush_records(tmp_path, protocol="both")


def test_imgedit(tmp_path):
    published.write_imgedit(tmp_path)
    first, second = edits.imgedit_records(tmp_path)
    assert (first["key"], first["info"]["place"], first["info"]["kind"]) == ("1082", "1082.png", "adjust")
    assert (pixels(tmp_path / second["images"][0]) == published.drawn(1)).all()
    assert [record["info"]["kind"] for record in edits.imgedit_records(tmp_path, "uge")] == ["", ""]
    (tmp_path / "basic_edit.json").write_text('{"../../away": {"id": "a.jpg", "prompt": "b"}}')
    with pytest.raises(ValueError, match="cannot name a file"):
        list(edits.imgedit_records(tmp_path))


@pytest.mark.parametrize("parquet", PARQUET)
def test_gedit(parquet, tmp_path):
    published.write_gedit(tmp_path, parquet)
    english = list(edits.gedit_records(tmp_path))
    assert [record["info"]["place"] for record in english] == [
        "fullset/color_alter/en/0enkey.png",
        "fullset/subject-remove/en/1enkey.png",
    ]
    assert english[0]["info"]["source_place"] == "fullset/color_alter/en/0enkey_SRCIMG.png"
    assert [record["info"]["intersection"] for record in english] == [True, False]
    (chinese, _) = edits.gedit_records(tmp_path, language="cn")
    assert chinese["text"] == "把红色的东西变成绿色" and "/cn/" in chinese["info"]["place"]
    assert len(list(edits.gedit_records(tmp_path, language="all"))) == 4
    assert (pixels(tmp_path / english[1]["images"][0]) == published.drawn(1)).all()


def test_geneval(tmp_path):
    published.write_geneval(tmp_path)
    first, second = generation.geneval_records(tmp_path)
    assert first["info"]["places"] == [f"00000/samples/000{n}.png" for n in range(4)]
    assert second["text"] == "a photo of a red car" and second["info"]["kind"] == "colors"
    (name, text), *_ = second["info"]["beside"].items()
    line = (tmp_path / "evaluation_metadata.jsonl").read_text().splitlines()[1]
    assert name == "00001/metadata.jsonl" and json.loads(text) == json.loads(line)
    (tmp_path / "evaluation_metadata.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(ValueError, match="Line 1 .* no prompt of GenEval"):
        list(generation.geneval_records(tmp_path))


def test_mjhq(tmp_path):
    published.write_mjhq(tmp_path)
    records = list(generation.mjhq_records(tmp_path))
    assert [record["info"]["kind"] for record in records] == ["art", "food", "art", "food"]
    assert (pixels(tmp_path / records[1]["result"]) == published.drawn(1)).all()
    assert records[1]["info"]["places"] == [f"food/{1:040x}.png"]
    assert [record["info"]["kind"] for record in generation.mjhq_records(tmp_path, "food")] == ["food", "food"]
    with pytest.raises(ValueError, match="no category 'cars'"):
        generation.mjhq_records(tmp_path, "cars")


def test_rows_that_are_not_there_or_damaged(tmp_path):
    def rows():
        return list(table_rows(tmp_path, "test", ("image",), lambda row, column: row["name"]))

    with pytest.raises(FileNotFoundError, match="no test.jsonl, no metadata.jsonl and no test-"):
        rows()
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n{"file_name": "b.png", "split": "train"}\n')
    assert rows() == [{"file_name": "a.png", "image": "a.png"}]
    (tmp_path / "metadata.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match="Line 1 .* is no row"):
        rows()
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "test.parquet").write_bytes(b"PAR1 not")
    known = importlib.util.find_spec("pyarrow") is not None
    with pytest.raises(ValueError, match="cannot be read" if known else r"diffusers-focus\[eval\]"):
        rows()


@needs_pyarrow
def test_a_picture_of_a_parquet_file_stays_in_its_folder(tmp_path):
    published.write_emu_edit(tmp_path / "data", parquet=True)
    rows = table_rows(tmp_path / "data", "test", ("image",), lambda row, column: "../../../away")
    with pytest.raises(ValueError, match="leads out of its folder"):
        next(rows)
    assert not (tmp_path / "away.png").exists()
