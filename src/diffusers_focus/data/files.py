"""The files that records name: in a folder, or in memory as the members of a shard. Pictures are decoded once.

Names come from data files, so they are not trusted: a name that leads out of its folder is refused. Needs Pillow only.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image


class SampleFiles:
    """Where the files of some records are.

    Args:
        where: a folder, or the bytes of files by their names.
        name: what messages call it; by default the folder.
    """

    def __init__(self, where: Path | Mapping[str, bytes], name: str = "") -> None:
        self.where = where
        self.name = name or str(where)
        self._pictures: dict[str, Image.Image] = {}

    @classmethod
    def of(cls, root: Path | SampleFiles) -> SampleFiles:
        """A folder as files; files as they are."""
        return root if isinstance(root, SampleFiles) else cls(root)

    def path_of(self, name: Any) -> str:
        """What messages call a file; ValueError where the name is no text, or leads out of the folder."""
        if not isinstance(name, str) or not name:
            raise ValueError(f"A file is named by text relative to {self.name!r}, got {name!r}.")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"The file {name!r} is outside the folder {self.name!r}; name files relative to it.")
        return str(Path(self.name) / name)

    def open(self, name: Any) -> Path | io.BytesIO:
        """What Pillow can open; ValueError where there is no such file."""
        path = self.path_of(name)
        if isinstance(self.where, Path):
            return self.where / name
        if name not in self.where:
            raise ValueError(f"The file {path!r} is missing.")
        return io.BytesIO(self.where[name])

    def read(self, name: Any) -> bytes:
        """The bytes of a file; ValueError or an OSError where there is none."""
        source = self.open(name)
        return source.read_bytes() if isinstance(source, Path) else source.getvalue()

    def picture(self, name: Any) -> Image.Image:
        """An RGB picture; ValueError where it is missing or damaged."""
        path = self.path_of(name)
        if name not in self._pictures:
            try:
                with Image.open(self.open(name)) as picture:
                    self._pictures[name] = picture.convert("RGB")
            except FileNotFoundError:
                raise ValueError(f"The picture {path!r} is missing.") from None
            except Exception as error:  # damaged pictures raise nearly anything, SyntaxError among it
                raise ValueError(f"The picture {path!r} cannot be read: {error}") from None
        return self._pictures[name]
