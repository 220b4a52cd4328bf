"""Tiny checkpoints for pipelines of the contract: those of the families, under the class names of the plugin."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

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
