"""Small random adapters for tiny checkpoints, written as trainers write them: `write(file, layers)`."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Layers = Mapping[str, tuple[int, int]]
"""Linear layers by name: outputs and inputs."""

RANK = 4


def layers_of(folder: Path, component: str = "transformer") -> dict[str, tuple[int, int]]:
    """The linear layers of a component, as the library that saved it names them; of a checkpoint that no library has
    saved, those of its blocks, as its file does.
    """
    if not (folder / "model_index.json").exists():
        return _of_blocks(folder)
    library, kind = json.loads((folder / "model_index.json").read_text())[component]
    own = {"diffusers": diffusers, "transformers": transformers}  # else a pipeline's own folder
    source = own.get(library) or getattr(diffusers.pipelines, library)
    with torch.device("meta"):
        return layers_in(_empty(getattr(source, kind), folder / component))


def layers_in(module: nn.Module) -> dict[str, tuple[int, int]]:
    """The linear layers of a network."""
    return {
        name: (part.out_features, part.in_features)
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear)
    }


def _of_blocks(folder: Path) -> dict[str, tuple[int, int]]:
    """Those of the language model."""
    with safe_open(folder / "ema.safetensors", "pt") as opened:
        names = [name for name in opened.keys() if name.startswith("language_model.model.layers.")]  # noqa: SIM118
        shapes = {name.removesuffix(".weight"): opened.get_slice(name).get_shape() for name in names}
    return {name: (shape[0], shape[1]) for name, shape in shapes.items() if len(shape) == 2}


def layers_telling(folder: Path, begins: str = r"(thinker\.)?model\.layers\.") -> dict[str, tuple[int, int]]:
    """Those of the layers of what writes, or of what names begin so, as the files of its checkpoint name them."""
    found = dict[str, tuple[int, int]]()
    for file in _telling(folder):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                if re.match(begins, name) and name.endswith("_proj.weight"):
                    outputs, inputs = opened.get_slice(name).get_shape()
                    found[name.removesuffix(".weight")] = outputs, inputs
    return found


def telling(folder: Path) -> Path | None:
    """An adapter, as PEFT writes one, of all that writes or speaks in the checkpoint `folder`; none where names of its
    files fit none.
    """
    layers = layers_telling(folder, r"(thinker\.|talker\.)?model\.layers\.")
    file = folder.with_name(f"{folder.name}.telling.safetensors")
    return write(file, layers, peft("base_model.model.")) if layers else None


def merged(folder: Path, changed: Path, adapter: Path, scale: float) -> Path:
    """A copy of the checkpoint in `folder` to whose weights is added what `adapter`, as PEFT names it, adds to them."""
    shutil.copytree(folder, changed)
    products = load_file(adapter)
    for file in _telling(changed):
        tensors = load_file(file)
        for name in tensors:
            layer = f"base_model.model.{name.removesuffix('.weight')}"
            if f"{layer}.lora_A.weight" in products:
                tensors[name] += scale * products[f"{layer}.lora_B.weight"] @ products[f"{layer}.lora_A.weight"]
        save_file(tensors, file, {"format": "pt"})
    return changed


def _telling(folder: Path) -> Iterator[Path]:
    """The files of what writes, beside which there may be others."""
    yield from ((folder / "model") if (folder / "model").is_dir() else folder).glob("*.safetensors")


def _empty(kind: Any, folder: Path) -> nn.Module:
    if hasattr(kind, "load_config"):
        made: nn.Module = kind.from_config(kind.load_config(folder))
        return made
    made = kind(kind.config_class.from_pretrained(folder))
    return made


def products(layers: Layers, seed: int = 0, rank: int = RANK) -> dict[str, tuple[Tensor, Tensor]]:
    """A down and an up matrix for every layer, strong enough to be seen in what is drawn."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(rank, inputs, generator=generator) / inputs**0.5,
            torch.randn(outputs, rank, generator=generator) / rank**0.5 * 0.3,
        )
        for name, (outputs, inputs) in layers.items()
    }


Style = Callable[[str, Tensor, Tensor], dict[str, Tensor]]
"""(layer, down, up) -> the tensors of a file."""


def peft(prefix: str = "transformer.") -> Style:
    """As PEFT and diffusers name them."""
    return lambda name, down, up: {f"{prefix}{name}.lora_A.weight": down, f"{prefix}{name}.lora_B.weight": up}


def kohya(prefix: str = "lora_unet_", alpha: float = 2.0) -> Style:
    """As Kohya's trainers name them: underscores, and an alpha beside each."""

    def style(name: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
        layer = prefix + name.replace(".", "_")
        return {
            f"{layer}.lora_down.weight": down,
            f"{layer}.lora_up.weight": up,
            f"{layer}.alpha": torch.tensor(alpha),
        }

    return style


def write(
    file: Path,
    layers: Layers,
    style: Style | None = None,
    *,
    seed: int = 0,
    rank: int = RANK,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A file with a random adapter for `layers`."""
    named = style or peft()
    tensors: dict[str, Tensor] = {}
    for name, (down, up) in products(layers, seed, rank).items():
        tensors |= named(name, down, up)
    save_file(tensors, file, metadata=dict(metadata or {}) or None)
    return file


def worn_by_the_reference(
    folder: Path, changed: Path, adapters: Mapping[Path, float], second: Collection[Path] = ()
) -> Path:
    """A copy of the checkpoint in `folder` into whose weights diffusers itself has put `adapters` with their scales,
    those that are `second` into `transformer_2`.
    """
    index = json.loads((folder / "model_index.json").read_text())
    kind = getattr(diffusers, index["_class_name"])
    unneeded = set(inspect.signature(kind).parameters) & (index.keys() | {"text_encoder_3", "tokenizer_3"})
    unneeded -= {*kind._lora_loadable_modules, "scheduler", "is_distilled"}
    pipe: Any = kind.from_pretrained(folder, dtype=torch.float32, **dict.fromkeys(unneeded))
    names = [f"adapter_{number}" for number, _ in enumerate(adapters)]
    for name, file in zip(names, adapters, strict=True):
        into = {"load_into_transformer_2": True} if file in second else {}
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name, **into)
    pipe.set_adapters(names, list(adapters.values()))
    parts = pipe.get_list_adapters()
    pipe.fuse_lora(components=list(parts), adapter_names=names)
    pipe.unload_lora_weights()
    shutil.copytree(folder, changed)
    for part in parts:
        shutil.rmtree(changed / part)
        getattr(pipe, part).save_pretrained(changed / part)
    return changed
