"""Tiny checkpoints for pipelines of the contract: those of the families, under the class names of the plugin."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import diffusers
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints.adapters import layers_in, layers_of

PLUGIN = "tests.compat.pipelines"
COMPOSED = "tests.compat.pipelines.composed"


def renamed(folder: Path, arch: str) -> Path:
    """The checkpoint in `folder` with `arch` as what it was saved from."""
    path = folder / "model_index.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "_class_name": arch}))
    return folder


def customised(folder: Path, made: Path, arch: str) -> Path:
    """The checkpoint in `folder` as one of its own kind in `made`: the network's weights at the root under other names,
    its configuration in `model_index.json`, and no component listed.
    """
    shutil.copytree(folder, made)
    network = json.loads((made / "transformer" / "config.json").read_text())
    weights = load_file(made / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file({f"net.{name}": tensor for name, tensor in weights.items()}, made / "model.safetensors")
    shutil.rmtree(made / "transformer")
    (made / "model_index.json").write_text(json.dumps({"_class_name": arch, "network": network}))
    return made


def worn_by(folder: Path) -> dict[str, tuple[int, int]]:
    """The linear layers of the network, as the files of the checkpoint in `folder` name them, also of its own kind."""
    network = json.loads((folder / "model_index.json").read_text()).get("network")
    if network is None:
        return layers_of(folder)
    with torch.device("meta"):
        module = getattr(diffusers, network["_class_name"]).from_config(network)
    return {f"net.{name}": sizes for name, sizes in layers_in(module).items()}
