"""/v1/audio/speech over the wire, with workers that speak with a tiny checkpoint: files, streams, voices, refusals."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import time
import urllib.request
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
import soundfile

from omnimuse.deploy.wire import Grown
from omnimuse.server.routes.speech import following
from tests.checkpoints import qwen3_tts
from tests.server.bench import measured
from tests.server.browser import browser_only, browsing, opened
from tests.server.whole_server import WholeServer

SPEECH = "/v1/audio/speech"
ASKED = {"input": "two yellow stars", "voice": "vivian", "seed": 5, "max_new_tokens": 40, "temperature": 0}
FRAMES, HOP, RATE = 39, 24, 2400


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeServer]:
    folder = qwen3_tts.build(tmp_path_factory.mktemp("speaking") / "tiny")
    home, options = tmp_path_factory.mktemp("speech-server"), ("--dtype", "float32", "--device", "cpu")
    with WholeServer(home, str(folder), *options) as started:
        started.wait_ready()
        yield started


def samples(server: WholeServer) -> bytes:
    """What the text sounds like, whole."""
    answer = server.ask(SPEECH, {**ASKED, "response_format": "pcm"})
    assert answer.status == 200, answer.json
    assert answer.headers["content-type"] == "audio/pcm"
    return answer.content


def deltas(content: bytes) -> list[dict[str, Any]]:
    found = [line.removeprefix(b"data: ") for line in content.split(b"\n") if line.startswith(b"data: ")]
    assert found.pop() == b"[DONE]"
    return [json.loads(one) for one in found]


def test_a_text_is_a_whole_file_in_the_format_that_was_asked_for(server: WholeServer) -> None:
    expected = samples(server)
    assert len(expected) == 2 * FRAMES * HOP
    answer = server.ask(SPEECH, ASKED)
    assert (answer.headers["content-type"], answer.headers["x-seed"]) == ("audio/wav", "5")
    with wave.open(io.BytesIO(answer.content), "rb") as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        assert file.readframes(file.getnframes()) == expected
    flac = server.ask(SPEECH, {**ASKED, "response_format": "flac"})
    assert flac.headers["content-type"] == "audio/flac"
    read, rate = soundfile.read(io.BytesIO(flac.content), dtype="int16")
    assert rate == RATE
    assert np.abs(read.astype(int) - np.frombuffer(expected, "<i2")).max() <= 1


@pytest.mark.parametrize("format_", ["pcm", "wav"])
def test_a_stream_is_the_whole_byte_for_byte(server: WholeServer, format_: str) -> None:
    expected = samples(server)
    answer = server.ask(SPEECH, {**ASKED, "response_format": format_, "stream_format": "audio"})
    assert answer.headers["content-type"] == f"audio/{format_}"
    assert "content-length" not in answer.headers
    head = 44 if format_ == "wav" else 0
    assert answer.content[head:] == expected
    if head:
        assert answer.content[:4] + answer.content[8:16] == b"RIFFWAVEfmt "
        assert struct.unpack("<I", answer.content[24:28]) == (RATE,)


def test_events_carry_the_whole_in_pieces_and_end_with_the_usage(server: WholeServer) -> None:
    expected = samples(server)
    told = deltas(server.ask(SPEECH, {**ASKED, "response_format": "pcm", "stream_format": "sse"}).content)
    assert [event["type"] for event in told] == ["speech.audio.delta"] * (len(told) - 1) + ["speech.audio.done"]
    assert b"".join(base64.b64decode(event["audio"]) for event in told[:-1]) == expected
    usage = told[-1]["usage"]
    assert usage["output_tokens"] == FRAMES + 1
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_events_end_with_what_every_block_took_and_a_sound_by_itself_cannot_tell(server: WholeServer) -> None:
    asked = {**ASKED, "response_format": "pcm", "block_timings": True}
    done = deltas(server.ask(SPEECH, {**asked, "stream_format": "sse"}).content)[-1]
    assert any(name.startswith("model.") for name in done["block_timings"])
    assert all(seconds > 0 for seconds in done["block_timings"].values())
    assert abs(sum(done["steps"]["talk"]) - done["timings"]["talk_s"]) < 1e-2
    for choice in ({}, {"stream_format": "audio"}):
        error = server.ask(SPEECH, {**asked, **choice}).json["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", "block_timings")
        assert "stream_format=sse tells it" in error["message"]


@pytest.mark.parametrize("words", [(), ("--stream", "--blocks")])
def test_a_bench_of_speech_counts_the_sounds_that_came_and_tells_where_their_time_went(
    server: WholeServer, words: tuple[str, ...]
) -> None:
    figures = measured(server.url, "--task", "speech", "--tokens", "6", "--requests", "2", *words)
    assert (figures["sent"], figures["ok"], figures["first_preview"]["count"]) == (2, 2, 2 * bool(words))
    assert {name: told["count"] for name, told in figures["stages"].items() if name == "talk"} == (
        {"talk": 2} if words else {}
    )
    assert bool(figures["steps"]) == any(name.startswith("model.") for name in figures["bytes"]) == bool(words)


@pytest.mark.parametrize("speed", [0.5, 2])
def test_a_speed_makes_it_shorter_and_a_stream_of_it_is_the_whole(server: WholeServer, speed: float) -> None:
    asked = {**ASKED, "speed": speed, "response_format": "pcm"}
    expected = server.ask(SPEECH, asked).content
    assert len(expected) == 2 * round(FRAMES * HOP / speed)
    assert server.ask(SPEECH, {**asked, "stream_format": "audio"}).content == expected
    told = deltas(server.ask(SPEECH, {**asked, "stream_format": "sse"}).content)
    assert b"".join(base64.b64decode(event["audio"]) for event in told[:-1]) == expected
    with wave.open(io.BytesIO(server.ask(SPEECH, {**asked, "response_format": "wav"}).content), "rb") as file:
        read = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(int)
    assert np.abs(read - np.frombuffer(expected, "<i2")).max() <= 1
    streamed = server.ask(SPEECH, {**asked, "response_format": "wav", "stream_format": "audio"}).content
    assert streamed[:4] == b"RIFF" and streamed[44:] == expected


def test_a_stream_goes_on_where_it_ended_and_the_whole_fills_what_was_missed() -> None:
    whole, sent = bytes(range(200)), b""
    for start, end in ((0, 40), (0, 40), (20, 60), (80, 100)):  # the second comes twice, the last behind a gap
        piece = Grown("a", 0, start, RATE, 1, whole[2 * start : 2 * end])
        sent += following(piece, len(sent))
    assert sent == whole[:120]


def test_voices_and_languages_are_told(server: WholeServer) -> None:
    assert server.ask("/v1/audio/voices").json == {
        "voices": ["vivian", "eric"],
        "languages": ["auto", "english", "chinese"],
        "uploaded_voices": [],
    }


def test_no_voice_is_left_with_a_checkpoint_that_has_its_own(server: WholeServer) -> None:
    refused = server.ask("/v1/audio/voices", {"name": "ada", "consent": "yes"})
    assert (refused.status, refused.json["error"]["code"]) == (400, "unsupported_task")
    assert "does not speak with the voice of a sound; choose `voice` from GET" in refused.json["error"]["message"]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"voice": "vivien"}, "did you mean 'vivian'?"),
        ({"voice": {"id": "vivien"}}, "did you mean 'vivian'?"),
        ({"voice": {"name": "vivian"}}, 'neither a name nor {"id": "..."}'),
        ({"language": "klingon"}, "use one of auto, english, chinese"),
        ({"speed": 4.5}, "speed"),
        ({"speed": 0}, "speed"),
        (
            {"response_format": "mp3", "stream_format": "audio"},
            "response_format=mp3 is made whole; a stream is pcm or wav",
        ),
        ({"response_format": "m4a"}, "wav, flac, mp3, opus, aac, ogg, pcm"),
        ({"response_format": "aac"}, "response_format: AAC cannot hold 1 channels of 2400 samples a second; use WAV"),
        ({"response_format": "mp3"}, "response_format: MP3 cannot hold 1 channels of 2400 samples a second (MPEG"),
        ({"ref_audio": "data:audio/wav;base64,AA=="}, "this model starts from no sound"),
        ({"ref_text": "a star"}, "`ref_text` cannot be chosen here: this checkpoint takes no voice from a sound"),
        ({"speaker_embedding": [0.5]}, "a voice is that of a sound"),
        ({"input": " "}, "input is empty; say what to make"),
        ({"input": None}, "input is missing; say what to make"),
        ({"x_vector_only_mode": True}, "x_vector_only_mode is not supported: this model starts from no sound"),
        ({"num_inference_steps": 3}, "num_inference_steps"),
    ],
)
def test_what_cannot_be_is_refused_by_name(server: WholeServer, choice: dict[str, Any], message: str) -> None:
    answer = server.ask(SPEECH, {**ASKED, **choice})
    assert answer.status == 400
    assert message in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "knows"),
    [
        ("GET", SPEECH, "POST"),
        ("PUT", SPEECH, "POST"),
        ("PATCH", SPEECH, "POST"),
        ("OPTIONS", SPEECH, "POST"),
        ("PUT", "/v1/audio/voices", "GET, HEAD, POST"),
        ("DELETE", "/v1/audio/speech/stream", "GET, HEAD, POST"),
    ],
)
def test_a_path_that_is_there_by_another_method_is_not_said_to_be_missing(
    server: WholeServer, method: str, path: str, knows: str
) -> None:
    answer = httpx2.request(method, server.url + path)
    assert (answer.status_code, answer.headers["allow"]) == (405, knows)
    assert httpx2.request(method, f"{server.url}/v1/embeddings").status_code == 404


def test_a_client_that_goes_in_mid_word_is_not_spoken_to_any_longer(server: WholeServer) -> None:
    body = json.dumps({**ASKED, "max_new_tokens": 1900, "response_format": "pcm", "stream_format": "audio"}).encode()
    where = urlsplit(server.url)
    head = f"POST {SPEECH} HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=60) as client:
        client.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        heard = b""
        while not heard.partition(b"\r\n\r\n")[2]:
            heard += client.recv(1000)
        assert heard.startswith(b"HTTP/1.1 200")
    while server.ask("/load").json["requests"]:
        time.sleep(0.05)
    with urllib.request.urlopen(server.url + "/metrics", timeout=60) as answer:
        assert b'omnimuse_cancelled_total{where="running"} 1.0' in answer.read()
    assert samples(server), "others are served"


PLAYED = """async (audio) => {
  audio.muted = true;
  const ended = new Promise((tell) => (audio.onended = tell));
  await audio.play();
  await ended;
  return audio.duration;
}"""


@browser_only
@pytest.mark.costly("a page that says a text")
def test_the_page_says_a_text_in_the_voice_that_was_chosen_and_plays_it(tmp_path: Path) -> None:
    folder = qwen3_tts.build(tmp_path / "tiny")
    config = folder / "speech_tokenizer" / "config.json"
    said = json.loads(config.read_text()) | {"output_sample_rate": 24_000}  # browsers play nothing below 3000
    config.write_text(json.dumps(said))
    with WholeServer(tmp_path / "server", str(folder), "--dtype", "float32", "--device", "cpu") as server:
        server.wait_ready()
        speak_on_the_page(server)


def speak_on_the_page(server: WholeServer) -> None:
    """Choose a voice, have a text said, and hear it to its end."""
    with browsing() as browser, opened(browser, server.url) as page:
        page.get_by_label("Voice").wait_for()
        assert page.get_by_label("Voice").locator("option").all_text_contents() == ["\u2014", "vivian", "eric"]
        page.get_by_label("Voice").select_option("eric")
        page.get_by_label("Seed").fill("5")
        page.get_by_label("Text", exact=True).fill("two yellow stars")
        with page.expect_request("**/v1/audio/generate") as asked:
            page.get_by_role("button", name="Speak", exact=True).click()
        sound = page.locator("audio")
        sound.wait_for()
        assert "eric" in asked.value.post_data
        assert sound.evaluate(PLAYED) > 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
