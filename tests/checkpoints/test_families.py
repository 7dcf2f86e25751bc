"""Every family's table: what it is recognised by, sizes, round trips, and the originals' full lists of names."""

from __future__ import annotations

import ast
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from diffusers_focus.checkpoints.backbones import QWEN2_VL_VISION
from diffusers_focus.checkpoints.dualvitok import DUALVITOK
from diffusers_focus.checkpoints.families import FAMILIES, NATIVE, detect_family, sizes_from
from diffusers_focus.checkpoints.illume import ILLUME_PLUS, VISUAL_ROWS
from diffusers_focus.checkpoints.mask2former import MASK2FORMER
from diffusers_focus.checkpoints.plan import (
    START_AT_ZERO,
    apply_step,
    check_duplicates,
    convert,
    convert_back,
    make_plan,
    make_reverse_plan,
)
from diffusers_focus.checkpoints.reading import open_tensors
from diffusers_focus.checkpoints.report import report
from diffusers_focus.checkpoints.table import regex
from diffusers_focus.checkpoints.variants import PUBLISHED_3B
from diffusers_focus.models.mask_conditioner import FocusMaskConditioner
from diffusers_focus.models.mask_decoder import FocusMaskDecoder

from tests.checkpoints.originals import CHANNELS, CHECKPOINTS, GOLDENS, build, sizes_of, targets

QWEN_3B = {
    "architectures": ["Qwen2ForCausalLM"],
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "max_position_embeddings": 32768,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}
QWEN_7B = {
    **QWEN_3B,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}


def shapes_of(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in tensors.items()}


def listed(name: str) -> dict[str, torch.Tensor]:
    """The names and shapes of a published checkpoint, as tensors without memory."""
    lines = (GOLDENS / "keys" / f"{name}.txt").read_text().splitlines()
    pairs = (line.split("\t") for line in lines)
    return {key: torch.empty(ast.literal_eval(shape), device="meta") for key, shape in pairs}


@pytest.fixture(scope="module", params=CHECKPOINTS)
def case(request: pytest.FixtureRequest) -> tuple[str, dict[str, torch.Tensor]]:
    return request.param, CHECKPOINTS[request.param][0]()


def test_every_family_has_a_case():
    names = {family.name for family in FAMILIES if not family.refusal and family not in NATIVE}
    assert {name.split()[0] for name in CHECKPOINTS} == names


def test_checkpoints_are_recognised(case):
    name, tensors = case
    assert detect_family(tensors).name == name.split()[0]


def test_original_to_ours_and_back_is_bit_identical(case):
    name, tensors = case
    family, wanted = detect_family(tensors), targets(sizes_of(name, tensors))
    plan = make_plan(family, tensors, wanted)
    facts = report(plan)
    assert facts["sources"].keys() == tensors.keys()
    assert facts["targets"].keys() == {f"{c}.{key}" for c, keys in wanted.items() for key in keys}

    ours = convert(family, tensors, wanted)
    for component, keys in wanted.items():  # what a pipeline has besides
        fresh = {key: torch.ones(shape) for key, shape in keys.items() if f"{component}.{key}" in plan.initialised}
        assert not fresh.keys() & ours[component].keys() and keys.keys() == fresh.keys() | ours[component].keys()
        ours[component] |= fresh
    back = convert_back(family, ours, shapes_of(tensors))
    kept = {key for key in tensors if key not in plan.dropped or key in plan.duplicates}
    assert back.keys() == kept
    for key in kept:
        assert back[key].dtype == tensors[key].dtype and torch.equal(back[key], tensors[key]), key
    lost = make_reverse_plan(family, ours, shapes_of(tensors)).initialised
    assert lost.keys() == tensors.keys() - kept  # and the way back says so


DROPPED = {
    "sdxl": ["text_encoder.text_model.final_layer_norm.weight"],
    "qwen2_vl_vision": ["lm_head.weight", "model.norm.weight"],
    "convnext_open_clip": ["logit_scale", "visual.head.proj.weight", "visual.trunk.head.norm.bias"],
    "convnext_transformers": ["classifier.weight", "convnext.layernorm.weight"],
    "hyperseg": [
        "lm_head.weight",
        "mgvp_layers.norm.weight",
        "model.layers.0.mlp.fc1.weight",
        "pixel_decoder.adapter_1.0.bias",
        "pixel_decoder.adapter_1.0.weight",
        "pixel_decoder.input_proj.0.0.weight",
        "pixel_decoder.input_proj.1.0.weight",
        "pixel_decoder.input_proj.2.0.weight",
        "pixel_decoder.layer_1.0.bias",
        "predictor.SEG_query_embed.weight",
        "predictor.query_feat.weight",
        "seg_query",
    ],
}


def test_what_is_dropped_is_known(case):
    name, tensors = case
    plan = make_plan(detect_family(tensors), tensors, targets(sizes_of(name, tensors)))
    heads = ("class_predictor.", "backbone.", "sem_seg_head.predictor.", "model.", "void_embedding.", "criterion.")
    if "mask2former" in name or name == "fc_clip":
        assert all(key.startswith(heads) for key in plan.dropped)
        assert not [key for key in plan.dropped if "pixel_decoder" in key or "trunk.s" in key]
    else:
        assert sorted(plan.dropped) == DROPPED.get(name, [])


def test_only_new_parts_are_initialised(case):
    name, tensors = case
    plan = make_plan(detect_family(tensors), tensors, targets(sizes_of(name, tensors)))
    starts = {key.split(".")[1] for key in plan.initialised}
    if "convnext" in name or name == "fc_clip":
        starts -= {"vit", "fusion", "vision_projector", "pixel_projector"}
    if name == "qwen2_vl_vision":
        starts -= {"vision_projector", "pixel_projector"}
    if name in ("mask2former", "mask2former_transformers", "fc_clip", "hyperseg"):
        heads = {"slots", "slot_projection", "edit_head", "condition_head", "quality_head", "instance_head"}
        assert heads < starts
        starts -= heads | {"pixel_decoder"}
        inside = {key.split(".", 2)[2] for key in plan.initialised if ".pixel_decoder." in key}
        convolutions = {f"input_projections.{i}.0.weight" for i in range(3)} | {"lateral.0.weight"}
        assert inside == {"position_projection.weight"} | (convolutions if name == "hyperseg" else set())
    assert not starts


def test_other_widths_and_numbers_of_queries_start_anew_and_are_reported():
    tensors = CHECKPOINTS["mask2former"][0]()
    sizes = {"mask_decoder": {**sizes_of("mask2former", tensors)["mask_decoder"], "in_channels": (4, 8, 12, 16)}}
    sizes["mask_decoder"]["num_slots"] = 9
    plan = make_plan(MASK2FORMER, tensors, targets(sizes))
    assert plan.initialised["mask_decoder.query_embed.weight"] == "random"
    assert "(32, 64, 1, 1) does not fit" in plan.dropped["sem_seg_head.pixel_decoder.input_proj.0.0.weight"]


# Sizes


def test_sizes_hold_what_the_checkpoint_holds(case):
    name, tensors = case
    sizes = sizes_of(name, tensors)
    for component, config in sizes.items():
        if component != "scheduler":
            build(component, config)
    if name == "fc_clip":
        assert sizes["vision_encoder"]["pyramid_channels"] == list(CHANNELS)


def test_sizes_of_the_published_checkpoints():
    sizes = sizes_from(listed("dualvitok"), {})["visual_tokenizer"]
    assert {key: value for key, value in sizes.items() if key != "vision_tower"} == PUBLISHED_3B["visual_tokenizer"]
    assert sizes["vision_tower"] == PUBLISHED_3B["vision_encoder"]["vision_tower"]

    sizes = sizes_from(listed("illume_plus_3b"), {"language_model": QWEN_3B})
    assert sizes["language_model"] == PUBLISHED_3B["language_model"]
    shared = PUBLISHED_3B["vision_encoder"].keys() & sizes["vision_encoder"].keys()
    assert shared == {"vision_tower", "language_hidden_size", "pixel_feature_dim"}
    assert all(sizes["vision_encoder"][key] == PUBLISHED_3B["vision_encoder"][key] for key in shared)

    plain = {key: value for key, value in listed("illume_plus_3b").items() if "vision_tower" not in key}
    plain = {key: value for key, value in plain.items() if "mm_projector" not in key and key != "lm_head.weight"}
    plain["model.embed_tokens.weight"] = torch.empty(151936, 2048, device="meta")
    assert sizes_from(plain, {"language_model": QWEN_3B})["language_model"] == PUBLISHED_3B["language_model"]
    assert PUBLISHED_3B["language_model"]["vocab_size"] == 151936 + VISUAL_ROWS


def test_sizes_that_no_shape_tells_are_asked_for():
    tensors = CHECKPOINTS["illume_plus"][0]()
    with pytest.raises(ValueError, match=r"configs\['vision_tower'\] with num_heads"):
        sizes_from(CHECKPOINTS["dualvitok"][0](), {})
    with pytest.raises(ValueError, match=r"configs\['language_model'\]"):
        sizes_from(tensors, {"vision_tower": {"num_heads": 4}})
    configs = {**CHECKPOINTS["illume_plus"][1]}
    configs["language_model"] = {**configs["language_model"], "hidden_size": 65, "num_hidden_layers": 3}
    with pytest.raises(ValueError, match=r"2 sizes: hidden_size 65 \(tensors: 64\), num_hidden_layers 3"):
        sizes_from(tensors, configs)
    with pytest.raises(ValueError, match=r"configs\['unet'\]"):
        sizes_from(CHECKPOINTS["sdxl"][0](), {"vae": {}})
    with pytest.raises(ValueError, match="in_channels=4, its tensors 20"):
        sizes_from(CHECKPOINTS["illume_plus_decoder"][0](), CHECKPOINTS["sdxl"][1])


# The published lists of names, against focus-3b's components without memory


def test_the_published_tokenizer_fits_with_nothing_left_over():
    infos = listed("dualvitok")
    wanted = targets(sizes_from(infos, {}))
    plan = make_plan(DUALVITOK, infos, wanted)
    assert len(infos) == len(plan.steps) == 999 and not plan.dropped and not plan.initialised
    assert {step.operation for step in plan.steps} == {"copy"}
    back = make_reverse_plan(DUALVITOK, {name: meta(keys) for name, keys in wanted.items()})
    assert {step.key: step.shape for step in back.steps} == shapes_of(infos)


def meta(keys: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in keys.items()}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "separate head"])
@pytest.mark.parametrize(("name", "config"), [("illume_plus_3b", QWEN_3B), ("illume_plus_7b", QWEN_7B)])
def test_the_published_language_models_fit_with_nothing_left_over(name: str, config: dict[str, Any], tied: bool):
    infos = listed(name)
    sizes = sizes_from(infos, {"language_model": {**config, "vocab_size": 0, "tie_word_embeddings": tied}})
    focus = {**PUBLISHED_3B["vision_encoder"], **sizes["vision_encoder"], "region_slots": True}
    wanted = targets({"language_model": sizes["language_model"], "vision_encoder": focus})
    plan = make_plan(ILLUME_PLUS, infos, wanted)
    assert plan.duplicates == ({"lm_head.weight": "model.embed_tokens.weight"} if tied else {})
    assert plan.dropped.keys() == plan.duplicates.keys()
    new = {"pyramid", "fusion", "query_adapter", "region_pooler"}
    assert {key.split(".")[1] for key in plan.initialised} == new
    assert plan.initialised["vision_encoder.query_adapter.layers.2.gamma"] == "zero"
    back = make_reverse_plan(ILLUME_PLUS, {c: meta(keys) for c, keys in wanted.items()}, shapes_of(infos))
    assert {step.key: step.shape for step in back.steps} == shapes_of(infos)
    assert {key.split(".")[1] for key in back.dropped} == new


@pytest.mark.parametrize("in_channels", [4, 68])
def test_a_decoder_of_sdxls_size_fits_with_nothing_left_over(in_channels: int):
    wanted = targets({name: PUBLISHED_3B[name] for name in ("unet", "vae")})
    infos = {f"{name}.{key}": value for name, keys in wanted.items() for key, value in meta(keys).items()}
    infos["unet.conv_in.weight"] = torch.empty(320, in_channels, 3, 3, device="meta")
    family = detect_family(infos)
    assert family.name == ("sdxl" if in_channels == 4 else "illume_plus_decoder")
    plan = make_plan(family, infos, wanted)
    assert sum(step.component == "unet" for step in plan.steps) == 1680
    assert not plan.dropped and not plan.initialised
    operations = {step.key: step.operation for step in plan.steps if step.operation != "copy"}
    assert operations == ({"conv_in.weight": "widen"} if in_channels == 4 else {})


def test_a_published_mask2former_starts_the_mask_decoder():
    swin = SwinConfig(
        embed_dim=192, depths=[2, 2, 18, 2], num_heads=[6, 12, 24, 48], out_features=[f"stage{i}" for i in (1, 2, 3, 4)]
    )
    config = Mask2FormerConfig(backbone_config=swin)
    with torch.device("meta"):
        tensors = Mask2FormerForUniversalSegmentation(config).state_dict()
    family = detect_family(tensors)
    plan = make_plan(family, tensors, targets({"mask_decoder": PUBLISHED_3B["mask_decoder"]}))
    started = {key.removeprefix("mask_decoder.").split(".")[0] for key in plan.initialised}
    heads = {"slots", "slot_projection", "edit_head", "condition_head", "quality_head", "instance_head"}
    assert started == heads | {"pixel_decoder"}
    assert sum(".pixel_decoder." in key for key in plan.initialised) == 1
    sizes = sizes_from(tensors, {})["mask_decoder"]
    with torch.device("meta"):
        default = FocusMaskDecoder().config
    assert sizes == {key: default[key] for key in sizes} and len(sizes) == 9


# From files


def test_a_file_converts_as_its_tensors_do(tmp_path):
    tensors = {key: value.bfloat16() for key, value in CHECKPOINTS["illume_plus"][0]().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    with open_tensors(tmp_path) as files:
        wanted = targets(sizes_from(files.infos, CHECKPOINTS["illume_plus"][1]))
        plan = make_plan(detect_family(files.infos), files.infos, wanted)
        check_duplicates(plan, files.read)
        expected = convert(ILLUME_PLUS, tensors, wanted)
        for step in plan.steps:
            made = apply_step(step, files.read)
            assert made.dtype == torch.bfloat16 and torch.equal(made, expected[step.component][step.key])


# Recognition


def test_native_dicts_pass_through():
    parts = {
        "vision_encoder": build("vision_encoder", {}),
        "mask_conditioner": FocusMaskConditioner(2, 8, 16, 8, guidance_dim=8, language_hidden_size=16),
    }
    for component, model in parts.items():
        weights = model.state_dict()
        family = detect_family(weights)
        assert family.name == f"native {component}"
        ours = convert(family, weights, {component: shapes_of(weights)})[component]
        assert ours.keys() == weights.keys() and all(torch.equal(ours[key], weights[key]) for key in ours)
        with pytest.raises(ValueError, match="come with their own config.json"):
            sizes_from(weights, {})


def test_unknown_tensors_are_named():
    with pytest.raises(ValueError, match=r"These 4 tensors are no known kind .* a.weight, b.weight, c.weight\. Known:"):
        detect_family({f"{name}.weight": torch.zeros(1) for name in "abcd"})


def test_the_newer_vision_tower_is_refused_with_the_reason():
    tensors = {
        "visual.patch_embed.proj.weight": torch.zeros(8, 3, 2, 14, 14),
        "visual.blocks.0.mlp.gate_proj.weight": torch.zeros(8, 8),
        "visual.blocks.0.norm1.weight": torch.zeros(8),
        "visual.merger.ln_q.weight": torch.zeros(8),
    }
    with pytest.raises(ValueError, match="RMS norms, gated three-layer MLPs and windowed attention.*Qwen2-VL-7B"):
        detect_family(tensors)


@pytest.mark.parametrize("prefix", ["model.visual.", "", "model."])
def test_towers_are_found_behind_every_prefix(prefix):
    tensors = CHECKPOINTS["qwen2_vl_vision"][0]()
    tower = {prefix + key.removeprefix("visual."): value for key, value in tensors.items() if "visual." in key}
    assert detect_family(tower) is QWEN2_VL_VISION
    wanted = targets({"vision_encoder": {}})
    back = convert_back(QWEN2_VL_VISION, convert(QWEN2_VL_VISION, tower, wanted), shapes_of(tower))
    assert back.keys() == tower.keys()


def test_a_tower_can_go_to_the_tokenizer():
    tensors = CHECKPOINTS["qwen2_vl_vision"][0]()
    family = QWEN2_VL_VISION.moved("vision_encoder.", "visual_tokenizer.")
    keys = {key.removeprefix("visual."): value for key, value in tensors.items() if key.startswith("visual.")}
    ours = convert(family, tensors, {"visual_tokenizer": {f"vit.{key}": tuple(v.shape) for key, v in keys.items()}})
    assert torch.equal(ours["visual_tokenizer"]["vit.merger.mlp.2.bias"], tensors["visual.merger.mlp.2.bias"])


# How new parts start


def test_parts_reported_as_zero_start_at_zero_and_no_others_do():
    shape = {"pyramid_depths": (1, 1, 1, 1), "pyramid_channels": CHANNELS, "num_query_tokens": 3, "region_slots": True}
    models = {
        "vision_encoder": build("vision_encoder", {**shape, "fusion_dim": 64, "query_dim": 32, "region_dim": 8}),
        "mask_decoder": build("mask_decoder", {"hidden_dim": 32, "mask_dim": 24, "num_slots": 3, "decoder_layers": 1}),
        "mask_conditioner": FocusMaskConditioner(2, 8, 16, 8, guidance_dim=8, language_hidden_size=16),
    }
    found = set()
    for component, model in models.items():
        for key, value in model.state_dict().items():
            pattern = next((p for p in START_AT_ZERO if regex(p).fullmatch(f"{component}.{key}")), None)
            if pattern is not None:
                assert not value.any(), key
                found.add(pattern)
            elif value.ndim != 1 and ".attention." not in key:  # biases aside, and deformable attention's offsets
                assert value.any(), key
    assert found == set(START_AT_ZERO)
