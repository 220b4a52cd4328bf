"""Recordings of what an engine computes with: every operation, its time and where it was called from.

Started and ended on the engine's thread (`Background.between_ticks`); the file opens in a browser's tracing page or in
Perfetto.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


class Recording:
    """What is computed on this thread, and on its accelerator, between `start` and `write`."""

    def __init__(self) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)

    def start(self) -> None:
        """Record from now on; everything takes a little longer."""
        self._profile.start()

    def write(self, path: Path) -> None:
        """End, and write a Chrome trace; compressed where the name ends so."""
        self._profile.stop()
        self._profile.export_chrome_trace(str(path))
