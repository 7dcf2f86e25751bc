"""Small originals on disk, in the layouts in which the large ones are published; values are those of tests/goldens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from diffusers_focus.checkpoints.convert import ConvertOptions
from diffusers_focus.processing.vocabulary import CHAT_TOKENS, END_OF_TURN, START_OF_TURN, extend_tokenizer

from tests.checkpoints import originals

SIZE = (256, 256)  # the token resolution that the recordings use
HEADS = {"mask_decoder": {"num_heads": 4}}  # what no file of the small mask decoder says
OPTIONS = ConvertOptions(progress=False, buckets=[list(SIZE)], configs=HEADS)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_tensors(folder: Path, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name)


def words(extended: bool = True) -> Qwen2Tokenizer:
    """The recorded tokenizer: bytes, chat tokens, visual tokens."""
    recorded = originals.golden("tokenizer_a")["model"]["vocab"]
    chat = {token: len(recorded) + index for index, token in enumerate(CHAT_TOKENS)}
    tokenizer = Qwen2Tokenizer(
        vocab={**recorded, **chat}, merges=[], eos_token=END_OF_TURN, additional_special_tokens=[START_OF_TURN]
    )
    spec = originals.golden("mllm_vision_a")["spec"]
    if extended:
        extend_tokenizer(tokenizer, spec["nsem"], spec["npix"])
    return tokenizer


def write_originals(folder: Path) -> SimpleNamespace:
    """ILLUME+'s three checkpoints: a .bin file, a sharded folder, a diffusers folder; and two for segmentation."""
    heads = {"vision_config": {"num_heads": 4}}
    (folder / "tokenizer").mkdir(parents=True)
    torch.save(originals.dualvitok(), folder / "tokenizer" / "pytorch_model.bin")
    write_json(folder / "tokenizer" / "config.json", heads)

    weights = originals.illume_plus()
    keys = list(weights)
    shards = {"model-00001-of-00002.safetensors": keys[::2], "model-00002-of-00002.safetensors": keys[1::2]}
    for name, names in shards.items():
        write_tensors(folder / "language_model", name, {key: weights[key] for key in names})
    weight_map = {key: name for name, names in shards.items() for key in names}
    write_json(folder / "language_model" / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    config = originals.golden("mllm_vision_a")["llm_config"]
    write_json(folder / "language_model" / "config.json", {**config, **heads, "model_type": "illume_qwen2"})
    words().save_pretrained(folder / "language_model")

    facts, decoder = originals.golden("decoder_a"), originals.illume_plus_decoder()
    for part in ("unet", "vae"):
        tensors = {key.removeprefix(f"{part}."): v for key, v in decoder.items() if key.startswith(f"{part}.")}
        write_tensors(folder / "decoder" / part, "diffusion_pytorch_model.safetensors", tensors)
        write_json(folder / "decoder" / part / "config.json", facts[f"{part}_config"])
    scheduler = {"_class_name": facts["scheduler_class"], **facts["scheduler_config"]}
    write_json(folder / "decoder" / "scheduler" / "scheduler_config.json", scheduler)

    torch.save(originals.convnext("open_clip")[1], folder / "convnext.pth")
    torch.save(originals.mask2former(), folder / "mask2former.pth")
    torch.save(originals.fc_clip(), folder / "fc_clip.pth")
    return SimpleNamespace(
        tokenizer=folder / "tokenizer",
        language_model=folder / "language_model",
        decoder=folder / "decoder",
        convnext=folder / "convnext.pth",
        mask2former=folder / "mask2former.pth",
        fc_clip=folder / "fc_clip.pth",
    )


def write_sdxl(folder: Path) -> Path:
    tensors, configs = originals.sdxl(), originals.sdxl_configs()
    for part in ("unet", "vae"):
        own = {key.removeprefix(f"{part}."): v for key, v in tensors.items() if key.startswith(f"{part}.")}
        write_tensors(folder / part, "diffusion_pytorch_model.safetensors", own)
        write_json(folder / part / "config.json", configs[part])
    write_json(folder / "scheduler" / "scheduler_config.json", configs["scheduler"])
    return folder


def write_parts(folder: Path) -> SimpleNamespace:
    """A text model, a vision tower and SDXL, as they are published; `weights` are the first one's."""
    config = {**originals.LANGUAGE, "vocab_size": 264, "tie_word_embeddings": True}
    model = originals.randomize(Qwen2ForCausalLM(Qwen2Config(**config)))
    weights = {key: value for key, value in model.state_dict().items() if key != "lm_head.weight"}
    write_tensors(folder / "qwen", "model.safetensors", weights)
    write_json(folder / "qwen" / "config.json", config)
    words(extended=False).save_pretrained(folder / "qwen")
    write_tensors(folder / "qwen-vl", "model.safetensors", originals.qwen2_vl_vision())
    write_json(folder / "qwen-vl" / "config.json", {"vision_config": {"num_heads": 2}})
    return SimpleNamespace(
        language_model=folder / "qwen",
        vision_tower=folder / "qwen-vl",
        sdxl=write_sdxl(folder / "sdxl"),
        weights=weights,
    )
