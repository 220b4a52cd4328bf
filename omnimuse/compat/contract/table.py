"""Every name of the contract: where it is documented, what ours does, and the test that shows it, or why it is refused.

`docs/compat.md` shows it (`tools/compat_page.py`), and a module that is asked for a refused name says the reason. The
documents are the guide in its newer and its older version, the skill, the study of the code, and the list of names that
published model files import.
"""

from __future__ import annotations

from dataclasses import dataclass

GUIDE, OLDER, SKILL, STUDY, FILES = "guide", "older guide", "skill", "study", "model files"

REQUESTS, STEPS = "tests/compat/test_requests.py", "tests/compat/test_steps.py"
SCRIPTS, LAYERS, NAMES = (f"tests/compat/test_{name}.py" for name in ("entry_points", "layers", "names"))

DRAWS = f"{REQUESTS}::test_it_draws_what_diffusers_draws"
ALIKE = f"{STEPS}::test_alone_and_in_company_it_draws_what_diffusers_draws"
SHARES = f"{LAYERS}::test_shares_of_all_ranks_make_up_the_layer"
ASKED = f"{NAMES}::test_what_code_asks_of_its_surroundings_is_answered_within_a_call"
SHAPES = f"{SCRIPTS}::test_a_script_finds_its_pictures_in_both_shapes"
OPTIONS = f"{SCRIPTS}::test_options_mean_what_they_mean_there"
PROFILED = "tests/compat/test_settings.py::test_its_autoencoder_is_told_and_its_parts_are_timed"
TOKENS = "tests/compat/test_ranks.py::test_tokens_are_shared_as_the_plan_says"
CACHED = "tests/compat/test_blocks.py::test_a_network_may_declare_its_blocks_to_a_cache"
MARKS = f"{NAMES}::test_marks_of_a_class_are_read_from_its_source"
SMALL = f"{NAMES}::test_small_parts_do_what_they_say"


@dataclass(frozen=True)
class Known:
    """A name that is here."""

    module: str
    name: str
    where: str
    does: str
    test: str


@dataclass(frozen=True)
class Refused:
    """A name that is not, and why."""

    module: str
    name: str
    where: str
    why: str


D, L = "vllm_omni.diffusion", "vllm.model_executor"

KNOWN: tuple[Known, ...] = (
    Known("vllm_omni", "Omni", GUIDE, "an engine of ours for one model, with the guide's options", SHAPES),
    Known("vllm_omni", "AsyncOmni", STUDY, "the same for asyncio", f"{SCRIPTS}::test_an_asyncio_program_gets_the_same"),
    Known(
        "vllm_omni",
        "register",
        "here",
        "adds a pipeline: the public form of the tables",
        f"{NAMES}::test_a_pipeline_is_registered_by_a_call",
    ),
    Known("vllm_omni.entrypoints.omni", "Omni", STUDY, "the same as `vllm_omni.Omni`", SHAPES),
    Known(
        "vllm_omni.entrypoints.async_omni",
        "AsyncOmni",
        STUDY,
        "the same as `vllm_omni.AsyncOmni`",
        f"{SCRIPTS}::test_an_asyncio_program_gets_the_same",
    ),
    Known(
        "vllm_omni.outputs",
        "OmniRequestOutput",
        STUDY,
        "a result in both shapes: `outputs[0]`, `request_output[0].images`",
        SHAPES,
    ),
    Known(
        "vllm_omni.inputs.data",
        "OmniDiffusionSamplingParams",
        GUIDE,
        "what a request chose; unknown attributes name this table",
        DRAWS,
    ),
    Known(
        "vllm_omni.inputs.data",
        "OmniTextPrompt",
        FILES,
        "a prompt as a dict, with `multi_modal_data`",
        f"{SCRIPTS}::test_pictures_come_out_of_multi_modal_data",
    ),
    Known(
        "vllm_omni.inputs.data",
        "OmniPromptType",
        FILES,
        "a string, or such a dict",
        f"{SCRIPTS}::test_a_single_prompt_and_one_sampling_per_prompt_are_taken",
    ),
    Known("vllm_omni.errors", "OmniClientError", FILES, "a refusal by a pipeline: a RequestError of ours", SMALL),
    Known("vllm_omni.platforms", "current_omni_platform", FILES, "which kind of machine the engine computes on", ASKED),
    Known("vllm.platforms", "current_platform", FILES, "the same", ASKED),
    Known(
        f"{D}.registry",
        "_DIFFUSION_MODELS",
        GUIDE,
        "the table, to be read; a plugin has its own in its `registry.py`",
        DRAWS,
    ),
    Known(
        f"{D}.registry",
        "_DIFFUSION_PRE_PROCESS_FUNCS",
        GUIDE,
        "the same, of functions before",
        f"{NAMES}::test_a_pipeline_is_registered_by_a_call",
    ),
    Known(f"{D}.registry", "_DIFFUSION_POST_PROCESS_FUNCS", GUIDE, "the same, of functions after", DRAWS),
    Known(f"{D}.data", "OmniDiffusionConfig", GUIDE, "what a pipeline is made from", DRAWS),
    Known(f"{D}.data", "TransformerConfig", GUIDE, "`od_config.tf_model_config`: keys are attributes, too", DRAWS),
    Known(f"{D}.data", "DiffusionOutput", GUIDE, "what a pipeline gives; `error` fails the request", DRAWS),
    Known(f"{D}.data", "DiffusionParallelConfig", STUDY, "our axes under the guide's names", OPTIONS),
    Known(f"{D}.request", "OmniDiffusionRequest", GUIDE, "one prompt and one output at a time", DRAWS),
    Known(
        f"{D}.worker.request_batch",
        "DiffusionRequestBatch",
        FILES,
        "the same in a batch of one, where `forward` says it takes one",
        SMALL,
    ),
    Known(
        f"{D}.worker.request_batch",
        "split_diffusion_output_by_request",
        FILES,
        "one output for each request of a batch",
        SMALL,
    ),
    Known(
        f"{D}.worker.utils",
        "StepRequestState",
        GUIDE,
        "a request between its steps: in our state, parked and woken with it",
        ALIKE,
    ),
    Known(f"{D}.worker.utils", "DiffusionRequestState", GUIDE, "its older name", ALIKE),
    Known(f"{D}.worker.input_batch", "InputBatch", GUIDE, "requests alike in guidance and shapes, as one batch", ALIKE),
    Known(
        f"{D}.models.interface",
        "SupportImageInput",
        SKILL,
        "pictures are taken, and lie in `multi_modal_data`",
        f"{NAMES}::test_marks_of_a_class_are_read_from_its_source",
    ),
    Known(
        f"{D}.models.interface",
        "SupportAudioInput",
        SKILL,
        "sounds are taken",
        f"{NAMES}::test_marks_of_a_class_are_read_from_its_source",
    ),
    Known(f"{D}.models.interface", "SupportsStepExecution", GUIDE, "a mark; the four methods count", ALIKE),
    Known(f"{D}.models.interface", "SupportAudioOutput", FILES, "sounds come out of it", MARKS),
    Known(
        f"{D}.models.interface",
        "SupportsComponentDiscovery",
        FILES,
        "names its parts; blocks are found by theirs",
        SMALL,
    ),
    Known(
        f"{D}.attention.layer",
        "Attention",
        GUIDE,
        "a site of ours: its backend is bound by role, then category",
        f"{LAYERS}::test_attention_is_that_of_torch",
    ),
    Known(
        f"{D}.attention.backends.abstract",
        "AttentionMetadata",
        GUIDE,
        "masks, and the other part of a joint sequence",
        f"{LAYERS}::test_attention_is_that_of_torch",
    ),
    Known(f"{D}.distributed.utils", "get_local_device", GUIDE, "the engine's device", DRAWS),
    Known(
        f"{D}.distributed.cfg_parallel",
        "CFGParallelMixin",
        GUIDE,
        "guidance of two predictions and the step after it",
        DRAWS,
    ),
    Known(
        f"{D}.distributed.sp_plan",
        "SequenceParallelInput",
        SKILL,
        "where ranks cut the tokens of a network, by its `_sp_plan`",
        TOKENS,
    ),
    Known(
        f"{D}.distributed.sp_plan",
        "SequenceParallelOutput",
        SKILL,
        "where they join them",
        TOKENS,
    ),
    Known(
        f"{D}.distributed.hsdp_utils",
        "is_transformer_block_module",
        FILES,
        "whether a name is one of a list of blocks",
        SMALL,
    ),
    *(
        Known(
            f"{D}.distributed.parallel_state",
            name,
            FILES,
            "how many ranks share that, which this is, and they themselves",
            ASKED,
        )
        for name in (
            *("get_classifier_free_guidance_world_size", "get_classifier_free_guidance_rank", "get_cfg_group"),
            *("get_sequence_parallel_world_size", "get_sequence_parallel_rank", "get_sp_group"),
        )
    ),
    *(
        Known("vllm.distributed", name, FILES, "the ranks that share weights", ASKED)
        for name in (
            *("get_tensor_model_parallel_world_size", "get_tensor_model_parallel_rank"),
            *("tensor_model_parallel_all_reduce", "tensor_model_parallel_all_gather"),
        )
    ),
    *(
        Known(f"{D}.forward_context", name, FILES, "the configuration and the step, while a pipeline runs", ASKED)
        for name in ("get_forward_context", "is_forward_context_available", "set_forward_context_denoise_step_idx")
    ),
    Known(
        f"{D}.model_loader.diffusers_loader",
        "DiffusersPipelineLoader",
        GUIDE,
        "has `ComponentSource`; our loader reads what it names",
        DRAWS,
    ),
    Known(
        f"{D}.model_loader.utils",
        "download_weights_from_hf_specific",
        GUIDE,
        "the folder of a model, by our resolver",
        SMALL,
    ),
    Known(
        "vllm_omni.model_executor.model_loader.weight_utils",
        "download_weights_from_hf_specific",
        FILES,
        "the same",
        SMALL,
    ),
    Known(
        f"{D}.model_loader.hub_prefetch",
        "prefetch_subfolders",
        FILES,
        "nothing: all is here before a pipeline is made",
        SMALL,
    ),
    Known(f"{D}.model_loader.hub_prefetch", "from_pretrained_with_prefetch", FILES, "`factory(model, ...)`", SMALL),
    Known(
        f"{D}.utils.tf_utils",
        "get_transformer_config_kwargs",
        GUIDE,
        "of a configuration, what a constructor takes",
        DRAWS,
    ),
    Known(
        f"{D}.profiler",
        "DiffusionPipelineProfilerMixin",
        GUIDE,
        "times the methods that it is told, in the log and in `stage_durations`",
        PROFILED,
    ),
    Known(f"{D}.profiler.diffusion_pipeline_profiler", "DiffusionPipelineProfilerMixin", FILES, "the same", PROFILED),
    Known(
        f"{D}.layers.rope",
        "RotaryEmbedding",
        GUIDE,
        "rotates by pairs, side by side or half a head apart",
        f"{LAYERS}::test_rotations_and_timesteps_are_those_of_diffusers",
    ),
    Known(f"{D}.layers.rope", "apply_rope_to_qk", FILES, "queries and keys, rotated alike", SMALL),
    Known(
        f"{D}.layers.norm",
        "RMSNorm",
        FILES,
        "the one of `vllm`",
        f"{LAYERS}::test_a_norm_with_a_residual_gives_their_sum_too",
    ),
    Known(
        f"{D}.layers.adalayernorm",
        "AdaLayerNorm",
        GUIDE,
        "a norm that a condition scales and shifts",
        f"{LAYERS}::test_activations_and_shifted_norms_are_as_written",
    ),
    Known(
        "vllm_omni.model_executor.layers.timestep_embedding",
        "timestep_embedding",
        FILES,
        "cosines, then sines",
        f"{LAYERS}::test_rotations_and_timesteps_are_those_of_diffusers",
    ),
    Known("vllm.logger", "init_logger", GUIDE, "Python's logger, with `warning_once` and its like", SMALL),
    *(
        Known(f"{L}.layers.linear", name, where, "a linear layer of torch, of which ranks have shares", SHARES)
        for name, where in (
            *(("ColumnParallelLinear", GUIDE), ("RowParallelLinear", OLDER), ("QKVParallelLinear", OLDER)),
            *(("MergedColumnParallelLinear", FILES), ("ReplicatedLinear", FILES), ("LinearBase", FILES)),
        )
    ),
    Known(
        f"{L}.layers.layernorm",
        "RMSNorm",
        GUIDE,
        "in float32; with a residual it gives the sum, too",
        f"{LAYERS}::test_a_norm_with_a_residual_gives_their_sum_too",
    ),
    Known(
        f"{L}.layers.activation",
        "SiluAndMul",
        FILES,
        "silu of one half times the other",
        f"{LAYERS}::test_activations_and_shifted_norms_are_as_written",
    ),
    Known(f"{L}.layers.conv", "Conv3dLayer", FILES, "torch's", SMALL),
    Known(
        f"{L}.layers.vocab_parallel_embedding",
        "VocabParallelEmbedding",
        FILES,
        "torch's embedding; every rank has all of it",
        SMALL,
    ),
    Known(
        f"{L}.layers.quantization.base_config",
        "QuantizationConfig",
        FILES,
        "a name for annotations; a layer that is given one refuses it",
        SMALL,
    ),
    Known(
        f"{L}.model_loader.weight_utils",
        "default_weight_loader",
        GUIDE,
        "fills a parameter; refuses another shape",
        DRAWS,
    ),
    Known(
        f"{L}.models.utils",
        "AutoWeightsLoader",
        GUIDE,
        "gives weights to parts by their names",
        f"{LAYERS}::test_weights_go_to_who_has_their_names",
    ),
    Known(
        f"{L}.models.utils",
        "WeightsMapper",
        FILES,
        "new names for weights",
        f"{LAYERS}::test_weights_go_to_who_has_their_names",
    ),
    Known(f"{L}.utils", "set_weight_attrs", FILES, "attributes for a parameter", SMALL),
    Known(
        f"{D}.cache.cachedit",
        "CacheDiTAdapterConfig",
        FILES,
        "declares the blocks that a step cache goes around",
        CACHED,
    ),
    Known(f"{D}.cache.base", "CachedTransformer", FILES, "a network whose steps may be cached", SMALL),
    Known(
        f"{D}.distributed.autoencoders.autoencoder_kl",
        "DistributedAutoencoderKL",
        FILES,
        "that of diffusers, and so in every `autoencoder_kl_NAME`; each rank has all of it",
        SMALL,
    ),
    Known(
        f"{D}.layers.select01_modulation",
        "select01_modulation_native",
        FILES,
        "one of two modulations for each token, in every `NAME_select01_modulation`; its kernels are not here",
        SMALL,
    ),
    Known(
        f"{D}.lora.loader",
        "LoraLoaderMixin",
        FILES,
        "a mark, and so every `NAMELoraLoaderMixin`: adapters come with requests",
        SMALL,
    ),
    Known(f"{D}.utils.prompt_utils", "validate_prompt_sequence_lengths", FILES, "refuses a prompt too long", SMALL),
    Known(f"{D}.utils.size_utils", "normalize_min_aligned_size", FILES, "sides rounded down, not to nothing", SMALL),
    *(
        Known(f"{D}.layers.{file}", name, FILES, "no such kernel: code that asks writes it out", SMALL)
        for file, name in (
            *(("fused_qk_norm_rope", "fused_qk_norm_rope_min_tokens"), ("fused_qk_norm_rope", "fused_qk_norm_rope")),
            *(("fused_qk_rope", "fused_qk_rope_supported"), ("fused_qk_rope", "fused_qk_rope")),
        )
    ),
    *(
        Known(
            f"{D}.layers.adalayernorm",
            name,
            FILES,
            "as diffusers have it",
            f"{LAYERS}::test_shifted_norms_are_those_of_diffusers",
        )
        for name in ("AdaLayerNormZero", "AdaLayerNormZeroSingle", "AdaLayerNormContinuous")
    ),
    Known(
        f"{D}.layers.fourier", "GaussianFourierProjection", FILES, "cosines, then sines, of drawn frequencies", SMALL
    ),
    Known("vllm_omni.logger", "init_logger", FILES, "that of `vllm.logger`", SMALL),
    *(
        Known("vllm_omni.quantization.component_config", name, FILES, "what it is given: None", SMALL)
        for name in ("safe_quant_config", "resolve_component_quant_config")
    ),
    Known("vllm_omni.quantization", "build_quant_config", FILES, "None; a way to pack weights is refused", SMALL),
    Known(f"{D}.utils.flow_matching", "safe_linalg_solve", FILES, "that of torch", SMALL),
    Known(f"{L}.models.utils", "maybe_prefix", FILES, "a name below a prefix", SMALL),
    Known(
        f"{L}.models.transformers.utils",
        "init_on_device_without_buffers",
        FILES,
        "parameters that are made meanwhile are on that device",
        SMALL,
    ),
    Known(f"{L}.layers.activation", "get_act_fn", FILES, "that of transformers", SMALL),
    Known("vllm.triton_utils", "HAS_TRITON", FILES, "false: code uses its torch path", SMALL),
    Known("vllm.triton_utils", "triton", FILES, "None, which code that asks `HAS_TRITON` does not touch", SMALL),
    Known("vllm.triton_utils", "tl", FILES, "None, likewise", SMALL),
)

_CACHE = "the engine's own step caches go around the blocks that a network declares; declare them"
_AWAY = "blocks that a network declares come in one at a time by the engine's own offload; declare them"

REFUSED: tuple[Refused, ...] = (
    Refused("vllm", "SamplingParams", STUDY, "of models that write: give `omnimuse.Omni` their choices by name"),
    Refused(f"{D}.cache.cache_dit_backend", "CUSTOM_DIT_ENABLERS", SKILL, _CACHE),
    Refused(f"{D}.cache.cache_dit_backend", "CacheDiTBackend", SKILL, _CACHE),
    Refused(f"{D}.cache.teacache.extractors", "EXTRACTOR_REGISTRY", GUIDE, _CACHE),
    Refused(f"{D}.distributed.autoencoders.distributed_vae_executor", "*", FILES, "ranks decode tiles of our families"),
    Refused(f"{D}.offloader", "OffloadPlan", FILES, _AWAY),
    Refused(f"{D}.offloader.module_collector", "ModuleDiscovery", FILES, _AWAY),
    Refused(f"{D}.offloader.config", "OffloadStrategy", FILES, _AWAY),
    Refused(
        "vllm_omni.transformers_utils.repo_utils", "hf_api", FILES, "a checkpoint is whole before a pipeline is made"
    ),
)
