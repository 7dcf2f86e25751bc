"""FOCUS's progressive stages as frozen recipes: what is trained, what is frozen, losses, rates, lengths (paper section 3).

`STAGES` are the runs that make focus-tiny, in order; 3 takes an hour and a half on two cores, 3-guided two hours, 3-all two hours
on one (in parts, as they may be stopped at any time), 3-drawn and 3-redrawn six minutes of a GPU each, others an hour at most.
`PAPER_STAGES` are the paper's own numbers for the 3B model, as far as it states them. What differs at tiny size and why:
docs/design.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from .autoencoder import AutoencoderObjective
from .diffusion import DecoderObjective
from .features import FeatureObjective
from .growth import grow_language_model, with_outlines
from .initialize import initialize_anchors
from .language import LanguageObjective
from .perception import PerceptionObjective
from .tokenizer import JointTokenizerObjective, PixelTokenizerObjective, SemanticTokenizerObjective
from .trainer import CHECKPOINT, Objective, ParameterGroup, StageRecipe

ADAPTERS = ("query_adapter", "vision_projector", "pixel_projector", "region_pooler")
TOKEN_SCALES = ("vision_projector.2", "pixel_projector.2", "query_adapter.projection", "region_pooler.mlp.3")
"""The adapters' last layers, which `match_token_scale` makes a hundred times smaller: their rates are as much smaller."""
# One step each of what relations take in two: left to yes and no alone, they stayed at chance for 1,500 steps.
LESSONS = ("count", "count_attribute", "exists", "colour", "shape", "region", "caption", "extreme")
LESSONS += 2 * ("relation", "side") + 4 * ("place",)
WORDS = {"question_kinds": LESSONS, "questions": 24, "referring": 0, "generalized": 0, "regions": 0, "twins": 0.05}
# Nothing but places, until relations follow from them: among everything else they are asked too seldom to be learnt.
PLACES = ("extreme", *2 * ("relation", "side"), *3 * ("place",))
EVERYTHING = {
    "question_kinds": LESSONS,
    "questions": 24,
    "referring": 1,
    "generalized": 1,
    "regions": 1,
    "edit_masks": 1,
    "edits": 5.0,
    "wordings": 2,
    "history_noise": 0.7,  # without it the new colour is read off the cell before, never from the instruction
    "generations": 0.05,
    "twins": 0.25,
}
# Prompts that fewer tasks ask for: lists of names, several clicks, expressions whose answer explains itself.
SEEING = {"regions": 2, "classes": 1, "strokes": 0.3, "explained": 0.3}
# The names that stand before masks, asked as questions are.
NAMES = {**WORDS, "question_kinds": LESSONS + 2 * ("relation",), "questions": 12, "naming": 24}
# Many expressions of each picture, those most of all whose masks are found least although their questions are answered.
FOUND = {
    **EVERYTHING,
    **SEEING,
    "question_kinds": LESSONS + 2 * ("relation",),
    "questions": 8,
    "naming": 6,
    "name_noise": 0.25,  # names are mostly right by now, and worth reading
    "referring": 3,
    "often": ("extreme", "extreme", "relation"),
    "edit_masks": 2,
    "edits": 4.0,
    "wordings": 1,
}
# Edits most of all, now that the mask guides their tokens; captions and counts, which are known least; nothing where nothing is.
GUIDED = {
    **FOUND,
    "question_kinds": LESSONS + 2 * ("relation", "caption") + ("count", "count_attribute"),
    "naming": 3,
    "referring": 2,
    "generalized": 2,
    "edit_masks": 1,
    "wordings": 2,
}
# Pictures from descriptions, which nothing before had more than a few of; all the rest goes on, in a larger language model. Edits
# are mostly those that draw an object: removals and backgrounds come out already.
DRAWN = {
    **GUIDED,
    "question_kinds": GUIDED["question_kinds"] + 2 * ("caption",),
    "generations": 1.0,
    "edits": 3.0,
    "edit_kinds": ("remove", "background", *2 * ("recolour", "fill", "resize"), *3 * ("replace", "reshape")),
}
# The same, of other pictures: edits and places once more. Captions and descriptions are put together object by object since, so
# none in one go; what is said of a pointed-at object in their place.
REDRAWN = {
    **DRAWN,
    "question_kinds": LESSONS + 2 * ("relation", "region") + ("count", "count_attribute"),
    "generations": 0.0,
    "edits": 4.0,
    "edit_masks": 2,
    "edit_kinds": ("remove", "background", *2 * ("recolour", "fill"), *3 * ("replace", "reshape", "resize")),
}
# Where the mask guides the visual tokens, which converted originals do not have.
GUIDANCE = ParameterGroup("mask_conditioner", 1e-3, include=("cell_guidance",), optional=True)
# Pairs of frames alone, for the head that stage 3 leaves as it was (its mixture has no clips).
FRAMES = {"questions": 0, "referring": 1, "generalized": 0, "regions": 1, "twins": 0.15, "clips": 1.0}


def _reading(rate: float) -> tuple[ParameterGroup, ...]:
    """The language model and the adapters: its matrices turn with Muon; the rest of it and the adapters follow AdamW."""
    return (
        ParameterGroup("language_model", 2 * rate, include=("_proj.weight",), optimizer="muon"),
        ParameterGroup("language_model", rate),
        ParameterGroup("vision_encoder", 0.03 * rate, include=TOKEN_SCALES),
        ParameterGroup("vision_encoder", rate, include=ADAPTERS),
    )


STAGES: dict[str, StageRecipe] = {
    recipe.name: recipe
    for recipe in (
        StageRecipe(
            name="0-vae",
            objective="autoencoder",
            groups=(ParameterGroup("vae", 1e-3),),
            steps=3200,
            batch_size=16,
            warmup_steps=50,
            decay_fraction=0.4,
            seed=1,
            options={"crop": 64},
        ),
        StageRecipe(
            name="0-features",
            objective="features",
            groups=(
                ParameterGroup("vision_encoder", 4e-3, include=("pyramid", "region_pooler", "vit", "fusion")),
                ParameterGroup("mask_decoder", 4e-3, include=("pixel_decoder",)),
                ParameterGroup("heads", 4e-3),
            ),
            steps=2400,
            batch_size=8,
            decay_fraction=0.3,
            seed=21,
        ),
        StageRecipe(
            name="0-encoders",
            objective="perception",
            groups=(
                ParameterGroup("vision_encoder", 6e-4, include=("pyramid",)),
                ParameterGroup("vision_encoder", 1.5e-3, exclude=("pyramid",)),
                ParameterGroup("mask_decoder", 1.5e-3),
                ParameterGroup("heads", 1.5e-3),
            ),
            steps=2800,
            batch_size=8,
            decay_fraction=0.4,
            seed=2,
            options={"twins": 0.2},
        ),
        StageRecipe(
            name="1a-pixel",
            objective="pixel_tokenizer",
            groups=(ParameterGroup("visual_tokenizer", 2e-3, include=("pixel_",)),),
            steps=5000,
            batch_size=8,
            decay_fraction=0.4,
            seed=3,
            options={"crop": 64},
        ),
        StageRecipe(
            name="2",
            objective="language",
            groups=_reading(1e-3),
            steps=1860,
            batch_size=8,
            decay_fraction=0.1,
            seed=6,
            options={"mixture": WORDS, "pixel_tokens": False, "match_scale": True},
        ),
        StageRecipe(
            name="1a-semantic",
            objective="semantic_tokenizer",
            groups=(ParameterGroup("visual_tokenizer", 1e-3, include=("semantic_",)),),
            steps=600,
            batch_size=16,
            decay_fraction=0.4,
            seed=4,
        ),
        StageRecipe(
            name="1b",
            objective="decoder",
            groups=(ParameterGroup("unet", 8e-4),),
            steps=4000,
            batch_size=8,
            seed=7,
            ema_decay=0.995,
            options={"semantic_drop": 1.0, "pixel_drop": 0.05},
        ),
        StageRecipe(
            name="3",
            objective="language",
            groups=(*_reading(5e-4), ParameterGroup("mask_decoder", 2e-4), GUIDANCE),
            steps=3000,
            batch_size=4,
            decay_fraction=0.35,
            seed=18,
            options={"mixture": EVERYTHING, "masks_every": 3, "initialize_codes": True},
        ),
        StageRecipe(
            name="3-places",
            objective="language",
            groups=_reading(1e-3),
            steps=1400,
            batch_size=8,
            decay_fraction=0.0,
            warmup_steps=30,
            seed=42,
            options={"mixture": {**WORDS, "question_kinds": PLACES}, "pixel_tokens": False, "keep_codes": True},
        ),
        StageRecipe(
            name="3-all",
            objective="language",
            groups=(*_reading(4e-4), ParameterGroup("mask_decoder", 1.5e-4), GUIDANCE),
            steps=2400,
            batch_size=4,
            decay_fraction=0.6,
            warmup_steps=30,
            seed=19,
            options={
                "mixture": {**EVERYTHING, **SEEING, "question_kinds": LESSONS + 2 * ("relation",)},
                "masks_every": 3,
            },
        ),
        StageRecipe(
            name="3-names",
            objective="language",
            groups=_reading(1e-3),
            steps=1400,
            batch_size=8,
            decay_fraction=0.2,
            warmup_steps=30,
            seed=61,
            options={"mixture": NAMES, "pixel_tokens": False, "keep_codes": True},
        ),
        StageRecipe(
            name="3-found",
            objective="language",
            groups=(
                *_reading(4e-4),
                # The answer's part of a condition begins at zero.
                ParameterGroup("mask_decoder", 8e-4, include=("answer_projection", "condition_projection")),
                ParameterGroup("mask_decoder", 1.5e-4),
                GUIDANCE,
            ),
            steps=800,
            batch_size=8,
            decay_fraction=0.6,
            warmup_steps=30,
            seed=53,
            options={"mixture": FOUND, "masks_every": 2},
        ),
        StageRecipe(
            name="3-guided",
            objective="language",
            groups=(*_reading(4e-4), ParameterGroup("mask_decoder", 1.5e-4), replace(GUIDANCE, learning_rate=2e-3)),
            steps=1200,
            batch_size=8,
            decay_fraction=0.6,
            warmup_steps=30,
            seed=71,
            options={"mixture": GUIDED, "masks_every": 3, "vectors": 2.0},
        ),
        StageRecipe(
            name="3-drawn",
            objective="language",
            groups=(*_reading(1e-3), ParameterGroup("mask_decoder", 3e-4), replace(GUIDANCE, learning_rate=2e-3)),
            steps=262,
            batch_size=168,
            decay_fraction=0.58,
            warmup_steps=30,
            seed=79,
            options={
                "mixture": DRAWN,
                "masks_every": 4,
                "vectors": 2.0,
                "pictures_at_once": 8,
                "grow": {"num_hidden_layers": 8, "intermediate_size": 1024},
                "outline_dim": 192,
            },
        ),
        StageRecipe(
            name="3-redrawn",
            objective="language",
            groups=(*_reading(7e-4), ParameterGroup("mask_decoder", 2e-4), replace(GUIDANCE, learning_rate=1.4e-3)),
            steps=233,
            batch_size=168,
            decay_fraction=0.58,
            warmup_steps=30,
            seed=83,
            options={"mixture": REDRAWN, "masks_every": 4, "vectors": 2.0, "pictures_at_once": 8},
        ),
        StageRecipe(
            name="3-identities",
            objective="language",
            groups=(ParameterGroup("mask_decoder", 2e-3, include=("instance_head",)),),
            steps=200,
            batch_size=8,
            warmup_steps=20,
            decay_fraction=0.4,
            seed=31,
            options={"mixture": FRAMES},
        ),
        StageRecipe(
            name="4",
            objective="decoder",
            groups=(ParameterGroup("unet", 5e-4), ParameterGroup("mask_conditioner", 1e-3, exclude=("cell_guidance",))),
            steps=1000,
            batch_size=8,
            seed=9,
            ema_decay=0.99,
            options={"edits": 1.0, "semantic_drop": 0.3, "semantic_noise": 0.3, "pixel_drop": 0.05},
        ),
    )
}


@dataclass(frozen=True)
class PaperStage:
    """A row of the paper's training table for the 3B model: parameter groups, samples a step, steps or epochs, side lengths."""

    trains: tuple[str, ...]
    frozen: tuple[str, ...]
    learning_rates: tuple[tuple[str, float], ...]
    batch_size: int
    length: str
    resolutions: tuple[int, ...]
    losses: tuple[str, ...]


PAPER_STAGES: dict[str, PaperStage] = {
    "1a": PaperStage(
        ("pixel encoder", "quantisers", "semantic decoder", "pixel decoder"),
        ("ViT", "ConvNeXt"),
        (("semantic", 1e-4), ("pixel", 2e-4)),
        256,
        "136k / 28k steps",
        (256, 512),
        ("cosine", "L1", "perceptual", "adversarial", "SimVQ"),
    ),
    "1b": PaperStage(
        ("unet",), ("encoders", "codebooks"), (("unet", 2e-5),), 128, "220k-265k steps", (512, 1024), ("L2 denoising",)
    ),
    "2": PaperStage(
        ("projectors", "queries", "gated cross-attention"),
        ("encoders", "language model", "mask predictor", "unet"),
        (("adapters", 1e-3),),
        512,
        "1 epoch",
        (256,),
        ("cross-entropy",),
    ),
    "3": PaperStage(
        ("language model", "adapters", "mask predictor"),
        ("unet",),
        (("language model", 2e-5), ("mask predictor", 1e-3)),
        256,
        "1 epoch at 256, 2 at 512",
        (256, 512),
        ("cross-entropy", "Dice", "BCE", "reconstruction"),
    ),
    "4": PaperStage(
        ("language model", "mask predictor", "unet cross-attention"),
        ("encoders", "tokenizer", "VAE"),
        (("language model", 2e-5), ("mask predictor", 2e-6), ("unet", 2e-6)),
        256,
        "1 epoch",
        (512, 1024),
        ("cross-entropy", "Dice", "BCE", "L2 denoising"),
    ),
}

NEEDS: dict[str, tuple[str, ...]] = {
    "autoencoder": ("vae",),
    "features": ("vision_encoder", "mask_decoder", "image_processor"),
    "perception": ("vision_encoder", "mask_decoder", "image_processor"),
    "pixel_tokenizer": ("visual_tokenizer",),
    "joint_tokenizer": ("visual_tokenizer", "vision_encoder", "image_processor"),
    "semantic_tokenizer": ("visual_tokenizer", "vision_encoder", "image_processor"),
    "language": (
        "vision_encoder",
        "language_model",
        "lm_tokenizer",
        "visual_tokenizer",
        "mask_decoder",
        "mask_conditioner",
        "image_processor",
    ),
    "decoder": (
        "unet",
        "vae",
        "scheduler",
        "visual_tokenizer",
        "vision_encoder",
        "image_processor",
        "mask_conditioner",
    ),
}
"""Objective -> components it is built from."""


def get_stage(name: str) -> StageRecipe:
    """The recipe of that name. Raises ValueError where there is none."""
    if name not in STAGES:
        raise ValueError(f"there is no stage {name!r}; choose one of {', '.join(STAGES)}")
    return STAGES[name]


def build_objective(recipe: StageRecipe, components: Any, root: str | Path) -> Objective:
    """The objective of a recipe on loaded components (attributes named in `NEEDS`).

    Args:
        root: the training folder: a dense part goes on with the heads of the stage before it found there.
    """
    size = (recipe.options.get("size", 128),) * 2
    c = components
    sizes: dict[str, Any] = {}
    if hasattr(c, "image_processor"):
        sizes = {"low_size": c.image_processor.low_size(*size), "high_size": c.image_processor.high_size(*size)}

    def perception() -> PerceptionObjective:
        return PerceptionObjective(c.vision_encoder, c.mask_decoder, recipe, **sizes)

    def continued(stage: str) -> PerceptionObjective:
        """With the heads of an earlier stage, as far as it had them."""
        dense = perception()
        weights = Path(root) / "stages" / stage / CHECKPOINT / "weights.safetensors"
        if weights.exists():
            kept = dense.heads.state_dict()
            earlier = {k.removeprefix("heads."): v for k, v in load_file(weights).items() if k.startswith("heads.")}
            kept.update({k: v for k, v in earlier.items() if k in kept and v.shape == kept[k].shape})
            dense.heads.load_state_dict(kept)
        return dense

    def first_perception() -> PerceptionObjective:
        initialize_anchors(c.vision_encoder, c.mask_decoder)
        first = continued("0-features")
        first.calibrate_places()
        return first

    def language() -> LanguageObjective:
        if recipe.options.get("grow"):
            c.language_model = grow_language_model(c.language_model, seed=recipe.seed, **recipe.options["grow"])
        if recipe.options.get("outline_dim"):
            c.mask_conditioner = with_outlines(c.mask_conditioner, recipe.options["outline_dim"], seed=recipe.seed)
        return LanguageObjective(c, recipe)

    builders: dict[str, Callable[[], Any]] = {
        "autoencoder": lambda: AutoencoderObjective(c.vae, recipe),
        "features": lambda: FeatureObjective(c.vision_encoder, c.mask_decoder, recipe, **sizes),
        "perception": first_perception,
        "pixel_tokenizer": lambda: PixelTokenizerObjective(c.visual_tokenizer, recipe),
        "joint_tokenizer": lambda: JointTokenizerObjective(
            c.visual_tokenizer, recipe, vision_encoder=c.vision_encoder, **sizes
        ),
        "semantic_tokenizer": lambda: SemanticTokenizerObjective(c.visual_tokenizer, c.vision_encoder, recipe, **sizes),
        "language": language,
        "decoder": lambda: DecoderObjective(c, recipe),
    }
    if recipe.objective not in builders:
        raise ValueError(
            f"recipe {recipe.name!r} has objective {recipe.objective!r}; choose one of {', '.join(builders)}"
        )
    return builders[recipe.objective]()
