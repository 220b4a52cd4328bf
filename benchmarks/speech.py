"""How soon a sound begins, and how long its whole takes: `python -m benchmarks.speech`.

A random model that speaks, with frames of 16 codes and a codec of 1920 samples a frame as the published ones have, says
so many frames, one request and four at a time. Both are seconds of the clock of the same requests: until the first
piece of the slowest of them, and until the last is whole, which is when a server without streams could send it.

With `--family` a random model that answers aloud, of the smallest networks, writes so many tokens and says them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from omnimuse import Ask, Config, DiffusionParams, ModelConfig
from omnimuse.core.config import ScheduleConfig
from omnimuse.core.output import Chunk, Failed
from omnimuse.core.params import SpeechParams, make_params
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from tests.checkpoints import qwen3_omni, qwen3_tts, qwen25_omni

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
ROOM = 128
"""Places of a talker beyond its frames."""
TEXT = "a red circle on a white square"
FAMILIES = ("qwen3-tts", "qwen3-omni", "qwen2.5-omni")


def built(family: str, folder: Path, frames: int) -> Path:
    """A checkpoint of `family` in `folder`, which says at least so many `frames`."""
    if family == "qwen3-omni":
        return qwen3_omni.build(folder)
    if family == "qwen2.5-omni":
        return qwen25_omni.build(folder, places=frames + ROOM)
    return qwen3_tts.build(folder, talker=TALKER, predictor=PREDICTOR, codec=CODEC)


def asked(family: str, seed: int, frames: int) -> Ask:
    """Something to say, of so many `frames`, or in so many tokens."""
    if family == "qwen3-tts":
        extra: Any = SpeechParams(temperature=0, min_tokens=frames + 1, max_tokens=frames + 1)
        return Ask(TEXT, DiffusionParams(seed=seed, extra=extra), chunks=True)
    extra = {"modalities": ("text", "audio"), "temperature": 0.8, "min_tokens": frames, "max_tokens": frames}
    return Ask(
        {"messages": [{"role": "user", "content": TEXT}]}, make_params(DiffusionParams(seed=seed), extra), chunks=True
    )


def spoken(engine: Engine, family: str, count: int, frames: int) -> tuple[float, float]:
    """Seconds until every one of `count` requests has begun to sound, and until all are whole."""
    began, heard, first = time.perf_counter(), set[str](), 0.0
    for seed in range(count):
        engine.submit(engine.make_request(asked(family, seed, frames)))
    while not engine.idle:
        for event in engine.tick():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Chunk) and event.medium == "audio" and event.request_id not in heard:
                heard.add(event.request_id)
                first = time.perf_counter() - began
    return first, time.perf_counter() - began


def main() -> None:
    """Print one line for each number of requests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=50, help="of each sound (default: 50, four seconds)")
    parser.add_argument("--family", choices=FAMILIES, default=FAMILIES[0], help="(default: qwen3-tts)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="(default: 1)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("| at a time | first sound | whole | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as home:
        folder = built(args.family, Path(home) / "speaks", args.frames)
        config = Config(
            ModelConfig(str(folder), dtype="float32", device="cpu"), schedule=ScheduleConfig(company="always")
        )
        engine = start(config)
        torch.set_num_threads(args.threads)
        spoken(engine, args.family, 1, 8)
        for count in (1, 4):
            rounds = [spoken(engine, args.family, count, args.frames) for _ in range(args.rounds)]
            first, whole = (median(times) for times in zip(*rounds, strict=True))
            print(f"| {count} | {first:.2f} s | {whole:.2f} s | {first / whole:.2f} |")
        engine.close()


if __name__ == "__main__":
    main()
