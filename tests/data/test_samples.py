"""Records of every task: what is read of them, that a query holds no truth, and what is found fault with."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from diffusers_focus.data.coco_masks import encode_rle
from diffusers_focus.data.folders import SampleFolder, write_records
from diffusers_focus.data.samples import TASKS, check_record, names_of, read_query, read_sample, read_truth
from diffusers_focus.processing.regions import Box, Mask, Point, Scribble

SQUARE = {"size": [24, 32], "polygons": [[4, 4, 12, 4, 12, 12, 4, 12]]}


def square() -> np.ndarray:
    mask = np.zeros((24, 32), dtype=bool)
    mask[4:12, 4:12] = True
    return mask


RECORDS = {
    "text": {"text": "hello", "answer": "good day"},
    "answer": {
        "images": ["a.png"],
        "text": "what is it?",
        "answer": ["a square", "square"],
        "regions": [{"point": [5, 6]}],
    },
    "referring": {
        "images": ["a.png"],
        "text": "the square",
        "masks": [SQUARE, "mask.png"],
        "ignored": {"png": "i.png", "index": 2},
    },
    "reasoning": {"images": ["a.png"], "text": "what has four corners?", "masks": [SQUARE], "answer": "the square"},
    "class": {"images": ["a.png"], "names": ["square", "disk"], "masks": [SQUARE], "labels": ["square"]},
    "region": {"images": ["a.png"], "regions": [{"box": [3, 3, 13, 13]}], "masks": [encode_rle(square())]},
    "clip": {"images": ["a.png", "b.png"], "text": "the square", "masks": [[SQUARE, None], [None, "mask.png"]]},
    "edit": {"images": ["a.png"], "text": "remove it", "target": "the square", "result": "b.png", "masks": []},
    "generation": {"text": "a square", "result": "b.png"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("samples")
    Image.new("RGB", (32, 24), (200, 30, 30)).save(place / "a.png")
    Image.new("L", (32, 24), 90).save(place / "b.png")
    Image.fromarray(square().astype(np.uint8) * 255).save(place / "mask.png")
    Image.fromarray(square().astype(np.uint8) * 2).save(place / "i.png")
    Image.new("L", (16, 12)).save(place / "small.png")
    (place / "broken.png").write_bytes((place / "a.png").read_bytes()[:45])
    write_records(place / "samples.jsonl", ({"task": task, **record} for task, record in RECORDS.items()))
    return place


def test_every_task_is_read_from_a_folder(folder):
    reader = SampleFolder(folder)
    found = {sample.query.task: sample for sample in reader}
    assert list(found) == list(TASKS) and reader.skipped == {}
    assert found["text"].query.images == () and found["text"].truth.answers == ("good day",)
    assert found["answer"].query.regions == (Point(5, 6),) and found["answer"].truth.answers == ("a square", "square")
    referring = found["referring"].truth
    assert referring.masks.shape == (2, 24, 32) and (referring.masks == square()).all()
    assert (referring.ignored == square()).all()
    assert found["class"].query.names == ("square", "disk") and found["class"].truth.labels == ("square",)
    assert found["region"].query.regions == (Box(3, 3, 13, 13),) and (found["region"].truth.masks[0] == square()).all()
    clip = found["clip"]
    assert len(clip.query.images) == 2 and clip.truth.masks.shape == (2, 2, 24, 32)
    assert clip.truth.masks.any(axis=(2, 3)).tolist() == [[True, False], [False, True]]
    assert found["edit"].truth.result.mode == "RGB" and found["edit"].truth.masks.shape == (0, 24, 32)
    assert found["generation"].truth.result.size == (32, 24) and found["text"].query.key == "0000001"


@pytest.mark.parametrize("task", ["referring", "region", "clip", "edit"])
def test_a_query_is_read_where_the_truth_is_not_even_there(task, folder):
    record = {"task": task, **RECORDS[task], "masks": []}
    record |= {"result": "missing.png"} if task == "edit" else {}
    record |= {"ignored": "missing.png"} if task == "referring" else {}
    query = read_query(record, folder)
    assert query.images and not {"masks", "answers", "result", "labels"} & set(vars(query))
    if task in ("edit", "referring"):
        with pytest.raises(ValueError, match="missing.png"):
            read_truth(record, folder)


@pytest.mark.parametrize(
    ("region", "kind", "pixels"),
    [
        ({"point": [5, 6]}, Point, None),
        ({"scribble": [[5, 6], [9, 9]]}, Scribble, None),
        ({"mask": SQUARE}, Mask, 64),
        ({"mask": SQUARE, "grow": "point"}, Mask, 100),
    ],
)
def test_regions(region, kind, pixels, folder):
    (found,) = read_query({"task": "region", "images": ["a.png"], "regions": [region], "masks": []}, folder).regions
    assert isinstance(found, kind)
    assert pixels is None or found.rasterize(24, 32).sum() == pixels


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "JSON object"),
        ({"task": "paint"}, "choose from text"),
        ({"task": "referring", "images": ["a.png"], "text": "x"}, "needs masks"),
        ({**RECORDS["text"], "task": "text", "colour": 1}, "no field 'colour'"),
        ({**RECORDS["referring"], "task": "referring", "images": "a.png"}, "images is a list"),
        ({**RECORDS["referring"], "task": "referring", "images": []}, "empty list"),
        ({**RECORDS["referring"], "task": "referring", "text": 3}, "text is text"),
        ({"task": "clip", "images": ["a.png"], "masks": []}, "text, regions or names"),
        ({**RECORDS["class"], "task": "class", "labels": []}, "0 labels for 1 masks"),
        ({"task": "text", "text": "hello", "answer": []}, "right text"),
    ],
)
def test_a_record_that_does_not_fit_says_why(record, message):
    with pytest.raises(ValueError, match=message):
        check_record(record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": ["../a.png"]}, "outside the folder"),
        ({"images": ["missing.png"]}, "is missing"),
        ({"images": ["broken.png"]}, "cannot be read"),
        ({"masks": [{"size": [9, 9], "counts": [81]}]}, r"\[9, 9\]"),
        ({"masks": [{"size": [10**9, 10**9], "counts": [10**18]}]}, "its picture is"),
        ({"masks": ["small.png"]}, "16 wide"),
        ({"masks": [{"polygons": [[1, 1, 5, 5, 1, 5]]}]}, "size"),
        ({"masks": [7]}, "A mask is a file name"),
    ],
)
def test_files_that_do_not_fit_say_why(change, message, folder):
    with pytest.raises(ValueError, match=message):
        read_sample({"task": "referring", **RECORDS["referring"], **change}, folder)


@pytest.mark.parametrize(
    "region", [{"point": [99, 6]}, {"point": "here"}, {"box": [9, 9, 3, 3]}, {}, {"mask": SQUARE, "grow": "x"}]
)
def test_regions_that_do_not_fit_are_value_errors(region, folder):
    with pytest.raises(ValueError):
        read_query({"task": "region", "images": ["a.png"], "regions": [region], "masks": []}, folder)


def test_damaged_samples_are_left_out_and_counted(folder, tmp_path):
    good = {"task": "referring", **RECORDS["referring"]}
    lines = [
        json.dumps(good),
        "{not json",
        json.dumps({**good, "images": ["broken.png"]}),
        "",
        json.dumps({"task": "paint"}),
        "\xff\xfe",
        json.dumps({**good, "masks": [{"size": [24, 32], "counts": "00"}]}),
        json.dumps({**good, "key": "last"}),
    ]
    file = folder / "some.jsonl"
    file.write_bytes("\n".join(lines).encode("latin1"))
    reader = SampleFolder(file)
    for _ in range(2):  # a second pass counts anew
        assert [sample.query.key for sample in reader] == ["0000001", "last"]
        assert reader.skipped == {"line": 3, "file": 2}
    assert [problem.split(":")[0] for problem in reader.problems] == [f"line {n}" for n in (2, 3, 5, 6, 7)]
    assert "broken.png" in reader.problems[1]


def test_nothing_readable_is_an_error(folder):
    (folder / "bad.jsonl").write_text(
        json.dumps({"task": "referring", **RECORDS["referring"], "images": ["missing.png"]})
    )
    with pytest.raises(ValueError, match="Not one sample.*missing.png"):
        list(SampleFolder(folder / "bad.jsonl"))


def test_processes_share_the_lines(folder):
    parts = [[s.query.task for s in SampleFolder(folder, index, 2)] for index in range(2)]
    assert sorted(parts[0] + parts[1]) == sorted(TASKS) and parts[0] == list(TASKS)[::2]
    with pytest.raises(ValueError, match="process 2 of 2"):
        SampleFolder(folder, 2, 2)


def test_a_failed_write_leaves_the_old_file(folder, tmp_path):
    target = tmp_path / "samples.jsonl"
    assert write_records(target, [{"task": "text", **RECORDS["text"]}]) == 1
    before = target.read_bytes()
    with pytest.raises(ValueError, match="choose from"):
        write_records(target, [{"task": "text", **RECORDS["text"]}, {"task": "paint"}])
    assert target.read_bytes() == before and list(tmp_path.iterdir()) == [target]


def test_keys_name_one_sample():
    assert names_of([{}, {"key": "a"}]) == ["0000000", "a"]
    with pytest.raises(ValueError, match="'a'"):
        names_of([{"key": "a"}, {"key": "a"}])


JUNK = [
    None,
    True,
    -1,
    0,
    7,
    1e300,
    float("nan"),
    "",
    "a.png",
    "broken.png",
    "../a.png",
    "\u00e9",
    [],
    [[]],
    {},
    [None],
    {"counts": 5},
]
JUNK += [[1e300] * 6, {"size": [24, 32], "polygons": [[1e300, 0, 1, 1, 2, 2]]}, {"size": [24, 32], "counts": ["a"]}]
JUNK += [
    {"png": 3},
    {"labelme": "a.png"},
    {"labelme": "samples.jsonl"},
    {"box": [0, 0, 1e300, 1]},
    {"point": [float("inf"), 0]},
]


def spoilt(value, rng):
    """A copy with something in it replaced by junk."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.8:
        copy = dict(value) if isinstance(value, dict) else list(value)
        keys = list(copy) if isinstance(copy, dict) else range(len(copy))
        key = keys[int(rng.integers(len(keys)))]
        copy[key] = spoilt(copy[key], rng)
        return copy
    return JUNK[int(rng.integers(len(JUNK)))]


def test_spoilt_records_are_read_or_are_value_errors(folder):
    rng = np.random.default_rng(0)
    read, refused = 0, 0
    for task in TASKS:
        for _ in range(120):
            record = spoilt({"task": task, **RECORDS[task]}, rng)
            try:
                read_sample(record, folder)
                read += 1
            except ValueError:
                refused += 1
    assert read > 20 and refused > 500
