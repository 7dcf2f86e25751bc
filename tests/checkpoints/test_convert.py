"""Whole conversions: originals on disk -> a pipeline that computes what they did -> the same originals.

The originals are the recorded ones of tests/goldens, written in the layouts in which they are published.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2Tokenizer

from diffusers_focus import Box, FocusPipeline
from diffusers_focus.checkpoints import layout, writing
from diffusers_focus.checkpoints.convert import convert_illume_plus
from diffusers_focus.checkpoints.plan import target_shapes
from diffusers_focus.checkpoints.restore import convert_focus_to_original
from diffusers_focus.checkpoints.sources import Source
from diffusers_focus.checkpoints.writing import FolderWriter
from diffusers_focus.pipelines.segment_edit import FocusSegmentEditPipeline
from diffusers_focus.processing.grammar import VisualTokenGrammar
from diffusers_focus.processing.prompts import EDIT, RECONSTRUCT, UNDERSTAND
from diffusers_focus.processing.vocabulary import extend_tokenizer
from diffusers_focus.steps import denoise
from diffusers_focus.steps.editing import generation_codes
from diffusers_focus.steps.encode import encode_tensors, source_codes
from diffusers_focus.steps.sampling import GREEDY
from diffusers_focus.steps.sequence import (
    FocusContext,
    batch_rows,
    embed_prefix,
    encode_prefix,
    run_suffixes,
    suffix_row,
)
from diffusers_focus.steps.settings import RESOLUTION_GROUP
from diffusers_focus.steps.visual_tokens import write_codes

from tests.checkpoints import originals
from tests.checkpoints.published import OPTIONS, SIZE, words, write_json, write_originals, write_sdxl

pytestmark = pytest.mark.whole

GOLDENS = Path(__file__).parents[1] / "goldens"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return write_originals(tmp_path_factory.mktemp("originals"))


def run(disk: SimpleNamespace, output: Path, **options: Any) -> dict[str, Any]:
    names = ("tokenizer", "language_model", "decoder", "hierarchical", "mask_decoder")
    sources = {name: options.pop(name, getattr(disk, name, None)) for name in names}
    return convert_illume_plus(**sources, output=output, options=replace(OPTIONS, **options))


@pytest.fixture(scope="module", params=["plain", "with parts for training"])
def converted(request: pytest.FixtureRequest, disk: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Output folder, report, and which parts were given."""
    output = tmp_path_factory.mktemp("converted") / "pipeline"
    parts = {"hierarchical": disk.convnext, "mask_decoder": disk.mask2former} if request.param != "plain" else {}
    return SimpleNamespace(folder=output, report=run(disk, output, **parts), parts=parts)


@pytest.fixture(scope="module")
def pipe(converted: SimpleNamespace) -> FocusPipeline:
    pipeline = FocusPipeline.from_pretrained(converted.folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# The pipeline computes what the originals did


def recorded(name: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDENS / f"{name}.safetensors")


def suffix_of(context: FocusContext, task: str, text: str | None) -> Any:
    size = None if task == UNDERSTAND else SIZE
    return suffix_row(context, context.style.suffix(task, text=text, num_images=1, height_width=size))


@pytest.mark.parametrize(
    ("case", "task", "text", "image"),
    [
        ("understand", UNDERSTAND, "What is shown in this picture?", "160x224"),
        ("edit", EDIT, "make the sky green", "256x256"),
        ("edit_uncond", RECONSTRUCT, None, "256x256"),
    ],
)
@torch.no_grad()
def test_prompts_and_states_are_the_original_ones(pipe, case, task, text, image):
    inputs, outputs = recorded("mllm_vision_a"), recorded("mllm_forward_a")
    context = FocusContext.of(pipe)
    encoding = encode_tensors(pipe, inputs[f"image.{image}.pixel_values"])
    prefix_embeds, _, _ = embed_prefix(pipe, context, encoding, task=task)
    batch = batch_rows(pipe, [suffix_of(context, task, text)])
    embeds = torch.cat([prefix_embeds, batch.embeds], dim=1)
    torch.testing.assert_close(embeds, inputs[f"{case}.inputs_embeds"], atol=1e-5, rtol=0)
    prefix = encode_prefix(pipe, context, encoding, task=task)
    hidden, _, _ = run_suffixes(pipe, prefix, torch.tensor([0]), batch)
    torch.testing.assert_close(hidden, outputs[f"{case}.last_hidden_state"][:, prefix.length :], atol=2e-5, rtol=0)


@torch.no_grad()
def test_codes_of_an_image_and_what_they_decode_to_are_the_original_ones(pipe):
    golden = recorded("dualvitok_a")
    name = next(key.partition(".")[0] for key in golden if key.startswith("256x256."))
    encoding = encode_tensors(pipe, golden[f"{name}.image"])
    semantic, pixel = source_codes(pipe, encoding)
    assert torch.equal(semantic.reshape(-1), golden[f"{name}.semantic_indices"].reshape(-1))
    assert torch.equal(pixel.reshape(-1), golden[f"{name}.pixel_indices"].reshape(-1))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@torch.no_grad()
def test_greedy_tokens_are_the_original_ones(pipe, guidance):
    rows, columns, pixel_rows, pixel_columns = originals.golden("generation_e2e_a")["grid"]
    expected = recorded("generation_e2e_a")
    context = FocusContext.of(pipe)
    grammar = VisualTokenGrammar(context.vocabulary, (rows, columns), (pixel_rows, pixel_columns))
    descriptions = ["a red cat", "two small boats on a lake, oil painting"]
    options = {"guidance_scale": guidance, "semantic": GREEDY, "pixel": GREEDY}
    codes = generation_codes(pipe, descriptions, SIZE, grids=((rows, columns), (pixel_rows, pixel_columns)), **options)
    drawn = grammar.image_codes(expected[f"t2i.g{guidance:.0f}.sequences"][:, : grammar.length])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(codes, drawn))

    prefix = encode_prefix(
        pipe, context, encode_tensors(pipe, recorded("mllm_vision_a")["image.256x256.pixel_values"]), task=EDIT
    )
    ids = write_codes(
        pipe,
        prefix,
        [suffix_of(context, EDIT, "make the sky green")],
        [0],
        grammar,
        unconditional=[suffix_of(context, RECONSTRUCT, None)],
        **options,
    )
    assert torch.equal(ids, expected[f"edit.g{guidance:.0f}.sequences"][:, : grammar.length])


@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_images_are_the_original_ones(pipe, masked):
    """With an edit mask too: the conditioner's sequence is silent before training."""
    golden, setup = recorded("decoder_a"), originals.golden("decoder_a")["cases"]["sq.g2"]
    tokens = denoise.token_map(pipe, golden["128x128.semantic_indices"], golden["128x128.pixel_indices"])
    torch.testing.assert_close(tokens, golden["128x128.condition_map"], atol=1e-5, rtol=0)
    pipe._guidance_scale = setup["guidance"]
    latents = pipe._denoise(
        tokens,
        torch.ones(1, 1, 64, 64) if masked else None,
        None,
        size_index=denoise.resolution_index(RESOLUTION_GROUP, setup["height"], setup["width"]),
        grid=(64, 64),
        steps=setup["steps"],
        timesteps=None,
        sigmas=None,
        strength=1.0,
        mask_guidance_scale=1.0,
        keep_source=True,
        noise=golden[setup["noise"]],
        eta=0.0,
        generator=None,
        callback=None,
        tensor_inputs=["latents"],
    )
    torch.testing.assert_close(latents, golden["sq.g2.latents_2"], atol=1e-4, rtol=0)
    picture = denoise.decode_latents(pipe.vae, latents)
    torch.testing.assert_close(picture[..., ::2, ::2], golden["sq.g2.decoded_stride2"], atol=5e-5, rtol=0)
    image = picture[0].add(1).div(2).clamp(0, 1).mul(255).round().permute(1, 2, 0)
    assert (image - golden["sq.g2.image_uint8"].float()).abs().max() <= 1


def test_the_whole_pipeline_asks_edits_and_refuses_to_segment(pipe):
    image = np.full((100, 160, 3), 128, np.uint8)
    seen = pipe.encode_image(image)
    assert isinstance(pipe.understand(seen, "What is this?", max_new_tokens=2).text[0], str)
    out = pipe.edit(seen, "make it green", region=Box(10, 10, 60, 60), num_inference_steps=1, temperature=0)
    assert out.edit_masks[0].sum() == 50 * 50
    changed = (np.asarray(out.images[0]) != image).any(-1)
    assert changed.any() and not changed[:, 90:].any()
    with pytest.raises(ValueError, match="mask_image"):
        pipe.segment(seen, "the cat")


def test_nothing_untrained_is_in_the_sequence(pipe, converted):
    assert pipe.vision_encoder.config.num_query_tokens == 0 and pipe.image_processor.prompt_style == "illume"
    assert pipe.vision_encoder.pixel_tower is not None and pipe.visual_tokenizer.vit is not None
    assert not pipe.config.masks_trained and not pipe.config.edit_masks_trained
    assert (pipe.mask_decoder is not None) == bool(converted.parts)
    assert not pipe.mask_conditioner.proj_out.weight.any()


# The folder


def test_settings_are_the_pipeline_s_own():
    known = inspect.signature(FocusSegmentEditPipeline.__init__).parameters
    for settings in (layout.ILLUME_SETTINGS, layout.ASSEMBLED_SETTINGS):
        assert settings.keys() <= known.keys()
    assert {*layout.LIBRARIES, *layout.RESERVED, "scheduler"} <= known.keys()
    for name, cls in layout.CLASSES.items():
        assert layout.LIBRARIES[name][1] == cls.__name__


def test_the_report_lists_every_key_and_parameter(pipe, converted, disk):
    report = json.loads((converted.folder / "conversion_report.json").read_text())
    assert report == json.loads(json.dumps(converted.report))
    for role in ("tokenizer", "language_model", "decoder", *converted.parts):
        paths = {"hierarchical": disk.convnext, "mask_decoder": disk.mask2former}
        source = Source(role, paths.get(role) or getattr(disk, role), (report["origins"][role]["family"],))
        assert {key for key in report["sources"] if key.startswith(f"{role}:")} == {f"{role}:{k}" for k in source.infos}
        source.close()
    parameters = {
        f"{name}.{key}"
        for name, part in pipe.components.items()
        if isinstance(part, torch.nn.Module)
        for key in target_shapes(part)
    }
    assert set(report["targets"]) == parameters
    text = (converted.folder / "conversion_report.txt").read_text()
    assert all(key in text for key in report["sources"]) and all(name in text for name in parameters)
    new = {name.split(".")[0] for name, entry in report["targets"].items() if "initialised" in entry}
    assert new == {"mask_conditioner"} | ({"vision_encoder", "mask_decoder"} if converted.parts else set())


def test_the_card_says_where_parts_come_from_and_what_is_untrained(converted):
    card = (converted.folder / "README.md").read_text()
    assert "Apache-2.0" in card and "RAIL" in card and "`mask_conditioner.proj_out`" in card
    assert ("MIT" in card and "CC BY-NC" in card and "`vision_encoder.fusion`" in card) == bool(converted.parts)
    for text in (card, (converted.folder / "conversion_report.json").read_text()):
        assert str(converted.folder.parent) not in text


def originals_of(disk: SimpleNamespace) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "tokenizer": originals.dualvitok(),
        "language_model": originals.illume_plus(),
        "decoder": originals.illume_plus_decoder(),
        "hierarchical": torch.load(disk.convnext),
        "mask_decoder": torch.load(disk.mask2former),
    }


def test_the_way_back_is_bit_identical(converted, disk, tmp_path):
    report = convert_focus_to_original(converted.folder, tmp_path / "back", progress=False)
    everything = originals_of(disk)
    for role in ("tokenizer", "language_model", "decoder", *converted.parts):
        allowed = (converted.report["origins"][role]["family"],)
        source = Source(role, tmp_path / "back" / role, allowed)
        dropped = {
            key.partition(":")[2]
            for key, entry in converted.report["sources"].items()
            if key.startswith(f"{role}:") and "dropped" in entry
        }
        assert set(source.infos) == set(everything[role]) - dropped
        for key in source.infos:
            assert torch.equal(source.read(key), everything[role][key]), key
        assert role in report["originals"]
        source.close()
    for name in ("config.json", "tokenizer.json"):
        back = json.loads((tmp_path / "back" / "language_model" / name).read_text())
        assert back == json.loads((disk.language_model / name).read_text())


def test_a_pipeline_without_report_goes_back_too(converted, tmp_path, disk):
    folder = tmp_path / "pipeline"
    shutil.copytree(converted.folder, folder)
    (folder / "conversion_report.json").unlink()
    convert_focus_to_original(folder, tmp_path / "back", which=["language_model"], progress=False)
    back = load_file(tmp_path / "back" / "language_model" / "model.safetensors")
    weights = originals.illume_plus()
    assert back.keys() == weights.keys() and all(torch.equal(back[key], value) for key, value in weights.items())
    with pytest.raises(ValueError, match="choose of"):
        convert_focus_to_original(folder, tmp_path / "other", which=["words"], progress=False)


# Other options


def test_fc_clip_brings_both_parts(disk, tmp_path):
    report = run(disk, tmp_path / "out", mask_decoder=disk.fc_clip, dry_run=True)
    assert report["fills"]["mask_decoder"] == ["mask_decoder", "vision_encoder"]
    both = run(disk, tmp_path / "out", mask_decoder=disk.fc_clip, hierarchical=disk.fc_clip, dry_run=True)
    assert both["fills"]["hierarchical"] == ["vision_encoder"] and both["fills"]["mask_decoder"] == ["mask_decoder"]
    with pytest.raises(ValueError, match="--hierarchical"):
        run(disk, tmp_path / "out", mask_decoder=disk.mask2former)


def test_dtype_and_shards(disk, tmp_path):
    run(disk, tmp_path / "out", dtype=torch.bfloat16, shard_size=100_000)
    assert len(list((tmp_path / "out" / "language_model").glob("model-*.safetensors"))) > 1
    pipe = FocusPipeline.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    assert pipe.language_model.dtype == pipe.unet.dtype == torch.bfloat16
    answer = pipe.understand(np.full((100, 160, 3), 128, np.uint8), "What is this?", max_new_tokens=2)
    assert len(answer.text) == 1
    codebook = originals.dualvitok()["pixel_quantizer.frozen_codebook"]
    assert torch.equal(pipe.visual_tokenizer.pixel_quantizer.frozen_codebook, codebook)


@pytest.mark.slow  # a minute and more on processors without instructions for bfloat16
@pytest.mark.timeout(600)
def test_a_pipeline_in_bfloat16_edits(disk, tmp_path):
    run(disk, tmp_path / "out", dtype=torch.bfloat16)
    pipe = FocusPipeline.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    image = np.full((100, 160, 3), 128, np.uint8)
    out = pipe.edit(image, "make it green", region=Box(10, 10, 60, 60), num_inference_steps=1)
    assert out.edit_masks[0].sum() == 50 * 50


def test_an_old_tokenizer_layout_is_read_too(disk, tmp_path):
    folder = tmp_path / "language_model"
    shutil.copytree(disk.language_model, folder)
    stored = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    write_json(folder / "vocab.json", stored["model"]["vocab"])
    (folder / "merges.txt").write_text("#version: 0.2\n")
    write_json(folder / "added_tokens.json", {token["content"]: token["id"] for token in stored["added_tokens"]})
    run(disk, tmp_path / "out", language_model=folder)
    back = Qwen2Tokenizer.from_pretrained(tmp_path / "out" / "lm_tokenizer")
    text = "<start_of_image><|image_level1_3|><|im_end|> a cat"
    assert back(text).input_ids == words()(text).input_ids


def test_weights_of_later_stages_go_over_the_model_s(disk, tmp_path):
    """As ILLUME+'s loader does: the projectors' file, then that of all that was trained."""
    folder, weights = tmp_path / "language_model", originals.illume_plus()
    shutil.copytree(disk.language_model, folder)
    projectors = {key: value * 2 for key, value in weights.items() if ".mm_projector." in key}
    bias, norm = "model.mm_projector.projector_2.0.bias", "model.norm.weight"
    torch.save(projectors, folder / "mm_projector.bin")
    torch.save({bias: weights[bias] * 3, norm: weights[norm] * 3}, folder / "trainables.bin")
    report = run(disk, tmp_path / "out", language_model=folder)
    assert report["origins"]["language_model"]["tensors"] == len(weights)
    assert [note[-50:] for note in report["origins"]["language_model"]["notes"]] == [
        f"{count} tensors are those of {name}, {count} of them instead of the model's"[-50:]
        for count, name in ((len(projectors), "mm_projector.bin"), (2, "trainables.bin"))
    ]
    vision = load_file(tmp_path / "out" / "vision_encoder" / "diffusion_pytorch_model.safetensors")
    words = load_file(tmp_path / "out" / "language_model" / "model.safetensors")
    for key, value in projectors.items():
        own = key.replace("model.mm_projector.projector_1", "vision_projector")
        own = own.replace("model.mm_projector.projector_2", "pixel_projector")
        assert torch.equal(vision[own], weights[key] * 3 if key == bias else value), key
    assert torch.equal(words[norm], weights[norm] * 3)
    assert torch.equal(words["model.layers.0.input_layernorm.weight"], weights["model.layers.0.input_layernorm.weight"])
    torch.save({norm: torch.ones(3)}, folder / "trainables.bin")
    with pytest.raises(ValueError, match=r"1 tensors of trainables.bin .* other shapes .*model.norm.weight: \(3,\)"):
        run(disk, tmp_path / "other", language_model=folder)


def test_checkpoints_that_bring_their_own_code_are_refused(disk, tmp_path):
    """ILLUME+'s "-hf" form, even where its names happen to be known."""
    folder = tmp_path / "illume_plus-3b-hf"
    shutil.copytree(disk.language_model, folder)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "auto_map": {"AutoModel": "modeling_illume.IllumeModel"}})
    with pytest.raises(ValueError, match="illume_plus-3b-hf.*-hf.*Take .*illume_plus-qwen2_5-3b or -7b"):
        run(disk, tmp_path / "out", language_model=folder)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_writes_nothing(disk, tmp_path):
    report = run(disk, tmp_path / "out", dry_run=True)
    assert report["counts"]["sources"] == len(report["sources"]) and report["bytes"] > 0
    assert not list(tmp_path.iterdir())


def test_an_existing_output_is_left_alone(disk, tmp_path):
    output = tmp_path / "out"
    write_json(output / "mine.json", {})
    with pytest.raises(FileExistsError, match="overwrite"):
        run(disk, output)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (output / "mine.json").exists()
    run(disk, output, overwrite=True)
    assert not (output / "mine.json").exists() and (output / "model_index.json").exists()


@pytest.mark.parametrize("where", ["tokenizer", "language_model/new", ".."])
def test_the_output_stays_away_from_the_sources(disk, where):
    with pytest.raises(ValueError, match="source"):
        run(disk, disk.tokenizer.parent / where, overwrite=True)


def test_missing_wrong_and_nan_sources_are_told(disk, tmp_path):
    with pytest.raises(FileNotFoundError, match="--tokenizer"):
        run(disk, tmp_path / "out", tokenizer=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="needs illume_plus_decoder"):
        run(disk, tmp_path / "out", decoder=write_sdxl(tmp_path / "sdxl"))
    weights = originals.dualvitok()
    weights["pixel_quant_conv.bias"][1] = math.nan
    broken = tmp_path / "broken"
    shutil.copytree(disk.tokenizer, broken)
    torch.save(weights, broken / "pytorch_model.bin")
    with pytest.raises(ValueError, match="tokenizer: pixel_quant_conv.bias.*1 NaN"):
        run(disk, tmp_path / "out", tokenizer=broken)
    assert not (tmp_path / "out").exists()


class _RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was_run",)


def _damage(kind: str, tokenizer: Path, language_model: Path) -> None:
    weights, file = originals.dualvitok(), tokenizer / "pytorch_model.bin"
    if kind == "missing shard":
        (language_model / "model-00002-of-00002.safetensors").unlink()
    elif kind == "cut short":
        file.write_bytes(file.read_bytes()[:-1000])
    elif kind == "code":
        file.write_bytes(pickle.dumps({"weight": _RunsCode()}))
    elif kind == "shape":
        torch.save({**weights, "pixel_quant_conv.bias": torch.ones(3)}, file)
    else:
        weights["pixel_decoder.conv_out.bias"][0] = math.inf
        torch.save(weights, file)


@pytest.mark.parametrize(
    ("kind", "error", "says"),
    [
        ("missing shard", FileNotFoundError, "1 of the 2 shards .* model-00002-of-00002.safetensors"),
        ("cut short", ValueError, "cut short"),
        ("code", ValueError, r"refused, nothing of it was run: .*mkdir"),
        ("shape", ValueError, r"pixel_quant_conv.bias .*does not fit"),
        ("infinite", ValueError, "tokenizer: pixel_decoder.conv_out.bias.* 1 infinite"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*plain pickle")
def test_damaged_originals_leave_an_old_output_as_it_is(disk, tmp_path, monkeypatch, kind, error, says):
    monkeypatch.chdir(tmp_path)
    folders = {"tokenizer": tmp_path / "tokenizer", "language_model": tmp_path / "language_model"}
    for name, folder in folders.items():
        shutil.copytree(getattr(disk, name), folder)
    _damage(kind, **folders)
    write_json(tmp_path / "out" / "mine.json", {"old": True})
    with pytest.raises(error, match=says):
        run(disk, tmp_path / "out", overwrite=True, **folders)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.json"] and not Path("was_run").exists()


def test_unmatched_keys_are_an_error_unless_partial(disk, tmp_path):
    weights = originals.dualvitok()
    weights["pixel_surprise.weight"] = torch.ones(3)
    del weights["pixel_quant_conv.bias"]
    broken = tmp_path / "broken"
    shutil.copytree(disk.tokenizer, broken)
    torch.save(weights, broken / "pytorch_model.bin")
    with pytest.raises(ValueError, match="2 mismatches.*pixel_surprise"):
        run(disk, tmp_path / "out", tokenizer=broken)
    report = run(disk, tmp_path / "out", tokenizer=broken, allow_partial=True)
    assert len(report["problems"]) == 2
    assert report["targets"]["visual_tokenizer.pixel_quant_conv.bias"] == {"initialised": "random"}


def test_codes_that_the_words_do_not_have_are_told(disk, tmp_path):
    folder = tmp_path / "language_model"
    shutil.copytree(disk.language_model, folder)
    fewer = words(extended=False)
    extend_tokenizer(fewer, 128, 200)
    fewer.save_pretrained(folder)
    with pytest.raises(ValueError, match="200 pixel codes"):
        run(disk, tmp_path / "out", language_model=folder)


def test_a_full_disk_is_told_before_the_first_byte(disk, tmp_path, monkeypatch):
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="are needed"):
        run(disk, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_goes_on(disk, tmp_path, monkeypatch):
    whole = run(disk, tmp_path / "whole")
    written, write_shards = [], FolderWriter.write_shards

    def stop_after_two(self: FolderWriter, subfolder: str, *args: Any, **kwargs: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(subfolder)
        write_shards(self, subfolder, *args, **kwargs)

    monkeypatch.setattr(FolderWriter, "write_shards", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        run(disk, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    read = []
    read_one = Source.read
    monkeypatch.setattr(Source, "read", lambda self, key: read.append(self.role) or read_one(self, key))
    report = run(disk, tmp_path / "out", resume=True)
    assert "tokenizer" in read and "language_model" not in read  # its two components were finished
    shards = [name for name in whole["files"] if name.endswith(".safetensors")]
    assert all(report["files"][name] == whole["files"][name] for name in shards)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_killed_run_leaves_no_pipeline(disk, tmp_path):
    code = f"""
import os, signal, sys
from diffusers_focus.checkpoints import convert
from diffusers_focus.checkpoints.writing import FolderWriter
write = FolderWriter.write_shards
def kill(self, subfolder, *args, **kwargs):
    if subfolder == "unet":
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, subfolder, *args, **kwargs)
FolderWriter.write_shards = kill
convert.convert_illume_plus({str(disk.tokenizer)!r}, {str(disk.language_model)!r}, {str(disk.decoder)!r},
                            {str(tmp_path / "out")!r}, options=convert.ConvertOptions(progress=False, buckets={OPTIONS.buckets!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": "src"}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    run(disk, tmp_path / "out", resume=True)
    assert (tmp_path / "out" / "model_index.json").exists()
