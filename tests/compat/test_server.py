"""Pipelines from elsewhere behind the server: a model of each door is told of, and its requests wear adapters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from omnimuse.media.image import to_image
from tests.checkpoints.adapters import layers_of, write
from tests.compat.checkpoints import COMPOSED
from tests.compat.running import drawn, running
from tests.compat.test_adapters import DOORS, Door
from tests.server.whole_server import WholeServer, pixels

pytestmark = [pytest.mark.costly("doors"), pytest.mark.timeout(300)]
STYLE = "style"


@dataclass(frozen=True)
class Served:
    """A door's server, with a folder of adapters of which none is registered under the name `STYLE`."""

    door: Door
    folder: Path
    file: Path
    server: WholeServer

    def ask(self, **fields: Any) -> bytes:
        """The picture of the door's wish."""
        p = self.door.wish.params
        asked = {name: getattr(p, name) for name in ("num_inference_steps", "guidance_scale", "true_cfg_scale", "seed")}
        asked |= {"max_sequence_length": p.max_sequence_length, "negative_prompt": self.door.wish.negative}
        given = {name: value for name, value in asked.items() if value is not None}
        return pixels(self.server.draw(prompt=self.door.wish.prompt, size=f"{p.width}x{p.height}", **given, **fields))


@pytest.fixture(scope="module", params=["steps", "composed"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    door, home = DOORS[request.param], tmp_path_factory.mktemp("served")
    folder = door.build(home / "tiny")
    (home / "adapters" / "more").mkdir(parents=True)
    file = write(home / "adapters" / "more" / "ink.safetensors", layers_of(folder))
    model = door.config(folder).model.model
    options = ("--plugin", door.plugin, "--dtype", "float32", "--device", "cpu", "--lora-dir", str(home / "adapters"))
    with WholeServer(home / "server", model, *options) as server:
        server.wait_ready()
        yield Served(door, folder, file, server)


def test_an_adapter_is_registered_by_name_and_worn_by_the_requests_that_name_it(served: Served) -> None:
    wish = served.door.wish
    with running(served.door.config(served.folder)) as engine:
        worn = replace(wish, params=replace(wish.params, loras=[f"{served.file}:0.8"]))
        plain, dressed = (seen(each) for each in drawn(engine, [wish, worn]))
    assert served.ask() == plain != dressed
    refused = served.server.draw(lora=STYLE)
    assert refused.status == 400
    assert refused.json["error"]["param"] == "lora"
    body = {"lora_name": STYLE, "lora_path": "more/ink.safetensors"}
    assert served.server.ask("/v1/load_lora_adapter", body).status == 200
    assert served.ask(lora=f"{STYLE}:0.8") == dressed
    assert served.ask() == plain
    assert served.server.ask("/v1/unload_lora_adapter", {"lora_name": STYLE}).status == 200
    assert served.server.draw(lora=STYLE).status == 400


def seen(picture: Tensor) -> bytes:
    """Its pixels as people get them."""
    return np.asarray(to_image(picture)).tobytes()


def test_the_list_of_models_tells_which_contract_it_is_written_to(served: Served) -> None:
    [model] = served.server.ask("/v1/models").json["data"]
    can = model["capabilities"]
    assert (can["family"], can["tasks"]) == (served.door.arch, ["text-to-image"])
    assert "docs/compat.md" in can["notes"]["runs through"]
    assert can["notes"]["shared forwards"].startswith("yes")


def test_what_a_pipeline_names_itself_is_listed_and_can_be_chosen(served: Served) -> None:
    [model] = served.server.ask("/v1/models").json["data"]
    if served.door.plugin != COMPOSED:
        assert model["capabilities"]["extra"] == {}
        return
    assert model["capabilities"]["extra"] == {"sampling": {}}
    assert served.ask(extra_params={"sampling": {"guidance_rescale": 0.7}}) != served.ask()
    refused = served.server.draw(extra_params={"sampling": 3})
    expected = "extra_params.sampling: extra.sampling must be a mapping of names to values"
    assert refused.json["error"]["message"].startswith(expected)
