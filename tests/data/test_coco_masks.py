"""Run lengths and polygons: round trips, pycocotools where it is installed, and a polygon worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from diffusers_focus.data import coco_masks

from tests.evaluation.mask_pairs import mask_pairs

TRIANGLES = [[2.0, 1.0, 12.5, 3.25, 6.0, 9.0], [10.0, 8.0, 14.0, 8.0, 14.0, 14.0, 10.0, 14.0]]


def polygons(seed: int) -> list[list[float]]:
    """One to three polygons, partly beyond a 40 x 60 picture; with repeated corners and straight sides."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(int(rng.integers(1, 4))):
        corners = rng.uniform(-5, 65, (int(rng.integers(3, 9)), 2)).round(int(rng.integers(0, 3)))
        if rng.random() < 0.5:
            corners = np.concatenate([corners, corners[:1]])
        found.append(corners.reshape(-1).tolist())
    return found


def test_rle_there_and_back():
    for mask, _ in mask_pairs():
        assert (coco_masks.decode_rle(coco_masks.encode_rle(mask)) == mask).all()


def test_rle_of_numbers_runs_down_the_columns():
    mask = coco_masks.decode_rle({"size": [2, 3], "counts": [1, 2, 3]})
    assert mask.tolist() == [[False, True, False], [True, False, False]]


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [2, 3], "counts": [1, 2]},
        {"size": [2, 3], "counts": "~"},
        {"counts": [6]},
        {"size": [2], "counts": [2]},
    ],
)
def test_damaged_rle_is_an_error(rle):
    with pytest.raises(ValueError):
        coco_masks.decode_rle(rle)


def test_a_square_polygon_covers_the_pixels_whose_centres_it_holds():
    mask = coco_masks.polygons_mask([[10, 8, 14, 8, 14, 14, 10, 14]], 20, 20)
    expected = np.zeros((20, 20), dtype=bool)
    expected[8:14, 10:14] = True
    assert (mask == expected).all()


def test_polygons_of_pycocotools():
    mask_util = pytest.importorskip("pycocotools.mask")
    filled = 0
    for seed in range(150):
        found = polygons(seed)
        official = mask_util.decode(mask_util.merge(mask_util.frPyObjects(found, 40, 60))).astype(bool)
        assert (coco_masks.polygons_mask(found, 40, 60) == official).all(), seed
        filled += official.any()
    assert filled > 100


def test_rle_of_pycocotools():
    mask_util = pytest.importorskip("pycocotools.mask")
    for mask, _ in mask_pairs(1):
        official = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert coco_masks.encode_rle(mask) == {"size": official["size"], "counts": official["counts"].decode()}
        assert (coco_masks.decode_rle(official) == mask).all()


def test_a_segmentation_leaves_out_what_is_no_polygon():
    whole = coco_masks.annotation_mask([TRIANGLES[0], [1.0, 2.0, 3.0, 4.0]], 20, 20)
    assert (whole == coco_masks.polygons_mask([TRIANGLES[0]], 20, 20)).all()
    with pytest.raises(ValueError, match="three corners"):
        coco_masks.annotation_mask([[1.0, 2.0, 3.0, 4.0]], 20, 20)
    with pytest.raises(ValueError, match="20 x 30"):
        coco_masks.annotation_mask(coco_masks.encode_rle(whole), 20, 30)


def test_labelme_draws_small_shapes_over_large_ones(tmp_path):
    shapes = [
        {"label": "ignore", "points": [[10, 10], [14, 10], [14, 14], [10, 14]]},
        {"label": "target", "points": [[2, 2], [20, 2], [20, 20], [2, 20]]},
        {"label": "flag", "points": [[0, 0], [30, 0], [30, 30]]},
        {"label": "target", "points": [[25, 5]]},
    ]
    file = tmp_path / "a.json"
    file.write_bytes(
        json.dumps({"shapes": shapes, "text": ["the \u00e9tag\u00e8re"]}, ensure_ascii=False).encode("cp1252")
    )
    target, ignored = coco_masks.labelme_masks(file.read_bytes(), "a.json", 32, 40)
    assert ignored.sum() == 25 and ignored[10:15, 10:15].all()
    assert target.sum() == 19 * 19 - 25 + 1 and target[5, 25] and not (target & ignored).any()


def test_labelme_as_opencv_draws_it(tmp_path):
    cv2 = pytest.importorskip("cv2")
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
        points = 150 + rng.uniform(20, 140, (12, 1)) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        file = tmp_path / "a.json"
        file.write_text(json.dumps({"shapes": [{"label": "target", "points": points.tolist()}]}))
        official = np.zeros((300, 300), dtype=np.uint8)
        cv2.polylines(official, np.array([points], dtype=np.int32), True, 1, 1)
        cv2.fillPoly(official, np.array([points], dtype=np.int32), 1)
        mine = coco_masks.labelme_masks(file.read_bytes(), "a.json", 300, 300)[0]
        found.append((mine & (official > 0)).sum() / (mine | (official > 0)).sum())
    assert np.mean(found) > 0.999 and min(found) > 0.997


def test_index_maps(tmp_path):
    values = np.zeros((4, 6), dtype=np.uint8)
    values[1, 2], values[3, 5] = 1, 2
    picture = Image.fromarray(values, mode="P")
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    picture.save(tmp_path / "a.png")
    assert (coco_masks.index_map(tmp_path / "a.png") == values).all()
    Image.new("RGB", (6, 4)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    for name in ("b.png", "c.png"):
        with pytest.raises(ValueError, match=name):
            coco_masks.index_map(tmp_path / name)


def test_outlines_of_masks_give_them_back():
    rng = np.random.default_rng(0)
    for _ in range(40):
        height, width = (int(side) for side in rng.integers(1, 15, 2))
        mask = rng.random((height, width)) < rng.uniform(0.1, 0.95)  # full of holes, and of parts that touch at corners
        polygons = coco_masks.mask_polygons(mask)
        assert (coco_masks.polygons_mask(polygons, height, width) == mask).all()
        assert all(len(polygon) >= 8 and len(polygon) % 2 == 0 for polygon in polygons)
    ring = np.ones((9, 9), dtype=bool)
    ring[3:6, 3:6] = False
    ring[4, 4] = True
    assert [len(polygon) for polygon in coco_masks.mask_polygons(ring)] == [
        2 * (4 + 1 + 4 + 1 + 1),
        8,
    ]  # the part in the hole apart
    assert coco_masks.mask_polygons(np.zeros((3, 4), bool)) == [] and coco_masks.mask_polygons(
        np.ones((2, 3), bool)
    ) == [[0, 0, 3, 0, 3, 2, 0, 2]]
    with pytest.raises(ValueError, match="height, width"):
        coco_masks.mask_polygons(np.zeros((1, 3, 4), bool))


def test_outlines_of_masks_are_what_pycocotools_reads():
    coco = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(1)
    for _ in range(10):
        mask = rng.random((12, 9)) < 0.6
        theirs = coco.decode(
            coco.merge(coco.frPyObjects([list(map(float, p)) for p in coco_masks.mask_polygons(mask)], 12, 9))
        )
        assert (theirs.astype(bool) == mask).all() and (
            coco.decode(coco_masks.encode_rle(mask)).astype(bool) == mask
        ).all()
