"""Voices that are taken from sounds: sent with a text, or left at /v1/audio/voices by the official client.

And what is made of them in every format.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx2
import numpy as np
import openai
import pytest
import torch
from websockets.sync.client import connect

from omnimuse.media.recording import read_track, samples_of
from omnimuse.media.sound import Sound, encode_sound, to_sound
from omnimuse.server.voices import MOST
from tests.checkpoints import qwen3_tts
from tests.checkpoints.wishes import chord
from tests.server.whole_server import WholeServer
from tests.unit.media.test_track import recorded

pytestmark = pytest.mark.costly("voices over HTTP", turns=3)

SPEECH, VOICES = "/v1/audio/speech", "/v1/audio/voices"
HOP, RATE = 24, 24_000
ASKED = {"input": "a star", "seed": 8, "max_new_tokens": 12, "language": "english", "response_format": "pcm"}
KEYS = {"ada": "a" * 32, "bob": "b" * 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that speaks with the voice of a sound, in a rate that every format has."""
    made = qwen3_tts.build(tmp_path_factory.mktemp("cloning") / "base", kind="base")
    path = made / "speech_tokenizer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "output_sample_rate": RATE}))
    return made


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("voices-server")
    (made / "keys").write_text("".join(f"{name}:{key}\n" for name, key in KEYS.items()))
    return made


def serve(home: Path, folder: Path) -> WholeServer:
    return WholeServer(home, str(folder), "--dtype", "float32", "--device", "cpu", "--api-key-file", str(home / "keys"))


@pytest.fixture(scope="module")
def server(home: Path, folder: Path) -> Iterator[WholeServer]:
    with serve(home, folder) as started:
        started.wait_ready()
        yield started


def sample(seconds: float = 1.5) -> bytes:
    """A file of a sound."""
    heard = samples_of(chord(24_000, seconds, 1), 24_000, 1)
    return encode_sound(to_sound(torch.from_numpy(heard), 24_000), "WAV", {})


def client(server: WholeServer, who: str = "ada") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEYS[who], max_retries=0)


def say(server: WholeServer, who: str = "ada", **fields: Any) -> Any:
    return server.ask(SPEECH, {**ASKED, **fields}, {"Authorization": f"Bearer {KEYS[who]}"})


def heard(server: WholeServer, **fields: Any) -> bytes:
    answer = say(server, **fields)
    assert answer.status == 200, answer.json
    content: bytes = answer.content
    return content


def sent() -> str:
    return f"data:audio/wav;base64,{base64.b64encode(sample()).decode()}"


def test_a_voice_is_taken_from_a_sound_in_the_request(server: WholeServer) -> None:
    (_, _), (codes, _), *_ = qwen3_tts.kept("base")
    assert len(heard(server, ref_audio=sent())) == 2 * HOP * codes.shape[1]
    for choice, message in (
        ({}, "has no voice of its own, and speaks with that of a sound; give one (`ref_audio`)"),
        ({"ref_audio": "data:audio/wav;base64,AAAA"}, "ref_audio"),
        ({"ref_audio": sent(), "voice": "ada"}, "leave one of them out"),
        ({"voice": "nobody"}, "is not kept here; /v1/audio/voices lists those that are"),
    ):
        refused = say(server, **choice)
        assert refused.status == 400
        assert message in refused.json["error"]["message"]


def test_a_voice_may_come_as_a_file_and_the_model_tells_what_can_be_chosen(server: WholeServer) -> None:
    auth = {"Authorization": f"Bearer {KEYS['ada']}"}
    how = {"seed": "8", "output_format": "pcm", "extra_params[max_tokens]": "12", "extra_params[language]": "english"}
    files: Any = {"audio": ("me.wav", sample(), "audio/wav")}
    for more in ({}, {"ref_text": "one two three"}):
        form = {"prompt": "a star", **how, **{f"extra_params[{name}]": text for name, text in more.items()}}
        with httpx2.Client(base_url=server.url, headers=auth, timeout=60) as web:
            answer = web.post("/v1/audio/generate", data=form, files=files)
            job = web.post("/v1/audio/generations", data=form, files=files)
        assert answer.status_code == 200, answer.text
        assert answer.content == heard(server, ref_audio=sent(), **more)
        assert job.json()["status"] in ("queued", "in_progress")
    phone = read_track(recorded("ipod"))
    assert phone is not None
    told = encode_sound(Sound(samples_of(phone, phone.rate, 1), phone.rate), "WAV", {})
    with httpx2.Client(base_url=server.url, headers=auth, timeout=60) as web:
        form = {"prompt": "a star", **how}
        spoken = [
            web.post("/v1/audio/generate", data=form, files={"audio": ("me", content)})
            for content in (told, recorded("ipod"))
        ]
    assert [answer.status_code for answer in spoken] == [200, 200]
    assert spoken[0].content == spoken[1].content
    none = server.ask("/v1/audio/generate", {"prompt": "a star"}, auth)
    assert "give one (`audio`)" in none.json["error"]["message"]
    [model] = server.ask("/v1/models", headers=auth).json["data"]
    can = model["capabilities"]["extra"]
    assert "ref_text" in can and "language" in can and not {"voice", "instructions"} & set(can)


def test_a_sound_goes_on_as_it_is_said_where_its_text_comes_too(server: WholeServer) -> None:
    _, wave = qwen3_tts.kept("base")[3]
    asked = {"ref_text": "one two three", "seed": 10}
    found = heard(server, ref_audio=sent(), **asked)
    expected = (wave.numpy().clip(-1, 1) * 32767).round()
    assert np.abs(np.frombuffer(found, "<i2") - expected).max() <= 1
    alone = heard(server, ref_audio=sent(), seed=10)
    assert heard(server, ref_audio=sent(), **asked, x_vector_only_mode=True) == alone != found
    assert heard(server, ref_audio=sent(), **asked, stream_format="audio") == found
    voices: Any = client(server).audio.voices
    made = voices.create(name="Ada 3", consent="Ada said so", audio_sample=("a.wav", sample()))
    for choice in ({"voice": {"id": made.id}, **asked}, {"ref_audio": sent(), **asked}):
        assert said(server, choice) == found
    voices.delete(made.id)
    for choice, message in (
        (asked, "has no voice of its own"),
        ({**asked, "ref_audio": sent(), "ref_text": " "}, "`ref_text` is empty; write what is said in the sound"),
        ({**asked, "ref_audio": sent(), "ref_text": "a " * 2500}, "ref_text"),
        ({**asked, "ref_audio": sent(), "x_vector_only_mode": "yes"}, "x_vector_only_mode"),
    ):
        refused = say(server, **choice)
        assert (refused.status, message in refused.json["error"]["message"]) == (400, True), refused.json


def test_what_is_said_in_a_voice_that_was_left_is_kept_with_it(server: WholeServer) -> None:
    words = {"ref_text": "one two three"}
    found = heard(server, ref_audio=sent(), **words)
    alone = heard(server, ref_audio=sent())
    voices: Any = client(server).audio.voices
    made = voices.create(name="Ada 4", consent="Ada said so", audio_sample=("a.wav", sample()), extra_body=words)
    told = server.ask(VOICES, headers={"Authorization": f"Bearer {KEYS['ada']}"}).json
    assert [each["ref_text"] for each in told["uploaded_voices"]] == [words["ref_text"]]
    assert heard(server, voice="Ada 4") == found == heard(server, voice=made.id, ref_text="") != alone
    assert heard(server, voice="Ada 4", stream_format="audio") == found
    assert said(server, {"voice": {"id": made.id}}) == found
    others = {"ref_text": "and a great many other words"}
    assert heard(server, voice="Ada 4", **others) == heard(server, ref_audio=sent(), **others)
    assert heard(server, voice="Ada 4", **others) != found, "the request's own words count"
    assert heard(server, voice="Ada 4", x_vector_only_mode=True) == alone
    voices.delete(made.id)


@pytest.mark.parametrize("format_", ["wav", "flac", "mp3", "opus", "aac", "ogg"])
def test_every_format_is_the_sound_that_players_decode(server: WholeServer, format_: str) -> None:
    asked = {"ref_audio": sent(), "max_new_tokens": 400}
    whole = np.frombuffer(heard(server, **asked), "<i2").astype(np.float32)
    file = heard(server, **asked, response_format=format_)
    with av.open(io.BytesIO(file)) as container:
        rate = container.streams.audio[0].rate
        frames = np.concatenate([each.to_ndarray()[0] for each in container.decode(audio=0)]).astype(np.float32)
    assert rate == (48_000 if format_ == "opus" else RATE)
    wave = np.repeat(whole, rate // RATE)
    assert 0 <= len(frames) - len(wave) <= 0.15 * rate
    alike = np.correlate(np.pad(frames, (0, len(wave))), wave, "valid").max()
    least = 0.5  # what it says is noise, of which less is kept than of speech
    assert alike / np.linalg.norm(frames) / np.linalg.norm(wave) > least


def test_a_voice_that_was_left_speaks_by_its_name_until_it_is_removed(server: WholeServer) -> None:
    voices: Any = client(server).audio.voices
    made = voices.create(name="Ada 2", consent="Ada said so", audio_sample=("a.wav", sample()))
    assert (made.object, made.name, made.type) == ("audio.voice", "Ada 2", "audio_sample")
    told = server.ask(VOICES, headers={"Authorization": f"Bearer {KEYS['ada']}"}).json
    assert told["voices"] == ["Ada 2"]
    assert [(each["id"], each["consent"]) for each in told["uploaded_voices"]] == [(made.id, "Ada said so")]
    expected = heard(server, ref_audio=sent())
    for voice in ("Ada 2", "ADA 2", made.id, {"id": made.id}):
        assert heard(server, voice=voice) == expected
    streamed = heard(server, voice="Ada 2", stream_format="audio")
    assert streamed == expected
    assert said(server, {"voice": {"id": made.id}}) == expected
    assert voices.delete(made.id).model_dump() == {"id": made.id, "deleted": True, "object": "audio.voice.deleted"}
    assert say(server, voice="Ada 2").status == 400
    with pytest.raises(openai.NotFoundError, match="never was, or was removed"):
        voices.delete(made.id)


def said(server: WholeServer, session: dict[str, Any]) -> bytes:
    """What the WebSocket answers to the text of `ASKED`."""
    where = f"ws{server.url.removeprefix('http')}{SPEECH}/stream"
    fields = {name: value for name, value in ASKED.items() if name != "input"}
    found = b""
    with connect(where, additional_headers={"Authorization": f"Bearer {KEYS['ada']}"}) as socket:
        socket.send(json.dumps({"type": "session.config", **fields, **session}))
        socket.send(json.dumps({"type": "input.text", "text": ASKED["input"]}))
        socket.send(json.dumps({"type": "input.done"}))
        for message in socket:
            if isinstance(message, bytes):
                found += message
            elif (event := json.loads(message))["type"] == "session.done":
                break
            else:
                assert event["type"] != "error", event
    return found


def test_what_cannot_be_a_voice_is_refused_by_name(server: WholeServer) -> None:
    voices: Any = client(server).audio.voices
    right = {"name": "ada", "consent": "yes", "audio_sample": ("a.wav", sample())}
    for choice, message in (
        ({"name": "../ada"}, "name='../ada' is no name"),
        ({"name": "voice_1"}, "not with voice_"),
        ({"name": ""}, "name is missing"),
        ({"consent": ""}, "consent is missing; say who agreed"),
        ({"consent": "y" * 300}, "at most 256 characters"),
        ({"audio_sample": ("a.wav", b"RIFF")}, "audio_sample"),
        ({"audio_sample": ("a.wav", sample(0.2))}, "lasts 0.2 s; send one of 0.5 to 30 s"),
        ({"audio_sample": ("a.wav", sample(31))}, "lasts 31 s"),
        ({"extra_body": {"ref_text": " "}}, "`ref_text` is empty; write what is said in the sound"),
        ({"extra_body": {"ref_text": "a " * 2500}}, "`ref_text`: there are 5000 characters; at most 4000"),
        ({"extra_body": {"colour": "red"}}, "there is no field 'colour'"),
    ):
        with pytest.raises(openai.BadRequestError, match=message):
            voices.create(**{**right, **choice})
    with pytest.raises(openai.BadRequestError, match="type='prompt' is not supported"):
        voices.create(type="prompt", name="ada", prompt="an old, deep voice")


@pytest.mark.costly
def test_voices_belong_to_their_key_and_outlive_the_server(home: Path, folder: Path) -> None:
    apart = home / "apart"
    apart.mkdir()
    (apart / "keys").write_text((home / "keys").read_text())
    with serve(apart, folder) as first:
        first.wait_ready()
        voices: Any = client(first).audio.voices
        made = [voices.create(name=f"v{n}", consent="yes", audio_sample=("a.wav", sample())) for n in range(MOST)]
        with pytest.raises(openai.BadRequestError, match="20 voices are kept, and no more are"):
            voices.create(name="one more", consent="yes", audio_sample=("a.wav", sample()))
        with pytest.raises(openai.BadRequestError, match="is taken by a voice"):
            voices.create(name="V3", consent="yes", audio_sample=("a.wav", sample()))
        expected = heard(first, voice="v3")
        first.end()
    with serve(apart, folder) as second:
        second.wait_ready()
        assert heard(second, voice="v3") == expected
        assert say(second, "bob", voice="v3").status == 400
        theirs: Any = client(second, "bob").audio.voices
        with pytest.raises(openai.NotFoundError):
            theirs.delete(made[3].id)
        theirs.create(name="v3", consent="yes", audio_sample=("a.wav", sample(2)))
        assert heard(second, voice="v3") == expected
