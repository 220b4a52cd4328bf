"""Engine options: every feature is one option away, and nonsense is refused."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest

from omnimuse.cli.engine import add_engine_options, read_attention, read_config
from omnimuse.cli.job import read_extra
from omnimuse.core.config import AttentionConfig, Config
from omnimuse.core.errors import ConfigError, RequestError


def read(*words: str) -> Config:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="m")
    add_engine_options(parser)
    return read_config(parser.parse_args(words))


def test_without_options_everything_is_the_default() -> None:
    config = read()
    assert config == Config(config.model)
    assert config.cache.kind == "none"


def test_each_option_reaches_its_topic() -> None:
    words = ["--teacache", "0.2", "--offload", "layers", "--cfg-parallel", "2", "--exact", "--attention", "reference"]
    config = read(*words)
    assert (config.cache.kind, config.cache.threshold) == ("teacache", 0.2)
    assert config.offload.mode == "layers"
    assert config.parallel.cfg == 2
    assert config.schedule.exact
    assert config.attention == AttentionConfig("reference")


def test_attention_is_a_default_and_exceptions_by_role() -> None:
    assert read_attention("sdpa, cross=reference") == AttentionConfig("sdpa", {"cross": "reference"})
    assert read_attention("joint=reference") == AttentionConfig("auto", {"joint": "reference"})


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda: read("--teacache", "-1"), ConfigError),
        (lambda: read("--offload", "disk"), ConfigError),
        (lambda: read("--cfg-parallel", "3"), ConfigError),
        (lambda: read_attention("=sdpa"), ConfigError),
        (lambda: read_attention("sdpa,"), ConfigError),
        (lambda: read_extra(["cfg_truncation"]), RequestError),
    ],
)
def test_nonsense_is_refused(wrong: Callable[[], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        wrong()


def test_family_parameters_are_numbers_or_text() -> None:
    assert read_extra(["a=0.5", "b=true", "c=fast"]) == {"a": 0.5, "b": True, "c": "fast"}
    assert read_extra([]) is None
