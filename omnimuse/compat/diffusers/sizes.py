"""Sizes that a pipeline class computes from a checkpoint's configurations, worked out from its source.

A class says `height = height or self.default_sample_size * self.vae_scale_factor` and refuses what is no multiple of
`self.vae_scale_factor * 2`. Such expressions are computed here with the configurations for the components; whatever
cannot be computed so is unknown, and then the pipeline decides when it runs.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Iterator
from typing import Any

from omnimuse.compat.diffusers.source import PipelineSource
from omnimuse.core.spec import Configs

USUAL_MULTIPLE = 8
"""Pixels a side that one latent of most autoencoders stands for."""

_ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}
_FACTORS = ("vae_scale_factor", "vae_scale_factor_spatial", "vae_spatial_compression_ratio")


class UnknownError(Exception):
    """An expression that cannot be computed from configurations."""


def default_side(source: PipelineSource, configs: Configs, name: str) -> int | None:
    """The pixels of `name` ("height" or "width") that the pipeline takes by itself; None if only it knows."""
    if name not in source.parameters:
        return None
    if isinstance(value := source.parameters[name].default, int):
        return value
    reader = _Reader(source, configs)
    for node in ast.walk(source.bodies["__call__"]):
        match node:
            case ast.Assign(
                targets=[ast.Name(id=target)], value=ast.BoolOp(op=ast.Or(), values=[ast.Name(id=first), rest])
            ) if target == first == name:
                return reader.whole(rest)
    return _network_side(source, configs, reader)


def size_multiple(source: PipelineSource, configs: Configs) -> int:
    """What height and width must be multiples of: what the class refuses otherwise, or the side of one latent."""
    reader = _Reader(source, configs)
    checks = source.bodies.get("check_inputs")
    for divisor in _refused_remainders(checks) if checks is not None else ():
        if (value := reader.whole(divisor)) is not None:
            return max(value, 1)
    for name in _FACTORS:
        if name in reader.assigned and (value := reader.whole(reader.assigned[name])) is not None:
            return max(value, 1)
    return USUAL_MULTIPLE


def _refused_remainders(checks: ast.FunctionDef) -> Iterator[ast.expr]:
    """The X of every `height % X != 0` that raises."""
    for node in ast.walk(checks):
        if isinstance(node, ast.If) and any(isinstance(part, ast.Raise) for part in node.body):
            for part in ast.walk(node.test):
                match part:
                    case ast.BinOp(left=ast.Name(id="height"), op=ast.Mod(), right=divisor):
                        yield divisor


def _network_side(source: PipelineSource, configs: Configs, reader: _Reader) -> int | None:
    """The side that the network was made for, where `__call__` looks at it in more than one expression."""
    written = ast.unparse(source.bodies["__call__"])
    for network in ("unet", "transformer"):
        if f"self.{network}.config.sample_size" in written and "vae_scale_factor" in reader.assigned:
            side, factor = configs.get(network, {}).get("sample_size"), reader.assigned["vae_scale_factor"]
            scale = reader.whole(factor)
            return side * scale if isinstance(side, int) and scale else None
    return None


class _Reader:
    """Computes expressions of a class's methods, `self` being the pipeline of a checkpoint with `configs`."""

    def __init__(self, source: PipelineSource, configs: Configs) -> None:
        self.configs = configs
        self.assigned: dict[str, ast.expr] = {}
        for node in ast.walk(source.bodies["__init__"]) if "__init__" in source.bodies else ():
            match node:
                case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"), attr=name)], value=value):
                    self.assigned[name] = value

    def whole(self, node: ast.expr) -> int | None:
        """The whole number that `node` stands for, or None."""
        try:
            value = self._value(node)
        except (UnknownError, TypeError, ArithmeticError, RecursionError):
            return None
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                return _ARITHMETIC[type(op)](self._value(left), self._value(right))
            case ast.IfExp(test=test, body=body, orelse=other):
                return self._value(body if self._holds(test) else other)
            case ast.Call(func=ast.Name(id="len"), args=[what]):
                return len(self._value(what))
            case ast.Attribute(
                value=ast.Attribute(value=ast.Attribute(value=ast.Name(id="self"), attr=part), attr="config"), attr=key
            ) if key in self.configs.get(part, {}):
                return self.configs[part][key]
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="self"), attr=part), attr=key) if (
                key in self.configs.get(part, {})
            ):
                return self.configs[part][key]  # networks repeat what they were configured with
            case ast.Attribute(value=ast.Name(id="self"), attr=name) if name in self.assigned:
                return self._value(self.assigned[name])
        raise UnknownError(ast.unparse(node))

    def _holds(self, test: ast.expr) -> bool:
        """Whether a test for the presence of a component holds."""
        match test:
            case ast.BoolOp(op=ast.And(), values=values):
                return all(self._holds(value) for value in values)
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr"), args=[ast.Name(id="self"), ast.Constant(value=name), *_]
            ):
                return name in self.configs
            case ast.Call(
                func=ast.Name(id="hasattr"),
                args=[
                    ast.Attribute(value=ast.Attribute(value=ast.Name(id="self"), attr=part), attr="config"),
                    ast.Constant(value=key),
                ],
            ):
                return key in self.configs.get(part, {})
            case ast.Compare(left=what, ops=[ast.IsNot()], comparators=[ast.Constant(value=None)]):
                return self._holds(what)
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                return name in self.configs
        raise UnknownError(ast.unparse(test))
