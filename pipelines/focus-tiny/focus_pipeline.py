"""What `DiffusionPipeline.from_pretrained(..., custom_pipeline="focus_pipeline")` loads."""

from diffusers_focus import FocusPipeline  # noqa: F401
