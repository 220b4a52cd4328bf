"""Engine options: every feature is one option away, and nonsense is refused."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from omnimuse.cli.app import parser_of
from omnimuse.cli.engine import add_engine_options, read_attention, read_config, with_pools
from omnimuse.cli.job import with_settings
from omnimuse.cli.layered import read_layered
from omnimuse.core.config import AttentionConfig, Config, OffloadConfig, ParallelConfig
from omnimuse.core.errors import ConfigError, RequestError
from omnimuse.core.params import DiffusionParams


def read(*words: str) -> Config:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="m")
    add_engine_options(parser)
    return read_config(parser.parse_args(words))


def test_without_options_everything_is_the_default() -> None:
    config = read()
    assert config == Config(config.model)
    assert config.cache.kind == "none"


def test_components_have_their_files_each_once() -> None:
    config = read("--component", "transformer=a=1.gguf", "--component", "text_encoder=b.gguf")
    assert config.model.files == {"transformer": "a=1.gguf", "text_encoder": "b.gguf"}
    with pytest.raises(ConfigError, match=r"--component b.gguf is not understood; write NAME=FILE"):
        read("--component", "b.gguf")
    with pytest.raises(ConfigError, match="says twice where vae is"):
        read("--component", "vae=a.gguf", "--component", "vae=b.gguf")


def test_each_option_reaches_its_topic() -> None:
    words = [
        "--teacache",
        "0.2",
        "--offload",
        "layers",
        "--offload-folder",
        "somewhere",
        "--cfg-parallel-size",
        "2",
        "--tensor-parallel-size",
        "3",
        "--ring-degree",
        "4",
        "--exact",
        "--compile",
        "--kernels",
        "plain",
        "--attention",
        "reference",
        "--threads",
        "3",
    ]
    config = read(*words)
    assert (config.cache.kind, config.cache.threshold) == ("teacache", 0.2)
    assert config.offload == OffloadConfig("layers", Path("somewhere"))
    assert config.parallel == ParallelConfig(cfg=2, tensor=3, ring=4)
    assert config.schedule.tier == "exact"
    assert config.host.threads == 3
    assert config.compile.mode == "blocks"
    assert config.kernels.mode == "plain"
    assert config.attention == AttentionConfig("reference")


def test_weights_are_kept_in_parts_by_as_many_ranks_as_share_tokens() -> None:
    found = read("--use-hsdp", "--ulysses-degree", "2", "--ring-degree", "3", "--tensor-parallel-size", "2")
    assert found.parallel == ParallelConfig(tensor=2, ulysses=2, ring=3, shard=6) and found.parallel.ranks == 12
    with pytest.raises(ConfigError, match="use_hsdp does nothing for tensor=2"):
        read("--use-hsdp", "--tensor-parallel-size", "2")


def test_ranks_wait_for_one_another_as_long_as_was_asked() -> None:
    assert read("--rank-wait", "60", "--ring-degree", "2").parallel == ParallelConfig(ring=2, wait=60.0)
    with pytest.raises(ConfigError, match="wait=60 does nothing on one rank"):
        read("--rank-wait", "60")
    with pytest.raises(ConfigError, match=r"wait=0\.0 is not allowed"):
        read("--rank-wait", "0", "--ring-degree", "2")


def test_attention_is_a_default_and_exceptions_by_role() -> None:
    assert read_attention("sdpa, cross=reference") == AttentionConfig("sdpa", {"cross": "reference"})
    assert read_attention("joint=reference") == AttentionConfig("auto", {"joint": "reference"})


def test_a_role_has_its_backend_by_every_name_that_people_know() -> None:
    said = (
        ["--attention", "sdpa,cross=reference"],
        ["--attention=sdpa", "--attention-role", "cross=reference"],
        ["--attention-backend", "sdpa", "--attention.per_role.cross.backend", "reference"],
        ["--attention.default", "sdpa", "--attention.per_role.cross.backend=reference"],
    )
    for words in said:
        args = parser_of("explain").read(["m", *words])
        assert read_config(args).attention == AttentionConfig("sdpa", {"cross": "reference"})


@pytest.mark.parametrize("ends", [[".backend", "--steps", "4"], [".backend"], [".backend="], [".backend", ""]])
@pytest.mark.parametrize("named", ["per_role.cross", "default"])
@pytest.mark.parametrize("begins", ["--attention", "--diffusion-attention-config"])
def test_an_attention_backend_that_is_missing_is_told_by_its_option(begins: str, named: str, ends: list[str]) -> None:
    backend, *words = ends
    with pytest.raises(RequestError, match=rf"argument --attention\.{named}\.backend: expected one argument"):
        parser_of("generate").read(["a cat", f"{begins}.{named}{backend}", *words])


@pytest.mark.parametrize(
    ("text", "roles", "said"),
    [
        ("sdpa,cross=", [], "--attention sdpa,cross= is not understood; write NAME or NAME,role=NAME"),
        ("", [], "--attention '' is not understood"),
        ("sdpa", ["cross="], "--attention-role cross= is not understood; write ROLE=NAME"),
        ("sdpa", ["self=sdpa", "=sdpa"], "--attention-role =sdpa is not understood"),
        ("sdpa", [""], "--attention-role '' is not understood"),
        ("self=sdpa", ["self=reference"], "--attention-role self=reference says twice what self take"),
    ],
)
def test_attention_that_is_not_understood_is_told_by_the_option_that_says_it(
    text: str, roles: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}"):
        read_attention(text, *roles)


def test_the_environment_says_which_backends_attend() -> None:
    environment = {"ATTENTION": "sdpa", "ATTENTION_ROLE": "cross=reference,self=sdpa"}
    args = read_layered(parser_of("serve"), parser_of("serve", quiet=True), ["m"], environment)
    assert read_config(args).attention == AttentionConfig("sdpa", {"cross": "reference", "self": "sdpa"})


STAGES = "stages: [{stage_id: 0, devices: cpu}, {stage_id: 1, devices: cpu}]"


@pytest.mark.parametrize("command", ["chat", "explain", "generate", "serve", "speak"])
def test_what_loads_a_model_spreads_it_as_files_say(command: str, tmp_path: Path) -> None:
    deploy, strategy = tmp_path / "deploy.yaml", tmp_path / "strategy.yaml"
    deploy.write_text(STAGES)
    strategy.write_text("strategies: {dit: [{axis: stage_replica, size: 2}]}")

    def replicas(*words: str) -> list[int]:
        args = parser_of(command).read([*words, "m", *(["-m", "m"] if command in ("generate", "speak") else [])])
        return [pool.replicas for pool in with_pools(args, read_config(args)).deploy.pools]

    assert replicas() == []
    assert replicas("--deploy", str(deploy)) == [1, 1]
    assert replicas("--deploy", str(deploy), "--strategy", str(strategy)) == [1, 2]
    with pytest.raises(ConfigError, match=r"--strategy .* lies over a deploy file; name that with --deploy"):
        replicas("--strategy", str(strategy))


@pytest.mark.parametrize("command", ["generate", "speak"])
def test_a_recording_of_what_is_spread_is_refused_before_anything_is_loaded(command: str, tmp_path: Path) -> None:
    deploy, trace = tmp_path / "deploy.yaml", tmp_path / "trace.json.gz"
    deploy.write_text(STAGES)
    args = parser_of(command).read(["a star", "-m", "m", "--deploy", str(deploy), "--profile", str(trace)])
    with pytest.raises(ConfigError, match="--profile cannot be: a model in pools has no one engine"):
        with_pools(args, read_config(args))


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda: read("--teacache", "-1"), ConfigError),
        (lambda: read("--offload", "disk"), ConfigError),
        (lambda: read("--cfg-parallel-size", "4"), ConfigError),
        (lambda: read("--vae-patch-parallel-size", "2"), ConfigError),
        (lambda: read("--hsdp-shard-size", "2"), ConfigError),
        (lambda: read("--threads", "0"), ConfigError),
        (lambda: read_attention("=sdpa"), ConfigError),
        (lambda: read_attention("sdpa,"), ConfigError),
        (lambda: read_attention("auto", ""), ConfigError),
        (lambda: read_attention("sdpa,reference"), ConfigError),
        (lambda: read_attention("self=sdpa,self=reference"), ConfigError),
        (lambda: read("--cache", ""), ConfigError),
        (lambda: with_settings(DiffusionParams(), ["cfg_truncation"]), RequestError),
    ],
)
def test_nonsense_is_refused(wrong: Callable[[], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        wrong()


def test_a_backend_for_no_role_is_told_under_the_option_that_said_it() -> None:
    with pytest.raises(ConfigError, match="--attention-role sdpa is not understood; write ROLE=NAME"):
        read_attention("auto", "cross=reference", "sdpa")


def test_slicing_is_what_decoding_is_and_a_pipeline_that_slices_itself_is_told() -> None:
    assert read("--vae-slicing").contract.slicing and not read().contract.slicing


def test_any_parameter_can_be_set_by_name() -> None:
    pairs = ["a=0.5", "b=true", "c=fast", "true_cfg_scale=4"]
    params = with_settings(DiffusionParams(seed=3), pairs)
    assert params.extra == {"a": 0.5, "b": True, "c": "fast"}
    assert (params.true_cfg_scale, params.seed) == (4, 3)
    assert with_settings(DiffusionParams(), []) == DiffusionParams()
