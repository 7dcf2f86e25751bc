"""The class of this component, for `DiffusionPipeline`."""

from diffusers_focus.models.vision_encoder import FocusVisionEncoder  # noqa: F401
