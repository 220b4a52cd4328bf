"""Fills a run folder from a shipped model, so that training can go on where only the model is left.

python -m tools.train_shapes.begin omnimuse/bundled/shapes --run runs/shapes
python -m tools.train_shapes.train --run runs/shapes --warm
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from diffusers import AutoencoderKL, ZImageTransformer2DModel
from torch import Tensor, nn
from transformers import Qwen3Model

from tools.train_shapes import store


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.float() for name, value in module.state_dict().items()}


def begin(model: Path, run: Path) -> None:
    """Writes tokenizer, autoencoder and weights of ``model`` into ``run`` as the training stages would."""
    run.mkdir(parents=True, exist_ok=True)
    shutil.copytree(model / "tokenizer", run / "tokenizer", dirs_exist_ok=True)
    told = json.loads((model / "training.json").read_text())
    seen = {"samples": told["vae"]["samples"], "spent": told["vae"]["seconds"]}
    store.save(run / "vae.safetensors", _state(AutoencoderKL.from_pretrained(model / "vae")), {"progress": seen})
    parts = {
        "text_encoder": _state(Qwen3Model.from_pretrained(model / "text_encoder")),
        "transformer": _state(ZImageTransformer2DModel.from_pretrained(model / "transformer")),
    }
    store.save(run / "model.safetensors", store.prefixed(parts), {"plan": told["plan"]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="the model's folder")
    parser.add_argument("--run", type=Path, default=Path("runs/shapes"))
    options = parser.parse_args()
    begin(options.model, options.run)
    print(f"{options.run} is ready; go on with: python -m tools.train_shapes.train --run {options.run} --warm")


if __name__ == "__main__":
    main()
