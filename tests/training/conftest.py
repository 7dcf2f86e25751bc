"""Every test trains in the precision that it asks for: accelerate keeps the first one of a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def own_precision() -> Iterator[None]:
    """Forget what accelerate was told."""
    yield
    AcceleratorState._reset_state()
