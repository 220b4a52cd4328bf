"""A model that draws and writes, behind the server: pictures, changes to them, answers about them, and thoughts."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from PIL import Image

from omnimuse import Omni
from omnimuse.core.params import DiffusionParams
from tests.checkpoints.bagel import ASKED, WISHES
from tests.checkpoints.wishes import Wish
from tests.server.pooled import ALLROUND, asked_by_client

pytestmark = pytest.mark.costly("all-round over HTTP")

ARCH = "BagelForConditionalGeneration"


@pytest.fixture(scope="module")
def folder(tiny: Callable[[str], Path]) -> Path:
    return tiny(ARCH)


@pytest.fixture(scope="module", params=[(), ALLROUND], ids=["one process", "pools"])
def client(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[openai.OpenAI]:
    with asked_by_client(tmp_path_factory.mktemp("serving"), folder, *request.param) as made:
        yield made


@pytest.fixture(scope="module")
def omni(folder: Path) -> Iterator[Omni]:
    with Omni(str(folder), dtype="float32", device="cpu") as made:
        yield made


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def url(picture: Image.Image) -> dict[str, Any]:
    """A picture as a part of a message."""
    word = base64.b64encode(png(picture)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{word}"}}


def settings(wish: Wish) -> dict[str, Any]:
    """What a wish says, as the endpoints take it beside the prompt."""
    p = wish.params
    chosen = {name: value for name, value in dict(p.extra or {}).items() if name != "modalities"}  # type: ignore[call-overload]
    extra = {"extra_params": chosen} if chosen else {}
    return {"num_inference_steps": p.num_inference_steps, "guidance_scale": p.guidance_scale, "seed": p.seed, **extra}


def drawn(omni: Omni, wish: Wish) -> bytes:
    """What Python draws of it."""
    [result] = omni.generate([wish.asked], wish.params, progress=False)
    assert result.error is None, result.error
    return result.images[0].tobytes()


def opened(word: str) -> bytes:
    return Image.open(io.BytesIO(base64.b64decode(word))).convert("RGB").tobytes()


def test_a_picture_and_a_change_to_one_are_those_that_python_draws(client: openai.OpenAI, omni: Omni) -> None:
    plain, change = WISHES[0], WISHES[2]
    made = client.images.generate(prompt=plain.prompt, size="48x32", extra_body=settings(plain))  # type: ignore[call-overload]
    assert opened(made.data[0].b64_json) == drawn(omni, plain)
    assert change.image is not None
    edited = client.images.edit(
        image=("photo.png", png(change.image)), prompt=change.prompt, extra_body=_flat(settings(change))
    )
    assert edited.data
    assert edited.data[0].b64_json is not None
    assert opened(edited.data[0].b64_json) == drawn(omni, change), "as large as the picture is seen"


def _flat(body: dict[str, Any]) -> dict[str, Any]:
    """As fields of a form."""
    import json

    return {name: json.dumps(value) if isinstance(value, dict) else value for name, value in body.items()}


def test_a_question_about_a_picture_is_answered_in_words_that_stream(client: openai.OpenAI, omni: Omni) -> None:
    text, [picture, *_], chosen, seed = ASKED[0]
    said: Any = [{"role": "user", "content": [url(picture), {"type": "text", "text": text}]}]
    how: dict[str, Any] = {"temperature": 0, "max_tokens": chosen["max_tokens"], "seed": seed}
    whole = client.chat.completions.create(model="default", messages=said, modalities=["text"], **how)
    [result] = omni.generate(
        [{"prompt": text, "images": [picture]}],
        DiffusionParams(seed=seed, extra={"modalities": ("text",), **chosen}),
        progress=False,
    )
    assert whole.choices[0].message.content == result.text
    assert whole.choices[0].finish_reason == "length"
    stream = client.chat.completions.create(model="default", messages=said, modalities=["text"], stream=True, **how)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(pieces) == result.text
    assert sum(map(bool, pieces)) > 1


def test_thoughts_come_before_the_picture_that_is_drawn_by_them(client: openai.OpenAI, omni: Omni) -> None:
    wish = WISHES[4]
    body = {"messages": [{"role": "user", "content": wish.prompt}], "modalities": ["text", "image"], "size": "32x32"}
    answer = client.post(
        "/chat/completions", body={"model": "default", **body, **settings(wish)}, cast_to=httpx2.Response
    )
    [choice] = answer.json()["choices"]
    [result] = omni.generate([wish.asked], replace(wish.params), progress=False)
    assert choice["message"]["content"] == result.text
    [image] = choice["message"]["images"]
    assert opened(image["image_url"]["url"].partition(",")[2]) == result.images[0].tobytes()
