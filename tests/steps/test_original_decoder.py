"""The diffusion decoder against the recorded original: condition map, UNet input, latents of every step, decoded image."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import load_file

from diffusers_focus.checkpoints.dualvitok import from_original_key
from diffusers_focus.models.visual_tokenizer import FocusVisualTokenizer
from diffusers_focus.steps import denoise

from tests.goldens.weights import state_dict, weight


@pytest.fixture(scope="module")
def original(goldens):
    facts = json.loads((goldens / "decoder_a.json").read_text())
    tokenizer_facts = json.loads((goldens / "dualvitok_a.json").read_text())
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
    tokenizer.load_state_dict(
        {from_original_key(k): torch.from_numpy(v) for k, v in state_dict(goldens / "dualvitok_a.json").items()}
    )
    parts = {}
    for name, cls in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        parts[name] = cls(**facts[f"{name}_config"]).eval()
        keys = facts["keys"][name]
        parts[name].load_state_dict({k: torch.from_numpy(weight(facts["seed"], k, shape)) for k, shape in keys.items()})
    components = SimpleNamespace(
        visual_tokenizer=tokenizer,
        mask_conditioner=None,
        scheduler=EulerDiscreteScheduler(**facts["scheduler_config"]),
        **parts,
    )
    return components, facts, load_file(goldens / "decoder_a.safetensors")


@pytest.mark.parametrize("name", ["sq.g1", "sq.g2", "sq4.g1_5", "batch2.g2", "ratio.g2"])
@torch.no_grad()
def test_latents_are_the_originals(original, name):
    components, facts, golden = original
    case = facts["cases"][name]
    groups = [list(map(int, size.strip("()").split(","))) for size in facts["resolution_group_width_height"]]
    semantic = golden[f"{case['indices']}.semantic_indices"]
    pixel = golden[f"{case['indices']}.pixel_indices"]
    if case["batch"] == 2:
        semantic, pixel = torch.cat([semantic, semantic.flip(-1)]), torch.cat([pixel, pixel.flip(-1)])
    tokens = denoise.token_map(components, semantic, pixel)
    torch.testing.assert_close(tokens[:1], golden[f"{case['indices']}.condition_map"], atol=1e-5, rtol=0)
    denoiser = denoise.Denoiser(
        components.unet,
        components.scheduler,
        denoise.resolution_index(groups, case["height"], case["width"]),
        guidance_scale=case["guidance"],
    )
    assert denoiser.size_index == case["time_ids"][0][-1]
    schedule = denoise.prepare_timesteps(components.scheduler, case["steps"], "cpu")
    assert schedule.tolist() == case["timesteps"]
    embeds = denoise.mask_sequence(components, None, tokens)
    assert embeds.shape == (case["batch"], 77, 2048) and not embeds.any()
    latents = golden[case["noise"]] * components.scheduler.init_noise_sigma
    for step, t in enumerate(schedule):
        predicted = denoiser.predict(latents, t, tokens, embeds, embeds)
        latents = components.scheduler.step(predicted, t, latents, return_dict=False)[0]
        if f"{name}.latents_{step}" in golden:
            torch.testing.assert_close(latents, golden[f"{name}.latents_{step}"], atol=1e-4, rtol=0)
    if f"{name}.decoded_stride2" in golden:
        decoded = denoise.decode_latents(components.vae, latents)[..., ::2, ::2]
        torch.testing.assert_close(decoded, golden[f"{name}.decoded_stride2"], atol=5e-5, rtol=0)
