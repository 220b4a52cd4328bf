"""What other programs call the things that people choose here: one table of meanings, for aliases and for hints.

Read by the command line, which takes these names as options, and by whoever refuses a name and wants to say which one
was meant. A name is here only if it means exactly the same. No torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from types import MappingProxyType

_OURS: dict[str, str] = {
    "prompt": "prompts text positive_prompt",
    "negative_prompt": "negative neg_prompt negative_text uc",
    "images": "image image_path image_paths init_image input_image reference_image start_image",
    "audio": "audio_path init_audio input_audio reference_audio",
    "num_inference_steps": "steps num_steps inference_steps infer_steps sampling_steps sample_steps ddim_steps",
    "guidance_scale": "guidance cfg guidance_strength sample_guide_scale",
    "guidance_scale_2": "guidance_2 cfg_2",
    "true_cfg_scale": "true_cfg",
    "height": "image_height video_height",
    "width": "image_width video_width",
    "num_frames": "frames frame_num frame_count n_frames video_length",
    "fps": "frame_rate framerate",
    "seconds": "audio_length audio_length_in_s audio_duration seconds_total",
    "seed": "random_seed noise_seed manual_seed base_seed",
    "num_outputs_per_prompt": "n number num_outputs num_images num_images_per_prompt num_videos_per_prompt n_samples",
    "max_sequence_length": "text_len max_text_len max_text_length",
    "strength": "denoise denoising_strength img2img_strength image_strength",
    "flow_shift": "shift sample_shift timestep_shift time_shift",
    "boundary_ratio": "boundary",
    "deadline": "timeout_s timeout",
    "scheduler": "sampler sampler_name sample_solver scheduler_type scheduler_name",
    "lora": "lora_path lora_paths lora_file lora_weights",
    "format": "output_format",
    "compression": "output_compression jpeg_quality",
    "mask": "mask_image mask_path",
    "output": "output_path output_file output_dir out save_path save_file outdir",
    "model": "model_path model_id model_name_or_path pretrained_model_name_or_path ckpt checkpoint",
    "attention": "attention_backend diffusion_attention_backend",
    "tensor_parallel_size": "tp_size tp tensor tensor_parallel_degree",
    "ulysses_degree": "ulysses usp",
    "ring_degree": "ring",
    "cfg_parallel_size": "cfg_parallel",
    "pipeline_parallel_size": "pp_size pipe",
    "hsdp_shard_size": "shard",
    "use_hsdp": "use_fsdp_inference",
    "vae_patch_parallel_size": "vae_tiles",
    "rank_wait": "dist_timeout distributed_timeout_seconds",
    "vae_tiling": "enable_vae_tiling vae_use_tiling",
    "vae_slicing": "enable_vae_slicing vae_use_slicing",
    "compile": "enable_torch_compile torch_compile",
    "replicas": "dp_size data_parallel_size num_replicas",
    "model_name": "served_model_name served_model_names",
    "deploy": "stage_configs_path stage_config deploy_config",
    "strategy": "strategy_config",
    "file": "prompt_file prompts_file prompt_path prompt_file_path from_file",
}

MEANINGS: Mapping[str, str] = MappingProxyType({name: ours for ours, names in _OURS.items() for name in names.split()})
"""Another program's name -> ours; all with underscores, in lower case."""

_STARTED = (
    "quantize quantize_skip dtype device offload attention compile kernels tier company plugin component threads room"
    " lora_memory deploy strategy tensor_parallel_size ulysses_degree ring_degree cfg_parallel_size"
    " pipeline_parallel_size hsdp_shard_size vae_patch_parallel_size vae_tiling vae_slicing writer"
)
STARTED = frozenset(_STARTED.split())
"""What is chosen when an engine starts, and for no request by itself: options of `omnimuse serve`, with underscores."""

BACKENDS: Mapping[str, str] = MappingProxyType(
    {
        "auto": "auto",
        "sdpa": "sdpa",
        "torch_sdpa": "sdpa",
        "flash_attn": "flash_attn_2",
        "fa": "flash_attn_2",
        "fa2": "flash_attn_2",
        "fa3": "flash_attn_3",
        "sage_attn": "sage",
    }
)
"""What vLLM-Omni and SGLang Diffusion call attention backends, in lower case -> ours."""

_LIKE: Mapping[str, str] = MappingProxyType({"cfg_scale": "true_cfg_scale guidance_scale", "cfg": "guidance_scale"})
"""Names that programs use for different things: what they may stand for, the surest first. Hints, never aliases."""

_ABSENT: dict[str, str] = {
    "processes share a model with --tensor-parallel-size, --ulysses-degree and --ring-degree, and `serve --replicas N`"
    " runs several": "num_gpus sp_degree sequence_parallel_size usp use_usp tensor_parallel_size tp_size tp"
    " ulysses_degree ring_degree pipeline_parallel_size pp_size use_hsdp",
    "processes keep weights in parts with --use-hsdp, which takes its size from the other axes": "use_fsdp"
    " hsdp_shard_dim hsdp_replicate_dim hsdp_replicate_size",
    "weights wait outside the device with --offload layers, or with --offload components": "dit_layerwise_offload"
    " dit_cpu_offload text_encoder_cpu_offload vae_cpu_offload enable_cpu_offload enable_layerwise_offload",
    "guidance is shared by processes with --cfg-parallel-size 2": "enable_cfg_parallel cfg_parallel_size",
    "keys are read from a file: --api-key-file": "api_key api_keys",
    "a server has the adapters of --lora-dir FOLDER, and who asks names those to wear, with their scale:"
    " --lora FILE:0.8, or `lora` in a request": "enable_lora lora_modules lora_paths lora_scale lora_scales lora_weight"
    " max_loras max_lora_rank max_cpu_loras",
    "weights are quantized by omnimuse's own schemes: --quantize int8": "quantization",
    "weights are used in the format that --dtype and --quantize choose": "load_format kv_cache_dtype",
    "every model is served so, without a word for it": "omni",
    "a pipeline that can be run in steps is run in steps": "step_execution",
    "as many outputs are made at a time as memory allows": "max_num_seqs",
    "blocks are compiled with --compile, and not otherwise": "enforce_eager",
    "every answer tells how long its stages took": "enable_diffusion_pipeline_profiler log_stats",
    "a step cache is chosen with --cache NAME,setting=VALUE": "cache_backend cache_config",
    "a model brings its code as a package, which --plugin names": "trust_remote_code",
    "text is never rewritten before it is drawn": "prompt_extend prompt_enhance enhance_prompt rewrite_prompt",
}
ABSENT: Mapping[str, str] = MappingProxyType({name: why for why, names in _ABSENT.items() for name in names.split()})
"""What other programs have and this one has not: their name -> what is missing, or what there is instead."""


def backend_of(name: str) -> str:
    """Our name of an attention backend that another program may have called so, in whichever case."""
    return BACKENDS.get(name.lower(), name)


def started(name: str) -> str:
    """The option of `omnimuse serve` that chooses what is called `name`; empty for what is nothing of the kind."""
    ours = MEANINGS.get(_plain(name), _plain(name))
    return f"--{ours.replace('_', '-')}" if ours in STARTED else ""


def absent(name: str) -> str:
    """Why what other programs call `name` is not here; empty if it is nothing of theirs."""
    return ABSENT.get(_plain(name), "")


def meant(name: str, allowed: Collection[str]) -> str | None:
    """The one of `allowed` that `name` stands for: by its meaning, else by its spelling; None if nothing is near."""
    plain = _plain(name)
    for known in (plain, MEANINGS.get(plain, ""), *_LIKE.get(plain, "").split()):
        if known in allowed:
            return known
    if plain in ABSENT:
        return None
    theirs = [each for each in get_close_matches(plain, list(MEANINGS), n=1, cutoff=0.8) if MEANINGS[each] in allowed]
    near = get_close_matches(plain, [*allowed, *theirs], n=1) or get_close_matches(name, list(allowed), n=1)
    return None if not near else near[0] if near[0] in allowed else MEANINGS[near[0]]


def _plain(name: str) -> str:
    return name.strip().lstrip("-").replace("-", "_").lower()
