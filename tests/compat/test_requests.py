"""A pipeline written as the guide of vLLM-Omni has it, with `forward` alone: what it draws, and what it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Img2ImgPipeline, StableDiffusion3Pipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from omnimuse import Config, ModelConfig, Omni
from omnimuse.cli import main
from omnimuse.compat.contract.entries import entry_of
from omnimuse.core.config import AttentionConfig
from omnimuse.core.errors import ModelError, RequestError
from omnimuse.core.params import DiffusionParams
from omnimuse.worker.build import build as build_engine
from tests.checkpoints.stable_diffusion_3 import FAMILIES, build
from tests.checkpoints.wishes import Wish, photo, reference_of
from tests.compat.checkpoints import PLUGIN, customised, renamed
from tests.compat.running import config, drawn, refusal, running

FAMILY = next(each for each in FAMILIES if each.kind == "3")
SMALL = DiffusionParams(num_inference_steps=2, guidance_scale=3.0, height=32, width=48, max_sequence_length=16, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return renamed(build(tmp_path_factory.mktemp("contract") / "tiny", kind="3"), "DocumentedPipeline")


@pytest.fixture(scope="module")
def omni(folder: Path) -> Iterator[Omni]:
    with Omni(str(folder), plugin=PLUGIN, dtype="float32", device="cpu") as made:
        yield made


def test_it_draws_what_diffusers_draws(omni: Omni, folder: Path) -> None:
    expected = FAMILY.reference(renamed(folder, "StableDiffusion3Pipeline"), FAMILY.wishes, "pt")
    renamed(folder, "DocumentedPipeline")
    for wish, picture in zip(FAMILY.wishes, expected, strict=True):
        [found] = omni.generate([wish.asked], wish.params, output_type="pt", progress=False)
        assert found.error is None
        torch.testing.assert_close(found.tensors["image"][0], picture, atol=1e-5, rtol=0)


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


def test_the_command_line_draws_with_it(folder: Path, tmp_path: Path) -> None:
    words = f"--plugin {PLUGIN} --device cpu --dtype float32 --steps 2 --size 32x32 --seed 1 --quiet"
    assert main(["generate", "a star", "-m", str(folder), "-o", str(tmp_path / "star.png"), *words.split()]) == 0
    with Image.open(tmp_path / "star.png") as star:
        assert star.size == (32, 32)


def test_an_attention_backend_is_chosen_by_the_role_of_its_sites(folder: Path) -> None:
    model = ModelConfig(str(folder), "float32", "cpu", plugins=(PLUGIN,))
    built = build_engine(Config(model, attention=AttentionConfig(per_role={"medium.joint": "reference"})))
    built.resources.close()
    assert [choice.value for choice in built.choices if choice.topic == "attention"] == ["reference"]


@pytest.mark.parametrize("arch", ["DocumentedCustomPipeline", "DocumentedEagerPipeline"])
def test_a_checkpoint_of_its_own_kind_gives_the_same(arch: str, folder: Path, omni: Omni, tmp_path: Path) -> None:
    [wish, *_] = FAMILY.wishes
    [expected] = omni.generate([wish.asked], wish.params, output_type="pt", progress=False)
    own = customised(folder, tmp_path / "own", arch)
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


def test_a_picture_goes_through_the_function_before_it_whole_and_in_steps(tmp_path: Path) -> None:
    folder = build(tmp_path / "edit", kind="3")
    wish = Wish("a star", "grey", replace(SMALL, num_inference_steps=5, strength=0.6), photo(50, 70))
    other = replace(wish, prompt="a heart", params=replace(wish.params, strength=0.9, seed=4), image=photo(64, 40))
    draw = reference_of(
        StableDiffusion3Pipeline, StableDiffusion3Img2ImgPipeline, absent=("text_encoder_3", "tokenizer_3")
    )
    expected = draw(folder, [wish, other], "pt")
    for arch in ("DocumentedEditPipeline", "DocumentedEditStepPipeline"):
        with running(config(folder, arch)) as engine:
            for found in (drawn(engine, [wish, other]), [drawn(engine, [each])[0] for each in (wish, other)]):
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=0, msg=arch)
            assert "edits a picture, and none was given" in refusal(engine, replace(wish, image=None), strength=None)
            assert not engine.runner.forwards.retries
