"""Judges one picture of flat shapes by code: colours, shapes, places, background.

Segments the picture by nearest palette colour (the expected background told apart per row, so gradients
do not read as objects), takes the largest blob of every asked colour, and matches its silhouette, scaled
to a common size, against drawn templates.  No learnt parts; numpy, scipy and pillow only.

Letters: h, w pixels; masks are bool [128, 128].
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from PIL import Image
from scipy import ndimage

from tools.train_shapes.data import FOREIGN_SHAPES, PALETTE, SHAPES, SIZE, Scene, shape_mask

_NEAR = 62.0  # how far a pixel may be from its palette colour, in RGB distance
_SMALLEST_BLOB = 180  # pixels; the smallest shape drawn has about 330
_STRAY = 150  # pixels of other objects that make a picture unclean
_TEMPLATE = 48
_TOLERANCE = 2.0  # mean distance of contours, in 48ths of the size; templates differ by 2.3 to 9.7
_BORDER = 3


@dataclass(frozen=True)
class Blob:
    """The largest connected region of a colour: its mask, bounding box and centre."""

    mask: np.ndarray
    top: int
    left: int
    bottom: int
    right: int

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) of the bounding box."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


@dataclass
class Verdict:
    """True or False per aspect that the prompt asks for; ``notes`` say what was seen instead."""

    aspects: dict[str, bool]
    notes: list[str] = field(default_factory=list)

    @property
    def right(self) -> bool:
        return all(self.aspects.values())


def expected_background(background: tuple[str, ...]) -> np.ndarray:
    """The background's colour per row, float [128, 3]."""
    upper, lower = (np.array(PALETTE[name], float) for name in (background * 2)[:2])
    return upper + (lower - upper) * np.linspace(0, 1, SIZE)[:, None]


def seen_background(pixels: np.ndarray) -> np.ndarray:
    """The background's colour per row as seen at the left and right border, smoothed; float [128, 3]."""
    border = np.concatenate([pixels[:, :_BORDER], pixels[:, -_BORDER:]], 1)
    return ndimage.median_filter(np.median(border, 1), size=(9, 1), mode="nearest")


def background_right(pixels: np.ndarray, background: tuple[str, ...]) -> bool:
    """Whether the border has the asked colours, nearer than any other palette colour when plain."""
    seen, wanted = seen_background(pixels), expected_background(background)
    if np.median(np.linalg.norm(seen - wanted, axis=1)) > _NEAR * (0.8 if len(background) == 1 else 1.0):
        return False
    if len(background) == 1:
        return nearest_names(seen.mean(0)[None])[0] == background[0] and float(np.ptp(seen, 0).max()) < 90
    ends = (seen[:8].mean(0), seen[-8:].mean(0))
    return all(
        np.linalg.norm(end - np.array(PALETTE[n])) < 1.3 * _NEAR for end, n in zip(ends, background, strict=True)
    )


def nearest_names(points: np.ndarray) -> list[str]:
    """The palette name nearest to each of ``points`` [n, 3]."""
    names = list(PALETTE)
    table = np.array([PALETTE[name] for name in names], float)
    return [names[i] for i in np.linalg.norm(points[:, None] - table, axis=-1).argmin(1)]


def segment(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """A mask per palette colour: pixels nearest to it, near enough, and unlike the row's background."""
    names = list(PALETTE)
    points, table = pixels.astype(np.float32), np.array(list(PALETTE.values()), np.float32)
    # Squared distance to every palette colour, less the pixel's own square: [h, w, colours].
    distance = (table * table).sum(-1) - 2 * (points @ table.T)
    winner = distance.argmin(-1)
    nearest = np.sqrt(np.maximum(distance.min(-1) + (points * points).sum(-1), 0))
    from_background = np.linalg.norm(points - seen_background(pixels)[:, None], axis=-1)
    thing = (nearest < _NEAR) & (from_background > nearest) & (from_background > 40)
    return {name: thing & (winner == i) for i, name in enumerate(names)}


def largest_blob(mask: np.ndarray) -> Blob | None:
    """The largest connected region after opening away rims and specks, or None if all are small."""
    opened = ndimage.binary_opening(mask, iterations=1)
    labels, count = ndimage.label(opened)
    if not count:
        return None
    sizes = np.bincount(labels.ravel())[1:]
    if sizes.max() < _SMALLEST_BLOB:
        return None
    core = labels == sizes.argmax() + 1
    whole = ndimage.binary_dilation(core, iterations=2) & mask
    (rows, columns) = ndimage.find_objects(whole.astype(np.int8))[0]
    return Blob(whole, rows.start, columns.start, rows.stop, columns.stop)


@cache
def _templates() -> dict[str, tuple[np.ndarray, int]]:
    """Every shape's silhouette and the length of its contour."""
    silhouettes = {shape: _normalised(shape_mask(shape, 40) > 0.5) for shape in SHAPES + FOREIGN_SHAPES}
    return {name: (mask, int((mask & ~ndimage.binary_erosion(mask)).sum())) for name, mask in silhouettes.items()}


def _normalised(mask: np.ndarray) -> np.ndarray:
    """The mask's bounding box scaled to a square of fixed size, bool [48, 48]."""
    (rows, columns) = ndimage.find_objects(mask.astype(np.int8))[0]
    image = Image.fromarray(mask[rows, columns].astype(np.uint8) * 255)
    return np.asarray(image.resize((_TEMPLATE, _TEMPLATE), Image.Resampling.BILINEAR)) > 127


def shape_distances(blob: Blob, filled: np.ndarray | None = None, among: Collection[str] = SHAPES) -> dict[str, float]:
    """How far the silhouette's contour is from every shape's, on average, in 48ths of the shape's size.

    That is the area by which the two differ over the template's contour length, so that thin shapes are not
    judged more harshly than round ones.  ``filled`` (another thing that lies on this one) counts as blob.
    """
    mask = blob.mask if filled is None else blob.mask | filled
    seen = _normalised(ndimage.binary_closing(np.pad(mask, 2), iterations=1))
    known = {name: found for name, found in _templates().items() if name in among}
    return {name: float((seen ^ shape).sum() / length) for name, (shape, length) in known.items()}


def read_shape(blob: Blob, filled: np.ndarray | None = None, among: Collection[str] = SHAPES) -> str:
    """The shape that ``blob`` is, or "none" when it is near to nothing or stretched out of form."""
    height, width = blob.bottom - blob.top, blob.right - blob.left
    distances = shape_distances(blob, filled, among)
    best = min(distances, key=distances.__getitem__)
    stretched = not 0.72 < height / width < 1.38
    return "none" if stretched or distances[best] > _TOLERANCE else best


def relation_right(scene: Scene, blobs: list[Blob]) -> bool:
    """Whether the blobs stand as the scene's things do (rows: left to right, columns: top to bottom)."""
    if scene.relation == "inside":
        inner, outer = blobs
        (x, y) = inner.centre
        return (
            outer.left < x < outer.right
            and outer.top < y < outer.bottom
            and (inner.bottom - inner.top < outer.bottom - outer.top)
        )
    if scene.relation in ("row", "column"):
        steps = list(itertools.pairwise(blobs))
        return all(_beside(a, b, scene.relation == "row") for a, b in steps)
    first, second = blobs if scene.relation in ("left of", "above") else blobs[::-1]
    return _beside(first, second, scene.relation in ("left of", "right of"))


def _beside(first: Blob, second: Blob, sideways: bool) -> bool:
    """Whether ``first`` is left of (``sideways``) or above ``second``, more so than across."""
    dx = second.centre[0] - first.centre[0]
    dy = second.centre[1] - first.centre[1]
    return dx > max(8, abs(dy)) if sideways else dy > max(8, abs(dx))


def place_right(blob: Blob, place: str) -> bool:
    """Whether the blob is where the words say, half a ring of tolerance around the ninth that they name."""
    x, y = (value / SIZE for value in blob.centre)
    slack = 0.06
    wanted = {
        "left": x < 0.4 + slack,
        "right": x > 0.6 - slack,
        "top": y < 0.4 + slack,
        "bottom": y > 0.6 - slack,
        "middle": abs(x - 0.5) < 0.1 + slack and abs(y - 0.5) < 0.1 + slack,
    }
    return all(right for word, right in wanted.items() if word in place.split())


def judge(image: Image.Image, scene: Scene, background_asked: bool, place: str = "") -> Verdict:
    """Whether ``image`` shows ``scene``'s colours, shapes and relation (background and place, when asked).

    "clean" is that nothing else of size is in the picture.  Raises ValueError for another picture size.
    """
    if image.size != (SIZE, SIZE):
        raise ValueError(f"image.size={image.size} is not ({SIZE}, {SIZE}); generate pictures of that size")
    pixels = np.asarray(image.convert("RGB"), float)
    masks = segment(pixels)
    found = [largest_blob(masks[thing.colour]) for thing in scene.things]
    verdict = Verdict({"colour": all(blob is not None for blob in found)})
    if background_asked:
        verdict.aspects["background"] = background_right(pixels, scene.background)
    blobs = [blob for blob in found if blob is not None]
    if len(blobs) < len(found):
        missing = [t.colour for t, blob in zip(scene.things, found, strict=True) if blob is None]
        verdict.notes.append(f"nothing {' or '.join(missing)}")
        verdict.aspects.update({"shape": False, "clean": False})
        verdict.aspects.update({"relation": False} if scene.relation else {"place": False} if place else {})
        return verdict
    fillings = [blobs[0].mask if scene.relation == "inside" and row == 1 else None for row in range(len(blobs))]
    among = {*SHAPES, *(thing.shape for thing in scene.things)}  # what an adapter teaches counts where it is asked for
    shapes = [read_shape(blob, filled, among) for blob, filled in zip(blobs, fillings, strict=True)]
    verdict.aspects["shape"] = shapes == [thing.shape for thing in scene.things]
    verdict.notes.append("seen " + ", ".join(f"{t.colour} {s}" for t, s in zip(scene.things, shapes, strict=True)))
    if scene.relation:
        verdict.aspects["relation"] = relation_right(scene, blobs)
    if place:
        verdict.aspects["place"] = place_right(blobs[0], place)
    verdict.aspects["clean"] = _is_clean(masks, blobs)
    return verdict


def _is_clean(masks: dict[str, np.ndarray], blobs: list[Blob]) -> bool:
    """Whether, the asked things and their rims apart, little else stands out from the background."""
    known = np.any([ndimage.binary_fill_holes(blob.mask) for blob in blobs], 0)
    known = ndimage.binary_dilation(known, iterations=3)
    rest = [ndimage.binary_opening(mask & ~known, iterations=1).sum() for mask in masks.values()]
    return max(rest) < _STRAY
