"""The mask decoder's own promises; that it computes what Mask2Former does is in tests/checkpoints/test_live_references.py."""

from __future__ import annotations

import pytest
import torch
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoder,
    Mask2FormerTransformerModule,
)

from diffusers_focus.models.mask_decoder import FocusMaskDecoder, FocusPixelFeatures, _shrink

CHANNELS = (8, 16, 32, 64)
WIDTH, MASK_WIDTH, HEADS, SLOTS, LANGUAGE = 32, 24, 4, 5, 12


def make_decoder(seed: int = 0, **overrides) -> FocusMaskDecoder:
    torch.manual_seed(seed)
    config = {
        "in_channels": CHANNELS,
        "language_hidden_size": LANGUAGE,
        "hidden_dim": WIDTH,
        "mask_dim": MASK_WIDTH,
        "num_heads": HEADS,
        "encoder_layers": 1,
        "decoder_layers": 4,
        "encoder_ffn_dim": 40,
        "decoder_ffn_dim": 48,
        "num_slots": SLOTS,
        "instance_dim": 10,
        "norm_groups": 8,
    }
    return FocusMaskDecoder(**{**config, **overrides}).eval()


def make_features(batch: int = 2, height: int = 64, width: int = 96, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, channels, height // stride, width // stride, generator=generator)
        for channels, stride in zip(CHANNELS, (4, 8, 16, 32))
    ]


def make_states(batch: int = 2, prompts: int = 3, conditions: int = 2, slots: int = SLOTS, seed: int = 2):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, prompts, slots, LANGUAGE, generator=generator),
        torch.randn(batch, prompts, conditions, LANGUAGE, generator=generator),
    )


@torch.no_grad()
def test_shapes():
    output = make_decoder()(make_features(), *make_states(), return_auxiliary=True)
    assert output.mask_logits.shape == output.edit_logits.shape == (2, 3, SLOTS, 16, 24)
    assert output.condition_logits.shape == (2, 3, SLOTS, 2)
    assert output.quality_logits.shape == (2, 3, SLOTS)
    assert output.instance_embeds.shape == (2, 3, SLOTS, 10)
    assert len(output.auxiliary) == len(output.auxiliary_embeds) == 4
    for mask, edit, condition in output.auxiliary:
        assert mask.shape == edit.shape == output.mask_logits.shape and condition.shape == (2, 3, SLOTS, 2)
    assert make_decoder().slot_embeddings().shape == (SLOTS, LANGUAGE)


@torch.no_grad()
def test_embeddings_give_the_masks():
    model, features, states = make_decoder(), make_features(), make_states()
    output = model(features, *states, return_auxiliary=True)
    product = torch.einsum("bgnc,bchw->bgnhw", output.edit_embeds, output.mask_features)
    torch.testing.assert_close(product, output.edit_logits, rtol=1e-5, atol=1e-5)
    product = torch.einsum("bgnc,bchw->bgnhw", output.auxiliary_embeds[1][0], output.mask_features)
    torch.testing.assert_close(product, output.auxiliary[1][0], rtol=1e-5, atol=1e-5)
    sparse = model(features, *states, return_auxiliary=True, dense=False)
    assert sparse.mask_logits is None and sparse.auxiliary[0][0] is None
    torch.testing.assert_close(sparse.mask_embeds, output.mask_embeds)


@torch.no_grad()
def test_places_in_the_mask_features_begin_at_nothing_and_tell_equal_contents_apart():
    model = make_decoder()
    places = model.pixel_decoder.position_projection
    assert places.bias is None and not places.weight.any()
    plain = model.encode(make_features())
    places.weight.normal_(std=0.2)
    placed = model.encode(make_features())
    assert all(torch.equal(*levels) for levels in zip(plain.multi_scale, placed.multi_scale))
    added = (placed.mask_features - plain.mask_features).flatten(2)
    # A place adds the same whatever is seen there, and every place something of its own.
    torch.testing.assert_close(added[0], added[1], rtol=1e-4, atol=1e-5)
    assert torch.pdist(added[0].T).min() > 0.01


@torch.no_grad()
def test_prompts_do_not_influence_each_other():
    model, features = make_decoder(), make_features()
    slots, conditions = make_states()
    encoded = model.encode(features)
    together = model.decode(encoded, slots, conditions)
    for g in range(slots.shape[1]):
        alone = model.decode(encoded, slots[:, g : g + 1], conditions[:, g : g + 1])
        for name in ("mask_logits", "edit_logits", "condition_logits", "quality_logits", "instance_embeds"):
            torch.testing.assert_close(together[name][:, g : g + 1], alone[name], rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_encoding_is_reused_and_selected():
    model, features = make_decoder(), make_features()
    slots, conditions = make_states()
    full = model(features, slots, conditions)
    encoded = model.encode(features)
    again = model(None, slots, conditions, pixel_features=encoded)
    torch.testing.assert_close(again.mask_logits, full.mask_logits)
    for index, rows in ((1, [1]), ([1, 0, 1], [1, 0, 1]), (slice(0, 1), [0]), (torch.tensor([False, True]), [1])):
        picked = encoded.select(index)
        assert isinstance(picked, FocusPixelFeatures) and picked.multi_scale[2].shape[0] == len(rows)
        output = model.decode(picked, slots[rows], conditions[rows])
        torch.testing.assert_close(output.mask_logits, full.mask_logits[rows], rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_slots_without_foreground_attend_everywhere():
    model = make_decoder()
    for parameter in model.mask_head.parameters():
        parameter.zero_()
    model.mask_head[-1].bias.fill_(1.0)
    encoded = model.encode(make_features())
    nothing = FocusPixelFeatures(
        mask_features=torch.full_like(encoded.mask_features, -1.0), multi_scale=encoded.multi_scale
    )
    everything = FocusPixelFeatures(
        mask_features=torch.full_like(encoded.mask_features, 1.0), multi_scale=encoded.multi_scale
    )
    empty, full = model.decode(nothing, *make_states()), model.decode(everything, *make_states())
    assert (empty.mask_logits < 0).all() and torch.isfinite(empty.instance_embeds).all()
    torch.testing.assert_close(empty.instance_embeds, full.instance_embeds)


@torch.no_grad()
def test_attention_follows_the_mask():
    """A change of the image outside a slot's mask does not reach the slot; inside, it does."""
    model = make_decoder(decoder_layers=1)
    for parameter in model.mask_head.parameters():
        parameter.zero_()
    model.mask_head[-1].bias.fill_(1.0)
    coarse = torch.randn(1, WIDTH, 2, 4)
    others = (torch.zeros(1, WIDTH, 4, 8), torch.zeros(1, WIDTH, 8, 16))
    left = torch.full((1, MASK_WIDTH, 16, 32), -1.0)
    left[..., :16] = 1.0
    states = make_states(batch=1, prompts=1)
    before = model.decode(FocusPixelFeatures(mask_features=left, multi_scale=(coarse, *others)), *states)
    for column, same in ((3, True), (0, False)):
        changed = coarse.clone()
        changed[..., column] += 1.0
        after = model.decode(FocusPixelFeatures(mask_features=left, multi_scale=(changed, *others)), *states)
        assert torch.equal(after.instance_embeds, before.instance_embeds) is same


@torch.no_grad()
def test_one_slot_and_padded_conditions():
    model = make_decoder(num_slots=1)
    slots, conditions = make_states(conditions=3, slots=1)
    mask = torch.ones(2, 3, 3, dtype=torch.bool)
    mask[0, 1, 2] = mask[1, 0, 1] = False
    features = make_features()
    output = model(features, slots, conditions, condition_mask=mask)
    plain = model(features, slots, conditions)
    valid = mask[:, :, None]
    torch.testing.assert_close(output.condition_logits[valid], plain.condition_logits[valid])
    assert (output.condition_logits[~valid].sigmoid() == 0).all()
    assert torch.isfinite(output.condition_logits).all()
    torch.testing.assert_close(output.mask_logits, plain.mask_logits)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype):
    model, features, states = make_decoder(), make_features(), make_states()
    expected = model(features, *states)
    halved = model.to(dtype)(features, *states)
    assert halved.mask_logits.dtype == dtype and torch.isfinite(halved.mask_logits).all()
    difference = (halved.mask_logits.float() - expected.mask_logits).abs().mean()
    assert difference < 0.1 * expected.mask_logits.abs().mean()


def test_autocast_gradients_reach_everything():
    model, features, states = make_decoder().train(), make_features(), make_states()
    inputs = [x.requires_grad_() for x in (*features, *states)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(inputs[:4], *inputs[4:], return_auxiliary=True)
        assert output.mask_logits.dtype == torch.bfloat16
        everything = [*output.auxiliary, (output.mask_logits, output.edit_logits, output.condition_logits)]
        loss = sum(x.float().square().mean() for prediction in everything for x in prediction)
        loss = loss + output.quality_logits.float().mean() + output.instance_embeds.float().square().mean()
    loss.backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in inputs)
    # Only the slots themselves have no part here: they enter through the language model.
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == ["slots.weight"]


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        model = make_decoder().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        output = model(make_features(), *make_states(), return_auxiliary=True)
        (output.mask_logits.square().mean() + output.auxiliary[0][1].square().mean()).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, checkpointed in zip(*gradients):
        torch.testing.assert_close(plain, checkpointed)


@torch.no_grad()
@pytest.mark.parametrize("size", [(4, 6), (2, 3), (16, 24), (3, 5)])  # by 2, by 4, to the same, to an uneven size
def test_coarse_masks_are_bilinear(size):
    x = torch.randn(1, 3, 8, 12) if size != (16, 24) else torch.randn(1, 3, 16, 24)
    expected = torch.nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(_shrink(x, *size), expected)


def count(*modules: torch.nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_published_size():
    channels = (192, 384, 768, 1536)
    with torch.device("meta"):
        model = FocusMaskDecoder()
        features = [torch.empty(1, c, 768 // s, 768 // s) for c, s in zip(channels, (4, 8, 16, 32))]
        output = model(features, torch.empty(1, 2, 100, 2048), torch.empty(1, 2, 7, 2048))
        config = Mask2FormerConfig()
        pixel_decoder, module = Mask2FormerPixelDecoder(config, channels), Mask2FormerTransformerModule(256, config)
    assert output.mask_logits.shape == (1, 2, 100, 192, 192) and output.condition_logits.shape == (1, 2, 100, 7)
    assert count(pixel_decoder) == 5_790_144
    assert count(model.pixel_decoder) == count(pixel_decoder) + 256 * 256  # and the places of pixels
    shared = (model.layers, model.norm, model.mask_head, model.query_embed, model.level_embed)
    assert count(*shared) == count(module) - count(module.queries_features) == 14_433_024


@torch.no_grad()
def test_save_and_load(tmp_path):
    model, features, states = make_decoder(), make_features(), make_states()
    model.save_pretrained(tmp_path)
    loaded = FocusMaskDecoder.from_pretrained(tmp_path)
    assert torch.equal(loaded(features, *states).mask_logits, model(features, *states).mask_logits)
    assert torch.equal(loaded.slot_embeddings(), model.slot_embeddings())


@torch.no_grad()
def test_sequential_offload():
    from accelerate import cpu_offload

    model, features, states = make_decoder(), make_features(), make_states()
    expected, slots = model(features, *states), model.slot_embeddings().clone()
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.slots.weight.device.type == "meta"
    assert torch.equal(model.slot_embeddings(), slots)
    torch.testing.assert_close(model(features, *states).mask_logits, expected.mask_logits)


@torch.no_grad()
def test_group_offload():
    model, features, states = make_decoder(), make_features(), make_states()
    expected = model(features, *states)
    cpu = torch.device("cpu")
    model.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    torch.testing.assert_close(model(features, *states).mask_logits, expected.mask_logits)


@torch.no_grad()
def test_layerwise_casting():
    model, features, states = make_decoder(), make_features(), make_states()
    expected = model(features, *states).mask_logits
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert model.mask_head[0].weight.dtype == torch.float8_e4m3fn
    assert model.slots.weight.dtype == model.query_embed.weight.dtype == torch.float32
    stored = model(features, *states).mask_logits
    assert (stored - expected).abs().mean() < 0.2 * expected.abs().mean()


@torch.no_grad()
def test_an_answer_is_part_of_every_condition_of_its_prompt():
    """It begins without effect, and the masks themselves never depend on it."""
    model, features, (slots, conditions) = make_decoder(answer_condition=True), make_features(), make_states()
    answers = torch.randn(2, 3, LANGUAGE, generator=torch.Generator().manual_seed(5))
    plain = make_decoder()(features, slots, conditions)
    model.load_state_dict(make_decoder().state_dict(), strict=False)
    begun = model(features, slots, conditions, answer_states=answers)
    torch.testing.assert_close(begun.condition_logits, plain.condition_logits)
    model.answer_projection.weight.copy_(torch.eye(LANGUAGE))
    output = model(features, slots, conditions, answer_states=answers)
    told = make_decoder()(features, slots, conditions + answers[:, :, None])
    torch.testing.assert_close(output.condition_logits, told.condition_logits)
    torch.testing.assert_close(output.mask_logits, plain.mask_logits)
    for wrong in (None, answers[:, :2]):
        with pytest.raises(ValueError, match="answer_condition"):
            model(features, slots, conditions, answer_states=wrong)


def test_wrong_inputs_say_what_to_do():
    model = make_decoder()
    slots, conditions = make_states()
    encoded = model.encode(make_features())
    with pytest.raises(ValueError, match=r"feature_maps have \[64, 32, 16, 8\]"):
        model.encode(make_features()[::-1])
    with pytest.raises(ValueError, match="pixel_features.select"):
        model.decode(encoded, slots[:1], conditions[:1])
    with pytest.raises(ValueError, match="slot_states has shape"):
        model.decode(encoded, slots[:, :, :2], conditions)
    with pytest.raises(ValueError, match="condition_states has shape"):
        model.decode(encoded, slots, conditions[:, :1])
    with pytest.raises(ValueError, match="width 6"):
        model.decode(encoded, slots, conditions[..., :6])
    with pytest.raises(ValueError, match="condition_mask is torch.int64"):
        model.decode(encoded, slots, conditions, condition_mask=torch.ones(2, 3, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="Neither feature_maps nor pixel_features"):
        model(None, slots, conditions)
    with pytest.raises(ValueError, match="hidden_dim is 30"):
        make_decoder(hidden_dim=30)
    with pytest.raises(ValueError, match="in_channels has 3"):
        make_decoder(in_channels=(8, 16, 32))
