"""The steps with an original's configuration against what the original code computed (numbers in tests/goldens)."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from diffusers_focus.checkpoints.dualvitok import DUALVITOK
from diffusers_focus.checkpoints.illume import ILLUME_PLUS, WITHOUT_NEW_PARTS
from diffusers_focus.checkpoints.plan import convert, target_shapes
from diffusers_focus.models.vision_encoder import FocusVisionEncoder
from diffusers_focus.models.visual_tokenizer import FocusVisualTokenizer
from diffusers_focus.pipelines.segment_edit import RESOLUTION_GROUP, FocusSegmentEditPipeline
from diffusers_focus.processing.grammar import VisualTokenGrammar
from diffusers_focus.processing.images import FocusImageProcessor
from diffusers_focus.processing.prompts import EDIT, GENERATE, GENERATE_RANDOM, RECONSTRUCT, UNDERSTAND
from diffusers_focus.processing.vocabulary import CHAT_TOKENS, END_OF_TURN, START_OF_TURN, extend_tokenizer
from diffusers_focus.steps import denoise
from diffusers_focus.steps.encode import encode_tensors
from diffusers_focus.steps.sampling import GREEDY
from diffusers_focus.steps.sequence import (
    FocusContext,
    batch_rows,
    embed_prefix,
    encode_prefix,
    image_block,
    run_suffixes,
    suffix_row,
)
from diffusers_focus.steps.visual_tokens import write_codes

from tests.goldens.weights import state_dict, weight

GOLDENS = Path(__file__).parents[1] / "goldens"
PROMPTS: dict[str, tuple[str, str | None, str | None]] = {  # case -> task, text, image
    "understand": (UNDERSTAND, "What is shown in this picture?", "160x224"),
    "edit": (EDIT, "make the sky green", "256x256"),
    "edit_uncond": (RECONSTRUCT, None, "256x256"),
}
DESCRIPTIONS = ["a red cat", "two small boats on a lake, oil painting"]
SIZE = (256, 256)


def facts(name: str) -> dict[str, Any]:
    return json.loads((GOLDENS / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def original() -> SimpleNamespace:
    """The recorded multimodal model: tower, projectors, language model, tokenizer."""
    golden = facts("mllm_vision_a")
    spec = golden["spec"]
    weights = {key: torch.from_numpy(array) for key, array in state_dict(GOLDENS / "mllm_vision_a.json").items()}
    encoder = FocusVisionEncoder(
        vision_tower=spec["vit"],
        language_hidden_size=spec["llm"]["hidden_size"],
        pixel_feature_dim=spec["dim"],
        pixel_encoder={"channels": spec["ch"], "z_channels": spec["dim"]},
        **WITHOUT_NEW_PARTS,
    )
    language_model = Qwen2ForCausalLM(Qwen2Config(**golden["llm_config"]))
    targets = {"vision_encoder": target_shapes(encoder), "language_model": target_shapes(language_model)}
    converted = convert(ILLUME_PLUS, weights, targets)
    encoder.load_state_dict(converted["vision_encoder"])
    missing = language_model.load_state_dict(converted["language_model"], strict=False)
    assert missing == (["lm_head.weight"], [])
    language_model.tie_weights()
    recorded = facts("tokenizer_a")["model"]
    chat = {token: len(recorded["vocab"]) + i for i, token in enumerate(CHAT_TOKENS)}
    tokenizer = Qwen2Tokenizer(
        vocab={**recorded["vocab"], **chat},
        merges=[],
        eos_token=END_OF_TURN,
        additional_special_tokens=[START_OF_TURN],
    )
    extend_tokenizer(tokenizer, spec["nsem"], spec["npix"])
    return SimpleNamespace(
        vision_encoder=encoder.eval(),
        language_model=language_model.eval(),
        lm_tokenizer=tokenizer,
        visual_tokenizer=None,
        mask_decoder=None,
        image_processor=FocusImageProcessor(buckets=[SIZE], high_resolution=None, prompt_style="illume"),
    )


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    return load_file(GOLDENS / "mllm_vision_a.safetensors")


@pytest.fixture(scope="module")
def outputs() -> dict[str, torch.Tensor]:
    return load_file(GOLDENS / "mllm_forward_a.safetensors")


def encoded(original: SimpleNamespace, inputs: dict[str, torch.Tensor], name: str) -> Any:
    return encode_tensors(original, inputs[f"image.{name}.pixel_values"])


# Input assembly


@pytest.mark.parametrize("name", ["128x128", "160x224", "256x256"])
@torch.no_grad()
def test_image_blocks_have_the_original_layout(original, inputs, name):
    vision = encoded(original, inputs, name).vision
    context = FocusContext.of(original)
    block = image_block(original, context.vocabulary, vision.vision_tokens, vision.pixel_tokens)[0]
    torch.testing.assert_close(block, inputs[f"{name}.image_embeds"], atol=1e-5, rtol=0)
    layout = inputs[f"{name}.layout"]
    table = original.language_model.get_input_embeddings().weight
    assert torch.equal(block[layout >= 0], table[layout[layout >= 0]])


def suffix_of(context: FocusContext, task: str, text: str | None, num_images: int = 1) -> Any:
    size = None if task == UNDERSTAND else SIZE
    return suffix_row(context, context.style.suffix(task, text=text, num_images=num_images, height_width=size))


@pytest.mark.parametrize("case", PROMPTS)
@torch.no_grad()
def test_prompts_about_images_give_the_original_states(original, inputs, outputs, case):
    task, text, name = PROMPTS[case]
    context = FocusContext.of(original)
    encoding = encoded(original, inputs, name)
    prefix_embeds, mask, _ = embed_prefix(original, context, encoding, task=task)
    batch = batch_rows(original, [suffix_of(context, task, text)])
    assert mask.all() and batch.mask.all()
    embeds = torch.cat([prefix_embeds, batch.embeds], dim=1)
    torch.testing.assert_close(embeds, inputs[f"{case}.inputs_embeds"], atol=1e-5, rtol=0)

    prefix = encode_prefix(original, context, encoding, task=task)
    hidden, cache, mask = run_suffixes(original, prefix, torch.tensor([0]), batch)
    expected = outputs[f"{case}.last_hidden_state"]
    torch.testing.assert_close(hidden, expected[:, prefix.length :], atol=2e-5, rtol=0)
    assert cache.get_seq_length() == mask.shape[1] == expected.shape[1]
    recorded = outputs[f"{case}.logits" if f"{case}.logits" in outputs else f"{case}.logits_last16"][:, -16:]
    logits = original.language_model.lm_head(hidden)[:, -16:]
    torch.testing.assert_close(logits, recorded, atol=2e-5, rtol=0)


@torch.no_grad()
def test_two_images_stand_in_one_prompt_as_in_the_original(original, inputs):
    context = FocusContext.of(original)
    blocks = []
    for name in ("160x224", "128x128"):
        vision = encoded(original, inputs, name).vision
        blocks.append(image_block(original, context.vocabulary, vision.vision_tokens, vision.pixel_tokens)[0])
    table = original.language_model.get_input_embeddings()
    pieces = [
        table(torch.tensor(segment.ids)) if segment.ids else blocks[segment.index]
        for segment in context.segments(context.style.prefix(2, task=UNDERSTAND))
    ]
    batch = batch_rows(original, [suffix_of(context, UNDERSTAND, "Compare the two.", 2)])
    embeds = torch.cat([*pieces, batch.embeds[0]])[None]
    torch.testing.assert_close(embeds, inputs["understand_two.inputs_embeds"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_rows_of_a_left_padded_batch_equal_the_original(original, inputs, outputs):
    context = FocusContext.of(original)
    for row, (text, name) in enumerate([("Hi?", "128x128"), ("What is shown in this picture?", "160x224")]):
        prefix = encode_prefix(original, context, encoded(original, inputs, name), task=UNDERSTAND)
        batch = batch_rows(original, [suffix_of(context, UNDERSTAND, text)])
        hidden, _, _ = run_suffixes(original, prefix, torch.tensor([0]), batch)
        expected = outputs["understand_batch.last_hidden_state"][row, -hidden.shape[1] :]
        torch.testing.assert_close(hidden[0], expected, atol=2e-5, rtol=0)


@torch.no_grad()
def test_descriptions_in_a_batch_give_the_original_states(original, inputs, outputs):
    context = FocusContext.of(original)
    prefix = encode_prefix(original, context, None, task=GENERATE)
    batch = batch_rows(original, [suffix_of(context, GENERATE, text, 0) for text in DESCRIPTIONS])
    hidden, _, _ = run_suffixes(original, prefix, torch.tensor([0, 0]), batch)
    for row in range(2):
        count = int(batch.mask[row].sum())
        assert prefix.length + count == int(inputs["t2i.attention_mask"][row].sum())
        expected = outputs["t2i.last_hidden_state"][row, -count:]
        torch.testing.assert_close(hidden[row, -count:], expected, atol=2e-5, rtol=0)
    batch = batch_rows(original, [suffix_of(context, GENERATE_RANDOM, None, 0)])
    hidden, _, _ = run_suffixes(original, prefix, torch.tensor([0]), batch)
    expected = outputs["t2i_uncond.last_hidden_state"][:1, -hidden.shape[1] :]
    torch.testing.assert_close(hidden, expected, atol=2e-5, rtol=0)


# Drawing codes


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("case", ["edit", "t2i"])
@torch.no_grad()
def test_greedy_images_are_the_original_ones(original, inputs, case, guidance):
    context = FocusContext.of(original)
    rows, columns, pixel_rows, pixel_columns = facts("generation_e2e_a")["grid"]
    grammar = VisualTokenGrammar(context.vocabulary, (rows, columns), (pixel_rows, pixel_columns))
    if case == "edit":
        prefix = encode_prefix(original, context, encoded(original, inputs, "256x256"), task=EDIT)
        prompts = [suffix_of(context, EDIT, "make the sky green")]
        without = [suffix_of(context, RECONSTRUCT, None)]
    else:
        prefix = encode_prefix(original, context, None, task=GENERATE)
        prompts = [suffix_of(context, GENERATE, text, 0) for text in DESCRIPTIONS]
        without = [suffix_of(context, GENERATE_RANDOM, None, 0)] * 2
    ids = write_codes(
        original,
        prefix,
        prompts,
        [0] * len(prompts),
        grammar,
        unconditional=without,
        guidance_scale=guidance,
        semantic=GREEDY,
        pixel=GREEDY,
    )
    expected = load_file(GOLDENS / "generation_e2e_a.safetensors")[f"{case}.g{guidance:.0f}.sequences"]
    # Three free words follow the image in the recording.
    assert torch.equal(ids, expected[:, : grammar.length])


# The diffusion decoder


@pytest.fixture(scope="module")
def decoder() -> FocusSegmentEditPipeline:
    """The recorded decoder in a pipeline without the parts that read images."""
    golden, tokenizer_facts = facts("decoder_a"), facts("dualvitok_a")
    config = tokenizer_facts["config"]
    tokenizer = FocusVisualTokenizer(
        code_dim=config["semantic_quantizer"]["dim"],
        semantic_input_dim=tokenizer_facts["vit"]["hidden_size"],
        semantic_embed_dim=config["semantic_encoder"]["embed_dim"],
        semantic_num_blocks=config["semantic_encoder"]["num_blocks"],
        semantic_codebook_size=config["semantic_quantizer"]["codebook_size"],
        vision_tower=tokenizer_facts["vit"],
        pixel_channels=config["pixel_encoder"]["ch"],
        pixel_decoder_channels=config["pixel_decoder"]["ch"],
        pixel_codebook_size=config["pixel_quantizer"]["codebook_size"],
    ).eval()
    recorded = {key: torch.from_numpy(value) for key, value in state_dict(GOLDENS / "dualvitok_a.json").items()}
    converted = convert(DUALVITOK, recorded, {"visual_tokenizer": target_shapes(tokenizer)})
    tokenizer.load_state_dict(converted["visual_tokenizer"])
    models = []
    for name, cls in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        model = cls(**{key: value for key, value in golden[f"{name}_config"].items() if not key.startswith("_")})
        keys = golden["keys"][name]
        model.load_state_dict({k: torch.from_numpy(weight(golden["seed"], k, shape)) for k, shape in keys.items()})
        models.append(model.eval())
    pipe = FocusSegmentEditPipeline(
        vision_encoder=None,
        language_model=None,
        lm_tokenizer=None,
        visual_tokenizer=tokenizer,
        mask_decoder=None,
        mask_conditioner=None,
        unet=models[0],
        vae=models[1],
        scheduler=EulerDiscreteScheduler(**golden["scheduler_config"]),
        image_processor=FocusImageProcessor(buckets=[SIZE], high_resolution=None, prompt_style="illume"),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("case", ["sq.g1", "sq.g2"])
@torch.no_grad()
def test_denoising_follows_the_original(decoder, case):
    golden = load_file(GOLDENS / "decoder_a.safetensors")
    setup = facts("decoder_a")["cases"][case]
    tokens = denoise.token_map(decoder, golden["128x128.semantic_indices"], golden["128x128.pixel_indices"])
    torch.testing.assert_close(tokens, golden["128x128.condition_map"], atol=1e-5, rtol=0)
    steps = []

    def collect(pipe, step, timestep, tensors):
        steps.append((float(timestep), tensors["latents"].clone()))
        return {}

    decoder._guidance_scale = setup["guidance"]
    latents = decoder._denoise(
        tokens,
        None,
        None,
        size_index=denoise.resolution_index(RESOLUTION_GROUP, setup["height"], setup["width"]),
        grid=(64, 64),
        steps=setup["steps"],
        timesteps=None,
        sigmas=None,
        strength=1.0,
        mask_guidance_scale=1.0,
        keep_source=True,
        noise=golden[setup["noise"]],
        eta=0.0,
        generator=None,
        callback=collect,
        tensor_inputs=["latents"],
    )
    assert [step for step, _ in steps] == setup["timesteps"]
    for index, (_, ours) in enumerate(steps):
        torch.testing.assert_close(ours, golden[f"{case}.latents_{index}"], atol=1e-4, rtol=0)
    assert torch.equal(latents, steps[-1][1])
    picture = denoise.decode_latents(decoder.vae, latents)
    torch.testing.assert_close(picture[..., ::2, ::2], golden[f"{case}.decoded_stride2"], atol=5e-5, rtol=0)


def test_the_size_index_is_the_original_one(decoder):
    for setup in facts("decoder_a")["cases"].values():
        assert denoise.resolution_index(RESOLUTION_GROUP, setup["height"], setup["width"]) == setup["time_ids"][0][-1]
