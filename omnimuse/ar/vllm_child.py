"""vLLM, as the process at the other end of `elsewhere.py`: it writes what it is asked for, a few tokens at a time.

Runs with a Python of its own, in whose environment omnimuse is not installed: imports vLLM and the standard library
only. Both ways go lines of JSON over the socket whose number is its one argument; the first says how it is started.
When the other end is gone, it ends, and whatever it has started with it.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import sys
import threading
from typing import Any, TextIO

PATIENCE = 5.0
"""Seconds to end in, before it is ended."""
NEVER = -100.0
"""What is added to the logit of a token that is not to be written: the most that vLLM takes."""


def main(number: int) -> None:
    """Start as the first line says, and write until nobody listens."""
    here = os.path.dirname(os.path.abspath(__file__))  # its modules have names that others have, too
    sys.path[:] = [path for path in sys.path if path != here]
    line = socket.socket(fileno=number)
    come, go = line.makefile("r", encoding="utf-8"), line.makefile("w", encoding="utf-8")
    start = json.loads(come.readline())
    try:
        engine, version = start_vllm(start)
    except Exception as error:  # of whatever kind: it is told to who can do something about it
        tell(go, {"failed": f"{type(error).__name__}: {error}"})
        return
    tell(go, {"ready": version})
    orders: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(come, orders), daemon=True).start()
    serve(engine, orders, go)


def start_vllm(start: dict[str, Any]) -> tuple[Any, str]:
    """vLLM's engine, in this process, and vLLM's version."""
    import vllm

    return vllm.LLMEngine.from_engine_args(vllm.EngineArgs(**start)), vllm.__version__


def listen(come: TextIO, orders: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    """Hear what is ordered; at the end see to it that this process ends."""
    for line in come:
        orders.put(json.loads(line))
    orders.put(None)
    threading.Timer(PATIENCE, os.killpg, (os.getpgid(0), signal.SIGKILL)).start()


def serve(engine: Any, orders: queue.SimpleQueue[dict[str, Any] | None], go: TextIO) -> None:
    """Write what is ordered, several at a time, until no more orders come."""
    while True:
        while not orders.empty() or not engine.has_unfinished_requests():
            if (order := orders.get()) is None:
                return
            obey(engine, order, go)
        for output in engine.step():
            [made] = output.outputs
            tell(go, {"id": output.request_id, "tokens": list(made.token_ids), "reason": made.finish_reason})


def obey(engine: Any, order: dict[str, Any], go: TextIO) -> None:
    """Begin a text, or stop one; an order that vLLM refuses is answered, and nothing else ends."""
    if order["ids"] is None:
        engine.abort_request([order["id"]])
        return
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    try:
        bias = dict.fromkeys(order["never"], NEVER) or None
        kind = RequestOutputKind.DELTA
        how = SamplingParams(**order["how"], logit_bias=bias, detokenize=False, output_kind=kind)
        engine.add_request(order["id"], {"prompt_token_ids": order["ids"]}, how)
    except (ValueError, TypeError, RuntimeError) as error:
        tell(go, {"id": order["id"], "refused": str(error)})


def tell(go: TextIO, told: dict[str, Any]) -> None:
    """Say something to the other end; where that is gone, this one ends soon, too."""
    try:
        go.write(json.dumps(told) + "\n")
        go.flush()
    except OSError:
        pass


if __name__ == "__main__":
    main(int(sys.argv[1]))
