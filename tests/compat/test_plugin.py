"""The package in `examples/plugin`, installed: all that it brings is found by name."""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from omnimuse import Config, ModelConfig, Omni
from omnimuse.attention.backends.reference import Reference
from omnimuse.attention.layout import Layout
from omnimuse.cache.policies import policy_for
from omnimuse.compat.contract import entries
from omnimuse.core.caches import CacheConfig, Fits, cache_named, completed
from omnimuse.core.config import AttentionConfig
from omnimuse.core.errors import ConfigError, EngineDeadError
from omnimuse.core.plugins import ATTENTION, SOLVERS, brought, loaded
from omnimuse.deploy.connectors import Blob, Connector, Hear, kind_of
from omnimuse.deploy.frames import AnyFrame, Put
from omnimuse.diffusion.choice import solver_for
from omnimuse.diffusion.schedules import Schedule
from omnimuse.worker.build import build as build_engine

SOON = 20.0
EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples" / "plugin"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example as an installer would leave it: its package, and what its project file says of entry points."""
    place = tmp_path / "site"
    shutil.copytree(EXAMPLE / "omnimuse_example", place / "omnimuse_example")
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    notes = place / "omnimuse_example-1.0.dist-info"
    notes.mkdir()
    (notes / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, named in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in named.items())]
    (notes / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(place)
    yield place
    for name in [name for name in sys.modules if name.partition(".")[0] == "omnimuse_example"]:
        del sys.modules[name]
    entries.ENTRIES.pop("ExampleDrawingPipeline", None)


def test_its_pipeline_draws_what_diffusers_draw(site: Path, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=16,
            layers_per_block=1,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
        )
    pipe = DDIMPipeline(unet, DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(generator=torch.Generator().manual_seed(5), num_inference_steps=3, output_type="np").images[0]
    pipe.save_pretrained(tmp_path / "model")
    index = tmp_path / "model" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "ExampleDrawingPipeline"}))
    with Omni(str(tmp_path / "model"), dtype="float32", device="cpu") as omni:
        [found] = omni.generate(["any"], num_inference_steps=3, seed=5, output_type="pt", progress=False)
    assert found.error is None
    made = found.tensors["image"][0].permute(1, 2, 0)
    torch.testing.assert_close(made, torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_its_attention_backend_is_chosen_by_its_name_and_computes_the_same(site: Path) -> None:
    model = ModelConfig("omnimuse/shapes", "float32", "cpu")
    built = build_engine(Config(model, attention=AttentionConfig("example_chunks")))
    built.resources.close()
    assert "example_chunks" in {choice.value for choice in built.choices if choice.topic == "attention"}
    chunks = loaded(brought(ATTENTION)["example_chunks"])()
    q, k, v = (torch.randn(1, 600, 2, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    keep = torch.rand(1, 1, 600, 600, generator=torch.Generator().manual_seed(4)) > 0.5
    torch.testing.assert_close(chunks(q, k, v, keep), Reference()(q, k, v, keep))
    layout = Layout((350, 250))
    torch.testing.assert_close(chunks.packed(q, k, v, layout, layout), Reference().packed(q, k, v, layout, layout))


def test_its_solver_stands_for_the_scheduler_of_its_name(site: Path) -> None:
    """On dx / ds = -x, whose solution is known, it comes nearer than Euler's method of as many steps."""
    found, why = solver_for("ExampleTwoStepScheduler", {"shift": 1.0})
    euler, _ = solver_for("FlowMatchEulerDiscreteScheduler", {"shift": 1.0})
    assert "omnimuse_example.two_step:two_step" in why
    far = []
    for solver in (found, euler):
        schedule: Schedule = solver.plan(20, 16)
        memory, x = solver.start(schedule), torch.ones(1, dtype=torch.float64)
        for index in range(20):
            x = solver.step(memory, index, schedule, x, -x, None)
        far.append(abs(x.item() - torch.e))
    assert far[0] < far[1] / 10


def test_its_step_cache_is_a_choice_of_an_engine_and_of_a_request(site: Path) -> None:
    choice = cache_named("example_alternate,warm_up=1")
    assert str(choice) == "example_alternate,warm_up=1"
    whole = CacheConfig("dbcache", 0.24, first=1, last=0, warm_up=1, in_a_row=3)
    assert completed(choice, Fits()) == replace(whole, kind="example_alternate")
    asked = {"num_inference_steps": 5, "seed": 3, "output_type": "pt", "progress": False}
    found = []
    for own, cache in ((choice, None), (CacheConfig(), str(choice)), (CacheConfig(), None)):
        config = Config(ModelConfig("omnimuse/shapes", "float32", "cpu"), cache=own)
        with Omni("omnimuse/shapes", config=config) as omni:
            [result] = omni.generate(["a red circle"], cache=cache, **asked)
        assert result.error is None
        found.append(result.tensors["image"][0])
    torch.testing.assert_close(found[0], found[1])
    assert (found[0] - found[2]).abs().max() > 1e-4


Heard = SimpleQueue[tuple[AnyFrame, Blob | None]]


def into(ear: Heard) -> Hear:
    """What hears frames and keeps them."""

    def hear(frame: AnyFrame, blob: Blob | None) -> None:
        ear.put((frame, blob))

    return hear


def test_its_connector_carries_frames_and_tensors_both_ways_for_who_has_the_key(site: Path, tmp_path: Path) -> None:
    kind, key, data = kind_of("example_copies"), bytes(range(32)), bytes(range(256)) * 999
    met: SimpleQueue[Connector] = SimpleQueue()
    with closing(kind.listen(tmp_path, key, lambda name, end: met.put(end))) as door:
        with pytest.raises(EngineDeadError, match="did not let this one in"):
            kind.connect(door.address, bytes(32), "draw-0")
        ends = kind.connect(door.address, key, "draw-0"), met.get(timeout=SOON)
        heard: list[Heard] = [SimpleQueue(), SimpleQueue()]
        for end, ear in zip(ends, heard, strict=True):
            end.start(into(ear), lambda: None)
        for end, ear in zip(ends, reversed(heard), strict=True):
            blob = end.room(len(data))
            assert blob is not None and blob.fd < 0, "no memory is shared"
            blob.fill[:] = data
            end.send(Put("s", 0, True, b"head"), blob)
            frame, came = ear.get(timeout=SOON)
            assert frame == Put("s", 0, True, b"head")
            assert came is not None and bytes(came.view()) == data
        for end in ends:
            end.end()


def test_a_name_that_is_taken_and_one_that_cannot_be_imported_are_refused(site: Path) -> None:
    with pytest.raises(ConfigError, match=r"named 'example_chunks' .* which is omnimuse's own"):
        brought(ATTENTION, ["example_chunks"])
    (site / "omnimuse_example" / "two_step.py").write_text('"""Empty."""\n')
    with pytest.raises(ConfigError, match=r"cache='example_alternat' is not known; did you mean 'example_alternate'"):
        cache_named("example_alternat")
    (site / "omnimuse_example" / "alternate.py").write_text("Alternate = 1\n")
    with pytest.raises(ConfigError, match=r"alternate:Alternate, .* is no omnimuse.cache.policies.Policy"):
        policy_for(completed(cache_named("example_alternate"), Fits()), Fits())
    with pytest.raises(ConfigError, match=r"two_step:two_step, .* cannot be imported"):
        loaded(next(iter(brought(SOLVERS).values())))
