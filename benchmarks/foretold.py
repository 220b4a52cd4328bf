"""What a request is foretold to take, over what it then takes, for every family that lets people choose a size.

    python -m benchmarks.foretold [-k FLUX] [--side 1024] [--dtype bfloat16]

Tiny random checkpoints on a CPU, and the demo model. Taken is what torch allocated, and beside it what the process came
to hold, as Linux counts it: what a library's convolution works with is part of that alone.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from omnimuse.core.config import Config, DecodeConfig, ModelConfig
from omnimuse.core.errors import RequestError
from omnimuse.core.machine import resident
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask, Request
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import finished, start
from omnimuse.worker.failures import free_memory
from omnimuse.worker.place import most_allocated
from tests.checkpoints.families import ALLROUNDERS, FAMILIES

DEMO = "omnimuse/shapes"


def requests(engine: Engine, asks: list[Ask], side: int) -> Iterator[Request]:
    """The first of `asks` that can have such a side, or of a sound the longest; nothing if none can."""
    limits = engine.door.limits
    step = limits.size_multiple
    for ask in asks:
        assert isinstance(ask.params, DiffusionParams)
        with suppress(RequestError):
            if limits.sound and engine.door.spec.medium == "audio":
                params = replace(ask.params, seconds=limits.sound.seconds)
            else:
                params = replace(ask.params, width=side // step * step, height=side // step * step)
            yield engine.make_request(replace(ask, params=params))
            return


def most_resident(work: Callable[[], object]) -> int:
    """The bytes that this process comes to hold while it does `work`, beside those before."""
    free_memory(torch.device("cpu"))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the most is counted from now on
    before = resident()
    work()
    [most] = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
    return int(most) * 1024 - before


def compare(engine: Engine, request: Request) -> tuple[int, int, int]:
    """The bytes that are foretold, those that torch allocates when it is drawn, and those that the process takes."""
    engine.foretelling.learn(request)
    draw = partial(finished, engine, request)
    took = most_allocated(engine.runner.pipeline.ctx.device, draw)
    assert took is not None
    return engine.foretelling.takes(request, engine.space.coming), max(took.values()), most_resident(draw)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-k", nargs="*", default=[""], help="families whose names have one of these in them")
    parser.add_argument("--side", type=int, default=1024, help="pixels a side")
    parser.add_argument("--tiling", action="store_true", help="decode in tiles where there are some")
    parser.add_argument("--tile", type=int, metavar="PIXELS", help="of so many pixels a side, and not the usual ones")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| family | foretold, MiB | taken | ratio | held | ratio |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        families = (*FAMILIES, *ALLROUNDERS)
        wishes = {family.name: [Ask(wish.asked, wish.params) for wish in family.wishes] for family in families}
        for name, asks in {DEMO: [Ask("a red circle", DiffusionParams(num_inference_steps=2))], **wishes}.items():
            if not any(part.lower() in name.lower() for part in options.k):
                continue
            [family] = [each for each in families if each.name == name] or [None]
            model = DEMO if family is None else str(family.build(Path(folder) / name))
            decode = DecodeConfig(options.tiling, options.tile)
            engine = start(Config(ModelConfig(model, dtype=options.dtype, device="cpu"), decode=decode))
            for request in requests(engine, asks, options.side):
                foretold, *took = compare(engine, request)
                sizes = " | ".join(f"{each / 2**20:.0f} | {foretold / each:.2f}" for each in took)
                print(f"| {name} | {foretold / 2**20:.0f} | {sizes} |", flush=True)
            engine.close()


if __name__ == "__main__":
    main()
