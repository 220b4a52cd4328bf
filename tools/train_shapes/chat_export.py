"""Assembles the shipped folder of the chat model from a run folder: its own network, and a line that says who draws.

    python -m tools.train_shapes.chat_export --run runs/shapes --to omnimuse/bundled/shapes-chat

What draws is not stored twice: model_index.json borrows it of the folder beside this one.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from omnimuse.loader.checkpoint import BORROWS
from tools.train_shapes import store
from tools.train_shapes.chat import END, PAD
from tools.train_shapes.talk import CLOSE, OPEN
from tools.train_shapes.writer import Shape

LIMIT = 6_000_000  # bytes of all safetensors together
MOST = 160  # tokens of an answer; the longest that it learns has some 60


def assemble(run: Path, lender: Path, target: Path, notes: dict[str, Any]) -> int:
    """Writes `target`, which is not there, beside `lender`; returns the bytes of its safetensors.

    Raises ValueError above the limit, and where the two folders do not lie beside each other.
    """
    if lender.resolve().parent != target.resolve().parent:
        raise ValueError(f"{target} would borrow of {lender}, which is not beside it")
    tensors, told = store.load(run / "chat.safetensors")
    shutil.copytree(run / "chat_tokenizer", target / "words")
    numbers = _numbers(target / "words" / "tokenizer.json")
    (target / "model").mkdir()
    shape = Shape(tensors["model.embed_tokens.weight"].shape[0])
    config = shape.config | {"dtype": "bfloat16", "eos_token_id": numbers[END], "pad_token_id": numbers[PAD]}
    _write(target / "model" / "config.json", config)
    how = {"do_sample": False, "max_new_tokens": MOST, "eos_token_id": [numbers[END]]}
    _write(target / "model" / "generation_config.json", how)
    half = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}
    save_file(half, target / "model" / "model.safetensors", {"format": "pt"})
    (target / "model" / "model.safetensors").chmod(0o644)
    drawing = json.loads((lender / "model_index.json").read_text())
    parts = {name: value for name, value in drawing.items() if isinstance(value, list)}
    writing = {"model": ["transformers", "Qwen3ForCausalLM"], "words": ["transformers", "TokenizersBackend"]}
    marks = [numbers[OPEN], numbers[CLOSE]]
    index = {"_class_name": "TalkAndDrawPipeline", BORROWS: lender.name, "draw_token_ids": marks, **parts, **writing}
    _write(target / "model_index.json", index)
    defaults = json.loads((lender / "training.json").read_text())["defaults"]
    _write(target / "training.json", {"defaults": defaults, "writer": told["plan"], **told["progress"], **notes})
    size = sum(path.stat().st_size for path in target.rglob("*.safetensors"))
    if size > LIMIT:
        raise ValueError(f"the safetensors have {size} bytes, the limit is {LIMIT}; make the network smaller")
    return size


def _numbers(path: Path) -> dict[str, int]:
    """The ids of special tokens."""
    return {token["content"]: token["id"] for token in json.loads(path.read_text())["added_tokens"]}


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/shapes"))
    parser.add_argument("--to", type=Path, default=Path("omnimuse/bundled/shapes-chat"))
    parser.add_argument("--lender", type=Path, default=Path("omnimuse/bundled/shapes"))
    parser.add_argument("--notes", type=Path, help="a JSON object to add to training.json: grades")
    options = parser.parse_args()
    fresh = options.to.with_name(options.to.name + ".fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    size = assemble(options.run, options.lender, fresh, json.loads(options.notes.read_text()) if options.notes else {})
    shutil.rmtree(options.to, ignore_errors=True)
    fresh.rename(options.to)
    print(f"{options.to}: {size} bytes of safetensors")


if __name__ == "__main__":
    main()
