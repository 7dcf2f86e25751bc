"""Goldens of any set: which there are in a folder, their facts and tensors, and our components with their weights.

A golden is `<family>_<set>.json` beside `<family>_<set>.safetensors`; tests/goldens/README.md says what stands in them.
Nothing here knows a set: sizes, cases and key tables are read from the JSON, weights are made from their keys, and they
come into our components as a user's checkpoint does, through the converter's families and plans.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import Qwen2Tokenizer

from diffusers_focus.checkpoints.families import detect_family, sizes_from
from diffusers_focus.checkpoints.illume import WITHOUT_NEW_PARTS
from diffusers_focus.checkpoints.plan import convert, target_shapes
from diffusers_focus.pipelines.segment_edit import FocusSegmentEditPipeline
from diffusers_focus.processing.images import FocusImageProcessor
from diffusers_focus.processing.prompts import EDIT, GENERATE, UNCONDITIONAL, UNDERSTAND
from diffusers_focus.processing.vocabulary import END_OF_TURN, START_OF_TURN, extend_tokenizer, visual_tokens

from tests.checkpoints.originals import CLASSES
from tests.goldens.weights import weight

FAMILIES = ("dualvitok", "mllm_vision", "mllm_forward", "generation", "generation_e2e", "decoder")
Size = tuple[int, int]


@dataclass(frozen=True)
class Golden:
    """One family of one set in a folder."""

    folder: Path
    family: str
    name: str

    def __str__(self) -> str:
        return f"{self.family}_{self.name}"

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The JSON."""
        return json.loads((self.folder / f"{self}.json").read_text(encoding="utf-8"))

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Inputs and outputs."""
        return load_file(self.folder / f"{self}.safetensors")

    def other(self, mentioned: str) -> Golden:
        """The golden that a fact of this one mentions first ("mllm_vision_a: ..."), in the same folder.

        A test that asks for one that is not there is skipped.
        """
        found = re.match(rf"({'|'.join(FAMILIES)})_(\w+)", mentioned)
        if found is None:
            raise ValueError(f"{self} mentions {mentioned!r}, which is no golden.")
        other = Golden(self.folder, found[1], found[2])
        if not (self.folder / f"{other}.json").exists():
            pytest.skip(f"{self} needs {other}, which is not in {self.folder}")
        return other

    def weights(self, keys: Mapping[str, Iterable[int]] | None = None) -> dict[str, torch.Tensor]:
        """Weights of a table of keys and shapes; the golden's own by default."""
        table: Mapping[str, Iterable[int]] = self.facts["keys"] if keys is None else keys
        return {key: torch.from_numpy(weight(self.facts["seed"], key, tuple(shape))) for key, shape in table.items()}


def find_goldens(folder: Path) -> dict[str, list[Golden]]:
    """All goldens of a folder by family; a file belongs to the longest family name that it begins with.

    Raises:
        ValueError: there is none.
    """
    found: dict[str, list[Golden]] = {family: [] for family in FAMILIES}
    for path in sorted(folder.glob("*.json")):
        fitting = [family for family in FAMILIES if path.stem.startswith(f"{family}_")]
        if fitting:
            family = max(fitting, key=len)
            found[family].append(Golden(folder, family, path.stem[len(family) + 1 :]))
    if not any(found.values()):
        raise ValueError(
            f"There is no golden in {folder}: no file is called <family>_<set>.json with a family of {', '.join(FAMILIES)}."
        )
    return found


def size_of(name: str) -> Size:
    """(height, width) of "128x160"."""
    height, width = name.split("x")
    return int(height), int(width)


def load_original(
    weights: Mapping[str, torch.Tensor],
    configs: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, nn.Module]:
    """Our components with the weights of an original, sizes and all found by the converter.

    Args:
        configs: contents of the original's configuration files, as `sizes_from` takes them.
        settings: component -> what it needs beside the sizes that the original determines.
    """
    family = detect_family(weights)
    sizes = sizes_from(weights, configs, family)
    with torch.random.fork_rng():
        models = {
            name: CLASSES[name](**config, **(settings or {}).get(name, {}))
            for name, config in sizes.items()
            if name in CLASSES
        }
    converted = convert(family, weights, {name: target_shapes(model) for name, model in models.items()})
    for name, model in models.items():
        missing, unexpected = model.load_state_dict(converted[name], strict=False)
        tied = set(model.state_dict()) - set(target_shapes(model))
        assert set(missing) <= tied and not unexpected, (name, missing, unexpected)
        if tied:
            model.tie_weights()
        model.eval().requires_grad_(False)
    return models


# The visual tokenizer


@cache
def visual_tokenizer(golden: Golden) -> Any:
    """`FocusVisualTokenizer` of a dualvitok golden."""
    return load_original(golden.weights(), {"vision_tower": golden.facts["vit"]})["visual_tokenizer"]


# The multimodal language model


@cache
def recorded_tokenizer(golden: Golden) -> dict[str, Any]:
    """The tokenizer.json of an mllm_vision golden."""
    return json.loads((golden.folder / golden.facts["tokenizer_file"]).read_text(encoding="utf-8"))


def tag_step(golden: Golden) -> int:
    """Pixels between two of the recorded resolution tags."""
    tags = [re.fullmatch(r"<height_(\d+)>", token["content"]) for token in recorded_tokenizer(golden)["added_tokens"]]
    return min(int(tag[1]) for tag in tags if tag)


@cache
def language_tokenizer(golden: Golden) -> Qwen2Tokenizer:
    """The recorded text tokenizer, extended by us as the original was."""
    facts, recorded = golden.facts, recorded_tokenizer(golden)
    codes = [stop - first for first, stop in (facts["level0_range"], facts["level1_range"])]
    step = tag_step(golden)
    visual = set(visual_tokens(*codes, step))
    chat = {token["content"]: token["id"] for token in recorded["added_tokens"] if token["content"] not in visual}
    merges = [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in recorded["model"]["merges"]
    ]
    tokenizer = Qwen2Tokenizer(
        vocab={**recorded["model"]["vocab"], **chat},
        merges=merges,
        eos_token=END_OF_TURN,
        additional_special_tokens=[START_OF_TURN],
    )
    extend_tokenizer(tokenizer, *codes, tag_step=step)
    return tokenizer


@cache
def multimodal(golden: Golden) -> Any:
    """The components that an mllm_vision golden describes, as the steps take them."""
    facts = golden.facts
    configs = {"language_model": facts["llm_config"], "vision_tower": facts["spec"]["vit"]}
    models = load_original(golden.weights(), configs, {"vision_encoder": WITHOUT_NEW_PARTS})
    sizes = [case["resolution"] for case in facts["cases"].values() if "resolution" in case]
    return SimpleNamespace(
        **models,
        lm_tokenizer=language_tokenizer(golden),
        visual_tokenizer=None,
        mask_decoder=None,
        image_processor=FocusImageProcessor(
            buckets=sizes or [[256, 256]], tag_step=tag_step(golden), high_resolution=None, prompt_style="illume"
        ),
    )


@dataclass(frozen=True)
class Prompt:
    """One prompt of a recorded case.

    Attributes:
        task, text: as our prompt styles have them.
        images: names of the images it shows.
        size: token resolution of the image to write, None where none is written.
    """

    task: str
    text: str | None
    images: tuple[str, ...]
    size: Size | None


def prompts_of(golden: Golden, case: str) -> list[Prompt]:
    """The prompts of a case of an mllm_vision golden, one for each row of its batch.

    Cases with an `instruction` edit, cases with `contents` generate, `<case>_uncond` is the unconditional prompt of
    <case>, and all others ask about images, which are dealt out in order.
    """
    cases = golden.facts["cases"]
    facts, base = cases[case], cases[case.removesuffix("_uncond")]
    rows = len(facts["full_prompts"])
    task, texts = UNDERSTAND, facts["prompt"]
    if "instruction" in base:
        task, texts = EDIT, base["instruction"]
    elif "contents" in base:
        task, texts = GENERATE, base["contents"]
    if facts is not base:
        task, texts = UNCONDITIONAL[task], None
    if not isinstance(texts, list):
        texts = [texts] * rows
    size = (int(base["resolution"][0]), int(base["resolution"][1])) if task != UNDERSTAND else None
    left = list(facts["images"])
    prompts = []
    for text, full in zip(texts, facts["full_prompts"]):
        count = full.count("<image>")
        images, left = tuple(left[:count]), left[count:]
        own = None if text is None else text.replace("<image>\n", "")
        prompts.append(Prompt(task, own, images, size))
    assert not left, f"{golden} {case}: more images than prompts show"
    return prompts


# The diffusion decoder


def resolution_group(golden: Golden) -> list[Size]:
    """(width, height) of the sizes that a decoder golden's resolution index stands for."""
    sizes = golden.facts["resolution_group_width_height"]
    return [ast.literal_eval(size) if isinstance(size, str) else tuple(size) for size in sizes]


@cache
def decoder(golden: Golden) -> FocusSegmentEditPipeline:
    """A pipeline with a decoder golden's parts and its visual tokenizer, and none that read images or words."""
    facts = golden.facts
    tokenizer = visual_tokenizer(golden.other(facts["tokenizer"]))
    keys = {f"{part}.{key}": key for part in ("unet", "vae") for key in facts["keys"][part]}
    made = {part: golden.weights(facts["keys"][part]) for part in ("unet", "vae")}
    weights = {name: made[name.partition(".")[0]][key] for name, key in keys.items()}
    models = load_original(weights, {"unet": facts["unet_config"], "vae": facts["vae_config"]})
    factor = 2 ** (len(facts["vae_config"]["block_out_channels"]) - 1)
    pipe = FocusSegmentEditPipeline(
        vision_encoder=None,
        language_model=None,
        lm_tokenizer=None,
        visual_tokenizer=tokenizer,
        mask_decoder=None,
        mask_conditioner=None,
        **models,
        scheduler=getattr(diffusers, facts["scheduler_class"]).from_config(facts["scheduler_config"]),
        image_processor=FocusImageProcessor(high_resolution=None, vae_scale_factor=factor, prompt_style="illume"),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
