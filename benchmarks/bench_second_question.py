"""What a second expression on an image costs: its share of the first one's seconds.

    python benchmarks/bench_second_question.py --repeats 15

The mask decoder's pixel features and the language model's prefix are kept with the encoding of an image. The first expression pays
for all of that, the second for its own words and masks alone. Both are timed from call to result, in turns, in one process and on a
fresh encoding each time, so what else the machine does falls on both alike; the figure is the median of the ratios.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Time, print, write results/second_question_<hardware>_<date>.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", default=str(HERE.parent / "pipelines" / "focus-tiny"), metavar="DIR")
    parser.add_argument("--repeats", type=int, default=15, metavar="N", help="images (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="(default: %(default)s)")
    parser.add_argument("-o", "--output", metavar="FILE", help="where to write instead")
    options = parser.parse_args()

    import torch
    from PIL import Image

    from diffusers_focus import FocusPipeline
    from diffusers_focus.data.world import render, sample_scene
    from diffusers_focus.evaluation.run import hardware, versions

    torch.set_num_threads(options.threads)
    pipe = FocusPipeline.from_pretrained(options.pipeline)
    pipe.set_progress_bar_config(disable=True)
    clock = time.process_time if pipe.device.type == "cpu" else time.perf_counter

    rows = []
    for index in range(options.repeats + 1):
        scene = sample_scene(1_000_000 + index)
        image = Image.fromarray(render(scene, 128).image)
        names = [f"the {item.name}" for item in scene.objects[:2]]
        times = [clock()]
        seen = pipe.encode_image(image)
        pipe.segment(seen, names[0])
        times.append(clock())
        pipe.segment(seen, names[1])
        times.append(clock())
        pipe.understand(seen, "how many objects are there?")
        times.append(clock())
        first, second, question = (end - start for start, end in zip(times, times[1:]))
        rows.append({"first": first, "second": second, "question": question, "ratio": second / first})
    rows = rows[1:]  # the first call of a process pays for more than itself
    found = {name: round(statistics.median(row[name] for row in rows), 4) for name in rows[0]}
    result = {
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(pipe),
        "versions": versions(),
        "seconds": "of the processor" if clock is time.process_time else "of the clock",
        "images": len(rows),
        "median": found,
        "range of the ratio": [round(f(row["ratio"] for row in rows), 4) for f in (min, max)],
    }
    name = "-".join(result["hardware"]["processor"].lower().replace("(", " ").replace(")", " ").split())
    target = Path(options.output or HERE / "results" / f"second_question_{name}_{result['date']}.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({"median": found, "range of the ratio": result["range of the ratio"]}))
    print(target)


if __name__ == "__main__":
    main()
