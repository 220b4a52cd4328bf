"""/v1/realtime with the official client, and a server of a model that hears, writes and speaks."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from omnimuse import Omni
from omnimuse.core.request import Recording
from omnimuse.media.picture import picture_of
from tests.checkpoints import qwen3_omni
from tests.checkpoints.wishes import chord, photo, voice
from tests.server.browser import browser_only, browsing, opened
from tests.server.conversation import SAID, answered, hear, say, session, until, whole
from tests.server.whole_server import WholeServer

pytest.importorskip("websockets", reason="a server without it has no WebSockets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen3_omni.build(tmp_path_factory.mktemp("realtime") / "tiny")


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeServer]:
    with WholeServer(tmp_path_factory.mktemp("live"), str(folder), "--dtype", "float32", "--device", "cpu") as made:
        made.wait_ready()
        yield made


@pytest.fixture(scope="module")
def omni(folder: Path) -> Iterator[Omni]:
    with Omni(str(folder), dtype="float32", device="cpu") as made:
        yield made


def test_what_is_said_is_answered_aloud_and_the_next_answer_knows_of_it(server: WholeServer, omni: Omni) -> None:
    async def main() -> None:
        async with session(server, instructions="be brief", audio={"output": {"voice": "chelsie"}}) as connection:
            made = await hear(connection)
            assert [e.type for e in made] == [
                "input_audio_buffer.committed",
                "conversation.item.added",
                "conversation.item.done",
            ]
            events, words, sound = await answered(connection)
            messages = [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": [{"type": "audio", "audio": SAID}]},
            ]
            text, samples = whole(omni, messages, "text", "audio")
            assert words == text and sound == samples
            check_order([e.type for e in events])
            done = events[-1].response
            assert (done.status, done.status_details.reason) == ("incomplete", "max_output_tokens")
            assert done.output[0].content[0].transcript == text and done.usage.output_tokens == 10
            await say(connection, {"type": "input_text", "text": "and now"})
            _, words, sound = await answered(connection)
            messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "and now"}]
            assert (words, sound) == whole(omni, messages, "text", "audio")

    asyncio.run(main())


def check_order(types: list[str]) -> None:
    """That the events of a response aloud come in OpenAI's order."""
    assert types[:4] == [
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
    ]
    assert set(types[4:-6]) == {"response.output_audio.delta", "response.output_audio_transcript.delta"}
    assert types[-6:] == [
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
    ]


def test_what_is_said_is_written_down_beside_the_answer(server: WholeServer, omni: Omni) -> None:
    wish = "Transcribe the audio, which is in the language en, into text."
    heard = [{"role": "user", "content": [{"type": "audio", "audio": SAID}, {"type": "text", "text": wish}]}]
    asked: Any = {"temperature": 0, "max_tokens": 6}
    [expected] = omni.generate([heard], asked, progress=False)
    kind = "conversation.item.input_audio_transcription"

    async def main() -> None:
        how = {"language": "en", "max_tokens": 6}
        async with session(server, audio={"input": {"transcription": how}}, output_modalities=["text"]) as connection:
            await hear(connection)
            events = await until(connection, f"{kind}.completed")
            assert events[-1].transcript == expected.text
            assert "".join(event.delta for event in events if event.type == f"{kind}.delta") == expected.text
            assert events[-1].usage.output_tokens == 6
            await connection.conversation.item.retrieve(item_id=events[-1].item_id)
            [told] = (await until(connection, "conversation.item.retrieved"))[-1].item.content
            assert told.transcript == expected.text
            _, words, _ = await answered(connection)
            said = [{"role": "user", "content": [{"type": "audio", "audio": SAID}]}]
            assert words == whole(omni, said, "text")[0], "the answer is to the sound"

    asyncio.run(main())


def test_a_sound_that_cannot_be_written_down_is_told_and_the_next_one_is(server: WholeServer) -> None:
    kind = "conversation.item.input_audio_transcription"

    async def main() -> None:
        how = {"language": "en", "max_tokens": 3}
        async with session(server, audio={"input": {"transcription": how}}, output_modalities=["text"]) as connection:
            short = chord(24_000, 0.01, 1)
            await connection.input_audio_buffer.append(audio=base64.b64encode(short.pcm).decode())
            await connection.input_audio_buffer.commit()
            failed = (await until(connection, f"{kind}.failed"))[-1]
            assert "is too short" in failed.error.message and failed.error.code == "invalid_value"
            await connection.conversation.item.retrieve(item_id=failed.item_id)
            [told] = (await until(connection, "conversation.item.retrieved"))[-1].item.content
            assert told.transcript is None
            await connection.conversation.item.delete(item_id=failed.item_id)
            await hear(connection)
            assert (await until(connection, f"{kind}.completed"))[-1].item_id != failed.item_id

    asyncio.run(main())


def test_a_picture_and_a_text_are_answered_in_text(server: WholeServer, omni: Omni) -> None:
    picture = picture_of(photo(40, 24))
    url = f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
    shown = [{"type": "image", "image": picture}, {"type": "text", "text": "what is this"}]

    async def main() -> None:
        async with session(server, output_modalities=["text"]) as connection:
            await say(
                connection, {"type": "input_image", "image_url": url}, {"type": "input_text", "text": "what is this"}
            )
            events, words, sound = await answered(connection)
            assert (words, sound) == whole(omni, [{"role": "user", "content": shown}], "text")
            assert "response.output_text.done" in [e.type for e in events]

    asyncio.run(main())


def test_a_response_is_cancelled_and_what_was_written_of_it_stays(server: WholeServer) -> None:
    async def main() -> None:
        async with session(server, output_modalities=["text"], max_output_tokens=1500, min_tokens=1500) as connection:
            await say(connection, {"type": "input_text", "text": "a star"})
            await connection.response.create()
            await until(connection, "response.output_text.delta")
            await connection.response.create()
            [*_, refused] = await until(connection, "error")
            assert "is being made" in refused.error.message
            await connection.response.cancel()
            [*_, done] = await until(connection, "response.done")
            assert (done.response.status, done.response.status_details.reason) == ("cancelled", "client_cancelled")
            [item] = done.response.output
            assert item.status == "incomplete" and item.content[0].text
            while (await asyncio.to_thread(server.ask, "/load")).json["requests"]:
                await asyncio.sleep(0.05)

    asyncio.run(main())


def test_the_server_hears_whose_turn_it_is_and_yields_to_who_speaks(server: WholeServer, omni: Omni) -> None:
    rate = 24_000
    pcm = bytes(2 * rate) + voice(rate, 0.8).pcm + bytes(2 * rate)
    turning = {"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 200, "silence_duration_ms": 400}

    async def speak(connection: Any) -> tuple[list[Any], bytes]:
        """Say it in tenths of a second; the events up to where its answer begins, and the samples that are heard."""
        for first in range(0, len(pcm), rate // 5):
            await connection.input_audio_buffer.append(audio=base64.b64encode(pcm[first : first + rate // 5]).decode())
        events = await until(connection, "response.created")
        return events, pcm

    async def main() -> None:
        async with session(server, audio={"input": {"turn_detection": turning}}) as connection:
            events, _ = await speak(connection)
            assert [e.type for e in events] == [
                "input_audio_buffer.speech_started",
                "input_audio_buffer.speech_stopped",
                "input_audio_buffer.committed",
                "conversation.item.added",
                "conversation.item.done",
                "response.created",
            ]
            started, stopped, committed = events[:3]
            assert started.item_id == stopped.item_id == committed.item_id
            assert 700 < started.audio_start_ms < 900 and 1600 < stopped.audio_end_ms < 2500
            assert (stopped.audio_end_ms - started.audio_start_ms) % 32 in (8, 200 % 32)
            heard = Recording(rate, 1, pcm[48 * started.audio_start_ms : 48 * stopped.audio_end_ms])
            done = await until(connection, "response.done")
            words = "".join(e.delta for e in done if e.type == "response.output_audio_transcript.delta")
            asked = [{"role": "user", "content": [{"type": "audio", "audio": heard}]}]
            assert words == whole(omni, asked, "text", "audio")[0]

            await connection.session.update(
                session={
                    "type": "realtime",
                    "max_output_tokens": 1500,
                    "min_tokens": 1500,
                    "output_modalities": ["text"],
                }
            )
            await speak(connection)
            await until(connection, "response.output_text.delta")
            events, _ = await speak(connection)
            [cut] = [e.response for e in events if e.type == "response.done"]
            assert (cut.status, cut.status_details.reason) == ("cancelled", "turn_detected")
            await connection.response.cancel()
            await until(connection, "response.done")

    asyncio.run(main())


def test_what_the_model_said_and_nobody_heard_is_forgotten(server: WholeServer, omni: Omni) -> None:
    async def main() -> None:
        async with session(server, audio={"output": {"voice": "chelsie"}}) as connection:
            made = await say(connection, {"type": "input_text", "text": "a star"})
            events, *_ = await answered(connection)
            said = events[-1].response.output[0].id
            await connection.conversation.item.truncate(item_id=said, content_index=0, audio_end_ms=100)
            told = await connection.recv()
            assert (told.type, told.item_id, told.audio_end_ms) == ("conversation.item.truncated", said, 100)
            await connection.conversation.item.retrieve(item_id=said)
            assert (await connection.recv()).item.content[0].transcript == ""
            await say(connection, {"type": "input_text", "text": "and now"})
            _, words, _ = await answered(connection)
            before = [{"role": "user", "content": "a star"}, {"role": "assistant", "content": ""}]
            assert words == whole(omni, [*before, {"role": "user", "content": "and now"}], "text", "audio")[0]
            await connection.conversation.item.truncate(item_id=made[-1].item.id, content_index=0, audio_end_ms=100)
            assert "only what the model has said" in (await until(connection, "error"))[-1].error.message

    asyncio.run(main())


def test_the_oldest_make_room_for_what_is_new_unless_they_must_not(server: WholeServer) -> None:
    async def main() -> None:
        async with session(server) as connection:
            first, *_ = [(await hear(connection))[-1].item.id for _ in range(4)]
            events = await hear(connection)
            assert [e.item_id for e in events if e.type == "conversation.item.deleted"] == [first]
            await connection.session.update(session={"type": "realtime", "truncation": "disabled"})
            await until(connection, "session.updated")
            await connection.input_audio_buffer.append(audio=base64.b64encode(SAID.pcm).decode())
            await connection.input_audio_buffer.commit()
            assert "too many items, sounds or pictures" in (await until(connection, "error"))[-1].error.message

    asyncio.run(main())


@pytest.mark.parametrize(
    ("event", "says"),
    [
        ({"type": "session.update", "session": {"audio": {"input": {"turn_detection": {"type": "semantic_vad"}}}}},
         'use "server_vad"'),
        ({"type": "session.update", "session": {"audio": {"input": {"turn_detection": {"threshold": 7}}}}},
         "threshold=7 is not within"),
        ({"type": "session.update", "session": {"audio": {"input": {"turn_detection": {"idle_timeout_ms": 9000}}}}},
         "who is silent is not asked"),
        ({"type": "session.update", "session": {"turn_detection": {"type": "server_vad"}}}, "a field of audio.input"),
        ({"type": "session.update", "session": {"audio": {"output": {"voice": "nobody"}}}}, "is not known to this"),
        ({"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}}, "audio/pcm"),
        ({"type": "session.update", "session": {"tools": [{"type": "function"}]}}, "calls no tools"),
        ({"type": "session.update", "session": {"model": "another"}}, "there is no model 'another' here"),
        ({"type": "session.update", "session": {"colour": "red"}}, "there is no field session.colour"),
        ({"type": "session.update", "session": {"instruction": "be brief"}}, "did you mean 'instructions'?"),
        ({"type": "session.update", "session": {"audio": {"output": {"voise": "eric"}}}}, "did you mean 'voice'?"),
        ({"type": "session.update", "session": {"output_modalities": ["text", "audio"]}}, 'use ["audio"], ["text"] or'),
        ({"type": "session.update", "session": {"max_output_tokens": 0}}, "a whole number of at least 1"),
        ({"type": "session.update", "session": {"truncation": "some"}}, 'use "auto" or "disabled"'),
        ({"type": "session.update", "session": {"instructions": 5}}, "use a text"),
        ({"type": "session.update", "session": {"audio": {"input": {"transcription": {"model": "another"}}}}},
         "there is no model 'another' here"),
        ({"type": "session.update", "session": {"audio": {"input": {"transcription": {"words": 3}}}}},
         "has no field 'words'"),
        ({"type": "input_audio_buffer.append", "audio": "AAA"}, "no base64 of samples"),
        ({"type": "input_audio_buffer.commit"}, "the input buffer is empty"),
        ({"type": "conversation.item.create", "item": {"type": "function_call"}}, "calls no tools"),
        ({"type": "conversation.item.delete", "item_id": "none"}, "there is no item 'none'"),
        ({"type": "conversation.item.truncate"}, "there is no item 'None'"),
        ({"type": "response.create"}, "the conversation has no item yet"),
        ({"type": "response.cancel"}, "nothing to cancel"),
        ({"type": "response.sing"}, "there is no event 'response.sing' here"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_of_the_event_and_ends_nothing(
    server: WholeServer, event: dict[str, Any], says: str
) -> None:
    async def main() -> None:
        async with session(server) as connection:
            await connection.send({**event, "event_id": "mine"})
            told = await connection.recv()
            assert told.type == "error" and says in told.error.message
            assert told.error.event_id == "mine" and told.error.code
            await connection.input_audio_buffer.clear()
            assert (await connection.recv()).type == "input_audio_buffer.cleared"

    asyncio.run(main())


def test_a_model_that_is_not_served_is_refused_before_anything_is_said(server: WholeServer) -> None:
    async def main() -> None:
        from websockets.exceptions import InvalidStatus

        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            with pytest.raises(InvalidStatus) as caught:
                await client.realtime.connect(model="another").enter()
            assert caught.value.response.status_code == 404

    asyncio.run(main())


def test_a_client_that_goes_is_not_answered_any_longer(server: WholeServer) -> None:
    async def main() -> None:
        async with session(server, max_output_tokens=1500, min_tokens=1500) as connection:
            await hear(connection)
            await connection.response.create()
            await until(connection, "response.output_audio_transcript.delta")

    asyncio.run(main())
    while server.ask("/load").json["requests"]:
        time.sleep(0.05)


LENGTH = """audio => new Promise((tell) => {
  if (audio.duration) tell(audio.duration);
  else audio.onloadedmetadata = () => tell(audio.duration);
})"""


def shortened(route: Any) -> None:
    """The request of the page, for an answer that ends soon and is always the same: a random model ends anywhere."""
    route.continue_(post_data=json.dumps({**route.request.post_data_json, "temperature": 0, "max_tokens": 10}))


@browser_only
@pytest.mark.costly("a page that answers aloud")
def test_the_page_answers_in_the_voice_that_was_chosen_and_plays_what_was_said(server: WholeServer) -> None:
    with browsing() as browser, opened(browser, server.url) as page:
        page.route("**/v1/chat/completions", shortened)
        page.get_by_label("Aloud").select_option("chelsie")
        page.get_by_label("Say something").fill("a red circle")
        page.get_by_label("Say something").press("Enter")
        answer = page.locator("#said li").last
        sound = answer.locator("audio")
        sound.wait_for()
        assert sound.evaluate(LENGTH) > 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
