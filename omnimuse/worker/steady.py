"""The build pass of the tier "invariant": networks whose rows are the same to the bit in any company.

What depends on company is put right from outside the model: products and activations (`layers/steady.py`) and calls of
attention. Everything is tried on this machine first; where it does not hold, a tier that was asked for is refused, and
the default is "fast" with the reason. `docs/tiers.md` says what each tier promises.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from math import prod

import torch
from torch import Tensor, nn

from omnimuse.ar.kv import Decoder
from omnimuse.attention.backends.one_by_one import OneByOne
from omnimuse.attention.layer import Attention
from omnimuse.core.config import Choice, Config, OffloadConfig
from omnimuse.core.errors import ConfigError
from omnimuse.layers.few import LARGE, Few, few_rows
from omnimuse.layers.kernels import Gated
from omnimuse.layers.network import Network
from omnimuse.layers.steady import (
    ALIGNMENT,
    Product,
    SteadyActivation,
    SteadyGated,
    Weighing,
    steady_heights,
    trial,
    tried_bytes,
    twice,
    written,
)
from omnimuse.loader.tensors import DtypePolicy
from omnimuse.offload.stores import FileStore
from omnimuse.parallel.agree import most_of_all, said_by_all
from omnimuse.parallel.mesh import Mesh
from omnimuse.parallel.tensor import GatheredLinear, SummedLinear, Summing
from omnimuse.quant.linear import QuantizedLinear
from omnimuse.worker.place import Portion, free_bytes
from omnimuse.worker.steady_shares import steady_layer

SHORT = 32  # rows; taller ones alone would cost a small request more than the tier may

Key = tuple[int, int, bool, torch.dtype]
"""A kind of product: outputs, inputs, whether there is a bias, and the format."""
Heights = dict[Key, tuple[int, ...]]
FewRows = dict[Key, Few]

ACTIVATIONS = "transformers.activations"
"""Where networks of a library have theirs from: all of them compute number by number."""

FAINT = 2**-20  # of a bias, that it does not outweigh what products with it were rounded by
SHARE_FOR_PACKING = 0.25  # of the memory that is free at the start


def obstacle(config: Config, device: torch.device) -> str | None:
    """Why networks cannot be made invariant as `config` has them on `device`, or None."""
    if device.type != "cpu":
        return f"what depends on company on {device.type} has not been measured yet"
    if config.parallel.elastic:
        return "how many ranks draw a request depends on who else is drawn"
    if config.compile.mode != "none":
        return "compiled blocks are other code for one row than for several"
    return None


def choose_tier(config: Config, device: torch.device, networks: dict[Network, DtypePolicy], mesh: Mesh) -> Choice:
    """Make `networks` (on the meta device) invariant if the tier asks for it or may be that by default; the choice.

    ConfigError where it was asked for and cannot be. All ranks of `mesh` choose the same, whatever one of them found.
    """
    tier = config.schedule.tier
    if tier == "exact":
        return _choice(tier, "asked for: every row has its own forward")
    if tier == "fast":
        return _choice(tier, "asked for: rows share forwards, and company may change the last bits")
    uneven = [network.uneven for network in networks if isinstance(network, Decoder) and network.uneven]
    why, heights, few = obstacle(config, device) or next(iter(uneven), None), Heights(), FewRows()
    if why is None:
        writers: dict[Network, DtypePolicy] = {
            network: networks[network] for network in networks if isinstance(network, Decoder)
        }
        said, may_pack = set(_keys(writers)), _may_pack(writers, config, device)
        for key in sorted(_keys(networks), key=_size, reverse=True):  # what the largest lay in is free for the others
            packed = may_pack if key in said else None
            heights[key], found = tried(key, torch.get_num_threads(), packed, config.offload)
            if found is not None:
                few[key] = found
        why = _unsteady(heights, usable_to=SHORT if tier == "auto" else None)
        why = next((said for said in said_by_all(mesh, why or "") if said), None)
    if why is not None:
        if tier == "invariant":
            raise ConfigError(f"tier=invariant cannot be: {why}; use tier=exact (own forwards) or tier=fast")
        return _choice("fast", f"default, not invariant: {why}")
    for network, policy in networks.items():
        make_steady(network, policy, heights, few if isinstance(network, Decoder) else {})
    if decoders := [network for network in networks if isinstance(network, Decoder)]:
        for decoder, fewest in zip(decoders, most_of_all(mesh, [each.fewest for each in decoders]), strict=True):
            decoder.fewest = fewest  # a rank that has other parts of weights would read fewer
    how = f"products in tiles of {_spoken(heights)} rows, tried on this machine"
    if any(each.packed for each in few.values()):
        how += "; large weights are there a second time, packed for tokens that are written"
    return _choice("invariant", f"{'default on a CPU' if tier == 'auto' else 'asked for'}: {how}")


@cache
def tried(key: Key, threads: int, may_pack: bool | None, offload: OffloadConfig) -> tuple[tuple[int, ...], Few | None]:
    """Heights for a kind of product by so many threads, and how few rows are computed if tokens are written with it.

    In a process the outcome is always the same, so that its next engine need not try again.
    """
    with room_to_try(key, offload) as room:
        weight, bias = trial_weights(key, room)
        heights = steady_heights(weight, bias, room[_size(key) :])
        return heights, None if may_pack is None else few_rows(weight, bias, may_pack=may_pack)


def make_steady(network: Network, policy: DtypePolicy, heights: Heights, few: FewRows) -> None:
    """Put steady parts in the place of the network's own; names of weights stay."""
    for path, module in list(network.named_modules()):
        if isinstance(module, Attention):
            module.backend = OneByOne(module.backend, fills=not isinstance(network, Decoder))
        elif isinstance(module, QuantizedLinear | Product):
            module.heights = heights.get(key_of(path, module, policy), ())
        elif isinstance(module, nn.Linear | GatheredLinear | SummedLinear):
            key = key_of(path, module, policy)
            if key in heights:  # else its weights are on another rank
                network.set_submodule(path, steady_layer(module, heights[key], few.get(key, Few((), packed=False))))
        elif isinstance(module, (nn.SiLU, nn.GELU, nn.Sigmoid)) or type(module).__module__ == ACTIVATIONS:
            network.set_submodule(path, SteadyActivation(module))
        elif isinstance(module, Gated):
            network.set_submodule(path, SteadyGated())
    if isinstance(network, Decoder) and few and not any(each.packed for each in few.values()):
        network.fewest = max((each.heights[-1] for each in few.values() if each.heights), default=1)


def _may_pack(networks: Iterable[Network], config: Config, device: torch.device) -> bool:
    """Whether the large weights of these may be there twice: they stay on the device, and it has memory left."""
    linears = (module for network in networks for module in network.modules() if isinstance(module, nn.Linear))
    size = sum(4 * linear.weight.numel() for linear in linears if linear.weight.numel() >= LARGE)
    return config.offload.mode == "none" and size <= SHARE_FOR_PACKING * free_bytes(device, Portion(config.sharing))


def _keys(networks: Mapping[Network, DtypePolicy]) -> Iterator[Key]:
    """Every kind of product in the networks, once."""
    kinds = {
        key_of(path, module, policy): None
        for network, policy in networks.items()
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear | Product | QuantizedLinear | GatheredLinear | SummedLinear)
    }
    return (key for key in kinds if key[0] and key[1])


def key_of(path: str, linear: Weighing | QuantizedLinear, policy: DtypePolicy) -> Key:
    """The kind of products of a module that is at `path` in its network; of nothing where others have all of it."""
    if isinstance(linear, QuantizedLinear):
        return (*linear.like().shape, False, linear.arithmetic)
    rows, *columns = linear.weight.shape
    biased = linear.bias is not None and not isinstance(linear, Summing)  # such is added behind what ranks add up
    return rows, prod(columns), biased, policy.of(f"{path}.weight")


@contextmanager
def room_to_try(key: Key, offload: OffloadConfig) -> Iterator[Tensor]:
    """Bytes, uint8, for what this kind is tried with: weights, tiles and what comes of them.

    Where weights wait in a file, these lie in one beside it: they are not the process's own either.
    """
    rows, columns, _, dtype = key
    size = _size(key) + tried_bytes(rows, columns, dtype)
    if offload.mode == "none":
        yield torch.empty(size, dtype=torch.uint8)
        return
    store = FileStore(offload.folder, make=False)
    try:
        yield store.content(store.add(size, lent=False))
    finally:
        store.close()


def trial_weights(key: Key, room: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Weights, which lie in `room` if that is given, and bias of that kind, to try it with: `trial_row` says how."""
    rows, columns, has_bias, dtype = key
    room = torch.empty(_size(key), dtype=torch.uint8) if room is None else room
    weight = twice(written(room[: rows * columns * dtype.itemsize].view(dtype).view(rows, columns)))
    return weight, (FAINT * trial(1, rows)[0]).to(weight) if has_bias else None


def _size(key: Key) -> int:
    """The bytes of weights of that kind, and as few more as it takes until what comes behind them is aligned."""
    rows, columns, _, dtype = key
    return -(-rows * columns * dtype.itemsize // ALIGNMENT) * ALIGNMENT


def _unsteady(heights: Heights, usable_to: int | None) -> str | None:
    """The first kind of product that is not steady, or only in tiles taller than `usable_to`, in words."""
    for (rows, columns, _, dtype), kept in heights.items():
        what = f"products with weights of {rows}x{columns} in {dtype}"
        if not kept:
            return f"{what} round by where a row lies, at every height that was tried on this machine"
        if usable_to is not None and kept[-1] > usable_to:
            return f"{what} agree only in tiles of {kept[-1]} rows and more, which would be slow for small pictures"
    return None


def _spoken(heights: Heights) -> str:
    shortest = max((kept[-1] for kept in heights.values()), default=0)
    tallest = min((kept[0] for kept in heights.values()), default=0)
    return f"{shortest} to {tallest}"


def _choice(tier: str, reason: str) -> Choice:
    return Choice("batching", "tier", tier, reason)
