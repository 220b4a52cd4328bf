"""What every family's network owes to those who run its blocks, without which a step cache errs in silence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from torch import nn

from omnimuse.ar.kv import Decoder
from omnimuse.engine.engine import Engine
from omnimuse.layers.network import Network
from omnimuse.layers.stack import Block
from omnimuse.pipeline.denoise import Denoise
from tests.invariants.conftest import Subject
from tests.watch import watched


def networks(engine: Engine) -> list[Network]:
    """Those that draw: what writes one token at a time is never cached, and whole on every rank."""
    components = engine.runner.pipeline.ctx.components
    found = [each for name in components if isinstance(each := components.wherever(name), Network)]
    return [network for network in found if not isinstance(network, Decoder)]


def test_a_step_cache_watches_what_the_first_block_makes_of_the_step_not_its_input(shared: Engine) -> None:
    for network in networks(shared):
        first = network.last_stack().blocks()[0]
        assert type(first).probe is not Block.probe, f"{type(first).__name__} says nothing of the step"


def test_ranks_can_share_out_every_matrix_of_the_blocks(shared: Engine) -> None:
    for network in networks(shared):
        plan = [pattern.split(".") for pattern in network.plan()]
        assert plan, f"{type(network).__name__} needs a plan (core/plans.py) of how ranks cut its weights"
        blocks = {
            id(each) for stack in network.stacks().values() for block in stack.blocks() for each in block.modules()
        }
        for name, module in network.named_modules():
            path = name.split(".")
            planned = any(len(path) == len(each) and all(map(fnmatchcase, path, each)) for each in plan)
            linear = isinstance(module, nn.Linear) and id(module) in blocks
            assert planned or not linear, f"the plan does not name {name}"


def differences(found: Any, expected: Any, where: str = "cond") -> list[str]:
    """Paths of fields in which two conditions differ."""
    if isinstance(expected, torch.Tensor):
        same = isinstance(found, torch.Tensor) and found.shape == expected.shape
        same = same and torch.allclose(found, expected, atol=1e-5)
        return [] if same else [where]
    if is_dataclass(expected):
        names = [field.name for field in fields(expected)]
        parts = [differences(getattr(found, name), getattr(expected, name), f"{where}.{name}") for name in names]
        return [path for part in parts for path in part]
    if isinstance(expected, Mapping) and found.keys() == expected.keys():
        return [path for name in expected for path in differences(found[name], expected[name], f"{where}.{name}")]
    if isinstance(expected, tuple) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        return [path for number, pair in pairs for path in differences(*pair, f"{where}[{number}]")]
    return [] if found == expected else [where]


def first_rows(subject: Subject, engine: Engine) -> tuple[Network, list[Any]]:
    """The network that draws, and what the first rows of three requests bring it."""
    pipeline, rows = engine.runner.pipeline, []
    for ask in subject.asks()[:3]:
        [state] = pipeline.states(engine.make_request(ask))
        rows.append(pipeline.rows(pipeline.come_to(Denoise, state), state)[0])
    [name] = {row.network for row in rows}
    network = pipeline.ctx.network(name)
    assert isinstance(network, Network)
    return network, [row.inputs for row in rows]


@pytest.mark.crossed(turns=3)
@torch.inference_mode()
def test_conditions_of_selected_rows_are_those_that_the_rows_have_without_the_others(
    subject: Subject, shared: Engine
) -> None:
    network, inputs = first_rows(subject, shared)
    (_, _, cond, _), (_, _, alone, _) = watched(network, inputs, [inputs[2], inputs[0]])
    assert differences(cond.select([2, 0]), alone) == []
    assert differences(cond.select([0, 2]), alone) != [], "the order matters"


@pytest.mark.crossed(turns=3)
@torch.inference_mode()
def test_what_a_step_cache_watches_is_as_large_as_the_hidden_states(subject: Subject, shared: Engine) -> None:
    """Ranks without the first block make room for it by these."""
    network, inputs = first_rows(subject, shared)
    [(blocks, hidden, cond, _)] = watched(network, inputs)
    assert blocks[0].probe(hidden, cond).shape == hidden.shape
