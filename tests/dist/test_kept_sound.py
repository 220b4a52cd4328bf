"""A video that is made of another in pools, the last of two ranks, keeps its sound as in one process."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from omnimuse import Omni
from omnimuse.core.config import Config, ModelConfig
from omnimuse.core.pools import DeployConfig, PoolConfig
from omnimuse.core.ranks import ParallelConfig
from omnimuse.media.recording import read_track, samples_of
from tests.checkpoints import wan
from tests.dist.test_pools import CONFIG
from tests.once import Once
from tests.unit.media.test_kept_sound import SMALL
from tests.unit.media.test_track import RATE, damaged, filmed

pytestmark = [pytest.mark.dist, pytest.mark.costly, pytest.mark.timeout(300)]
READ = PoolConfig("read", ("encode prompt", "encode negative prompt"), connector="tcp")
REST = PoolConfig("rest", ("*",), parallel=ParallelConfig(ulysses=2))


def test_the_sound_of_a_video_goes_through_pools_and_ranks(once: Once) -> None:
    folder = str(once.folder("wan", partial(wan.build, kind="2.1")))
    config: Config = replace(CONFIG, model=ModelConfig(folder, dtype="float32", device="cpu"))
    given = read_track(filmed(2), 2.5)
    assert given is not None
    with Omni(folder, config=replace(config, deploy=DeployConfig((READ, REST)))) as omni:
        seen, numbers, broken = omni.generate(
            [{"prompt": "a star", "videos": [each]} for each in (filmed(2), filmed(2), damaged(filmed(2)))],
            [{**SMALL, "output_type": kind} for kind in ("pil", "pt", "pil")],
            progress=False,
        )
    assert (seen.error, numbers.error, broken.error) == (None, None, None)
    [sound], [[heard]] = seen.audios, [numbers.tensors["audio"]]
    assert sound.rate == RATE and np.array_equal(sound.samples, samples_of(given, RATE, 2))
    assert np.array_equal(heard.numpy(), sound.samples)
    assert broken.audios == [] and broken.warnings[0].startswith("the sound of the video was left out")
