"""A state machine over the life of jobs: made, drawn, polled, cancelled, deleted, and the server killed at any point.

A kill is a copy of the data folder, taken in the middle of whatever goes on, from which the next server starts: that is
what a dead process leaves behind.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from omnimuse.core.errors import NumericalError
from omnimuse.core.request import Request
from omnimuse.deploy.wire import Finished, Form, Stepped, Update
from omnimuse.server.errors import ApiError
from omnimuse.server.jobs.row import Idempotency, Job
from tests.server.fake_workers import FakeWorkers
from tests.server.video_rig import MODEL, STEPS, Rig, rig

LIMIT = 2
BAD = "bad"  # a word of prompts that fail


class Gated(FakeWorkers):
    """Workers that take a step when they are told to."""

    def __init__(self, spool: Path, pace: float, ready: bool) -> None:
        super().__init__(spool, pace, ready=ready)
        self.gates: dict[str, asyncio.Event] = {}
        self.hurried: set[str] = set()

    async def run(self, request: Request, form: Form) -> AsyncIterator[Update]:
        self.running.add(request.id)
        try:
            for step in range(1, STEPS + 1):
                if request.id not in self.hurried:
                    self.gates[request.id] = asyncio.Event()
                    await self.gates[request.id].wait()
                    del self.gates[request.id]
                yield Stepped(request.id, 0, "denoise", step, STEPS)
            if BAD in request.prompt:
                raise NumericalError("NaN")
            yield Finished(request.id, [self._file(request, 0, form)], {"denoise": 1.0})
        finally:
            self.running.discard(request.id)
            self.gates.pop(request.id, None)

    def finish_all(self) -> None:
        """What runs now is drawn to its end, without another pause."""
        self.hurried |= self.running
        self.step()

    def step(self) -> None:
        """One step of everything that runs."""
        for gate in self.gates.values():
            gate.set()


class Lives(RuleBasedStateMachine):
    """What a client knows of its jobs, against what the server says."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.root = Path(tempfile.mkdtemp(prefix="omnimuse-test-"))
        self.folder, self.kills = self.root / "0", 0
        self.snapshot_at = ""
        self.snapshot: Path | None = None
        self.accepted: dict[str, str] = {}  # id -> tenant, of every job that must exist
        self.gone: dict[str, str] = {}
        self.ended: dict[str, Job] = {}
        self.keys: dict[tuple[str, str], str] = {}

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(asyncio.wait_for(work, 30))

    @initialize()
    def begin(self) -> None:
        self.do(self.open())

    async def open(self) -> None:
        self.context: AbstractAsyncContextManager[Rig] = rig(
            self.folder, limit=LIMIT, fault=self.fault, workers=Gated, model=MODEL
        )
        self.rig = await self.context.__aenter__()
        await self.settle()

    def fault(self, point: str) -> None:
        """Called on the store's thread, in the middle of a change."""
        if point == self.snapshot_at:
            self.snapshot_at, self.snapshot = "", self.copy()

    def copy(self) -> Path:
        self.kills += 1
        return Path(shutil.copytree(self.folder, self.root / str(self.kills)))

    async def restart(self, folder: Path) -> None:
        """Leave the running server behind, and start the next one from `folder`."""
        await self.context.__aexit__(None, None, None)
        self.folder = folder
        await self.open()

    async def settle(self) -> None:
        """Until everything waits for a step, or for nothing."""
        jobs = self.rig.jobs
        while True:
            lives = jobs._live.values()
            quiet = not any(live.finishing for live in lives)
            running = len(jobs._attending) == min(LIMIT, len(lives)) == len(self.workers.gates)
            if quiet and running and not any(gate.is_set() for gate in self.workers.gates.values()):
                return
            await asyncio.sleep(0.001)

    @property
    def workers(self) -> Gated:
        assert isinstance(self.rig.workers, Gated)
        return self.rig.workers

    # -- what clients do ----------------------------------------------------------------------------------------

    @rule(target=jobs, tenant=st.sampled_from("ab"), bad=st.booleans())
    def create(self, tenant: str, bad: bool) -> str:
        return self.do(self._create(BAD if bad else "good", tenant, None))

    @rule(target=jobs, tenant=st.sampled_from("ab"), key=st.sampled_from("xy"))
    def create_with_key(self, tenant: str, key: str) -> str:
        job_id = self.do(self._create("good", tenant, Idempotency(key, "body")))
        if self.keys.get((tenant, key)) in self.accepted:
            assert job_id == self.keys[tenant, key]
        self.keys[tenant, key] = job_id
        return job_id

    async def _create(self, prompt: str, tenant: str, idem: Idempotency | None) -> str:
        job = await self.rig.submit(prompt, tenant, idem=idem)
        self.accepted[job.id] = tenant
        await self.settle()
        return job.id

    @rule(tenant=st.sampled_from("ab"), key=st.sampled_from("xy"))
    def use_a_key_for_another_body(self, tenant: str, key: str) -> None:
        if self.keys.get((tenant, key)) in self.accepted:
            with pytest.raises(ApiError) as caught:
                self.do(self._create("good", tenant, Idempotency(key, "other")))
            assert caught.value.code == "idempotency_conflict"

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        self.do(self._cancel(job_id))

    async def _cancel(self, job_id: str) -> None:
        tenant = self.accepted.get(job_id) or self.gone[job_id]
        job = await self.rig.jobs.cancel(tenant, job_id)
        assert (job is None) == (job_id in self.gone)
        assert job is None or job.ended
        await self.settle()

    @rule(job_id=consumes(jobs))
    def delete(self, job_id: str) -> None:
        self.do(self._delete(job_id))

    async def _delete(self, job_id: str) -> None:
        if job_id in self.gone:  # two rules made it, with one key
            assert not await self.rig.jobs.delete(self.gone[job_id], job_id)
            return
        tenant = self.accepted.pop(job_id)
        assert not await self.rig.jobs.delete("another tenant", job_id)
        assert await self.rig.jobs.delete(tenant, job_id)
        self.gone[job_id] = tenant
        self.ended.pop(job_id, None)
        await self.settle()

    @rule(deleting=st.booleans(), turns=st.integers(0, 10))
    def change_a_job_in_its_last_step(self, deleting: bool, turns: int) -> None:
        self.do(self._race(deleting, turns))

    async def _race(self, deleting: bool, turns: int) -> None:
        running = [name for name, live in self.rig.jobs._live.items() if live.drawing is not None]
        if not running:
            return
        self.workers.finish_all()
        for _ in range(turns):
            await asyncio.sleep(0)
        await (self._delete(running[0]) if deleting else self._cancel(running[0]))

    # -- what happens -------------------------------------------------------------------------------------------

    @rule(steps=st.integers(1, STEPS))
    def draw(self, steps: int) -> None:
        self.do(self._draw(steps))

    async def _draw(self, steps: int) -> None:
        for _ in range(steps):
            self.workers.step()
            await self.settle()

    @rule()
    def kill(self) -> None:
        self.do(self.restart(self.do(self.rig.store.db.run(self.copy))))

    @rule()
    def kill_while_a_result_is_stored(self) -> None:
        self.snapshot_at = "store.finish"
        self.do(self._draw(STEPS))
        self._restart_from_snapshot()

    @rule(key=st.sampled_from(["", "x"]))
    def kill_while_a_job_is_accepted(self, key: str) -> None:
        self.snapshot_at = "store.accept"
        idem = Idempotency(key, "body") if key else None
        known = set(self.accepted)
        job_id = self.do(self._create("good", "a", idem))
        if job_id not in known:  # nobody was told of it
            del self.accepted[job_id]
        self._restart_from_snapshot()

    def _restart_from_snapshot(self) -> None:
        self.snapshot_at = ""
        if self.snapshot is not None:
            self.do(self.restart(self.snapshot))
            self.snapshot = None

    @rule()
    def end_in_good_order(self) -> None:
        self.do(self.restart(self.folder))

    # -- what holds ---------------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_lost_and_no_end_changes(self) -> None:
        if hasattr(self, "rig"):
            self.do(self._look())

    async def _look(self) -> None:
        named = set()
        for job_id, tenant in self.accepted.items():
            job = await self.rig.jobs.get(tenant, job_id)
            assert job is not None, "an accepted job is lost"
            assert job.attempt <= 2
            if job_id in self.ended:
                assert job == self.ended[job_id], "an ended job has changed"
            if job.ended:
                self.ended[job_id] = job
                assert (job.state == "completed") == (job.error is None) == bool(job.files)
            for file in job.files:
                named.add(file.name)
                content = self.rig.service.files.path(file.name).read_bytes()
                assert hashlib.sha256(content).hexdigest() == file.sha256
        for job_id, tenant in self.gone.items():
            assert await self.rig.jobs.get(tenant, job_id) is None, "a deleted job is back"
        assert set(self.rig.kept()) == named, "there are files of no job"
        unfinished = len(self.rig.jobs._live)
        assert self.rig.service.admission.load().count == unfinished
        assert len(self.workers.running) == min(LIMIT, unfinished)

    def teardown(self) -> None:
        try:
            if hasattr(self, "rig"):
                self.do(self._all_end())
        finally:
            self.runner.close()
            shutil.rmtree(self.root)

    async def _all_end(self) -> None:
        try:
            while self.rig.jobs._live:
                self.workers.step()
                await self.settle()
            await self._look()
            assert set(self.ended) == set(self.accepted), "a job is stuck"
            assert self.rig.spooled() == []
        finally:
            await self.context.__aexit__(None, None, None)


TestLives = Lives.TestCase
TestLives.settings = settings(
    max_examples=12,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
