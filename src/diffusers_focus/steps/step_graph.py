"""A step of writing as a CUDA graph: recorded once, then played back for every token.

A token of the 3B model is some 900 operations. A GPU runs them in a few milliseconds, and a processor takes four times as long to
start them one by one (docs/design.md, "Writing visual tokens"). The shapes of a step never change where it looks at all the room of
its cache (`fixed_cache.FixedCache`), so its operations are recorded and started together. In the manner of torch's
`make_graphed_callables` (BSD-3-Clause) and of transformers' static caches under `torch.compile(mode="reduce-overhead")`, without a
compiler: the model stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch

LONGEST = 2  # positions of a step that comes again: a token, or a row's last one and the row's end
WORTH = 12  # tokens; for fewer, recording takes longer than it saves

Step = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class StepRecorder:
    """Plays the steps of one cache back. The first step of a shape runs as it is, the second is recorded, all others are played.

    What a call returns stays valid until the next one of its shape.
    """

    def __init__(self) -> None:
        self._warm: set[tuple[int, ...]] = set()
        self._recorded: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, list[torch.Tensor], torch.Tensor]] = {}

    def __call__(self, step: Step, *inputs: torch.Tensor) -> torch.Tensor:
        """The result of `step(*inputs)`, which must write into the same tensors and read the same ones every time."""
        shape = tuple(inputs[0].shape)
        if shape not in self._warm:  # kernels are chosen and workspaces made, which cannot be recorded
            self._warm.add(shape)
            return step(*inputs)
        with torch.cuda.device(inputs[0].device):  # a graph runs on the current device's stream
            if shape not in self._recorded:
                self._recorded[shape] = _record(step, inputs)
            graph, slots, out = self._recorded[shape]
            for slot, value in zip(slots, inputs):
                slot.copy_(value)
            graph.replay()
        return out


def recorder_for(model: Any, tokens: int) -> StepRecorder | None:
    """A recorder for `tokens` steps of a language model's body; None where steps run as they are.

    That is for few tokens, on other devices than CUDA, where gradients are kept or autocast casts weights, for weights that are
    quantised or lie on several devices, where hooks watch or move modules, for position embeddings that look at positions, for
    attention other than "sdpa", and for a model that was compiled.
    """
    device = next(model.parameters()).device
    if tokens < WORTH or device.type != "cuda" or torch.is_grad_enabled() or torch.is_autocast_enabled("cuda"):
        return None
    return StepRecorder() if _plain(model, device) else None


def is_compiled(model: Any) -> bool:
    """Whether `model.compile()` was called and counts here."""
    return getattr(model, "_compiled_call_impl", None) is not None and not torch.is_grad_enabled()


def uncompiled(model: Any) -> AbstractContextManager[Any]:
    """A compiled model runs as if it were not: lengths that are new each time would be compiled each time."""
    return torch.compiler.set_stance("force_eager") if is_compiled(model) else nullcontext()


def _plain(model: Any, device: torch.device) -> bool:
    rope = getattr(model.config, "rope_parameters", None) or getattr(model.config, "rope_scaling", None) or {}
    return (
        model.config._attn_implementation == "sdpa"
        and not getattr(model, "has_sliding_layers", False)
        and rope.get("rope_type", "default") in ("default", "linear", "yarn", "llama3")
        and getattr(model, "_compiled_call_impl", None) is None
        and all(
            one.device == device and one.is_floating_point() and type(one.data) is torch.Tensor
            for one in model.parameters()
        )
        and not any(
            one._forward_hooks or one._forward_pre_hooks or hasattr(one, "_hf_hook") or hasattr(one, "_diffusers_hook")
            for one in model.modules()
        )
    )


def _record(
    step: Step, inputs: tuple[torch.Tensor, ...]
) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor], torch.Tensor]:
    slots = [value.clone() for value in inputs]
    graph, stream = torch.cuda.CUDAGraph(), _stream(inputs[0].device)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Other threads may go on using the device: what they do is no part of it.
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            out = step(*slots)
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph, slots, out


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: cuBLAS keeps a workspace for every stream it has seen."""
    return torch.cuda.Stream(device)
