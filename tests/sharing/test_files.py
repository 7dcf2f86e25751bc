"""Files that appear whole or not at all."""

import json

import pytest

from diffusers_focus.sharing.files import replace_file, replace_json, replace_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "out.json"
    replace_json(target, {"a": 1})

    def fail(path):
        path.write_bytes(b"half")
        raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        replace_file(target, fail)
    assert json.loads(target.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_content_that_is_no_json_leaves_the_old_file(tmp_path):
    target = tmp_path / "out.json"
    replace_json(target, {"a": 1})
    with pytest.raises(TypeError):
        replace_json(target, {"a": object()})
    assert json.loads(target.read_text()) == {"a": 1}


def test_text_keeps_its_letters(tmp_path):
    replace_text(tmp_path / "a.txt", "Grün")
    replace_json(tmp_path / "a.json", {"colour": "grün"})
    assert (tmp_path / "a.txt").read_bytes() == "Grün".encode()
    assert "grün" in (tmp_path / "a.json").read_text(encoding="utf-8")
