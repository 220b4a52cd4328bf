"""Names that published model files import through the door, by the modules that they import them from."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType

import pytest

IMPORTED: Mapping[str, str] = MappingProxyType(
    {
        "vllm_omni.diffusion.data": "DiffusionOutput OmniDiffusionConfig DiffusionParallelConfig",
        "vllm_omni.diffusion.worker.request_batch": "DiffusionRequestBatch split_diffusion_output_by_request",
        "vllm_omni.diffusion.distributed.utils": "get_local_device",
        "vllm.logger": "init_logger",
        "vllm_omni.diffusion.model_loader.diffusers_loader": "DiffusersPipelineLoader",
        "vllm_omni.diffusion.attention.layer": "Attention",
        "vllm.model_executor.model_loader.weight_utils": "default_weight_loader",
        "vllm_omni.diffusion.profiler.diffusion_pipeline_profiler": "DiffusionPipelineProfilerMixin",
        "vllm.model_executor.layers.linear": (
            "RowParallelLinear QKVParallelLinear ColumnParallelLinear MergedColumnParallelLinear ReplicatedLinear "
            "LinearBase"
        ),
        "vllm.model_executor.models.utils": "AutoWeightsLoader WeightsMapper",
        "vllm_omni.diffusion.attention.backends.abstract": "AttentionMetadata",
        "vllm_omni.diffusion.request": "OmniDiffusionRequest",
        "vllm_omni.diffusion.distributed.cfg_parallel": "CFGParallelMixin",
        "vllm.model_executor.layers.quantization.base_config": "QuantizationConfig",
        "vllm_omni.model_executor.model_loader.weight_utils": "download_weights_from_hf_specific",
        "vllm.distributed": (
            "get_tensor_model_parallel_world_size tensor_model_parallel_all_reduce get_tensor_model_parallel_rank "
            "tensor_model_parallel_all_gather"
        ),
        "vllm_omni.diffusion.distributed.sp_plan": "SequenceParallelOutput SequenceParallelInput",
        "vllm_omni.diffusion.model_loader.hub_prefetch": "prefetch_subfolders from_pretrained_with_prefetch",
        "vllm_omni.diffusion.cache.cachedit": "CacheDiTAdapterConfig",
        "vllm_omni.diffusion.forward_context": (
            "get_forward_context is_forward_context_available set_forward_context_denoise_step_idx"
        ),
        "vllm_omni.platforms": "current_omni_platform",
        "vllm.model_executor.layers.layernorm": "RMSNorm",
        "vllm_omni.diffusion.distributed.parallel_state": (
            "get_classifier_free_guidance_world_size get_sequence_parallel_world_size get_sequence_parallel_rank "
            "get_sp_group get_classifier_free_guidance_rank get_cfg_group"
        ),
        "vllm_omni.transformers_utils.repo_utils": "hf_api",
        "vllm_omni.diffusion.utils.tf_utils": "get_transformer_config_kwargs",
        "vllm_omni.diffusion.layers.rope": "RotaryEmbedding apply_rope_to_qk",
        "vllm_omni.inputs.data": "OmniTextPrompt OmniDiffusionSamplingParams",
        "vllm_omni.diffusion.layers.norm": "RMSNorm",
        "vllm_omni.diffusion.worker.input_batch": "InputBatch",
        "vllm_omni.diffusion.worker.utils": "StepRequestState",
        "vllm_omni.diffusion.distributed.autoencoders.autoencoder_kl_wan": "DistributedAutoencoderKLWan",
        "vllm_omni.diffusion.distributed.hsdp_utils": "is_transformer_block_module",
        "vllm.triton_utils": "triton tl HAS_TRITON",
        "vllm.model_executor.layers.vocab_parallel_embedding": "VocabParallelEmbedding",
        "vllm.platforms": "current_platform",
        "vllm_omni.errors": "OmniClientError",
        "vllm.model_executor.layers.conv": "Conv3dLayer",
        "vllm_omni.diffusion.distributed.autoencoders.autoencoder_kl_qwenimage": "DistributedAutoencoderKLQwenImage",
        "vllm.model_executor.utils": "set_weight_attrs",
        "vllm_omni.diffusion.distributed.autoencoders.autoencoder_kl": "DistributedAutoencoderKL",
        "vllm_omni.diffusion.distributed.autoencoders.distributed_vae_executor": (
            "DistributedVaeMixin TileTask GridSpec DistributedOperator"
        ),
        "vllm.model_executor.layers.activation": "SiluAndMul",
        "vllm_omni.model_executor.layers.timestep_embedding": "timestep_embedding",
        "vllm_omni.diffusion.layers.adalayernorm": "AdaLayerNorm",
        "vllm_omni.diffusion.offloader": "OffloadPlan",
        "vllm_omni.diffusion.offloader.module_collector": "ModuleDiscovery",
        "vllm_omni.diffusion.utils.size_utils": "normalize_min_aligned_size",
        "vllm_omni.diffusion.layers.fused_qk_norm_rope": "fused_qk_norm_rope_min_tokens fused_qk_norm_rope",
        "vllm_omni.diffusion.cache.base": "CachedTransformer",
        "vllm_omni.diffusion.offloader.config": "OffloadStrategy",
    }
)
"""Of the model files of vLLM-Omni 0.30, those that three families or more import."""

PAIRS = [(module, name) for module, names in IMPORTED.items() for name in names.split()]


@pytest.mark.parametrize(("module", "name"), PAIRS, ids=map(".".join, PAIRS))
def test_what_published_model_files_import_is_here(module: str, name: str) -> None:
    before = dict(vars(import_module(f"omnimuse.compat.{module}")))
    exec(f"from omnimuse.compat.{module} import {name}", before)
    assert name in before
