"""Published benchmarks: ask a pipeline about every sample, compare with the truth, sum up. `diffusers-focus eval NAME` does it.

Paper: FOCUS (arXiv 2506.16806), tables 1 to 4. Protocols: docs/evaluation.md. A pipeline is shown `Query` objects only; the
truth of a batch is read after its answers are there.

Every sample is one line of a JSONL file beside the result. A run that was interrupted goes on where it stopped, given the same
data, settings and pipeline; a file of another run is refused. A sample that cannot be read is a line with its reason; it is
counted in the result and told on the table, and enters no figure.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..data.benchmarks import edits, generation, questions, refer, segmentation, videos
from ..data.folders import SampleFolder
from ..data.samples import Query, Truth, names_of, read_query, read_truth
from ..sharing.files import replace_json
from .drawing import Drawing, write_drawn_gallery
from .gallery import write_gallery
from .picture_scores import Measures, fid_figures, has_ssim, picture_figures
from .run import hardware, versions
from .scores import SCORERS
from .video_scores import read_expression_masks, read_object_maps, tube_reader

BATCH_SIZE = 8
_PROBLEMS_KEPT = 20


@dataclass(frozen=True)
class Benchmark:
    """Where the records of a benchmark come from and how they are scored.

    Args:
        records: (folder, split, split_by, protocol) -> records.
        scorer: a name of `SCORERS`.
        split: the default one.
        protocols: what `protocol` may be, the default first; empty where there is no choice.
    """

    records: Callable[[Path, str, str | None, str | None], Iterable[dict[str, Any]]]
    scorer: str
    split: str
    protocols: tuple[str, ...] = ()
    has_split_by: bool = False

    @property
    def draws(self) -> bool:
        """Whether pictures are drawn and kept."""
        return self.scorer == "pictures"


def _refer(dataset: str) -> Callable[..., Iterable[dict[str, Any]]]:
    return lambda root, split, by, protocol: refer.refer_records(root, dataset, split, by, protocol or "sentence")


BENCHMARKS: dict[str, Benchmark] = {
    **{
        name: Benchmark(_refer(name), "masks", "val", refer.PROTOCOLS, True)
        for name in ("refcoco", "refcoco+", "refcocog")
    },
    "grefcoco": Benchmark(_refer("grefcoco"), "generalized", "val", refer.PROTOCOLS, True),
    "reasonseg": Benchmark(lambda root, split, by, p: segmentation.reason_seg_records(root, split), "masks", "val"),
    "coco-interactive": Benchmark(
        lambda root, split, by, kind: segmentation.interactive_records(root, split, kind or "point"),
        *("masks", "val", segmentation.INTERACTIVE_KINDS),
    ),
    "davis": Benchmark(lambda root, split, by, p: segmentation.davis_records(root, split), "clips", "val"),
    **{
        name: Benchmark(lambda root, split, by, p: videos.expression_records(root, split), "expressions", "valid")
        for name in ("ref-davis", "ref-youtube-vos")
    },
    "revos": Benchmark(lambda root, split, by, p: videos.revos_records(root, split, True), "expressions", "valid"),
    "youtube-vis": Benchmark(lambda root, split, by, p: videos.youtube_vis_records(root, split), "tubes", "valid"),
    "pope": Benchmark(lambda root, split, by, p: questions.pope_records(root, split), "yes_no", "random"),
    "vqa": Benchmark(lambda root, split, by, p: questions.vqa_records(root, split), "vqa", "val"),
    "mmbench": Benchmark(
        lambda root, split, by, p: questions.mmbench_records(root, split), "choices", "mmbench_dev_en"
    ),
    "emu-edit": Benchmark(lambda root, split, by, p: edits.emu_edit_records(root, split), "pictures", "test"),
    "magicbrush": Benchmark(
        lambda root, split, by, kind: edits.magicbrush_records(root, split, kind or "single-turn"),
        *("pictures", "test", edits.MAGICBRUSH_PROTOCOLS),
    ),
    "imgedit": Benchmark(
        lambda root, split, by, part: edits.imgedit_records(root, part or "basic"),
        *("pictures", "", tuple(edits.IMGEDIT_FILES)),
    ),
    "gedit": Benchmark(
        lambda root, split, by, language: edits.gedit_records(root, split, language or "en"),
        *("pictures", "train", edits.GEDIT_LANGUAGES),
    ),
    "geneval": Benchmark(lambda root, split, by, p: generation.geneval_records(root), "pictures", ""),
    "mjhq": Benchmark(lambda root, split, by, p: generation.mjhq_records(root, split), "pictures", "all"),
    "samples": Benchmark(
        lambda root, split, by, task: _own(root, task or "referring"),
        *("own", "", ("referring", "reasoning", "class", "region", "answer", "clip")),
    ),
}


def _own(root: Path, task: str) -> Iterator[dict[str, Any]]:
    """The records of a task in a folder of samples, and after them one for each line that is no sample, to be counted."""
    folder = SampleFolder(root)
    for _, record in folder.records():
        if record["task"] == task:
            yield record
    told = itertools.chain(folder.problems, itertools.repeat("a line that is no sample"))
    for index, problem in zip(range(folder.skipped["line"]), told):
        yield {"task": task, "key": f"damaged-{index}", "info": {"problem": problem}}


def run_benchmark(
    pipeline: Any,
    name: str,
    data: str | os.PathLike,
    output: str | os.PathLike,
    *,
    split: str | None = None,
    split_by: str | None = None,
    protocol: str | None = None,
    count: int | None = None,
    predictions: str | os.PathLike | None = None,
    pictures: str | os.PathLike | None = None,
    measures: Measures | None = None,
    drawing: dict[str, Any] | None = None,
    batch_size: int = BATCH_SIZE,
    gallery: int = 0,
    part: tuple[int, int] | None = None,
    loader: Callable[[str], Any] | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Measure a pipeline on a benchmark.

    Several processes share a run: each calls with its `part`, and when they are done, one calls without.

    Args:
        pipeline: a loaded pipeline (the calls of `FocusPipeline`), or a folder together with `loader`; None with `predictions`.
        name: a name of `BENCHMARKS`.
        data: its folder, laid out as its authors publish it (see the readers in data/benchmarks).
        output: where the result goes as JSON; the lines of the samples go beside it, with the ending .jsonl.
        split, split_by: which split, and by whom where there are several.
        protocol: "sentence" or "merged" of RefCOCO and gRefCOCO; the kind of prompt of COCO-Interactive; the task of "samples".
        count: only the first so many samples. A later run with more goes on from them.
        predictions: a folder of finished results in place of a pipeline's: of clips (see the readers in video_scores.py), or of
            pictures in the layout of `pictures`.
        pictures: where drawn pictures go, laid out as the benchmark's own scorer reads them; by default beside the result, with
            the ending .pictures.
        measures: the models that drawn pictures are measured with.
        drawing: further arguments of every edit or drawing, such as `num_inference_steps`, and its "seed".
        batch_size: samples a call.
        gallery: draw so many of the worst samples beside the result, with the ending .gallery.png.
        part: (index, number of processes): answer every so-manieth sample into a file of lines of this process, and stop there.
        loader: turns the folder into a pipeline; called once there is something to ask.
        progress: show a progress bar; None does so on a terminal.

    Returns:
        What is written: benchmark, settings, samples, skipped, problems, figures, seconds, hardware, versions, date. Of a part
        the number of samples asked.

    Raises:
        ValueError: an unknown name or setting; damaged files; lines of another run; no sample that can be read.
        FileNotFoundError: files of the benchmark are missing.
    """
    benchmark = _checked(name, split_by, protocol, predictions, count, batch_size)
    root, target = Path(data), Path(output)
    options, measures = dict(drawing or {}), measures or Measures()
    if benchmark.draws:
        measures.check()
        if predictions is not None and not Path(predictions).is_dir():
            raise FileNotFoundError(f"there is no folder {os.fspath(predictions)!r} of drawn pictures")
    elif pictures is not None or drawing or measures != Measures():
        raise ValueError(f"{name} draws no pictures; leave out pictures, measures and drawing.")
    place = Path(predictions or pictures or target.with_suffix(".pictures"))
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {str(root)!r} with the data of {name}")
    settings = {
        "split": split or benchmark.split,
        "split_by": split_by or (next(iter(refer.SPLITS[name])) if benchmark.has_split_by else None),
        "protocol": protocol or (benchmark.protocols[0] if benchmark.protocols else None),
    }
    records = list(itertools.islice(benchmark.records(root, *settings.values()), count))
    if not records:
        raise ValueError(f"{name} has no samples in {str(root)!r} for {settings}.")
    keys = names_of(records)
    asked = predictions if predictions is not None else pipeline
    head = {"benchmark": name, **settings, "asked": _identity(asked)}
    if benchmark.draws:
        models = {
            key: path and _identity(path) for key, path in vars(measures).items() if key in ("clip", "dino", "lpips")
        }
        head |= {"drawing": options, "measured_with": models | {"ssim": has_ssim()}}
    file = target.with_suffix(".jsonl")
    lines = _Lines(file if part is None else file.with_suffix(f".{part[0]}-of-{part[1]}.jsonl"), head)
    known = dict(lines.rows)  # and what other processes, or an earlier run by itself, have done
    others = sorted(target.parent.glob(f"{target.stem}.*-of-*.jsonl"))
    for other in (file, *others) if part is not None else others:
        known.update(_Lines(other, head).rows)
    start = time.perf_counter()
    pairs = list(zip(keys, records))[slice(None) if part is None else slice(part[0], None, part[1])]
    todo = [(key, record) for key, record in pairs if key not in known]
    if todo and predictions is None and isinstance(pipeline, (str, os.PathLike)):
        if loader is None:
            raise TypeError(f"Cannot load {os.fspath(pipeline)!r} here; pass a loaded pipeline, or a loader.")
        pipeline = loader(os.fspath(pipeline))
    answer: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
    if benchmark.draws:
        answer = Drawing(pipeline if predictions is None and todo else None, root, place, measures, options).answer
    elif predictions is not None:
        answer = _finished(root, Path(predictions), benchmark.scorer)
    else:
        answer = _asking(pipeline, root, benchmark.scorer)
    hidden = not (sys.stderr.isatty() if progress is None else progress)
    if benchmark.draws or records[0].get("task") == "clip":
        batch_size = 1  # a picture is drawn by itself, and the frames of one clip are enough to hold
    with lines, tqdm(total=len(pairs), initial=len(pairs) - len(todo), desc=name, unit="sample", disable=hidden) as bar:
        for first in range(0, len(todo), batch_size):
            now = todo[first : first + batch_size]
            rows = answer([record for _, record in now])
            lines.add([{"key": key, **row} for (key, _), row in zip(now, rows, strict=True)])
            bar.update(len(now))

    if part is not None:
        return {"benchmark": name, "part": list(part), "asked_now": len(todo)}
    missing = [key for key in keys if key not in lines.rows]
    if missing:  # they are in the files of processes
        with lines:
            lines.add([known[key] for key in missing])
    for other in others:
        other.unlink()
    rows = [lines.rows[key] for key in keys]
    good = [row for row in rows if "skipped" not in row]
    problems = [f"{row['key']}: {row['skipped']}" for row in rows if "skipped" in row]
    if not good:
        raise ValueError(f"Not one sample of {name} can be read. The first: {problems[0]}")
    by_key = dict(zip(keys, records))
    if benchmark.draws:
        figures = picture_figures(good) | _fid(good, by_key, root, place, measures)
    else:
        figures = SCORERS[records[0]["task"] if benchmark.scorer == "own" else benchmark.scorer].figures(good)
    result = {
        "benchmark": name,
        "pipeline": _name(asked),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "settings": settings | {"batch_size": batch_size},
        "samples": len(good),
        "skipped": len(problems),
        "problems": problems[:_PROBLEMS_KEPT],
        "figures": figures,
        "asked_now": len(todo),
        "seconds": round(time.perf_counter() - start, 1),
        "hardware": hardware(None if predictions is not None or not todo else pipeline),
        "versions": versions(),
    }
    if benchmark.draws:
        result |= {"pictures": str(place), "drawing": drawing or {}, "measured_with": head["measured_with"]}
        result["not_measured"] = measures.absent(records[0]["task"] == "edit", "result" in records[0])
    if gallery and benchmark.draws:
        result["gallery"] = write_drawn_gallery(target.with_suffix(".gallery.png"), good, by_key, root, place, gallery)
    elif gallery:
        result["gallery"] = write_gallery(target.with_suffix(".gallery.png"), good, by_key, root, gallery)
    replace_json(target, result)
    return result


def _checked(
    name: str, split_by: str | None, protocol: str | None, predictions: Any, count: int | None, batch_size: int
) -> Benchmark:
    if name not in BENCHMARKS:
        raise ValueError(f"Unknown benchmark {name!r}; choose from {', '.join(BENCHMARKS)}.")
    benchmark = BENCHMARKS[name]
    if split_by is not None and not benchmark.has_split_by:
        raise ValueError(f"{name} has one way to be split; leave out split_by.")
    if protocol is not None and protocol not in benchmark.protocols:
        allowed = ", ".join(benchmark.protocols)
        raise ValueError(
            f"{name} has no protocol {protocol!r}; " + (f"choose from {allowed}." if allowed else "leave it out.")
        )
    needs_coco = protocol == "class" or benchmark.scorer == "tubes"
    if needs_coco and importlib.util.find_spec("pycocotools") is None:  # before hours are spent on asking
        raise ValueError("mAP is computed by pycocotools, which is not installed; pip install 'diffusers-focus[eval]'.")
    if benchmark.scorer not in _READERS and not benchmark.draws and predictions is not None:
        raise ValueError(f"Predictions are scored of clips and of drawn pictures only; {name} asks the pipeline.")
    if batch_size < 1 or (count is not None and count < 1):
        raise ValueError(f"count is {count} and batch_size {batch_size}; give whole numbers from 1 up.")
    return benchmark


# --- asking ---------------------------------------------------------------------------------------------------------


def _asking(pipe: Any, root: Path, scorer: str) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """Records -> rows, through the pipeline."""

    def answer(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [{} for _ in records]
        queries: list[tuple[int, Query]] = []
        for index, record in enumerate(records):
            try:
                queries.append((index, read_query(record, root)))
            except (ValueError, OSError) as error:
                rows[index] = {"skipped": record.get("info", {}).get("problem") or str(error)}
        predicted = ask(
            pipe, [query for _, query in queries], [tuple(records[i].get("images", ())) for i, _ in queries]
        )
        # Only now is the truth read.
        for (index, query), prediction in zip(queries, predicted, strict=True):
            record = records[index]
            size = (query.images[0].height, query.images[0].width) if query.images else None
            try:
                truth = read_truth(record, root, size)
            except (ValueError, OSError) as error:
                rows[index] = {"skipped": str(error)}
                continue
            info = record.get("info", {})
            row = SCORERS[record["task"] if scorer == "own" else scorer].row(prediction, truth, info)
            rows[index] = {"scene": info.get("image_id", "/".join(record.get("images", ()))), **row}
        return rows

    return answer


def ask(pipe: Any, queries: Sequence[Query], pictures: Sequence[Any] | None = None) -> list[dict[str, Any]]:
    """What a pipeline answers.

    Args:
        pipe: with the calls of `FocusPipeline`.
        queries: of the tasks "referring", "reasoning", "class", "region", "answer" and "clip", in any mixture.
        pictures: what tells the picture of a query from another's; expressions about one picture share its encoding.

    Returns:
        In the order of the queries: {"masks": bool [objects, H, W], "scores": [objects]}, for classes with "labels", or
        {"text": str}.
    """
    names = [(index,) for index in range(len(queries))] if pictures is None else list(pictures)
    found: list[dict[str, Any]] = [{} for _ in queries]
    for task in dict.fromkeys(query.task for query in queries):
        chosen = [index for index, query in enumerate(queries) if query.task == task]
        if task in ("referring", "reasoning"):
            groups: dict[Any, list[int]] = {}
            for index in chosen:
                groups.setdefault(names[index], []).append(index)
            images = [queries[group[0]].images[0] for group in groups.values()]
            texts = [[queries[index].text for index in group] for group in groups.values()]
            out = pipe.segment(images, texts, task=task)
            for group, masks, scores in zip(groups.values(), out.masks, out.scores, strict=True):
                for index, mask, score in zip(group, masks, scores, strict=True):
                    found[index] = {"masks": mask, "scores": score}
        elif task == "class":
            images = [queries[index].images[0] for index in chosen]
            out = pipe.segment(images, classes=[list(queries[index].names) for index in chosen])
            for index, mask, score, labels in zip(chosen, out.masks, out.scores, out.labels, strict=True):
                found[index] = {"masks": mask, "scores": score, "labels": labels}
        elif task == "region":
            images = [queries[index].images[0] for index in chosen]
            out = pipe.segment(images, region=[list(queries[index].regions) for index in chosen])
            for index, mask, score in zip(chosen, out.masks, out.scores, strict=True):
                found[index] = {"masks": mask, "scores": score}
        elif task == "answer":
            for pointed in (False, True):
                part = [index for index in chosen if bool(queries[index].regions) == pointed]
                if part:
                    options = {"region": [list(queries[index].regions) for index in part]} if pointed else {}
                    images = [list(queries[index].images) for index in part]
                    texts = pipe.understand(images, [queries[index].text for index in part], **options).text
                    for index, text in zip(part, texts, strict=True):
                        found[index] = {"text": text}
        elif task == "clip":
            for index in chosen:
                found[index] = _ask_clip(pipe, queries[index])
        else:
            raise ValueError(f"Samples of the task {task!r} cannot be asked here.")
    return found


def _ask_clip(pipe: Any, query: Query) -> dict[str, Any]:
    """What a pipeline finds in a clip: {"masks": bool [objects, frames, H, W], "labels", "scores": [objects]}."""
    if not hasattr(pipe, "segment_clip"):
        raise ValueError(
            f"{type(pipe).__name__} cannot follow objects through a clip (it has no segment_clip); score finished results with "
            "predictions, or load a pipeline that segments."
        )
    asked: dict[str, Any] = {"target": query.text} if query.text else {}
    if query.regions and not query.text:
        asked = {"region": {query.region_frame: list(query.regions)}}
    elif query.names:
        asked = {"classes": list(query.names)}
    out = pipe.segment_clip(list(query.images), **asked)
    scores = [float(row[row > 0].mean()) if (row > 0).any() else 0.0 for row in np.asarray(out.scores)]
    return {"masks": np.asarray(out.masks, dtype=bool), "labels": list(out.labels), "scores": scores}


_READERS: dict[str, Callable[[Path], Callable[[dict[str, Any], Truth, Path], dict[str, Any]]]] = {
    "clips": lambda folder: read_object_maps,
    "expressions": lambda folder: read_expression_masks,
    "tubes": tube_reader,
}
"""Scorer of clips -> how finished results are read."""


def _finished(root: Path, predictions: Path, scorer: str) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """Records of clips -> rows, from a folder of results."""
    if not predictions.exists():
        raise FileNotFoundError(f"there is no folder {str(predictions)!r} of predictions")
    read = _READERS[scorer](predictions)

    def answer(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows = []
        for record in records:
            try:
                truth = read_truth(record, root)
            except (ValueError, OSError) as error:
                rows.append({"skipped": record.get("info", {}).get("problem") or str(error)})
                continue
            info = record.get("info", {})
            row = SCORERS[scorer].row(read(record, truth, predictions), truth, info)
            rows.append({"scene": info.get("image_id", record["key"]), **row})
        return rows

    return answer


# --- drawn pictures -------------------------------------------------------------------------------------------------


def _fid(
    rows: Sequence[dict[str, Any]], records: dict[str, dict[str, Any]], root: Path, place: Path, measures: Measures
) -> dict[str, Any]:
    """FID where pictures drawn from descriptions have real ones beside them as a set, and there is a model for it."""
    drawn = [(row, records[row["key"]]) for row in rows if "result" in records[row["key"]]]
    pairs = [
        (row["kind"], place / row["place"], root / record["result"])
        for row, record in drawn
        if record["task"] == "generation"
    ]
    return fid_figures(pairs, measures.fid_model) if pairs and measures.fid_model is not None else {}


# --- lines ----------------------------------------------------------------------------------------------------------


class _Lines:
    """The JSONL file of a run: a line that says whose it is, then one a sample. A line cut off by a crash is dropped."""

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path, self.head = path, head
        self.rows: dict[str, dict[str, Any]] = {}
        self._stream: Any = None
        self._keep = 0  # bytes of whole lines
        if path.is_file():
            self._read()

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.splitlines()
        if not lines:
            return
        try:
            head, *rows = [json.loads(line) for line in lines]
            self.rows = {row["key"]: row for row in rows}
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{str(self.path)!r} is no file of results; name another output.") from None
        differing = [key for key in self.head if not isinstance(head, dict) or head.get(key) != self.head[key]]
        if differing:
            raise ValueError(
                f"{str(self.path)!r} holds the results of another run (another {', '.join(differing)}); name another output, or "
                "delete it to start anew."
            )
        self._keep = len(whole)

    def __enter__(self) -> _Lines:
        self._stream = self.path.open("r+b" if self._keep else "wb")
        self._stream.truncate(self._keep)
        self._stream.seek(self._keep)
        if not self._keep:
            self._write([self.head])
        return self

    def __exit__(self, *_: Any) -> None:
        self._keep = self._stream.tell()
        self._stream.close()

    def add(self, rows: list[dict[str, Any]]) -> None:
        self._write(rows)
        self.rows.update((row["key"], row) for row in rows)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        self._stream.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8"))
        self._stream.flush()


def _name(asked: Any) -> str:
    if isinstance(asked, (str, os.PathLike)):
        return Path(asked).name
    return str(getattr(asked, "name_or_path", None) or type(asked).__name__)


def _identity(asked: Any) -> str:
    """The name of a pipeline or folder with a mark of its files (names, sizes, times), so that a retrained one is another."""
    name = _name(asked)
    folder = Path(asked) if isinstance(asked, (str, os.PathLike)) else Path(name)
    if not folder.is_dir():
        return name
    files = sorted((path.relative_to(folder).as_posix(), path.stat()) for path in folder.rglob("*") if path.is_file())
    text = "\n".join(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in files)
    return f"{name} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


# --- table ----------------------------------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> str:
    """The figures as lines of text: name, value, its 95% interval and the number of samples, where they are known."""
    settings = ", ".join(str(value) for key, value in result["settings"].items() if value and key != "batch_size")
    lines = [f"{result['benchmark']} ({settings}): {result['pipeline']}, {result['samples']} samples"]
    for name, value in result["figures"].items():
        if isinstance(value, dict):
            interval = f"  [{value['low']:.4f}, {value['high']:.4f}]" if "low" in value else ""
            lines.append(f"{name:<22}{value['value']:>10.4f}{interval}  n={value['count']}")
        else:
            lines.append(f"{name:<22}" + (f"{'-':>10}" if value is None else f"{value:>10.4f}"))
    lines += [f"not measured: {names} ({reason})" for names, reason in result.get("not_measured", {}).items()]
    if "pictures" in result:
        lines.append(f"pictures: {result['pictures']}")
    if result["skipped"]:
        lines.append(f"left out: {result['skipped']} samples that cannot be read, the first {result['problems'][0]}")
    return "\n".join(lines)
