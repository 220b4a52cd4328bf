"""`omnimuse serve --deploy FILE` with models that write, see, draw and speak: a pool that is lost, a client that goes.

That what they make is what one process makes, `test_allround.py` and `test_talk_aloud.py` show with the same pools.
"""

from __future__ import annotations

import base64
import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.checkpoints import bagel, glm_image, qwen3_omni, talk_and_draw
from tests.processes import alive, children, kill
from tests.server.pooled import ALLROUND, ALOUD, TALKING, client_of, placed
from tests.server.whole_server import WholeServer

pytestmark = [pytest.mark.costly("omni models in pools over HTTP"), pytest.mark.timeout(400)]

STATION = "deploy.station"


@dataclass(frozen=True)
class Kind:
    """An answer that is long enough to lose a pool in: what is asked, which process makes the last of it, and what of
    an answer that is, by its place in a `Piece`.
    """

    name: str
    build: Callable[[Path], Path]
    pools: tuple[dict[str, Any], ...]
    asked: Mapping[str, Any]
    process: int
    made: int


WORDS: dict[str, Any] = {"max_tokens": 120, "min_tokens": 120, "temperature": 0.7, "seed": 4}
DRAWN: dict[str, Any] = {"num_inference_steps": 60, "size": "48x32", "partial_images": 3}
HEARD: dict[str, Any] = {"modalities": ["text", "audio"], "audio": {"voice": "chelsie", "format": "pcm16"}}
TALKED: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "seed": 4}
GLM: dict[str, Any] = {"size": "64x64"}
SAID: list[Any] = [{"role": "user", "content": "draw"}]
PRIOR = (
    {"name": "write", "stages": ["read pictures", "read brief", "write prior"]},
    {"name": "draw", "stages": "*", "connector": "tcp"},
)
"""What writes down a picture before it draws it."""
KINDS = (
    Kind("words", bagel.build, ALLROUND, {**WORDS, "modalities": ["text"]}, 1, 0),
    Kind("picture", bagel.build, ALLROUND, {"modalities": ["image"], "seed": 4, **DRAWN}, 2, 2),
    Kind("sound", qwen3_omni.build, ALOUD, {**WORDS, **HEARD}, 1, 1),
    Kind("words and picture", partial(talk_and_draw.build, prompt=SAID), TALKING, {**TALKED, **DRAWN}, 1, 2),
    Kind("prior and picture", glm_image.build, PRIOR, {"modalities": ["image"], "seed": 4, **DRAWN, **GLM}, 1, 2),
)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture(scope="module")
def server(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeServer]:
    with served(tmp_path_factory.mktemp("pooled"), kind, *kind.pools) as made:
        yield made
        assert made.end() == 0


@contextmanager
def served(home: Path, kind: Kind, *pools: dict[str, Any]) -> Iterator[WholeServer]:
    """A server of that model, in these pools or in one process."""
    place = ("--dtype", "float32", "--device", "cpu", *placed(home, *pools))
    with WholeServer(home / "server", str(kind.build(home / "tiny")), *place) as made:
        made.wait_ready()
        yield made


@pytest.fixture
def client(server: WholeServer) -> Iterator[openai.OpenAI]:
    with client_of(server, timeout=120) as made:
        yield made


def stations(server: WholeServer) -> list[int]:
    [worker] = server.workers()
    return children(worker, STATION)


Piece = tuple[str, bytes, list[str]]


def asking(client: openai.OpenAI, kind: Kind) -> Generator[Piece]:
    """What comes of an answer, piece by piece: words, sound, and the data: URLs of pictures."""
    create: Any = client.chat.completions.create
    with create(model="default", messages=SAID, stream=True, extra_body=kind.asked) as stream:
        for chunk in stream:
            if not chunk.choices:
                continue
            delta = chunk.choices[0].delta
            sound = (delta.audio.data or "") if delta.audio is not None else ""
            images = [image["image_url"]["url"] for image in (delta.model_extra or {}).get("images") or []]
            piece = delta.content or "", base64.b64decode(sound), images
            if any(piece):
                yield piece


def last_of(pieces: list[Piece]) -> Piece:
    """The whole answer; of pictures the finished one, which comes last."""
    words, sound = "".join(piece[0] for piece in pieces), b"".join(piece[1] for piece in pieces)
    return words, sound, [url for piece in pieces for url in piece[2]][-1:]


def begun(kind: Kind, piece: Piece) -> bool:
    """Whether the pool that is to be lost has told something."""
    return bool(piece[kind.made])


def test_a_pool_that_is_lost_in_mid_answer_is_started_again_and_nothing_is_told_twice(
    server: WholeServer, client: openai.OpenAI, kind: Kind
) -> None:
    expected = last_of(list(asking(client, kind)))
    before = stations(server)
    lost, pieces = before[kind.process], list[Piece]()
    for piece in asking(client, kind):
        pieces.append(piece)
        if begun(kind, piece) and alive(lost):
            kill(lost)
    assert last_of(pieces) == expected
    after = stations(server)
    assert lost not in after and len(after) == len(before)
    assert len(set(after) & set(before)) == len(before) - 1, "the others live"


def test_a_client_that_goes_in_mid_answer_stops_the_work_in_every_pool(
    server: WholeServer, client: openai.OpenAI, kind: Kind
) -> None:
    expected, before = last_of(list(asking(client, kind))), stations(server)
    pieces = asking(client, kind)
    assert any(begun(kind, piece) for piece in pieces)
    pieces.close()
    until = time.monotonic() + 30
    while server.ask("/load").json["requests"]:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert 'outcome="cancelled"' in server.ask("/metrics").content.decode()
    assert last_of(list(asking(client, kind))) == expected
    assert stations(server) == before


@pytest.mark.crossed
@pytest.mark.parametrize("pooled", [True, False], ids=["pools", "alone"])
def test_a_server_that_is_told_to_end_finishes_the_answers_that_are_streamed(
    kind: Kind, tmp_path: Path, pooled: bool
) -> None:
    with served(tmp_path, kind, *(kind.pools if pooled else ())) as server, client_of(server, timeout=120) as client:
        expected = last_of(list(asking(client, kind)))
        pieces, told = list[Piece](), False
        for piece in asking(client, kind):
            pieces.append(piece)
            if not told:
                server.process.send_signal(signal.SIGTERM)
                told = True
                with pytest.raises(openai.APIStatusError) as refused:
                    list(asking(client, kind))
                assert refused.value.status_code == 503
        assert last_of(pieces) == expected
        assert server.process.wait(60) == 0


@pytest.mark.crossed
def test_a_worker_that_is_lost_in_mid_answer_is_replaced_and_nothing_is_told_twice(kind: Kind, tmp_path: Path) -> None:
    with served(tmp_path, kind) as server, client_of(server, timeout=120) as client:
        expected = last_of(list(asking(client, kind)))
        [lost], pieces = server.workers(), list[Piece]()
        for piece in asking(client, kind):
            pieces.append(piece)
            if begun(kind, piece) and alive(lost):
                kill(lost)
        assert last_of(pieces) == expected
        assert lost not in server.workers()
