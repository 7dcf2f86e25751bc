"""Which of torch's attention kernels run where every call has another length.

A cache grows by a token at a time, and batches of prompts are as long as their longest. cuDNN's attention plans anew for each
length it has not seen: on an H200 that was a fifth of a step of training, and a visual token written in place, where lengths
differ, took three times one that is not (docs/design.md, "On a GPU", "Writing visual tokens"). torch's own kernels plan nothing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

UNPLANNED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def unplanned_attention(device: torch.device) -> AbstractContextManager:
    """Within it, attention on a CUDA device is computed without cuDNN; on other devices nothing changes."""
    return sdpa_kernel(UNPLANNED) if device.type == "cuda" else nullcontext()
