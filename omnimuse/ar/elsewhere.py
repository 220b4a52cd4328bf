"""Tokens that another engine writes, in a process of its own: prompts go there as tokens, and tokens come back.

A `Writer` stands where the network of a loop would. The one that there is starts vLLM (`vllm_child.py`) with the Python
of another environment, since vLLM wants a torch of its own. What writes in its place is not ours to try again: when the
process ends, so does the engine, as it does when a rank ends, and who drives it starts both anew.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch

from omnimuse.ar.sampling import Sampling
from omnimuse.core.config import WriterConfig
from omnimuse.core.environment import Environment
from omnimuse.core.errors import ConfigError, EngineDeadError, RequestError

log = logging.getLogger(__name__)

CHILD = Path(__file__).with_name("vllm_child.py")
PATIENCE = 10.0
"""Seconds that the process has to end by itself."""
INSTALL = "install vLLM into an environment of its own, and name its Python: --writer-python /there/bin/python"


class Writing:
    """One text that is being written elsewhere; when nobody has this any more, nobody writes on. `reason` is why it
    ended, in vLLM's words.
    """

    def __init__(self, writer: Writer, id_: str) -> None:
        self._writer, self.id = writer, id_
        self.come: deque[list[int]] = deque()
        self.reason = ""
        self.refused = ""

    @property
    def ready(self) -> bool:
        """Whether there is something to take, if only that no more will come."""
        return bool(self.come or self.reason or self.refused or self._writer.dead)

    @property
    def over(self) -> bool:
        """Whether all that was written has been taken."""
        return bool(self.reason) and not self.come

    def take(self) -> list[int]:
        """The tokens that have come; RequestError if it was refused, EngineDeadError if nobody writes any more."""
        if self.refused:
            raise RequestError(f"vLLM does not write this: {self.refused}")
        if self._writer.dead and not (self.come or self.reason):
            raise EngineDeadError(self._writer.dead)
        found = list[int]()
        while self.come:
            found += self.come.popleft()
        return found

    def __del__(self) -> None:
        self._writer.stop(self)


class Writer:
    """vLLM with the model in `folder`, in `dtype` on `device`, for texts of at most `longest` tokens.

    Ready when it is made, which takes as long as vLLM does; ConfigError if it cannot be started. `news` is called, from
    a thread of its own, when something has come. `dead` says why no more will come.
    """

    def __init__(
        self, config: WriterConfig, folder: Path, dtype: torch.dtype, device: torch.device, longest: int
    ) -> None:
        self.news: Callable[[], None] = lambda: None
        self.dead = ""
        self._writings: WeakValueDictionary[str, Writing] = WeakValueDictionary()
        self._lock, self._telling, self._ids = threading.Lock(), threading.RLock(), count()
        python = config.python or sys.executable
        ours, theirs = socket.socketpair()
        with ExitStack() as undone, theirs:
            undone.callback(ours.close)
            self._process = _started(python, theirs.fileno(), device)
            undone.pop_all()
        self._line = ours
        self._come = ours.makefile("r", encoding="utf-8")
        self._ear = threading.Thread(target=self._listen, name="omnimuse-writer", daemon=True)
        log.info("vLLM is being started with %s", python)
        self._tell(
            {
                "model": str(folder),
                "dtype": str(dtype).removeprefix("torch."),
                "max_model_len": longest,
                "skip_tokenizer_init": True,
                "enforce_eager": device.type == "cpu",  # what is gained there takes minutes to compile
            }
        )
        told = self._heard()
        if told is None or "ready" not in told:
            self.close()
            why = (told or {}).get("failed") or f"its process ended with status {self._process.returncode}"
            raise ConfigError(f"vLLM cannot be started with {python} ({why}); {INSTALL}")
        self.version = str(told["ready"])
        log.info("vLLM %s is ready", self.version)
        self._ear.start()

    @property
    def process(self) -> int:
        """The number of the process."""
        return self._process.pid

    def begin(self, prompt: Sequence[int], most: int, how: Sampling, seed: int) -> Writing:
        """Have at most `most` tokens written after those of `prompt`. EngineDeadError: there is nobody to do it."""
        writing = Writing(self, str(next(self._ids)))
        with self._lock:
            if self.dead:
                raise EngineDeadError(self.dead)
            self._writings[writing.id] = writing
        order = {"id": writing.id, "ids": list(prompt), "how": sampling(most, how, seed)}
        self._tell({**order, "never": list(how.suppressed)})
        return writing

    def stop(self, writing: Writing) -> None:
        """Nobody wants more of this."""
        if not (writing.reason or writing.refused or self.dead):
            self._tell({"id": writing.id, "ids": None})

    def close(self) -> None:
        """End the process, and whatever it has started. Safe to call twice."""
        self.dead = self.dead or "the engine was closed; make a new one"
        with suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._ear.is_alive():
            self._ear.join()
        self._come.close()
        self._line.close()

    def _tell(self, told: Mapping[str, Any]) -> None:
        line = f"{json.dumps(told)}\n".encode()
        with self._telling, suppress(OSError):  # who listens hears that nobody is there
            self._line.sendall(line)

    def _heard(self) -> dict[str, Any] | None:
        with suppress(OSError):
            if line := self._come.readline():
                found: dict[str, Any] = json.loads(line)
                return found
        return None

    def _listen(self) -> None:
        while (told := self._heard()) is not None:
            with self._lock:
                writing = self._writings.get(told["id"])
            if writing is None:
                continue  # it was stopped meanwhile
            writing.refused = told.get("refused", "")
            if tokens := told.get("tokens"):
                writing.come.append(tokens)
            writing.reason = told.get("reason") or ""
            del writing  # or it would be written to its end for nobody
            self.news()
        with self._lock:
            self.dead = self.dead or "vLLM has ended; start a new engine"
        self.news()


def sampling(most: int, how: Sampling, seed: int) -> dict[str, Any]:
    """What vLLM's `SamplingParams` are given: the meaning is the same, its random numbers are others.

    vLLM ends at the tokens that the checkpoint names; a text that stops one is for who spells to find.
    """
    return {
        "max_tokens": most,
        "temperature": how.temperature,
        "top_k": how.top_k if how.top_k > 0 else -1,
        "top_p": how.top_p,
        "repetition_penalty": how.repetition_penalty,
        "min_tokens": min(how.min_tokens, most),
        "stop_token_ids": list(how.ends),
        "ignore_eos": True,
        "seed": seed % 2**63,
    }


def _started(python: str, line: int, device: torch.device) -> subprocess.Popen[bytes]:
    """The process; ConfigError if there is no such Python."""
    environment = Environment.for_writer("cpu" if device.type == "cpu" else str(device.index or 0))
    try:
        return subprocess.Popen(
            [python, str(CHILD), str(line)],
            env=environment,
            pass_fds=[line],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise ConfigError(f"vLLM cannot be started with {python} ({error.strerror}); {INSTALL}") from None
