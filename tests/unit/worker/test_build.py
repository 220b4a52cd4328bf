"""What a build refuses before it reads weights, and what `explain` tells."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file

from omnimuse import Config, DiffusionParams, ModelConfig, Omni, explain
from omnimuse.core.amounts import told_bytes
from omnimuse.core.config import (
    AttentionConfig,
    CacheConfig,
    DecodeConfig,
    OffloadConfig,
    ParallelConfig,
    QuantConfig,
    ScheduleConfig,
)
from omnimuse.core.errors import ConfigError, ModelError, RequestError
from omnimuse.core.pools import DeployConfig, PoolConfig
from omnimuse.core.request import Ask
from omnimuse.core.spec import Component
from omnimuse.engine.local import start
from omnimuse.layers.native import native_bfloat16
from omnimuse.offload.stores import FileStore
from omnimuse.parallel.mesh import Mesh
from omnimuse.worker.build import SHAPES, begin, build, find, run
from omnimuse.worker.connect import connect
from omnimuse.worker.place import choose_device, choose_dtype, component_dtype
from tests.checkpoints import qwen3
from tests.once import Once


def config(folder: Path, **model: str) -> Config:
    return Config(replace(ModelConfig(str(folder), dtype="float32", device="cpu"), **model))


@pytest.fixture
def broken(z_image_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(z_image_folder, tmp_path / "copy"))


def test_an_unsupported_architecture_is_named_with_the_closest(broken: Path) -> None:
    index = json.loads((broken / "model_index.json").read_text())
    (broken / "model_index.json").write_text(json.dumps({**index, "_class_name": "ZImagesPipeline"}))
    with pytest.raises(
        ModelError, match=r"ZImagesPipeline is no architecture .*; the closest that it has is ZImagePipeline"
    ):
        find(config(broken))


def test_a_component_missing_from_the_index_is_named(broken: Path) -> None:
    index = json.loads((broken / "model_index.json").read_text())
    del index["vae"]
    (broken / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="no component 'vae'"):
        find(config(broken))


def test_dummy_weights_need_no_weight_files_and_draw_a_picture(broken: Path) -> None:
    for file in broken.rglob("*.safetensors"):
        file.unlink()
    with pytest.raises(ModelError):
        find(config(broken))
    with Omni(str(broken), config=config(broken, load="dummy")) as omni:
        small = DiffusionParams(height=32, width=32, num_inference_steps=2, seed=1)
        result = omni.generate("anything", small, progress=False)[0]
    assert result.images[0].size == (32, 32)


def test_explain_tells_every_choice_with_its_reason_and_reads_no_weights(broken: Path) -> None:
    for file in broken.rglob("*.safetensors"):
        file.write_bytes(b"not read")
    rows = explain(str(broken), config=config(broken))
    topics = {row.topic for row in rows}
    assert {"model", "defaults", "limits", "place", "attention", "solver", "features", "batching"} <= topics
    assert all(row.value and row.reason for row in rows)
    [negative] = [row for row in rows if row.name == "negative_prompt"]
    assert (negative.value, negative.reason) == ("''", "guidance is on while guidance_scale is above 0")


@pytest.mark.parametrize(
    ("schedule", "value", "reason"),
    [
        (ScheduleConfig(), "measured", "tells at /load what it has found"),
        (ScheduleConfig(company="always"), "always", "asked for"),
        (ScheduleConfig(company="always", tier="exact"), "never", "a forward of its own"),
    ],
)
def test_explain_says_which_requests_share_forwards(
    z_image_folder: Path, schedule: ScheduleConfig, value: str, reason: str
) -> None:
    chosen = replace(config(z_image_folder), schedule=schedule)
    [row] = [row for row in explain(str(z_image_folder), config=chosen) if row.name == "company"]
    assert row.value == value and reason in row.reason


@pytest.mark.parametrize(
    ("decode", "sides"),
    [
        (DecodeConfig(), ["tiles of 128 or 64 pixels a side"]),
        (DecodeConfig(tile=128), ["tiles of 64 pixels a side"]),
        (DecodeConfig(tile=96), []),
    ],
)
def test_explain_says_in_which_tiles_is_decoded_what_has_no_room(decode: DecodeConfig, sides: list[str]) -> None:
    chosen = Config(ModelConfig("omnimuse/shapes", dtype="float32", device="cpu"), decode=decode)
    rows = explain("omnimuse/shapes", config=chosen)
    assert [row.value for row in rows if row.name == "pictures that have no room"] == sides


def memory(config: Config) -> dict[str, tuple[str, str]]:
    rows = explain(config.model.model, config=config)
    return {row.name: (row.value, row.reason) for row in rows if row.topic == "memory"}


def test_explain_counts_the_bytes_of_every_network_by_format_and_home(z_image_folder: Path, tmp_path: Path) -> None:
    files = {path.parent.name: path for path in z_image_folder.rglob("*.safetensors")}
    plain = memory(config(z_image_folder))
    for name, path in files.items():
        stored = sum(tensor.nbytes for tensor in load_file(path).values())
        assert plain[name] == (f"{told_bytes(stored)} float32", "always on cpu")
    away = memory(replace(config(z_image_folder), offload=OffloadConfig("layers", tmp_path / "never made")))
    assert "blocks of at most" in away["transformer"][1]
    assert away["vae"][1] == f"waits in a file in {tmp_path / 'never made'}, on cpu when it is its turn"
    assert "and blocks of at most" in away["text_encoder"][1], "a library's blocks come in one at a time, too"
    assert not (tmp_path / "never made").exists()


def test_explain_tells_once_what_all_pools_choose_and_by_its_name_what_one_does(z_image_folder: Path) -> None:
    read = PoolConfig("read", ("encode prompt", "encode negative prompt", "encode image", "draw image latents"))
    draw = PoolConfig("draw", ("init latents", "denoise"), replicas=2, dtype="bfloat16", connector="tcp", window=3)
    show = PoolConfig("show", ("*",), parallel=ParallelConfig(tensor=2), device="cpu,cpu")
    placed = replace(config(z_image_folder), deploy=DeployConfig((read, draw, show), source="three.yaml"))
    rows = {(row.topic, row.name): row for row in explain(str(z_image_folder), config=placed)}
    assert rows["place", "device"].value == "cpu" and ("draw: place", "device") not in rows
    assert [rows[f"{name}: place", "dtype"].value for name in ("read", "draw")] == ["float32", "bfloat16"]
    told = rows["pools", "draw, replicas"]
    assert (told.value, told.reason) == ("2", "2 x 1 process, each with at most 3 requests; reached by tcp")
    assert rows["show: ranks", "mesh"].value == "2 ranks" and ("ranks", "mesh") not in rows
    assert rows["draw: memory", "text_encoder"].reason == "in another pool"
    wrong = replace(placed, deploy=replace(placed.deploy, pools=(read, replace(draw, device="cuda:7"), show)))
    with pytest.raises(ConfigError, match=r"three\.yaml: pool draw: device='cuda:7' is not here"):
        explain(str(z_image_folder), config=wrong)
    carried = replace(placed, deploy=replace(placed.deploy, pools=(read, replace(draw, connector="tpc"), show)))
    with pytest.raises(ConfigError, match=r"^three\.yaml: pool draw: connector 'tpc' is not known; use one of local"):
        explain(str(z_image_folder), config=carried)
    written = replace(placed, deploy=replace(placed.deploy, pools=(read, replace(draw, writer="vlm"), show)))
    with pytest.raises(ConfigError, match=r"^three\.yaml: pool draw: writer='vlm' is not allowed"):
        explain(str(z_image_folder), config=written)
    with pytest.raises(ConfigError, match=r"three\.yaml: no pool holds the stage 'decode'"):
        explain(str(z_image_folder), config=replace(placed, deploy=replace(placed.deploy, pools=(read, draw))))


@pytest.mark.parametrize(
    ("component", "config", "dtype", "expected"),
    [
        (Component((), dtype="float32"), {}, torch.bfloat16, torch.float32),
        (Component((), dtype="float32"), {}, torch.float32, torch.float32),
        (Component(()), {"force_upcast": True}, torch.float16, torch.float32),
        (Component(()), {"force_upcast": True}, torch.bfloat16, torch.bfloat16),
        (Component(()), {"force_upcast": False}, torch.float16, torch.float16),
        (Component(()), {}, torch.float16, torch.float16),
    ],
)
def test_a_component_has_its_own_number_format_where_spec_or_configuration_say_so(
    component: Component, config: dict[str, object], dtype: torch.dtype, expected: torch.dtype
) -> None:
    found, why = component_dtype(component, config, dtype)
    assert found == expected
    assert bool(why) is (expected != dtype)


def test_an_autoencoder_that_overflows_in_float16_computes_in_float32(broken: Path) -> None:
    path = broken / "vae/config.json"
    assert json.loads(path.read_text())["force_upcast"]
    rows = explain(str(broken), config=config(broken, dtype="float16"))
    assert ("vae dtype", "float32") in [(row.name, row.value) for row in rows]
    components = build(config(broken, dtype="float16")).pipeline.ctx.components
    assert {tensor.dtype for tensor in components["vae"].parameters()} == {torch.float32}
    assert {tensor.dtype for tensor in components["text_encoder"].parameters()} == {torch.float16}
    path.write_text(json.dumps({**json.loads(path.read_text()), "force_upcast": False}))
    found = build(config(broken, dtype="float16")).pipeline.ctx.components
    assert {tensor.dtype for tensor in found["vae"].parameters()} == {torch.float16}


def test_what_cannot_be_is_refused_before_any_weight_is_read(broken: Path, tmp_path: Path) -> None:
    for file in broken.rglob("*.safetensors"):
        file.write_bytes(b"not read")
    (tmp_path / "file").write_text("")
    chosen = config(broken)
    for opened in (build, lambda config: explain(str(broken), config=config)):
        with pytest.raises(ConfigError, match=f"offload folder={tmp_path}/file/new cannot be used"):
            opened(replace(chosen, offload=OffloadConfig("components", tmp_path / "file/new")))
    with pytest.raises(ConfigError, match="sdpa"):
        build(replace(chosen, attention=AttentionConfig("spda")))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: ModelConfig("x", dtype="int4"), "dtype='int4' is not allowed; use one of auto, float32"),
        (lambda: ModelConfig("x", load="half"), "load='half'"),  # type: ignore[arg-type]
        (lambda: CacheConfig("teacache", float("nan")), "threshold=nan"),
        (lambda: OffloadConfig("disk"), "offload='disk'"),  # type: ignore[arg-type]
        (lambda: OffloadConfig(folder=Path("here")), "offload folder=here does nothing while offload='none'"),
        (lambda: ParallelConfig(cfg=4), "use 1 to 3"),
        (lambda: ParallelConfig(tensor=0), "tensor=0 is not allowed; use at least 1"),
        (lambda: ParallelConfig(shard=2), "use shard=1, or as many of those"),
        (lambda: ParallelConfig(shard=2, ulysses=2, ring=2), "use shard=4, or"),
        (lambda: ParallelConfig(vae_tiles=2), "there is one rank, which decodes all; ask for others"),
        (lambda: ParallelConfig(tensor=2).in_parts(), "use_hsdp does nothing for tensor=2: weights are kept"),
        (lambda: ParallelConfig().in_parts(), "use_hsdp does nothing for one rank"),
        (lambda: ParallelConfig(vae_tiles=2, ring=3), "all 3 ranks decode tiles, or none does; use vae_tiles=3"),
        (lambda: ScheduleConfig(max_running=0), "max_running=0"),
        (lambda: QuantConfig.of("transformer=int8,transformer=int4"), "transformer is there twice; leave one out"),
        (lambda: QuantConfig.of("int8,int4"), "quantize of all networks is there twice; leave one out"),
        (lambda: QuantConfig.of("=int8"), "quantize='=int8' is not understood; write SCHEME or COMPONENT=SCHEME"),
    ],
)
def test_choices_that_make_no_sense_are_refused_when_they_are_made(wrong: object, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        wrong()  # type: ignore[operator]
    assert words in str(caught.value)


def test_a_device_this_machine_lacks_is_refused() -> None:
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    with pytest.raises(ConfigError, match="use device='cpu'"):
        choose_device(ModelConfig("x", device="cuda"))
    with pytest.raises(ConfigError, match="not a torch device"):
        choose_device(ModelConfig("x", device="warp"))


def test_a_device_beyond_the_last_of_its_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert choose_device(ModelConfig("x", device="cuda:1"))[0] == torch.device("cuda:1")
    with pytest.raises(ConfigError, match=r"device='cuda:2' is not here: .* 2 of its kind; use cuda:0 to cuda:1"):
        choose_device(ModelConfig("x", device="cuda:2"))


def test_an_engine_of_a_later_device_makes_it_its_thread_s(
    z_image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is told no device takes that of the thread: events that measure, Triton's kernels."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    monkeypatch.setattr("omnimuse.worker.build.run", lambda under, passes: under)
    monkeypatch.setattr("omnimuse.worker.build._assemble", lambda under: under)
    for device in ("cuda:1", "cpu", "cuda"):
        build(Config(ModelConfig(str(z_image_folder), dtype="float32", device=device)))
    assert chosen == [1]


def test_bfloat16_is_chosen_only_where_it_is_native() -> None:
    device = torch.device("cpu")
    dtype, choice = choose_dtype(ModelConfig("x"), device)
    assert (dtype == torch.bfloat16) == native_bfloat16(device)[0]
    assert choice.reason
    assert choose_dtype(ModelConfig("x", dtype="float32"), device)[0] == torch.float32
    assert choose_dtype(ModelConfig("x"), device, "float16")[0] == torch.float16
    assert choose_dtype(ModelConfig("x", dtype="float32"), device, "float16")[0] == torch.float32
    with pytest.raises(ConfigError, match="OMNIMUSE_DTYPE='half' is not allowed"):
        choose_dtype(ModelConfig("x"), device, "half")


def test_several_ranks_need_torchrun() -> None:
    with pytest.raises(ConfigError, match="torchrun --nproc-per-node 2"):
        connect(ParallelConfig(cfg=2))
    with pytest.raises(ConfigError, match="tensor=2 x ulysses=3 needs 6 processes"):
        connect(ParallelConfig(tensor=2, ulysses=3))


def test_an_unknown_attention_backend_is_refused_with_the_known_ones(z_image_folder: Path) -> None:
    with pytest.raises(ConfigError, match="sdpa"):
        build(replace(config(z_image_folder), attention=AttentionConfig("spda")))


def test_a_kernel_of_attention_that_nothing_would_run_is_refused(once: Once) -> None:
    folder = once.folder("qwen3", qwen3.build)
    with pytest.raises(ConfigError, match=r"attention=flex cannot be: no attention of ours is in \w+; leave it out"):
        build(replace(config(folder), attention=AttentionConfig("flex")))


def test_bfloat16_draws_nearly_what_float32_draws(z_image_folder: Path) -> None:
    small = DiffusionParams(height=64, width=64, num_inference_steps=3, seed=1, output_type="pt", guidance_scale=1.0)
    pictures = []
    for dtype in ("float32", "bfloat16"):
        with Omni(str(z_image_folder), dtype=dtype, device="cpu") as omni:
            pictures.append(omni.generate("a circle", small, progress=False)[0].output)
    assert (pictures[0] - pictures[1]).abs().mean() < 5e-2
    assert not torch.equal(pictures[0], pictures[1])


def test_a_cache_that_leaves_no_block_is_refused_at_the_door_and_by_an_engine_behind_another_door(
    z_image_folder: Path,
) -> None:
    ask = Ask("anything", DiffusionParams(height=32, width=32, cache="dbcache,first=2"))
    engine = start(config(z_image_folder))
    with pytest.raises(RequestError, match="leave no block to skip: the network has 2"):
        engine.make_request(ask)
    elsewhere = find(config(z_image_folder)).door.make_request(ask, 0.0, 0)  # as a front process does, without torch
    with pytest.raises(RequestError, match="leave no block to skip"):
        engine.submit(elsewhere)
    engine.close()


@pytest.mark.parametrize("place", ["omnimuse.worker.build.pipeline_for", "omnimuse.engine.local.bounded"])
def test_what_a_start_has_opened_is_closed_when_it_fails_behind_the_last_pass(
    z_image_folder: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    closed = list[FileStore]()

    class Seen(FileStore):
        def close(self) -> None:
            closed.append(self)
            super().close()

    monkeypatch.setattr("omnimuse.offload.host.FileStore", Seen)
    monkeypatch.setattr(place, Mock(side_effect=ConfigError("no room")))
    with pytest.raises(ConfigError, match="no room"):
        start(replace(config(z_image_folder), offload=OffloadConfig("components")))
    assert len(closed) == 1


def test_ranks_that_keep_columns_of_packed_rows_keep_no_parts_of_these(tiny: Callable[[str], Path]) -> None:
    ranks = ParallelConfig(tensor=2, ulysses=2, shard=2)
    folder = tiny("Lumina2Pipeline")  # it has four heads
    asked = replace(config(folder), parallel=ranks, quantize=QuantConfig({"": "int8"}))
    with pytest.raises(ConfigError, match=r"tensor=2 x shard=2 cannot be with packed weights: .*; leave one of"):
        run(begin(asked, Mesh.planned(ranks)), SHAPES)
