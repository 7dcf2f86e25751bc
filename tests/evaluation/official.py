"""Recompute the stored numbers of test_official.py with the benchmarks' own code.

    python tests/evaluation/official.py --davis DIR --rela DIR --pope DIR --vqa DIR --ytvis DIR --revos DIR --magicbrush DIR

DIR are clones of github.com/davisvideochallenge/davis2017-evaluation, henghuiding/ReLA, AoiDragon/POPE, GT-Vision-Lab/VQA,
youtubevos/cocoapi, cilinyan/VISA and OSU-NLP-Group/MagicBrush; official.json, which this prints, names the commits. `--only NAME`
computes one part anew and keeps the others as they are in the file. Needs numpy, opencv-python, scikit-image, pycocotools and a
Python up to 3.12 (VQA is Python 2 and goes through lib2to3); MagicBrush needs torch and torchvision.
Nothing of those repositories is kept here: the functions run where they are, on the masks of mask_pairs.py and the answers of
answer_cases.py, and only what they return is stored.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import io
import itertools
import json
import logging
import subprocess
import tempfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np

HERE = Path(__file__).resolve().parent
CLONES = {"davis": "davis2017-evaluation", "rela": "ReLA", "pope": "POPE", "vqa": "VQA"}
CLONES |= {"ytvis": "youtubevos/cocoapi", "revos": "VISA", "magicbrush": "MagicBrush"}


def load(path: Path, name: str):
    """A module from its file."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commit(folder: Path) -> str:
    """The commit a clone is at."""
    return subprocess.run(
        ["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


def davis(folder: Path, pairs) -> dict:
    """J and F of every pair, and the statistics of rows of numbers."""
    metrics = load(folder / "davis2017" / "metrics.py", "davis_metrics")
    text = (folder / "davis2017" / "utils.py").read_text()
    (function,) = [node for node in ast.parse(text).body if getattr(node, "name", "") == "db_statistics"]
    names = {"np": np, "warnings": __import__("warnings")}
    exec(ast.unparse(function), names)
    rows = [np.random.default_rng(n).random(n) for n in (1, 2, 3, 5, 8, 24, 69, 103)]
    return {
        "J": [float(metrics.db_eval_iou(truth, predicted)) for predicted, truth in pairs],
        "F": [float(metrics.db_eval_boundary(truth, predicted)) for predicted, truth in pairs],
        "statistics": [[float(value) for value in names["db_statistics"](row)] for row in rows],
    }


def rela(folder: Path, pairs) -> dict:
    """The summary that ReLA's evaluator gives. Its class is taken out of the file, which imports detectron2."""
    text = (folder / "gres_model" / "evaluation" / "refer_evaluation.py").read_text()
    nodes = [n for n in ast.parse(text).body if getattr(n, "name", "") in ("computeIoU", "ReferEvaluator")]
    names = {"np": np, "OrderedDict": OrderedDict, "itertools": itertools, "json": json, "logging": logging}
    names |= {
        "DatasetEvaluator": object,
        "torch": SimpleNamespace(device=str),
    }  # torch is needed for its constructor alone
    for node in nodes:
        exec(ast.unparse(node), names)
    evaluator = names["ReferEvaluator"]("grefcoco", distributed=False)
    evaluator._predictions = [
        {
            **{"source": "grefcoco", "img_id": index, "sent": "", "sent_info": {}},
            **{"pred_nt": not predicted.any(), "gt_nt": not truth.any()},
            **{"pred_mask": predicted.astype(np.int8), "gt_mask": truth.astype(np.int8)},
        }
        for index, (predicted, truth) in enumerate(pairs)
    ]
    return {name: float(value) for name, value in evaluator.evaluate()["grefcoco"].items()}


def pope(folder: Path, answers: list[str], labels: list[str]) -> dict:
    """The figures of the script, which reads two files named at its top."""
    text = (folder / "evaluate.py").read_text()
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place) / "answers.jsonl", Path(place) / "labels.jsonl"]
        for file, key, values in zip(files, ("answer", "label"), (answers, labels)):
            file.write_text("".join(json.dumps({key: value}) + "\n" for value in values))
        for name, file in zip(("ans_file", "label_file"), files):
            assert f"{name} = ''" in text
            text = text.replace(f"{name} = ''", f"{name} = {str(file)!r}")
        names = {"print": lambda *_: None}
        exec(text, names)
    keys = {"accuracy": "acc", "precision": "precision", "recall": "recall", "F1": "f1", "yes_ratio": "yes_ratio"}
    return {name: names[key] for name, key in keys.items()}


def vqa(folder: Path, cases: list[tuple[str, list[str]]]) -> list[float]:
    """The accuracy of every case, in percent with ten digits."""
    from lib2to3.refactor import RefactoringTool, get_fixers_from_package

    text = (folder / "PythonEvaluationTools" / "vqaEvaluation" / "vqaEval.py").read_text()
    names: dict = {}
    exec(str(RefactoringTool(get_fixers_from_package("lib2to3.fixes")).refactor_string(text, "vqaEval")), names)
    found = []
    for answer, given in cases:
        row = [{"answer": one, "answer_id": index} for index, one in enumerate(given)]
        truth = {0: {"answers": row, "question_type": "", "answer_type": ""}}
        evaluation = names["VQAEval"](
            SimpleNamespace(qa=truth, getQuesIds=lambda: [0]), SimpleNamespace(qa={0: {"answer": answer}}), n=10
        )
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.evaluate()
        found.append(evaluation.accuracy["overall"])
    return found


def ytvis(folder: Path, clips: list[dict]) -> dict:
    """What YTVOSeval says of tubes: AP, AP50, AP75 over all sizes, and AR with one and with ten predictions."""
    from pycocotools import mask as coco_mask

    text = (folder / "PythonAPI" / "pycocotools" / "ytvoseval.py").read_text()
    for old, new in (("from . import mask as maskUtils", ""), ("np.float)", "float)"), ("np.linspace(", "linspace(")):
        text = text.replace(
            old, new
        )  # it was written for a numpy that had np.float, and took floats for numbers of steps
    names: dict = {"maskUtils": coco_mask}
    names["linspace"] = lambda first, last, number, endpoint: np.linspace(first, last, int(number), endpoint=endpoint)
    exec(text, names)
    labels = sorted({one["label"] for clip in clips for one in clip["true"]})

    def side(key: str) -> SimpleNamespace:
        rows = {}
        for video, clip in enumerate(clips, start=1):
            for one in clip[key]:
                rles = [
                    coco_mask.encode(np.asfortranarray(m, dtype=np.uint8)) if m.any() else None for m in one["masks"]
                ]
                areas = [int(m.sum()) or None for m in one["masks"]]
                if one["label"] in labels:
                    rows[len(rows) + 1] = {
                        **{"id": len(rows) + 1, "video_id": video, "category_id": labels.index(one["label"]) + 1},
                        **{"segmentations": rles, "areas": areas, "avg_area": np.mean([a for a in areas if a] or [0])},
                        **{"iscrowd": 0, "score": one.get("score", 1.0)},
                    }
        return SimpleNamespace(
            getVidIds=lambda: list(range(1, len(clips) + 1)),
            getCatIds=lambda: list(range(1, len(labels) + 1)),
            getAnnIds=lambda vidIds, catIds=None: list(rows),
            loadAnns=lambda ids: [rows[i] for i in ids],
            annToRLE=lambda row, frame: row["segmentations"][frame],
        )

    with contextlib.redirect_stdout(io.StringIO()):
        run = names["YTVOSeval"](side("true"), side("found"), "segm")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return {
        name: float(run.stats[place]) for name, place in (("mAP", 0), ("AP50", 1), ("AP75", 2), ("AR1", 6), ("AR10", 7))
    }


def revos(folder: Path, triples) -> list[float]:
    """The robustness of every frame, as a clip of one."""
    metrics = load(folder / "tools" / "metrics.py", "revos_metrics")
    return [
        float(metrics.get_r2vos_robustness(*([m.astype(np.uint8)] for m in (truth, predicted, foreground)))[0])
        for predicted, truth, foreground in triples
    ]


def magicbrush(folder: Path, cases) -> dict:
    """L1 and L2 of every pair. The functions are taken out of the file, which imports CLIP and pyiqa."""
    import torch
    from PIL import Image
    from torchvision.transforms import transforms

    text = (folder / "evaluation" / "image_eval.py").read_text()
    (function,) = [node for node in ast.parse(text).body if getattr(node, "name", "") == "eval_distance"]
    names = {"nn": torch.nn, "transforms": transforms, "Image": Image, "tqdm": lambda rows: rows}
    exec(ast.unparse(function), names)
    found: dict[str, list[float]] = {"l1": [], "l2": []}
    with tempfile.TemporaryDirectory() as place:
        for pair in cases:
            files = [str(Path(place) / name) for name in ("result.png", "true.png")]
            for file, picture in zip(files, pair):
                Image.fromarray(picture).save(file)
            for metric, values in found.items():
                values.append(float(names["eval_distance"]([files], metric)))
    return found


def main() -> None:
    """Print the numbers."""
    parser = argparse.ArgumentParser()
    for name in CLONES:
        parser.add_argument(f"--{name}", type=Path, metavar="DIR")
    parser.add_argument("--only", choices=list(CLONES))
    args = parser.parse_args()
    pairs = load(HERE / "mask_pairs.py", "mask_pairs").mask_pairs()
    cases = load(HERE / "answer_cases.py", "answer_cases")
    tubes = load(HERE / "tube_cases.py", "tube_cases").tube_cases()
    triples = load(HERE / "mask_pairs.py", "mask_pairs").foreground_triples()
    parts = {
        "davis": lambda: davis(args.davis, pairs),
        "rela": lambda: rela(args.rela, pairs),
        "pope": lambda: pope(args.pope, *cases.yes_no_cases()),
        "vqa": lambda: vqa(args.vqa, cases.vqa_cases()),
        "ytvis": lambda: ytvis(args.ytvis, tubes),
        "revos": lambda: revos(args.revos, triples),
        "magicbrush": lambda: magicbrush(
            args.magicbrush, load(HERE / "picture_cases.py", "picture_cases").picture_cases()
        ),
    }
    names = [args.only] if args.only else list(CLONES)
    found = json.loads((HERE / "official.json").read_text()) if args.only else {"commits": {}, "numpy": np.__version__}
    for name in names:
        found["commits"][CLONES[name]] = commit(getattr(args, name))
        found[name] = parts[name]()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
