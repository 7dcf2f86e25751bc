"""The denoising loop, a block a step (FOCUS section "Diffusion decoder with mask guidance").

A `LoopSequentialPipelineBlocks` (diffusers, Apache-2.0): predict, step, restore the background. A block of one's own goes in
between by `sub_blocks.insert`; it is called as `block(components, block_state, i=..., t=...)`.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.modular_pipelines.modular_pipeline import LoopSequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam

from ..processing.grids import decoded_size
from ..steps import denoise
from ..steps.arguments import check_given
from ._step import FocusStep, part_spec, read, require, write
from .before_denoise import guidance


class FocusLoopDenoiser(FocusStep):
    """Within the loop: the UNet with its guidance branches -> `predicted`."""

    about = "Predicts with the UNet, guided by the visual tokens and by the edit mask."
    parts = ("unet", "scheduler", "mask_conditioner", "image_processor")
    may_lack = ("mask_conditioner",)
    settings = ("resolution_group", "default_guidance_scale")
    reads = (
        read("latents", required=True),
        read("token_map", required=True),
        read("token_resolution", required=True),
        read("latent_mask"),
        read("prompt_embeds", required=True),
        read("negative_prompt_embeds", required=True),
        read("guidance_scale"),
        read("mask_guidance_scale"),
        read("cross_attention_kwargs"),
    )

    def __call__(self, components: Any, block_state: Any, i: int, t: torch.Tensor) -> tuple[Any, Any]:
        """One prediction."""
        config = components.config
        size = decoded_size(*block_state.token_resolution, components.image_processor.decode_scale)
        denoiser = denoise.Denoiser(
            components.unet,
            components.scheduler,
            denoise.resolution_index(config.resolution_group, *size),
            guidance(components, block_state),
            block_state.mask_guidance_scale,
            has_mask=block_state.latent_mask is not None and components.mask_conditioner is not None,
            cross_attention_kwargs=block_state.cross_attention_kwargs,
        )
        block_state.predicted = denoiser.predict(
            block_state.latents,
            t,
            block_state.token_map,
            block_state.prompt_embeds,
            block_state.negative_prompt_embeds,
        )
        return components, block_state


class FocusLoopScheduler(FocusStep):
    """Within the loop: one step of the scheduler -> `latents`."""

    about = "Takes the scheduler's step."
    parts = ("scheduler",)
    reads = (read("latents", required=True), read("eta"), read("generator"))
    writes = (write("latents"),)

    def __call__(self, components: Any, block_state: Any, i: int, t: torch.Tensor) -> tuple[Any, Any]:
        """One step."""
        arguments = denoise.step_arguments(components.scheduler, block_state.eta, block_state.generator)
        block_state.latents = denoise.advance(
            components.scheduler, block_state.predicted, t, block_state.latents, arguments
        )
        return components, block_state


class FocusLoopBackground(FocusStep):
    """Within the loop: outside the edit masks, the source at the noise level of the next step -> `latents`."""

    about = "Puts the source's latents back outside the edit masks."
    parts = ("scheduler",)
    reads = (read("latents", required=True), read("background"), read("timesteps", required=True))
    writes = (write("latents"),)

    def __call__(self, components: Any, block_state: Any, i: int, t: torch.Tensor) -> tuple[Any, Any]:
        """Restore it; a generation has none."""
        if block_state.background is not None:
            following = block_state.timesteps[i + 1] if i + 1 < len(block_state.timesteps) else None
            block_state.latents = block_state.background.restore(block_state.latents, components.scheduler, following)
        return components, block_state


class FocusDenoiseStep(LoopSequentialPipelineBlocks):
    """`latents` at the noise of the first of `timesteps` -> `latents` without noise."""

    block_classes = [FocusLoopDenoiser, FocusLoopScheduler, FocusLoopBackground]
    block_names = ["denoiser", "scheduler", "background"]

    @property
    def description(self) -> str:
        """What the loop does."""
        return (
            "Denoises the latents over the timesteps. Each step:\n"
            " - `denoiser`: the UNet predicts, with its guidance branches\n"
            " - `scheduler`: the scheduler steps\n"
            " - `background`: outside the edit masks the source comes back"
        )

    @property
    def loop_expected_components(self) -> list[ComponentSpec]:
        """The components of the loop itself."""
        return [part_spec("scheduler")]

    @property
    def loop_inputs(self) -> list[InputParam]:
        """What the loop itself reads."""
        return [read("timesteps", required=True)]

    @property
    def loop_intermediate_outputs(self) -> list[OutputParam]:
        """What the loop leaves."""
        return [write("latents")]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Run the loop; ValueError where a component is missing."""
        block_state = self.get_block_state(state)
        for block in self.sub_blocks.values():
            if isinstance(block, FocusStep):
                require(block, components)
        check_given(mask_guidance_scale=block_state.mask_guidance_scale, eta=block_state.eta)
        with self.progress_bar(total=len(block_state.timesteps)) as bar:
            for i, t in enumerate(block_state.timesteps):
                components, block_state = self.loop_step(components, block_state, i=i, t=t)
                bar.update()
        self.set_block_state(state, block_state)
        return components, state
