"""FocusVisionEncoder: identity at initialisation, what each part reads, saving, offloading."""

import pytest
import torch
import torch.nn.functional as F

from diffusers_focus.models.vision_encoder import FocusVisionEncoder, region_geometry

TINY_VIT = {"depth": 2, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "mlp_ratio": 2}
TINY = {
    "vision_tower": TINY_VIT,
    "pyramid_depths": (1, 1, 2, 1),
    "pyramid_channels": (8, 16, 24, 32),
    "pyramid_layer_scale_init": 0.5,
    "fusion_num_heads": 2,
    "fusion_dim": 16,
    "num_query_tokens": 5,
    "query_dim": 16,
    "query_num_heads": 2,
    "language_hidden_size": 24,
    "pixel_feature_dim": 4,
    "region_dim": 16,
}


def make(**overrides):
    torch.manual_seed(0)
    return FocusVisionEncoder(**{**TINY, **overrides}).eval()


def awake(**overrides):
    """A model whose zero-initialised outputs and gates are open."""
    model = make(**overrides)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.count_nonzero() == 0:
                parameter.normal_(std=0.5)
    return model


def inputs(batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, 56, 84, generator=generator), torch.randn(batch, 3, 64, 96, generator=generator)


@torch.no_grad()
def test_shapes_of_one_call():
    model = make()
    regions = torch.zeros(3, 1, 40, 60)
    regions[:, :, 10:20, 5:30] = 1
    pixel_features = torch.randn(2, 4, 3, 5)
    out = model(*inputs(), pixel_features, regions=regions, image_index=torch.tensor([0, 1, 1]))
    assert out.vision_features.shape == out.fused_features.shape == out.image_features.shape == (2, 2, 3, 48)
    assert [tuple(f.shape) for f in out.feature_maps] == [
        (2, 8, 16, 24),
        (2, 16, 8, 12),
        (2, 24, 4, 6),
        (2, 32, 2, 3),
    ]
    assert model.feature_info == [{"channels": c, "stride": s} for c, s in zip((8, 16, 24, 32), (4, 8, 16, 32))]
    assert out.vision_tokens.shape == (2, 2, 3, 24)
    assert out.pixel_tokens.shape == (2, 3, 5, 24)
    assert out.query_tokens.shape == (2, 5, 24)
    assert out.region_tokens.shape == (3, 24)
    assert len(model(*inputs(), return_dict=False)) == 6


@torch.no_grad()
def test_fusion_is_exactly_the_identity_at_initialisation():
    out = make()(*inputs())
    assert torch.equal(out.fused_features, out.vision_features)
    assert torch.equal(out.image_features, out.vision_features)


@torch.no_grad()
def test_fusion_reads_the_high_branch_and_image_features_are_on_top_of_it():
    model = awake()
    low, high = inputs()
    out, other = model(low, high), model(low, high.flip(-1))
    assert torch.equal(out.vision_features, other.vision_features)
    assert not torch.allclose(out.fused_features, other.fused_features, atol=1e-4)
    assert not torch.allclose(out.fused_features, out.image_features, atol=1e-4)


@torch.no_grad()
def test_fusion_attends_locally_before_training():
    """With content silenced, a cell's attention is strongest at its own place in a grid of another size."""
    fusion = make(fusion_dim=32).fusion
    fusion.to_q.weight.zero_()
    fusion.to_kv.weight.zero_()
    fusion.to_kv.weight[32:] = torch.eye(32)  # values: the level's own channels
    fusion.to_out.weight.copy_(torch.eye(48)[:, :32])
    level = torch.zeros(1, 32, 8, 8)
    level[0, :16, :, :4], level[0, 16:, :, 4:] = 1, 1  # left half in the first channels, right half in the others
    fused, _ = fusion(torch.zeros(1, 4, 4, 48), level)
    lean = fused[0, ..., :16].mean(-1) - fused[0, ..., 16:32].mean(-1)
    assert (lean[:, :1] > 0).all() and (lean[:, -1:] < 0).all()


@torch.no_grad()
def test_query_gates_start_closed_and_open():
    model = make()
    low, high = inputs()
    closed = model(low, high).query_tokens
    torch.testing.assert_close(closed[0], closed[1])  # nothing read from the images yet
    for layer in model.query_adapter.layers:
        layer.gamma.fill_(0.5)
    tokens = model(low, high).query_tokens
    assert not torch.allclose(tokens[0], tokens[1], atol=1e-4)


def test_closed_gates_receive_gradients():
    model = make()
    model(*inputs()).query_tokens.square().sum().backward()
    for layer in model.query_adapter.layers:
        assert layer.gamma.grad.abs() > 0 and layer.beta.grad.abs() > 0


@torch.no_grad()
def test_each_query_layer_reads_its_own_scale():
    model = awake()
    maps = model(*inputs()).feature_maps
    tokens = model.query_tokens(maps)
    for level, read in enumerate((False, True, True, True)):
        changed = [f * 0 + torch.randn_like(f) if i == level else f for i, f in enumerate(maps)]
        assert torch.allclose(model.query_tokens(changed), tokens, atol=1e-6) is not read


@torch.no_grad()
def test_pyramid_is_the_backbone_before_its_output_norms():
    """Same numbers as transformers' own encoder, and no fresh parameters that a published ConvNeXt lacks."""
    model = make()
    _, high = inputs()
    stages = model.pyramid.encoder(model.pyramid.embeddings(high), output_hidden_states=True).hidden_states
    for ours, theirs in zip(model(*inputs()).feature_maps, stages[-4:]):
        torch.testing.assert_close(ours, theirs)
    assert not [name for name, _ in model.named_parameters() if "hidden_states_norms" in name]


def test_published_size():
    with torch.device("meta"):
        model = FocusVisionEncoder()
    count = sum(p.numel() for p in model.pyramid.parameters())
    assert abs(count / 196e6 - 1) < 0.01
    assert sum(p.numel() for p in model.vit.parameters()) == 675_759_104
    assert model.vision_projector[0].weight.shape == (2048, 3584)
    assert model.query_adapter.layers[0].to_kv.weight.shape == (1024, 512)


@torch.no_grad()
@pytest.mark.parametrize("low_only", [True, False], ids=["converted", "high branch not given"])
def test_without_the_second_branch(low_only):
    overrides = {"pyramid_channels": None, "num_query_tokens": 0} if low_only else {}
    model = make(**overrides)
    out = model(inputs()[0])
    assert torch.equal(out.image_features, out.vision_features)
    assert out.feature_maps is None and out.query_tokens is None
    assert out.vision_tokens.shape == (2, 2, 3, 24)
    if low_only:
        assert model.feature_info == []
        region = torch.ones(1, 1, 8, 8)
        assert model.region_tokens(None, out.image_features, region, torch.tensor([1])).shape == (1, 24)


@torch.no_grad()
def test_region_tokens_depend_on_image_place_and_size():
    model = make()
    out = model(*inputs())
    left, right, dot = torch.zeros(3, 1, 64, 96)
    left[:, 8:40, 8:32], right[:, 8:40, 64:88], dot[:, 9, 9] = 1, 1, 1  # the dot is far below one cell of any level
    regions = torch.stack((left, right, dot, left))
    tokens = model.region_tokens(out.feature_maps, out.image_features, regions, torch.tensor([0, 0, 0, 1]))
    assert tokens.isfinite().all()
    assert torch.cdist(tokens, tokens).fill_diagonal_(1.0).min() > 1e-3


@torch.no_grad()
def test_region_tokens_do_not_depend_on_the_resolution_of_the_region():
    model = make()
    out = model(*inputs(1))
    small = torch.zeros(1, 1, 32, 48)
    small[..., 8:24, 16:40] = 1
    large = F.interpolate(small, scale_factor=4, mode="nearest")
    tokens = [model.region_tokens(out.feature_maps, out.image_features, region) for region in (small, large)]
    torch.testing.assert_close(*tokens, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_region_pooling_reads_only_under_the_region():
    model = make()
    out = model(*inputs(1))
    region = torch.zeros(1, 1, 64, 96)
    region[..., :32, :32] = 1
    before = model.region_tokens(out.feature_maps, out.image_features, region)
    for feature_map in out.feature_maps:
        feature_map[..., feature_map.shape[-1] // 2 :] += 3.0
    out.image_features[:, :, 2:] += 3.0
    torch.testing.assert_close(model.region_tokens(out.feature_maps, out.image_features, region), before)


def test_region_geometry():
    regions = torch.zeros(2, 20, 40)
    regions[0, 5:15, 10:30] = 1
    geometry = region_geometry(regions)
    expected = [0.5, 0.5, 0.1443, 0.1443, 0.1003, 0.25, 0.25, 0.75, 0.75]
    torch.testing.assert_close(geometry[0], torch.tensor(expected), atol=1e-4, rtol=0)
    torch.testing.assert_close(geometry[1], torch.tensor([0.0, 0, 0, 0, 1, 0, 0, 0, 0]), atol=1e-4, rtol=0)


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        model = awake().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        out = model(*inputs())
        (out.vision_tokens.square().mean() + out.query_tokens.square().mean()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 50
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], msg=name)


def test_save_and_load(tmp_path):
    model = awake(pixel_encoder={"channels": 8, "z_channels": 4, "norm_groups": 4})
    model.save_pretrained(tmp_path)
    loaded = FocusVisionEncoder.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for ours, theirs in zip(*(m(*inputs(), pixel_values=image).to_tuple() for m in (model, loaded))):
            torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights(dtype):
    regions = torch.ones(2, 1, 16, 16)
    pixel_features = torch.randn(2, 4, 3, 3).to(dtype)
    out = awake().to(dtype)(*inputs(), pixel_features, regions=regions, image_index=torch.arange(2))
    for name, value in out.items():
        for tensor in value if isinstance(value, tuple) else (value,):
            assert tensor.dtype == dtype and tensor.isfinite().all(), name


def test_autocast_trains():
    model = awake().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        regions = torch.ones(2, 1, 16, 16)
        out = model(*inputs(), torch.randn(2, 4, 3, 3), regions=regions, image_index=torch.arange(2))
        fields = (out.vision_tokens, out.query_tokens, out.pixel_tokens, out.region_tokens, *out.feature_maps)
        loss = sum(field.float().square().mean() for field in fields)
    loss.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing


@torch.no_grad()
def test_sequential_offload_reaches_every_parameter():
    """Weights live elsewhere and come only when their own module is called; methods outside forward work too."""
    from accelerate import cpu_offload

    model = awake(pixel_encoder={"channels": 8, "z_channels": 4, "norm_groups": 4})
    regions = torch.ones(2, 1, 16, 16)
    arguments = {"pixel_values": torch.randn(2, 3, 64, 96), "regions": regions, "image_index": torch.arange(2)}
    expected = model(*inputs(), **arguments)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    out = model(*inputs(), **arguments)
    torch.testing.assert_close(out.to_tuple(), expected.to_tuple())
    torch.testing.assert_close(model.query_tokens(out.feature_maps), expected.query_tokens)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="num_query_tokens=0"):
        make(pyramid_channels=None)
    with pytest.raises(ValueError, match="0..3"):
        make(query_levels=(1, 4))
    with pytest.raises(ValueError, match="multiple of 4 x heads"):
        make(fusion_dim=18)
    model = make(num_query_tokens=0, region_slots=False)
    low, high = inputs()
    with pytest.raises(ValueError, match="multiples of 32"):
        model(low, high[..., :90])
    with pytest.raises(ValueError, match="no pixel encoder"):
        model(low, pixel_values=torch.zeros(2, 3, 64, 96))
    with pytest.raises(ValueError, match="region_slots"):
        model(low, high, regions=torch.ones(1, 1, 8, 8), image_index=torch.tensor([0]))
    with pytest.raises(ValueError, match="no query tokens"):
        model.query_tokens(())
    with pytest.raises(ValueError, match=r"\[B, 4, hp, wp\]"):
        model(low, high, torch.zeros(2, 5, 3, 3))
    with pytest.raises(ValueError, match="image_index"):
        make()(low, high, regions=torch.ones(1, 1, 8, 8))
