"""What every test shares: no network, the same random numbers each time, and the option --goldens DIR."""

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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--goldens",
        type=Path,
        default=ROOT / "tests" / "goldens",
        metavar="DIR",
        help="folder of recorded reference numbers, <family>_<set>.json and .safetensors (default: tests/goldens)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "golden(family, items): runs for every golden of a family in --goldens DIR")
    folder = (config.invocation_params.dir / config.option.goldens).resolve()
    config.option.goldens = folder
    if folder != ROOT / "tests" / "goldens":
        from tests.checkpoints.goldens import find_goldens

        try:
            find_goldens(folder)
        except ValueError as error:
            raise pytest.UsageError(str(error)) from error


@pytest.fixture(scope="session")
def root() -> Path:
    """The top folder of the repository."""
    return ROOT


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same random state; torch is left alone where a test never imported it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
