"""The converted original (ILLUME+) runs through the same steps and gives the original's numbers and tokens."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from diffusers_focus.checkpoints.illume import VISION_ENCODER_PREFIXES, rename_prefixes
from diffusers_focus.models.vision_encoder import FocusVisionEncoder
from diffusers_focus.processing.grammar import TokenSampling, VisualTokenGrammar
from diffusers_focus.processing.images import FocusImageProcessor
from diffusers_focus.processing.prompts import EDIT, GENERATE, GENERATE_RANDOM, RECONSTRUCT, UNDERSTAND
from diffusers_focus.processing.vocabulary import CHAT_TOKENS, END_OF_TURN, START_OF_TURN, extend_tokenizer
from diffusers_focus.steps.editing import generation_codes
from diffusers_focus.steps.encode import encode_tensors
from diffusers_focus.steps.sequence import (
    FocusContext,
    batch_rows,
    embed_prefix,
    encode_prefix,
    run_suffixes,
    suffix_row,
)
from diffusers_focus.steps.visual_tokens import write_codes

from tests.goldens.weights import state_dict

GREEDY = TokenSampling(top_k=1)


@pytest.fixture(scope="module")
def original(goldens):
    """The recorded original in our classes, and the recorded cases."""
    facts = json.loads((goldens / "mllm_vision_a.json").read_text())
    weights = {key: torch.from_numpy(array) for key, array in state_dict(goldens / "mllm_vision_a.json").items()}
    spec = facts["spec"]
    vision = FocusVisionEncoder(
        vision_tower=spec["vit"],
        pyramid_channels=None,
        num_query_tokens=0,
        language_hidden_size=spec["llm"]["hidden_size"],
        pixel_feature_dim=spec["dim"],
        pixel_encoder={"channels": spec["ch"], "z_channels": spec["dim"]},
        region_slots=False,
    )
    seen, rest = rename_prefixes(weights, VISION_ENCODER_PREFIXES)
    vision.load_state_dict(seen)
    language = Qwen2ForCausalLM(Qwen2Config(**facts["llm_config"]))
    language.load_state_dict({key: weights[key] for key in rest}, strict=False)
    language.tie_weights()

    recorded = json.loads((goldens / "tokenizer_a.json").read_text())
    chat = {token: len(recorded["model"]["vocab"]) + i for i, token in enumerate(CHAT_TOKENS)}
    vocab = {**recorded["model"]["vocab"], **chat}
    tokenizer = Qwen2Tokenizer(
        vocab=vocab, merges=[], eos_token=END_OF_TURN, additional_special_tokens=[START_OF_TURN]
    )
    extend_tokenizer(tokenizer, spec["nsem"], spec["npix"])
    components = SimpleNamespace(
        vision_encoder=vision.eval(),
        language_model=language.eval(),
        lm_tokenizer=tokenizer,
        image_processor=FocusImageProcessor(
            buckets=[[256, 256]], high_resolution=None, prompt_style="illume", decode_scale=2
        ),
    )
    golden = {}
    for name in ("mllm_vision_a", "mllm_forward_a", "generation_e2e_a"):
        golden.update(load_file(goldens / f"{name}.safetensors"))
    return components, golden


# golden case -> task, text, image, resolution of the tag
CASES = {
    "understand": (UNDERSTAND, ["What is shown in this picture?"], "160x224", None),
    "edit": (EDIT, ["make the sky green"], "256x256", (256, 256)),
    "edit_uncond": (RECONSTRUCT, [None], "256x256", (256, 256)),
    "t2i": (GENERATE, ["a red cat", "two small boats on a lake, oil painting"], None, (256, 256)),
    "t2i_uncond": (GENERATE_RANDOM, [None, None], None, (256, 256)),
}


def prompt_of(components, golden, name):
    task, texts, image, size = CASES[name]
    context = FocusContext.of(components)
    encoding = encode_tensors(components, golden[f"image.{image}.pixel_values"]) if image else None
    number = 1 if image else 0
    rows = [
        suffix_row(context, context.style.suffix(task, text=text, num_images=number, height_width=size))
        for text in texts
    ]
    return context, encoding, task, rows


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_inputs_and_hidden_states_are_the_originals(original, name):
    components, golden = original
    context, encoding, task, rows = prompt_of(components, golden, name)
    prefix_embeds, _ = embed_prefix(components, context, encoding, task=task)
    batch = batch_rows(components, rows, pad="left")
    hidden, _, _ = run_suffixes(
        components, encode_prefix(components, context, encoding, task=task), torch.zeros(len(rows)).long(), batch
    )
    expected = golden[f"{name}.inputs_embeds"]
    states = golden[f"{name}.last_hidden_state"]
    for row, (embeds, mask) in enumerate(zip(batch.embeds, batch.mask)):
        ours = torch.cat([prefix_embeds[0], embeds[mask]])
        torch.testing.assert_close(ours, expected[row, -len(ours) :], atol=1e-5, rtol=0)
        assert int(golden[f"{name}.attention_mask"][row].sum()) == len(ours)
        count = int(mask.sum())
        torch.testing.assert_close(hidden[row, -count:], states[row, -count:], atol=2e-5, rtol=0)


@pytest.mark.parametrize("guidance", [1, 2])
@torch.no_grad()
def test_edits_write_the_originals_tokens(original, guidance):
    components, golden = original
    context, encoding, task, rows = prompt_of(components, golden, "edit")
    without = prompt_of(components, golden, "edit_uncond")[3]
    ids = write_codes(
        components,
        encode_prefix(components, context, encoding, task=task),
        rows,
        [0],
        VisualTokenGrammar(context.vocabulary, (2, 3), (4, 5)),
        unconditional=without,
        guidance_scale=float(guidance),
        semantic=GREEDY,
        pixel=GREEDY,
    )
    assert ids.tolist() == golden[f"edit.g{guidance}.sequences"][:, : ids.shape[1]].tolist()


@pytest.mark.parametrize("guidance", [1, 2])
@torch.no_grad()
def test_descriptions_write_the_originals_tokens(original, guidance):
    components, golden = original
    semantic, pixel = generation_codes(
        components,
        CASES["t2i"][1],
        (256, 256),
        grids=((2, 3), (4, 5)),
        guidance_scale=float(guidance),
        semantic=GREEDY,
        pixel=GREEDY,
    )
    ids = FocusContext.of(components).vocabulary.image_ids(semantic, pixel, with_tag=False)
    assert ids.tolist() == golden[f"t2i.g{guidance}.sequences"][:, : ids.shape[1]].tolist()
