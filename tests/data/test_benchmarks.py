"""Published files of the benchmarks are read as what they mean: texts, pictures, prompts, masks."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from diffusers_focus.data.benchmarks.questions import mmbench_records, pope_records, vqa_records
from diffusers_focus.data.benchmarks.refer import read_plain_pickle, refer_records
from diffusers_focus.data.benchmarks.segmentation import davis_records, interactive_records, reason_seg_records
from diffusers_focus.data.folders import SampleFolder, write_records
from diffusers_focus.data.samples import read_query, read_sample, read_truth

from tests.data import published
from tests.data.published import COLOURS, boxes, truth


@pytest.mark.parametrize(
    ("dataset", "by"), [("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd"), ("refcoco", "google")]
)
def test_refcoco_by_sentence(dataset, by, tmp_path):
    published.write_refer(tmp_path, dataset, by)
    found = [read_sample(record, tmp_path) for record in refer_records(tmp_path, dataset, "val", by)]
    assert [sample.query.text for sample in found[:2]] == ["the red thing", "red"]
    assert len(found) == 2 * 3 * 2 and found[0].query.key == "0-0" and found[1].query.key == "0-1"
    for position, sample in enumerate(found):
        index, name = position // 6, list(COLOURS)[position // 2 % 3]
        assert (sample.truth.masks[0] == truth(index, name)).all() and sample.info["image_id"] == index + 1
    if by == "unc":
        assert len(list(refer_records(tmp_path, dataset, "testA"))) == 6


def test_refcoco_merged(tmp_path):
    published.write_refer(tmp_path)
    found = list(refer_records(tmp_path, "refcoco", "val", protocol="merged"))
    assert [record["text"] for record in found[:2]] == ["the red thing. red.", "the green thing. green."]
    assert len(found) == 6 and found[0]["key"] == "0"


def test_grefcoco_has_none_one_and_several(tmp_path):
    published.write_grefer(tmp_path)
    found = [read_sample(record, tmp_path) for record in refer_records(tmp_path, "grefcoco", "val")]
    assert [len(sample.truth.masks) for sample in found[:3]] == [1, 2, 0]
    assert (found[1].truth.masks.any(axis=0) == truth(0, "red", "blue")).all()
    assert found[2].query.text == "the purple thing" and found[2].truth.masks.shape == (0, 64, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("refclef",), "choose from refcoco, "),
        (("refcoco", "testC"), "train, val, testA, testB"),
        (("refcoco+", "val", "google"), "choose from unc"),
        (("refcoco", "val", "unc", "both"), "sentence, merged"),
    ],
)
def test_unknown_names_are_told(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        refer_records(tmp_path, *arguments)


def test_what_is_missing_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"refs\(unc\)"):
        refer_records(tmp_path, "refcoco", "val")
    published.write_refer(tmp_path)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="train2014"):
        refer_records(tmp_path, "refcoco", "val")


class Opens:
    """What a crafted pickle would have run."""

    def __reduce__(self):
        return (open, ("opened-by-a-pickle", "w"))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_run_nothing(protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "refs(unc).p"
    for value in ([Opens()], [np.zeros(2)], [{1, 2}] if protocol < 4 else [Opens()]):
        file.write_bytes(pickle.dumps(value, protocol=protocol))
        with pytest.raises(ValueError, match="is refused, nothing of it was run"):
            read_plain_pickle(file)
    plain = [{"a": [1, 2.5, "\u00e9", None, True, (1, 2)]}]
    file.write_bytes(pickle.dumps(plain, protocol=protocol))
    assert read_plain_pickle(file) == plain
    file.write_bytes(pickle.dumps(plain, protocol=protocol)[:-4])
    with pytest.raises(ValueError, match="refused"):
        read_plain_pickle(file)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_reason_seg_asks_the_first_question_and_ignores_what_is_marked(tmp_path):
    published.write_reason_seg(tmp_path)
    found = [read_sample(record, tmp_path) for record in reason_seg_records(tmp_path)]
    assert [sample.query.text for sample in found] == ["Which has the colour of blood: red?"] * 2
    assert found[0].query.task == "reasoning"
    for index, sample in enumerate(found):
        assert (sample.truth.masks[0] == truth(index, "red")).all()
        assert (sample.truth.ignored == (truth(index, "blue") if index else False)).all()


def test_reason_seg_without_its_notes_is_a_record_that_cannot_be_read(tmp_path):
    published.write_reason_seg(tmp_path)
    (tmp_path / "ReasonSeg" / "val" / "0_p.json").unlink()
    bad, good = reason_seg_records(tmp_path)
    with pytest.raises(ValueError, match="needs text"):
        read_query(bad, tmp_path)
    assert read_query(good, tmp_path).text


@pytest.mark.parametrize("kind", ["point", "scribble", "box", "mask"])
def test_interactive_prompts_lie_on_their_objects(kind, tmp_path):
    published.write_interactive(tmp_path)
    records = list(interactive_records(tmp_path, "val", kind))
    assert len(records) == 9
    for position, record in enumerate(records[: 8 if kind == "scribble" else 9]):
        index, name = position // 3, list(COLOURS)[position % 3]
        sample = read_sample(record, tmp_path)
        wanted = truth(index, name)
        raster = sample.query.regions[0].rasterize(*wanted.shape)
        assert (sample.truth.masks[0] == wanted).all()
        assert raster.any() and not (raster & ~wanted).any()
        assert raster.sum() == wanted.sum() if kind == "box" else raster.sum() < wanted.sum()
    if kind == "scribble":
        with pytest.raises(ValueError, match="empty"):
            read_query(records[-1], tmp_path)


def test_davis_clips(tmp_path):
    published.write_davis(tmp_path)
    bear, camel = davis_records(tmp_path)
    assert (bear["key"], camel["key"]) == ("bear", "camel")
    sample = read_sample(bear, tmp_path)
    assert len(sample.query.images) == 6 and len(sample.query.regions) == 2
    assert (sample.query.regions[1].rasterize(40, 60) == (published.davis_map(0) == 2)).all()
    expected = np.stack([[published.davis_map(frame) == number for frame in range(6)] for number in (1, 2)])
    assert (sample.truth.masks == expected).all()
    (tmp_path / "Annotations" / "480p" / "camel" / "00000.png").unlink()
    with pytest.raises(FileNotFoundError, match="camel"):
        list(davis_records(tmp_path))


def test_questions(tmp_path):
    published.write_pope(tmp_path)
    published.write_vqa(tmp_path)
    published.write_mmbench(tmp_path)
    pope = [read_sample(record, tmp_path) for record in pope_records(tmp_path)]
    assert len(pope) == 6 and pope[1].truth.answers == ("no",)
    assert (
        pope[0].query.text == "Is there a red thing in the image?\nAnswer the question using a single word or phrase."
    )
    vqa = [read_sample(record, tmp_path) for record in vqa_records(tmp_path)]
    assert len(vqa[0].truth.answers) == 10 and vqa[0].info["kind"] == "other"
    rows = [read_sample(record, tmp_path) for record in mmbench_records(tmp_path)]
    assert [sample.truth.answers[0] for sample in rows] == ["B", "A", "B", "A"]
    assert rows[2].query.text.splitlines()[:4] == [
        "Look well.",
        "Which colour is in the picture?",
        "A. purple",
        "B. red",
    ]
    assert rows[2].query.images[0].tobytes() == rows[3].query.images[0].tobytes() == published.drawn(1).tobytes()
    assert [sample.info["question"] for sample in rows] == [0, 0, 1, 1]


def test_damaged_tables_name_file_and_row(tmp_path):
    published.write_mmbench(tmp_path)
    table = tmp_path / "mmbench_dev_en.tsv"
    table.write_text(table.read_text().replace("\tB\tcolour", "\t\tcolour", 1))
    with pytest.raises(ValueError, match="Row 0 .*no answer"):
        list(mmbench_records(tmp_path))
    published.write_pope(tmp_path)
    with (tmp_path / "coco_pope_random.json").open("a") as stream:
        stream.write('{"question_id": 9}\n')
    with pytest.raises(ValueError, match="Line 7"):
        list(pope_records(tmp_path))


def test_a_converted_benchmark_is_the_same_benchmark(tmp_path):
    """Records written as a folder of samples, as training reads them, hold the same pictures, prompts and masks."""
    published.write_refer(tmp_path)
    published.write_interactive(tmp_path)
    published.write_davis(tmp_path)
    records = [
        *refer_records(tmp_path, "refcoco", "val"),
        *interactive_records(tmp_path, "val", "box"),
        *davis_records(tmp_path),
    ]
    for record in records:
        record["key"] = f"{record['task']}-{record['key']}"
    write_records(tmp_path / "samples.jsonl", records)
    folder = SampleFolder(tmp_path)
    for record, sample in zip(records, folder, strict=True):
        direct = read_sample(json.loads(json.dumps(record)), tmp_path)
        assert sample.query == direct.query
        assert (sample.truth.masks == read_truth(record, tmp_path).masks).all()
    assert folder.skipped == {} and boxes(0)["red"]
