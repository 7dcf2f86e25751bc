"""Write `pipelines/focus-3b`: the configurations of every component at the paper's size, no weights.

Command:   python recipes/focus_3b.py
Hardware:  any; the models are made on the meta device and take no memory.
Result:    model_index.json and <component>/config.json. The tokenizer's files come with the source checkpoint.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

CARD = """\
---
library_name: diffusers
pipeline_tag: image-to-image
license: apache-2.0
tags:
- diffusers-focus
---

# focus-3b

Configurations of FOCUS at the paper's size ([arXiv 2506.16806](https://arxiv.org/abs/2506.16806)).
There are no weights in this folder; the authors have released none. Parameters, counted on the meta device:

| component | class | parameters |
|---|---|---|
{rows}

The language model's tokenizer comes with the checkpoint that is converted.
"""


def main() -> None:
    """Write the folder."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from diffusers_focus import FocusPipeline
    from diffusers_focus.checkpoints.layout import modular_index
    from diffusers_focus.checkpoints.variants import PUBLISHED_3B
    from diffusers_focus.sharing.loaders import loader_files
    from diffusers_focus.training.components import CLASSES, tiny_tokenizer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", metavar="DIR", default=str(ROOT / "pipelines" / "focus-3b"))
    folder = Path(parser.parse_args().output)
    parts, rows = {}, []
    for name, config in PUBLISHED_3B.items():
        with torch.device("meta" if issubclass(CLASSES[name], torch.nn.Module) else "cpu"):
            settings = Qwen2Config(**config) if name == "language_model" else None
            parts[name] = Qwen2ForCausalLM(settings) if settings is not None else CLASSES[name](**config)
    for name, part in parts.items():
        target = folder / name
        if isinstance(part, torch.nn.Module):
            if name == "language_model":
                part.config.save_pretrained(target)
            else:
                part.save_config(target)
            count = sum(p.numel() for p in part.parameters())
            rows.append(f"| {name} | `{type(part).__name__}` | {count / 1e6:,.0f}M |")
        else:
            part.save_pretrained(target)
    FocusPipeline(**parts, lm_tokenizer=tiny_tokenizer()).save_config(folder)
    index = modular_index(json.loads((folder / "model_index.json").read_text()))
    (folder / "modular_model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    for path, text in loader_files(json.loads((folder / "model_index.json").read_text())).items():
        (folder / path).write_text(text)
    (folder / "README.md").write_text(CARD.format(rows="\n".join(rows)))
    print(folder)


if __name__ == "__main__":
    main()
