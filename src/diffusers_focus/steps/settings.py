"""Settings of a pipeline that are no argument of a call: what a checkpoint was trained for, and its own defaults.

They stand in model_index.json and modular_model_index.json. `FocusSegmentEditPipeline.__init__` has the same names and defaults;
a test holds the two against each other.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol


class Settings(Protocol):
    """What the steps read of a pipeline's `config`."""

    resolution_group: list[list[int]]
    score_threshold: float
    fallback_threshold: float
    duplicate_iou: float
    presence_threshold: float
    calibration: dict[str, Any] | None
    mask_refinement: float
    mask_dilation: float
    mask_feather: float
    masks_trained: bool
    classes_trained: bool
    caption_classes: str | None
    caption_count: str | None
    edit_masks_trained: bool
    instances_trained: bool
    edit_regions_trained: bool
    instruction_phrases: bool
    edit_without_mask: bool
    description_sketch: dict[str, Any] | None
    images_trained: bool
    num_text_tokens: int
    default_num_inference_steps: int
    default_guidance_scale: float
    default_token_guidance_scale: float
    kept_outline_token_guidance_scale: float | None
    default_temperature: float
    default_top_k: int
    default_top_p: float
    pixel_code_sharpness: float


class Setting(NamedTuple):
    """The default of a setting, and what it means."""

    default: Any
    meaning: str


# [width, height] of the sizes that the original UNet's resolution index stands for, in its order.
RESOLUTION_GROUP = (
    (1024, 1024), (768, 1024), (1024, 768), (512, 2048), (2048, 512), (640, 1920), (1920, 640), (768, 1536), (1536, 768),
    (768, 1152), (1152, 768), (512, 512),
)  # fmt: skip

SETTINGS: dict[str, Setting] = {
    "resolution_group": Setting(
        [list(size) for size in RESOLUTION_GROUP],
        "[width, height] of the sizes the UNet was trained on; the place in the list is its condition.",
    ),
    "score_threshold": Setting(0.5, "Least score of an object where no name was written."),
    "fallback_threshold": Setting(0.3, "Least score of an object the model wrote a name for."),
    "duplicate_iou": Setting(0.7, "Of two objects that overlap by more than this the better one stays."),
    "presence_threshold": Setting(
        0.0, "Least presence of what words mean; below it nothing is found. 0 leaves that to the word the model writes."
    ),
    "calibration": Setting(
        None,
        "The maps from logits to scores, qualities and presence, from `diffusers-focus calibrate`; None is plain sigmoids.",
    ),
    "mask_refinement": Setting(
        0.0,
        "Reach of the outlines' search for the image's edges, in cells of the mask decoder's grid; 0 leaves them as they are.",
    ),
    "mask_dilation": Setting(0.02, "Growth of a referred mask into an edit mask, as a share of the shorter side."),
    "mask_feather": Setting(0.02, "Reach of the soft edge of an edit, likewise."),
    "masks_trained": Setting(True, "Whether the mask decoder was trained with this language model."),
    "classes_trained": Setting(
        True, "Whether the language model knows lists of names; without, each name is asked by itself."
    ),
    "caption_classes": Setting(
        None,
        "Names, with commas between, of what is looked for where a caption is asked for: each object found is asked about, from "
        "left to right. None describes the image as a whole.",
    ),
    "caption_count": Setting(
        None,
        "The question for the number of objects, asked before: as many of those found are asked about. None goes by their scores.",
    ),
    "edit_masks_trained": Setting(True, "Whether the mask decoder's edit masks can be used."),
    "instances_trained": Setting(
        False,
        "Whether instance embeddings tell objects apart; without, features under the masks link the frames of a clip.",
    ),
    "edit_regions_trained": Setting(False, "Whether the language model knows edit prompts with regions in them."),
    "instruction_phrases": Setting(
        False,
        "Whether the object of an instruction is looked for by its own words too; where the two readings differ, these count.",
    ),
    "edit_without_mask": Setting(False, "Whether an instruction that finds nothing edits the whole image."),
    "description_sketch": Setting(
        None,
        "How the objects of a description are sketched, each of which is then drawn as an edit; see `steps.sketch.SketchStyle`. "
        "None draws in one go.",
    ),
    "images_trained": Setting(True, "Whether the language model was trained to write images."),
    "num_text_tokens": Setting(77, "Zero rows in front of the UNet's sequence, where SDXL has its text."),
    "default_num_inference_steps": Setting(50, "Denoising steps unless a call says otherwise."),
    "default_guidance_scale": Setting(2.0, "Guidance over the visual tokens, likewise."),
    "default_token_guidance_scale": Setting(
        2.0, "Guidance of the language model when it writes visual tokens, likewise."
    ),
    "kept_outline_token_guidance_scale": Setting(
        None, "The same for edits after which an object has the outline it had; None takes the other."
    ),
    "default_temperature": Setting(1.0, "Temperature of visual tokens, likewise."),
    "default_top_k": Setting(2048, "Semantic tokens to draw from, likewise; pixel tokens get three times as many."),
    "default_top_p": Setting(1.0, "Probability to draw visual tokens from, likewise."),
    "pixel_code_sharpness": Setting(
        0.0,
        "Above 0, pixel tokens at temperature 0 are those nearest to the mean of what could be written, odds raised to this power.",
    ),
}
