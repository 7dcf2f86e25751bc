"""Recompute the stored numbers of test_official.py with the benchmarks' own code.

    python tests/evaluation/official.py --davis DIR --rela DIR --pope DIR --vqa DIR > tests/evaluation/official.json

DIR are clones of github.com/davisvideochallenge/davis2017-evaluation, henghuiding/ReLA, AoiDragon/POPE and GT-Vision-Lab/VQA; the
file names the commits. Needs numpy, opencv-python, scikit-image and a Python up to 3.12 (VQA is Python 2 and goes through lib2to3).
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


def main() -> None:
    """Print the numbers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--davis", type=Path, required=True)
    parser.add_argument("--rela", type=Path, required=True)
    parser.add_argument("--pope", type=Path, required=True)
    parser.add_argument("--vqa", type=Path, required=True)
    args = parser.parse_args()
    pairs = load(HERE / "mask_pairs.py", "mask_pairs").mask_pairs()
    cases = load(HERE / "answer_cases.py", "answer_cases")
    clones = {"davis2017-evaluation": args.davis, "ReLA": args.rela, "POPE": args.pope, "VQA": args.vqa}
    found = {
        "commits": {name: commit(folder) for name, folder in clones.items()},
        "numpy": np.__version__,
        "davis": davis(args.davis, pairs),
        "rela": rela(args.rela, pairs),
        "pope": pope(args.pope, *cases.yes_no_cases()),
        "vqa": vqa(args.vqa, cases.vqa_cases()),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
