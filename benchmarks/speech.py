"""How soon a sound begins, and how long its whole takes: `python -m benchmarks.speech`.

A random model that speaks, with frames of 16 codes and a codec of 1920 samples a frame as the published ones have, says
so many frames, one request and four at a time. Both are seconds of the clock of the same requests: until the first
piece of the slowest of them, and until the last is whole, which is when a server without streams could send it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from omnimuse import Ask, Config, DiffusionParams, ModelConfig
from omnimuse.core.config import ScheduleConfig
from omnimuse.core.output import Chunk, Failed
from omnimuse.core.params import SpeechParams
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from tests.checkpoints import qwen3_tts

TALKER = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6, "num_code_groups": 16}
PREDICTOR = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_code_groups": 16}
CODEC = {
    "num_quantizers": 16,
    "codebook_dim": 64,
    "latent_dim": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "sliding_window": 72,
    "upsample_rates": [8, 5, 4, 3],
    "decoder_dim": 128,
}


def spoken(engine: Engine, count: int, frames: int) -> tuple[float, float]:
    """Seconds until every one of `count` requests has begun to sound, and until all are whole."""
    extra = SpeechParams(temperature=0, min_tokens=frames + 1, max_tokens=frames + 1)
    began, heard, first = time.perf_counter(), set[str](), 0.0
    for seed in range(count):
        ask = Ask("a red circle on a white square", DiffusionParams(seed=seed, extra=extra), chunks=True)
        engine.submit(engine.make_request(ask))
    while not engine.idle:
        for event in engine.tick():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Chunk) and event.request_id not in heard:
                heard.add(event.request_id)
                first = time.perf_counter() - began
    return first, time.perf_counter() - began


def main() -> None:
    """Print one line for each number of requests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=50, help="of each sound (default: 50, four seconds)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="(default: 1)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("| at a time | first sound | whole | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as home:
        folder = qwen3_tts.build(Path(home) / "speaks", talker=TALKER, predictor=PREDICTOR, codec=CODEC)
        config = Config(
            ModelConfig(str(folder), dtype="float32", device="cpu"), schedule=ScheduleConfig(company="always")
        )
        engine = start(config)
        torch.set_num_threads(args.threads)
        spoken(engine, 1, 8)
        for count in (1, 4):
            rounds = [spoken(engine, count, args.frames) for _ in range(args.rounds)]
            first, whole = (median(times) for times in zip(*rounds, strict=True))
            print(f"| {count} | {first:.2f} s | {whole:.2f} s | {first / whole:.2f} |")
        engine.close()


if __name__ == "__main__":
    main()
