"""LPIPS from a local AlexNet; needs the extra `lpips` (make test-extras) and is left out elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusers_focus.evaluation.likeness import Lpips

from tests.tiny import picture

lpips = pytest.importorskip("lpips", reason="needs the extra lpips; make test-extras installs it")
torchvision = pytest.importorskip("torchvision", reason="needs torchvision; make test-extras installs it")


def test_trunk_comes_from_the_file(tmp_path):
    torch.manual_seed(4)
    network = torchvision.models.alexnet(weights=None).eval()
    kept = {name: value for name, value in network.state_dict().items() if name.startswith("features.")}
    torch.save(kept, tmp_path / "alexnet.pth")
    measure = Lpips(tmp_path / "alexnet.pth")
    first, second = np.asarray(picture(0)), np.asarray(picture(1))
    assert measure(first, first) == 0.0 and measure(first, second) > 0

    # The definition: unit activations after each ReLU, squared differences weighed by the package's layers, means over places.
    seen = [torch.from_numpy(one.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1 for one in (first, second)]
    seen = [measure.model.scaling_layer(one) for one in seen]
    total, step = 0.0, 0
    with torch.no_grad():
        for layer in network.features:
            seen = [layer(one) for one in seen]
            if isinstance(layer, torch.nn.ReLU):
                a, b = (one / (one.square().sum(dim=1, keepdim=True).sqrt() + 1e-10) for one in seen)
                total += measure.model.lins[step]((a - b) ** 2).mean().item()
                step += 1
    assert step == 5 and measure(first, second) == pytest.approx(total, rel=1e-4)


def test_another_file_is_refused(tmp_path):
    torch.save({"layer.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no features.0.weight"):
        Lpips(tmp_path / "other.pth")
    with pytest.raises(FileNotFoundError, match="AlexNet"):
        Lpips(tmp_path / "nowhere.pth")
