"""Convert ILLUME+'s three public checkpoints to a FOCUS pipeline.

Command:   python conversion/convert_illume_plus.py --help    (the same as `diffusers-focus convert illume-plus`)
From code: `from diffusers_focus.checkpoints.convert import convert_illume_plus`
Memory, disk and time are in conversion/README.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the conversion with these arguments (default: the program's own) and return the exit status."""
    from diffusers_focus.cli import main as run

    return run(["convert", "illume-plus", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
