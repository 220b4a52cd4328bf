"""How soon a sound begins, and how long its whole takes: `python -m benchmarks.speech`.

A random model that speaks, with frames of 16 codes and a codec of 1920 samples a frame as the published ones have, says
so many frames, one request and four at a time. Both are seconds of the clock of the same requests: until the first
piece of the slowest of them, and until the last is whole, which is when a server without streams could send it.

With `--family` a random model that answers aloud, of the smallest networks, writes so many tokens and says them. With
`--http` clients of `omnimuse serve` hear the same of a stream, in turns with the engine, on the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import torch

from omnimuse import Ask, Config, DiffusionParams, ModelConfig
from omnimuse.core.config import ScheduleConfig
from omnimuse.core.output import Chunk, Failed
from omnimuse.core.params import SpeechParams, make_params
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from tests.checkpoints import qwen3_omni, qwen3_tts, qwen25_omni
from tests.server.whole_server import WholeServer

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
LINE = 2**24
"""Bytes of an event, at most."""


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


async def heard(url: str, family: str, count: int, frames: int) -> tuple[float, float]:
    """As `spoken`, by so many clients of the server at `url`."""
    began = time.perf_counter()
    firsts = await asyncio.gather(*(_listen(url, family, seed, frames) for seed in range(count)))
    return max(firsts) - began, time.perf_counter() - began


async def _listen(url: str, family: str, seed: int, frames: int) -> float:
    """When the first piece of a sound came to a client, who reads it to its end."""
    exactly: dict[str, Any] = {"seed": seed, "stream": True, "min_tokens": frames, "max_tokens": frames}
    path, mark = "/v1/chat/completions", b'"data":"'
    body = {"messages": [{"role": "user", "content": TEXT}], "temperature": 0.8, **exactly}
    body |= {"modalities": ["text", "audio"], "audio": {"format": "pcm16"}}
    if family == "qwen3-tts":
        path, mark = "/v1/audio/generate", b'"audio.delta"'
        words = {"temperature": 0, "min_tokens": frames + 1, "max_tokens": frames + 1}
        body = {"prompt": TEXT, "seed": seed, "stream_format": "sse", "extra_params": words}
    to, content = urlsplit(url), json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(to.hostname, to.port, limit=LINE)
    head = f"POST {path} HTTP/1.1\r\nhost: {to.netloc}\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(content)}\r\nconnection: close\r\n\r\n".encode() + content)
    first, said = 0.0, b""
    async for line in reader:
        said = line if line.strip() else said
        if not first and mark in line:
            first = time.perf_counter()
    writer.close()
    if not first:
        raise AssertionError(said.decode(errors="replace")[-500:])
    return first


def main() -> None:
    """Print one line for each number of requests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=50, help="of each sound (default: 50, four seconds)")
    parser.add_argument("--family", choices=FAMILIES, default=FAMILIES[0], help="(default: qwen3-tts)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="(default: 1)")
    parser.add_argument("--http", action="store_true", help="and beside it, over HTTP")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("| | at a time | first sound | whole | ratio |\n|---|---|---|---|---|")
    with ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory())
        folder = built(args.family, Path(home) / "speaks", args.frames)
        config = Config(
            ModelConfig(str(folder), dtype="float32", device="cpu"), schedule=ScheduleConfig(company="always")
        )
        engine = start(config)
        stack.callback(engine.close)
        torch.set_num_threads(args.threads)
        ways: dict[str, Callable[[int, int], tuple[float, float]]] = {"engine": partial(spoken, engine, args.family)}
        if args.http:
            options = "--dtype", "float32", "--device", "cpu", "--company", "always", "--threads", str(args.threads)
            server = stack.enter_context(WholeServer(Path(home) / "server", str(folder), *options))
            server.wait_ready()
            ways["HTTP"] = lambda count, frames: asyncio.run(heard(server.url, args.family, count, frames))
        for say in ways.values():
            say(1, 8)
        for count in (1, 4):
            rounds = [[say(count, args.frames) for say in ways.values()] for _ in range(args.rounds)]
            for name, times in zip(ways, zip(*rounds, strict=True), strict=True):
                first, whole = (median(each) for each in zip(*times, strict=True))
                print(f"| {name} | {count} | {first:.2f} s | {whole:.2f} s | {first / whole:.2f} |")


if __name__ == "__main__":
    main()
