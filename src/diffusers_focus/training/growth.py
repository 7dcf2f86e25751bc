"""Trained components made larger, that do the same as before until they are trained on.

Depth: blocks are copied and the copies' output projections are zero, so that each begins as the identity (LLaMA Pro,
arXiv 2401.02415, Apache-2.0). Width: what is added inside a feed-forward network is drawn as at the beginning and read with weight
zero (Net2Net, arXiv 1511.05641, in its simplest form). Weights that took days are then the start of a larger model, not lost to it.
"""

from __future__ import annotations

import torch
from transformers import Qwen2ForCausalLM

from ..models.mask_conditioner import FocusMaskConditioner

GROWS = ("num_hidden_layers", "intermediate_size")
FEED_FORWARD_INPUTS = ("gate_proj", "up_proj")


@torch.no_grad()
def grow_language_model(model: Qwen2ForCausalLM, *, seed: int = 0, **sizes: int) -> Qwen2ForCausalLM:
    """A language model of larger numbers with the outputs of the one given; that one itself where nothing is larger.

    Args:
        model: left as it is; the result is in its dtype, on its device.
        seed: of what is drawn for wider feed-forward networks.
        sizes: `num_hidden_layers` and `intermediate_size`, at least those of the model; what is left out stays.

    Raises:
        ValueError: another number, or one smaller than the model's.
    """
    config = model.config
    wanted = {name: getattr(config, name) for name in GROWS}
    for name, size in sizes.items():
        if name not in wanted:
            raise ValueError(f"a language model cannot grow by {name!r}; choose from {', '.join(GROWS)}")
        if size < wanted[name]:
            raise ValueError(f"{name} is {wanted[name]} and would become {size}; a language model only grows")
        wanted[name] = size
    if all(getattr(config, name) == size for name, size in wanted.items()):
        return model
    layers, depth = config.num_hidden_layers, wanted["num_hidden_layers"]
    values = {name: value for name, value in config.to_dict().items() if name != "layer_types"}
    weight = model.get_input_embeddings().weight
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        grown = Qwen2ForCausalLM(type(config)(**{**values, **wanted}))
    grown = grown.to(weight.device, weight.dtype)
    # Copies stand after the blocks they copy, spread evenly over the depth.
    sources = [layer * layers // depth for layer in range(depth)]
    state = model.state_dict()
    for name, value in grown.state_dict().items():
        head, _, rest = name.partition("model.layers.")
        if not rest or head:
            value.copy_(state[name])
            continue
        number, _, part = rest.partition(".")
        source = sources[int(number)]
        known = state[f"model.layers.{source}.{part}"]
        copied = int(number) > 0 and sources[int(number) - 1] == source
        module = part.split(".")[-2]
        if copied and module in ("o_proj", "down_proj"):
            value.zero_()
        elif module in FEED_FORWARD_INPUTS:
            value[: len(known)] = known  # the rows that are more stay as they were drawn
        elif module == "down_proj":
            value.zero_()
            value[:, : known.shape[1]] = known
        else:
            value.copy_(known)
    return grown.train(model.training)


@torch.no_grad()
def with_outlines(conditioner: FocusMaskConditioner, outline_dim: int, *, seed: int = 0) -> FocusMaskConditioner:
    """A mask conditioner with outlines of what is not there yet that says what the given one says; that one where it has some.

    Raises:
        ValueError: it does not guide visual tokens.
    """
    # `from_config` would take what was a default before for a default again.
    config = {name: value for name, value in conditioner.config.items() if not name.startswith("_")}
    if conditioner.config.outline_dim is not None:
        return conditioner
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        larger = type(conditioner)(**{**config, "outline_dim": outline_dim})
    missing, unknown = larger.load_state_dict(conditioner.state_dict(), strict=False)
    assert not unknown and all(".outline" in name for name in missing)
    # torch's own way: diffusers' warns of parts that are to stay in float32, of which there are none.
    torch.nn.Module.to(larger, conditioner.device, conditioner.dtype)
    return larger.train(conditioner.training)
