"""The snippets of docs/diffusers.md, section "Modular", run in their order as one program."""

from __future__ import annotations

import re
from typing import Any


def test_the_snippets_of_the_page_run(root, monkeypatch):
    page = (root / "docs" / "diffusers.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", page, flags=re.MULTILINE)
    (modular,) = [text for text in section if text.startswith("Modular\n")]
    snippets = re.findall(r"^```python\n(.*?)^```", modular, flags=re.MULTILINE | re.DOTALL)
    assert len(snippets) == 5
    monkeypatch.chdir(root)
    names: dict[str, Any] = {}
    for snippet in snippets:
        exec(compile(snippet, "docs/diffusers.md", "exec"), names)
    assert names["edited"][0].size == names["image"].size == (128, 128)
    assert names["found"][0].shape[1:] == (128, 128) and names["drawn"][0].size == (128, 128)
    assert "mask_image" not in names["pipe"].blocks.input_names
