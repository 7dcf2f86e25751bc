"""A clip, frame by frame: what is asked of it, the passes over it, and the objects of each frame.

FOCUS section "Segmentation predictor": a region prompt on any one frame guides the clip, so objects are followed to both sides of
the frame they were pointed at. The pass backwards comes first; its masks are kept compressed until the pass forwards brings their
frame, so that results come in the order of the clip. Everything else that is kept is what `ClipTracker` remembers.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..processing.clips import ClipFrames
from ..processing.outlines import outline_masks
from ..processing.prompts import CLASS, REFERRING
from ..processing.regions import Mask, Region
from .arguments import as_list, check_text, pointed_regions
from .encode import Components, FocusImageEncoding, encode_image
from .mask_requests import TARGET_TASKS, check_request, mask_request
from .segment import INSTANCE, MAX_NAMES, MaskPrompt
from .settings import Settings
from .tracking import ClipTracker, Sight


@dataclass
class FocusClipFrame:
    """The objects that are seen in one frame of a clip.

    Args:
        index: number of the frame, from 0.
        image: the frame, RGB.
        masks: bool [objects, height, width].
        numbers: the identity of each, from 1: of regions and expressions their place in the call, of classes the order in which
            they appeared.
        scores: float32 [objects], how sure it is that the object is there.
        labels: a name for each.
    """

    index: int
    image: Image.Image
    masks: np.ndarray
    numbers: list[int] = field(default_factory=list)
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    labels: list[str] = field(default_factory=list)


@dataclass
class ClipRequest:
    """What is looked for in a clip.

    Args:
        queries: prompts that are asked of every frame.
        regions: frame -> (number, regions) of the objects pointed at on it; the regions of one tuple are one object's.
    """

    queries: list[MaskPrompt] = field(default_factory=list)
    regions: dict[int, list[tuple[int, tuple[Region, ...]]]] = field(default_factory=dict)

    @property
    def last_frame(self) -> int:
        """The last frame that something was pointed at on."""
        return max(self.regions, default=0)


def clip_request(
    target: Any = None, region: Any = None, *, classes: Any = None, task: str | None = None, length: int | None = None
) -> ClipRequest:
    """The request of one call.

    Args:
        target: an expression, or a list of them; each is an object of its own.
        region: a region on frame 0 or a list of them, an object each (regions of one object: a list within the list); or
            such for other frames, {frame: ...}.
        classes: names to look for.
        task: "referring" (default) or "reasoning".
        length: frames of the clip, where it is known.

    Raises:
        TypeError, ValueError: not exactly one of the three, or one that does not fit.
    """
    check_request(target, region, classes, None)
    tasks = (INSTANCE,) if classes is not None else TARGET_TASKS
    if task is not None and (task not in tasks or region is not None):
        raise ValueError(
            f"There is no task {task!r} here: an expression in a clip is {' or '.join(TARGET_TASKS)}, classes are found by "
            f"{INSTANCE}, and regions name no task."
        )
    if target is not None:
        texts = [check_text(text, "target") for text in as_list(target, "target") or [target]]
        return ClipRequest([MaskPrompt(0, task or REFERRING, text) for text in texts])
    if classes is not None:
        if any(isinstance(name, (list, tuple)) for name in classes):
            raise TypeError(f'The classes of a clip are one list of names such as ["cat", "dog"], got {classes!r}.')
        return ClipRequest([MaskPrompt(0, CLASS, list(classes))])
    frames = region if isinstance(region, Mapping) else {0: region}
    if not frames:
        raise ValueError("region is an empty dict. Pass at least one frame with a region, such as {0: Point(40, 52)}.")
    found: dict[int, list[tuple[int, tuple[Region, ...]]]] = {}
    number = 0
    for frame, given in frames.items():
        if isinstance(frame, bool) or not isinstance(frame, (int, np.integer)):
            raise TypeError(f"region is {{frame number: region}}; {frame!r} is no frame number.")
        if frame < 0 or (length is not None and frame >= length):
            known = "" if length is None else f" to {length - 1}"
            raise ValueError(f"A region is on frame {frame}, but the clip has the frames 0{known}.")
        for one in as_list(given, "region") or [given]:
            number += 1
            found.setdefault(int(frame), []).append((number, tuple(pointed_regions(one))))
    return ClipRequest(regions=found)


def follow_clip(
    components: Components,
    settings: Settings,
    clip: ClipFrames,
    request: ClipRequest,
    *,
    device: torch.device | None = None,
    max_new_tokens: int = MAX_NAMES,
    encode: Callable[[Image.Image], FocusImageEncoding] | None = None,
) -> Iterator[FocusClipFrame]:
    """The frames of a clip in their order, each with its objects; one frame is in memory at a time.

    Args:
        clip: read once, or (regions on a later frame than 0) once backwards as well.
        request: from `clip_request`.
        device: where to compute.
        encode: reads a frame, in place of `encode_image`.
    """
    encode = encode or partial(encode_image, components, device=device)

    def tracker() -> ClipTracker:
        return ClipTracker(components, settings, request.queries, max_new_tokens=max_new_tokens)

    if request.queries:
        return _ask_frames(components, settings, clip, encode, tracker())
    if request.last_frame and not clip.repeatable:
        raise ValueError(
            f"A region on frame {request.last_frame} needs the clip backwards too, which a stream of frames cannot do. Pass a "
            "list, an array, a folder or a file, or a region on frame 0."
        )
    return _follow_regions(components, settings, clip, request, encode, tracker)


def _ask_frames(
    components: Components, settings: Settings, clip: ClipFrames, encode: Any, tracker: ClipTracker
) -> Iterator[FocusClipFrame]:
    """Expressions (an object each) or a list of classes (an object for each that appears)."""
    by_class = tracker.queries[0].task == CLASS
    shown: dict[int, int] = {}  # a track's number -> the one that it is shown under
    for index, image in clip.forwards():
        encoding = encode(image)
        sights = tracker.step(encoding)
        if by_class:
            for sight in sights:
                shown.setdefault(sight.track.number, len(shown) + 1)
            numbers = [shown[sight.track.number] for sight in sights]
            labels = [sight.track.label for sight in sights]
        else:
            numbers = [sight.track.query + 1 for sight in sights]
            labels = [str(tracker.queries[sight.track.query].text) for sight in sights]
        yield _frame(components, settings, encoding, index, image, sights, numbers, labels, apart=by_class)


def _follow_regions(
    components: Components, settings: Settings, clip: ClipFrames, request: ClipRequest, encode: Any, make: Any
) -> Iterator[FocusClipFrame]:
    earlier: dict[int, list[_Kept]] = {}
    last = request.last_frame
    if last:
        tracker = make()
        for index, image in clip.backwards(last):
            encoding = encode(image)
            sights = tracker.step(encoding)
            if sights:
                frame = _frame(components, settings, encoding, index, image, sights, *_names(sights))
                earlier[index] = [_Kept.of(frame, place) for place in range(len(frame.numbers))]
            _point(tracker, encoding, request.regions.get(index, ()))
            del encoding
        if not tracker.tracks:
            raise ValueError(f"A region is on frame {last}, but the clip ends before it.")
    tracker, index = make(), -1
    for index, image in clip.forwards():
        sights: list[Sight] = []
        encoding = None
        if tracker.tracks or index in request.regions:
            encoding = encode(image)
            sights = tracker.step(encoding) + _point(tracker, encoding, request.regions.get(index, ()))
        if encoding is None:
            size = (image.height, image.width)
            frame = FocusClipFrame(index, image, np.zeros((0, *size), dtype=bool))
        else:
            frame = _frame(components, settings, encoding, index, image, sights, *_names(sights))
        yield _with(frame, earlier.pop(index, ()))
    if index < last:
        raise ValueError(f"A region is on frame {last}, but the clip has the frames 0 to {index}.")


def _point(
    tracker: ClipTracker,
    encoding: FocusImageEncoding,
    objects: Sequence[tuple[int, tuple[Region, ...]]],
) -> list[Sight]:
    if not objects:
        return []
    prompts = mask_request(encoding, region=[list(regions) for _, regions in objects]).prompts
    outlines = [all(isinstance(region, Mask) for region in regions) for _, regions in objects]
    return tracker.point(encoding, prompts, [number for number, _ in objects], outlines)


def _names(sights: Sequence[Sight]) -> tuple[list[int], list[str]]:
    return [sight.track.number for sight in sights], [sight.track.label for sight in sights]


def _frame(
    components: Components,
    settings: Settings,
    encoding: FocusImageEncoding,
    index: int,
    image: Image.Image,
    sights: Sequence[Sight],
    numbers: Sequence[int],
    labels: Sequence[str],
    *,
    apart: bool = True,
) -> FocusClipFrame:
    """Sights as masks of the frame's own size; with `apart` a pixel is the object's that is surest of it, and sights with the same
    number are one object.
    """
    if not sights:
        return FocusClipFrame(index, image, np.zeros((0, image.height, image.width), dtype=bool))
    logits = torch.stack([sight.logits for sight in sights]).float()
    soft = outline_masks(
        components.image_processor, logits, encoding.inputs.placements[0], image, settings.mask_refinement
    )
    masks = soft > 0
    for place, sight in enumerate(sights):
        if sight.mask is not None:
            masks[place] = torch.from_numpy(sight.mask).to(masks.device)
            soft[place] = torch.where(masks[place], soft[place].clamp(min=1.0), soft[place].clamp(max=-1.0))
    if apart:
        masks &= torch.arange(len(soft), device=soft.device)[:, None, None] == soft.argmax(0)
    found = masks.cpu().numpy()
    objects: dict[int, list[int]] = {}
    for place, number in enumerate(numbers):
        if found[place].any():
            objects.setdefault(number, []).append(place)
    order = sorted(objects)
    return FocusClipFrame(
        index=index,
        image=image,
        masks=np.stack([found[objects[n]].any(axis=0) for n in order]) if order else found[:0],
        numbers=order,
        scores=np.asarray([max(sights[place].score for place in objects[n]) for n in order], dtype=np.float32),
        labels=[labels[objects[n][0]] for n in order],
    )


@dataclass(frozen=True)
class _Kept:
    """A mask of the pass backwards, compressed until its frame comes."""

    number: int
    score: float
    label: str
    shape: tuple[int, int]
    data: bytes

    @classmethod
    def of(cls, frame: FocusClipFrame, place: int) -> _Kept:
        mask = frame.masks[place]
        data = zlib.compress(np.packbits(mask).tobytes(), 1)
        return cls(frame.numbers[place], float(frame.scores[place]), frame.labels[place], mask.shape, data)

    @property
    def mask(self) -> np.ndarray:
        bits = np.unpackbits(
            np.frombuffer(zlib.decompress(self.data), dtype=np.uint8), count=self.shape[0] * self.shape[1]
        )
        return bits.reshape(self.shape).astype(bool)


def _with(frame: FocusClipFrame, kept: Sequence[_Kept]) -> FocusClipFrame:
    """A frame with the objects of the pass backwards, which have other numbers than its own; its own keep their pixels."""
    if not kept:
        return frame
    taken = frame.masks.any(axis=0)
    entries = [(n, m, s, t) for n, m, s, t in zip(frame.numbers, frame.masks, frame.scores.tolist(), frame.labels)]
    entries += [(one.number, one.mask & ~taken, one.score, one.label) for one in kept]
    entries = sorted((entry for entry in entries if entry[1].any()), key=lambda entry: entry[0])
    return FocusClipFrame(
        index=frame.index,
        image=frame.image,
        masks=np.stack([mask for _, mask, _, _ in entries]) if entries else frame.masks[:0],
        numbers=[number for number, _, _, _ in entries],
        scores=np.asarray([score for _, _, score, _ in entries], dtype=np.float32),
        labels=[label for _, _, _, label in entries],
    )
