"""The job store: every accepted job, in SQLite (WAL, synchronous), so that none is lost whatever is killed.

Only `server/jobs/book.py` writes here. All SQL runs on the thread of its database; every method is awaited. A
file lock beside the database keeps a second server out. Which of two racing changes wins is decided here, by
conditions in the statements; a change that came too late returns False and changes nothing. Only `claim` gives a job
with the pictures and sounds that it starts from.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from omnimuse.core.errors import ConfigError, OmnimuseError, RequestError
from omnimuse.deploy.wire import MadeFile, Remarks
from omnimuse.server.database import Database, on_its_thread
from omnimuse.server.jobs.database import TABLES, take_lock
from omnimuse.server.jobs.row import Idempotency, Job, Kind, Outcome, Page, Times, Trouble, Work

MAX_ATTEMPTS = 2
"""How often a job is started; one that lost the server that often is not tried again."""
IDEMPOTENCY = 24 * 3600.0
"""Seconds for which an idempotency key stands for the job that it made."""

# A finished job that an idempotency key stands for stays at least as long as the key.
_EXPIRES = f"max(?, CASE WHEN idem_key IS NULL THEN 0 ELSE created + {IDEMPOTENCY} END)"


class IdempotencyConflict(OmnimuseError):
    """An idempotency key was used before, for another request."""


class JobStore:
    """The jobs of one server, in the database at `path`; `fault` is told the name of each fault point it passes."""

    def __init__(self, path: Path, fault: Callable[[str], object] = lambda point: None) -> None:
        self._fault = fault
        self._lock = take_lock(path.with_name(path.name + ".lock"))
        try:
            self.db = Database(path, TABLES)
        except ConfigError:
            os.close(self._lock)
            raise

    @staticmethod
    async def open(path: Path, fault: Callable[[str], object] = lambda point: None) -> JobStore:
        """The store at `path`, made when missing; ConfigError if it is in use, damaged, or of a newer version."""
        return await asyncio.to_thread(JobStore, path, fault)

    async def close(self) -> None:
        """End the thread and let go of the database. Closing twice is fine."""
        await self.db.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # -- the life of a job ---------------------------------------------------------------------------------------

    @on_its_thread
    def known(self, tenant: str, idem: Idempotency, now: float) -> Job | None:
        """The job that this key made; IdempotencyConflict if it was for another body."""
        return self._known(tenant, idem, now)

    @on_its_thread
    def accept(self, job: Job, idem: Idempotency | None) -> Job:
        """Store a queued job; when this returns, it is on disk. A key that was used before gives the job it made."""
        with self.db.transaction():
            if idem is not None and (earlier := self._known(job.tenant, idem, job.times.created)) is not None:
                return earlier
            work, sources = _apart(job.work)
            self.db.execute(
                "INSERT INTO jobs (id, tenant, kind, state, attempt, work, created, deadline, idem_key, idem_hash)"
                " VALUES (?, ?, ?, 'queued', 0, ?, ?, ?, ?, ?)",
                (
                    job.id,
                    job.tenant,
                    job.kind,
                    msgspec.json.encode(work).decode(),
                    job.times.created,
                    job.times.deadline,
                    idem and idem.key,
                    idem and idem.body_hash,
                ),
            )
            if sources:
                content = msgspec.json.encode(sources).decode()
                self.db.execute("INSERT INTO sources (job, content) VALUES (?, ?)", (job.id, content))
            self._fault("store.accept")
        return job

    @on_its_thread
    def claim(self, now: float, each: int = 2**31) -> Job | None:
        """Start the next queued job: the oldest of the tenant with the fewest running. None when none waits, or those
        who wait have `each` running."""
        row = self.db.execute(
            "UPDATE jobs SET state = 'in_progress', attempt = attempt + 1, started = ?, progress = 0 WHERE seq = ("
            " SELECT seq FROM (SELECT seq,"
            "  (SELECT count(*) FROM jobs AS r WHERE r.state = 'in_progress' AND r.tenant = q.tenant) AS running"
            "  FROM jobs AS q WHERE state = 'queued') WHERE running < ? ORDER BY running, seq LIMIT 1)"
            " RETURNING *",
            (now, each),
        ).fetchall()
        if not row:
            return None
        job = _job(row[0])
        sources = self.db.execute("SELECT content FROM sources WHERE job = ?", (job.id,)).fetchone()
        return job if sources is None else _with_sources(job, msgspec.json.decode(sources["content"]))

    @on_its_thread
    def finish(self, job: Job, outcome: Outcome, now: float, expires: float) -> bool:
        """Complete the attempt `job`; False if it has been cancelled, deleted or started anew meanwhile."""
        with self.db.transaction():
            changed = self.db.execute(
                "UPDATE jobs SET state = 'completed', progress = 100, files = ?, timings = ?, memory = ?, remarks = ?,"
                f" finished = ?, expires = {_EXPIRES}"
                " WHERE id = ? AND attempt = ? AND state = 'in_progress'",
                (
                    msgspec.json.encode(outcome.files).decode(),
                    msgspec.json.encode(outcome.timings).decode(),
                    outcome.memory,
                    msgspec.json.encode(outcome.remarks).decode(),
                    now,
                    expires,
                    job.id,
                    job.attempt,
                ),
            ).rowcount
            self._fault("store.finish")
        return changed == 1

    @on_its_thread
    def fail(self, job: Job, trouble: Trouble, now: float, expires: float) -> bool:
        """End `job` as failed, with its progress; False if it has ended or been started anew meanwhile."""
        return (
            self.db.execute(
                "UPDATE jobs SET state = 'failed', error = ?, progress = ?, finished = ?,"
                f" expires = {_EXPIRES}"
                " WHERE id = ? AND attempt = ? AND state IN ('queued', 'in_progress')",
                (msgspec.json.encode(trouble).decode(), job.progress, now, expires, job.id, job.attempt),
            ).rowcount
            == 1
        )

    @on_its_thread
    def put_back(self, job: Job) -> bool:
        """Queue a started job again without counting the attempt: the server stops in good order."""
        return (
            self.db.execute(
                "UPDATE jobs SET state = 'queued', attempt = attempt - 1, started = NULL, progress = 0"
                " WHERE id = ? AND attempt = ? AND state = 'in_progress'",
                (job.id, job.attempt),
            ).rowcount
            == 1
        )

    @on_its_thread
    def delete(self, tenant: str, job_id: str) -> Job | None:
        """Remove a job; returns what it was, or None if there is none. Its files are the caller's to remove."""
        rows = self.db.execute("DELETE FROM jobs WHERE id = ? AND tenant = ? RETURNING *", (job_id, tenant)).fetchall()
        return _job(rows[0]) if rows else None

    # -- looking -------------------------------------------------------------------------------------------------

    @on_its_thread
    def get(self, tenant: str, job_id: str, now: float) -> Job | None:
        """A job of this tenant that has not expired, or None."""
        row = self.db.execute(
            "SELECT * FROM jobs WHERE id = ? AND tenant = ? AND (expires IS NULL OR expires > ?)",
            (job_id, tenant, now),
        ).fetchone()
        return None if row is None else _job(row)

    @on_its_thread
    def page(self, tenant: str, kind: Kind, page: Page, now: float) -> tuple[list[Job], bool]:
        """Jobs of this tenant and whether more follow; RequestError if `after` is not the id of one."""
        sign, direction, edge = (">", "ASC", -1) if page.ascending else ("<", "DESC", 2**62)
        if page.after is not None:
            row = self.db.execute(
                "SELECT seq FROM jobs WHERE id = ? AND tenant = ? AND kind = ?", (page.after, tenant, kind)
            ).fetchone()
            if row is None:
                raise RequestError(
                    f"after={page.after!r} is not the id of a {kind}; use the last_id of a list", "after"
                )
            edge = row["seq"]
        rows = self.db.execute(
            f"SELECT * FROM jobs WHERE tenant = ? AND kind = ? AND seq {sign} ? AND (expires IS NULL OR expires > ?)"
            f" ORDER BY seq {direction} LIMIT ?",
            (tenant, kind, edge, now, page.limit + 1),
        ).fetchall()
        return [_job(row) for row in rows[: page.limit]], len(rows) > page.limit

    @on_its_thread
    def queued(self) -> list[Job]:
        """Every job that waits, oldest first."""
        return [_job(row) for row in self.db.execute("SELECT * FROM jobs WHERE state = 'queued' ORDER BY seq")]

    @on_its_thread
    def file_names(self) -> set[str]:
        """The names of all kept files that belong to a job."""
        rows = self.db.execute("SELECT files FROM jobs WHERE files != '[]'")
        return {made.name for row in rows for made in _files(row)}

    @on_its_thread
    def kept(self, tenant: str) -> tuple[int, int]:
        """How many jobs of this tenant there are, and how many bytes of files they made."""
        [count] = self.db.execute("SELECT count(*) FROM jobs WHERE tenant = ?", (tenant,)).fetchone()
        [size] = self.db.execute(
            "SELECT coalesce(sum(json_extract(file.value, '$.bytes')), 0)"
            " FROM jobs, json_each(jobs.files) AS file WHERE jobs.tenant = ?",
            (tenant,),
        ).fetchone()
        return count, size

    # -- housekeeping --------------------------------------------------------------------------------------------

    @on_its_thread
    def recover(self, trouble: Trouble, now: float, expires: float) -> int:
        """After a start: jobs that were running wait again, or fail with `trouble` after `MAX_ATTEMPTS` starts.

        Returns how many wait again.
        """
        with self.db.transaction():
            self.db.execute(
                "UPDATE jobs SET state = 'failed', error = ?, finished = ?,"
                f" expires = {_EXPIRES}"
                " WHERE state = 'in_progress' AND attempt >= ?",
                (msgspec.json.encode(trouble).decode(), now, expires, MAX_ATTEMPTS),
            )
            return self.db.execute(
                "UPDATE jobs SET state = 'queued', started = NULL, progress = 0 WHERE state = 'in_progress'"
            ).rowcount

    @on_its_thread
    def expire(self, now: float) -> list[Job]:
        """Remove the jobs whose time is over; returns them. Their files are the caller's to remove."""
        return [
            _job(row) for row in self.db.execute("DELETE FROM jobs WHERE expires <= ? RETURNING *", (now,)).fetchall()
        ]

    @on_its_thread
    def forget(self) -> None:
        """Empty the write-ahead log: what was deleted is in the database no more, but still in there."""
        self.db.forget()

    def _known(self, tenant: str, idem: Idempotency, now: float) -> Job | None:
        row = self.db.execute("SELECT * FROM jobs WHERE tenant = ? AND idem_key = ?", (tenant, idem.key)).fetchone()
        if row is None:
            return None
        if row["finished"] is not None and row["created"] + IDEMPOTENCY <= now:
            self.db.execute("UPDATE jobs SET idem_key = NULL WHERE seq = ?", (row["seq"],))
            return None
        if row["idem_hash"] != idem.body_hash:
            raise IdempotencyConflict(
                "this Idempotency-Key was used for another request in the last 24 hours; use a new key, "
                "or repeat the request exactly"
            )
        return _job(row)


_SOURCES = ("images", "region", "sounds", "videos")  # of a request: what a job starts from, which may be large


def _apart(work: Work) -> tuple[Work, dict[str, Any]]:
    """`work` without what it starts from, and this."""
    sources = {name: work.request[name] for name in _SOURCES if work.request.get(name)}
    request = {**work.request, **{name: [] for name in sources}}
    return msgspec.structs.replace(work, request=request), sources


def _with_sources(job: Job, sources: dict[str, Any]) -> Job:
    found = {name: given for name, given in sources.items() if given}
    return replace(job, work=msgspec.structs.replace(job.work, request={**job.work.request, **found}))


def _files(row: sqlite3.Row) -> tuple[MadeFile, ...]:
    return msgspec.json.decode(row["files"], type=tuple[MadeFile, ...])


def _job(row: sqlite3.Row) -> Job:
    return Job(
        id=row["id"],
        tenant=row["tenant"],
        kind=row["kind"],
        work=msgspec.json.decode(row["work"], type=Work),
        times=Times(*(row[name] for name in ("created", "started", "finished", "expires", "deadline"))),
        state=row["state"],
        attempt=row["attempt"],
        progress=row["progress"],
        files=_files(row),
        timings=msgspec.json.decode(row["timings"]),
        memory=row["memory"],
        remarks=msgspec.json.decode(row["remarks"], type=Remarks),
        error=None if row["error"] is None else msgspec.json.decode(row["error"], type=Trouble),
    )
