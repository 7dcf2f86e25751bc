"""The model card says what was measured, and nothing else."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import save_file

from diffusers_focus import (
    FocusMaskConditioner,
    FocusMaskDecoder,
    FocusPipeline,
    FocusVisionEncoder,
    FocusVisualTokenizer,
)
from diffusers_focus.sharing.card import FRONT_MATTER, Origin, figure_table, pushed_card, section, write_card
from diffusers_focus.sharing.publish import FocusHubMixin


def number(value, low, high):
    return {"value": value, "low": low, "high": high, "count": 10}


@pytest.fixture
def metrics():
    return {
        "pipeline": "focus-tiny",
        "date": "2026-01-02",
        "settings": {"scenes_per_group": 10, "first_seed": 1000000, "batch_size": 4, "edit_options": {}},
        "hardware": {"processor": "Abacus", "cores": 2, "threads": 1, "device": "cpu"},
        "versions": {"diffusers-focus": "1.2.3"},
        "seconds": 130.0,
        "groups": {
            "in": {
                "scenes": 10,
                "referring": {"seconds": 1.0, "mIoU": number(0.91234, 0.9, 0.92)},
                "edits": {
                    "composited": {"psnr_inside": number(21.26, 20.0, 22.0)},
                    "kinds": {"remove": {"composited": {"right": number(0.5, 0.25, 0.75)}}},
                },
            },
            "held_out": {"scenes": 10, "referring": {"seconds": 1.0, "mIoU": number(0.5, 0.4, 0.6)}},
        },
    }


def test_table_has_the_figures_that_were_measured_and_no_others(metrics):
    lines = figure_table(metrics).splitlines()
    assert lines == [
        "| task | measure | new scenes | held-out pairs |",
        "|---|---|---|---|",
        "| Referring expressions | mIoU | 91.2 (90.0 to 92.0) | 50.0 (40.0 to 60.0) |",
        "| Edits | PSNR inside, composited (dB) | 21.3 (20.0 to 22.0) | - |",
        "| Edits: remove | right, composited | 50.0 (25.0 to 75.0) | - |",
    ]


def test_what_fewer_scenes_were_measured_for_says_how_many(metrics):
    metrics["groups"]["in"]["clips"] = {"words": {"J&F": {**number(0.888, 0.85, 0.924), "count": 7}}}
    metrics["groups"]["in"]["edits"]["excess"] = number(0.527, 0.51, 0.54)
    metrics["groups"]["in"]["edits"]["seam_ratio"] = {"value": 0.456}  # a ratio of two means has no count
    metrics["groups"]["in"]["edits"]["composited"]["right"] = number(0.7, 0.6, 0.8)
    metrics["groups"]["held_out"]["edits"] = {"composited": {"right": {**number(0.5, 0.4, 0.6), "count": 6}}}
    table = figure_table(metrics)
    assert "| Edits | right, composited (of 10 and 6) | 70.0 (60.0 to 80.0) | 50.0 (40.0 to 60.0) |" in table
    assert "| Clips | J&F from words (of 7) | 88.8 (85.0 to 92.4) | - |" in table
    assert "| Edits | edit mask to the true change grown by 8 pixels | 0.53 (0.51 to 0.54) | - |" in table
    assert "| Edits | seam to that of the true re-render | 0.46 | - |" in table


def test_groups_of_other_numbers_of_scenes_are_told_apart(metrics, tmp_path):
    text = write_card(metrics, None, tmp_path / "card.md")
    assert ": 10 scenes a group, seeds" in text
    metrics["groups"]["held_out"]["scenes"] = 4
    metrics["groups"]["192px"] = {"scenes": 2, "referring": {"mIoU": number(0.5, 0.4, 0.6)}}
    text = write_card(metrics, None, tmp_path / "card.md")
    assert ": 10 scenes (new scenes) and 4 scenes (held-out pairs), seeds" in text


def test_larger_and_fuller_scenes_have_a_table_of_their_own(metrics):
    more = {**metrics, "groups": {**metrics["groups"], "crowded": {**metrics["groups"]["in"], "scenes": 7}}}
    first, second = figure_table(more).split("\n\nScenes other than those of training:\n\n")
    assert first == figure_table(metrics)
    assert second.splitlines()[0] == "| task | measure | 6 to 8 objects (7 scenes) |"
    assert sum(line.startswith("| Referring expressions") for line in second.splitlines()) == 1
    alone = figure_table({**metrics, "groups": {"crowded": more["groups"]["crowded"]}})
    assert alone.splitlines()[0] == "| task | measure | 6 to 8 objects |"


def test_card_reads_sizes_and_metrics_from_files(metrics, tmp_path):
    (tmp_path / "vae").mkdir()
    save_file({"a": torch.zeros(30, 50), "b": torch.zeros(2)}, tmp_path / "vae" / "model.safetensors")
    index = {"_class_name": "FocusPipeline", "vae": ["diffusers", "AutoencoderKL"], "controlnet": [None, None]}
    index["resolution_group"] = [[128, 128]]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    text = write_card(tmp_path / "metrics.json", None, tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == text
    assert text.startswith(FRONT_MATTER) and "$" not in text
    assert "**Trained:** asking, segmenting, editing and drawing." in text
    assert "| vae | AutoencoderKL | 1,502 |" in text and "controlnet" not in text
    assert "diffusers-focus 1.2.3 on Abacus (2 cores, 1 thread), in 2 min" in text


def test_a_sheet_of_examples_is_shown_where_there_is_one(metrics, tmp_path):
    assert "examples.jpg" not in write_card(metrics, None, tmp_path / "README.md")
    (tmp_path / "examples.jpg").write_bytes(b"a picture")
    text = write_card(metrics, None, tmp_path / "README.md")
    assert "](examples.jpg)\n" in section(text, "Examples") and section(text, "Limits").startswith("It knows only")


def test_card_says_what_is_not_trained(metrics, tmp_path):
    assert "not known" in write_card(metrics, "$state", tmp_path / "README.md")
    for index, says in (({"images_trained": False}, "not been"), ({"unet": [None, None]}, "no image decoder")):
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        assert says in write_card(metrics, "$state", tmp_path / "README.md")


def test_own_template_and_its_mistakes(metrics, tmp_path):
    assert write_card(metrics, "$name: $count", tmp_path / "card.md") == "focus-tiny: 10"
    with pytest.raises(ValueError, match=r"asks for \$author; there is \$name"):
        write_card(metrics, "$author", tmp_path / "card.md")
    with pytest.raises(ValueError, match="no figures"):
        write_card({"groups": {}}, None, tmp_path / "card.md")


def index_of(folder, **changes):
    index = {"_class_name": "FocusPipeline", "mask_decoder": ["x", "FocusMaskDecoder"], "unet": ["x", "UNet"]}
    (folder / "model_index.json").write_text(json.dumps(index | changes))


def header(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_pushed_pipeline_shows_what_it_can_do(tmp_path):
    index_of(tmp_path)
    card = pushed_card(tmp_path, "me/mine", FocusPipeline, "fp16", Origin())
    assert header(card)["pipeline_tag"] == "image-to-image" and "license" not in header(card)
    assert (
        '("me/mine", variant="fp16")' in card
        and "pipe.edit(" in card
        and "# mine\n\nAnswers questions about an image, segments" in card
    )
    for absent in ("Figures", "Where it comes from", "Limits", "base_model", "None", "$"):
        assert absent not in card
    index_of(tmp_path, images_trained=False)
    card = pushed_card(tmp_path, "me/mine", FocusPipeline, None, Origin())
    assert header(card)["pipeline_tag"] == "image-text-to-text" and "pipe.edit(" not in card and "variant" not in card
    index_of(tmp_path, masks_trained=False)
    card = pushed_card(tmp_path, "me/mine", FocusPipeline, None, Origin())
    assert "pipe.segment(" not in card and "referring-segmentation" not in header(card)["tags"]


@pytest.mark.parametrize(
    "cls, part, task",
    [
        (FocusMaskDecoder, "mask_decoder", "image-segmentation"),
        (FocusMaskConditioner, "mask_conditioner", "image-feature-extraction"),
        (FocusVisionEncoder, "vision_encoder", "image-feature-extraction"),
        (FocusVisualTokenizer, "visual_tokenizer", "image-feature-extraction"),
    ],
)
def test_pushed_model_says_how_it_goes_into_a_pipeline(metrics, tmp_path, cls, part, task):
    save_file({"a": torch.zeros(30, 50)}, tmp_path / "model.fp16.safetensors")
    save_file({"a": torch.zeros(30, 50), "b": torch.zeros(2)}, tmp_path / "model.safetensors")
    licence = {"license": "other", "license_name": "mine"}
    origin = Origin("org/whole", ("org/whole",), licence, "It knows little.", metrics)
    card = pushed_card(tmp_path, "me/mine", cls, None, origin)
    assert header(card) == {
        "library_name": "diffusers",
        "pipeline_tag": task,
        **licence,
        "base_model": ["org/whole"],
        "tags": ["diffusers-focus"],
    }
    assert f"# mine\n\n{cls.__doc__.splitlines()[0]}\n" in card
    assert f'{part} = {cls.__name__}.from_pretrained("me/mine")' in card
    assert f'FocusPipeline.from_pretrained("org/whole", {part}={part})' in card
    assert "1,502 parameters" in card and "Measured on the weights of `focus-tiny`, on 2026-01-02" in card
    assert card.endswith("## Limits\n\nOf `org/whole`, says its card:\n\nIt knows little.\n")
    assert cls.__mro__.index(FocusHubMixin) < cls.__mro__.index(ModelMixin)


def test_section_of_a_card():
    assert (
        section("# A\n\n## Limits\n\nFew.\n\n### Deeper\n\nNone.\n\n## Next\n\nX\n", "Limits")
        == "Few.\n\n### Deeper\n\nNone."
    )
    assert section("# A\n", "Limits") == ""
