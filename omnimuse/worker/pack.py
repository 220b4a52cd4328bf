"""Packs a checkpoint once for all: a new folder, whose weights are to the bit those of quantizing at every start.

`omnimuse quantize` calls it. Tensors keep the names that they have in the files, and what is not packed its format, so
that the folder is read by the same rules. One tensor is packed at a time, and one file is held.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from omnimuse.core.config import Choice, Config
from omnimuse.core.errors import ConfigError, ModelError, RequestError
from omnimuse.loader.checkpoint import INDEX, Checkpoint
from omnimuse.loader.files import PICKLES, weight_files
from omnimuse.loader.filling import slots
from omnimuse.loader.fits import NAME as MEASURED
from omnimuse.loader.headers import Stored, opened
from omnimuse.loader.identity import write_name
from omnimuse.loader.named import rules_of
from omnimuse.loader.packed import SHARD, new_folder, save_in_shards
from omnimuse.loader.plan import Piece
from omnimuse.loader.sources import Source
from omnimuse.loader.voices import VOICES
from omnimuse.loader.weights import matched, refuse_no_numbers
from omnimuse.media.destination import check_new_folder
from omnimuse.parallel.mesh import Mesh
from omnimuse.quant.linear import QuantizedLinear, packed_as, quantized_layers
from omnimuse.quant.packings import PACKINGS, Rows
from omnimuse.worker.build import Build, begin, construct, formats, run
from omnimuse.worker.quantize import quantize


@dataclass(frozen=True)
class Packed:
    """The new folder, what was packed in it and how, and the bytes of weights before and after."""

    folder: Path
    choices: tuple[Choice, ...]
    before: int
    after: int


def pack_checkpoint(config: Config, target: Path, shard: int = SHARD) -> Packed:
    """Write the model of `config`, packed as it says, to the new folder `target`: all of it, or nothing.

    ConfigError and ModelError as at a start; RequestError if `target` exists, StorageError if the disk refuses it.
    """
    if not config.quantize.schemes:
        raise ConfigError("nothing is to be packed; say how: --quantize int8, or COMPONENT=SCHEME")
    check_new_folder(target)
    under = begin(config, Mesh.single())
    if (spec := under.found.spec).library:
        raise ConfigError(
            f"the networks of {spec.arch} are those of {spec.library}, whose weights are packed at every start: leave "
            "the folder as it is, and start it with --quantize"
        )
    run(under, (construct, formats, quantize))
    checkpoint = under.found.checkpoint
    if checkpoint.lender is not None:
        raise ConfigError(f"{checkpoint.folder} has components in {checkpoint.lender}; pack that one")
    if checkpoint.files is not None:
        raise ConfigError(
            f"{checkpoint.folder} has its weights in single files, which are not packed; start it with --quantize"
        )
    if checkpoint.folder.resolve() in target.resolve().parents:
        raise RequestError(f"{target} is in the model's own folder; name a folder outside of it", "output")
    with new_folder(target) as part:
        folders: dict[Path, list[str]] = {}  # some models have all their components in one
        for name, module in under.modules.items():
            if quantized_layers(module):
                folders.setdefault(checkpoint.path(name), []).append(name)
        _copy(checkpoint, part, list(folders))
        _write_index(under, part)
        for folder, names in folders.items():
            files = weight_files(checkpoint.weights(names[0]))
            stem = "model" if files.paths[0].name.startswith("model") else "diffusion_pytorch_model"
            save_in_shards(_contents(under, names), part / folder.relative_to(checkpoint.folder), stem, shard)
    chosen = tuple(choice for choice in under.choices if choice.topic == "quantize")
    return Packed(target, chosen, _size(checkpoint.folder, checkpoint.flat), _size(target, checkpoint.flat))


def _contents(under: Build, names: Sequence[str]) -> Iterator[tuple[str, Tensor | Rows]]:
    """Every tensor in the files that some components share; packed, where its layer is."""
    checkpoint, stored = under.found.checkpoint, dict[str, Stored]()
    layers: dict[str, tuple[Piece, QuantizedLinear]] = {}
    read = set[str]()
    for name in names:
        module = under.modules[name]
        rules = rules_of(under.found.spec.components[name], checkpoint, name, module)
        stored, plan, _ = matched(checkpoint.weights(name), slots(module), rules)
        read |= plan.pieces.keys()
        ours = {f"{path}.weight": layer for path, layer in quantized_layers(module).items()}
        layers |= {source: (piece, ours[piece.target]) for source, piece in plan.pieces.items() if piece.target in ours}
    schemes = {packing: key for key, packing in PACKINGS.items()}
    for path in dict.fromkeys(each.path for each in stored.values()):
        with opened(path) as handle:
            for source in (source for source, each in stored.items() if each.path == path):
                content = Source(handle, source, stored[source]).whole()
                if source in read:
                    refuse_no_numbers(path, source, content)
                if source not in layers or isinstance(content, Rows):
                    yield source, content
                    continue
                piece, layer = layers[source]
                if piece.start is not None and piece.dim != 0:
                    raise ModelError(
                        f"{source} is columns of {piece.target}, which cannot be packed without the rest; name its "
                        "layer in --quantize-skip"
                    )
                yield source, packed_as(schemes[layer.scheme], content)


def _copy(checkpoint: Checkpoint, part: Path, packed: list[Path]) -> None:
    """Everything but the weights in the folders of what is packed, those beside all components, which are the same in
    one file, and what was measured of the model as it is.
    """
    endings, folder = (".safetensors", ".index.json", *PICKLES), checkpoint.folder
    without = packed if checkpoint.flat else [*packed, folder]

    def skipped(place: str, names: list[str]) -> list[str]:
        weights = [name for name in names if Path(place) in without and name.endswith(endings) and name != VOICES]
        return [*weights, MEASURED] if Path(place) == folder else weights

    shutil.copytree(folder, part, ignore=skipped)


def _write_index(under: Build, part: Path) -> None:
    """The folder has another name than the model: its index says which published one it is taken for."""
    write_name(part / INDEX, under.found.recognised.id)


def _size(folder: Path, flat: bool) -> int:
    """Bytes of weights of components, which are in folders of their own unless they lie `flat`."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors") if flat or path.parent != folder)
