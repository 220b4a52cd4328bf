"""A small checkpoint folder made of text and a few numbers, for tests that need no real network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints.fixtures import z_image_folder  # noqa: F401  a fixture


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A complete checkpoint `Toy`: a network, a tokenizer, a scheduler, a null component and an option."""
    folder = tmp_path / "toy"
    index = {
        "_class_name": "ToyPipeline",
        "_diffusers_version": "0.42.1",
        "net": ["diffusers", "ToyNet"],
        "net_2": [None, None],
        "tokenizer": ["transformers", "ToyTokenizerFast"],
        "scheduler": ["diffusers", "ToyScheduler"],
        "boundary_ratio": 0.875,
        "flags": [1, 2],
    }
    for name in ("net", "tokenizer", "scheduler"):
        (folder / name).mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "net/config.json").write_text('{"width": 4}')
    (folder / "scheduler/scheduler_config.json").write_text('{"shift": 3.0}')
    save_file({"weight": torch.zeros(2, 2)}, folder / "net/diffusion_pytorch_model.safetensors")
    return folder
