"""Drawing ids from logits, reproducibly.

An id is drawn by inverting the cumulative distribution at one uniform number. The numbers come from the caller's generators, a
fixed number for each row, so that a row draws the same ids alone and in a batch, on any device, and whatever its neighbours do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..processing.grammar import TokenSampling, filter_logits

Generators = torch.Generator | Sequence[torch.Generator] | None

GREEDY = TokenSampling(top_k=1)
_LARGEST = 1 - 2**-20  # below one by more than the rounding of a float32 sum


def uniform_numbers(rows: int, count: int, generator: Generators = None) -> torch.Tensor:
    """Uniform numbers float32 [rows, count] on the CPU, row by row from a list of generators or all from one."""
    if generator is None or isinstance(generator, torch.Generator):
        device = generator.device if generator is not None else "cpu"
        return torch.rand((rows, count), generator=generator, device=device).cpu()
    if len(generator) != rows:
        raise ValueError(
            f"{len(generator)} generators were given for {rows} results. Pass one generator, or a list with one for each."
        )
    return torch.stack([torch.rand(count, generator=one, device=one.device).cpu() for one in generator])


def is_greedy(sampling: TokenSampling) -> bool:
    """Whether only the likeliest id is ever drawn."""
    return sampling.top_k == 1


def nearest_to_mean(logits: torch.Tensor, vectors: torch.Tensor, sharpness: float | torch.Tensor) -> torch.Tensor:
    """The id of each row whose vector has the least expected squared distance from what could be written.

    Args:
        logits: [R, codes].
        vectors: float32 [codes, C], what the codes stand for.
        sharpness: power that the odds are raised to before their mean is taken; the larger, the nearer to the likeliest id;
            [R, 1] has one a row.

    Returns:
        int64 [R]. Minimum Bayes risk decoding, with the squared distance of code vectors as its loss.
    """
    mean = (sharpness * logits.float()).softmax(dim=-1) @ vectors
    return torch.cdist(mean, vectors).argmin(dim=-1)


def draw_ids(logits: torch.Tensor, sampling: TokenSampling, uniform: torch.Tensor | None) -> torch.Tensor:
    """One id a row.

    Args:
        logits: [R, vocab]; banned ids at minus infinity.
        sampling: temperature and filters; `top_k=1` takes the likeliest id.
        uniform: float32 [R] in [0, 1); not needed for greedy drawing.

    Returns:
        int64 [R].
    """
    if is_greedy(sampling):
        return logits.argmax(dim=-1)
    assert uniform is not None
    logits = filter_logits(logits.float(), sampling.temperature, sampling.top_k, sampling.top_p)
    reached = logits.softmax(dim=-1).cumsum(dim=-1)
    threshold = uniform.to(reached.device).clamp(max=_LARGEST)[:, None] * reached[:, -1:]
    # The first id whose sum exceeds the threshold has a probability of its own: banned ids add nothing to the sum.
    return torch.searchsorted(reached, threshold, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
