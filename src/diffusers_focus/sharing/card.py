"""Model cards: figures from `metrics.json`, sizes from the weight files, the rest from the index and the origin.

Run: `python -m diffusers_focus.sharing.card metrics.json pipelines/focus-tiny/README.md`

`write_card` makes the card of a pipeline of this project, `pushed_card` that of any pipeline or model somebody puts on
the Hub. Nothing in them is typed by hand: a figure that was not measured is not in the table, and what is not known about
an origin (licence, base models) is not claimed. The layout (YAML header, sections) is what the Hugging Face Hub reads.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import re
import string
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .files import replace_text
from .loaders import shim_name


def front_matter(pipeline_tag: str, tags: list[str], **more: Any) -> str:
    """The YAML header of a card; entries of `more` that are empty are left out."""
    facts = {"library_name": "diffusers", "pipeline_tag": pipeline_tag}
    facts |= {name: value for name, value in more.items() if value}
    facts["tags"] = ["diffusers-focus", *tags]
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---\n"


EVERY_TASK = ["image-editing", "referring-segmentation", "visual-question-answering"]
FRONT_MATTER = front_matter("image-to-image", EVERY_TASK, license="apache-2.0")

TEMPLATE = (
    FRONT_MATTER
    + """
# $name

One vision-language model that answers questions about an image, segments what you refer to, and edits exactly that
part: an open implementation of [FOCUS](https://arxiv.org/abs/2506.16806) for diffusers, small enough for a laptop.

## Use

```python
from diffusers_focus import FocusPipeline, Point

pipe = FocusPipeline.from_pretrained("$folder")
print(pipe.understand(image, "how many objects are there?").text[0])
masks = pipe.segment(image, "the red circle").masks[0]  # bool [objects, height, width]
masks = pipe.segment(image, region=Point(40, 56)).masks[0]  # or a click, a Scribble, a Box, a Mask
edited = pipe.edit(image, "make the red circle blue").images[0]
```

Scenes to try it on: `diffusers-focus world --seed 1000000 --count 4`.

## What is in it

$components

$state

Everything was trained from random weights on scenes drawn by code (the still-life world: two to five coloured shapes on
128 x 128 pixels). No photograph, no downloaded data and no downloaded weights are in it.

## Figures

Measured on $measured
$sheet
## Limits

It knows only its world. It has seen flat shapes in eight colours and the words for them in lower case, and nothing
else: a photograph can be opened, segmented and edited with it, but what comes out says nothing about photographs. It
shows that the whole system works; the sizes of the paper's components are a matter of configuration. Drawing from a
description in one go was part of its training and has not been learnt. So a description is drawn object by object: white
discs of the sizes it names are laid out on grey, which is done by rule, and what each of them becomes is the model's own
edit, written as visual tokens and drawn from noise. Backgrounds are grey.
"""
)

SHEET_FILE = "examples.jpg"
SHEET = """
## Examples

![24 scenes with what was asked, found, edited and true]($file)

24 scenes that nobody picked (seeds 1,000,000 to 1,000,023; `recipes/examples.py`). From left to right: the scene, the mask
found and the true one for the first line, the edit and its true re-render for the second. Green lines are right, red ones
are not.
"""

MEASURED = """\
$date with diffusers-focus $version on $hardware, in $minutes min: $scenes, seeds
from $first_seed up, which training never draws. *new scenes* show colour and shape pairs known from training;
*held-out pairs* show at least one pair that no training picture or text contained. In brackets: 95% bootstrap interval
over scenes. Edits are right when the result is nearer to the true re-render than to the source and to every re-render
that is wrong in one attribute.

$figures"""

GROUP_TITLES = {"in": "new scenes", "held_out": "held-out pairs"}
LARGER_TITLES = {"crowded": "6 to 8 objects", "192px": "192 x 192 pixels", "256px": "256 x 256 pixels"}
_PERCENT = frozenset(
    "mIoU cIoU gIoU P@0.5 N-acc T-acc echo_mIoU echo_P@0.5 exact_match blind right mask_mIoU edit_mask_mIoU told "
    "AP50 mAP PQ coverage J&F independent_J&F true_picture other_picture sketch".split()
)
_RATIOS = frozenset({"excess", "seam_ratio"})
# task -> its title and the rows (path into the task's figures, title) in the order of the table.
ROWS: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "referring": ("Referring expressions", (("mIoU", "mIoU"), ("cIoU", "cIoU"), ("P@0.5", "P@0.5"))),
    "reasoning": (
        "Indirect expressions",
        (("mIoU", "mIoU"), ("cIoU", "cIoU"), ("P@0.5", "P@0.5"), ("told", "right explanations")),
    ),
    "generalized": (
        "None, one or many objects",
        (("gIoU", "gIoU"), ("cIoU", "cIoU"), ("N-acc", "N-acc"), ("T-acc", "T-acc")),
    ),
    **{
        kind: (
            title,
            (("mIoU", "mIoU"), ("P@0.5", "P@0.5"), ("echo_mIoU", "mIoU of the prompt itself")),
        )
        for kind, title in (("click", "Click"), ("scribble", "Scribble"), ("box", "Box"), ("mask", "Rough mask"))
    },
    "classes": ("Lists of names", (("AP50", "AP50"), ("PQ", "PQ"), ("mIoU", "mIoU of the names' maps"))),
    "questions": ("Questions", (("exact_match", "exact match"), ("blind", "most frequent answer of the kind"))),
    "plain_questions": ("Questions", (("exact_match", "exact match, captions left to the language model"),)),
    "edits": (
        "Edits",
        (
            ("composited/right", "right, composited"),
            ("raw/right", "right, raw decoder"),
            ("composited/psnr_inside", "PSNR inside, composited (dB)"),
            ("raw/psnr_inside", "PSNR inside, raw (dB)"),
            ("composited/psnr_background", "PSNR of the background, composited (dB)"),
            ("raw/psnr_background", "PSNR of the background, raw (dB)"),
            ("mask_mIoU", "mIoU of the mask found"),
            ("coverage", "of the true change, inside the edit mask"),
            ("excess", "edit mask to the true change grown by 8 pixels"),
            ("seam_ratio", "seam to that of the true re-render"),
        ),
    ),
    "clips": (
        "Clips",
        (
            ("regions/J&F", "J&F from a region"),
            ("words/J&F", "J&F from words"),
            ("words/independent_J&F", "J&F from words, each frame by itself"),
        ),
    ),
    "generation": (
        "Objects of descriptions",
        (
            ("right", "right in the picture drawn"),
            ("true_picture", "the same rule, the true picture"),
            ("other_picture", "the same rule, another scene's picture"),
            ("sketch", "the same rule, the sketch it begins with"),
        ),
    ),
    "plain_generation": ("Objects of descriptions", (("right", "right where a description is drawn in one go"),)),
}
_APART = frozenset(
    {"plain_questions", "clips", "generation", "plain_generation"}
)  # measured on fewer scenes than the rest: a row says on how many
_KINDS = {"questions": ("exact_match", "exact match"), "edits": ("composited/right", "right, composited")}


def write_card(metrics: dict[str, Any] | str | os.PathLike, template: str | None, path: str | os.PathLike) -> str:
    """Write the model card of a pipeline of this project.

    Args:
        metrics: What `evaluate` returned, or the file it wrote.
        template: Text with `$name`, `$folder`, `$components`, `$state`, `$measured`, `$sheet`, `$figures`, `$count`,
            `$scenes`, `$first_seed`, `$date`, `$version`, `$hardware` and `$minutes`; None takes `TEMPLATE`.
        path: The card, usually README.md of a pipeline folder; the sizes are read from the weights beside it.

    Returns:
        The text.

    Raises:
        ValueError: the metrics hold no figures, or the template asks for something else.
    """
    if not isinstance(metrics, dict):
        metrics = json.loads(Path(metrics).read_text(encoding="utf-8"))
    if not metrics.get("groups"):
        raise ValueError("These metrics hold no figures; run `diffusers-focus eval` first.")
    target = Path(path)
    figures = measurement(metrics)
    facts = {
        "name": metrics["pipeline"],
        "folder": f"pipelines/{metrics['pipeline']}",
        "components": component_table(target.parent),
        "state": what_is_trained(target.parent),
        "measured": string.Template(MEASURED).substitute(figures),
        "sheet": string.Template(SHEET).substitute(file=SHEET_FILE) if (target.parent / SHEET_FILE).is_file() else "",
        **figures,
    }
    try:
        text = string.Template(TEMPLATE if template is None else template).substitute(facts)
    except KeyError as error:
        raise ValueError(
            f"The template asks for ${error.args[0]}; there is {', '.join('$' + n for n in facts)}."
        ) from None
    replace_text(target, text)
    return text


def measurement(metrics: Mapping[str, Any]) -> dict[str, str]:
    """What `MEASURED` says about an evaluation: its table, when, how and on what it ran."""
    return {
        "figures": figure_table(metrics),
        "count": str(metrics["settings"]["scenes_per_group"]),
        "scenes": _scenes(metrics),
        "first_seed": f"{metrics['settings']['first_seed']:,}",
        "date": metrics["date"],
        "version": metrics["versions"].get("diffusers-focus", "(not installed)"),
        "hardware": _hardware(metrics["hardware"]),
        "minutes": str(max(1, round(float(metrics["seconds"]) / 60))),
    }


def _scenes(metrics: Mapping[str, Any]) -> str:
    """How many scenes there were in the groups of scenes as in training."""
    counts = {GROUP_TITLES[name]: found["scenes"] for name, found in metrics["groups"].items() if name in GROUP_TITLES}
    different = set(counts.values()) or {metrics["settings"]["scenes_per_group"]}
    if len(different) == 1:
        return f"{different.pop()} scenes a group"
    return " and ".join(f"{count} scenes ({title})" for title, count in counts.items())


def figure_table(metrics: Mapping[str, Any]) -> str:
    """All figures as a Markdown table with a column for each group of scenes as in training, and the first figure of each task for
    scenes that are larger or fuller.
    """
    others = {name: found for name, found in metrics["groups"].items() if name in LARGER_TITLES}
    groups = {name: found for name, found in metrics["groups"].items() if name not in others} or others
    lines = [
        "| task | measure | "
        + " | ".join({**GROUP_TITLES, **LARGER_TITLES}.get(group, group) for group in groups)
        + " |",
        "|---|---|" + "---|" * len(groups),
    ]
    for task, key, title, measure in _rows(groups):
        figures = [_find(found.get(task, {}), key) for found in groups.values()]
        cells = [_cell(figure, key) for figure in figures]
        counts = [str(figure["count"]) for figure in figures if figure and "count" in figure]
        # Of edits, the slowest task beside these, a group may have had fewer of its scenes too.
        if counts and (task in _APART or ((task, key) == ("edits", "composited/right") and len(set(counts)) > 1)):
            measure += f" (of {' and '.join(dict.fromkeys(counts))})"
        if any(cells):
            lines.append(f"| {title} | {measure} | " + " | ".join(cell or "-" for cell in cells) + " |")
    if groups is others or not others:
        return "\n".join(lines)
    titles = [f"{LARGER_TITLES[name]} ({found['scenes']} scenes)" for name, found in others.items()]
    lines += ["", "Scenes other than those of training:", "", "| task | measure | " + " | ".join(titles) + " |"]
    lines.append("|---|---|" + "---|" * len(others))
    for task, (title, ((key, measure), *_)) in ROWS.items():
        cells = [_cell(_find(found.get(task, {}), key), key) for found in others.values()]
        if any(cells):
            lines.append(f"| {title} | {measure} | " + " | ".join(cell or "-" for cell in cells) + " |")
    return "\n".join(lines)


def _rows(groups: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """(task, path of the figure, title of the task, title of the measure) for all rows that may be there."""
    for task, (title, measures) in ROWS.items():
        for key, measure in measures:
            yield task, key, title, measure
        if task in _KINDS:
            key, measure = _KINDS[task]
            kinds = dict.fromkeys(kind for found in groups.values() for kind in found.get(task, {}).get("kinds", {}))
            for kind in sorted(kinds):
                yield task, f"kinds/{kind}/{key}", f"{title}: {kind.replace('_', ' ')}", measure


def _find(figures: dict[str, Any], path: str) -> dict[str, Any] | None:
    for key in path.split("/"):
        figures = figures.get(key, {})
    return figures or None


def _cell(figure: dict[str, Any] | None, path: str) -> str:
    if figure is None:
        return ""
    name = path.rpartition("/")[2]
    scale, digits = 100.0 if name in _PERCENT else 1.0, 2 if name in _RATIOS else 1
    if "low" not in figure:  # of a whole set of scenes, such as average precision
        return f"{figure['value'] * scale:.{digits}f}"
    low, high = figure["low"] * scale, figure["high"] * scale
    return f"{figure['value'] * scale:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def what_is_trained(folder: Path) -> str:
    """One sentence on what the pipeline in a folder was trained to do, from its settings."""
    index = _index(folder)
    if index is None:
        return "(What was trained is not known outside a pipeline folder.)"
    if index.get("unet", [None, "UNet2DConditionModel"])[1] is None:
        return "**Trained:** asking and segmenting. There is no image decoder in it, so it neither edits nor draws."
    if not index.get("images_trained", True):
        return (
            "**Trained:** asking and segmenting. Editing and drawing run from end to end, but the language model has not "
            "been\ntrained to write visual tokens yet: what appears in an edited place means nothing."
        )
    return "**Trained:** asking, segmenting, editing and drawing."


def _index(folder: Path) -> dict[str, Any] | None:
    """What the index of a pipeline folder says, the standard one if it has both; None without."""
    for name in ("model_index.json", "modular_model_index.json"):
        if (folder / name).is_file():
            return json.loads((folder / name).read_text(encoding="utf-8"))
    return None


def component_table(folder: Path) -> str:
    """The components of a pipeline folder with class and parameters, as a Markdown table."""
    index = _index(folder)
    if index is None:
        return "(The card was written outside a pipeline folder.)"
    lines, total = ["| component | class | parameters |", "|---|---|---|"], 0
    for name, entry in index.items():
        # A setting may be a list too, such as resolution_group; a modular index names parts that are elsewhere.
        if not isinstance(entry, list) or len(entry) not in (2, 3) or not isinstance(entry[1], str):
            continue
        count = parameters(folder / name)
        total += count
        lines.append(f"| {name} | {entry[1]} | {format(count, ',') if count else '-'} |")
    return "\n".join([*lines, f"| all | | {total:,} |"])


def parameters(folder: Path) -> int:
    """Parameters in a component's weight files, shards and variants of the same weights counted once."""
    from safetensors import safe_open

    sizes: dict[str, int] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "numpy") as weights:
            for key in weights.keys():  # noqa: SIM118 - safe_open is no dictionary
                sizes[key] = math.prod(weights.get_slice(key).get_shape())
    return sum(sizes.values())


def _hardware(facts: dict[str, Any]) -> str:
    where = facts.get("device", "cpu")
    cores, threads = (f"{facts[what]} {what if facts[what] != 1 else what[:-1]}" for what in ("cores", "threads"))
    processor = f"{facts['processor']} ({cores}, {threads})"
    return processor if where == "cpu" else f"{where}, {processor}"


# --- cards of what others put on the Hub ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Origin:
    """What is known about the weights that something was loaded from.

    Attributes:
        name: The folder or repository, "" where there is none.
        base_models: Repositories of the Hub that parts came from.
        licence: `license`, `license_name` and `license_link` of their card, as far as it has them.
        limits: The card's section on limits.
        metrics: What `diffusers-focus eval` measured on them.
    """

    name: str = ""
    base_models: tuple[str, ...] = ()
    licence: Mapping[str, str] = field(default_factory=dict)
    limits: str = ""
    metrics: Mapping[str, Any] | None = None


_TASKS = {
    "understand": 'print(pipe.understand(image, "how many objects are there?").text[0])',
    "segment": 'masks = pipe.segment(image, "the red circle").masks[0]  # or region=Point(40, 56), Scribble, Box, Mask',
    "edit": 'edited = pipe.edit(image, "make the red circle blue").images[0]',
}
_MODULAR_TASKS = {
    "understand": 'print(pipe(image=image, question="how many objects are there?", output="text")[0])',
    "segment": 'masks = pipe(image=image, target="the red circle", output="masks")[0]',
    "edit": 'edited = pipe(image=image, prompt="make the red circle blue", output="images")[0]',
    "generate": 'drawn = pipe(prompt="a red circle and a blue star", output="images")[0]',
}
# Blocks of one workflow do one thing of these; all others do all.
_MODULAR_BLOCKS = {
    "FocusAskBlocks": ("understand",),
    "FocusSegmentBlocks": ("segment",),
    "FocusEditBlocks": ("edit",),
    "FocusGenerateBlocks": ("generate",),
}
_MODEL_TAGS = {"FocusMaskDecoder": "image-segmentation"}


def pushed_card(folder: Path, repo_id: str, cls: type, variant: str | None, origin: Origin) -> str:
    """The card of a pipeline or a model that goes to the Hub.

    Args:
        folder: What goes there, as `save_pretrained` wrote it.
        repo_id: "name/repository".
        cls: Class of the pipeline or of the model.
        variant: Under which the weights were saved.
        origin: What is known about where they came from.
    """
    index = _index(folder)
    options = f', variant="{variant}"' if variant else ""
    what = inspect.cleandoc(cls.__doc__ or "").partition("\n")[0]
    facts = {**origin.licence, "base_model": list(origin.base_models)}
    if index is not None and "_blocks_class_name" in index:
        tag, tags, tasks = _modular_tags(index)
        code = [
            f"from diffusers_focus import {cls.__name__}",
            "",
            f'pipe = {cls.__name__}.from_pretrained("{repo_id}")',
            "pipe.load_components()",
            *(_MODULAR_TASKS[task] for task in tasks),
        ]
        use = (
            f"It runs the blocks `{index['_blocks_class_name']}` of modular diffusers; `print(pipe.blocks)` shows them."
        )
        inside = f"{component_table(folder)}\n\n{what_is_trained(folder)}"
    elif index is not None:
        tag, tags, tasks = _pipeline_tags(index, cls)
        shim = shim_name(cls.__name__)
        code = [
            f"from diffusers_focus import {cls.__name__}",
            "",
            f'pipe = {cls.__name__}.from_pretrained("{repo_id}"{options})',
            *(_TASKS[task] for task in tasks),
        ]
        use = (
            f"Code that knows diffusers alone loads it through `{shim}.py` (the package has to be installed):\n\n"
            "```python\nfrom diffusers import DiffusionPipeline\n\npipe = DiffusionPipeline.from_pretrained(\n"
            f'    "{repo_id}"{options}, custom_pipeline="{shim}", trust_remote_code=True\n)\n```'
        )
        inside = f"{component_table(folder)}\n\n{what_is_trained(folder)}"
    else:
        tag, tags = _MODEL_TAGS.get(cls.__name__, "image-feature-extraction"), []
        part = shim_name(cls.__name__.removeprefix("Focus"))
        whole = origin.base_models[0] if origin.base_models else "name/pipeline"
        code = [
            f"from diffusers_focus import {cls.__name__}, FocusPipeline",
            "",
            f'{part} = {cls.__name__}.from_pretrained("{repo_id}"{options})',
            f'pipe = FocusPipeline.from_pretrained("{whole}", {part}={part})',
        ]
        use = f"The last line puts it in the place of a pipeline's own `{part}`."
        inside = f"{parameters(folder):,} parameters; `config.json` has its sizes."
    sections = [
        f"{front_matter(tag, tags, **facts)}\n# {repo_id.rpartition('/')[2]}",
        f"{what}\n\nMade with `diffusers-focus`, an open implementation of [FOCUS](https://arxiv.org/abs/2506.16806) for "
        "diffusers: one vision-language\nmodel that answers questions about an image, segments what you refer to, and edits "
        "exactly that.",
        "## Use\n\n```python\n" + "\n".join(code) + f"\n```\n\n{use}",
        f"## What is in it\n\n{inside}",
    ]
    if origin.name:
        sections.append(f"## Where it comes from\n\nIt was loaded from `{origin.name}` before it was saved here.")
    if origin.metrics is not None:
        measured = string.Template(MEASURED).substitute(measurement(origin.metrics))
        sections.append(f"## Figures\n\nMeasured on the weights of `{origin.metrics['pipeline']}`, on {measured}")
    if origin.limits:
        sections.append(f"## Limits\n\nOf `{origin.name}`, says its card:\n\n{origin.limits}")
    return "\n\n".join(sections) + "\n"


def _modular_tags(index: Mapping[str, Any]) -> tuple[str, list[str], list[str]]:
    """As `_pipeline_tags`, of a modular index: its blocks say what it does."""
    chosen = _MODULAR_BLOCKS.get(index["_blocks_class_name"], tuple(_MODULAR_TASKS))
    trained = {
        "segment": index.get("masks_trained", True),
        "edit": index.get("images_trained", True),
        "generate": index.get("images_trained", True),
    }
    tasks = [task for task in chosen if trained.get(task, True)]
    names = {
        "edit": "image-to-image",
        "understand": "image-text-to-text",
        "segment": "image-segmentation",
        "generate": "text-to-image",
    }
    tag = next((name for task, name in names.items() if task in (tasks or chosen)), "image-to-image")
    return tag, ["modular-diffusers"], tasks


def _pipeline_tags(index: Mapping[str, Any], cls: type) -> tuple[str, list[str], list[str]]:
    """The Hub's task of a pipeline, further tags, and the calls that can be shown."""
    there = {name for name, value in index.items() if isinstance(value, list) and value and value[0]}
    trained = {
        "understand": True,
        "segment": "mask_decoder" in there and index.get("masks_trained", True),
        "edit": "unet" in there and index.get("images_trained", True),
    }
    tasks = [task for task in _TASKS if hasattr(cls, task) and trained[task]]
    tags = [tag for tag, task in zip(EVERY_TASK, ("edit", "segment", "understand")) if task in tasks]
    names = {"edit": "image-to-image", "understand": "image-text-to-text", "segment": "image-segmentation"}
    return next((name for task, name in names.items() if task in tasks), "image-to-image"), tags, tasks


def section(card: str, title: str) -> str:
    """The text under a second-level heading of a card, "" if there is none."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", card, re.MULTILINE | re.DOTALL)
    return found.group(1).strip() if found else ""


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m diffusers_focus.sharing.card METRICS.json README.md")
    write_card(sys.argv[1], None, sys.argv[2])
