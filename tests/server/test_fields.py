"""Every field of the table, whatever is sent in it: refused or honoured, never a fault of the server; and no longer
than it may be, never kept where it says that it is not."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from omnimuse.core.errors import RequestError
from omnimuse.core.request import Door
from omnimuse.server.app import ALLROUND, LISTENING, SPEAKING
from omnimuse.server.errors import ApiError
from omnimuse.server.protocol.within import Within
from omnimuse.server.translate.aliases import _plain, read
from omnimuse.server.translate.asks import to_form, to_request
from omnimuse.server.translate.field import Field, Kind
from omnimuse.server.translate.fields import TABLE
from tests.server.asgi import Answer, call, scope
from tests.server.picture_server import service_in, shapes, writer
from tests.server.video_rig import door as films

KINDS: tuple[Kind, ...] = get_args(Kind)
PATHS: dict[Kind, str] = {
    "image": "/v1/images/generations",
    "edit": "/v1/images/edits",
    "video": "/v1/videos",
    "chat": "/v1/chat/completions",
    "talk": "/v1/chat/completions",
    "completion": "/v1/completions",
}
DEEP: list[Any] = []
for _ in range(20):
    DEEP = [DEEP]
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 0.5, -0.0, 1e300, 10**50, -(10**20),
    "", " ", "auto", "true", "1", "-1", "0x10", "nan", "inf", "1e999", "\x00", "é" * 40, "x" * 1000, "9" * 100,
    "1024x1024", "0x0", "99999999x1", "1x1x1", "\u0661x\u0662",
    "{}", "[]", '{"a": 1}', "null", '{"a": NaN}', '{"seed": 1e999}', "[" * 5000,
    [], [[]], ["auto"], [True], [1, 2], [None], ["a", "b"], [{"a": 1}], DEEP,
    {}, {"a": 1}, {"": ""}, {"a": {"b": []}}, {"x": "auto"},
    10**350, [10**350], {"name": "a", "scale": 10**350},
]  # fmt: skip
FORM_ODD = [value for value in ODD if isinstance(value, str | list | dict)]


def door_of(kind: Kind) -> Door:
    return films() if kind == "video" else writer() if kind in ("talk", "completion", "hearing") else shapes()


def every_field() -> Iterator[tuple[Kind, Field]]:
    for kind in KINDS:
        for field in TABLE[kind]:
            yield kind, field


def names(kind: Kind) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "x"}]} if kind in ("chat", "talk") else {"prompt": "x"}


@pytest.mark.parametrize("form", [False, True], ids=["JSON", "form"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_value_in_any_field_is_honoured_or_refused(kind: Kind, form: bool) -> None:
    door, faults = door_of(kind), []
    for field in TABLE[kind]:
        for value in FORM_ODD if form else ODD:
            try:
                wanted = read({**names(kind), field.name: value}, kind, door, form=form)
                if kind not in ("chat", "talk"):
                    to_request(wanted, door)
                to_form(wanted)
            except (ApiError, RequestError):
                continue
            except Exception as error:  # the fault that this test looks for
                faults.append((field.name, value, repr(error)))
    assert not faults


def test_every_answer_in_json_has_room_for_what_its_request_may_ask_to_be_told() -> None:
    described = [made for groups in (SPEAKING, LISTENING, ALLROUND) for group in groups for made in group.OPERATIONS]
    asked = [made for made in described if made.body is not None and "block_timings" in made.body.model_fields]
    answers = [answer for made in asked for answer in made.responses.values() if isinstance(answer, type)]
    assert answers
    assert [answer.__name__ for answer in answers if not issubclass(answer, Within)] == []


def test_a_text_of_a_form_that_nests_without_end_is_a_text() -> None:
    assert _plain("[" * 100_000, form=True) == "[" * 100_000


def form_of(name: str, value: Any) -> bytes:
    """A form with `value` under every name that a client might write it."""
    pairs = [("prompt", "x")] if name != "prompt" else []
    if isinstance(value, dict):
        pairs += [(f"{name}[{key or 'k'}]", json.dumps(inner)) for key, inner in value.items()]
    elif isinstance(value, list):
        pairs += [(f"{name}[]", item if isinstance(item, str) else json.dumps(item)) for item in value]
    else:
        pairs.append((name, value))
    parts = [f'--B\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{text}\r\n' for key, text in pairs]
    return "".join([*parts, "--B--\r\n"]).encode()


def names_it(field: str, answer: Answer) -> bool:
    """Whether a refusal says of which field it is: to programs, and in its words to people."""
    error = json.loads(answer.content)["error"]
    if error["code"] == "missing_parameter":  # the field was all right, and another one is needed
        return True
    return field in re.split(r"[.\[]", error["param"] or "") and field in error["message"]


def test_no_field_of_any_shape_is_a_fault_of_the_server_and_a_refusal_names_the_field(tmp_path: Path) -> None:
    faults = []

    async def send(app: Any, kind: Kind, content: bytes, form: bool) -> Answer:
        what = "multipart/form-data; boundary=B" if form else "application/json"
        return await call(app, scope("POST", PATHS[kind], {"content-type": what}), [content])

    async def main() -> None:
        for data, door, kinds in (
            (tmp_path / "films", films(), ["video"]),
            (tmp_path, shapes(), ["image", "edit", "chat"]),
            (tmp_path / "texts", writer(), ["talk", "completion"]),
        ):
            async with service_in(data, door=door) as (app, _):
                for kind, field in every_field():
                    if kind not in kinds:
                        continue
                    for value in (["auto"], [], {"x": "auto"}, [{"a": 1}], "auto", 1):
                        answers = []
                        if kind != "edit":
                            few = {} if kind in ("talk", "completion") else {"num_inference_steps": 1}
                            content = json.dumps({**names(kind), **few, field.name: value})
                            answers.append(await send(app, kind, content.encode(), False))
                        if kind in ("edit", "video") and not isinstance(value, int):
                            answers.append(await send(app, kind, form_of(field.name, value), True))
                        faults.extend(
                            (kind, field.name, value, answer.status, answer.content)
                            for answer in answers
                            if answer.status >= 500 or (answer.status >= 400 and not names_it(field.name, answer))
                        )

    asyncio.run(main())
    assert not faults, "\n".join(str(f)[:300] for f in faults)


# -- length ----------------------------------------------------------------------------------------------------------


TEXTS = [(kind, field) for kind, field in every_field() if field.shape == "text"]


@pytest.mark.parametrize(("kind", "field"), TEXTS, ids=[f"{kind}-{field.name}" for kind, field in TEXTS])
def test_a_text_is_no_longer_than_its_field_says(kind: Kind, field: Field) -> None:
    assert 0 < field.longest <= 32_000
    for form in (False, True):
        with pytest.raises(ApiError) as caught:
            read({**names(kind), field.name: "x" * (field.longest + 1)}, kind, door_of(kind), form=form)
        assert (caught.value.code, caught.value.param) == ("invalid_value", field.name)
        assert str(field.longest) in caught.value.message and len(caught.value.message) < 400


def test_a_text_field_without_a_length_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="longest"):
        Field("note", "text", "note")


def test_sixty_megabytes_of_a_name_are_refused_unread(tmp_path: Path) -> None:
    async def main() -> int:
        async with service_in(tmp_path) as (app, _):
            head = {"content-type": "application/json", "content-length": str(60 * 2**20)}
            return (await call(app, scope("POST", PATHS["image"], head), [b"{"])).status

    assert asyncio.run(main()) == 413


def test_who_asked_is_repeated_and_not_kept(tmp_path: Path) -> None:
    word = "somebody-who-would-rather-not"

    async def main() -> None:
        async with service_in(tmp_path) as (app, _):
            for how in ({"background": True}, {}):
                body = {"prompt": "x", "safety_identifier": word, "user": word, "num_inference_steps": 1, **how}
                head = {"content-type": "application/json", "idempotency-key": f"key-{how}"}
                answer = json.loads(
                    (await call(app, scope("POST", PATHS["image"], head), [json.dumps(body).encode()])).content
                )
                assert how or answer["safety_identifier"] == word
                if how:
                    while True:
                        shown = json.loads((await call(app, scope(path=f"/v1/images/{answer['id']}"))).content)
                        if shown["status"] == "completed":
                            break
                        await asyncio.sleep(0.01)
                    assert word not in json.dumps(shown)

    asyncio.run(main())
    found = sqlite3.connect(tmp_path / "jobs.sqlite")
    [count] = found.execute("SELECT count(*) FROM jobs").fetchone()
    found.close()
    assert count == 2
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or word.encode() not in path.read_bytes(), path
