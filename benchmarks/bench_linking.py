"""Which proposal of the next frame is the object that is followed: what each clue is worth, with the true mask of the frame before.

Command:  python benchmarks/bench_linking.py            (12 clips of 30 frames, about three minutes of one core)
Prints:   mean IoU of the chosen proposal by prompt (the mask of the frame before as a region on this frame; the region token of the
          frame before; that of the first frame) and by weights of overlap and likeness beside the prompt's score; and how alike the
          right proposals and those of other objects are to what the object looked like before.

Clips are of seeds from 900,000 up, which are neither trained on nor evaluated. docs/design.md, "Clips", has the figures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from diffusers_focus import FocusPipeline
from diffusers_focus.data.clips import ClipSpec, sample_clip
from diffusers_focus.steps.encode import embed_regions, encode_image
from diffusers_focus.steps.segment import MaskPrompt, read_masks
from diffusers_focus.steps.tracking import ClipTracker

ROOT = Path(__file__).resolve().parents[1]
FIRST_SEED = 900_000
LEAST_PIXELS = 60  # of an object that counts as seen
WEIGHTS = ((0, 0), (0, 2), (1, 0), (2, 0), (4, 0), (4, 2), (4, 4))


def overlap(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """IoU [A, B] of bool masks [A, ...] and [B, ...]."""
    a, b = first.flatten(1).float(), second.flatten(1).float()
    shared = a @ b.T
    return shared / (a.sum(1)[:, None] + b.sum(1)[None] - shared).clamp(min=1)


@torch.no_grad()
def main() -> None:
    """Follow for one frame at a time, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", metavar="DIR", default=str(ROOT / "pipelines" / "focus-tiny"))
    parser.add_argument("--clips", type=int, default=12, metavar="N")
    parser.add_argument("--frames", type=int, default=30, metavar="N")
    options = parser.parse_args()
    pipe = FocusPipeline.from_pretrained(options.pipeline, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    tracker = ClipTracker(pipe, pipe.config)
    rows: dict[str, list[tuple[np.ndarray, ...]]] = {"region here": [], "token before": [], "token of the first": []}
    for seed in range(FIRST_SEED, FIRST_SEED + options.clips):
        clip = sample_clip(seed, ClipSpec(frames=options.frames, speed=(0.02, 0.05), leaving=0.8))
        before = first = None
        for drawn in clip.renders():
            encoding = encode_image(pipe, Image.fromarray(drawn.image))
            truth = torch.from_numpy(drawn.masks)
            if before is not None and first is not None:
                masks, old = before
                seen = [i for i in range(len(truth)) if masks[i].sum() > 12 and truth[i].sum() >= LEAST_PIXELS]
                prompts = [MaskPrompt(0, "interactive", None, (masks[i],)) for i in seen]
                tokens = {
                    "region here": None,
                    "token before": embed_regions(pipe, old, [0] * len(seen), [masks[i] for i in seen]),
                    "token of the first": first[0][seen],
                }
                for kind, token in tokens.items() if seen else ():
                    reading = read_masks(pipe, encoding, prompts, max_new_tokens=24, region_tokens=token)
                    for row, i in enumerate(seen):
                        cells = reading.mask_logits[row] > 0
                        full = (
                            F.interpolate(reading.mask_logits[row][None], size=truth.shape[-2:], mode="bilinear")[0] > 0
                        )
                        vectors = tracker._vectors(encoding, cells, reading.instance_embeds[row])
                        clues = (
                            reading.condition_logits[row, :, 0].sigmoid(),
                            overlap(full, torch.from_numpy(masks[i])[None])[:, 0],
                            vectors @ first[1][i],
                            overlap(full, truth),
                        )
                        rows[kind].append((*(clue.numpy() for clue in clues), np.asarray(i)))
            elif truth.flatten(1).any(1).all():
                small = F.interpolate(truth[None].float(), size=(48, 48), mode="area")[0] > 0.5
                prompts = [MaskPrompt(0, "interactive", None, (mask,)) for mask in drawn.masks]
                reading = read_masks(pipe, encoding, prompts, max_new_tokens=24)
                nearest = [
                    int(overlap(small[i][None], reading.mask_logits[i] > 0)[0].argmax()) for i in range(len(truth))
                ]
                embeds = torch.stack([reading.instance_embeds[i, n] for i, n in enumerate(nearest)])
                tokens = embed_regions(pipe, encoding, [0] * len(truth), list(drawn.masks))
                first = (tokens, tracker._vectors(encoding, small, embeds))
            before = (drawn.masks, encoding)
    for kind, found in rows.items():
        print(f"{kind}: {len(found)} objects, best proposal {np.mean([iou[:, i].max() for *_, iou, i in found]):.3f}")
        for a, b in WEIGHTS:
            chosen = [iou[(score + a * near + b * alike).argmax(), i] for score, near, alike, iou, i in found]
            print(f"  score + {a} overlap + {b} likeness: {np.mean(chosen):.3f}")
    own, others = [], []
    for _, _, alike, iou, i in rows["token before"]:
        own += alike[iou[:, i] > 0.6].tolist()
        others += alike[(iou.max(1) > 0.6) & (iou[:, i] < 0.2)].tolist()
    print("likeness of the same object, 5%, 50%:", np.percentile(own, [5, 50]).round(3))
    print("likeness of other objects, 50%, 95%:", np.percentile(others, [50, 95]).round(3))


if __name__ == "__main__":
    main()
