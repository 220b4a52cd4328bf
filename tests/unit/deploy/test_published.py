"""Deploy files as vLLM-Omni publishes them for families that are here: which keys are in them, and what is made of it.

A row has the keys of one such file with values of their kinds. What is read places every stage of a family's pipeline;
what is not says by name what to change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from omnimuse.core.config import Config, ModelConfig
from omnimuse.core.errors import ConfigError
from omnimuse.core.pools import DeployConfig
from omnimuse.deploy.placing import read, read_deploy
from omnimuse.models import REGISTRY
from omnimuse.worker.part import parts

QWEN25, QWEN3 = "Qwen2_5OmniForConditionalGeneration", "Qwen3OmniMoeForConditionalGeneration"
TTS, BAGEL, GLM = "Qwen3TTSForConditionalGeneration", "BagelForConditionalGeneration", "GlmImagePipeline"
FUNCTIONS = "some_engine.model_executor.stage_input_processors"
TOKENS = {"temperature": 0.4, "top_p": 0.9, "top_k": 1, "max_tokens": 2048, "seed": 42, "repetition_penalty": 1.05}
ENGINE = {
    "gpu_memory_utilization": 0.8,
    "enforce_eager": True,
    "trust_remote_code": True,
    "enable_prefix_caching": False,
    "max_num_batched_tokens": 32768,
}
"""What stands in nearly every stage."""
RUNTIME = {"enabled": True, "defaults": {"window_size": -1, "max_inflight": 1}}
STORE = {"metadata_server": "http://10.0.0.5:8080/metadata", "master": "10.0.0.5:50051", "segment": 512, "proto": "tcp"}


def older(names: Sequence[str], devices: Sequence[str], *changes: Mapping[str, Any], **top: Any) -> dict[str, Any]:
    """A file of `stage_args`: stages of these names on these devices; `changes` say what else each says."""
    stages = []
    for number, (name, device) in enumerate(zip(names, devices, strict=True)):
        worker = {"worker_type": "ar", "scheduler_cls": "some.Scheduler", "engine_output_type": "latent"}
        changed = dict(changes[number]) if number < len(changes) else {}
        engine = {"model_stage": name, "model_arch": "SomeModel", **worker, **ENGINE, **changed.pop("engine_args", {})}
        stage = {
            "stage_id": number,
            "stage_type": "llm",
            "runtime": {"process": True, "devices": device, "max_batch_size": 1},
            "engine_args": {**engine, "distributed_executor_backend": "mp", "hf_config_name": f"{name}_config"},
            "final_output": True,
            "final_output_type": "text",
            "is_comprehension": number == 0,
            "default_sampling_params": {**TOKENS, "detokenize": True},
        }
        behind = {"engine_input_source": [number - 1], "custom_process_input_func": f"{FUNCTIONS}.some"}
        stages.append({**stage, **(behind if number else {}), **changed})
    edges = [{"from": number - 1, "to": number, "window_size": -1} for number in range(1, len(stages))]
    return {"stage_args": stages, "runtime": {**RUNTIME, "edges": edges, **top.pop("runtime", {})}, **top}


def newer(devices: Sequence[str], *changes: Mapping[str, Any], **top: Any) -> dict[str, Any]:
    """A file of `stages` on these devices."""
    stages = [
        {"stage_id": number, "max_num_seqs": 1, "devices": device, **ENGINE, "default_sampling_params": dict(TOKENS)}
        for number, device in enumerate(devices)
    ]
    for stage, change in zip(stages, changes, strict=False):
        stage.update(change)
    return {"async_chunk": False, "stages": stages, **top}


def carried(name: str, count: int, **extra: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What each of so many stages says of its edges, all by a connector of that kind, and what a file says of that."""
    ends: list[dict[str, Any]] = [{} for _ in range(count)]
    for number in range(1, count):
        ends[number]["input_connectors"] = {f"from_stage_{number - 1}": "carrier"}
        ends[number - 1]["output_connectors"] = {f"to_stage_{number}": "carrier"}
    return ends, {"carrier": {"name": name, "extra": extra}}


SHARED, MEMORY = carried("SharedMemoryConnector", 3, codec_chunk_frames=25, initial_codec_chunk_frames=1)
PAIR, _ = carried("SharedMemoryConnector", 2)
MOONCAKE, STORED = carried("MooncakeConnector", 3, host="127.0.0.1", **STORE)
GAPS = {"carrier": {"name": "MooncakeConnector", "extra": {"master": "${MOONCAKE_HOST}:1"}}}
PRIS = carried("PrisKVConnector", 3, host="127.0.0.1", port=6379)
RDMA, ENGINES = carried("MooncakeTransferEngineConnector", 2, zmq_port=50051, memory_pool_device="cpu")
SPOKEN = ("thinker", "talker", "code2wav")
KEPT = {"omni_kv_config": {"need_send_cache": True, "kv_transfer_criteria": {"type": "prefill_finished"}}}
ROPE = {"hf_overrides": {"rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24]}}}
DRAWN = {
    "stage_type": "diffusion",
    "cfg_kv_collect_func": f"{FUNCTIONS}.collect",
    "engine_args": {"omni_kv_config": {"need_recv_cache": True}},
    "default_sampling_params": {"seed": 52},
}
THINKS = {"prompt_expand_func": f"{FUNCTIONS}.expand", "engine_args": KEPT}
NEXT = {"engine_args": {"custom_process_next_stage_input_func": f"{FUNCTIONS}.next", "async_scheduling": True}}
PREFILL = {
    "is_prefill_only": True,
    "engine_args": {"kv_transfer_config": {"kv_connector": "MooncakeConnector", "kv_role": "kv_producer"}},
}
ON_NPU = {"npu": {"stages": [{"stage_id": 0, "devices": "0,1", "tensor_parallel_size": 2}]}}
FIVE = {"cuda": {"stages": [{"stage_id": 1, "max_num_seqs": 5}]}}
ONE = {
    **dict.fromkeys(("tensor_parallel_size", "sequence_parallel_size", "ulysses_degree", "ring_degree"), 1),
    **dict.fromkeys(("pipeline_parallel_size", "data_parallel_size", "allgather_degree", "cfg_parallel_size"), 1),
    **dict.fromkeys(("vae_patch_parallel_size", "hsdp_replicate_size"), 1),
    **dict.fromkeys(("use_hsdp", "enable_expert_parallel"), False),
    "hsdp_shard_size": -1,
}
TWO_OF = {
    "tp2": [{"axis": "tp", "size": 2}],
    "replica": [{"axis": "stage_replica", "size": 2, "routing": "round_robin"}],
}


@dataclass(frozen=True)
class Published:
    """A file for a family, or why it is `refused`; a `strategy` may lie over it. What its stages have then."""

    arch: str
    content: Mapping[str, Any]
    refused: str = ""
    strategy: Mapping[str, Any] = field(default_factory=dict)
    ranks: tuple[int, ...] = ()
    replicas: tuple[int, ...] = ()
    windows: tuple[int, ...] = ()


FILES = {
    "qwen2_5_omni": Published(QWEN25, newer(("0", "1", "0"), {"mm_processor_cache_gb": 0}, platforms=ON_NPU)),
    "deploy_qwen2_5_omni_tp2 alone": Published(QWEN25, newer(("0,1", "2", "2")), "or ask for ranks"),
    "deploy_qwen2_5_omni_tp2": Published(
        QWEN25, newer(("0,1", "2", "2")), strategy={"thinker": TWO_OF["tp2"]}, ranks=(2, 1, 1)
    ),
    "deploy_qwen2_5_omni_replica": Published(
        QWEN25, newer(("0,1", "2", "2")), strategy={"thinker": TWO_OF["replica"]}, replicas=(2, 1, 1)
    ),
    "stage_configs/qwen2_5_omni": Published(QWEN25, older(SPOKEN, ("0", "1", "0"))),
    "stage_configs/qwen2_5_omni_multiconnector": Published(
        QWEN25, older(SPOKEN, ("0", "1", "2"), *MOONCAKE, runtime={"connectors": STORED})
    ),
    "stage_configs/qwen2_5_omni_priskv": Published(
        QWEN25,
        older(SPOKEN, "000", *PRIS[0], runtime={"connectors": PRIS[1]}),
        "'PrisKVConnector' is not there",
    ),
    "qwen3_omni_moe": Published(QWEN3, newer(("0", "1", "1"), *SHARED, connectors=MEMORY, platforms=ON_NPU)),
    "stage_configs/qwen3_omni_moe_async_chunk": Published(
        QWEN3,
        older(SPOKEN, ("0,1", "0", "1"), {"engine_args": {**NEXT["engine_args"], "tensor_parallel_size": 2}}, NEXT),
        ranks=(2, 1, 1),
    ),
    "stage_configs/qwen3_omni_moe_pd_separation": Published(
        QWEN3,
        older(("thinker", *SPOKEN), "0122", PREFILL),
        "is_prefill_only=True .* one stage",
    ),
    "tests/qwen3_omni_ci": Published(
        QWEN3, older(SPOKEN, "001", {"engine_args": {"load_format": "dummy"}}), "load_format='dummy' .*--load dummy"
    ),
    "examples/qwen3_omni_moe_realtime": Published(
        QWEN3, {"base_config": "elsewhere.yaml", **newer(("0", "1", "1"))}, "elsewhere.yaml cannot be read"
    ),
    "recipes/Qwen3-Omni-DGX-Spark": Published(
        QWEN3,
        newer("000", *SHARED, connectors=MEMORY, async_chunk=True, platforms=FIVE),
        windows=(1, 5, 1),
    ),
    "qwen3_tts": Published(
        TTS,
        newer("00", {**PAIR[0], "subtalker_sampling_params": {"do_sample": True}}, PAIR[1], connectors=MEMORY),
    ),
    "stage_configs/qwen3_tts": Published(
        TTS, older(("qwen3_tts",), "0", {"tts_args": {"max_instructions_length": 500}})
    ),
    "stage_configs/qwen3_tts_batch": Published(TTS, older(("qwen3_tts", "code2wav"), "00", NEXT, async_chunk=True)),
    "bagel": Published(BAGEL, newer("01", {**ROPE, "limit_mm_per_prompt": {"image": 4}}, connectors=MEMORY | ENGINES)),
    "bagel_single_stage": Published(BAGEL, newer("0", pipeline="bagel_single_stage")),
    "bagel_allgather_kv4": Published(
        BAGEL,
        newer(("0,1,2,3",), {"parallel_config": {**ONE, "allgather_degree": 4}}),
        "by `ulysses_degree`",
    ),
    "bagel_sharedmemory_ci": Published(BAGEL, older(("thinker", "dit"), "00", THINKS, DRAWN)),
    "bagel_mooncake_ci": Published(
        BAGEL,
        older(("thinker", "dit"), "00", THINKS | RDMA[0], DRAWN | RDMA[1], runtime={"connectors": GAPS}),
        r"master='\$\{MOONCAKE_HOST\}:1' has a gap; write what is to stand there",
    ),
    "stage_configs/bagel_rdma": Published(
        BAGEL,
        older(("thinker", "dit"), "00", THINKS | RDMA[0], DRAWN | RDMA[1], runtime={"connectors": ENGINES}),
        "'MooncakeTransferEngineConnector' is not there; use one of",
    ),
    "glm_image": Published(GLM, newer("01", {"default_sampling_params": {**TOKENS, "stop_token_ids": [16385]}})),
    "glm_image_vae_split": Published(
        GLM,
        newer("012", pipeline="glm_image_vae_split"),
        "stage2 is left .* say by `pools:`",
    ),
    "stage_configs/qwen_image_3stage": Published(
        "QwenImagePipeline",
        older(("encode", "denoise", "decode"), "010"),
        "no track 1; .*say by `pools:`",
    ),
    "wan2_2_tp2": Published(
        "WanPipeline",
        newer(("0,1",), {"parallel_config": {**ONE, "tensor_parallel_size": 2}}, pipeline="wan2_2_ti2v"),
        ranks=(2,),
    ),
    "wan22_quant_attention": Published(
        "WanPipeline",
        newer("0", {"diffusion_attention_config": {"per_role": {"self": {"backend": "SAGE_ATTN"}}}}),
    ),
    "hunyuan_video_15_dit_fp8": Published(
        "HunyuanVideo15Pipeline", newer("0", {"vae_use_tiling": True}, dtype="bfloat16"), "with `--vae-tiling`"
    ),
}
"""What a published file is called, and what stands in it."""


def placed(file: Published, folder: Path) -> DeployConfig:
    """What is read of it; ConfigError says why it is refused."""
    (folder / "deploy.yaml").write_text(yaml.safe_dump(dict(file.content)))
    (folder / "strategy.yaml").write_text(yaml.safe_dump({"strategies": dict(file.strategy)}))
    return read_deploy(folder / "deploy.yaml", folder / "strategy.yaml" if file.strategy else None)


@pytest.mark.parametrize("name", FILES)
def test_a_published_file_places_every_stage_or_says_what_to_change(name: str, tmp_path: Path) -> None:
    file = FILES[name]
    spec = REGISTRY.spec(file.arch)
    if file.refused:
        with pytest.raises(ConfigError, match=file.refused):
            parts(Config(ModelConfig("m"), deploy=placed(file, tmp_path)), spec)
        return
    deploy = placed(file, tmp_path)
    held = parts(Config(ModelConfig("m"), deploy=deploy), spec)
    assert [number for part in held for number in part] == list(range(held[-1].stop))
    ones = (1,) * len(held)
    assert tuple(pool.parallel.ranks for pool in deploy.pools) == (file.ranks or ones)
    assert tuple(pool.replicas for pool in deploy.pools) == (file.replicas or ones)
    assert tuple(pool.window for pool in deploy.pools) == file.windows or not file.windows


Content = dict[str, Any]


def in_pools(*pools: str) -> Callable[[Content], Content]:
    """A file that says in the place of its stages by `pools:` which of ours each holds."""
    held = [[name.strip() for name in pool.split(",")] for pool in pools]
    return lambda _: {"pools": [{"name": f"stage{n}", "stages": names} for n, names in enumerate(held)]}


def carried_by(name: str) -> Callable[[Content], Content]:
    """A file whose edges have another connector."""

    def mended(content: Content) -> Content:
        content["runtime"]["connectors"]["carrier"] = {"name": name, "extra": STORE if "Store" in name else {}}
        return content

    return mended


def without(key: str, *within: str, **instead: Any) -> Callable[[Content], Content]:
    """A file whose first stage does not say that, and something else in its place."""

    def mended(content: Content) -> Content:
        place = content["stages" if "stages" in content else "stage_args"][0]
        for name in within:
            place = place[name]
        place.pop(key, None)
        place.update(instead)
        return content

    return mended


def of_one_stage_less(content: Content) -> Content:
    """What only read is one stage with what only wrote, and those behind it come up."""
    _, *stages = content["stage_args"]
    for number, stage in enumerate(stages):
        stage |= {"stage_id": number} | ({"engine_input_source": [number - 1]} if number else {})
    stages[0].pop("engine_input_source")
    edges = [{"from": number - 1, "to": number} for number in range(1, len(stages))]
    return {"stage_args": stages, "runtime": {**RUNTIME, "edges": edges}}


READS = "read pictures, read brief, write prior, encode prompt, encode negative prompt, encode pictures"
MENDED: Mapping[str, Callable[[Content], Content]] = {
    "deploy_qwen2_5_omni_tp2 alone": without("", tensor_parallel_size=2),
    "stage_configs/qwen2_5_omni_priskv": carried_by("TcpConnector"),
    "stage_configs/qwen3_omni_moe_pd_separation": of_one_stage_less,
    "tests/qwen3_omni_ci": without("load_format", "engine_args"),
    "examples/qwen3_omni_moe_realtime": lambda content: {key: content[key] for key in content if key != "base_config"},
    "bagel_allgather_kv4": without("allgather_degree", "parallel_config", ulysses_degree=4),
    "bagel_mooncake_ci": carried_by("MooncakeStoreConnector"),
    "stage_configs/bagel_rdma": carried_by("MooncakeConnector"),
    "glm_image_vae_split": in_pools(READS, "init latents, denoise", "decode"),
    "stage_configs/qwen_image_3stage": in_pools(
        "encode prompt, encode negative prompt, encode image, draw image latents, init latents", "denoise", "decode"
    ),
    "hunyuan_video_15_dit_fp8": without("vae_use_tiling"),
}
"""What the refusal of a file says to do, done."""


@pytest.mark.parametrize("name", [name for name, file in FILES.items() if file.refused])
def test_what_a_refusal_says_to_do_is_enough_and_the_refusal_names_the_file_and_what_is_there(
    name: str, tmp_path: Path
) -> None:
    file = FILES[name]
    spec = REGISTRY.spec(file.arch)
    with pytest.raises(ConfigError) as caught:
        parts(Config(ModelConfig("m"), deploy=placed(file, tmp_path)), spec)
    said = str(caught.value)
    assert str(tmp_path) in said
    content = MENDED[name](deepcopy(dict(file.content)))
    deploy = placed(replace(file, content=content), tmp_path)
    held = parts(Config(ModelConfig("m"), deploy=deploy), spec)
    assert [number for part in held for number in part] == list(range(held[-1].stop))
    if "pools" in content:  # the stages to choose from are told
        assert all(repr(stage) in said for pool in content["pools"] for stage in pool["stages"])


def test_a_strategy_says_of_stages_what_their_file_does_not(tmp_path: Path) -> None:
    def refused(strategy: Any, content: Mapping[str, Any] = FILES["qwen2_5_omni"].content) -> str:
        with pytest.raises(ConfigError) as error:
            placed(Published(QWEN25, content, strategy=strategy), tmp_path)
        return str(error.value)

    on_three = newer(("cpu", "cpu,cpu", "cpu,cpu"))
    several = {"talker": TWO_OF["replica"], "code2wav": TWO_OF["replica"]}
    deploy = placed(Published(QWEN25, on_three, strategy=several), tmp_path)
    assert [pool.replicas for pool in deploy.pools] == [1, 2, 2], "they are counted from the last"
    assert "there is no stage 'singer' among 3; names are thinker" in refused({"singer": TWO_OF["tp2"]})
    assert "axis='cp' is not allowed: nothing is made of it there either" in refused({"thinker": [{"axis": "cp"}]})
    assert "axis='up' is not allowed: it is none" in refused({"thinker": [{"axis": "up", "size": 2}]})
    assert "size='two' of axis tp is not allowed" in refused({"thinker": [{"axis": "tp", "size": "two"}]})
    assert "'degree' is not honoured" in refused({"thinker": [{"axis": "tp", "degree": 2}]})
    routed = {"axis": "tp", "size": 2, "routing": "random"}
    assert "routing='random' is not allowed; axis tp has no choice" in refused({"thinker": [routed]})
    hashed = {**TWO_OF["replica"][0], "routing": "hash"}
    assert "routing='hash' is not allowed; use one of round_robin" in refused({"thinker": [hashed]})
    assert "data_parallel_size=2 is not honoured" in refused({"thinker": [{"axis": "dp", "size": 2}]})
    four = newer(("0", "1", "1"), {"tensor_parallel_size": 4})
    assert "tensor_parallel_size 2, and the deploy file says 4" in refused({"thinker": TWO_OF["tp2"]}, four)
    assert "with lists of axes; write" in refused({"thinker": {"axis": "tp", "size": 2}})
    ours = {"pools": [{"name": "all", "stages": "*"}]}
    assert "a strategy is of a file of `stages`" in refused({"thinker": TWO_OF["tp2"]}, ours)
    with pytest.raises(ConfigError, match=r"it is a strategy, .*--deploy FILE --strategy THIS_FILE"):
        read({"strategies": {"thinker": TWO_OF["tp2"]}})


@pytest.mark.parametrize("within", ["", "engine_args"])
@pytest.mark.parametrize("schema", ["stage_args", "stages"])
def test_a_number_format_is_of_a_stage_in_both_schemas(schema: str, within: str) -> None:
    def formats(*named: Any, **top: Any) -> list[str]:
        stages = [{"stage_id": 0}, {"stage_id": 1}]
        for stage, dtype in zip(stages, named, strict=False):
            stage |= {within: {"dtype": dtype}} if within else {"dtype": dtype}  # type: ignore[dict-item]
        return [pool.dtype for pool in read({schema: stages, **top}).pools]

    assert formats("bfloat16", "float32") == ["bfloat16", "float32"]
    assert formats("half", "float") == ["float16", "float32"], "that engine calls them so, too"
    assert formats("auto", None) == ["", ""], "that of the engine"
    assert formats("float32", dtype="bfloat16") == ["float32", "bfloat16"], "the file's is of the stages that say none"
    for wrong in ("float8", 16):
        with pytest.raises(ConfigError, match=rf"dtype={wrong!r} is not allowed; use"):
            formats(wrong)
