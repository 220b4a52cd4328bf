"""Fault points: places where a test can make a process die, hang or fail, to see that the rest copes.

`OMNIMUSE_FAULT` holds `point:number:action[:word]`, several joined by commas; the front process reads it and passes it
on to its workers. Without it a point costs one look at an empty tuple. No torch.

Points: `worker.start` (number 1), `worker.step` (the step of a loop), `worker.encode` (the output, from 1),
`store.accept`, `store.finish` and `serve.close` (the how-manieth). Actions: `kill` (SIGKILL to the own process), `hang`
(sleep for ever on this thread), `pause` (sleep there for `PAUSE` seconds), `fail` (ModelError), `oom` (MemoryError),
and at `worker.step` `nan` (the output counts as NaN).
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import dataclass

from omnimuse.core.errors import ConfigError, ModelError

POINTS = ("worker.start", "worker.step", "worker.encode", "store.accept", "store.finish", "serve.close")
ACTIONS = ("kill", "hang", "pause", "fail", "oom", "nan")
PAUSE = 4.0
"""Long enough for a test to do something meanwhile, on a machine that is slow."""
ALWAYS = "always"
"""What stands for the prompt at `worker.start`: with this word the fault meets every start."""


@dataclass(frozen=True)
class Fault:
    """One fault: what happens when `point` is reached for the `number`th time, for prompts with `word` (all: "")."""

    point: str
    number: int
    action: str
    word: str


class Faults:
    """The faults of one process. Those with a word strike every time, those without once and in the first life only."""

    def __init__(self, faults: tuple[Fault, ...] = ()) -> None:
        self._faults = faults
        self._struck: set[Fault] = set()
        self._reached: Counter[str] = Counter()

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._faults)

    @staticmethod
    def read(text: str, first: bool = True) -> Faults:
        """The faults that `text` names; of a process that is not the `first` of its kind only those with a word.

        ConfigError where the text makes no sense.
        """
        faults = tuple(_read(part.strip()) for part in text.split(",") if part.strip())
        return Faults(tuple(fault for fault in faults if fault.word or first))

    def reach(self, point: str, number: int | None = None, prompt: str = "") -> bool:
        """Be at `point` for the `number`th time (None: counted here), on behalf of `prompt`.

        What strikes happens here; True: the caller is to treat its values as NaN.
        """
        if not self._faults:
            return False
        self._reached[point] += 1
        number = number or self._reached[point]
        for fault in self._faults:
            meant = fault.word in prompt if fault.word else fault not in self._struck
            if meant and (fault.point, fault.number) == (point, number):
                self._struck.add(fault)
                return _strike(fault)
        return False


def _strike(fault: Fault) -> bool:
    where = f"the fault {fault.point}:{fault.number}:{fault.action}"
    match fault.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            while True:
                time.sleep(3600)
        case "pause":
            time.sleep(PAUSE)
            return False
        case "fail":
            raise ModelError(f"{where} was asked for")
        case "oom":
            raise MemoryError(f"out of memory at {fault.point}: {where} was asked for")
    return True


def _read(text: str) -> Fault:
    parts = text.split(":", 3)
    point, number, action, word = (*parts, *[""] * (4 - len(parts)))
    known = point in POINTS and action in ACTIONS and number.isascii() and number.isdigit() and int(number) >= 1
    if not known or (action == "nan" and point != "worker.step"):
        raise ConfigError(
            f"the fault {text!r} is not understood; write point:number:action or point:number:action:word with a point "
            f"of {', '.join(POINTS)} and an action of {', '.join(ACTIONS)} (nan: only at worker.step)"
        )
    return Fault(point, int(number), action, word)
