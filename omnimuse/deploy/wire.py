"""What a front process and its workers say to each other: msgspec structs, nothing that runs code.

One closed union per direction. What was made travels as files in a folder both sides know (`MadeFile.name` is a bare
name in it); only previews and texts ride in the message, and files of workers elsewhere (`deploy/carry.py`). No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from omnimuse.core import errors
from omnimuse.core.amounts import told_bytes
from omnimuse.core.errors import EngineDeadError
from omnimuse.core.loras import Lora
from omnimuse.core.request import Request
from omnimuse.core.spec import Spec
from omnimuse.worker.pace import Shared
from omnimuse.worker.plan import decode_request

MAX_MESSAGE = 64 * 2**20
"""Bytes; a longer message is refused unread."""

KINDS = (
    errors.ConfigError,
    errors.UnsupportedError,
    errors.RequestCancelled,
    errors.DeadlineError,
    errors.ModelError,
    errors.EngineDeadError,
    errors.EngineClosedError,
    errors.MemoryShortageError,
    errors.NumericalError,
    errors.StorageError,
)
BY_NAME = {kind.__name__: kind for kind in KINDS}


class Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Base of everything that goes over the socket."""


class Form(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file a result becomes, by a format of `media/finished.py`; `quality` 1..100 of lossy pictures (None: ours);
    a sound is played `speed` times as fast.

    It tells how it was made, the prompt included, unless `tell` is off.
    """

    format: str
    quality: int | None = None
    tell: bool = True
    speed: float = 1.0


class Submit(Message, frozen=True):
    """Work: a request as plain values (`pack`), and the form its outputs take."""

    request: dict[str, Any]
    form: Form


class Cancel(Message, frozen=True):
    """Stop a request at its next step boundary; unknown ids are ignored."""

    request_id: str


class Profile(Message, frozen=True):
    """Record for so many seconds what the engine computes with or, if there are `requests`, until the first of so many
    that come from now on have ended; answered by Profiled.
    """

    seconds: float
    requests: int = 0


class Sleep(Message, frozen=True):
    """Let the weights leave the device, or (`asleep=False`) bring them back; answered by Slept."""

    asleep: bool


class TryOn(Message, frozen=True):
    """Read adapters that requests are to wear; answered by TriedOn."""

    loras: list[Lora]


class Stop(Message, frozen=True):
    """Close the engine and end the process."""


class Ready(Message, frozen=True):
    """The engine is loaded and warm; `place` has its dtype and device, `weights` the bytes of every component and of
    its largest block that comes in by itself. A process of a pool says how many bytes it has `held` by then.
    """

    seconds: float
    place: dict[str, str]
    weights: dict[str, tuple[int, int]] = {}
    held: int = 0


class NotStarted(Message, frozen=True):
    """The engine cannot be built; `kind` is the class of `core.errors` (or "" for a fault of ours)."""

    kind: str
    message: str


class Told(Message, frozen=True):
    """A line for the log of the front process."""

    level: Literal["info", "warning"]
    text: str


class Beat(Message, frozen=True):
    """Sent twice a second, loading included: engine ticks so far, whether it has work, resident memory in bytes.

    `retries` are forwards so far that failed and were tried again, `company` is what shared ones took. Of a model in
    pools, `lost` are the processes of each that were replaced so far, `away` the pools that have none just now.
    `adapters` are the bytes of those that are worn, and of those that nobody wears.
    """

    ticks: int
    busy: bool
    memory: int
    retries: int = 0
    company: list[Shared] = []
    lost: dict[str, int] = {}
    away: list[str] = []
    adapters: tuple[int, int] = (0, 0)


def added(each: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """What is worn in several engines, and what nobody wears there."""
    worn, idle = zip((0, 0), *each, strict=True)
    return sum(worn), sum(idle)


class Stepped(Message, frozen=True):
    """One step of one output is done: `step` of `steps` within `stage` (1-based); None: nobody knows of how many."""

    request_id: str
    output: int
    stage: str
    step: int
    steps: int | None


class Previewed(Message, frozen=True):
    """A look at an unfinished output, as the bytes of a small JPEG."""

    request_id: str
    output: int
    step: int
    picture: bytes


class Grown(Message, frozen=True):
    """A piece of an unfinished output that is finished: samples of 16 bits, low byte first, those of the channels in
    turn; the first is number `start` of the sound.
    """

    request_id: str
    output: int
    start: int
    rate: int
    channels: int
    data: bytes


class Spelt(Message, frozen=True):
    """The words that follow the `start` characters of an unfinished text."""

    request_id: str
    output: int
    start: int
    text: str


class MadeText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One output that is a text, whole: of how many `tokens` it was, and whether a stop or its length ended it.

    The first `reused` tokens of the prompt had been read before.
    """

    text: str
    tokens: int
    reason: Literal["stop", "length"]
    reused: int = 0


class MadeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One output, finished, encoded and synced to disk.

    Sizes in pixels; videos have frames, sounds have `rate` samples a second, both last for `seconds`.
    """

    name: str
    bytes: int
    sha256: str
    seed: int
    width: int = 0
    height: int = 0
    frames: int = 1
    fps: float | None = None
    seconds: float | None = None
    rate: int | None = None


class Remarks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What there is to say of a result beside its files: what people should know, the tokens read of its texts, in
    which sizes (width, height) the model was shown pictures beside what it drew, how many tokens it made, and the bytes
    that one output `needs` beside the weights, its adapters included, as small ones of its kind foretold it; 0 where
    none were drawn. `labels` are those of stages whose names do not say them, `drew` the seconds of every
    step of what was drawn, or painted.

    Where they were asked for: the seconds of every block of a network, all its runs together, and the most bytes that
    were held when one was done (`block_bytes`); of every step of a stage that has some, its seconds, and the bytes that
    were `held` when it was done, as of every other stage.
    """

    warnings: tuple[str, ...] = ()
    prompt_tokens: int = 0
    shown: tuple[tuple[int, int], ...] = ()
    made: int = 0
    blocks: dict[str, float] = {}
    needs: int = 0
    block_bytes: dict[str, int] = {}
    steps: dict[str, tuple[float, ...]] = {}
    held: dict[str, tuple[int, ...]] = {}
    labels: dict[str, str] = {}
    drew: tuple[float, ...] = ()


class Finished(Message, frozen=True):
    """All outputs of a request, in order, texts in `texts` and all others as files; `timings` are seconds per stage,
    "queue" and "encode" included.

    `memory` is the most that its worker held while it worked on the request, in bytes.
    """

    request_id: str
    files: list[MadeFile]
    timings: dict[str, float]
    memory: int = 0
    remarks: Remarks = Remarks()
    texts: tuple[MadeText, ...] = ()

    def after(self, waiting: float) -> Finished:
        """The same of a request that spent so many seconds waiting before its worker had it."""
        queued = self.timings.get("queue", 0.0) + waiting
        return msgspec.structs.replace(self, timings={**self.timings, "queue": queued})


class Carried(Message, frozen=True):
    """A piece of a file that was made where the front has no disk: what follows its first `start` bytes, of `whole`.

    It belongs to a request, or to a recording (`request_id` is empty then), whose report follows its last piece.
    """

    request_id: str
    name: str
    start: int
    whole: int
    data: bytes


class Profiled(Message, frozen=True):
    """A recording is in the spool under `name`, or `trouble` says why there is none; `kind` is as with `Ended`."""

    name: str
    trouble: str = ""
    kind: str = errors.EngineDeadError.__name__


class Slept(Message, frozen=True):
    """The weights, so many bytes, are away or back; or `trouble` says why not."""

    bytes: int
    trouble: str = ""


class Ended(Message, frozen=True):
    """A request ended without a result. `kind` is the class of `core.errors`."""

    request_id: str
    kind: str
    message: str
    param: str | None = None
    retry_after: float | None = None


class TriedOn(Message, frozen=True):
    """Requests can wear the adapters, or cannot, for the reason for which they would end (of no request)."""

    trouble: Ended | None = None


Command = Submit | Cancel | Profile | Sleep | TryOn | Stop
Answer = Profiled | Slept | TriedOn
"""What an operator's command is answered by."""
Report = Ready | NotStarted | Told | Beat | Stepped | Previewed | Grown | Spelt | Finished | Ended | Answer
Update = Stepped | Previewed | Grown | Spelt | Finished
"""What somebody who waits for a request sees; errors are raised instead."""


def pack(request: Request) -> dict[str, Any]:
    """`request` as plain values; the files of its pictures are bytes."""
    plain: dict[str, Any] = msgspec.to_builtins(request, builtin_types=(bytes, bytearray, memoryview))
    return plain


def unpack(fields: Mapping[str, Any], spec: Spec) -> Request:
    """What `pack` was given; `spec` gives the family's parameter extension."""
    return decode_request(dict(fields), spec)


def encode(message: Message) -> bytes:
    """The bytes of a message."""
    return msgspec.msgpack.encode(message)


def read_command(payload: bytes) -> Command:
    """The command in `payload`; EngineDeadError if it is none or too long."""
    return _read(payload, Command)  # type: ignore[return-value]


def read_report(payload: bytes) -> Report | Carried:
    """The report, or piece of a file, in `payload`; EngineDeadError if it is none or too long."""
    return _read(payload, Report | Carried)  # type: ignore[return-value]


def _read(payload: bytes, kind: Any) -> Message:
    if len(payload) > MAX_MESSAGE:
        raise EngineDeadError(
            f"a message of {told_bytes(len(payload))} came between processes; at most {told_bytes(MAX_MESSAGE)} are "
            "read; start the engine again"
        )
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except msgspec.MsgspecError as error:
        raise EngineDeadError(
            f"a message between processes makes no sense ({error}); start the engine again, with one version of "
            "omnimuse everywhere"
        ) from None


def of_ended(report: Ended) -> Exception:
    """The error that ended a request."""
    if report.kind == errors.RequestError.__name__:
        return errors.RequestError(report.message, report.param)
    for kind in (errors.CapacityError, errors.AdaptersFullError):
        if report.kind == kind.__name__:
            return kind(report.message, report.retry_after)
    return error_of(report.kind, report.message)


def error_of(kind: str, message: str) -> Exception:
    """The error of a class that a worker names: one of `core.errors`, or MemoryError."""
    return MemoryError(message) if kind == "MemoryError" else BY_NAME.get(kind, errors.ModelError)(message)
