"""Agents: other machines that offer to run ranks. Both ends of what they say to each other.

The front listens (`Agents`, a `Launcher`); on every other machine `omnimuse worker --join` runs an `Agent`, which
starts and ends processes as it is told. Lines of JSON over TCP. An agent that says nothing for long is gone, and the
ranks it had are lost; an agent that loses its front ends its ranks. No torch.
"""

from __future__ import annotations

import asyncio
import hmac
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import msgspec
from msgspec.structs import replace

from omnimuse import __version__
from omnimuse.core.errors import ConfigError, EngineDeadError, reason
from omnimuse.deploy.child import Settings, read_settings, write_settings
from omnimuse.deploy.launch import Local, Started
from omnimuse.deploy.process import COMMAND
from omnimuse.deploy.station import COMMAND as STATION

PERIOD = 1.0  # seconds between beats
SILENCE = 15.0  # seconds without a word after which an agent, or a front, is gone
GREETING = 5.0  # seconds that somebody who connects has to say who they are
LINE = 2**20  # bytes of a line, at most
LEAST_KEY = 16


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="hello"):
    """What an agent says first: the key, its version, and how many ranks it takes at a time."""

    key: str
    version: str
    seats: int


class Alive(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="alive"):
    """There is nothing to say."""


class Refused(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="refused"):
    """Why an agent cannot join."""

    why: str


class Start(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="start"):
    """Start rank number `rank`, as `settings` say (`process.write_settings`)."""

    rank: int
    settings: str


class Kill(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="kill"):
    """End a rank."""

    rank: int


class Over(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="over"):
    """A rank has ended; how."""

    rank: int
    how: str


ToFront = Hello | Alive | Over
ToAgent = Alive | Refused | Start | Kill


async def tell(writer: asyncio.StreamWriter, message: ToFront | ToAgent) -> None:
    """Send one line."""
    with suppress(ConnectionError):  # whoever reads notices
        writer.write(msgspec.json.encode(message) + b"\n")
        await writer.drain()


@dataclass(eq=False)
class Seated:
    """A rank at an agent, as the front sees it."""

    host: Joined
    number: int
    ended: asyncio.Future[str]
    pid: int | None = None

    async def wait(self) -> str:
        """How it ended."""
        return await asyncio.shield(self.ended)

    def kill(self) -> None:
        """Have it ended; it is over when the agent says so, or is gone."""
        if not self.ended.done():
            self.host.say(Kill(self.number))


@dataclass(eq=False)
class Joined:
    """An agent that has joined."""

    name: str
    seats: int
    writer: asyncio.StreamWriter
    ranks: dict[int, Seated] = field(default_factory=dict)

    @property
    def free(self) -> int:
        """How many ranks it could take."""
        return self.seats - len(self.ranks)

    def say(self, message: ToAgent) -> None:
        """Send without waiting; an agent that does not read is found silent."""
        if not self.writer.is_closing():
            self.writer.write(msgspec.json.encode(message) + b"\n")


class Agents:
    """The front's side. `open` it before anything is started; ranks wait `patience` seconds for an agent."""

    def __init__(self, address: tuple[str, int], key: str, patience: float) -> None:
        self.meeting = address[0]
        self._address, self._key, self._patience = address, key, patience
        self._joined: list[Joined] = []
        self._news = asyncio.Condition()
        self._numbers = count(1)
        self._server: asyncio.Server | None = None
        self._talks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """Where agents join."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def open(self) -> None:
        """Listen for agents; ConfigError where that cannot be."""
        try:
            self._server = await asyncio.start_server(self._meet, *self._address, limit=LINE)
        except OSError as error:
            raise ConfigError(f"agents cannot join at {self._address[0]}:{self._address[1]}: {error}") from None

    async def start(self, settings: Settings) -> Started:
        """A rank at the agent with the most free seats, when there is one; OSError if none comes in time."""
        try:
            async with asyncio.timeout(self._patience), self._news:
                await self._news.wait_for(lambda: any(each.free > 0 for each in self._joined))
                host = max(self._joined, key=lambda each: each.free)
        except TimeoutError:
            raise OSError(
                f"no agent has a free seat after {self._patience:g} s ({len(self._joined)} have joined); start one "
                f"with `omnimuse worker --join HOST:{self.port}` on another machine"
            ) from None
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        number = next(self._numbers)
        rank = host.ranks[number] = Seated(host, number, ended)
        host.say(Start(number, write_settings(settings).decode()))
        return rank

    async def close(self) -> None:
        """Nobody may join any more, and those who have are let go."""
        if self._server is not None:
            self._server.close()
        for talk in self._talks:
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        try:
            await self._talk(reader, writer)
        except (TimeoutError, OSError, EOFError, ValueError, msgspec.MsgspecError):
            pass  # gone, or no agent of ours: its ranks are told below
        except asyncio.CancelledError:
            pass  # closed
        finally:
            self._talks.discard(task)
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(GREETING):
            hello = msgspec.json.decode(await reader.readline(), type=Hello)
        if not hmac.compare_digest(hello.key.encode(), self._key.encode()):
            await tell(writer, Refused("the key is not that of --agent-key-file"))
            return
        if hello.version != __version__:
            await tell(writer, Refused(f"the front is omnimuse {__version__}, this is {hello.version}; use the same"))
            return
        host = Joined(str(writer.get_extra_info("peername")[0]), hello.seats, writer)
        async with self._news:
            self._joined.append(host)
            self._news.notify_all()
        beats = asyncio.create_task(_beat(writer))
        try:
            await self._hear(host, reader)
        finally:
            beats.cancel()
            self._joined.remove(host)
            for rank in host.ranks.values():
                if not rank.ended.done():
                    rank.ended.set_result(f"was lost with its agent at {host.name}")

    async def _hear(self, host: Joined, reader: asyncio.StreamReader) -> None:
        while True:
            async with asyncio.timeout(SILENCE):
                line = await reader.readline()
            if not line:
                return
            said = msgspec.json.decode(line, type=Alive | Over)
            if isinstance(said, Over) and (rank := host.ranks.pop(said.rank, None)) is not None:
                if not rank.ended.done():
                    rank.ended.set_result(f"{said.how} at {host.name}")
                async with self._news:
                    self._news.notify_all()


async def _beat(writer: asyncio.StreamWriter) -> None:
    while True:
        await tell(writer, Alive())
        await asyncio.sleep(PERIOD)


# -- on another machine ------------------------------------------------------------------------------------------------


class Agent:
    """Runs up to `seats` ranks, or processes of pools, for the front that it joined. `command` is what a rank runs."""

    def __init__(self, key: str, seats: int, command: Sequence[str] = COMMAND) -> None:
        self._key, self._seats = key, seats
        self._local, self._stations = Local(command), Local(STATION)
        self._ranks: dict[int, Started] = {}
        self._taken: dict[int, int] = {}
        self._waits: set[asyncio.Task[None]] = set()

    async def join(self, host: str, port: int) -> None:
        """Work for the front there until it is gone; EngineDeadError then, ConfigError if it does not want this one."""
        try:
            reader, writer = await asyncio.open_connection(host, port, limit=LINE)
        except OSError as error:
            raise ConfigError(
                f"nobody answers at {host}:{port} ({error}); is a front there with --launcher agent?"
            ) from None
        await tell(writer, Hello(self._key, __version__, self._seats))
        beats = asyncio.create_task(_beat(writer))
        try:
            await self._obey(reader, writer)
        except (TimeoutError, OSError):
            pass
        finally:
            beats.cancel()
            for rank in self._ranks.values():
                rank.kill()
            await asyncio.gather(*self._waits)
            writer.close()
        raise EngineDeadError(
            f"the front at {host}:{port} is gone; its ranks here were ended; join again once there is one"
        )

    async def _obey(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            async with asyncio.timeout(SILENCE):
                line = await reader.readline()
            if not line:
                return
            said = msgspec.json.decode(line, type=ToAgent)
            if isinstance(said, Refused):
                raise ConfigError(f"the front refuses this agent: {said.why}")
            if isinstance(said, Start):
                await self._start(said, writer)
            elif isinstance(said, Kill) and said.rank in self._ranks:
                self._ranks[said.rank].kill()

    async def _start(self, asked: Start, writer: asyncio.StreamWriter) -> None:
        try:
            settings = replace(read_settings(asked.settings.encode()), seat=self._seat(asked.rank), seats=self._seats)
            launcher = self._local if settings.edge is None else self._stations
            rank = self._ranks[asked.rank] = await launcher.start(settings)
        except (OSError, msgspec.MsgspecError, ConfigError) as error:
            self._taken.pop(asked.rank, None)
            await tell(writer, Over(asked.rank, f"could not be started: {error}"))
            return
        print(
            f"omnimuse: rank {settings.rank} of {settings.ranks} runs as process {rank.pid}",
            file=sys.stderr,
            flush=True,
        )
        wait = asyncio.create_task(self._wait(asked.rank, rank, writer))
        self._waits.add(wait)
        wait.add_done_callback(self._waits.discard)

    def _seat(self, number: int) -> int:
        """The first seat that is free, from now on that rank's: it says which device is its own."""
        seat = self._taken[number] = min(set(range(len(self._taken) + 1)) - set(self._taken.values()))
        return seat

    async def _wait(self, number: int, rank: Started, writer: asyncio.StreamWriter) -> None:
        ended = await rank.wait()
        del self._ranks[number], self._taken[number]
        await tell(writer, Over(number, ended))


def read_key(path: Path | None) -> str:
    """What front and agents must both know: the first line of the file; empty without one."""
    if path is None:
        return ""
    try:
        key = path.read_text(encoding="utf-8").split("\n")[0].strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"the key of agents cannot be read: {reason(error)}") from None
    if len(key) < LEAST_KEY:
        raise ConfigError(f"the key in {path} has {len(key)} characters; use at least {LEAST_KEY}")
    return key
