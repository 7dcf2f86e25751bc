"""Pictures that steer the decoder through IP-Adapters, as far as the stock UNet carries them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffusers_focus import FocusPipeline

from tests.guides import controlnet_for, image_encoder_for, ip_adapter_for
from tests.tiny import SIZE, disk_mask, picture, seeded, shared_pipeline, tiny_pipeline

STEPS = {"num_inference_steps": 2, "output_type": "np"}


def edit(pipe, **options):
    given = {"mask_image": disk_mask(), "generator": seeded(), **STEPS, **options}
    return pipe.edit(picture(), "make it blue", **given).images


@pytest.fixture(scope="module")
def plain():
    return edit(shared_pipeline())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An adapter as such repositories have it: one file, and the encoder beside it."""
    folder = tmp_path_factory.mktemp("adapter")
    weights = ip_adapter_for(shared_pipeline().unet)
    flat = {f"{part}.{name}": value for part, values in weights.items() for name, value in values.items()}
    (folder / "sdxl_models").mkdir()
    save_file(flat, folder / "sdxl_models" / "ip-adapter.safetensors")
    image_encoder_for().save_pretrained(folder / "sdxl_models" / "image_encoder")
    return folder


@pytest.fixture(scope="module")
def pipe(folder):
    pipe = tiny_pipeline()
    pipe.load_ip_adapter(str(folder), subfolder="sdxl_models", weight_name="ip-adapter.safetensors")
    return pipe


def test_an_adapter_steers_the_edit_and_one_of_no_weight_changes_nothing(pipe, plain):
    steered = edit(pipe, ip_adapter_image=picture(1))
    assert np.abs(steered - plain).max() > 1e-3
    assert np.array_equal(steered, edit(pipe, ip_adapter_image=picture(1)))
    assert not np.array_equal(steered, edit(pipe, ip_adapter_image=picture(2, 30, 90)))
    outside = ~np.pad(disk_mask(), 8)[4:-12, 4:-12] & ~disk_mask()
    far = np.abs(steered[0] - np.asarray(picture()) / 255).max(-1)[outside]
    assert np.median(far) == 0 or (far < 1e-6).mean() > 0.8  # the edit stays in its mask
    pipe.set_ip_adapter_scale(0.0)
    try:
        assert np.array_equal(edit(pipe, ip_adapter_image=picture(1)), plain)
    finally:
        pipe.set_ip_adapter_scale(1.0)
    assert np.array_equal(edit(pipe, ip_adapter_image=picture(1)), steered)


def test_pictures_may_be_several_or_embeddings_and_reach_every_branch(pipe, plain):
    steered = edit(pipe, ip_adapter_image=picture(1))
    embeds, nothing = pipe._encode_prompt_image(picture(1), False, torch.device("cpu"))
    assert embeds.shape == (1, 1, 24) and not nothing.any()
    np.testing.assert_allclose(edit(pipe, ip_adapter_image_embeds=[torch.cat([nothing, embeds])]), steered, atol=1e-6)
    free = {"guidance_scale": 1.0}
    unguided = edit(pipe, ip_adapter_image=picture(1), **free)
    np.testing.assert_allclose(edit(pipe, ip_adapter_image_embeds=[embeds], **free), unguided, atol=1e-6)
    two = edit(pipe, ip_adapter_image=[[picture(1), picture(2)]])
    assert not np.array_equal(two, steered)
    masked = edit(pipe, ip_adapter_image=picture(1), mask_guidance_scale=2.0, num_images_per_prompt=2)
    assert masked.shape == (2, SIZE, SIZE, 3) and np.isfinite(masked).all()
    drawn = pipe.generate(["a star", "a ring"], ip_adapter_image=picture(1), generator=seeded(), **STEPS).images
    assert drawn.shape == (2, SIZE, SIZE, 3)


@pytest.mark.slow
def test_several_adapters_beside_a_controlnet(plain):
    pipe = tiny_pipeline(image_encoder=image_encoder_for())
    pipe.controlnet = controlnet_for(pipe.unet)
    pair = [ip_adapter_for(pipe.unet, seed=seed) for seed in (0, 1)]
    pipe.load_ip_adapter(pair, subfolder="", weight_name=["a", "b"])
    given = {"ip_adapter_image": [picture(1), picture(2)], "control_image": picture(2)}
    both = edit(pipe, **given)
    pipe.set_ip_adapter_scale([1.0, 0.0])
    assert not np.array_equal(both, edit(pipe, **given))
    pipe.set_ip_adapter_scale([0.0, 0.0])
    given["controlnet_conditioning_scale"] = 0.0
    assert np.array_equal(edit(pipe, **given), plain)
    with pytest.raises(ValueError, match="1 entries for 2 IP-Adapters"):
        edit(pipe, ip_adapter_image=picture(1))


def test_unloaded_it_is_the_pipeline_of_before_and_saved_it_keeps_the_encoder(plain, folder, tmp_path):
    pipe = tiny_pipeline()
    pipe.load_ip_adapter(str(folder), subfolder="sdxl_models", weight_name="ip-adapter.safetensors")
    steered = edit(pipe, ip_adapter_image=picture(1))
    pipe.unload_ip_adapter()
    assert pipe.image_encoder is None and np.array_equal(edit(pipe), plain)
    pipe.image_encoder = image_encoder_for()
    pipe.save_pretrained(tmp_path)
    back = FocusPipeline.from_pretrained(tmp_path)
    back.set_progress_bar_config(disable=True)
    back.load_ip_adapter(str(folder), subfolder="sdxl_models", weight_name="ip-adapter.safetensors")
    np.testing.assert_allclose(edit(back, ip_adapter_image=picture(1)), steered, atol=1e-5)


def test_mistakes_are_named_before_a_token_is_written(pipe):
    bare, written = shared_pipeline(), []
    watches = [one.language_model.lm_head.register_forward_hook(lambda *_: written.append(1)) for one in (pipe, bare)]
    embeds = torch.zeros(1, 1, 24)
    try:
        for given, options, kind, says in [
            (pipe, {}, ValueError, "there is no picture for it.*unload_ip_adapter"),
            (bare, {"ip_adapter_image": picture()}, ValueError, "none is loaded.*load_ip_adapter"),
            (pipe, {"ip_adapter_image": [picture(), picture()]}, ValueError, "2 entries for 1 IP-Adapters"),
            (pipe, {"ip_adapter_image": 3}, TypeError, "image must be"),
            (pipe, {"ip_adapter_image": picture(), "ip_adapter_image_embeds": [embeds]}, ValueError, "Pass one of them"),
            (pipe, {"ip_adapter_image_embeds": embeds}, TypeError, "list of tensors"),
            (pipe, {"ip_adapter_image_embeds": [embeds]}, ValueError, r"\[1, 1, 24\]; with guidance .*\[2, pictures, D\]"),
        ]:  # fmt: skip
            with pytest.raises(kind, match=says):
                edit(given, **options)
    finally:
        for watch in watches:
            watch.remove()
    assert not written
    pipe.image_encoder, kept = None, pipe.image_encoder
    try:
        with pytest.raises(ValueError, match="no image_encoder"):
            edit(pipe, ip_adapter_image=picture())
    finally:
        pipe.image_encoder = kept
