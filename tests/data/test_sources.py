"""Samples by their number: every unit once a round, mixed by weight, and what is damaged counted once."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from diffusers_focus.data.folders import FolderSource, write_records
from diffusers_focus.data.shards import ShardSource, write_shards
from diffusers_focus.data.sources import SampleStream, open_source, parse_sources

MASK = {"size": [8, 8], "polygons": [[1, 1, 5, 1, 5, 5, 1, 5]]}


def records(count: int, asked: int = 2) -> list[dict]:
    """`asked` expressions about each of `count` pictures."""
    return [
        {"task": "referring", "images": [f"p{i}.png"], "text": f"thing {i} {j}", "masks": [MASK], "key": f"{i}-{j}"}
        for i in range(count)
        for j in range(asked)
    ]


def pictures(folder, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"p{i}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("source")
    pictures(place, 7)
    write_records(place / "samples.jsonl", records(7))
    return place


@pytest.fixture(scope="module")
def shards(folder):
    place = folder / "shards"
    assert write_shards(place, records(7), folder, per_shard=3) == 7
    return place


def texts(stream: SampleStream, numbers) -> list[list[str]]:
    return [[sample.query.text for _, sample in stream.samples(n)] for n in numbers]


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_every_picture_comes_once_a_round_with_all_that_is_asked_about_it(kind, folder, shards):
    stream = SampleStream.open([(str(folder if kind == "folder" else shards), 1.0)], seed=3)
    whole = [f"thing {i} {j}" for i in range(7) for j in range(2)]
    rounds = [texts(stream, range(7 * r, 7 * (r + 1))) for r in range(3)]
    for found in rounds:
        assert sorted(sum(found, [])) == whole and {len(unit) for unit in found} == {2}
        assert all(a.split()[1] == b.split()[1] for a, b in found)
    assert rounds[0] != rounds[1] != rounds[2]
    again = SampleStream.open([(str(folder if kind == "folder" else shards), 1.0)], seed=3)
    assert texts(again, [20, 3]) == [rounds[2][6], rounds[0][3]]  # no need to have asked for those before
    (_, sample) = again.samples(20)[0]
    assert sample.truth.masks.sum() == 16 and sample.query.images[0].getpixel((0, 0))[0] == int(sample.query.text[6])
    other = SampleStream.open([(str(folder if kind == "folder" else shards), 1.0)], seed=4)
    assert texts(other, range(7)) != rounds[0]


def test_sources_are_mixed_by_weight_and_each_goes_through_its_own_rounds(tmp_path):
    for name, count in (("a", 5), ("b", 3)):
        (tmp_path / name).mkdir()
        lines = [{"task": "text", "text": f"{name}{i}", "answer": "yes"} for i in range(count)]
        write_records(tmp_path / name / "samples.jsonl", lines)
    stream = SampleStream.open([(str(tmp_path / "a"), 3), (str(tmp_path / "b"), 1)], seed=0)
    found = sum(texts(stream, range(16300, 16500)), [])  # across a seam of the mixture
    assert len(found) == 200
    assert np.mean([text[0] == "a" for text in found]) == pytest.approx(0.75, abs=0.1)
    places = [stream.place(n) for n in range(16300, 16500)]
    for source, size in ((0, 5), (1, 3)):
        mine = [(r, i) for s, r, i in places if s == source]
        assert len(set(mine)) == len(mine)  # never the same unit twice in a round
        rounds = [r for r, _ in mine]
        assert rounds == sorted(rounds)
        for r in rounds[size : -size or None]:  # rounds that lie inside as a whole
            assert rounds.count(r) == size


def test_of_many_samples_some_are_drawn_each_round(tmp_path):
    pictures(tmp_path, 1)
    write_records(tmp_path / "samples.jsonl", records(1, asked=30))
    stream = SampleStream.open([(str(tmp_path), 1)], seed=0)
    first, second = ([s.query.text for _, s in stream.samples(n, limit=8)] for n in (0, 1))
    assert len(first) == len(second) == 8 and first != second
    assert [s.query.text for _, s in stream.samples(0, limit=8)] == first


def test_damage_is_left_out_and_counted_once(tmp_path):
    pictures(tmp_path, 5)
    (tmp_path / "p1.png").write_bytes(b"no picture")
    lines = [json.dumps(record) for record in records(5, asked=1)]
    lines[2] = lines[2][:30]  # cut off
    lines[3] = lines[3].replace("referring", "unheard of")
    (tmp_path / "samples.jsonl").write_text("\n".join(lines))
    stream = SampleStream.open([(str(tmp_path), 1)], seed=0)
    for _ in range(2):
        assert sorted(sum(texts(stream, range(5)), [])) == ["thing 0 0", "thing 4 0"]
        assert stream.skipped.counts == {"file": 1, "line": 2}
    assert all(str(tmp_path / "samples.jsonl") in name for name in stream.skipped.reasons)
    assert any("p1.png" in reason for reason in stream.skipped.reasons.values())


def damaged_copy(shards, place, change):
    place.mkdir()
    for path in shards.iterdir():
        (place / path.name).write_bytes(change(path.name, bytearray(path.read_bytes())))
    return SampleStream.open([(str(place), 1.0)], seed=3)


@pytest.mark.parametrize("kept_index", [True, False])
def test_a_damaged_shard_loses_what_is_damaged_and_nothing_else(kept_index, shards, tmp_path):
    def member(data: bytearray) -> bytearray:
        start = data.index(b"\x89PNG", data.index(b"00000001.0.png"))  # the picture of its second sample
        data[start : start + 8] = b"xxxxxxxx"
        return data

    def header(data: bytearray) -> bytearray:
        start = data.index(b"00000005.json")
        data[start : start + 512] = b"y" * 512  # everything after it cannot be found
        return data

    def change(name: str, data: bytearray) -> bytearray:
        if name == "shards.json" and not kept_index:
            return bytearray(b"{}")
        if name.endswith("0.tar"):
            return member(data)
        return header(data) if name.endswith("1.tar") else data

    stream = damaged_copy(shards, tmp_path / "damaged", change)
    length = len(stream.sources[0])
    assert length == 7  # one that cannot be read, one that cannot be found
    found = sum(texts(stream, range(length)), [])
    assert sorted(found) == [f"thing {i} {j}" for i in (0, 2, 3, 4, 6) for j in range(2)]
    # Two records of a picture that is damaged; a sample of which nothing is known.
    assert sum(stream.skipped.counts.values()) == 3


def test_the_order_of_shards_is_shuffled_in_windows(folder, tmp_path):
    lines = [{"task": "text", "text": str(i), "answer": "x"} for i in range(40)]
    write_shards(tmp_path, lines, folder, per_shard=10)
    order = list(ShardSource(tmp_path, buffer=8).order((1, 2)))
    assert sorted(order) == list(range(40)) and order != sorted(order)
    for window in range(5):  # no more than two shards are read at a time
        assert len({index // 10 for index in order[8 * window : 8 * window + 8]}) <= 2
    assert order == list(ShardSource(tmp_path, buffer=8).order((1, 2))) != list(ShardSource(tmp_path).order((1, 2)))


def test_shards_of_others_are_pictures_with_captions(tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(picture, format="JPEG")
    with tarfile.open(tmp_path / "00000.tar", "w") as archive:
        for name, data in (
            ("a/000.jpg", picture.getvalue()),
            ("a/000.txt", b"a grey square\n"),
            ("a/000.json", b'{"width": 8}'),
            ("a/001.txt", b"nothing to see"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    stream = SampleStream([open_source(tmp_path)], [1], seed=0)
    found = [sample for n in range(2) for _, sample in stream.samples(n)]
    assert [sample.truth.answers for sample in found] == [("a grey square",)]
    assert stream.skipped.counts == {"file": 1}


def test_a_failed_writing_leaves_whole_shards_and_no_others(folder, tmp_path):
    broken = [*records(4, 1), {"task": "referring", "images": ["missing.png"], "text": "x", "masks": []}]
    with pytest.raises((ValueError, OSError), match="missing.png"):
        write_shards(tmp_path, broken, folder, per_shard=3)
    assert [path.name for path in tmp_path.iterdir()] == ["shard-000000.tar"]
    with pytest.raises(FileExistsError, match="already"):
        write_shards(tmp_path, records(1), folder)


def test_webdataset_reads_the_names_as_we_write_them(shards):
    with tarfile.open(shards / "shard-000000.tar") as archive:
        names = archive.getnames()
    assert names == [f"{i:08d}.{ending}" for i in range(3) for ending in ("json", "0.png")]


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("a", [("a", 1.0)]),
        ("a:2,b/c:0.5", [("a", 2.0), ("b/c", 0.5)]),
        ("c:/x", [("c:/x", 1.0)]),
    ],
)
def test_sources_on_the_command_line(text, pairs):
    assert parse_sources(text) == pairs


@pytest.mark.parametrize("text", ["", " , ", "a:0", "a:-1", "a:nan", ":2"])
def test_what_is_no_source(text):
    with pytest.raises(ValueError, match="WEIGHT"):
        parse_sources(text)


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="samples.jsonl"):
        open_source(tmp_path)
    (tmp_path / "samples.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no sample"):
        FolderSource(tmp_path)
