"""Memory and time of following objects through a long clip, its results streamed to disk.

Command:  python benchmarks/bench_clips.py                    (600 frames of 128 x 128 pixels, three objects)
          python benchmarks/bench_clips.py --region-frame 599  (the whole clip backwards first)
Writes:   benchmarks/results/clips_<hardware>_<date>_from-<frame>.json: memory of the process with the model loaded, the most during
          the first 60 frames and during all of them, and processor seconds a frame.

Frames are drawn one by one as they are asked for, and read anew for the pass backwards, so that they take no memory of their own.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import tempfile
import time
from pathlib import Path

import psutil
import torch

from diffusers_focus import FocusClipWriter, FocusPipeline, Mask
from diffusers_focus.data.clips import ClipSpec, sample_clip
from diffusers_focus.evaluation.run import hardware, versions
from diffusers_focus.processing.clips import open_clip

ROOT = Path(__file__).resolve().parents[1]
SHORT = 60  # frames of the short clip


class Drawn(list):
    """A clip of the world as a sequence of frames that are drawn when they are looked at."""

    def __init__(self, clip, size: int) -> None:
        super().__init__([None] * len(clip))
        self.clip, self.size = clip, size

    def __getitem__(self, index):
        return self.clip.render(index, self.size).image


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", metavar="DIR", default=str(ROOT / "pipelines" / "focus-tiny"))
    parser.add_argument("--frames", type=int, default=600, metavar="N")
    parser.add_argument("--size", type=int, default=128, metavar="S")
    parser.add_argument("--seed", type=int, default=1_000_000, metavar="N", help="of the clip")
    parser.add_argument(
        "--region-frame", type=int, default=0, metavar="N", help="the frame that objects are pointed at on"
    )
    parser.add_argument("--output", metavar="DIR", default=str(ROOT / "benchmarks" / "results"))
    return parser.parse_args()


def main() -> None:
    """Measure and write."""
    options = arguments()
    process = psutil.Process()
    pipe = FocusPipeline.from_pretrained(options.pipeline, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    clip = sample_clip(options.seed, ClipSpec(frames=options.frames, num_objects=3, leaving=0.0))
    frames = Drawn(clip, options.size)
    masks = clip.render(options.region_frame, options.size).masks
    region = {options.region_frame: [Mask(mask) for mask in masks if mask.any()]}
    # What is allocated once, whatever is done: two frames.
    for _ in pipe.stream_clip(open_clip([frames[0], frames[1]]), region=[Mask(mask) for mask in clip.render(0).masks]):
        pass
    loaded = process.memory_info().rss
    most_short = most = loaded
    began = time.process_time()
    with (
        tempfile.TemporaryDirectory() as folder,
        FocusClipWriter(folder, overlay="overlay.gif", lines="masks.jsonl") as writer,
    ):
        for frame in pipe.stream_clip(frames, region=region):
            writer.write(frame)
            most = max(most, process.memory_info().rss)
            most_short = most if frame.index < SHORT else most_short
    seconds = time.process_time() - began
    result = {
        "what": f"{options.frames} frames of {options.size} px, {len(region[options.region_frame])} objects, region on frame "
        f"{options.region_frame}, maps, run lengths and GIF streamed to disk",
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "loaded_MB": round(loaded / 1e6, 1),
        f"most_in_{SHORT}_frames_MB": round(most_short / 1e6, 1),
        f"most_in_{options.frames}_frames_MB": round(most / 1e6, 1),
        "growth_share_of_loaded": round((most - most_short) / loaded, 4),
        "processor_seconds_a_frame": round(seconds / options.frames, 4),
        "hardware": hardware(pipe),
        "versions": versions(),
    }
    slug = re.sub(r"[^a-z0-9]+", "-", " ".join(result["hardware"]["processor"].lower().split()[:4])).strip("-")
    target = Path(options.output) / f"clips_{slug}_{result['date']}_from-{options.region_frame}.json"
    target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in result.items() if key not in ("hardware", "versions")}, indent=2))
    print(target)


if __name__ == "__main__":
    main()
