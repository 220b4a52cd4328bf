"""Assembles the shipped folder of the model of films, in the layout WanPipeline loads, from a run folder.

    python -m tools.train_shapes.film_export --run runs/film --to omnimuse/bundled/shapes-film

Everything is bf16 safetensors; the folder is written beside the old one and swapped in.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline

from tools.train_shapes import store
from tools.train_shapes.course import SHIFT
from tools.train_shapes.data import COLOURS
from tools.train_shapes.export import progress_of, publish, write_record
from tools.train_shapes.film import BACKGROUNDS, FPS, FRAMES, SHAPES, SIDE, TOLD_MOTION
from tools.train_shapes.film_network import (
    LENGTH,
    TRANSFORMER_CONFIG,
    build_text_encoder,
    build_transformer,
    load_or_build_tokenizer,
)
from tools.train_shapes.film_vae import CONFIG

DEFAULTS = {
    "height": SIDE, "width": SIDE, "num_frames": FRAMES, "fps": FPS, "num_inference_steps": 12, "guidance_scale": 1.5,
    "max_sequence_length": LENGTH,
}  # fmt: skip
"""What the engine takes where a request leaves something open."""
LIMIT = 8_000_000  # bytes of all safetensors together


def assemble(run: Path) -> WanPipeline:
    """The pipeline of the run's moving averages, in bf16."""
    tensors, notes = store.load(run / "model.safetensors")
    vae = AutoencoderKLWan(**CONFIG, **notes["statistics"])
    vae.load_state_dict(store.load(run / "vae.safetensors")[0])
    tokenizer = load_or_build_tokenizer(run / "tokenizer")
    text_encoder, transformer = build_text_encoder(len(tokenizer)), build_transformer()
    text_encoder.load_state_dict(store.under("text_encoder", tensors))
    transformer.load_state_dict(store.under("transformer", tensors))
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT)
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder.to(torch.bfloat16),
        vae=vae.to(torch.bfloat16),
        scheduler=scheduler,
        transformer=transformer.to(torch.bfloat16),
    )


def export(run: Path, target: Path, notes: Path | None) -> int:
    """Writes ``target``; returns the bytes of its safetensors."""
    told = {
        "transformer": TRANSFORMER_CONFIG,
        **progress_of(run),
        "resolution": SIDE,
        "frames": FRAMES,
        "defaults": DEFAULTS,
        "words": {
            "shapes": SHAPES, "colours": COLOURS, "backgrounds": BACKGROUNDS, "motions": [*TOLD_MOTION.values()],
        },
        **(json.loads(notes.read_text()) if notes else {}),
    }  # fmt: skip

    def write(folder: Path) -> None:
        assemble(run).save_pretrained(folder)
        write_record(folder, told)

    return publish(target, write, LIMIT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/film"))
    parser.add_argument("--to", type=Path, default=Path("omnimuse/bundled/shapes-film"))
    parser.add_argument("--notes", type=Path, help="a JSON object to add to training.json: figures, history")
    options = parser.parse_args()
    print(f"{options.to}: {export(options.run, options.to, options.notes)} bytes of safetensors")


if __name__ == "__main__":
    main()
