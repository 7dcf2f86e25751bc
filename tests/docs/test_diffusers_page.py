"""docs/diffusers.md: every snippet runs."""

from __future__ import annotations

import os
import re

import pytest

from tests.conftest import ROOT
from tests.docs.page import NEEDS, Block, enter, names_for, read_blocks
from tests.guides import controlnet_for, image_encoder_for, ip_adapter_for, text_parts_for

pytestmark = pytest.mark.whole

PAGE = ROOT / "docs" / "diffusers.md"
BLOCKS = read_blocks(PAGE)
HERE = [block for block in BLOCKS[1:] if block.need != "hub"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The names of the page's first block."""
    before = os.getcwd()
    enter(tmp_path_factory.mktemp("page"), ROOT)
    names = BLOCKS[0].run({})
    names["pipe"].set_progress_bar_config(disable=True)
    yield names
    os.chdir(before)


def marked(block: Block):
    marks = [getattr(pytest.mark, block.need)] if block.need in ("slow", "gpu") else []
    return pytest.param(block, marks=marks, id=f"{block.line}-{block.heading}")


@pytest.mark.parametrize("block", [marked(block) for block in HERE])
def test_snippet_runs(first, block):
    names = names_for(block, first)
    if block.need == "quant":
        pytest.importorskip("torchao")
    if block.need == "guides":
        unet = first["pipe"].unet
        names |= {"controlnet": controlnet_for(unet), **text_parts_for(unet)}
        names |= {"ip_adapter": ip_adapter_for(unet), "image_encoder": image_encoder_for()}
    if block.need == "sdxl":
        from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

        unet = UNet2DConditionModel.from_config(dict(first["pipe"].unet.config) | {"in_channels": 4})
        texts = dict.fromkeys(("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"))
        pipe = names_for(block, first)["pipe"]
        names["sdxl"] = StableDiffusionXLPipeline(vae=pipe.vae, unet=unet, scheduler=pipe.scheduler, **texts)
    block.run(names)


def test_no_snippet_is_left_out():
    text = PAGE.read_text(encoding="utf-8")
    assert len(BLOCKS) == len(re.findall(r"^```python", text, re.MULTILINE)) > 1
    assert {block.need for block in BLOCKS} <= set(NEEDS) and BLOCKS[0].need == ""
    comments = re.findall(r"^<!-- test: .*-->$", text, re.MULTILINE)
    assert len(comments) == sum(block.need != "" for block in BLOCKS)


def test_links_lead_to_headings():
    text = PAGE.read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    links = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert links and links <= anchors
