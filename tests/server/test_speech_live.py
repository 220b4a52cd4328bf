"""/v1/audio/speech/stream with a real client of WebSockets, and a server that speaks with a tiny checkpoint."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests.checkpoints import qwen3_tts
from tests.server.pooled import SPOKEN, placed
from tests.server.whole_server import WholeServer

pytest.importorskip("websockets", reason="a server without it has no WebSockets")

from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.server.websocket import Events, opened

PATH = "/v1/audio/speech/stream"
MANNER: dict[str, Any] = {"voice": "vivian", "seed": 5, "max_new_tokens": 20, "temperature": 0}
KEY = "a-key-of-more-than-sixteen-letters"


@pytest.fixture(
    scope="module",
    params=[pytest.param((), id="one process"), pytest.param(SPOKEN, id="pools", marks=pytest.mark.costly("saying"))],
)
def server(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[WholeServer]:
    folder = qwen3_tts.build(tmp_path_factory.mktemp("saying") / "tiny")
    home = tmp_path_factory.mktemp("live-server")
    (home / "keys").write_text(f"{KEY}\n")
    (home / "keys").chmod(0o600)
    options = ("--dtype", "float32", "--device", "cpu", "--api-key-file", str(home / "keys"))
    with WholeServer(home, str(folder), *options, *placed(home, *request.param)) as started:
        started.wait_ready()
        yield started


@pytest.fixture
def live(server: WholeServer) -> Iterator[Events]:
    with opened(server.url, PATH, bearer()) as events:
        yield events


def bearer(key: str = KEY) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def whole(server: WholeServer, text: str, format_: str, **manner: Any) -> bytes:
    """The whole answer of /v1/audio/speech to a text, or its stream if `manner` says so."""
    asked = {**MANNER, "input": text, "response_format": format_, **manner}
    answer = server.ask("/v1/audio/speech", asked, bearer())
    assert answer.status == 200, answer.json
    return answer.content


def sentences(heard: list[dict[str, Any] | bytes]) -> list[tuple[str, list[bytes]]]:
    """What was said, sentence by sentence: the text, and messages of bytes; checks that events frame them."""
    found: list[tuple[str, list[bytes]]] = []
    for one in heard:
        if isinstance(one, bytes):
            found[-1][1].append(one)
        elif one["type"] == "audio.start":
            assert one["sentence_index"] == len(found)
            found.append((one["sentence_text"], []))
        elif one["type"] == "audio.done":
            assert not one["error"], heard
            assert one["total_bytes"] == sum(map(len, found[-1][1]))
    return found


def test_a_text_that_comes_slowly_is_said_sentence_by_sentence_as_the_whole_answers_are(
    server: WholeServer, live: Events
) -> None:
    live.say("session.config", **MANNER)
    for piece in ("a red", " star. It is", " 3.5 times", " larger"):
        live.say("input.text", text=piece)
    first = live.until("audio.done")  # said while the rest of the text is still to come
    assert first[0]["format"] == "wav" and first[0]["sample_rate"] == 2400  # type: ignore[index]
    live.say("input.text", text=" than a circle")
    live.say("input.done")
    heard = [*first, *live.until("session.done")]
    assert heard[-1] == {"type": "session.done", "utterance_index": 0, "total_sentences": 2}
    said = sentences(heard)
    assert [text for text, _ in said] == ["a red star.", "It is 3.5 times larger than a circle"]
    for text, messages in said:
        assert len(messages) == 1 and messages[0] == whole(server, text, "wav")


def test_a_sentence_comes_in_pieces_while_it_is_made_and_the_session_goes_on_after_it(
    server: WholeServer, live: Events
) -> None:
    live.say("session.config", **MANNER, stream_audio=True, split_granularity="none")
    for utterance, text in enumerate(("two stars. one circle", "a blue square")):
        live.say("input.text", text=text)
        live.say("input.done")
        heard = live.until("session.done")
        assert heard[-1]["utterance_index"] == utterance  # type: ignore[index, call-overload]
        [(said, messages)] = sentences(heard)
        assert said == text and len(messages) > 1
        assert b"".join(messages) == whole(server, text, "pcm")
    live.say("session.close")
    with pytest.raises(ConnectionClosed) as caught:
        live.hear()
    assert caught.value.rcvd is not None and caught.value.rcvd.code == 1000


@pytest.mark.parametrize("speed", [0.5, 1.75])
def test_a_speed_gives_the_bytes_that_the_stream_and_the_file_of_a_request_have(
    server: WholeServer, live: Events, speed: float
) -> None:
    live.say("session.config", **MANNER, speed=speed, stream_audio=True)
    live.say("input.text", text="two stars. one circle")
    live.say("input.done")
    said = sentences(live.until("session.done"))
    assert [text for text, _ in said] == ["two stars.", "one circle"]
    for text, messages in said:
        assert b"".join(messages) == whole(server, text, "pcm", speed=speed, stream_format="audio")
    live.say("session.config", **MANNER, speed=speed)
    live.say("input.text", text="two stars")
    live.say("input.done")
    [(_, [file])] = sentences(live.until("session.done"))
    assert file == whole(server, "two stars", "wav", speed=speed) != whole(server, "two stars", "wav")


@pytest.mark.parametrize(
    ("event", "says"),
    [
        ({"type": "session.config", "voice": "vivien"}, "did you mean 'vivian'?"),
        ({"type": "session.config", "speed": 4.5}, "speed"),
        ({"type": "session.config", "stream_audio": True, "response_format": "wav"}, "the response_format is pcm"),
        ({"type": "session.config", "word_timestamps": True}, "when each word is said"),
        ({"type": "session.config", "split_granularity": "word"}, "none, sentence, clause"),
        ({"type": "session.config", "block_timings": True}, "block_timings has no place in this answer"),
        ({"type": "session.config", "loudness": 3}, "there is no field 'loudness' here"),
        ({"type": "session.config", "input": "a star"}, 'in messages of the type "input.text"'),
        ({"type": "session.config", "prompt": "a star"}, 'in messages of the type "input.text"'),
        ({"type": "input.text", "text": 3}, "input.text has a text"),
        ({"type": "input.text", "text": "a" * 70_000}, "64000 characters wait"),
        ({"type": "input.sound"}, "there is no event 'input.sound' here"),
        ({"text": "a"}, "an event has a type"),
    ],
)
def test_what_cannot_be_is_told_and_ends_nothing(live: Events, event: dict[str, Any], says: str) -> None:
    live.socket.send(json.dumps(event))
    told = live.hear()
    assert isinstance(told, dict) and told["type"] == "error"
    assert says in told["message"] and told["error"]["message"] == told["message"]
    live.socket.send("no JSON")
    assert live.hear()["error"]["code"] == "invalid_json"  # type: ignore[index, call-overload]
    live.say("input.done")
    assert live.hear() == {"type": "session.done", "utterance_index": 0, "total_sentences": 0}


def test_a_configuration_comes_before_the_text(live: Events) -> None:
    live.say("input.text", text="a star")
    live.say("session.config", **MANNER)
    assert "came too late" in live.hear()["message"]  # type: ignore[index, call-overload]


def test_who_has_no_key_or_comes_from_another_site_is_answered_in_json(server: WholeServer) -> None:
    for headers, status in (
        ({}, 401),
        (bearer("wrong-key-of-many-letters"), 401),
        ({"Origin": "http://else.example"}, 403),
    ):
        with pytest.raises(InvalidStatus) as caught, opened(server.url, PATH, headers):
            pass
        assert caught.value.response.status_code == status
        assert b'"error"' in (caught.value.response.body or b"")
    with opened(server.url, PATH, subprotocols=["realtime", f"openai-insecure-api-key.{KEY}"]) as events:  # a browser
        events.say("input.done")
        assert events.hear()["type"] == "session.done"  # type: ignore[index, call-overload]
    assert "is a WebSocket" in server.ask(PATH, headers=bearer()).json["error"]["message"]


def test_a_message_that_is_too_long_ends_the_session_and_nothing_else(server: WholeServer) -> None:
    with opened(server.url, PATH, bearer()) as events:
        with suppress(ConnectionClosed):  # it may be closed while it is sent
            events.say("input.text", text="a" * 2**22)
        with pytest.raises(ConnectionClosed) as caught:
            events.hear()
        assert caught.value.rcvd is None or caught.value.rcvd.code == 1009
    assert whole(server, "a star", "wav")


def test_a_client_that_goes_in_mid_word_is_not_spoken_to_any_longer(server: WholeServer) -> None:
    with opened(server.url, PATH, bearer()) as events:
        events.say("session.config", **{**MANNER, "max_new_tokens": 1900}, stream_audio=True)
        events.say("input.text", text="a star. another star. ")
        events.hear()
        assert isinstance(events.hear(), bytes)
        events.socket.socket.close()
    while server.ask("/load", headers=bearer()).json["requests"]:
        time.sleep(0.05)
    asked = urllib.request.Request(server.url + "/metrics", headers=bearer())
    with urllib.request.urlopen(asked, timeout=60) as answer:
        assert b'omnimuse_cancelled_total{where="running"} 1.0' in answer.read()
    assert whole(server, "a star", "wav"), "others are served"
