"""What the nodes do, against the same calls of the pipeline in Python."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import ImageFilter

from diffusers_focus import FocusUnderstandPipeline, Point, Strokes

from integrations.comfyui import work
from integrations.comfyui.tensors import InputError, write_pictures
from tests.guides import controlnet_for
from tests.tiny import disk_mask, picture, seeded, shared_pipeline, tiny_pipeline

pytestmark = pytest.mark.whole

PICTURES = [picture(0), picture(1), picture(2)]
IMAGE = write_pictures(PICTURES)
MASK = torch.from_numpy(disk_mask().astype(np.float32))[None]
OPTIONS = {"steps": 2, "mask": MASK}


def test_answers_have_a_line_for_each_image():
    pipe = shared_pipeline()
    answers = pipe.understand(PICTURES[:2], "what is this?", [[Point(20, 20)]] * 2, max_new_tokens=3).text
    asked = work.ask(pipe, IMAGE[:2], " what is this? ", points="20,20", max_tokens=3)
    assert asked == "\n".join(" ".join(answer.split()) for answer in answers)
    assert (
        work.ask(pipe, IMAGE[:1], "what is this?", max_tokens=3)
        == pipe.understand(PICTURES[0], "what is this?", max_new_tokens=3).text[0]
    )


def test_objects_of_a_batch_come_image_by_image():
    pipe = shared_pipeline()
    found = pipe.segment(PICTURES[:2], classes=["disk", "square"], score_threshold=0.01, fallback_threshold=0.01)
    mask, objects, overlay, scores, text, count = work.segment(
        pipe, IMAGE[:2], class_names="disk, square", threshold=0.01
    )
    every = np.concatenate(found.masks)
    assert count == len(every) > 0 and objects.shape == every.shape and (objects.numpy() == every).all()
    assert (mask.numpy() == np.stack([masks.any(axis=0) for masks in found.masks])).all()
    assert overlay.shape == (2, 64, 64, 3) and not torch.equal(overlay, IMAGE[:2])
    assert [float(line) for line in scores.split("\n")] == pytest.approx(np.concatenate(found.scores), abs=1e-4)
    assert len(text.split("\n")) == count


def test_several_clicks_are_about_one_object():
    pipe = shared_pipeline()
    strokes = Strokes(Point(20, 20), Point(24, 18), Point(50, 50, positive=False))
    found = pipe.segment(PICTURES[0], region=strokes).masks[0]
    mask, *_, count = work.segment(pipe, IMAGE[:1], points="20,20 24,18", negative_points="50,50")
    assert count == len(found) and (mask[0].numpy() == found.any(axis=0)).all()


def test_nothing_found_is_an_empty_mask_and_no_error():
    mask, objects, overlay, scores, text, count = work.segment(shared_pipeline(), IMAGE[:1], words="it", threshold=0.99)
    assert count == 0 and not mask.any() and not objects.any() and objects.shape == (1, 64, 64)
    assert torch.equal(overlay, IMAGE[:1]) and scores == "" and text == "nothing found"


@pytest.mark.parametrize(
    "given",
    [{}, {"words": "it", "points": "1,1"}, {"words": "it", "class_names": "disk"}, {"words": "it", "mask": MASK}],
)
def test_segment_wants_one_way_of_pointing(given):
    with pytest.raises(InputError, match="exactly one of words, class_names, and a region"):
        work.segment(shared_pipeline(), IMAGE[:1], **given)


def test_objects_are_followed_through_the_frames_of_a_batch():
    pipe, size = shared_pipeline(), (64, 64)
    found = pipe.segment_clip(PICTURES, region={1: [[Point(20, 20), Point(24, 18)]]})
    mask, objects, overlay, text, count = work.segment_clip(pipe, IMAGE, points="20,20 24,18", frame=1)
    assert count == len(found.masks) == 1 and mask.shape == (3, *size) and overlay.shape == (3, *size, 3)
    assert (mask.numpy() == found.masks[0]).all() and (objects.numpy() == found.masks[0]).all()
    assert text.endswith(f"in {int(found.masks[0].any(axis=(1, 2)).sum())} of 3 frames")
    found = pipe.segment_clip(PICTURES, ["the disk", "the square"])
    _, objects, _, text, count = work.segment_clip(pipe, IMAGE, words="the disk\n\n the square ")
    assert count == 2 and (objects.numpy() == found.masks.reshape(6, *size)).all() and len(text.split("\n")) == 2
    with pytest.raises(InputError, match="^Input frame: there are 3 frames"):
        work.segment_clip(pipe, IMAGE, points="20,20", frame=3)
    with pytest.raises(InputError, match="^Input words: give exactly one"):
        work.segment_clip(pipe, IMAGE)


def test_a_clip_is_edited_in_the_place_that_is_followed():
    pipe, options = shared_pipeline(), {"num_inference_steps": 1, "mask_dilation": 2}
    out = pipe.edit_clip(PICTURES, "make it blue", region={1: [[Point(20, 20)]]}, generator=seeded(5), **options)
    edited, place = work.edit_clip(pipe, IMAGE, "make it blue", points="20,20", frame=1, seed=5, steps=1, grow=2)
    assert torch.equal(edited, write_pictures(out.images)) and (place.numpy() == out.edit_masks).all() and place.any()
    assert torch.equal(edited[place == 0][:1], IMAGE[place == 0][:1])
    words, _ = work.edit_clip(pipe, IMAGE, "make it blue", words="the disk", seed=5, steps=1)
    call = pipe.edit_clip(PICTURES, "make it blue", "the disk", generator=seeded(5), num_inference_steps=1)
    assert torch.equal(words, write_pictures(call.images))
    with pytest.raises(InputError, match="^Input words: the region says already"):
        work.edit_clip(pipe, IMAGE, "make it blue", words="the disk", points="20,20")
    with pytest.raises(InputError, match="^Input instruction: it is empty"):
        work.edit_clip(pipe, IMAGE, " ")
    with pytest.raises(InputError, match="^Input frame: there are 3 frames"):
        work.edit_clip(pipe, IMAGE, "make it blue", points="20,20", frame=3)


def test_edit_is_the_calls_picture_and_leaves_the_rest_to_the_last_bit():
    pipe, image = shared_pipeline(), IMAGE[:1] + 0.0007  # floats that are no multiples of 1 / 255
    edited, place = work.edit(pipe, image, "make it blue", seed=5, **OPTIONS)
    call = pipe.edit(
        PICTURES[0],
        "make it blue",
        mask_image=disk_mask(),
        num_inference_steps=2,
        generator=seeded(5),
        output_type="pt",
    )
    assert (place[0].numpy() == call.edit_masks[0]).all() and place.any()
    same = torch.isclose(edited[0].movedim(-1, 0), call.images[0], atol=1e-6)
    own = torch.isclose(edited, image, atol=0)[0].movedim(-1, 0)
    assert (same | own).all() and not own[:, disk_mask()].all()
    far = torch.from_numpy(np.mgrid[:64, :64].sum(axis=0) > 90)
    assert torch.equal(edited[0][far], image[0][far])


def test_each_image_of_a_batch_is_edited_as_it_would_be_alone():
    pipe = shared_pipeline()
    masks = torch.cat([MASK, torch.zeros_like(MASK), MASK.flip(-1)])
    edited, places = work.edit(pipe, IMAGE, "make it blue", seed=2**64 - 1, steps=2, mask=masks)
    assert torch.equal(edited[1], IMAGE[1]) and not places[1].any()  # nothing to edit there
    third, _ = work.edit(pipe, IMAGE[2:], "make it blue", seed=1, steps=2, mask=masks[2:])
    assert torch.allclose(edited[2], third[0], atol=1e-4) and not torch.equal(edited[2], IMAGE[2])


def test_edit_takes_its_place_from_target_or_mask():
    wide = write_pictures([picture(0, 48, 96)])
    with pytest.raises(InputError, match="^Input mask: it is empty"):
        work.edit(shared_pipeline(), wide, "make it blue", mask=torch.zeros(1, 48, 96))
    edited, places = work.edit(shared_pipeline(), IMAGE[:1], "make it blue", target="the disk", steps=1, mask=MASK)
    alone, _ = work.edit(shared_pipeline(), IMAGE[:1], "make it blue", steps=1, mask=MASK)
    assert torch.equal(places > 0.5, MASK > 0.5) and not torch.equal(edited, alone)
    with pytest.raises(InputError, match="^Input instruction: it is empty"):
        work.edit(shared_pipeline(), IMAGE[:1], " ", mask=MASK)
    with pytest.raises(InputError, match="^Input image: "):
        work.edit(shared_pipeline(), IMAGE[0], "make it blue", mask=MASK)


def test_crop_negative_words_and_control_maps_reach_the_call():
    unet = shared_pipeline().unet
    pipe = tiny_pipeline(controlnet=controlnet_for(unet), unet=unet)
    edges = write_pictures([PICTURES[0].filter(ImageFilter.FIND_EDGES)])
    options = {"crop": 8, "negative": "a star", "control_image": edges, "control_strength": 0.5}
    edited, _ = work.edit(pipe, IMAGE[:1], "make it blue", **OPTIONS, **options)
    call = pipe.edit(
        PICTURES[0],
        "make it blue",
        mask_image=disk_mask(),
        num_inference_steps=2,
        padding_mask_crop=8,
        negative_prompt="a star",
        control_image=PICTURES[0].filter(ImageFilter.FIND_EDGES),
        controlnet_conditioning_scale=0.5,
        generator=seeded(0),
        output_type="pt",
    )
    assert torch.allclose(edited[0].movedim(-1, 0), call.images[0], atol=1e-6)
    with pytest.raises(InputError, match="^Input control_image: there are 1 of 32 x 32 pixels for 1 images of 64 x 64"):
        work.edit(pipe, IMAGE[:1], "make it blue", control_image=edges[:, ::2, ::2], **OPTIONS)


def test_half_a_pipeline_says_what_it_cannot_do():
    asking = FocusUnderstandPipeline.from_pipe(shared_pipeline())
    with pytest.raises(InputError, match="^Input pipeline: a FocusUnderstandPipeline does not edit images"):
        work.edit(asking, IMAGE[:1], "make it blue", mask=MASK)


def test_generated_pictures_are_those_of_their_seeds():
    pipe = shared_pipeline()
    both = work.generate(pipe, "a disk", batch_size=2, seed=3, steps=2)
    second = pipe.generate("a disk", generator=seeded(4), num_inference_steps=2, output_type="pt").images
    assert both.shape == (2, 64, 64, 3) and torch.allclose(both[1], second[0].movedim(0, -1), atol=1e-4)
    with pytest.raises(InputError, match="^Input width and height: This model renders 64 x 64"):
        work.generate(pipe, "a disk", width=72, height=64)
