"""The still-life world: scenes of two to five coloured shapes that are drawn by code.

The world stands in for the paper's data sets (section 4.1 and appendix, tables of stages 1 to 4) at the size of
`focus-tiny`: every task of the system (questions, referring and interactive segmentation, editing, generation) has
exact ground truth in it. A scene is a plain description in fractions of the image side, so one scene can be drawn at
any size, and the truth of an edit is simply the drawing of the edited description: colour offsets belong to the
objects, and the noise depends on the scene's seed and the size alone, so that nothing but the edit changes.

Coordinates: the canvas is `[0, size) x [0, size)`, x to the right, y down, pixel (row i, column j) has its centre at
(j + 0.5, i + 0.5). Needs numpy only. The design is this project's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (50, 170, 70),
    "blue": (50, 90, 220),
    "yellow": (235, 205, 50),
    "purple": (140, 60, 190),
    "orange": (240, 140, 40),
    "cyan": (60, 200, 210),
    "white": (240, 240, 240),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")
FILLS: tuple[str, ...] = ("solid", "striped")
SIZES: dict[str, tuple[float, float]] = {"small": (0.07, 0.10), "large": (0.14, 0.18)}
BACKGROUNDS: tuple[str, ...] = ("vertical", "horizontal", "radial", "checkers", "plain")
# (colour, shape) pairs that no training scene, text or edit may contain, in any size or fill.
HELD_OUT_PAIRS: frozenset[tuple[str, str]] = frozenset(
    {
        ("red", "heart"),
        ("green", "star"),
        ("blue", "ring"),
        ("yellow", "cross"),
        ("purple", "triangle"),
        ("cyan", "square"),
    }
)
# Training uses seeds below this one, evaluation the seeds from here up.
first_held_out_seed = 1_000_000

MIN_VISIBLE = 0.6
COLOUR_OFFSET = 18
BACKGROUND_RANGE = (60, 200)
MAX_NOISE_SIGMA = 8.0

_OBJECTS_RANGE = (2, 5)
_SECOND_TONE = 0.55
_STRIPE_PERIOD = 0.5
_SUPERSAMPLE = 3  # odd, so that the middle sample of a pixel is its centre: coverage and exact mask in one pass
_SHARED_ATTRIBUTE = 0.4
_CLEAR_OF_BACKGROUND = 48.0
_SCENE_STREAM, _NOISE_STREAM, _STRIPE_STREAM = 0, 1, 2


@dataclass(frozen=True)
class WorldObject:
    """One object. `cx`, `cy` and `r` are fractions of the image side; `offset` is added to the colour's RGB."""

    shape: str
    colour: str
    size: str
    fill: str
    cx: float
    cy: float
    r: float
    offset: tuple[int, int, int] = (0, 0, 0)

    @property
    def name(self) -> str:
        """The full name without an article, e.g. "small red circle" or "large striped blue star"."""
        words = (self.size, "striped" if self.fill == "striped" else "", self.colour, self.shape)
        return " ".join(word for word in words if word)

    @property
    def pair(self) -> tuple[str, str]:
        """(colour, shape): the unit in which combinations are held out of training."""
        return self.colour, self.shape

    @property
    def rgb(self) -> tuple[int, int, int]:
        """The first tone with the object's offset, clipped to 0..255."""
        red, green, blue = (min(255, max(0, c + o)) for c, o in zip(COLOURS[self.colour], self.offset))
        return red, green, blue


@dataclass(frozen=True)
class Background:
    """What lies behind the objects.

    `kind` is "vertical" (colour1 on top), "horizontal" (colour1 at the left), "radial" (colour1 in the middle),
    "checkers" (cells of side / 8, colour1 in the top left one) or "plain" (colour1 alone).
    """

    kind: str
    colour1: tuple[int, int, int]
    colour2: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """A whole picture: objects in painting order (a later one lies on top), background, noise (8-bit sigma), edges.

    `stripes` says how bands lie on striped objects, which the world leaves open: the diagonal they cross (1, the main one, or
    -1) and by what share of their period they are moved from the centre.
    """

    seed: int
    objects: tuple[WorldObject, ...]
    background: Background
    noise_sigma: float
    antialias: bool
    stripes: tuple[int, float] = (1, 0.0)

    @property
    def has_held_out_pair(self) -> bool:
        """Whether any object is one of the held-out colour and shape combinations."""
        return any(item.pair in HELD_OUT_PAIRS for item in self.objects)


@dataclass(frozen=True)
class Rendered:
    """A drawn scene: `image` uint8 `[S, S, 3]` and `masks` bool `[n, S, S]`, the exact visible mask of every object."""

    image: np.ndarray
    masks: np.ndarray


def size_name(r: float) -> str:
    """The size word of a radius (a fraction of the side): the class whose range is nearer."""
    return "small" if r < (SIZES["small"][1] + SIZES["large"][0]) / 2 else "large"


# --- geometry -------------------------------------------------------------------------------------------------------


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """bool `[H, W]`: which of the points (x `[1, W]`, y `[H, 1]`, relative to the centre, in units of r) are inside."""
    ax, ay = np.abs(x), np.abs(y)
    if shape == "circle":
        return x * x + y * y <= 1.0
    if shape == "square":
        return (ax <= 0.85) & (ay <= 0.85)
    if shape == "triangle":
        return (ax <= 0.5 * (y + 1.0)) & (y <= 0.8)
    if shape == "star":
        return _inside_star(ax, y)
    if shape == "ring":
        square = x * x + y * y
        return (square <= 1.0) & (square >= 0.65**2)
    if shape == "cross":
        return ((ax <= 0.35) & (ay <= 1.0)) | ((ax <= 1.0) & (ay <= 0.35))
    if shape == "diamond":
        return ax / 0.7 + ay <= 1.0
    if shape == "heart":
        # Two round lobes and a triangle, as specified; they leave a pinhole of about 0.005 r^2 below the dip.
        lobes = (ax - 0.5) ** 2 + (y + 0.4) ** 2 <= 0.25
        return lobes | ((y >= -0.2) & (ax <= (0.95 / 1.2) * (1.0 - y)))
    raise ValueError(f"Unknown shape {shape!r}; the world has {', '.join(SHAPES)}.")


def _inside_star(ax: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Two reflections fold the five arms onto the upper one, where a single half-plane (tip to notch) decides.
    cos, sin = math.cos(math.pi / 5), math.sin(math.pi / 5)
    up = -y
    push = 2.0 * np.maximum(cos * ax - sin * up, 0.0)
    fx, fy = ax - push * cos, up + push * sin
    push = 2.0 * np.maximum(-cos * fx - sin * fy, 0.0)
    fx, fy = np.abs(fx + push * cos), fy + push * sin
    notch_x, notch_y = 0.45 * sin, 0.45 * cos
    return notch_x * (fy - 1.0) - fx * (notch_y - 1.0) <= 0.0


def _crop(item: WorldObject, size: int) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) in pixels: the part of the canvas that can contain the object."""
    cx, cy, r = item.cx * size, item.cy * size, item.r * size
    x0, x1 = max(0, math.floor(cx - r)), min(size, math.ceil(cx + r))
    y0, y1 = max(0, math.floor(cy - r)), min(size, math.ceil(cy + r))
    return x0, y0, max(x0, x1), max(y0, y1)


def _points(
    item: WorldObject, size: int, crop: tuple[int, int, int, int], samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sample positions of a crop relative to the object: x float32 `[1, W * samples]`, y `[H * samples, 1]`."""
    x0, y0, x1, y1 = crop
    r = item.r * size
    x = (np.arange((x1 - x0) * samples, dtype=np.float32) + 0.5) / samples
    y = (np.arange((y1 - y0) * samples, dtype=np.float32) + 0.5) / samples
    return ((x + (x0 - item.cx * size)) / r)[None, :], ((y + (y0 - item.cy * size)) / r)[:, None]


def _second_tone(x: np.ndarray, y: np.ndarray, stripes: tuple[int, float]) -> np.ndarray:
    """bool `[H, W]`: where a striped object shows its darker tone (bands across a diagonal)."""
    slant, shift = stripes
    halves = (x + slant * y) * (math.sqrt(0.5) * 2.0 / _STRIPE_PERIOD) + 2.0 * shift
    return (np.floor(halves).astype(np.int32) & 1).astype(bool)


def _pool(samples: np.ndarray) -> np.ndarray:
    """Counts of true samples per pixel: bool `[H * 3, W * 3]` to uint8 `[H, W]`."""
    samples = samples.view(np.uint8)
    rows = samples[0::3] + samples[1::3] + samples[2::3]
    return rows[:, 0::3] + rows[:, 1::3] + rows[:, 2::3]


def full_masks(scene: Scene, size: int = 128) -> np.ndarray:
    """Masks of the whole objects, hidden parts included: bool `[n, size, size]`."""
    masks = np.zeros((len(scene.objects), size, size), dtype=bool)
    for mask, item in zip(masks, scene.objects):
        x0, y0, x1, y1 = crop = _crop(item, size)
        mask[y0:y1, x0:x1] = _inside(item.shape, *_points(item, size, crop, 1))
    return masks


def visible_fractions(scene: Scene, size: int = 128) -> list[float]:
    """For every object, the share of its pixels (at this size) that no later object covers."""
    fractions = []
    crops = [_crop(item, size) for item in scene.objects]
    for index, (item, crop) in enumerate(zip(scene.objects, crops)):
        shown = whole = None
        for later, other in zip(scene.objects[index + 1 :], crops[index + 1 :]):
            if other[0] >= crop[2] or crop[0] >= other[2] or other[1] >= crop[3] or crop[1] >= other[3]:
                continue
            if shown is None:
                shown = _inside(item.shape, *_points(item, size, crop, 1))
                whole = shown.sum()
            shown = shown & ~_inside(later.shape, *_points(later, size, crop, 1))
        fractions.append(1.0 if shown is None else float(shown.sum() / max(int(whole), 1)))
    return fractions


def in_frame(item: WorldObject) -> bool:
    """Whether the object's bounding circle lies fully inside the picture."""
    return item.r <= item.cx <= 1.0 - item.r and item.r <= item.cy <= 1.0 - item.r


# --- drawing --------------------------------------------------------------------------------------------------------


def _draw_background(background: Background, size: int) -> np.ndarray:
    """float32 `[size, size, 3]` in 0..255."""
    first = np.asarray(background.colour1, dtype=np.float32)
    second = np.asarray(background.colour2, dtype=np.float32)
    canvas = np.empty((size, size, 3), dtype=np.float32)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    if background.kind == "plain":
        canvas[:] = first
    elif background.kind == "vertical":
        canvas[:] = (first + axis[:, None] * (second - first))[:, None, :]
    elif background.kind == "horizontal":
        canvas[:] = (first + axis[:, None] * (second - first))[None, :, :]
    elif background.kind == "radial":
        square = (axis - 0.5) ** 2
        distance = np.sqrt(2.0 * (square[:, None] + square[None, :]))  # 1 in the corners
        np.multiply(distance[:, :, None], second - first, out=canvas)
        canvas += first
    elif background.kind == "checkers":
        cell = np.floor(axis * 8).astype(np.int32) & 1
        np.multiply((cell[:, None] ^ cell[None, :])[:, :, None].astype(np.float32), second - first, out=canvas)
        canvas += first
    else:
        raise ValueError(f"Unknown background kind {background.kind!r}; the world has {', '.join(BACKGROUNDS)}.")
    return canvas


def render(scene: Scene, size: int = 128) -> Rendered:
    """Draw a scene.

    A pixel belongs to an object when its centre is inside the shape and no later object covers it; the masks are exact
    in that sense whether the edges are smoothed (3 x 3 samples per pixel) or not. The noise is drawn for the whole
    canvas from the scene's seed and size alone, so two scenes with the same seed have the same noise everywhere.

    Args:
        scene: The scene; zero objects are allowed.
        size: Side of the square image in pixels, at least 8.

    Returns:
        A `Rendered` with image uint8 `[size, size, 3]` and masks bool `[n, size, size]`.
    """
    if size < 8:
        raise ValueError(f"A scene cannot be drawn {size} pixels wide; give a size of at least 8.")
    canvas = _draw_background(scene.background, size)
    masks = np.zeros((len(scene.objects), size, size), dtype=bool)
    samples = _SUPERSAMPLE if scene.antialias else 1
    for index, item in enumerate(scene.objects):
        x0, y0, x1, y1 = crop = _crop(item, size)
        x, y = _points(item, size, crop, samples)
        inside = _inside(item.shape, x, y)
        dark = inside & _second_tone(x, y, scene.stripes) if item.fill == "striped" else None
        if samples > 1:
            exact = inside[1::3, 1::3]
            share = np.float32(1.0 / samples**2)
            cover = _pool(inside) * share
            shade = cover if dark is None else cover - _pool(dark) * (share * np.float32(1.0 - _SECOND_TONE))
        else:
            exact = inside
            cover = inside.astype(np.float32)
            shade = cover if dark is None else cover - dark * np.float32(1.0 - _SECOND_TONE)
        region = canvas[y0:y1, x0:x1]
        region *= (np.float32(1.0) - cover)[:, :, None]
        region += shade[:, :, None] * np.asarray(item.rgb, dtype=np.float32)
        masks[:index, y0:y1, x0:x1] &= ~exact
        masks[index, y0:y1, x0:x1] = exact
    if scene.noise_sigma > 0:
        noise = np.random.default_rng((scene.seed, _NOISE_STREAM)).standard_normal(canvas.shape, dtype=np.float32)
        noise *= np.float32(scene.noise_sigma)
        canvas += noise
    canvas += np.float32(0.5)
    np.clip(canvas, 0.0, 255.0, out=canvas)
    return Rendered(image=canvas.astype(np.uint8), masks=masks)


# --- sampling -------------------------------------------------------------------------------------------------------


def _pick(rng: np.random.Generator, items: tuple | list):
    return items[int(rng.integers(len(items)))]


def _sample_pair(rng: np.random.Generator, earlier: list[WorldObject], held_out: str) -> tuple[str, str]:
    """(colour, shape) of a new object; often one of the two is an earlier object's, so that one word is not enough."""
    while True:
        colour, shape = _pick(rng, tuple(COLOURS)), _pick(rng, SHAPES)
        if earlier and rng.random() < _SHARED_ATTRIBUTE:
            other = _pick(rng, earlier)
            colour, shape = (other.colour, shape) if rng.random() < 0.5 else (colour, other.shape)
        if held_out != "exclude" or (colour, shape) not in HELD_OUT_PAIRS:
            return colour, shape


def _sample_background(rng: np.random.Generator, objects: list[WorldObject]) -> Background:
    low, high = BACKGROUND_RANGE
    rgb = np.asarray([item.rgb for item in objects], dtype=np.float32).reshape(-1, 1, 3)
    kind = _pick(rng, BACKGROUNDS)
    for _ in range(20):
        colours = rng.integers(low, high + 1, size=(2, 3))
        # An object in the background's own colour could be found by nobody.
        if not objects or np.linalg.norm(rgb - colours[None], axis=-1).min() >= _CLEAR_OF_BACKGROUND:
            break
    first, second = (tuple(int(c) for c in colour) for colour in colours)
    return Background(kind, first, second)


def sample_scene(seed: int, num_objects: int | None = None, held_out: str = "exclude", *, size: int = 128) -> Scene:
    """A random scene, the same for the same arguments.

    Args:
        seed: Any integer from 0 up. Training uses seeds below `first_held_out_seed`, evaluation those from there up.
        num_objects: 1 to 8; `None` draws 2 to 5.
        held_out: "exclude" (no held-out colour and shape pair), "require" (at least one object has one) or "allow".
        size: The image side at which at least 60% of every object is made sure to be visible.
    """
    if held_out not in ("exclude", "require", "allow"):
        raise ValueError(f"held_out is {held_out!r}; it must be 'exclude', 'require' or 'allow'.")
    if seed < 0:
        raise ValueError(f"The seed is {seed}; give an integer from 0 up.")
    if num_objects is not None and not 1 <= num_objects <= 8:
        raise ValueError(f"num_objects is {num_objects}; a scene can hold 1 to 8 objects (None draws 2 to 5).")
    rng = np.random.default_rng((seed, _SCENE_STREAM))
    count = int(rng.integers(_OBJECTS_RANGE[0], _OBJECTS_RANGE[1] + 1)) if num_objects is None else num_objects
    noise_sigma = round(float(rng.uniform(0.0, MAX_NOISE_SIGMA)), 3)
    antialias = bool(rng.random() < 0.5)
    # A stream of their own: scenes stay what they were before stripes could lie in more than one way.
    bands = np.random.default_rng((seed, _STRIPE_STREAM))
    stripes = (1 if bands.random() < 0.5 else -1, round(float(bands.random()), 3))
    empty = Scene(seed, (), Background("plain", (0, 0, 0), (0, 0, 0)), noise_sigma, antialias, stripes)
    while True:
        objects = _sample_objects(rng, count, held_out, empty, size)
        if objects is not None:
            break
    return replace(empty, objects=tuple(objects), background=_sample_background(rng, objects))


def with_twin(scene: Scene, index: int, rng: np.random.Generator, gap: float = 0.0, size: int = 128) -> Scene | None:
    """The scene with an identical twin of an object added on top of the others: only its place tells it apart.

    Args:
        scene: The scene.
        index: The object to double.
        rng: Draws the place.
        gap: Room between the two bounding circles, as a fraction of the side.
        size: The image side at which at least 60% of every object is made sure to be visible.

    Returns:
        The scene with the twin as its last object, or None where no room was found.
    """
    item = scene.objects[index]
    for _ in range(40):
        cx, cy = (round(float(value), 5) for value in rng.uniform(item.r, 1.0 - item.r, size=2))
        doubled = replace(scene, objects=(*scene.objects, replace(item, cx=cx, cy=cy)))
        apart = math.hypot(cx - item.cx, cy - item.cy) > 2.0 * item.r + gap
        if apart and min(visible_fractions(doubled, size)) >= MIN_VISIBLE + 0.03:
            return doubled
    return None


def _sample_objects(
    rng: np.random.Generator, count: int, held_out: str, empty: Scene, size: int
) -> list[WorldObject] | None:
    """`count` objects that all stay visible, or None when the canvas filled up."""
    objects: list[WorldObject] = []
    forced = int(rng.integers(count)) if held_out == "require" else -1
    for index in range(count):
        if index == forced:
            colour, shape = _pick(rng, sorted(HELD_OUT_PAIRS))
        else:
            colour, shape = _sample_pair(rng, objects, held_out)
        kind = _pick(rng, tuple(SIZES))
        fill = _pick(rng, FILLS)
        offset = tuple(int(o) for o in rng.integers(-COLOUR_OFFSET, COLOUR_OFFSET + 1, size=3))
        for _ in range(40):
            r = float(rng.uniform(*SIZES[kind]))
            cx, cy = (float(c) for c in rng.uniform(r, 1.0 - r, size=2))
            item = WorldObject(shape, colour, kind, fill, round(cx, 5), round(cy, 5), round(r, 5), offset)
            placed = [*objects, item]
            # Slightly more than asked for: at other drawing sizes small objects round differently.
            fractions = visible_fractions(replace(empty, objects=tuple(placed)), size)
            if in_frame(item) and min(fractions) >= MIN_VISIBLE + 0.03:
                objects = placed
                break
        else:
            return None
    return objects
