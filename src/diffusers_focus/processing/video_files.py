"""Pictures one after another into one file: a video (PyAV, extra `video`) or a GIF (Pillow alone).

What is written is gone from memory; the file appears under its name only once it is complete. For looking at, never for measuring.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import GifImagePlugin, Image

from .clips import DEFAULT_RATE, VIDEOS

CODECS = {**dict.fromkeys(VIDEOS, "libx264"), ".avi": "mpeg4", ".webm": "libvpx-vp9"}
"""Endings of video files, and how they are encoded."""
ENDINGS = (".gif", *CODECS)


class PictureFile(ABC):
    """A file that pictures of one size are put into; a context manager. Leaving it by an error leaves an old file as it was."""

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = path, rate
        self.temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
        self.size: tuple[int, int] | None = None

    def write(self, image: Image.Image) -> None:
        """Add an RGB picture. Raises ValueError where it is of another size than the first one."""
        if self.size is None:
            self._begin(image)
        elif image.size != self.size:
            raise ValueError(
                f"The first picture of {self.path.name!r} is {self.size}, this one {image.size} (width, height)."
            )
        self.size = image.size
        self._add(image)

    @abstractmethod
    def _begin(self, image: Image.Image) -> None: ...

    @abstractmethod
    def _add(self, image: Image.Image) -> None: ...

    @abstractmethod
    def _end(self, complete: bool) -> None: ...

    def __enter__(self) -> PictureFile:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if self.size is not None:
                self._end(kind is None)
                if kind is None:
                    os.replace(self.temporary, self.path)
        finally:
            self.temporary.unlink(missing_ok=True)


class _Gif(PictureFile):
    """Frame after frame with a palette of its own, by the parts of Pillow's writer: its own loop keeps all of them in memory."""

    def _begin(self, image: Image.Image) -> None:
        self.file = open(self.temporary, "xb")
        first = image.quantize(256)
        header, _ = GifImagePlugin.getheader(first, info={"loop": 0, "duration": self._duration()})
        for part in header:
            self.file.write(part)

    def _duration(self) -> int:
        return max(20, round(1000 / self.rate / 10) * 10)  # GIF counts hundredths of a second

    def _add(self, image: Image.Image) -> None:
        options = {"duration": self._duration(), "include_color_table": True, "disposal": 0}
        for part in GifImagePlugin.getdata(image.quantize(256), (0, 0), **options):
            self.file.write(part)

    def _end(self, complete: bool) -> None:
        self.file.write(b";")
        self.file.close()


class _Video(PictureFile):
    """H.264, MPEG-4 or VP9 by the ending of the name; an odd side is made even by one line at the edge."""

    def __init__(self, path: Path, rate: float) -> None:
        super().__init__(path, rate)
        try:
            import av  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError(
                f"Writing the video {str(path)!r} needs PyAV, which is not installed: `pip install 'diffusers-focus[video]'`. "
                "Or name a .gif."
            ) from error
        self.av: Any = av

    def _begin(self, image: Image.Image) -> None:
        self.container = self.av.open(str(self.temporary), "w")
        stream: Any = self.container.add_stream(
            CODECS[self.path.suffix.lower()], rate=Fraction(self.rate).limit_denominator(1001)
        )
        stream.width, stream.height = (side + side % 2 for side in image.size)
        stream.pix_fmt = "yuv420p"
        self.stream = stream

    def _add(self, image: Image.Image) -> None:
        canvas = image.convert("RGB")
        if (canvas.width % 2, canvas.height % 2) != (0, 0):
            canvas = canvas.resize((self.stream.width, self.stream.height), Image.Resampling.NEAREST)
        for packet in self.stream.encode(self.av.VideoFrame.from_image(canvas)):
            self.container.mux(packet)

    def _end(self, complete: bool) -> None:
        if complete:
            for packet in self.stream.encode():
                self.container.mux(packet)
        self.container.close()


def picture_file(path: str | os.PathLike, rate: float | None = None) -> PictureFile:
    """The file that pictures go into, by the ending of its name.

    Args:
        path: ends in .gif, or in .mp4, .mov, .m4v, .mkv, .avi or .webm (extra `video`).
        rate: pictures a second, 12 where it is not known.

    Raises:
        ValueError: another ending, PyAV is missing, or a rate that is not above 0.
        FileNotFoundError: the folder does not exist.
    """
    path = Path(path)
    rate = DEFAULT_RATE if rate is None else rate
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f"rate is {rate}; give pictures a second, above 0.")
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"Cannot write a video to {str(path)!r}: end the name in {', '.join(ENDINGS)}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {str(path.parent)!r} of the video does not exist; create it first")
    return _Gif(path, rate) if path.suffix.lower() == ".gif" else _Video(path, rate)
