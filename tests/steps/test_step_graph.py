"""Steps that are played back write what steps that are run write. What needs CUDA runs where there is a GPU, and only there."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from diffusers_focus.processing.grammar import TokenSampling, VisualTokenGrammar
from diffusers_focus.processing.prompts import GENERATE, GENERATE_RANDOM
from diffusers_focus.steps import step_graph
from diffusers_focus.steps.sequence import FocusContext, batch_rows, encode_prefix, feed, run_suffixes, suffix_row
from diffusers_focus.steps.step_graph import StepRecorder, recorder_for
from diffusers_focus.steps.visual_tokens import write_codes

from tests.tiny import SIZE, WIDTH, seeded, shared_pipeline

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def parts_on(device: str) -> SimpleNamespace:
    parts = SimpleNamespace(**shared_pipeline().components)
    parts.language_model = copy.deepcopy(parts.language_model).to(device)
    return parts


def begun(parts: SimpleNamespace, room: int):
    """A cache after two prompts of different length, and the place of the next position of each."""
    context = FocusContext.of(parts)
    rows = [
        suffix_row(context, context.style.suffix(GENERATE, text=text, num_images=0, height_width=(SIZE, SIZE)))
        for text in ("the red circle", "a blue star and the red circle")
    ]
    prefix = encode_prefix(parts, context, None, task=GENERATE)
    batch = batch_rows(parts, rows)
    _, cache, mask = run_suffixes(parts, prefix, torch.tensor([0, 0]), batch, room=room)
    return cache, mask.sum(1, keepdim=True)


@torch.no_grad()
def test_a_step_that_looks_at_all_of_the_room_reads_one_tensor_of_slots():
    """Recorded operations know addresses, not values; the values are those of the step."""
    parts = parts_on("cpu")
    embeds = torch.randn(2, 5, WIDTH, generator=seeded())
    cache, at = begun(parts, 5)
    expected = torch.cat([feed(parts, embeds[:, i : i + 1], cache, None, at + i) for i in range(5)], dim=1)
    cache, at = begun(parts, 5)
    found, addresses = [], set()
    for i in range(5):
        seen = cache.take(1, whole=True)
        out = parts.language_model.model(
            inputs_embeds=embeds[:, i : i + 1],
            attention_mask={"full_attention": seen},
            position_ids=at + i,
            past_key_values=cache,
        )
        found.append(out.last_hidden_state)
        addresses |= {(layer.slots.data_ptr(), layer.keys.data_ptr()) for layer in cache.states}
    torch.testing.assert_close(torch.cat(found, dim=1), expected)
    assert len(addresses) == len(cache.states)


@torch.no_grad()
def test_nothing_is_recorded_off_the_gpu():
    assert recorder_for(parts_on("cpu").language_model.model, 1000) is None


@on_gpu
@torch.no_grad()
def test_played_back_states_are_those_of_steps_that_run():
    """One and two positions, rows with nothing to say, and a longer run in between."""
    parts = parts_on("cuda")
    runs = (1, 1, 1, 2, 2, 4, 2, 1)
    embeds = torch.randn(2, sum(runs), WIDTH, generator=seeded()).cuda()
    new = (torch.rand(2, sum(runs), generator=seeded(1)) > 0.3).cuda()
    kept = {}
    for recorder in (None, recorder_for(parts.language_model.model, 1000)):
        cache, at = begun(parts, sum(runs))
        states, first = [], 0
        for length in runs:
            run = slice(first, first + length)
            places = at + new.cumsum(1)[:, run] - 1
            states.append(feed(parts, embeds[:, run], cache, new[:, run], places, recorder).clone())
            first += length
        kept[recorder is None] = torch.cat(states, dim=1)
    assert isinstance(recorder, StepRecorder)
    assert len(recorder._recorded) == 2
    torch.testing.assert_close(kept[False][new], kept[True][new], rtol=1e-4, atol=1e-4)


@on_gpu
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@torch.no_grad()
def test_images_are_the_same_with_and_without_recording(guidance, monkeypatch):
    parts = parts_on("cuda")
    context = FocusContext.of(parts)
    grammar = VisualTokenGrammar(context.vocabulary, (4, 4), (6, 6))
    sampling = TokenSampling(top_k=9)

    def write(text: str) -> torch.Tensor:
        rows = [
            suffix_row(context, context.style.suffix(task, text=words, num_images=0, height_width=(SIZE, SIZE)))
            for task, words in ((GENERATE, text), (GENERATE_RANDOM, None))
        ]
        return write_codes(
            parts, encode_prefix(parts, context, None, task=GENERATE), rows[:1], [0], grammar, unconditional=rows[1:],
            guidance_scale=guidance, semantic=sampling, pixel=sampling, generator=seeded(3),
        )  # fmt: skip

    texts = ("the red circle", "a blue star and the red circle")
    assert recorder_for(parts.language_model.model, grammar.length) is not None
    played = [write(text) for text in texts]
    monkeypatch.setattr(step_graph, "WORTH", 10**6)
    assert all(torch.equal(one, write(text)) for one, text in zip(played, texts))
    assert not torch.equal(*played)


@on_gpu
@torch.no_grad()
def test_who_watches_a_model_sees_it_run():
    model = parts_on("cuda").language_model.model
    assert recorder_for(model, 1000) is not None
    assert recorder_for(model, step_graph.WORTH - 1) is None
    with torch.enable_grad():
        assert recorder_for(model, 1000) is None
    with torch.autocast("cuda", torch.bfloat16):
        assert recorder_for(model, 1000) is None
    handle = model.layers[0].mlp.register_forward_hook(lambda *_: None)
    assert recorder_for(model, 1000) is None
    handle.remove()
    model.layers[0].mlp.cpu()
    assert recorder_for(model, 1000) is None
