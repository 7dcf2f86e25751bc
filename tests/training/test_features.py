"""Stage 0, features: words read from pixels under a mask, and from regions."""

from __future__ import annotations

import pytest
import torch

from diffusers_focus.data.world import COLOURS, SHAPES
from diffusers_focus.training.batches import scene_batch
from diffusers_focus.training.features import (
    GROUP_WEIGHTS,
    WORD_GROUPS,
    WORDS,
    FeatureObjective,
    ObjectWords,
    all_words_right,
    word_cross_entropy,
    word_targets,
    words_right,
)
from diffusers_focus.training.trainer import StageRecipe

from tests.tiny import SIZE, tiny_components

SIZES = {"low_size": (56, 56), "high_size": (SIZE, SIZE)}


@pytest.fixture
def objective() -> FeatureObjective:
    parts = tiny_components()
    recipe = StageRecipe("0-features", "features", (), steps=10, batch_size=2, options={"size": SIZE})
    return FeatureObjective(parts["vision_encoder"], parts["mask_decoder"], recipe, **SIZES)


def test_targets_are_the_four_words_of_every_object():
    for scene in scene_batch(0, 0, 4, SIZE).scenes:
        for row, item in zip(word_targets(scene), scene.objects, strict=True):
            assert {WORDS[i] for i in row.nonzero()[:, 0]} == {item.colour, item.shape, item.fill, item.size}


def test_word_cross_entropy_and_words_right_by_hand():
    words = word_targets(scene_batch(0, 0, 1, SIZE).scenes[0])[:2]
    assert words_right(100 * words, words).shape == (4, 2) and words_right(100 * words, words).all()
    # With no opinion each group costs the logarithm of its size, shapes twice.
    costs = torch.tensor(WORD_GROUPS).log() * torch.tensor(GROUP_WEIGHTS)
    torch.testing.assert_close(word_cross_entropy(torch.zeros_like(words), words), costs.sum() / 5)
    assert GROUP_WEIGHTS == (1, 2, 1, 1) and WORD_GROUPS[1] == len(SHAPES)
    # The second object's shape is wrong, and nothing else.
    logits = 100 * words
    shapes = slice(len(COLOURS), len(COLOURS) + len(SHAPES))
    logits[1, shapes] = logits[1, shapes].roll(1)
    assert words_right(logits, words).tolist() == [[True, True], [True, False], [True, True], [True, True]]
    assert all_words_right(logits, words) == 0.5


def test_the_read_out_uses_only_pixels_under_the_mask():
    read = ObjectWords([6, 10])
    mask = torch.zeros(2, SIZE, SIZE)
    mask[0, :16, :24] = 1
    mask[1, 32:, 32:] = 1
    words = torch.cat([word_targets(s) for s in scene_batch(0, 0, 1, SIZE).scenes])[:2]
    maps = [torch.randn(1, 6, 16, 16), torch.randn(1, 10, 8, 8)]
    loss, logits = read(maps, [mask], [words])
    # The last map's mean over the first object's cells, normalised, through the last head.
    rows = torch.stack([maps[1][0, :, :2, :3].flatten(1).mean(1), maps[1][0, :, 4:, 4:].flatten(1).mean(1)])
    torch.testing.assert_close(logits, read.heads[1](torch.nn.functional.layer_norm(rows, (10,))))
    for level, (rows_, columns) in enumerate([(4, 6), (2, 3)]):
        changed = [m.clone() for m in maps]
        changed[level][..., : 2 * rows_, : 2 * columns] += 1.5 * torch.randn(1)  # over the edge of the first mask ...
        changed[level][..., :rows_, :columns] = maps[level][..., :rows_, :columns]  # ... but not inside
        assert torch.equal(read(changed, [mask], [words])[0], loss)
        changed[level][0, 0, 0, 0] += 1
        assert not torch.equal(read(changed, [mask], [words])[0], loss)


def test_pictures_are_not_mixed_up(objective):
    """Every object is read from its own picture: swapping the pictures' maps changes all of them."""
    read = ObjectWords([6])
    batch = objective.batch(0)
    maps = torch.randn(2, 6, 16, 16)
    _, together = read([maps], batch.masks, batch.words)
    alone = [read([maps[i : i + 1]], batch.masks[i : i + 1], batch.words[i : i + 1])[1] for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone))
    _, swapped = read([maps.flip(0)], batch.masks, batch.words)
    assert ((swapped - together).abs().amax(1) > 1e-3).all()


def test_batches_are_crowded_with_a_region_on_every_object(objective):
    for step in range(6):
        batch = objective.batch(step)
        counts = [len(s.objects) for s in batch.scenes.scenes]
        assert all(4 <= n <= 8 for n in counts)
        assert [len(m) for m in batch.masks] == [len(w) for w in batch.words] == counts
        assert batch.region_images.tolist() == [i for i, n in enumerate(counts) for _ in range(n)]
        for region, mask in zip(batch.regions, torch.cat(batch.masks), strict=True):
            assert ((region[0] > 0) & (mask > 0)).any()
    again = objective.batch(5)
    assert torch.equal(again.regions, batch.regions) and torch.equal(
        again.scenes.pixel_values, batch.scenes.pixel_values
    )


def test_the_loss_falls_on_one_batch(objective):
    batch = objective.batch(0)
    parameters = [p for module in objective.modules().values() for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=5e-3)
    losses = []
    for step in range(12):
        loss, figures = objective.loss(batch, step)
        assert loss.item() == pytest.approx(figures["scales"] + figures["regions"], rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert {"colour", "shape", "fill", "size", "region_shape", "region_names"} <= figures.keys()


def test_every_scale_and_the_region_tokens_teach_what_makes_them(objective):
    objective.loss(objective.batch(0), 0)[0].backward()

    def taught(module: torch.nn.Module) -> set[str]:
        return {n.split(".")[0] for n, p in module.named_parameters() if p.grad is not None and p.grad.any()}

    assert {"pyramid", "region_pooler", "vit", "fusion"} <= taught(objective.encoder)
    assert "query_adapter" not in taught(objective.encoder)
    assert taught(objective.decoder) == {"pixel_decoder"}
    heads = {n for n, p in objective.heads.named_parameters() if p.grad is not None and p.grad.any()}
    assert heads == {n for n, _ in objective.heads.named_parameters()}
