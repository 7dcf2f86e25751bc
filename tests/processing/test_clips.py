"""Reading and writing clips frame by frame: every kind of source, both directions, and what is refused."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_focus.processing import clips
from diffusers_focus.processing.clips import open_clip
from diffusers_focus.processing.index_maps import davis_palette, index_map_of, save_index_map
from diffusers_focus.processing.video_files import picture_file

HAS_AV = importlib.util.find_spec("av") is not None
needs_av = pytest.mark.skipif(not HAS_AV, reason="needs PyAV (extra `video`)")


def frames(count: int = 7, width: int = 20, height: int = 12) -> np.ndarray:
    """A bright square that walks to the right, uint8 [count, height, width, 3]."""
    found = np.full((count, height, width, 3), 40, dtype=np.uint8)
    for index in range(count):
        found[index, 4:8, 2 * index : 2 * index + 4] = (250, 200, 8 * index)
    return found


def read(numbered) -> tuple[list[int], np.ndarray]:
    pairs = list(numbered)
    return [index for index, _ in pairs], np.stack([np.asarray(image) for _, image in pairs])


@pytest.fixture
def folder(tmp_path):
    for index, frame in enumerate(frames()):
        Image.fromarray(frame).save(tmp_path / f"{index:03d}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


@pytest.mark.parametrize("kind", ["list", "arrays", "array", "float", "tensor", "paths", "folder", "mixed"])
def test_every_source_gives_the_same_frames_both_ways(kind, folder):
    array = frames()
    paths = sorted(folder.glob("*.png"))
    source = {
        "list": [Image.fromarray(frame) for frame in array],
        "arrays": list(array),
        "array": array,
        "float": array.astype(np.float32) / 255,
        "tensor": torch.from_numpy(array).permute(0, 3, 1, 2),
        "paths": [str(path) for path in paths],
        "folder": str(folder),
        "mixed": [paths[0], array[1], *(Image.fromarray(frame) for frame in array[2:])],
    }[kind]
    clip = open_clip(source)
    assert clip.length == 7 and clip.repeatable and open_clip(clip) is clip
    for start, numbered in ((0, clip.forwards()), (3, clip.forwards(3))):
        indices, found = read(numbered)
        assert indices == list(range(start, 7)) and np.array_equal(found, array[start:])
    indices, found = read(clip.backwards(4))
    assert indices == [4, 3, 2, 1, 0] and np.array_equal(found, array[4::-1])


def test_backwards_keeps_a_block_of_frames_at_a_time(monkeypatch):
    array, opened = frames(9), []

    class Watched(list):
        def __getitem__(self, index):
            opened.append(index)
            return super().__getitem__(index)

    monkeypatch.setattr(clips, "_BLOCK_BYTES", 3 * array[0].size)
    numbered = open_clip(Watched(array)).backwards(8)
    for _ in range(5):
        next(numbered)
    assert min(opened) >= 2  # not the whole clip
    assert [index for index, _ in numbered] == [3, 2, 1, 0]


def test_a_stream_is_read_once_and_as_it_comes():
    taken = []

    def source():
        for index, frame in enumerate(frames()):
            taken.append(index)
            yield frame

    clip = open_clip(source())
    assert not clip.repeatable and clip.length is None
    numbered = clip.forwards()
    assert next(numbered)[0] == 0 and taken == [0]
    assert [index for index, _ in numbered] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(ValueError, match="cannot be read backwards"):
        clip.backwards(3)
    with pytest.raises(ValueError, match="no frames"):
        list(open_clip(iter([])).forwards())


def test_gif_goes_out_and_comes_back_frame_by_frame(tmp_path):
    with picture_file(tmp_path / "clip.gif", rate=5) as file:
        for frame in frames():
            file.write(Image.fromarray(frame))
    assert [path.name for path in tmp_path.iterdir()] == ["clip.gif"]
    clip = open_clip(tmp_path / "clip.gif")
    assert clip.length == 7 and clip.rate == pytest.approx(5)
    indices, found = read(clip.forwards())
    assert indices == list(range(7)) and np.abs(found.astype(int) - frames()).max() <= 2
    assert np.array_equal(read(clip.backwards(5))[1], found[5::-1])


@needs_av
@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm"])
def test_video_goes_out_and_comes_back_both_ways(tmp_path, name, monkeypatch):
    with picture_file(tmp_path / name, rate=10) as file:
        for frame in frames(30, width=65, height=48):  # an odd side, which the codecs do not take
            file.write(Image.fromarray(frame))
    clip = open_clip(str(tmp_path / name))
    assert clip.length == 30 and clip.rate == pytest.approx(10)
    indices, found = read(clip.forwards())
    assert indices == list(range(30)) and found.shape == (30, 48, 66, 3)
    assert np.abs(found[:, :, :64].astype(int) - frames(30, 65, 48)[:, :, :64]).mean() < 8
    monkeypatch.setattr(clips, "_BLOCK_BYTES", 4 * found[0].size)
    indices, backwards = read(clip.backwards(21))
    assert indices == list(range(21, -1, -1)) and np.array_equal(backwards, found[21::-1])
    assert np.array_equal(read(clip.forwards(17))[1], found[17:])


@needs_av
def test_damaged_videos_are_refused(tmp_path):
    with picture_file(tmp_path / "clip.mp4") as file:
        for frame in frames(12, 64, 48):
            file.write(Image.fromarray(frame))
    whole = (tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(ValueError, match="cut.mp4"):
        list(open_clip(tmp_path / "cut.mp4").forwards())
    (tmp_path / "no.mp4").write_bytes(b"nothing of the kind" * 20)
    with pytest.raises(ValueError, match="no picture and no video"):
        open_clip(tmp_path / "no.mp4")


@pytest.mark.skipif(HAS_AV, reason="PyAV is installed")
def test_videos_name_the_extra_they_need(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"\0" * 64)
    with pytest.raises(ValueError, match=r"diffusers-focus\[video\]"):
        open_clip(tmp_path / "clip.mp4")
    with pytest.raises(ValueError, match=r"diffusers-focus\[video\]"):
        picture_file(tmp_path / "clip.mp4")


def test_bad_clips_are_refused(tmp_path):
    image = Image.fromarray(frames()[0])
    for wrong, error, says in (
        ([], ValueError, "no frames"),
        (np.zeros((0, 4, 4, 3), np.uint8), ValueError, "no frames"),
        (np.zeros((4, 4, 3), np.uint8), ValueError, r"\[frames, height, width, 3\]"),
        (7, TypeError, "got int"),
        (tmp_path, ValueError, "no pictures"),
        (tmp_path / "clip.mp4", FileNotFoundError, "no clip at"),
    ):
        with pytest.raises(error, match=says):
            open_clip(wrong)
    with pytest.raises(ValueError, match="Frame 1 of the clip is 5 wide and 4 high, the one before it 20"):
        list(open_clip([image, image.resize((5, 4))]).forwards())
    with pytest.raises(TypeError, match="Frame 1 of the clip cannot be used. An image must be"):
        list(open_clip([image, None]).forwards())
    (tmp_path / "000.png").write_bytes(b"\x89PNG damaged")
    with pytest.raises(ValueError, match="Frame 0 of the clip cannot be used"):
        list(open_clip(tmp_path).forwards())
    (tmp_path / "cut.gif").write_bytes(b"GIF89a\x08\0")
    with pytest.raises(ValueError, match="cut.gif"):
        list(open_clip(tmp_path / "cut.gif").forwards())


def test_a_failed_write_leaves_the_old_file(tmp_path):
    (tmp_path / "old.gif").write_bytes(b"old")
    image = Image.fromarray(frames()[0])
    with (
        pytest.raises(ValueError, match="is \\(20, 12\\), this one \\(5, 4\\)"),
        picture_file(tmp_path / "old.gif") as file,
    ):
        file.write(image)
        file.write(image.resize((5, 4)))
    assert (tmp_path / "old.gif").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="end the name in .gif"):
        picture_file(tmp_path / "clip.txt")
    with pytest.raises(FileNotFoundError, match="create it first"):
        picture_file(tmp_path / "none" / "clip.gif")
    with pytest.raises(ValueError, match="above 0"):
        picture_file(tmp_path / "clip.gif", rate=0)


def test_index_maps_keep_numbers_and_have_davis_colours(tmp_path):
    palette = davis_palette()
    assert palette[:15] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128] and palette[24:27] == [64, 0, 0]
    masks = np.zeros((2, 4, 6), dtype=bool)
    masks[0, :2] = True
    masks[1, 1:3] = True
    numbers = index_map_of(masks, [3, 7])
    assert numbers[0, 0] == 3 and numbers[1, 0] == 7 and numbers[3, 0] == 0
    save_index_map(tmp_path / "map.png", numbers)
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.mode == "P" and np.array_equal(np.asarray(picture), numbers)
        assert picture.convert("RGB").getpixel((0, 1)) == (128, 128, 128)
    with pytest.raises(ValueError, match="numbers from 1 to 254"):
        index_map_of(masks, [1, 255])
