"""The measures equal the benchmarks' own code to 1e-6: stored numbers, pycocotools live.

official.json was written by official.py, which says how to run it, on the masks of mask_pairs.py and the answers of
answer_cases.py. Without pycocotools its tests are skipped.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusers_focus.data.samples import Truth
from diffusers_focus.evaluation import answers, metrics, video_scores
from diffusers_focus.evaluation.average_precision import Instance, mean_average_precision
from diffusers_focus.evaluation.picture_scores import Drawn, Measures, picture_row

from tests.evaluation.answer_cases import vqa_cases, yes_no_cases
from tests.evaluation.mask_pairs import foreground_triples, mask_pairs, random_mask
from tests.evaluation.picture_cases import picture_cases
from tests.evaluation.tube_cases import tube_cases

OFFICIAL = json.loads((Path(__file__).parent / "official.json").read_text())


@pytest.fixture(scope="module")
def pairs():
    return mask_pairs()


def test_j_of_davis(pairs):
    assert [metrics.iou(*pair) for pair in pairs] == pytest.approx(OFFICIAL["davis"]["J"], abs=1e-6)


def test_f_of_davis(pairs):
    found = [metrics.boundary_f(*pair) for pair in pairs]
    assert found == pytest.approx(OFFICIAL["davis"]["F"], abs=1e-6)
    assert len(set(np.round(found, 1))) > 6  # not only zeros and ones


def test_clip_statistics_of_davis():
    rows = [np.random.default_rng(n).random(n) for n in (1, 2, 3, 5, 8, 24, 69, 103)]
    for row, official in zip(rows, OFFICIAL["davis"]["statistics"], strict=True):
        assert metrics.clip_statistics(row) == pytest.approx(official, abs=1e-6)


def test_robustness_of_revos():
    found = [metrics.robustness(*(mask[None] for mask in triple)) for triple in foreground_triples()]
    assert found == pytest.approx(OFFICIAL["revos"], abs=1e-6)
    assert len(set(np.round(found, 1))) > 6
    # Of a clip the mean over its frames.
    same = [triple for triple in foreground_triples() if triple[0].shape == (37, 53)]
    clip = [np.stack(masks) for masks in zip(*same)]
    each = [metrics.robustness(*(mask[None] for mask in triple)) for triple in same]
    assert metrics.robustness(*clip) == pytest.approx(np.mean(each), abs=1e-9)


def test_l1_and_l2_of_magicbrush():
    rows = [
        picture_row(Drawn(Image.fromarray(result), target=Image.fromarray(true)), Measures())
        for result, true in picture_cases()
    ]
    for name in ("L1", "L2"):
        assert [row[name] for row in rows] == pytest.approx(OFFICIAL["magicbrush"][name.lower()], abs=1e-6)


def test_generalized_referring_of_rela(pairs):
    rows = [metrics.generalized_overlap(*pair) for pair in pairs]
    said, true = [not p.any() for p, _ in pairs], [not t.any() for _, t in pairs]
    official = OFFICIAL["rela"]
    assert 100 * np.mean([row[0] for row in rows]) == pytest.approx(official["gIoU"], abs=1e-6)
    assert 100 * metrics.cumulative_iou(row[1:] for row in rows) == pytest.approx(official["cIoU"], abs=1e-6)
    assert metrics.no_target_accuracy(said, true) == pytest.approx(official["N_acc"], abs=1e-6)
    assert metrics.target_accuracy(said, true) == pytest.approx(official["T_acc"], abs=1e-6)
    targets = [row[0] for row, empty in zip(rows, true) if not empty]
    for threshold in (0.7, 0.8, 0.9):
        assert 100 * metrics.precision_at(targets, threshold) == pytest.approx(official[f"Pr@{threshold}"], abs=1e-6)


def test_yes_and_no_of_pope():
    texts, labels = yes_no_cases()
    found = answers.yes_no_figures([answers.says_yes(text) for text in texts], [label == "yes" for label in labels])
    assert found == pytest.approx(OFFICIAL["pope"], abs=1e-6)


def test_accuracy_of_vqa():
    found = [100 * answers.vqa_accuracy(*case) for case in vqa_cases()]
    assert found == pytest.approx(OFFICIAL["vqa"], abs=1e-6)
    assert len(set(np.round(found, 3))) > 4


def test_tubes_of_youtube_vis():
    pytest.importorskip("pycocotools")
    rows = []
    for clip in tube_cases():
        true = clip["true"]
        frames = len((true or clip["found"] or [{"masks": np.zeros((3, 24, 32))}])[0]["masks"])
        masks = np.stack([one["masks"] for one in true]) if true else np.zeros((0, frames, 24, 32), dtype=bool)
        found = {
            key: [one[name] for one in clip["found"]]
            for key, name in (("masks", "masks"), ("labels", "label"), ("scores", "score"))
        }
        rows.append(video_scores.tubes_row(found, Truth(masks=masks, labels=tuple(one["label"] for one in true)), {}))
    figures = video_scores.tubes_figures(json.loads(json.dumps(rows)))
    assert figures == pytest.approx(OFFICIAL["ytvis"], abs=1e-6)
    assert 0.1 < figures["mAP"] < figures["AP50"] < 0.9


def test_a_single_pixel_off_counts_at_the_tolerance_and_not_beyond():
    truth = np.zeros((40, 40), dtype=bool)
    truth[10:20, 10:20] = True
    moved = np.roll(truth, 2, axis=1)
    assert metrics.boundary_f(moved, truth, tolerance=2) == 1.0
    assert metrics.boundary_f(moved, truth, tolerance=1) < 0.7


def test_ignored_pixels_count_for_neither():
    truth, wrong = np.zeros((20, 20), dtype=bool), np.zeros((20, 20), dtype=bool)
    truth[2:8, 2:8], wrong[2:8, 2:8], wrong[12:16, 12:16] = True, True, True
    ignored = np.zeros_like(truth)
    ignored[10:, 10:] = True
    assert metrics.overlap(wrong, truth) == (36, 52) and metrics.overlap(wrong, truth, ignored) == (36, 36)
    assert metrics.boundary_f(wrong, truth) < 1.0 and metrics.boundary_f(wrong, truth, ignored) == 1.0
    with pytest.raises(ValueError, match=r"ignored pixels of shape \(3, 3\)"):
        metrics.overlap(wrong, truth, np.zeros((3, 3)))


def instances(seed: int, images: int = 6) -> tuple[list, list]:
    """Truths of three classes, and predictions near them, elsewhere, doubled and missing."""
    rng = np.random.default_rng(seed)
    predicted, truth = [], []
    for index in range(images):
        wanted = [Instance(random_mask(rng, 60, 80), "abc"[int(rng.integers(3))]) for _ in range(index % 4)]
        wanted = [one for one in wanted if one.mask.any()]
        found = [
            Instance(np.roll(o.mask, int(rng.integers(4)), 1), o.label, float(rng.random()))
            for o in wanted
            for _ in "12"
        ]
        found.append(Instance(random_mask(rng, 60, 80), "a", float(rng.random())))
        truth.append(wanted)
        predicted.append(found)
    return predicted, truth


def test_map_of_pycocotools(tmp_path):
    pytest.importorskip("pycocotools")
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    predicted, truth = instances(1)
    truth[-1].append(Instance(np.ones((60, 80), dtype=bool), "a", crowd=True))
    # The official way: files, loadRes, and the evaluation of them.
    annotations, results = [], []
    for image_id, (found, wanted) in enumerate(zip(predicted, truth)):
        for one in wanted:
            code = coco_mask.encode(np.asfortranarray(one.mask.astype(np.uint8)))
            area, box = float(coco_mask.area(code)), list(coco_mask.toBbox(code))
            code["counts"] = code["counts"].decode()
            row = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": ord(one.label),
                "iscrowd": int(one.crowd),
            }
            annotations.append(row | {"segmentation": code, "area": area, "bbox": box})
        for one in found:
            code = coco_mask.encode(np.asfortranarray(one.mask.astype(np.uint8)))
            code["counts"] = code["counts"].decode()
            results.append(
                {"image_id": image_id, "category_id": ord(one.label), "segmentation": code, "score": one.score}
            )
    images = [{"id": i, "height": 60, "width": 80} for i in range(len(truth))]
    categories = [{"id": ord(name), "name": name} for name in "abc"]
    (tmp_path / "truth.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    (tmp_path / "results.json").write_text(json.dumps(results))
    official = COCO(str(tmp_path / "truth.json"))
    run = COCOeval(official, official.loadRes(str(tmp_path / "results.json")), "segm")
    run.evaluate()
    run.accumulate()
    run.summarize()
    ours = mean_average_precision(predicted, truth)
    assert 0.1 < ours["mAP"] < 0.9
    expected = [None if value < 0 else value for value in run.stats[:6]]
    assert list(ours.values()) == [None if v is None else pytest.approx(v, abs=1e-6) for v in expected]


def test_map_without_objects_is_absent():
    pytest.importorskip("pycocotools")
    found = mean_average_precision([[Instance(np.ones((4, 4), dtype=bool), "a")]], [[]])
    assert set(found.values()) == {None}


def test_map_wants_a_list_for_each_image():
    with pytest.raises(ValueError, match="2 images and truths for 1"):
        mean_average_precision([[], []], [[]])
