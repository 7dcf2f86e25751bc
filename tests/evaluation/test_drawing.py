"""Benchmarks that are drawn, from their files to pictures, figures and galleries: with a painter that does as it is told, one that
does nothing, and a real pipeline of test size.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffusers_focus import cli
from diffusers_focus.data.files import SampleFiles
from diffusers_focus.evaluation.benchmarks import run_benchmark, table
from diffusers_focus.evaluation.drawing import painted_region
from diffusers_focus.evaluation.frechet import frechet_distance, moments_of
from diffusers_focus.evaluation.likeness import Clip, Dino, Inception, cosine, direction
from diffusers_focus.evaluation.picture_scores import Measures

from tests.data import published
from tests.data.published import COLOURS
from tests.evaluation.tiny_models import write_clip, write_dino, write_inception
from tests.tiny import shared_pipeline


class Painter:
    """Paints the rectangle at the top left in the colour an instruction names, and noise from its random numbers."""

    def __init__(self, idle=False, dies_after=None):
        self.idle, self.dies_after, self.asked, self.masks = idle, dies_after, [], []

    def edit(self, image, text, generator=None, mask_image=None, **options):
        if self.dies_after is not None and len(self.asked) >= self.dies_after:
            raise KeyboardInterrupt
        self.asked.append((text, options))
        self.masks.append(mask_image)
        picture = np.asarray(image).copy()
        place = published.truth(published.SIZES.index(picture.shape[:2]), "red")
        colour = next((COLOURS[name] for name in COLOURS if f" {name}" in text.split("thing")[-1]), None)
        if colour is not None and not self.idle:
            picture[place] = colour
        return SimpleNamespace(images=[Image.fromarray(picture)], edit_masks=[place])

    def generate(self, text, num_images_per_prompt=1, generator=None, **options):
        self.asked.append((text, options))
        levels = [np.random.default_rng(one.initial_seed()).integers(0, 256, (24, 32, 3)) for one in generator]
        assert len(levels) == num_images_per_prompt
        return SimpleNamespace(images=[Image.fromarray(one.astype(np.uint8)) for one in levels])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    write_clip(place / "clip")
    write_dino(place / "dino")
    write_inception(place / "inception.pt")
    return place


@pytest.fixture(scope="module")
def measures(models):
    return Measures(clip=str(models / "clip"), dino=str(models / "dino"), fid=str(models / "inception.pt"))


def run(pipe, name, data, folder, **options):
    return run_benchmark(pipe, name, data, folder / "metrics.json", progress=False, **options)


def values(result):
    return {name: value["value"] if isinstance(value, dict) else value for name, value in result["figures"].items()}


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_emu_edit_compares_with_the_source_and_the_captions(measures, tmp_path):
    published.write_emu_edit(tmp_path / "data")
    result = run(Painter(), "emu-edit", tmp_path / "data", tmp_path, measures=measures)
    clip, dino = Clip(measures.clip), Dino(measures.dino)
    sources = [Image.fromarray(published.drawn(i)) for i in range(3)]
    results = [sources[0], *(Image.fromarray(published.edited(i, "green")) for i in (1, 2))]
    for index, one in enumerate(results):
        place = tmp_path / "metrics.pictures" / f"{'color' if index else 'remove'}/{index}.png"
        assert (pixels(place) == np.asarray(one)).all()
    before, after = clip.pictures(sources), clip.pictures(results)
    captions = [[row["input_caption"], row["output_caption"]] for row in published.emu_rows()]
    expected = {
        "L1": np.mean([np.abs(np.asarray(a) / 255.0 - np.asarray(b) / 255.0).mean() for a, b in zip(sources, results)]),
        "CLIP-I": np.mean([cosine(a, b) for a, b in zip(before, after)]),
        "CLIP-T": np.mean([cosine(after[i], clip.texts([captions[i][1]])[0]) for i in range(3)]),
        "DINO": np.mean([cosine(*dino.pictures([a, b])) for a, b in zip(sources, results)]),
        # The last one's captions are the same, so nowhere is the right direction; the first one was left as it was.
        "CLIP-DIR": np.mean([direction(before[i], after[i], *clip.texts(captions[i])) for i in range(2)]),
    }
    found = values(result)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert result["figures"]["CLIP-DIR"]["count"] == 2 and found["CLIP-DIR remove"] == 0.0
    assert found["L1 remove"] == 0.0 < found["L1 color"] and "PSNR" not in found
    assert result["not_measured"] == {} and "CLIP-DIR" in table(result) and "not measured" not in table(result)


def test_magicbrush_compares_with_the_true_picture(tmp_path):
    published.write_magicbrush(tmp_path / "data")
    good = run(Painter(), "magicbrush", tmp_path / "data", tmp_path)
    found = values(good)
    assert (found["L1"], found["L2"], found["PSNR"], found["region_accuracy"]) == (0.0, 0.0, 100.0, 1.0)
    assert found["edit_mask_IoU"] == 1.0 and found["background_PSNR"] == 100.0
    if importlib.util.find_spec("skimage") is not None:
        assert found["SSIM"] == pytest.approx(1.0)
    assert set(good["not_measured"]) >= {"CLIP-I, CLIP-T, CLIP-DIR", "DINO", "LPIPS"}
    assert "not measured: DINO (give --dino-model DIR)" in table(good)
    (tmp_path / "idle").mkdir()
    idle = values(run(Painter(idle=True), "magicbrush", tmp_path / "data", tmp_path / "idle"))
    assert idle["region_accuracy"] == 0.0 and idle["L1"] > 0 and idle["background_PSNR"] == 100.0
    assert idle["edit_mask_IoU"] == 1.0


def test_magicbrush_session_goes_on_from_its_own_results(tmp_path):
    published.write_magicbrush(tmp_path / "data")
    pipe, both = Painter(), tmp_path / "both"
    result = run(pipe, "magicbrush", tmp_path / "data", tmp_path, protocol="multi-turn-mask", pictures=both)
    assert result["samples"] == 2 and values(result)["L1"] == 0.0
    assert len(pipe.asked) == 3 and all(mask.any() and not mask.all() for mask in pipe.masks)
    assert (pipe.masks[0] == published.truth(0, "red")).all()
    assert "edit_mask_IoU" not in values(result)  # it was told
    run_benchmark(Painter(), "magicbrush", tmp_path / "data", tmp_path / "s.json", pictures=both, progress=False)
    # All that MagicBrush's own evaluation reads lies in one folder.
    names = {file.relative_to(both).as_posix() for file in both.rglob("*.png")}
    assert names == {"100/100_1.png", "100/100_iter_2.png", "100/100_inde_2.png", "101/101_1.png"}


def test_imgedit_and_gedit_lie_as_their_judges_read_them(tmp_path):
    published.write_imgedit(tmp_path / "imgedit")
    published.write_gedit(tmp_path / "gedit")
    run(Painter(), "imgedit", tmp_path / "imgedit", tmp_path)
    for key in json.loads((tmp_path / "imgedit" / "basic_edit.json").read_text()):
        assert (tmp_path / "metrics.pictures" / f"{key}.png").is_file()
    place = tmp_path / "results" / "ours"
    run_benchmark(
        Painter(), "gedit", tmp_path / "gedit", tmp_path / "g.json", protocol="all", pictures=place, progress=False
    )
    for line in (tmp_path / "gedit" / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        folder = place / "fullset" / row["task_type"] / row["instruction_language"]
        assert pixels(folder / f"{row['key']}_SRCIMG.png").shape == pixels(folder / f"{row['key']}.png").shape


def test_geneval_lies_as_its_scorer_reads_it(measures, tmp_path):
    published.write_geneval(tmp_path / "data")
    result = run(Painter(), "geneval", tmp_path / "data", tmp_path, measures=measures)
    place, read = tmp_path / "metrics.pictures", []
    for folder in sorted(place.iterdir()):  # what evaluate_images.py does
        assert folder.is_dir() and folder.name.isdigit()
        metadata = json.loads((folder / "metadata.jsonl").read_text())
        samples = sorted(one for one in (folder / "samples").iterdir() if re.match(r"\d+\.png", one.name))
        assert len({pixels(one).tobytes() for one in samples}) == 4  # each of random numbers of its own
        read += [(metadata["tag"], metadata["prompt"], one) for one in samples]
    assert len(read) == 8
    clip = Clip(measures.clip)
    expected = np.mean([cosine(clip.pictures([Image.open(one)])[0], clip.texts([text])[0]) for _, text, one in read])
    found = values(result)
    assert found["CLIP-T"] == pytest.approx(expected, abs=1e-5)
    assert set(found) == {"CLIP-T", "CLIP-T colors", "CLIP-T single_object"} and result["not_measured"] == {}


def test_mjhq_has_fid_over_all_and_by_category(measures, tmp_path):
    published.write_mjhq(tmp_path / "data", each=3)
    result = run(Painter(), "mjhq", tmp_path / "data", tmp_path, measures=measures)
    model, found = Inception(measures.fid), values(result)
    real = sorted((tmp_path / "data" / "mjhq30k_imgs" / "art").iterdir())
    drawn = [tmp_path / "metrics.pictures" / "art" / f"{one.stem}.png" for one in real]
    sides = [moments_of([model.features([Image.open(file) for file in files])]) for files in (drawn, real)]
    assert found["FID art"] == pytest.approx(frechet_distance(*sides), rel=1e-4)
    assert found["FID"] > 0 and result["figures"]["FID"]["count"] == 6
    again = run_benchmark(
        *(None, "mjhq", tmp_path / "data", tmp_path / "again.json"),
        **{"predictions": tmp_path / "metrics.pictures", "measures": measures, "progress": False},
    )
    assert values(again) == found  # finished pictures are worth what they were
    copies = tmp_path / "copies"
    for file in (tmp_path / "data" / "mjhq30k_imgs").rglob("*.jpg"):
        target = copies / file.parent.name / f"{file.stem}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).save(target)
    same = run_benchmark(
        *(None, "mjhq", tmp_path / "data", tmp_path / "same.json"),
        **{"predictions": copies, "measures": measures, "progress": False},
    )
    assert values(same)["FID"] == pytest.approx(0.0, abs=1e-6)


def test_an_interrupted_run_goes_on_and_draws_the_same(tmp_path):
    published.write_magicbrush(tmp_path / "data")
    options = {"drawing": {"seed": 3, "num_inference_steps": 2}}
    with pytest.raises(KeyboardInterrupt):
        run(Painter(dies_after=2), "magicbrush", tmp_path / "data", tmp_path, **options)
    pipe = Painter()
    result = run(pipe, "magicbrush", tmp_path / "data", tmp_path, gallery=2, **options)
    assert result["asked_now"] == 1 == len(pipe.asked) and pipe.asked[0][1] == {"num_inference_steps": 2}
    assert result["gallery"] == 2 and pixels(tmp_path / "metrics.gallery.png").shape[0] > 480
    with pytest.raises(ValueError, match="another run .another drawing"):
        run(pipe, "magicbrush", tmp_path / "data", tmp_path)


def test_processes_share_a_benchmark(tmp_path):
    published.write_mjhq(tmp_path / "data")
    for index in range(2):
        assert run(Painter(), "mjhq", tmp_path / "data", tmp_path, part=(index, 2))["asked_now"] == 2
    pipe = Painter()
    assert run(pipe, "mjhq", tmp_path / "data", tmp_path)["samples"] == 4 and not pipe.asked
    one = run_benchmark(Painter(), "mjhq", tmp_path / "data", tmp_path / "one.json", progress=False)
    for file in Path(one["pictures"]).rglob("*.png"):
        other = tmp_path / "metrics.pictures" / file.relative_to(one["pictures"])
        assert (pixels(file) == pixels(other)).all()


def test_damaged_samples_are_left_out_and_told(tmp_path):
    published.write_magicbrush(tmp_path / "data")
    (tmp_path / "data" / "test" / "images" / "101" / "101-input.png").write_bytes(b"no picture")
    (tmp_path / "data" / "test" / "images" / "100" / "100-mask2.png").unlink()
    result = run(Painter(), "magicbrush", tmp_path / "data", tmp_path)
    assert (result["samples"], result["skipped"]) == (1, 2)
    assert "100-mask2.png' is missing" in result["problems"][0] and "cannot be read" in result["problems"][1]


def test_a_fault_of_the_pipeline_is_no_damaged_sample(tmp_path):
    class Refuses(Painter):
        def edit(self, *args, **options):
            raise ValueError("strength is 7")

    published.write_emu_edit(tmp_path / "data")
    with pytest.raises(ValueError, match="strength is 7"):
        run(Refuses(), "emu-edit", tmp_path / "data", tmp_path)


def test_masks_of_magicbrush(tmp_path):
    picture = published.drawn(0)
    Image.fromarray(np.where(published.truth(0, "blue")[..., None], 255, picture).astype(np.uint8)).save(
        tmp_path / "m.png"
    )
    assert (painted_region(SampleFiles(tmp_path), "m.png", (64, 64)) == published.truth(0, "blue")).all()
    with pytest.raises(ValueError, match="64 x 64 pixels, its picture 32 x 64"):
        painted_region(SampleFiles(tmp_path), "m.png", (32, 64))


def test_what_does_not_fit_is_said_before_anything_is_drawn(tmp_path):
    published.write_emu_edit(tmp_path / "data")
    published.write_pope(tmp_path / "pope")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run(Painter(), "emu-edit", tmp_path / "data", tmp_path, measures=Measures(clip="nowhere"))
    with pytest.raises(FileNotFoundError, match="'drawn' of drawn pictures"):
        run(None, "emu-edit", tmp_path / "data", tmp_path, predictions="drawn")
    with pytest.raises(ValueError, match="pope draws no pictures"):
        run(Painter(), "pope", tmp_path / "pope", tmp_path, drawing={"seed": 1})
    with pytest.raises(ValueError, match="cannot draw: it has no unet"):
        run(SimpleNamespace(edit=None, unet=None), "emu-edit", tmp_path / "data", tmp_path)
    assert cli.main(["eval", "pope", "--data", str(tmp_path / "pope"), "--steps", "2"]) == 2
    assert cli.main(["eval", "--steps", "2"]) == 2


def test_a_real_pipeline_draws(measures, tmp_path):
    published.write_magicbrush(tmp_path / "data")
    published.write_geneval(tmp_path / "geneval")
    steps = {"drawing": {"num_inference_steps": 1}, "count": 1}
    result = run(shared_pipeline(), "magicbrush", tmp_path / "data", tmp_path, measures=measures, **steps)
    assert result["samples"] == 1 and {"L1", "CLIP-DIR", "DINO", "background_PSNR"} <= set(result["figures"])
    assert pixels(tmp_path / "metrics.pictures" / "100" / "100_1.png").shape == (64, 64, 3)
    result = run_benchmark(
        shared_pipeline(), "geneval", tmp_path / "geneval", tmp_path / "g.json", progress=False, **steps
    )
    assert len(list(Path(result["pictures"]).rglob("*.png"))) == 4
