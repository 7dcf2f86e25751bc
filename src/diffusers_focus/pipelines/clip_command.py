"""`diffusers-focus segment` of a clip: masks of every frame into a folder (FOCUS: video segmentation)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..processing.clips import open_clip
from .clip_outputs import FocusClipWriter


def write_clip_masks(
    load: Callable[[], Any],
    path: str,
    output: str,
    asked: dict[str, Any],
    *,
    frame: int | None = None,
    overlay: str | None = None,
    lines: str | None = None,
) -> None:
    """Follow one thing through a clip, write what `FocusClipWriter` writes, and print what was found.

    Args:
        load: gives the pipeline; called when everything else is found to be good.
        path: a video, GIF or folder.
        output: the folder, made where it does not exist.
        asked: `target`, `region`, `classes` and `task` of `stream_clip`; the region is one object's.
        frame: the frame the region is on, default 0.
        overlay: file of the overlay; default overlay.gif in the folder.
        lines: file of run lengths.

    Raises:
        TypeError, ValueError, OSError: see `stream_clip` and `FocusClipWriter`.
    """
    if frame is not None and asked["region"] is None:
        raise ValueError("--frame says which frame a region is on; give --point, --box, --scribble or --mask")
    clip, folder = open_clip(path), Path(output)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"the output {output!r} is a file; a clip's masks go into a folder")
    region = asked["region"]
    stream = load().stream_clip(clip, **{**asked, "region": None if region is None else {frame or 0: [region]}})
    drawn = Path(overlay).absolute() if overlay else "overlay.gif"
    runs = Path(lines).absolute() if lines else None
    with FocusClipWriter(folder, overlay=drawn, rate=clip.rate, lines=runs) as writer:
        for one in stream:
            writer.write(one)
    if not writer.objects:
        print("nothing found")
    for number, found in sorted(writer.objects.items()):
        print(f"{number}  {found['label']}  score {found['score']:.2f}  {found['frames']} frames")
    print(folder)
