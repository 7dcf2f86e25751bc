"""FOCUS for ComfyUI: ask about an image, segment what you mean, edit exactly that.

The folder is a node pack: copy or link it into ComfyUI/custom_nodes. Nothing happens at import; ComfyUI calls
`comfy_entrypoint`, which brings in the nodes, and torch's heavier company comes with the first pipeline that is loaded.
"""

from __future__ import annotations

from typing import Any


async def comfy_entrypoint() -> Any:
    """The extension, as ComfyUI's V3 schema wants it."""
    from .nodes import FocusExtension
    from .runtime import register_folder

    register_folder()
    return FocusExtension()
