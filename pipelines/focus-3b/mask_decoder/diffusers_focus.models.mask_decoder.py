"""The class of this component, for `DiffusionPipeline`."""

from diffusers_focus.models.mask_decoder import FocusMaskDecoder  # noqa: F401
