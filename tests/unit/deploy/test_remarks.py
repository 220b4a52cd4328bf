"""What a worker says of a result beside its files."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from typing import cast

import pytest
import torch

from omnimuse.core.config import Config, ModelConfig
from omnimuse.core.output import Result
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask
from omnimuse.deploy.child import Settings
from omnimuse.deploy.line import Line
from omnimuse.deploy.process import Worker, remarked
from omnimuse.deploy.wire import Finished, Form, Message, Submit, pack
from omnimuse.engine.local import Background
from omnimuse.worker.warm_up import NONE


@pytest.mark.parametrize("within", [False, True])
def test_every_step_of_what_is_drawn_is_told_and_those_of_texts_where_they_are_asked_for(within: bool) -> None:
    steps = {"denoise": (0.1, 0.2), "generate": (0.3,), "paint": (0.4,), "theirs": (0.5,)}
    result = Result("r", "a star", DiffusionParams(), steps=steps, labels={"theirs": "diffuse"})
    told = remarked(result, within)
    assert told.drew == (0.1, 0.2, 0.4, 0.5)
    assert told.steps == (steps if within else {})


class Said:
    """The line to a front process that nobody reads: what was sent."""

    def __init__(self) -> None:
        self.sent: SimpleQueue[Message] = SimpleQueue()
        self.send = self.sent.put

    def end(self) -> None:
        pytest.fail("the worker has ended")


def test_what_a_request_held_is_memory_of_the_device_that_it_was_made_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, a process whose memory is small fills the device's."""
    held = {torch.device("cpu"): 60 * 2**30}
    monkeypatch.setattr("omnimuse.engine.local.kept_bytes", held.__getitem__)
    config, said = Config(ModelConfig("omnimuse/shapes", "float32", "cpu")), Said()
    worker = Worker(Settings(config, "", tmp_path, "0-1", warm_up=NONE), cast(Line, said))
    with closing(worker):
        worker.load()
        background = worker._background
        assert isinstance(background, Background)
        params = DiffusionParams(width=64, height=64, num_inference_steps=2)
        request = background.make_request(Ask("a red circle", params))
        worker.obey(Submit(pack(request), Form("PNG")))
        while not isinstance(told := said.sent.get(timeout=60), Finished):
            pass
    assert told.memory == 60 * 2**30
