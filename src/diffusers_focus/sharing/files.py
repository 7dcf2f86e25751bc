"""Files that are whole at every moment: written beside their name and moved to it, so that a stop leaves the older one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file that appears under its name only once it is complete; an older one stays until then."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write text in UTF-8, as `replace_file` does."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def replace_json(path: Path, content: Any) -> None:
    """Write JSON for readers, indented and with its letters as they are, as `replace_file` does."""
    replace_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
