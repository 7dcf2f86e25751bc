"""Where weights came from, as far as folders here can tell; the Hub's side is in tests/hub."""

from __future__ import annotations

import json

import pytest

from diffusers_focus import FocusMaskConditioner
from diffusers_focus.sharing.card import Origin
from diffusers_focus.sharing.publish import find_origin, forget_places

from tests.tiny import tiny_pipeline

CARD = "---\nlicense: mit\nbase_model: org/base\n---\n# A\n\n## Limits\n\nIt knows little.\n"


@pytest.fixture
def model():
    return FocusMaskConditioner(patch_size=4, code_channels=8, cross_attention_dim=16, hidden_dim=16)


def make(folder, card=CARD, **files):
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(card)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_card_and_figures_of_the_folder_it_was_loaded_from(model, tmp_path):
    metrics = {"groups": {"in": {}}, "pipeline": "first"}
    folder = make(tmp_path / "first", metrics=metrics, model_index={})
    (folder / "mask_conditioner").mkdir()
    for place in (folder, folder / "mask_conditioner"):
        model.register_to_config(_name_or_path=str(place))
        origin = find_origin(model, tmp_path, "me/new")
        assert origin == Origin("first", ("org/base",), {"license": "mit"}, "It knows little.", metrics)
    # A thing is no base model of itself.
    assert find_origin(model, tmp_path, "org/base").base_models == ()
    # What was measured on the folder that is pushed comes first.
    (tmp_path / "metrics.json").write_text(json.dumps({"groups": {"in": {}}, "pipeline": "newer"}))
    assert find_origin(model, tmp_path, "me/new").metrics["pipeline"] == "newer"


def test_what_is_not_known_is_not_claimed(model, tmp_path):
    assert find_origin(model, tmp_path, "me/new") == Origin()
    for name in (str(tmp_path / "gone"), "not/here"):
        model.register_to_config(_name_or_path=name)
        assert find_origin(model, tmp_path, "me/new") == Origin()


def test_parts_of_several_origins(tmp_path):
    first, second = make(tmp_path / "a"), make(tmp_path / "b", CARD.replace("mit", "bsd").replace("base\n", "more\n"))
    pipe = tiny_pipeline()
    pipe.vae.register_to_config(_name_or_path=str(first))
    assert find_origin(pipe, tmp_path, "me/new") == Origin(base_models=("org/base",), licence={"license": "mit"})
    pipe.unet.register_to_config(_name_or_path=str(second))
    origin = find_origin(pipe, tmp_path, "me/new")
    assert origin.licence == {"license": "other", "license_name": "several-see-base-models"}
    assert set(origin.base_models) == {"org/base", "org/more"}


def test_places_on_this_disk_do_not_go_out(model, tmp_path):
    for place, kept in ((str(tmp_path), None), ("/gone/away", None), ("org/base", "org/base")):
        model.register_to_config(_name_or_path=place)
        model.save_config(tmp_path / "unet")
        forget_places(tmp_path)
        config = json.loads((tmp_path / "unet" / "config.json").read_text())
        assert config["patch_size"] == 4 and config.get("_name_or_path") == kept
