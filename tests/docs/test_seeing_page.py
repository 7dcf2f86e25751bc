"""docs/seeing.md: every snippet runs, on the published focus-tiny."""

from __future__ import annotations

import os
import re

import pytest

from tests.conftest import ROOT
from tests.docs.page import enter, read_blocks

pytestmark = pytest.mark.whole

PAGE = ROOT / "docs" / "seeing.md"
BLOCKS = read_blocks(PAGE)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The names of the page's first block; no snippet changes the pipeline, so they share it."""
    before = os.getcwd()
    enter(tmp_path_factory.mktemp("page"), ROOT)
    names = BLOCKS[0].run({})
    names["pipe"].set_progress_bar_config(disable=True)
    yield names
    os.chdir(before)


@pytest.mark.parametrize("block", [pytest.param(block, id=block.heading) for block in BLOCKS[1:]])
def test_snippet_runs(first, block):
    block.run(dict(first))


def test_rows_lead_to_headings_and_no_snippet_is_left_out():
    text = PAGE.read_text(encoding="utf-8")
    assert len(BLOCKS) == len(re.findall(r"^```python", text, re.MULTILINE)) > 10
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    links = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert links and links <= anchors
