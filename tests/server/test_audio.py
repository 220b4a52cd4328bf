"""/v1/audio over the wire, with workers that make the sounds of a tiny checkpoint: files, streams, jobs, uploads."""

from __future__ import annotations

import base64
import io
import json
import time
import urllib.error
import urllib.request
import uuid
import wave
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from omnimuse import Omni
from omnimuse.media.finished import read_settings
from omnimuse.media.sound import Sound, encode_sound
from tests.checkpoints import stable_audio
from tests.checkpoints.families import FAMILIES
from tests.checkpoints.wishes import Wish
from tests.server.bench import measured
from tests.server.whole_server import Answer, WholeServer

ASKED = {"input": "two green stars", "num_inference_steps": 3, "guidance_scale": 4.0, "seed": 7}
JOBS = "/v1/audio/generations"
[FAMILY] = (family for family in FAMILIES if family.arch == "StableAudioPipeline")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_audio.build(tmp_path_factory.mktemp("stable_audio") / "tiny")


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeServer]:
    home, options = tmp_path_factory.mktemp("audio-server"), ("--dtype", "float32", "--device", "cpu")
    with WholeServer(home, str(folder), *options) as started:
        started.wait_ready()
        yield started


def samples(content: bytes) -> np.ndarray:
    """What a WAV file holds: int16 [n, channels]."""
    with wave.open(io.BytesIO(content), "rb") as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (stable_audio.RATE, 2, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)


def here(folder: Path, **choices: object) -> np.ndarray:
    """What the same request gives without a server: int16 [n, channels]."""
    wish = Wish("two green stars", None, replace(FAMILY.wishes[0].params, num_inference_steps=3, seed=7))
    with Omni(str(folder), dtype="float32", device="cpu") as omni:
        params = replace(wish.params, **choices)  # type: ignore[arg-type]
        [result] = omni.generate([wish.prompt], params, progress=False)
    return samples(encode_sound(result.audios[0], "WAV", {}))


def events(answer: Answer) -> list[dict[str, Any]]:
    found = [line.removeprefix(b"data: ") for line in answer.content.split(b"\n") if line.startswith(b"data: ")]
    assert found[-1] == b"[DONE]"
    return [json.loads(one) for one in found[:-1]]


def upload(server: WholeServer, path: str, fields: dict[str, object], file: bytes) -> Answer:
    """A multipart request with `file` as the field audio."""
    mark = uuid.uuid4().hex
    parts = [f'name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
    parts.append(b'name="audio"; filename="upload"\r\n\r\n' + file)
    head = f"--{mark}\r\nContent-Disposition: form-data; ".encode()
    body = b"".join(head + part + b"\r\n" for part in parts) + f"--{mark}--\r\n".encode()
    request = urllib.request.Request(server.url + path, body, {"Content-Type": f"multipart/form-data; boundary={mark}"})
    try:
        with urllib.request.urlopen(request, timeout=100) as response:
            return Answer(response.status, dict(response.headers), None, response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, dict(error.headers), json.loads(error.read()))


def ended(server: WholeServer, job: str) -> dict[str, Any]:
    while (told := server.ask(f"{JOBS}/{job}").json)["status"] not in ("completed", "failed"):
        time.sleep(0.05)
    return told


def test_a_sound_at_once_is_a_whole_file_of_the_length_and_rate_that_were_asked_for(
    server: WholeServer, folder: Path
) -> None:
    answer = server.ask("/v1/audio/generate", {**ASKED, "audio_length": 1.5, "audio_start": 0.5})
    assert answer.status == 200, answer.json
    assert (answer.headers["content-type"], answer.headers["x-seed"]) == ("audio/wav", "7")
    found = samples(answer.content)
    assert len(found) == 1500
    expected = here(folder, seconds=1.5, guidance_scale=4.0, extra={"start": 0.5})
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert found.std() > 100, "something is to be heard"


@pytest.mark.parametrize(("name", "media"), [("flac", "audio/flac"), ("wav", "audio/wav")])
def test_the_format_is_a_field(server: WholeServer, name: str, media: str) -> None:
    answer = server.ask("/v1/audio/generate", {**ASKED, "seconds": 1.0, "response_format": name})
    assert answer.headers["content-type"] == media
    read, rate = soundfile.read(io.BytesIO(answer.content))
    assert (read.shape, rate) == ((1000, 2), 1000)


def test_a_stream_tells_steps_then_pieces_then_the_whole(server: WholeServer, folder: Path) -> None:
    answer = server.ask("/v1/audio/generate", {**ASKED, "seconds": 3.0, "stream_format": "sse"})
    told = events(answer)
    steps = [(e["step"], e["steps"]) for e in told if e["type"] == "audio.progress" and e["stage"] == "denoise"]
    assert steps == [(1, 3), (2, 3), (3, 3)]
    pieces = [event for event in told if event["type"] == "audio.delta"]
    assert len(pieces) == 3
    assert [(piece["sample_rate"], piece["channels"]) for piece in pieces] == [(1000, 2)] * 3
    grown = np.concatenate([np.frombuffer(base64.b64decode(piece["audio"]), "<i2").reshape(-1, 2) for piece in pieces])
    assert [piece["start"] for piece in pieces] == [0, 1024, 2048]
    assert told[-1]["type"] == "audio.done"
    assert (told[-1]["seconds"], told[-1]["sample_rate"], told[-1]["seed"]) == (3.0, 1000, 7)
    whole = samples(base64.b64decode(told[-1]["audio"]))
    assert np.array_equal(grown, whole)
    order = [event["type"] for event in told]
    assert order.index("audio.delta") > order.index("audio.progress")


def test_a_stream_and_a_job_tell_what_every_block_took_and_a_file_cannot(server: WholeServer) -> None:
    asked = {**ASKED, "input": "two red stars", "seconds": 1.0, "block_timings": True}  # a text that is not remembered
    done = events(server.ask("/v1/audio/generate", {**asked, "stream_format": "sse"}))[-1]
    job = ended(server, server.ask(JOBS, {**asked, "input": "two blue stars"}).json["id"])
    assert done["block_timings"].keys() == job["block_timings"].keys()
    assert any(name.startswith("transformer.") for name in done["block_timings"])
    for told in (done, job):
        assert told["block_bytes"].keys() == told["block_timings"].keys()
        assert len(told["steps"]["denoise"]) == len(told["bytes"]["denoise"]) == 3
        assert min(*told["steps"]["denoise"], *told["bytes"]["denoise"], *told["bytes"]["decode"]) > 0
        assert abs(sum(told["steps"]["denoise"]) - told["timings"]["denoise_s"]) < 1e-3
    plain = events(server.ask("/v1/audio/generate", {**ASKED, "stream_format": "sse"}))[-1]
    assert not {"block_timings", "block_bytes", "steps", "bytes"} & plain.keys()
    error = server.ask("/v1/audio/generate", asked).json["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", "block_timings")
    assert f"a job at {JOBS}, tells it" in error["message"]


@pytest.mark.parametrize("words", [(), ("--stream", "--blocks")])
def test_a_bench_of_sounds_counts_those_that_came_and_tells_where_their_time_went(
    server: WholeServer, words: tuple[str, ...]
) -> None:
    figures = measured(server.url, "--task", "sounds", "--steps", "3", "--requests", "2", *words)
    assert (figures["sent"], figures["ok"], figures["first_preview"]["count"]) == (2, 2, 2 * bool(words))
    assert {name: told["count"] for name, told in figures["steps"].items() if name == "denoise"} == (
        {"denoise": 2 * 3} if words else {}
    )
    assert any(name.startswith("transformer.") for name in figures["blocks"]) == bool(words)
    assert figures["bytes"].keys() >= figures["blocks"].keys()


def test_a_job_is_followed_fetched_listed_and_removed(server: WholeServer) -> None:
    asked = {**ASKED, "seconds": 1.0, "response_format": "flac"}
    job = server.ask(JOBS, asked, {"Idempotency-Key": "k1"})
    assert job.status == 200, job.json
    again = server.ask(JOBS, asked, {"Idempotency-Key": "k1"})
    assert again.json["id"] == job.json["id"]
    assert again.headers["idempotent-replayed"] == "true"
    told = events(server.ask(f"{JOBS}/{job.json['id']}/events"))
    assert told[-1]["type"] == "audio.completed"
    done = ended(server, job.json["id"])
    assert (done["object"], done["status"], done["progress"], done["seed"]) == ("audio", "completed", 100, 7)
    assert (done["seconds"], done["sample_rate"], done["format"]) == (1.0, 1000, "flac")
    content = server.ask(f"{JOBS}/{done['id']}/content")
    assert content.headers["content-type"] == "audio/flac"
    assert soundfile.info(io.BytesIO(content.content)).frames == 1000
    assert server.ask(f"{JOBS}?limit=1").json["data"][0]["id"] == done["id"]
    request = urllib.request.Request(server.url + f"{JOBS}/{done['id']}", method="DELETE")
    with urllib.request.urlopen(request) as response:
        assert json.load(response)["deleted"] is True
    assert server.ask(f"{JOBS}/{done['id']}").json["error"]["code"] == "audio_not_found"


def test_a_job_that_is_cancelled_fails_as_such_and_has_no_content(server: WholeServer) -> None:
    job = server.ask(JOBS, {**ASKED, "num_inference_steps": 3000}).json["id"]
    early = server.ask(f"{JOBS}/{job}/content")
    assert (early.status, early.json["error"]["code"]) == (409, "audio_not_ready")
    assert server.ask(f"{JOBS}/{job}/cancel", {}).json["error"]["code"] == "cancelled"
    assert ended(server, job)["status"] == "failed"


@pytest.mark.parametrize("suffix", ["WAV", "FLAC", "MP3", "OGG"])
def test_a_sound_to_start_from_is_decoded_in_a_child_and_changes_what_is_made(server: WholeServer, suffix: str) -> None:
    rate = 8000
    tone = Sound(0.5 * np.sin(np.arange(2 * rate) * 0.05)[None].astype(np.float32), rate)
    fields = {**ASKED, "seconds": 1.0, "strength": 0.4}
    plain = server.ask("/v1/audio/generate", {**ASKED, "seconds": 1.0})
    started = upload(server, "/v1/audio/generate", fields, encode_sound(tone, suffix, {}))
    assert started.status == 200, started.json
    assert len(samples(started.content)) == 1000
    assert started.content != plain.content


@pytest.mark.parametrize(
    "content", [b"", b"no sound at all", b"RIFF\x10\0\0\0WAVEfmt ", b"fLaC" + bytes(100), b"OggS" * 9]
)
def test_what_is_no_sound_is_refused(server: WholeServer, content: bytes) -> None:
    answer = upload(server, "/v1/audio/generate", ASKED, content)
    error = answer.json["error"]
    assert (answer.status, error["code"], error["param"]) == (400, "invalid_audio", "audio")


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"audio_length": 4.0}, "audio_length", "audio_length=4.0 is out of range; use 0.001 to 3.2"),
        ({"audio_length": 3.0, "audio_start": 1.0}, "audio_length", "3 s from second 1 on end behind the 3.2 s"),
        ({"audio_start": -1.0}, "audio_start", "audio_start=-1.0 is not allowed"),
        ({"speed": 1.5}, "speed", "say how fast it is in the prompt"),
        ({"response_format": "m4a"}, "response_format", "use one of wav, flac, ogg, mp3"),
        ({"n": 2}, "n", "one request makes one sound"),
        ({"size": "64x64"}, "size", "a sound has no sides"),
        ({"strength": 0.5}, "strength", "there is no sound"),
        ({"num_frames": 5}, "num_frames", "there is no field 'num_frames' here"),
        ({"input": ""}, "input", "input is empty"),
        ({"prompt": " ", "input": None}, "prompt", "prompt is empty"),
        ({"input": None}, "input", "input is missing"),
    ],
)
def test_what_cannot_be_is_refused_in_the_clients_words(
    server: WholeServer, fields: dict[str, object], param: str, message: str
) -> None:
    for path in ("/v1/audio/generate", JOBS):
        answer = server.ask(path, {**ASKED, **fields})
        assert answer.status == 400, answer.json
        assert message in answer.json["error"]["message"]
        assert answer.json["error"]["param"] == param


def test_the_list_of_models_tells_what_sounds_there_can_be(server: WholeServer) -> None:
    [model] = server.ask("/v1/models").json["data"]
    can = model["capabilities"]
    assert (can["medium"], can["tasks"]) == ("audio", ["text-to-audio", "audio-to-audio"])
    assert (can["max_seconds"], can["sample_rate"], can["max_sounds"], can["max_outputs"]) == (3.2, 1000, 1, 1)
    assert can["formats"] == ["wav", "flac", "ogg", "mp3", "opus", "aac", "pcm"]
    assert {"seconds", "strength", "guidance_scale", "negative_prompt"} <= set(can["parameters"])
    assert not {"width", "height", "fps"} & set(can["parameters"])
    assert can["extra"] == {"start": 0.0}


def test_settings_travel_in_the_file(server: WholeServer, tmp_path: Path) -> None:
    answer = server.ask("/v1/audio/generate", {**ASKED, "seconds": 1.0})
    (tmp_path / "a.wav").write_bytes(answer.content)
    told = read_settings(tmp_path / "a.wav")
    assert (told["prompt"], told["seed"], told["seconds"]) == ("two green stars", 7, 1.0)
