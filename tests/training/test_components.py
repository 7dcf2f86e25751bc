"""Components from numbers and from folders, and the two variants as a whole."""

from __future__ import annotations

import pytest
import torch

from diffusers_focus.checkpoints.variants import TINY_VOCABULARY, VARIANTS
from diffusers_focus.processing.vocabulary import FocusVocabulary
from diffusers_focus.training.components import (
    CLASSES,
    build_component,
    load_component,
    load_components,
    save_component,
)
from diffusers_focus.training.initialize import initialize_convolutions


@pytest.fixture(scope="module")
def tokenizer():
    return build_component("lm_tokenizer")


def test_tiny_table_is_text_then_visual_tokens_then_a_row_for_the_trigger(tokenizer):
    config = VARIANTS["focus-tiny"]["language_model"]
    vocabulary = FocusVocabulary.from_tokenizer(
        tokenizer, embedding_rows=config["vocab_size"], tag_step=TINY_VOCABULARY["tag_step"]
    )
    assert vocabulary.start_of_image == TINY_VOCABULARY["text_rows"]
    assert vocabulary.semantic_codes == VARIANTS["focus-tiny"]["visual_tokenizer"]["semantic_codebook_size"]
    assert vocabulary.pixel_codes == VARIANTS["focus-tiny"]["visual_tokenizer"]["pixel_codebook_size"]
    assert len(tokenizer) == vocabulary.mask_trigger < config["vocab_size"]
    assert (vocabulary.pad, vocabulary.end_of_text) == (config["pad_token_id"], config["eos_token_id"])


def test_tiny_tokenizer_spells_the_world_in_few_tokens(tokenizer):
    for text in ("how many red objects are there?", "remove the large striped blue star"):
        ids = tokenizer(text).input_ids
        assert len(ids) <= 1.5 * len(text.split())
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", [n for n in CLASSES if n not in ("lm_tokenizer", "scheduler", "image_processor")])
def test_the_same_seed_gives_the_same_weights(name):
    first, again, other = (build_component(name, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert any(not torch.equal(value, other[key]) for key, value in first.items())


def test_other_numbers_than_the_variants():
    deeper = build_component("language_model", num_hidden_layers=2, seed=1)
    assert deeper.config.num_hidden_layers == 2
    assert deeper.config.hidden_size == VARIANTS["focus-tiny"]["language_model"]["hidden_size"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_parts_of_a_variant_fit_together(variant):
    numbers = VARIANTS[variant]
    assert set(numbers) == set(CLASSES) - {"lm_tokenizer"}
    with torch.device("meta"):
        part = {n: build_component(n, variant) for n in numbers if n not in ("scheduler", "image_processor")}
    processor = build_component("image_processor", variant)
    width, codes = part["language_model"].config.hidden_size, 2 * part["visual_tokenizer"].config.code_dim
    assert (
        part["vision_encoder"].config.language_hidden_size == part["mask_decoder"].config.language_hidden_size == width
    )
    assert tuple(part["vision_encoder"].config.pyramid_channels) == tuple(part["mask_decoder"].config.in_channels)
    assert part["vision_encoder"].vit.config.hidden_size == part["visual_tokenizer"].config.semantic_input_dim
    assert 2 * part["vision_encoder"].config.pixel_feature_dim == codes == part["mask_conditioner"].config.code_channels
    assert part["unet"].config.in_channels == 4 + codes
    assert part["unet"].config.cross_attention_dim == part["mask_conditioner"].config.cross_attention_dim
    assert processor.vae_scale_factor == 2 ** (len(part["vae"].config.block_out_channels) - 1)


def test_published_sizes():
    sizes = {
        "language_model": (3.3e9, 3.5e9),
        "unet": (2.55e9, 2.6e9),
        "vae": (83e6, 84e6),
        "vision_encoder": (0.85e9, 1e9),
    }
    with torch.device("meta"):
        found = {n: sum(p.numel() for p in build_component(n, "focus-3b").parameters()) for n in sizes}
    assert all(low < found[name] < high for name, (low, high) in sizes.items()), found
    assert VARIANTS["focus-3b"]["language_model"]["vocab_size"] == 283047
    assert VARIANTS["focus-3b"]["unet"]["in_channels"] == 68


def test_fresh_vae_hardly_blurs_its_latents_and_fresh_unet_says_nothing():
    vae, unet = build_component("vae"), build_component("unet")
    with torch.no_grad():
        posterior = vae.encode(torch.rand(1, 3, 32, 32) * 2 - 1).latent_dist
    assert posterior.logvar.mean() < -4
    assert not unet.conv_out.weight.any()


def test_initialised_convolutions_keep_the_signal_and_close_the_branches():
    torch.manual_seed(0)
    network = torch.nn.ModuleDict({"conv1": torch.nn.Conv2d(16, 64, 3), "conv2": torch.nn.Conv2d(16, 16, 3)})
    kept = torch.nn.ModuleDict({"conv1": torch.nn.Conv2d(16, 64, 3)})
    before = kept["conv1"].weight.clone()
    initialize_convolutions(network)
    initialize_convolutions(kept, keep=("conv1",))
    assert network["conv1"](torch.randn(4, 16, 16, 16)).std().item() == pytest.approx(1.0, abs=0.1)
    assert not network["conv2"].weight.any() and torch.equal(kept["conv1"].weight, before)


def test_saved_components_come_back(tmp_path, tokenizer):
    conditioner = build_component("mask_conditioner", seed=3)
    save_component(tmp_path, "mask_conditioner", conditioner)
    save_component(tmp_path, "lm_tokenizer", tokenizer)
    loaded = load_components(tmp_path, ("mask_conditioner", "lm_tokenizer", "scheduler"))
    state = loaded.mask_conditioner.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in conditioner.state_dict().items())
    assert loaded.lm_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert loaded.scheduler.config.prediction_type == "v_prediction"


def test_saving_replaces_and_clears_up_after_an_interrupted_write(tmp_path):
    leftover = tmp_path / "components" / ".mask_conditioner.new"
    leftover.mkdir(parents=True)
    (leftover / "config.json").write_text("half a fi")
    for seed in (0, 1):
        save_component(tmp_path, "mask_conditioner", build_component("mask_conditioner", seed=seed))
    loaded = load_component(tmp_path, "mask_conditioner")
    assert torch.equal(loaded.mask_in.weight, build_component("mask_conditioner", seed=1).mask_in.weight)
    assert [p.name for p in (tmp_path / "components").iterdir()] == ["mask_conditioner"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("vae", "focus-7b"), "no variant 'focus-7b'"),
        (("text_encoder",), "no component 'text_encoder'"),
        (("lm_tokenizer", "focus-3b"), "source checkpoint"),
    ],
)
def test_what_cannot_be_built_is_said(arguments, words):
    with pytest.raises(ValueError, match=words):
        build_component(*arguments)
