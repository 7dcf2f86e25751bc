"""Frames of a clip, read one by one: from lists, arrays, folders, animated pictures and video files.

Paper: FOCUS (arXiv 2506.16806), video is processed frame by frame. So nothing here holds a whole clip: frames come as a stream,
in order or backwards (a region may be given on any frame), and a video that is read backwards is decoded in blocks.
Video files are decoded by PyAV (extra `video`); GIFs and other animated pictures by Pillow.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageSequence, UnidentifiedImageError

from .images import load_image_any

PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Endings of the files that are the frames of a folder."""
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
DEFAULT_RATE = 12.0  # frames a second, where a clip does not say
_BLOCK_BYTES = 32 * 2**20  # of decoded frames, when a video is read backwards

Numbered = tuple[int, Image.Image]


class ClipFrames(ABC):
    """The frames of a clip. Every pass reads them anew, so a clip is never in memory.

    Attributes:
        length: number of frames, None where only reading tells.
        rate: frames a second, None where the clip does not say.
        repeatable: whether frames can be read more than once, and backwards.
    """

    length: int | None = None
    rate: float | None = None
    repeatable = True

    @abstractmethod
    def _read(self, start: int) -> Iterator[Numbered]:
        """(index, RGB image) from `start` on."""

    def forwards(self, start: int = 0) -> Iterator[Numbered]:
        """(index, RGB image) of the frames from `start` to the last one.

        Raises:
            ValueError: a frame cannot be read, or is of another size than the one before; no frames at all.
        """
        size = None
        for index, image in self._read(start):
            if size is not None and image.size != size:
                raise ValueError(
                    f"Frame {index} of the clip is {image.width} wide and {image.height} high, the one before it {size[0]} wide "
                    f"and {size[1]} high. Bring all frames to one size first."
                )
            size = image.size
            yield index, image
        if size is None and start == 0:
            raise ValueError("The clip has no frames. Pass at least one.")

    def backwards(self, start: int) -> Iterator[Numbered]:
        """(index, RGB image) of the frames from `start` down to 0, see `forwards`; a block of them is in memory."""
        size, block = None, 1
        stop = start + 1
        while stop > 0:
            first = max(0, stop - block)
            frames = []
            for index, image in self.forwards(first):
                if index >= stop:
                    break
                frames.append((index, image))
            if size is None and frames:
                size = frames[0][1].size
                block = max(1, _BLOCK_BYTES // (3 * size[0] * size[1]))
            yield from reversed(frames)
            stop = first


class _Sequence(ClipFrames):
    """A list or an array: anything that has frames by their number."""

    def __init__(self, frames: Sequence[Any]) -> None:
        self.frames = frames
        self.length = len(frames)

    def _frame(self, index: int) -> Image.Image:
        try:
            return load_image_any(self.frames[index])
        except (TypeError, ValueError, FileNotFoundError) as error:
            raise type(error)(f"Frame {index} of the clip cannot be used. {error}") from error

    def _read(self, start: int) -> Iterator[Numbered]:
        return ((index, self._frame(index)) for index in range(start, len(self.frames)))


class _Stream(ClipFrames):
    """An iterator of frames, which can be read once."""

    repeatable = False

    def __init__(self, frames: Iterator[Any]) -> None:
        self.frames = frames

    def _read(self, start: int) -> Iterator[Numbered]:
        for index, frame in enumerate(self.frames):
            try:
                image = load_image_any(frame)
            except (TypeError, ValueError, FileNotFoundError) as error:
                raise type(error)(f"Frame {index} of the clip cannot be used. {error}") from error
            if index >= start:
                yield index, image

    def backwards(self, start: int) -> Iterator[Numbered]:
        raise ValueError("A stream of frames cannot be read backwards. Pass a list, an array, a folder or a file.")


class _Animation(ClipFrames):
    """A GIF, an animated WebP or PNG, or a single picture."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with Image.open(path) as picture:
            self.length = getattr(picture, "n_frames", 1)
            duration = picture.info.get("duration")
        self.rate = 1000 / duration if duration else None

    def _read(self, start: int) -> Iterator[Numbered]:
        try:
            with Image.open(self.path) as picture:
                for index, frame in enumerate(ImageSequence.Iterator(picture)):
                    if index >= start:
                        yield index, load_image_any(frame.convert("RGBA"))
        except (OSError, SyntaxError, EOFError) as error:
            raise ValueError(f"The clip {str(self.path)!r} cannot be read: {error}") from error


class _Video(ClipFrames):
    """A video file, decoded by PyAV."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            import av  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError(
                f"Reading the video {str(path)!r} needs PyAV, which is not installed: `pip install 'diffusers-focus[video]'`. "
                "Or pass its frames as a list, an array or a folder of pictures."
            ) from error
        self.av: Any = av
        # Times of all frames and which of them can be decoded by themselves, from the headers of the packets.
        with self._open() as (container, stream):
            rate = stream.average_rate
            times = [(p.pts, p.is_keyframe) for p in self._guarded(container.demux(stream)) if p.size]
        self.rate = float(rate) if rate else None
        self.times: list[int] | None = None
        if times and all(time is not None for time, _ in times):
            self.times = sorted(time for time, _ in times)
            self.keys = sorted(self.times.index(time) for time, key in times if key)
            self.length = len(self.times)

    def _open(self):
        return _Opened(self)

    def _guarded(self, items: Iterable[Any]) -> Iterator[Any]:
        """The same, its errors in our words."""
        try:
            yield from items
        except (self.av.error.FFmpegError, ValueError, OSError) as error:
            raise ValueError(f"The video {str(self.path)!r} cannot be read: {error}") from error

    def _read(self, start: int) -> Iterator[Numbered]:
        with self._open() as (container, stream):
            stream.thread_type = "AUTO"
            index = 0
            if start and self.times:
                index = self.keys[max(0, bisect_right(self.keys, start) - 1)] if self.keys else 0
                container.seek(self.times[index], stream=stream)
            for frame in self._guarded(container.decode(stream)):
                if (
                    self.times is not None and frame.pts is not None
                ):  # a seek may land before the frame it was asked for
                    index = bisect_right(self.times, frame.pts) - 1
                if index >= start:
                    image = frame.to_image()
                    turn = getattr(frame, "rotation", 0)
                    yield index, image.rotate(turn, expand=True) if turn else image
                index += 1


class _Opened:
    """An opened video: (container, stream), closed on leaving."""

    def __init__(self, video: _Video) -> None:
        self.video = video

    def __enter__(self) -> tuple[Any, Any]:
        video = self.video
        try:
            self.container = video.av.open(str(video.path))
        except (video.av.error.FFmpegError, ValueError, OSError) as error:
            raise ValueError(
                f"The file {str(video.path)!r} is no picture and no video that can be read: {error}"
            ) from error
        if not self.container.streams.video:
            self.container.close()
            raise ValueError(f"The file {str(video.path)!r} has no pictures in it, only {self.container.format.name}.")
        return self.container, self.container.streams.video[0]

    def __exit__(self, *_: Any) -> None:
        self.container.close()


def open_clip(frames: Any) -> ClipFrames:
    """Anything that is a clip, to be read frame by frame.

    Args:
        frames: a list or tuple of images (see `load_image_any`); an array or tensor uint8 or float [T, height, width, 3], or
            a torch tensor [T, 3, height, width]; a folder of pictures (in the order of their names); a video file, GIF or
            other animated picture; an iterator of images, which is read once; an opened clip.

    Raises:
        TypeError: none of these.
        ValueError: no frames, an array of another shape, a damaged file, or a video without the extra `video`.
        FileNotFoundError: there is no such file.
    """
    if isinstance(frames, ClipFrames):
        return frames
    if isinstance(frames, (str, os.PathLike)):
        return _open_path(Path(frames))
    if isinstance(frames, (np.ndarray, torch.Tensor)):
        if frames.ndim != 4:
            raise ValueError(
                f"A clip as an array has the shape [frames, height, width, 3], got {list(frames.shape)}. Pass a single image "
                "as a list of one."
            )
        return _of_sequence(frames)
    if isinstance(frames, (list, tuple)):
        return _of_sequence(frames)
    if isinstance(frames, Iterator):
        return _Stream(frames)
    raise TypeError(
        f"A clip is a list of images, an array [frames, height, width, 3], a folder or a file, got {type(frames).__name__}."
    )


def is_clip(path: str | os.PathLike) -> bool:
    """Whether a path is a folder, a video or an animated picture; False where there is nothing."""
    path = Path(path)
    if path.is_dir() or path.suffix.lower() in VIDEOS:
        return True
    try:
        with Image.open(path) as picture:
            return getattr(picture, "n_frames", 1) > 1
    except (UnidentifiedImageError, FileNotFoundError):
        return False


def _of_sequence(frames: Any) -> ClipFrames:
    if len(frames) == 0:
        raise ValueError("The clip has no frames. Pass at least one.")
    return _Sequence(frames)


def _open_path(path: Path) -> ClipFrames:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
        if not files:
            raise ValueError(
                f"The folder {str(path)!r} has no pictures; the frames of a clip end in {', '.join(PICTURES)}."
            )
        return _of_sequence(files)
    if not path.is_file():
        raise FileNotFoundError(f"There is no clip at {str(path)!r}. Pass a folder of pictures or a video file.")
    try:
        return _Animation(path)
    except UnidentifiedImageError:
        return _Video(path)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"The clip {str(path)!r} cannot be read: {error}") from error
