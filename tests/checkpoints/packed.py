"""Tiny checkpoints whose files are packed, as people have them: `FILES[how](folder, made)` makes of the checkpoint in
`folder` one at `made` and tells what its weights stand for, which `as_floats` writes into a third.

Packed are the networks that draw, write or speak, those that lie in the same files with them, the codecs of speech, and
the encoders of texts and pictures: in their folders as libraries save them, or, networks of diffusers, in single files,
by the names that the library has for weights, and of GGUF encoders of texts by those of llama.cpp, which become folders
as `omnimuse convert` makes them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from omnimuse.compat.single_file import convert
from omnimuse.core.spec import Component
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.models import REGISTRY
from omnimuse.quant.blocks import BLOCKS
from omnimuse.quant.codes import GROUP
from tests.checkpoints import bitsandbytes, eight_bits, gguf_file, llama_cpp, torchao
from tests.checkpoints.parts import packable
from tests.checkpoints.single_file import Tensors, weights

Found = dict[str, Tensors]
"""What weights stand for, by component and name."""
KindOf = Callable[[str, Tensor], str]
"""The format in which a GGUF file has a tensor."""


BEGIN = ("transformer", "unet", "model", "speech")
"""How components begin whose files are packed."""


def ours_of(checkpoint: Checkpoint) -> Mapping[str, Component]:
    """The components of its family; a pipeline from elsewhere has none."""
    if not REGISTRY.covers(checkpoint.arch):
        return {}
    return REGISTRY.spec(checkpoint.arch).components


def networks(checkpoint: Checkpoint) -> list[str]:
    """Those whose files are packed, each with all networks that are in these."""
    among: Iterable[str] = checkpoint.components
    if REGISTRY.covers(checkpoint.arch):
        among = [name for name, part in ours_of(checkpoint).items() if part.network and name in checkpoint.components]
    found = [name for name in among if name.startswith(BEGIN)]
    assert found, f"{checkpoint.arch} has no network whose files could be packed"
    return found


def encoders(checkpoint: Checkpoint) -> list[str]:
    """Those of texts and pictures, whose modules may be those of a library."""
    return [name for name in checkpoint.components if "encoder" in name and checkpoint.has_weights(name)]


def in_folders(pack: Callable[[Path], Tensors], folder: Path, made: Path) -> Found:
    """As a library saves each of them; encoders beside networks from elsewhere are read by libraries, and stay."""
    checkpoint = Checkpoint(Path(shutil.copytree(folder, made)))
    beside = encoders(checkpoint) if REGISTRY.covers(checkpoint.arch) else []
    return {name: pack(checkpoint.weights(name)) for name in (*networks(checkpoint), *beside)}


def in_files(how: str, write: Callable[[Path, Tensors], tuple[Path, Tensors]], folder: Path, made: Path) -> Found:
    """Each in a single file; beside networks of diffusers, those of another library stay as they are. Networks from
    elsewhere get in bfloat16 what is packed.
    """
    like, found = Checkpoint(folder), Found()
    every = networks(like)
    for name in [name for name in every if like.components[name][0] == "diffusers"] or every:
        floats = weights(like.weights(name))
        file, found[name] = write(made.with_name(f"{made.name}-{name}"), floats)
        if not REGISTRY.covers(like.arch):
            packed = {key for key in found[name] if fits(how, key, floats[key])}
            found[name] |= {key: found[name][key].bfloat16().float() for key in packed}
        place = made.with_name(f"{made.name}-of-{name}")
        like = Checkpoint(convert(file, like, place, name, ours=ours_of(like)).folder)
    like.folder.rename(made)
    return found


def in_gguf(path: Path, tensors: Tensors, kind_of: KindOf = gguf_file.usual) -> tuple[Path, Tensors]:
    """In blocks of several formats."""
    file = gguf_file.write(path.with_name(f"{path.name}.gguf"), tensors, kind_of)
    return file, gguf_file.exact(file)


def in_ggufs(folder: Path, made: Path, kind_of: KindOf = gguf_file.usual) -> Found:
    """So, and the encoders of texts as llama.cpp writes them, of kinds that it knows."""
    found = in_files("GGUF", partial(in_gguf, kind_of=kind_of), folder, made.with_name(f"{made.name}-drawing"))
    like = Checkpoint(made.with_name(f"{made.name}-drawing"))
    for name in encoders(like):
        if like.components[name][0] == "transformers" and llama_cpp.architecture(place := like.path(name)):
            file = llama_cpp.write(made.with_name(f"{made.name}-{name}.gguf"), place, kind_of=kind_of)
            found[name] = llama_cpp.stands_for(file, place)
            like = Checkpoint(
                convert(file, like, made.with_name(f"{made.name}-of-{name}"), name, ours=ours_of(like)).folder
            )
    like.folder.rename(made)
    return found


def scaled(path: Path, tensors: Tensors) -> tuple[Path, Tensors]:
    """Floats of 8 bits with a scale for all weights of a layer, as ComfyUI writes them."""
    file, small, floats = path.with_name(f"{path.name}.safetensors"), dict(tensors), dict[str, Tensor]()
    for name in [name for name, tensor in tensors.items() if packable(name, tensor)]:
        scale = tensors[name].abs().max() / 400
        small[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
        small[f"{name.removesuffix('weight')}scale_weight"] = scale
        floats[name] = small[name].float() * scale
    save_file(small, file)
    return file, floats


def fits(how: str, name: str, weight: Tensor) -> bool:
    """Whether rows of `weight`, which files have packed so under this name, are whole groups, and so stay packed."""
    if how == "GGUF":
        return gguf_file.usual(name, weight) in BLOCKS
    return how != "bitsandbytes" or weight.shape[1] % GROUP == 0


def as_floats(folder: Path, found: Mapping[str, Tensors], made: Path) -> Path:
    """The checkpoint in `folder` with these weights, at `made`."""
    checkpoint = Checkpoint(Path(shutil.copytree(folder, made)))
    for name, tensors in found.items():
        bitsandbytes.unpack(checkpoint.weights(name), tensors)
    return made


FILES: Mapping[str, Callable[[Path, Path], Found]] = {
    "bitsandbytes": partial(in_folders, partial(bitsandbytes.pack, kind="nf4")),
    "bitsandbytes, 8 bits": partial(in_folders, partial(bitsandbytes.pack, kind="int8")),
    "torchao": partial(in_folders, partial(torchao.pack, kind="int8")),
    "fp8 files": partial(in_folders, partial(eight_bits.pack, kind="blocks")),
    "GGUF": in_ggufs,
    "scaled fp8": partial(in_files, "scaled fp8", scaled),
}
"""How files are packed: the names are those of features in `tools/feature_list.py`, up to a comma."""
IN_ONE_FILE = ("GGUF", "scaled fp8")
"""Those that come in single files."""
