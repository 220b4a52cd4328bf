"""What a tick costs besides its network: `python -m benchmarks.tick`.

Runs a near-empty network (one layer of width 96) with 1, 4 and 16 requests in flight, and takes away from every tick
the time of the same forward called directly, in the same run, alternating. What remains is the host's work: scheduling,
rows, grouping, guidance, solver, events.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from omnimuse import Ask, Config, DiffusionParams, ModelConfig
from omnimuse.core.config import ScheduleConfig
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.pipeline.rows import forward, group
from omnimuse.pipeline.stage import Loop


def main() -> None:
    """Print one line per number of requests in flight."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="steps per request (default: 200)")
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    from tests.checkpoints import z_image

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = z_image.build(Path(folder) / "tiny", layers=1)
        model, schedule = ModelConfig(str(checkpoint), dtype="float32", device="cpu"), ScheduleConfig(company="always")
        engine = start(Config(model, schedule=schedule))
        print("requests   tick ms   forward ms   host ms a tick   host ms a request")
        for requests in (1, 4, 16):
            tick, network = measure(engine, requests, steps)
            host = tick - network
            print(f"{requests:8} {tick:9.3f} {network:12.3f} {host:16.3f} {host / requests:19.3f}")
        engine.close()


def measure(engine: Engine, requests: int, steps: int) -> tuple[float, float]:
    """Median milliseconds of a tick, and of its forwards called alone, with `requests` in flight."""
    params = DiffusionParams(num_inference_steps=steps, guidance_scale=0.0, height=32, width=32, output_type="latent")
    for _ in range(requests):
        engine.submit(engine.make_request(Ask("a circle", params)))
    while not all(state.plan for state in engine.runner.states.values()) or not engine.runner.states:
        engine.tick()
    ticks, forwards = [], []
    for _ in range(steps - 5):
        began = time.perf_counter()
        engine.tick()
        ticks.append(time.perf_counter() - began)
        forwards.append(_forward_alone(engine))
    while not engine.idle:
        engine.tick()
    return 1000 * statistics.median(ticks), 1000 * statistics.median(forwards)


@torch.inference_mode()
def _forward_alone(engine: Engine) -> float:
    pipeline = engine.runner.pipeline
    [loop] = [stage for stage in pipeline.stages if isinstance(stage, Loop)]
    rows = [row for state in engine.runner.states.values() for row in pipeline.rows(loop, state)]
    parts = group(pipeline.ctx, rows)
    began = time.perf_counter()
    for part in parts:
        forward(pipeline.ctx, part)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
