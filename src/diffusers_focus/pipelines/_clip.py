"""`segment_clip` and `stream_clip`: objects of a clip, pointed at, referred to or named (FOCUS: video segmentation)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch

from ..processing.clips import open_clip
from ..steps.arguments import check_count
from ..steps.clips import ClipRequest, FocusClipFrame, clip_request, follow_clip
from ..steps.segment import MAX_NAMES, require_masks
from ._base import FocusPipelineMixin
from .clip_outputs import FocusClipOutput, check_clip_output, collect_clip

FrameT = TypeVar("FrameT")


class FocusClipMixin(FocusPipelineMixin):
    """Mixed into a `DiffusionPipeline` with a vision encoder, a language model and a mask decoder."""

    def stream_clip(
        self,
        frames: Any,
        target: str | list[str] | None = None,
        region: Any = None,
        *,
        classes: list[str] | None = None,
        task: str | None = None,
        max_new_tokens: int = MAX_NAMES,
    ) -> Iterator[FocusClipFrame]:
        """Find objects in a clip, frame by frame; no frame is kept, however long the clip is.

        Args:
            frames: a list of images, an array [frames, height, width, 3], a folder of pictures, a video file (extra `video`),
                a GIF, or an iterator of images, all of one size.
            target: an expression, or a list of them; each is an object of its own.
            region: in place of words: a `Point`, `Scribble`, `Box` or `Mask` on frame 0, in pixels; a list for several objects
                (a list within it: regions of one object); {frame: region or list} for any other frame. Objects are followed
                to both sides of their frame.
            classes: in place of both: names to look for. Every object gets one, and an identity that it keeps.
            task: "referring" (default) or "reasoning", for indirect expressions.
            max_new_tokens: longest list of names the model writes before the masks.

        Returns:
            An iterator of `FocusClipFrame`, in the order of the frames.

        Raises:
            TypeError, ValueError: an argument or a component does not fit; while reading: a frame is damaged or of another size.
        """
        clip, request = self._clip_request(frames, target, region, classes, task)
        return self._stream(clip, self._follow(clip, request, max_new_tokens))

    def segment_clip(
        self,
        frames: Any,
        target: str | list[str] | None = None,
        region: Any = None,
        *,
        classes: list[str] | None = None,
        task: str | None = None,
        max_new_tokens: int = MAX_NAMES,
        output_type: str = "np",
        return_dict: bool = True,
    ) -> FocusClipOutput | tuple[Any, ...]:
        """Find objects in a clip and collect them; `stream_clip` is the same without collecting.

        Args:
            frames, target, region, classes, task, max_new_tokens: see `stream_clip`.
            output_type: "np" for bool masks, "maps" for DAVIS's maps of identities, "rle" for COCO run lengths.
            return_dict: False returns a tuple.

        Returns:
            `FocusClipOutput`. Everything that was pointed at or referred to is in it, seen or not.

        Raises:
            TypeError, ValueError: see `stream_clip`.
        """
        check_clip_output(output_type)
        clip, request = self._clip_request(frames, target, region, classes, task)
        asked = [number for objects in request.regions.values() for number, _ in objects]
        if target is not None:
            asked = list(range(1, len(request.queries) + 1))
        stream = self._stream(clip, self._follow(clip, request, max_new_tokens))
        output = collect_clip(stream, output_type, asked)
        return output if return_dict else output.to_tuple()

    def _clip_request(self, frames: Any, target: Any, region: Any, classes: Any, task: Any) -> tuple[Any, ClipRequest]:
        """The arguments, found fault with before anything is read."""
        require_masks(self, self.config, "segmenting")
        self._require("segmenting", "language_model", "lm_tokenizer")
        clip = open_clip(frames)
        return clip, clip_request(target, region, classes=classes, task=task, length=clip.length)

    def _follow(
        self, clip: Any, request: ClipRequest, max_new_tokens: int, encode: Any = None
    ) -> Iterator[FocusClipFrame]:
        longest, device = check_count(max_new_tokens, "max_new_tokens"), self._execution_device
        return follow_clip(self, self.config, clip, request, device=device, max_new_tokens=longest, encode=encode)

    @torch.no_grad()
    def _stream(self, clip: Any, found: Iterator[FrameT]) -> Iterator[FrameT]:
        if clip.length is None:
            yield from self.progress_bar(found)
        else:
            with self.progress_bar(total=clip.length) as bar:
                for frame in found:
                    yield frame
                    bar.update()
        self.maybe_free_model_hooks()
