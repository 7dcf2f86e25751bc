"""Key table of the original visual tokenizer (ILLUME+ "DualViTok", Apache-2.0), both directions.

Data only: pairs of key prefixes, first match wins. Every tensor keeps its shape, so converting is renaming; the
published checkpoint has 999 keys. Everything not listed has the same name on both sides.
"""

from __future__ import annotations

# (original prefix, ours)
DUALVITOK_PREFIXES: tuple[tuple[str, str], ...] = (
    ("semantic_encoder.model.", "vit."),
    ("semantic_encoder.proj_out.0.", "semantic_encoder.proj_out."),
    ("semantic_decoder.proj_out.0.", "semantic_decoder.proj_out."),
    ("semantic_decoder.proj_out.1.", "semantic_decoder.norm_out."),
)


def from_original_key(key: str) -> str:
    """Our name of the original checkpoint's `key`."""
    return _rename(key, DUALVITOK_PREFIXES)


def to_original_key(key: str) -> str:
    """The original checkpoint's name of our `key`."""
    return _rename(key, tuple((ours, original) for original, ours in DUALVITOK_PREFIXES))


def _rename(key: str, prefixes: tuple[tuple[str, str], ...]) -> str:
    for source, target in prefixes:
        if key.startswith(source):
            return target + key[len(source) :]
    return key
