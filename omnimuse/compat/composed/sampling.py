"""Every sampling parameter and engine option that SGLang documents, and what it means here: one table of each.

`DiffGenerator` reads requests and options with them. What has no target is known and refused with the reason, unless
its value asks for nothing. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Meaning:
    """What a name is here: `ours` is our parameter, or empty where the caller of the table does it itself.

    `refused` is why it cannot be given, but for a value in `nothing`, which asks for nothing.
    """

    about: str
    ours: str = ""
    refused: str = ""
    nothing: tuple[Any, ...] = (None, False)


def _same(name: str) -> Meaning:
    return Meaning(f"`{name}`", name)


_FILES = "of the file that is written; only the generator knows of files"
_ADJUSTED = "sizes are taken as they are, or refused with the nearest that can be made"
_PROFILE = "use `omnimuse bench`, or the server's traces"

SAMPLING: Mapping[str, Meaning] = {
    **{
        name: _same(name)
        for name in (
            *("num_inference_steps", "guidance_scale", "guidance_scale_2", "true_cfg_scale", "boundary_ratio"),
            *("height", "width", "num_frames", "fps", "seed", "num_outputs_per_prompt", "max_sequence_length"),
        )
    },
    "prompt": Meaning("the prompt, or several"),
    "negative_prompt": Meaning("the negative prompt"),
    "prompt_path": Meaning("a text file with a prompt in each line"),
    "image_path": Meaning("a picture that comes with the prompt, or several, by their files"),
    "output_path": Meaning(f"the folder {_FILES}"),
    "output_file_name": Meaning(f"the name {_FILES}; its suffix says the format, which is else png or mp4"),
    "save_output": Meaning("whether a file is written; true where nothing is said"),
    "return_frames": Meaning("whether pictures come back as arrays, and nothing else"),
    "enable_teacache": Meaning("`cache=teacache` for this request", "cache"),
    "enable_cache_dit": Meaning("`cache=dbcache` for this request", "cache"),
    "cache_dit_params": Meaning("cache-dit's settings for it, such as Fn_compute_blocks", "cache"),
    "guidance_rescale": Meaning("to a composed pipeline alone, as it has it", "sampling", "", (None, 0.0)),
    "data_type": Meaning("", "", "the model says what it makes"),
    "request_id": Meaning("", "", "the engine names requests"),
    "num_frames_round_down": Meaning("", "", _ADJUSTED),
    "height_not_provided": Meaning("", "", "leave the height out"),
    "width_not_provided": Meaning("", "", "leave the width out"),
    "return_trajectory_latents": Meaning("", "", "ask for previews: latents between steps are not handed out"),
    "return_trajectory_decoded": Meaning("", "", "ask for previews: every step is not decoded at the end"),
    "profile": Meaning("", "", _PROFILE),
    "num_profiled_timesteps": Meaning("", "", _PROFILE, (None, 2)),
    "debug": Meaning("", "", "set the level of Python's logging"),
    "perf_dump_path": Meaning("", "", _PROFILE),
}
"""Fields of the stock `SamplingParams`. A pipeline's own fields go to it as they are."""

_ALWAYS = "always so"
_NETWORK = "an engine in this process has no address; use `omnimuse serve`"

OPTIONS: Mapping[str, Meaning] = {
    "model_path": Meaning("the model: a folder, or an id"),
    "plugin": Meaning("ours: packages that bring pipelines", "plugins"),
    "device": Meaning("ours: the device", "device"),
    "num_gpus": Meaning("how many ranks there are; what no other option takes shares the tokens of a row"),
    "tp_size": Meaning("`--tensor-parallel-size`", "tensor"),
    "sp_degree": Meaning("how many ranks share the tokens of a row"),
    "ulysses_degree": Meaning("`--ulysses-degree`", "ulysses"),
    "ring_degree": Meaning("`--ring-degree`", "ring"),
    "enable_cfg_parallel": Meaning("`--cfg-parallel-size 2`", "cfg"),
    "dit_precision": Meaning("the engine's number format", "dtype"),
    "dit_cpu_offload": Meaning("`--offload components`: all networks take turns", "offload"),
    "text_encoder_cpu_offload": Meaning("the same", "offload"),
    "image_encoder_cpu_offload": Meaning("the same", "offload"),
    "vae_cpu_offload": Meaning("the same", "offload"),
    "dit_layerwise_offload": Meaning("`--offload layers`", "offload"),
    "pin_cpu_memory": Meaning(f"{_ALWAYS} beside a GPU"),
    "use_fsdp_inference": Meaning("`--shard`: ranks that share tokens keep weights in parts", "shard"),
    "enable_torch_compile": Meaning("`--compile blocks`", "compile"),
    "attention_backend": Meaning(
        "`--attention`: torch_sdpa is `sdpa`, fa is `flash_attn_2`, fa3 is `flash_attn_3`, sage_attn is `sage`",
        "attention",
    ),
    "vae_tiling": Meaning("`--vae-tiling`", "tiling"),
    "vae_slicing": Meaning(f"{_ALWAYS}: outputs are decoded one by one"),
    "trust_remote_code": Meaning("allows what is never done: code from a checkpoint is not run"),
    "local_mode": Meaning("", "", f"false: {_NETWORK}", (None, True)),
    "backend": Meaning("", "", "the model's own family is taken, then a library's", (None, "auto")),
    "vae_path": Meaning("", "", "put the autoencoder into the model's folder"),
    "lora_path": Meaning("`set_lora` before the first request"),
    "lora_nickname": Meaning("its name there"),
    "vae_precision": Meaning("", "", "a model says which of its networks need another format than the engine's"),
    "text_encoder_precisions": Meaning("", "", "a model says which of its networks need another format"),
    "vae_sp": Meaning("`--vae-patch-parallel-size`: all ranks decode tiles"),
    "pipeline_config": Meaning("", "", "a plugin registers its configuration"),
    "pipeline_config_path": Meaning("", "", "a plugin registers its configuration"),
    "host": Meaning("", "", _NETWORK),
    "port": Meaning("", "", _NETWORK),
    "mask_strategy_file_path": Meaning("", "", "sparse attention by a table is not there"),
    "embedded_cfg_scale": Meaning("", "", "choose guidance_scale for each request"),
    "flow_shift": Meaning("", "", "choose flow_shift for each request"),
}
"""Options of `DiffGenerator.from_pretrained`, which are those of `ServerArgs` and of the command line."""
