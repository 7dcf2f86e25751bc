"""What users of the Hub do, one scene a call: `python client.py SCENE FOLDER` prints what happened as JSON.

Runs in a process of its own with `Hub.environment()`; FOLDER is pipelines/focus-tiny. Scenes return facts, the tests
judge them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any


def message(call: Callable[[], Any]) -> str:
    """The error a call ends with, as "type: text"; fails if there is none."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("no error")


def weights(module: Any) -> float:
    """A number that differs when weights do."""
    return float(sum((i % 7 + 1) * p.detach().double().abs().sum() for i, p in enumerate(module.parameters())))


def push(folder: str) -> dict[str, Any]:
    """A pipeline, its fp16 variant, a model and what is said about mistakes; loads what was pushed."""
    import torch

    from diffusers_focus import FocusMaskDecoder, FocusPipeline

    pipe = FocusPipeline.from_pretrained(folder)
    pipe.push_to_hub("me/focus")
    facts: dict[str, Any] = {"weights": weights(pipe.unet)}
    back = FocusPipeline.from_pretrained("me/focus")
    facts["back"] = weights(back.unet)
    back.to(torch.float16).push_to_hub("me/focus", variant="fp16")
    half = FocusPipeline.from_pretrained("me/focus", variant="fp16", dtype={"unet": torch.float16}, vae=pipe.vae)
    facts["half"] = [str(half.unet.dtype), str(half.language_model.dtype), half.vae is pipe.vae, weights(half.unet)]
    back.mask_decoder.push_to_hub("me/mask-decoder", private=True, commit_message="The masks")
    loaded = FocusMaskDecoder.from_pretrained("me/mask-decoder")
    facts["model"] = [weights(pipe.mask_decoder), weights(loaded)]
    facts["errors"] = {
        "id": message(lambda: FocusPipeline.from_pretrained("me/nothing")),
        "revision": message(lambda: FocusPipeline.from_pretrained("me/focus", revision="nope")),
        "variant": message(lambda: FocusPipeline.from_pretrained("me/focus", variant="bf16")),
        "private": message(lambda: FocusPipeline.from_pretrained("me/private", token=False)),
        "private part": message(
            lambda: FocusMaskDecoder.from_pretrained("me/private", subfolder="mask_decoder", token=False)
        ),
        "half": message(lambda: FocusPipeline.from_pretrained("me/half")),
        "subfolder": message(lambda: FocusPipeline.from_pretrained("me/focus", subfolder="large")),
        "no index": message(lambda: FocusPipeline.from_pretrained("me/mask-decoder")),
        "write": message(lambda: pipe.push_to_hub("me/other", token="hf_stranger")),
    }
    return facts


def load(folder: str) -> dict[str, Any]:
    """A process that has pushed nothing loads by id, in every way; nothing is trusted."""
    import torch
    from diffusers import AutoPipelineForInpainting, DiffusionPipeline

    from diffusers_focus import FocusMaskDecoder, FocusPipeline, FocusUnderstandPipeline

    here = FocusPipeline.from_pretrained(folder)
    facts: dict[str, Any] = {"weights": [weights(here.unet), weights(here.mask_decoder)]}
    pipe = FocusPipeline.from_pretrained("me/focus")
    facts["pipeline"] = [weights(pipe.unet), weights(pipe.mask_decoder)]
    facts["variant"] = weights(
        FocusPipeline.from_pretrained("me/focus", variant="fp16", torch_dtype=torch.float16).unet
    )
    facts["model"] = weights(FocusMaskDecoder.from_pretrained("me/mask-decoder"))
    facts["part"] = weights(FocusMaskDecoder.from_pretrained("me/focus", subfolder="mask_decoder"))
    facts["part, variant"] = weights(
        FocusMaskDecoder.from_pretrained(
            "me/focus", subfolder="mask_decoder", variant="fp16", torch_dtype=torch.float16
        )
    )
    facts["classes"] = [
        type(one.from_pretrained("me/focus")).__name__
        for one in (DiffusionPipeline, AutoPipelineForInpainting, FocusUnderstandPipeline)
    ]
    pipe.push_to_hub("me/several", subfolder="tiny", max_shard_size="1MB")
    below = FocusPipeline.from_pretrained("me/several", subfolder="tiny", vae=pipe.vae)
    facts["subfolder"] = [weights(below.unet), weights(below.mask_decoder)]
    from huggingface_hub import HfApi

    HfApi().create_tag("me/focus", tag="first", revision="main")
    facts["tag"] = weights(FocusPipeline.from_pretrained("me/focus", revision="first").unet)
    facts["adapter"] = adapter_by_id(pipe)
    text = FocusPipeline.from_pretrained("me/focus").understand(None, "what is this?", max_new_tokens=3).text
    facts["answers"] = [text, here.understand(None, "what is this?", max_new_tokens=3).text]
    return facts


def adapter_by_id(pipe: Any) -> dict[str, Any]:
    """A LoRA of both components: pushed, loaded by its id, switched off, unloaded, fused and taken out again."""
    import tempfile

    import torch
    from huggingface_hub import HfApi
    from peft import LoraConfig

    @torch.no_grad()
    def logits() -> torch.Tensor:
        return pipe.language_model(torch.arange(20, 40)[None]).logits

    def apart(other: torch.Tensor) -> float:
        return float((logits() - other).abs().max() / other.abs().max())

    base = logits()
    for component, layers in {"unet": ["to_q", "to_v"], "language_model": ["q_proj", "v_proj"]}.items():
        getattr(pipe, component).add_adapter(LoraConfig(r=2, target_modules=layers, init_lora_weights=False), "words")
    adapted = logits()
    with tempfile.TemporaryDirectory() as place:
        pipe.save_lora_weights(place, **pipe.lora_layers("words"))
        HfApi().create_repo("me/words", exist_ok=True)  # the scene is played twice
        HfApi().upload_folder(repo_id="me/words", folder_path=place)
    pipe.unload_lora_weights()
    facts: dict[str, Any] = {"changed": float((adapted - base).abs().max() / base.abs().max()), "unloaded": apart(base)}
    pipe.load_lora_weights("me/words", adapter_name="teal")
    facts |= {"adapters": pipe.get_list_adapters(), "loaded": apart(adapted)}
    pipe.disable_lora()
    facts["off"] = apart(base)
    pipe.enable_lora()
    pipe.fuse_lora()
    facts["fused"] = apart(adapted)
    pipe.unfuse_lora()
    facts["unfused"] = apart(adapted)
    return facts


def diffusers_only(folder: str) -> dict[str, Any]:
    """A process in which this package is installed and never imported by the caller."""
    from diffusers import DiffusionPipeline

    options = {"custom_pipeline": "focus_pipeline", "trust_remote_code": True}
    facts = {
        "untrusted": message(lambda: DiffusionPipeline.from_pretrained("me/focus", custom_pipeline="focus_pipeline"))
    }
    assert "diffusers_focus" not in sys.modules
    pipe = DiffusionPipeline.from_pretrained("me/focus", **options)
    facts["id"] = [type(pipe).__name__, weights(pipe.unet)]
    facts["folder"] = type(DiffusionPipeline.from_pretrained(folder, **options)).__name__
    file = f"{folder}/focus_pipeline.py"
    one = DiffusionPipeline.from_pretrained(folder, custom_pipeline=file, trust_remote_code=True)
    facts["file"] = type(one).__name__
    return facts


def offline(_: str) -> dict[str, Any]:
    """The Hub is away; what was loaded before is there, what was not is missed clearly."""
    from diffusers_focus import FocusMaskDecoder, FocusPipeline

    pipe = FocusPipeline.from_pretrained("me/focus")
    below = FocusPipeline.from_pretrained("me/several", subfolder="tiny", vae=pipe.vae)
    return {
        "pipeline": weights(pipe.unet),
        "subfolder": weights(below.unet),
        "variant": weights(FocusPipeline.from_pretrained("me/focus", variant="fp16").unet),
        "local_files_only": weights(FocusPipeline.from_pretrained("me/focus", local_files_only=True).unet),
        "model": weights(FocusMaskDecoder.from_pretrained("me/mask-decoder")),
        "missing": message(lambda: FocusPipeline.from_pretrained("me/half")),
        "missing part": message(lambda: FocusPipeline.from_pretrained("me/several", subfolder="tiny")),
        "missing subfolder": message(lambda: FocusPipeline.from_pretrained("me/several", subfolder="large")),
    }


def cards(folder: str) -> dict[str, Any]:
    """Cards that somebody wrote, in the repository and in the folder."""
    import tempfile
    from pathlib import Path

    from diffusers_focus import FocusMaskConditioner, FocusModularPipeline, FocusSegmentEditPipeline

    pipe = FocusSegmentEditPipeline.from_pretrained(folder)
    pipe.push_to_hub("me/carded")
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
        pipe.mask_decoder.save_pretrained(place, push_to_hub=True, repo_id="me/own-card")
        pipe.save_pretrained(place, push_to_hub=True, repo_id="me/carded", max_shard_size="2MB")
        kept = (Path(place) / "README.md").read_text()
    pipe.mask_conditioner.push_to_hub("me/variant", variant="fp16")
    pipe.mask_conditioner.push_to_hub("me/secret", private=True)
    FocusMaskConditioner.from_pretrained("me/secret").push_to_hub("me/open")
    modular = FocusModularPipeline.from_pretrained(folder, workflow="ask")
    modular.load_components()
    modular.push_to_hub("me/blocks")
    with tempfile.TemporaryDirectory() as place:
        modular.save_pretrained(place, push_to_hub=True, repo_id="me/blocks-again")
    back = FocusModularPipeline.from_pretrained("me/blocks")
    back.load_components()
    parts = [weights(modular.language_model), weights(back.language_model)]
    return {"kept": kept, "modular": parts, "parts": sorted(back.components)}


def page(folder: str) -> dict[str, Any]:
    """The snippets of docs/diffusers.md that need the Hub."""
    import tempfile
    from pathlib import Path

    root = Path(folder).parents[1]
    sys.path.insert(0, str(root))
    from tests.docs.page import enter, names_for, read_blocks

    blocks = read_blocks(root / "docs" / "diffusers.md")
    with tempfile.TemporaryDirectory() as place:
        enter(Path(place), root)
        first = blocks[0].run({})
        first["pipe"].push_to_hub("me/focus-tiny")
        first["pipe"].push_to_hub("me/focus-tiny", variant="fp16")
        chosen = [block for block in blocks if block.need == "hub"]
        for block in chosen:
            block.run(names_for(block, first))
    return {"blocks": len(chosen)}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](sys.argv[2])))
