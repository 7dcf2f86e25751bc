"""Options of edits and generation: batches, schedulers, strength, callbacks, precision, offloading, partial pipelines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback, SDXLCFGCutoffCallback

from diffusers_focus import Box, Mask, Point, Scribble, Strokes
from diffusers_focus.processing.prompts import UNDERSTAND
from diffusers_focus.steps import composite
from diffusers_focus.steps.encode import encode_tensors
from diffusers_focus.steps.sequence import FocusContext, encode_prefix

from tests.tiny import SIZE, disk_mask, picture, seeded, shared_pipeline, tiny_pipeline


@pytest.fixture(scope="module")
def pipe():
    return shared_pipeline()


def difference(a, b) -> int:
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max())


def edit(pipe, **options):
    options = {"mask_image": disk_mask(), "generator": seeded(), **options}
    return pipe.edit(picture(), "remove the red circle", **options).images[0]


def test_a_list_of_generators_makes_batches_equal_singles(pipe):
    images, texts, masks = [picture(0), picture(1)], ["remove the red circle", "replace it"], [disk_mask(), disk_mask()]
    both = pipe.edit(images, texts, mask_image=masks, generator=[seeded(1), seeded(2)]).images
    drawn = pipe.generate(texts, generator=[seeded(1), seeded(2)]).images
    for i in range(2):
        alone = pipe.edit(images[i], texts[i], mask_image=masks[i], generator=seeded(i + 1)).images[0]
        assert difference(both[i], alone) <= 1
        assert difference(drawn[i], pipe.generate(texts[i], generator=[seeded(i + 1)]).images[0]) <= 1


def test_one_image_takes_several_instructions_and_each_result_its_seed(pipe):
    out = pipe.edit(picture(), ["remove it", "replace it"], mask_image=disk_mask(), num_images_per_prompt=2)
    assert len(out.images) == 4 and len(out.edit_masks) == 2
    assert difference(out.images[0], out.images[1]) > 0


@pytest.mark.parametrize(
    "scheduler",
    [
        DPMSolverMultistepScheduler,
        EulerAncestralDiscreteScheduler,
        EulerDiscreteScheduler,
        HeunDiscreteScheduler,
        UniPCMultistepScheduler,
    ],
)
def test_any_scheduler_edits_from_the_middle_of_its_schedule(scheduler):
    pipe = tiny_pipeline(scheduler=scheduler())
    result = edit(pipe, num_inference_steps=6, strength=0.7)
    outside = np.ones((64, 64), dtype=bool)
    outside[5:34, 5:34] = False
    assert (np.asarray(result)[outside] == np.asarray(picture())[outside]).all()
    assert difference(result, picture()) > 0


def test_own_schedules_replace_the_number_of_steps():
    pipe, steps = tiny_pipeline(scheduler=EulerDiscreteScheduler()), []
    for schedule in ({"timesteps": [900, 500, 100]}, {"sigmas": [10.0, 3.0, 1.0, 0.0]}):
        pipe.generate("a star", callback_on_step_end=lambda p, i, t, k: steps.append(i), **schedule)
    assert steps == [0, 1, 2, 0, 1, 2]


@torch.no_grad()
def test_little_strength_stays_near_the_source(pipe):
    raw = {"num_inference_steps": 10, "preserve_background": False, "output_type": "latent"}
    source = composite.source_latents(pipe, pipe.encode_image(picture()), [0], (64, 64), "cpu")
    little, whole = (
        (edit(pipe, strength=strength, **raw) - source[0]).abs().mean() for strength in (0.1, 1.0)
    )  # fmt: skip
    assert little < whole / 2


def test_guidance_and_given_noise_change_the_result(pipe):
    noise = torch.randn(1, 4, 16, 16, generator=seeded(9))
    first = edit(pipe, latents=noise)
    assert difference(first, edit(pipe, latents=noise)) == 0
    assert difference(first, edit(pipe)) > 0
    for option in (
        {"guidance_scale": 6.0},
        {"mask_guidance_scale": 6.0},
        {"mask_guidance_scale": 0.0},
        {"limit_tokens": False},
    ):
        assert difference(first, edit(pipe, latents=noise, **option)) > 0, option


@pytest.mark.parametrize("kind", [SDCFGCutoffCallback, SDXLCFGCutoffCallback])
def test_diffusers_own_callbacks_can_end_guidance(pipe, kind):
    seen = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    try:
        pipe.generate("a star", num_inference_steps=4, callback_on_step_end=kind(cutoff_step_ratio=0.5))
    finally:
        hook.remove()
    assert seen == [2, 2, 2, 1]


def test_several_callbacks_share_their_tensors(pipe):
    both = MultiPipelineCallbacks(
        [SDXLCFGCutoffCallback(None, cutoff_step_index=1), SDCFGCutoffCallback(None, cutoff_step_index=2)]
    )
    options = {"num_inference_steps": 3, "output_type": "latent"}
    cut = pipe.generate("a star", generator=seeded(), callback_on_step_end=both, **options).images
    assert pipe.guidance_scale == 0.0 and not pipe.do_classifier_free_guidance
    assert (cut - pipe.generate("a star", generator=seeded(), **options).images).abs().max() > 1e-4


def test_callbacks_get_every_tensor_and_may_change_each(pipe):
    """What a callback puts in the place of a tensor is what the next step reads."""
    names, shapes = pipe._callback_tensor_inputs, {}

    def note(pipeline, step, timestep, tensors):
        shapes.update({name: tuple(value.shape) for name, value in tensors.items()})
        return {}

    options = {
        "num_inference_steps": 3,
        "num_images_per_prompt": 2,
        "mask_image": disk_mask(),
        "preserve_background": False,
    }
    arguments = {"callback_on_step_end_tensor_inputs": names, "output_type": "latent", "generator": seeded(), **options}
    plain = pipe.edit(picture(), "remove it", callback_on_step_end=note, **arguments).images
    assert shapes["latents"] == (2, 4, 16, 16) and shapes["token_map"] == (2, 8, 4, 4)
    assert shapes["prompt_embeds"] == shapes["negative_prompt_embeds"] == (2, 77 + 16, 32)
    assert shapes["add_text_embeds"] == (2, 32) and shapes["add_time_ids"] == (2, 6)
    for changed in names:

        def change(pipeline, step, timestep, tensors, changed=changed):
            return {changed: tensors[changed] + 1.0}

        arguments["generator"] = seeded()
        latents = pipe.edit(picture(), "remove it", callback_on_step_end=change, **arguments).images
        assert (latents - plain).abs().max() > 1e-4, changed


def test_progress_bars_are_configured_in_diffusers_way(pipe, capsys):
    other = tiny_pipeline()
    other.set_progress_bar_config(disable=False, desc="drawing", ascii=True)
    other.generate("a star", num_inference_steps=1, generator=seeded())
    assert "drawing: 100%" in capsys.readouterr().err
    pipe.generate("a star", num_inference_steps=1, generator=seeded())
    assert "drawing" not in capsys.readouterr().err


def test_interrupting_between_tokens_ends_the_call_quickly(pipe):
    """A user interface sets the flag from outside; here from within the language model."""
    forwards = []

    def stop(*_):
        forwards.append(1)
        pipe._interrupt = True

    hook = pipe.language_model.model.register_forward_hook(stop)
    try:
        assert pipe.generate("a star", generator=seeded()).images[0].size == (64, 64)
    finally:
        hook.remove()
        pipe._interrupt = False
    assert len(forwards) < 5


def test_pictures_of_several_shapes_share_a_batch(pipe):
    pictures = [picture(0, 48, 80), picture(1, 64, 70)]
    out = pipe.edit(pictures, "remove it", region=[Point(3, 3), None], output_type="np")
    assert [image.shape for image in out.images] == [(48, 80, 3), (64, 70, 3)]
    assert [mask.shape for mask in out.edit_masks] == [(48, 80), (64, 70)]


def test_several_expressions_and_classes_per_image(pipe):
    options = {"score_threshold": 0.0, "fallback_threshold": 0.0, "max_new_tokens": 3}
    out = pipe.segment([picture(0), picture(1)], [["the red circle", "it"], ["the blue star"]], **options)
    assert [len(entry) for entry in out.masks] == [2, 1] and isinstance(out.text[0][1], str)
    named = pipe.segment(picture(), classes=["circle", "star"], **options)
    assert set(named.labels[0]) <= {"circle", "star"} and len(named.masks) == 1


def test_images_of_one_question_keep_their_own_sizes(pipe):
    square, wide = picture(0), picture(1, 48, 96)
    asked = [[square, wide], [wide]]
    seen = pipe._question_images(asked)
    assert [image.size for image in seen.images] == [(SIZE, SIZE), (48, 96), (48, 96)] and seen.counts == (2, 1)
    prefix = encode_prefix(pipe, FocusContext.of(pipe), seen, task=UNDERSTAND)
    lengths = [encode_prefix(pipe, FocusContext.of(pipe), image, task=UNDERSTAND).length for image in seen.images]
    alone = len(FocusContext.of(pipe).segments(FocusContext.of(pipe).style.prefix(0))[0].ids)
    assert prefix.mask.sum(1).tolist() == [lengths[0] + lengths[1] - alone, lengths[2]]
    answers = pipe.understand(asked, "how many?", max_new_tokens=3).text
    again = [[pipe.encode_image(image) for image in group] for group in asked]
    assert pipe.understand(again, "how many?", max_new_tokens=3).text == answers
    with pytest.raises(ValueError, match="one image in its question"):
        pipe.understand(asked, "how many?", region=Point(3, 3))


def test_questions_may_have_several_images_or_none(pipe):
    answers = pipe.understand([[picture(0), picture(1)], [picture(1)]], "how many?", max_new_tokens=2).text
    assert len(answers) == 2
    assert len(pipe.understand(None, ["how many?", "what is this?"], max_new_tokens=2).text) == 2
    with pytest.raises(ValueError, match="one image"):
        pipe.segment([[picture(0), picture(1)]], "the red circle")


def test_sampled_answers_follow_their_generators(pipe):
    def ask(*seeds):
        return pipe.understand(
            [picture(0), picture(1)], "how many?", temperature=1.0, generator=[seeded(s) for s in seeds]
        ).text

    assert ask(1, 2) == ask(1, 2)
    assert ask(1, 2)[0] == ask(1, 5)[0]


@torch.no_grad()
def test_encodings_of_tensors_can_be_edited_too(pipe):
    values = torch.rand(1, 3, 64, 64, generator=seeded()) * 2 - 1
    out = pipe.edit(encode_tensors(pipe, values), "remove it", mask_image=disk_mask(), output_type="pt")
    own = ((values + 1) * 127.5).round() / 255
    torch.testing.assert_close(out.images[..., 40:, :], own[..., 40:, :])


def test_a_model_without_a_mask_decoder_edits_the_whole_image():
    pipe = tiny_pipeline(mask_decoder=None, mask_conditioner=None)
    assert pipe.edit(picture(), "remove it").edit_masks[0].all()
    with pytest.raises(ValueError, match="mask_decoder"):
        pipe.edit(picture(), "remove it", target="the star")
    with pytest.raises(ValueError, match="mask_decoder"):
        pipe.segment(picture(), "the star")


@pytest.mark.parametrize("absent", [{"mask_decoder": None}, {"masks_trained": False}])
def test_without_trained_masks_a_mask_or_box_from_outside_is_the_place(absent):
    pipe = tiny_pipeline(mask_conditioner=None, **absent)
    box = Box(8, 4, 30, 40).rasterize(64, 64)
    for place in (Box(8, 4, 30, 40), Mask(box), [Box(8, 4, 30, 20), Box(8, 20, 30, 40)]):
        regions = [place] if isinstance(place, list) else place
        out = pipe.edit(picture(), "make it blue", region=regions, generator=seeded())
        assert (out.edit_masks[0] == box).all()
    given = pipe.edit(picture(), "make it blue", mask_image=disk_mask(), generator=seeded())
    assert (given.edit_masks[0] == disk_mask()).all()
    assert pipe.edit(picture(), "make it blue", generator=seeded()).edit_masks[0].all()
    for question in ({"target": "the star"}, {"region": Point(20, 20)}, {"region": Scribble([(3, 3), (9, 9)])}):
        with pytest.raises(ValueError, match="mask_image"):
            pipe.edit(picture(), "make it blue", **question)
    with pytest.raises(ValueError, match="(?s)mask_decoder.*stages"):
        pipe.segment(picture(), region=Box(8, 4, 30, 40))


@pytest.mark.parametrize("crop", [None, 4])
def test_target_and_region_say_what_is_meant_within_a_mask(pipe, crop):
    """The mask alone says where pixels may change, also where only its surroundings are edited."""
    image, everywhere = picture(0), np.ones((SIZE, SIZE), dtype=bool)
    everywhere[:3] = False
    options = {"padding_mask_crop": crop, "mask_image": everywhere, "num_inference_steps": 1}
    for said in ({"target": "the red circle"}, {"region": Point(20, 20)}):
        meant = pipe.segment(image, **said).masks[0]
        out = pipe.edit(image, "make it blue", **said, **options)
        assert (out.masks[0] == meant[(meant & everywhere).any(axis=(1, 2))]).all()
        assert (out.edit_masks[0] == everywhere).all()
    alone = pipe.edit(image, "make it blue", **options)
    assert (alone.masks[0] == everywhere[None]).all() and not out.masks[0].all()


def test_an_edit_of_nothing_leaves_the_image_alone(pipe):
    pipe = tiny_pipeline(score_threshold=1.0, fallback_threshold=1.0)
    out = pipe.edit(picture(), "remove the star")
    assert difference(out.images[0], picture()) == 0 and not out.edit_masks[0].any()
    assert tiny_pipeline(score_threshold=1.0, fallback_threshold=1.0, edit_without_mask=True).edit(
        picture(), "make it night"
    ).edit_masks[0].all()  # fmt: skip


def test_model_offloading_changes_nothing():
    plain, offloaded = tiny_pipeline(), tiny_pipeline()
    offloaded.enable_model_cpu_offload(device="cpu")
    assert difference(edit(plain), edit(offloaded)) == 0
    ask = [p.understand(picture(), "how many?", region=Point(3, 3), max_new_tokens=4).text for p in (plain, offloaded)]
    assert ask[0] == ask[1]
    scores = [p.segment(picture(), "the red circle").scores[0] for p in (plain, offloaded)]
    np.testing.assert_allclose(*scores)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(dtype):
    pipe = tiny_pipeline().to(dtype)
    result = np.asarray(edit(pipe, region=None))
    assert result.std() > 0 and pipe.segment(picture(), region=Point(20, 20)).scores[0].dtype == np.float32


def test_rows_of_a_batch_may_ask_for_different_things():
    pipe, options = shared_pipeline(), {"score_threshold": 0.0, "fallback_threshold": 0.0, "max_new_tokens": 3}
    images, names = [picture(0), picture(1), picture(2)], ["circle", "star"]
    region = Strokes(Point(20, 20), Point(60, 60, positive=False))
    rows = {"target": ["it", None, None], "region": [None, region, None], "classes": [None, None, names]}
    mixed = pipe.segment(images, **rows, task=["reasoning", None, "semantic"], **options)
    alone = [
        pipe.segment(images[0], "it", task="reasoning", **options),
        pipe.segment(images[1], region=[[Point(20, 20), Point(60, 60, positive=False)]], **options),
        pipe.segment(images[2], classes=names, task="semantic", **options),
    ]
    for row, one in enumerate(alone):
        assert mixed.labels[row] == one.labels[0] and mixed.text[row] == one.text[0]
        np.testing.assert_allclose(mixed.scores[row], one.scores[0], atol=1e-4)
        assert (mixed.masks[row] != one.masks[0]).mean() < 0.01
    assert len(mixed.masks[1]) == 1
    nested = pipe.segment(images[0], [["it", "the star"], None], [None, Point(9, 9)], **options)
    assert isinstance(nested.masks[0], list) and len(nested.masks[0]) == 2 and len(nested.masks[1]) == 1
