"""Scripts and command lines of SGLang Diffusion over models of ours, and composed pipelines on two ranks."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from omnimuse import Config, ModelConfig, Omni, ParallelConfig
from omnimuse.attention.selection import bind
from omnimuse.compat.composed.make import refuse_ranks
from omnimuse.compat.contract.surroundings import Surroundings, within
from omnimuse.compat.sglang import DiffGenerator, SamplingParams
from omnimuse.compat.sglang.configs.pipeline_configs.base import ModelTaskType, PipelineConfig
from omnimuse.compat.sglang.runtime.entrypoints.command import generate, main, read, serving, value_of
from omnimuse.compat.sglang.runtime.layers.attention import LocalAttention, UlyssesAttention, USPAttention
from omnimuse.compat.sglang.runtime.layers.linear import RowParallelLinear
from omnimuse.compat.sglang.runtime.pipelines_core.schedule_batch import Req
from omnimuse.compat.sglang.runtime.pipelines_core.stages import DenoisingStage
from omnimuse.compat.sglang.runtime.server_args import ServerArgs
from omnimuse.core.config import AttentionConfig, DecodeConfig
from omnimuse.core.errors import ConfigError, ModelError, RequestError
from omnimuse.parallel.mesh import Axis, Mesh
from tests.checkpoints import adapters, flux
from tests.compat.checkpoints import COMPOSED, renamed
from tests.compat.running import drawn, on_two_ranks, running
from tests.compat.test_sglang import WISHES

SMALL = ("--num-inference-steps", "2", "--height", "32", "--width", "32", "--device", "cpu")


def test_the_shortest_script_draws_with_a_family_of_ours(tmp_path: Path) -> None:
    generator = DiffGenerator.from_pretrained(model_path="omnimuse/shapes", num_gpus=1, device="cpu")
    prompt = "a red circle"
    small = {"height": 32, "width": 32, "num_inference_steps": 2, "seed": 7}
    frames = generator.generate(prompt, return_frames=True, output_path=str(tmp_path), save_output=True, **small)
    assert [(frame.shape, frame.dtype) for frame in frames] == [((32, 32, 3), np.uint8)]
    with Image.open(tmp_path / "a_red_circle.png") as picture:
        assert np.array_equal(np.asarray(picture), frames[0])
    with Omni("omnimuse/shapes", device="cpu") as omni:
        [expected] = omni.generate(prompt, **small, progress=False)[0].images
    assert np.array_equal(np.asarray(expected), frames[0])
    params = SamplingParams(num_frames=1, num_outputs_per_prompt=2, save_output=False, **small)
    several = generator.generate(["a star", "a heart"], sampling_params=params)
    assert [(each["prompts"], each["seed"]) for each in several] == [
        *(("a star", 7), ("a star", 8)),
        *(("a heart", 7), ("a heart", 8)),
    ]
    with pytest.raises(RequestError, match="num_frames"):
        generator.generate(prompt, num_frames=5, save_output=False)
    with pytest.raises(AttributeError, match=r"has no 'warm' here; docs/compat.md"):
        generator.warm()
    generator.shutdown()


def test_an_adapter_is_worn_until_it_is_taken_off(tmp_path: Path) -> None:
    folder = flux.build(tmp_path / "tiny")
    file = adapters.write(tmp_path / "style.safetensors", adapters.layers_of(folder))
    small = {"height": 32, "width": 32, "num_inference_steps": 2, "seed": 7}
    options = {"model_path": str(folder), "dit_precision": "fp32", "device": "cpu"}
    made = {}
    with DiffGenerator.from_pretrained(**options, lora_path=str(file), lora_nickname="style") as generator:
        made["worn"] = generator.generate("a star", save_output=False, **small)["samples"]
        generator.merge_lora_weights(strength=0.5)
        made["half"] = generator.generate("a star", save_output=False, **small)["samples"]
        generator.unmerge_lora_weights()
        made["plain"] = generator.generate("a star", save_output=False, **small)["samples"]
        assert generator.list_loras()["active"] == {}
        generator.set_lora("style")
        [told] = generator.list_loras()["active"]["all"]
        assert told == {"nickname": "style", "path": str(file), "merged": False, "strength": 1.0}
        made["again"] = generator.generate("a star", save_output=False, **small)["samples"]
        with pytest.raises(RequestError, match="target='critic' is not known; use all, transformer or transformer_2"):
            generator.set_lora("style", str(file), target="critic")
        worn = generator.list_loras()
        with pytest.raises(RequestError, match=r"gone.safetensors is no file or folder on this machine"):
            generator.set_lora(["other", "gone"], [str(file), str(tmp_path / "gone.safetensors")])
        for wrong in (generator.merge_lora_weights, partial(generator.set_lora, "other", str(file))):
            with pytest.raises(RequestError, match=r"the scale 1000.0 .* is not allowed"):
                wrong(strength=1000.0)
        assert generator.list_loras() == worn
        other = adapters.write(tmp_path / "other.safetensors", {"layers.0.to_q": (8, 8)})
        with pytest.raises(RequestError, match=r"other.safetensors does not fit this model"):
            generator.set_lora("other", str(other))
        with pytest.raises(RequestError, match=r"cannot be for transformer_2, .*; it has transformer$"):
            generator.set_lora("style", target="transformer_2")
        assert generator.list_loras() == worn
    with Omni(str(folder), dtype="float32", device="cpu") as omni:
        for name, scale in {"worn": 1.0, "half": 0.5, "plain": 0.0, "again": 1.0}.items():
            loras = [f"{file}:{scale}"] if scale else None
            [found] = omni.generate(["a star"], **small, loras=loras, output_type="pt", progress=False)
            torch.testing.assert_close(made[name][:, 0], found.tensors["image"][0], atol=1e-5, rtol=0)
    assert not torch.equal(made["worn"], made["plain"])


def test_an_engine_whose_adapter_is_not_there_is_closed(tmp_path: Path) -> None:
    before = threading.enumerate()
    with pytest.raises(RequestError, match=r"gone.safetensors is no file or folder on this machine"):
        DiffGenerator.from_pretrained(model_path="omnimuse/shapes", lora_path=str(tmp_path / "gone.safetensors"))
    assert not [each for each in threading.enumerate() if each.name == "omnimuse-engine" and each not in before]


def test_its_command_line_draws_and_a_file_of_names_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = tmp_path / "config.json"
    told.write_text(json.dumps({"model_path": "omnimuse/shapes", "prompt": "a star", "seed": 3, "fps": None}))
    line = ["generate", "--config", str(told), *SMALL, "--prompt", "A curious raccoon", "--save-output"]
    line += ["--pin-cpu-memory", "--output-path", str(tmp_path), "--output-file-name", "raccoon.png"]
    assert main(line) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'raccoon.png'}\n"
    verb, given = read(line)
    assert (verb, given["seed"], given["prompt"], given["height"]) == ("generate", 3, "A curious raccoon", 32)
    assert generate({**given, "save_output": False}) == ["None"]


def test_a_command_line_that_cannot_be_is_refused_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "--model-path", "omnimuse/shapes", "--vae-path", "other"]) == 2
    assert "vae_path='other' is not taken here: put the autoencoder into" in capsys.readouterr().err
    assert main(["serve", "--model-path", "m", "--num-gpus", "4", "--ulysses-degree=2", "--ring-degree=2"]) == 2
    assert "omnimuse serve m --ulysses-degree 2 --ring-degree 2" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="text_encoder_cpu_offload"):
        serving({"model_path": "m", "text_encoder_cpu_offload": True})
    with pytest.raises(ConfigError, match=r"give a file of JSON"):
        read(["generate", "--config", "x.yaml"])
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="holds no JSON object"):
        read(["generate", "--config", str(tmp_path / "deep.json")])
    with pytest.raises(ConfigError, match=r"none\.json cannot be read: No such file"):
        read(["generate", "--config", str(tmp_path / "none.json")])
    assert [value_of(text) for text in ("1", "1.5", "true", "null", "x")] == [1, 1.5, True, None, "x"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A composed pipeline's checkpoint, and what one rank draws of it."""
    folder = renamed(flux.build(tmp_path_factory.mktemp("ranks") / "tiny"), "ComposedSmallPipeline")
    with running(Config(ModelConfig(str(folder), "float32", "cpu", plugins=(COMPOSED,)))) as engine:
        return folder, drawn(engine, [WISHES[1]])[0]


@pytest.mark.costly(turns=3)
@pytest.mark.dist
@pytest.mark.timeout(300)
@pytest.mark.parametrize("axis", ["cfg", "tensor", "ulysses", "ring"])
def test_two_ranks_draw_what_one_draws(axis: str, small: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    folder, expected = small
    parallel = ParallelConfig(**{axis: 2})  # type: ignore[arg-type]
    model = ModelConfig(str(folder), "float32", "cpu", plugins=(COMPOSED,))
    [found], _ = on_two_ranks(Config(model, parallel=parallel), [WISHES[1]], tmp_path / "meeting")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.dist
@pytest.mark.timeout(300)
def test_two_ranks_decode_the_tiles_of_one(small: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    model = ModelConfig(str(small[0]), "float32", "cpu", plugins=(COMPOSED,))
    with running(Config(model, decode=DecodeConfig(tiling=True))) as engine:
        expected = drawn(engine, [WISHES[1]])
    parallel = ParallelConfig(cfg=2, vae_tiles=2)
    found, _ = on_two_ranks(Config(model, parallel=parallel), [WISHES[1]], tmp_path / "meeting")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (found[0] - small[1]).abs().max() > 1e-6  # tiles change a picture a little


class Own(DenoisingStage):
    def _predict_noise_with_cfg(self, **step: object) -> torch.Tensor:
        raise AssertionError("nobody calls it")


def test_ranks_that_would_share_nothing_are_refused() -> None:
    args = ServerArgs(model_path="m", pipeline_config=PipelineConfig())
    with within(Surroundings(torch.device("cpu"), torch.float32, Mesh.single(), args)):
        stock, own = DenoisingStage(None, None), Own(None, None)
        layers = {"transformer": (shared := RowParallelLinear(2, 2))}
        shared.ranks = Axis(2)
    refused = {
        "tensor=2 cannot be: no network of P has layers": (ParallelConfig(tensor=2), [stock], {"vae": nn.Linear(2, 2)}),
        "cfg=2 cannot be: the denoising stage of P": (ParallelConfig(cfg=2), [own], layers),
    }
    for words, (parallel, stages, modules) in refused.items():
        place = SimpleNamespace(config=Config(ModelConfig("m"), parallel=parallel))
        with pytest.raises(ConfigError, match=words):
            refuse_ranks("P", stages, modules, PipelineConfig(), place)  # type: ignore[arg-type]
    both = SimpleNamespace(config=Config(ModelConfig("m"), parallel=ParallelConfig(tensor=2, cfg=2)))
    refuse_ranks("P", [stock], layers, PipelineConfig(), both)  # type: ignore[arg-type]


def test_sites_say_which_tokens_all_ranks_have() -> None:
    own, alike = (torch.randn(3, 1, count, 2, 4) for count in (6, 5))
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(torch.cat([a, b], dim=1).transpose(1, 2) for a, b in zip(own, alike, strict=True))
    ).transpose(1, 2)
    with within(Surroundings(torch.device("cpu"), torch.float32, Mesh.single(), None)):
        sites = {kind: kind(2, 4) for kind in (USPAttention, UlyssesAttention)}
        for site in sites.values():
            bind(site, AttentionConfig(), torch.device("cpu"), torch.float32)
        whole = [torch.cat([a, b], dim=1) for a, b in zip(own, alike, strict=True)]
        torch.testing.assert_close(sites[USPAttention](*whole, num_replicated_suffix=5), expected)
        found = sites[UlyssesAttention](*own, *alike)
        torch.testing.assert_close(torch.cat(found, dim=1), expected)
        assert sites[UlyssesAttention](*own)[1] is None
        with pytest.raises(ModelError, match="give one of the numbers"):
            sites[USPAttention](*whole, num_replicated_prefix=1, num_replicated_suffix=5)


class Whole(DenoisingStage):
    def forward(self, batch: Req, server_args: ServerArgs) -> Req:
        raise AssertionError("nobody calls it")


@dataclass
class Sharing(PipelineConfig):
    def shard_latents_for_sp(self, batch: object, latents: torch.Tensor) -> tuple[torch.Tensor, bool]:
        raise AssertionError("nobody calls it")


def test_tokens_that_nobody_says_how_to_share_are_refused() -> None:
    args = ServerArgs(model_path="m", pipeline_config=PipelineConfig())
    with within(Surroundings(torch.device("cpu"), torch.float32, Mesh.single(), args)):
        stock, whole = DenoisingStage(None, None), Whole(None, None)
        usp, local = ({"transformer": kind(2, 4)} for kind in (USPAttention, LocalAttention))
    refused = {
        "PipelineConfig does not say which latents are each rank's": (
            stock,
            usp,
            PipelineConfig(task_type=ModelTaskType.T2I),
        ),
        "has a forward of its own, which calls its network with all": (whole, usp, Sharing()),
        "no network of P attends to other ranks' tokens": (stock, local, Sharing()),
    }
    place = SimpleNamespace(config=Config(ModelConfig("m"), parallel=ParallelConfig(ring=2)))
    for words, (stage, modules, config) in refused.items():
        with pytest.raises(ConfigError, match=words):
            refuse_ranks("P", [stage], modules, config, place)  # type: ignore[arg-type]
    refuse_ranks("P", [stock], usp, Sharing(), place)  # type: ignore[arg-type]
    refuse_ranks("P", [stock], usp, PipelineConfig(task_type=ModelTaskType.T2V), place)  # type: ignore[arg-type]
