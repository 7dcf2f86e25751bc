"""Teach a converted ILLUME+ to segment, on one GPU: query adapter, region pooler, mask decoder, and LoRA in the language model.

Command:   diffusers-focus convert illume-plus ... --hierarchical originals/convnext --mask-decoder originals/mask2former \\
               --output pipelines/start                        (conversion/README.md)
           diffusers-focus data refcoco --from refer --to data/refcoco        (docs/training.md; others alike)
           python recipes/segment_illume.py --pipeline pipelines/start --data data/refcoco:2,data/coco-interactive:1 \\
               --runs runs/segment-3b --output pipelines/segment-3b
           accelerate launch --num_processes 2 recipes/segment_illume.py ...  (shares every step)
Hardware:  one GPU. At 3B, counted: 6.2 GiB of the language model in bfloat16, 6.1 GiB of vision encoder, visual tokenizer and mask
           decoder in float32, 1.3 GiB of gradients and moments (112 million trained parameters at rank 16). Activations come on
           top and have not been measured, no GPU was at hand: the prefix of an image of 512 x 512 pixels is 1,500 tokens, whose
           activations LoRA keeps through all 36 layers. Begin with --batch-size 2.
Hours:     not measured. The default is 20,000 steps of 16 pictures; InstructSeg trains 100,000 with LoRA of rank 8.
Expected:  not measured; the rates are not tuned. What is known: it runs from end to end at reduced width on a CPU, where a tiny
           pipeline of random weights without queries becomes one that segments (tests/training/test_segment_recipe.py).

What is new in the model (query tokens, region slots) begins at random; prompts are the paper's. Frozen: ViT, ConvNeXt, fusion,
projectors, visual tokenizer, UNet, VAE. With `--language-model frozen` the names before masks and the mask trigger cannot be
learned: masks come all the same, but how many objects are meant is then told by scores alone.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

NEW_PARTS = ("query_adapter", "region_pooler")
RATES = {"mask_decoder": 1e-4, "adapters": 2e-4, "lora": 1e-4}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", required=True, metavar="DIR", help="the converted pipeline, with a mask decoder")
    parser.add_argument("--data", required=True, metavar="DIR[:WEIGHT],...", help="folders of samples or shards")
    parser.add_argument(
        "--runs", default="runs/segment-3b", metavar="DIR", help="checkpoint and log (default: %(default)s)"
    )
    parser.add_argument("--output", default="pipelines/segment-3b", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--language-model", choices=("lora", "frozen"), default="lora", help="default: %(default)s")
    parser.add_argument("--rank", type=int, default=16, metavar="R", help="of LoRA (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=128, metavar="N", help="query tokens (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20000, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="pictures a step (default: %(default)s)"
    )
    parser.add_argument("--max-minutes", type=float, metavar="M", help="stop and save after this long")
    return parser.parse_args()


def prepare(pipe: Any, queries: int, seed: int = 0) -> None:
    """Give a pipeline what segmentation needs and the original has not: query tokens, region slots, the paper's prompts."""
    import torch

    from diffusers_focus import FocusVisionEncoder

    if pipe.mask_decoder is None:
        raise ValueError("The pipeline has no mask decoder; convert it with --hierarchical and --mask-decoder.")
    old = pipe.vision_encoder
    if old.config.num_query_tokens != queries or not old.config.region_slots:
        torch.manual_seed(seed)
        config = {k: v for k, v in old.config.items() if not k.startswith("_")}
        new = FocusVisionEncoder(**config | {"num_query_tokens": queries, "region_slots": True}).to(old.dtype)
        unexpected = new.load_state_dict(old.state_dict(), strict=False).unexpected_keys
        if unexpected:
            raise ValueError(
                f"{len(unexpected)} weights have no place in the new encoder, the first {unexpected[0]!r}."
            )
        pipe.register_modules(vision_encoder=new.eval())
    pipe.image_processor.prompt_style = "focus"


def recipe_of(args: argparse.Namespace) -> Any:
    """The stage: what is trained, for how long, from which samples."""
    from diffusers_focus.data.sources import parse_sources
    from diffusers_focus.training.trainer import ParameterGroup, StageRecipe

    groups = (
        ParameterGroup("mask_decoder", RATES["mask_decoder"]),
        ParameterGroup("vision_encoder", RATES["adapters"], include=NEW_PARTS),
    )
    if args.language_model == "lora":
        groups += (ParameterGroup("language_model", RATES["lora"], include=("lora_",)),)
    return StageRecipe(
        name="segment",
        objective="language",
        groups=groups,
        steps=args.steps,
        batch_size=args.batch_size,
        warmup_steps=min(500, args.steps // 10 + 1),
        decay_fraction=0.3,
        seed=41,
        save_every_minutes=20.0,
        options={"data": parse_sources(args.data), "prompts": 8, "mixture": {"name_noise": 0.5, "dropout": 0.1}},
    )


def merge_adapter(language_model: Any) -> None:
    """Put an adapter's changes into the weights and take its layers out: a stock model again."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(language_model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            parent, _, own = name.rpartition(".")
            setattr(language_model.get_submodule(parent), own, layer.get_base_layer())
    language_model._hf_peft_config_loaded = False
    language_model.peft_config = {}


def main() -> None:
    """Train, and write the pipeline when the last step is done."""
    args = arguments()
    import torch

    from diffusers_focus import FocusPipeline
    from diffusers_focus.training.language import LanguageObjective
    from diffusers_focus.training.lora import add_adapter
    from diffusers_focus.training.trainer import Trainer, share_of

    pipe = FocusPipeline.from_pretrained(args.pipeline)
    prepare(pipe, args.queries)
    if torch.cuda.is_available():
        pipe.language_model.to(torch.bfloat16)  # it is most of the memory, and stands still but for the adapter
    recipe = recipe_of(args)
    objective = LanguageObjective(pipe, share_of(recipe))
    if args.language_model == "lora":
        torch.manual_seed(recipe.seed)
        add_adapter(pipe.language_model, "language_model", "segment", rank=args.rank)
    trainer = Trainer(replace(recipe), objective, Path(args.runs))
    done = trainer.run(max_minutes=args.max_minutes)
    for name, reason in objective.samples.stream.skipped.reasons.items():
        print(f"left out {name}: {reason}")
    if not trainer.accelerator.is_main_process:
        return
    if not done:
        print(f"stopped at step {trainer.step} of {recipe.steps}; the same command goes on")
        return
    for module in trainer.modules.values():
        module.eval().requires_grad_(False)
    if args.language_model == "lora":
        merge_adapter(pipe.language_model)
    pipe.register_to_config(masks_trained=True)
    pipe.to("cpu").save_pretrained(args.output)
    print(args.output)


if __name__ == "__main__":
    main()
