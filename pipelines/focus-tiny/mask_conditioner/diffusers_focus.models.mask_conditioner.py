"""The class of this component, for `DiffusionPipeline`."""

from diffusers_focus.models.mask_conditioner import FocusMaskConditioner  # noqa: F401
