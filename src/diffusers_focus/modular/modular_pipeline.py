"""`FocusModularPipeline`: a `ModularPipeline` that runs blocks of FOCUS and knows how its checkpoints are loaded.

What it adds to diffusers' class (Apache-2.0): `FocusBlocks` by default (diffusers looks default blocks up in its own package
only), one precision for all parts, folders that say nothing of where they lie, and a card of our own on the Hub.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import torch
from diffusers.modular_pipelines.components_manager import ComponentsManager
from diffusers.modular_pipelines.modular_pipeline import (
    MODULAR_PIPELINE_MAPPING,
    ModularPipeline,
    ModularPipelineBlocks,
    PipelineState,
)

from ..checkpoints.layout import modular_index
from ..sharing.publish import FocusHubMixin
from ..steps.arguments import check_count, check_numbers, check_output_type, check_strength
from ..steps.fit import check_fit
from .modular_blocks import WORKFLOWS, FocusBlocks


class FocusModularPipeline(FocusHubMixin, ModularPipeline):
    """FOCUS put together from blocks.

    Args:
        blocks: the blocks to run; by default those the folder's index names, else `FocusBlocks`.
        pretrained_model_name_or_path: folder or Hub id with a modular_model_index.json or, failing that, a model_index.json.
        components_manager, collection: where components are kept and shared between pipelines.
        workflow: "ask", "segment", "edit" or "generate": only the blocks and components of that one.
        kwargs: of `ModularPipeline`: `revision`, `token`, `cache_dir`, ...

    Example:
        ```python
        pipe = FocusModularPipeline.from_pretrained("pipelines/focus-tiny")
        pipe.load_components()
        pipe(image=image, question="how many objects are there?", output="text")
        pipe(image=image, target="the red circle", output="masks")
        pipe(image=image, prompt="remove the red circle", output="images")
        pipe(prompt="a red circle and a blue star", output="images")
        ```
    """

    default_blocks_name = "FocusBlocks"

    def __init__(
        self,
        blocks: ModularPipelineBlocks | None = None,
        pretrained_model_name_or_path: str | os.PathLike | None = None,
        components_manager: ComponentsManager | None = None,
        collection: str | None = None,
        workflow: str | None = None,
        modular_config_dict: dict[str, Any] | None = None,
        config_dict: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if modular_config_dict is not None or config_dict is not None:  # from diffusers' own from_pretrained
            here = os.fspath(pretrained_model_name_or_path or "")
            modular_config_dict, config_dict = _index_of(modular_config_dict, config_dict, here), None
        if blocks is None:
            blocks = WORKFLOWS.get((modular_config_dict or {}).get("_blocks_class_name", ""), FocusBlocks)()
        super().__init__(
            blocks,
            pretrained_model_name_or_path,
            components_manager,
            collection,
            workflow,
            modular_config_dict,
            config_dict,
            **kwargs,
        )

    @classmethod
    def _load_pipeline_config(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, **load_config_kwargs: Any
    ) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """The index of a checkpoint in modular form, whichever of the two it has, parts without a place put there."""
        modular, standard = super()._load_pipeline_config(pretrained_model_name_or_path, **load_config_kwargs)
        here = os.fspath(pretrained_model_name_or_path or "")
        return _index_of(modular, standard, here, load_config_kwargs.get("revision")), None

    def load_components(self, names: list[str] | str | None = None, workflow: str | None = None, **kwargs: Any) -> None:
        """diffusers' own, in float32 unless `dtype` (or `torch_dtype`) says otherwise.

        transformers loads a language model in the dtype it was saved in, diffusers loads everything else in float32; published
        weights are float16, so without this the parts would not fit together.
        """
        if "dtype" not in kwargs and "torch_dtype" not in kwargs:
            kwargs["dtype"] = torch.float32
        super().load_components(names, workflow, **kwargs)

    def __call__(self, state: PipelineState | None = None, output: str | list[str] | None = None, **kwargs: Any) -> Any:
        """diffusers' own; TypeError or ValueError, before anything runs, for settings and components that do not fit."""
        check_fit(self)
        for name, check in _CHECKS.items():
            if kwargs.get(name) is not None:
                check(kwargs[name])
        return super().__call__(state, output, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """diffusers' own; components that are saved are found in the saved folder from then on, wherever it is moved."""
        # The default already, but diffusers 0.42 warns where it is left out.
        kwargs.setdefault("overwrite_modular_index", True)
        super().save_pretrained(os.fspath(save_directory), *args, **kwargs)

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Configure the progress bars of all blocks, however deep; `disable=True` switches them off."""
        waiting: list[Any] = [self._blocks]
        while waiting:
            block = waiting.pop()
            if hasattr(block, "set_progress_bar_config"):
                block.set_progress_bar_config(**kwargs)
            waiting += block.sub_blocks.values()


# What is refused at once, and not by the last block after minutes of work.
_CHECKS: dict[str, Callable[[Any], Any]] = {
    "output_type": check_output_type,
    "strength": check_strength,
    **{name: partial(check_count, name=name) for name in ("num_inference_steps", "num_images_per_prompt")},
    **{name: partial(check_count, name=name, least=0) for name in ("mask_dilation", "mask_blur", "padding_mask_crop")},
    **{
        name: lambda value, name=name: check_numbers(**{name: value})
        for name in ("guidance_scale", "mask_guidance_scale", "token_guidance_scale", "eta")
    },
}


def _index_of(
    modular: dict[str, Any] | None, standard: dict[str, Any] | None, here: str, revision: str | None = None
) -> dict[str, Any] | None:
    """The modular index of a checkpoint that lies `here`; components without a place of their own get that one."""
    index = modular_index(standard) if modular is None and standard is not None else modular
    if index is None:
        return None
    return {name: _placed(value, here, revision) for name, value in index.items()}


def _placed(value: Any, here: str, revision: str | None) -> Any:
    is_component = isinstance(value, (list, tuple)) and len(value) == 3 and isinstance(value[2], dict)
    if not is_component or value[2].get("pretrained_model_name_or_path") is not None:
        return value
    return [*value[:2], {**value[2], "pretrained_model_name_or_path": here, "revision": revision}]


def _register() -> None:
    """Make diffusers know our classes by name, so that `ModularPipeline.from_pretrained` finds them; adds names that are ours only.

    diffusers looks `_class_name` and `_blocks_class_name` of an index up in its own package.
    """
    for cls in (FocusModularPipeline, *WORKFLOWS.values()):
        setattr(diffusers, cls.__name__, cls)
    MODULAR_PIPELINE_MAPPING["focus"] = lambda config=None: FocusModularPipeline.__name__


_register()
