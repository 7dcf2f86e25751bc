"""LoRA: a few small matrices beside a frozen component, for what the base does not know (arXiv 2106.09685, through peft).

The trainer, the objectives and the step's randomness are those of the stages (`trainer.py`); only the parameters differ: an
adapter is added to a component, and a recipe's groups name its matrices alone. Two objectives stand ready: a new colour word for
the language model (`ColourWordObjective`: the word in an instruction, the colour in the codes it writes), and stage 4's denoising
for the UNet.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.edits import Edit, sample_edit
from ..data.world import COLOURS, Scene, WorldObject
from .diffusion import DecoderObjective
from .language import LanguageObjective
from .trainer import Objective, ParameterGroup, StageRecipe, Trainer

TARGETS: dict[str, tuple[str, ...]] = {
    "language_model": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "unet": ("to_q", "to_k", "to_v", "to_out.0"),
}
"""Component -> the layers an adapter goes into."""

RECIPES: dict[str, StageRecipe] = {
    "language_model": StageRecipe(
        name="lora-language",
        objective="colour_word",
        groups=(ParameterGroup("language_model", 2e-3, include=("lora_",)),),
        steps=150,
        batch_size=2,
        warmup_steps=10,
        seed=31,
        log_every=10,
        options={
            "mixture": {
                "questions": 0,
                "referring": 0,
                "generalized": 0,
                "regions": 0,
                "edits": 3.0,
                "twins": 0.0,
            }
        },
    ),
    "unet": StageRecipe(
        name="lora-unet",
        objective="decoder",
        groups=(ParameterGroup("unet", 2e-3, include=("lora_",)),),
        steps=300,
        batch_size=8,
        warmup_steps=20,
        seed=32,
        options={"edits": 1.0, "semantic_drop": 0.3, "semantic_noise": 0.3, "pixel_drop": 0.05},
    ),
}
"""Component -> how its adapter is trained; about five minutes each on two cores for focus-tiny."""


class ColourWordObjective(LanguageObjective):
    """Edits whose instruction names a colour by a word of one's own, among ordinary ones.

    Args:
        components: as `LanguageObjective`.
        recipe: its options are `LanguageObjective`'s.
        word: what the colour is called.
        rgb: what it looks like, 0..255.
        share: share of the edits that use the word; the others keep what is known from being forgotten.
    """

    def __init__(
        self, components: Any, recipe: StageRecipe, word: str, rgb: tuple[int, int, int], share: float = 0.7
    ) -> None:
        super().__init__(components, recipe)
        if not word.strip() or word in COLOURS:
            raise ValueError(
                f"{word!r} cannot be learned as a new colour word: give a word that is none of {', '.join(COLOURS)}."
            )
        if len(rgb) != 3 or not all(0 <= value <= 255 for value in rgb):
            raise ValueError(f"A colour is three numbers from 0 to 255, got {rgb!r}.")
        self.word, self.rgb, self.share = word, rgb, share

    def draw_edit(self, scene: Scene, rng: np.random.Generator) -> Edit:
        """An ordinary edit, or "make ... <word>"."""
        if rng.random() >= self.share:
            return sample_edit(scene, rng)
        try:
            return colour_word_edit(scene, rng, self.word, self.rgb)
        except ValueError:  # a scene in which no object can be recoloured
            return sample_edit(scene, rng)


def coloured(item: WorldObject, rgb: tuple[int, int, int]) -> WorldObject:
    """The object in any colour: its named colour with the offset that makes it `rgb`."""
    own = COLOURS[item.colour]
    return replace(item, offset=(rgb[0] - own[0], rgb[1] - own[1], rgb[2] - own[2]))


def colour_word_edit(scene: Scene, rng: np.random.Generator, word: str, rgb: tuple[int, int, int]) -> Edit:
    """ "make <some object> <word>" with its truth; the object is referred to as in the world's own recolourings."""
    known = sample_edit(scene, rng, ("recolour",))
    index = known.targets[0]
    objects = list(scene.objects)
    objects[index] = coloured(objects[index], rgb)
    return replace(known, instruction=f"make {known.target_text} {word}", result=replace(scene, objects=tuple(objects)))


def add_adapter(model: Any, component: str, name: str, *, rank: int = 16, alpha: int | None = None) -> None:
    """Add a fresh LoRA adapter to a component; its output starts at zero, so the component's does not change yet.

    Args:
        model: the component.
        component: its name, a key of `TARGETS`.
        name: of the adapter, for `set_adapters` and the like.
        rank: inner width of its matrices.
        alpha: its output is multiplied by alpha / rank; the rank by default.

    Raises:
        ValueError: a component without LoRA targets, a rank below 1, or a missing peft.
    """
    if component not in TARGETS:
        raise ValueError(f"There are no LoRA targets for {component!r}; adapters go into {' or '.join(TARGETS)}.")
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}.")
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ValueError(
            "Training a LoRA needs peft, which is not installed: `pip install diffusers-focus[lora]`."
        ) from error
    config = LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=list(TARGETS[component]))
    model.add_adapter(config, adapter_name=name)


def build_lora_objective(
    components: Any, component: str, recipe: StageRecipe, *, word: str | None = None, rgb: Any = None
) -> Objective:
    """What the adapter of a component learns from; a language model needs the `word` and its colour."""
    if component == "unet":
        return DecoderObjective(components, recipe)
    if word is None or rgb is None:
        raise ValueError("An adapter of the language model learns a colour word: pass word and rgb.")
    return ColourWordObjective(components, recipe, word, tuple(rgb))


def train_lora(
    components: Any,
    component: str,
    output_dir: str | Path,
    *,
    name: str = "default",
    rank: int = 16,
    word: str | None = None,
    rgb: tuple[int, int, int] | None = None,
    recipe: StageRecipe | None = None,
    max_minutes: float | None = None,
    progress: bool = True,
) -> bool:
    """Train an adapter named `name` in one component of a pipeline (or of any object with its components).

    Args:
        components: a pipeline; everything but the adapter stays as it is.
        component: "language_model" or "unet".
        output_dir: folder of checkpoint, log and plot; a later call goes on where it stopped.
        name, rank: see `add_adapter`.
        word, rgb: see `ColourWordObjective`; for the language model.
        recipe: in place of `RECIPES[component]`.
        max_minutes: stop after that time.

    Returns:
        Whether the recipe's last step was reached. The adapter is in the component either way, active and in eval mode.
    """
    recipe = recipe or RECIPES[component]
    objective = build_lora_objective(components, component, recipe, word=word, rgb=rgb)
    add_adapter(getattr(components, component), component, name, rank=rank)
    trainer = Trainer(recipe, objective, output_dir)
    done = trainer.run(max_minutes=max_minutes, progress=progress)
    for module in trainer.modules.values():
        module.eval().requires_grad_(False)
    return done
