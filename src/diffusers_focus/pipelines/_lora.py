"""LoRA for the pipelines: the UNet (SDXL's own LoRA files load) and the language model, through peft as diffusers does it.

`StableDiffusionXLLoraLoaderMixin` (diffusers, Apache-2.0) reads the files: diffusers' and peft's keys, and kohya's, with its block
numbers. What differs here: the parts of a file that belong to SDXL's text encoders have no place in FOCUS and are left out; the
language model has a part of its own, under the prefix "language_model".
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin
from diffusers.utils import logging
from diffusers.utils.constants import USE_PEFT_BACKEND
from diffusers.utils.peft_utils import get_adapter_name, get_peft_kwargs

logger = logging.get_logger(__name__)

UNET, LANGUAGE_MODEL = "unet", "language_model"
TEXT_ENCODERS = ("text_encoder.", "text_encoder_2.")


class FocusLoraMixin(StableDiffusionXLLoraLoaderMixin):
    """`load_lora_weights`, `save_lora_weights` and diffusers' whole adapter interface (`set_adapters`, `fuse_lora`,
    `unfuse_lora`, `enable_lora`, `disable_lora`, `delete_adapters`, `unload_lora_weights`) over `_lora_loadable_modules`.
    """

    _lora_loadable_modules = [UNET, LANGUAGE_MODEL]
    language_model_name = LANGUAGE_MODEL

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load a LoRA into the UNet, the language model, or both, as the file has it.

        Args:
            pretrained_model_name_or_path_or_dict: a folder, a file, a Hub id or a state dict. SDXL's LoRA files load, of
                diffusers' or kohya's kind; their text encoder parts are left out.
            adapter_name: name to use it by; numbered by default.
            hotswap: put the UNet's weights into an adapter of that name in place of its own.
            kwargs: `weight_name`, `subfolder`, `revision`, `token`, `cache_dir`, `local_files_only`, `low_cpu_mem_usage`.

        Raises:
            ValueError: peft is missing, the file is no LoRA, or it holds nothing for this pipeline.
        """
        if not USE_PEFT_BACKEND:
            raise ValueError("LoRA needs peft, which is not installed: `pip install diffusers-focus[lora]`.")
        low_cpu_mem_usage = kwargs.pop("low_cpu_mem_usage", False)
        if isinstance(pretrained_model_name_or_path_or_dict, dict):
            pretrained_model_name_or_path_or_dict = dict(pretrained_model_name_or_path_or_dict)
        unet = getattr(self, UNET, None)
        kwargs["return_lora_metadata"] = True
        read: Any = self.lora_state_dict(
            pretrained_model_name_or_path_or_dict, unet_config=None if unet is None else unet.config, **kwargs
        )
        state_dict, alphas, metadata = read
        foreign = [key for key in state_dict if "lora" not in key]
        if foreign or not state_dict:
            raise ValueError(
                f"This is no LoRA: {len(foreign)} of its {len(state_dict)} weights are none, first {foreign[:3]}. A LoRA's keys "
                'all hold "lora"; whole models are loaded with from_pretrained.'
            )
        language = _part(state_dict, f"{LANGUAGE_MODEL}.")
        text = [key for key in state_dict if key.startswith(TEXT_ENCODERS)]
        drawing = {key: value for key, value in state_dict.items() if key not in text}
        drawing = {key: value for key, value in drawing.items() if not key.startswith(f"{LANGUAGE_MODEL}.")}
        if text:
            logger.warning(
                f"{len(text)} weights of this LoRA are for SDXL's text encoders, which FOCUS has none of; they are left out, so "
                "its trigger words do nothing."
            )
        if not (drawing and unet is not None) and not language:
            raise ValueError(
                f"This LoRA holds nothing for a {type(self).__name__}, which takes {' and '.join(self._lora_loadable_modules)}; "
                f"its keys begin like {next(iter(state_dict))!r}."
            )
        if drawing and unet is not None:
            if alphas is not None:
                alphas = {key: value for key, value in alphas.items() if not key.startswith(TEXT_ENCODERS)}
            self.load_lora_into_unet(
                _widened(drawing, unet),
                network_alphas=alphas,
                unet=unet,
                adapter_name=adapter_name,
                metadata=metadata,
                _pipeline=self,
                low_cpu_mem_usage=low_cpu_mem_usage,
                hotswap=hotswap,
            )
        if language:
            self._load_lora_into_language_model(
                language, _part(metadata or {}, f"{LANGUAGE_MODEL}."), adapter_name, low_cpu_mem_usage
            )
        self._weights_changed()

    def _load_lora_into_language_model(
        self,
        state_dict: dict[str, torch.Tensor],
        metadata: dict[str, Any],
        adapter_name: str | None,
        low_cpu_mem_usage: bool,
    ) -> None:
        from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

        model = getattr(self, LANGUAGE_MODEL)
        name = adapter_name or get_adapter_name(model)
        if name in getattr(model, "peft_config", {}):
            raise ValueError(f"The language model has an adapter {name!r} already; choose another adapter_name.")
        ranks = {key: value.shape[1] for key, value in state_dict.items() if key.endswith("lora_B.weight")}
        config = LoraConfig(**(metadata or get_peft_kwargs(ranks, None, state_dict, is_unet=False)))
        by_model, sequentially, by_group = self._optionally_disable_offloading(self)
        # Not transformers' load_adapter: it takes every weight whose key holds the adapter's name for a part of it (5.23), and
        # initialises "down_proj" anew for an adapter called "own".
        inject_adapter_in_model(config, model, name, low_cpu_mem_usage=low_cpu_mem_usage)
        keys = set_peft_model_state_dict(model, state_dict, name, low_cpu_mem_usage=low_cpu_mem_usage)
        model._hf_peft_config_loaded = True
        model.to(device=model.device, dtype=model.dtype).train(model.training)
        if by_model:
            self.enable_model_cpu_offload()
        elif sequentially:
            self.enable_sequential_cpu_offload()
        elif by_group:
            _maybe_remove_and_reapply_group_offloading(model)
        if keys.unexpected_keys:
            self.delete_adapters(name)
            raise ValueError(
                f"{len(keys.unexpected_keys)} weights of this LoRA have no place in the language model, first "
                f"{list(keys.unexpected_keys)[:3]}. It was made for another model."
            )

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike,
        unet_lora_layers: dict[str, torch.nn.Module | torch.Tensor] | None = None,
        language_model_lora_layers: dict[str, torch.nn.Module | torch.Tensor] | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable | None = None,
        safe_serialization: bool = True,
        unet_lora_adapter_metadata: dict[str, Any] | None = None,
        language_model_lora_adapter_metadata: dict[str, Any] | None = None,
    ) -> None:
        """Write LoRA layers to one file that `load_lora_weights` reads.

        Args:
            save_directory: folder of the file.
            unet_lora_layers, language_model_lora_layers: state dicts of the layers; `lora_layers` gives them for a loaded adapter.
            is_main_process: whether this process writes.
            weight_name: name of the file, "pytorch_lora_weights.safetensors" by default.
            save_function: writes the state dict in place of safetensors.
            safe_serialization: False writes a pickle.
            unet_lora_adapter_metadata, language_model_lora_adapter_metadata: the adapters' `LoraConfig`s as dicts.

        Raises:
            ValueError: there is nothing to write.
        """
        layers = {UNET: unet_lora_layers, LANGUAGE_MODEL: language_model_lora_layers}
        layers = {name: given for name, given in layers.items() if given}
        if not layers:
            raise ValueError(
                "There are no LoRA layers to write. Pass unet_lora_layers or language_model_lora_layers, for example "
                'pipe.save_lora_weights(folder, **pipe.lora_layers("name")).'
            )
        cls._save_lora_weights(
            save_directory=save_directory,
            lora_layers=layers,
            lora_metadata={UNET: unet_lora_adapter_metadata, LANGUAGE_MODEL: language_model_lora_adapter_metadata},
            is_main_process=is_main_process,
            weight_name=weight_name,
            save_function=save_function,
            safe_serialization=safe_serialization,
        )

    def lora_layers(self, adapter_name: str) -> dict[str, Any]:
        """The layers and settings of a loaded adapter, as `save_lora_weights` takes them.

        Raises:
            ValueError: no component has an adapter of that name.
        """
        from peft.utils import get_peft_model_state_dict

        found: dict[str, Any] = {}
        for name in self._lora_loadable_modules:
            model = getattr(self, name, None)
            config = getattr(model, "peft_config", {}).get(adapter_name)
            if config is not None:
                layers = get_peft_model_state_dict(model, adapter_name=adapter_name)
                found[f"{name}_lora_layers"] = {key: value.contiguous() for key, value in layers.items()}
                found[f"{name}_lora_adapter_metadata"] = config.to_dict()
        if not found:
            raise ValueError(
                f"There is no adapter {adapter_name!r}; this pipeline has {self.get_list_adapters() or 'none'}. Load one with "
                "load_lora_weights, or add one with add_adapter."
            )
        return found

    def set_adapters(self, adapter_names: list[str] | str, adapter_weights: Any = None) -> None:
        """Choose the active adapters and their weights: one for all, one for each, or for each a dict of components' weights."""
        super().set_adapters(adapter_names, adapter_weights)
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        weights = adapter_weights if isinstance(adapter_weights, list) else [adapter_weights] * len(names)
        for name, weight in zip(names, weights):
            if (weight.get(LANGUAGE_MODEL) if isinstance(weight, dict) else weight) == 0:
                # diffusers takes a weight of 0 for none given (1.0) in a transformers model.
                for layer in _adapted_layers(getattr(self, LANGUAGE_MODEL, None)):
                    layer.set_scale(name, 0.0)

    def fuse_lora(
        self,
        components: list[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add adapters to the weights they adapt; `components` defaults to all that can have one."""
        parts = self._lora_loadable_modules if components is None else components
        LoraBaseMixin.fuse_lora(self, parts, lora_scale, safe_fusing, adapter_names, **kwargs)
        self._weights_changed()

    def unfuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        """Take fused adapters out of the weights again."""
        LoraBaseMixin.unfuse_lora(self, self._lora_loadable_modules if components is None else components, **kwargs)
        self._weights_changed()

    def unload_lora_weights(self) -> None:
        """Remove all adapters; weights that were not fused are the base's own again."""
        super().unload_lora_weights()
        self._weights_changed()

    def _weights_changed(self) -> None:
        """Make encodings run their prefixes anew: what they kept came from other weights (see `adapter_state`)."""
        model = getattr(self, LANGUAGE_MODEL, None)
        if model is not None:
            model._focus_changes = getattr(model, "_focus_changes", 0) + 1


def scaling_lora(call: Callable) -> Callable:
    """Let `cross_attention_kwargs={"scale": s}` of a call weigh the language model's adapters; the UNet sees to its own."""

    @functools.wraps(call)
    def scaled(self: Any, *args: Any, **kwargs: Any) -> Any:
        scale = (kwargs.get("cross_attention_kwargs") or {}).get("scale")
        if scale is None:
            return call(self, *args, **kwargs)
        layers = {name: _adapted_layers(getattr(self, name, None)) for name in (UNET, LANGUAGE_MODEL)}
        before = [(layer, dict(layer.scaling)) for of_model in layers.values() for layer in of_model]
        for layer in layers[LANGUAGE_MODEL]:
            layer.scale_layer(scale)
        try:
            return call(self, *args, **kwargs)
        finally:  # the UNet's too: diffusers leaves a weight of 1 behind where the scale was 0
            for layer, own in before:
                layer.scaling.update(own)

    return scaled


def _adapted_layers(model: Any) -> list[Any]:
    """The layers of a model that hold adapters."""
    if not hasattr(model, "peft_config"):
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def _part(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def _widened(state_dict: dict[str, torch.Tensor], unet: Any) -> dict[str, torch.Tensor]:
    """A LoRA of SDXL's first convolution (four input channels) for a UNet that reads the token embeddings beside the latents."""
    latents: int = unet.config.out_channels
    more: Sequence[int] = (0, 0, 0, 0, 0, unet.config.in_channels - latents)
    return {
        key: torch.nn.functional.pad(value, more) if _reads_latents_only(key, value, latents) else value
        for key, value in state_dict.items()
    }


def _reads_latents_only(key: str, value: torch.Tensor, latents: int) -> bool:
    first = key.removeprefix(f"{UNET}.").startswith("conv_in.") and (".lora_A." in key or ".lora.down." in key)
    return first and value.ndim == 4 and value.shape[1] == latents
