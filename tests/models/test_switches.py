"""diffusers' switches on every model of ours: each leaves the output as it was, within the tolerance it states."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend
from peft import LoraConfig
from torch.nn.attention.flex_attention import flex_attention

from tests.tiny import CHANNELS, WIDTH, tiny_components

NAMES = ("vision_encoder", "visual_tokenizer", "mask_decoder", "mask_conditioner")
LAYERS = {  # of each model, the linear layers of one of its blocks
    "vision_encoder": ["to_q", "to_kv", "to_out"],
    "visual_tokenizer": ["qkv", "proj"],
    "mask_decoder": ["q_proj", "k_proj", "v_proj", "out_proj"],
    "mask_conditioner": ["mask_in", "mlp.0"],
}


def fresh(name: str) -> Any:
    return tiny_components()[name]


@cache
def inputs(name: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    if name == "vision_encoder":
        return {
            "pixel_values_low": noise(2, 3, 56, 56),
            "pixel_values_high": noise(2, 3, 64, 64),
            "pixel_features": noise(2, 4, 4, 4),
            "regions": (noise(2, 1, 32, 32) > 0).float(),
            "image_index": torch.tensor([0, 1]),
        }
    if name == "visual_tokenizer":
        return {"pixel_values": noise(2, 3, 32, 48), "semantic_features": noise(2, 2, 3, 32)}
    if name == "mask_decoder":
        maps = tuple(noise(2, c, 64 // s, 96 // s) for c, s in zip(CHANNELS, (4, 8, 16, 32)))
        return {
            "feature_maps": maps,
            "slot_states": noise(2, 3, 4, WIDTH),
            "condition_states": noise(2, 3, 2, WIDTH),
        }
    return {"mask": (noise(2, 1, 16, 16) > 0).float(), "token_map": noise(2, 8, 4, 4)}


@torch.no_grad()
def run(model: Any, name: str) -> list[torch.Tensor]:
    """Every tensor of the output, nested ones too."""

    def tensors(value: Any) -> list[torch.Tensor]:
        if isinstance(value, torch.Tensor):
            return [value]
        return [tensor for part in value for tensor in tensors(part)] if isinstance(value, (list, tuple)) else []

    return tensors(tuple(dict(model(**inputs(name))).values()))


@cache
def expected(name: str) -> list[torch.Tensor]:
    return run(fresh(name), name)


def assert_same(name: str, found: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    """Never to the bit: where tensors lie in memory decides about the last one."""
    assert len(found) == len(expected(name))
    for one, other in zip(found, expected(name)):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_tuple_holds_what_the_output_holds(name):
    found = fresh(name)(**inputs(name), return_dict=False)
    assert isinstance(found, tuple)
    assert_same(name, [t for part in found for t in (part if isinstance(part, tuple) else (part,))])


@pytest.mark.parametrize("backend", ["native", "_native_math", "flex"])
def test_attention_backends_agree(name, backend):
    """Set on the model and by diffusers' context; afterwards nothing of it is left."""
    if name == "mask_conditioner":
        assert not any(isinstance(module, AttentionModuleMixin) for module in fresh(name).modules())
        return
    model = fresh(name)
    with attention_backend(
        AttentionBackendName.NATIVE
    ):  # what set_attention_backend changes beyond the model ends here
        model.set_attention_backend(backend)
        products = [module for module in model.modules() if isinstance(module, AttentionModuleMixin)]
        assert products and all(p.processor._attention_backend.value == backend for p in products)
        assert_same(name, run(model, name), 1e-4)
        model.reset_attention_backend()
    with attention_backend(AttentionBackendName(backend)):
        assert_same(name, run(model, name), 1e-4)
    assert all(p.processor._attention_backend is None for p in products)


@pytest.mark.parametrize(
    "options", [{"offload_type": "leaf_level"}, {"offload_type": "block_level", "num_blocks_per_group": 1}]
)
def test_group_offloading_changes_nothing(name, options):
    model = fresh(name)
    model.enable_group_offload(torch.device("cpu"), **options)
    assert_same(name, run(model, name))


def test_sequential_offloading_changes_nothing(name):
    model = fresh(name)
    cpu_offload(model, torch.device("cpu"), offload_buffers=True)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert_same(name, run(model, name))


def test_layerwise_casting_stores_eight_bits_and_stays_near(name):
    model = fresh(name)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert sum(p.numel() * p.element_size() for p in model.parameters()) < 0.75 * size
    found = run(model, name)
    assert all(tensor.isfinite().all() for tensor in found)
    if name in ("vision_encoder", "mask_conditioner"):  # the others end in a choice: of a code, or of where to look
        for one, other in zip(found, expected(name)):
            assert torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.98


def test_repeated_blocks_are_whole_graphs(name):
    """Traced without a break; what a compiler then makes of the graph is its own affair (see the slow test)."""
    model = fresh(name)
    torch.compiler.reset()
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    assert_same(name, run(model, name))


@pytest.mark.slow
def test_compiled_blocks_give_the_same(name):
    model = fresh(name)
    torch.compiler.reset()
    model.compile_repeated_blocks(fullgraph=True)
    assert_same(name, run(model, name), 1e-4)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_with_flex_attention():
    model = fresh("visual_tokenizer")
    torch.compiler.reset()
    with attention_backend(AttentionBackendName.NATIVE):
        model.set_attention_backend("flex")
        model.compile_repeated_blocks(fullgraph=True)
        assert_same("visual_tokenizer", run(model, "visual_tokenizer"), 1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_what_torch_itself_does_to_compiled_flex_attention_on_a_cpu():
    """Why the tokenizer copies its values and the mask decoder is not compiled with flex: once this fails, both can change."""
    generator = torch.Generator().manual_seed(0)
    packed = torch.randn(2, 6, 3, 2, 8, generator=generator)  # batch, positions, (q, k, v), heads, width

    def turned(x: torch.Tensor) -> torch.Tensor:
        query, key, value = x.transpose(1, 3).unbind(2)
        return flex_attention(1.5 * query, 0.5 * key, value)

    linear = torch.nn.Linear(16, 16)

    def plain(x: torch.Tensor) -> torch.Tensor:
        query = linear(x).unflatten(-1, (2, 8)).transpose(1, 2)
        return flex_attention(query, *(packed[:, :, i].transpose(1, 2) for i in (1, 2)))

    torch.compiler.reset()
    assert (torch.compile(turned, fullgraph=True)(packed) - turned(packed)).abs().max() > 0.1
    with pytest.raises(Exception, match="not enough values to unpack"):
        torch.compile(plain, fullgraph=True)(torch.randn(2, 6, 16, generator=generator))


def test_gradient_checkpointing_changes_no_gradient(name):
    model = fresh(name)

    def gradients() -> list[torch.Tensor | None]:
        model.zero_grad()
        sum(
            t.sum() for t in dict(model(**inputs(name))).values() if isinstance(t, torch.Tensor) and t.requires_grad
        ).backward()
        return [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    plain = gradients()
    model.train().enable_gradient_checkpointing()
    assert model.is_gradient_checkpointing
    for one, other in zip(gradients(), plain):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_adapters_are_added_saved_loaded_fused_and_removed(name, tmp_path):
    model = fresh(name)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    model.add_adapter(LoraConfig(r=2, target_modules=LAYERS[name], init_lora_weights=False))
    adapted = run(model, name)
    assert any(not torch.allclose(one, other, atol=1e-3) for one, other in zip(adapted, expected(name)))
    model.save_lora_adapter(tmp_path)
    model.disable_lora()
    assert_same(name, run(model, name), 1e-6)
    model.unload_lora()
    assert_same(name, run(model, name), 1e-6)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    other = fresh(name)
    other.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    for one, two in zip(run(other, name), adapted):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)  # other alignment in memory, other last bit
    other.fuse_lora()
    other.unfuse_lora()
    other.disable_lora()
    assert_same(name, run(other, name))


@pytest.mark.parametrize(("part", "kept"), [("visual_tokenizer", ("semantic_quantizer", "pixel_quantizer"))])
def test_what_must_stay_in_float32_does(part, kept, tmp_path):
    fresh(part).save_pretrained(tmp_path)
    model = type(fresh(part)).from_pretrained(tmp_path, dtype=torch.bfloat16)
    for key, value in model.state_dict().items():
        assert value.dtype == (torch.float32 if key.startswith(kept) else torch.bfloat16), key
