"""Packed weights draw nearly the same, alone and in company and wherever they wait: for every pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from omnimuse.core.config import OffloadConfig, QuantConfig, ScheduleConfig
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.layers.compiled import CompiledRunner
from omnimuse.layers.network import Network
from omnimuse.layers.steady import SteadyLinear
from omnimuse.parallel.mesh import Mesh
from omnimuse.quant.linear import QuantizedLinear, quantized_layers
from omnimuse.worker import build
from omnimuse.worker.compiler import prepare
from omnimuse.worker.pack import pack_checkpoint
from omnimuse.worker.quantize import packable
from tests.checkpoints.families import BLOCKS
from tests.distance import distance
from tests.invariants.conftest import Subject, of, run, with_params
from tests.invariants.test_caches import OFF, SKIPPING, asks_of
from tests.invariants.test_tiers import strangers
from tests.skipping import counting, measured

pytestmark = pytest.mark.crossed

NAMED = ("int8", "int4", "int8-dynamic", "fp8", "fp8-dynamic")
"""Schemes that are features of their own in docs/features.md."""


def shown(*features: str) -> list[pytest.MarkDecorator]:
    """The mark of what is shown, where `features` are all in docs/features.md."""
    return [pytest.mark.shows(*features)] if features[0] in NAMED else []


Make = Callable[..., Engine]
FAST = ScheduleConfig(tier="fast", company="always")
FAR = {"int8": 0.05, "int8-dynamic": 0.15, "int4": 0.6, "fp8": 0.2, "fp8-dynamic": 0.25}
"""How far latents may be from those of float32, as a part of their own size. Tiny networks of random weights are the
hardest to round: their matrices have few inputs that errors could average out over."""


def networks(engine: Engine) -> list[Network]:
    components = engine.runner.pipeline.ctx.components
    return [found for name in components if isinstance(found := components.wherever(name), Network)]


def asked(subject: Subject, scheme: str) -> QuantConfig:
    return QuantConfig({"": scheme})


@pytest.mark.parametrize("scheme", [pytest.param(name, marks=shown(name)) for name in FAR])
def test_packed_weights_draw_nearly_what_float32_draws(
    subject: Subject, shared: Engine, engine_with: Make, scheme: str
) -> None:
    engine = engine_with(quantize=asked(subject, scheme))
    asks = [subject.ask(i) for i in range(2)]
    for found, expected in zip(run(engine, *asks), run(shared, *asks), strict=True):
        assert 0 < distance(found, expected) < FAR[scheme], "0: nothing was packed"


def encoders(subject: Subject) -> list[str]:
    """Its encoders of texts and of pictures that have linear layers in blocks."""
    under = build.run(build.begin(subject.config(), Mesh.single()), (build.construct, build.formats))
    able = [name for name, module in under.modules.items() if packable(module, under.formats[name])]
    under.resources.close()
    return [name for name in able if "encoder" in name and name not in under.networks]


@pytest.mark.parametrize("scheme", FAR)
def test_packed_encoders_draw_nearly_what_float32_draws(
    subject: Subject, shared: Engine, engine_with: Make, scheme: str
) -> None:
    able = encoders(subject)
    engine = engine_with(quantize=QuantConfig(dict.fromkeys(able, scheme)))
    components = engine.runner.pipeline.ctx.components
    assert able and all(quantized_layers(components.wherever(name)) for name in able)
    asks = [subject.ask(i) for i in range(2)]
    for found, expected in zip(run(engine, *asks), run(shared, *asks), strict=True):
        assert 0 < distance(found, expected) < FAR[scheme], "0: nothing is drawn by them"


@pytest.mark.shows("packed once")
def test_a_folder_that_is_packed_once_draws_to_the_bit_what_packing_at_every_start_draws(
    subject: Subject, engine_with: Make, tmp_path: Path
) -> None:
    """With its encoders, where these have blocks."""
    quantize = QuantConfig({"": "int8", **dict.fromkeys(encoders(subject), "int8")})
    pack_checkpoint(subject.config(quantize=quantize), tmp_path / "packed")
    packed = start(replace(subject, folder=tmp_path / "packed").config())
    asks = subject.asks()[:2]
    for found, expected in zip(run(packed, *asks), run(engine_with(quantize=quantize), *asks), strict=True):
        assert torch.equal(found, expected)
    packed.close()


def test_every_linear_layer_of_the_blocks_is_packed(engine_with: Make) -> None:
    for network in networks(engine_with(quantize=QuantConfig({"": "int8"}))):
        check_all_is_packed(network)


def check_all_is_packed(network: Network) -> None:
    """The linear layers of its blocks, but for few."""
    blocks = network.all_blocks()
    left = [each for block in blocks for each in block.modules() if isinstance(each, nn.Linear | SteadyLinear)]
    packed = [each for block in blocks for each in block.modules() if isinstance(each, QuantizedLinear)]
    assert packed
    assert all(each.weight.dtype == torch.float32 for each in left), "what the family keeps in float32"
    assert len(left) <= 0.1 * len(packed)


@pytest.mark.parametrize(
    "scheme",
    [
        pytest.param("int8", marks=shown("int8", "company", "invariant")),
        *(
            pytest.param(name, marks=[*shown(name, "company", "invariant"), pytest.mark.slow])
            for name in ("int8-dynamic", "int4")
        ),
    ],
)
def test_packed_weights_draw_the_same_in_any_company(subject: Subject, engine_with: Make, scheme: str) -> None:
    schedule = ScheduleConfig(tier="invariant", strict_slots=True, company="always")
    engine = engine_with(quantize=asked(subject, scheme), schedule=schedule)
    assert strangers(engine, subject.asks()) == {}


@pytest.mark.parametrize("mode", [pytest.param(mode, marks=shown("int8", mode)) for mode in ("components", "layers")])
def test_packed_weights_that_wait_draw_what_those_that_stay_do(
    subject: Subject, engine_with: Make, tmp_path: Path, mode: str
) -> None:
    quantize = asked(subject, "int8")
    stays, waits = engine_with(quantize=quantize), engine_with(quantize=quantize, offload=OffloadConfig(mode, tmp_path))
    for found, expected in zip(run(waits, subject.ask(0)), run(stays, subject.ask(0)), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.shows("int8", "TeaCache")
@pytest.mark.shows("int8", "DBCache")
def test_packed_weights_that_skip_steps_draw_the_same_in_any_company(subject: Subject, engine_with: Make) -> None:
    schedule = ScheduleConfig(tier="invariant", strict_slots=True, company="always")
    engine = measured(engine_with(quantize=asked(subject, "int8"), schedule=schedule))
    asks = asks_of(subject, engine, *SKIPPING)
    with counting(engine) as skipped:
        assert strangers(engine, asks) == {}
    assert len(skipped) >= len(asks) and all(skipped.values()), "each skips a step"


def test_packed_weights_draw_the_same_with_step_caches_that_never_skip(
    subject: Subject, shared: Engine, engine_with: Make
) -> None:
    engine = engine_with(quantize=asked(subject, "int8"))
    asks = asks_of(subject, shared, *OFF)
    plain = run(engine, *(with_params(ask, cache=None) for ask in asks))
    for found, expected in zip(run(engine, *asks), plain, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.shows("compile", "int8")
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")  # the compiler's own
@of(BLOCKS)
def test_blocks_with_packed_weights_are_compiled_whole(subject: Subject, engine_with: Make) -> None:
    engine = engine_with(quantize=asked(subject, "int8"), schedule=FAST)
    [expected] = run(engine, subject.ask(0))
    assert distance(compiled(engine, subject), expected) < 1e-4


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")  # the compiler's own
@pytest.mark.parametrize("scheme", ["int8-dynamic", "fp8-dynamic"])
@of([family for family in BLOCKS if family.name == "ZImagePipeline"])
def test_blocks_that_round_their_inputs_are_compiled_whole(
    subject: Subject, shared: Engine, engine_with: Make, scheme: str
) -> None:
    """A last bit rounds some input otherwise, and from there on all are others: so every layer is compared alone, to
    the bit, with the same inputs, and what is drawn with what floats draw.
    """
    engine = engine_with(quantize=asked(subject, scheme), schedule=FAST)
    [expected] = run(shared, subject.ask(0))
    assert 0 < distance(compiled(engine, subject), expected) < FAR[scheme]
    for network in networks(engine):
        for layer in quantized_layers(network).values():
            x = torch.randn(5, layer.inputs, generator=torch.Generator().manual_seed(1))
            with torch.inference_mode():
                assert torch.equal(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))


def compiled(engine: Engine, subject: Subject) -> Tensor:
    """What its first request becomes by compiled blocks."""
    torch._dynamo.reset()
    prepare()
    for network in networks(engine):
        for stack in network.stacks().values():
            stack.runner = CompiledRunner(stack.blocks(), "eager")
    [found] = run(engine, subject.ask(0))
    return found
