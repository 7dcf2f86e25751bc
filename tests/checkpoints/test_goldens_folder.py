"""`--goldens DIR`: which goldens are found, what is said of those that are not, and that no set is special."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.checkpoints.goldens import FAMILIES, Golden, find_goldens
from tests.checkpoints.synthetic import write

FILES = [f"tests/checkpoints/test_goldens_{name}.py" for name in ("tokenizer", "language", "generation", "decoder")]


def run(root: Path, folder: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--goldens", str(folder), *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_goldens_are_found_by_family_and_set(tmp_path: Path) -> None:
    for name in ("generation_x", "generation_e2e_x", "decoder_much_larger", "tokenizer_x", "generation"):
        (tmp_path / f"{name}.json").write_text("{}")
    found = {family: [golden.name for golden in goldens] for family, goldens in find_goldens(tmp_path).items()}
    expected = {"generation": ["x"], "generation_e2e": ["x"], "decoder": ["much_larger"]}
    assert found == {family: expected.get(family, []) for family in FAMILIES}


def test_a_folder_without_goldens_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_x.json").write_text("{}")
    with pytest.raises(ValueError, match="no golden in .*<family>_<set>.json"):
        find_goldens(tmp_path)


def test_a_golden_names_those_it_builds_on(tmp_path: Path) -> None:
    golden = Golden(tmp_path, "generation_e2e", "x")
    (tmp_path / "mllm_vision_x.json").write_text("{}")
    assert golden.other("mllm_vision_x: edit/t2i") == Golden(tmp_path, "mllm_vision", "x")
    with pytest.raises(pytest.skip.Exception, match="generation_e2e_x needs mllm_vision_y"):
        golden.other("mllm_vision_y.safetensors: <case>.inputs_embeds")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_set_of_other_sizes_runs_and_its_errors_are_noticed(root: Path, tmp_path: Path) -> None:
    write(tmp_path, "other")
    facts = json.loads((tmp_path / "mllm_vision_other.json").read_text())
    assert "lm_head.weight" in facts["keys"] and not facts["tied_lm_head"]
    code, text = run(root, tmp_path, *FILES)
    assert code == 0, text
    assert " passed" in text and "no golden" not in text

    path = tmp_path / "dualvitok_other.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("pixel_indices"))
    tensors[name][0, 0, 0] = (tensors[name][0, 0, 0] + 1) % 2
    save_file(tensors, path)
    for golden in tmp_path.glob("decoder_*"):
        golden.unlink()
    code, text = run(root, tmp_path, FILES[0], FILES[3])
    assert code == 1 and "test_images_become_the_recorded_codes[other-" in text
    assert "no golden of the family decoder" in text


@pytest.mark.slow
def test_the_command_says_that_a_folder_is_empty(root: Path, tmp_path: Path) -> None:
    code, text = run(root, tmp_path, "tests/checkpoints")
    assert code == 4 and f"There is no golden in {tmp_path}" in text
