"""Scripts and command lines of SGLang Diffusion over models of ours, and composed pipelines on two ranks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from omnimuse import Config, ModelConfig, Omni, ParallelConfig
from omnimuse.compat.composed.make import refuse_ranks
from omnimuse.compat.contract.surroundings import Surroundings, within
from omnimuse.compat.sglang import DiffGenerator, SamplingParams
from omnimuse.compat.sglang.configs.pipeline_configs.base import PipelineConfig
from omnimuse.compat.sglang.runtime.entrypoints.command import generate, main, read, serving, value_of
from omnimuse.compat.sglang.runtime.layers.linear import RowParallelLinear
from omnimuse.compat.sglang.runtime.pipelines_core.stages import DenoisingStage
from omnimuse.compat.sglang.runtime.server_args import ServerArgs
from omnimuse.core.errors import ConfigError, RequestError
from omnimuse.parallel.mesh import Mesh
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
        with pytest.raises(RequestError, match="target='transformer_2' is not taken here"):
            generator.set_lora("style", str(file), target="transformer_2")
    with Omni(str(folder), dtype="float32", device="cpu") as omni:
        for name, scale in {"worn": 1.0, "half": 0.5, "plain": 0.0, "again": 1.0}.items():
            loras = [f"{file}:{scale}"] if scale else None
            [found] = omni.generate(["a star"], **small, loras=loras, output_type="pt", progress=False)
            torch.testing.assert_close(made[name][:, 0], found.tensors["image"][0], atol=1e-5, rtol=0)
    assert not torch.equal(made["worn"], made["plain"])


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


def test_a_command_line_that_cannot_be_is_refused_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--model-path", "omnimuse/shapes", "--vae-path", "other"]) == 2
    assert "vae_path='other' is not taken here: put the autoencoder into" in capsys.readouterr().err
    assert main(["serve", "--model-path", "m", "--num-gpus", "4", "--ulysses-degree=2", "--ring-degree=2"]) == 2
    assert "omnimuse serve m --ulysses-degree 2 --ring-degree 2" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="text_encoder_cpu_offload"):
        serving({"model_path": "m", "text_encoder_cpu_offload": True})
    with pytest.raises(ConfigError, match=r"give a file of JSON"):
        read(["generate", "--config", "x.yaml"])
    assert [value_of(text) for text in ("1", "1.5", "true", "null", "x")] == [1, 1.5, True, None, "x"]


@pytest.mark.dist
@pytest.mark.timeout(300)
@pytest.mark.parametrize("axis", ["cfg", "tensor"])
def test_two_ranks_draw_what_one_draws(axis: str, tmp_path: Path) -> None:
    folder, wish = renamed(flux.build(tmp_path / "tiny"), "ComposedSmallPipeline"), WISHES[1]
    alone = Config(ModelConfig(str(folder), "float32", "cpu", plugins=(COMPOSED,)))
    with running(alone) as engine:
        [expected] = drawn(engine, [wish])
    found = on_two_ranks(replace(alone, parallel=ParallelConfig(**{axis: 2})), wish, tmp_path / "meeting")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


class Own(DenoisingStage):
    def _predict_noise_with_cfg(self, **step: object) -> torch.Tensor:
        raise AssertionError("nobody calls it")


def test_ranks_that_would_share_nothing_are_refused() -> None:
    args = ServerArgs(model_path="m", pipeline_config=PipelineConfig())
    with within(Surroundings(torch.device("cpu"), torch.float32, Mesh.single(), args)):
        stock, own = DenoisingStage(None, None), Own(None, None)
        layers = {"transformer": RowParallelLinear(2, 2)}
    refused = {
        "tensor=2 cannot be: no network of P has layers": (ParallelConfig(tensor=2), [stock], {"vae": nn.Linear(2, 2)}),
        "cfg=2 cannot be: the denoising stage of P": (ParallelConfig(cfg=2), [own], layers),
    }
    for words, (parallel, stages, modules) in refused.items():
        place = SimpleNamespace(config=Config(ModelConfig("m"), parallel=parallel))
        with pytest.raises(ConfigError, match=words):
            refuse_ranks("P", stages, modules, place)  # type: ignore[arg-type]
    both = SimpleNamespace(config=Config(ModelConfig("m"), parallel=ParallelConfig(tensor=2, cfg=2)))
    refuse_ranks("P", [stock], layers, both)  # type: ignore[arg-type]
