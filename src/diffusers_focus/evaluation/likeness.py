"""How alike pictures are to each other and to texts, in the eyes of models given as local folders: CLIP, DINO, LPIPS, Inception.

Paper: FOCUS (arXiv 2506.16806), section 4.5 (Emu-Edit: DINO, CLIP-I, CLIP-T, CLIP-DIR), MJHQ-30K (FID). Definitions: MagicBrush's
evaluation/image_eval.py (CLIP-I, CLIP-T, DINO: cosines of features), InstructPix2Pix's metrics/clip_similarity.py (CLIP-DIR), the
package lpips (Zhang et al. 2018), clean-fid (Parmar et al. 2022) for how pictures reach Inception. The models are transformers'
own classes; nothing is downloaded. Pictures are prepared here with Pillow, as OpenAI's CLIP and DINO do.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INCEPTION_SIDE = 299


class FeatureModel(Protocol):
    """What FID needs."""

    def features(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """[pictures, D]."""
        ...


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes a model's input: its shorter side resized (bicubic), the middle cut out, levels normalised.

    Args:
        resize, crop: pixels.
        mean, std: of levels in 0..1.
    """

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """float32 [n, 3, crop, crop]."""
        return torch.stack([self._one(picture.convert("RGB")) for picture in pictures])

    def _one(self, picture: Image.Image) -> torch.Tensor:
        width, height = picture.size
        short = min(width, height)
        size = tuple(self.resize if side == short else int(self.resize * side / short) for side in (width, height))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
        left, top = (round((side - self.crop) / 2.0) for side in size)
        picture = picture.crop((left, top, left + self.crop, top + self.crop))
        levels = np.asarray(picture, dtype=np.float32) / 255.0
        levels = (levels - np.asarray(self.mean, dtype=np.float32)) / np.asarray(self.std, dtype=np.float32)
        return torch.from_numpy(levels).permute(2, 0, 1).contiguous()


def _preparation(folder: Path, side: int, clip: bool) -> Preparation:
    """From preprocessor_config.json (or processor_config.json) where there is one, else from the model's own image size.

    CLIP resizes to the size it cuts out; DINO is measured on 224 of 256 pixels, whatever its file says about training.
    """
    found: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            found = json.loads((folder / name).read_text(encoding="utf-8"))
            found = found.get("image_processor", found)
            break
    size, crop = found.get("size", {}), found.get("crop_size", {})
    size = {"shortest_edge": size} if isinstance(size, int) else size
    cut = (
        crop if isinstance(crop, int) else crop.get("height") or size.get("height") or size.get("shortest_edge") or side
    )
    resize = size.get("shortest_edge") or (cut if clip else round(cut * 256 / 224))
    mean, std = (CLIP_MEAN, CLIP_STD) if clip else (IMAGENET_MEAN, IMAGENET_STD)
    return Preparation(max(resize, cut), cut, tuple(found.get("image_mean", mean)), tuple(found.get("image_std", std)))


def _folder(path: str | os.PathLike, what: str) -> tuple[Path, dict[str, Any]]:
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"there is no {str(folder / 'config.json')!r}; {what} is a folder as transformers saves it"
        )
    return folder, json.loads((folder / "config.json").read_text(encoding="utf-8"))


class Clip:
    """CLIP from a local folder (CLIPModel with its tokenizer), such as a download of openai/clip-vit-base-patch32.

    Args:
        path: the folder.
        device: where it runs.

    Raises:
        FileNotFoundError: no such folder. ValueError: it holds another model.
    """

    def __init__(self, path: str | os.PathLike, device: Any = "cpu") -> None:
        from transformers import CLIPModel, CLIPTokenizer

        folder, config = _folder(path, "CLIP")
        if config.get("model_type") != "clip":
            raise ValueError(f"{str(folder)!r} holds a model of the type {config.get('model_type')!r}, not CLIP.")
        self.model: Any = CLIPModel.from_pretrained(folder, local_files_only=True).to(device).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        self.device = device
        self.prepare = _preparation(folder, self.model.config.vision_config.image_size, clip=True)

    @torch.no_grad()
    def features(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """float32 [pictures, D], projected and not normalised."""
        seen = self.model.vision_model(pixel_values=self.prepare(pictures).to(self.device)).pooler_output
        return self.model.visual_projection(seen).float().cpu().numpy()

    def pictures(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Unit vectors [pictures, D]."""
        return _unit(self.features(pictures))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors [texts, D]; a text that is too long is cut."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).to(self.device)
        read = self.model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return _unit(self.model.text_projection(read.pooler_output).float().cpu().numpy())


class Dino:
    """DINO or DINOv2 from a local folder (ViTModel, Dinov2Model), such as a download of facebook/dino-vits16.

    Args, raises: as of `Clip`.
    """

    def __init__(self, path: str | os.PathLike, device: Any = "cpu") -> None:
        from transformers import AutoModel

        folder, config = _folder(path, "DINO")
        if config.get("model_type") not in ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit"):
            raise ValueError(f"{str(folder)!r} holds a model of the type {config.get('model_type')!r}, not DINO.")
        # A ViT's pooler is not DINO's, whose files have none.
        options = {"add_pooling_layer": False} if config["model_type"] == "vit" else {}
        self.model: Any = AutoModel.from_pretrained(folder, local_files_only=True, **options).to(device).eval()
        self.device = device
        self.prepare = _preparation(folder, self.model.config.image_size, clip=False)

    @torch.no_grad()
    def features(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """float32 [pictures, D]: the class token after the last norm."""
        seen = self.model(pixel_values=self.prepare(pictures).to(self.device)).last_hidden_state[:, 0]
        return seen.float().cpu().numpy()

    def pictures(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Unit vectors [pictures, D]."""
        return _unit(self.features(pictures))


class Inception:
    """The Inception of FID as TorchScript, such as NVIDIA's inception-2015-12-05.pt, asked as clean-fid asks it.

    Pictures are resized to 299 x 299 with Pillow's bicubic filter, channel by channel in floats, without rounding; levels x become
    (x - 128) / 128 and go through the module's `layers`.

    Args:
        path: the file.
        device: where it runs.

    Raises:
        FileNotFoundError: no such file. ValueError: no TorchScript, or a module without `layers`.
    """

    def __init__(self, path: str | os.PathLike, device: Any = "cpu") -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"there is no {os.fspath(path)!r}; FID needs a TorchScript file or a folder of a model"
            )
        try:
            model = torch.jit.load(os.fspath(path), map_location=device)
        except RuntimeError as error:
            raise ValueError(f"{os.fspath(path)!r} is no TorchScript file: {str(error).splitlines()[0]}") from None
        if not hasattr(model, "layers"):
            raise ValueError(f"{os.fspath(path)!r} has no module called 'layers', which Inception's TorchScript has.")
        self.model, self.device = model.eval(), device

    @torch.no_grad()
    def features(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """float32 [pictures, D]; 2,048 of Inception."""
        resized = np.stack([_resized(picture) for picture in pictures])
        seen = self.model.layers((torch.from_numpy(resized).to(self.device) - 128.0) / 128.0)
        return seen.flatten(1).float().cpu().numpy()


def _resized(picture: Image.Image) -> np.ndarray:
    levels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    channels = [Image.fromarray(levels[..., channel]) for channel in range(3)]
    side = (INCEPTION_SIDE, INCEPTION_SIDE)
    return np.stack([np.asarray(channel.resize(side, Image.Resampling.BICUBIC)) for channel in channels])


def feature_model(path: str | os.PathLike, device: Any = "cpu") -> FeatureModel:
    """The model that FID reads features from: `Inception` of a file, `Clip` or `Dino` of a folder."""
    if not Path(path).is_dir():
        return Inception(path, device)
    _, config = _folder(path, "a model")
    return Clip(path, device) if config.get("model_type") == "clip" else Dino(path, device)


class Lpips:
    """LPIPS, version 0.1, on AlexNet: the package's own linear layers on a trunk from a local file.

    Args:
        path: torchvision's AlexNet (alexnet-owt-7be5be79.pth), a state dict with features.0.weight, ...
        device: where it runs.

    Raises:
        ValueError: lpips or torchvision are not installed (extra "lpips"), or the file is no AlexNet. FileNotFoundError.
    """

    def __init__(self, path: str | os.PathLike, device: Any = "cpu") -> None:
        check_lpips()
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no {os.fspath(path)!r}; LPIPS needs torchvision's weights of AlexNet")
        model = importlib.import_module("lpips").LPIPS(net="alex", pnet_rand=True, verbose=False)
        given = torch.load(path, map_location="cpu", weights_only=True)
        names = {name: "features." + name.split(".", 1)[1] for name in model.net.state_dict()}  # slice2.3.weight
        missing = [name for name in names.values() if name not in given]
        if missing:
            raise ValueError(f"{os.fspath(path)!r} is no state dict of torchvision's AlexNet: it has no {missing[0]}.")
        model.net.load_state_dict({name: given[old] for name, old in names.items()})
        self.model, self.device = model.to(device).eval(), device

    @torch.no_grad()
    def __call__(self, first: np.ndarray, second: np.ndarray) -> float:
        """The distance of two pictures [H, W, 3] in 0..255; 0 for equal ones."""
        one, two = (
            torch.from_numpy(np.asarray(picture, dtype=np.float32)).permute(2, 0, 1)[None].to(self.device) / 127.5 - 1
            for picture in (first, second)
        )
        return float(self.model(one, two))


def check_lpips() -> None:
    """ValueError where what LPIPS needs is not installed."""
    missing = [name for name in ("lpips", "torchvision") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"LPIPS is computed by the package lpips; not installed: {', '.join(missing)}. pip install 'diffusers-focus[lpips]' in "
            "an environment whose torch has a torchvision, or leave --lpips-weights out."
        )


# --- similarities ---------------------------------------------------------------------------------------------------


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Cosine of two vectors [D], in [-1, 1]: CLIP-I and DINO of two pictures, CLIP-T of a picture and a text; 0 of zero."""
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.dot(first, second)) / lengths if lengths > 1e-12 else 0.0


def direction(source: np.ndarray, result: np.ndarray, before: np.ndarray, after: np.ndarray) -> float | None:
    """CLIP-DIR: the cosine of how the picture changed and how its caption did.

    Args:
        source, result: unit vectors [D] of the pictures before and after.
        before, after: unit vectors [D] of their captions.

    Returns:
        A value in [-1, 1]; 0 where the picture did not change; None where the captions are the same, which point nowhere.
    """
    if np.allclose(before, after, atol=1e-7):
        return None
    return cosine(result - source, after - before)
