"""Ranks on other machines: agents join, run them, and are missed; with real processes that hold no model."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import zmq

from omnimuse import __version__
from omnimuse.core.config import Config, LaunchConfig, ModelConfig, ParallelConfig
from omnimuse.core.errors import ConfigError, EngineDeadError, PoisonError
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask
from omnimuse.deploy.agents import Agent, Agents, Hello, Start, read_key
from omnimuse.deploy.child import Settings, read_settings
from omnimuse.deploy.folder import PREFIX
from omnimuse.deploy.pool import Pool, PoolPlan
from omnimuse.deploy.ranks import start_ranks
from omnimuse.deploy.scale import Scale
from omnimuse.deploy.wire import Finished, Form, Ready, encode
from omnimuse.worker.find import Found, find
from tests.processes import children
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[3]
FAKE = (sys.executable, str(ROOT / "tests" / "server" / "fake_process.py"))
PATIENCE = 30.0
KEY = "an agent's key of some length"
ONE = Scale()


@pytest.fixture(scope="module")
def found() -> Found:
    return find(Config(ModelConfig("omnimuse/shapes", device="cpu")))


@asynccontextmanager
async def pool_of_agents(
    found: Found, spool: Path, scale: Scale = ONE, cfg: int = 2, faults: str = ""
) -> AsyncIterator[tuple[Pool, int]]:
    """A pool whose second ranks are run by agents, or whose only ones are (`cfg` of 1), and the port where agents join;
    a group draws one at a time.
    """
    key = spool.parent / "key"
    key.write_text(KEY)
    launch = LaunchConfig("agent", "127.0.0.1:0", key)
    spool.mkdir()
    schedule = replace(found.config.schedule, max_running=1)
    parallel = ParallelConfig(cfg=cfg, wait=PATIENCE, launch=launch)
    config = replace(found.config, parallel=parallel, schedule=schedule)
    pool = Pool(PoolPlan(config, found.spec, spool, scale, faults=faults, command=FAKE))
    await pool.start()
    try:
        assert isinstance(pool.launcher, Agents)
        yield pool, pool.launcher.port
    finally:
        await pool.close(5.0)


@asynccontextmanager
async def agent(port: int, seats: int = 1) -> AsyncIterator[asyncio.Task[None]]:
    """An agent, as another machine would run it."""
    task = asyncio.create_task(Agent(KEY, seats, FAKE).join("127.0.0.1", port))
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, EngineDeadError):
            await task


async def draw(pool: Pool, found: Found, steps: int = 3, prompt: str = "a ring") -> Finished:
    params = DiffusionParams(num_inference_steps=steps, seed=7)
    request = found.door.make_request(Ask(prompt, params, timeout=PATIENCE), time.monotonic(), 0)
    updates = [update async for update in pool.run(request, Form("PNG"))]
    assert isinstance(updates[-1], Finished)
    return updates[-1]


def test_the_other_ranks_run_at_agents_and_are_started_at_another_one_when_theirs_is_gone(
    found: Found, tmp_path: Path
) -> None:
    async def main() -> None:
        async with pool_of_agents(found, tmp_path / "spool") as (pool, port):
            assert not pool.ready
            async with agent(port):
                assert (await draw(pool, found)).files
                leader = pool.status()[0].pid or 0
                [other] = [pid for pid in children(os.getpid(), "fake_process.py") if pid != leader]
                os.kill(other, signal.SIGKILL)
                await until(lambda: pool.status()[0].restarts == 1)
                assert "its rank 1 was ended by SIGKILL at 127.0.0.1" in pool.status()[0].reason
                assert (await draw(pool, found)).files
            await until(lambda: pool.status()[0].restarts == 2)
            async with agent(port):
                assert (await draw(pool, found)).files

    asyncio.run(main())


@pytest.mark.costly
def test_a_group_is_added_while_requests_wait_as_soon_as_there_is_a_seat_for_it(found: Found, tmp_path: Path) -> None:
    async def main() -> None:
        scale = Scale(1, 2, grow_after=0.3, shrink_after=0.6)
        async with pool_of_agents(found, tmp_path / "spool", scale) as (pool, port), agent(port):
            await until(lambda: pool.ready)
            drawing = [asyncio.create_task(draw(pool, found, steps=150)) for _ in range(4)]
            await until(lambda: [status.state for status in pool.status()] == ["ready", "starting"])
            async with agent(port):
                await until(lambda: [status.running > 0 for status in pool.status()] == [True, True])
                assert all(made.files for made in await asyncio.gather(*drawing))
                await until(lambda: len(pool.status()) == 1)
                assert pool.status()[0].restarts == 0

    asyncio.run(main())


def test_a_group_of_one_rank_is_at_an_agent_whole_and_what_it_makes_comes_to_the_front(
    found: Found, tmp_path: Path
) -> None:
    async def main() -> None:
        async with pool_of_agents(found, tmp_path / "spool", Scale.fixed(2), cfg=1) as (pool, port), agent(port, 2):
            await until(lambda: [status.state for status in pool.status()] == ["ready", "ready"])
            assert [status.pid for status in pool.status()] == [None, None]
            made = [each.files[0] for each in await asyncio.gather(*(draw(pool, found) for _ in range(4)))]
            assert {(tmp_path / "spool" / file.name).read_bytes() for file in made} == {b"seed 7"}
            assert len(list((tmp_path / "spool").iterdir())) == 4
            assert not list(Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{made[0].name}"))

    asyncio.run(main())


@pytest.mark.costly(turns=3)
def test_a_request_in_progress_at_an_agent_that_vanishes_is_drawn_at_another_one(found: Found, tmp_path: Path) -> None:
    async def main() -> None:
        async with pool_of_agents(found, tmp_path / "spool", cfg=1) as (pool, port):
            async with agent(port) as working:
                await until(lambda: pool.ready)
                drawing = [asyncio.create_task(draw(pool, found, steps=100)) for _ in range(2)]
                await until(lambda: pool.status()[0].running == 2)
                working.cancel()
            await until(lambda: pool.status()[0].restarts == 1)
            assert "at 127.0.0.1" in pool.status()[0].reason
            async with agent(port):
                assert all(made.files for made in await asyncio.gather(*drawing))

    asyncio.run(main())


def test_a_request_that_ends_its_worker_at_every_agent_is_given_up_and_no_other(found: Found, tmp_path: Path) -> None:
    async def main() -> None:
        faults = "worker.step:3:kill:poison"
        spool = tmp_path / "spool"
        async with pool_of_agents(found, spool, Scale.fixed(2), cfg=1, faults=faults) as (pool, port):
            async with agent(port), agent(port):
                bad, *good = await asyncio.gather(
                    *(draw(pool, found, 20, prompt) for prompt in ("poison", "a ring", "a ring")),
                    return_exceptions=True,
                )
                assert isinstance(bad, PoisonError), bad
                assert all(isinstance(made, Finished) for made in good), good

    asyncio.run(main())


@contextmanager
def says_it_is_ready(address: str, key: str) -> Iterator[None]:
    """Somebody at the socket of a worker, as far as it is listened to."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDTIMEO, 0)
        if key:
            socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
            socket.curve_serverkey = key.encode()
        socket.connect(address)
        with suppress(zmq.Again):
            socket.send(encode(Ready(0.0, {"dtype": "float32", "device": "cpu"})))
        yield


def test_nobody_without_the_key_of_a_worker_elsewhere_is_heard(found: Found, tmp_path: Path) -> None:
    async def main() -> None:
        async with pool_of_agents(found, tmp_path / "spool", cfg=1) as (pool, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(msgspec.json.encode(Hello(KEY, __version__, 1)) + b"\n")
            while b'"start"' not in (said := await reader.readline()):
                pass
            settings = read_settings(msgspec.json.decode(said, type=Start).settings.encode())
            other = zmq.curve_keypair()[0].decode()
            for key, heard in (("", False), (other, False), (settings.key, True)):
                with says_it_is_ready(settings.address, key):
                    await (until(lambda: pool.ready) if heard else asyncio.sleep(0.3))
                    assert pool.ready == heard
            writer.close()

    asyncio.run(main())


def test_each_rank_at_an_agent_has_a_seat_of_its_own(found: Found, tmp_path: Path) -> None:
    async def main() -> None:
        command = (
            sys.executable,
            "-c",
            f"import sys, time; open({str(tmp_path / 'seats')!r}, 'a').write(sys.stdin.readline()); time.sleep(60)",
        )
        agents = Agents(("127.0.0.1", 0), KEY, PATIENCE)
        await agents.open()
        task = asyncio.create_task(Agent(KEY, 2, command).join("127.0.0.1", agents.port))

        def seats() -> list[tuple[int, int]]:
            text = (tmp_path / "seats").read_text() if (tmp_path / "seats").exists() else ""
            told = text.rpartition("\n")[0].splitlines()  # of the last one, a part may be there
            return [(each.seat, each.seats) for each in (read_settings(line.encode()) for line in told)]

        try:
            asked = Settings(found.config, "", Path(), "0-1", seat=5, seats=8)
            first, _ = await agents.start(asked), await agents.start(asked)
            await until(lambda: sorted(seats()) == [(0, 2), (1, 2)])
            first.kill()
            await first.wait()
            await agents.start(asked)
            await until(lambda: sorted(seats()) == [(0, 2), (0, 2), (1, 2)])
        finally:
            await agents.close()
            with suppress(EngineDeadError):
                await task

    asyncio.run(main())


def test_ranks_are_lost_with_an_agent_that_says_nothing_any_more(found: Found, tmp_path: Path) -> None:
    async def main() -> None:
        async with pool_of_agents(found, tmp_path / "spool") as (pool, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(msgspec.json.encode(Hello(KEY, __version__, 1)) + b"\n")
            while b'"start"' not in await reader.readline():
                pass
            writer.close()  # as of a machine that was switched off
            await until(lambda: pool.status()[0].restarts == 1)
            assert "its rank 1 was lost with its agent at 127.0.0.1" in pool.status()[0].reason

    asyncio.run(main())


def test_an_agent_that_loses_its_front_ends_its_ranks(found: Found, tmp_path: Path) -> None:
    async def main() -> None:
        async with pool_of_agents(found, tmp_path / "spool") as (pool, port), agent(port) as working:
            await until(lambda: pool.ready)
            await pool.close(5.0)
            with pytest.raises(EngineDeadError, match="is gone; its ranks here were ended"):
                await working
            assert not children(os.getpid(), "fake_process.py")

    asyncio.run(main())


def test_who_does_not_know_the_key_or_has_another_version_is_refused(found: Found, tmp_path: Path) -> None:
    async def main() -> None:
        async with pool_of_agents(found, tmp_path / "spool") as (pool, port):
            with pytest.raises(ConfigError, match="the key is not that of --agent-key-file"):
                await Agent("another key", 1, FAKE).join("127.0.0.1", port)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(msgspec.json.encode(Hello(KEY, "0.0", 1)) + b"\n")
            assert f"the front is omnimuse {__version__}, this is 0.0".encode() in await reader.readline()
            writer.close()
            assert not pool.ready

    asyncio.run(main())


def test_a_rank_for_which_no_agent_comes_is_told(found: Found) -> None:
    async def main() -> None:
        agents = Agents(("127.0.0.1", 0), "", patience=0.1)
        await agents.open()
        try:
            with pytest.raises(OSError, match=r"no agent has a free seat after 0\.1 s .*omnimuse worker --join"):
                await agents.start(Settings(found.config, "", Path(), "0-1", rank=1))
        finally:
            await agents.close()

    asyncio.run(main())


def test_what_makes_no_sense_about_launchers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--launcher slurm is not known; use one of local, agent, ray"):
        LaunchConfig("slurm")
    with pytest.raises(ConfigError, match="starts processes here"):
        LaunchConfig("local", "127.0.0.1:1")
    with pytest.raises(ConfigError, match="launcher=ray is for servers"):
        start_ranks(Config(ModelConfig("omnimuse/shapes"), parallel=ParallelConfig(launch=LaunchConfig("ray"))))
    with pytest.raises(ConfigError, match=r"anybody who reaches 10\.0\.0\.1 could join"):
        LaunchConfig("agent", "10.0.0.1:7000")
    with pytest.raises(ConfigError, match=r"--launch-address 0\.0\.0\.0:7000 names no machine"):
        LaunchConfig("agent", "0.0.0.0:7000", tmp_path / "key")
    with pytest.raises(ConfigError, match="is no address; write HOST:PORT"):
        LaunchConfig("agent", "here")
    short = tmp_path / "key"
    short.write_text("short\n")
    with pytest.raises(ConfigError, match="has 5 characters; use at least 16"):
        read_key(short)
