"""The list of models, and capabilities from which a page can be built."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import httpx2
import openai
import pytest

from omnimuse import Config, ModelConfig, explain
from omnimuse.core.caches import Fits, cache_named
from omnimuse.core.errors import ConfigError
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask
from omnimuse.server.options import Clients, ServeOptions
from omnimuse.server.routes.models import capabilities
from omnimuse.worker.find import find
from tests.checkpoints import calling, qwen3, qwen3_omni, qwen3_tts, talk_and_draw
from tests.server.picture_server import MODEL, picture_server, shapes


def test_the_official_client_lists_and_retrieves_the_model_with_its_capabilities(tmp_path: Path) -> None:
    with picture_server(tmp_path) as server, server.client() as client:
        [listed] = client.models.list().data
        assert listed.id == MODEL
        model = client.models.retrieve(MODEL)
        assert model == listed
        can = model.model_extra["capabilities"]  # type: ignore[index]
        assert can["tasks"] == ["text-to-image", "image-to-image"]
        assert (can["takes"], can["gives"], can["calls"]) == (["text", "image"], ["image"], False)
        assert (can["max_images"], can["takes_images"]) == (1, True)
        assert "strength" in can["parameters"]
        assert (can["size_multiple"], can["max_side"], can["max_outputs"]) == (16, 1024, 10)
        assert can["defaults"]["num_inference_steps"] == 10
        assert can["extra"] == {"cfg_normalization": 0.0, "cfg_truncation": 1.0}
        assert can["qualities"] == {"low": 5, "medium": 10, "high": 15, "hd": 15, "xhigh": 20, "max": 30}
        assert "guidance_scale" in can["parameters"]
        assert "negative_prompt" in can["parameters"]
        assert "true_cfg_scale" not in can["parameters"]
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve("gpt-image-2")
        assert caught.value.code == "model_not_found"
        assert MODEL in caught.value.message


@pytest.mark.parametrize(
    ("kind", "needs", "told"),
    [
        ("voice_design", ["instructions"], ("instructions", "needed")),
        ("custom_voice", [], ("voice", "vivian, eric")),
        ("base", [], ("sounds", "one is needed")),
    ],
)
def test_what_a_model_that_speaks_cannot_do_without_is_told(
    kind: str, needs: list[str], told: tuple[str, str], tmp_path: Path
) -> None:
    folder = str(qwen3_tts.build(tmp_path / "tiny", kind=kind))
    can = capabilities(find(Config(ModelConfig(folder))).door)
    assert can.caches == []
    assert can.needs == needs and {*needs} <= can.extra.keys()
    rows = [(row.name, row.value) for row in explain(folder) if row.topic == "limits"]
    assert told in rows and (("instructions", "needed") in rows) == bool(needs)


def test_the_step_caches_that_can_be_chosen_are_told_and_which_is_the_server_s_own() -> None:
    door = shapes()
    usual = ["none", "careful", "balanced", "fast", "teacache", "dbcache", "taylorseer"]
    assert capabilities(door).caches == usual and "cache" not in capabilities(door).defaults
    measured = replace(door, fits=Fits(ratios=(1.0, 0.9), auto="fast"), cache=cache_named("dbcache,first=2"))
    assert set(capabilities(measured).caches) == {*usual, "auto", "magcache"}
    assert capabilities(measured).defaults["cache"] == "dbcache,first=2"
    assert capabilities(replace(door, fits=Fits(only=("dbcache",)))).caches == ["none", "dbcache", "taylorseer"]
    assert capabilities(replace(door, fits=Fits(flaw="it is damaged"))).caches == ["none"]
    for name in capabilities(measured).caches:
        measured.make_request(Ask("a ring", DiffusionParams(cache=name)), now=0.0, fresh_seed=0)


def test_a_model_without_guidance_takes_no_negative_prompt() -> None:
    door = shapes()
    fixed = replace(door, limits=replace(door.limits, fixed=DiffusionParams(guidance_scale=0.0)))
    assert "negative_prompt" not in capabilities(fixed).parameters
    assert capabilities(fixed).fixed == {"guidance_scale": 0.0}


def test_a_model_that_works_from_text_only_takes_no_images() -> None:
    door = shapes()
    blind = capabilities(replace(door, limits=replace(door.limits, max_images=0)))
    assert (blind.max_images, blind.model_dump()["takes_images"]) == (0, False)


def test_capabilities_say_what_a_model_of_videos_makes() -> None:
    door = shapes()
    videos = replace(door, spec=replace(door.spec, tasks=("text-to-video",)))
    can = capabilities(videos)
    assert (can.formats, can.max_outputs, can.qualities["low"]) == (["mp4"], 1, 5)


@pytest.mark.parametrize(
    ("model", "takes", "gives", "calls"),
    [
        (qwen3, ["text"], ["text"], False),
        (calling, ["text"], ["text"], True),
        (qwen3_omni, ["text", "image", "audio", "video"], ["text", "audio"], False),
        (talk_and_draw, ["text"], ["text", "image"], False),
    ],
)
def test_capabilities_say_what_a_model_takes_and_gives_and_whether_it_calls_tools(
    model: ModuleType, takes: list[str], gives: list[str], calls: bool, tmp_path: Path
) -> None:
    can = capabilities(find(Config(ModelConfig(str(model.build(tmp_path / "tiny"))))).door)
    assert (can.takes, can.gives, can.calls) == (takes, gives, calls)


def test_a_model_may_be_named_by_a_path_of_any_depth(tmp_path: Path) -> None:
    with picture_server(tmp_path, change=lambda options: replace(options, model_name="a/b/c")) as server:
        assert httpx2.get(f"{server.url}/v1/models/a/b/c").json()["id"] == "a/b/c"


@pytest.mark.parametrize("name", ["", "\udcff", "two\nlines", "\x1b[31m"])
def test_a_name_that_no_client_can_say_is_refused_at_the_start(tmp_path: Path, name: str) -> None:
    for first, others in ((name, ()), ("a", ("b", name))):
        with pytest.raises(ConfigError, match=r"no client can say .*; give the model another name, by --model-name"):
            ServeOptions(tmp_path, first, clients=Clients(others))
