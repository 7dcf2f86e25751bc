"""Write the original checkpoints that a pipeline was converted from.

Command:   python conversion/convert_focus_to_original.py --help    (the same as `diffusers-focus convert to-original`)
From code: `from diffusers_focus.checkpoints.restore import convert_focus_to_original`
Memory, disk and time are in conversion/README.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the conversion with these arguments (default: the program's own) and return the exit status."""
    from diffusers_focus.cli import main as run

    return run(["convert", "to-original", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
