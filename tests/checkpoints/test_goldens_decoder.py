"""Goldens of the family decoder: visual codes to latents and pictures, step by step, through the pipeline's own denoising."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from diffusers_focus.steps import denoise
from diffusers_focus.steps.settings import RESOLUTION_GROUP

from tests.checkpoints.goldens import Golden, decoder, resolution_group

CONDITION = {"atol": 1e-5, "rtol": 0}
LATENTS = {"atol": 1e-4, "rtol": 0}
PICTURES = {"atol": 5e-5, "rtol": 0}

cases = pytest.mark.golden("decoder", lambda golden: golden.facts["cases"])
pictures = pytest.mark.golden(
    "decoder", lambda golden: [case for case in golden.facts["cases"] if pictures_of(golden, case)]
)


def pictures_of(golden: Golden, case: str) -> list[str]:
    """What is recorded of a case's decoded image."""
    return [name for name in ("decoded_stride2", "image_uint8") if f"{case}.{name}" in golden.facts["tensors"]]


def condition_map(golden: Golden, case: str) -> torch.Tensor:
    """The UNet's condition, made from the case's own indices or those that it names, and compared with the recorded one."""
    name = case if f"{case}.semantic_indices" in golden.tensors else golden.facts["cases"][case]["indices"]
    indices = golden.tensors[f"{name}.semantic_indices"], golden.tensors[f"{name}.pixel_indices"]
    tokens = denoise.token_map(decoder(golden), *indices)
    torch.testing.assert_close(tokens, golden.tensors[f"{name}.condition_map"], **CONDITION)
    return tokens


@cache
@torch.no_grad()
def denoised(golden: Golden, case: str) -> dict[str, Any]:
    """A case run by the pipeline: `steps` (timestep, latents), `calls` of the UNet and the last `latents`."""
    pipe, facts = decoder(golden), golden.facts["cases"][case]
    noise = golden.tensors[facts["noise"]]
    steps: list[tuple[float, torch.Tensor]] = []
    calls: list[dict[str, torch.Tensor]] = []

    def collect(
        pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        steps.append((float(timestep), tensors["latents"].clone()))
        return {}

    def watch(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append(
            {"in": args[0], "out": output[0], "text": kwargs["encoder_hidden_states"], **kwargs["added_cond_kwargs"]}
        )

    pipe._guidance_scale = facts["guidance"]
    hook = pipe.unet.register_forward_hook(watch, with_kwargs=True)
    try:
        latents = pipe._denoise(
            condition_map(golden, case),
            None,
            None,
            size_index=denoise.resolution_index(resolution_group(golden), facts["height"], facts["width"]),
            grid=tuple(noise.shape[-2:]),
            steps=facts["steps"],
            timesteps=None,
            sigmas=None,
            strength=1.0,
            mask_guidance_scale=1.0,
            keep_source=True,
            noise=noise,
            eta=0.0,
            generator=None,
            callback=collect,
            tensor_inputs=["latents"],
        )
    finally:
        hook.remove()
    return {"steps": steps, "calls": calls, "latents": latents}


@cases
def test_denoising_follows_the_recording(golden: Golden, case: str) -> None:
    facts, run = golden.facts["cases"][case], denoised(golden, case)
    assert [timestep for timestep, _ in run["steps"]] == facts["timesteps"]
    recorded = [index for index in range(len(run["steps"])) if f"{case}.latents_{index}" in golden.tensors]
    assert len(run["steps"]) - 1 in recorded
    for index in recorded:
        torch.testing.assert_close(run["steps"][index][1], golden.tensors[f"{case}.latents_{index}"], **LATENTS)
    assert torch.equal(run["latents"], run["steps"][-1][1])
    assert len(run["latents"]) == facts["batch"]


@cases
def test_the_unet_reads_and_writes_what_was_recorded(golden: Golden, case: str) -> None:
    facts, calls = golden.facts["cases"][case], denoised(golden, case)["calls"]
    first = calls[0]
    assert list(first["in"].shape) == facts["unet_input"]
    assert list(first["text"].shape) == facts["encoder_hidden_states"] and not first["text"].any()
    assert list(first["text_embeds"].shape) == facts["text_embeds"] and not first["text_embeds"].any()
    assert first["time_ids"].tolist() == facts["time_ids"] == golden.tensors[f"{case}.time_ids"].tolist()
    if f"{case}.unet_in_0" in golden.tensors:
        expected = golden.tensors[f"{case}.unet_in_0"]
        torch.testing.assert_close(first["in"][-len(expected) :], expected, **CONDITION)
    for index, call in enumerate(calls):
        if f"{case}.unet_out_{index}" in golden.tensors:
            torch.testing.assert_close(call["out"], golden.tensors[f"{case}.unet_out_{index}"], **LATENTS)


@cases
def test_the_schedule_is_the_recorded_one(golden: Golden, case: str) -> None:
    facts, scheduler = golden.facts["cases"][case], decoder(golden).scheduler
    assert denoise.prepare_timesteps(scheduler, facts["steps"], "cpu").tolist() == facts["timesteps"]
    torch.testing.assert_close(scheduler.sigmas, torch.tensor(facts["sigmas"]), atol=1e-5, rtol=0)
    assert float(scheduler.init_noise_sigma) == pytest.approx(facts["init_noise_sigma"], abs=1e-5)


@pictures
@torch.no_grad()
def test_pictures_are_the_recorded_ones(golden: Golden, case: str) -> None:
    pipe, facts = decoder(golden), golden.facts["cases"][case]
    images = denoise.decode_latents(pipe.vae, denoised(golden, case)["latents"])
    assert tuple(images.shape[-2:]) == (facts["height"], facts["width"])
    for name in pictures_of(golden, case):
        recorded = golden.tensors[f"{case}.{name}"]
        if name == "decoded_stride2":
            torch.testing.assert_close(images[..., ::2, ::2], recorded, **PICTURES)
        else:
            ours = np.asarray(pipe.image_processor.postprocess(images)[0]).astype(int)
            assert np.abs(ours - recorded.numpy().astype(int)).max() <= 1


@cases
def test_the_size_index_is_the_recorded_one(golden: Golden, case: str) -> None:
    facts = golden.facts["cases"][case]
    assert resolution_group(golden) == list(RESOLUTION_GROUP)
    index = denoise.resolution_index(RESOLUTION_GROUP, facts["height"], facts["width"])
    assert {row[-1] for row in facts["time_ids"]} == {index}
