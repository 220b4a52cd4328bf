"""How many threads compute a forward: all that were chosen, or one fewer while a neighbour has one of their cores.

Beside one neighbour on two cores, one thread draws sooner than two. But a picture must not depend on who else computes
here. In the tier "invariant" products have heights that were tried, and so it can be tried whether they are the same
to the bit with one thread fewer. Text encoders and decoders keep every thread: some of what they compute does depend on
it. The governor says when; the forwards ask.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch

from omnimuse.ar.kv import Decoder
from omnimuse.attention.layer import Attention
from omnimuse.core.config import Choice, Config
from omnimuse.core.machine import waited_here
from omnimuse.layers.network import Network
from omnimuse.layers.steady import Product, SteadyLinear, steady_row
from omnimuse.loader.tensors import DtypePolicy
from omnimuse.quant.linear import QuantizedLinear
from omnimuse.worker.steady import Key, key_of, trial_weights

logger = logging.getLogger(__name__)

TRIED = "sdpa"  # attention; with queries filled up as `OneByOne` does
SPARED = "while others want the cores, if a trial then shows that no bit depends on it"


class Crew:
    """The threads of forwards: `threads`, or one fewer between `spare` and `recall`.

    `obstacle` tries whether that changes a bit, and says what does; it is asked when a thread is first to be spared, so
    that a start does not take longer. `waited` gives the seconds for which the calling thread had no core.
    """

    def __init__(
        self,
        threads: int,
        obstacle: Callable[[], str | None],
        waited: Callable[[], float] = waited_here,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.threads = threads
        self._obstacle, self._waited, self._clock = obstacle, waited, clock
        self._may: bool | None = None
        self.recall()

    def spare(self) -> None:
        """From now on forwards have one thread fewer, if that changes nothing; what is counted of them begins anew."""
        if self._may is None:
            self._may = (why := self._obstacle()) is None
            logger.info("forwards can have one thread fewer: %s", why or "no product depends on it")
        self.spared = self._may
        self.seconds = self.waiting = 0.0

    def recall(self) -> None:
        """From now on they have all."""
        self.spared = False
        self.seconds = self.waiting = 0.0

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """For the length of a forward, the threads that it is to have; they are counted while one is spared."""
        if not self.spared:
            yield
            return
        began, waited = self._clock(), self._waited()
        torch.set_num_threads(self.threads - 1)
        try:
            yield
        finally:
            torch.set_num_threads(self.threads)
            self.seconds += self._clock() - began
            self.waiting += self._waited() - waited


def choose_crew(
    config: Config, threads: int, tier: str, networks: Mapping[Network, DtypePolicy]
) -> tuple[Crew | None, Choice]:
    """The crew of an engine whose threads are watched, if it may spare one; and why, or why not.

    `networks` are as the tier has made them.
    """
    why = _obstacle(config, tier, networks)
    choice = Choice("place", "thread to spare", "none" if why else "one", why or SPARED)
    return None if why else Crew(threads, partial(_dependent, _products(networks), threads)), choice


def _obstacle(config: Config, tier: str, networks: Iterable[Network]) -> str | None:
    if tier != "invariant":
        return f"in the tier {tier} last bits depend on the number of threads"
    if config.cache.kind != "none":
        return "step caches ask for sums over whole tensors, which depend on the number of threads"
    if any(isinstance(network, Decoder) for network in networks):
        return "what writes one token at a time was not tried with one thread fewer"
    for module in (module for network in networks for module in network.modules()):
        if isinstance(module, QuantizedLinear):
            return "products with quantized weights were not tried with one thread fewer"
        if isinstance(module, Attention) and module.backend.name != TRIED:
            return f"attention by {module.backend.name!r} was not tried with one thread fewer"
    return None


def _dependent(products: Mapping[Key, Product | SteadyLinear], threads: int) -> str | None:
    """The first kind of product that is not the same to the bit with one thread fewer, in words."""
    for key, module in products.items():
        if not _alike(key, module, threads):
            outputs, inputs, _, dtype = key
            return f"products with weights of {outputs}x{inputs} in {dtype} depend on the number of threads"
    return None


def _products(networks: Mapping[Network, DtypePolicy]) -> dict[Key, Product | SteadyLinear]:
    """One module of every kind of product."""
    found: dict[Key, Product | SteadyLinear] = {}
    for network, policy in networks.items():
        for path, module in network.named_modules():
            if isinstance(module, Product | SteadyLinear):
                found.setdefault(key_of(path, module, policy), module)
    return found


def _alike(key: Key, module: Product | SteadyLinear, threads: int) -> bool:
    """Whether the products of `module` are the same to the bit with `threads` and with one fewer."""
    weight, bias = trial_weights(key)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with_all = steady_row(weight, bias, module.heights)
        torch.set_num_threads(threads - 1)
        with_fewer = steady_row(weight, bias, module.heights)
    finally:
        torch.set_num_threads(before)
    return with_all is not None and with_fewer is not None and torch.equal(with_all, with_fewer)
