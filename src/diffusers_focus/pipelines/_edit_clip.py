"""`edit_clip` and `stream_clip_edit`: one instruction for every frame of a clip, in the place that is followed through it.

FOCUS edits images; a clip is its frames. What is the same in all of them keeps an edit still: the place comes from the clip
segmentation (a region or words on one frame, followed through the others), and every frame draws its visual tokens and its noise
from the same random numbers. Pixels outside the soft edit mask are each frame's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers.utils.outputs import BaseOutput
from PIL import Image

from ..processing.clips import ClipFrames, open_clip
from ..processing.regions import Mask
from ..steps.arguments import check_count, check_text
from ..steps.clips import FocusClipFrame
from ..steps.composite import grow_mask, needs_box, relative_radius
from ..steps.editing import EditPlace, edit_places, edit_prompts
from ..steps.encode import FocusImageEncoding
from ..steps.segment import MAX_NAMES
from ._clip import FocusClipMixin
from ._edit import FocusEditMixin

# Arguments of an edit that belong to one image, or are the clip's own matter.
_NOT_FOR_CLIPS = frozenset({"image", "mask_image", "latents", "num_images_per_prompt", "output_type", "return_dict"})


@dataclass(frozen=True, eq=False)
class FocusEditedFrame:
    """A frame of an edited clip.

    Args:
        index: number of the frame, from 0.
        image: the edited frame, RGB; the frame itself where what is edited is not seen.
        mask: bool [height, width], what the edit is about.
        edit_mask: bool [height, width], where pixels were free to change.
    """

    index: int
    image: Image.Image
    mask: np.ndarray
    edit_mask: np.ndarray


@dataclass
class FocusClipEditOutput(BaseOutput):
    """An edited clip.

    Args:
        images (`list[PIL.Image.Image]`): the frames.
        masks (`np.ndarray`): bool (frames, height, width): what the edit is about.
        edit_masks (`np.ndarray`): bool (frames, height, width): where pixels were free to change.
    """

    images: list[Image.Image]
    masks: np.ndarray
    edit_masks: np.ndarray


class FocusEditClipMixin(FocusClipMixin, FocusEditMixin):
    """Mixed into a `DiffusionPipeline` with all FOCUS components."""

    def stream_clip_edit(
        self,
        frames: Any,
        prompt: str,
        target: str | None = None,
        region: Any = None,
        *,
        generator: torch.Generator | None = None,
        mask_dilation: int | None = None,
        **options: Any,
    ) -> Iterator[FocusEditedFrame]:
        """Edit a clip, frame by frame; no frame is kept, however long the clip is.

        Args:
            frames: see `stream_clip`.
            prompt: the instruction, for every frame.
            target: what it is about, in words; looked for in every frame.
            region: the same by pointing, on frame 0 or {frame: region}; followed through the clip. Without either the place is
                what the model makes of the instruction on the first frame, followed from there; if that is more than half of the
                picture, a background, every frame is asked for it.
            generator: every frame begins with the random numbers that it has now; by default those of seed 0.
            mask_dilation: pixels to grow the mask of a frame by; the pipeline's own rule by default.
            options: of an edit: `num_inference_steps`, `guidance_scale`, `strength`, `padding_mask_crop`, `negative_prompt`,
                `mask_blur`, `preserve_background`, ...

        Returns:
            An iterator of `FocusEditedFrame`, in the order of the frames.

        Raises:
            TypeError, ValueError: an argument does not fit; while reading: a frame is damaged or of another size.
        """
        if isinstance(prompt, (list, tuple)):
            raise TypeError("A clip takes one instruction, got a list. Edit the edited clip again for the next one.")
        check_text(prompt, "prompt")
        unfit = sorted(_NOT_FOR_CLIPS & set(options))
        if unfit:
            raise TypeError(f"{', '.join(unfit)} cannot be given for a clip: it goes with a single image.")
        if mask_dilation is not None:
            check_count(mask_dilation, "mask_dilation", least=0)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}.")
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        clip, last = open_clip(frames), _LastEncoding(self)
        found: Iterator[FocusEditedFrame] | None = None
        if target is None and region is None:
            if not clip.repeatable:
                raise ValueError(
                    "A clip that can be read only once needs a target or a region: to find the place of the instruction its "
                    "first frame would be read before the others. Pass one, or the frames as a list, folder or file."
                )
            _, first = next(iter(clip.forwards()))
            mask = self._place_on(first, prompt, mask_dilation, last).masks.any(axis=0)
            if not mask.any():
                found = _nothing_in(clip)
            elif mask.mean() > 0.5:
                found = self._stream(clip, self._asked(clip, prompt, mask_dilation, last))
            else:
                region = {0: Mask(mask)}
        if found is None:
            clip, request = self._clip_request(clip, target, region, None, None)
            found = self._followed(
                self._stream(clip, self._follow(clip, request, MAX_NAMES, last)), prompt, mask_dilation
            )
        return self._edited(found, prompt, generator, generator.get_state(), options, last)

    def edit_clip(
        self,
        frames: Any,
        prompt: str,
        target: str | None = None,
        region: Any = None,
        *,
        return_dict: bool = True,
        **options: Any,
    ) -> FocusClipEditOutput | tuple[Any, ...]:
        """Edit a clip and collect its frames; `stream_clip_edit` is the same without collecting.

        Args:
            frames, prompt, target, region, options: see `stream_clip_edit`.
            return_dict: False returns a tuple.

        Returns:
            `FocusClipEditOutput`.

        Raises:
            TypeError, ValueError: see `stream_clip_edit`.
        """
        edited = list(self.stream_clip_edit(frames, prompt, target, region, **options))
        output = FocusClipEditOutput(
            images=[one.image for one in edited],
            masks=np.stack([one.mask for one in edited]),
            edit_masks=np.stack([one.edit_mask for one in edited]),
        )
        return output if return_dict else output.to_tuple()

    # -- parts -----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _place_on(self, image: Image.Image, prompt: str, mask_dilation: int | None, encode: _LastEncoding) -> EditPlace:
        """Where the instruction goes on one frame."""
        encoding = encode(image)
        prompts = edit_prompts(self, encoding, prompt, self.config)
        return edit_places(self, encoding, prompts, self.config, mask_dilation=mask_dilation)[0]

    def _asked(
        self, clip: ClipFrames, prompt: str, mask_dilation: int | None, encode: _LastEncoding
    ) -> Iterator[FocusEditedFrame]:
        """The frames as they are, each with the place that it is asked for by itself."""
        for index, image in clip.forwards():
            place = self._place_on(image, prompt, mask_dilation, encode)
            yield FocusEditedFrame(index, image, place.masks.any(axis=0), place.edit_mask)

    def _followed(
        self, frames: Iterator[FocusClipFrame], prompt: str, mask_dilation: int | None
    ) -> Iterator[FocusEditedFrame]:
        """The frames as they are, each with the place that follows from what was found in it."""
        for frame in frames:
            mask = edit_mask = frame.masks.any(axis=0)
            if mask.any():
                radius = mask_dilation
                if radius is None:
                    radius = relative_radius(self.config.mask_dilation, *mask.shape)
                edit_mask = grow_mask(mask, radius, boxed=needs_box(prompt))
            yield FocusEditedFrame(frame.index, frame.image, mask, edit_mask)

    def _edited(
        self,
        frames: Iterator[FocusEditedFrame],
        prompt: str,
        generator: torch.Generator,
        state: torch.Tensor,
        options: dict[str, Any],
        last: _LastEncoding,
    ) -> Iterator[FocusEditedFrame]:
        for frame in frames:
            if frame.edit_mask.any():
                generator.set_state(state)
                seen = last.of(frame.image) or frame.image
                image = self._edit_frame(seen, prompt, EditPlace(frame.mask[None], frame.edit_mask), generator, options)
                frame = replace(frame, image=image)
            yield frame

    def _edit_frame(
        self,
        image: Image.Image | FocusImageEncoding,
        prompt: str,
        place: EditPlace,
        generator: torch.Generator,
        options: dict[str, Any],
    ) -> Image.Image:
        """One frame; its own progress bars would bury the clip's."""
        bars = getattr(self, "_progress_bar_config", {})
        self.set_progress_bar_config(**{**bars, "disable": True})
        try:
            return self(prompt=prompt, image=image, mask_image=place, generator=generator, **options).images[0]
        finally:
            self.set_progress_bar_config(**bars)


class _LastEncoding:
    """Encodes frames and remembers the last one, which is edited right after it was searched; still frames are encoded once."""

    def __init__(self, pipe: FocusEditClipMixin) -> None:
        self._pipe = pipe
        self._image: Image.Image | None = None
        self._encoding: FocusImageEncoding | None = None

    def __call__(self, image: Image.Image) -> FocusImageEncoding:
        known = self.of(image)
        if known is None:
            self._image, self._encoding = None, None  # not both at once
            known = self._pipe.encode_image(image)
            self._image, self._encoding = image, known
        return known

    def of(self, image: Image.Image) -> FocusImageEncoding | None:
        """The encoding of a frame if it is the last one that was encoded."""
        own = self._image
        if own is None or own.size != image.size or own.mode != image.mode:
            return None
        return self._encoding if own is image or own.tobytes() == image.tobytes() else None


def _nothing_in(clip: ClipFrames) -> Iterator[FocusEditedFrame]:
    for index, image in clip.forwards():
        nowhere = np.zeros((image.height, image.width), dtype=bool)
        yield FocusEditedFrame(index, image, nowhere, nowhere)
