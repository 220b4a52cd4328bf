"""Reads files of low-rank adapters and binds what is in them to the layers of a pipeline's networks.

Called by `lora/adapters.py` through the build that made a `Reader`. Names, shapes and formats are compared before
a number is read; an adapter that does not fit whole is refused whole. Never opens a pickle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from omnimuse.core.errors import ModelError, RequestError
from omnimuse.loader.adapter_file import find_file, refusal, stamp
from omnimuse.loader.adapter_names import DIFFERENCE, Role, bare, layer_of, named, other_kind
from omnimuse.loader.adapter_numbers import BIASES, Bound, Numbers, Shapes, Stored, once, products_of
from omnimuse.loader.adapter_settings import Strength, strength_of, strengths
from omnimuse.loader.differences import listed
from omnimuse.loader.files import AGAIN
from omnimuse.loader.headers import opened
from omnimuse.loader.sites import Linears, Outputs
from omnimuse.lora.adapter import Adapter, Product, Site

EXPECTED = 4
FLOATS = ("F32", "F16", "BF16", "F64")
WHOLE = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64")
"""Formats of whole numbers, which trainers write alphas in, too."""
_HALVES: frozenset[Role] = frozenset(("down", "up", "bias"))


class Reader:
    """Makes adapters of files for a pipeline whose components have these `sites`; `main` are those that draw.

    With a `folder` only files in it are read. The components are parts of those that they are `within`, and of classes
    called as `kinds` says.
    """

    def __init__(
        self,
        sites: Mapping[str, Linears],
        main: Sequence[str],
        device: torch.device,
        folder: Path | None = None,
        within: frozenset[str] = frozenset(),
        kinds: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._sites = sites
        self._kinds = {name: kinds.get(name, "") for name in sites}
        self._within = within
        self._main = tuple(main)
        self._device = device
        self._folder = folder

    def __call__(
        self, source: str, component: str = "", room: Callable[[Adapter], None] = lambda planned: None
    ) -> Adapter:
        """The adapter in the file `source`, which is for that of the networks which draw if a `component` is named.
        Before a number is read `room` is told of it as it will be, on meta, and may refuse it.

        RequestError says what is wrong with it, or what it does not fit.
        """
        if component and component not in self._main:
            has = f"it has {' and '.join(self._main)}"
            raise refusal(source, f"cannot be for {component}, which is no network that draws in this model; {has}")
        file, name = find_file(source, self._folder), f"{stamp(source, self._folder)} {component}"
        try:
            with opened(file) as handle:
                names = [name for name in handle.keys() if not _says_nothing(name, handle)]  # noqa: SIM118
                shapes = {name: tuple(handle.get_slice(name).get_shape()) for name in names}
                bound = self._bind(source, shapes, component)
                kinds = {name: handle.get_slice(name).get_dtype() for name in shapes}
                for layer, each in bound.items():
                    _check(source, layer, each, shapes, kinds)
                said = strengths(file, handle.metadata() or {})
                room(self._adapter(name, bound, said, Shapes(shapes)))
                return self._adapter(name, bound, said, Stored(source, file, handle, self._device))
        except (ModelError, OSError) as problem:
            why = str(problem).replace(str(file), source)  # a client does not learn where its server's files are
            why = why.replace(AGAIN, "get the adapter again")
            raise refusal(source, f"cannot be read: {why}") from problem

    def _adapter(
        self, name: str, bound: Mapping[str, Bound], said: Mapping[str, Strength], numbers: Numbers
    ) -> Adapter:
        """What is `bound` as it is worn, of these `numbers`."""
        products = dict[Site, tuple[Product, ...]]()
        for layer, each in bound.items():
            strength = strength_of(each.component, said, draws=each.component in self._main)
            factor = partial(strength.factor, layer)
            for path, product in products_of(layer, each, self._sites[each.component], factor, numbers):
                site = each.component, path
                products[site] = (*products.get(site, ()), product)
        return Adapter(name, products, self._within.union(each.component for each in bound.values()))

    # -- names -----------------------------------------------------------------------------------------------------

    def _bind(self, source: str, shapes: Mapping[str, tuple[int, ...]], component: str) -> dict[str, Bound]:
        """Where every layer of the file belongs."""
        if kind := other_kind(list(shapes)):
            raise refusal(source, f"is {kind}; only adapters of low-rank products (LoRA) are worn")
        layers: dict[str, dict[Role, str]] = {}
        strange = []
        for tensor in shapes:
            part = named(tensor)
            if part is None:
                strange.append(tensor)
            else:
                layers.setdefault(part.layer, {})[part.role] = tensor
        if not layers or strange:
            what = f"holds {len(strange)} tensors that are not of low-rank products ({listed(strange[:EXPECTED])})"
            kind = "use one that a trainer of LoRA has saved (PEFT, diffusers, Kohya, AI-Toolkit)"
            raise refusal(source, f"{what if strange else 'holds no tensors'}; {kind}")
        bound, unknown = dict[str, Bound](), list[str]()
        for name, tensors in layers.items():
            difference, halves = "whole" in tensors or tensors.keys() == {"shift"}, tensors.keys() & _HALVES
            if halves if difference else not {"down", "up"} <= halves:
                has = " and ".join(sorted(tensors.values()))
                why = "which are no one difference" if "whole" in tensors else "without the other half of the product"
                raise refusal(source, f"has {has} of {name} {why}; get it again")
            found = self._find(name, [component] if component else self._main)
            if found is None:
                unknown.append(name)
            else:
                bound[name] = Bound(tensors, *found)
        if odd := [next(iter(layers[name].values())) for name in unknown if layers[name].keys() <= {"whole", "shift"}]:
            kind = f"whole differences of what is no linear layer of this model ({listed(odd[:EXPECTED])})"
            raise refusal(source, f"has {kind}; low-rank products, and whole differences of linear layers, are worn")
        if unknown:
            raise self._unbound(source, unknown, len(layers))
        return once(source, bound)

    def _find(self, name: str, among: Sequence[str]) -> tuple[str, tuple[Outputs, ...]] | None:
        """The component and the outputs that the layer `name` is about, one of those `among` the networks that draw;
        None if there is no such layer.

        Networks in one set of files are told apart by names that begin there as components of a pipeline do elsewhere.
        """
        layer = layer_of(name, self._kinds)
        said = layer.component in among or layer.component not in ("", *self._main)
        for component in [layer.component] if said else among[:1]:
            if component in self._sites and (found := self._sites[component].find(layer.name, flat=layer.flat)):
                return component, found
        for component in among:
            if found := self._sites[component].find(bare(name), flat=False):
                return component, found
        return None

    def _unbound(self, source: str, unknown: Sequence[str], count: int) -> RequestError:
        known = [name for component in self._main[:1] for name in self._sites[component].known]
        step = max(len(known) // EXPECTED, 1)
        expected = ", ".join(known[::step][:EXPECTED])
        part = f"{len(unknown)} of its {count} layers {'is' if len(unknown) == 1 else 'are'} not"
        part = f"none of its {count} layers is" if len(unknown) == count else part
        return refusal(
            source,
            f"does not fit this model: {part} in it ({listed(unknown[:EXPECTED])}). It has {len(known)} layers that an "
            f"adapter can be for, such as {expected}; use an adapter that was trained for this model",
        )


def _says_nothing(name: str, handle: Any) -> bool:
    """Whether that tensor is a difference of nothing but zeros."""
    return DIFFERENCE.fullmatch(name) is not None and not handle.get_tensor(name).float().any()


def _check(
    source: str, layer: str, bound: Bound, shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, str]
) -> None:
    """RequestError where the tensors of a layer are of other shapes or formats than its products have."""
    outputs, inputs = bound.count, bound.outputs[0].inputs
    whole = shapes.get(bound.tensors.get("whole", ""))
    if whole is not None and whole != (outputs, inputs):
        raise refusal(
            source,
            f"does not fit this model: {layer} is {list(whole)}, and that layer is [{outputs}, {inputs}]; use one "
            "that was trained for this model",
        )
    down: tuple[int, ...] = (1, inputs)  # a bias alone has a product of nothing
    up: tuple[int, ...] = (outputs, 1)
    if whole is not None:
        down, up = whole, (outputs, outputs)
    elif "down" in bound.tensors:
        down, up = shapes[bound.tensors["down"]], shapes[bound.tensors["up"]]
    rank = down[0] if down else 0
    if len(down) != 2 or len(up) != 2 or not rank or down != (rank, inputs) or up != (outputs, rank):
        raise refusal(
            source,
            f"does not fit this model: {layer} is {list(up)} times {list(down)}, and that layer takes [{outputs}, r] "
            f"times [r, {inputs}]; use an adapter that was trained for this model",
        )
    for role, name in bound.tensors.items():
        able = (*FLOATS, *WHOLE) if role == "alpha" else FLOATS
        if kinds[name] not in able:
            raise refusal(source, f"has {name} in the number format {kinds[name]}; use one in {', '.join(able)}")
    if "alpha" in bound.tensors and prod(shapes[bound.tensors["alpha"]]) != 1:
        has = list(shapes[bound.tensors["alpha"]])
        raise refusal(source, f"has an alpha of {layer} of the shape {has}, which is one number; get it again")
    if any(shapes[bound.tensors[role]] != (outputs,) for role in BIASES if role in bound.tensors):
        raise refusal(source, f"has a bias of {layer} that is not of its {outputs} outputs")
