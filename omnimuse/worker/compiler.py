"""Where what the compiler makes is kept: apart for every kind of processor, its instructions, and every torch.

torch compiles for the instructions that it finds or is told to use (ATEN_CPU_CAPABILITY), and takes what lies in its
cache for as good as new; on a disk that machines share, or after another choice, that is code for something else.
Used by the build pass that compiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch

from omnimuse.core.environment import Environment
from omnimuse.core.machine import processor
from omnimuse.quant.grids import hold_still

FORMS = 64
"""How many times one function is compiled at most: networks of a model that have different widths share functions."""


def prepare() -> None:
    """Have torch compile into a folder that only this kind of machine uses, and know what never changes.

    It traces a block without looking for what it knows already of an operation with such inputs: where sizes are
    symbols, it takes longer to recognise the inputs than to work the operation out.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    hold_still()
    torch._dynamo.config.fake_tensor_cache_enabled = False
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, FORMS)
    Environment.keep_compiled(default_cache_dir(), kind())


def kind(of: str | None = None, capability: str | None = None, version: str = torch.__version__) -> str:
    """A name for what compiled code depends on: the processor, which of its instructions torch uses, and torch."""
    capability = capability or torch.backends.cpu.get_cpu_capability()
    digest = sha256("\n".join((of or processor(), capability, version)).encode()).hexdigest()
    return f"omnimuse-{capability.lower()}-{digest[:16]}"


@dataclass(frozen=True)
class Compiled:
    """How many pieces of code this process has compiled, and how many it has found on the disk instead."""

    made: int
    found: int


def compiled() -> Compiled:
    """The count so far, as torch keeps it: it finds a whole program, and with it its graph, or a graph alone."""
    from torch._dynamo.utils import counters

    programs, graphs = counters["aot_autograd"], counters["inductor"]
    made = graphs["fxgraph_cache_miss"] + graphs["fxgraph_cache_bypass"]
    return Compiled(made, max(programs["autograd_cache_hit"], graphs["fxgraph_cache_hit"]))


def kept_in() -> Path:
    """The folder with what this process compiles."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir())
