"""Numbers in words."""

from __future__ import annotations

import pytest

from diffusers_focus.processing.numerals import read_numeral


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("three", 3),
        ("Three.", 3),
        (" 12 ", 12),
        ("none", 0),
        ("a red circle", None),
        ("", None),
        ("-1", None),
        ("²", None),
    ],
)
def test_an_answer_that_is_a_number_is_read(text, number):
    assert read_numeral(text) == number
