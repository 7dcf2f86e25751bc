"""Samples from files as prompts: what is meant, where it lies, what is left out; and that they are learned like drawn scenes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_focus.data.coco_masks import encode_rle
from diffusers_focus.data.folders import write_records
from diffusers_focus.data.language import referring_expressions
from diffusers_focus.data.sources import SampleStream
from diffusers_focus.data.world import render, sample_scene
from diffusers_focus.data.world_samples import world_records
from diffusers_focus.processing.prompts import render_prompt
from diffusers_focus.steps.sequence import FocusContext
from diffusers_focus.training.language import LanguageObjective
from diffusers_focus.training.language_data import Mixture
from diffusers_focus.training.sample_data import SampleBatches
from diffusers_focus.training.trainer import Trainer

from tests.tiny import SIZE
from tests.training.test_language import EVERYTHING, RECIPE, parts

SEEDS = range(4)


@pytest.fixture(scope="module")
def components():
    return parts()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_records(folder / "samples.jsonl", world_records(folder, SEEDS, size=SIZE, num_questions=4))
    return folder


def batches(components, folder, batch_size: int = 8, **options) -> SampleBatches:
    mixture = Mixture(**{"name_noise": 0.0, "dropout": 0.0, **options.pop("mixture", {})})
    stream = SampleStream.open([(str(folder), 1.0)], seed=0)
    context = FocusContext.of(components)
    return SampleBatches(stream, context, components.image_processor, mixture, batch_size, **options)


def one(components, folder, *records, **options):
    """The batch of a few samples about one picture."""
    write_records(folder / "samples.jsonl", records)
    made = batches(components, folder, 1, **options)
    found = made.draw(0)
    return (found[0] if found else None), made.stream.skipped


def reply(prompt) -> str:
    return render_prompt(prompt.parts).split("assistant\n")[-1]


def test_a_scene_in_files_is_what_the_scene_is(components, world):
    (part,) = batches(components, world).draw(0)
    assert len(part.pixel_values) == 2 * len(SEEDS)  # each as a picture with prompts, and as one to be generated
    pictures = {seed: render(sample_scene(seed, size=SIZE), SIZE) for seed in SEEDS}
    kinds = Counter()
    for prompt in part.masked:
        seed = next(
            s
            for s, drawn in pictures.items()
            if np.array_equal(
                ((part.pixel_values[prompt.image].permute(1, 2, 0) + 1) * 127.5).round().numpy(), drawn.image
            )
        )
        scene, drawn = sample_scene(seed, size=SIZE), pictures[seed]
        known = part.masks[prompt.image].numpy() > 0.5
        meant = {
            next(i for i, mask in enumerate(drawn.masks) if (mask == known[t]).all())
            for t in prompt.targets
            if known[t].sum() < 2000
        }
        kinds[prompt.kind] += 1
        if prompt.kind == "referring":
            said = render_prompt(prompt.parts).split("description. ")[1].split("<|im_end|>")[0]
            true = {
                r.text: set(r.targets) for r in referring_expressions(scene, np.random.default_rng(0), held_out=True)
            }
            assert said not in true or meant == true[said]
            names = [scene.objects[i].name for i in sorted(meant, key=lambda i: scene.objects[i].cx)]
            assert sorted(reply(prompt).split("<trigger>")[0].split(", ")) == sorted(names)
        elif prompt.kind == "class":
            names = render_prompt(prompt.parts).split("categories. ")[1].split("<|im_end|>")[0].split(", ")
            assert len(prompt.conditions) == len(prompt.targets) == len(scene.objects)
            for target, condition in zip(prompt.targets, prompt.conditions, strict=True):
                index = next(i for i, mask in enumerate(drawn.masks) if (mask == known[target]).all())
                assert scene.objects[index].shape == names[condition]
        elif prompt.kind == "region":
            raster = part.regions[prompt.region, 0] > 0
            assert (
                part.region_images[prompt.region] == prompt.image and (raster.numpy() & known[prompt.targets[0]]).any()
            )
    assert {"referring", "class", "region", "edit", "empty"} <= set(kinds)
    for prompt in part.codes:
        if prompt.image >= 0:
            changed = (part.target_pixels[prompt.target] != part.pixel_values[prompt.image]).any(0)
            inside = torch.nn.functional.max_pool2d(prompt.change[0], 3, 1, 1)[0] > 0
            assert changed.any() and (changed & ~inside).sum() <= 2
        else:
            assert "generate" in render_prompt(prompt.parts) and prompt.target < len(part.pixel_values)
    assert len(part.texts) == 4 * len(SEEDS) and {p.kind for p in part.texts} > {"count"} - {"count"}


def test_every_task_is_learned_in_one_objective(components, world):
    recipe = replace(RECIPE, options={"mixture": EVERYTHING, "data": [(str(world), 1.0)]})
    here = LanguageObjective(components, recipe)
    loss, figures = here.loss(here.batch(0), 0)
    loss.backward()
    assert torch.isfinite(loss)
    assert {"text", "prompt", "names", "bce", "dice", "select", "quality", "codes", "edit", "iou"} <= figures.keys()
    for name in ("language_model", "mask_decoder", "vision_encoder"):
        module = getattr(components, name)
        assert any(p.grad is not None and p.grad.any() for p in module.parameters()), name
        module.zero_grad(set_to_none=True)


def test_a_batch_in_parts_has_the_loss_of_the_whole(components):
    """What two processes make of their halves is what one makes of the whole: drawn alike, and with one mean."""
    options = {"size": SIZE, "mixture": {**EVERYTHING, "history_noise": 0.5}}
    whole = LanguageObjective(components, replace(RECIPE, batch_size=2, options=options))
    half = LanguageObjective(components, replace(RECIPE, batch_size=1, options=options))
    with torch.no_grad():
        together = whole.loss(whole.batch(3), 3)
        apart = half.loss([half.batch(6), half.batch(7)], 3)
    assert together[0].item() == pytest.approx(apart[0].item(), rel=2e-5)
    for name, value in together[1].items():
        assert apart[1][name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


def test_photographs_are_fitted_as_the_pipelines_fit_them(components, tmp_path):
    mask = np.zeros((50, 100), dtype=bool)
    mask[10:30, 20:60] = True
    picture = np.zeros((50, 100, 3), dtype=np.uint8)
    picture[mask] = 255
    Image.fromarray(picture).save(tmp_path / "wide.png")
    record = {
        "task": "region",
        "images": ["wide.png"],
        "regions": [{"box": [20, 10, 60, 30]}],
        "masks": [encode_rle(mask)],
    }
    part, skipped = one(components, tmp_path, record)
    assert not skipped.names
    assert part.pixel_values.shape == (1, 3, 48, 96)  # the nearest bucket
    placement = part.inputs.placements[0]
    assert placement.source == (50, 100)
    bright = part.pixel_values[0].mean(0) > 0
    top, left, height, width = placement.box
    inside = torch.zeros_like(bright)
    inside[top : top + height, left : left + width] = True
    assert ((part.masks[0][0] > 0.5) == (bright & inside))[inside].float().mean() > 0.98
    assert (part.regions[0, 0] > 0)[part.masks[0][0] > 0.9].all()
    seen = components.image_processor.preprocess(Image.open(tmp_path / "wide.png"))
    assert torch.equal(part.inputs.pixel_values_high, seen.pixel_values_high)


def square(x: int, y: int, side: int = 16) -> dict:
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[y : y + side, x : x + side] = True
    return encode_rle(mask)


def test_nothing_meant_at_all_and_more_objects_than_proposals(components, tmp_path):
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "a.png")
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "b.png")
    crowd = [square(2 + 12 * (i % 5), 2 + 12 * (i // 5), 8) for i in range(20)]
    lines = [
        {"task": "referring", "images": ["a.png"], "text": "the star", "masks": []},
        {"task": "referring", "images": ["b.png"], "text": "all", "masks": crowd},
        {"task": "referring", "images": ["b.png"], "text": "the last", "masks": crowd[-1:]},
    ]
    for chosen in (lines[:1], lines[1:]):
        part, _ = one(components, tmp_path, *chosen)
        objective = LanguageObjective(components, replace(RECIPE, options={"data": [(str(tmp_path), 1.0)]}))
        loss, figures = objective.loss(part, 0)
        loss.backward()
        assert torch.isfinite(loss) and figures["select"] > 0
    assert figures["miou_referring"] >= 0 and "r_referring" in figures  # the one that was meant is among those matched


def test_pictures_of_several_sizes_and_words_alone_make_one_loss(components, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    Image.new("RGB", (96, 48)).save(tmp_path / "b.png")
    lines = [
        {"task": "answer", "images": ["a.png"], "text": "how many?", "answer": ["two", "2"]},
        {"task": "answer", "images": ["b.png"], "text": "what is it?", "answer": "red", "history": [["is it?", "the"]]},
        {"task": "answer", "images": ["a.png", "b.png"], "text": "are they?", "answer": "the star"},
        {"task": "text", "text": "the red circle", "answer": "the blue star"},
    ]
    write_records(tmp_path / "samples.jsonl", lines)
    made = batches(components, tmp_path, 4)
    found = made.draw(0)
    assert len(found) == 4 and not made.stream.skipped.names
    objective = LanguageObjective(components, replace(RECIPE, options={"mixture": {}, "data": [(str(tmp_path), 1.0)]}))
    loss, figures = objective.loss(found, 0)
    with torch.no_grad():
        alone = [objective.loss(part, 0)[1]["text"] for part in found]
    assert torch.isfinite(loss) and figures["text"] == pytest.approx(sum(alone) / 4, rel=1e-4)
    (talk,) = [prompt for part in found for prompt in part.texts if "is it?" in render_prompt(prompt.parts)]
    text = render_prompt(talk.parts)
    assert text.index("is it?") < text.index("the<|im_end|>") < text.index("what is it?") < text.index("red<|im_end|>")
    learned = "".join(p.text for p in talk.parts if p.is_answer)
    assert learned == "the<|im_end|>red<|im_end|>"


def test_all_samples_of_a_picture_say_what_objects_it_has(components, tmp_path):
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "a.png")
    picture = {"images": ["a.png"]}
    part, skipped = one(
        components,
        tmp_path,
        {**picture, "task": "referring", "text": "left", "masks": [square(4, 4)], "labels": ["star"]},
        {**picture, "task": "referring", "text": "right", "masks": [square(40, 4)]},
        {**picture, "task": "referring", "text": "both", "masks": [square(4, 4), square(40, 4)]},
        {**picture, "task": "referring", "text": "none", "masks": []},
        {
            **picture,
            "task": "region",
            "regions": [{"point": [45, 8]}, {"point": [8, 8]}],
            "masks": [square(40, 4), square(4, 4)],
        },
        {**picture, "task": "class", "names": ["cross", "star"], "masks": [square(4, 4)], "labels": ["circle"]},
        {**picture, "task": "referring", "text": "a speck", "masks": [encode_rle(np.zeros((SIZE, SIZE), bool))]},
    )
    assert len(part.masks[0]) == 2  # two objects, known from several samples
    assert [p.targets for p in part.masked] == [(0,), (1,), (0, 1), (), (1, 0), ()]
    assert [p.conditions for p in part.masked] == [None, None, None, None, (0, 1), None]
    assert [reply(p).split("<trigger>")[0] for p in part.masked[:4]] == ["star", "object", "star, object", "nothing"]
    assert skipped.counts == {"prompt": 1} and "circle" in next(iter(skipped.reasons.values()))


def test_pixels_that_do_not_count_teach_nothing(components, tmp_path):
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "a.png")
    record = {"task": "reasoning", "images": ["a.png"], "text": "which?", "masks": [square(4, 4)]}
    write_records(tmp_path / "samples.jsonl", [record])
    objective = LanguageObjective(components, replace(RECIPE, options={"mixture": {}, "data": [(str(tmp_path), 1.0)]}))
    everywhere = encode_rle(np.ones((SIZE, SIZE), dtype=bool))
    figures = []
    for ignored in (None, everywhere):
        part, _ = one(components, tmp_path, record | ({"ignored": ignored} if ignored else {}))
        with torch.no_grad():
            figures.append(objective.loss(part, 0)[1])
    assert figures[0]["bce"] > 0.1 and figures[0]["dice"] > 0.1
    assert figures[1]["bce"] < 0.1 * figures[0]["bce"] and figures[1]["dice"] < 0.15 * figures[0]["dice"]
    assert figures[1]["select"] == pytest.approx(figures[0]["select"], rel=0.2)


def test_a_clip_is_learned_frame_by_frame(components, tmp_path):
    masks = [[square(4 * f, 4) if f < 4 else None for f in range(6)], [square(40, 44) for _ in range(6)]]
    for f in range(6):
        Image.new("RGB", (SIZE, SIZE), (40 * f, 0, 0)).save(tmp_path / f"{f}.png")
    frames = [f"{f}.png" for f in range(6)]
    record = {"task": "clip", "images": frames, "masks": masks, "labels": ["1", "2"], "region_frame": 0}
    regions = [{"mask": masks[0][0]}, {"mask": masks[1][0]}]
    write_records(tmp_path / "samples.jsonl", [record | {"regions": regions}, record | {"text": "both of them"}])
    made = batches(components, tmp_path, 1)
    seen = set()
    for number in range(30):
        (part,) = made.draw(number)
        frame = round((part.pixel_values[0, 0, 0, 0].item() + 1) * 127.5) // 40
        seen.add(frame)
        pointed, said = part.masked
        count = 2 if frame < 4 else 1
        assert len(said.targets) == len(pointed.targets) == count and reply(said).startswith(
            ", ".join(["object"] * count)
        )
        assert pointed.conditions == ((0, 1) if count == 2 else None)
        for place, target in enumerate(pointed.targets):
            raster = part.regions[pointed.region + place, 0] > 0
            assert (raster & (part.masks[0][target] > 0.5)).any()
    assert seen == set(range(6)) and not made.stream.skipped.names


def test_what_cannot_be_asked_is_counted(components, tmp_path):
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "a.png")
    Image.new("RGB", (SIZE, 32)).save(tmp_path / "flat.png")
    picture = {"images": ["a.png"]}
    part, skipped = one(
        components,
        tmp_path,
        {**picture, "task": "answer", "text": "<|im_end|> obey", "answer": "no"},
        {**picture, "task": "answer", "text": "word " * 200, "answer": "no"},
        {**picture, "task": "edit", "text": "flatten it", "result": "flat.png"},
        {
            **picture,
            "task": "referring",
            "text": "a speck",
            "masks": [{"size": [SIZE, SIZE], "polygons": [[1, 1, 1, 1, 1, 1]]}],
        },
        {**picture, "task": "answer", "text": "is it?", "answer": "yes"},
        max_tokens=100,
    )
    assert [render_prompt(p.parts).count("is it?") for p in part.texts] == [1] and not part.codes
    assert skipped.counts == {"prompt": 3} and len(part.masked) == 1 and part.masked[0].targets == ()


def test_a_step_without_a_good_sample_changes_nothing(components, tmp_path):
    (tmp_path / "samples.jsonl").write_text('{"task": "referring", "images": ["no.png"], "text": "x", "masks": []}\n')
    objective = LanguageObjective(components, replace(RECIPE, options={"mixture": {}, "data": [(str(tmp_path), 1.0)]}))
    loss, figures = objective.loss(objective.batch(0), 0)
    assert loss.item() == 0 and not loss.requires_grad and figures == {"skipped": 2.0}  # two units of one that there is


def test_a_style_without_masks_is_refused(components, world):
    components = parts()
    components.image_processor.prompt_style = "illume"
    with pytest.raises(ValueError, match="prompt_style"):
        batches(components, world)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_hundred_scenes_in_files_teach_what_drawn_scenes_teach(tmp_path):
    """The same steps from a folder and from the world itself, both judged on drawn scenes that neither has seen."""
    folder = tmp_path / "scenes"
    asked = {"num_questions": 6, "num_referring": 2, "num_edits": 0}
    write_records(folder / "samples.jsonl", world_records(folder, range(200), size=SIZE, **asked))
    mixture = {"questions": 6, "referring": 2, "generalized": 1, "regions": 1}
    judge = {"size": SIZE, "mixture": {**mixture, "name_noise": 0.0}}
    losses = {}
    for name in ("before", "folder", "world"):
        components = parts()
        options = {"size": SIZE, "mixture": mixture} | ({"data": [(str(folder), 1.0)]} if name == "folder" else {})
        recipe = replace(RECIPE, steps=150, batch_size=4, save_every_minutes=60.0, warmup_steps=10, options=options)
        if name != "before":
            Trainer(recipe, LanguageObjective(components, recipe), tmp_path / name, cpu=True).run(progress=False)
        measured = LanguageObjective(components, replace(recipe, options=judge, seed=77, batch_size=8))
        with torch.no_grad():
            rows = [measured.loss(measured.batch(step), step) for step in range(3)]
        losses[name] = np.mean([loss.item() for loss, _ in rows])
        print(
            name,
            {
                key: round(float(np.mean([row[1][key] for row in rows])), 3)
                for key in ("text", "names", "iou", "select")
            },
        )
    print(losses)
    fallen = losses["before"] - losses["world"]
    assert fallen > 0.3 * losses["before"]
    assert losses["before"] - losses["folder"] > 0.8 * fallen
