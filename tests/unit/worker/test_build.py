"""What a build refuses before it reads weights, and what `explain` tells."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omnimuse import Config, DiffusionParams, ModelConfig, Omni, explain
from omnimuse.core.config import AttentionConfig, CacheConfig, OffloadConfig, ParallelConfig, ScheduleConfig
from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.worker.build import build, find
from omnimuse.worker.place import choose_device, choose_dtype, native_bfloat16


def config(folder: Path, **model: str) -> Config:
    return Config(replace(ModelConfig(str(folder), dtype="float32", device="cpu"), **model))


@pytest.fixture
def broken(z_image_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(z_image_folder, tmp_path / "copy"))


def test_an_unsupported_architecture_is_named_with_the_closest(broken: Path) -> None:
    index = json.loads((broken / "model_index.json").read_text())
    (broken / "model_index.json").write_text(json.dumps({**index, "_class_name": "ZImagesPipeline"}))
    with pytest.raises(
        ModelError, match="ZImagesPipeline is not supported; the closest supported one is ZImagePipeline"
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


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: ModelConfig("x", dtype="int4"), "dtype='int4' is not allowed; use one of auto, float32"),
        (lambda: ModelConfig("x", load="half"), "load='half'"),  # type: ignore[arg-type]
        (lambda: CacheConfig("teacache", float("nan")), "threshold=nan"),
        (lambda: OffloadConfig("disk"), "offload='disk'"),  # type: ignore[arg-type]
        (lambda: ParallelConfig(cfg=3), "use 1 or 2"),
        (lambda: ScheduleConfig(max_running=0), "max_running=0"),
    ],
)
def test_choices_that_make_no_sense_are_refused_when_they_are_made(wrong: object, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        wrong()  # type: ignore[operator]
    assert words in str(caught.value)


def test_a_device_this_machine_lacks_is_refused(z_image_folder: Path) -> None:
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    with pytest.raises(ConfigError, match="use device='cpu'"):
        choose_device(ModelConfig("x", device="cuda"))
    with pytest.raises(ConfigError, match="not a torch device"):
        choose_device(ModelConfig("x", device="warp"))


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


def test_several_ranks_need_torchrun(z_image_folder: Path) -> None:
    from omnimuse.worker.build import connect

    with pytest.raises(ConfigError, match="torchrun --nproc-per-node 2"):
        connect(ParallelConfig(cfg=2))


def test_an_unknown_attention_backend_is_refused_with_the_known_ones(z_image_folder: Path) -> None:
    with pytest.raises(ConfigError, match="sdpa"):
        build(replace(config(z_image_folder), attention=AttentionConfig("spda")))


def test_bfloat16_draws_nearly_what_float32_draws(z_image_folder: Path) -> None:
    small = DiffusionParams(height=64, width=64, num_inference_steps=3, seed=1, output_type="pt", guidance_scale=1.0)
    pictures = []
    for dtype in ("float32", "bfloat16"):
        with Omni(str(z_image_folder), dtype=dtype, device="cpu") as omni:
            pictures.append(omni.generate("a circle", small, progress=False)[0].output)
    assert (pictures[0] - pictures[1]).abs().mean() < 5e-2
    assert not torch.equal(pictures[0], pictures[1])
