"""Texts streamed over HTTP to many clients, beside the engine called directly: `python -m benchmarks.talking`.

A random language model writes answers of one length: for `--clients` streaming clients of `omnimuse serve`, and as so
many prompts of one call of `Omni.generate`, in turns. Client, front and worker share the machine's cores. By the clock;
and, where the system tells, the processor time of each for a token, beside that of the direct call.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from omnimuse import Omni
from tests.checkpoints import qwen3
from tests.server.whole_server import WholeServer

PROMPT = "a red circle on some small blue square, number {}"


def main() -> None:
    """Print both rates and their ratio, and what is spent for a token."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512, help="of the model (default: 512)")
    parser.add_argument("--layers", type=int, default=8, help="of the model (default: 8)")
    parser.add_argument("--clients", type=int, default=16, help="(default: 16)")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer (default: 32)")
    parser.add_argument("--rounds", type=int, default=3, help="of both in turns, after one (default: 3)")
    args = parser.parse_args()
    prompts = [PROMPT.format(index) for index in range(args.clients)]
    exactly = {"temperature": 0, "min_tokens": args.tokens, "max_tokens": args.tokens}
    ratios = []
    spent = dict.fromkeys(("directly", "client", "front", "worker"), 0.0)
    with tempfile.TemporaryDirectory() as place:
        folder = str(qwen3.build(Path(place) / "tiny", width=args.width, layers=args.layers))
        options = "--dtype", "float32", "--device", "cpu"
        with (
            WholeServer(Path(place) / "server", folder, *options) as server,
            Omni(folder, dtype="float32", device="cpu") as omni,
        ):
            server.wait_ready()
            [worker] = server.workers()
            processes = {"client": os.getpid(), "front": server.process.pid, "worker": worker}
            for number in range(args.rounds + 1):
                began, at_first = time.perf_counter(), used(processes)
                messages: list[Any] = [{"messages": [{"role": "user", "content": prompt}]} for prompt in prompts]
                omni.generate(messages, progress=False, **exactly)
                between, before = time.perf_counter(), used(processes)
                asyncio.run(stream(server.url, prompts, exactly))
                both, after = (between - began, time.perf_counter() - between), used(processes)
                if number:
                    spent["directly"] += before["client"] - at_first["client"]
                    spent.update({name: spent[name] + after[name] - before[name] for name in processes})
                    ratios.append(both[0] / both[1])
                    rates = [args.clients * args.tokens / each for each in both]
                    print(f"{rates[0]:.0f} tokens a second directly, {rates[1]:.0f} streamed", flush=True)
    print(f"ratio {median(ratios):.2f}, {args.clients} at a time")
    tokens = args.clients * args.tokens * args.rounds
    each = ", ".join(f"{name} {1e6 * seconds / tokens:.0f}" for name, seconds in spent.items())
    print(f"microseconds of processor time for a token: {each}")


def used(processes: Mapping[str, int]) -> dict[str, float]:
    """Seconds of processor time that processes have used, by their names; zeros where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return dict.fromkeys(processes, 0.0)
    told = {name: Path(f"/proc/{process}/stat").read_text().rpartition(")")[2] for name, process in processes.items()}
    return {name: sum(map(int, fields.split()[11:13])) / os.sysconf("SC_CLK_TCK") for name, fields in told.items()}


async def stream(url: str, prompts: list[str], choices: dict[str, Any]) -> None:
    """One client for each prompt; all have read their answers to the end when this returns."""
    await asyncio.gather(*(_read(url, prompt, choices) for prompt in prompts))


async def _read(url: str, prompt: str, choices: dict[str, Any]) -> None:
    to = urlsplit(url)
    reader, writer = await asyncio.open_connection(to.hostname, to.port)
    body = json.dumps({"messages": [{"role": "user", "content": prompt}], "stream": True, **choices}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {to.netloc}\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
    answer = await reader.read()
    writer.close()
    if b"data: [DONE]" not in answer:
        raise AssertionError(answer.decode(errors="replace")[-500:])


if __name__ == "__main__":
    main()
