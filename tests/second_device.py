"""A second device without a second device: tensors that compute on the CPU, but lie elsewhere.

Such a tensor carries the label of an accelerator that this build of torch knows by name only, refuses to meet a tensor
of the CPU, as those of an accelerator do, and can be read only by a transfer. So a forgotten `.to(device)`, a generator
on the wrong device and a hidden wait of the host are found on any machine. Inside `with SecondDevice() as device:`,
factories make such tensors (`torch.zeros(2, device=ELSEWHERE)`), and `device.waits` tells where the host waited.

What it cannot show: kernels that an accelerator lacks or computes in another way, or that a compiler makes for it
(`flex`), noise that a library draws with generators of the device's own, races between streams, pinned memory.
"""

from __future__ import annotations

import linecache
import os
import sys
import weakref
from collections import Counter as Counts
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, Self
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.attention.varlen  # it has the operation `PACKED`
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import omnimuse
from omnimuse.cache.stepcache import StepCache
from omnimuse.core.config import Choice, Config
from omnimuse.engine.engine import Engine
from omnimuse.layers.network import Network
from omnimuse.loader.adapters import Reader
from omnimuse.lora.adapters import Adapters
from omnimuse.offload import host
from omnimuse.offload.host import HostStore, Slot
from omnimuse.offload.layerwise import LayerwiseOffload
from omnimuse.offload.parcels import Parcel
from omnimuse.offload.residency import Residency
from omnimuse.offload.visited import block_lists, visit
from omnimuse.parallel.mesh import Axis
from omnimuse.pipeline.arrival import Arrival, Here
from omnimuse.worker import build
from omnimuse.worker.place import COUNTERS
from omnimuse.worker.rest import written
from omnimuse.worker.runner import Runner
from tests.under_way import CountedClock, Sent

PACKAGE = str(Path(omnimuse.__file__).parent)
"""Where the code is whose waits are told; a clone may lie in a folder of the same name."""

ELSEWHERE = torch.device("lazy", 0)
"""A device whose name every build of torch knows, with nothing behind it until somebody asks for that."""

READ = frozenset({"_local_scalar_dense", "item", "is_nonzero", "equal", "allclose"})
"""Operations whose result the host reads."""
SIZED = frozenset({"nonzero", "nonzero_numpy", "argwhere", "masked_select", "bincount", "where.default"}) | frozenset(
    {"unique", "_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"}
)
"""Operations whose values decide the size of what comes out, so that the host must know them. Some are made of others,
and are met whole in inference mode. `where` is one of them without what it chooses of.
"""
UPLOADING = frozenset({"where.ScalarSelf", "where.ScalarOther", "where.Scalar"})
"""Operations that put a plain number on the device, and wait until it is there."""
WAITING = READ | SIZED | UPLOADING
MOVING = frozenset({"to", "_to_copy", "copy_"})


def _efficient_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, weighs: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What an accelerator's kernel returns, of the CPU's; the last two are for dropout."""
    out, weight = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=bias)
    return out, weight, torch.zeros(()), torch.zeros(())


def _packed_attention(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, key_ends: Tensor, longest: int, other: int, *chosen: object
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of rows that lie end to end, [T, N, H], by the CPU's kernel for each of them, with nothing `chosen`."""
    usual = (False, None, [-1, -1], False, None, None, None)
    assert chosen == usual[: len(chosen)], "neither causal, nor a scale, nor a window"
    cut = [each.tensor_split(at[1:-1].long()) for each, at in ((query, ends), (key, key_ends), (value, key_ends))]
    rows = [F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in row)) for row in zip(*cut, strict=True)]
    return torch.cat([row[0].transpose(0, 1) for row in rows]), torch.zeros(()), torch.zeros(())


PACKED = torch.ops.torch_attn._varlen_attn.default
STANDING_IN: dict[Any, Callable[..., Any]] = {
    torch.ops.aten._scaled_dot_product_efficient_attention.default: _efficient_attention,
    PACKED: _packed_attention,
}
"""Operations that accelerators have and the CPU has by another name."""


class Shelf:
    """What a second device's allocator would count of its memory: see `Counter` in `omnimuse.observe.profile`."""

    def __init__(self) -> None:
        self._owners: Counts[int] = Counts()
        self._now = self._most = 0

    def put(self, tensor: Elsewhere) -> None:
        """Its memory is there as long as any tensor has it."""
        memory = tensor.inner.untyped_storage()
        key, size = memory.data_ptr(), memory.nbytes()
        self._owners[key] += 1
        self._now += size if self._owners[key] == 1 else 0
        self._most = max(self._most, self._now)
        weakref.finalize(tensor, self._leave, key, size)

    def _leave(self, key: int, size: int) -> None:
        self._owners[key] -= 1
        self._now -= size if not self._owners[key] else 0

    def now(self) -> int:
        return self._now

    def most(self) -> int:
        return self._most

    def forget(self) -> None:
        self._most = self._now


SHELF = Shelf()


class Elsewhere(Tensor):
    """A tensor that lies on the second device; `inner` are its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, /, **attributes: Any) -> Any:
        if inner.is_meta:  # as accelerate makes one that waits for its numbers: of the class that had some before
            return nn.Parameter(inner, attributes["requires_grad"])
        with torch.inference_mode(inner.is_inference()):  # as its numbers: a part of what is none is none, either
            made = Tensor._make_wrapper_subclass(
                cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=ELSEWHERE
            )
        made.inner = inner
        SHELF.put(made)
        return made

    def untyped_storage(self) -> torch.UntypedStorage:
        """The memory of its numbers, which tells whether two tensors are parts of one."""
        return self.inner.untyped_storage()

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Elsewhere({self.inner!r})"

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.tolist:  # torch reads the memory itself
            return args[0].to("cpu").tolist()
        if func in (Tensor.numpy, Tensor.__array__):
            raise TypeError(f"a tensor on {ELSEWHERE} has no numpy array; copy it to the CPU first")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return compute(func, args, kwargs or {}, lambda why: None)


@dataclass
class SecondDevice(TorchDispatchMode):
    """While this context lasts, `ELSEWHERE` exists. `waits` says of every wait of the host why and where it was,
    `waited` how many there were. It `draws` where weights are made that others are then put in the place of.
    """

    waits: list[str] = field(default_factory=list)
    draws: bool = False
    waited: int = 0
    _kernels: torch.library.Library = field(init=False, repr=False)
    _open: ExitStack = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__init__()

    def __enter__(self) -> Self:
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor` makes on the CPU what it then moves under our eyes
        self._kernels = torch.library.Library("aten", "IMPL")
        self._kernels.impl("_local_scalar_dense", self._read, "Lazy")
        self._open = ExitStack()
        self._open.enter_context(patch.object(host, "DeviceLanes", lambda device: Lanes()))
        self._open.enter_context(patch.object(torch.accelerator, "empty_cache", lambda: None))  # it keeps nothing
        self._open.enter_context(patch.dict(COUNTERS, {ELSEWHERE.type: lambda device: SHELF}))
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._open.close()
        self._kernels._destroy()
        torch._C._set_only_lift_cpu_tensors(False)

    def _read(self, number: Elsewhere) -> Any:
        """What `torch.tensor([number])` asks for, which passes by all modes and classes of tensors."""
        self._note("_local_scalar_dense")
        return number.inner.item()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return compute(func, args, kwargs or {}, self._note, draws=self.draws)

    def send(self, tensor: Tensor) -> Arrival:
        """As `omnimuse.pipeline.arrival.send`: the copy is begun, and nobody waits for it but who asks for it."""
        return Sent(tensor.inner.clone(), self._note) if isinstance(tensor, Elsewhere) else Here(tensor)

    def clock(self) -> CountedClock:
        """As `omnimuse.worker.clock.clock_for` has it of an accelerator."""
        return CountedClock(self._note, lambda: self.waited)

    def _note(self, why: str) -> None:
        frame: FrameType | None = sys._getframe()
        while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
            frame = frame.f_back
        self.waited += 1
        self.waits.append(f"{why} at {_place(frame)}")


def _place(frame: FrameType | None) -> str:
    if frame is None:
        return "a test"
    file = frame.f_code.co_filename
    return f"{Path(file).name}:{frame.f_lineno} {linecache.getline(file, frame.f_lineno).strip()}"


def compute(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], note: Callable[[str], None], *, draws: bool = False
) -> Any:
    """One operation of torch: on the CPU, with the rules of the second device. `note` is told why the host waits."""
    name, names = _facts(func)
    met = _Met()
    plain_args = [met.plain(value) for value in args]
    plain_kwargs = {key: met.plain(value) for key, value in kwargs.items()}
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    goal = _goal(given, met.there)
    if not met.there and goal.type != ELSEWHERE.type:
        return func(*args, **kwargs)
    if name == "_has_compatible_shallow_copy_type":  # asked where a module is moved
        return len(met.here) == 0
    if name in MOVING:
        _check_move(name, given, met.there, goal, note)
    elif met.there:
        _check_reading(func, name, given, note)
        _check_company(func, name, met.here, note)
    if (met.draws or "rand" in name) and not draws:
        raise RuntimeError(f"{name} cannot draw on {ELSEWHERE} as seeds promise it; draw on the CPU and move the noise")
    found = STANDING_IN.get(func, func)(*plain_args, **plain_kwargs)
    if name == "copy_":
        return args[0]
    if name == "to" and found is plain_args[0] and args[0].device.type != goal.type:
        found = found.clone()  # no device has its memory in another's
    return _there(found, met.there) if goal.type == ELSEWHERE.type else found.to(goal)


@cache
def _facts(func: Any) -> tuple[str, list[str]]:
    """The name of an operation, and those of its arguments."""
    return func._schema.name.removeprefix("aten::"), [argument.name for argument in func._schema.arguments]


@dataclass
class _Met:
    """What is met among the arguments of an operation: tensors of the CPU, of the second device, a generator."""

    here: list[Tensor] = field(default_factory=list)
    there: list[Elsewhere] = field(default_factory=list)
    draws: bool = False

    def plain(self, value: Any) -> Any:
        """The argument as the CPU takes it. Operations have no other containers than lists and tuples."""
        if isinstance(value, Elsewhere):
            self.there.append(value)
            return value.inner
        if isinstance(value, Tensor):
            self.here.append(value)
        elif isinstance(value, (list, tuple)):
            return [self.plain(each) for each in value]
        elif isinstance(value, torch.device):
            return torch.device("cpu")
        elif isinstance(value, torch.Generator):
            self.draws = True
        return value


def _there(found: Any, arguments: Sequence[Elsewhere]) -> Any:
    """Puts results on the second device; what an operation changed in place stays the tensor that it was."""
    if isinstance(found, (list, tuple)):
        return type(found)(_there(each, arguments) for each in found)
    if not isinstance(found, Tensor):
        return found
    for argument in arguments:
        if argument.inner is found:
            if argument.shape != found.shape or argument.stride() != found.stride():
                raise NotImplementedError("an operation that changes a shape in place")
            return argument
    return Elsewhere(found)


def _goal(given: Mapping[str, Any], there: Sequence[Elsewhere]) -> torch.device:
    """Where the result is to lie."""
    device = given.get("device")
    if device is not None:
        return torch.device(device)
    if isinstance(other := given.get("other"), Tensor) and "memory_format" in given:
        return other.device
    return ELSEWHERE if there else torch.device("cpu")


def _check_move(
    name: str, given: Mapping[str, Any], there: Sequence[Elsewhere], goal: torch.device, note: Callable[[str], None]
) -> None:
    source = given["src"] if name == "copy_" else given["self"]
    target = given["self"].device if name == "copy_" else goal
    if source.device.type == target.type or (given.get("non_blocking") and target.type == ELSEWHERE.type):
        return
    note(f"{tuple(source.shape)} to the {'device' if target.type == ELSEWHERE.type else 'host'}")


def _check_reading(func: Any, name: str, given: Mapping[str, Any], note: Callable[[str], None]) -> None:
    called = f"{name}.{func._overloadname}"
    if name in WAITING or called in WAITING:
        note(called.removesuffix(".default"))
    if name == "repeat_interleave" and isinstance(given.get("repeats"), Tensor) and given.get("output_size") is None:
        note("repeat_interleave without a size")
    if name in ("index", "index_put", "index_put_"):
        for index in given["indices"]:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                note(f"{name} by a mask")


def _check_company(func: Any, name: str, here: Sequence[Tensor], note: Callable[[str], None]) -> None:
    """Tensors of the CPU may come along as single numbers of arithmetic, or as an index, which is then uploaded."""
    if name in ("index", "index_put", "index_put_"):
        if here:
            note(f"{name} by an index on the CPU")
        return
    if any(each.ndim for each in here) or (here and torch.Tag.pointwise not in func.tags):
        shapes = ", ".join(str(tuple(each.shape)) for each in here)
        raise RuntimeError(f"{func}: expected all tensors on {ELSEWHERE}, but {shapes} lies on the CPU")


class Lanes:
    """The lanes of offload (`omnimuse.offload.host`) to the second device, which does all in the order that it
    was asked for: no event is needed, and nobody waits. `log` tells of whole copies, and of those ahead of their turn.
    """

    def __init__(self) -> None:
        self.log: list[str] = []

    def pinned(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.uint8)

    def slot(self, size: int) -> Slot:
        return Slot(torch.zeros(size, dtype=torch.uint8, device=ELSEWHERE))

    def fetch(self, waiting: Tensor) -> Tensor:
        self.log.append("fetched")
        return waiting.to(ELSEWHERE, non_blocking=True)

    def write(self, slot: Slot, waiting: Tensor) -> None:
        self.log.append("written")
        slot.content[: len(waiting)].copy_(waiting, non_blocking=True)

    def begin(self, slot: Slot) -> None:
        """It was written."""

    def end(self, slot: Slot) -> None:
        """It was read."""

    def room(self) -> int:
        return 2**40

    def forget(self, slot: Slot) -> None:
        """It was written."""

    def close(self) -> None:
        """Nothing is under way."""


@torch.inference_mode()
def started(config: Config, device: SecondDevice, lanes: Lanes | None = None) -> Engine:
    """An engine whose weights are read to the device, or to where they wait for it, as `config` says."""
    where, begin = Choice("place", "device", str(ELSEWHERE), "asked for"), lanes or Lanes()
    with ExitStack() as patches:
        patches.enter_context(patch.object(build, "choose_device", lambda chosen: (ELSEWHERE, where)))
        patches.enter_context(patch.object(build, "compute_on", lambda device: None))
        patches.enter_context(patch.object(host, "DeviceLanes", lambda device: begin))
        patches.enter_context(patch.dict(os.environ, HF_DEACTIVATE_ASYNC_LOAD="1"))  # a thread knows no second device
        patches.enter_context(patch.object(device, "draws", True))
        built = build.build(config)
    assert built.pipeline.ctx.device == ELSEWHERE
    pipeline = type(built.pipeline)(replace(built.pipeline.ctx, send=device.send), built.pipeline.part)
    return Engine(Runner(pipeline, config.schedule, built.resources, clock=device.clock()), built.door)


@torch.inference_mode()
def moved(engine: Engine, device: SecondDevice, offload: str = "none", lanes: Lanes | None = None) -> Engine:
    """An engine over the components of `engine`, a resident one on the CPU, which move; loading is not tried here."""
    return Engine(moved_runner(engine.runner, device, offload, lanes), engine.door)


@torch.inference_mode()
def moved_runner(runner: Runner, device: SecondDevice, offload: str = "none", lanes: Lanes | None = None) -> Runner:
    """The same for a runner. Its components wait outside of the device as `offload` says; ranks exchange from there."""
    ctx = runner.pipeline.ctx
    here = [name for name in ctx.components if ctx.lent.get(name, ctx.mesh.rank) == ctx.mesh.rank]
    parts = {name: part for name in here if isinstance(part := ctx.components[name], nn.Module)}
    parcels = {} if offload == "none" else sent_out(parts, offload, lanes or Lanes())
    for name, part in parts.items():
        if name not in parcels:
            part.to(ELSEWHERE)
    mesh = replace(ctx.mesh, axes={name: _reaching(axis) for name, axis in ctx.mesh.axes.items()})
    components = Residency(dict(ctx.components), parcels)
    adapters = _moved_adapters(ctx.adapters)
    there = replace(ctx, device=ELSEWHERE, send=device.send, mesh=mesh, components=components, adapters=adapters)
    pipeline = type(runner.pipeline)(there, runner.pipeline.part)
    return Runner(pipeline, runner.config, clock=device.clock())


def _moved_adapters(adapters: Adapters) -> Adapters:
    """For the same layers: what was read before is forgotten, and what is read from now on lies there."""
    moved = copy(adapters)
    moved._known, moved._living = {}, weakref.WeakValueDictionary()
    if isinstance(moved._read, Reader):
        moved._read = copy(moved._read)
        moved._read._device = ELSEWHERE
    return moved


def _reaching(axis: Axis) -> Axis:
    """The axis for tensors of the second device, which go through gloo, as those of the CPU."""
    if axis.group is not None:
        gloo = axis.group._get_backend(torch.device("cpu"))
        axis.group._register_backend(ELSEWHERE, dist.ProcessGroup.BackendType.GLOO, gloo)
    return replace(axis, device=ELSEWHERE)


def sent_out(parts: Mapping[str, nn.Module], offload: str, lanes: Lanes) -> dict[str, Parcel]:
    """Weights wait as the pass `offload` (`worker/build.py`) has them wait; the parcels of whole components."""
    store, parcels = HostStore(lanes), dict[str, Parcel]()
    for name, module in parts.items():
        stacks = list(module.stacks().values()) if offload == "layers" and isinstance(module, Network) else []
        lists = block_lists(module) if offload == "layers" and not isinstance(module, Network) else []
        blocks = [block for stack in stacks for block in stack.blocks()] + [block for each in lists for block in each]
        waiting: dict[nn.Module, Parcel] = {block: written(block, store, lent=True) for block in blocks}
        for parcel in waiting.values():
            parcel.leave()
        for stack in stacks:
            owner: Any = stack.runner if isinstance(stack.runner, StepCache) else stack
            runner = LayerwiseOffload({block: waiting[block] for block in stack.blocks()})
            setattr(owner, "inner" if owner is stack.runner else "runner", runner)
        for each in lists:
            visit(each, waiting)
        parcels[name] = written(module, store)
        parcels[name].leave()
        for owner in module.modules():  # what was computed, and is in no file, stays on the device
            for key, buffer in owner.named_buffers(recurse=False):
                setattr(owner, key, buffer if buffer.is_meta else buffer.to(ELSEWHERE))
    return parcels
