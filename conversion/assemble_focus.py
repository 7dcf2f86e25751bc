"""Assemble the start of a FOCUS training run from public parts.

Command:   python conversion/assemble_focus.py --help    (the same as `diffusers-focus convert assemble`)
From code: `from diffusers_focus.checkpoints.convert import assemble_focus`
Memory, disk and time are in conversion/README.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the conversion with these arguments (default: the program's own) and return the exit status."""
    from diffusers_focus.cli import main as run

    return run(["convert", "assemble", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
