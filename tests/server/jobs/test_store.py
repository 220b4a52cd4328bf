"""The job store: what is accepted is on disk, races have one winner, nothing is reset, one server at a time."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from omnimuse.core.errors import ConfigError, RequestError, StorageError
from omnimuse.deploy.wire import Form, MadeFile, Remarks
from omnimuse.server.jobs.database import APPLICATION, VERSION
from omnimuse.server.jobs.row import Idempotency, Job, Kind, Outcome, Page, Times, Trouble, Work
from omnimuse.server.jobs.store import IDEMPOTENCY, MAX_ATTEMPTS, IdempotencyConflict, JobStore

LOST = Trouble("worker_lost", "lost")
NOW = 1000.0
KEY = Idempotency("key", "body")
FILM = MadeFile("job-" + "0" * 32 + ".mp4", 6, "hash", 1, 64, 32, 5, 16.0)


def job(job_id: str, tenant: str = "", created: float = NOW, kind: Kind = "video") -> Job:
    work = Work("model", {"prompt": "ein Hügel \N{SNOWMAN}", "params": {"seed": 2**62}}, Form("MP4"), {"a": [1, None]})
    return Job(job_id, tenant, kind, work, Times(created, deadline=created + 50))


def with_store(path: Path, act: Callable[[JobStore], Awaitable[None]]) -> None:
    async def main() -> None:
        store = await JobStore.open(path / "jobs.sqlite")
        try:
            await act(store)
        finally:
            await store.close()

    asyncio.run(main())


def test_a_job_comes_back_as_it_went_in(tmp_path: Path) -> None:
    async def act(store: JobStore) -> None:
        await store.accept(job("a"), None)
        assert await store.get("", "a", NOW) == job("a")

    async def again(store: JobStore) -> None:
        assert await store.get("", "a", NOW) == job("a")

    with_store(tmp_path, act)
    with_store(tmp_path, again)


def test_a_job_of_another_tenant_does_not_exist(tmp_path: Path) -> None:
    async def act(store: JobStore) -> None:
        await store.accept(job("a", "mine"), None)
        assert await store.get("other", "a", NOW) is None
        assert await store.delete("other", "a") is None
        assert await store.page("other", "video", Page(), NOW) == ([], False)
        assert await store.get("mine", "a", NOW) is not None

    with_store(tmp_path, act)


def test_jobs_start_in_order_and_tenants_take_turns(tmp_path: Path) -> None:
    async def act(store: JobStore) -> None:
        for name, tenant in (("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b")):
            await store.accept(job(name, tenant), None)
        started = [await store.claim(NOW + 1) for _ in range(5)]
        assert [one and one.id for one in started] == ["a1", "b1", "a2", "a3", None]
        assert started[0] is not None
        assert (started[0].state, started[0].attempt, started[0].times.started) == ("in_progress", 1, NOW + 1)

    with_store(tmp_path, act)


def test_no_tenant_has_more_jobs_running_than_its_share_and_another_is_next(tmp_path: Path) -> None:
    async def act(store: JobStore) -> None:
        for name, tenant in (("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("b2", "b"), ("b3", "b")):
            await store.accept(job(name, tenant), None)
        started = [await store.claim(NOW, 2) for _ in range(5)]
        assert [one and one.id for one in started] == ["a1", "b1", "a2", "b2", None]
        assert started[0] is not None and await store.put_back(started[0])
        again = await store.claim(NOW, 2)
        assert again is not None and again.id == "a1"

    with_store(tmp_path, act)


async def claimed(store: JobStore, name: str = "a") -> Job:
    await store.accept(job(name), None)
    started = await store.claim(NOW)
    assert started is not None
    return started


def test_finishing_and_cancelling_have_one_winner(tmp_path: Path) -> None:
    async def act(store: JobStore) -> None:
        first = await claimed(store, "first")
        assert await store.finish(first, Outcome((FILM,), {"denoise": 1.5}, 7), NOW, NOW + 60)
        assert not await store.fail(first, LOST, NOW, NOW + 60)
        done = await store.get("", "first", NOW)
        assert done is not None
        assert (done.state, done.progress, done.files, done.timings, done.memory) == (
            "completed",
            100,
            (FILM,),
            {"denoise": 1.5},
            7,
        )
        second = await claimed(store, "second")
        assert await store.fail(replace(second, progress=40), LOST, NOW, NOW + 60)
        assert not await store.finish(second, Outcome((FILM,), {}), NOW, NOW + 60)
        failed = await store.get("", "second", NOW)
        assert failed is not None
        assert (failed.state, failed.progress, failed.error, failed.files) == ("failed", 40, LOST, ())
        third = await claimed(store, "third")
        assert await store.delete("", "third") is not None
        assert not await store.finish(third, Outcome((FILM,), {}), NOW, NOW + 60)
        assert await store.file_names() == {FILM.name}

    with_store(tmp_path, act)


def test_an_attempt_that_was_given_up_cannot_finish_the_next_one(tmp_path: Path) -> None:
    async def act(store: JobStore) -> None:
        old = await claimed(store)
        await store.recover(LOST, NOW, NOW + 60)
        new = await store.claim(NOW)
        assert new is not None and new.attempt == 2
        assert not await store.finish(old, Outcome((FILM,), {}), NOW, NOW + 60)
        assert not await store.fail(old, LOST, NOW, NOW + 60)
        assert await store.finish(new, Outcome((FILM,), {}), NOW, NOW + 60)

    with_store(tmp_path, act)


def test_a_job_that_lost_its_server_twice_fails(tmp_path: Path) -> None:
    async def act(store: JobStore) -> None:
        await claimed(store)
        assert await store.recover(LOST, NOW, NOW + 60) == 1
        assert [one.id for one in await store.queued()] == ["a"]
        await store.claim(NOW)
        assert await store.recover(LOST, NOW, NOW + 60) == 0
        ended = await store.get("", "a", NOW)
        assert ended is not None and (ended.state, ended.error) == ("failed", LOST)

    with_store(tmp_path, act)


def test_a_job_that_is_put_back_has_not_used_an_attempt(tmp_path: Path) -> None:
    async def act(store: JobStore) -> None:
        started = await claimed(store)
        assert await store.put_back(started)
        assert not await store.put_back(started)
        assert await store.get("", "a", NOW) == job("a")

    with_store(tmp_path, act)


def test_pages_follow_each_other_in_both_orders(tmp_path: Path) -> None:
    async def act(store: JobStore) -> None:
        for number in range(5):
            await store.accept(job(f"v{number}"), None)
            await store.accept(job(f"i{number}", kind="image"), None)
        for ascending in (False, True):
            seen: list[str] = []
            more = True
            while more:
                page = Page(seen[-1] if seen else None, 2, ascending)
                jobs, more = await store.page("", "video", page, NOW)
                seen += [one.id for one in jobs]
            assert seen == sorted((f"v{number}" for number in range(5)), reverse=not ascending)
        for after in ("nothing", "i1"):
            with pytest.raises(RequestError, match="not the id of a video") as caught:
                await store.page("", "video", Page(after), NOW)
            assert caught.value.param == "after"

    with_store(tmp_path, act)


def test_a_job_expires_after_its_end_with_its_files_and_never_before(tmp_path: Path) -> None:
    async def act(store: JobStore) -> None:
        await store.accept(job("waits"), None)
        done = await store.claim(NOW)
        assert done is not None
        await store.finish(done, Outcome((FILM,), {}), NOW, NOW + 60)
        await store.accept(job("later"), None)
        assert await store.get("", "waits", NOW + 59) is not None
        assert await store.get("", "waits", NOW + 60) is None
        gone = await store.expire(NOW + 60)
        assert [(one.id, one.files) for one in gone] == [("waits", (FILM,))]
        assert await store.expire(NOW + 1e9) == []

    with_store(tmp_path, act)


def test_a_key_gives_the_same_job_and_refuses_another_body(tmp_path: Path) -> None:
    async def act(store: JobStore) -> None:
        assert await store.known("", KEY, NOW) is None
        assert (await store.accept(job("a"), KEY)).id == "a"
        assert (await store.accept(job("b"), KEY)).id == "a"
        assert (await store.accept(job("c", "other"), KEY)).id == "c"  # a key is of one tenant
        for change in (
            store.known("", replace(KEY, body_hash="x"), NOW),
            store.accept(job("d"), Idempotency("key", "x")),
        ):
            with pytest.raises(IdempotencyConflict):
                await change
        assert [one.id for one in await store.queued()] == ["a", "c"]

    async def after_a_restart(store: JobStore) -> None:
        earlier = await store.known("", KEY, NOW)
        assert earlier is not None and earlier.id == "a"

    with_store(tmp_path, act)
    with_store(tmp_path, after_a_restart)


def test_a_key_outlives_the_time_that_results_are_kept_and_ends_after_a_day(tmp_path: Path) -> None:
    async def act(store: JobStore) -> None:
        await store.accept(job("a"), KEY)
        started = await store.claim(NOW)
        assert started is not None
        await store.finish(started, Outcome((FILM,), {}), NOW + 5, NOW + 65)
        assert await store.expire(NOW + IDEMPOTENCY - 1) == []
        late = NOW + IDEMPOTENCY
        assert (await store.accept(job("b", created=late), KEY)).id == "b"

    with_store(tmp_path, act)


def test_ten_requests_with_one_key_make_one_job(tmp_path: Path) -> None:
    async def act(store: JobStore) -> None:
        accepted = await asyncio.gather(*(store.accept(job(f"j{i}"), KEY) for i in range(10)))
        assert len({one.id for one in accepted}) == 1
        assert len(await store.queued()) == 1

    with_store(tmp_path, act)


def test_two_servers_never_share_a_store(tmp_path: Path) -> None:
    async def act(store: JobStore) -> None:
        with pytest.raises(ConfigError, match="another server uses"):
            await JobStore.open(tmp_path / "jobs.sqlite")

    with_store(tmp_path, act)
    with_store(tmp_path, act)  # and the lock goes with its holder


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0:100] = b"x" * 100
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def scramble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)


def make_newer(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    db.close()


def make_foreign(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA application_id = {APPLICATION + 1}")
    db.close()


def test_a_database_of_the_version_before_is_brought_up_to_date_with_its_jobs(tmp_path: Path) -> None:
    async def old(store: JobStore) -> None:
        await store.accept(job("before"), None)

    async def new(store: JobStore) -> None:
        started = await store.claim(NOW)
        assert started is not None and started.id == "before" and started.remarks == Remarks()
        outcome = Outcome((FILM,), {}, 7, Remarks(("too long",), 9))
        assert await store.finish(started, outcome, NOW, NOW + 60)
        done = await store.get("", "before", NOW)
        assert done is not None and done.remarks == Remarks(("too long",), 9)

    with_store(tmp_path, old)
    with sqlite3.connect(tmp_path / "jobs.sqlite") as db:
        db.executescript("ALTER TABLE jobs DROP COLUMN remarks; PRAGMA user_version = 2;")
    db.close()
    with_store(tmp_path, new)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (damage, "damaged"),
        (truncate, "damaged"),
        (scramble, "damaged"),
        (make_newer, "update omnimuse"),
        (make_foreign, "not a job store"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused_with_a_hint_and_left_alone(
    tmp_path: Path, harm: Callable[[Path], None], said: str
) -> None:
    async def fill(store: JobStore) -> None:
        for number in range(20):
            await store.accept(job(f"j{number}"), None)

    with_store(tmp_path, fill)
    path = tmp_path / "jobs.sqlite"
    harm(path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=said) as caught:
        asyncio.run(JobStore.open(path))
    assert "--data" in str(caught.value)
    assert path.read_bytes() == before
    with pytest.raises(ConfigError, match=said):  # the lock was let go of: this is not "another server"
        asyncio.run(JobStore.open(path))


def test_the_database_is_private_durable_and_forgets_what_is_deleted(tmp_path: Path) -> None:
    async def act(store: JobStore) -> None:
        await store.accept(replace(job("a"), work=replace_prompt("a secret wish")), None)
        assert [store.db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")] == [
            "wal",
            2,
        ]
        await store.delete("", "a")

    with_store(tmp_path, act)
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o077 == 0
        assert b"secret wish" not in path.read_bytes()


def test_what_is_deleted_is_soon_in_no_file_although_the_server_goes_on(tmp_path: Path) -> None:
    """The log that SQLite writes ahead keeps old pages until it is emptied."""

    def found() -> list[str]:
        return [path.name for path in tmp_path.iterdir() if b"secret wish" in path.read_bytes()]

    async def act(store: JobStore) -> None:
        await store.accept(replace(job("a"), work=replace_prompt("a secret wish")), None)
        assert found()
        await store.delete("", "a")
        await store.forget()
        assert found() == []

    with_store(tmp_path, act)


WITH_SOURCES = {
    "prompt": "a hill",
    "images": [{"width": 1, "height": 1, "png": "x" * 10_000}],
    "sounds": [{"rate": 8000, "pcm": "y" * 10_000}],
}


def test_whoever_asks_about_a_job_reads_none_of_its_sources_and_whoever_draws_it_has_them(tmp_path: Path) -> None:
    async def act(store: JobStore) -> None:
        await store.accept(replace(job("a"), work=Work("model", WITH_SOURCES, Form("MP4"), {})), KEY)
        found = [await store.get("", "a", NOW), await store.known("", KEY, NOW), *await store.queued()]
        found += (await store.page("", "video", Page(), NOW))[0]
        assert [each and each.work.request for each in found] == [{"prompt": "a hill", "images": [], "sounds": []}] * 4
        started = await store.claim(NOW)
        assert started is not None and started.work.request == WITH_SOURCES
        assert await store.put_back(started)
        again = await store.claim(NOW)
        assert again is not None and again.work.request == WITH_SOURCES

    with_store(tmp_path, act)


def test_a_store_of_the_version_before_is_taken_over_with_its_jobs_and_their_sources(tmp_path: Path) -> None:
    async def begin(store: JobStore) -> None:
        for name in "ab":
            await store.accept(job(name), None)

    with_store(tmp_path, begin)
    with sqlite3.connect(tmp_path / "jobs.sqlite") as db:  # as version 1 had it
        db.executescript(
            "DROP TRIGGER sources_of_ended; DROP TRIGGER sources_of_deleted; DROP TABLE sources;"
            "ALTER TABLE jobs DROP COLUMN remarks; PRAGMA user_version = 1"
        )
        work = msgspec.json.encode(Work("model", WITH_SOURCES, Form("MP4"), {})).decode()
        db.execute("UPDATE jobs SET work = ? WHERE id = 'a'", (work,))
    db.close()

    async def again(store: JobStore) -> None:
        first, second = await store.claim(NOW), await store.claim(NOW)
        assert first is not None and first.work.request == WITH_SOURCES
        assert second is not None and second.work == job("b").work
        assert await store.delete("", "a") is not None

    with_store(tmp_path, again)
    with sqlite3.connect(tmp_path / "jobs.sqlite") as db:
        assert db.execute("SELECT count(*) FROM sources").fetchone() == (0,)
        assert b"xxxxxxxx" not in (tmp_path / "jobs.sqlite").read_bytes()
    db.close()


@pytest.mark.parametrize("end", ["completed", "failed", "lost"])
def test_a_job_that_has_ended_keeps_no_picture_that_it_started_from(tmp_path: Path, end: str) -> None:
    async def act(store: JobStore) -> None:
        await store.accept(replace(job("a"), work=Work("model", WITH_SOURCES, Form("MP4"), {"n": 2**62})), None)
        for _ in range(MAX_ATTEMPTS if end == "lost" else 1):
            started = await store.claim(NOW)
            assert started is not None and started.work.request == WITH_SOURCES
            if end == "completed":
                await store.finish(started, Outcome((FILM,), {}), NOW, NOW + 10)
            elif end == "failed":
                await store.fail(started, LOST, NOW, NOW + 10)
            else:
                await store.recover(LOST, NOW, NOW + 10)
        ended = await store.get("", "a", NOW)
        assert ended is not None and ended.ended
        assert ended.work == Work("model", {"prompt": "a hill", "images": [], "sounds": []}, Form("MP4"), {"n": 2**62})

    with_store(tmp_path, act)


def test_what_is_kept_for_a_tenant_is_counted(tmp_path: Path) -> None:
    async def act(store: JobStore) -> None:
        assert await store.kept("a") == (0, 0)
        for name, tenant in (("a1", "a"), ("a2", "a"), ("b1", "b")):
            await store.accept(job(name, tenant), None)
        started = await store.claim(NOW)
        assert started is not None
        await store.finish(started, Outcome((FILM, FILM), {}), NOW, NOW + 10)
        assert await store.kept("a") == (2, 2 * FILM.bytes)
        assert await store.kept("b") == (1, 0)

    with_store(tmp_path, act)


def replace_prompt(prompt: str) -> Work:
    return Work("model", {"prompt": prompt}, Form("MP4"), {})


def test_a_store_that_refuses_is_a_storage_error_and_changes_nothing(tmp_path: Path) -> None:
    async def act(store: JobStore) -> None:
        pages = store.db.execute("PRAGMA page_count").fetchone()[0]
        store.db.execute(f"PRAGMA max_page_count = {pages}")
        big = replace(job("big"), work=replace_prompt("x" * 100_000))
        with pytest.raises(StorageError, match="full"):
            await store.accept(big, None)
        assert await store.queued() == []
        await store.accept(job("small"), None)

    with_store(tmp_path, act)


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.server.jobs.test_store import job
from omnimuse.server.jobs.store import JobStore

def fault(point):
    if point == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    store = await JobStore.open(Path(sys.argv[1]) / "jobs.sqlite", fault)
    await store.accept(job("a"), None)
    print("accepted", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.parametrize("point", ["", "store.accept"])
def test_an_accepted_job_survives_kill_9_and_an_unanswered_one_is_whole_or_absent(tmp_path: Path, point: str) -> None:
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", KILLED, str(tmp_path), point]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert ended.stdout == ("" if point else "accepted\n")

    async def look(store: JobStore) -> None:
        assert await store.queued() == ([] if point else [job("a")])

    with_store(tmp_path, look)
