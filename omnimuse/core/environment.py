"""The environment of this process, and of those that it starts: what is read of it, in this one place.

Environment variables are for machines and tests; people choose in `core/config.py`. No torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from omnimuse.core.config import check_threads
from omnimuse.core.errors import ConfigError

CACHE_DIT = "SGLANG_CACHE_DIT_"
SPINS = "10000"
"""As quick as libgomp's 300000 on cores of one's own, and much less is lost where others want them."""


@dataclass(frozen=True)
class Environment:
    """Every environment variable that omnimuse reads, read in this one place."""

    world_size: int
    local_rank: int
    fault: str
    omp_threads: int | None
    omp_wait_policy: str
    dtype: str
    attention: str
    cache_dit: Mapping[str, str]

    @staticmethod
    def read() -> Environment:
        """`WORLD_SIZE` and `LOCAL_RANK` come from torchrun, `OMNIMUSE_FAULT` from tests (see `deploy/faults.py`).

        `OMP_NUM_THREADS` may be a list, one number a level of nesting; the first counts.
        `DIFFUSION_ATTENTION_BACKEND` is a name of another engine's, for scripts written to it (docs/compat.md), and so
        are those that begin with `SGLANG_CACHE_DIT_`, by what follows.
        `OMNIMUSE_DTYPE` is what `dtype="auto"` means; empty or left out, the build decides.
        """
        return Environment(
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            fault=os.environ.get("OMNIMUSE_FAULT", ""),
            omp_threads=_omp_threads(os.environ.get("OMP_NUM_THREADS", "")),
            omp_wait_policy=os.environ.get("OMP_WAIT_POLICY", "").lower(),
            dtype=os.environ.get("OMNIMUSE_DTYPE", ""),
            attention=os.environ.get("DIFFUSION_ATTENTION_BACKEND", ""),
            cache_dit={
                name.removeprefix(CACHE_DIT): text for name, text in os.environ.items() if name.startswith(CACHE_DIT)
            },
        )

    @staticmethod
    def alone() -> bool:
        """Whether this process is no rank of several that torchrun has started."""
        return os.environ.get("WORLD_SIZE", "1") == "1"

    @staticmethod
    def hush_recordings() -> None:
        """Have torch's profiler tell of nothing below an error: it writes to stderr by itself, past every log.

        What it says of a recording's beginning and end (`USDT`) it has above errors, and is let through with them.
        """
        os.environ.setdefault("KINETO_LOG_LEVEL", "4")

    @staticmethod
    def options() -> dict[str, str]:
        """What is set behind `OMNIMUSE_`, by the rest of the name; an empty variable is as good as none."""
        ours = "OMNIMUSE_"
        return {name[len(ours) :]: text for name, text in os.environ.items() if name.startswith(ours) and text}

    @staticmethod
    def for_workers() -> dict[str, str]:
        """The environment of worker processes: this one, with ranks that meet on the loopback interface only."""
        loopback = "lo0" if sys.platform == "darwin" else "lo"
        meeting = {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
        return {**meeting, **_bounded_spin(), **os.environ}

    @staticmethod
    def for_writer(device: str) -> dict[str, str]:
        """The environment of vLLM in a process of its own, on `cpu`, or on that GPU of those seen here.

        One process is enough, and ends as one. What somebody chose stays.
        """
        found = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1", **os.environ}  # GiB
        found.pop("PYTHONPATH", None)  # of another environment than that Python's
        found["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if device.isdecimal():
            seen = found.get("CUDA_VISIBLE_DEVICES", "")
            found["CUDA_VISIBLE_DEVICES"] = seen.split(",")[int(device)] if seen else device
        return found

    @staticmethod
    def meet_here() -> None:
        """Have ranks that this process talks to be met on the loopback interface, unless somebody chose another."""
        loopback = "lo0" if sys.platform == "darwin" else "lo"
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, loopback)

    @staticmethod
    def bound_spin() -> None:
        """Have OpenMP's threads of this process spin for a bounded time; no effect once torch is imported."""
        for name, value in _bounded_spin().items():
            os.environ.setdefault(name, value)

    @staticmethod
    def keep_compiled(usual: str, kind: str) -> None:
        """Have torch keep what it compiles in a folder `kind` of its cache, which is `usual` or what somebody chose."""
        chosen = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or usual)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(chosen if chosen.name == kind else chosen / kind)


def _bounded_spin() -> dict[str, str]:
    """How often libgomp's threads look before they sleep, unless somebody has chosen how they wait."""
    return {} if "OMP_WAIT_POLICY" in os.environ else {"GOMP_SPINCOUNT": SPINS}


def _omp_threads(text: str) -> int | None:
    first = text.split(",")[0].strip()
    if not first.isdecimal() and first:
        raise ConfigError(f"OMP_NUM_THREADS={text} is not a number of threads; use a whole number above 0, or unset it")
    check_threads("OMP_NUM_THREADS", int(first) if first else None)
    return int(first) if first else None
