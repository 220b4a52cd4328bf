"""A pipeline written as the guide of vLLM-Omni has it, with `forward` alone: what it draws, and what it takes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from omnimuse import Config, ModelConfig, Omni
from omnimuse.attention.layer import Attention
from omnimuse.cli import main
from omnimuse.compat.contract.entries import entry_of
from omnimuse.compat.contract.spec import PIPELINE
from omnimuse.core.config import AttentionConfig
from omnimuse.core.errors import ModelError, RequestError
from omnimuse.core.params import DiffusionParams
from omnimuse.worker.build import build as build_engine
from tests.checkpoints.stable_diffusion_3 import FAMILIES, build
from tests.checkpoints.wishes import Wish
from tests.compat.checkpoints import PLUGIN, customised, renamed
from tests.compat.running import config, refusal, running

FAMILY = next(each for each in FAMILIES if each.kind == "3")
SMALL = DiffusionParams(num_inference_steps=2, guidance_scale=3.0, height=32, width=48, max_sequence_length=16, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return renamed(build(tmp_path_factory.mktemp("contract") / "tiny", kind="3"), "DocumentedPipeline")


@pytest.fixture(scope="module")
def omni(folder: Path) -> Iterator[Omni]:
    with Omni(str(folder), plugin=PLUGIN, dtype="float32", device="cpu") as made:
        yield made


def test_its_outputs_are_those_of_requests_with_the_next_seeds(omni: Omni) -> None:
    ask = partial(omni.generate, ["a star"], SMALL, output_type="pt", progress=False)
    [both] = ask(num_outputs_per_prompt=2)
    alone = [ask(seed=seed)[0].tensors["image"][0] for seed in (3, 4)]
    assert torch.equal(torch.stack(list(both.tensors["image"])), torch.stack(alone))


def test_a_parameter_that_it_never_reads_is_refused(omni: Omni) -> None:
    with pytest.raises(RequestError, match="true_cfg_scale means nothing"):
        omni.generate("a star", SMALL, true_cfg_scale=2.0, progress=False)


def test_without_its_plugin_nobody_knows_it(folder: Path) -> None:
    assert entry_of("DocumentedPipeline", ()) is None


def test_the_command_line_finds_it_and_draws_with_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", str(folder), "--plugin", PLUGIN]) == 0
    assert "MediumPipeline, which is written to the vLLM-Omni contract" in capsys.readouterr().out
    words = f"--plugin {PLUGIN} --device cpu --dtype float32 --steps 2 --size 32x32 --seed 1 --quiet"
    assert main(["generate", "a star", "-m", str(folder), "-o", str(tmp_path / "star.png"), *words.split()]) == 0
    with Image.open(tmp_path / "star.png") as star:
        assert star.size == (32, 32)


@pytest.mark.parametrize(("name", "kind"), [("medium.joint", "role"), ("self", "category")])
def test_an_attention_backend_is_chosen_by_the_role_of_its_sites_or_its_category(
    folder: Path, name: str, kind: str
) -> None:
    model = ModelConfig(str(folder), "float32", "cpu", plugins=(PLUGIN,))
    built = build_engine(Config(model, attention=AttentionConfig(per_role={name: "reference"})))
    sites = [module for module in built.pipeline.ctx.network(PIPELINE).modules() if isinstance(module, Attention)]
    built.resources.close()
    [choice] = [choice for choice in built.choices if choice.topic == "attention"]
    assert (choice.value, choice.reason) == ("reference", f"per_role[{name!r}], by {kind}")
    assert sites and {site.backend.name for site in sites} == {"reference"}


def test_a_checkpoint_that_its_pipeline_reads_itself_gives_the_same(folder: Path, omni: Omni, tmp_path: Path) -> None:
    [wish, *_] = FAMILY.wishes
    [expected] = omni.generate([wish.asked], wish.params, output_type="pt", progress=False)
    own = customised(folder, tmp_path / "own", "DocumentedEagerPipeline")
    with Omni(str(own), plugin=PLUGIN, dtype="float32", device="cpu") as custom:
        [found] = custom.generate([wish.asked], wish.params, output_type="pt", progress=False)
    assert torch.equal(found.tensors["image"], expected.tensors["image"])


def test_a_weight_that_its_checkpoint_lacks_ends_the_start_with_its_name(folder: Path, tmp_path: Path) -> None:
    own = customised(folder, tmp_path / "own", "DocumentedCustomPipeline")
    weights = load_file(own / "model.safetensors")
    del weights["net.proj_out.bias"]
    save_file(weights, own / "model.safetensors")
    with pytest.raises(ModelError, match=r"nothing filled transformer.proj_out.bias"):
        build_engine(Config(ModelConfig(str(own), "float32", "cpu", plugins=(PLUGIN,))))


def test_a_pipeline_that_edits_says_so_where_no_picture_was_given(folder: Path) -> None:
    with running(config(folder, "DocumentedEditPipeline")) as engine:
        assert "edits a picture, and none was given" in refusal(engine, Wish("a star", "grey", SMALL))
    renamed(folder, "DocumentedPipeline")
