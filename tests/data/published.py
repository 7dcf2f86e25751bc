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
            Image.fromarray(np.repeat(davis_map(frame)[..., None] * 90, 3, axis=-1)).save(path, format="PNG")


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


def write_expressions(root: Path, split: str = "valid", annotated: bool = True) -> None:
    """Ref-YouTube-VOS's layout (and Ref-DAVIS's, as ReferFormer converts it): two clips, two objects, two expressions each."""
    videos = {}
    for video in ("0a1b", "ff00"):
        frames = [f"{5 * f:05d}" for f in range(6)]
        for number, frame in enumerate(frames):
            path = root / split / "JPEGImages" / video / f"{frame}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.repeat(davis_map(number)[..., None] * 90, 3, axis=-1)).save(path, format="PNG")
            if annotated:
                save_map(root / split / "Annotations" / video / f"{frame}.png", davis_map(number))
        texts = [("the first one", "1"), ("what moves right", "1"), ("the second one", "2"), ("what leaves", "2")]
        expressions = {
            str(i): {"exp": text} | ({"obj_id": n} if annotated else {}) for i, (text, n) in enumerate(texts)
        }
        videos[video] = {"expressions": expressions, "frames": frames}
    path = root / "meta_expressions" / split / "meta_expressions.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"videos": videos}))


def write_revos(root: Path, foreground: bool = False) -> None:
    """meta_expressions_valid_.json and mask_dict.json: one object, both, none; mask_dict_foreground.json where asked for."""
    frames = [f"{f:05d}" for f in range(5)]
    masks = {}
    for number in (1, 2):
        masks[str(10 + number)] = [
            encode_rle(davis_map(f) == number) if (davis_map(f) == number).any() else None for f in range(5)
        ]
    expressions = {
        "0": {"exp": "the first one", "obj_id": [0], "anno_id": [11], "type_id": 0},
        "1": {"exp": "what could have been drawn by hand?", "obj_id": [0, 1], "anno_id": [11, 12], "type_id": 1},
        "2": {"exp": "the elephant", "obj_id": [], "anno_id": [], "type_id": 2},
    }
    for number, frame in enumerate(frames):
        path = root / "JPEGImages" / "set" / "clip" / f"{frame}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.repeat(davis_map(number)[..., None] * 90, 3, axis=-1)).save(path, format="PNG")
    videos = {"set/clip": {"expressions": expressions, "frames": frames, "height": 40, "width": 60, "vid_id": 0}}
    (root / "meta_expressions_valid_.json").write_text(json.dumps({"videos": videos}))
    (root / "mask_dict.json").write_text(json.dumps(masks))
    if foreground:  # of a video that has a third object no expression is about, down to its last row
        everything = [davis_map(f) > 0 for f in range(5)]
        for mask in everything:
            mask[-1] = True
        given = {"masks_rle": [encode_rle(mask) for mask in everything], "foreground_ratio": [0.2] * 5}
        (root / "mask_dict_foreground.json").write_text(json.dumps({"set/clip": given}))


def write_youtube_vis(root: Path, annotated: bool = True) -> None:
    """valid.json as YouTube-VIS 2019 has its train.json: uncompressed run lengths, null where an object is not seen."""
    videos, annotations = [], []
    for video in (1, 2):
        names = [f"v{video}/{f:05d}.jpg" for f in range(5)]
        for number, name in enumerate(names):
            path = root / "valid" / "JPEGImages" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.repeat(davis_map(number)[..., None] * 90, 3, axis=-1)).save(path, format="PNG")
        videos.append({"id": video, "file_names": names, "width": 60, "height": 40, "length": 5})
        for number in (1, 2):
            runs = [davis_map(f) == number for f in range(5)]
            rles = [{"counts": _runs(mask), "size": [40, 60]} if mask.any() else None for mask in runs]
            areas = [int(mask.sum()) or None for mask in runs]
            annotations.append(
                {
                    "id": 2 * video + number,
                    "video_id": video,
                    "category_id": number,
                    "iscrowd": 0,
                    "segmentations": rles,
                    "areas": areas,
                    "length": 5,
                }
            )
    categories = [{"id": 1, "name": "runner"}, {"id": 2, "name": "leaver"}, {"id": 3, "name": "elephant"}]
    found = {"videos": videos, "categories": categories, "annotations": annotations if annotated else None}
    (root / "valid.json").write_text(json.dumps(found))


def write_llava(root: Path) -> None:
    """A conversation of two turns about a picture, one of one turn, one without a picture, and a damaged one."""
    save(root / "images" / "coco" / "1.jpg", 0)
    rows = [
        {
            "id": "a",
            "image": "coco/1.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is red?"},
                {"from": "gpt", "value": "A thing."},
                {"from": "human", "value": "Where is it?"},
                {"from": "gpt", "value": "On the left."},
            ],
        },
        {
            "id": "b",
            "image": "coco/1.jpg",
            "conversations": [{"from": "human", "value": "Colours?\n<image>"}, {"from": "gpt", "value": "Three."}],
        },
        {"id": "c", "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Good day."}]},
        {"id": "d", "image": "coco/1.jpg", "conversations": [{"from": "human", "value": "And then?"}]},
    ]
    (root / "llava_v1_5.json").write_text(json.dumps(rows))


def write_pix2pix(root: Path) -> None:
    """Two instructions with three pairs of pictures; the instruction of a third one is damaged."""
    seeds = [["0000001", ["11", "12"]], ["0000002", ["21"]], ["0000003", ["31"]]]
    for name, given in seeds:
        for seed in given:
            save(root / name / f"{seed}_0.jpg", 0)
            save(root / name / f"{seed}_1.jpg", 0)
        text = json.dumps({"caption": "a thing", "edit": f"make it blue {name}", "output": "a blue thing"})
        (root / name / "prompt.json").write_text(text if name != "0000003" else text[:20])
    (root / "seeds.json").write_text(json.dumps(seeds))


def write_edits(root: Path) -> None:
    """A list of edits as MagicBrush and others have it; one row without a result."""
    save(root / "images" / "1-input.png", 0)
    save(root / "images" / "1-output.png", 0)
    Image.fromarray(truth(0, "red").astype(np.uint8) * 255).save(root / "images" / "1-mask.png")
    rows = [
        {
            "input": "1-input.png",
            "output": "1-output.png",
            "mask": "1-mask.png",
            "instruction": "make the red thing green",
        },
        {"input": "1-input.png", "instruction": "remove it"},
    ]
    (root / "edit_turns.json").write_text(json.dumps(rows))


# --- edits and drawn pictures ---------------------------------------------------------------------------------------


def edited(index: int, colour: str) -> np.ndarray:
    """A picture with its red rectangle in another colour, uint8 [H, W, 3]."""
    picture = drawn(index)
    picture[truth(index, "red")] = COLOURS[colour]
    return picture


def _png(picture: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, format="PNG")
    return data.getvalue()


def emu_rows(split: str = "test") -> list[dict]:
    """Rows of Emu-Edit's test set, without pictures: two tasks; the captions of the last one are the same."""
    return [
        {
            **{"idx": index, "split": split, "hash": f"{index:032x}", "task": "color" if index else "remove"},
            "instruction": "make the red thing green" if index else "remove the red thing",
            "input_caption": "a red thing and a blue thing",
            "output_caption": "a red thing and a blue thing" if index == 2 else "a green thing and a blue thing",
        }
        for index in range(3)
    ]


def write_emu_edit(root: Path, parquet: bool = False) -> None:
    """test.jsonl beside pictures, or data/test-00000-of-00001.parquet with pictures inside."""
    root.mkdir(parents=True, exist_ok=True)
    if parquet:
        rows = [row | {"image": {"bytes": _png(drawn(row["idx"])), "path": None}} for row in emu_rows()]
        _write_parquet(root / "data" / "test-00000-of-00001.parquet", rows)
        return
    for row in emu_rows():
        save(root / "images" / f"{row['idx']}.jpg", row["idx"])
    lines = [json.dumps(row | {"image": f"images/{row['idx']}.jpg"}) for row in emu_rows()]
    (root / "test.jsonl").write_text("\n".join(lines) + "\n")


def _write_parquet(path: Path, rows: list[dict]) -> None:
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_magicbrush(root: Path, split: str = "test", parquet: bool = False) -> None:
    """Two sessions, of two turns and of one: red becomes green, then blue. Masks are the source, transparent where red was."""
    sessions, local, whole, rows = {}, {}, {}, []
    for index, turns in ((0, 2), (1, 1)):
        name, states = f"{100 + index}", [drawn(index), edited(index, "green"), edited(index, "blue")]
        files = [f"{name}-input.png", *(f"{name}-output{n}.png" for n in range(1, turns + 1))]
        folder = root / split / "images" / name
        clear = np.concatenate([states[0], np.where(truth(index, "red"), 0, 255)[..., None].astype(np.uint8)], axis=-1)
        sessions[name] = []
        for turn in range(turns):
            colour = ("green", "blue")[turn]
            text = f"make the thing at the top left {colour}"
            one = {"input": files[turn], "mask": f"{name}-mask{turn + 1}.png", "output": files[turn + 1]}
            sessions[name].append({**one, "instruction": text})
            cells = {"source_img": _png(states[turn]), "mask_img": _png(clear), "target_img": _png(states[turn + 1])}
            rows.append(
                {"img_id": name, "turn_index": turn + 1, "instruction": text}
                | {key: {"bytes": value, "path": None} for key, value in cells.items()}
            )
        local[name] = {file: f"a thing in {('red', 'green', 'blue')[n]}" for n, file in enumerate(files)}
        whole[name] = {file: f"{text} beside others" for file, text in local[name].items()}
        if not parquet:
            folder.mkdir(parents=True)
            for file, state in zip(files, states):
                Image.fromarray(state).save(folder / file)
            for turn in range(turns):
                Image.fromarray(clear).save(folder / f"{name}-mask{turn + 1}.png")
    if parquet:
        _write_parquet(root / "data" / f"{split}-00000-of-00001.parquet", rows)
        return
    for file, found in (("edit_sessions", sessions), ("local_descriptions", local), ("global_descriptions", whole)):
        (root / split / f"{file}.json").write_text(json.dumps(found))
    turns = [turn for session in sessions.values() for turn in session]
    (root / split / "edit_turns.json").write_text(json.dumps(turns))


def write_imgedit(root: Path) -> None:
    """basic_edit.json and UGE_edit.json."""
    basic = {
        "1082": {"id": "shapes/000.jpg", "prompt": "Change the red thing to green.", "edit_type": "adjust"},
        "510": {"id": "shapes/001.jpg", "prompt": "Remove the red thing.", "edit_type": "remove"},
    }
    for index in range(2):
        save(root / "original_images" / "shapes" / f"{index:03d}.jpg", index)
        save(root / "original_images" / f"{index:03d}.jpg", index)
    (root / "basic_edit.json").write_text(json.dumps(basic))
    uge = {str(n + 1): {"id": f"{n:03d}.jpg", "prompt": "Make everything green."} for n in range(2)}
    (root / "UGE_edit.json").write_text(json.dumps(uge))


def write_gedit(root: Path, parquet: bool = False) -> None:
    """Two pictures, each with an English and a Chinese instruction; the raw picture is twice as large."""
    rows, pictures = [], {}
    for index in range(2):
        large = np.repeat(np.repeat(drawn(index), 2, axis=0), 2, axis=1)
        for language, text in (("en", "Make the red thing green"), ("cn", "把红色的东西变成绿色")):
            key = f"{index}{language}key"
            pictures[key] = {"input_image": drawn(index), "input_image_raw": large}
            rows.append(
                {
                    **{"key": key, "task_type": ("color_alter", "subject-remove")[index], "instruction": text},
                    **{"instruction_language": language, "Intersection_exist": index == 0},
                }
            )
    root.mkdir(parents=True, exist_ok=True)
    if parquet:
        full = [
            row | {name: {"bytes": _png(one), "path": None} for name, one in pictures[row["key"]].items()}
            for row in rows
        ]
        _write_parquet(root / "data" / "train-00000-of-00001.parquet", full)
        return
    for key, own in pictures.items():
        for name, one in own.items():
            (root / name).mkdir(exist_ok=True)
            Image.fromarray(one).save(root / name / f"{key}.png")
    lines = [row | {name: f"{name}/{row['key']}.png" for name in ("input_image", "input_image_raw")} for row in rows]
    (root / "train.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def write_geneval(root: Path) -> None:
    """evaluation_metadata.jsonl, in the words of the benchmark."""
    lines = [
        {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
        {
            **{"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}]},
            "prompt": "a photo of a red car",
        },
    ]
    root.mkdir(parents=True, exist_ok=True)
    (root / "evaluation_metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_mjhq(root: Path, each: int = 2) -> None:
    """meta_data.json and pictures of two categories."""
    found = {}
    for number in range(2 * each):
        category, name = ("art", "food")[number % 2], f"{number:040x}"
        found[name] = {"category": category, "prompt": f"a thing, number {number}, detailed"}
        save(root / "mjhq30k_imgs" / category / f"{name}.jpg", number)
    (root / "meta_data.json").write_text(json.dumps(found))
