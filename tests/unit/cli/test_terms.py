"""What a request may say over HTTP, the command line can say, too: every field has its option."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path
from types import MappingProxyType

import pytest
from PIL import Image

from omnimuse.cli.app import option_of, parser_of
from omnimuse.cli.generate import draw
from omnimuse.cli.job import Job, plan
from omnimuse.core.errors import RequestError
from omnimuse.server.translate.field import HARMLESS, Kind
from omnimuse.server.translate.fields import TABLE
from tests.fake_omni import FakeOmni

TRAVEL = frozenset(
    {
        *("transport", "stream", "flow", "stream_format", "stream_options", "partial_images", "progress"),
        *("background", "safety_identifier", "nested", "messages", "modalities"),
    }
)
"""How an answer travels to a client, and in which shape a question comes."""
NAMED: Mapping[str, str] = MappingProxyType(
    {
        "urls": "--image",
        "last_urls": "--image",
        "masks": "--mask",
        "sounds": "--audio",
        "extra": "--set",
        "level": "--quality",
        "length": "--seconds",
        "cache_dit": "--cache",
        "cache_settings": "--cache",
        "blocks": "--plot",
    }
)
"""Options by targets that are called otherwise."""
SPOKEN: Mapping[str, str] = MappingProxyType(
    {"urls": "--like", "ref_text": "--like-text", "alone": "--like", "format": "--output", "blocks": "--plot"}
)
OF: Mapping[Kind, tuple[str, Mapping[str, str]]] = MappingProxyType(
    {
        "image": ("generate", NAMED),
        "edit": ("generate", NAMED),
        "video": ("generate", NAMED),
        "audio": ("generate", NAMED),
        "speech": ("speak", SPOKEN),
    }
)
"""By endpoint, the command that makes the same, and its options. Whoever writes is told by --set, or `chat`."""


@pytest.mark.parametrize("kind", OF)
def test_every_field_of_a_request_over_http_has_its_option(kind: Kind) -> None:
    command, named = OF[kind]
    actions = parser_of(command).actions()
    options = {word for action in actions for word in action.option_strings}
    targets = {field.target for field in TABLE[kind] if field.target not in ("", HARMLESS, "prompt", *TRAVEL)}
    assert not [target for target in targets if named.get(target, option_of(target)) not in options]


@pytest.mark.parametrize("command", ["generate", "speak", "chat", "bench"])
def test_every_command_that_makes_a_request_can_say_when_it_is_wanted(command: str) -> None:
    assert any("--deadline" in action.option_strings for action in parser_of(command).actions())


def job(*words: str) -> Job:
    return plan(parser_of("generate").read(["a red circle", *words]), io.StringIO())


def drawn(wanted: Job) -> FakeOmni:
    """The engine that drew it."""
    engine = FakeOmni(wanted.config)
    assert draw(wanted, lambda config: lambda config: engine, stdout=io.StringIO(), stderr=io.StringIO()) == 0
    return engine


@pytest.mark.parametrize(
    ("words", "deadline"),
    [
        (["--deadline", "2.5"], 2.5),
        (["--timeout-s", "3"], 3.0),
        (["--deadline", "interactive"], "interactive"),
        ([], None),
    ],
)
def test_a_deadline_is_told_to_the_engine(words: list[str], deadline: float | str | None, tmp_path: Path) -> None:
    with chdir(tmp_path):
        assert drawn(job(*words).at_the_door()).deadline == deadline


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--deadline", "soon"], "deadline='soon' is not known; use a number of seconds, or one of batch, interactive"),
        (["--deadline", "0"], "deadline=0.0 is not allowed; use a number of seconds above 0"),
        (["--quality", "best"], "--quality best is not known; use one of low, medium, high"),
        (["--quality", "low", "--steps", "3"], "--quality low and --steps both choose the steps"),
        (["--compression", "80"], "--compression is for JPEG and WebP pictures, and picture.png is neither"),
        (["--compression", "none"], "--compression none is not allowed; use a number from 1 to 100, or default, auto"),
        (["--compression", "0"], "--compression 0 is not allowed"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(words: list[str], message: str, tmp_path: Path) -> None:
    with chdir(tmp_path), pytest.raises(RequestError, match=message):
        job(*words).at_the_door()


def test_a_word_stands_for_a_share_of_the_models_own_steps(tmp_path: Path) -> None:
    with chdir(tmp_path):
        low, usual, high = (job("--quality", word).at_the_door() for word in ("low", "auto", "maximum"))
    assert usual.params.num_inference_steps is None
    assert (low.params.num_inference_steps or 0) * 6 == high.params.num_inference_steps


def test_a_lossy_picture_is_written_in_the_quality_that_was_asked_for(tmp_path: Path) -> None:
    sizes = {}
    for quality in ("low", "100"):
        file = tmp_path / f"{quality}.jpg"
        drawn(job("--compression", quality, "-o", str(file)).at_the_door())
        with Image.open(file) as picture:
            sizes[quality] = sum(picture.quantization[0])
    assert sizes["100"] < sizes["low"]
