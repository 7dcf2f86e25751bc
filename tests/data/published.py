"""Small benchmarks in the files their authors publish, made up: coloured rectangles on grey, and sentences about them."""

from __future__ import annotations

import base64
import csv
import io
import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

from diffusers_focus.data.coco_masks import encode_rle

COLOURS = {"red": (210, 20, 20), "green": (20, 170, 20), "blue": (20, 20, 210)}
SIZES = [(64, 64), (48, 96), (96, 48)]  # (height, width), one a picture


def boxes(index: int) -> dict[str, tuple[int, int, int, int]]:
    """x0, y0, x1, y1 of the rectangle of each colour in a picture."""
    height, width = SIZES[index % len(SIZES)]
    w, h = width // 4, height // 4
    shift = index % 3
    return {
        "red": (2 + shift, 3, 2 + shift + w, 3 + h),
        "green": (width - w - 4, 5, width - 4, 5 + h + shift),
        "blue": (6, height - h - 5, 6 + w + shift, height - 5),
    }


def drawn(index: int) -> np.ndarray:
    """uint8 [H, W, 3]."""
    height, width = SIZES[index % len(SIZES)]
    picture = np.full((height, width, 3), 128, dtype=np.uint8)
    for name, (x0, y0, x1, y1) in boxes(index).items():
        picture[y0:y1, x0:x1] = COLOURS[name]
    return picture


def truth(index: int, *names: str) -> np.ndarray:
    """The mask of some colours, bool [H, W]."""
    picture = drawn(index)
    return np.any(
        [(picture == COLOURS[name]).all(axis=-1) for name in names] or [np.zeros(picture.shape[:2], bool)], axis=0
    )


def save(path: Path, index: int) -> None:
    """A picture, lossless whatever its ending says (readers go by content)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawn(index)).save(path, format="PNG")


def polygon(box: tuple[int, int, int, int]) -> list[float]:
    x0, y0, x1, y1 = map(float, box)
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def coco(pictures: int = 3) -> dict:
    """instances.json: polygons, and run lengths for the blue one; annotation ids are 10 * picture + colour."""
    images, annotations = [], []
    for index in range(pictures):
        height, width = SIZES[index % len(SIZES)]
        images.append(
            {"id": index + 1, "file_name": f"COCO_train2014_{index + 1:012d}.jpg", "height": height, "width": width}
        )
        for number, (name, box) in enumerate(boxes(index).items()):
            mask = truth(index, name)
            rle = {"size": [height, width], "counts": _runs(mask)} if name == "blue" else [polygon(box)]
            annotations.append(
                {
                    **{"id": 10 * (index + 1) + number, "image_id": index + 1, "category_id": number + 1, "iscrowd": 0},
                    **{"segmentation": rle, "area": float(mask.sum())},
                    **{"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]},
                }
            )
    categories = [{"id": number + 1, "name": name, "supercategory": "shape"} for number, name in enumerate(COLOURS)]
    return {"images": images, "annotations": annotations, "categories": categories, "info": {}, "licenses": []}


def _runs(mask: np.ndarray) -> list[int]:
    flat = mask.T.reshape(-1)
    cuts = [0, *(np.nonzero(flat[1:] != flat[:-1])[0] + 1).tolist(), len(flat)]
    return [b - a for a, b in zip(cuts[:-1], cuts[1:])]


def _sentences(first: int, texts: list[str]) -> list[dict]:
    return [{"sent_id": first + i, "sent": t, "raw": t.capitalize(), "tokens": t.split()} for i, t in enumerate(texts)]


def write_refer(root: Path, dataset: str = "refcoco", by: str = "unc") -> None:
    """refs(unc).p as Python 2 wrote it (protocol 0), two sentences a reference; split val for two pictures, testA for one."""
    refs = []
    for index in range(3):
        for number, name in enumerate(COLOURS):
            ref_id = 3 * index + number
            refs.append(
                {
                    **{"ref_id": ref_id, "ann_id": 10 * (index + 1) + number, "image_id": index + 1},
                    **{"category_id": number + 1, "split": "testA" if index == 2 else "val"},
                    "file_name": f"COCO_train2014_{index + 1:012d}_{ref_id}.jpg",
                    "sent_ids": [2 * ref_id, 2 * ref_id + 1],
                    "sentences": _sentences(2 * ref_id, [f"the {name} thing", f"{name}"]),
                }
            )
    folder = root / dataset
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"refs({by}).p").write_bytes(pickle.dumps(refs, protocol=0))
    (folder / "instances.json").write_text(json.dumps(coco()))
    for index in range(3):
        save(root / "images" / "mscoco" / "images" / "train2014" / f"COCO_train2014_{index + 1:012d}.jpg", index)


def write_grefer(root: Path) -> None:
    """grefs(unc).json: one, two and no targets."""
    refs = []
    for index in range(3):
        for number, names in enumerate((["red"], ["red", "blue"], [])):
            ids = [10 * (index + 1) + list(COLOURS).index(name) for name in names] or [-1]
            text = " and ".join(names) or "the purple thing"
            refs.append(
                {
                    **{"ref_id": 3 * index + number, "ann_id": ids, "image_id": index + 1, "split": "val"},
                    **{"category_id": [1], "no_target": not names, "sent_ids": [3 * index + number]},
                    **{"file_name": "", "sentences": _sentences(3 * index + number, [text])},
                }
            )
    write_refer(root, "grefcoco")
    (root / "grefcoco" / "refs(unc).p").unlink()
    (root / "grefcoco" / "grefs(unc).json").write_text(json.dumps(refs))


def write_reason_seg(root: Path) -> None:
    """Two pictures; in the second, an ignored shape covers the blue rectangle."""
    for index in range(2):
        save(root / "ReasonSeg" / "val" / f"{index}_p.jpg", index)
        x0, y0, x1, y1 = boxes(index)["red"]
        shapes = [
            {
                "label": "target",
                "points": [[x0, y0], [x1 - 1, y0], [x1 - 1, y1 - 1], [x0, y1 - 1]],
                "shape_type": "polygon",
            }
        ]
        if index == 1:
            x0, y0, x1, y1 = boxes(index)["blue"]
            points = [[x0, y0], [x1 - 1, y0], [x1 - 1, y1 - 1], [x0, y1 - 1]]
            shapes.append({"label": "ignore", "points": points, "shape_type": "polygon"})
        notes = {"text": ["Which has the colour of blood: red?", "another"], "is_sentence": True, "shapes": shapes}
        (root / "ReasonSeg" / "val" / f"{index}_p.json").write_text(json.dumps(notes))


def write_interactive(root: Path) -> None:
    """coco_interactive_val_psalm.json; the scribble of the last object is empty, as PSALM's script leaves some."""
    found = []
    instances = coco()
    for index, info in enumerate(instances["images"]):
        annotations = [one for one in instances["annotations"] if one["image_id"] == info["id"]]
        for one, (x0, y0, x1, y1) in zip(annotations, boxes(index).values()):
            middle = ((y0 + y1) // 2, (x0 + x1) // 2)
            masks = {
                kind: np.zeros((info["height"], info["width"]), dtype=bool)
                for kind in ("point", "scribble", "box", "mask")
            }
            masks["point"][middle] = True
            if one is not annotations[-1] or index != 2:
                masks["scribble"][middle[0], x0 + 2 : x1 - 2] = True
            masks["box"][y0:y1, x0:x1] = True
            masks["mask"][y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] = True
            one.update((f"{kind}_visual_prompt_mask", encode_rle(mask)) for kind, mask in masks.items())
        name = f"{info['id']:012d}.jpg"
        found.append(
            {"image": name, "image_info": {**info, "file_name": name}, "new_img_id": index, "anns": annotations}
        )
        save(root / "val2017" / name, index)
    (root / "coco_interactive_val_psalm.json").write_text(json.dumps(found, indent=2))


def davis_map(frame: int) -> np.ndarray:
    """Object numbers of a frame: two rectangles that move; the second one leaves after frame 3."""
    numbers = np.zeros((40, 60), dtype=np.uint8)
    numbers[5:15, 4 + 2 * frame : 20 + 2 * frame] = 1
    if frame <= 3:
        numbers[22:34, 30 - frame : 45 - frame] = 2
    return numbers


def save_map(path: Path, numbers: np.ndarray) -> None:
    """A palette PNG, as DAVIS writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(numbers, mode="P")
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    picture.save(path)


def write_davis(root: Path, clips: tuple[str, ...] = ("bear", "camel"), frames: int = 6) -> None:
    """Clips of six frames at 480p's place."""
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("\n".join(clips) + "\n")
    for clip in clips:
        for frame in range(frames):
            save_map(root / "Annotations" / "480p" / clip / f"{frame:05d}.png", davis_map(frame))
            path = root / "JPEGImages" / "480p" / clip / f"{frame:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.repeat(davis_map(frame)[..., None] * 90, 3, axis=-1)).save(path)


def write_pope(root: Path) -> None:
    """coco_pope_random.json: two questions a picture."""
    lines = []
    for index in range(3):
        name = f"COCO_val2014_{index + 1:012d}.jpg"
        save(root / "val2014" / name, index)
        for thing, label in (("red", "yes"), ("purple", "no")):
            question = {
                "question_id": len(lines) + 1,
                "image": name,
                "text": f"Is there a {thing} thing in the image?",
                "label": label,
            }
            lines.append(json.dumps(question))
    (root / "coco_pope_random.json").write_text("\n".join(lines) + "\n")


def write_vqa(root: Path) -> None:
    """Two questions with ten answers each."""
    questions = [{"image_id": i + 1, "question": "Which colour is there?", "question_id": 1000 + i} for i in range(2)]
    given = [["red"] * 6 + ["The red."] * 2 + ["blue"] * 2, ["two"] * 1 + ["2"] * 1 + ["many"] * 8]
    annotations = []
    for question, answers in zip(questions, given):
        rows = [{"answer": answer, "answer_confidence": "yes", "answer_id": i + 1} for i, answer in enumerate(answers)]
        kind = {"question_type": "which", "answer_type": "other", "multiple_choice_answer": answers[0]}
        annotations.append(
            {**kind, "answers": rows, "image_id": question["image_id"], "question_id": question["question_id"]}
        )
        save(root / "val2014" / f"COCO_val2014_{question['image_id']:012d}.jpg", question["image_id"] - 1)
    (root / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({"questions": questions}))
    (root / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": annotations}))


def write_mmbench(root: Path) -> None:
    """A table of two questions, each asked again with its choices rotated; the picture is in the first row of each."""
    with (root / "mmbench_dev_en.tsv").open("w", newline="") as stream:
        table = csv.writer(stream, delimiter="\t")
        table.writerow(
            ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category"]
        )
        for index in range(2):
            data = io.BytesIO()
            Image.fromarray(drawn(index)).save(data, format="PNG")
            code = base64.b64encode(data.getvalue()).decode()
            question = ("Which colour is in the picture?", "Look well." if index else "")
            table.writerow([index, *question, "purple", "red", "", "", "B", "colour", code, "made", "x"])
            table.writerow([1_000_000 + index, *question, "red", "purple", "", "", "A", "colour", index, "made", "x"])
