"""Recompute the stored numbers of test_official.py with the benchmarks' own code.

    python tests/evaluation/official.py --davis DIR --rela DIR > tests/evaluation/official.json

DIR are clones of github.com/davisvideochallenge/davis2017-evaluation and github.com/henghuiding/ReLA; the file names the
commits. Needs numpy, opencv-python and scikit-image. Nothing of those repositories is kept here: the functions run where they
are, on the masks of mask_pairs.py, and only what they return is stored.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import itertools
import json
import logging
import subprocess
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


def main() -> None:
    """Print the numbers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--davis", type=Path, required=True)
    parser.add_argument("--rela", type=Path, required=True)
    args = parser.parse_args()
    pairs = load(HERE / "mask_pairs.py", "mask_pairs").mask_pairs()
    found = {
        "commits": {"davis2017-evaluation": commit(args.davis), "ReLA": commit(args.rela)},
        "numpy": np.__version__,
        "davis": davis(args.davis, pairs),
        "rela": rela(args.rela, pairs),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
