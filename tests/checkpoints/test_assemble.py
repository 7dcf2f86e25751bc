"""A training start from public parts, and the command line of all conversions."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffusers_focus import FocusPipeline, FocusUnderstandPipeline, FocusVisionEncoder
from diffusers_focus.checkpoints.convert import assemble_focus, convert_illume_plus
from diffusers_focus.checkpoints.restore import convert_focus_to_original
from diffusers_focus.cli import main

from tests.checkpoints import originals
from tests.checkpoints.published import OPTIONS, write_originals, write_parts
from tests.hub.stand_in import Hub

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return write_originals(tmp_path_factory.mktemp("originals"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return write_parts(tmp_path_factory.mktemp("parts"))


def test_focus_is_assembled_from_parts(disk, parts, tmp_path):
    report = assemble_focus(
        parts.language_model,
        parts.vision_tower,
        tmp_path / "out",
        hierarchical=disk.convnext,
        mask_decoder=disk.mask2former,
        sdxl=parts.sdxl,
        tokenizer=disk.tokenizer,
        options=OPTIONS,
    )
    pipe = FocusPipeline.from_pretrained(tmp_path / "out")
    assert pipe.image_processor.prompt_style == "focus" and pipe.vision_encoder.query_adapter is not None
    table = pipe.language_model.get_input_embeddings().weight
    assert torch.equal(table[:264], parts.weights["model.embed_tokens.weight"])
    assert len(table) == 264 + 39 + 128 + 256 and "<|image_level1_255|>" in pipe.lm_tokenizer.get_vocab()
    assert pipe.unet.config.in_channels == 20 and not pipe.unet.conv_in.weight[:, 4:].any()
    assert torch.equal(pipe.unet.conv_in.weight[:, :4], originals.sdxl()["unet.conv_in.weight"])
    new = {name for name, entry in report["targets"].items() if "initialised" in entry}
    assert "vision_encoder.query_adapter.queries.weight" in new and not pipe.vision_encoder.fusion.to_out.weight.any()
    with pytest.raises(ValueError, match="not trained"):
        pipe.segment(np.zeros((64, 64, 3), np.uint8), "the cat")

    convert_focus_to_original(tmp_path / "out", tmp_path / "back", which=["language_model", "decoder"], progress=False)
    back = load_file(tmp_path / "back" / "language_model" / "model.safetensors")
    assert back.keys() == parts.weights.keys()
    assert all(torch.equal(back[key], value) for key, value in parts.weights.items())
    unet = load_file(tmp_path / "back" / "decoder" / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(unet["conv_in.weight"], originals.sdxl()["unet.conv_in.weight"])


def test_parts_that_are_not_given_are_listed_as_new(parts, tmp_path):
    report = assemble_focus(
        parts.language_model, parts.vision_tower, tmp_path / "out", options=replace(OPTIONS, dry_run=True)
    )
    new = {name.split(".")[0] for name, entry in report["targets"].items() if "initialised" in entry}
    assert new == {"vision_encoder", "visual_tokenizer", "mask_decoder", "mask_conditioner"}
    assert "unet.conv_in.weight" not in report["targets"]


def test_without_sdxl_it_can_be_asked_only(disk, parts, tmp_path):
    given = {"tokenizer": disk.tokenizer, "hierarchical": disk.convnext, "mask_decoder": disk.mask2former}
    assemble_focus(parts.language_model, parts.vision_tower, tmp_path / "out", **given, options=OPTIONS)
    pipe = FocusUnderstandPipeline.from_pretrained(tmp_path / "out")
    assert len(pipe.understand(np.zeros((64, 64, 3), np.uint8), "What is this?", max_new_tokens=2).text) == 1
    assert (tmp_path / "out" / "mask_decoder" / "config.json").is_file()  # for the training


def test_query_tokens_are_added_to_a_converted_encoder(disk, tmp_path):
    """As conversion/README.md says."""
    sources = (disk.tokenizer, disk.language_model, disk.decoder)
    convert_illume_plus(*sources, tmp_path / "out", hierarchical=disk.convnext, options=OPTIONS)
    old = FocusVisionEncoder.from_pretrained(tmp_path / "out" / "vision_encoder")
    own = {k: v for k, v in old.config.items() if k[0] != "_"}
    new = FocusVisionEncoder(**own | {"num_query_tokens": 4, "region_slots": True})
    missing, unexpected = new.load_state_dict(old.state_dict(), strict=False)
    assert not unexpected and {key.split(".")[0] for key in missing} == {"query_adapter", "region_pooler"}


# The command line


def test_the_command_line_converts_both_ways(disk, tmp_path, capsys):
    given = ["--tokenizer", str(disk.tokenizer), "--language-model", str(disk.language_model)]
    given += ["--decoder", str(disk.decoder), "--output", str(tmp_path / "out")]
    assert main(["convert", "illume-plus", *given, "--dry-run"]) == 0
    assert "0 initialised" not in capsys.readouterr().out and not (tmp_path / "out").exists()
    assert main(["convert", "illume-plus", *given, "--dtype", "bfloat16", "--shard-size", "1MB"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out")
    assert main(["convert", "illume-plus", *given]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["convert", "illume-plus", *given, "--overwrite", "--push-to-hub", "me/mine"]) == 2  # offline here
    assert "hf upload me/mine" in capsys.readouterr().err and (tmp_path / "out" / "model_index.json").is_file()
    back = ["--pipeline", str(tmp_path / "out"), "--output", str(tmp_path / "back"), "--which", "decoder"]
    assert main(["convert", "to-original", *back]) == 0
    assert (tmp_path / "back" / "decoder" / "vae" / "config.json").is_file()


@pytest.mark.slow
def test_what_was_converted_goes_to_the_hub(disk, tmp_path):
    """In a process of its own, with the real client; all of the folder arrives, in a private repository."""
    given = ["--tokenizer", str(disk.tokenizer), "--language-model", str(disk.language_model)]
    given += ["--decoder", str(disk.decoder), "--output", str(tmp_path / "out"), "--push-to-hub", "me/mine"]
    command = [sys.executable, "-m", "diffusers_focus.cli", "convert", "illume-plus", *given]
    with Hub() as hub:
        done = subprocess.run(command, env=hub.environment(tmp_path / "home"), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert hub.repositories["me/mine"].private
        arrived = hub.files("me/mine")
    written = {
        str(path.relative_to(tmp_path / "out")): path for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    assert set(arrived) - {".gitattributes"} == set(written) and "README.md" in written
    assert all(arrived[name] == path.read_bytes() for name, path in written.items())


def test_the_commands_of_the_readme_run(disk, parts, root, tmp_path, monkeypatch):
    """Every one of them, on small originals under the names it uses."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "originals").mkdir()
    mask2former = tmp_path / "mask2former"
    mask2former.mkdir()
    (mask2former / "pytorch_model.bin").symlink_to(disk.mask2former)
    (mask2former / "config.json").write_text('{"num_attention_heads": 4}')
    (tmp_path / "convnext").mkdir()
    (tmp_path / "convnext" / "pytorch_model.bin").symlink_to(disk.convnext)
    places = {"dualvitok": disk.tokenizer, "illume_plus-3b": disk.language_model, "decoder": disk.decoder}
    places |= {"qwen": parts.language_model, "qwen-vl": parts.vision_tower, "sdxl": parts.sdxl}
    places |= {"convnext": tmp_path / "convnext", "mask2former": mask2former}
    for name, place in places.items():
        (tmp_path / "originals" / name).symlink_to(place)
    text = (root / "conversion" / "README.md").read_text().replace("\\\n", " ")
    commands = [line.partition("  #")[0].split() for line in text.splitlines() if line.startswith("python conversion/")]
    assert len(commands) == 5
    first = commands[0]
    for _, script, *given in commands:
        if given[0] == "...":  # the first conversion with more sources
            given = [*first[2 : first.index("--output")], *given[1:]]
        kind = {"convert_illume_plus": "illume-plus", "assemble_focus": "assemble"}.get(
            Path(script).stem, "to-original"
        )
        assert (root / script).is_file()
        if kind == "assemble":
            given = [one.replace("pipelines/start", "pipelines/assembled") for one in given]
        assert main(["convert", kind, *given]) == 0, given
    assert {path.name for path in (tmp_path / "pipelines").iterdir()} == {"illume-plus-3b", "start", "assembled"}
    assert (tmp_path / "originals-again" / "decoder" / "unet" / "config.json").is_file()


@pytest.mark.parametrize("name", ["convert_illume_plus", "assemble_focus", "convert_focus_to_original"])
def test_the_scripts_are_importable_and_run(name, root):
    path = root / "conversion" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with pytest.raises(SystemExit) as stopped:
        script.main(["--help"])
    assert stopped.value.code == 0 and script.__doc__
