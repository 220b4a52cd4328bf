"""Supervision, with real processes that hold no model: deaths, hangs, retries, poison, deadlines, and what is left."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from omnimuse.core.config import Config, ModelConfig, ParallelConfig
from omnimuse.core.errors import (
    CapacityError,
    DeadlineError,
    EngineDeadError,
    ModelError,
    PoisonError,
    RequestError,
    WorkerLostError,
)
from omnimuse.core.loras import Lora
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask, Request
from omnimuse.deploy.folder import PrivateFolder, sweep
from omnimuse.deploy.pool import Pool, PoolPlan
from omnimuse.deploy.scale import Scale
from omnimuse.deploy.wire import Finished, Form, MadeFile, Stepped, Update
from omnimuse.worker.find import Found, find
from tests.processes import alive, children, wait_gone
from tests.server.fake_process import SHARED
from tests.waiting import PATIENCE, until

ROOT = Path(__file__).resolve().parents[3]
FAKE = (sys.executable, str(ROOT / "tests" / "server" / "fake_process.py"))
PNG = Form("PNG")


@pytest.fixture(scope="module")
def found() -> Found:
    return find(Config(ModelConfig("omnimuse/shapes", device="cpu")))


@pytest.fixture
def plan(found: Found, tmp_path: Path) -> PoolPlan:
    (tmp_path / "spool").mkdir()
    return PoolPlan(found.config, found.spec, tmp_path / "spool", command=FAKE)


@asynccontextmanager
async def opened(plan: PoolPlan) -> AsyncIterator[Pool]:
    """A pool that leaves no process, whatever the test does."""
    pool = Pool(plan)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close(5.0)


def ask(found: Found, prompt: str = "a red circle", steps: int = 5, timeout: float | None = PATIENCE) -> Request:
    params = DiffusionParams(num_inference_steps=steps, seed=7)
    return found.door.make_request(Ask(prompt, params, timeout=timeout), time.monotonic(), 0)


async def draw(pool: Pool, request: Request) -> list[Update]:
    return [update async for update in pool.run(request, PNG)]


def made(updates: list[Update]) -> MadeFile:
    last = updates[-1]
    assert isinstance(last, Finished)
    return last.files[0]


def spooled(plan: PoolPlan) -> list[str]:
    return sorted(path.name for path in plan.spool.iterdir())


def test_a_request_gives_its_steps_and_then_its_file(found: Found, plan: PoolPlan) -> None:
    async def main() -> None:
        async with opened(plan) as pool:
            updates = await draw(pool, ask(found))
            assert [update.step for update in updates if isinstance(update, Stepped)] == [1, 2, 3, 4, 5]
            assert (plan.spool / made(updates).name).read_bytes() == b"seed 7"
            assert pool.ready and pool.place == {"dtype": "float32", "device": "cpu"}
            await until(lambda: pool.company == [SHARED])
            await pool.wait_ready()

    asyncio.run(main())


def test_what_requests_are_to_wear_all_workers_read(found: Found, plan: PoolPlan) -> None:
    async def main() -> None:
        async with opened(replace(plan, scale=Scale(2, 2))) as pool:
            with pytest.raises(EngineDeadError, match="no worker is ready"):
                await pool.try_on([Lora("ink")])
            await until(lambda: all(worker.state == "ready" for worker in pool.status()))
            await until(lambda: pool.adapters == (6, 8))
            await pool.try_on([Lora("ink")])
            for number in range(2):
                with pytest.raises(RequestError, match=f"not for worker {number}"):
                    await pool.try_on([Lora("ink"), Lora(f"worker {number}")])
            with pytest.raises(EngineDeadError, match=r"worker 1: its process ended"):
                await pool.try_on([Lora("death of worker 1")])
            await pool.try_on([Lora("ink")])

    asyncio.run(main())


def test_what_a_request_waits_for_a_worker_is_its_time_in_the_queue(found: Found, plan: PoolPlan) -> None:
    """It comes before the worker is ready; the fake one says nothing of a queue of its own."""

    async def main() -> None:
        async with opened(plan) as pool:
            came, drawn = time.monotonic(), asyncio.create_task(draw(pool, ask(found)))
            await pool.wait_ready()
            before_ready = time.monotonic() - came
            last = (await drawn)[-1]
            assert isinstance(last, Finished)
            assert 0.5 * before_ready < last.timings["queue"] < time.monotonic() - came

    asyncio.run(main())


def test_a_request_whose_worker_dies_is_drawn_again_and_leaves_no_half_file(found: Found, plan: PoolPlan) -> None:
    async def main() -> None:
        async with opened(replace(plan, faults="worker.step:3:kill,worker.encode:1:kill:late")) as pool:
            early = await draw(pool, ask(found))
            assert [update.step for update in early if isinstance(update, Stepped)][-5:] == [1, 2, 3, 4, 5]
            with pytest.raises(PoisonError):
                await draw(pool, ask(found, "late"))
            assert spooled(plan) == [made(early).name]
            assert pool.status()[0].restarts == 3
            assert "SIGKILL" in pool.status()[0].reason

    asyncio.run(main())


def test_the_log_says_what_workers_tell_and_when_each_is_ready_after_a_restart_too(
    found: Found, plan: PoolPlan, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with opened(replace(plan, faults="worker.step:3:kill")) as pool:
            await draw(pool, ask(found))

    with caplog.at_level(logging.INFO, "omnimuse"):
        asyncio.run(main())
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if "started again" not in line] == [
        "worker 0: drawing with nothing",
        "worker 0 is ready after 0.0 s",
    ] * 2


def test_a_poisonous_request_takes_nobody_with_it(found: Found, plan: PoolPlan) -> None:
    async def main() -> None:
        async with opened(replace(plan, faults="worker.step:3:kill:poison")) as pool:
            both = [draw(pool, ask(found, "poison", 20)), *(draw(pool, ask(found, "good", 20)) for _ in range(3))]
            bad, *good = await asyncio.gather(*both, return_exceptions=True)
            assert isinstance(bad, PoisonError)
            assert all(isinstance(updates, list) and isinstance(updates[-1], Finished) for updates in good), good
            assert made(await draw(pool, ask(found, "after"))).seed == 7

    asyncio.run(main())


def test_a_worker_that_stands_still_is_replaced(found: Found, plan: PoolPlan) -> None:
    async def main() -> None:
        async with opened(replace(plan, faults="worker.step:3:hang", hang=1.0)) as pool:
            assert made(await draw(pool, ask(found))).seed == 7
            [status] = pool.status()
            assert status.restarts == 1 and "stood still" in status.reason

    asyncio.run(main())


def test_a_stopped_worker_is_late_but_not_forgotten(found: Found, plan: PoolPlan) -> None:
    async def main() -> None:
        async with opened(replace(plan, hang=1.0)) as pool:
            await pool.wait_ready()
            drawing = asyncio.create_task(draw(pool, ask(found, steps=50)))
            await until(lambda: pool.status()[0].running == 1)
            os.kill(pool.status()[0].pid or 0, signal.SIGSTOP)
            assert made(await drawing).seed == 7
            assert pool.status()[0].restarts == 1

    asyncio.run(main())


def test_leaving_early_cancels_and_leaves_no_file(found: Found, plan: PoolPlan) -> None:
    async def main() -> None:
        async with opened(plan) as pool:
            request = ask(found, steps=500)
            updates = pool.run(request, PNG)
            await anext(updates)
            await updates.aclose()
            await until(lambda: pool.status()[0].running == 0)
            quick = asyncio.create_task(draw(pool, ask(found, steps=1)))
            await asyncio.sleep(0.03)  # about as long as it takes
            quick.cancel()
            [ended] = await asyncio.gather(quick, return_exceptions=True)
            await until(lambda: pool.status()[0].running == 0)
            await asyncio.sleep(0.1)
            # Where it was quicker, it gave its file away, and that is ours.
            assert spooled(plan) == ([] if isinstance(ended, BaseException) else [made(ended).name])

    asyncio.run(main())


def test_a_recording_that_nobody_waits_for_leaves_no_file(plan: PoolPlan) -> None:
    async def main() -> None:
        async with opened(plan) as pool:
            await until(lambda: pool.status()[0].state == "ready")
            left = asyncio.create_task(pool.profile(0, 0.3))
            await asyncio.sleep(0.05)
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)
            with pytest.raises(CapacityError, match="is being recorded already"):
                await pool.profile(0, 0.1)
            await until(lambda: not pool._replicas[0]._asked)
            assert spooled(plan) == []
            kept = await pool.profile(0, 0.1)
            assert spooled(plan) == [kept.name]

    asyncio.run(main())


def test_a_worker_that_is_killed_while_it_is_recorded_says_so_and_leaves_of_its_recordings_what_it_told_of(
    plan: PoolPlan,
) -> None:
    async def main() -> None:
        async with opened(plan) as pool:
            await until(lambda: pool.status()[0].state == "ready")
            told = await pool.profile(0, 0.1)
            recorded = asyncio.create_task(pool.profile(0, PATIENCE))
            await until(lambda: bool(pool._replicas[0]._asked))
            for begun in ("rank0-", ".part-7-", ".part-7-rank0-"):
                (plan.spool / f"{begun}profile-0-1-halfway.json.gz").write_bytes(b"half of it")
            pid = pool.status()[0].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(EngineDeadError, match="its process was ended by SIGKILL"):
                await recorded
            assert spooled(plan) == [told.name]
            await until(lambda: pool.status()[0].state == "ready")
            assert (await pool.profile(0, 0.1)).exists()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("action", "kind"), [("fail", ModelError), ("oom", MemoryError)], ids=["a failing step", "too little memory"]
)
def test_an_error_of_a_request_is_its_own(found: Found, plan: PoolPlan, action: str, kind: type[Exception]) -> None:
    async def main() -> None:
        async with opened(replace(plan, faults=f"worker.step:2:{action}:bad")) as pool:
            with pytest.raises(kind, match=r"worker\.step"):
                await draw(pool, ask(found, "bad"))
            assert made(await draw(pool, ask(found))).seed == 7
            assert pool.status()[0].restarts == 0

    asyncio.run(main())


def test_a_deadline_holds_while_waiting_and_while_drawing(found: Found, plan: PoolPlan) -> None:
    async def main() -> None:
        async with opened(replace(plan, faults="worker.step:2:hang")) as pool:
            with pytest.raises(DeadlineError, match="before a worker"):
                await draw(pool, ask(found, timeout=0.001))
            await pool.wait_ready()
            with pytest.raises(DeadlineError, match="has passed"):
                await draw(pool, ask(found, timeout=0.5))

    asyncio.run(main())


def test_a_lost_request_whose_deadline_has_passed_is_not_drawn_again(found: Found, plan: PoolPlan) -> None:
    async def main() -> None:
        async with opened(plan) as pool:
            await pool.wait_ready()
            request = replace(ask(found, steps=1000), deadline=time.monotonic() + 0.5)
            drawing = asyncio.create_task(draw(pool, request))
            await asyncio.sleep(0.8)  # past the deadline, within the time that the worker has to say so
            os.kill(pool.status()[0].pid or 0, signal.SIGKILL)
            with pytest.raises(WorkerLostError):
                await drawing

    asyncio.run(main())


def test_two_workers_share_the_work_and_survive_each_other(found: Found, plan: PoolPlan) -> None:
    async def main() -> None:
        async with opened(replace(plan, scale=Scale.fixed(2))) as pool:
            await until(lambda: all(status.state == "ready" for status in pool.status()))
            drawing = [asyncio.create_task(draw(pool, ask(found, steps=60))) for _ in range(4)]
            await until(lambda: [status.running for status in pool.status()] == [2, 2])
            os.kill(pool.status()[0].pid or 0, signal.SIGKILL)
            assert all(made(updates).seed == 7 for updates in await asyncio.gather(*drawing))
            assert [status.restarts for status in pool.status()] == [1, 0]

    asyncio.run(main())


def test_a_worker_that_never_becomes_ready_is_given_up(found: Found, plan: PoolPlan) -> None:
    async def main() -> None:
        async with opened(replace(plan, faults="worker.start:1:kill:always")) as pool:
            with pytest.raises(EngineDeadError, match="SIGKILL"):
                await draw(pool, ask(found))
            [status] = pool.status()
            assert (status.state, status.restarts) == ("broken", 4)
            with pytest.raises(EngineDeadError, match="SIGKILL"):
                await pool.wait_ready()

    asyncio.run(main())


def test_a_pool_that_was_not_started_is_not_waited_for(plan: PoolPlan) -> None:
    async def main() -> None:
        pool = Pool(plan)
        with pytest.raises(EngineDeadError, match="was not started"):
            await pool.wait_ready()
        assert pool.broken == ""

    asyncio.run(main())


def test_a_model_that_cannot_be_loaded_is_told_at_once(found: Found, plan: PoolPlan) -> None:
    async def main() -> None:
        async with opened(replace(plan, faults="worker.start:1:fail:always")) as pool:
            with pytest.raises(ModelError):
                await pool.wait_ready()
            assert pool.status()[0].restarts == 0
            with pytest.raises(EngineDeadError):
                await draw(pool, ask(found))

    asyncio.run(main())


def test_when_one_of_a_group_dies_the_group_is_rebuilt(found: Found, plan: PoolPlan) -> None:
    async def main() -> None:
        async with opened(replace(plan, config=replace(found.config, parallel=ParallelConfig(cfg=2)))) as pool:
            await pool.wait_ready()
            leader = pool.status()[0].pid or 0
            [other] = [pid for pid in children(os.getpid(), "fake_process.py") if pid != leader]
            drawing = asyncio.create_task(draw(pool, ask(found, steps=60)))
            await until(lambda: pool.status()[0].running == 1)
            os.kill(other, signal.SIGKILL)
            assert made(await drawing).seed == 7
            assert not alive(leader) and "rank 1" in pool.status()[0].reason

    asyncio.run(main())


def test_closing_leaves_no_process_no_file_and_nobody_waiting(found: Found, plan: PoolPlan) -> None:
    async def main() -> None:
        async with opened(replace(plan, scale=Scale.fixed(2), faults="worker.step:2:hang:stuck")) as pool:
            await until(lambda: all(status.state == "ready" for status in pool.status()))
            pids = [status.pid or 0 for status in pool.status()]
            assert pool.folder is not None
            folder = pool.folder.path
            assert folder.stat().st_mode & 0o777 == 0o700
            drawing = [asyncio.create_task(draw(pool, ask(found, word, 1000))) for word in ("stuck", "good")]
            await until(lambda: [status.running for status in pool.status()] == [1, 1])
            await pool.close(1.0)
            for task in drawing:
                with pytest.raises(EngineDeadError):
                    await task
            with pytest.raises(EngineDeadError):
                await draw(pool, ask(found))
            assert not any(map(alive, pids)) and not folder.exists() and spooled(plan) == []

    asyncio.run(main())


def growing(plan: PoolPlan, **changes: Any) -> PoolPlan:
    """One worker that draws one request at a time, or two while requests wait."""
    config = replace(plan.config, schedule=replace(plan.config.schedule, max_running=1))
    return replace(plan, config=config, scale=Scale(1, 2, grow_after=0.3, shrink_after=0.6), **changes)


@pytest.mark.costly(turns=3)
def test_a_worker_is_added_while_requests_wait_takes_some_of_them_over_and_ends_when_it_is_idle(
    found: Found, plan: PoolPlan
) -> None:
    told: list[tuple[int, int]] = []

    async def main() -> None:
        async with opened(growing(plan, staffed=lambda ready, coming: told.append((ready, coming)))) as pool:
            await pool.wait_ready()
            drawing = [asyncio.create_task(draw(pool, ask(found, steps=150))) for _ in range(4)]
            await until(lambda: [status.running > 0 for status in pool.status()] == [True, True])
            both = [status.pid or 0 for status in pool.status()]
            updates = await asyncio.gather(*drawing)
            assert all(made(each).seed == 7 for each in updates)
            assert [[update.step for update in each if isinstance(update, Stepped)] for each in updates] == [
                list(range(1, 151))
            ] * 4
            assert len({made(each).name.split("-")[-3] for each in updates}) == 2
            await until(lambda: len(pool.status()) == 1)
            assert pool.status()[0].restarts == 0
            gone = [pid for pid in both if pid != pool.status()[0].pid]
            assert await asyncio.to_thread(wait_gone, gone, PATIENCE)
            assert made(await draw(pool, ask(found))).seed == 7

    asyncio.run(main())
    changes = [one for one, before in zip(told, [None, *told], strict=False) if one != before]
    assert changes[:5] == [(0, 1), (1, 0), (1, 1), (2, 0), (1, 0)]


@pytest.mark.costly
def test_a_worker_that_was_added_and_cannot_be_started_is_given_up_and_the_others_go_on(
    found: Found, plan: PoolPlan, tmp_path: Path
) -> None:
    full = tmp_path / "full"
    command = ("sh", "-c", f"test ! -e {full} && exec {' '.join(FAKE)}")

    async def main() -> None:
        async with opened(growing(plan, command=command)) as pool:
            await pool.wait_ready()
            full.touch()
            drawing = [asyncio.create_task(draw(pool, ask(found, steps=200))) for _ in range(2)]
            await until(lambda: len(pool.status()) == 2)
            await until(lambda: len(pool.status()) == 1)
            assert [status.state for status in pool.status()] == ["ready"]
            assert all(made(updates).seed == 7 for updates in await asyncio.gather(*drawing))
            assert len(pool.status()) == 1

    asyncio.run(main())


PARENT = """
import asyncio, sys
from pathlib import Path
from omnimuse.core.config import Config, ModelConfig
from omnimuse.deploy.folder import PrivateFolder, sweep
from omnimuse.deploy.pool import Pool, PoolPlan
from omnimuse.worker.find import find

async def main():
    found = find(Config(ModelConfig("omnimuse/shapes")))
    pool = Pool(PoolPlan(found.config, found.spec, Path(sys.argv[1]), command=tuple(sys.argv[2:])))
    await pool.start()
    await pool.wait_ready()
    assert not {"torch", "diffusers", "transformers"} & set(sys.modules)
    print(pool.status()[0].pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_what_a_killed_server_left_is_removed_by_the_next() -> None:
    left, used = PrivateFolder(), PrivateFolder()
    try:
        program = (
            "import sys, time; from omnimuse.deploy.folder import PrivateFolder as P; print(P().path, flush=True);"
        )
        with subprocess.Popen([sys.executable, "-c", f"{program} time.sleep(60)"], stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            killed = Path(other.stdout.readline().decode().strip())
            other.kill()
        for path in (killed, used.path, left.path):
            os.utime(path, (0, 0))
        left.close()
        sweep()
        assert not killed.exists() and not left.path.exists() and used.path.exists()
    finally:
        used.close()


@pytest.mark.parametrize("stopped", [False, True], ids=["a running worker", "a stopped worker"])
def test_a_worker_ends_with_its_parent(tmp_path: Path, stopped: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), *FAKE], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        if stopped:
            os.kill(worker, signal.SIGSTOP)
        parent.kill()
    assert wait_gone([worker], PATIENCE)
