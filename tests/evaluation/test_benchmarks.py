"""Benchmarks from their published files to figures, with a segmenter that sees colours and with a real pipeline."""

from __future__ import annotations

import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffusers_focus import cli
from diffusers_focus.data.benchmarks.videos import expression_records
from diffusers_focus.data.coco_masks import encode_rle
from diffusers_focus.data.folders import write_records
from diffusers_focus.data.samples import read_query
from diffusers_focus.evaluation import benchmarks
from diffusers_focus.evaluation.benchmarks import BENCHMARKS, ask, run_benchmark, table

from tests.data import published
from tests.data.published import COLOURS, truth
from tests.tiny import shared_pipeline


class SeesColours:
    """Segments whatever a text names by its colour, or the colour that a region covers most; sees nothing else."""

    def __init__(self, reach: int = 0, dies_after: int | None = None):
        self.reach, self.dies_after = reach, dies_after
        self.asked: list[str] = []
        self.images = 0

    def _masks(self, picture: np.ndarray, names: list[str]) -> np.ndarray:
        found = [(picture == COLOURS[name]).all(axis=-1) for name in names]
        found = [np.roll(mask, self.reach, axis=1) for mask in found]
        return np.stack(found) if found else np.zeros((0, *picture.shape[:2]), dtype=bool)

    def segment(self, images, texts=None, region=None, task="referring", classes=None):
        if self.dies_after is not None and len(self.asked) >= self.dies_after:
            raise KeyboardInterrupt
        self.images += len(images)
        masks = []
        for row, image in enumerate(images):
            picture = np.asarray(image)
            if classes is not None:
                masks.append(self._masks(picture, classes[row]))
            elif texts is not None:
                self.asked += texts[row]
                masks.append([self._masks(picture, [c for c in COLOURS if c in text.lower()]) for text in texts[row]])
            else:
                self.asked.append("region")
                raster = np.any([one.rasterize(*picture.shape[:2]) for one in region[row]], axis=0)
                masks.append(
                    self._masks(picture, [max(COLOURS, key=lambda c: (raster & self._masks(picture, [c])[0]).sum())])
                )
        scores = [[[1.0] * len(m) for m in row] if isinstance(row, list) else [1.0] * len(row) for row in masks]
        return SimpleNamespace(masks=masks, scores=scores, labels=classes)

    def understand(self, images, texts, region=None):
        self.asked += texts
        return SimpleNamespace(
            text=["No, there is not." if "purple" in text.split("\n")[0] else "yes" for text in texts]
        )


def values(result) -> dict:
    return {name: value["value"] if isinstance(value, dict) else value for name, value in result["figures"].items()}


def run(pipe, name, data, tmp_path, **options):
    return run_benchmark(pipe, name, data, tmp_path / "metrics.json", progress=False, **options)


def test_refcoco_right_and_moved(tmp_path):
    published.write_refer(tmp_path)
    result = run(SeesColours(), "refcoco", tmp_path, tmp_path)
    figures = values(result)
    assert result["samples"] == 12 and result["skipped"] == 0
    assert (
        all(figures[name] == 1.0 for name in ("cIoU", "gIoU", "P@0.5", "P@0.9")) and figures["calibration_error"] == 0.0
    )
    assert json.loads((tmp_path / "metrics.json").read_text()) == result

    moved = run_benchmark(SeesColours(reach=6), "refcoco", tmp_path, tmp_path / "moved.json", progress=False)
    pairs = []
    for index in range(2):
        for name in COLOURS:
            right = truth(index, name)
            found = np.roll(right, 6, axis=1)
            pairs += [((found & right).sum(), (found | right).sum())] * 2
    expected = {
        "cIoU": sum(i for i, _ in pairs) / sum(u for _, u in pairs),
        "gIoU": np.mean([i / u for i, u in pairs]),
        "P@0.5": np.mean([i / u >= 0.5 for i, u in pairs]),
    }
    assert {name: values(moved)[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert 0 < expected["cIoU"] < 1


def test_sentences_of_a_picture_share_its_encoding(tmp_path):
    published.write_refer(tmp_path)
    pipe = SeesColours()
    run(pipe, "refcoco", tmp_path, tmp_path, batch_size=12)
    assert pipe.images == 2 and len(pipe.asked) == 12


def test_protocols_ask_different_texts(tmp_path):
    published.write_refer(tmp_path)
    pipe = SeesColours()
    result = run(pipe, "refcoco", tmp_path, tmp_path, protocol="merged", split="testA")
    assert pipe.asked == [f"the {c} thing. {c}." for c in COLOURS] and result["settings"]["protocol"] == "merged"


def test_grefcoco_counts_what_is_not_there(tmp_path):
    published.write_grefer(tmp_path)
    figures = values(run(SeesColours(), "grefcoco", tmp_path, tmp_path))
    assert figures["N-acc"] == figures["T-acc"] == figures["gIoU"] == 1.0

    class Sure(SeesColours):
        """Finds red where nothing is meant."""

        def _masks(self, picture, names):
            return super()._masks(picture, names or ["red"])

    result = run_benchmark(Sure(), "grefcoco", tmp_path, tmp_path / "sure.json", progress=False)
    figures = values(result)
    inside = sum(truth(i, "red").sum() + truth(i, "red", "blue").sum() for i in range(3))
    assert (figures["N-acc"], figures["T-acc"], figures["P@0.5"]) == (0.0, 1.0, 1.0)
    assert figures["gIoU"] == pytest.approx(2 / 3, abs=1e-6)
    assert figures["cIoU"] == pytest.approx(inside / (inside + sum(truth(i, "red").sum() for i in range(3))), abs=1e-6)


def test_reason_seg_leaves_ignored_pixels_out(tmp_path):
    published.write_reason_seg(tmp_path)

    class Both(SeesColours):
        """Finds blue too, which is ignored in the second picture."""

        def _masks(self, picture, names):
            return super()._masks(picture, ["red", "blue"])

    rows = tmp_path / "metrics.jsonl"
    run(Both(), "reasonseg", tmp_path, tmp_path)
    first, second = [json.loads(line) for line in rows.read_text().splitlines()[1:]]
    assert first["iou"] == pytest.approx(truth(0, "red").sum() / truth(0, "red", "blue").sum()) and second["iou"] == 1.0


@pytest.mark.parametrize("kind", ["point", "scribble", "box", "mask"])
def test_interactive(kind, tmp_path):
    published.write_interactive(tmp_path)
    result = run(SeesColours(), "coco-interactive", tmp_path, tmp_path, protocol=kind)
    assert values(result)["gIoU"] == 1.0
    # One scribble of the published file is empty: told, and in no figure.
    assert (result["samples"], result["skipped"]) == ((8, 1) if kind == "scribble" else (9, 0))
    assert ("left out: 1 samples" in table(result)) == (kind == "scribble")


def test_pope_vqa_and_mmbench(tmp_path):
    published.write_pope(tmp_path)
    published.write_vqa(tmp_path)
    published.write_mmbench(tmp_path)
    pope = values(run(SeesColours(), "pope", tmp_path, tmp_path))
    assert pope == {"accuracy": 1.0, "precision": 1.0, "recall": 1.0, "F1": 1.0, "yes_ratio": 0.5}

    class Says(SeesColours):
        def __init__(self, text):
            super().__init__()
            self.text = text

        def understand(self, images, texts, region=None):
            return SimpleNamespace(text=[self.text] * len(texts))

    vqa = values(run_benchmark(Says("the red"), "vqa", tmp_path, tmp_path / "vqa.json", progress=False))
    assert vqa == {"accuracy": pytest.approx(0.5), "accuracy other": pytest.approx(0.5)}
    bench = values(run_benchmark(Says("(A)"), "mmbench", tmp_path, tmp_path / "mm.json", progress=False))
    assert bench == {"circular_accuracy": 0.0, "accuracy": 0.5, "accuracy colour": 0.5}


def test_classes_of_own_samples_by_map(tmp_path):
    pytest.importorskip("pycocotools")
    records = []
    for index in range(3):
        published.save(tmp_path / f"{index}.png", index)
        names = ["red", "green", "blue"][: index + 1]
        masks = [encode_rle(truth(index, name)) for name in names]
        records.append({"task": "class", "images": [f"{index}.png"], "names": names, "masks": masks, "labels": names})
    write_records(tmp_path / "samples.jsonl", [*records, {"task": "text", "text": "hello", "answer": "hello"}])
    right = run(SeesColours(), "samples", tmp_path, tmp_path, protocol="class")
    assert right["samples"] == 3 and right["figures"]["mAP"] == right["figures"]["AP75"] == pytest.approx(1.0)
    moved = run_benchmark(SeesColours(4), "samples", tmp_path, tmp_path / "m.json", protocol="class", progress=False)
    overlaps = []
    for index, record in enumerate(records):
        for name in record["names"]:
            wanted = truth(index, name)
            found = np.roll(wanted, 4, axis=1)
            overlaps.append((found & wanted).sum() / (found | wanted).sum())
    # One prediction an object, all of score 1: where all of a class are hits, its AP is 1, where none is, it is 0.
    assert 0.5 <= min(overlaps) and max(overlaps) < 0.75
    assert moved["figures"]["AP50"] == pytest.approx(1.0) and moved["figures"]["AP75"] == 0.0


@pytest.mark.skipif(importlib.util.find_spec("pycocotools") is not None, reason="pycocotools is installed")
def test_classes_without_pycocotools_say_what_to_install(tmp_path):
    pipe = SeesColours()
    with pytest.raises(ValueError, match=r"diffusers-focus\[eval\]"):
        run(pipe, "samples", tmp_path, tmp_path, protocol="class")
    assert not pipe.images


def test_davis_scores_a_folder_of_maps(tmp_path):
    published.write_davis(tmp_path / "DAVIS")
    found = tmp_path / "found"
    for clip in ("bear", "camel"):
        for frame in range(6):
            numbers = published.davis_map(frame)
            if clip == "camel":  # the second object is never found
                numbers[numbers == 2] = 0
            published.save_map(found / clip / f"{frame:05d}.png", numbers)
    result = run(None, "davis", tmp_path / "DAVIS", tmp_path, predictions=found)
    figures = values(result)
    # Object 2 of camel: missed in the frames 1 to 3, rightly empty in frame 4; first and last frame do not count.
    assert figures["J"] == figures["F"] == figures["J&F"] == pytest.approx((1 + 1 + 1 + 0.25) / 4)
    assert figures["J-recall"] == pytest.approx(3.25 / 4) and figures["J-decay"] == pytest.approx((0 + 0 + 0 - 0.5) / 4)
    (found / "camel" / "00002.png").unlink()
    with pytest.raises(FileNotFoundError, match="00002.png"):
        run_benchmark(None, "davis", tmp_path / "DAVIS", tmp_path / "b.json", predictions=found, progress=False)


def test_an_interrupted_run_goes_on(tmp_path):
    published.write_refer(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(SeesColours(reach=3, dies_after=4), "refcoco", tmp_path, tmp_path, batch_size=2)
    assert not (tmp_path / "metrics.json").exists()
    lines = tmp_path / "metrics.jsonl"
    assert len(lines.read_text().splitlines()) == 5
    with lines.open("ab") as stream:  # a line that a crash cut off
        stream.write(b'{"key": "2-4", "iou": 0.')
    pipe = SeesColours(reach=3)
    result = run(pipe, "refcoco", tmp_path, tmp_path, batch_size=2)
    assert len(pipe.asked) == 8 and result["samples"] == 12 and result["asked_now"] == 8
    whole = run_benchmark(SeesColours(reach=3), "refcoco", tmp_path, tmp_path / "whole.json", progress=False)
    assert result["figures"] == whole["figures"]
    assert lines.read_text() == (tmp_path / "whole.jsonl").read_text()


def test_a_few_samples_first_and_the_rest_later(tmp_path):
    published.write_refer(tmp_path)
    assert run(SeesColours(), "refcoco", tmp_path, tmp_path, count=5)["samples"] == 5
    pipe = SeesColours()
    assert run(pipe, "refcoco", tmp_path, tmp_path)["samples"] == 12 and len(pipe.asked) == 7
    assert run(pipe, "refcoco", tmp_path, tmp_path)["asked_now"] == 0


def test_the_lines_of_another_run_are_refused_and_stay(tmp_path):
    published.write_refer(tmp_path)
    run(SeesColours(), "refcoco", tmp_path, tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="another run .another protocol"):
        run(SeesColours(), "refcoco", tmp_path, tmp_path, protocol="merged")
    (tmp_path / "notes.jsonl").write_text("my notes\n")
    with pytest.raises(ValueError, match="no file of results"):
        run_benchmark(SeesColours(), "refcoco", tmp_path, tmp_path / "notes.json", progress=False)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before and (
        tmp_path / "notes.jsonl"
    ).read_text() == "my notes\n"


class Follows(SeesColours):
    """Finds the grey levels of davis_map: what a text names, what was pointed at, or all of it by class."""

    def segment_clip(self, frames, target=None, region=None, classes=None):
        levels = {"first": 90, "right": 90, "second": 180, "leaves": 180, "hand": 90, "elephant": 7}
        pictures = np.stack([np.asarray(frame)[..., 0] for frame in frames])
        if target is not None:
            self.asked.append(target)
            wanted = [value for word, value in levels.items() if word in target]
            labels = ["" for _ in wanted]
        elif region is not None:
            ((start, regions),) = region.items()
            wanted = [int(np.median(pictures[start][one.rasterize(*pictures.shape[1:])])) for one in regions]
            labels = ["" for _ in wanted]
        else:
            labels = [name for name in classes if name != "elephant"]
            wanted = [{"runner": 90, "leaver": 180}[name] for name in labels]
        masks = np.roll(np.stack([pictures == value for value in wanted]), self.reach, axis=-1)
        scores = masks.any(axis=(2, 3)).astype(np.float32)
        return SimpleNamespace(masks=masks, scores=scores, labels=labels)


def test_clips_are_followed_and_scored(tmp_path):
    published.write_davis(tmp_path / "davis")
    published.write_expressions(tmp_path / "ref")
    published.write_revos(tmp_path / "revos")
    for name, folder in (("davis", "davis"), ("ref-davis", "ref"), ("ref-youtube-vos", "ref")):
        result = run_benchmark(Follows(), name, tmp_path / folder, tmp_path / f"{name}.json", progress=False)
        found = values(result)
        assert (found["J&F"], found["J"], found["F"]) == (1.0, 1.0, 1.0), name
        moved = run_benchmark(Follows(reach=3), name, tmp_path / folder, tmp_path / f"{name}-3.json", progress=False)
        assert 0.4 < values(moved)["J"] < 0.95
    result = run_benchmark(Follows(), "revos", tmp_path / "revos", tmp_path / "revos.json", progress=False)
    found = values(result)
    assert found["J referring"] == found["J no target"] == 1.0 and 0.3 < found["J reasoning"] < 1  # one of two objects
    assert found["J&F"] == pytest.approx((found["J&F referring"] + found["J&F reasoning"]) / 2)
    assert found["R"] == found["R no target"] == 1.0  # nothing false is found


@pytest.mark.parametrize("given", [False, True])
def test_robustness_of_revos(given, tmp_path):
    published.write_revos(tmp_path, foreground=given)
    found = values(run(Follows(reach=3), "revos", tmp_path, tmp_path))
    maps = [published.davis_map(f) for f in range(5)]
    truth = np.stack([one == 1 for one in maps])
    false = (np.roll(truth, 3, axis=-1) & ~truth).sum(axis=(1, 2))
    whole = [(one > 0).sum() + (60 if given else 0) for one in maps]  # the file has a further row of 60 pixels
    assert found["R referring"] == pytest.approx(np.mean(1 - false / whole), abs=1e-6)
    assert found["R"] == pytest.approx((found["R referring"] + found["R reasoning"]) / 2) and found["R"] < 0.95


def test_clips_of_ones_own(tmp_path):
    published.write_expressions(tmp_path)
    write_records(tmp_path / "samples.jsonl", list(expression_records(tmp_path))[:3])
    result = run(Follows(), "samples", tmp_path, tmp_path, protocol="clip")
    assert values(result) == {"J&F": 1.0, "J": 1.0, "F": 1.0} and result["samples"] == 3


def test_finished_results_of_expressions_are_scored(tmp_path):
    published.write_expressions(tmp_path)
    for video in ("0a1b", "ff00"):
        for expression, number in (("0", 1), ("1", 1), ("2", 2), ("3", 2)):
            for frame in range(6):
                mask = (published.davis_map(frame) == number).astype(np.uint8) * 255
                path = tmp_path / "mine" / video / expression / f"{5 * frame:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(path)
    result = run(None, "ref-davis", tmp_path, tmp_path, predictions=tmp_path / "mine")
    assert values(result) == {"J&F": 1.0, "J": 1.0, "F": 1.0} and result["samples"] == 8
    path.unlink()
    with pytest.raises(FileNotFoundError, match="00025.png"):
        run_benchmark(None, "ref-davis", tmp_path, tmp_path / "b.json", predictions=tmp_path / "mine", progress=False)


def test_tubes_of_youtube_vis_from_a_pipeline_and_from_a_file(tmp_path):
    pytest.importorskip("pycocotools")
    published.write_youtube_vis(tmp_path)
    result = run(Follows(), "youtube-vis", tmp_path, tmp_path)
    assert values(result) == {"mAP": 1.0, "AP50": 1.0, "AP75": 1.0, "AR1": 1.0, "AR10": 1.0}
    rows = json.loads((tmp_path / "valid.json").read_text())["annotations"]
    rows = [{"score": 0.9, **{k: row[k] for k in ("video_id", "category_id", "segmentations")}} for row in rows[:3]]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    found = run_benchmark(
        None, "youtube-vis", tmp_path, tmp_path / "b.json", predictions=tmp_path / "results.json", progress=False
    )
    assert values(found)["mAP"] == pytest.approx(0.75, abs=0.01)  # one of two leavers is missing
    with pytest.raises(ValueError, match="cannot follow"):
        run_benchmark(SeesColours(), "youtube-vis", tmp_path, tmp_path / "c.json", progress=False)


def test_processes_share_a_run_and_one_of_them_may_die(tmp_path):
    published.write_refer(tmp_path)
    one = run_benchmark(SeesColours(2), "refcoco", tmp_path, tmp_path / "one.json", progress=False)
    shared = tmp_path / "shared.json"
    first = SeesColours(2)
    done = run_benchmark(first, "refcoco", tmp_path, shared, part=(0, 3), batch_size=2, progress=False)
    assert done["asked_now"] == len(first.asked) == 4
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(
            SeesColours(2, dies_after=2), "refcoco", tmp_path, shared, part=(1, 3), batch_size=2, progress=False
        )
    again = SeesColours(2)
    assert run_benchmark(again, "refcoco", tmp_path, shared, part=(1, 3), progress=False)["asked_now"] == 2
    rest = SeesColours(2)
    result = run_benchmark(rest, "refcoco", tmp_path, shared, progress=False)  # nobody did the third part
    assert len(rest.asked) == 4 and result["figures"] == one["figures"]
    assert sorted(p.name for p in tmp_path.glob("shared*")) == ["shared.json", "shared.jsonl"]
    assert run_benchmark(SeesColours(2), "refcoco", tmp_path, shared, progress=False)["asked_now"] == 0


def test_the_worst_samples_are_drawn(tmp_path):
    published.write_refer(tmp_path)

    class Misses(SeesColours):
        """Finds nothing where green is meant."""

        def _masks(self, picture, names):
            return super()._masks(picture, [name for name in names if name != "green"])

    result = run(Misses(), "refcoco", tmp_path, tmp_path, gallery=3)
    assert result["gallery"] == 3
    sheet = np.asarray(Image.open(tmp_path / "metrics.gallery.png").convert("RGB")).astype(int)
    assert sheet.shape[0] > 3 * 240 and sheet.shape[1] >= 480
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()[1:]
    bad = [row["key"] for row in map(json.loads, lines) if row["iou"] < 1]
    assert len(bad) == 4
    # The true masks are painted over green (20, 170, 20), half and half; the found ones are empty.
    assert (np.abs(sheet - (10, 180, 40)).max(-1) < 12).sum() > 1000


def test_galleries_of_answers_and_clips(tmp_path):
    published.write_pope(tmp_path)
    published.write_expressions(tmp_path / "ref")

    class SaysYes(SeesColours):
        def understand(self, images, texts, region=None):
            return SimpleNamespace(text=["yes \u2713" for _ in texts])

    result = run(SaysYes(), "pope", tmp_path, tmp_path, gallery=10)
    assert result["gallery"] == 3 and Image.open(tmp_path / "metrics.gallery.png").height > 3 * 240
    clips = run_benchmark(
        Follows(reach=4), "ref-davis", tmp_path / "ref", tmp_path / "clips.json", gallery=2, progress=False
    )
    assert clips["gallery"] == 2 and Image.open(tmp_path / "clips.gallery.png").width > 3 * 240


def test_damaged_pictures_are_counted_and_enter_no_figure(tmp_path):
    published.write_refer(tmp_path)
    pictures = sorted(tmp_path.rglob("*.jpg"))
    pictures[0].write_bytes(pictures[0].read_bytes()[:60])
    result = run(SeesColours(), "refcoco", tmp_path, tmp_path)
    assert (result["samples"], result["skipped"]) == (6, 6) and values(result)["cIoU"] == 1.0
    assert pictures[0].name in result["problems"][0] and "left out: 6 samples" in table(result)
    pictures[1].unlink()
    with pytest.raises(ValueError, match="Not one sample"):
        run_benchmark(SeesColours(), "refcoco", tmp_path, tmp_path / "b.json", progress=False)


def test_damaged_lines_of_own_samples_and_lost_notes_are_counted(tmp_path):
    published.write_refer(tmp_path)
    write_records(tmp_path / "samples.jsonl", BENCHMARKS["refcoco"].records(tmp_path, "testA", "unc", "sentence"))
    with (tmp_path / "samples.jsonl").open("a") as stream:
        stream.write("{cut off\n" * 22 + '{"task": "text", "text": "hello", "answer": "hello"}\n')
    result = run(SeesColours(), "samples", tmp_path, tmp_path)
    assert (result["samples"], result["skipped"]) == (6, 22) and "line 7" in result["problems"][0]

    published.write_reason_seg(tmp_path)
    (tmp_path / "ReasonSeg" / "val" / "1_p.json").write_text("{}")
    result = run_benchmark(SeesColours(), "reasonseg", tmp_path, tmp_path / "r.json", progress=False)
    assert (result["samples"], result["skipped"]) == (1, 1) and "1_p.json has no question" in result["problems"][0]


def test_no_truth_is_read_before_the_answer(tmp_path, monkeypatch):
    """Masks, labels and answers may be unreadable: the pipeline is asked the same, and only then it shows."""
    published.write_refer(tmp_path)
    records = list(BENCHMARKS["refcoco"].records(tmp_path, "val", "unc", "sentence"))
    for record in records:
        record["masks"] = [{"size": [1, 1], "counts": "damaged"}]
    pipe = SeesColours()
    rows = benchmarks._asking(pipe, tmp_path, "masks")(records)
    assert len(pipe.asked) == 12 and all("skipped" in row for row in rows)


def test_a_real_pipeline_on_pictures_of_several_sizes(tmp_path):
    published.write_refer(tmp_path)
    published.write_interactive(tmp_path)
    published.write_pope(tmp_path)
    pipe = shared_pipeline()
    for name, count in (("refcoco", 7), ("coco-interactive", 4), ("pope", 3)):
        result = run_benchmark(pipe, name, tmp_path, tmp_path / f"{name}.json", progress=False, count=count)
        assert result["samples"] == count and result["skipped"] == 0
        assert result["hardware"]["device"] == "cpu" and name in table(result)
    # In a batch as alone.
    records = list(BENCHMARKS["refcoco"].records(tmp_path, "val", "unc", "sentence"))
    records = records[5:8]
    queries = [read_query(record, tmp_path) for record in records]
    together = ask(pipe, queries, [record["images"][0] for record in records])
    alone = ask(pipe, queries[-1:])
    assert np.array_equal(together[-1]["masks"], alone[0]["masks"])
    assert together[-1]["masks"].shape[1:] == np.asarray(Image.open(tmp_path / records[-1]["images"][0])).shape[:2]


def status(*argv) -> int:
    try:
        return cli.main([str(word) for word in argv])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["refclef", "--data", "."], "choose from refcoco"),
        (["refcoco"], "give --data"),
        (["refcoco", "--data", ".", "--tasks", "referring"], "--tasks belong"),
        (["--data", "."], "name it"),
        (["pope", "--data", ".", "--predictions", "x"], "Predictions are scored of clips and of drawn pictures only"),
        (["refcoco", "--data", "missing"], "no folder"),
        (["refcoco", "--data", ".", "--protocol", "both"], "sentence, merged"),
        (["refcoco", "--data", ".", "--split", "testC"], "testA, testB"),
        (["pope", "--data", ".", "--split-by", "unc"], "split_by"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(argv, message, tmp_path, tmp_path_factory, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "model_index.json").write_text("{}")  # never loaded: the faults come first
    assert status("eval", *argv, "--pipeline", folder) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert any(part in error for part in message.split("|")), error
    assert list(tmp_path.iterdir()) == []
