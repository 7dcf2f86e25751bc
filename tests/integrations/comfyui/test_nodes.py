"""The nodes against ComfyUI's published interfaces: where `COMFYUI` names a checkout whose requirements are installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

COMFYUI = os.environ.get("COMFYUI")
pytestmark = pytest.mark.skipif(not COMFYUI, reason="COMFYUI does not name a checkout of ComfyUI")

# In a process of its own: ComfyUI reads the command line and has modules called nodes, utils and server.
LIST = """
import asyncio, importlib.util, json, sys
import comfy.cli_args
comfy.cli_args.args.cpu = True
import folder_paths
folder_paths.models_dir = sys.argv[2]
spec = importlib.util.spec_from_file_location(
    "custom_nodes_focus", sys.argv[1] + "/__init__.py", submodule_search_locations=[sys.argv[1]]
)
module = importlib.util.module_from_spec(spec)
sys.modules["custom_nodes_focus"] = module
spec.loader.exec_module(module)
extension = asyncio.run(module.comfy_entrypoint())
nodes = asyncio.run(extension.get_node_list())
found = {}
for node in nodes:
    schema = node.GET_SCHEMA()
    schema.validate()
    found[schema.node_id] = {"v1": node.GET_NODE_INFO_V1(), "required": list(node.INPUT_TYPES().get("required", {}))}
checks = {
    "good": module.nodes.FocusEdit.validate_inputs(instruction="remove it"),
    "linked": module.nodes.FocusAsk.validate_inputs(question=None),
    "empty": module.nodes.FocusEdit.validate_inputs(instruction=" "),
}
print(json.dumps({"nodes": found, "checks": checks}))
"""


@pytest.fixture(scope="module")
def listed(root, tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    for name, index in (
        ("focus/a", {"_class_name": "FocusPipeline"}),
        ("focus/b", {"_class_name": "StableDiffusionXLPipeline"}),
        ("focus/deep/c", {"_class_name": ["focus_pipeline", "FocusSegmentEditPipeline"]}),
    ):
        (models / name).mkdir(parents=True)
        (models / name / "model_index.json").write_text(json.dumps(index))
    (models / "focus" / "d").mkdir()
    (models / "focus" / "d" / "model_index.json").write_text("no json")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(COMFYUI), str(root / "src")])}
    pack = root / "integrations" / "comfyui"
    command = [sys.executable, "-c", LIST, str(pack), str(models)]
    done = subprocess.run(command, cwd=COMFYUI, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_row_of_the_table_is_a_node(listed):
    from integrations.comfyui.schema import NODES

    assert sorted(listed["nodes"]) == sorted(NODES)
    for node_id, found in listed["nodes"].items():
        node, info = NODES[node_id], found["v1"]
        assert info["display_name"] == node.name and info["category"] == "FOCUS"
        assert info["output_name"] == [one.id for one in node.outputs]
        assert found["required"] == [one.id for one in node.inputs if not one.optional]
        for one in node.inputs:
            kind, options = info["input"]["optional" if one.optional else "required"][one.id]
            assert isinstance(kind, str) and options["tooltip"] == one.tooltip


def test_only_folders_of_focus_are_offered(listed):
    options = listed["nodes"]["FocusLoad"]["v1"]["input"]["required"]["folder"][1]["options"]
    assert options == ["a", os.path.join("deep", "c")]


def test_empty_texts_are_refused_before_anything_runs(listed):
    assert listed["checks"]["good"] is True and listed["checks"]["linked"] is True
    assert listed["checks"]["empty"].startswith("Input instruction: ")
