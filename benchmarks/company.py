"""Requests that come together: first in, first out, always sharing, and ours: `python -m benchmarks.company`.

Four requests of other sizes and steps arrive at once. Printed are the seconds until the last one is done, and the
average over the four, of which people feel the latter; as ratios to first in, first out. The three engines take turns
within one run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.checkpoints import DEMO, RACES, SMALL, Race
from omnimuse import Ask, Config, DiffusionParams, Done, ModelConfig
from omnimuse.core.config import ScheduleConfig
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start

FIFO, ALWAYS, OURS = "first in, first out", "always together", "measured"
SCHEDULES = {
    FIFO: ScheduleConfig(max_running=1, patience=0.0),
    ALWAYS: ScheduleConfig(company="always"),
    OURS: ScheduleConfig(),
}
MIX = ((1.0, 10), (0.5, 4), (0.75, 8), (0.5, 12))
"""Side as a share of the largest, and steps, in the order of arrival."""
WARM = 4
"""Rounds before those that count, in which ours measures what forwards cost alone and in company."""


def main() -> None:
    """Print one line per way to schedule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="shapes", choices=sorted(RACES))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    race = RACES[args.family]
    kind = DEMO if DEMO in race.sizes else SMALL
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = race.build(Path(folder) / "model", kind)
        model = ModelConfig(str(checkpoint), device="cpu")
        engines = {name: start(Config(model, schedule=schedule)) for name, schedule in SCHEDULES.items()}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
        for number in range(-WARM, args.rounds):
            for name, engine in engines.items():
                found = draw(engine, race, race.sizes[kind], number)
                if number >= 0:
                    times[name].append((max(found), statistics.mean(found)))
    last, average = (statistics.median(pair[at] for pair in times[FIFO]) for at in (0, 1))
    print(f"{'':22}{'last, s':>10}{'ratio':>8}{'average, s':>12}{'ratio':>8}")
    for name, pairs in times.items():
        ours = [statistics.median(pair[at] for pair in pairs) for at in (0, 1)]
        print(f"{name:22}{ours[0]:10.3f}{ours[0] / last:8.2f}{ours[1]:12.3f}{ours[1] / average:8.2f}")
    for network, tokens, count, ratio in engines[OURS].runner.forwards.pace.table():
        print(f"measured: {network}, {count} requests of about {tokens} tokens: {ratio:.2f} of the time apart")


def draw(engine: Engine, race: Race, size: tuple[int, int], number: int) -> list[float]:
    """The seconds until each of the four was done."""
    multiple = engine.door.limits.size_multiple
    asks = []
    for share, steps in MIX:
        height, width = (round(side * share / multiple) * multiple for side in size)
        frames = 5 if race.frames else None
        params = DiffusionParams(num_inference_steps=steps, height=height, width=width, num_frames=frames, seed=1)
        asks.append(Ask(f"a picture, number {number}", params))
    began, done = time.perf_counter(), list[float]()
    for ask in asks:
        engine.submit(engine.make_request(ask))
    while not engine.idle:
        done += [time.perf_counter() - began for event in engine.tick() if isinstance(event, Done)]
    return done


if __name__ == "__main__":
    main()
