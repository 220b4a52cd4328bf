"""/v1/realtime with every model that holds a conversation, alone and in pools: words, sound at any speed, pictures."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from omnimuse import Omni
from omnimuse.media.picture import picture_of
from tests.checkpoints import bagel, qwen3_omni, qwen25_omni, talk_and_draw
from tests.checkpoints.wishes import photo
from tests.server.conversation import SAID, answered, hear, say, session, until, whole
from tests.server.pooled import ALLROUND, ALOUD, TALKING, placed
from tests.server.whole_server import WholeServer

pytest.importorskip("websockets", reason="a server without it has no WebSockets")
pytestmark = [pytest.mark.costly("conversations of every family"), pytest.mark.timeout(400)]

DRAW: list[Any] = [{"role": "user", "content": "draw"}]


@dataclass(frozen=True)
class Family:
    """A model, the `pools` that it may be in, whether it `speaks` or `draws` beside its words, and whether it sees."""

    build: Callable[[Path], Path]
    pools: tuple[dict[str, Any], ...]
    speaks: bool = False
    draws: bool = False
    sees: bool = False


FAMILIES = {
    "3": Family(qwen3_omni.build, ALOUD, speaks=True),
    "2.5": Family(qwen25_omni.build, ALOUD, speaks=True),
    "bagel": Family(bagel.build, ALLROUND, sees=True),
    "talk and draw": Family(partial(talk_and_draw.build, prompt=DRAW), TALKING, draws=True),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def folder(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family.build(tmp_path_factory.mktemp("realtime") / "tiny")


@pytest.fixture(scope="module", params=[False, True], ids=["one process", "pools"])
def server(
    family: Family, folder: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[WholeServer]:
    home = tmp_path_factory.mktemp("live")
    place = placed(home, *(family.pools if request.param else ()))
    with WholeServer(home / "server", str(folder), "--dtype", "float32", "--device", "cpu", *place) as made:
        made.wait_ready()
        yield made


@pytest.fixture(scope="module")
def omni(folder: Path) -> Iterator[Omni]:
    with Omni(str(folder), dtype="float32", device="cpu") as made:
        yield made


def test_what_is_said_is_answered_in_the_words_that_python_gives(
    server: WholeServer, omni: Omni, family: Family
) -> None:
    async def main() -> None:
        async with session(server, output_modalities=["text"]) as connection:
            await say(connection, {"type": "input_text", "text": "draw"})
            events, words, sound = await answered(connection)
            assert (words, sound) == (whole(omni, DRAW, *(() if family.draws else ("text",)))[0], b"")
            assert not [event for event in events if event.type == "response.output_image.done"]

    asyncio.run(main())


def test_a_picture_is_an_item_that_is_answered_in_the_words_that_python_gives(
    server: WholeServer, omni: Omni, family: Family
) -> None:
    if not family.sees:
        pytest.skip("what it is shown others test, or it sees nothing")
    picture = picture_of(photo(40, 24))
    url = f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
    shown = [{"type": "image", "image": picture}, {"type": "text", "text": "what is this"}]

    async def main() -> None:
        async with session(server, output_modalities=["text"]) as connection:
            content = {"type": "input_image", "image_url": url}, {"type": "input_text", "text": "what is this"}
            await say(connection, *content)
            events, words, sound = await answered(connection)
            assert (words, sound) == whole(omni, [{"role": "user", "content": shown}], "text") and words
            assert not [event for event in events if event.type == "response.output_image.done"]

    asyncio.run(main())


def test_an_answer_is_heard_as_fast_as_is_wished(server: WholeServer, omni: Omni, family: Family) -> None:
    if not family.speaks:
        pytest.skip("it does not speak")

    async def main() -> None:
        async with session(server, audio={"output": {"voice": "chelsie", "speed": 1.5}}) as connection:
            await hear(connection)
            said = [{"role": "user", "content": [{"type": "audio", "audio": SAID}]}]
            _, words, sound = await answered(connection)
            text, samples = whole(omni, said, "text", "audio", speed=1.5)
            assert words == text
            check_alike(sound, samples)
            await say(connection, {"type": "input_text", "text": "and now"})
            said += [{"role": "assistant", "content": text}, {"role": "user", "content": "and now"}]
            _, words, sound = await answered(connection, audio={"output": {"speed": 0.5}})
            text, samples = whole(omni, said, "text", "audio", speed=0.5)
            assert words == text
            check_alike(sound, samples)
            await connection.session.update(session={"type": "realtime"})
            assert (await connection.recv()).session.audio.output.speed == 1.5, "that was of one answer alone"

    asyncio.run(main())


def test_the_picture_that_an_answer_asks_for_is_told_behind_its_words(
    server: WholeServer, omni: Omni, family: Family
) -> None:
    if not family.draws:
        pytest.skip("it does not draw")

    async def main() -> None:
        async with session(server, max_output_tokens=24) as connection:
            await say(connection, {"type": "input_text", "text": "draw"})
            events, words, _ = await answered(connection)
            how: Any = {"temperature": 0, "max_tokens": 24, "seed": 4}
            [result] = omni.generate([DRAW], how, progress=False)
            assert words == result.text
            [told] = [event for event in events if event.type == "response.output_image.done"]
            media, _, data = told.image_url.partition(";base64,")
            assert media == "data:image/png"
            assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == result.images[0].tobytes()

    asyncio.run(main())


OUTPUT: dict[str, dict[str, Any]] = {
    "speed": {"audio": {"output": {"speed": 1.5}}},
    "voice": {"audio": {"output": {"voice": "chelsie"}}},
    "audio": {"output_modalities": ["audio"]},
    "image": {"output_modalities": ["text", "image"]},
}
"""Settings by what a model must be able to do for them."""


@pytest.mark.parametrize("name", OUTPUT)
def test_what_a_model_cannot_do_is_refused_as_soon_as_it_is_wished(
    server: WholeServer, family: Family, name: str
) -> None:
    able = family.draws if name == "image" else family.speaks
    says = "no picture comes" if name == "image" else "this model answers with text"

    async def main() -> None:
        async with session(server) as connection:
            await connection.session.update(session={"type": "realtime", **OUTPUT[name]})
            told = await connection.recv()
            assert told.type == ("session.updated" if able else "error"), told
            assert able or says in told.error.message

    asyncio.run(main())


@pytest.mark.parametrize("speed", [0.2, 4.5, True, "fast"])
def test_a_speed_that_cannot_be_is_refused_by_name(server: WholeServer, family: Family, speed: Any) -> None:
    async def main() -> None:
        async with session(server) as connection:
            event = {"type": "session.update", "session": {"audio": {"output": {"speed": speed}}}}
            await connection.send(event)
            [*_, told] = await until(connection, "error")
            assert "session.audio.output.speed" in told.error.message

    asyncio.run(main())


def check_alike(found: bytes, expected: bytes) -> None:
    """That samples differ by a rounding at the most: some families do not compute pieces as they do the whole."""
    apart = np.frombuffer(found, "<i2").astype(int) - np.frombuffer(expected, "<i2")
    assert np.abs(apart).max() <= 1
