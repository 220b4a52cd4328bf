"""Judges one film of a flat shape by code: shape, colour and background as `judge.py` has them, and how it moves.

The first, the middle and the last frame are judged as pictures, enlarged to the size of those; the largest blob of the
asked colour is followed through all frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from PIL import Image

from tools.train_shapes.data import SIZE
from tools.train_shapes.film import FRAMES, Film
from tools.train_shapes.judge import Blob, Verdict, judge, largest_blob, segment

_FAR = 34.0  # how far it goes at least, of the 56 pixels of true films
_STEP = 2.0  # and from frame to frame, of 7
_ASIDE = 12.0
_STILL = 6.0
_WIDER = 1.4  # how much it grows at least; true films double it
_ALIKE = (0.8, 1.25)


def large(frame: Image.Image) -> Image.Image:
    """A frame in the size of the judge's pictures."""
    return frame.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def read_motion(blobs: Sequence[Blob]) -> str:
    """What a thing does, seen in every frame: one of `MOTIONS`, or "none" of them."""
    places = np.array([blob.centre for blob in blobs])
    sizes = [((blob.right - blob.left) * (blob.bottom - blob.top)) ** 0.5 for blob in blobs]
    (right, down), ratio = places[-1] - places[0], sizes[-1] / sizes[0]
    if max(abs(right), abs(down)) < _STILL and np.ptp(places, 0).max() < _ASIDE:
        if ratio > _WIDER or ratio < 1 / _WIDER:
            return "grow" if ratio > 1 else "shrink"
        return "stay" if _alike(sizes) else "none"
    along = 0 if abs(right) > abs(down) else 1
    steps = np.diff(places[:, along]) * np.sign(places[-1] - places[0])[along]
    if abs((right, down)[along]) < _FAR or np.ptp(places[:, 1 - along]) > _ASIDE or steps.min() < _STEP:
        return "none"
    if not _alike(sizes):
        return "none"
    return ("right" if right > 0 else "left") if along == 0 else ("down" if down > 0 else "up")


def _alike(sizes: Sequence[float]) -> bool:
    low, high = _ALIKE
    return all(low < after / before < high for before, after in pairwise(sizes)) and low < sizes[-1] / sizes[0] < high


def judge_film(frames: Sequence[Image.Image], film: Film, background_asked: bool) -> Verdict:
    """Whether `frames` show what `film` does. Raises ValueError for another number of frames."""
    if len(frames) != FRAMES:
        raise ValueError(f"a film of {len(frames)} frames; generate films of {FRAMES}")
    pictures = [large(frame) for frame in frames]
    told = [judge(pictures[at], film.scenes[at], background_asked) for at in (0, FRAMES // 2, FRAMES - 1)]
    verdict = Verdict({name: all(each.aspects[name] for each in told) for name in told[0].aspects})
    verdict.notes += [note for each in told for note in each.notes]
    blobs = [largest_blob(segment(np.asarray(picture, float))[film.colour]) for picture in pictures]
    seen = [blob for blob in blobs if blob is not None]
    motion = read_motion(seen) if len(seen) == FRAMES else "none"
    verdict.aspects["motion"] = motion == film.motion
    verdict.notes.append(f"seen motion {motion}")
    return verdict
