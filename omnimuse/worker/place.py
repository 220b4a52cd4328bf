"""Where and in which number format a model computes, and why.

Asked once per start by the build; `explain` and `doctor` print the reasons. Refuses what this machine cannot do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from omnimuse.core.config import Choice, ModelConfig
from omnimuse.core.errors import ConfigError
from omnimuse.core.machine import memory, resident
from omnimuse.core.spec import Component
from omnimuse.layers.native import native_bfloat16
from omnimuse.observe.profile import Counter, most_counted, most_recorded, recorded

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(config: ModelConfig) -> tuple[torch.device, Choice]:
    """The device to compute on; ConfigError for one that this machine or this torch build does not have."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if config.device == "auto":
        why = f"torch {torch.__version__} sees no accelerator" if found is None else "torch sees an accelerator"
        device = torch.device("cpu") if found is None else found
        return device, Choice("place", "device", str(device), why)
    try:
        device = torch.device(config.device)
    except RuntimeError as error:
        raise ConfigError(f"device={config.device!r} is not a torch device; use 'cpu' or e.g. 'cuda:0'") from error
    if device.type != "cpu" and (found is None or found.type != device.type):
        have = "only the CPU" if found is None else f"the CPU and {found.type}"
        raise ConfigError(
            f"device={config.device!r} is not here: torch {torch.__version__} sees {have}; use device='cpu'"
        )
    if device.type != "cpu" and (device.index or 0) >= (count := torch.accelerator.device_count()):
        last = f"use {device.type}:0" + (f" to {device.type}:{count - 1}" if count > 1 else "")
        raise ConfigError(f"device={config.device!r} is not here: torch sees {count} of its kind; {last}")
    return device, Choice("place", "device", str(device), "asked for")


def compute_on(device: torch.device) -> None:
    """Make `device` the one of this thread, which is the engine's: events and Triton's kernels take what they are not
    told, and would be those of the first device otherwise.
    """
    if device.type != "cpu" and device.index is not None:
        torch.accelerator.set_device_index(device.index)


class Portion(NamedTuple):
    """What a process may have of its machine, which so many groups or processes share alike (`of`). Of what one of
    these has, other processes hold the bytes `beside` it, and `among` so many the rest is divided.
    """

    of: int = 1
    beside: int = 0
    among: int = 1


WHOLE = Portion()


def free_bytes(device: torch.device, portion: Portion = WHOLE) -> int:
    """The memory of `device` that this process may still take: of a GPU, what no process has, and what torch keeps here
    for tensors to come; of the machine its portion.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] // portion.among + kept
    return max(0, memory() // portion.of - portion.beside - resident()) // portion.among


def held_bytes(device: torch.device) -> int:
    """The memory of `device` that this process holds: that of tensors on a GPU, all that is resident elsewhere."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident()


def kept_bytes(device: torch.device) -> int:
    """The memory of `device` that this process keeps: of a GPU with what a step took and gave back to torch, which
    keeps it for tensors to come.
    """
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else resident()


@dataclass(frozen=True)
class Graphics:
    """What torch counts of the memory of a GPU."""

    device: torch.device

    def now(self) -> int:
        """What tensors have."""
        return torch.cuda.memory_allocated(self.device)

    def most(self) -> int:
        """What they had at most since `forget`."""
        return torch.cuda.max_memory_allocated(self.device)

    def forget(self) -> None:
        """Begin anew with the most."""
        torch.cuda.reset_peak_memory_stats(self.device)


COUNTERS: dict[str, Callable[[torch.device], Counter]] = {"cuda": Graphics}
"""Who counts the memory of a device, by its kind."""


def tells(device: torch.device) -> bool | None:
    """Whether `most_allocated` can tell anything now; None where it never can."""
    if device.type == "cpu":
        return not recorded()
    return True if device.type in COUNTERS else None


def most_allocated(device: torch.device, work: Callable[[], object]) -> Mapping[str, int] | None:
    """The bytes of `device` that torch has for tensors at most while it does `work`, beside those that it had before,
    by the label of the stage that has them; None where nobody tells.
    """
    if device.type == "cpu":
        return most_recorded(work)
    return most_counted(work, COUNTERS[device.type](device)) if device.type in COUNTERS else None


def choose_dtype(config: ModelConfig, device: torch.device, default: str = "") -> tuple[torch.dtype, Choice]:
    """The number format of the networks: bfloat16 where it is computed natively, float32 otherwise.

    `default` is what the environment puts in the place of that rule; ConfigError for a format that there is not.
    """
    if config.dtype != "auto":
        return DTYPES[config.dtype], Choice("place", "dtype", config.dtype, "asked for")
    if default:
        if default not in DTYPES:
            raise ConfigError(f"OMNIMUSE_DTYPE={default!r} is not allowed; use one of {', '.join(DTYPES)}, or unset it")
        return DTYPES[default], Choice("place", "dtype", default, "OMNIMUSE_DTYPE says so")
    native, why = native_bfloat16(device)
    name = "bfloat16" if native else "float32"
    return DTYPES[name], Choice("place", "dtype", name, why)


def component_dtype(component: Component, config: Mapping[str, object], dtype: torch.dtype) -> tuple[torch.dtype, str]:
    """The number format of one component beside networks in `dtype`, and why it has its own, if it has."""
    if component.dtype and DTYPES[component.dtype] != dtype:
        return DTYPES[component.dtype], f"the reference computes it in {component.dtype} whatever the networks are in"
    if config.get("force_upcast") and dtype == torch.float16:
        return torch.float32, "its config.json says force_upcast: float16 overflows in it"
    return dtype, ""


def shorter_products(device: torch.device, dtypes: Collection[torch.dtype]) -> list[Choice]:
    """Whether a GPU takes TF32, numbers of 19 bits, where networks are in float32: as torch has it."""
    if device.type != "cuda" or torch.float32 not in dtypes:
        return []
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    kinds = {"products": torch.backends.cuda.matmul, "convolutions": convolutions}
    found = [name for name, kind in kinds.items() if kind.fp32_precision == "tf32"]
    return [Choice("place", "tf32", " and ".join(found) or "none", "of what is in float32, as torch is set")]
