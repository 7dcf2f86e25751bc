"""Published data sets to folders and shards of samples, and what is true of them there."""

from __future__ import annotations

import numpy as np
import pytest

from diffusers_focus import cli
from diffusers_focus.data.benchmarks import videos
from diffusers_focus.data.convert import FORMATS, convert_data, write_world
from diffusers_focus.data.folders import SampleFolder
from diffusers_focus.data.sources import SampleStream

from tests.data import published
from tests.data.published import davis_map, truth

WRITERS = {
    "refcoco": lambda root: published.write_refer(root),
    "refcoco+": lambda root: published.write_refer(root, "refcoco+"),
    "refcocog": lambda root: published.write_refer(root, "refcocog", "umd"),
    "grefcoco": published.write_grefer,
    "reasonseg": published.write_reason_seg,
    "coco-interactive": published.write_interactive,
    "davis": published.write_davis,
    "ref-youtube-vos": published.write_expressions,
    "ref-davis": published.write_expressions,
    "revos": published.write_revos,
    "youtube-vis": published.write_youtube_vis,
    "llava": published.write_llava,
    "instruct-pix2pix": published.write_pix2pix,
    "edits": published.write_edits,
    "vqa": published.write_vqa,
}
COUNTS = {
    **{
        "refcoco": 12,
        "refcoco+": 12,
        "refcocog": 12,
        "grefcoco": 9,
        "reasonseg": 4,
        "coco-interactive": 36,
        "davis": 2,
    },
    **{
        "ref-youtube-vos": 8,
        "ref-davis": 8,
        "revos": 3,
        "youtube-vis": 2,
        "llava": 3,
        "instruct-pix2pix": 3,
        "edits": 1,
    },
    "vqa": 2,
}
SPLITS = {"ref-youtube-vos": "valid", "ref-davis": "valid", "revos": "valid", "youtube-vis": "valid"}
NO_SPLIT = ("llava", "instruct-pix2pix", "edits")


def test_every_format_has_a_made_up_file():
    assert set(WRITERS) == set(COUNTS) == set(FORMATS)


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_data_set_becomes_samples_in_a_folder_and_in_shards(name, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    WRITERS[name](source)
    split = None if name in NO_SPLIT else SPLITS.get(name, "val")
    done = convert_data(name, source, tmp_path / "folder", split=split)
    assert done.written == COUNTS[name]
    folder = SampleFolder(tmp_path / "folder")
    samples = {sample.query.key: sample for sample in folder}
    # Prompts that PSALM's script left empty are there, and told when they are read.
    unreadable = 1 if name == "coco-interactive" else 0
    assert len(samples) == COUNTS[name] - unreadable == COUNTS[name] - sum(folder.skipped.values())
    packed = convert_data(name, source, tmp_path / "shards", split=split, shards=True, per_shard=2)
    assert packed.written == COUNTS[name]
    stream = SampleStream.open([(str(tmp_path / "shards"), 1.0)], seed=0)
    again = {s.query.key: s for n in range(len(stream.sources[0])) for _, s in stream.samples(n)}
    assert again.keys() == samples.keys()
    for key, sample in samples.items():
        other = again[key]
        assert sample.query.text == other.query.text and sample.truth.answers == other.truth.answers
        assert [np.asarray(i).tobytes() for i in sample.query.images] == [
            np.asarray(i).tobytes() for i in other.query.images
        ]
        if sample.truth.masks is not None:
            assert (sample.truth.masks == other.truth.masks).all()


def converted(name: str, tmp_path, split: str | None = None):
    WRITERS[name](tmp_path)
    done = convert_data(name, tmp_path, tmp_path, split=split)
    return list(SampleFolder(tmp_path)), done


def test_clips_and_expressions_mean_the_objects_of_the_maps(tmp_path):
    samples, _ = converted("ref-davis", tmp_path, "valid")
    for sample in samples:
        number = 1 if sample.query.text in ("the first one", "what moves right") else 2
        assert sample.truth.masks.shape == (1, 6, 40, 60)
        for frame in range(6):
            assert (sample.truth.masks[0, frame] == (davis_map(frame) == number)).all()
    assert {sample.query.key for sample in samples} == {f"{v}/{i}" for v in ("0a1b", "ff00") for i in range(4)}


def test_revos_has_none_one_and_several_objects(tmp_path):
    samples, _ = converted("revos", tmp_path, "valid")
    assert [len(sample.truth.masks) for sample in samples] == [1, 2, 0]
    assert [sample.info["kind"] for sample in samples] == ["referring", "reasoning", "no target"]
    both = samples[1].truth.masks
    for frame in range(5):
        assert (both[:, frame] == np.stack([davis_map(frame) == 1, davis_map(frame) == 2])).all()


def test_youtube_vis_asks_for_all_names(tmp_path):
    samples, _ = converted("youtube-vis", tmp_path, "valid")
    assert [sample.query.names for sample in samples] == [("runner", "leaver", "elephant")] * 2
    assert [sample.truth.labels for sample in samples] == [("runner", "leaver")] * 2
    assert (samples[0].truth.masks[1, 4] == 0).all() and (samples[0].truth.masks[1, 3] == (davis_map(3) == 2)).all()


def test_what_a_server_keeps_is_said(tmp_path):
    published.write_expressions(tmp_path, annotated=False)
    done = convert_data("ref-youtube-vos", tmp_path, tmp_path, split="valid")
    assert (done.written, done.left_out) == (0, 8) and "a server keeps them" in done.problems[0]
    published.write_youtube_vis(tmp_path, annotated=False)
    assert "server" in next(iter(videos.youtube_vis_records(tmp_path)))["info"]["problem"]


def test_conversations_keep_their_turns(tmp_path):
    samples, done = converted("llava", tmp_path)
    talk, single, words = samples
    assert talk.query.history == (("What is red?", "A thing."),) and talk.query.text == "Where is it?"
    assert talk.truth.answers == ("On the left.",) and len(talk.query.images) == 1
    assert single.query.text == "Colours?" and single.query.history == ()
    assert words.query.task == "text" and not words.query.images
    assert done.left_out == 1 and "conversation 3" in done.problems[0]


def test_edits_name_their_pictures_and_places(tmp_path):
    (tmp_path / "list").mkdir()
    (tmp_path / "pairs").mkdir()
    (edit,), done = converted("edits", tmp_path / "list")
    assert edit.query.text == "make the red thing green" and (edit.truth.change == truth(0, "red")).all()
    assert done.left_out == 1 and "no result" in done.problems[0]
    pairs, done = converted("instruct-pix2pix", tmp_path / "pairs")
    assert [pair.query.text[-7:] for pair in pairs] == ["0000001", "0000001", "0000002"]
    assert done.left_out == 1 and "0000003" in done.problems[0]


def test_reason_seg_asks_every_question_and_interactive_every_kind(tmp_path):
    samples, _ = converted("reasonseg", tmp_path, "val")
    assert [sample.query.text for sample in samples][:2] == ["Which has the colour of blood: red?", "another"]
    regions, _ = converted("coco-interactive", tmp_path, "val")
    assert {sample.query.key.split("-")[1] for sample in regions} == {"point", "scribble", "box", "mask"}


def test_references_are_named_by_their_category(tmp_path):
    samples, _ = converted("grefcoco", tmp_path, "val")
    assert [sample.truth.labels for sample in samples[:3]] == [("red",), ("red", "blue"), ()]


def test_the_command_line_converts_and_says_what_was_left_out(tmp_path, capsys):
    published.write_llava(tmp_path)
    line = ["data", "llava", "--from", str(tmp_path), "--to", str(tmp_path / "out"), "--shards", "--per-shard", "1"]
    assert cli.main(line) == 0
    said = capsys.readouterr().out
    assert said.startswith("3 samples\nleft out: 1 ") and said.endswith(f"{tmp_path / 'out'}\n")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *["shard-000000.tar", "shard-000001.tar", "shards.json"]
    ]
    assert cli.main(line) == 2 and "already" in capsys.readouterr().err
    assert cli.main(["data", "nothing", "--to", "x"]) == 2 and "refcoco" in capsys.readouterr().err
    assert cli.main(["data", "refcoco", "--to", "x"]) == 2 and "--from DIR" in capsys.readouterr().err


def test_scenes_as_samples(tmp_path):
    for shards in (False, True):
        done = write_world(tmp_path / str(shards), range(3), size=64, shards=shards)
        stream = SampleStream.open([(str(tmp_path / str(shards)), 1.0)], seed=0)
        found = [s for n in range(len(stream.sources[0])) for _, s in stream.samples(n)]
        assert len(found) == done.written and not stream.skipped.names
        assert {s.query.task for s in found} >= {"answer", "referring", "region", "class", "edit", "generation"}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_missing_picture_is_left_out_of_a_shard_and_told(tmp_path):
    published.write_refer(tmp_path)
    next((tmp_path / "images" / "mscoco" / "images" / "train2014").iterdir()).unlink()
    done = convert_data("refcoco", tmp_path, tmp_path / "out", split="val", shards=True)
    assert done.written + done.left_out == 12 and done.left_out in (0, 6)


@pytest.mark.parametrize("bad", [{"split": "nowhere"}, {"split_by": "nobody"}])
def test_wrong_names_are_refused(bad, tmp_path):
    published.write_davis(tmp_path)
    with pytest.raises(ValueError, match="split"):
        convert_data("davis", tmp_path, tmp_path, **bad)
    with pytest.raises(FileNotFoundError, match="no folder"):
        convert_data("davis", tmp_path / "missing", tmp_path)
