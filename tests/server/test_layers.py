"""A model that changes pictures and no other, over the wire: what needs a picture, and one picture in layers."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from omnimuse import Omni
from tests.checkpoints import qwen_image_layered
from tests.checkpoints.wishes import photo
from tests.server.whole_server import WholeServer

pytestmark = pytest.mark.costly("layers over HTTP")
CHOSEN = {"num_inference_steps": 2, "true_cfg_scale": 1.0, "seed": 7, "extra_params": {"layers": 3}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen_image_layered.build(tmp_path_factory.mktemp("layered") / "tiny")


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeServer]:
    home, options = tmp_path_factory.mktemp("layers-server"), ("--dtype", "float32", "--device", "cpu")
    with WholeServer(home, str(folder), *options) as started:
        started.wait_ready()
        yield started


def picture() -> str:
    buffer = io.BytesIO()
    photo(70, 50).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def asked(**fields: Any) -> dict[str, Any]:
    return {"prompt": "a star", "size": "64x48", **CHOSEN, **fields}


def test_every_layer_is_a_picture_that_can_be_seen_through(server: WholeServer, folder: Path) -> None:
    answer = server.ask("/v1/images/edits", asked(image=picture(), output_format="png"))
    assert answer.status == 200, answer.json
    found = [Image.open(io.BytesIO(base64.b64decode(each["b64_json"]))) for each in answer.json["data"]]
    assert [(image.mode, image.size) for image in found] == [("RGBA", (64, 48))] * 3
    assert [each["seed"] for each in answer.json["data"]] == [7, 7, 7]
    with Omni(str(folder), dtype="float32", device="cpu") as omni:
        params = {"width": 64, "height": 48, "num_inference_steps": 2, "true_cfg_scale": 1.0, "seed": 7}
        prompt = {"prompt": "a star", "images": [photo(70, 50)]}
        [here] = omni.generate([prompt], {**params, "extra": {"layers": 3}}, progress=False)
    for image, mine in zip(found, here.images, strict=True):
        assert np.abs(np.asarray(image).astype(int) - np.asarray(mine)).max() <= 1


def test_who_asks_without_a_picture_is_told_where_the_model_takes_one(server: WholeServer) -> None:
    answer = server.ask("/v1/images/generations", asked())
    assert answer.status == 404
    assert "does image-to-image (POST /v1/images/edits)" in answer.json["error"]["message"]
    [model] = server.ask("/v1/models").json["data"]
    assert model["capabilities"]["tasks"] == ["image-to-image"]
