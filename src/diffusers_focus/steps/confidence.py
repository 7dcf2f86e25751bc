"""How sure the model is: from logits to the presence of a prompt, the score of an object, the quality of its mask.

Three questions, three numbers. Presence: is there anything that the prompt means? Score: is this object meant, and found (IoU
of at least 0.5)? Quality: which IoU has this mask with the object it shows, meant or not? Each is a logistic map of what the
model says (Platt scaling, 1999), fitted on validation scenes by `evaluation/calibration.py` and kept in the pipeline's config;
without it the maps are the plain sigmoids. All are monotone in what they read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..processing.prompts import CLASS, INTERACTIVE

WORDS, REGIONS, CLASSES = PROMPT_KINDS = ("words", "regions", "classes")
LARGEST_LOGIT = 20.0


@dataclass(frozen=True)
class Confidence:
    """The maps for one kind of prompt; each is sigmoid(first + rest . inputs).

    Args:
        score: of the condition logit and the quality logit.
        quality: of the quality logit.
        presence: of the best condition logit and the log odds against "nothing" as the first word.
    """

    score: tuple[float, ...] = (0.0, 1.0, 0.0)
    quality: tuple[float, ...] = (0.0, 1.0)
    presence: tuple[float, ...] = (0.0, 1.0, 0.0)

    @classmethod
    def of(cls, calibration: Mapping[str, Any] | None, kind: str) -> Confidence:
        """The maps of a pipeline's config for a kind of prompt, or the plain ones.

        Raises:
            ValueError: an entry that is not a kind, a map, or its numbers.
        """
        plain = cls(presence=(0.0, 0.0, 1.0)) if kind == WORDS else cls()
        given = dict((calibration or {}).get(kind) or {})
        for name, numbers in given.items():
            wanted = len(getattr(plain, name, ()))
            if not wanted or not isinstance(numbers, Sequence) or len(numbers) != wanted:
                raise ValueError(
                    f"calibration[{kind!r}] has {name}={numbers!r}; allowed are score and presence (3 numbers) and quality (2). "
                    "Fit it again with `diffusers-focus calibrate`."
                )
        return cls(**{**vars(plain), **{name: tuple(map(float, numbers)) for name, numbers in given.items()}})


def kind_of(task: str) -> str:
    """Which maps a task has."""
    return {INTERACTIVE: REGIONS, CLASS: CLASSES}.get(task, WORDS)


def probability(weights: Sequence[float], *inputs: torch.Tensor) -> torch.Tensor:
    """sigmoid(weights[0] + weights[1] * inputs[0] + ...), float32."""
    total = weights[0] + sum(
        w * x.float().clamp(-LARGEST_LOGIT, LARGEST_LOGIT) for w, x in zip(weights[1:], inputs, strict=True)
    )
    return torch.sigmoid(torch.as_tensor(total))


def something_logits(logits: torch.Tensor, nothing: int) -> torch.Tensor:
    """Log odds [R] that the first word is not that token, from the logits [R, vocab] of the first word."""
    chosen = logits[:, nothing].float()
    others = logits.float().index_fill(1, torch.tensor([nothing], device=logits.device), float("-inf")).logsumexp(-1)
    return (others - chosen).clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
