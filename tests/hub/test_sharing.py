"""Pushing and loading by id, with the real client and a stand-in of the Hub: every scene in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.hub.stand_in import Hub, Repository

HERE = Path(__file__).resolve().parent
pytestmark = [pytest.mark.whole, pytest.mark.timeout(300)]  # each scene imports diffusers anew
TINY = HERE.parents[1] / "pipelines" / "focus-tiny"


def play(hub: Hub, scene: str, home: Path, **changes: str | None) -> dict[str, Any]:
    """The facts of a scene."""
    command = [sys.executable, str(HERE / "client.py"), scene, str(TINY)]
    done = subprocess.run(command, env=hub.environment(home, **changes), cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def hub():
    with Hub() as running:
        half = {str(path.relative_to(TINY)): path.read_bytes() for path in TINY.rglob("*") if path.is_file()}
        half = {path: content for path, content in half.items() if not path.startswith(("vae/d", "visual_tokenizer/"))}
        running.repositories["me/half"] = Repository()
        running.repositories["me/half"].commit("main", half)
        running.repositories["me/private"] = Repository(private=True)
        running.repositories["me/private"].commit("main", half)
        yield running


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    return play(hub, "push", home), home


def header(card: bytes) -> dict[str, Any]:
    return yaml.safe_load(card.decode().split("---\n")[1])


def test_what_is_pushed_comes_back(pushed):
    facts, _ = pushed
    assert facts["back"] == facts["weights"]
    dtype, language, kept, half = facts["half"]
    assert (dtype, language, kept) == ("torch.float16", "torch.float32", True)
    assert half == pytest.approx(facts["weights"], rel=1e-3)
    assert facts["model"][0] == pytest.approx(facts["model"][1], rel=1e-3)


def test_repositories_hold_what_is_needed_and_nothing_else(pushed, hub):
    files = hub.files("me/focus")
    for name in ("unet", "vae", "mask_decoder", "vision_encoder"):
        assert f"{name}/diffusion_pytorch_model.safetensors" in files
        assert f"{name}/diffusion_pytorch_model.fp16.safetensors" in files
    assert files["focus_pipeline.py"] == (TINY / "focus_pipeline.py").read_bytes()
    assert set(hub.files("me/mask-decoder")) == {
        ".gitattributes",
        "README.md",
        "metrics.json",
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    assert hub.repositories["me/mask-decoder"].private and not hub.repositories["me/focus"].private


def test_cards_are_right(pushed, hub):
    card = hub.files("me/focus")["README.md"]
    facts = header(card)
    assert facts["library_name"] == "diffusers" and facts["pipeline_tag"] == "image-to-image"
    assert facts["license"] == "apache-2.0" and "diffusers-focus" in facts["tags"]
    text = card.decode()
    assert 'FocusPipeline.from_pretrained("me/focus")' in text and "fp16" not in text
    assert 'custom_pipeline="focus_pipeline"' in text and "| unet | UNet2DConditionModel | 3,097,876 |" in text
    figures = json.loads((TINY / "metrics.json").read_text())["groups"]["in"]["questions"]["exact_match"]
    assert "Measured on the weights of `focus-tiny`" in text
    assert f"| Questions | exact match | {100 * figures['value']:.1f} (" in text
    assert "It knows only its world" in text and "Model Card for" not in text
    model = hub.files("me/mask-decoder")["README.md"]
    facts = header(model)
    assert facts["pipeline_tag"] == "image-segmentation" and facts["base_model"] == ["me/focus"]
    assert facts["license"] == "apache-2.0"
    assert 'FocusMaskDecoder.from_pretrained("me/mask-decoder")' in model.decode()


@pytest.mark.parametrize(
    "mistake, kind, says",
    [
        ("id", "OSError", "'me/nothing' is neither a folder here nor a repository on the Hub that you may read"),
        ("revision", "OSError", "'me/focus' has no revision 'nope'"),
        ("variant", "ValueError", "`variant=bf16`, which 'me/focus' does not have. There is fp16."),
        ("private", "OSError", "'me/private' is neither a folder here nor a repository on the Hub that you may read"),
        (
            "half",
            "OSError",
            "'me/half' is not complete, missing: vae/ (its weights), visual_tokenizer/ (nothing of it)",
        ),
        ("subfolder", "OSError", "'me/focus' has no pipeline in 'large': there is no large/model_index.json"),
        ("no index", "OSError", "'me/mask-decoder' has no model_index.json"),
        ("write", "OSError", "'me/other' cannot be written on the Hub: 401 Invalid username or password. Pass token="),
    ],
)
def test_mistakes_are_named(pushed, mistake, kind, says):
    error = pushed[0]["errors"][mistake]
    assert error.startswith(f"{kind}: ") and says in error


def test_nothing_is_downloaded_for_a_variant_that_is_not_there(pushed, hub):
    # The listing says so; the 48 MB of the plain weights would have been fetched before.
    asked = [path for _, path in hub.requests if path.startswith("/me/half/resolve") and path.endswith(".safetensors")]
    assert asked == []


@pytest.mark.slow
def test_a_fresh_process_loads_by_id(pushed, hub, tmp_path):
    facts = play(hub, "load", tmp_path)
    unet, masks = facts["weights"]
    assert facts["pipeline"] == [unet, masks] and facts["tag"] == unet and facts["part"] == masks
    for name, value in (("variant", unet), ("model", masks), ("part, variant", masks)):
        assert facts[name] == pytest.approx(value, rel=1e-3)
    assert facts["classes"] == ["FocusPipeline", "FocusPipeline", "FocusUnderstandPipeline"]
    assert facts["subfolder"] == [unet, masks]
    assert facts["answers"][0] == facts["answers"][1]
    adapter = facts["adapter"]
    assert adapter["adapters"] == {"unet": ["teal"], "language_model": ["teal"]} and adapter["changed"] > 0.01
    assert adapter["off"] == adapter["unloaded"] == 0
    assert max(adapter[name] for name in ("loaded", "fused", "unfused")) < 1e-5
    files = hub.files("me/several")
    assert "tiny/unet/diffusion_pytorch_model.safetensors.index.json" in files and "README.md" not in files
    # Components that are passed are not downloaded.
    assert not [path for _, path in hub.requests if path.startswith("/me/several/resolve") and "/vae/" in path]


@pytest.mark.slow
def test_diffusers_alone_loads_through_the_files_beside_the_pipeline(pushed, hub, tmp_path):
    facts = play(hub, "diffusers_only", tmp_path)
    assert facts["id"] == ["FocusPipeline", pushed[0]["weights"]]
    assert facts["folder"] == facts["file"] == "FocusPipeline"
    assert "trust_remote_code=True" in facts["untrusted"]


@pytest.mark.slow
def test_the_cache_serves_without_the_hub(pushed, hub, tmp_path):
    play(hub, "load", tmp_path)
    for changes in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        facts = play(hub, "offline", tmp_path, **changes)
        for name in ("pipeline", "subfolder", "local_files_only"):
            assert facts[name] == pushed[0]["weights"]
        assert facts["variant"] == pytest.approx(pushed[0]["weights"], rel=1e-3)
        for name, missed in (("missing", "me/half"), ("missing subfolder", "me/several")):
            assert f"could not be reached, and '{missed}' is not completely in the cache" in facts[name]
        assert "is not complete, missing: vae/" in facts["missing part"]


@pytest.mark.slow
def test_cards_of_others_stay(hub, tmp_path):
    repository = hub.repositories["me/carded"] = Repository()
    repository.commit("main", {"README.md": b"---\nlicense: mit\n---\n# Theirs\n"})
    facts = play(hub, "cards", tmp_path)
    files = hub.files("me/carded")
    assert files["README.md"].endswith(b"# Theirs\n") and facts["kept"].endswith("# Mine\n")
    assert "unet/diffusion_pytorch_model-00001-of-" in str(sorted(files))
    assert hub.files("me/own-card")["README.md"].endswith(b"# Mine\n")
    card = hub.files("me/variant")["README.md"].decode()
    assert 'FocusMaskConditioner.from_pretrained("me/variant", variant="fp16")' in card
    card = hub.files("me/open")["README.md"].decode()
    assert "me/secret" not in card and header(card.encode())["license"] == "apache-2.0"
    # A modular pipeline: its own card, its figures, and no word of where it lay on this disk.
    assert facts["modular"][0] == facts["modular"][1] and "unet" not in facts["parts"]
    for name in ("me/blocks", "me/blocks-again"):
        files = hub.files(name)
        index = json.loads(files["modular_model_index.json"])
        assert index["vision_encoder"][2]["pretrained_model_name_or_path"] is None
        card = files["README.md"].decode()
        assert header(files["README.md"])["pipeline_tag"] == "image-text-to-text" and "Model Card for" not in card
        assert f'FocusModularPipeline.from_pretrained("{name}")' in card and "Measured on the weights of" in card
        assert "| language_model | Qwen2ForCausalLM |" in card and "metrics.json" in files


@pytest.mark.slow
def test_snippets_of_the_page_run(tmp_path):
    with Hub() as own:
        facts = play(own, "page", tmp_path)
        assert facts["blocks"] >= 3
        assert own.repositories["me/my-focus"].private and "README.md" in own.files("me/my-other-focus")
