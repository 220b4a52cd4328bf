"""The same request that ends its worker, again and again: tried twice, then refused for a while, for its tenant."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from omnimuse.core.errors import NumericalError, PoisonError, WorkerLostError
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask, Request
from omnimuse.server.orders.poison import KEEP, Poison
from tests.server.asgi import call, scope
from tests.server.jobs.test_jobs import run
from tests.server.picture_server import service_in, shapes
from tests.server.video_rig import Rig


def request(tenant: str = "a", prompt: str = "x", size: int = 64) -> Request:
    params = DiffusionParams(width=size, height=size)
    return shapes().make_request(Ask(prompt, params, tenant=tenant), now=0.0, fresh_seed=1)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def refused(poison: Poison, asked: Request) -> bool:
    try:
        poison.check(asked)
    except PoisonError:
        return True
    return False


def test_what_ended_two_workers_is_refused_for_a_while_with_its_like_and_nobody_else() -> None:
    clock = Clock()
    poison = Poison(clock)
    poison.note(request(), PoisonError("twice"))
    assert refused(poison, request()) and refused(poison, request(prompt="another"))
    for other in (request(tenant="b"), request(size=128), replace(request(), tenant="")):
        assert not refused(poison, other)
    clock.now = KEEP - 1
    assert refused(poison, request())
    clock.now = KEEP + 1
    assert not refused(poison, request())


def test_one_loss_may_be_bad_luck_two_are_not_and_other_errors_are_none() -> None:
    poison = Poison(Clock())
    poison.note(request(), NumericalError("nan"))
    poison.note(request(), None)
    poison.note(request(), WorkerLostError("lost, and too late for another try"))
    assert not refused(poison, request())
    poison.note(request(), WorkerLostError("again"))
    assert refused(poison, request())


def test_without_keys_only_the_same_prompt_is_refused() -> None:
    poison = Poison(Clock())
    poison.note(request(tenant=""), PoisonError("twice"))
    assert refused(poison, request(tenant=""))
    assert not refused(poison, request(tenant="", prompt="everybody's"))


def test_no_more_kinds_are_remembered_than_fit() -> None:
    poison = Poison(Clock())
    for number in range(1200):
        poison.note(request(tenant="", prompt=str(number)), PoisonError("twice"))
    assert refused(poison, request(tenant="", prompt="1199"))
    assert not refused(poison, request(tenant="", prompt="0"))


def test_a_client_that_sends_poison_again_reaches_no_worker(tmp_path: Path) -> None:
    async def main() -> None:
        async with service_in(tmp_path) as (app, service):
            service.workers.fail["deadly"] = PoisonError("twice")  # type: ignore[attr-defined]
            body = json.dumps({"prompt": "deadly", "num_inference_steps": 1}).encode()
            for _ in range(5):
                answer = await call(
                    app, scope("POST", "/v1/images/generations", {"content-type": "application/json"}), [body]
                )
                assert (answer.status, answer.error["code"]) == (500, "worker_crash")
                assert answer.headers["x-should-retry"] == "false"
            assert len(service.workers.started) == 1  # type: ignore[attr-defined]
            harmless = body.replace(b"deadly", b"harmless")
            assert (
                await call(
                    app, scope("POST", "/v1/images/generations", {"content-type": "application/json"}), [harmless]
                )
            ).status == 200

    asyncio.run(main())


def test_a_job_that_was_poison_is_not_accepted_again(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        parts.workers.fail["deadly"] = PoisonError("twice")
        ended = await parts.ended(await parts.submit("deadly", "a"))
        assert ended.error is not None and ended.error.code == "worker_crash"
        with pytest.raises(PoisonError):
            await parts.submit("deadly", "a")
        assert (await parts.ended(await parts.submit("harmless", "b"))).state == "completed"

    run(tmp_path, act)
