"""Initial weights of a training from scratch: signal, codes that are alike, queries that know their place."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM

from diffusers_focus.models._pixel_decoder import sine_positions
from diffusers_focus.models.vision_encoder import FocusVisionEncoder
from diffusers_focus.steps.sequence import FocusContext
from diffusers_focus.training.components import build_component
from diffusers_focus.training.initialize import (
    CODE_SPREAD,
    initialize_anchors,
    initialize_code_rows,
    initialize_copy_heads,
    initialize_pyramid,
)
from diffusers_focus.training.perception import PerceptionObjective
from diffusers_focus.training.trainer import StageRecipe

from tests.tiny import SIZE, tiny_components


def contributions(encoder: FocusVisionEncoder) -> tuple[list[float], list[float]]:
    """Spread of f1..f4, and for every block what it adds to its input, relative to it."""
    added = []

    def watch(_, inputs, output):
        added.append(((output - inputs[0]).std() / inputs[0].std()).item())

    blocks = [layer for stage in encoder.pyramid.encoder.stages for layer in stage.layers]
    hooks = [block.register_forward_hook(watch) for block in blocks]
    with torch.no_grad():
        maps = encoder._pyramid_features(torch.randn(2, 3, 64, 64))
    for hook in hooks:
        hook.remove()
    return [m.std().item() for m in maps], added


def test_a_fresh_pyramid_passes_its_signal_on_and_every_block_adds_to_it():
    encoder = build_component("vision_encoder")
    spreads, added = contributions(encoder)
    assert all(0.3 < spread < 4 for spread in spreads), spreads
    assert all(0.1 < share < 2 for share in added), added
    # With ConvNeXt's own start the narrow blocks, which come first, add nothing to speak of.
    plain = FocusVisionEncoder.from_config(encoder.config)
    assert max(contributions(plain)[1][: encoder.config.pyramid_depths[0]]) < 0.03
    assert initialize_pyramid(plain.pyramid) is plain.pyramid
    assert min(contributions(plain)[1]) > 0.1


@pytest.fixture
def parts() -> SimpleNamespace:
    return SimpleNamespace(**tiny_components())


def test_codes_that_are_alike_get_like_rows_and_no_other_row_changes(parts):
    vocabulary = FocusContext.of(parts).vocabulary
    table = parts.language_model.get_input_embeddings().weight
    before = table.detach().clone()
    initialize_code_rows(parts.language_model, parts.visual_tokenizer, vocabulary)
    touched = (table.detach() != before).any(1)
    inside = torch.zeros_like(touched)
    for quantizer, (first, stop) in (
        (parts.visual_tokenizer.semantic_quantizer, vocabulary.level0_range),
        (parts.visual_tokenizer.pixel_quantizer, vocabulary.level1_range),
    ):
        inside[first:stop] = True
        rows = table[first:stop].detach()
        words = parts.language_model.config.initializer_range
        assert rows.std().item() == pytest.approx(CODE_SPREAD * words, rel=0.15)
        codes = quantizer.lookup(torch.arange(stop - first)).detach()
        codes = (codes - codes.mean(0)) / codes.std(0)
        apart = torch.cdist(codes, codes)
        like = F.normalize(rows, dim=1) @ F.normalize(rows, dim=1).T
        nearest = apart.clone().fill_diagonal_(torch.inf).argmin(1)
        one = torch.arange(len(codes))
        assert like[one, nearest].mean() > like[one, apart.argmax(1)].mean() + 0.5
        assert like.clone().fill_diagonal_(0).max() < 0.999  # no two codes are the same row
    assert torch.equal(touched, inside)
    assert parts.language_model.lm_head.weight is table  # logits begin alike too


def test_code_rows_are_the_same_every_time(parts):
    other = SimpleNamespace(**tiny_components())
    for components, seed in ((parts, 1), (other, 2)):
        torch.manual_seed(seed)
        vocabulary = FocusContext.of(components).vocabulary
        initialize_code_rows(components.language_model, components.visual_tokenizer, vocabulary)
    assert torch.equal(*(c.language_model.get_input_embeddings().weight for c in (parts, other)))


@pytest.fixture(scope="module")
def anchored() -> SimpleNamespace:
    torch.manual_seed(0)
    encoder, decoder = build_component("vision_encoder"), build_component("mask_decoder")
    initialize_anchors(encoder, decoder)
    return SimpleNamespace(encoder=encoder, decoder=decoder)


def cell_shares(weights: torch.Tensor, side: int) -> torch.Tensor:
    """Sums of attention [K, h, w] over each cell of a grid: [K, side * side]."""
    height, width = (length // side for length in weights.shape[-2:])
    return weights.unflatten(1, (side, height)).unflatten(3, (side, width)).sum((2, 4)).flatten(1)


@torch.no_grad()
def test_every_query_begins_by_looking_at_its_own_cell(anchored):
    """A square number of queries: the cells are a grid in reading order."""
    seen = []
    adapter = anchored.encoder.query_adapter
    hooks = [layer.register_forward_pre_hook(lambda m, i: seen.append((m, i))) for layer in adapter.layers]
    maps = anchored.encoder._pyramid_features(torch.randn(2, 3, 128, 128))
    anchored.encoder.query_tokens(maps)
    for hook in hooks:
        hook.remove()
    side = 4
    assert len(adapter.queries.weight) == side * side
    layer, (h, media, position) = seen[0]  # the finest level, before anything is read
    # Attention as the layer computes it, over the places of the picture.
    query = layer.to_q(layer.norm_latents(h)).unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)
    key = layer.to_kv(layer.norm_media(media)).chunk(2, dim=-1)[0]
    key = key.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) + position
    weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1).mean((0, 1))
    shares = cell_shares(weights.unflatten(1, (16, 16)), side)
    assert shares.argmax(1).tolist() == list(range(side * side))
    assert shares.diagonal().mean() > 0.3  # of 1/16 each, were they all alike
    assert all(layer.gamma == 1 and layer.beta == 1 for layer in adapter.layers)


@torch.no_grad()
def test_every_mask_slot_begins_at_its_own_cell_and_is_drawn_to_it(anchored):
    decoder = anchored.decoder
    positions = sine_positions(16, 16, decoder.config.hidden_dim, "cpu")
    nearest = (decoder.query_embed.weight @ positions.T).argmax(1)
    assert nearest.tolist() == [16 * y + x for y in range(1, 16, 4) for x in range(1, 16, 4)]
    for layer in decoder.layers:
        attention = layer.cross_attention
        query = attention.q_proj(decoder.query_embed.weight).unflatten(-1, (attention.num_heads, -1)).transpose(0, 1)
        key = attention.k_proj(positions).unflatten(-1, (attention.num_heads, -1)).transpose(0, 1)
        logits = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).sum(0)
        shares = cell_shares(logits.softmax(-1).unflatten(1, (16, 16)), 4)
        assert shares.diagonal().min() > 1 / 16 and shares.diagonal().mean() > 1.4 / 16
    assert decoder.pixel_decoder.position_projection.weight.any()


@torch.no_grad()
def test_calibrated_places_are_the_anchors(anchored):
    recipe = StageRecipe("0-encoders", "perception", (), steps=2, batch_size=4, options={"size": 128})
    sizes = {"low_size": (112, 112), "high_size": (128, 128)}
    objective = PerceptionObjective(anchored.encoder, anchored.decoder, recipe, **sizes)
    centres = torch.tensor([[(i % 4 + 0.5) / 4, (i // 4 + 0.5) / 4] for i in range(16)])

    def error() -> float:
        batch = objective.batch(1)  # not the pictures it is calibrated on
        maps = anchored.encoder._pyramid_features(batch.scenes.pixel_values)
        places = objective.heads["query_geometry"](anchored.encoder.query_tokens(maps))
        return (places[..., :2] - centres).abs().mean().item()

    before = error()
    objective.calibrate_places()
    assert error() < 0.06 < 0.2 < before  # a cell is 0.25 wide


def test_other_numbers_of_queries_and_slots_have_a_cell_too():
    """tiny: 3 queries and 4 slots, on grids of 2 x 2."""
    parts = SimpleNamespace(**tiny_components())
    initialize_anchors(parts.vision_encoder, parts.mask_decoder)
    with torch.no_grad():
        tokens = parts.vision_encoder.query_tokens(
            parts.vision_encoder._pyramid_features(torch.randn(1, 3, SIZE, SIZE))
        )
    assert tokens.shape == (1, 3, 32) and torch.isfinite(tokens).all()
    assert torch.pdist(parts.mask_decoder.query_embed.weight.detach()).min() > 0.1


def test_copy_heads_look_at_their_distance_and_nowhere_else():
    config = Qwen2Config(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        vocab_size=40,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).eval()
    model.set_attn_implementation("eager")
    initialize_copy_heads(model, layer=1, group=1, offsets=(1, -3))
    # A source at positions 0 to 29, then the same positions once more: what is written in place.
    ids = torch.randint(0, 40, (1, 60), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(30).repeat(2)[None]
    with torch.no_grad():
        attention = model(ids, position_ids=positions, output_attentions=True).attentions[1][0]
    written = torch.arange(40, 55)
    ahead = attention[2][written, written - 30 + 1]
    behind = attention[3][written, written - 30 - 3] + attention[3][written, written - 3]
    assert ahead.min() > 0.9 and behind.min() > 0.9
    assert attention[0][written, written - 30 + 1].max() < 0.5  # heads of the other group are as they were


def test_copy_heads_need_an_offset_for_each_head():
    model = Qwen2ForCausalLM(
        Qwen2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, vocab_size=8)
    )
    with pytest.raises(ValueError, match="2 query heads, got 1 offsets"):
        initialize_copy_heads(model, layer=0, group=0, offsets=(1,))
