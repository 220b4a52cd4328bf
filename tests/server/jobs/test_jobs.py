"""Jobs: durable before they are accepted, stopped within a step, ended whatever happens, and nothing left behind."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from omnimuse.core.errors import (
    CapacityError,
    EngineDeadError,
    NumericalError,
    PoisonError,
    StorageError,
)
from omnimuse.core.params import DiffusionParams
from omnimuse.deploy.wire import Previewed, Stepped
from omnimuse.server.errors import ApiError
from omnimuse.server.jobs.live import BACKLOG, Meter
from omnimuse.server.jobs.row import Idempotency, Job, Page
from tests.server.video_rig import MODEL, MP4, STEPS, Rig, make_request, rig
from tests.waiting import until

SLOW = 0.02
KEY = Idempotency("key", "body")


def run(data: Path, act: Callable[[Rig], Awaitable[None]], **choices: object) -> None:
    """`act` on the parts of a server over `data`."""

    async def main() -> None:
        async with rig(data, **choices) as parts:  # type: ignore[arg-type]
            await act(parts)

    asyncio.run(asyncio.wait_for(main(), 30))


async def code_of(coroutine: Awaitable[object]) -> str:
    with pytest.raises(ApiError) as caught:
        await coroutine
    return caught.value.code


def test_a_job_is_drawn_and_its_file_is_kept(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        job = await parts.submit()
        assert job.state == "queued"
        ended = await parts.ended(job)
        assert (ended.state, ended.progress, ended.attempt) == ("completed", 100, 1)
        [file] = ended.files
        content = parts.service.files.path(file.name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == file.sha256
        assert ended == await parts.jobs.get("", job.id)
        assert (parts.spooled(), parts.kept()) == ([], [file.name])
        assert parts.service.admission.load().count == 0
        assert (
            b'omnimuse_requests_total{model="tests/films",outcome="completed",task="text-to-video"} 1.0'
            in (parts.service.metrics.render()[0])
        )

    run(tmp_path, act)


def test_an_accepted_job_is_on_disk_before_it_is_answered(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        job = await parts.submit()
        assert [one.id for one in await parts.store.queued()] == [job.id]

    run(tmp_path, act, ready=False)


def test_no_more_jobs_run_at_once_than_allowed_and_the_rest_follow(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        most = 0
        jobs = [await parts.submit(f"hill {number}") for number in range(5)]
        parts.workers.ready = True

        async def look() -> None:
            nonlocal most
            while True:
                most = max(most, len(parts.workers.running))
                await asyncio.sleep(0)

        looking = asyncio.create_task(look())
        for job in jobs:
            assert (await parts.ended(job)).state == "completed"
        looking.cancel()
        assert most == 2

    run(tmp_path, act, limit=2, pace=SLOW, ready=False)


def test_jobs_wait_until_a_worker_is_ready(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        job = await parts.submit()
        await asyncio.sleep(0.1)
        assert parts.workers.started == []
        parts.workers.ready = True
        assert (await parts.ended(job)).state == "completed"

    run(tmp_path, act, ready=False)


def test_the_time_that_a_job_waits_for_a_worker_is_its_time_in_the_queue(tmp_path: Path) -> None:
    times = [1000.0]

    async def act(parts: Rig) -> None:
        job = await parts.submit()
        times[0] += 90.0
        parts.workers.ready = True
        assert (await parts.ended(job)).timings["queue"] == 90.0
        assert b'omnimuse_queue_seconds_sum{model="tests/films"} 90.0' in parts.service.metrics.render()[0]

    run(tmp_path, act, ready=False, now=lambda: times[0])


def test_a_running_job_stops_within_a_step_of_its_cancellation(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        job = await parts.submit(params=DiffusionParams(seed=1, num_inference_steps=1000))
        watching = asyncio.create_task(parts.ended(job))
        await until(lambda: bool(parts.workers.running))
        cancelled = await parts.jobs.cancel("", job.id)
        assert cancelled is not None and cancelled.error is not None
        assert (cancelled.state, cancelled.error.code) == ("failed", "cancelled")
        assert (await watching).state == "failed"
        await until(lambda: not parts.workers.running)
        assert await parts.jobs.cancel("", job.id) == cancelled  # again changes nothing
        assert (parts.spooled(), parts.kept()) == ([], [])
        assert parts.service.admission.load().count == 0

    run(tmp_path, act, pace=SLOW)


def test_a_cancelled_job_that_waits_is_never_drawn(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        first, second, third = [await parts.submit(f"hill {number}") for number in range(3)]
        await parts.jobs.cancel("", second.id)
        assert (await parts.ended(third)).state == "completed"
        assert [request.prompt for request in parts.workers.started] == ["hill 0", "hill 2"]
        assert (await parts.ended(second)).state == "failed"
        assert (await parts.ended(first)).state == "completed"

    run(tmp_path, act, pace=SLOW)


@pytest.mark.parametrize("state", ["queued", "in_progress", "completed", "failed"])
def test_a_deleted_job_is_gone_with_its_files_whatever_it_was_doing(tmp_path: Path, state: str) -> None:
    async def act(parts: Rig) -> None:
        if state == "failed":
            parts.workers.fail["hill"] = NumericalError("NaN")
        job = await parts.submit("a hill")
        if state in ("completed", "failed"):
            await parts.ended(job)
        elif state == "in_progress":
            await until(lambda: bool(parts.workers.running))
        assert await parts.jobs.delete("", job.id)
        assert not await parts.jobs.delete("", job.id)
        assert await parts.jobs.get("", job.id) is None
        await until(lambda: not parts.workers.running)
        await asyncio.sleep(0.05)
        assert (parts.kept(), parts.spooled()) == ([], [])
        assert parts.service.admission.load().count == 0

    run(tmp_path, act, pace=SLOW, ready=state != "queued")


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.005, 0.008, 0.011, 0.015, 0.02])
def test_a_deletion_that_races_the_end_leaves_no_orphan(tmp_path: Path, delay: float) -> None:
    async def act(parts: Rig) -> None:
        jobs = [await parts.submit() for _ in range(3)]
        for job in jobs:
            await asyncio.sleep(delay)
            await parts.jobs.delete("", job.id)
        await until(lambda: parts.service.admission.load().count == 0)
        await asyncio.sleep(0.02)
        assert (parts.kept(), parts.spooled(), await parts.store.file_names()) == ([], [], set())

    run(tmp_path, act)


def test_a_deletion_while_the_result_is_being_stored_wins_and_removes_it(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        job = await parts.submit()
        await until(lambda: bool(parts.kept()))  # moved, not yet committed, or just so
        assert await parts.jobs.delete("", job.id)
        await until(lambda: not parts.kept())
        assert await parts.jobs.get("", job.id) is None

    run(tmp_path, act)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PoisonError("twice"), "worker_crash"),
        (NumericalError("NaN"), "numerical_error"),
        (StorageError("no room at /secret/place"), "storage_full"),
        (EngineDeadError("gone"), "engine_dead"),
        (ZeroDivisionError("a fault of ours, /secret/place"), "internal_error"),
        (MemoryError("out of memory"), "insufficient_memory"),
        (OSError(28, "No space left on device"), "storage_full"),
    ],
)
def test_a_job_ends_as_failed_whatever_is_raised(tmp_path: Path, error: Exception, code: str) -> None:
    async def act(parts: Rig) -> None:
        parts.workers.fail["hill"] = error  # type: ignore[assignment]
        ended = await parts.ended(await parts.submit("a hill"))
        assert ended.error is not None
        assert (ended.state, ended.error.code, ended.progress) == ("failed", code, 22)
        assert "/secret" not in ended.error.message
        assert (await parts.ended(await parts.submit("a lake"))).state == "completed"  # the next one is well

    run(tmp_path, act)


def test_an_error_while_the_result_is_stored_leaves_no_file(tmp_path: Path) -> None:
    strikes = ["store.finish"]

    def fault(point: str) -> None:
        if point in strikes:
            strikes.remove(point)
            raise StorageError("no room")

    async def act(parts: Rig) -> None:
        ended = await parts.ended(await parts.submit())
        assert ended.error is not None and ended.error.code == "storage_full"
        assert (parts.kept(), parts.spooled()) == ([], [])

    run(tmp_path, act, fault=fault)


def test_a_deadline_ends_a_job_that_waits(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        job = await parts.submit(timeout=0.3)
        ended = await parts.ended(job)
        assert ended.error is not None and ended.error.code == "deadline_exceeded"
        assert parts.workers.started == []

    run(tmp_path, act, ready=False)


def test_the_deadline_of_a_job_goes_with_it_to_the_workers(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        before = time.monotonic()
        job = await parts.submit(timeout=50)
        after = time.monotonic()
        await parts.ended(job)
        [request] = parts.workers.started
        assert request.deadline is not None
        assert before + 49 < request.deadline < after + 51  # it went through the store, as a time of day

    run(tmp_path, act)


def test_the_same_key_makes_one_job_and_another_body_is_a_conflict(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        jobs = await asyncio.gather(*(parts.submit(idem=KEY) for _ in range(10)))
        assert len({job.id for job in jobs}) == 1
        await parts.ended(jobs[0])
        assert (await parts.submit(idem=KEY)).state == "completed"
        assert await code_of(parts.submit(idem=Idempotency("key", "other"))) == "idempotency_conflict"
        assert len(parts.workers.started) == 1
        assert parts.service.admission.load().count == 0

    async def after_a_restart(parts: Rig) -> None:
        assert (await parts.submit(idem=KEY)).state == "completed"
        assert parts.workers.started == []

    run(tmp_path, act)
    run(tmp_path, after_a_restart)


def test_a_full_queue_refuses_and_stores_nothing(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        for _ in range(2):
            await parts.submit()
        with pytest.raises(CapacityError):
            await parts.submit()
        assert len(await parts.store.queued()) == 2

    run(tmp_path, act, max_queue=2, ready=False)


@pytest.mark.parametrize("quota", [{"max_jobs": 2}, {"max_kept": 2000}])
def test_a_tenant_keeps_no_more_than_its_share_and_another_none_the_less(tmp_path: Path, quota: dict[str, int]) -> None:
    async def act(parts: Rig) -> None:
        for _ in range(2):
            kept = await parts.ended(await parts.submit(tenant="a"))
        assert await code_of(parts.submit(tenant="a")) == "quota_exceeded"
        assert (await parts.ended(await parts.submit(tenant="b"))).state == "completed"
        assert await parts.jobs.delete("a", kept.id)
        assert (await parts.ended(await parts.submit(tenant="a"))).state == "completed"

    run(tmp_path, act, **quota)


def test_jobs_of_a_tenant_beyond_its_share_wait_although_workers_are_free(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        jobs = [await parts.submit(tenant=tenant) for tenant in "aab"]
        at_once: list[str] = []
        while not all(job.ended for job in jobs):
            jobs = [await parts.jobs.get(job.tenant, job.id) or job for job in jobs]
            at_once.append("".join(job.tenant for job in jobs if job.state == "in_progress"))
            await asyncio.sleep(0.01)
        assert "ab" in at_once and not any("aa" in now for now in at_once)
        assert {job.state for job in jobs} == {"completed"}

    run(tmp_path, act, limit=3, each=1, pace=0.05)


def test_a_disk_without_reserve_refuses_new_jobs(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        assert await code_of(parts.submit()) == "storage_full"

    run(tmp_path, act, reserve=2**62)


def test_a_store_that_refuses_is_said_and_frees_the_place(tmp_path: Path) -> None:
    def fault(point: str) -> None:
        raise StorageError("no room")

    async def act(parts: Rig) -> None:
        assert await code_of(parts.submit()) == "storage_full"
        assert parts.service.admission.load().count == 0

    run(tmp_path, act, fault=fault)


def test_broken_workers_refuse_new_jobs_and_fail_those_that_wait(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        parts.workers.fail["hill"] = EngineDeadError("no worker can be started")
        first, second = await parts.submit("a hill"), await parts.submit("a hill")
        await until(lambda: bool(parts.workers.running))
        parts.workers.ready, parts.workers.broken = False, "it died five times"
        with pytest.raises(EngineDeadError):
            await parts.submit()
        for job in (first, second):
            ended = await parts.ended(job)
            assert ended.error is not None and ended.error.code == "engine_dead"

    run(tmp_path, act, pace=SLOW)


def test_jobs_survive_a_start_without_workers(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        await parts.submit()
        parts.workers.broken = "the model cannot be loaded"
        await asyncio.sleep(0.4)

    async def after(parts: Rig) -> None:
        [job] = (await parts.jobs.page("", "video", Page()))[0]
        assert (await parts.ended(job)).state == "completed"

    run(tmp_path, act, ready=False)
    run(tmp_path, after)


def test_a_server_that_ends_in_good_order_gives_its_jobs_to_the_next(tmp_path: Path) -> None:
    names: list[str] = []

    async def act(parts: Rig) -> None:
        long = DiffusionParams(seed=1, num_inference_steps=500)
        jobs = [await parts.submit(f"hill {number}", params=long) for number in range(2)]
        names.extend(job.id for job in jobs)
        watching = [asyncio.create_task(parts.ended(job)) for job in jobs]
        await until(lambda: bool(parts.workers.running))
        await parts.jobs.hold()
        assert parts.service.admission.load().count == 1  # only what runs is waited for
        assert await code_of(parts.submit()) == "server_draining"
        await parts.jobs.close(0.0)
        assert [(await task).state for task in watching] == ["queued", "queued"]
        assert parts.workers.running == set()

    async def after(parts: Rig) -> None:
        for name in names:
            job = await parts.jobs.get("", name)
            assert job is not None
            ended = await parts.ended(job)
            assert (ended.state, ended.attempt) == ("completed", 1)

    run(tmp_path, act, pace=SLOW)
    run(tmp_path, after)


def test_a_server_that_ends_waits_for_running_jobs_as_long_as_it_may(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        job = await parts.submit()
        await until(lambda: bool(parts.workers.running))
        await parts.jobs.close(10.0)
        stored = await parts.jobs.get("", job.id)
        assert stored is not None and stored.state == "completed"

    run(tmp_path, act, pace=SLOW)


def test_a_job_of_another_model_fails_and_is_not_drawn(tmp_path: Path) -> None:
    names: list[str] = []

    async def act(parts: Rig) -> None:
        names.append((await parts.submit()).id)

    async def after(parts: Rig) -> None:
        job = await parts.jobs.get("", names[0])
        assert job is not None and job.error is not None
        assert (job.state, job.error.code, job.work.model) == ("failed", "model_not_found", MODEL)

    run(tmp_path, act, ready=False)
    run(tmp_path, after, model="tests/other")


def test_finished_jobs_expire_with_their_files(tmp_path: Path) -> None:
    dates = [1_000_000.0]

    async def act(parts: Rig) -> None:
        job = await parts.submit()
        await parts.ended(job)
        assert len(parts.kept()) == 1
        dates[0] += 3601
        assert await parts.jobs.get("", job.id) is None
        assert len(parts.kept()) == 1

    async def after(parts: Rig) -> None:
        await until(lambda: not parts.kept())

    run(tmp_path, act, now=lambda: dates[0])
    run(tmp_path, after, now=lambda: dates[0])


def test_a_watcher_sees_every_step_a_late_one_the_latest_look_and_both_the_end(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        asked = make_request("a hill")
        job = await parts.jobs.submit("", replace(asked, previews=1), MP4, "video", {})
        seen = [news async for news in parts.jobs.subscribe(job)]
        steps = [news.step for news in seen if isinstance(news, Stepped)]
        looks = [news for news in seen if isinstance(news, Previewed)]
        assert steps == list(range(1, STEPS + 1)) and len(looks) == STEPS
        assert isinstance(seen[-1], Job) and seen[-1].state == "completed"
        assert [news async for news in parts.jobs.subscribe(job)] == [seen[-1]]

    run(tmp_path, act, pace=SLOW)


def test_a_slow_watcher_misses_old_news_and_never_the_end(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        job = await parts.submit(params=DiffusionParams(seed=1, num_inference_steps=5 * BACKLOG))
        news = parts.jobs.subscribe(job)
        await anext(news)
        await until(lambda: parts.service.admission.load().count == 0)
        rest = [item async for item in news]
        assert len(rest) <= BACKLOG
        assert isinstance(rest[-1], Job) and rest[-1].state == "completed"

    run(tmp_path, act)


def test_progress_never_goes_back_and_the_time_left_shrinks(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        job = await parts.submit(params=DiffusionParams(seed=1, num_inference_steps=20))
        progress: list[int] = []
        left: list[float] = []
        async for news in parts.jobs.subscribe(job):
            if isinstance(news, Stepped):
                stored = await parts.jobs.get("", job.id)
                assert stored is not None
                progress.append(stored.progress)
                if (eta := parts.jobs.eta(job)) is not None:
                    left.append(eta)
        assert progress == sorted(progress) and progress[-1] >= 89
        assert left[0] > left[-1]
        assert parts.jobs.eta(job) is None

    run(tmp_path, act, pace=SLOW)


def test_the_meter_counts_outputs_and_stages_and_survives_a_second_attempt() -> None:
    now = [0.0]
    meter = Meter(2, lambda: now[0])
    seen = []
    for output, stage, step, steps in (
        (0, "encode", 1, 1),
        (0, "denoise", 1, 2),
        (1, "denoise", 1, 2),
        (0, "denoise", 2, 2),
        (0, "denoise", 1, 2),  # a new worker begins again
        (0, "decode", 1, 2),
        (0, "decode", 2, 2),
        (1, "decode", 1, 1),
    ):
        now[0] += 1
        meter.see(Stepped("r", output, stage, step, steps))
        seen.append(meter.percent)
    assert seen == [0, 22, 45, 67, 67, 70, 72, 99]
    assert meter.fraction == pytest.approx(1.0)
