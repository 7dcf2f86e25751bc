"""The table of nodes, and the example workflows held against it; needs no ComfyUI."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json

import pytest
from PIL import Image

from integrations.comfyui import work
from integrations.comfyui.checks import workflows
from integrations.comfyui.schema import NODES, PIPELINE

FUNCTIONS = {
    "FocusAsk": work.ask,
    "FocusSegment": work.segment,
    "FocusSegmentClip": work.segment_clip,
    "FocusEdit": work.edit,
    "FocusEditClip": work.edit_clip,
    "FocusGenerate": work.generate,
}
STOCK = workflows.STOCK


@pytest.fixture(scope="module")
def pack(root):
    return root / "integrations" / "comfyui"


@pytest.mark.parametrize("node", FUNCTIONS)
def test_a_nodes_inputs_are_the_arguments_of_what_it_does(node):
    arguments = dict(inspect.signature(FUNCTIONS[node]).parameters)
    if arguments.pop("drawing", None):
        arguments |= inspect.signature(work.drawing_options).parameters
    inputs = {one.id: one for one in NODES[node].inputs}
    assert list(inputs)[0] == "pipeline" and set(inputs) - {"pipeline"} == set(arguments) - {"pipe"}
    for name, one in inputs.items():
        if one.is_widget and arguments[name].default is not inspect.Parameter.empty:
            assert one.options["default"] == arguments[name].default, name
        assert one.tooltip and one.optional == (one.kind == "Mask" or name == "control_image")
    names = [one.id for one in NODES[node].outputs]
    assert len(set(names)) == len(names) > 0


@pytest.mark.parametrize("name", sorted(workflows.workflows()))
def test_example_is_the_described_one_in_both_formats(name, pack):
    steps = workflows.workflows()[name]
    folder = pack / "example_workflows"
    assert json.loads((folder / f"{name}.json").read_text()) == workflows.editor_format(steps)
    graph = json.loads((folder / "api" / f"{name}.json").read_text())
    assert graph == workflows.api_format(steps)
    for node in graph.values():
        if node["class_type"] not in STOCK:
            inputs = {one.id: one for one in NODES[node["class_type"]].inputs}
            assert set(node["inputs"]) <= set(inputs)
            assert {key for key, one in inputs.items() if not one.optional} <= set(node["inputs"])
    for node in graph.values():  # a link joins two sockets of one type
        for key, value in node["inputs"].items():
            if isinstance(value, list):
                source = graph[value[0]]["class_type"]
                wanted = _socket(node["class_type"], key)
                assert wanted in ("*", _outputs(source)[value[1]])
    assert Image.open(folder / f"{name}.jpg").width > 256


def _type(kind):
    return kind if kind == PIPELINE else kind.upper()


def _socket(node, key):
    if node in STOCK:
        return STOCK[node][0][key]
    return next(_type(one.kind) for one in NODES[node].inputs if one.id == key)


def _outputs(node):
    return list(STOCK[node][3].values()) if node in STOCK else [_type(one.kind) for one in NODES[node].outputs]


def test_nothing_happens_when_the_pack_is_imported(pack):
    tree = ast.parse((pack / "__init__.py").read_text(encoding="utf-8"))
    kinds = {type(node) for node in tree.body}
    assert kinds <= {ast.Expr, ast.ImportFrom, ast.AsyncFunctionDef}
    names = {node.name for node in tree.body if isinstance(node, ast.AsyncFunctionDef)}
    assert names == {"comfy_entrypoint"}  # beside V1 mappings ComfyUI would not see it
    spec = importlib.util.spec_from_file_location("/custom_nodes/focus", pack / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # without ComfyUI
    assert inspect.iscoroutinefunction(module.comfy_entrypoint)


def test_pack_needs_this_package(pack, root):
    assert (pack / "requirements.txt").read_text().split() == ["diffusers-focus"]
    facts = (pack / "pyproject.toml").read_text(encoding="utf-8")
    version = next(line for line in (root / "setup.cfg").read_text().splitlines() if line.startswith("version"))
    assert f'version = "{version.split("=")[1].strip()}"' in facts and "[tool.comfy]" in facts
