"""Every setting of the contract has an effect, changes nothing at its default, or is refused with its name."""

from __future__ import annotations

import re
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omnimuse import Config, ModelConfig, Omni
from omnimuse.attention import selection
from omnimuse.cli.app import parser_of
from omnimuse.cli.contract import with_contract
from omnimuse.cli.engine import read_config
from omnimuse.cli.layered import read_layered
from omnimuse.cli.serve import chosen as serving
from omnimuse.compat.contract.entries import ENTRIES
from omnimuse.compat.contract.make import config_of as told_to
from omnimuse.compat.contract.requests import note_times
from omnimuse.compat.contract.settings import FLAGS, OPTIONS, PARALLEL, TOLD, Setting
from omnimuse.compat.door import Place
from omnimuse.compat.sglang.runtime.entrypoints import options as sglang
from omnimuse.compat.vllm_omni.diffusion.data import DiffusionOutput, DiffusionParallelConfig, OmniDiffusionConfig
from omnimuse.compat.vllm_omni.diffusion.profiler import DiffusionPipelineProfilerMixin
from omnimuse.compat.vllm_omni.entrypoints.options import EngineOptions, config_of
from omnimuse.core import names
from omnimuse.core.config import AttentionConfig, ContractConfig, DecodeConfig
from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.core.foreign import SETTINGS
from omnimuse.core.request import Door
from omnimuse.lora.linear import Rack
from omnimuse.observe.labels import MADE, OTHER, STEPS, TEXT, WRITING, by_label
from omnimuse.parallel.mesh import Mesh
from omnimuse.pipeline.state import State
from omnimuse.worker.build import build as build_engine
from omnimuse.worker.find import find
from tests.checkpoints.stable_diffusion_3 import FAMILIES, build
from tests.compat.checkpoints import PLUGIN, renamed
from tests.fakes import SPEC, ask

WISH = next(each for each in FAMILIES if each.kind == "3").wishes[0]

CHOSEN: dict[str, tuple[Any, Any]] = {
    "parallel_config": (DiffusionParallelConfig(), DiffusionParallelConfig(ulysses_degree=2)),
    "tensor_parallel_size": (1, 2),
    "ulysses_degree": (1, 2),
    "ring_degree": (1, 2),
    "cfg_parallel_size": (1, 2),
    "use_hsdp": (False, True),
    "cache_backend": ("none", "tea_cache"),
    "cache_config": ({}, {"rel_l1_thresh": 0.3}),
    "enable_cpu_offload": (False, True),
    "enable_layerwise_offload": (False, True),
    "layerwise_num_gpu_layers": (1, 2),
    "vae_use_slicing": (False, True),
    "vae_use_tiling": (False, True),
    "enforce_eager": (True, False),
    "plugin": ((), "some_package"),
    "dtype": ("auto", "float32"),
    "device": ("auto", "cpu"),
    "trust_remote_code": (False, True),
    "step_execution": (None, True),
    "enable_diffusion_pipeline_profiler": (False, True),
    "auxiliary_text_encoder": (None, "some/folder"),
    "max_num_seqs": (Config(ModelConfig("m")).schedule.max_running, 2),
    "diffusion_attention_backend": ("AUTO", "TORCH_SDPA"),
    "diffusion_attention_config": ({}, {"per_role": {"self": "TORCH_SDPA"}}),
    "stage_configs_path": (None, "examples/pools.yaml"),
    "deploy_config": (None, "examples/pools.yaml"),
    "strategy_config": (None, "some/strategy.yaml"),
}
"""Of every option its default, and another value."""

NEEDS = {"cache_config": {"cache_backend": "tea_cache"}, "use_hsdp": {"ulysses_degree": 2}}
"""Options that mean something beside another one only."""


def chosen(**options: Any) -> Config:
    return config_of("m", EngineOptions(**options))  # type: ignore[typeddict-item]


def outcome(**options: Any) -> Config | str:
    """What was chosen, or what a refusal says."""
    try:
        return chosen(**options)
    except ConfigError as refusal:
        return str(refusal)


@pytest.mark.parametrize("name", [row.name for row in OPTIONS])
def test_an_option_has_an_effect_and_none_at_its_default(name: str) -> None:
    usual, other = CHOSEN[name]
    beside = NEEDS.get(name, {})
    assert chosen(**beside, **{name: usual}) == chosen(**beside)
    made = outcome(**beside, **{name: other})
    assert name in made if isinstance(made, str) else made != chosen(**beside)


def test_a_strategy_lies_over_a_deploy_file(tmp_path: Path) -> None:
    stages, strategy = tmp_path / "stages.yaml", tmp_path / "strategy.yaml"
    stages.write_text("stages: [{stage_id: 0}, {stage_id: 1}, {stage_id: 2}]")
    strategy.write_text("strategies: {talker: [{axis: stage_replica, size: 2}]}")
    deploy = chosen(deploy_config=str(stages), strategy_config=str(strategy)).deploy
    assert [pool.replicas for pool in deploy.pools] == [1, 2, 1]
    words = ["omnimuse/shapes", "--deploy-config", str(stages), "--strategy-config", str(strategy)]
    assert serving(parser_of("serve").read(words))[0].deploy == deploy
    with pytest.raises(ConfigError, match=r"--strategy .* lies over a deploy file; name that with --deploy"):
        serving(parser_of("serve").read([words[0], *words[3:]]))
    both = outcome(deploy_config=str(stages), stage_configs_path=str(stages))
    assert isinstance(both, str) and "are two files; name one" in both


def test_the_table_has_every_option_and_every_field() -> None:
    assert {row.name for row in OPTIONS} == EngineOptions.__annotations__.keys() == CHOSEN.keys()
    for rows, owner in ((PARALLEL, DiffusionParallelConfig), (TOLD, OmniDiffusionConfig)):
        assert [row.name for row in rows if row.name not in {part.name for part in fields(owner)}] == []
        assert len(rows) == len(fields(owner))


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in EngineOptions.__annotations__])
def test_an_option_that_chooses_nothing_is_taken_where_it_changes_nothing(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    setting = SETTINGS[name]
    for value in setting.anyway:
        assert chosen(**{name: value}) == chosen()
    if setting.void:
        with caplog.at_level("INFO"):
            assert chosen(**{name: 7}) == chosen()
        assert f"{name}: {setting.why}" in caplog.text
    else:
        assert f"{name}=7 is not honoured here" in str(outcome(**{name: 7}))


@pytest.mark.parametrize("name", sorted(names.STARTED))
def test_what_a_request_is_told_to_choose_at_the_start_is_an_option_of_the_server(name: str) -> None:
    options = {word for action in parser_of("serve").actions() for word in action.option_strings}
    assert names.started(name) in options
    assert all(names.started(other) == names.started(name) for other, ours in names.MEANINGS.items() if ours == name)


def served(line: str) -> Config:
    """What `omnimuse serve MODEL` and those words choose."""
    args = parser_of("serve").read(["omnimuse/shapes", *line.split()])
    return with_contract(args, read_config(args))


WHERE = ("--port 8091", "--stage-configs-path x")
"""Flags that say where it listens, and what is served."""

AS_WITHOUT = ("--omni", "--enforce-eager", "--cache-config {}")
"""Those that say what is so in any case, or something of another flag's."""

BESIDE = {"--use-hsdp": "--usp 2"}
"""Those that do something beside another flag alone, and that flag."""


@pytest.mark.parametrize("row", FLAGS, ids=lambda row: row.name)
def test_a_flag_of_their_server_is_taken_and_has_an_effect(row: Setting) -> None:
    assert not row.refused
    assert parser_of("serve").read(["omnimuse/shapes", *row.name.split()]).given
    other = BESIDE.get(row.name, "")
    assert (served(f"{other} {row.name}") == served(other)) == (row.name in (*WHERE, *AS_WITHOUT))


def test_flags_of_their_server_mean_what_options_of_omni_mean() -> None:
    line = '--omni --cache-backend cache_dit --cache-config {"Fn_compute_blocks":2} --max-num-seqs 4 --vae-use-slicing'
    line += " --enable-layerwise-offload --enforce-eager --diffusion-attention-backend TORCH_SDPA --usp 2 --use-hsdp"
    line += " --enable-diffusion-pipeline-profiler --trust-remote-code --step-execution"
    same: EngineOptions = {
        "cache_backend": "cache_dit",
        "cache_config": {"Fn_compute_blocks": 2},
        "max_num_seqs": 4,
        "enable_layerwise_offload": True,
        "enforce_eager": True,
        "diffusion_attention_backend": "TORCH_SDPA",
        "ulysses_degree": 2,
        "use_hsdp": True,
        "enable_diffusion_pipeline_profiler": True,
        "vae_use_slicing": True,
        "trust_remote_code": True,
        "step_execution": True,
    }
    assert served(line) == config_of("omnimuse/shapes", same)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("--enforce-eager --compile", "--enforce-eager and --compile cannot both be"),
        ("--enable-cpu-offload --offload layers", "--enable-cpu-offload and --offload layers choose two things"),
        ("--cache-backend tea_cache --cache dbcache", "--cache-backend and --cache both choose the step cache"),
        ("--cache-backend fast", "cache_backend='fast' is not taken here"),
        ("--cache-config [1]", "is no JSON object of names and values"),
        ("--cache-config {", "is no JSON object of names and values"),
        (f"--cache-config {'[' * 100_000}", "is no JSON object of names and values"),
    ],
)
def test_flags_of_theirs_and_ours_that_contradict_each_other_are_refused(line: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        served(line)


def test_what_other_programs_call_attention_backends_are_backends_that_there_are() -> None:
    assert set(names.BACKENDS.values()) - {selection.AUTO, *selection.BACKENDS} == set()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("TORCH_SDPA", "sdpa"),
        ("torch_sdpa", "sdpa"),
        ("FLASH_ATTN", "flash_attn_2"),
        ("fa", "flash_attn_2"),
        ("fa3", "flash_attn_3"),
        ("SAGE_ATTN", "sage"),
        ("auto", "auto"),
    ],
)
def test_every_door_takes_the_names_that_both_guides_have_of_attention_backends(
    theirs: str, ours: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles = f"--attention-role self={theirs} --attention.per_role.cross.backend {theirs}"
    read = served(f"--attention-backend {theirs} {roles}").attention
    assert read == AttentionConfig(ours, {"self": ours, "cross": ours})
    assert chosen(diffusion_attention_backend=theirs).attention.default == ours
    assert sglang.config_of({"model_path": "m", "attention_backend": theirs}).attention.default == ours
    monkeypatch.setenv("DIFFUSION_ATTENTION_BACKEND", theirs)
    assert served("").attention.default == chosen().attention.default == ours


def test_backends_are_said_by_role_in_each_form_that_the_guide_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for roles in ({"self": "TORCH_SDPA"}, {"self": {"backend": "TORCH_SDPA", "extra": None}}):
        said = {"default": "SAGE_ATTN", "per_role": roles}
        assert chosen(diffusion_attention_config=said).attention == AttentionConfig("sage", {"self": "sdpa"})
        without = chosen(diffusion_attention_backend="FLASH_ATTN", diffusion_attention_config={"per_role": roles})
        assert without.attention == AttentionConfig("flash_attn_2", {"self": "sdpa"})
    both = {"diffusion_attention_backend": "FLASH_ATTN", "diffusion_attention_config": {"default": "SAGE_ATTN"}}
    assert "are two; leave one out" in str(outcome(**both))
    told = str(outcome(diffusion_attention_config={"per_role": {"self": {"backend": "SAGE_ATTN", "quant": "fp8"}}}))
    assert told == "diffusion_attention_config: per_role: self: 'quant' is not honoured; allowed are backend"
    monkeypatch.setenv("DIFFUSION_ATTENTION_BACKEND", "FLASH_ATTN")
    assert chosen(diffusion_attention_config={"default": "auto"}).attention.default == "auto"
    assert chosen(diffusion_attention_config={"per_role": {}}).attention.default == "flash_attn_2"


@pytest.mark.parametrize("command", ["serve", "generate", "speak", "chat", "explain"])
def test_a_backend_of_the_environment_is_that_of_every_command_where_nobody_says_one(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*words: str, **environment: str) -> AttentionConfig:
        model = ["m", *(["-m", "m"] if command in ("generate", "speak") else [])]
        args = read_layered(parser_of(command), parser_of(command, quiet=True), [*model, *words], environment)
        return read_config(args).attention

    monkeypatch.setenv("DIFFUSION_ATTENTION_BACKEND", "TORCH_SDPA")
    assert read() == AttentionConfig("sdpa")
    assert read("--attention", "auto").default == read(ATTENTION="auto").default == "auto", "that was said, too"
    assert read("--attention", "cross=reference") == AttentionConfig("sdpa", {"cross": "reference"})
    assert read("--attention-role", "cross=reference") == AttentionConfig("sdpa", {"cross": "reference"})


def test_the_environment_names_the_attention_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_ATTENTION_BACKEND", "TORCH_SDPA")
    assert chosen().attention.default == "sdpa"
    assert served("").attention.default == "sdpa"
    assert served("--attention reference").attention.default == "reference"
    assert chosen(diffusion_attention_backend="AUTO").attention.default == "auto"
    monkeypatch.setenv("DIFFUSION_ATTENTION_BACKEND", "SAGE")
    with pytest.raises(ConfigError, match="diffusion_attention_backend='SAGE' is not here"):
        chosen()


@pytest.mark.parametrize("name", [row.name for row in PARALLEL])
def test_an_axis_has_an_effect_or_is_refused(name: str) -> None:
    other: dict[str, Any] = {"use_hsdp": True, "ulysses_degree": 3}
    chosen_too = DiffusionParallelConfig(**{"ulysses_degree": 2, name: other.get(name, 2)})
    usual = DiffusionParallelConfig(ulysses_degree=2)
    made = outcome(parallel_config=chosen_too)
    assert name in made if isinstance(made, str) else made != chosen(parallel_config=usual)


def test_parts_of_blocks_are_refused_where_no_ranks_share_tokens() -> None:
    with pytest.raises(ConfigError, match="use_hsdp does nothing for tensor=2"):
        chosen(use_hsdp=True, tensor_parallel_size=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return renamed(build(tmp_path_factory.mktemp("settings") / "tiny", kind="3"), "DocumentedPipeline")


def told(config: Config) -> OmniDiffusionConfig:
    found = find(config)
    place = Place(found.spec, found.checkpoint, config, torch.device("cpu"), torch.float32, Mesh.single(), Rack())
    return told_to(ENTRIES[found.spec.arch], place)


def test_a_pipeline_is_told_what_was_chosen(folder: Path) -> None:
    model = ModelConfig(str(folder), plugins=(PLUGIN,))
    usual = told(Config(model))
    assert not (usual.trust_remote_code or usual.enable_diffusion_pipeline_profiler or usual.step_execution)
    assert usual.extras["auxiliary_text_encoder"] is None
    with pytest.raises(ModelError, match=r"has no 'default_model' here; .*auxiliary_text_encoder=FOLDER"):
        usual.extras["default_model"]
    chosen = ContractConfig(remote_code=True, profile=True, slicing=True, encoder="elsewhere")
    other = told(Config(model, contract=chosen, decode=DecodeConfig(tiling=True)))
    assert other.trust_remote_code
    assert other.enable_diffusion_pipeline_profiler
    assert other.vae_use_slicing
    assert other.vae_use_tiling
    assert other.extras["auxiliary_text_encoder"] == "elsewhere"
    assert told(Config(ModelConfig(str(renamed(folder, "DocumentedStepPipeline")), plugins=(PLUGIN,)))).step_execution
    renamed(folder, "DocumentedPipeline")


def test_a_family_of_ours_is_refused_an_encoder_from_elsewhere() -> None:
    with pytest.raises(ConfigError, match="auxiliary_text_encoder='elsewhere' cannot be"):
        find(Config(ModelConfig("omnimuse/shapes"), contract=ContractConfig(encoder="elsewhere")))


def test_what_is_fixed_is_what_the_contract_has_at_first(folder: Path) -> None:
    found = told(Config(ModelConfig(str(folder), plugins=(PLUGIN,))))
    unset = OmniDiffusionConfig(model="", model_class_name="", dtype=torch.float32)
    fixed = [row.name for row in TOLD if row.fixed]
    assert [name for name in fixed if getattr(found, name) != getattr(unset, name)] == []


def test_its_autoencoder_is_told_and_its_parts_are_timed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = Config(
        ModelConfig(str(folder), "float32", "cpu", plugins=(PLUGIN,)),
        contract=ContractConfig(profile=True, slicing=True),
        decode=DecodeConfig(tiling=True),
    )
    with caplog.at_level("INFO"), Omni(str(folder), config=config) as omni:
        began = time.perf_counter()
        [found] = omni.generate([WISH.asked], WISH.params, progress=False)
        took = time.perf_counter() - began
    assert found.error is None
    assert sum(found.timings.values()) <= took, "what a part took is not in the whole again"
    assert {"diffuse", "vae.decode", "text_encoder.forward"} <= set(found.timings)
    assert any("[DiffusionPipelineProfiler] diffuse took" in line for line in caplog.messages)
    built = build_engine(config)
    built.resources.close()
    assert {choice.value for choice in built.choices if choice.topic == "decode"} == {"tiling", "slicing"}


@pytest.mark.parametrize(
    ("model", "asked", "parts"),
    [
        ("omnimuse/shapes", "a star", {TEXT, STEPS, MADE}),
        (
            "omnimuse/shapes-chat",
            [{"role": "user", "content": "draw me a red circle"}],
            {"prefill", WRITING, STEPS, MADE},
        ),
    ],
)
def test_parts_of_a_family_of_ours_are_timed_in_the_same_words(
    model: str, asked: Any, parts: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = Config(ModelConfig(model, "float32", "cpu"), contract=ContractConfig(profile=True))
    with caplog.at_level("INFO"), Omni(model, config=config) as omni:
        [found] = omni.generate([asked], seed=3, progress=False)
    words = re.compile(r"\[DiffusionPipelineProfiler\] (\S+) took (\d+\.\d{3})s")
    told = {line[1]: float(line[2]) for line in map(words.fullmatch, caplog.messages) if line}
    assert parts <= told.keys() and {"queue", OTHER}.isdisjoint(told)
    seconds = by_label(found.timings, found.labels)
    assert told == pytest.approx({label: seconds[label] for label in told}, abs=0.001)
    caplog.clear()
    with caplog.at_level("INFO"), Omni(model, config=replace(config, contract=ContractConfig())) as omni:
        omni.generate([asked], seed=3, progress=False)
    assert not any("DiffusionPipelineProfiler" in line for line in caplog.messages), "nobody asked for it"


def test_parts_of_a_pipeline_in_steps_are_timed_each_time_anew(folder: Path) -> None:
    name = str(renamed(folder, "DocumentedStepPipeline"))
    config = Config(ModelConfig(name, "float32", "cpu", plugins=(PLUGIN,)), contract=ContractConfig(profile=True))
    with Omni(name, config=config) as omni:
        for _ in range(2):
            began = time.perf_counter()
            [found] = omni.generate([WISH.asked], WISH.params, progress=False)
            assert sum(found.timings.values()) <= time.perf_counter() - began
            assert "text_encoder.forward" in found.timings


def test_a_target_of_the_profiler_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match=r"profiler target 'vae.draw' is no method"):
        DiffusionPipelineProfilerMixin().setup_diffusion_pipeline_profiler(["vae.draw"], True)


@pytest.mark.parametrize("kind", ["DocumentedStepPipeline", "DocumentedPipeline"])
def test_parts_of_a_pipeline_that_says_nothing_of_them_are_told(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(output: Tensor, stage_durations: object = None) -> DiffusionOutput:
        return DiffusionOutput(output=output)

    monkeypatch.setattr(f"{PLUGIN}.medium.pipeline_medium.DiffusionOutput", silent)
    name = str(renamed(folder, kind))
    config = Config(ModelConfig(name, "float32", "cpu", plugins=(PLUGIN,)), contract=ContractConfig(profile=True))
    with Omni(name, config=config) as omni:
        [found] = omni.generate([WISH.asked], WISH.params, progress=False)
    assert {"text_encoder.forward", "vae.decode"} <= found.timings.keys()


def test_parts_are_told_beside_what_is_timed_around_them() -> None:
    state = State(Door.of(SPEC, {}, "fake").make_request(ask(), 0.0, 1), 0)
    told = {"queue": 1.0, "encode": 2.0, "vae.decode": 3.0, "denoise": 4.0}
    note_times(state, [DiffusionOutput(stage_durations=told)], loops=("denoise",))
    assert state.timed == {"stage queue": 1.0, "stage encode": 2.0, "vae.decode": 3.0, "stage denoise": 4.0}


def test_steps_are_taken_back_where_forward_is_there_and_refused_where_they_are_not(folder: Path) -> None:
    forward = ContractConfig(steps=False)
    name = str(renamed(folder, "DocumentedStepPipeline"))
    with Omni(name, config=Config(ModelConfig(name, "float32", "cpu", plugins=(PLUGIN,)), contract=forward)) as omni:
        [found] = omni.generate([WISH.asked], WISH.params, output_type="pt", progress=False)
    with Omni(name, dtype="float32", device="cpu", plugin=PLUGIN) as omni:
        [stepped] = omni.generate([WISH.asked], WISH.params, output_type="pt", progress=False)
    assert "forward" in found.timings
    assert "denoise" in stepped.timings
    torch.testing.assert_close(found.tensors["image"], stepped.tensors["image"], atol=1e-5, rtol=0)
    model = ModelConfig(str(renamed(folder, "DocumentedPipeline")), plugins=(PLUGIN,))
    with pytest.raises(ConfigError, match="MediumPipeline lacks prepare_encode, denoise_step"):
        find(Config(model, contract=ContractConfig(steps=True)))
    with pytest.raises(ConfigError, match="steps=False cannot be"):
        find(Config(ModelConfig("omnimuse/shapes"), contract=forward))
