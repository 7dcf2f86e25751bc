"""Objects through the frames of a clip: followed by their region tokens, recognised by what they look like.

FOCUS section "Segmentation predictor": video is processed frame by frame, a region prompt on any one frame guides the clip, and
instance embeddings link frames; how they do is left open. Here an object is a `Track`, a few vectors and a small mask. Its region
token, pooled where it was last seen, is the prompt of the next frame (PSALM's way on DAVIS, arXiv 2403.14598), so an object's
own features look for it. Which proposal it is, and whether it is there at all, the prompt's score, the overlap with the place it
was going to and the likeness to what it looked like decide together; a memory of lost objects takes them up again. Expressions
and class lists are asked of every frame, and an object counts by how often it was meant while it was seen.

Nothing here grows with the length of a clip but the number of objects, which is bounded.

Shapes: R prompts on a frame, N proposals each, [h, w] the mask decoder's grid over the canvas, D the width of a look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from ..processing.prompts import CLASS, INTERACTIVE
from .encode import Components, FocusImageEncoding, mask_pixels
from .segment import FoundObjects, MaskPrompt, MaskReading, find_objects, read_masks, select_objects
from .settings import Settings

MOST_TRACKS = 64  # objects that a clip's memory has room for; those not seen for longest are forgotten
MOST_MEANT = 4  # objects that one expression can mean at once
PATIENCE = 30  # frames that an object no region was given for is looked for by itself; later it has to be found anew

_ANYWHERE = (np.ones((1, 1), dtype=bool),)  # stands for a region whose token is given


@dataclass
class Look:
    """What an object looked like in one frame: its region token [H], and a unit vector [D] to compare it by."""

    token: torch.Tensor
    vector: torch.Tensor


@dataclass(eq=False)
class Track:
    """An object of a clip.

    Args:
        number: its identity, from 1.
        query: number of the expression, class list or region that it belongs to.
        first, last: what it looked like when it was first and when it was last seen well.
        cells: bool [h, w], where it was last seen.
        centre, speed: (x, y) of its middle in cells, and how far that moves a frame.
        asked, meant: frames in which it was seen and its query was asked, and those of them in which the query meant it.
        worth: the sum of the scores with which it was meant.
        votes: of class lists, what it was called.
        label: a name.
        missed: frames since it was seen.
    """

    number: int
    query: int
    first: Look
    last: Look
    cells: torch.Tensor
    centre: torch.Tensor
    label: str = ""
    speed: torch.Tensor = field(default_factory=lambda: torch.zeros(2))
    asked: int = 0
    meant: int = 0
    worth: float = 0.0
    votes: dict[str, float] = field(default_factory=dict)
    missed: int = 0

    @property
    def share(self) -> float:
        """In which share of the frames its query meant it."""
        return self.meant / max(1, self.asked)

    @property
    def evidence(self) -> float:
        """How surely its query means it: the mean score, 0 where it did not."""
        return self.worth / max(1, self.asked)


@dataclass
class Sight:
    """A track in one frame.

    Args:
        track: whose.
        logits: [h, w] on the mask decoder's grid.
        score: how sure it is that the object is there, 0 to 1.
        mask: bool [height, width] of the frame, where it is known better than by the logits.
    """

    track: Track
    logits: torch.Tensor
    score: float
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Linking:
    """Numbers that decide how frames are linked; measured in docs/design.md.

    Args:
        overlap_weight, likeness_weight: of the overlap with the expected place, and of the likeness to what an object looked like,
            beside the score of its own prompt, when its proposal is chosen.
        least_score: of an object's own prompt, for it to be there.
        least_likeness: for an object that overlaps its expected place by `sure_overlap` to be there: it may be half hidden.
        lost_likeness: for any other object to be there.
        region_overlap: of a mask that was given and the object that the model sees in it, for them to be the same.
        same: overlap (IoU) from which two masks are one object.
        least_share: of the frames in which an object is seen, for it to be what its query means.
    """

    overlap_weight: float = 4.0
    likeness_weight: float = 2.0
    least_score: float = 0.2
    least_likeness: float = 0.75
    lost_likeness: float = 0.92
    sure_overlap: float = 0.15
    region_overlap: float = 0.3
    same: float = 0.5
    least_share: float = 0.4


BY_FEATURES = Linking()
BY_EMBEDDINGS = Linking(least_likeness=0.4, lost_likeness=0.6)
"""The likeness of features under masks is 0.7 to 0.9 for different objects, that of trained embeddings mostly below 0.4."""


class ClipTracker:
    """Follows objects from frame to frame, in either direction.

    Args:
        components: of a pipeline that can segment.
        settings: its thresholds.
        queries: what is asked of every frame, expressions and class lists (`MaskPrompt` on image 0); none where regions alone
            are followed.
        linking: see there.
        max_new_tokens: longest list of names.
    """

    def __init__(
        self,
        components: Components,
        settings: Settings,
        queries: Sequence[MaskPrompt] = (),
        *,
        linking: Linking | None = None,
        max_new_tokens: int = 48,
    ) -> None:
        self.components, self.settings, self.queries = components, settings, list(queries)
        self.linking = linking or (BY_EMBEDDINGS if settings.instances_trained else BY_FEATURES)
        self.max_new_tokens = max_new_tokens
        self.tracks: list[Track] = []
        self.counts = [0.0] * len(self.queries)  # objects a frame that each query meant, a running mean over its frames
        self.heard = [0] * len(self.queries)
        self._next = 1

    # -- what a caller does with a frame ---------------------------------------------------------------------------

    def point(
        self,
        encoding: FocusImageEncoding,
        prompts: Sequence[MaskPrompt],
        numbers: Sequence[int],
        outlines: Sequence[bool],
    ) -> list[Sight]:
        """Begin to follow what regions on this frame hold, one object each (several regions of one tuple belong together).

        Args:
            encoding: of the frame alone.
            prompts: what was pointed at, one an object.
            numbers: identities of the objects.
            outlines: whether the regions of an object are a mask of it, which then has to be found again in what the model sees.
        """
        reading = read_masks(self.components, encoding, prompts, max_new_tokens=self.max_new_tokens)
        found = [self._pointed(reading, row, prompt, encoding) for row, prompt in enumerate(prompts)]
        candidates: list[tuple[float, int, torch.Tensor, Look]] = []
        size = reading.mask_logits.shape[-2:]
        given = self._drawn(np.stack([np.any(prompt.regions, axis=0) for prompt in prompts]), size, encoding)
        for row, one in enumerate(found):
            # A region that the model sees nothing in is followed as it is: the user knows that something is there.
            logits, agrees = given[row], 0.0
            if len(one.masks):
                seen = self._logits_of(reading.mask_logits[row], one.masks[:1], encoding)[0]
                overlap = float(_iou((seen > 0)[None], (given[row] > 0)[None])[0, 0])
                if overlap >= self.linking.region_overlap or not outlines[row]:
                    logits, agrees = seen, overlap
            look = self._look(encoding, reading, row, logits)
            candidates.append((agrees, row, logits, look))
        # Of two regions that the model sees the same object in, the one that agrees less with it is followed as it is.
        sights: dict[int, Sight] = {}
        for _, row, logits, look in sorted(candidates, key=lambda item: -item[0]):
            others = [sight.logits > 0 for sight in sights.values()]
            if others and float(_iou((logits > 0)[None], torch.stack(others)).max()) >= self.linking.same:
                logits = given[row]
                look = self._look(encoding, reading, row, logits)
            one = found[row]
            track = self._begin(0, logits, look, one.labels[0] if one.labels else "object", numbers[row])
            sights[row] = Sight(track, logits, float(one.scores[0]) if len(one.scores) else 0.0)
        return [sights[row] for row in range(len(prompts))]

    def step(self, encoding: FocusImageEncoding, tracks: Sequence[Track] | None = None) -> list[Sight]:
        """The objects of the next frame: those that are followed, and what the queries newly mean.

        Args:
            encoding: of the frame alone.
            tracks: those to follow, default all.
        """
        looked_for = [track for track in self.tracks if self._is_looked_for(track)] if tracks is None else list(tracks)
        sights = self._follow(encoding, looked_for) if looked_for else []
        if self.queries:
            found = find_objects(
                self.components, encoding, self.queries, self.settings, max_new_tokens=self.max_new_tokens
            )
            for query, one in enumerate(found):
                sights += self._hear(encoding, query, one, sights)
        seen = {sight.track for sight in sights}
        for track in self.tracks if tracks is None else looked_for:
            track.missed = 0 if track in seen else track.missed + 1
        self._forget()
        return [sight for sight in sights if self._is_meant(sight.track)]

    # -- following -------------------------------------------------------------------------------------------------

    def _is_looked_for(self, track: Track) -> bool:
        return not self.queries or track.missed <= PATIENCE

    def _follow(self, encoding: FocusImageEncoding, tracks: Sequence[Track]) -> list[Sight]:
        """Each track's proposal among those of its own prompt; no two tracks of a query take the same place."""
        reading = read_masks(
            self.components,
            encoding,
            [MaskPrompt(0, INTERACTIVE, None, _ANYWHERE) for _ in tracks],
            max_new_tokens=self.max_new_tokens,
            region_tokens=torch.stack([track.last.token for track in tracks]),
        )
        logits = reading.mask_logits.float()  # [T, N, h, w]
        scores = reading.condition_logits[..., 0].float().sigmoid()
        cells = logits > 0
        looks = self._vectors(encoding, cells.flatten(0, 1), reading.instance_embeds.flatten(0, 1))
        looks = looks.unflatten(0, cells.shape[:2])
        limits, found = self.linking, []
        for index, track in enumerate(tracks):
            overlap = _iou(_moved(track.cells, track.speed * (track.missed + 1))[None], cells[index])[0]
            likeness = torch.maximum(looks[index] @ track.first.vector, looks[index] @ track.last.vector)
            near = overlap if track.missed == 0 else torch.zeros_like(overlap)
            fits = likeness >= torch.where(near >= limits.sure_overlap, limits.least_likeness, limits.lost_likeness)
            fits &= (scores[index] >= limits.least_score) & cells[index].flatten(1).any(1)
            worth = scores[index] + limits.overlap_weight * near + limits.likeness_weight * likeness
            for proposal in worth.argsort(descending=True).tolist():
                if fits[proposal]:
                    found.append((float(worth[proposal]), index, proposal))
        sights: dict[int, Sight] = {}
        for _, index, proposal in sorted(found, key=lambda item: -item[0]):
            track, here = tracks[index], cells[index, proposal]
            taken = [sight.logits > 0 for sight in sights.values() if sight.track.query == track.query]
            if index in sights or (taken and float(_iou(here[None], torch.stack(taken)).max()) >= limits.same):
                continue
            sights[index] = Sight(track, logits[index, proposal], float(scores[index, proposal]))
            self._see(encoding, track, logits[index, proposal], looks[index, proposal])
        return [sights[index] for index in sorted(sights)]

    def _see(self, encoding: FocusImageEncoding, track: Track, logits: torch.Tensor, vector: torch.Tensor) -> None:
        """A track was seen: where it is, and what it looks like now, unless something hides part of it."""
        cells = logits > 0
        centre = _centre(cells)
        if track.missed == 0:
            track.speed = 0.5 * track.speed + 0.5 * (centre - track.centre)
        whole = cells.sum() >= 0.7 * track.cells.sum()
        track.cells, track.centre = cells, centre
        if whole:
            track.last = Look(self._tokens(encoding, cells[None])[0], vector)

    # -- queries ---------------------------------------------------------------------------------------------------

    def _hear(
        self,
        encoding: FocusImageEncoding,
        query: int,
        found: FoundObjects,
        sights: Sequence[Sight],
    ) -> list[Sight]:
        """What a query means in this frame: evidence for tracks that are seen, and new or regained ones; returns their sights."""
        own = [sight for sight in sights if sight.track.query == query]
        for sight in own:
            sight.track.asked += 1
        if not len(found.masks):
            return []
        self.heard[query] += 1
        self.counts[query] += (len(found.masks) - self.counts[query]) / self.heard[query]
        size = mask_pixels(self.components, encoding).mask_features.shape[-2:]
        logits = self._drawn(found.masks, size, encoding)
        cells = logits > 0
        free = list(range(len(cells)))
        if own:
            overlap = _iou(torch.stack([sight.logits > 0 for sight in own]), cells)
            for i, j in _pairs(overlap, self.linking.same):
                self._mean(own[i].track, found, j)
                free.remove(j)
        if not free:
            return []
        embeds = torch.from_numpy(found.instance_embeds).to(cells.device)
        looks = self._looks(encoding, cells, embeds)
        here = {sight.track for sight in own}
        lost = [track for track in self.tracks if track.query == query and track not in here]
        regained: list[Sight] = []
        new = list(free)
        if lost:
            memory = torch.stack([torch.stack([t.first.vector, t.last.vector]) for t in lost])
            likeness = torch.einsum("tkd,jd->tkj", memory, torch.stack([looks[j].vector for j in free])).amax(1)
            for i, j in _pairs(likeness, self.linking.lost_likeness):
                track, place = lost[i], free[j]
                track.asked += 1
                track.speed = torch.zeros_like(track.speed)
                track.missed = 1
                self._see(encoding, track, logits[place], looks[place].vector)
                self._mean(track, found, place)
                regained.append(Sight(track, logits[place], float(found.scores[place]), found.masks[place]))
                new.remove(place)
        for place in new:
            track = self._begin(query, logits[place], looks[place], found.labels[place])
            track.asked = 1
            self._mean(track, found, place)
            regained.append(Sight(track, logits[place], float(found.scores[place]), found.masks[place]))
        return regained

    def _mean(self, track: Track, found: FoundObjects, index: int) -> None:
        score, label = float(found.scores[index]), found.labels[index]
        track.meant += 1
        track.worth += score
        track.votes[label] = track.votes.get(label, 0.0) + score
        track.label = max(track.votes, key=lambda name: track.votes[name])

    def _is_meant(self, track: Track) -> bool:
        """Whether a track is what its query means, as far as one knows by now."""
        if not self.queries:
            return True
        if track.share < self.linking.least_share:
            return False
        if self.queries[track.query].task == CLASS:
            return True
        others = [t for t in self.tracks if t.query == track.query and t.missed == 0 and t is not track]
        better = sum(t.evidence > track.evidence for t in others)
        return better < max(1, round(self.counts[track.query]))

    def _forget(self) -> None:
        """Keep the memory bounded: of an expression the objects it means least, of class lists those not seen for longest."""
        for query, prompt in enumerate(self.queries):
            most = MOST_TRACKS if prompt.task == CLASS else MOST_MEANT
            own = [track for track in self.tracks if track.query == query]
            least = sorted(own, key=lambda t: (t.missed == 0, t.evidence, -t.missed))
            for track in least[: max(0, len(own) - most)]:
                self.tracks.remove(track)

    # -- tracks and looks ------------------------------------------------------------------------------------------

    def _begin(self, query: int, logits: torch.Tensor, look: Look, label: str, number: int | None = None) -> Track:
        cells = logits > 0
        number = self._next if number is None else number
        track = Track(number, query, look, look, cells, _centre(cells), label, torch.zeros(2, device=cells.device))
        self._next = max(self._next, number) + 1
        self.tracks.append(track)
        return track

    def _pointed(
        self, reading: MaskReading, row: int, prompt: MaskPrompt, encoding: FocusImageEncoding
    ) -> FoundObjects:
        settings = self.settings
        return select_objects(
            reading,
            row,
            prompt,
            self.components.image_processor,
            encoding.inputs.placements[0],
            score_threshold=settings.score_threshold,
            fallback_threshold=settings.fallback_threshold,
            duplicate_iou=settings.duplicate_iou,
            calibration=settings.calibration,
        )

    def _logits_of(self, proposals: torch.Tensor, masks: np.ndarray, encoding: FocusImageEncoding) -> torch.Tensor:
        """Selected masks, bool [M, height, width] of the frame, as logits [M, h, w]: the proposals they come from where there are
        such, else the masks themselves.
        """
        drawn = self._drawn(masks, proposals.shape[-2:], encoding)
        best, which = _iou(drawn > 0, proposals > 0).max(1)
        return torch.where((best >= 0.7)[:, None, None], proposals.float()[which], drawn)

    def _drawn(self, masks: np.ndarray, size: Sequence[int], encoding: FocusImageEncoding) -> torch.Tensor:
        """Masks of the frame, bool [M, height, width], as logits [M, h, w]; not one is empty that was not."""
        vision = encoding.vision.image_features
        placed = encoding.inputs.placements[0].place_mask(torch.from_numpy(np.ascontiguousarray(masks)), mode="any")
        shares = F.interpolate(placed.to(vision.device, torch.float32)[None], size=tuple(size), mode="area")[0]
        most = shares.flatten(1).amax(1).clamp(min=1e-6)[:, None, None]
        return 8 * (shares / most - 0.5) if len(shares) else shares

    def _tokens(self, encoding: FocusImageEncoding, cells: torch.Tensor) -> torch.Tensor:
        """Region tokens [M, H] of bool [M, h, w]."""
        vision = encoding.vision
        index = torch.zeros(len(cells), dtype=torch.long, device=cells.device)
        encoder = self.components.vision_encoder
        return encoder.region_tokens(vision.feature_maps, vision.image_features, cells[:, None].float(), index)

    def _looks(self, encoding: FocusImageEncoding, cells: torch.Tensor, embeds: torch.Tensor) -> list[Look]:
        vectors = self._vectors(encoding, cells, embeds)
        return [Look(token, vector) for token, vector in zip(self._tokens(encoding, cells), vectors)]

    def _look(self, encoding: FocusImageEncoding, reading: MaskReading, row: int, logits: torch.Tensor) -> Look:
        """Of a mask [h, w] that may be none of the proposals: the instance embedding is that of the one most like it."""
        cells = (logits > 0)[None]
        nearest = int(_iou(cells, reading.mask_logits[row] > 0)[0].argmax())
        return self._looks(encoding, cells, reading.instance_embeds[row, nearest][None])[0]

    def _vectors(self, encoding: FocusImageEncoding, cells: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
        """Unit vectors [M, D] by which objects are compared: instance embeddings where they were trained, else features of the
        pyramid under the masks, less those of the whole frame.
        """
        if self.settings.instances_trained:
            return F.normalize(embeds.float(), dim=-1)
        parts = []
        for level in encoding.vision.feature_maps or ():  # without any there is no mask decoder's reading either
            weights = F.adaptive_avg_pool2d(cells[None].float(), level.shape[-2:])[0].flatten(1)
            weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-6)
            pixels = level[0].float().flatten(1).T
            parts.append(F.normalize(weights @ pixels - pixels.mean(0), dim=-1))
        return torch.cat(parts, dim=-1) / len(parts) ** 0.5


# --- masks on the grid ----------------------------------------------------------------------------------------------


def _iou(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """[A, B] of bool masks [A, h, w] and [B, h, w]; 0 where both are empty."""
    a, b = first.flatten(1).float(), second.flatten(1).float()
    shared = a @ b.T
    return shared / (a.sum(1)[:, None] + b.sum(1)[None] - shared).clamp(min=1)


def _centre(cells: torch.Tensor) -> torch.Tensor:
    """(x, y) of the middle of a bool mask [h, w], in cells; zeros where it is empty."""
    rows, columns = cells.nonzero(as_tuple=True)
    if not len(rows):
        return torch.zeros(2, device=cells.device)
    return torch.stack([columns.float().mean(), rows.float().mean()])


def _moved(cells: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """A bool mask [h, w] moved by (x, y) cells, rounded; what leaves the grid is gone."""
    height, width = cells.shape
    x, y = (int(v) for v in by.round().tolist())
    moved = torch.zeros_like(cells)
    if abs(x) < width and abs(y) < height:
        moved[max(0, y) : height + min(0, y), max(0, x) : width + min(0, x)] = cells[
            max(0, -y) : height - max(0, y), max(0, -x) : width - max(0, x)
        ]
    return moved


def _pairs(values: torch.Tensor, least: float) -> list[tuple[int, int]]:
    """(row, column) pairs of a table from the largest value down to `least`, each row and column once."""
    found: list[tuple[int, int]] = []
    rows: set[int] = set()
    columns: set[int] = set()
    width = values.shape[1]
    for place in values.flatten().argsort(descending=True).tolist():
        row, column = divmod(place, width)
        if values[row, column] < least:
            break
        if row not in rows and column not in columns:
            found.append((row, column))
            rows.add(row)
            columns.add(column)
    return found
