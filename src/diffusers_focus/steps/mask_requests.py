"""What a caller of `segment` asks for: words, regions or names, one image or many, brought to one list of prompts.

Nothing here touches a model. FOCUS (arXiv 2506.16806), section "Prompts", has the four segmentation tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..processing.prompts import CLASS, INTERACTIVE, REASONING, REFERRING
from .arguments import check_text, pointed_regions, spread
from .encode import FocusImageEncoding
from .pointing import StrokeMasks
from .segment import CLASS_LAYOUTS, INSTANCE, MaskPrompt

TARGET_TASKS = (REFERRING, REASONING)


@dataclass
class MaskRequest:
    """What a caller wants found: the prompts, and how their results go back.

    Args:
        prompts: R prompts.
        lengths: prompts of each image where several were asked of each (a list of lists); None gives one result a prompt.
    """

    prompts: list[MaskPrompt]
    lengths: list[int] | None = None

    def grouped(self, values: Sequence[Any]) -> list[Any]:
        """R results as the caller has them: one an entry, or a list for each image."""
        if self.lengths is None:
            return list(values)
        ends = np.cumsum(self.lengths)
        return [list(values[end - length : end]) for end, length in zip(ends, self.lengths)]


_TASKS = (
    f"With a target it is {' or '.join(TARGET_TASKS)}, with classes {', '.join(CLASS_LAYOUTS)}; regions name no task."
)


def check_request(target: Any, region: Any, classes: Any, task: Any, stuff: Any = None) -> None:
    """Raise TypeError or ValueError unless one thing is asked for, and in words that can be read.

    Lists may ask for different things in different rows: each has None in the rows of the others.
    """
    given = {"target": target, "region": region, "classes": classes}
    given = {name: value for name, value in given.items() if value is not None}
    mixed = len(given) > 1
    if not given or (
        mixed and not all(isinstance(v, (list, tuple)) and any(one is None for one in v) for v in given.values())
    ):
        raise ValueError(
            f"Segmenting takes exactly one of target, region and classes, got {' and '.join(given) or 'none of them'}. Call it "
            "once for each, or pass lists that have None in the rows of the others."
        )
    for one in task if isinstance(task, (list, tuple)) else [task]:
        if one not in (None, *TARGET_TASKS, *CLASS_LAYOUTS):
            raise ValueError(f"There is no task {one!r} here. {_TASKS}")
    if target is not None:
        for text in _leaves(target):
            if text is not None or not mixed:
                check_text(text, "target")
    names = [] if classes is None else [name for row in _class_rows(classes) for name in row or ()]
    for name in stuff or ():
        if name not in names:
            raise ValueError(
                f"stuff has {name!r}, which is not in classes; it names those of them that are not counted."
            )


def mask_request(
    encoding: FocusImageEncoding,
    target: Any = None,
    region: Any = None,
    *,
    classes: Any = None,
    task: Any = None,
    stuff: Sequence[str] | None = None,
) -> MaskRequest:
    """The prompts of one call, for single images.

    Args:
        encoding: of n images.
        target: an expression, one for each image, or a list of lists; a list for a single image asks all of it.
        region: regions in place of words, see `pointed_regions`; a list for a batch, or for several results of a single image.
        classes: names to look for, or a list of names for each image.
        task: "referring" (default) or "reasoning" for words, a layout of `MaskPrompt` for names; a list has one for each row.
        stuff: of the names, those whose objects are not told apart in a panoptic layout.
    """
    check_request(target, region, classes, task, stuff)
    given = {"target": target, "region": region, "classes": None if classes is None else _class_rows(classes)}
    nested = isinstance(target, (list, tuple)) and any(isinstance(t, (list, tuple)) for t in target)
    count, rows = spread(len(encoding), **given, task=task)
    prompts: list[MaskPrompt] = []
    lengths, used = [], task is None
    for row in range(count):
        index = row if len(encoding) == count else 0
        asked = {name: rows[name][row] for name in given if rows[name][row] is not None}
        if len(asked) != 1:
            raise ValueError(
                f"Row {row} asks for {' and '.join(asked) or 'nothing'}; each row takes exactly one of target, region and classes."
            )
        ((kind, value),) = asked.items()
        fitting = {"target": TARGET_TASKS, "classes": CLASS_LAYOUTS}.get(kind, ())
        own = rows["task"][row]
        if own in fitting:
            used = True
        elif own is not None and isinstance(task, (list, tuple)):
            raise ValueError(f"Row {row} asks by {kind}, which does not go with task={own!r}. {_TASKS}")
        else:
            own = None
        if kind == "target":
            texts = list(value) if isinstance(value, (list, tuple)) else [value]
            prompts += [MaskPrompt(index, own or REFERRING, text) for text in texts]
        elif kind == "region":
            prompts.append(_region_prompt(index, value, encoding.original_sizes[index]))
        else:
            prompts.append(MaskPrompt(index, CLASS, value, layout=own or INSTANCE, stuff=tuple(stuff or ())))
        lengths.append(len(value) if kind == "target" and isinstance(value, (list, tuple)) else 1)
    if not used:
        raise ValueError(f"task={task!r} goes with nothing that is asked for here. {_TASKS}")
    return MaskRequest(prompts, lengths if nested else None)


def _region_prompt(image: int, value: Any, size: tuple[int, int]) -> MaskPrompt:
    regions = pointed_regions(value)
    if not regions:
        raise ValueError("region is an empty list. Pass at least one Point, Scribble, Box or Mask.")
    masks = tuple(region.rasterize(*size) for region in regions)
    return MaskPrompt(image, INTERACTIVE, None, masks, StrokeMasks.of(regions, size))


def _leaves(values: Any) -> list[Any]:
    """All texts of a text, a list of them or a list of lists."""
    if not isinstance(values, (list, tuple)):
        return [values]
    if len(values) == 0:
        raise ValueError("target is an empty list. Pass at least one expression.")
    return [leaf for value in values for leaf in _leaves(value)]


def _class_rows(classes: Any) -> list[list[str] | None]:
    """Names as one list for each row, None where it has none; a flat list serves every image."""
    if isinstance(classes, str) or not isinstance(classes, (list, tuple)) or not classes:
        raise TypeError(f'classes must be a list of names such as ["cat", "dog"], got {classes!r}.')
    by_row = any(names is None or isinstance(names, (list, tuple)) for names in classes)
    rows: list[list[str] | None] = []
    for names in classes if by_row else [classes]:
        if isinstance(names, str) or not (names is None or isinstance(names, (list, tuple))) or names == []:
            raise TypeError(f"classes must be names, or lists of names, got {names!r} among {classes!r}.")
        for name in names or ():
            check_text(name, "classes")
        rows.append(None if names is None else list(names))
    return rows
