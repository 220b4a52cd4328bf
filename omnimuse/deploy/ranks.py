"""Ranks of one engine on this machine: the first in this process, the others in processes that it starts.

`Omni` starts engines by `start_ranks`. The others run `python -m omnimuse.deploy.ranks`, read what they need from their
standard input, and follow the first until it closes. They end with the process that started them, however that ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from omnimuse.core.config import Config, LaunchConfig
from omnimuse.core.environment import Environment
from omnimuse.core.errors import ConfigError, OmnimuseError
from omnimuse.worker.find import find

if TYPE_CHECKING:
    from omnimuse.engine.engine import Engine

PR_SET_PDEATHSIG = 1
FAREWELL = 10.0  # seconds that a rank may take to end
COMMAND = (sys.executable, "-P", "-m", "omnimuse.deploy.ranks")  # -P: as for workers


class Rank(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What makes a process rank number `rank` of `ranks`, on number `seat` of the `seats` of its machine.

    `meeting` is where the ranks find each other: file:// and a file that does not exist yet, or tcp://HOST:PORT, where
    rank 0 listens.
    """

    config: Config
    rank: int = 0
    ranks: int = 1
    meeting: str = ""
    seat: int = 0
    seats: int = 1

    def encode(self) -> bytes:
        """This as one line of JSON."""
        return msgspec.json.encode(self, enc_hook=str) + b"\n"

    @staticmethod
    def decode(line: bytes) -> Rank:
        """What `encode` made."""
        return msgspec.json.decode(line, type=Rank, dec_hook=lambda kind, value: kind(value))

    def build(self, gone: Callable[[], str] | None = None) -> Engine:
        """The engine of this rank; never returns on ranks other than 0, which follow and end with SystemExit.

        Nobody is waited for any more once `gone` tells of a rank that has ended.
        """
        find(self.config)  # what is missing is told before torch is imported
        import torch

        from omnimuse.engine.local import start
        from omnimuse.parallel.meeting import join, store_at

        config, backend, named = self.config, "gloo", self.config.model.device.split(",")
        device, alone = named[self.rank % len(named)], len({*named}) == self.ranks > 1
        if torch.cuda.is_available() and device in ("auto", "cuda"):
            device, alone = f"cuda:{self.seat % torch.cuda.device_count()}", True
        if alone and device.startswith("cuda:") and int(device[5:]) < torch.cuda.device_count():  # or it is refused
            torch.cuda.set_device(device)
            backend = "nccl"
        model, host = replace(config.model, device=device), replace(config.host, processes=self.seats)
        config = replace(config, model=model, host=host)
        if self.ranks > 1:
            store = store_at(self.meeting, self.rank, config.parallel)
            join(store, self.rank, config.parallel, backend, gone)
        return start(config, gone)


def start_ranks(config: Config) -> Engine:
    """An engine in this process, with the other ranks in processes that end when it is closed.

    Where torchrun has started the ranks, they are taken as they are. ConfigError if this process has ranks already.
    """
    from omnimuse.engine.local import start

    if config.parallel.launch != LaunchConfig():
        raise ConfigError(
            f"launcher={config.parallel.launch.launcher} is for servers (omnimuse serve): a script starts its ranks on "
            "its own machine, or is started by torchrun on several; leave it out"
        )
    if config.parallel.ranks == 1 or Environment.read().world_size > 1:
        return start(config)
    find(config)  # what is missing is told before torch is imported
    import torch.distributed as dist

    from omnimuse.parallel.mesh import Mesh
    from omnimuse.worker.build import SHAPES, begin, run

    if dist.is_initialized():
        raise ConfigError(
            f"parallel {config.parallel} cannot be: this process is already one of several ranks; close the engine "
            "that they work for first"
        )
    run(begin(config, Mesh.planned(config.parallel)), SHAPES).resources.close()  # refusals, while there is one process
    Environment.meet_here()
    with ExitStack() as opened:
        folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="omnimuse-ranks-"))
        ranks = config.parallel.ranks
        first = Rank(config, ranks=ranks, meeting=f"file://{folder}/meeting", seats=ranks)
        opened.callback(_leave)
        others = dict[int, subprocess.Popen[bytes]]()
        for number in range(1, first.ranks):
            others[number] = _started(msgspec.structs.replace(first, rank=number, seat=number))
            opened.callback(_end, others[number])
        engine = first.build(partial(_gone, others))
        engine.runner.resources.callback(opened.pop_all().close)
        return engine


def _started(rank: Rank) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=Environment.for_workers())
    assert process.stdin is not None
    process.stdin.write(rank.encode())
    process.stdin.flush()
    return process


def _gone(others: Mapping[int, subprocess.Popen[bytes]]) -> str:
    """Which of the other ranks has ended, and how; empty while all of them live."""
    return next(
        (f"rank {rank} {how(status)}" for rank, each in others.items() if (status := each.poll()) is not None), ""
    )


def how(status: int) -> str:
    """The exit status of a process, in words."""
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a rank that was told to stop; one that does not, or was not, is killed."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(FAREWELL)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _leave() -> None:
    """This process is a rank no longer, and may become one again."""
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    if dist.is_initialized():
        dist.destroy_process_group()
    distributed_c10d._world.group_count = 0  # by which ranks find a group; torch leaves it where one was never made


# -- in a process of the others ---------------------------------------------------------------------------------------


def follow(build: Any, rank: int) -> int:
    """Execute rank 0's plans until it stops; the exit status."""
    try:
        build()
    except SystemExit:
        return 0
    except (OmnimuseError, OSError, RuntimeError, ValueError) as error:
        print(f"omnimuse: rank {rank} ends: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return 1


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent is gone, even while it is stopped; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def watch_parent() -> None:
    """End this process at once when the parent is gone, whatever it is doing."""
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(1)


def main() -> None:
    """Be one of the other ranks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    rank = Rank.decode(sys.stdin.buffer.readline())
    threading.Thread(target=watch_parent, name="omnimuse-parent", daemon=True).start()
    status = follow(rank.build, rank.rank)
    sys.stderr.flush()
    os._exit(status)  # threads in the midst of something have nothing that must be kept


if __name__ == "__main__":
    main()
