"""Made-up clips with true and found tubes, for YouTube-VIS's mAP: moved, cut, double, of the wrong class, none at all."""

from __future__ import annotations

import numpy as np

CLASSES = ("cat", "dog", "bird")
SIZE = (24, 32)


def tube_cases(clips: int = 6) -> list[dict[str, list[dict]]]:
    """For each clip "true" and "found": {"masks": bool [frames, H, W], "label", "score"}."""
    rng = np.random.default_rng(11)
    found = []
    for clip in range(clips):
        frames = 3 + clip
        true = []
        for _ in range(clip % 4):
            tube = np.zeros((frames, *SIZE), dtype=bool)
            y, x = rng.integers(0, 14), rng.integers(0, 20)
            h, w = rng.integers(4, 10), rng.integers(4, 12)
            begin, end = sorted(rng.choice(frames + 1, 2, replace=False))
            for t in range(begin, end):
                tube[t, y : y + h, min(x + t, 30) : x + t + w] = True
            true.append({"masks": tube, "label": CLASSES[int(rng.integers(3))]})
        mine = []
        for one in true:
            for _ in range(int(rng.integers(0, 4))):
                tube = np.roll(one["masks"], int(rng.integers(-2, 3)), axis=2)
                if rng.random() < 0.4:
                    tube = tube.copy()
                    tube[int(rng.integers(frames))] = False
                label = one["label"] if rng.random() < 0.8 else CLASSES[int(rng.integers(3))]
                mine.append({"masks": tube, "label": label, "score": round(float(rng.random()), 6)})
        if rng.random() < 0.5:  # something that is not there
            tube = np.zeros((frames, *SIZE), dtype=bool)
            tube[:, 2:6, 2:6] = True
            mine.append({"masks": tube, "label": "bird", "score": round(float(rng.random()), 6)})
        found.append({"true": true, "found": [one for one in mine if one["masks"].any()]})
    return found
