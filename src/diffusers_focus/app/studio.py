"""What the click-to-edit app does, without its page: one session a user, one pipeline for all.

FOCUS sections "Interactive segmentation" and "Mask-guided editing". A mask is begun by a click, a box, a stroke, words or a brush.
Further ones say what belongs to the object and what does not, and the model improves its mask; or other objects are added and taken
away. Then an instruction is carried out inside it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from ..data.world import first_held_out_seed, render, sample_scene
from ..processing.drawing import draw_masks
from ..processing.regions import Box, Mask, Point, Stroke, Strokes

NEW, PLUS, MINUS = "new mask", "+ belongs to it", "- does not"  # what is pointed at, of one object
ADD, TAKE = "add", "take away"  # of the mask, whatever objects it holds
MODES = (NEW, PLUS, MINUS, ADD, TAKE)
MAX_PIXELS = 50_000_000
VIEW = (512, 1536)  # the longer side of what the page shows: small pictures are enlarged, photographs reduced
CROP_MARGIN = 0.05  # of the shorter side, around what is edited
MAX_PAST = 20  # edits that can be undone

Progress = Callable[[int, int], None]


class Stopped(Exception):
    """The user pressed stop."""


@dataclass
class Version:
    """A picture that was: with the mask that was edited, and the instruction that ended it."""

    image: Image.Image
    mask: np.ndarray | None
    instruction: str

    @property
    def small(self) -> Image.Image:
        """For a list of versions."""
        small = self.image.copy()
        small.thumbnail((256, 256))
        return small


@dataclass
class Session:
    """What one user sees.

    Args:
        image: the picture, RGB.
        mask: bool [height, width], what was pointed at; None where nothing was.
        edit_mask: bool [height, width], where the last edit was free to change pixels.
        strokes: what was said about the object so far, while it is one.
        corner: the first of the two clicks of a box.
        past: pictures to go back to, the oldest first.
        encoding: the picture as the pipeline has read it.
        stop: whether the call in progress is to end.
    """

    image: Image.Image | None = None
    mask: np.ndarray | None = None
    edit_mask: np.ndarray | None = None
    strokes: list[Stroke] = field(default_factory=list)
    corner: tuple[float, float] | None = None
    past: list[Version] = field(default_factory=list)
    encoding: Any = None
    stop: bool = False

    def require_image(self) -> Image.Image:
        """The picture; ValueError where there is none."""
        if self.image is None:
            raise ValueError("There is no picture yet. Upload one, or let a scene be drawn.")
        return self.image

    def show(self, image: Image.Image) -> None:
        """Another picture, of which nothing is known yet."""
        self.image, self.mask, self.corner, self.encoding = image, None, None, None
        self.strokes = []

    @property
    def scale(self) -> float:
        """How large a pixel of the picture is on the page."""
        side = max(self.require_image().size)
        return VIEW[1] / side if side > VIEW[1] else max(1, VIEW[0] // side)

    def view(self, image: Image.Image) -> Image.Image:
        """A picture of this one's size as the page shows it."""
        if self.scale == 1:
            return image
        size = tuple(max(1, round(side * self.scale)) for side in image.size)
        return image.resize(size, Image.Resampling.NEAREST if self.scale > 1 else Image.Resampling.BILINEAR)

    def overlay(self) -> Image.Image:
        """The picture with its mask, and the corner of a box that was begun, as the page shows it."""
        image = self.view(self.require_image())
        if self.mask is not None:
            mask = self.view(Image.fromarray(self.mask.astype(np.uint8) * 255))
            image = draw_masks(image, np.asarray(mask) > 127, outline=2)
        if self.corner is not None:
            dot = np.zeros((image.height, image.width), dtype=bool)
            x, y = (min(int(place * self.scale), side - 1) for place, side in zip(self.corner, image.size))
            dot[max(0, y - 4) : y + 5, max(0, x - 4) : x + 5] = True
            image = draw_masks(image, dot, opacity=1.0)
        return image


class Studio:
    """A pipeline at the service of sessions, one call at a time."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self._turn = threading.Lock()

    # -- the picture -----------------------------------------------------------------------------------------------------

    def open(self, session: Session, path: str | Path) -> str:
        """Take a picture from a file; returns what to tell."""
        try:
            with Image.open(path) as file:
                if file.width * file.height > MAX_PIXELS:
                    raise ValueError(
                        f"This picture has {file.width * file.height / 1e6:.0f} million pixels; up to "
                        f"{MAX_PIXELS // 10**6} million are taken. Make it smaller first."
                    )
                image = ImageOps.exif_transpose(file).convert("RGB")
        except (Image.UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, OSError) as error:
            raise ValueError(f"{Path(path).name} cannot be read as a picture. Use a PNG, JPEG or WebP file.") from error
        session.show(image)
        session.past.clear()
        session.edit_mask = None
        return f"{image.width} x {image.height} pixels. Point at something, or say what to find."

    def draw_scene(self, session: Session, seed: int) -> str:
        """Draw a scene of the still-life world that training has not seen."""
        session.show(Image.fromarray(render(sample_scene(first_held_out_seed + seed)).image))
        session.past.clear()
        session.edit_mask = None
        return "A scene of the world focus-tiny was trained on. Point at something, or say what to find."

    def undo(self, session: Session, to: int = -1) -> str:
        """Back to the picture before the last edit, with its mask; or to any picture of `session.past`, counted from 0."""
        if not session.past[to:]:
            raise ValueError("There is no edit to undo.")
        version = session.past[to]
        del session.past[to:]
        session.show(version.image)
        session.mask, session.edit_mask = version.mask, None
        return f"Undone: {version.instruction}"

    # -- the mask --------------------------------------------------------------------------------------------------------

    def click(self, session: Session, x: float, y: float, mode: str = NEW) -> str:
        """What lies at a place, in pixels of the picture."""
        return self._point(session, mode, Point(x, y, positive=mode != MINUS))

    def corner(self, session: Session, x: float, y: float, mode: str = NEW) -> str:
        """A corner of a box; the second one looks inside the box."""
        if session.corner is None:
            session.corner = (x, y)
            return "Now click the opposite corner."
        (x0, y0), session.corner = session.corner, None
        left, top, right, bottom = (int(at) for at in (min(x0, x), min(y0, y), max(x0, x), max(y0, y)))
        return self.box(session, (left, top, right + 1, bottom + 1), mode)  # with the pixels that were clicked

    def box(self, session: Session, edges: tuple[float, ...], mode: str = NEW) -> str:
        """What lies in a box x0, y0, x1, y1."""
        return self._point(session, mode, Box(*edges, positive=mode != MINUS))

    def strokes(self, session: Session, strokes: np.ndarray, mode: str = NEW) -> str:
        """What brush strokes (bool [height, width] over the picture, at any size) are on."""
        return self._point(session, mode, Mask(self._painted(session, strokes), positive=mode != MINUS))

    def paint(self, session: Session, strokes: np.ndarray, mode: str = NEW) -> str:
        """The brush strokes themselves."""
        return self._join(session, self._painted(session, strokes), mode, "Painted")

    def find(self, session: Session, words: str, mode: str = NEW) -> str:
        """What words refer to."""
        session.require_image()
        if not words.strip():
            raise ValueError("Say what to find, such as: the red circle.")
        return self._segment(session, mode, [], target=words.strip())

    def clear(self, session: Session) -> str:
        """No mask."""
        session.require_image()
        session.mask = session.corner = None
        session.strokes = []
        return "No mask: an instruction says by itself where to edit."

    def _painted(self, session: Session, strokes: np.ndarray) -> np.ndarray:
        image = session.require_image()
        if not strokes.any():
            raise ValueError("Nothing is painted yet. Paint on the picture first.")
        if strokes.shape == (image.height, image.width):
            return strokes
        # Area sampling, so that a thin stroke on a large page is still there in a small picture.
        soft = Image.fromarray(strokes.astype(np.uint8) * 255).resize(image.size, Image.Resampling.BOX)
        return np.asarray(soft) > 64

    def _point(self, session: Session, mode: str, stroke: Stroke) -> str:
        """What a stroke is on, or the mask improved by it."""
        image = session.require_image()
        stroke.rasterize(image.height, image.width)
        if mode not in (PLUS, MINUS):
            strokes = [stroke] if mode == NEW else []
            return self._segment(session, mode, strokes, region=stroke)
        if session.mask is None:
            raise ValueError("There is no mask yet that this could belong to or not. Begin with a new one.")
        strokes = [*session.strokes, stroke]
        return self._segment(session, NEW, strokes, region=Strokes(*strokes, previous=session.mask))

    def _segment(
        self, session: Session, mode: str, strokes: list[Stroke], *, target: str | None = None, region: Any = None
    ) -> str:
        with self._turn:
            found = self.pipe.segment(self._seen(session), target, region)
        if not found.masks[0].any():
            return "Nothing found" + (f" for {target!r}." if target else " there.") + " The mask is as it was."
        label, score = found.labels[0][0], float(found.scores[0][0])
        objects = f" and {len(found.masks[0]) - 1} more" if len(found.masks[0]) > 1 else ""
        text = f"{label}{objects}, score {score:.2f}"
        return self._join(session, found.masks[0].any(axis=0), mode, text, strokes)

    def _join(
        self, session: Session, piece: np.ndarray, mode: str, text: str, strokes: list[Stroke] | None = None
    ) -> str:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.")
        if mode in (TAKE, MINUS):
            mask = None if session.mask is None else session.mask & ~piece
        else:
            mask = piece if mode == NEW or session.mask is None else session.mask | piece
        session.mask = mask if mask is not None and mask.any() else None
        session.strokes = strokes or []
        size = 0 if session.mask is None else int(session.mask.sum())
        return f"{text}. The mask has {size} pixels."

    # -- asking and editing ----------------------------------------------------------------------------------------------

    def ask(self, session: Session, question: str, about_mask: bool = False, progress: Progress | None = None) -> str:
        """The answer to a question about the picture, or about what is in the mask."""
        if not question.strip():
            raise ValueError("Write a question, such as: how many objects are there?")
        if about_mask and session.mask is None:
            raise ValueError("There is no mask to ask about. Point at something first.")
        region = Mask(session.mask) if about_mask else None
        with self._turn, self.pipe.watched(self._watcher(session, progress)):
            return self.pipe.understand(self._seen(session), question.strip(), region).text[0]

    def edit(
        self,
        session: Session,
        instruction: str,
        *,
        seed: int = 0,
        steps: int = 0,
        strength: float = 1.0,
        crop: bool = False,
        progress: Progress | None = None,
    ) -> str:
        """Carry out an instruction, inside the mask if there is one; the picture becomes the edited one.

        Args:
            crop: draw only the surroundings of the mask, at the model's full resolution: for small things in photographs.

        Raises:
            Stopped: `session.stop` was set meanwhile; the picture is as it was.
            ValueError: no picture or instruction, or something that the pipeline refuses.
        """
        image = session.require_image()
        if not instruction.strip():
            raise ValueError("Write what should happen, such as: make the star blue.")
        generator = torch.Generator("cpu").manual_seed(seed)
        with self._turn, self.pipe.watched(self._watcher(session, progress)):
            out = self.pipe.edit(
                self._seen(session),
                instruction.strip(),
                mask_image=session.mask,
                num_inference_steps=steps or None,
                strength=strength,
                padding_mask_crop=round(CROP_MARGIN * min(image.size)) if crop else None,
                generator=generator,
            )
        place = out.edit_masks[0]
        if not place.any():
            return (
                "Nothing was found that the instruction could be about; the picture is as it was. Point at it instead."
            )
        session.past.append(Version(image, session.mask, instruction.strip()))
        del session.past[:-MAX_PAST]
        session.show(out.images[0])
        session.edit_mask = place
        return f"Done: {instruction.strip()} ({int(place.sum())} pixels were free to change)."

    def _seen(self, session: Session) -> Any:
        """The picture as the pipeline reads it, once for everything that is asked of it."""
        image = session.require_image()
        if session.encoding is None:
            session.encoding = self.pipe.encode_image(image)
        return session.encoding

    def _watcher(self, session: Session, progress: Progress | None) -> Progress:
        session.stop = False

        def watch(done: int, total: int) -> None:
            if session.stop:
                raise Stopped("Stopped; the picture is as it was.")
            if progress is not None and total:
                progress(done, total)

        return watch
