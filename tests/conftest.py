"""What every test shares: no network, the same random numbers each time, and the folder of golden numbers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# Read by huggingface_hub when it is first imported, so it has to be set before any test module is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The top folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def goldens() -> Path:
    """Folder of the recorded reference numbers (see its README.md)."""
    return ROOT / "tests" / "goldens"


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same random state; torch is left alone where a test never imported it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
