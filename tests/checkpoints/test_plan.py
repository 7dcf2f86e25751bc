"""The mechanism of conversion plans, on small made-up tables: operations, inverses, reports, errors."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from diffusers_focus.checkpoints.plan import (
    apply_step,
    check_duplicates,
    convert,
    convert_back,
    make_plan,
    make_reverse_plan,
    merge_plans,
    target_shapes,
)
from diffusers_focus.checkpoints.report import report, report_text
from diffusers_focus.checkpoints.table import Family, Rule

FAMILY = Family(
    name="made up",
    rules=(
        Rule("net.layers.#.attn.in_proj_weight", "model.blocks.#.{q,k,v}.weight", "split"),
        Rule("net.layers.#.{gate,up}.weight", "model.blocks.#.gated.weight", "stack"),
        Rule("net.layers.#.norm.", "model.blocks.#.norm."),
        Rule("net.mix.weight", "model.mix.weight", "reshape"),
        Rule("net.conv_in.weight", "model.conv_in.weight", "widen"),
        Rule("words.weight", "model.words.weight", "add_rows"),
        Rule("head.weight", "model.head.weight", "add_rows"),
        Rule("net.input.weight", "model.input.weight", "fit"),
    ),
    ties=(("head.weight", "words.weight"),),
    dropped=(("extra.", "an example of a reason"),),
    prefixes=("", "wrapped."),
    evidence=(("net.mix.weight", None),),
)


def original(prefix: str = "") -> dict[str, torch.Tensor]:
    shapes = {
        **{f"net.layers.{i}.attn.in_proj_weight": (12, 4) for i in range(2)},
        **{f"net.layers.{i}.{part}.weight": (3, 4) for i in range(2) for part in ("gate", "up")},
        **{f"net.layers.{i}.norm.{part}": (4,) for i in range(2) for part in ("weight", "bias")},
        "net.mix.weight": (5, 4, 1, 1),
        "net.conv_in.weight": (6, 2, 3, 3),
        "words.weight": (10, 4),
        "net.input.weight": (4, 7),
    }
    return {prefix + key: torch.randn(shape) for key, shape in shapes.items()}


def wanted(**changes: tuple[int, ...]) -> dict[str, dict[str, tuple[int, ...]]]:
    shapes = {
        **{f"blocks.{i}.{part}.weight": (4, 4) for i in range(2) for part in "qkv"},
        **{f"blocks.{i}.gated.weight": (6, 4) for i in range(2)},
        **{f"blocks.{i}.norm.{part}": (4,) for i in range(2) for part in ("weight", "bias")},
        "mix.weight": (5, 4),
        "conv_in.weight": (6, 5, 3, 3),
        "words.weight": (14, 4),
        "input.weight": (4, 7),
    }
    return {"model": {**shapes, **{key.replace("__", "."): shape for key, shape in changes.items()}}}


def shapes_of(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in tensors.items()}


def test_every_operation_does_what_it_says():
    tensors = original()
    ours = convert(FAMILY, tensors, wanted())["model"]
    assert shapes_of(ours) == wanted()["model"]
    stacked = tensors["net.layers.1.attn.in_proj_weight"]
    assert torch.equal(ours["blocks.1.k.weight"], stacked[4:8])
    gated = torch.cat([tensors["net.layers.0.gate.weight"], tensors["net.layers.0.up.weight"]])
    assert torch.equal(ours["blocks.0.gated.weight"], gated)
    assert torch.equal(ours["mix.weight"], tensors["net.mix.weight"][:, :, 0, 0])
    assert torch.equal(ours["conv_in.weight"][:, :2], tensors["net.conv_in.weight"])
    assert not ours["conv_in.weight"][:, 2:].any()
    assert torch.equal(ours["words.weight"][:10], tensors["words.weight"])


def test_new_rows_look_like_the_old_ones_and_are_the_same_in_every_run():
    table = (torch.randn(20_000, 3) * torch.tensor([0.1, 1.0, 2.0]) + torch.tensor([0.0, 5.0, -1.0])).bfloat16()
    family = Family("rows", (Rule("w", "model.w", "add_rows"),))
    rows = [convert(family, {"w": table}, {"model": {"w": (40_000, 3)}})["model"]["w"] for _ in range(2)]
    assert rows[0].dtype == torch.bfloat16 and torch.equal(*rows)
    torch.testing.assert_close(rows[0][20_000:].float().mean(0), table.float().mean(0), atol=0.06, rtol=0)
    torch.testing.assert_close(rows[0][20_000:].float().std(0), table.float().std(0), atol=0.03, rtol=0.02)


@pytest.mark.parametrize("prefix", ["", "wrapped."])
def test_the_round_trip_gives_every_bit_back(prefix):
    tensors = original(prefix)
    ours = convert(FAMILY, tensors, wanted())
    back = convert_back(FAMILY, ours, shapes_of(tensors))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)


def test_without_the_originals_shapes_nothing_of_ours_is_cut_off():
    ours = convert(FAMILY, original(), wanted())
    separate = make_reverse_plan(FAMILY, ours)
    shapes = {step.key: step.shape for step in separate.steps}
    # gate and up stand apart in the original, in equal parts
    assert shapes["net.layers.0.gate.weight"] == (3, 4)
    assert shapes["net.conv_in.weight"] == (6, 5, 3, 3) and shapes["words.weight"] == (14, 4)


def test_a_second_table_is_dropped_if_equal_and_read_from_its_twin_if_missing():
    tensors = original()
    double = {**tensors, "head.weight": tensors["words.weight"].clone()}
    plan = make_plan(FAMILY, double, wanted())
    assert plan.duplicates == {"head.weight": "words.weight"} and "words.weight" in plan.dropped["head.weight"]
    check_duplicates(plan, double.__getitem__)
    ours = convert(FAMILY, double, wanted())
    back = convert_back(FAMILY, ours, shapes_of(double))
    assert torch.equal(back["head.weight"], tensors["words.weight"]) and back.keys() == double.keys()

    double["head.weight"][3, 1] += 1
    with pytest.raises(ValueError, match="tie_word_embeddings=False"):
        convert(FAMILY, double, wanted())
    separate = convert(FAMILY, double, wanted(head__weight=(14, 4)))["model"]
    assert torch.equal(separate["head.weight"][:10], double["head.weight"])

    untied = convert(FAMILY, tensors, wanted(head__weight=(14, 4)))
    assert torch.equal(untied["model"]["head.weight"][:10], tensors["words.weight"])
    plan = make_reverse_plan(FAMILY, untied, shapes_of(tensors))
    assert plan.duplicates == {"model.head.weight": "model.words.weight"}


def test_a_part_that_does_not_fit_is_started_anew_and_said_so():
    tensors = original()
    plan = make_plan(FAMILY, tensors, wanted(input__weight=(4, 9)))
    assert plan.initialised == {"model.input.weight": "random"}
    assert "(4, 7) does not fit model.input.weight (4, 9)" in plan.dropped["net.input.weight"]
    ours = convert(FAMILY, tensors, wanted(input__weight=(4, 9)))
    ours["model"]["input.weight"] = torch.ones(4, 9)
    back = make_reverse_plan(FAMILY, ours, shapes_of(tensors))
    assert back.initialised == {"net.input.weight": "not kept here"}
    assert "does not fit net.input.weight (4, 7)" in back.dropped["model.input.weight"]


def test_the_report_names_every_source_and_every_target():
    tensors = {**original(), "extra.thing": torch.zeros(2)}
    targets = {**wanted(new__weight=(3,)), "mask_conditioner": {"proj_out.weight": (4, 4)}}
    plan = make_plan(FAMILY, tensors, targets)
    facts = json.loads(json.dumps(report(plan)))
    assert facts["sources"].keys() == tensors.keys()
    assert facts["targets"].keys() == {f"{c}.{key}" for c, keys in targets.items() for key in keys}
    assert facts["sources"]["extra.thing"] == {"dropped": "an example of a reason"}
    assert facts["sources"]["net.layers.0.attn.in_proj_weight"]["to"] == [f"model.blocks.0.{k}.weight" for k in "qkv"]
    assert facts["targets"]["model.new.weight"] == {"initialised": "random"}
    assert facts["targets"]["mask_conditioner.proj_out.weight"] == {"initialised": "zero"}
    text = report_text(plan)
    assert all(key in text for key in tensors) and all(name in text for name in facts["targets"])
    assert "net.layers.0.gate.weight + net.layers.0.up.weight -> model.blocks.0.gated.weight (stack)" in text


def test_what_does_not_match_is_counted_and_the_first_three_named():
    tensors = {**original(), **{f"unknown.{i}": torch.zeros(1) for i in range(4)}}
    with pytest.raises(ValueError, match=r"4 mismatches .* unknown.0 \(1,\) is not known; unknown.1 .*; and 1 more"):
        make_plan(FAMILY, tensors, wanted())
    plan = make_plan(FAMILY, tensors, wanted(), allow_partial=True)
    assert len(plan.problems) == 4 and plan.dropped["unknown.3"] == "left out: is not known"
    assert "not matched: 4" in report_text(plan)

    lacking = {key: value for key, value in original().items() if ".gate." not in key}
    with pytest.raises(ValueError, match="does not make model.blocks.0.gated.weight of 2 parts"):
        make_plan(FAMILY, lacking, wanted())
    with pytest.raises(
        ValueError, match=r"^1 mismatches .*net.mix.weight \(5, 4, 1, 1\) does not fit model.mix.weight \(5, 5\)"
    ):
        make_plan(FAMILY, original(), wanted(mix__weight=(5, 5)))
    with pytest.raises(ValueError, match=r"model.blocks.2.norm.weight \(4,\) has no source"):
        make_plan(FAMILY, original(), wanted(blocks__2__norm__weight=(4,)))
    with pytest.raises(ValueError, match=r"^1 mismatches .*does not fit model.blocks.0.q.weight \(4, 4\) and 2 more"):
        make_plan(FAMILY, original(), wanted(blocks__0__v__weight=(5, 4)))
    short = wanted()
    del short["model"]["blocks.1.v.weight"]
    plan = make_plan(FAMILY, original(), short, allow_partial=True)  # a split is whole or not at all
    assert "blocks.1.q.weight" not in {step.key for step in plan.steps}
    assert plan.dropped.keys() == {"net.layers.1.attn.in_proj_weight"}
    with pytest.raises(ValueError, match="does not fit model.conv_in.weight"):  # widening never narrows
        make_plan(FAMILY, original(), wanted(conv_in__weight=(6, 1, 3, 3)))
    with pytest.raises(ValueError, match="belongs to net.layers.1.norm.weight, which does not exist"):
        shapes = {key: shape for key, shape in shapes_of(original()).items() if "layers.1.norm" not in key}
        make_reverse_plan(FAMILY, convert(FAMILY, original(), wanted()), shapes)


def test_a_tensor_that_is_not_what_the_plan_saw_is_an_error():
    tensors = original()
    plan = make_plan(FAMILY, tensors, wanted())
    step = next(step for step in plan.steps if step.key == "blocks.0.norm.weight")
    with pytest.raises(ValueError, match=r"model.blocks.0.norm.weight should become \(4,\)"):
        apply_step(step, lambda key: torch.zeros(5))


def test_components_that_are_not_asked_for_are_left_out():
    family = Family("two", (Rule("a.", "first."), Rule("b.", "second.")))
    plan = make_plan(family, {"a.w": torch.zeros(1), "b.w": torch.zeros(1)}, {"first": {"w": (1,)}})
    assert plan.dropped == {"b.w": "belongs to second, which is not asked for"}


def test_plans_of_several_checkpoints_join():
    one, two = (Family(name, (Rule(f"{name}.", f"model.{name}."),)) for name in "ab")
    targets = {"model": {"a.w": (1,), "b.w": (1,), "c.w": (1,)}}
    plans = [make_plan(f, {f"{f.name}.w": torch.zeros(1)}, targets) for f in (one, two)]
    merged = merge_plans(plans)
    assert merged.initialised == {"model.c.w": "random"} and len(merged.steps) == 2
    with pytest.raises(ValueError, match="1 parameters have two sources"):
        merge_plans([plans[0], plans[0]])


def test_tables_are_checked_where_they_are_written():
    with pytest.raises(ValueError, match="unknown operation"):
        Rule("a", "b.a", "transpose")
    with pytest.raises(ValueError, match="same free parts"):
        Rule("a.#.w", "b.a.w")
    with pytest.raises(ValueError, match="many side"):
        Rule("a.w", "b.{q,k}.w")


def test_tied_tables_are_one_target():
    config = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    for tied in (True, False):
        with torch.device("meta"):
            model = Qwen2ForCausalLM(
                Qwen2Config(**config, intermediate_size=8, vocab_size=12, tie_word_embeddings=tied)
            )
        assert ("lm_head.weight" in target_shapes(model)) is not tied
