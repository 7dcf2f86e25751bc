"""The class of this component, for `DiffusionPipeline`."""

from diffusers_focus.processing.images import FocusImageProcessor  # noqa: F401
