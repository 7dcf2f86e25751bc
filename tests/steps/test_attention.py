"""Attention where every call has another length: no kernel that plans for each."""

from __future__ import annotations

import torch

from diffusers_focus.steps.attention import unplanned_attention

CUDA = torch.backends.cuda


def allowed() -> tuple[bool, ...]:
    return CUDA.cudnn_sdp_enabled(), CUDA.flash_sdp_enabled(), CUDA.mem_efficient_sdp_enabled(), CUDA.math_sdp_enabled()


def test_a_gpu_computes_without_cudnn_and_keeps_its_settings():
    before = allowed()
    with unplanned_attention(torch.device("cuda")):
        assert allowed() == (False, True, True, True)
    assert allowed() == before


def test_a_processor_keeps_what_it_was_told():
    CUDA.enable_flash_sdp(False)
    try:
        with unplanned_attention(torch.device("cpu")):
            assert not CUDA.flash_sdp_enabled()
    finally:
        CUDA.enable_flash_sdp(True)
