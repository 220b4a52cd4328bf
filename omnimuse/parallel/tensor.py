"""The tensor axis: every rank holds some heads and some widths of every block, and the ranks add up what they made.

A build pass calls `share_weights` on a network that is still on the meta device: the layers that its plan names
(`core/plans.py`) become as large as this rank's share, and the loader is told which part of the files belongs there.
Heads need not divide by the ranks, and of more ranks than heads of keys several have the same ones. Models know nothing
of it: they ask the attention beside a layer for its heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.attention.layer import Heads
from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.core.plans import Columns, Cut, Cutting, Rows, Slices, Span, Total, Widths
from omnimuse.layers.network import Network
from omnimuse.layers.norm import QueryKeyNorm
from omnimuse.parallel.collectives import gathered, summed
from omnimuse.parallel.mesh import Axis


class Gathering(nn.Module):
    """A layer, however it is `made`, of which this rank computes some outputs, and is given the rest; `counts` by
    rank.
    """

    axis: Axis
    counts: tuple[int, ...]
    bias: Tensor | None
    made: Callable[[Tensor, Tensor | None], Tensor]
    """What the weights here make of inputs, and a bias added to it."""

    def forward(self, x: Tensor) -> Tensor:
        part = self.made(x, self.bias).movedim(-1, 0)  # [N_i, ...]
        return torch.cat(gathered(self.axis, part, self.counts)).movedim(0, -1)


class Summing(nn.Module):
    """A layer, however it is `made`, of which this rank has some inputs; the outputs of all ranks are added up, then
    the bias.
    """

    axis: Axis
    bias: Tensor | None
    made: Callable[[Tensor, Tensor | None], Tensor]
    """The same as of `Gathering`."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.total(self.made(x, None))
        return out if self.bias is None else (out + self.bias).to(x.dtype)

    def total(self, part: Tensor) -> Tensor:
        """What all ranks made of their inputs, added up."""
        return summed(self.axis, part)


class GatheredLinear(Gathering):
    """A linear layer of which this rank has some rows of the weights."""

    def __init__(self, linear: nn.Linear, axis: Axis, counts: Sequence[int]) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.axis = axis
        self.counts = tuple(counts)

    def made(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.weight, bias)


class SummedLinear(Summing):
    """A linear layer of which this rank has some columns of the weights."""

    def __init__(self, linear: nn.Linear, axis: Axis) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.axis = axis

    def made(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.weight, bias)


class Summed(nn.Module):
    """Whatever comes, of all ranks, added up."""

    def __init__(self, axis: Axis) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, part: Tensor) -> Tensor:
        return summed(self.axis, part)


class SummedNorm(nn.Module):
    """An RMS norm over the heads of all ranks, `width` numbers, of which this one has some.

    `pieces` norms with weights of their own lie in one weight, as in `QueryKeyNorm`, whose `rounds_once` it has, too.
    """

    def __init__(self, norm: QueryKeyNorm | nn.RMSNorm, axis: Axis, width: int) -> None:
        super().__init__()
        self.weight = norm.weight
        self.axis = axis
        self.width = width
        self.eps = torch.finfo(torch.float32).eps if norm.eps is None else norm.eps
        self.pieces = 2 if isinstance(norm, QueryKeyNorm) else 0
        self.rounds_once = norm.rounds_once if isinstance(norm, QueryKeyNorm) else True

    def forward(self, x: Tensor) -> Tensor:
        exact = x.float()
        squares = summed(self.axis, exact.pow(2).sum(-1, keepdim=True))
        normed = exact * torch.rsqrt(squares / self.width + self.eps)
        weight = self.weight.view(self.pieces, 1, -1) if self.pieces else self.weight
        return ((normed if self.rounds_once else normed.to(x.dtype)) * weight).to(x.dtype)


def share_weights(network: Network, axis: Axis) -> dict[str, Slices]:
    """Cut `network` (on meta) as its plan says; what this rank holds of every tensor that is cut, by name.

    ConfigError where there are fewer heads than ranks, or no plan; the same on every rank.
    """
    plan = network.plan()
    if not plan:
        raise ConfigError(
            f"parallel tensor={axis.size} cannot be: {type(network).__name__} does not say how its weights are cut; "
            "use ulysses or ring, which share out tokens"
        )
    if (most := sharing(network, axis.size)) < axis.size:
        raise ConfigError(
            f"parallel tensor={axis.size} cannot be: this model has {most} heads to share out, and every rank needs "
            f"one; use tensor={most} or less"
        )
    sites = _sites(network)
    made: dict[str, tuple[nn.Module, dict[str, Slices]]] = {}
    for path, cutting in _matched(network, plan):
        module, near = network.get_submodule(path), sites.get(path, [])
        made[path] = _cut(path, module, cutting, near[0] if near else None, axis)
    for path, (module, _) in made.items():
        network.set_submodule(path, module)
    for site in {id(site): site for near in sites.values() for site in near}.values():
        site.keep_heads(Cut(axis.index, axis.size))
    return {f"{path}.{name}": slices for path, (_, found) in made.items() for name, slices in found.items()}


def _by_heads(cutting: Cutting) -> bool:
    return not isinstance(cutting, Total) and bool(cutting.queries or cutting.keys)


def sharing(network: Network, ranks: int) -> int:
    """How many of so many ranks can share out its heads: each needs one of queries, and where a norm is over all heads
    of keys, one of these that no other has.
    """
    cuttings, most = dict(_matched(network, network.plan())), ranks
    for path, near in _sites(network).items():
        cutting = cuttings[path]
        once = isinstance(cutting, Widths) and cutting.keys
        most = min(most, *(site.whole.keys if once else site.whole.queries for site in near))
    return most


def _sites(network: Network) -> dict[str, list[Heads]]:
    """The attention beside every layer that is cut by heads."""
    every = {path: module for path, module in network.named_modules() if isinstance(module, Heads)}
    return {path: _beside(path, every) for path, cutting in _matched(network, network.plan()) if _by_heads(cutting)}


def _matched(network: Network, plan: Mapping[str, Cutting]) -> Iterator[tuple[str, Cutting]]:
    """Every module that the plan names, and how it is cut."""
    paths = [path.split(".") for path, _ in network.named_modules()]
    for pattern, cutting in plan.items():
        pieces = pattern.split(".")
        found = [path for path in paths if len(path) == len(pieces) and all(map(fnmatchcase, path, pieces))]
        if not found:
            raise ModelError(f"the plan of {type(network).__name__} names {pattern!r}, and nothing there is called so")
        yield from ((".".join(path), cutting) for path in found)


def _beside(path: str, sites: Mapping[str, Heads]) -> list[Heads]:
    """The attention that the layer at `path` works for: what the smallest part around it has, all with equal heads."""
    inside = path
    while inside:
        inside = inside.rpartition(".")[0]
        near = [site for name, site in sites.items() if name.startswith(f"{inside}.")]
        if near and len({(site.num_heads, site.key_heads, site.head_dim) for site in near}) == 1:
            return near
        if near:
            break
    raise ModelError(f"the plan cuts {path} by heads, and there is no attention beside it that says how many")


def _cut(
    path: str, module: nn.Module, cutting: Cutting, site: Heads | None, axis: Axis
) -> tuple[nn.Module, dict[str, Slices]]:
    """`module` with this rank's share of its weights, and which that is."""
    if isinstance(cutting, Widths):
        assert isinstance(module, QueryKeyNorm | nn.RMSNorm), f"{path} is no norm"
        width = module.weight.numel() // (cutting.queries + cutting.keys)
        slices = {"weight": slices_of(path, cutting, module.weight.numel(), 0, site, Cut(axis.index, axis.size))}
        module.weight = _held(module.weight, slices["weight"])
        return SummedNorm(module, axis, width), slices
    if isinstance(cutting, Total):
        assert isinstance(module, nn.Identity), f"{path} is no place to add up"
        return Summed(axis), {}
    assert isinstance(module, nn.Linear), f"{path} is no linear layer"
    if isinstance(cutting, Rows):
        slices = {"weight": slices_of(path, cutting, module.in_features, 1, site, Cut(axis.index, axis.size))}
        module.weight = _held(module.weight, slices["weight"])
        if cutting.summed:
            return SummedLinear(module, axis), slices
        biased = module.bias is not None
        assert not biased, f"{path} has a bias, which every rank would add"
        module.in_features = slices["weight"].held
        return module, slices
    every = [slices_of(path, cutting, module.out_features, 0, site, Cut(at, axis.size)) for at in range(axis.size)]
    mine, counts = every[axis.index], [each.held for each in every]
    module.weight, module.out_features = _held(module.weight, mine), mine.held
    slices = {"weight": mine}
    if module.bias is not None:
        module.bias, slices["bias"] = _held(module.bias, mine), mine
    return (GatheredLinear(module, axis, counts) if cutting.gather else module), slices


def slices_of(
    path: str, cutting: Columns | Rows | Widths, whole: int, dim: int, site: Heads | None, part: Cut
) -> Slices:
    """Which of the `whole` places of the layer at `path` belong to `part`."""
    spans: list[Span] = []
    end = 0
    for kind in ["queries"] * cutting.queries + ["keys"] * cutting.keys:
        assert site is not None, "layers that are cut by heads have one"
        queries, keys = site.whole.spans(part)
        (start, stop), count = (queries, site.whole.queries) if kind == "queries" else (keys, site.whole.keys)
        spans.append((end + start * site.head_dim, end + stop * site.head_dim))
        end += count * site.head_dim
    others = 0 if isinstance(cutting, Widths) else cutting.others
    width, rest = divmod(whole - end, max(others, 1))
    if rest or (not others and width):
        raise ModelError(f"the plan cuts {path} into parts that are not its {whole} places; {cutting} is wrong there")
    for number in range(others):
        start, stop = part.span(width)
        spans.append((end + number * width + start, end + number * width + stop))
    return Slices(dim, whole, tuple(spans))


def _held(tensor: Tensor, slices: Slices) -> nn.Parameter:
    """A parameter on meta of the size of what is held of `tensor`."""
    shape = list(tensor.shape)
    shape[slices.dim] = slices.held
    return nn.Parameter(torch.empty(shape, dtype=tensor.dtype, device="meta"), requires_grad=False)
