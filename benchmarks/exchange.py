"""What ranks say to each other: `python -m benchmarks.exchange tensor=2 ulysses=2 ring=2 pipe=2 cfg=2`.

Bytes are those that the first rank has sent, as the system counts them, for each step more of a request; beside them
stands what the textbook says for one row (Linux only, gloo). Then what a plan costs that rank 0 sends at every tick
with so many states alive: from writing it down until every rank has said that it has it, at a barrier of gloo; beside
that, the same for a broadcast of gloo that says nothing.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import struct
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.parallel import division
from omnimuse import Config, DiffusionParams, ModelConfig, Omni, ParallelConfig
from omnimuse.attention.layer import Attention
from omnimuse.parallel.collectives import broadcast_bytes, meet
from omnimuse.parallel.mesh import Mesh
from omnimuse.worker.build import SHAPES, begin, run
from omnimuse.worker.plan import TickPlan, encode, fingerprint

STEPS = 4
SENT = 200  # where `tcpi_bytes_sent` lies in what TCP_INFO tells
TICKS = 500
PATCHES = 64  # of the demo model's picture


def sent() -> int:
    """Bytes that this process has sent over TCP connections that are open."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as known:
                if known.family in (socket.AF_INET, socket.AF_INET6) and known.type == socket.SOCK_STREAM:
                    told = known.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SENT + 8)
                    total += struct.unpack_from("Q", told, SENT)[0] if len(told) >= SENT + 8 else 0
        except OSError:  # closed meanwhile, or not connected
            continue
    return total


def measured(model: str, parallel: ParallelConfig, guidance: float) -> float:
    """Bytes that the first rank sends for each step more of one request."""
    counts = []
    config = Config(ModelConfig(model, dtype="float32", device="cpu"), parallel=parallel)
    with Omni(model, threads=parallel.ranks, config=config) as omni:
        for steps in (STEPS, STEPS, 3 * STEPS):  # the first meets its partners
            params = DiffusionParams(num_inference_steps=steps, guidance_scale=guidance, seed=1, output_type="latent")
            before = sent()
            [result] = omni.generate("a red circle", params, progress=False)
            if result.error is not None:
                raise result.error
            counts.append(sent() - before)
    return (counts[2] - counts[1]) / (2 * STEPS)


def expected(model: str, parallel: ParallelConfig, tokens: int) -> float:
    """What the textbook says that a rank sends in a step of one row of so many tokens, in float32."""
    under = run(begin(Config(ModelConfig(model, dtype="float32", device="cpu")), Mesh.single()), SHAPES)
    under.resources.close()
    [network] = under.networks.values()
    stack = list(network.stacks().values())[-1]
    site = next(module for module in stack.modules() if isinstance(module, Attention))
    whole = 4.0 * tokens * site.num_heads * site.head_dim  # bytes of a row's hidden states
    blocks, ranks = len(stack.blocks()), parallel.ranks
    others = (ranks - 1) / ranks
    each = {
        "tensor": blocks * 2 * whole * 2 * others,  # two sums a block, each sent around twice
        "ulysses": blocks * 4 * whole / ranks * others,  # queries, keys, values, and what comes of them
        "ring": blocks * 2 * whole * others,  # keys and values of all others
        "pipe": whole,  # to the next rank
        "cfg": 4.0 * PATCHES * 64,  # a prediction: patches of 2 x 2 of 16 channels
    }
    [axis] = [axis for axis in each if getattr(parallel, axis) > 1]
    return each[axis] + (whole / ranks if axis in ("ulysses", "ring") else 0.0)  # and the end of the stack is gathered


def plans(rank: int, ranks: int, folder: Path) -> None:
    """Rank 0 sends plans and the others take them; prints medians beside those of an empty broadcast."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/{ranks}", rank=rank, world_size=ranks)
    torch.set_num_threads(1)
    mesh = Mesh.from_process_group(ParallelConfig(tensor=ranks))
    for states in (1, 16):
        names = tuple(f"{number:032x}/0" for number in range(states))
        nothing = torch.zeros(1)
        seconds: dict[str, list[float]] = {"sent": [], "plan": [], "broadcast": [], "barrier": []}
        for _ in range(TICKS):
            meet(mesh)
            began = time.perf_counter()
            payload = encode(TickPlan(run=names, alive=fingerprint({}))) if rank == 0 else None
            broadcast_bytes(mesh, payload)
            seconds["sent"].append(time.perf_counter() - began)
            meet(mesh)
            seconds["plan"].append(time.perf_counter() - began)
            began = time.perf_counter()
            dist.broadcast(nothing, src=0, group=mesh.control)
            meet(mesh)
            seconds["broadcast"].append(time.perf_counter() - began)
            began = time.perf_counter()
            meet(mesh)
            seconds["barrier"].append(time.perf_counter() - began)
        if rank == 0:
            sent_, plan, empty, barrier = (1000 * statistics.median(found) for found in seconds.values())
            print(
                f"{ranks} ranks, {states:2} states: a plan is sent in {sent_:.3f} ms, and had by all in {plan:.3f} ms, "
                f"an empty broadcast {empty:.3f} ms, a barrier alone {barrier:.3f} ms; ratio {plan / empty:.2f}",
                flush=True,
            )
    mesh.close()
    os._exit(0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("divisions", nargs="*", help="such as tensor=2; one axis each")
    parser.add_argument("--model", default="omnimuse/shapes")
    parser.add_argument("--tokens", type=int, default=96, help="of a row: those of the picture and the text (96)")
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 4], help="to which plans are sent (2 4)")
    args = parser.parse_args()
    if args.divisions and not sys.platform.startswith("linux"):
        raise SystemExit("bytes are counted as Linux tells them; leave the divisions out")
    for parallel in map(division, args.divisions):
        found = measured(args.model, parallel, 3.0 if parallel.cfg > 1 else 0.0)
        wanted = expected(args.model, parallel, args.tokens)
        print(f"{parallel!s:12} {found / 1000:9.1f} kB a step; formula {wanted / 1000:9.1f} kB; {found / wanted:.2f}")
    with tempfile.TemporaryDirectory() as folder:
        for ranks in args.ranks:
            mp.spawn(plans, args=(ranks, Path(folder)), nprocs=ranks)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
