"""What never fits is refused with the figure and the nearest that fits: over CLI, API and server, of every medium, in
one process and in pools.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from omnimuse import Config, DiffusionParams, ModelConfig, Omni
from omnimuse.cli import main
from omnimuse.core.config import HostConfig
from omnimuse.core.errors import OmnimuseError, RequestError
from omnimuse.core.output import Result
from omnimuse.core.request import Ask
from omnimuse.engine.local import finished, start
from omnimuse.worker.find import find, pipeline_for
from tests.checkpoints.families import FAMILIES, SPEAKERS, WRITERS
from tests.invariants.conftest import taking
from tests.once import Once
from tests.server.pooled import placed
from tests.server.whole_server import WholeServer

pytestmark = [pytest.mark.costly("room"), pytest.mark.timeout(600)]


Words = tuple[str, ...]
Asked = Mapping[str, Any]
"""What is asked for: parameters by their names over HTTP."""
JOBS = "/v1/audio/generations"
OPTIONS = {"size": "--size", "num_frames": "--frames", "num_inference_steps": "--steps", "seconds": "--seconds"}
"""What asks for them on the command line."""
OFFERS = {
    "size": r"the nearest size that may fit is (\d+x\d+)",
    "max_tokens": r"the most tokens that may fit are (\d+)",
}
"""What a refusal says to ask for instead, by parameter."""


@dataclass(frozen=True)
class Case:
    """A request of `model` for what is `asked`, for which `room`, in GiB, is too little.

    It is asked for over HTTP at `path`; `hint` is what is said, `middle` the stages of the second of three pools.
    """

    model: str
    room: float
    asked: Asked
    path: str
    hint: str
    middle: tuple[str, ...]


CASES = {
    "image": Case(
        "omnimuse/shapes",
        0.05,
        {"size": "1024x1024", "num_inference_steps": 1},
        "/v1/images/generations",
        r"1024x1024 takes .* MiB .* of which there are 51\.2 MiB; the nearest size that may fit is \d+x\d+",
        ("denoise",),
    ),
    "video": Case(
        "omnimuse/shapes-film",
        0.03,
        {"size": "576x576", "num_frames": 5, "num_inference_steps": 1},
        "/v1/videos",
        r"576x576 with 5 frames takes .* MiB .* of which there are 30\.7 MiB; the nearest size that may fit is \d+x\d+",
        ("init latents", "denoise"),
    ),
    "audio": Case(
        "StableAudioPipeline",
        0.001,
        {"seconds": 3.2, "num_inference_steps": 2},
        "/v1/audio/generate",  # it draws the longest one, and cuts it
        r"a sound of 3\.2 seconds takes .* MiB .* of which there are 1\.02 MiB; no length of it fits",
        ("denoise",),
    ),
    "text": Case(
        "Qwen3ForCausalLM",
        2e-5,
        {"max_tokens": 200},
        "/v1/chat/completions",
        r"\S+ KiB are to be remembered .* room for 21 KiB \(running_bytes\); the most tokens that may fit are \d+",
        (),
    ),
}


@dataclass(frozen=True)
class Heard:
    """A sound of `model` that is larger than those that are tried: `params`, and `extra` of the family.

    As a job it is asked for by these, at once at `path` by `asked`.
    """

    model: str
    params: Asked
    extra: Asked
    path: str
    asked: Asked


SOUNDS = {
    "drawn": Heard(
        "StableAudioPipeline",
        {"seconds": 3.2, "num_inference_steps": 2},
        {},
        "/v1/audio/generate",
        {"seconds": 3.2, "num_inference_steps": 2},
    ),
    "spoken": Heard(
        "Qwen3TTSForConditionalGeneration-custom_voice",
        {},
        {"max_tokens": 100, "min_tokens": 100},
        "/v1/audio/speech",
        {"max_tokens": 100},
    ),
}


def offered(message: str) -> Asked:
    """What a refusal says to ask for instead; nothing, if nothing fits."""
    found = {name: re.search(pattern, message) for name, pattern in OFFERS.items()}
    told = {name: match[1] for name, match in found.items() if match}
    return {name: int(value) if value.isdecimal() else value for name, value in told.items()}


def params_of(asked: Asked) -> DiffusionParams:
    size = [int(side) for side in asked["size"].split("x")] if "size" in asked else (None, None)
    rest = {name: value for name, value in asked.items() if name not in ("size", "max_tokens")}
    extra = {name: value for name, value in asked.items() if name == "max_tokens"}
    return DiffusionParams(width=size[0], height=size[1], extra=extra or None, **rest)


def words_of(asked: Asked) -> list[str]:
    """What asks for it on the command line."""
    told = [
        (OPTIONS[name], str(value)) if name in OPTIONS else ("--set", f"{name}={value}")
        for name, value in asked.items()
    ]
    return [word for pair in told for word in pair]


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


def folder_of(model: str, once: Once) -> str:
    """A bundled model, or the folder of a tiny one."""
    build = {each.name: each.build for each in (*FAMILIES, *WRITERS, *SPEAKERS)}.get(model)
    return model if build is None else str(once.folder(model, build))


@pytest.fixture
def model(case: Case, once: Once) -> str:
    return folder_of(case.model, once)


def ended(server: WholeServer, path: str, job: Asked) -> Asked:
    """The job, once it is over."""
    while job["status"] in ("queued", "in_progress"):
        time.sleep(0.1)
        job = server.ask(f"{path}/{job['id']}").json
    return job


def needed(server: WholeServer) -> tuple[float, float]:
    """Of how many outputs the server has observed what they need, and how many bytes that were on average."""
    page = server.ask("/metrics").content.decode()
    made, bytes_ = (
        float(value) for value in re.findall(r"^omnimuse_request_needs_bytes_(?:count|sum)\S* (\S+)", page, re.M)
    )
    return made, bytes_ / made


def test_the_python_api_raises_it_and_what_is_offered_is_made(case: Case, model: str, deploy: Words) -> None:
    place = Config(ModelConfig(model, dtype="float32", device="cpu"), host=HostConfig(room=int(case.room * 2**30)))
    with Omni(model, config=place, deploy=deploy[1] if deploy else None) as omni:

        def ask(asked: Asked) -> Result | OmnimuseError:
            try:
                [result] = omni.generate(["a red circle"], params_of(asked), progress=False)
            except RequestError as problem:
                return problem
            return result.error or result

        for _ in range(2):  # when it would begin; and at the door, once it is known
            error = ask(case.asked)
            assert isinstance(error, RequestError) and re.search(case.hint, str(error))
            if offer := offered(str(error)):
                made = ask({**case.asked, **offer})
                assert isinstance(made, Result), made
                assert any("decoded in tiles of" in said for said in made.said) == ("size" in offer)
                assert (case.room / 2 < made.needs / 2**30 <= case.room) == ("size" in offer)


def test_the_command_line_says_it(
    case: Case,
    model: str,
    deploy: Words,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["generate", "a red circle", "-m", model, "--dtype", "float32", "--device", "cpu"]
    place = ["--room", str(case.room), *deploy]
    assert main([*words, *words_of(case.asked), *place]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(case.hint, said)
    assert not list(tmp_path.iterdir())
    if offer := offered(said):
        assert main([*words, *words_of({**case.asked, **offer}), *place]) == 0


def test_the_server_answers_it(case: Case, model: str, deploy: Words, tmp_path: Path) -> None:
    place = ("--dtype", "float32", "--device", "cpu", "--room", str(case.room), *deploy)
    said = {"messages": [{"role": "user", "content": "a red circle"}]} if "chat" in case.path else {}
    with WholeServer(tmp_path, model, *place) as server:
        server.wait_ready()

        def ask(asked: Asked) -> str | None:
            """What is wrong with it, if anything is."""
            answer = server.ask(case.path, {**(said or {"prompt": "a red circle"}), **asked})
            if case.path != "/v1/videos":
                assert answer.status == (400 if "error" in answer.json else 200)
                return answer.json["error"]["message"] if "error" in answer.json else None
            job = ended(server, case.path, answer.json)
            return job["error"]["message"] if job["status"] == "failed" else None

        for _ in range(2):  # when it would begin; and at the door, once it is known
            message = ask(case.asked)
            assert message is not None and re.search(case.hint, message)
            offer = offered(message)
            assert not offer or ask({**case.asked, **offer}) is None
        if "size" in case.asked:
            made, bytes_ = needed(server)
            assert made == 2 and case.room / 2 < bytes_ / 2**30 <= case.room


@pytest.mark.parametrize("sound", SOUNDS.values(), ids=SOUNDS)
def test_what_a_sound_needs_is_what_it_takes_and_is_told_wherever_it_is_made(
    sound: Heard, once: Once, tmp_path: Path
) -> None:
    model, text = folder_of(sound.model, once), "two green stars"
    place = Config(ModelConfig(model, dtype="float32", device="cpu"), host=HostConfig(room=2**30))  # it might not fit
    with closing(start(place)) as engine:
        request = engine.make_request(Ask(text, DiffusionParams(**sound.params, extra=sound.extra or None)))
        [first] = finished(engine, request)
        again, took = taking(engine, replace(request, id="again"))
    assert first.needs == again.needs == pytest.approx(took, rel=0.2)
    with WholeServer(tmp_path, model, "--dtype", "float32", "--device", "cpu", "--room", "1") as server:
        server.wait_ready()
        job = server.ask(JOBS, {"prompt": text, **sound.params, "extra_params": sound.extra})
        assert job.status == 200, job.json
        told = ended(server, JOBS, job.json)["needs_memory_mb"]
        assert told == pytest.approx(first.needs / 2**20, abs=0.06), "it is told in tenths"
        whole = server.ask(sound.path, {"input": text, **sound.asked})
        assert whole.status == 200, whole.json
        assert needed(server) == (2, pytest.approx(first.needs, rel=0.02))
