"""One row for each drawn picture of a benchmark, and the figures of many rows.

Paper: FOCUS (arXiv 2506.16806), section 4.5 (Emu-Edit) and the generation table (GenEval, MJHQ-30K). What each figure is of:

    edits with a true picture     L1, L2, PSNR, SSIM, LPIPS, CLIP-I, DINO: the result and the true picture (MagicBrush)
    edits without one             L1, CLIP-I, DINO: the result and the source (Emu-Edit, ImgEdit, GEdit-Bench)
    with the target's caption     CLIP-T: the result and that caption; of generation the result and its prompt
    with both captions            CLIP-DIR: how the picture changed and how the caption did
    with a region                 background_PSNR: result and source outside of it; region_accuracy (picture_metrics.py) inside,
                                  where there is a true picture; edit_mask_IoU: the pipeline's own edit mask and the region
    sets of drawn and real ones   FID, over all and per kind

A result of another size is resized to that of the picture it is compared with (Pillow's bicubic filter, as MagicBrush does).
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import metrics
from .frechet import Moments, frechet_distance
from .likeness import Clip, Dino, FeatureModel, Lpips, check_lpips, cosine, direction, feature_model
from .picture_metrics import l1, l2, psnr, region_accuracy, ssim
from .tasks import figure, kinds_of

NAMES = (
    *("L1", "L2", "PSNR", "SSIM", "LPIPS", "CLIP-I", "DINO", "CLIP-T", "CLIP-DIR"),
    *("background_PSNR", "region_accuracy", "edit_mask_IoU"),
)
FEATURE_BATCH = 32


@dataclass(frozen=True)
class Measures:
    """The models that pictures are measured with, each a local path or None; they are loaded when they are first used.

    Args:
        clip: folder of a CLIP, for CLIP-I, CLIP-T, CLIP-DIR.
        dino: folder of a DINO.
        lpips: file of AlexNet's weights.
        fid: file of a TorchScript Inception, or the folder of a CLIP or DINO.
        device: where they run.
    """

    clip: str | None = None
    dino: str | None = None
    lpips: str | None = None
    fid: str | None = None
    device: Any = "cpu"

    @functools.cached_property
    def clip_model(self) -> Clip | None:
        """None where none was given."""
        return None if self.clip is None else Clip(self.clip, self.device)

    @functools.cached_property
    def dino_model(self) -> Dino | None:
        """None where none was given."""
        return None if self.dino is None else Dino(self.dino, self.device)

    @functools.cached_property
    def lpips_model(self) -> Lpips | None:
        """None where none was given."""
        return None if self.lpips is None else Lpips(self.lpips, self.device)

    @functools.cached_property
    def fid_model(self) -> FeatureModel | None:
        """None where none was given."""
        return None if self.fid is None else feature_model(self.fid, self.device)

    def check(self) -> None:
        """Find what is missing before hours are spent on drawing. FileNotFoundError, ValueError."""
        for path in (self.clip, self.dino, self.lpips, self.fid):
            if path is not None and not Path(path).exists():
                raise FileNotFoundError(f"there is no {os.fspath(path)!r} to measure pictures with")
        if self.lpips is not None:
            check_lpips()

    def absent(self, edits: bool, true: bool) -> dict[str, str]:
        """What is not measured, and what would change that.

        Args:
            edits: of edits; else of pictures drawn from descriptions.
            true: whether there are true, or real, pictures.
        """
        reasons = {}
        if self.clip is None:
            reasons["CLIP-I, CLIP-T, CLIP-DIR" if edits else "CLIP-T"] = "give --clip-model DIR"
        if edits and self.dino is None:
            reasons["DINO"] = "give --dino-model DIR"
        if edits and true and not has_ssim():
            reasons["SSIM"] = "pip install 'diffusers-focus[eval]'"
        if edits and true and self.lpips is None:
            reasons["LPIPS"] = "give --lpips-weights FILE"
        if not edits and true and self.fid is None:
            reasons["FID"] = "give --fid-model PATH"
        return reasons


def has_ssim() -> bool:
    """Whether scikit-image is installed."""
    return importlib.util.find_spec("skimage") is not None


@dataclass(frozen=True)
class Drawn:
    """What a pipeline drew, with what it is compared with.

    Args:
        result: the picture.
        source: before the edit; None of generation.
        target: the true picture, where there is one.
        region: bool [H, W] of the source, where people wanted the edit; None where that is not known.
        edit_mask: bool [H, W], where the pipeline let pixels change; None where it was told, or is not known.
        caption: of the result as it should be; None where there is none.
        captions: of before and after; None where there are none.
    """

    result: Image.Image
    source: Image.Image | None = None
    target: Image.Image | None = None
    region: np.ndarray | None = None
    edit_mask: np.ndarray | None = None
    caption: str | None = None
    captions: tuple[str, str] | None = None


def picture_row(drawn: Drawn, measures: Measures) -> dict[str, float]:
    """The figures of one picture by their `NAMES`; what cannot be measured is absent."""
    row: dict[str, float] = {}
    reference = drawn.target or drawn.source
    if reference is not None:
        here, there = _levels(drawn.result, reference.size), _levels(reference, reference.size)
        row["L1"] = l1(here, there)
        if drawn.target is not None:
            row |= {"L2": l2(here, there), "PSNR": psnr(here, there)}
            if has_ssim() and min(reference.size) >= 11:
                row["SSIM"] = ssim(here, there)
            if measures.lpips_model is not None:
                row["LPIPS"] = measures.lpips_model(here, there)
    if drawn.source is not None and drawn.region is not None:
        row |= _region_figures(drawn, drawn.source, drawn.region)
    return row | _likeness(drawn, reference, measures)


def _region_figures(drawn: Drawn, source: Image.Image, region: np.ndarray) -> dict[str, float]:
    row: dict[str, float] = {}
    here, before = _levels(drawn.result, source.size), _levels(source, source.size)
    if not region.all():
        row["background_PSNR"] = psnr(here, before, ~region)
    if drawn.target is not None:
        found = region_accuracy(here, before, _levels(drawn.target, source.size), region)
        if found is not None:
            row["region_accuracy"] = found
    if drawn.edit_mask is not None:
        row["edit_mask_IoU"] = metrics.iou(drawn.edit_mask, region)
    return row


def _likeness(drawn: Drawn, reference: Image.Image | None, measures: Measures) -> dict[str, float]:
    row: dict[str, float] = {}
    pictures = [drawn.result, *(() if reference is None else (reference,))]
    clip = measures.clip_model
    if clip is not None:
        vectors = clip.pictures(pictures)
        if reference is not None:
            row["CLIP-I"] = cosine(vectors[0], vectors[1])
        if drawn.caption is not None:
            row["CLIP-T"] = cosine(vectors[0], clip.texts([drawn.caption])[0])
        if drawn.captions is not None and drawn.source is not None:
            source = vectors[1] if reference is drawn.source else clip.pictures([drawn.source])[0]
            found = direction(source, vectors[0], *clip.texts(drawn.captions))
            if found is not None:
                row["CLIP-DIR"] = found
    if measures.dino_model is not None and reference is not None:
        row["DINO"] = cosine(*measures.dino_model.pictures(pictures))
    return row


def _levels(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    picture = picture.convert("RGB")
    return np.asarray(picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC))


def picture_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over pictures, of all and, where there are several kinds, of each."""
    found = _means(rows, "")
    kinds = {kind: chosen for kind, chosen in kinds_of([dict(row) for row in rows]).items() if kind}
    for kind, chosen in kinds.items() if len(kinds) > 1 else ():
        found |= _means(chosen, f" {kind}")
    return found


def _means(rows: Sequence[Mapping[str, Any]], ending: str) -> dict[str, Any]:
    found = {}
    for name in NAMES:
        known = [dict(row) for row in rows if name in row]
        if known:
            found[name + ending] = figure(known, name)
    return found


def fid_figures(pairs: Sequence[tuple[str, Path, Path]], model: FeatureModel) -> dict[str, Any]:
    """FID of drawn pictures and real ones, over all and per kind.

    Args:
        pairs: (kind, drawn, real) of every picture.
        model: whose features are compared.

    Returns:
        {"FID": {"value", "count"}, "FID <kind>": ...}; a kind with fewer than two pictures is left out.

    Raises:
        ValueError: a real picture is missing.
    """
    missing = [str(real) for *_, real in pairs if not real.is_file()]
    if missing:
        raise ValueError(f"FID needs the real pictures; {len(missing)} are missing, the first {missing[0]!r}.")
    kinds = sorted({kind for kind, _, _ in pairs})
    everything, found = (Moments(), Moments()), {}
    for kind in kinds:
        chosen = [(drawn, real) for own, drawn, real in pairs if own == kind]
        sides = (Moments(), Moments())
        for side, files in enumerate(zip(*chosen)):
            for features in _features(files, model):
                sides[side].add(features)
                everything[side].add(features)
        if len(kinds) > 1 and sides[0].count > 1:
            found[f"FID {kind}"] = {"value": round(frechet_distance(*sides), 6), "count": sides[0].count}
    if everything[0].count < 2:
        return {}
    return {"FID": {"value": round(frechet_distance(*everything), 6), "count": everything[0].count}, **found}


def _features(files: Sequence[Path], model: FeatureModel) -> Iterator[np.ndarray]:
    for first in range(0, len(files), FEATURE_BATCH):
        yield model.features([_open(file) for file in files[first : first + FEATURE_BATCH]])


def _open(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        return picture.convert("RGB")
