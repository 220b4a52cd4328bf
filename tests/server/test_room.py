"""What never fits is refused with the figure and the nearest that fits: over CLI, API and server, of every medium, in
one process and in pools.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from omnimuse import Config, DiffusionParams, ModelConfig, Omni
from omnimuse.cli import main
from omnimuse.core.config import HostConfig
from omnimuse.core.errors import RequestError
from omnimuse.worker.find import find, pipeline_for
from tests.checkpoints.families import FAMILIES, WRITERS
from tests.once import Once
from tests.server.pooled import placed
from tests.server.whole_server import WholeServer

pytestmark = [pytest.mark.costly("room"), pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Case:
    """A request of `model` for which `room`, in GiB, is too little, and a smaller one for which it is enough, if any.

    `wide` and `narrow` are what the parameters of both are, `words` and `body` what asks for the former on the command
    line and over HTTP, at `path`; `hint` is what is said to ask for instead, `middle` the stages of the second of three
    pools.
    """

    model: str
    room: float
    wide: dict[str, Any]
    narrow: dict[str, Any] | None
    words: tuple[str, ...]
    path: str
    body: dict[str, Any]
    hint: str
    middle: tuple[str, ...]


Words = tuple[str, ...]
CASES = {
    "image": Case(
        "omnimuse/shapes",
        0.05,
        {"width": 1024, "height": 1024, "num_inference_steps": 1},
        {"width": 256, "height": 256, "num_inference_steps": 1},
        ("--size", "1024x1024", "--steps", "1"),
        "/v1/images/generations",
        {"size": "1024x1024", "num_inference_steps": 1},
        r"1024x1024 takes .* MiB .* of which there are 51\.2 MiB; the nearest size that may fit is \d+x\d+",
        ("denoise",),
    ),
    "video": Case(
        "omnimuse/shapes-film",
        0.15,
        {"width": 576, "height": 576, "num_frames": 5, "num_inference_steps": 1},
        {"width": 128, "height": 128, "num_frames": 5, "num_inference_steps": 1},
        ("--size", "576x576", "--frames", "5", "--steps", "1"),
        "/v1/videos",
        {"size": "576x576", "num_frames": 5, "num_inference_steps": 1},
        r"576x576 with 5 frames takes .* MiB .* of which there are 154 MiB; the nearest size that may fit is \d+x\d+",
        ("init latents", "denoise"),
    ),
    "audio": Case(
        "StableAudioPipeline",
        0.001,
        {"seconds": 3.2, "num_inference_steps": 2},
        None,  # it draws the longest one, and cuts it
        ("--seconds", "3.2", "--steps", "2"),
        "/v1/audio/generate",
        {"seconds": 3.2, "num_inference_steps": 2},
        r"a sound of 3\.2 seconds takes .* MiB .* of which there are 1\.02 MiB; no length of it fits",
        ("denoise",),
    ),
    "text": Case(
        "Qwen3ForCausalLM",
        2e-5,
        {"extra": {"max_tokens": 200}},
        {"extra": {"max_tokens": 10}},
        ("--set", "max_tokens=200"),
        "/v1/chat/completions",
        {"max_tokens": 200},
        r"\S+ KiB are to be remembered .* room for 21 KiB \(running_bytes\); the most tokens that may fit are \d+",
        (),
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(params=[False, True], ids=["one process", "pools"])
def deploy(case: Case, model: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Words:
    """The options that spread the stages of the model over pools."""
    if not request.param:
        return ()
    names = [stage.name for stage in pipeline_for(find(Config(ModelConfig(model))).spec).stages]
    cut = names.index(case.middle[0]) if case.middle else 1
    parts = {"begin": names[:cut], "go on": names[cut : cut + len(case.middle)], "end": ["*"]}
    pools = [{"name": name.replace(" ", "-"), "stages": stages} for name, stages in parts.items() if stages]
    return placed(tmp_path_factory.mktemp("pools"), *pools)


@pytest.fixture
def model(case: Case, once: Once) -> str:
    build = {family.name: family.build for family in (*FAMILIES, *WRITERS)}.get(case.model)
    return case.model if build is None else str(once.folder(case.model, build))


def test_the_python_api_raises_it_and_what_fits_is_made(case: Case, model: str, deploy: Words) -> None:
    place = Config(ModelConfig(model, dtype="float32", device="cpu"), host=HostConfig(room=int(case.room * 2**30)))
    with Omni(model, config=place, deploy=deploy[1] if deploy else None) as omni:
        if case.narrow is not None:
            [result] = omni.generate(["a red circle"], DiffusionParams(**case.narrow), progress=False)
            assert result.error is None
        for _ in range(2):  # when it would begin; and at the door, once it is known
            try:
                [result] = omni.generate(["a red circle"], DiffusionParams(**case.wide), progress=False)
                error = result.error
            except RequestError as problem:
                error = problem
            assert isinstance(error, RequestError)
            assert re.search(case.hint, str(error))


def test_the_command_line_says_it(
    case: Case,
    model: str,
    deploy: Words,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["generate", "a red circle", "-m", model, "--dtype", "float32", "--device", "cpu", *case.words]
    assert main([*words, "--room", str(case.room), *deploy]) == 2
    assert re.search(case.hint, " ".join(capsys.readouterr().err.split()))
    assert not list(tmp_path.iterdir())


def test_the_server_answers_it(case: Case, model: str, deploy: Words, tmp_path: Path) -> None:
    place = ("--dtype", "float32", "--device", "cpu", "--room", str(case.room), *deploy)
    said = {"messages": [{"role": "user", "content": "a red circle"}]} if "chat" in case.path else {}
    with WholeServer(tmp_path, model, *place) as server:
        server.wait_ready()
        answer = server.ask(case.path, {"prompt": "a red circle", **case.body} if not said else {**said, **case.body})
        if case.path == "/v1/videos":  # a job, which is looked at
            job = answer.json
            while job["status"] in ("queued", "in_progress"):
                time.sleep(0.1)
                job = server.ask(f"/v1/videos/{job['id']}").json
            assert job["status"] == "failed"
            error = job["error"]
        else:
            assert answer.status == 400, answer.content
            error = answer.json["error"]
        assert re.search(case.hint, error["message"])
