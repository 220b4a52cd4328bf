"""Settings of another engine that choose nothing here: for each the values that change nothing, or what to do instead.

One table for all places where people write them: options of `Omni` in the words of vLLM-Omni (`compat/`), and stages of
its deploy files, older and newer (`deploy/placing.py`). A value asks for what is so in any case, is void, since nothing
that comes out depends on it, or is refused by its name. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from omnimuse.core.errors import ConfigError


@dataclass(frozen=True)
class Foreign:
    """A setting: values that ask for what is so `anyway`; any other one is `void`, or else refused; `why` says why."""

    why: str
    anyway: tuple[Any, ...] = (None,)
    void: bool = False


def _void(why: str, names: str) -> dict[str, Foreign]:
    return {name: Foreign(why, void=True) for name in names.split()}


def _refused(why: str, names: str, *anyway: Any) -> dict[str, Foreign]:
    return {name: Foreign(why, (None, *anyway)) for name in names.split()}


PLACES = {"rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24]}}
"""Of a checkpoint's configuration what only has that engine ask a model for its places, and turns nothing else."""
SETTINGS: Mapping[str, Foreign] = MappingProxyType(
    {
        # what nothing that comes out depends on
        **_void(
            "the engine chooses it (`omnimuse explain MODEL`)",
            "gpu_memory_utilization enable_prefix_caching async_scheduling max_num_batched_tokens max_model_len"
            " max_batch_size kv_cache_memory_bytes enable_chunked_prefill disable_hybrid_kv_cache_manager block_size"
            " swap_space mm_processor_cache_gb skip_mm_profiling skip_tokenizer_init max_cudagraph_capture_size"
            " moe_backend enable_flashinfer_autotune",
        ),
        **_void(
            "blocks are compiled with `--compile`, for all stages, and nothing else is captured",
            "enforce_eager compilation_config",
        ),
        **_void(
            "the checkpoint says so",
            "model_stage model_arch hf_config_name trust_remote_code model_class_name task_type",
        ),
        **_void(
            "edges come from what stages read and write",
            "engine_output_type custom_process_next_stage_input_func async_chunk_process_next_stage_input_func"
            " sync_process_input_func stage_connector_spec stage_connector_config omni_kv_config",
        ),
        **_void("the door knows how much a request may show", "limit_mm_per_prompt"),
        **_void(
            "there is one kind of each",
            "worker_cls worker_type scheduler_cls distributed_executor_backend engine_backend model_runner",
        ),
        **_void("tracks always go on piece by piece", "async_chunk streaming_output"),
        **_void(
            "nothing is waited for so: a start that fails says so, and a long one may be read about in the log",
            "stage_init_timeout init_timeout init_sleep_seconds",
        ),
        **_void("requests share a step whenever they are there, and nothing waits for more", "batch_timeout"),
        **_void(
            "tensors from 64 KiB on lie in shared memory where pools of a model are several processes",
            "shm_threshold_bytes",
        ),
        **_void("every result has its `stage_durations`", "log_stats disable_log_stats"),
        **_void("pictures are decoded one at a time", "vae_use_slicing"),
        **_void(
            "files are read as fast as they come",
            "enable_multithread_weight_load enable_broadcast_weight_load num_weight_load_threads",
        ),
        **_void(
            "`omnimuse bench` measures, and POST /admin/profile records what goes on",
            "profiler_config enable_cache_dit_summary",
        ),
        **_void("instructions of up to 4000 characters are taken", "tts_max_instructions_length"),
        **_void(
            "parts of all stages are logged with --enable-diffusion-pipeline-profiler",
            "enable_diffusion_pipeline_profiler",
        ),
        # what would change it, or cannot be
        **_refused(
            "ranks are those of one stage, which says how many, or of a whole model (docs/parallel.md)",
            "tensor_parallel_size pipeline_parallel_size ulysses_degree ring_degree"
            " sequence_parallel_size cfg_parallel_size vae_patch_parallel_size text_encoder_tp_size"
            " hsdp_replicate_size",
            1,
        ),
        **_refused("ranks share tokens by `ulysses_degree` or `ring_degree`", "allgather_degree", 1),
        **_refused("tokens go to heads and back in one way", "ulysses_mode", "strict"),
        **_refused("`num_replicas` of a stage, or `--replicas` of a whole model", "data_parallel_size", 1),
        **_refused("ranks keep parts of a whole model: `--use-hsdp`", "use_hsdp enable_expert_parallel", False),
        **_refused("ranks keep parts of a whole model: `--use-hsdp`", "hsdp_shard_size", -1, 1),
        **_refused(
            "keys and values are kept as they are computed: choose a number format with `--dtype`",
            "kv_cache_dtype diffusion_kv_cache_dtype",
            "auto",
        ),
        **_refused(
            "weights are packed by this engine: choose it with `--quantize`",
            "quantization quantization_config diffusion_quantization_config",
        ),
        **_refused("random weights: `--load dummy`", "load_format diffusion_load_format", "auto", "safetensors", "hf"),
        **_refused("the checkpoint is read as it is: change its own files", "hf_overrides", {}, PLACES),
        **_refused("what reads goes on to write: make one stage of the two", "is_prefill_only is_decode_only", False),
        **_refused(
            "what is remembered goes over the edge between two stages, whose connector says how", "kv_transfer_config"
        ),
        **_refused("talks are held in turns", "session_mode", "turn"),
        **_refused("voices are left at /v1/audio/voices", "custom_voice_dir"),
        **_refused("the checkpoint is read as it is", "config_format tokenizer_mode", "auto", "hf"),
        **_refused("all stages are of the checkpoint that the engine starts with", "model tokenizer revision"),
        **_refused("adapters come with requests: `loras`", "lora_path lora_scale"),
        **_refused("adapters come with requests: `loras`", "enable_lora", False),
        **_refused("a request says how tokens are chosen", "logits_processors", []),
        **_refused("a request says it", "boundary_ratio flow_shift silence_ban_frames seed", 0),
        **_refused("tokens are not guessed ahead", "speculative_config"),
        **_refused("set it before the engine starts: all processes have it", "env", {}),
        **_refused("a step cache is of a whole model: choose it with `--cache`", "cache_backend", "none"),
        **_refused("a step cache is of a whole model: choose it with `--cache`", "cache_config", {}),
        **_refused(
            "choose it for all stages with `--attention`",
            "attention_backend attention_config",
        ),
        **_refused("choose it for all stages with `--vae-tiling`", "vae_use_tiling", False),
        **_refused("choose it for all stages with `--offload`", "enable_cpu_offload enable_layerwise_offload", False),
        **_refused("choose it for all stages with `--offload`", "cpu_offload_gb", 0),
        **_refused("sleep does not go together with pools", "enable_sleep_mode", False),
        **_refused("a pipeline that can be run in steps is run in steps", "step_execution", True),
        **_refused("nothing is handed on unread", "engine_extras", {}),
        **_refused("it is read where a file has `stages`: write all of it into this one", "base_config"),
        **_refused(
            "ranks are processes of this machine; `omnimuse serve` has what goes further",
            "worker_backend",
            "process",
            "multi_process",
        ),
        **_refused("ranks are processes of this machine; `omnimuse serve` has what goes further", "ray_address"),
        **_refused(
            "one device has all of it; `enable_cpu_offload` and `enable_layerwise_offload` save memory", "device_map"
        ),
        **_refused("loggers are those of Python's `logging`, which can write files", "log_file"),
    }
)
"""By name; a mapping called `parallel_config` holds some of them."""


def note_of(name: str, value: Any, where: str = "") -> str:
    """What the log is to say of a setting of `SETTINGS`; empty where it asks for what is so anyway. ConfigError, which
    begins with `where` it stands, for a value that cannot be.
    """
    setting = SETTINGS[name]
    if any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in setting.anyway):
        return ""
    if setting.void:
        return f"{where}{name}: {setting.why}"
    usual = " or ".join(repr(each) for each in setting.anyway if each is not None)
    hint = f"leave it out, or say {usual}" if usual else "leave it out"
    raise ConfigError(f"{where}{name}={value!r} is not honoured here; {hint}: {setting.why}")
