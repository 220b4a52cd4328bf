"""What people of the contract choose when an engine starts, and what a pipeline is told of it: every documented name.

`docs/compat.md` shows it (`tools/compat_page.py`), and tests go through it: each has an effect, changes nothing at its
default, or is refused with its name. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """One name: what it does here, or why it is always what it is (`fixed`), or is not taken (`refused`)."""

    name: str
    does: str
    fixed: bool = False
    refused: bool = False


PROFILER = "the log has what parts took: of a pipeline of the contract by its mixin, of others by the labels of stages"

OPTIONS: tuple[Setting, ...] = (
    Setting("parallel_config", "the axes of ranks (the next table)"),
    Setting("tensor_parallel_size", "ranks that share weights"),
    Setting("ulysses_degree", "ranks that share tokens by an exchange of heads"),
    Setting("ring_degree", "ranks that share tokens by passing keys on"),
    Setting("cfg_parallel_size", "ranks that share the predictions of guidance"),
    Setting("use_hsdp", "ranks that share tokens keep blocks in parts"),
    Setting("cache_backend", "a step cache: `tea_cache`, `cache_dit` or `none`"),
    Setting(
        "cache_config",
        "its settings; one that it has not is refused. TeaCache's `coefficients` are for pipelines of the contract",
    ),
    Setting("enable_cpu_offload", "networks take turns on the device"),
    Setting("enable_layerwise_offload", "blocks come to the device one at a time"),
    Setting("layerwise_num_gpu_layers", "1: one block is there while the next one comes; another number is refused"),
    Setting("vae_use_slicing", "a pipeline of the contract decodes pictures one at a time, as ours always do"),
    Setting("vae_use_tiling", "pictures are decoded in tiles"),
    Setting("enforce_eager", "`False` compiles blocks; left out, nothing is compiled"),
    Setting("plugin", "packages that bring pipelines (of ours)"),
    Setting("dtype", "what networks compute in"),
    Setting("device", "where (of ours)"),
    Setting("trust_remote_code", "is told to a pipeline of the contract; ours run no code of a checkpoint"),
    Setting("step_execution", "`True` wants the four methods; `False` runs `forward`; left out, steps where they are"),
    Setting("enable_diffusion_pipeline_profiler", PROFILER),
    Setting(
        "auxiliary_text_encoder", "the folder of an encoder that a pipeline of the contract wants and its own lacks"
    ),
    Setting("max_num_seqs", "how many outputs are made at a time"),
    Setting("diffusion_attention_backend", "the backend of every attention site"),
    Setting(
        "diffusion_attention_config", "backends by role: `default` and `per_role`, each a name, or `{backend: NAME}`"
    ),
    Setting("stage_configs_path", "a file of `stage_args`, or of ours, that spreads a model over processes"),
    Setting("deploy_config", "the same, also of `stages`"),
    Setting("strategy_config", "beside a file of `stages`, how many ranks and replicas these have"),
)
"""Options of `Omni` and `AsyncOmni` that choose something; what others are is in `core/foreign.py`."""

METHODS: tuple[Setting, ...] = (
    Setting(
        "generate",
        "prompts, `sampling_params_list` or `sampling_params`, `negative_prompts`, `py_generator`, `use_tqdm`",
    ),
    Setting(
        "default_sampling_params_list",
        "what each stage is asked with where a script gives nothing: as the checkpoint or a deploy file has it",
    ),
    Setting("close", "frees the weights; a `with` does it, too"),
    Setting(
        "AsyncOmni.generate",
        "a prompt, `sampling_params` or `sampling_params_list`, `request_id`, `output_modalities`, and `priority`, of "
        "which the lower comes first",
    ),
    Setting("AsyncOmni.abort", "cancels what has this `request_id`: its iterator ends"),
    Setting("AsyncOmni.shutdown", "frees the weights"),
    Setting("generate(max_num_seqs=, max_batch_size=)", "`Omni(max_num_seqs=)`, when the engine starts", refused=True),
    Setting("start_profile", "`omnimuse bench` and the contract's profiler measure", refused=True),
    Setting("stop_profile", "`omnimuse bench` and the contract's profiler measure", refused=True),
)
"""Methods of `Omni` and `AsyncOmni`."""

PARALLEL: tuple[Setting, ...] = (
    Setting("tensor_parallel_size", "`--tensor-parallel-size`"),
    Setting("ulysses_degree", "`--ulysses-degree`"),
    Setting("ring_degree", "`--ring-degree`"),
    Setting("cfg_parallel_size", "`--cfg-parallel-size`"),
    Setting("pipeline_parallel_size", "`--pipeline-parallel-size`"),
    Setting("data_parallel_size", "refused: `omnimuse serve --replicas N`"),
    Setting("vae_patch_parallel_size", "`--vae-patch-parallel-size`"),
    Setting("use_hsdp", "`--use-hsdp`"),
    Setting("hsdp_shard_size", "-1, or all ranks that share tokens; another number is refused"),
    Setting("hsdp_replicate_size", "refused: `omnimuse serve --replicas N`"),
)
"""Fields of `DiffusionParallelConfig`."""

TOLD: tuple[Setting, ...] = (
    Setting("model", "the folder of the checkpoint"),
    Setting("model_class_name", "what `model_index.json` names"),
    Setting("dtype", "what networks compute in"),
    Setting("tf_model_config", "the transformer's `config.json`"),
    Setting("model_config", "what `model_index.json` says besides the components"),
    Setting("boundary_ratio", "as `model_index.json` says"),
    Setting("trust_remote_code", "as was chosen"),
    Setting("parallel_config", "the axes of ranks"),
    Setting("cache_backend", "as was chosen, under the contract's name"),
    Setting("enable_cpu_offload", "as was chosen"),
    Setting("enable_layerwise_offload", "as was chosen"),
    Setting("enforce_eager", "as was chosen"),
    Setting("vae_use_slicing", "as was chosen; the engine has told the autoencoder"),
    Setting("vae_use_tiling", "as was chosen; the engine has told the autoencoder"),
    Setting("step_execution", "whether the engine owns the loop"),
    Setting("enable_diffusion_pipeline_profiler", "as was chosen"),
    Setting("extras", "`auxiliary_text_encoder` as was chosen"),
    Setting("cache_config", "empty: step caches are the engine's, and keep their settings", fixed=True),
    Setting("quantization_config", "None: weights are packed by the engine", fixed=True),
    Setting("model_paths", "empty: everything is in `model`", fixed=True),
    Setting("revision", "None: `model` is a folder of one revision", fixed=True),
    Setting("output_type", "`pil`; a request's own is in its sampling parameters", fixed=True),
    Setting("flow_shift", "None; a request's own is in its sampling parameters", fixed=True),
    Setting("lora_path", "None: adapters come with requests", fixed=True),
    Setting("custom_pipeline_args", "empty: `model_config` has what a checkpoint says", fixed=True),
)
"""Fields of `OmniDiffusionConfig`, which a pipeline is made from."""

FLAGS: tuple[Setting, ...] = (
    Setting("--port 8091", "the same (`serve`)"),
    Setting("--tensor-parallel-size 2", "the same"),
    Setting("--ulysses-degree 2", "the same"),
    Setting("--usp 2", "`--ulysses-degree`"),
    Setting("--ring-degree 2", "the same"),
    Setting("--cfg-parallel-size 2", "the same"),
    Setting("--use-hsdp", "the same"),
    Setting("--vae-use-tiling", "`--vae-tiling`"),
    Setting("--vae-use-slicing", "a pipeline of the contract decodes pictures one at a time, as ours always do"),
    Setting("--diffusion-attention-backend SAGE_ATTN", "`--attention`, which has names of its own, too"),
    Setting("--diffusion-attention-config.per_role.self.backend SAGE_ATTN", "`--attention-role self=sage`"),
    Setting("--omni", "nothing: every model is served so"),
    Setting("--stage-configs-path x", "`--deploy x`"),
    Setting("--step-execution", "refuses a pipeline that has no steps; one that has is run in steps in any case"),
    Setting("--max-num-seqs 4", "how many outputs are in progress at a time"),
    Setting("--enforce-eager", "nothing is compiled, as without it; not beside `--compile`"),
    Setting("--enable-diffusion-pipeline-profiler", PROFILER),
    Setting("--enable-cpu-offload", "`--offload components`"),
    Setting("--enable-layerwise-offload", "`--offload layers`"),
    Setting("--cache-backend cache_dit", "`--cache dbcache`"),
    Setting("--cache-config {}", "settings of `--cache-backend`; one that it has not is refused"),
    Setting("--trust-remote-code", "is told to a pipeline of the contract; ours run no code of a checkpoint"),
)
"""Options of `vllm serve --omni`, all of which `omnimuse serve` takes."""

ENVIRONMENT: tuple[Setting, ...] = (
    Setting(
        "DIFFUSION_ATTENTION_BACKEND",
        "of every command and of the guide's `Omni`, the backend of every site where none is chosen: `TORCH_SDPA`, "
        "`FLASH_ATTN`, `SAGE_ATTN` or `AUTO`, which are `sdpa`, `flash_attn_2`, `sage` and `auto`",
    ),
    Setting("VLLM_LOGGING_LEVEL", "not read: loggers are those of Python's `logging`", refused=True),
    Setting("VLLM_TRACE_FUNCTION", "not read: `--debug` shows where an error came from", refused=True),
)
"""Environment variables."""
