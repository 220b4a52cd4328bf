"""Deploy files: ours, those of another engine, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from omnimuse.core.config import AttentionConfig, Config, ModelConfig
from omnimuse.core.errors import ConfigError
from omnimuse.core.pools import DeployConfig, PoolConfig, parts_of
from omnimuse.core.ranks import ParallelConfig
from omnimuse.deploy.placing import read, read_deploy

OURS = """
pools:
  - name: read
    stages: [text, noise]
    device: cpu
  - {name: draw, stages: [denoise], replicas: 2, devices: [1], window: 32}
  - {name: show, stages: decode, connector: tcp}
"""

OLDER = """
stage_args:
  - stage_id: 0
    stage_type: ar
    runtime: {process: true, devices: "0", max_batch_size: 1}
    engine_args: {model_stage: talker, max_num_seqs: 4}
    output_connectors: {to_stage_1: carrier}
  - stage_id: 1
    final_output: true
    final_output_type: audio
    runtime: {devices: "1"}
    input_connectors: {from_stage_0: carrier}
runtime:
  connectors:
    carrier: {name: SharedMemoryConnector, extra: {shm_threshold_bytes: 65536}}
"""

NEWER = """
async_chunk: true
connectors:
  wire: {name: TcpConnector, extra: {codec_chunk_frames: 25}}
stages:
  - stage_id: 0
    max_num_seqs: 16
    num_replicas: 2
    gpu_memory_utilization: 0.3
    enable_prefix_caching: false
    max_model_len: 4096
    devices: "0"
    output_connectors: {to_stage_1: wire}
    default_sampling_params: {temperature: 0.9}
  - stage_id: 1
    enforce_eager: true
    devices: "1"
    input_connectors: {from_stage_0: wire}
platforms:
  npu: {stages: [{stage_id: 0, devices: "0,1"}]}
"""


def of(text: str) -> DeployConfig:
    return read(yaml.safe_load(text))


def test_a_file_of_ours_places_every_pool() -> None:
    assert of(OURS).pools == (
        PoolConfig("read", ("text", "noise"), device="cpu"),
        PoolConfig("draw", ("denoise",), replicas=2, device="cuda:1", window=32),
        PoolConfig("show", ("decode",), connector="tcp"),
    )


def test_stage_args_of_another_engine_become_tracks_and_what_means_nothing_here_is_listed() -> None:
    deploy = of(OLDER)
    assert deploy.pools == (
        PoolConfig("stage0", tracks=(0,), device="cuda:0", window=4),
        PoolConfig("stage1", stages=("*",), device="cuda:1"),
    )
    told = " ".join(deploy.void)
    for key in ("stage_type", "max_batch_size", "model_stage", "final_output_type"):
        assert key in told
    assert "output_connectors" not in told, "it is checked"


def test_newer_files_of_another_engine_do_too() -> None:
    deploy = of(NEWER)
    assert deploy.pools == (
        PoolConfig("stage0", tracks=(0,), replicas=2, device="cuda:0", window=16),
        PoolConfig("stage1", stages=("*",), device="cuda:1", connector="tcp"),
    )
    told = " ".join(deploy.void)
    for key in ("async_chunk", "platforms", "codec_chunk_frames", "max_model_len", "enforce_eager"):
        assert key in told


NEUTRAL = {
    "tensor_parallel_size": 1,
    "gpu_memory_utilization": 0.9,
    "enforce_eager": True,
    "max_num_batched_tokens": 32768,
    "dtype": "auto",
    "quantization": None,
    "load_format": "auto",
    "parallel_config": {"ulysses_degree": 1, "cfg_parallel_size": 1},
    "log_stats": False,
    "vae_use_tiling": False,
}
"""What people leave in such files, of a value that changes nothing."""


@pytest.mark.parametrize("schema", ["stage_args", "stages"])
@pytest.mark.parametrize("within", ["", "engine_args"])
def test_what_changes_nothing_is_taken_in_both_schemas(schema: str, within: str) -> None:
    entry = {"stage_id": 0, "max_num_seqs": 4, **({within: NEUTRAL} if within else NEUTRAL)}
    deploy = read({schema: [entry]})
    assert deploy.pools == (PoolConfig("stage0", ("*",), window=4),)
    noted = {note.partition(":")[0] for note in deploy.void}
    assert noted == {"gpu_memory_utilization", "enforce_eager", "max_num_batched_tokens", "log_stats"}


def test_pools_elsewhere_and_stores_are_told_what_they_need() -> None:
    text = """
connectors: {mooncake: {master: "10.0.0.5:50051", segment: 1024}}
pools:
  - {name: read, stages: [text]}
  - {name: draw, stages: [noise, denoise], connector: mooncake, elsewhere: true}
"""
    deploy = of(text)
    assert deploy.pools[1] == PoolConfig("draw", ("noise", "denoise"), connector="mooncake", elsewhere=True)
    assert deploy.connectors == {"mooncake": {"master": "10.0.0.5:50051", "segment": "1024"}}


def test_stores_of_another_engine_are_told_what_its_files_say() -> None:
    text = """
stage_args: [{stage_id: 0}, {stage_id: 1, input_connectors: {from_stage_0: wire}}]
connectors: {wire: {name: MooncakeStoreConnector, extra: {master: "10.0.0.5:1", proto: tcp, colour: red}}}
"""
    deploy = of(text)
    assert deploy.pools[1].connector == "mooncake"
    assert deploy.connectors == {"mooncake": {"master": "10.0.0.5:1", "protocol": "tcp"}}
    assert any("colour" in void for void in deploy.void)


@pytest.mark.parametrize("within", ["", "engine_args", "parallel_config"])
@pytest.mark.parametrize("schema", ["stage_args", "stages"])
def test_a_stage_of_another_engine_says_its_ranks_and_a_device_for_each(schema: str, within: str) -> None:
    degrees = {"tensor_parallel_size": 2, "ulysses_degree": 2, "use_hsdp": True, "sequence_parallel_size": 2}
    stage = {"stage_id": 0, "runtime": {"devices": "0,1,2,3"}, **({within: degrees} if within else degrees)}
    [pool, _] = read({schema: [stage, {"stage_id": 1, "devices": "4"}]}).pools
    assert pool.parallel == ParallelConfig(tensor=2, ulysses=2, shard=2)
    assert pool.device == "cuda:0,cuda:1,cuda:2,cuda:3"


def test_a_pool_says_its_ranks_and_where_those_of_each_replica_are() -> None:
    text = "pools: [{name: a, stages: [x], replicas: 2, devices: [0, 1, 2, 3], parallel: {tensor: 2, wait: 60}}]"
    [pool] = of(text).pools
    assert pool.parallel == ParallelConfig(tensor=2, wait=60)
    assert [pool.device_of(replica) for replica in range(2)] == ["cuda:0,cuda:1", "cuda:2,cuda:3"]
    [alike] = of("pools: [{name: a, stages: [x], replicas: 2, devices: '0,1', parallel: {cfg: 2}}]").pools
    assert [alike.device_of(replica) for replica in range(2)] == ["cuda:0,cuda:1"] * 2
    [apart] = of("pools: [{name: a, stages: [x], replicas: 2, devices: '0,1'}]").pools
    assert [apart.device_of(replica) for replica in range(2)] == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize("within", ["{said}", "engine_args: {{{said}}}"])
def test_a_stage_of_another_engine_says_which_backends_attend_in_it(within: str) -> None:
    said = within.format(said="diffusion_attention_config: {default: TORCH_SDPA, per_role: {self: {backend: fa}}}")
    deploy = read(yaml.safe_load(f"stages: [{{stage_id: 0, {said}}}, {{stage_id: 1}}]"))
    first, second = deploy.pools
    assert first.attention == AttentionConfig("sdpa", {"self": "flash_attn_2"})
    usual = AttentionConfig("flex", {"cross": "xformers", "self": "sage"})
    whole = Config(ModelConfig("m"), attention=usual, deploy=deploy)
    everywhere = {"cross": "xformers", "self": "flash_attn_2"}
    assert whole.of_pool(first, 0).attention == AttentionConfig("sdpa", everywhere)
    assert whole.of_pool(second, 0).attention == usual
    alone = read(yaml.safe_load("stages: [{stage_id: 0, diffusion_attention_backend: SAGE_ATTN}]")).pools
    ours = read(yaml.safe_load("pools: [{name: all, stages: '*', attention: {default: sage}}]")).pools
    assert alone[0].attention == ours[0].attention == AttentionConfig("sage")


def test_a_file_of_one_stage_is_one_pool_with_everything() -> None:
    deploy = of("stage_args: [{stage_id: 0, runtime: {devices: '1'}, final_output: true}]")
    assert deploy.pools == (PoolConfig("stage0", ("*",), device="cuda:1"),)
    assert parts_of(deploy.pools, TRACKS) == [range(4)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "none of pools, stage_args, stages"),
        ("base_config: other.yaml", "base_config='other.yaml' is not honoured here; leave it out: it is read where"),
        ("pools: []", "list of mappings"),
        ("pools: {name: a}", "list of mappings"),
        ("pools: [{name: a, stages: [x], replica: 2}]", "'replica' is not honoured; did you mean 'replicas'"),
        ("pools: [{name: a, stages: [x], replicas: 0}]", "replicas=0"),
        ("pools: [{name: a, stages: [x], replicas: two}]", "replicas='two'"),
        ("pools: [{name: a, stages: [x], replicas: true}]", "replicas=True"),
        ("pools: [{name: a, stages: [x], window: 0}]", "window=0"),
        ("pools: [{name: a, stages: [x], elsewhere: true}]", "shared_memory reaches nothing elsewhere"),
        ("pools: [{name: a, stages: [x], elsewhere: 1}]", "elsewhere=1 is not allowed; use true or false"),
        ("{pools: [{name: a, stages: [x]}], connectors: [ray]}", "connectors is no mapping"),
        ("pools: [{name: a}]", "which stages it holds"),
        ("pools: [{name: a, stages: [x], tracks: [0]}]", "which stages it holds"),
        ("pools: [{name: a, tracks: [x]}]", "tracks=['x']"),
        ("pools: [{name: a/b, stages: [x]}]", "'a/b'"),
        ("pools: [{stages: [x]}]", "pool name ''"),
        ("pools: [{name: a, stages: [x], devices: [0, 1]}]", "pool a: device cuda:0,cuda:1 is 2 devices, and the pool"),
        ("pools: [{name: a, stages: [x], devices: '0,1,2', replicas: 2}]", "(2 replicas x 1 ranks); name one for each"),
        ("pools: [{name: a, stages: [x], devices: '0,'}]", "device '0,' is none"),
        ("pools: [{name: a, stages: [x], parallel: 2}]", "pool a: parallel=2 is not allowed; use names and values"),
        ("pools: [{name: a, stages: [x], parallel: {tensr: 2}}]", "pool a: parallel: 'tensr' is not honoured; did you"),
        ("pools: [{name: a, stages: [x], parallel: {tensor: two}}]", "pool a: parallel: tensor='two' is not allowed"),
        ("pools: [{name: a, stages: [x], parallel: {ulysses: 2, shard: 3}}]", "pool a: parallel: parallel shard=3"),
        (
            "pools: [{name: a, stages: [x], parallel: {tensor: 2}, connector: local}]",
            "pool a: 2 ranks (tensor=2) are processes, and connector: local keeps a pool in that of the front",
        ),
        (
            "pools: [{name: a, stages: [x], parallel: {tensor: 2}, connector: tcp, elsewhere: true}]",
            "pool a: 2 ranks (tensor=2) cannot be elsewhere",
        ),
        (
            "pools: [{name: a, stages: [x], parallel: {tensor: 2}, writer: vllm}]",
            "pool a: 2 ranks (tensor=2) share out nothing where vllm writes",
        ),
        ("pools: [{name: a, stages: [x]}, {name: a, stages: [y]}]", "two pools are called 'a'"),
        ("{pools: [{name: a, stages: [x]}], runtime: {}}", "'runtime' is not honoured"),
        ("stage_args: [{stage_id: 1}]", "stages have the numbers"),
        (
            "stages: [{stage_id: 0, parallel_config: {data_parallel_size: 2}}]",
            "stage 0: parallel_config: data_parallel_size=2 is not honoured here; leave it out, or say 1: ",
        ),
        ("{tensor_parallel_size: 2, stages: [{stage_id: 0}]}", "tensor_parallel_size=2 is not honoured here"),
        (
            "stages: [{stage_id: 0, devices: '0,1'}]",
            "stage0: device cuda:0,cuda:1 is 2 devices, and the pool has 1",
        ),
        ("stages: [{stage_id: 0, tensor_parallel_size: true}]", "stage 0: tensor_parallel_size=True is not allowed"),
        ("stages: [{stage_id: 0, cfg_parallel_size: 4}]", "stage 0: parallel cfg=4 is not allowed"),
        (
            "stages: [{stage_id: 0, ulysses_degree: 2, hsdp_shard_size: 2}]",
            "stage 0: hsdp_shard_size=2 is not allowed: 2 ranks share tokens",
        ),
        ("stages: [{stage_id: 0, tensor_parallel_size: 2, use_hsdp: true}]", "stage 0: use_hsdp does nothing for"),
        (
            "stages: [{stage_id: 0, ring_degree: 2, sequence_parallel_size: 4}]",
            "sequence_parallel_size=4 is not",
        ),
        ("stages: [{stage_id: 0, tensor_paralel_size: 1}]", "did you mean 'tensor_parallel_size'"),
        (
            "{dtype: float8, stages: [{stage_id: 0}]}",
            "dtype='float8' is not allowed; use one of float32, bfloat16, float16, or auto",
        ),
        ("{base_config: other.yaml, stage_args: [{stage_id: 0}]}", "write all of it into this one"),
        (
            "stages: [{stage_id: 0}, {stage_id: 1, dtype: fp32}]",
            "pool stage1: dtype='fp32' is not allowed; use one of float32, bfloat16, float16, or auto",
        ),
        ("stage_args: [{stage_id: 0, runtime: [0]}]", "stage 0: runtime=[0] is not allowed; use names and values"),
        ("stage_args: [{stage_id: 0, engine_args: 5}]", "stage 0: engine_args=5 is not allowed"),
        ("{stages: [{stage_id: 0}], connectors: {wire: shm}}", "connectors: wire='shm' is not allowed"),
        (
            "{stages: [{stage_id: 0}], connectors: {wire: {nmae: X}}}",
            "connectors: wire: 'nmae' is not honoured; did you",
        ),
        ("{stages: [{stage_id: 0}], runtime: {edges: 1}}", "runtime: edges=1 is no list of mappings"),
        (
            "{stages: [{stage_id: 0}], runtime: {edges: [{from: 0, to: 3}]}}",
            "runtime: edges: to=3 is no stage; the stages",
        ),
        (
            "{stages: [{stage_id: 0}, {stage_id: 1}], edges: [{from: 0, to: 1}, {from: 1, to: 0}]}",
            "edges: from 1 to 0 goes back",
        ),
        ("{stages: [{stage_id: 0}, {stage_id: 1}], edges: [{from: 0, to: 0}]}", "edges: from 0 to 0 goes back"),
        (
            "{stages: [{stage_id: 0}, {stage_id: 1}, {stage_id: 2}], edges: [{from: 0, to: 1}]}",
            "edges: none goes to stage 2, which would have nothing to do; leave `edges` out",
        ),
        (
            "stages: [{stage_id: 0, input_connectors: {from_stage_1: shm}}]",
            "stage 0: input_connectors: there is no stage 1",
        ),
        ("stages: [{stage_id: 0, output_connectors: {next: shm}}]", "'next' names no stage; write to_stage_N"),
        ("stages: [{stage_id: 0, output_connectors: [shm]}]", "write the stage and its connector: `to_stage_1: shm`"),
        (
            "stages: [{stage_id: 0, input_connectors: {from_stage_1: shm}}, {stage_id: 1}]",
            "stage 0: input_connectors: from_stage_1 goes back",
        ),
        (
            "stages: [{stage_id: 0, output_connectors: {to_stage_1: a}}, {stage_id: 1, input_connectors: "
            "{from_stage_0: b}}]",
            "to_stage_1 is 'a', and stage 1 says 'b' of the same edge",
        ),
        (
            "{connectors: {wire: {name: TcpConnector}}, stages: [{stage_id: 0}, {stage_id: 1, input_connectors: "
            "{from_stage_0: wrie}}]}",
            "stage 1: input_connectors: 'wrie' is not there; did you mean 'wire', which `connectors` has?",
        ),
        ("pools: [{name: a, stages: [x], device: cuda-0}]", "pool a: device 'cuda-0' is none; use cpu, or the number"),
        ("stage_args: [{stage_id: 0, runtime: {process: false}}]", "process=False"),
        ("{stages: [{stage_id: 0}, {stage_id: 1, input_connectors: {from_stage_0: Pigeon}}]}", "'Pigeon' is not there"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_its_name(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        of(text)
    assert said in str(refused.value)


def test_a_file_changes_what_it_is_based_on(tmp_path: Path) -> None:
    (tmp_path / "newer.yaml").write_text(NEWER)
    between = "{base_config: newer.yaml, stages: [{stage_id: 1, devices: cpu}]}"
    (tmp_path / "between.yaml").write_text(between)
    (tmp_path / "below").mkdir()
    file = tmp_path / "below" / "thin.yaml"
    file.write_text(
        "{base_config: ../between.yaml, connectors: {wire: {name: SharedMemoryConnector}}, "
        "stages: [{stage_id: 0, num_replicas: 1, default_sampling_params: {seed: 3}}, {stage_id: 1, window: 1}]}"
    )
    with pytest.raises(ConfigError, match=r"thin.yaml: stage 1: 'window' is not honoured"):
        read_deploy(file)
    file.write_text(file.read_text().replace(", {stage_id: 1, window: 1}", ""))
    deploy = read_deploy(file)
    assert deploy.pools == (
        PoolConfig("stage0", tracks=(0,), device="cuda:0", window=16),
        PoolConfig("stage1", stages=("*",), device="cpu"),
    )
    assert deploy.sampling[0] == {"temperature": 0.9, "seed": 3}


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("none.yaml", r"none.yaml cannot be read"),
        ("thin.yaml", r"thin.yaml is based on this file itself"),
        ("[a]", r"base_config=\['a'\] is not allowed"),
        ("ours.yaml", r"ours.yaml has no `stages`"),
    ],
)
def test_a_base_that_cannot_be_is_refused(base: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text(OURS)
    file = tmp_path / "thin.yaml"
    file.write_text(f"{{base_config: {base}, stages: [{{stage_id: 0}}]}}")
    with pytest.raises(ConfigError, match=said):
        read_deploy(file)


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    for name, content in {
        "none": None,
        "broken": "pools: [",
        "text": "pools",
        "code": "!!python/name:os.system",
        "twice": "pools: [{name: a, stages: ['*']}]\npools: [{name: b, stages: ['*']}]",
    }.items():
        path = tmp_path / name
        if content is not None:
            path.write_text(content)
        with pytest.raises(ConfigError, match=name):
            read_deploy(path)


TRACKS = (("hear", "read", "talk"), ("decode",))


def test_pools_hold_every_stage_once_and_in_order() -> None:
    whole = [PoolConfig("a", tracks=(0,)), PoolConfig("b", tracks=(1,))]
    assert parts_of(whole, TRACKS) == [range(3), range(3, 4)]
    cut = [PoolConfig("a", ("hear",)), PoolConfig("b", ("*",))]
    assert parts_of(cut, TRACKS) == [range(1), range(1, 4)]


@pytest.mark.parametrize(
    ("pools", "said"),
    [
        ([PoolConfig("a", ("hear", "raed"))], "did you mean 'read'"),
        ([PoolConfig("a", ("hear", "talk"))], "'talk' stands where 'read' is to come"),
        ([PoolConfig("a", ("hear", "read"))], "no pool holds the stage 'talk'"),
        ([PoolConfig("a", tracks=(0, 1)), PoolConfig("b", ("decode",))], "where nothing more is to come"),
        ([PoolConfig("a", tracks=(2,))], "there is no track 2"),
        ([PoolConfig("a", ("*",)), PoolConfig("b", ("*",))], "pool b is left with no stage"),
    ],
)
def test_a_cut_that_does_not_fit_the_pipeline_is_refused(pools: list[PoolConfig], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parts_of(pools, TRACKS)
    assert said in str(refused.value)
