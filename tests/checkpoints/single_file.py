"""Weights in the names of their authors, as other programs share them: `merged` Stable Diffusion, `wan` experts.

The names are those of the original implementation, and projections of the autoencoder's attention are convolutions.
"""

from __future__ import annotations

import re
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from omnimuse.loader.files import weight_files

Tensors = dict[str, Tensor]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
}
"""Two levels with one layer each."""
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


WAN = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "norm2": "norm3",
    "attn1": "self_attn",
    "attn2": "cross_attn",
    ".to_out.0.": ".o.",
    ".to_q.": ".q.",
    ".to_k.": ".k.",
    ".to_v.": ".v.",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}


def wan(library: Tensors) -> Tensors:
    """A Wan transformer in its authors' names."""
    found: Tensors = {}
    for name, tensor in library.items():
        for ours, theirs in WAN.items():
            name = name.replace(ours, theirs)
        name = "head.modulation" if name == "scale_shift_table" else name.replace("scale_shift_table", "modulation")
        found[re.sub("^proj_out", "head.head", name)] = tensor
    return found


def weights(folder: Path) -> Tensors:
    """Every tensor of a component's folder."""
    return {name: tensor for path in weight_files(folder).paths for name, tensor in load_file(path).items()}


def merged(folder: Path) -> Tensors:
    """UNet, autoencoder and text encoder of the checkpoint in `folder` in one table of tensors."""
    unet = {f"model.diffusion_model.{_unet_name(name)}": tensor for name, tensor in weights(folder / "unet").items()}
    vae = dict(_vae_tensor(name, tensor) for name, tensor in weights(folder / "vae").items())
    clip = {
        f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}": tensor
        for name, tensor in weights(folder / "text_encoder").items()
    }
    return {**unet, **vae, **clip}


def _unet_name(name: str) -> str:
    stem = max((stem for stem in UNET if name.startswith(stem + ".")), key=len)
    rest = name.removeprefix(stem)
    if "resnets" in stem:
        part = next(part for part in RESNET if rest.startswith(f".{part}."))
        rest = rest.replace(part, RESNET[part], 1)
    return UNET[stem] + rest


def _vae_tensor(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    for ours, theirs in VAE_ATTENTION.items():
        if f"attentions.0.{ours}." in name:
            name = name.replace(f"attentions.0.{ours}.", f"attn_1.{theirs}.")
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    name = (
        name.replace("mid_block.", "mid.").replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    )
    name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda match: f"up.{3 - int(match[1])}.block.", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0\.", lambda match: f"up.{3 - int(match[1])}.upsample.", name)
    return f"first_stage_model.{name}", tensor
