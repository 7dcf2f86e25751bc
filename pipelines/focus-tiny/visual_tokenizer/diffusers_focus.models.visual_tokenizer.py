"""The class of this component, for `DiffusionPipeline`."""

from diffusers_focus.models.visual_tokenizer import FocusVisualTokenizer  # noqa: F401
