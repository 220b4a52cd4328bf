"""Pictures that GLM-Image reads before it draws, over HTTP: the official client's edits are those of Python."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from omnimuse import Omni
from tests.checkpoints.wishes import photo
from tests.server.pooled import asked_by_client
from tests.unit.media.hostile import encoded

pytestmark = pytest.mark.costly("edits that are read")
PICTURES = (photo(96, 64), photo(32, 64))
CHOSEN: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0, "seed": 9}


@pytest.fixture(scope="module")
def folder(tiny: Callable[[str], Path]) -> Path:
    return tiny("GlmImagePipeline")


@pytest.fixture(scope="module")
def client(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    with asked_by_client(tmp_path_factory.mktemp("editing"), folder) as made:
        yield made


def edited(client: openai.OpenAI, *pictures: bytes, **fields: Any) -> Image.Image:
    edit: Any = client.images.edit
    files = [(f"{number}.png", picture) for number, picture in enumerate(pictures)]
    answer = edit(model="default", image=files, prompt="make it 'blue'", **fields)
    return Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))


@pytest.mark.parametrize("many", [1, 2])
def test_an_edit_is_drawn_of_what_was_read_of_every_picture(client: openai.OpenAI, folder: Path, many: int) -> None:
    sent = [encoded(picture, "PNG") for picture in PICTURES[:many]]
    found = edited(client, *sent, size="96x96", extra_body=CHOSEN)
    with Omni(str(folder), dtype="float32", device="cpu") as omni:
        prompt = {"prompt": "make it 'blue'", "images": list(PICTURES[:many])}
        [expected] = omni.generate(prompt, width=96, height=96, **CHOSEN, progress=False)
        [alone] = omni.generate("make it 'blue'", width=96, height=96, **CHOSEN, progress=False)
    assert found.tobytes() == expected.images[0].tobytes() != alone.images[0].tobytes()


@pytest.mark.parametrize(
    ("pictures", "fields", "says"),
    [
        ([b"no picture"], {}, "the picture is no PNG"),
        ([encoded(PICTURES[0], "PNG")] * 40, {}, "takes at most"),
        ([encoded(PICTURES[0], "PNG")], {"mask": ("m.png", encoded(PICTURES[0], "PNG"))}, "mask"),
        ([encoded(PICTURES[0], "PNG")], {"extra_body": {"strength": 0.5}}, "strength"),
        ([encoded(PICTURES[0], "PNG")], {"size": "33x33"}, "33"),
    ],
    ids=["no picture", "many", "mask", "strength", "size"],
)
def test_an_edit_that_cannot_be_is_refused_by_name(
    client: openai.OpenAI, pictures: list[bytes], fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=says):
        edited(client, *pictures, **fields)
