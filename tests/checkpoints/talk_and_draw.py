"""A tiny random checkpoint that talks and draws: what writes in `qwen3.py` beside what draws in `z_image.py`.

A random model writes no marks, so two words that it does write are its marks.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.checkpoints import parts, qwen3, z_image
from tests.checkpoints.wishes import Writer

DEFAULTS = {"height": 32, "width": 48, "num_inference_steps": 3, "guidance_scale": 2.0}
PLACES = (3, 9)
"""Where the marks are in that, at the latest."""


def build(folder: Path, seed: int = 0, prompt: Any = qwen3.PROMPTS[0], **writer: Any) -> Path:
    """Writes the checkpoint into `folder` and returns it; what draws in it is that of Z-Image, what writes is that of
    Qwen3, built with `writer`. Its likeliest answer to `prompt` has its marks.
    """
    z_image.build(folder, turbo=True, seed=seed)
    qwen3.build(folder / "model", seed=seed, **writer)
    written = qwen3.generated(folder / "model", prompt, 7, qwen3.CHOICES[0])
    (folder / "words").mkdir()
    for path in list((folder / "model").iterdir()):
        if path.name not in ("config.json", "generation_config.json", "model.safetensors"):
            path.rename(folder / "words" / path.name)
    index = json.loads((folder / "model_index.json").read_text())
    components = {name: tuple(value) for name, value in index.items() if not name.startswith("_")}
    components |= {"model": ("transformers", "Qwen3ForCausalLM"), "words": ("transformers", "Qwen2Tokenizer")}
    marks = [written[place] for place in PLACES]
    parts.write_index(folder, "TalkAndDrawPipeline", components, {"draw_token_ids": marks})
    (folder / "training.json").write_text(json.dumps({"defaults": DEFAULTS}))
    return folder


def mark(folder: Path, written: Sequence[int]) -> None:
    """Have the first and the last token of what the checkpoint in `folder` has `written` be its marks."""
    first, *_, last = dict.fromkeys(written)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"draw_token_ids": [first, last]}))


def drawing(folder: Path, alone: Path) -> Path:
    """What draws in the checkpoint `folder`, as a checkpoint of its own."""
    shutil.copytree(folder, alone, ignore=shutil.ignore_patterns("model", "words"))
    index = json.loads((alone / "model_index.json").read_text())
    components = {name: tuple(value) for name, value in index.items() if isinstance(value, list) and name in _DRAWS}
    parts.write_index(alone, "ZImagePipeline", components)
    return alone


_DRAWS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")


def generated(folder: Path, prompt: Any, seed: int, choices: Mapping[str, Any]) -> list[int]:
    """The tokens that transformers writes, as `qwen3.generated`."""
    together = folder.parent / f"{folder.name}-writer"
    if not together.exists():
        shutil.copytree(folder / "words", together)
        shutil.copytree(folder / "model", together, dirs_exist_ok=True)
    return qwen3.generated(together, prompt, seed, choices)


WRITERS = (
    Writer(
        arch="TalkAndDrawPipeline",
        build=build,
        prompts=qwen3.PROMPTS,
        choices=qwen3.CHOICES,
        reference=generated,
    ),
)
