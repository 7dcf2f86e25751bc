"""Following objects: the geometry of the grid, which proposal is whose, and what is remembered; on real components of test size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from diffusers_focus.steps import tracking
from diffusers_focus.steps.encode import encode_image
from diffusers_focus.steps.segment import MaskPrompt
from diffusers_focus.steps.tracking import ClipTracker, Linking, _centre, _iou, _moved, _pairs

from tests.tiny import disk_mask, picture, shared_pipeline

ANYTHING = Linking(least_score=0.0, least_likeness=-1.0, lost_likeness=-1.0, same=0.99)


@pytest.fixture(scope="module")
def frames():
    pipe = shared_pipeline()
    with torch.no_grad():
        return [encode_image(pipe, picture(seed)) for seed in range(3)]


def tracker(*queries: MaskPrompt, linking: Linking | None = None) -> ClipTracker:
    pipe = shared_pipeline()
    return ClipTracker(pipe, pipe.config, queries, linking=linking, max_new_tokens=2)


def pointed(x: int = 18) -> MaskPrompt:
    region = np.zeros((64, 64), dtype=bool)
    region[x : x + 8, x : x + 8] = True
    return MaskPrompt(0, "interactive", None, (region,))


def block(x: int, y: int, size: int = 2) -> torch.Tensor:
    cells = torch.zeros(8, 10, dtype=torch.bool)
    cells[y : y + size, x : x + size] = True
    return cells


def test_geometry_of_the_grid():
    cells = block(3, 4)
    assert _centre(cells).tolist() == [3.5, 4.5] and _centre(torch.zeros(8, 10, dtype=torch.bool)).tolist() == [0, 0]
    assert torch.equal(_moved(cells, torch.tensor([2.4, -3.0])), block(5, 1))
    assert _moved(cells, torch.tensor([6.0, 0.0])).sum() == 2 and not _moved(cells, torch.tensor([0.0, 90.0])).any()
    table = _iou(torch.stack([cells, block(4, 4)]), torch.stack([cells, torch.zeros_like(cells)]))
    assert table.tolist() == [[1.0, 0.0], [pytest.approx(1 / 3), 0.0]]


def test_pairs_are_taken_from_the_best_down():
    table = torch.tensor([[0.9, 0.8, 0.1], [0.95, 0.2, 0.3]])
    assert _pairs(table, 0.25) == [(1, 0), (0, 1)]
    assert _pairs(table, 0.85) == [(1, 0)] and _pairs(table[:0], 0.1) == []


@torch.no_grad()
def test_an_object_is_prompted_by_its_own_token_and_keeps_its_number(frames):
    here = tracker(linking=ANYTHING)
    (first, second) = here.point(frames[0], [pointed(), pointed(44)], [7, 3], [True, True])
    assert [s.track.number for s in (first, second)] == [7, 3] and len(here.tracks) == 2
    before = first.track.last.token.clone()
    sights = here.step(frames[1])
    assert {s.track.number for s in sights} == {7, 3} and all(s.track.missed == 0 for s in sights)
    for sight in sights:
        assert torch.equal(sight.track.cells, sight.logits > 0)
    assert torch.equal(first.track.first.token, before)  # what it was like at first is not forgotten


@torch.no_grad()
def test_nothing_that_looks_different_is_taken_and_what_is_lost_comes_back(frames):
    here = tracker(linking=replace(ANYTHING, least_likeness=1.1, lost_likeness=1.1))
    (sight,) = here.point(frames[0], [pointed()], [1], [True])
    assert [here.step(frame) for frame in frames] == [[], [], []] and sight.track.missed == 3
    here.linking = ANYTHING
    (again,) = here.step(frames[0])
    assert again.track is sight.track and again.track.number == 1 and again.track.missed == 0


@torch.no_grad()
def test_a_mask_that_the_model_does_not_see_is_followed_as_it_is(frames):
    here = tracker(linking=Linking(region_overlap=1.1))
    prompt = MaskPrompt(0, "interactive", None, (disk_mask(),))
    (sight,) = here.point(frames[0], [prompt], [1], [True])
    drawn = torch.nn.functional.interpolate(torch.from_numpy(disk_mask()).float()[None, None], sight.logits.shape)[0, 0]
    assert _iou((sight.logits > 0)[None], drawn[None] > 0.5)[0, 0] > 0.6
    (seen,) = tracker(linking=Linking(region_overlap=1.1)).point(frames[0], [prompt], [1], [False])
    assert not torch.equal(seen.logits, sight.logits)  # of a click the model's object is taken


@torch.no_grad()
def test_two_expressions_may_mean_the_same_object(frames):
    one = MaskPrompt(0, "referring", "the red circle")
    alone, both = tracker(one, linking=ANYTHING), tracker(one, one, linking=ANYTHING)
    for frame in frames:
        wanted, found = alone.step(frame), both.step(frame)
        assert wanted
        for query in (0, 1):
            own = [sight for sight in found if sight.track.query == query]
            assert [s.logits.sum().item() for s in own] == pytest.approx(
                [s.logits.sum().item() for s in wanted], rel=1e-3
            )


@torch.no_grad()
def test_memory_is_bounded(frames, monkeypatch):
    monkeypatch.setattr(tracking, "MOST_TRACKS", 3)
    monkeypatch.setattr(tracking, "MOST_MEANT", 2)
    nothing_alike = Linking(least_score=2.0, lost_likeness=2.0)
    here = tracker(
        MaskPrompt(0, "class", ["circle", "star"]), MaskPrompt(0, "referring", "the star"), linking=nothing_alike
    )
    numbers = set()
    for frame in [*frames, *frames]:
        numbers |= {sight.track.number for sight in here.step(frame)}
        assert sum(track.query == 0 for track in here.tracks) <= 3
        assert sum(track.query == 1 for track in here.tracks) <= 2
    assert len(numbers) > 5  # every frame brought new ones
