"""Adapters over HTTP: registered by name from one folder, worn by requests, and no way to any other file."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest

from omnimuse.core.errors import AdaptersFullError, ConfigError, OmnimuseError, RequestError
from omnimuse.core.loras import Lora
from omnimuse.server.options import Reach, ServeOptions
from omnimuse.server.service import Service
from omnimuse.server.shelf import Shelf
from tests.checkpoints.adapters import write
from tests.server.fake_workers import FakeWorkers
from tests.server.picture_server import service_in

LAYERS = {"layers.0.attention.to_q": (8, 8)}
Act = Callable[[httpx2.AsyncClient, Service], Awaitable[None]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Adapters that an operator allows, and files beside them that nobody may name."""
    home = tmp_path / "adapters"
    (home / "more").mkdir(parents=True)
    for name in ("ink", "night"):
        write(home / f"{name}.safetensors", LAYERS)
    write(home / "more" / "deep.safetensors", LAYERS)
    write(tmp_path / "secret.safetensors", LAYERS)
    os.symlink(tmp_path / "secret.safetensors", home / "more" / "link.safetensors")
    (home / "pickle.pt").write_bytes(b"")
    return home


def with_app(
    data: Path,
    folder: Path | None,
    act: Act,
    change: Callable[[ServeOptions], ServeOptions] = lambda o: o,
    networks: Collection[str] = (),
) -> None:
    """Run `act` with a client of a server whose adapters are in `folder`."""

    async def run() -> None:
        async with service_in(data, change=change, shelf=Shelf(folder, networks)) as (app, service):
            place = httpx2.ASGITransport(app=cast("Any", app))
            async with httpx2.AsyncClient(transport=place, base_url="http://localhost:8000") as client:
                await act(client, service)

    asyncio.run(run())


async def draw(client: httpx2.AsyncClient, **fields: Any) -> httpx2.Response:
    return await client.post("/v1/images/generations", json={"prompt": "x", "num_inference_steps": 2, **fields})


def test_who_asks_for_an_adapter_as_if_it_were_a_model_is_told_the_field_that_names_it(
    tmp_path: Path, folder: Path
) -> None:
    async def act(client: httpx2.AsyncClient, _: Service) -> None:
        for model, hint in (("ink", True), ("nobody", False)):
            answer = await draw(client, model=model)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
            assert ('"lora": "ink"' in answer.json()["error"]["message"]) == hint

    with_app(tmp_path / "data", folder, act)


@pytest.mark.parametrize(
    ("fields", "worn"),
    [
        ({"lora": "ink"}, (Lora("ink.safetensors"),)),
        ({"lora": "ink:0.5"}, (Lora("ink.safetensors", 0.5),)),
        ({"lora": "transformer_2=ink:0.5"}, (Lora("ink.safetensors", 0.5, "transformer_2"),)),
        ({"lora": {"name": "ink", "scale": 0.5}}, (Lora("ink.safetensors", 0.5),)),
        ({"loras": [{"path": "night"}, "ink:2"]}, (Lora("night.safetensors"), Lora("ink.safetensors", 2.0))),
        ({"loras": []}, None),
    ],
)
def test_a_request_wears_what_it_names(tmp_path: Path, folder: Path, fields: Any, worn: Any) -> None:
    async def act(client: httpx2.AsyncClient, service: Service) -> None:
        answer = await draw(client, **fields)
        assert answer.status_code == 200, answer.text
        assert str(folder) not in answer.text
        [request] = cast(FakeWorkers, service.workers).started
        assert request.params.loras == worn

    with_app(tmp_path / "data", folder, act)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("field", ["lora", "loras"])
def test_an_adapter_that_cannot_be_worn_is_told_under_the_name_of_its_field(
    tmp_path: Path, folder: Path, field: str, background: bool
) -> None:
    async def act(client: httpx2.AsyncClient, service: Service) -> None:
        cast(FakeWorkers, service.workers).fail["x"] = RequestError("ink cannot be worn: it has other layers", "loras")
        answer = (await draw(client, background=background, **{field: "ink"})).json()
        while background and answer["status"] not in ("completed", "failed"):
            await asyncio.sleep(0.01)
            answer = (await client.get(f"/v1/images/{answer['id']}")).json()
        assert answer["error"]["param"] == field

    with_app(tmp_path / "data", folder, act)


@pytest.mark.parametrize(
    "name", ["../secret", "../secret.safetensors", "/etc/passwd", "ink.safetensors", "more/deep", "", "gone"]
)
def test_a_request_names_no_file(tmp_path: Path, folder: Path, name: str) -> None:
    async def act(client: httpx2.AsyncClient, service: Service) -> None:
        answer = await draw(client, lora={"name": name})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "lora")
        assert str(folder) not in answer.text
        assert not cast(FakeWorkers, service.workers).started

    with_app(tmp_path / "data", folder, act)


def test_without_a_folder_there_are_none_to_name_or_to_load(tmp_path: Path, folder: Path) -> None:
    async def act(client: httpx2.AsyncClient, service: Service) -> None:
        error = (await draw(client, lora=str(folder / "ink.safetensors"))).json()["error"]
        assert error["code"] == "invalid_value" and "none is registered" in error["message"]
        body = {"lora_name": "ink", "lora_path": str(folder / "ink.safetensors")}
        assert "--lora-dir" in (await client.post("/v1/load_lora_adapter", json=body)).json()["error"]["message"]
        assert (await client.get("/v1/list_loras")).json() == {"loaded_adapters": [], "active": {}}

    with_app(tmp_path / "data", None, act)


def test_adapters_are_registered_and_forgotten_while_it_runs(tmp_path: Path, folder: Path) -> None:
    async def act(client: httpx2.AsyncClient, service: Service) -> None:
        async def names() -> list[str]:
            told = (await client.get("/v1/list_loras")).json()["loaded_adapters"]
            return [each["nickname"] for each in told]

        assert await names() == ["ink", "night"]
        assert (await draw(client, lora="deep")).status_code == 400
        body = {"lora_name": "deep", "lora_path": "more/deep.safetensors"}
        for _ in range(2):
            assert (await client.post("/v1/load_lora_adapter", json=body)).status_code == 200
        whole = {"lora_name": "same", "lora_path": str(folder / "more" / "deep.safetensors")}
        assert (await client.post("/v1/load_lora_adapter", json=whole)).status_code == 200
        assert await names() == ["deep", "ink", "night", "same"]
        assert (await draw(client, lora="deep:0.7")).status_code == 200
        [request] = cast(FakeWorkers, service.workers).started
        assert request.params.loras == (Lora("more/deep.safetensors", 0.7),)
        assert (await client.post("/v1/unload_lora_adapter", json={"lora_name": "deep"})).status_code == 200
        assert (await client.post("/v1/unload_lora_adapter", json={"lora_name": "deep"})).status_code == 404
        assert (await draw(client, lora="deep")).status_code == 400

    with_app(tmp_path / "data", folder, act)


@pytest.mark.parametrize(
    ("name", "path", "param"),
    [
        ("x", "../secret.safetensors", "lora_path"),
        ("x", "/etc/passwd", "lora_path"),
        ("x", "more/link.safetensors", "lora_path"),
        ("x", "pickle.pt", "lora_path"),
        ("x", "gone.safetensors", "lora_path"),
        ("x", "more", "lora_path"),
        ("x" * 257, "ink.safetensors", "lora_name"),
        ("a:b", "ink.safetensors", "lora_name"),
        ("none", "", "lora_path"),
        ("ink", "night.safetensors", "lora_name"),
    ],
)
def test_what_is_not_an_adapter_in_the_folder_is_not_loaded(
    tmp_path: Path, folder: Path, name: str, path: str, param: str
) -> None:
    async def act(client: httpx2.AsyncClient, service: Service) -> None:
        before = dict(service.shelf.files)
        answer = await client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        assert service.shelf.files == before

    with_app(tmp_path / "data", folder, act)


def test_where_others_can_connect_only_the_operator_registers_adapters(tmp_path: Path, folder: Path) -> None:
    def public(options: ServeOptions) -> ServeOptions:
        keys = tmp_path / "keys"
        keys.write_text("somebody:0123456789abcdef0123456789abcdef")
        keys.chmod(0o600)
        return replace(options, reach=Reach(host="0.0.0.0"), key_file=keys)

    async def act(client: httpx2.AsyncClient, service: Service) -> None:
        client.headers["authorization"] = "Bearer 0123456789abcdef0123456789abcdef"
        body = {"lora_name": "x", "lora_path": "ink.safetensors"}
        answer = await client.post("/v1/load_lora_adapter", json=body)
        assert answer.status_code == 404 and "admin plane" in answer.json()["error"]["message"]
        assert (await draw(client, lora="ink")).status_code == 200

    with_app(tmp_path / "data", folder, act, public)


def test_what_is_set_is_worn_by_requests_that_do_not_say_what_they_wear(tmp_path: Path, folder: Path) -> None:
    async def act(client: httpx2.AsyncClient, service: Service) -> None:
        async def worn(**fields: Any) -> Any:
            assert (await draw(client, **fields)).status_code == 200
            return cast(FakeWorkers, service.workers).started[-1].params.loras

        async def post(path: str, **body: Any) -> None:
            answer = await client.post(f"/v1/{path}", json=body)
            assert answer.status_code == 200 and answer.json()["status"] == "ok", answer.text

        await post("set_lora", lora_nickname="ink", strength=0.5)
        assert await worn() == (Lora("ink.safetensors", 0.5),)
        assert await worn(lora="night") == (Lora("night.safetensors"),)
        assert await worn(loras=[]) is None
        deep = {"nickname": "deep", "path": "more/deep.safetensors", "merged": False, "strength": 0.25}
        await post(
            "set_lora", lora_nickname=["ink", "deep"], lora_path=[None, "more/deep.safetensors"], strength=[1, 0.25]
        )
        told = (await client.get("/v1/list_loras")).json()
        assert told["active"]["all"][1] == deep
        assert await worn() == (Lora("ink.safetensors"), Lora("more/deep.safetensors", 0.25))
        await post("set_lora", lora_nickname=["ink", "ink"], target=["transformer", "transformer_2"])
        assert list((await client.get("/v1/list_loras")).json()["active"]) == ["transformer", "transformer_2"]
        assert await worn() == tuple(Lora("ink.safetensors", 1.0, name) for name in ("transformer", "transformer_2"))
        await post("set_lora", lora_nickname=["ink", "deep"], strength=[1, 0.25])
        await post("unmerge_lora_weights", target="all")
        assert await worn() is None
        assert (await client.get("/v1/list_loras")).json()["active"] == {}
        await post("merge_lora_weights", strength=0.75)
        assert await worn() == (Lora("ink.safetensors", 0.75), Lora("more/deep.safetensors", 0.75))
        await client.post("/v1/unload_lora_adapter", json={"lora_name": "deep"})
        assert await worn() == (Lora("ink.safetensors", 0.75),)

    with_app(tmp_path / "data", folder, act)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("set_lora", {}, "lora_nickname"),
        ("set_lora", {"lora_nickname": "gone"}, "lora_nickname"),
        ("set_lora", {"lora_nickname": "x", "lora_path": "../secret.safetensors"}, "lora_path"),
        ("set_lora", {"lora_nickname": ["x", "y"], "lora_path": ["ink.safetensors", "gone.safetensors"]}, "lora_path"),
        ("set_lora", {"lora_nickname": ["x", "y"], "lora_path": ["ink.safetensors", None]}, "lora_nickname"),
        ("set_lora", {"lora_nickname": ["x", "x"], "lora_path": ["ink.safetensors"] * 2}, "lora_nickname"),
        ("set_lora", {"lora_nickname": "x", "lora_path": "ink.safetensors", "strength": 1e9}, "lora_nickname"),
        ("set_lora", {"lora_nickname": ["ink", "night"], "strength": [1]}, "strength"),
        ("set_lora", {"lora_nickname": "ink", "strength": "much"}, "strength"),
        ("set_lora", {"lora_nickname": "ink", "strength": 1e9}, "lora_nickname"),
        ("set_lora", {"lora_nickname": "ink", "target": "critic"}, "target"),
        ("set_lora", {"lora_nickname": "ink", "target": ["all", "transformer"]}, "target"),
        ("set_lora", {"lora_nickname": ["ink", "night"], "target": ["transformer", "transformer_2"]}, "target"),
        ("merge_lora_weights", {"target": "transformer"}, "target"),
        ("set_lora", {"lora_nickname": "ink", "scale": 1}, "scale"),
        ("merge_lora_weights", {}, "lora_nickname"),
        ("unmerge_lora_weights", {"strength": 1}, "strength"),
    ],
)
def test_what_cannot_be_set_is_refused_and_nothing_is_worn_or_registered(
    tmp_path: Path, folder: Path, path: str, body: dict[str, Any], param: str
) -> None:
    async def act(client: httpx2.AsyncClient, service: Service) -> None:
        before = dict(service.shelf.files)
        answer = await client.post(f"/v1/{path}", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
        assert not service.shelf.worn and service.shelf.files == before

    with_app(tmp_path / "data", folder, act, networks=("transformer",))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("set_lora", {"lora_nickname": ["ink", "new"], "lora_path": [None, "more/deep.safetensors"]}),
        ("merge_lora_weights", {"strength": 0.5}),
    ],
)
@pytest.mark.parametrize(
    ("why", "status"),
    [(RequestError("it has other layers", "loras"), 400), (AdaptersFullError("it has no room", 1.0), 429)],
)
def test_what_no_worker_can_wear_is_refused_when_it_is_set_and_what_was_set_stays(
    tmp_path: Path, folder: Path, path: str, body: dict[str, Any], why: OmnimuseError, status: int
) -> None:
    async def act(client: httpx2.AsyncClient, service: Service) -> None:
        workers, before = cast(FakeWorkers, service.workers), dict(service.shelf.files)
        assert (await client.post("/v1/set_lora", json={"lora_nickname": "night"})).status_code == 200
        assert workers.tried_on == [(Lora("night.safetensors"),)]
        workers.unfit = dict.fromkeys(("more/deep.safetensors", "night.safetensors"), why)
        answer = await client.post(f"/v1/{path}", json=body)
        assert answer.status_code == status and str(why) in answer.json()["error"]["message"], answer.text
        assert service.shelf.worn == [Lora("night")] and service.shelf.files == before
        await draw(client)
        assert workers.started[-1].params.loras == (Lora("night.safetensors"),)

    with_app(tmp_path / "data", folder, act)


def test_more_adapters_than_there_may_be_are_told_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omnimuse.server.shelf.MOST", 2)
    for number in range(3):
        (tmp_path / f"{number}.safetensors").touch()
    with pytest.raises(ConfigError, match=r"--lora-dir .* has 3 adapters, and there may be 2; move some away"):
        Shelf(tmp_path)


@pytest.mark.parametrize("name", [b"\xff", b"two\nlines", b"\x1b[31m"])
def test_a_file_whose_name_no_request_can_say_is_told_at_the_start(tmp_path: Path, name: bytes) -> None:
    (tmp_path / os.fsdecode(name + b".safetensors")).touch()
    with pytest.raises(ConfigError, match=r"--lora-dir .*, a name that no request can say; rename it"):
        Shelf(tmp_path)
