"""What comes of a clip: collected as arrays, maps or run lengths, or written to a folder frame by frame.

Paper: FOCUS (arXiv 2506.16806), video segmentation; the layout of files is that of DAVIS-2017, run lengths are COCO's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diffusers.utils.outputs import BaseOutput
from PIL import Image

from ..data.coco_masks import encode_rle
from ..processing.drawing import draw_masks
from ..processing.index_maps import davis_palette, index_map_of, save_index_map
from ..processing.video_files import picture_file
from ..sharing.files import replace_json
from ..steps.clips import FocusClipFrame

CLIP_OUTPUTS = ("np", "maps", "rle")


@dataclass
class FocusClipOutput(BaseOutput):
    """The objects of a clip, in the order of their identities; T frames.

    Args:
        masks: by `output_type`: "np" bool (objects, T, height, width); "maps" uint8 (T, height, width) of identities, 0 where
            there is none, as DAVIS has them; "rle" for each object a list of T COCO run lengths, None where it is not seen.
        scores (`np.ndarray`): float32 (objects, T), how sure it is that the object is there; 0 where it is not seen.
        labels (`list[str]`): a name for each object.
        numbers (`list[int]`): the identity of each object, from 1.
    """

    masks: Any
    scores: np.ndarray
    labels: list[str]
    numbers: list[int]


def check_clip_output(output_type: Any) -> str:
    """How the masks of a clip come back: "np", "maps" or "rle"."""
    if output_type not in CLIP_OUTPUTS:
        raise ValueError(f"output_type must be one of {', '.join(CLIP_OUTPUTS)}, got {output_type!r}.")
    return output_type


def collect_clip(frames: Iterable[FocusClipFrame], output_type: str, numbers: Iterable[int] = ()) -> FocusClipOutput:
    """All frames as one output.

    Args:
        frames: of a clip, in their order.
        output_type: see `check_clip_output`.
        numbers: identities that are in the output even if they are seen in no frame (what was pointed at or named).
    """
    labels: dict[int, str] = dict.fromkeys(numbers, "")
    kept: list[dict[int, tuple[Any, float]]] = []
    maps: list[np.ndarray] = []
    size = (0, 0)
    for frame in frames:
        size = (frame.image.height, frame.image.width)
        for number, label in zip(frame.numbers, frame.labels):
            labels[number] = label  # of an object that is called differently in time, the last name
        if output_type == "maps":
            maps.append(index_map_of(frame.masks, frame.numbers))
        masks = [None] * len(frame.masks) if output_type == "maps" else map(encode_rle, frame.masks)
        if output_type == "np":
            masks = list(frame.masks)
        kept.append({n: (m, s) for n, m, s in zip(frame.numbers, masks, frame.scores.tolist())})
    order = sorted(labels)
    scores = np.asarray([[frame.get(n, (None, 0.0))[1] for frame in kept] for n in order], dtype=np.float32)
    scores = scores.reshape(len(order), len(kept))
    found: Any = np.stack(maps) if output_type == "maps" else None
    if output_type == "rle":
        found = [[frame.get(n, (None, 0.0))[0] for frame in kept] for n in order]
    elif output_type == "np":
        found = np.zeros((len(order), len(kept), *size), dtype=bool)
        for place, frame in enumerate(kept):
            for n, (mask, _) in frame.items():
                found[order.index(n), place] = mask
    return FocusClipOutput(masks=found, scores=scores, labels=[labels[n] for n in order], numbers=order)


def overlay(frame: FocusClipFrame) -> Image.Image:
    """A frame with its objects laid over it, each identity in its DAVIS colour all through a clip."""
    palette = davis_palette()
    colours = [
        (palette[3 * n], palette[3 * n + 1], palette[3 * n + 2]) for n in (number % 256 for number in frame.numbers)
    ]
    return draw_masks(frame.image, frame.masks, colours=colours or [(0, 0, 0)])


class FocusClipWriter:
    """Writes the frames of a clip as they come, and keeps none of them; a context manager.

    In the folder: `00000.png`, ... palette pictures of identities; `objects.json`, name, frames and mean score of every
    identity; and, where they are named, the overlay and a file with a line of COCO run lengths a frame.

    Args:
        folder: is made where it does not exist.
        overlay: name of a video or GIF, see `picture_file`, in the folder unless it is an absolute path.
        rate: frames a second of the overlay.
        lines: name of the file of run lengths (.jsonl), likewise.

    Example:
        ```python
        with FocusClipWriter("out", overlay="overlay.gif") as writer:
            for frame in pipe.stream_clip("clip.gif", "the red circle"):
                writer.write(frame)
        ```
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        overlay: str | os.PathLike | None = None,
        rate: float | None = None,
        lines: str | os.PathLike | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.video = None if overlay is None else picture_file(self.folder / overlay, rate)
        self.lines = None
        if lines is not None:
            self._target = self.folder / lines
            self._temporary = self._target.with_name(f".{self._target.name}.{os.getpid()}.tmp")
            self.lines = open(self._temporary, "w", encoding="utf-8")
        self.objects: dict[int, dict[str, Any]] = {}

    def write(self, frame: FocusClipFrame) -> None:
        """Write one frame."""
        save_index_map(self.folder / f"{frame.index:05d}.png", index_map_of(frame.masks, frame.numbers))
        if self.video is not None:
            self.video.write(overlay(frame))
        for number, label, score in zip(frame.numbers, frame.labels, frame.scores.tolist()):
            one = self.objects.setdefault(number, {"label": label, "frames": 0, "score": 0.0})
            one["label"], one["frames"] = label, one["frames"] + 1
            one["score"] += (score - one["score"]) / one["frames"]
        if self.lines is not None:
            entries = zip(frame.numbers, frame.labels, frame.scores.tolist(), frame.masks)
            objects = [
                {"id": n, "label": label, "score": s, "segmentation": encode_rle(m)} for n, label, s, m in entries
            ]
            self.lines.write(json.dumps({"frame": frame.index, "objects": objects}) + "\n")

    def __enter__(self) -> FocusClipWriter:
        if self.video is not None:
            self.video.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self.video is not None:
            self.video.__exit__(kind, error, trace)
        if self.lines is not None:
            self.lines.close()
            if kind is None:
                os.replace(self._temporary, self._target)
            self._temporary.unlink(missing_ok=True)
        if kind is None:
            known = {
                str(number): one | {"score": round(one["score"], 4)} for number, one in sorted(self.objects.items())
            }
            replace_json(self.folder / "objects.json", known)
