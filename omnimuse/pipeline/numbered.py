"""The tracks of a pipeline as deploy files number them: one that writes and then draws by that counts as two."""

from __future__ import annotations

from collections.abc import Sequence

from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.generate import Generate
from omnimuse.pipeline.picture_codes import WriteCodes
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Stage


def numbered(pipeline: type[Pipeline]) -> list[Sequence[Stage]]:
    """All stages, in order, track by track; what draws begins with the denoising."""
    found = list[Sequence[Stage]]()
    for track in pipeline.tracks or (pipeline.stages,):
        cut = next((at for at, stage in enumerate(track) if isinstance(stage, Denoise)), len(track))
        writes = any(isinstance(stage, Generate | WriteCodes) for stage in track[:cut])
        found += [track[:cut], track[cut:]] if writes and cut < len(track) else [track]
    return found
