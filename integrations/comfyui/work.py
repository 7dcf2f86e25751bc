"""What the nodes do, from tensors to tensors, with a pipeline at hand. Needs no ComfyUI."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .tensors import (
    InputError,
    keep_own_values,
    read_images,
    read_masks,
    read_names,
    read_regions,
    write_images,
    write_masks,
    write_pictures,
)

SEEDS = 2**64


def ask(
    pipe: Any,
    image: torch.Tensor,
    question: str,
    points: str = "",
    box: str = "",
    scribble: str = "",
    max_tokens: int = 128,
    mask: torch.Tensor | None = None,
) -> str:
    """Answers, one line for each image."""
    images, question = read_images(image), _words("question", question)
    regions = read_regions(_size(image), len(images), points=points, box=box, scribble=scribble, mask=mask)
    _require(pipe, "understand", "answer questions")
    with _named_inputs({"prompt": "question"}):
        answers = pipe.understand(images, question, regions, max_new_tokens=max_tokens).text
    return "\n".join(" ".join(answer.split()) for answer in answers) if len(answers) > 1 else answers[0]


def segment(
    pipe: Any,
    image: torch.Tensor,
    words: str = "",
    class_names: str = "",
    points: str = "",
    negative_points: str = "",
    box: str = "",
    scribble: str = "",
    threshold: float = 0.0,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, str, str, int]:
    """Masks of each image, masks of each object, overlays, scores, descriptions and the number of objects."""
    from diffusers_focus import Strokes
    from diffusers_focus.processing.drawing import draw_masks

    images, size = read_images(image), _size(image)
    pointed = {"points": points, "negative_points": negative_points, "box": box, "scribble": scribble, "mask": mask}
    regions = read_regions(size, len(images), **pointed)
    if regions is not None:  # several are about one object
        regions = [Strokes(*group) if len(group) > 1 else group[0] for group in regions]
    names = read_names(class_names)
    _one_of(words.strip(), names, regions)
    options: dict[str, Any] = {"score_threshold": threshold, "fallback_threshold": threshold} if threshold else {}
    _require(pipe, "segment", "find objects")
    with _named_inputs({"target": "words", "classes": "class_names"}):
        found = pipe.segment(images, words.strip() or None, regions, classes=names or None, **options)
    objects = [one for masks in found.masks for one in masks]
    overlays = [draw_masks(one, masks) for one, masks in zip(images, found.masks)]
    scores = [float(score) for of_image in found.scores for score in of_image]
    labels = [label for of_image in found.labels for label in of_image]
    text = [
        f"{label}  {score:.2f}  {int(one.sum())} pixels"
        for label, score, one in zip(labels, scores, objects, strict=True)
    ]
    return (
        write_masks([masks.any(axis=0) for masks in found.masks], size),
        write_masks(objects, size),
        write_pictures(overlays),
        "\n".join(f"{score:.4f}" for score in scores),
        "\n".join(text) or "nothing found",
        len(objects),
    )


def segment_clip(
    pipe: Any,
    image: torch.Tensor,
    words: str = "",
    class_names: str = "",
    points: str = "",
    box: str = "",
    scribble: str = "",
    frame: int = 0,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, str, int]:
    """Masks of each frame, masks of each object in each frame, overlays, descriptions and the number of objects."""
    from diffusers_focus.processing.drawing import draw_masks

    frames, size = read_images(image), _size(image)
    regions = _regions_on(frame, len(frames), size, mask, points=points, box=box, scribble=scribble)
    lines, names = [line.strip() for line in words.split("\n") if line.strip()], read_names(class_names)
    _one_of(lines, names, regions)
    _require(pipe, "segment_clip", "find objects")
    region = None if regions is None else {frame: [regions[0]]}  # several regions of one object
    with _named_inputs({"target": "words", "classes": "class_names"}):
        found = pipe.segment_clip(frames, lines or None, region, classes=names or None)
    masks = found.masks.reshape(-1, len(frames), *size)
    text = [
        f"{label}  in {int(seen.sum())} of {len(frames)} frames"
        for label, seen in zip(found.labels, masks.any(axis=(2, 3)), strict=True)
    ]
    return (
        write_masks(list(masks.any(axis=0)), size),
        write_masks([one for object_masks in masks for one in object_masks], size),
        write_pictures([draw_masks(one, masks[:, index]) for index, one in enumerate(frames)]),
        "\n".join(text) or "nothing found",
        len(masks),
    )


def edit(
    pipe: Any,
    image: torch.Tensor,
    instruction: str,
    target: str = "",
    seed: int = 0,
    control_strength: float = 1.0,
    mask: torch.Tensor | None = None,
    control_image: torch.Tensor | None = None,
    **drawing: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Edited images, and where their pixels were free to change. `drawing` are arguments of `drawing_options`."""
    images, instruction = read_images(image), _words("instruction", instruction)
    masks = read_masks(mask, _size(image), len(images))
    rows = [index for index in range(len(images)) if masks is None or masks[index].any()]
    if not rows:
        raise InputError(
            "mask", "it is empty: not a single pixel may change. Paint on the image, or disconnect the input."
        )
    options = {
        **drawing_options(**drawing),
        "target": target.strip() or None,
        "mask_image": None if masks is None else [masks[index] for index in rows],
        "generator": _generators(seed, rows),
    }
    if control_image is not None:
        maps = _control_maps(control_image, image)
        options |= {
            "control_image": [maps[row if len(maps) > 1 else 0] for row in rows],
            "controlnet_conditioning_scale": control_strength,
        }
    _require(pipe, "edit", "edit images")
    with _named_inputs({"prompt": "instruction", "mask_image": "mask"}):
        out = pipe.edit([images[row] for row in rows], instruction, output_type="pt", **options)
    result = image[..., :3].expand(*image.shape[:3], 3).float().cpu().clone()
    places = torch.zeros(len(images), *_size(image))
    result[rows] = keep_own_values(write_images(out.images), result[rows])
    places[rows] = write_masks(out.edit_masks, _size(image))
    return result, places


def edit_clip(
    pipe: Any,
    image: torch.Tensor,
    instruction: str,
    words: str = "",
    points: str = "",
    box: str = "",
    scribble: str = "",
    frame: int = 0,
    seed: int = 0,
    mask: torch.Tensor | None = None,
    **drawing: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Edited frames, and where their pixels were free to change. `drawing` are arguments of `drawing_options`."""
    frames, size, instruction = read_images(image), _size(image), _words("instruction", instruction)
    regions = _regions_on(frame, len(frames), size, mask, points=points, box=box, scribble=scribble)
    if regions is not None and words.strip():
        raise InputError(
            "words", "the region says already what it is about. Leave words empty, or take the region out."
        )
    _require(pipe, "edit_clip", "edit clips")
    with _named_inputs({"prompt": "instruction", "target": "words"}):
        out = pipe.edit_clip(
            frames,
            instruction,
            words.strip() or None,
            None if regions is None else {frame: [regions[0]]},
            generator=_generators(seed, [0])[0],
            **drawing_options(**drawing),
        )
    return keep_own_values(write_pictures(out.images), image), write_masks(list(out.edit_masks), size)


def generate(
    pipe: Any,
    description: str,
    width: int = 0,
    height: int = 0,
    batch_size: int = 1,
    seed: int = 0,
    steps: int = 0,
    guidance: float = 0.0,
) -> torch.Tensor:
    """Pictures of a description."""
    description = _words("description", description)
    _require(pipe, "generate", "draw images")
    with _named_inputs({"prompt": "description", "This model renders": "width and height"}):
        out = pipe.generate(
            description,
            width=width or None,
            height=height or None,
            num_images_per_prompt=batch_size,
            generator=_generators(seed, range(batch_size)),
            output_type="pt",
            **_sampling(steps, guidance),
        )
    return write_images(out.images)


def drawing_options(
    steps: int = 0,
    guidance: float = 0.0,
    strength: float = 1.0,
    grow: int = -1,
    feather: int = -1,
    crop: int = -1,
    negative: str = "",
) -> dict[str, Any]:
    """What FOCUS Edit and FOCUS Edit Clip say alike about the drawing, as arguments of the pipeline."""
    return {
        **_sampling(steps, guidance),
        "strength": strength,
        "mask_dilation": grow if grow >= 0 else None,
        "mask_blur": feather if feather >= 0 else None,
        "padding_mask_crop": crop if crop >= 0 else None,
        "negative_prompt": negative.strip() or None,
    }


def _control_maps(control_image: torch.Tensor, image: torch.Tensor) -> list[Any]:
    """Maps for a ControlNet: one for all images or one for each, of their size."""
    maps = read_images(control_image, "control_image")
    if _size(control_image) != _size(image) or len(maps) not in (1, len(image)):
        raise InputError(
            "control_image",
            f"there are {len(maps)} of {control_image.shape[2]} x {control_image.shape[1]} pixels for {len(image)} images of "
            f"{image.shape[2]} x {image.shape[1]}. Give one for all or one for each, of the images' size.",
        )
    return maps


def _one_of(words: Any, names: Any, regions: Any) -> None:
    """Refuse what says in two ways, or in none, what is looked for."""
    given = {"words": words, "class_names": names, "points, box, scribble or mask": regions}
    asked = [name for name, value in given.items() if value]
    if len(asked) != 1:
        raise InputError(
            "words",
            "give exactly one of words, class_names, and a region (points, box, scribble, mask); got "
            f"{' and '.join(asked) or 'none'}.",
        )


def _regions_on(
    frame: int, count: int, size: tuple[int, int], mask: torch.Tensor | None, **pointed: str
) -> list[Any] | None:
    """What points at an object on one frame of a clip of `count` frames."""
    if frame >= count:
        raise InputError("frame", f"there are {count} frames, numbered from 0; got {frame}.")
    if mask is not None and mask.ndim > 2 and len(mask) == count:
        mask = mask[frame : frame + 1]  # of a batch of frames, the mask of the one that is pointed at
    return read_regions(size, 1, mask=mask, **pointed)


def _size(image: torch.Tensor) -> tuple[int, int]:
    return image.shape[1], image.shape[2]


def _words(name: str, text: str) -> str:
    if not text.strip():
        raise InputError(name, "it is empty. Write at least one word.")
    return text.strip()


def _require(pipe: Any, method: str, what: str) -> None:
    """Pipelines for one half of FOCUS lack the other half's methods."""
    if not hasattr(pipe, method):
        raise InputError("pipeline", f"a {type(pipe).__name__} does not {what}. Load a FocusPipeline.")


def _generators(seed: int, rows: Any) -> list[torch.Generator]:
    """A generator for each image, so that an image of a batch is drawn as it would be alone with its seed."""
    return [torch.Generator("cpu").manual_seed((seed + row) % SEEDS) for row in rows]


def _sampling(steps: int, guidance: float) -> dict[str, Any]:
    return {"num_inference_steps": steps or None, "guidance_scale": guidance or None}


@contextmanager
def _named_inputs(names: dict[str, str]) -> Iterator[None]:
    """Errors of the pipeline that begin with one of these words, its arguments mostly, told of the node's inputs."""
    try:
        yield
    except (TypeError, ValueError) as error:
        text = str(error)
        for argument, name in names.items():
            if text.startswith(argument):
                raise InputError(name, text if " " in argument else text.removeprefix(argument).strip()) from error
        raise
