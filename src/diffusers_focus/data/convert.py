"""Published data sets as folders or shards of samples: `diffusers-focus data FORMAT --from DIR --to DIR`.

Paper: FOCUS (arXiv 2506.16806), section 3, names the data of its stages. The readers are those of `benchmarks/`; a record whose
pictures are missing or damaged is written all the same, since whoever reads the samples counts it. What is no record at all is
left out and told.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..sharing.files import replace_file
from .benchmarks import instructions, questions, refer, segmentation, videos
from .files import SampleFiles
from .folders import SAMPLES_FILE, write_records
from .samples import check_record, rename_files
from .shards import PER_SHARD, write_shards
from .world_samples import world_records

PROBLEMS_KEPT = 20


@dataclass(frozen=True)
class Format:
    """A published form.

    Args:
        records: (folder, split, split_by) -> records.
        split: the default one; None where a split is the name of a file.
        has_split_by: whether splits were made by several.
    """

    records: Callable[[Path, Any, str | None], Iterable[dict[str, Any]]]
    split: str | None = "train"
    has_split_by: bool = False


def _refer(name: str) -> Format:
    return Format(lambda root, split, by: refer.refer_records(root, name, split, by), has_split_by=True)


def _interactive(root: Path, split: str, by: str | None) -> Iterator[dict[str, Any]]:
    """All kinds of prompts of an object; objects without a prompt of a kind are not asked about by it."""
    kinds = [segmentation.interactive_records(root, split, kind) for kind in segmentation.INTERACTIVE_KINDS]
    for together in zip(*kinds, strict=True):
        for kind, record in zip(segmentation.INTERACTIVE_KINDS, together):
            yield record | {"key": f"{record['key']}-{kind}"}


FORMATS: dict[str, Format] = {
    **{name: _refer(name) for name in refer.SPLITS},
    "reasonseg": Format(lambda root, split, by: segmentation.reason_seg_records(root, split, every_question=True)),
    "coco-interactive": Format(_interactive),
    "davis": Format(lambda root, split, by: segmentation.davis_records(root, split)),
    "ref-youtube-vos": Format(lambda root, split, by: videos.expression_records(root, split)),
    "ref-davis": Format(lambda root, split, by: videos.expression_records(root, split)),
    "revos": Format(lambda root, split, by: videos.revos_records(root, split)),
    "youtube-vis": Format(lambda root, split, by: videos.youtube_vis_records(root, split)),
    "llava": Format(lambda root, split, by: instructions.llava_records(root, split), None),
    "instruct-pix2pix": Format(lambda root, split, by: instructions.instruct_pix2pix_records(root)),
    "edits": Format(lambda root, split, by: instructions.edit_records(root, split), None),
    "vqa": Format(lambda root, split, by: questions.vqa_records(root, split)),
}


@dataclass
class Converted:
    """What came of a conversion: samples written, and those left out with the reasons of the first 20."""

    written: int = 0
    left_out: int = 0
    problems: list[str] = field(default_factory=list)


def convert_data(
    name: str,
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    split: str | None = None,
    split_by: str | None = None,
    count: int | None = None,
    shards: bool = False,
    per_shard: int = PER_SHARD,
) -> Converted:
    """Write a published data set as samples.

    Args:
        name: a name of `FORMATS`.
        source: its folder, laid out as its authors publish it.
        target: a folder: `samples.jsonl` beside the pictures (linked where the file system can, else copied), or tar files. The
            source itself takes a `samples.jsonl` and no copies.
        split, split_by: which part; for lists of conversations and edits the name of their file.
        count: only the first so many samples.
        shards: write tar files (see shards.py), `per_shard` pictures each.

    Raises:
        ValueError: an unknown name or split, or damaged files. FileNotFoundError: files are missing. FileExistsError: the target
            has tar files already.
    """
    if name not in FORMATS:
        raise ValueError(f"Unknown format {name!r}; choose from {', '.join(FORMATS)}.")
    form = FORMATS[name]
    if split_by is not None and not form.has_split_by:
        raise ValueError(f"{name} has one way to be split; leave out split_by.")
    root, folder = Path(source), Path(target)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {str(root)!r} with the data of {name}")
    done = Converted()
    records = _good(itertools.islice(form.records(root, split or form.split, split_by), count), done)
    return _write(records, done, root, folder, shards, per_shard)


def write_world(
    target: str | os.PathLike,
    seeds: Iterable[int],
    *,
    size: int = 128,
    shards: bool = False,
    per_shard: int = PER_SHARD,
) -> Converted:
    """Scenes of the still-life world as samples; arguments as for `convert_data` and `world_records`."""
    folder = Path(target)
    if not shards:
        return _write(world_records(folder, seeds, size=size), Converted(), folder, folder, False, per_shard)
    pictures = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        return _write(world_records(pictures, seeds, size=size), Converted(), pictures, folder, True, per_shard)
    finally:
        shutil.rmtree(pictures, ignore_errors=True)


def _good(records: Iterable[dict[str, Any]], done: Converted) -> Iterator[dict[str, Any]]:
    for record in records:
        try:
            check_record(record)
        except ValueError as error:
            done.left_out += 1
            if len(done.problems) < PROBLEMS_KEPT:
                done.problems.append(f"{record.get('key')}: {record.get('info', {}).get('problem') or error}")
            continue
        yield record


def _write(
    records: Iterable[dict[str, Any]], done: Converted, root: Path, folder: Path, shards: bool, per_shard: int
) -> Converted:
    if shards:

        def counted() -> Iterator[dict[str, Any]]:
            for record in records:
                if _complete(record, root, done):
                    done.written += 1
                    yield record

        write_shards(folder, counted(), root, per_shard)
    elif folder.resolve() == root.resolve():
        done.written = write_records(folder / SAMPLES_FILE, records)
    else:
        done.written = write_records(folder / SAMPLES_FILE, (_moved(record, root, folder) for record in records))
    return done


def _complete(record: dict[str, Any], root: Path, done: Converted) -> bool:
    """Whether all files of a record are there: a shard holds them."""
    files, missing = SampleFiles(root), []

    def look(name: str) -> str:
        try:
            if not Path(str(files.open(name))).is_file():
                missing.append(f"{name!r} is missing")
        except ValueError as error:
            missing.append(str(error))
        return name

    rename_files(record, look)
    if missing:
        done.left_out += 1
        if len(done.problems) < PROBLEMS_KEPT:
            done.problems.append(f"{record.get('key')}: {missing[0]}")
    return not missing


def _moved(record: dict[str, Any], root: Path, folder: Path) -> dict[str, Any]:
    """Link or copy a record's files to the folder, under the names they have."""
    files = SampleFiles(root)

    def move(name: str) -> str:
        files.path_of(name)
        old, new = root / name, folder / name
        if old.is_file() and not new.exists():
            new.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(old, new)
            except OSError:
                replace_file(new, lambda path: shutil.copyfile(old, path))
        return name

    return rename_files(record, move)
