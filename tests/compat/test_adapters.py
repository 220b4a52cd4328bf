"""Adapters on pipelines from elsewhere: their layers wear what the layers of our own families do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from omnimuse import Config, ModelConfig, Omni
from omnimuse.cli import main
from omnimuse.compat.contract.adapters import Renaming, traced
from omnimuse.compat.contract.blocks import ContractStack
from omnimuse.compat.contract.origins import Origins
from omnimuse.compat.sglang import DiffGenerator
from omnimuse.core.config import CompileConfig, OffloadConfig, ParallelConfig
from omnimuse.engine.engine import Engine
from tests.checkpoints import flux, stable_diffusion_3
from tests.checkpoints.adapters import layers_of, write
from tests.checkpoints.wishes import Wish
from tests.compat.checkpoints import COMPOSED, PLUGIN, renamed
from tests.compat.running import drawn, on_two_ranks, refusal, running
from tests.compat.test_sglang import WISHES
from tests.compiling import Counter

GUIDED = next(wish for wish in flux.FAMILIES[0].wishes if wish.params.true_cfg_scale == 3.0)
TOKENS = 24
"""What the composed pipeline always reads of a prompt."""


@dataclass(frozen=True)
class Door:
    """A pipeline from elsewhere, the family of ours that draws the same, and what both are asked."""

    arch: str
    plugin: str
    ours: str
    build: Callable[[Path], Path]
    wish: Wish
    tokens: int | None = None

    @property
    def ours_is_asked(self) -> Wish:
        """The wish with what this pipeline always does."""
        return (
            replace(self.wish, params=replace(self.wish.params, max_sequence_length=self.tokens))
            if self.tokens
            else self.wish
        )

    def config(self, folder: Path, *, native: bool = False, **parts: Any) -> Config:
        arch, plugins = (self.ours, ()) if native else (self.arch, (self.plugin,))
        return Config(ModelConfig(str(renamed(folder, arch)), "float32", "cpu", plugins=plugins), **parts)


def medium(folder: Path) -> Path:
    return stable_diffusion_3.build(folder, kind="3")


def medium_wish() -> Wish:
    return next(each for each in stable_diffusion_3.FAMILIES if each.kind == "3").wishes[0]


DOORS = {
    "steps": Door("DocumentedStepPipeline", PLUGIN, "StableDiffusion3Pipeline", medium, medium_wish()),
    "whole": Door("DocumentedPipeline", PLUGIN, "StableDiffusion3Pipeline", medium, medium_wish()),
    "two-lists": Door("TwoListsStepPipeline", PLUGIN, "FluxPipeline", flux.build, GUIDED),
    "composed": Door("ComposedSmallPipeline", COMPOSED, "FluxPipeline", flux.build, WISHES[1], TOKENS),
}


def of(*names: str) -> pytest.MarkDecorator:
    """For those doors alone."""
    return pytest.mark.parametrize("door", [DOORS[name] for name in names], ids=names, indirect=True, scope="module")


@pytest.fixture(scope="module", params=DOORS.values(), ids=DOORS)
def door(request: pytest.FixtureRequest) -> Door:
    found: Door = request.param
    return found


@pytest.fixture(scope="module")
def folder(door: Door, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return door.build(tmp_path_factory.mktemp("worn") / "tiny")


@pytest.fixture(scope="module")
def loras(folder: Path) -> list[list[str] | None]:
    """None, one for all linear layers, another one, and both with an encoder's."""
    layers = layers_of(folder)
    one, two = (write(folder.with_name(f"{n}.safetensors"), layers, seed=n, rank=5 - n) for n in (1, 2))
    third = write(
        folder.with_name("3.safetensors"),
        {f"text_encoder.{name}": sizes for name, sizes in layers_of(folder, "text_encoder").items()},
        lambda name, down, up: {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up},
        seed=3,
    )
    return [None, [f"{one}:0.8"], [str(two)], [str(one), f"{two}:-0.5", str(third)]]


def weights(engine: Engine) -> list[Tensor]:
    parts = [each for each in engine.runner.pipeline.ctx.components.values() if isinstance(each, nn.Module)]
    return [each.detach().clone() for part in parts for each in part.parameters()]


def together(engine: Engine, wish: Wish, loras: Sequence[list[str] | None]) -> list[Tensor]:
    return drawn(engine, [replace(wish, params=replace(wish.params, loras=each)) for each in loras])


@pytest.mark.crossed
def test_it_draws_what_the_family_of_ours_draws_with_the_same_adapters_alone_and_in_company(
    door: Door, folder: Path, loras: list[list[str] | None]
) -> None:
    with running(door.config(folder, native=True)) as engine:
        expected = together(engine, door.ours_is_asked, loras)
    with running(door.config(folder)) as engine:
        before = weights(engine)
        company = together(engine, door.wish, loras)
        alone = [together(engine, door.wish, [each])[0] for each in loras]
        assert not engine.runner.forwards.retries
        assert all(torch.equal(a, b) for a, b in zip(before, weights(engine), strict=True))
    for right, found, single in zip(expected, company, alone, strict=True):
        torch.testing.assert_close(found, right, atol=1e-5, rtol=0)
        torch.testing.assert_close(single, right, atol=1e-5, rtol=0)
    assert all(float((each - expected[0]).norm() / expected[0].norm()) > 1e-3 for each in expected[1:])


def test_an_adapter_of_another_model_is_refused_with_the_names_that_were_expected(
    door: Door, folder: Path, tmp_path: Path
) -> None:
    other = write(tmp_path / "other.safetensors", {"blocks.0.q": (4, 4)})
    with running(door.config(folder)) as engine:
        told = refusal(engine, door.wish, loras=[str(other)])
    assert "none of its 1 layers is in it" in told
    assert "transformer_blocks.0." in told


@of("steps", "composed")
def test_blocks_that_come_one_at_a_time_wear_them_too(
    door: Door, folder: Path, loras: list[list[str] | None], tmp_path: Path
) -> None:
    found = []
    for offload in (OffloadConfig(), OffloadConfig("layers", tmp_path)):
        with running(door.config(folder, offload=offload)) as engine:
            found.append(together(engine, door.wish, loras[:2]))
    for away, here in zip(found[1], found[0], strict=True):
        assert torch.equal(away, here)


@of("steps", "composed")
@pytest.mark.costly
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")  # the compiler's own
def test_compiled_blocks_draw_the_same_and_requests_with_adapters_go_past_them(
    door: Door, folder: Path, loras: list[list[str] | None]
) -> None:
    torch._dynamo.reset()
    counter = Counter()
    with running(door.config(folder)) as engine:
        expected = [together(engine, door.wish, [each])[0] for each in loras[:2]]
    with running(door.config(folder, compile=CompileConfig("blocks"))) as engine:
        compile_with(engine, counter)
        [plain] = together(engine, door.wish, [None])
        graphs = counter.graphs
        assert graphs
        [worn] = together(engine, door.wish, loras[1:2])
        [again] = together(engine, door.wish, [None])
    assert counter.graphs == graphs
    for found, right in ((plain, expected[0]), (worn, expected[1]), (again, expected[0])):
        torch.testing.assert_close(found, right, atol=1e-5, rtol=0)


def compile_with(engine: Engine, backend: Counter) -> None:
    """Have the engine's compiled blocks made by `backend`."""
    components = engine.runner.pipeline.ctx.components
    parts = [part for name in components if isinstance(part := components.wherever(name), nn.Module)]
    for stack in {each for part in parts for each in part.modules() if isinstance(each, ContractStack)}:
        for block in stack.each:
            block.inner.compile(dynamic=True, backend=backend)


@of("steps")
@pytest.mark.dist
@pytest.mark.timeout(300)
def test_ranks_that_share_weights_wear_them_too(
    door: Door, folder: Path, loras: list[list[str] | None], tmp_path: Path
) -> None:
    worn = replace(door.wish, params=replace(door.wish.params, loras=loras[3]))
    with running(door.config(folder)) as engine:
        [expected] = drawn(engine, [worn])
    [found], _ = on_two_ranks(door.config(folder, parallel=ParallelConfig(tensor=2)), [worn], tmp_path / "meeting")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@of("steps")
def test_the_command_line_and_scripts_ask_for_them_as_for_those_of_our_families(
    door: Door, folder: Path, loras: list[list[str] | None], tmp_path: Path
) -> None:
    assert loras[1]
    name = str(renamed(folder, door.arch))
    size = {"height": 32, "width": 32, "num_inference_steps": 2, "seed": 7}
    with Omni(name, plugin=door.plugin, dtype="float32", device="cpu") as omni:
        [made] = omni.generate(["a star"], **size, loras=loras[1], progress=False)
    line = ["generate", "a star", "-m", name, "--plugin", door.plugin, "--lora", loras[1][0]]
    line += ["--height", "32", "--width", "32", "--steps", "2", "--seed", "7", "--dtype", "float32", "--device", "cpu"]
    assert main([*line, "-o", str(tmp_path / "made.png")]) == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "made.png")), np.asarray(made.images[0]))


@of("composed")
def test_the_generator_of_the_guide_sets_them(door: Door, folder: Path, loras: list[list[str] | None]) -> None:
    assert loras[2]
    [file] = loras[2]
    params = replace(door.wish.params, loras=[f"{file}:0.5"])
    with running(door.config(folder)) as engine:
        [expected] = drawn(engine, [replace(door.wish, params=params)])
    options = {"dit_precision": "fp32", "device": "cpu", "plugin": door.plugin}
    with DiffGenerator.from_pretrained(model_path=str(folder), **options) as generator:
        generator.set_lora("style", file, strength=0.5)
        p = door.wish.params
        made = generator.generate(
            door.wish.prompt,
            save_output=False,
            **{name: getattr(p, name) for name in ("height", "width", "seed", "num_inference_steps", "guidance_scale")},
            negative_prompt=door.wish.negative,
            true_cfg_scale=p.true_cfg_scale,
        )
    torch.testing.assert_close(made["samples"][:, 0], expected, atol=1e-5, rtol=0)


# -- which layers there are --------------------------------------------------------------------------------------------


class Packed(nn.Module):
    """Layers that a checkpoint has otherwise: two in one, one in two, one under another name, one changed."""

    def __init__(self) -> None:
        super().__init__()
        self.two = nn.Linear(4, 6)
        self.upper, self.lower = nn.Linear(4, 2), nn.Linear(4, 3)
        self.renamed, self.changed = nn.Linear(4, 2), nn.Linear(4, 2)
        self.turned = nn.Linear(4, 4)


def filled() -> tuple[Packed, Origins]:
    network, origins = Packed(), Origins()
    stored = {"a": (2, 4), "b": (4, 4), "c": (5, 4), "d": (2, 4), "e": (2, 4), "f": (4, 4)}
    with origins, torch.no_grad():
        t = {
            name: origins.stored(("transformer", f"{name}.weight"), torch.rand(shape)) for name, shape in stored.items()
        }
        network.two.weight.copy_(torch.cat([t["b"], t["a"].double()]))
        network.upper.weight.copy_(t["c"][:2])
        network.lower.weight.data[:] = t["c"].narrow(0, 2, 3)
        network.renamed.load_state_dict({"weight": t["d"], "bias": torch.zeros(2)})
        network.changed.weight.copy_(t["e"] + 1)
        network.turned.weight.copy_(t["f"].t())
    return network, origins


def test_where_stored_matrices_went_is_seen_whatever_packs_them() -> None:
    network, origins = filled()
    [(known, dtypes, shares)] = traced(network, [origins]).values()
    found = {
        name: [(each.path, each.start, each.stop, each.inputs) for each in outputs] for name, outputs in known.items()
    }
    assert found == {
        "a": [("two", 4, 6, 4)],
        "b": [("two", 0, 4, 4)],
        "c": [("upper", 0, 2, 4), ("lower", 0, 3, 4)],
        "d": [("renamed", 0, 2, 4)],
    }
    assert set(dtypes) == {"two", "upper", "lower", "renamed"}
    assert not shares


def test_a_network_may_say_what_adapters_call_its_layers_and_which_none_is_for() -> None:
    told = Renaming({r"^blocks\.(\d+)\.q\.(.*)$": r"layers.\1.to_q.\2"}, ("norm",))
    assert told.name("blocks.3.q") == "layers.3.to_q"
    assert told.name("blocks.3.k") == "blocks.3.k"
