"""`vllm.assets.video`."""

from __future__ import annotations

from typing import Any

import numpy as np

from omnimuse.compat.contract.names import no_name
from omnimuse.compat.vllm.assets.base import Asset
from omnimuse.core.errors import RequestError
from omnimuse.media.clip import frames_of, open_clip

MOST = 10_000
"""Frames that are read of a file, for as many to be chosen among."""


class VideoAsset(Asset):
    """A video among the samples."""

    what = "video"


def video_to_ndarrays(path: str, num_frames: int = -1) -> np.ndarray:
    """Frames of a video, uint8 [F, H, W, 3]: so many, evenly from the first to the last, or all. RequestError for a
    file that is no video, or that has fewer.
    """
    clip = open_clip(path, MOST)
    whole, wanted = len(clip.frames), num_frames if num_frames > 0 else len(clip.frames)
    if whole < wanted:
        raise RequestError(f"{path} has {whole} frames, and num_frames={wanted} are wanted; ask for fewer", "videos")
    places = set(np.linspace(0, whole - 1, wanted, dtype=int).tolist())
    return np.stack([np.asarray(frame) for number, frame in enumerate(frames_of(clip)) if number in places])


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
