"""The snippets of docs/modular.md, run in their order as one program."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytestmark = pytest.mark.whole


def test_the_snippets_of_the_page_run(root, monkeypatch):
    page = (root / "docs" / "modular.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    assert len(snippets) == 6
    monkeypatch.chdir(root)
    names: dict[str, Any] = {}
    for snippet in snippets:
        exec(compile(snippet, "docs/modular.md", "exec"), names)
    assert names["edited"][0].size == names["image"].size == (128, 128)
    assert names["found"][0].shape[1:] == (128, 128) and names["drawn"][0].size == (128, 128)
    assert "mask_image" not in names["pipe"].blocks.input_names
