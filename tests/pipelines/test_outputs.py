"""Segmented objects in other forms: images, run lengths, polygons, boxes, maps, overlays."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffusers_focus.data.coco_masks import decode_rle, polygons_mask
from diffusers_focus.pipelines.outputs import FocusSegmentOutput


def found(nested: bool = False) -> FocusSegmentOutput:
    """Two objects that overlap, best first; and nothing."""
    masks = np.zeros((2, 12, 16), dtype=bool)
    masks[0, 2:6, 3:9] = True
    masks[1, 4:10, 6:14] = True
    masks[1, 8, 10] = False  # a hole
    entry = {
        **{"masks": masks, "scores": np.array([0.9, 0.6], np.float32), "labels": ["cat", "dog"], "text": "cat, dog"},
        **{"instance_embeds": np.zeros((2, 4)), "presence": 0.9, "qualities": np.array([0.8, 0.7], np.float32)},
    }
    none = {
        **{"masks": masks[:0], "scores": np.zeros(0, np.float32), "labels": [], "text": "nothing", "presence": 0.1},
        **{"instance_embeds": np.zeros((0, 4)), "qualities": np.zeros(0, np.float32)},
    }
    pair = {name: [entry[name], none[name]] for name in entry}
    return FocusSegmentOutput(**{name: [value] if nested else value for name, value in pair.items()})


def test_masks_come_back_from_every_form():
    out = found()
    pictures, runs, outlines = out.to_pil(), out.to_rle(), out.to_polygons()
    assert [len(entry) for entry in pictures] == [2, 0] == [len(entry) for entry in runs]
    assert pictures[0][0].mode == "L" and (np.asarray(pictures[0][1]) == out.masks[0][1] * 255).all()
    for mask, rle, polygons in zip(out.masks[0], runs[0], outlines[0], strict=True):
        assert (decode_rle(rle) == mask).all() and (polygons_mask(polygons, 12, 16) == mask).all()
    assert out.to_boxes()[0].tolist() == [[3, 2, 9, 6], [6, 4, 14, 10]] and out.to_boxes()[1].shape == (0, 4)


def test_maps_have_the_better_object_on_top():
    whole, empty = found().to_label_maps()
    assert whole["segmentation"].dtype == np.int32 and whole["segmentation"][4, 7] == 1  # both lie there
    areas = [(info["id"], info["label"], info["area"]) for info in whole["segments_info"]]
    assert areas == [(1, "cat", 24), (2, "dog", 47 - 6)]
    assert not empty["segmentation"].any() and empty["segments_info"] == []
    by_name = found().to_label_maps(["bird", "dog", "cat"])[0]
    assert by_name["segmentation"][4, 7] == 3 and {info["id"] for info in by_name["segments_info"]} == {2, 3}
    with pytest.raises(ValueError, match="classes has no 'cat'"):
        found().to_label_maps(["dog"])


def test_nested_results_stay_nested():
    out = found(nested=True)
    assert [len(entry) for entry in out.to_rle()[0]] == [2, 0] and out.to_boxes()[0][0].shape == (2, 4)
    assert out.to_label_maps()[0][0]["segmentation"].max() == 2
    (overlays,) = out.to_overlays(Image.new("RGB", (16, 12)))
    assert len(overlays) == 2 and np.asarray(overlays[0]).any() and not np.asarray(overlays[1]).any()


def test_overlays_want_an_image_for_each_result():
    out, image = found(), Image.new("RGB", (16, 12), (9, 9, 9))
    assert np.asarray(out.to_overlays([image, image])[0]).shape == (12, 16, 3)
    with pytest.raises(ValueError, match="3 images for 2 results"):
        out.to_overlays([image] * 3)
