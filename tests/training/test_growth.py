"""Components that grow: the same outputs, more to train."""

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from diffusers_focus.models.mask_conditioner import FocusMaskConditioner
from diffusers_focus.training.growth import grow_language_model, with_outlines


def small(**changes) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    numbers = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "vocab_size": 40,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
        "eos_token_id": 7,
        **changes,
    }
    return Qwen2ForCausalLM(Qwen2Config(**numbers)).eval()


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_hidden_layers": 5},
        {"intermediate_size": 56},
        {"num_hidden_layers": 7, "intermediate_size": 40},
    ],
)
def test_a_grown_model_says_the_same(sizes):
    model = small()
    grown = grow_language_model(model, **sizes)
    ids = torch.randint(0, 40, (2, 11), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(grown(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
    for name, size in sizes.items():
        assert getattr(grown.config, name) == size
    assert len(grown.model.layers) == grown.config.num_hidden_layers == len(grown.config.layer_types)
    assert grown.config.eos_token_id == 7 and grown.config.tie_word_embeddings
    assert grown.num_parameters() > model.num_parameters()


def test_everything_that_is_new_learns():
    grown = grow_language_model(small(), num_hidden_layers=5, intermediate_size=48)
    before = {name: value.clone() for name, value in grown.named_parameters()}
    optimizer = torch.optim.SGD(grown.parameters(), lr=0.5)
    for step in range(2):  # what is read with weight zero moves once its reader has
        ids = torch.randint(0, 40, (4, 12), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        grown(ids, labels=ids).loss.backward()
        optimizer.step()
    still = [name for name, value in grown.named_parameters() if torch.equal(value, before[name])]
    assert not still
    added = [layer.mlp.gate_proj.weight[24:] for layer in grown.model.layers]
    assert all(len(rows) == 24 and rows.std() > 0.05 for rows in added)


def test_the_seed_decides_what_is_drawn():
    first, second, other = (grow_language_model(small(), seed=seed, intermediate_size=48) for seed in (3, 3, 4))
    rows = [one.model.layers[0].mlp.up_proj.weight[24:] for one in (first, second, other)]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


def test_the_same_numbers_give_the_same_model_and_its_generator_is_left_alone():
    model = small()
    assert grow_language_model(model, num_hidden_layers=3) is model
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    grow_language_model(model.half(), num_hidden_layers=4)
    assert torch.equal(torch.rand(1), expected)


def test_the_dtype_stays():
    assert grow_language_model(small().half(), num_hidden_layers=4).dtype == torch.float16


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 64}, "cannot grow by 'hidden_size'"),
        ({"num_hidden_layers": 2}, "num_hidden_layers is 3 and would become 2"),
    ],
)
def test_what_cannot_grow_is_told(sizes, message):
    with pytest.raises(ValueError, match=message):
        grow_language_model(small(), **sizes)


def guiding(**changes) -> FocusMaskConditioner:
    torch.manual_seed(0)
    conditioner = FocusMaskConditioner(2, 8, 16, 8, guidance_dim=24, language_hidden_size=12, **changes)
    torch.nn.init.normal_(conditioner.cell_guidance.proj_out.weight)
    torch.nn.init.normal_(conditioner.proj_out.weight)
    return conditioner


def cells() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    objects, changes = torch.zeros(2, 1, 32, 32), torch.ones(2, 1, 32, 32)
    objects[0, 0, 4:12, 8:24], objects[1, 0, 20:28, 2:9] = 1, 1
    places = guiding().places(objects, changes, (4, 4))
    return torch.randn(*places.shape[:2], 12), places


def test_outlines_change_nothing_until_they_are_trained():
    before = guiding()
    after = with_outlines(before, 8)
    assert after.config.outline_dim == 8 and before.config.outline_dim is None
    states, places = cells()
    torch.testing.assert_close(after.guide(states, places), before.guide(states, places))
    mask, tokens = torch.rand(1, 1, 4, 4), torch.randn(1, 8, 2, 2)
    torch.testing.assert_close(after(mask, tokens).sequence, before(mask, tokens).sequence)
    assert before.outlines(states, places) is None and after.outlines(states, places).shape == (2, 16, 64)
    after.guide(states, places).sum().backward()
    assert after.cell_guidance.outline_in.weight.grad.abs().sum() > 0


def test_what_has_outlines_keeps_them():
    conditioner = guiding(outline_dim=8)
    assert with_outlines(conditioner, 9) is conditioner
    with pytest.raises(ValueError, match="without guidance_dim"):
        with_outlines(FocusMaskConditioner(2, 8, 16, 8), 8)
