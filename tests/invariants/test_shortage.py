"""Whatever is decoded in tiles is decoded in smaller ones where memory runs out, for every family of videos, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from omnimuse.core.config import DecodeConfig
from omnimuse.core.errors import MemoryShortageError
from omnimuse.core.output import Done
from omnimuse.engine.engine import Engine
from omnimuse.models import REGISTRY
from omnimuse.pipeline import video
from omnimuse.pipeline.video import DecodeVideo
from omnimuse.worker.find import pipeline_for
from tests.checkpoints.families import FAMILIES
from tests.invariants.conftest import Subject, drain, of, outputs, run, submit

FILMS = [
    family
    for family in FAMILIES
    if any(isinstance(stage, DecodeVideo) for stage in pipeline_for(REGISTRY.spec(family.arch)).stages)
]


def narrow(patch: pytest.MonkeyPatch, room: int) -> None:
    """Where frames are decoded, no more than so many latents of a frame fit."""

    def refused(decode: Callable[..., Any]) -> Callable[..., Any]:
        def inner(vae: Any, latents: Tensor, *rest: Any) -> Any:
            if latents.shape[-1] * latents.shape[-2] > room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return decode(vae, latents, *rest)

        return inner

    for name in ("decode_frames", "decode_clip"):
        patch.setattr(video, name, refused(getattr(video, name)))


@pytest.mark.crossed
@of(FILMS)
def test_a_video_whose_tiles_are_too_large_is_decoded_anew_in_smaller_ones(
    subject: Subject, engine_with: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, small = engine_with(), engine_with(decode=DecodeConfig(tile=64))
    ask = subject.ask(0, width=128, height=128, output_type="pt")
    [expected] = run(small, ask)
    cells = small.runner.pipeline.ctx.tiling
    assert cells is not None
    narrow(monkeypatch, cells.cells**2)
    [id_] = submit(plain, ask)
    events = drain(plain)
    assert torch.equal(outputs(events, id_), expected)
    [said] = [event.result.said for event in events if isinstance(event, Done)]
    assert said == ("memory ran out in decode, which was done again with less: pictures in tiles",)
    assert plain.runner.retried_stages == {"decode": 1}
    narrow(monkeypatch, 0)
    [id_] = submit(plain, ask)
    with pytest.raises(MemoryShortageError, match="decode ran out of memory"):
        outputs(drain(plain), id_)
    assert plain.runner.retried_stages == {"decode": 1} and not plain.runner.states
