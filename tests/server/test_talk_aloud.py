"""A model that sees, hears and answers aloud, behind the server: the official client, whole and in a stream."""

from __future__ import annotations

import base64
import io
import json
import runpy
import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import openai
import pytest

from omnimuse import Omni
from omnimuse.media.picture import picture_of
from omnimuse.media.recording import open_sound, read_track, samples_of
from omnimuse.media.sound import Sound
from omnimuse.media.video import Video, encode_video
from tests.checkpoints import qwen3_omni, qwen25_omni
from tests.checkpoints.wishes import chord, photo
from tests.checkpoints.wishes import film as still_film
from tests.compat.scripts import openai_multimodal_client
from tests.server.browser import browser_only, browsing, expect, opened
from tests.server.pooled import ALOUD, asked_by_client

pytestmark = pytest.mark.costly("aloud over HTTP", turns=3)

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 10, "seed": 4}
TEXT = {"type": "text", "text": "what is this"}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(qwen3_omni, id="3"),
        pytest.param(qwen25_omni, id="2.5", marks=pytest.mark.costly("aloud 2.5")),
    ],
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = request.param.build(tmp_path_factory.mktemp("aloud") / "tiny")
    return made


@pytest.fixture(
    scope="module",
    params=[pytest.param((), id="one process"), pytest.param(ALOUD, id="pools", marks=pytest.mark.costly("aloud"))],
)
def client(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[openai.OpenAI]:
    with asked_by_client(tmp_path_factory.mktemp("talking"), folder, *request.param) as made:
        yield made


@pytest.fixture(scope="module")
def omni(folder: Path) -> Iterator[Omni]:
    with Omni(str(folder), dtype="float32", device="cpu") as made:
        yield made


def wav() -> bytes:
    """A sound, as a file."""
    sound, file = chord(16_000, 0.5, 1), io.BytesIO()
    with wave.open(file, "wb") as opened:
        opened.setparams((1, 2, sound.rate, 0, "NONE", ""))
        opened.writeframes(sound.pcm)
    return file.getvalue()


def shown(tmp_path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One message with a picture and a sound in it: as the official client has it, and as Python does."""
    picture, sound = picture_of(photo(40, 24)), wav()
    (tmp_path / "sound.wav").write_bytes(sound)
    url = f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
    theirs = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(sound).decode(), "format": "wav"}},
    ]
    ours = [{"type": "image", "image": picture}, {"type": "audio", "audio": open_sound(tmp_path / "sound.wav")}]
    return [{"role": "user", "content": [*theirs, TEXT]}], [{"role": "user", "content": [*ours, TEXT]}]


def asked_of(client: openai.OpenAI, **fields: Any) -> Any:
    """What the official client answers; its types know no model but its own."""
    create: Any = client.chat.completions.create
    return create(model="default", **fields)


def spoken(omni: Omni, messages: list[dict[str, Any]], seed: int = 4) -> tuple[str, bytes]:
    """What Python gives: the text, and the sound as samples of 16 bits."""
    aloud = {**GREEDY, "seed": seed, "modalities": ("text", "audio"), "voice": "chelsie"}
    [result] = omni.generate([messages], aloud, progress=False)
    [sound] = [part.data for part in result.parts[0] if part.medium == "audio"]
    return result.text, (sound.samples[0].clip(-1, 1) * 32767).round().astype("<i2").tobytes()


def test_the_official_client_shows_things_and_hears_the_answer(
    client: openai.OpenAI, omni: Omni, tmp_path: Path
) -> None:
    theirs, ours = shown(tmp_path)
    audio = {"voice": "chelsie", "format": "wav"}
    answer = asked_of(client, messages=theirs, modalities=["text", "audio"], audio=audio, **GREEDY)
    [choice] = answer.choices
    text, samples = spoken(omni, ours)
    assert choice.message.content == text
    assert choice.message.audio is not None
    assert choice.message.audio.transcript == text
    with wave.open(io.BytesIO(base64.b64decode(choice.message.audio.data))) as file:
        assert file.getframerate() == 24_000
        assert file.readframes(file.getnframes()) == samples


def test_a_stream_has_words_and_sound_as_they_are_made(client: openai.OpenAI, omni: Omni, tmp_path: Path) -> None:
    theirs, ours = shown(tmp_path)
    stream = asked_of(
        client,
        messages=theirs,
        modalities=["text", "audio"],
        audio={"voice": "chelsie", "format": "pcm16"},
        stream=True,
        **GREEDY,
    )
    text, samples = spoken(omni, ours)
    words, transcript, sound = "", "", b""
    ends, last = list[str](), None
    for chunk in stream:
        [choice] = chunk.choices
        words += choice.delta.content or ""
        if (told := choice.delta.audio) is not None:
            last = told
            transcript += told.transcript or ""
            sound += base64.b64decode(told.data or "")
        ends += [choice.finish_reason] if choice.finish_reason else []
    assert (words, transcript) == (text, text)
    assert np.abs(np.frombuffer(sound, "<i2").astype(int) - np.frombuffer(samples, "<i2")).max() <= 1
    assert ends == ["length"]
    assert last is not None
    assert last.expires_at > 0


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"modalities": ["text", "audio"], "audio": {"voice": "nobody", "format": "wav"}}, "is not known to this"),
        ({"modalities": ["text", "audio"], "audio": {"voice": "ethan", "format": "gif"}}, "audio.format="),
        ({"modalities": ["audio"], "audio": {"voice": "ethan", "format": "wav"}}, "cannot be; use"),
        ({"audio": {"voice": "ethan", "format": "wav"}}, "to hear an answer"),
        ({"modalities": ["text", "audio"], "audio": {"format": "wav"}, "stream": True}, "is made whole"),
        ({"extra_body": {"use_audio_in_video": "yes"}}, "use_audio_in_video"),
        ({"extra_body": {"mm_processor_kwargs": {"fps": 1}}}, "no field 'mm_processor_kwargs.fps'"),
        ({"modalities": ["text", "audio"], "audio": {"format": "m4a"}}, "wav, flac, mp3, opus, aac, pcm16"),
    ],
)
def test_what_cannot_be_heard_is_refused_by_name(client: openai.OpenAI, asked: dict[str, Any], says: str) -> None:
    with pytest.raises(openai.BadRequestError, match=says):
        asked_of(client, messages=[{"role": "user", "content": "a"}], **asked)


@pytest.mark.parametrize("format_", ["wav", "flac", "mp3", "opus", "aac"])
def test_several_answers_are_spoken_each_in_the_format_that_was_asked_for(
    client: openai.OpenAI, omni: Omni, format_: str
) -> None:
    said: Any = [{"role": "user", "content": "a red circle"}]
    audio = {"voice": "chelsie", "format": format_}
    answer = asked_of(client, messages=said, modalities=["text", "audio"], audio=audio, n=2, **GREEDY)
    assert len(answer.choices) == 2
    for number, choice in enumerate(answer.choices):
        text, samples = spoken(omni, said, seed=4 + number)
        assert (choice.message.content, choice.message.audio.transcript) == (text, text)
        kind = format_ if format_ == "aac" else None  # a short one has too few frames to be known by them
        with av.open(io.BytesIO(base64.b64decode(choice.message.audio.data)), format=kind) as container:
            rate = container.streams.audio[0].rate
            pieces = [frame.to_ndarray()[0].astype(np.float32) for frame in container.decode(audio=0)]
        found = np.concatenate(pieces)
        wave = np.repeat(np.frombuffer(samples, "<i2").astype(np.float32), rate // 24_000)
        assert rate == (48_000 if format_ == "opus" else 24_000)
        assert 0 <= len(found) - len(wave) <= 0.15 * rate
        alike = np.correlate(np.pad(found, (0, len(wave))), wave, "valid").max()
        assert alike / np.linalg.norm(found) / np.linalg.norm(wave) > 0.5


def test_a_video_is_heard_while_it_is_watched(client: openai.OpenAI, omni: Omni, tmp_path: Path) -> None:
    def url(kind: str, content: bytes) -> dict[str, str]:
        return {"url": f"data:{kind};base64,{base64.b64encode(content).decode()}"}

    (tmp_path / "sound.wav").write_bytes(wav())
    theirs: list[Any] = [
        {"type": "video_url", "video_url": url("video/mp4", film())},
        {"type": "audio_url", "audio_url": url("audio/wav", wav())},
        TEXT,
    ]
    sound = open_sound(tmp_path / "sound.wav")
    ours = [{"type": "video", "video": film()}, {"type": "audio", "audio": sound}, TEXT]
    texts = list[str]()
    for hears in (True, False):
        [result] = omni.generate(
            [[{"role": "user", "content": ours}]], {**GREEDY, "use_audio_in_video": hears}, progress=False
        )
        for how in ({"use_audio_in_video": hears}, {"mm_processor_kwargs": {"use_audio_in_video": hears}}):
            asked: Any = [{"role": "user", "content": theirs}]
            answer = asked_of(client, messages=asked, **GREEDY, extra_body=how)
            # Its later tokens are nearly as likely as others, and what was read before is read in other pieces.
            assert answer.choices[0].message.content[:4] == result.text[:4]
            assert answer.usage.prompt_tokens == result.prompt_tokens
        texts.append(result.text)
    assert texts[0] != texts[1]
    said: Any = [{"role": "user", "content": [theirs[0], TEXT]}]
    with pytest.raises(openai.BadRequestError, match="no sound in its file"):
        asked_of(client, messages=said, **GREEDY, extra_body={"use_audio_in_video": True})


def test_a_video_is_heard_in_its_own_file(client: openai.OpenAI, omni: Omni) -> None:
    frames, sound = still_film(48, 32, 4), Sound(samples_of(chord(16_000, 2, 1), 16_000, 1), 16_000)
    file = encode_video(Video(frames, 2.0), {}, sound)
    track, hears = read_track(file), {"use_audio_in_video": True}
    url = {"url": f"data:video/mp4;base64,{base64.b64encode(file).decode()}"}
    apart = [{"type": "video", "video": file}, {"type": "audio", "audio": track}, TEXT]
    whole = [{"type": "video", "video": file}, TEXT]
    expected, heard, watched = (
        omni.generate([[{"role": "user", "content": content}]], {**GREEDY, **how}, progress=False)[0]
        for content, how in ((apart, hears), (whole, hears), (whole, {}))
    )
    assert (heard.text, heard.prompt_tokens) == (expected.text, expected.prompt_tokens)
    assert heard.prompt_tokens > watched.prompt_tokens
    [alone] = omni.generate({"prompt": "what is this", "videos": [file]}, {**GREEDY, **hears}, progress=False)
    assert (alone.text, alone.prompt_tokens) == (heard.text, heard.prompt_tokens)
    said: Any = [{"role": "user", "content": [{"type": "video_url", "video_url": url}, TEXT]}]
    answer = asked_of(client, messages=said, **GREEDY, extra_body=hears)
    assert answer.choices[0].message.content[:4] == heard.text[:4]
    assert answer.usage.prompt_tokens == heard.prompt_tokens


@browser_only
@pytest.mark.costly("a page that is shown things")
def test_on_the_page_things_are_shown_and_a_video_is_heard(client: openai.OpenAI, tmp_path: Path) -> None:
    photo(40, 24).save(tmp_path / "seen.png")
    sound = Sound(samples_of(chord(16_000, 2, 1), 16_000, 1), 16_000)
    (tmp_path / "film.mp4").write_bytes(encode_video(Video(still_film(48, 32, 4), 2.0), {}, sound))
    with browsing() as browser, opened(browser, str(client.base_url).removesuffix("/v1/")) as page:
        page.get_by_label("Show pictures, sounds or videos").set_input_files(tmp_path / "seen.png")
        expect(page.get_by_label("with the sound of the video")).to_be_hidden()
        page.get_by_label("Show pictures").set_input_files([tmp_path / "seen.png", tmp_path / "film.mp4"])
        page.get_by_label("with the sound of the video").check()
        page.get_by_label("Say something").fill("what is this")
        with page.expect_response("**/v1/chat/completions") as answered:
            page.get_by_label("Say something").press("Enter")
        assert answered.value.status == 200
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        told = json.loads(answered.value.request.post_data)
        shown = [part["type"] for part in told["messages"][0]["content"]]
        assert (shown, told["use_audio_in_video"]) == (["image_url", "video_url", "text"], True)
        expect(page.locator("#said .user").locator("img, video")).to_have_count(2)
        expect(page.locator("#showing > *")).to_have_count(0)
        expect(page.locator("#said .assistant")).not_to_be_empty()


def film(count: int = 16, rate: Fraction = Fraction(8), size: tuple[int, int] = (48, 32)) -> bytes:
    """A video of so many frames, `rate` a second, as a file."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(count):
            frame = np.asarray(photo(*size).rotate(20 * number))[..., :3]
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        out.mux(stream.encode(None))
    return file.getvalue()


def test_who_shows_a_video_that_is_too_long_to_be_seen_closely_is_told(
    client: openai.OpenAI, omni: Omni, folder: Path
) -> None:
    if "Qwen2_5" in (folder / "config.json").read_text():
        pytest.skip("of a frame it reads so many tokens that its tiny checkpoint has no room for two minutes")
    shown = film(80, Fraction(1, 2), (16, 16))
    url = f"data:video/mp4;base64,{base64.b64encode(shown).decode()}"
    said: Any = [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": url}}, TEXT]}]
    told = (
        "a video of 160 s is too long to be looked at as often as others: it was at 240 moments, spread over all of it"
    )
    create: Any = client.chat.completions.with_raw_response.create
    raw = create(model="default", messages=said, **GREEDY)
    [warning] = json.loads(raw.headers["x-warnings"])
    assert warning.startswith(told)
    assert raw.parse().model_extra["warnings"] == [warning]
    last = list(asked_of(client, messages=said, stream=True, **GREEDY))[-1]
    assert last.model_extra["warnings"] == [warning]
    [result] = omni.generate(
        [[{"role": "user", "content": [{"type": "video", "video": shown}, TEXT]}]], GREEDY, progress=False
    )
    assert result.warnings == [warning]


def test_text_alone_is_as_with_any_model(client: openai.OpenAI, omni: Omni) -> None:
    said: Any = [{"role": "user", "content": "a red circle"}]
    answer = asked_of(client, messages=said, **GREEDY)
    [result] = omni.generate([said], GREEDY, progress=False)
    assert answer.choices[0].message.content == result.text
    assert answer.choices[0].message.audio is None


HEARD: dict[str, Any] = {"model": "default", "extra_body": {"max_tokens": 10}}
"""How a sound is written down: the likeliest words, which is the usual way."""


def test_a_sound_is_written_down_by_the_model_that_hears_it(client: openai.OpenAI, omni: Omni, tmp_path: Path) -> None:
    (tmp_path / "sound.wav").write_bytes(wav())
    sound = {"type": "audio", "audio": open_sound(tmp_path / "sound.wav")}
    wishes = ("Transcribe the audio, which is in the language en, into text.", "Translate the audio into English text.")
    texts = []
    for wish in wishes:
        said: Any = [{"role": "user", "content": [sound, {"type": "text", "text": wish}]}]
        texts.append(omni.generate([said], {"temperature": 0, "max_tokens": 10}, progress=False)[0].text)
    file: Any = ("sound.wav", wav())
    create: Any = client.audio.transcriptions.create
    whole = create(file=file, language="en", **HEARD)
    assert whole.text == texts[0]
    assert whole.usage.output_tokens == 10
    assert create(file=file, language="en", response_format="text", **HEARD) == texts[0] + "\n"
    timed = {**HEARD, "extra_body": {**HEARD["extra_body"], "block_timings": True}}
    told = create(file=file, language="en", **timed)
    assert "model.layers.0" in told.block_timings and told.block_bytes.keys() == told.block_timings.keys()
    assert len(told.steps["generate"]) == len(told.bytes["generate"]) == 10
    assert list(create(file=file, language="en", stream=True, **timed))[-1].block_timings
    with pytest.raises(openai.BadRequestError, match="block_timings has no place in this answer"):
        create(file=file, language="en", response_format="text", **timed)
    events = list(create(file=file, language="en", stream=True, **HEARD))
    pieces = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert len(pieces) > 1
    assert "".join(pieces) == events[-1].text == texts[0]
    translate: Any = client.audio.translations.create
    with pytest.warns(DeprecationWarning, match="deprecated"):  # so the client says, and still sends it
        assert translate(file=file, **HEARD).text == texts[1]
    with pytest.raises(openai.BadRequestError, match="one of json, text"):
        create(file=file, response_format="verbose_json", **HEARD)
    with pytest.raises(openai.BadRequestError, match="when each word is said"):
        create(file=file, timestamp_granularities=["word"], **HEARD)
    with pytest.raises(openai.BadRequestError, match="WAV, FLAC"):
        create(file=("sound.wav", b"no sound at all"), **HEARD)


def test_the_examples_client_hears_and_reads_what_it_asks_for(
    client: openai.OpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    photo(48, 32).save("seen.png")
    Path("heard.wav").write_bytes(wav())

    def run(*words: str) -> str:
        line = ["client", "--server", str(client.base_url), "--model", "default", "--image-path", "seen.png", *words]
        monkeypatch.setattr("sys.argv", [*line, "--audio-path", "heard.wav"])
        runpy.run_path(str(openai_multimodal_client.__file__), run_name="__main__")
        return capsys.readouterr().out

    for query in ("text", "use_image", "use_audio"):
        assert run("-q", query).startswith("Chat completion output from text: ")
    assert run("-q", "use_image", "--modalities", "text,audio") == "Audio saved to audio_0.wav\n"
    with wave.open("audio_0.wav") as heard:
        assert heard.getnchannels() == 1
    with pytest.raises(openai.BadRequestError, match="say how the text is written with fields of this request"):
        run("--stages")
