"""Where weights came from, as far as folders here can tell; the Hub's side is in tests/hub."""

from __future__ import annotations

import json
from types import SimpleNamespace

from diffusers_focus.sharing.publish import find_origin

CARD = "---\nlicense: mit\nbase_model: org/base\n---\n# A\n\n## Limits\n\nIt knows little.\n"


def thing(name, **parts):
    """Something with a configuration as diffusers has it."""
    parts = {key: SimpleNamespace(config={"_name_or_path": str(place)}) for key, place in parts.items()}
    return SimpleNamespace(config={"_name_or_path": str(name)} if name else {}, components=parts)


def make(folder, card=CARD, **files):
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(card)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_card_and_figures_of_the_folder_it_was_loaded_from(tmp_path):
    metrics = {"groups": {"in": {}}, "pipeline": "first"}
    folder = make(tmp_path / "first", metrics=metrics, model_index={})
    (folder / "vae").mkdir()
    for loaded in (thing(folder), thing(folder / "vae")):
        origin = find_origin(loaded, tmp_path, "me/new")
        assert origin.name == "first" and origin.base_models == ("org/base",)
        assert (
            origin.licence == {"license": "mit"} and origin.limits == "It knows little." and origin.metrics == metrics
        )
    (tmp_path / "metrics.json").write_text(json.dumps({"groups": {"in": {}}, "pipeline": "newer"}))
    assert find_origin(thing(folder), tmp_path, "me/new").metrics["pipeline"] == "newer"
    # A thing is no base model of itself.
    assert find_origin(thing(folder), tmp_path, "org/base").base_models == ()


def test_what_is_not_known_is_not_claimed(tmp_path):
    for name in ("", tmp_path / "gone", "not/here"):
        origin = find_origin(thing(name), tmp_path, "me/new")
        assert origin == type(origin)()


def test_parts_of_several_origins(tmp_path):
    first, second = make(tmp_path / "a"), make(tmp_path / "b", CARD.replace("mit", "other").replace("base\n", "more\n"))
    origin = find_origin(thing("", unet=first, vae=first), tmp_path, "me/new")
    assert origin.licence == {"license": "mit"} and origin.name == "" and origin.limits == ""
    origin = find_origin(thing("", unet=first, vae=second), tmp_path, "me/new")
    assert origin.licence == {"license": "other", "license_name": "several-see-base-models"}
    assert origin.base_models == ("org/base", "org/more")
