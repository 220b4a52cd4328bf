"""A model that talks and draws, behind the server: the official client has its pictures, whole and in a stream."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from omnimuse import Omni
from tests.checkpoints import talk_and_draw
from tests.server.browser import browser_only, browsing, expect, opened
from tests.server.pooled import asked_by_client
from tests.server.whole_server import WholeServer

pytestmark = pytest.mark.costly("pictures in a talk over HTTP")

SAID: Any = [{"role": "user", "content": "draw"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "seed": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talk_and_draw.build(tmp_path_factory.mktemp("pictured") / "tiny", prompt=SAID)


@pytest.fixture(scope="module")
def client(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    with asked_by_client(tmp_path_factory.mktemp("talking"), folder) as made:
        yield made


@pytest.fixture(scope="module")
def expected(folder: Path) -> tuple[str, bytes]:
    """The text and the pixels that Python gives."""
    with Omni(str(folder), dtype="float32", device="cpu") as omni:
        [result] = omni.generate([SAID], GREEDY, progress=False)
    return result.text, result.images[0].tobytes()


def asked_of(client: openai.OpenAI, **fields: Any) -> Any:
    create: Any = client.chat.completions.create
    return create(model="default", messages=SAID, **GREEDY, **fields)


def pixels(images: Any) -> bytes:
    [image] = images
    media, _, data = image["image_url"]["url"].partition(";base64,")
    assert media == "data:image/png"
    return Image.open(io.BytesIO(base64.b64decode(data))).tobytes()


@pytest.mark.parametrize("modalities", [{}, {"modalities": ["text", "image"]}])
def test_an_answer_has_its_text_and_its_picture(
    client: openai.OpenAI, expected: tuple[str, bytes], modalities: dict[str, Any]
) -> None:
    message = asked_of(client, **modalities).choices[0].message
    assert (message.content, pixels(message.images)) == expected


def test_how_it_is_drawn_can_be_chosen(client: openai.OpenAI, folder: Path) -> None:
    chosen = {"size": "64x48", "num_inference_steps": 2, "guidance_scale": 0.0}
    message = asked_of(client, extra_body=chosen).choices[0].message
    with Omni(str(folder), dtype="float32", device="cpu") as omni:
        how: Any = {"width": 64, "height": 48, "num_inference_steps": 2, "guidance_scale": 0.0}
        [result] = omni.generate([SAID], GREEDY, progress=False, **how)
    assert pixels(message.images) == result.images[0].tobytes()


def test_steps_of_the_picture_are_skipped_for_who_chooses_a_step_cache(client: openai.OpenAI, folder: Path) -> None:
    steps, cached = {"num_inference_steps": 5}, {"cache": "teacache,threshold=1e6"}
    made = [asked_of(client, extra_body=steps | more).choices[0].message for more in ({}, cached)]
    exact, drawn = (pixels(message.images) for message in made)
    with Omni(str(folder), dtype="float32", device="cpu") as omni:
        how: Any = steps | cached
        [result] = omni.generate([SAID], GREEDY, progress=False, **how)
    assert drawn == result.images[0].tobytes() != exact


def test_who_wants_text_alone_has_that(client: openai.OpenAI, expected: tuple[str, bytes]) -> None:
    message = asked_of(client, modalities=["text"]).choices[0].message
    assert message.content == expected[0]
    assert not (message.model_extra or {}).get("images")


def test_a_stream_has_the_words_and_then_the_picture(client: openai.OpenAI, expected: tuple[str, bytes]) -> None:
    words, images, ends = "", list[Any](), list[str]()
    for chunk in asked_of(client, stream=True):
        [choice] = chunk.choices
        assert not (images and choice.delta.content), "the picture comes after the words"
        words += choice.delta.content or ""
        images += (choice.delta.model_extra or {}).get("images") or []
        ends += [choice.finish_reason] if choice.finish_reason else []
    assert (words, pixels(images), ends) == (*expected, ["length"])


def test_a_stream_shows_the_picture_while_it_is_drawn(client: openai.OpenAI, expected: tuple[str, bytes]) -> None:
    images: list[Any] = []
    for chunk in asked_of(client, stream=True, extra_body={"partial_images": 2}):
        images += (chunk.choices[0].delta.model_extra or {}).get("images") or []
    assert len(images) == 3
    assert [image.get("step") is None for image in images] == [False, False, True]
    assert pixels(images[-1:]) == expected[1]


def test_a_text_that_goes_on_has_no_place_for_a_picture(client: openai.OpenAI) -> None:
    made = client.completions.create(model="default", prompt="a green star", temperature=0, max_tokens=24)
    assert made.choices[0].text


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"modalities": ["text", "audio"]}, "answers with text"),
        ({"modalities": ["text", "image"], "audio": {"format": "wav"}}, "no sound is made here"),
    ],
)
def test_sound_is_refused(client: openai.OpenAI, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(openai.BadRequestError, match=says):
        asked_of(client, **fields)


@browser_only
def test_the_page_shows_a_picture_under_the_answer_that_asked_for_it(tmp_path: Path) -> None:
    with WholeServer(tmp_path / "server", "omnimuse/shapes-chat") as server:
        server.wait_ready()
        with browsing() as browser, opened(browser, server.url) as page:
            page.get_by_label("Say something").fill("draw me a red circle")
            page.get_by_label("Say something").press("Enter")
            picture = page.locator("#said li").last.locator("img")
            picture.wait_for()
            assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
            expect(page.locator("#said li").last).to_have_text(re.compile(r"\w"))  # its words stand above it
