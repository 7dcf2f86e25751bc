"""Muon in float32, for processors without instructions for bfloat16.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) is torch's own, `torch.optim.Muon` (BSD-3-Clause),
whose Newton-Schulz iteration is bfloat16 throughout. On a core of an AMD EPYC that has AVX2 alone the 56 matrices of focus-tiny's
language model take it 10.7 s an update, in float32 0.5 s. Rates, momentum and state are torch's: a checkpoint goes on with either.
"""

from __future__ import annotations

from typing import Any

import torch


class Float32Muon(torch.optim.Muon):
    """`torch.optim.Muon` with its matrix products in float32; parameters [rows, columns], arguments as there.

    Only what the recipes use is here: `adjust_lr_fn` "match_rms_adamw" (Liu et al. 2025, arXiv 2502.16982).

    Raises:
        ValueError: another `adjust_lr_fn`.
    """

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        for group in self.param_groups:
            if group["adjust_lr_fn"] != "match_rms_adamw":
                raise ValueError(
                    f"adjust_lr_fn is {group['adjust_lr_fn']!r}; in float32 there is 'match_rms_adamw' alone. Pass it, or take "
                    "torch.optim.Muon"
                )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                momentum = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter.grad))
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
                turned = orthogonalize(update.float(), group["ns_coefficients"], group["ns_steps"], group["eps"])
                size = 0.2 * max(parameter.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(turned.to(parameter.dtype), alpha=-group["lr"] * size)
        return loss


def orthogonalize(
    matrix: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """About the nearest matrix whose directions are all as long: singular values of 0.5 to 1.5 in place of its own.

    Args:
        matrix: float [rows, columns].
        coefficients: of the quintic a x + b x^3 + c x^5 that is applied to the singular values in each of the `steps`.
        eps: least norm to divide by.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
