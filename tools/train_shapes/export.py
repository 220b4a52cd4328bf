"""Assembles the shipped folder, in the layout ZImagePipeline loads, from a run folder.

    python -m tools.train_shapes.export --run runs/shapes --to omnimuse/bundled/shapes

Everything is bf16 safetensors; the folder is written beside the old one and swapped in.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline

from tools.train_shapes import store
from tools.train_shapes.course import SHIFT
from tools.train_shapes.data import COLOURS, SHAPES, SIZE
from tools.train_shapes.network import TRANSFORMER_CONFIG, build_text_encoder, build_transformer
from tools.train_shapes.tokenizer import load_or_train
from tools.train_shapes.vae import CONFIG

DEFAULTS = {
    "height": SIZE, "width": SIZE, "num_inference_steps": 10, "guidance_scale": 3.0, "max_sequence_length": 128,
}  # fmt: skip
"""What the engine takes where a request leaves something open."""
LIMIT = 12_000_000  # bytes of all safetensors together


def assemble(run: Path) -> ZImagePipeline:
    """The pipeline of the run's moving averages, in bf16."""
    tensors, notes = store.load(run / "model.safetensors")
    statistics = notes["statistics"]
    vae = AutoencoderKL(**CONFIG, shift_factor=statistics["shift"], scaling_factor=statistics["scale"])
    vae.load_state_dict(store.load(run / "vae.safetensors")[0])
    tokenizer = load_or_train(run / "tokenizer")
    text_encoder, transformer = build_text_encoder(len(tokenizer)), build_transformer()
    text_encoder.load_state_dict(store.under("text_encoder", tensors))
    transformer.load_state_dict(store.under("transformer", tensors))
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT, use_dynamic_shifting=False),
        vae=vae.to(torch.bfloat16),
        text_encoder=text_encoder.to(torch.bfloat16),
        tokenizer=tokenizer,
        transformer=transformer.to(torch.bfloat16),
    )


def record(run: Path, notes: Path | None) -> dict:
    """What ``training.json`` says: sizes, plan, samples seen, and what ``notes`` adds (figures, history)."""
    return {
        "transformer": TRANSFORMER_CONFIG,
        **progress_of(run),
        "resolution": SIZE,
        "defaults": DEFAULTS,
        "words": {"shapes": SHAPES, "colours": COLOURS},
        **(json.loads(notes.read_text()) if notes else {}),
    }


def progress_of(run: Path) -> dict:
    """By which plan the run has trained, how long, and with how many samples."""
    _, model = store.load(run / "model.safetensors")
    _, autoencoder = store.load(run / "vae.safetensors")
    plan = {k: v for k, v in model["plan"].items() if k != "run"}
    return {
        "vae": {
            "samples": autoencoder["progress"]["samples"],
            "seconds": round(autoencoder["progress"]["spent"]),
        },
        "plan": plan,
        "samples": model["progress"]["samples"],
        "seconds": round(model["progress"]["spent"]),
        "held_out_share": plan["held_share"],
    }


def export(run: Path, target: Path, notes: Path | None) -> int:
    """Writes ``target``; returns the bytes of its safetensors."""

    def write(folder: Path) -> None:
        assemble(run).save_pretrained(folder)
        write_record(folder, record(run, notes))

    return publish(target, write, LIMIT)


def write_record(folder: Path, content: dict) -> None:
    """``training.json``, which has the defaults, too."""
    (folder / "training.json").write_text(json.dumps(content, indent=1) + "\n")


def publish(target: Path, write: Callable[[Path], None], limit: int) -> int:
    """Has a folder written beside ``target`` and swaps it in; returns the bytes of its safetensors.

    Raises ValueError above the limit.
    """
    fresh, old = target.with_name(target.name + ".fresh"), target.with_name(target.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    write(fresh)
    for path in fresh.rglob("*.safetensors"):
        path.chmod(0o644)
    size = sum(path.stat().st_size for path in fresh.rglob("*.safetensors"))
    if size > limit:
        raise ValueError(f"the safetensors have {size} bytes, the limit is {limit}; make the networks smaller")
    shutil.rmtree(old, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/shapes"))
    parser.add_argument("--to", type=Path, default=Path("omnimuse/bundled/shapes"))
    parser.add_argument("--notes", type=Path, help="a JSON object to add to training.json: figures, history")
    options = parser.parse_args()
    print(f"{options.to}: {export(options.run, options.to, options.notes)} bytes of safetensors")


if __name__ == "__main__":
    main()
